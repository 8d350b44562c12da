"""What the sweeps say: claims -> intervals -> verdicts -> a Markdown table.

Plain Python and numpy. arms.py reads the rows and says what arms and sweeps are, rates.py what a
best rate is.

    gap            lowest test NLL of one arm at the end minus that of another, taken within a seed.
                   With the same seed both arms saw the same samples in the same order, so a lucky
                   order cancels. On nano, r = 64 ends at 0.4605, 0.4850 and 0.4666 in three seeds,
                   and at 0.0340, 0.0560 and 0.0466 above full fine-tuning.
    gain           by how much full fine-tuning lowers the base's NLL, in its best seed. Some gaps
                   are judged as a share of it

How a claim is judged. It says that a quantity lies in an interval: "at most 2% of the gain behind".
S seeds measure it with mean d and standard deviation s. By the rule the quantity then lies between

    d - below - t s / sqrt(S)   and   d + above + t s / sqrt(S)

    supported      all of this lies inside the claim's interval
    contradicted   all of it lies outside
    undecided      everything else. The table then says how many seeds, or which rates, could decide

t s / sqrt(S) is what the seeds leave open. t is the 95 % point of Student's t with S - 1 degrees of
freedom: 2.92 for three seeds, so that they leave 1.69 s open to either side. Each end is wrong for
at most 5 % of all samples of seeds, and so is each verdict, because one end decides it. (Of twenty
claims exactly at their boundary, one is called supported by chance.) If differences of two arms are
normal, t is exact for two seeds and more, which no rule of thumb is: the mean of two values exceeds
their distance by luck in 30 % of cases, half of them to either side.

Two seeds tell little about s (t is 6.31), and one nothing. Then s is what other seeds have shown:
those under results/ for the same model, data, steps and test samples, with their degrees of freedom
(find_noise). "Noise from results/" in the table says so.

More seeds do not help against a coarse grid, because all seeds have the same one. `below` and
`above` are what it leaves open (rates.fit_errors): how much lower or higher the quantity may be
than what was measured.

    a gap                   each arm's true minimum lies at most its dip below its lowest measured
                            NLL. So the gap can be smaller by the first arm's dip, and larger by
                            the second's
    a ratio of best rates   ln(ratio) can be off by the larger of the two arms' errors, either way.
                            Ratios are judged by their logarithm
    a step                  can be off by the distance between two evaluations

These are the means over seeds. Worked: the gaps above have d = 0.0455 and s = 0.0110, so
t s / sqrt(3) = 0.0186. The dips are 0.0160 of r = 64 and 0.0018 of full fine-tuning. So the gap is
0.0110 to 0.0659. Two percent of the gain are 0.0745: *supported*.

results/rule.md has the rule's errors, by simulation, and the number of seeds that it needs. They
hold if the number of seeds was fixed beforehand. Whoever looks after each new seed and stops at a
verdict errs two to three times as often. What is convention: 5 %; that 2 % of the gain is what one
would hardly notice in use, 0.07 nats of nano's 3.7; and a factor of two for "about", the step from
rate to rate in the tutorial's grids.

The lowest NLL that was measured is compared, not the parabola's minimum. With rates a factor of
three apart the parabola's is farther off, because the U is steep on one side: in the simulation one
seed's gap by 0.067 nats instead of 0.031. With a factor of two both are off by 0.022 to 0.025.
Either is chosen by the test NLL that is then compared, which flatters every arm a little.

The claims are those of "LoRA Without Regret" (Schulman et al., 2025); see "the claims" below.
"""
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arms import MARGIN, Arm, Sweep, Sweeps, name_arms, read_runs, select_sweeps
from plumbing.text import count_noun, markdown_table
from rates import lora_rate_multiple

RESULTS = Path(__file__).resolve().parent / "results"
ERROR = 0.05        # how often a verdict may be wrong by chance
ABOUT = (1 / 2, 2)  # "about": a factor of two to either side
WITHIN, BEYOND, POSITIVE = (-math.inf, MARGIN), (MARGIN, math.inf), (0.0, math.inf)
AS_GOOD = (-MARGIN, MARGIN)
MOST_SEEDS = 50     # that are worth naming


def drop_nan(values) -> np.ndarray:
    """Leave out nan: a seed that is missing, or that does not count."""
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


# ----- noise --------------------------------------------------------------------------------------

class Noise(NamedTuple):
    sd: float           # standard deviation between seeds
    df: int             # degrees of freedom: from how many independent differences it is known


@functools.cache
def student_t(df: int) -> float:
    """The value that Student's t stays below with probability 1 - ERROR.

    With t = sqrt(df) tan(a), the density (1 + t^2 / df)^(-(df + 1) / 2) dt is cos(a)^(df - 1) da,
    up to a constant. It is summed over the angles a from -pi / 2 to pi / 2.

    df = 1: every angle is equally likely, 95 % of them lie below 0.45 pi, and t = tan(0.45 pi) =
    6.31.
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    middles = (angles[:-1] + angles[1:]) / 2
    below = np.cumsum(np.cos(middles) ** (df - 1))
    return math.sqrt(df) * math.tan(np.interp((1 - ERROR) * below[-1], below, angles[1:]))


def pool_noise(sweeps: list[Sweep], quantity) -> Noise | None:
    """The noise of one arm's quantity(arm), (S,), after what all arms of a seed have in common.

    What is left of the (A, S) numbers after taking away the mean of each arm and of each seed. A
    lucky seed helps all arms alike and cancels in a gap, so it must not count as noise. With A arms
    and S seeds (A - 1) (S - 1) numbers are left free. A gap has twice this variance. Arms of
    several batches or sweeps have no luck in common, so each is a table of its own.
    """
    squares, df = 0.0, 0
    for sweep in sweeps:
        for batch in {arm.batch for arm in sweep.arms}:
            table = np.array([quantity(arm) for arm in sweep.arms
                              if arm.batch == batch and arm.counts.all()])      # (A, S)
            if len(table) < 2 or table.shape[1] < 2:
                continue
            rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
            squares += (rest ** 2).sum()
            df += (len(table) - 1) * (table.shape[1] - 1)
    return Noise(math.sqrt(squares / df), df) if df else None


# What claims are about, of one arm, (S,): its lowest NLL, and the logarithm of its best rate. This
# is noisier the closer the rates are: a parabola's minimum is its slope over its curvature, and the
# slope is a difference of NLLs over a step h. So what is pooled is h times the logarithm, less the
# arm's mean, because seeds of one arm may have other steps.
QUANTITIES = {"nll": lambda arm: arm.best.nll,
              "rate": lambda arm: deviations(np.log(arm.best.vertex)) * arm.best.step}


def deviations(values):
    return values - values.mean()


def find_noise(sweep) -> dict[str, Noise]:
    """{"nll", "rate"}: what results/ knows of one arm's noise in runs like those of `sweep`.

    They have its model, data and steps, because shorter runs have more noise: on nano 0.020 nats at
    step 10, 0.015 at step 40. And they begin at its test NLL, because fewer test samples have more
    noise, too. After equal samples nothing is known: a large batch takes few steps there. Within
    one sweep, one noise is assumed for all arms and batch sizes. {} if nothing is known.
    """
    alike = [known for known in known_sweeps()
             if names_of(known) == names_of(sweep) and known.end == sweep.end
             and begin_alike(known, sweep)]
    pooled = {name: pool_noise(alike, quantity) for name, quantity in QUANTITIES.items()}
    return {name: noise for name, noise in pooled.items() if noise}


@functools.cache
def known_sweeps() -> list[Sweep]:
    """Those under results/ that the findings are about."""
    return [sweeps.usual for path in sorted(RESULTS.glob("findings_*/rows.csv"))
            for sweeps in select_sweeps(read_runs(path.parent))]


def names_of(sweep) -> tuple[str, str]:
    return Path(sweep.model).name, Path(sweep.data).name


def begin_alike(*sweeps: Sweep) -> bool:
    """Whether the test NLLs at step 0 are one to 1 part in 10,000: the test samples are the same.

    The rows do not say how many there were. Nano begins at 4.1464 on the first 128 of its test
    samples, and at 4.1471 on the first 96. Rounding in float32 explains less than that, in 16 bits
    more: other precisions have no known noise either.
    """
    one, other = ([np.nanmean(arm.curves[:, 0]) for arm in sweep.arms] for sweep in sweeps)
    return bool(np.isclose(np.array(one)[:, None], other, rtol=1e-4).any())


# ----- the rule -----------------------------------------------------------------------------------

class Claim(NamedTuple):
    text: str
    quantity: str                   # what was measured, in words
    values: np.ndarray              # (S,) what each seed measured
    interval: tuple[float, float]   # the claim holds if the quantity lies in it
    arms: list[Arm] = []            # whose best rates must be bracketed
    below: float = 0.0              # how far the quantity may lie below the mean, in all seeds
    above: float = 0.0
    finer: str = ""                 # what would make these smaller
    known: Noise | None = None      # from results/
    ratio: bool = False             # judged by its logarithm: half and twice are equally far from 1


class Verdict(NamedTuple):
    word: str           # supported, contradicted or undecided
    low: float          # the quantity lies between these, or nan
    high: float
    why: str


def judge_claim(claim) -> Verdict:
    """See the rule at the top."""
    values, low, high = drop_nan(claim.values), *claim.interval
    missing = describe_missing(claim.arms)
    if len(values) == 0:
        return Verdict("undecided", math.nan, math.nan, missing or "there is no number for it")
    if claim.ratio:
        values, low, high = np.log(values), math.log(low), math.log(high)
    noise = choose_noise(values, claim.known)
    if noise is None:
        return Verdict("undecided", math.nan, math.nan, "one seed shows no noise; run two or more")
    reasons = [missing] if missing else []
    if noise is claim.known:
        degrees = count_noun(noise.df, "degree")
        reasons.append(f"noise from results/: {noise.sd:.2g}, {degrees} of freedom")
    ends = find_interval(values.mean(), noise, len(values), claim)
    word = compare(*ends, low, high)
    if word == "undecided":
        reasons.append(say_what_decides(values.mean(), noise, len(values), claim, low, high))
    if claim.ratio:
        ends = np.exp(ends)
    return Verdict(word, *ends, "; ".join(reasons))


def choose_noise(values, known: Noise | None) -> Noise | None:
    """That of the values; of fewer than three the known one, if there is one."""
    if len(values) < 3 and known:
        return known
    return Noise(values.std(ddof=1), len(values) - 1) if len(values) > 1 else None


def find_interval(mean, noise, n_seeds: int, claim) -> tuple[float, float]:
    half = student_t(noise.df) * noise.sd / math.sqrt(n_seeds)
    return mean - claim.below - half, mean + claim.above + half


def compare(low, high, claim_low, claim_high) -> str:
    """Is low to high inside the claim's interval, outside, or neither?"""
    above = claim_low < low or claim_low == -math.inf       # even where the grid leaves all open,
    below = high < claim_high or claim_high == math.inf     # and low or high is infinite
    if above and below:
        return "supported"
    if high < claim_low or claim_high < low:
        return "contradicted"
    return "undecided"


def say_what_decides(mean, noise, n_seeds: int, claim, low, high) -> str:
    """How many seeds would decide if mean and deviation stayed as they are, or else what could."""
    if compare(mean - claim.below, mean + claim.above, low, high) == "undecided":
        return f"more seeds cannot decide; {claim.finer}"
    for n in range(n_seeds + 1, MOST_SEEDS + 1):
        of_more = noise if n < 3 and noise is claim.known else noise._replace(df=n - 1)
        if compare(*find_interval(mean, of_more, n, claim), low, high) != "undecided":
            return f"about {n} seeds would decide, if mean and deviation stay as they are"
    return f"more than {MOST_SEEDS} seeds would be needed; {claim.finer}"


def describe_missing(arms: list[Arm]) -> str:
    """Which seeds do not count, and the rates to add: "" if all do."""
    run = np.all([arm.has_seed for arm in arms], axis=0).sum() if arms else 0
    counting = np.all([arm.counts for arm in arms], axis=0).sum() if arms else 0
    if run == counting:
        return ""
    rates = []
    for arm, name in name_arms(arms).items():
        for lr, seeds in arm.rates_to_add().items():
            of_seeds = "" if len(seeds) == arm.has_seed.sum() else f" in seed {join(seeds)}"
            rates.append(f"{name} at {lr:.3g}{of_seeds}")
    return (f"the best rate is bracketed in {counting} of {count_noun(int(run), 'seed')}: "
            f"run {'; '.join(rates)}")


def join(items) -> str:
    return ", ".join(map(str, items))


# ----- making a claim -----------------------------------------------------------------------------

def mean_over_counting(values, arms: list[Arm]) -> float:
    """The mean over the seeds in which all `arms` count; 0 if there are none: nothing is judged."""
    counting = np.all([arm.counts for arm in arms], axis=0)
    return float(values[counting].mean()) if counting.any() else 0.0


def only_counting(values, arms: list[Arm]) -> np.ndarray:
    """The values of seeds in which all arms bracket their best rate, (S,). The others are nan."""
    return np.where(np.all([arm.counts for arm in arms], axis=0), values, np.nan)


def suggest_rates(arms: list[Arm], errors: list[float]) -> str:
    """Rates between those of the arm whose error is the largest."""
    arm = arms[int(np.argmax(errors))]
    if not arm.counts.any():
        return ""
    return f"rates closer together could: {arm}, batch {arm.batch:g}, at " + " and ".join(
        f"{lr:.3g}" for lr in arm.rates_between())


def claim_sum(text, quantity, plus: list[Arm], minus: list[Arm], interval, noise: dict,
              unit: float = 1.0) -> Claim:
    """The lowest NLLs of the arms `plus` less those of `minus`, in nats or as shares of `unit`.

    The variances of all arms add up, and so do the dips on either side.
    """
    arms = [*plus, *minus]
    values = sum(arm.best.nll for arm in plus) - sum(arm.best.nll for arm in minus)
    dips = [mean_over_counting(arm.best.dip, arms) for arm in arms]
    known = noise.get("nll")
    if known:
        known = known._replace(sd=known.sd * math.sqrt(len(arms)) / unit)
    return Claim(text, quantity, only_counting(values, arms) / unit, interval, arms,
                 below=sum(dips[:len(plus)]) / unit, above=sum(dips[len(plus):]) / unit,
                 finer=suggest_rates(arms, dips), known=known)


def claim_gap(text, arm, other, noise: dict, interval=POSITIVE, gain=None) -> Claim:
    """How far `arm` ends above `other`, in nats or as a share of `gain`."""
    quantity = f"{arm} above {other.place}"
    if gain is not None:
        quantity += ", share of the gain"
    return claim_sum(text, quantity, [arm], [other], interval, noise, gain or 1.0)


def claim_rate(text, arm, other, multiple: float, noise: dict) -> Claim:
    """The best rate of `arm` is about `multiple` times that of `other`."""
    low, high = (multiple * factor for factor in ABOUT)
    arms = [arm, other]
    errors = [mean_over_counting(one.best.error, arms) for one in arms]
    known = noise.get("rate")
    if known:
        steps = [mean_over_counting(one.best.step, arms) or math.inf for one in arms]
        known = known._replace(sd=known.sd * math.hypot(1 / steps[0], 1 / steps[1]))
    return Claim(f"{text} ({low:g} to {high:g})", f"rate of {arm} / rate of {other}",
                 only_counting(arm.best.vertex / other.best.vertex, arms), (low, high), arms,
                 below=max(errors), above=max(errors), finer=suggest_rates(arms, errors),
                 known=known, ratio=True)


# ----- the claims ---------------------------------------------------------------------------------

def list_claims(sweeps: Sweeps) -> list[Claim]:
    """All claims that the runs allow."""
    usual, long, *equal = sweeps
    noise = find_noise(usual)
    claims = [*claim_ranks(usual, noise)]
    for sweep in equal:
        if sweep:
            claims += claim_batch_sizes(sweep, noise)
    claims += [*claim_placements(usual, noise), *claim_alpha(usual, noise)]
    if long:
        claims += claim_capacity(long)
    return claims


def claim_ranks(sweep, noise: dict) -> Iterator[Claim]:
    """Findings 1 and 2: how well each rank learns, and at which rate."""
    full, ranks, gain = sweep.full_arm(), sweep.lora_arms(), sweep.full_gain()
    if not full:
        return
    if len(ranks) > 1:      # nobody can say whether a single rank is high or low
        yield claim_gap("a high rank learns as well as full fine-tuning: "
                        f"at most {MARGIN:.0%} of the gain behind", ranks[-1], full, noise, WITHIN,
                        gain)
        yield claim_gap(f"too low a rank falls behind: more than {MARGIN:.0%} of the gain",
                        ranks[0], full, noise, BEYOND, gain)
    multiple = lora_rate_multiple(sweep.steps[-1])
    for arm in ranks:
        yield claim_rate(f"LoRA's best rate is about {multiple} times that of full fine-tuning",
                         arm, full, multiple, noise)


def claim_batch_sizes(sweep, noise: dict) -> Iterator[Claim]:
    """Finding 3: LoRA is said to lose more to full fine-tuning as the batch grows, at every rank.

    Schulman et al. see the reason in the product B A, not in its rank. Full fine-tuning takes its
    steps in W itself. LoRA steps in B and in A, and to first order W moves by dB A + B dA: what B
    can change depends on the present A, and the other way around. That is another path than W's,
    and a higher rank does not make it the same. Why the batch matters is not proven. A plausible
    reason: in small batches the gradient's noise is what limits both methods, and it hides how well
    each step uses the gradient. In large ones the noise is gone and the difference remains.

    After equal steps a larger batch has seen more samples, after equal samples it has taken fewer
    steps. Both are claims of their own.
    """
    pairs = sweep.pairs_by_batch()
    if len(pairs) < 2:
        return
    small, large = min(pairs), max(pairs)
    (lora, full), (small_lora, small_full) = pairs[large], pairs[small]
    yield claim_sum(
        f"LoRA loses more to full fine-tuning where the batch is large, after equal {sweep.unit}",
        f"{lora} above full at batch {large:g}, less that at {small:g}, after {sweep.end}",
        [lora, small_full], [full, small_lora], POSITIVE, noise)


def claim_placements(sweep, noise: dict) -> Iterator[Claim]:
    """Finding 4: which layers should have adapters. At one rank the MLP has more parameters."""
    cases = [(places, "at equal rank") for places in sweep.equal_ranks()]
    cases.append((sweep.matched_places(), "with as many parameters"))
    for places, how in cases:
        attention, mlp = places.get("attention"), places.get("mlp")
        everywhere = places.get("all-linear")
        if attention and mlp:
            yield claim_gap(f"attention alone is worse than the MLP alone, {how}", attention, mlp,
                            noise)
        if attention and everywhere:
            yield claim_gap(f"attention alone is worse than all layers, {how}", attention,
                            everywhere, noise)
        if mlp and everywhere:
            yield claim_gap(f"the MLP alone does as well as all layers, {how}: "
                            f"at most {MARGIN:.0%} of the gain behind", mlp, everywhere, noise,
                            WITHIN, sweep.full_gain())


def claim_alpha(sweep, noise: dict) -> Iterator[Claim]:
    """Does the best rate depend on the rank, if alpha is fixed?

    B A is a sum of r outer products. Adam moves each entry of B by about the learning rate, at any
    rank, so a step changes the sum more at a higher rank. alpha = r adds the products up, and the
    best rate falls as the rank grows. With alpha fixed, alpha / r takes their mean: if all r terms
    had one sign, the step would not depend on r. On nano, from r = 1 to 64, it fell 18-fold with
    alpha = r and rose 1.6-fold with alpha = 32.
    """
    arms = sweep.fixed_alpha_arms()
    if arms:
        yield claim_rate("with alpha fixed the best rate hardly depends on rank", arms[-1], arms[0],
                         1, noise)


def claim_capacity(long: Sweep) -> Iterator[Claim]:
    """A low rank is said to follow full fine-tuning at first, until its capacity is used up.

    Short runs do not get there, so this needs runs with more than LONG evaluations. A rank may
    leave at any step since the evaluation before.
    """
    full, ranks = long.full_arm(), long.lora_arms()
    if full and len(ranks) > 1:
        low, high = ranks[0], ranks[-1]
        arms, apart = [low, high, full], float(max(np.diff(long.steps)))
        values = long.leaving_steps(high) - long.leaving_steps(low)
        yield Claim("the lower the rank, the earlier it leaves the curve of full fine-tuning",
                    f"step at which {high} leaves it, less that of {low}",
                    only_counting(values, arms), POSITIVE, arms, below=apart, above=apart,
                    finer=f"evaluations less than {apart:g} steps apart could")


# ----- the table ----------------------------------------------------------------------------------

COMPARISON_HEADER = ("arm", "trained", "compared with", "trained there", "above it", "verdict",
                     "why")
ARM_HEADER = ("arm", "trainable", "best rate measured", "parabola fit", "test NLL", "above full",
              "rate / full's")
CLAIM_HEADER = ("claim", "what was measured", "value", "verdict", "why")
TEXT = {"arm", "compared with", "claim", "what was measured", "verdict", "why"}     # not numbers


def verdict_table(sweeps: Sweeps) -> str:
    """A row per claim, then a row per arm, in Markdown. What the runs do not allow is left out."""
    usual, long, *equal = sweeps
    parts = [claim_table(sweeps)] if list_claims(sweeps) else []
    if usual.method_arms():
        parts.append(method_table(usual))
    if usual.twins():
        parts.append(settings_table(usual))
    parts.append(arm_table(usual, usual.arms))
    for sweep in equal:
        pairs = sweep.pairs_by_batch() if sweep else {}
        shown_already = sweep and sweep.end == usual.end and (
            pairs.keys() <= usual.pairs_by_batch().keys())
        if len(pairs) > 1 and not shown_already:
            parts.append(arm_table(sweep, [arm for pair in pairs.values() for arm in pair]))
    if long and long is not usual:
        parts.append(arm_table(long, long.arms))
    return "\n\n".join(parts)


def claim_table(sweeps: Sweeps) -> str:
    rows = []
    for claim in list_claims(sweeps):
        verdict = judge_claim(claim)
        value = format_value(claim, verdict)
        rows.append((claim.text, claim.quantity, value, f"*{verdict.word}*", verdict.why))
    return "\n\n".join([
        "## Claims", "Value: the mean over seeds (of ratios the geometric one), and in brackets "
        "where it lies by the rule of verdicts.py: each end is wrong in at most "
        f"{ERROR:.0%} of cases.", markdown_table(CLAIM_HEADER, rows, TEXT)])


def method_table(sweep) -> str:
    """Each relative and rival of LoRA next to LoRA of about its size, each at its best rate."""
    pairs = [(arm, sweep.lora_of_size(arm)) for arm in sweep.method_arms()]
    return comparison_table("## Methods", sweep, pairs)


def settings_table(sweep) -> str:
    """Each arm next to the one that differs from it in another setting alone (schedule ...)."""
    pairs = [(arm, sweep.usual_twin(arm)) for arm in sweep.twins()]
    return comparison_table("## Settings", sweep, pairs)


def comparison_table(title: str, sweep, pairs: list[tuple[Arm, Arm | None]]) -> str:
    """The first arm of each pair next to the second. A pair without a second is left out."""
    pairs = [pair for pair in pairs if None not in pair]
    names = name_arms([arm for pair in pairs for arm in pair])
    noise, rows = find_noise(sweep), []
    for arm, other in pairs:
        claim = claim_gap("", arm, other, noise, AS_GOOD, sweep.full_gain())
        verdict = judge_claim(claim)
        rows.append((names[arm], format_parameters(arm.trainable), names[other],
                     format_parameters(other.trainable), format_value(claim, verdict),
                     f"*{name_comparison(verdict)}*", verdict.why))
    return "\n\n".join([
        title, "Above it: how much higher the lowest test NLL is, as a share of what full "
        "fine-tuning gains (without it, of what the best arm gains), and in brackets where it lies "
        f"by the rule of verdicts.py. As good: within {MARGIN:.0%} either way.",
        markdown_table(COMPARISON_HEADER, rows, TEXT)])


def name_comparison(verdict) -> str:
    """A verdict on "as good", by which side it lies on."""
    if verdict.word == "supported":
        return "as good"
    if verdict.word == "contradicted":
        return "better" if verdict.high < 0 else "worse"
    return verdict.word


def format_value(claim, verdict) -> str:
    """The mean and its interval: "0.0017 (-0.0202 to 0.0182)"."""
    values = drop_nan(claim.values)
    if len(values) == 0 or not np.isfinite(values).all():
        return "-"
    mean = geometric_mean(values) if claim.ratio else values.mean()
    if math.isnan(verdict.low):
        return f"{mean:.3g}"
    return f"{mean:.3g} ({verdict.low:.3g} to {verdict.high:.3g})"


def arm_table(sweep, arms: list[Arm]) -> str:
    arms = sorted(arms, key=lambda arm: (
        arm.batch, arm.method != "full", arm.method != "lora", arm.method, arm.targets,
        arm.alpha != arm.rank, arm.rank or 0, arm.variant))
    rows = []
    for arm, name in name_arms(arms).items():
        rows.append([name, *arm_cells(arm, sweep.full_arm(arm.batch, like=arm))])
    return "\n\n".join([
        f"## {sweep.describe(arms)}",
        f"Test NLL in nats per token after {sweep.end}, at the best rate. With several "
        "seeds: mean ± spread (the largest minus the smallest); of rates, the geometric mean "
        "(smallest to largest).",
        markdown_table(ARM_HEADER, rows, TEXT)])


def arm_cells(arm, full: Arm | None) -> list[str]:
    """The cells of ARM_HEADER after the name. full: full fine-tuning at the same batch size."""
    best, shown = arm.best, arm.shown
    measured = f"{format_rates(best.lr[shown])} of {arm.describe_grid()}"
    fitted = format_rates(best.vertex[shown]) if arm.counts.any() else "-"
    above_full = multiple = ""
    if full and full is not arm:
        both = shown & full.shown
        above_full = format_spread((best.nll - full.best.nll)[both], "+.4f")
        multiple = format_rates(rate_multiples(arm, full), ".3g")
    return [format_parameters(arm.trainable), measured, fitted,
            format_spread(best.nll[shown], ".4f"), above_full, multiple]


def rate_multiples(arm, full: Arm | None) -> np.ndarray:
    """Best rate over that of full fine-tuning, for each seed in which both are known."""
    if not full or full is arm:
        return np.array([])
    return (arm.best.vertex / full.best.vertex)[arm.counts & full.counts]


def geometric_mean(values) -> float:
    return math.exp(np.log(values).mean())


def format_spread(values, form: str) -> str:
    """The mean over seeds and, if there are several, the spread: "0.6259 ± 0.0405"."""
    values = drop_nan(values)
    if len(values) == 0 or not np.isfinite(values).all():
        return "-"
    text = format(values.mean(), form)
    if len(values) > 1:
        text += f" ± {np.ptp(values):{form.strip('+')}}"
    return text


def format_rates(values, form: str = ".1e") -> str:
    """The geometric mean over seeds and, if they differ, "(smallest to largest)"."""
    values = drop_nan(values)
    if len(values) == 0:
        return "-"
    mean = format(geometric_mean(values), form)
    low, high = format(values.min(), form), format(values.max(), form)
    return mean if low == high else f"{mean} ({low} to {high})"


def format_parameters(n: float) -> str:
    return f"{n / 1e6:.1f}M" if n >= 999_500 else f"{n / 1e3:.0f}k"
