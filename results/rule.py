"""How often the rule of verdicts.py errs, and how many seeds it needs: a simulation.

    python results/rule.py          # prints the tables of results/rule.md, draws results/rule.png

Two arms are made up that are equally good, and the rule is asked whether the first is worse. Or the
ratio of their best rates is made exactly the one that is claimed. Any verdict is then wrong. Each
of the two words should come up in at most 5 % of cases.

An arm has a true U over the rates, of a shape like one of nano's (UPS). Its grid of rates lies
anywhere relative to its true best rate. A seed moves all arms together, each arm by itself, and
each run by itself. From these NLLs on, all is done by the project's own functions: best rates,
noise, claims, verdicts.
"""
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from arms import Arm, Sweep, read_runs, select_sweeps  # noqa: E402
from plumbing.text import markdown_table  # noqa: E402
from rates import parabola_minimum  # noqa: E402
from verdicts import (  # noqa: E402
    ERROR,
    QUANTITIES,
    Claim,
    claim_gap,
    claim_rate,
    find_noise,
    judge_claim,
    pool_noise,
    student_t,
)

# The two exponentials of rates.fit_errors, (p, q, w), through the first seed's runs of nano's arms
# (those within 0.7 nats of the lowest, batch 16; the largest miss is made as small as can be). full
# and r = 64 were run at 11 rates a factor of sqrt(2) apart, the others at 6.
UPS = {"full": (0.8, 0.3, 0.287), "r = 64": (2.0, 0.9, 0.100), "r = 8": (2.3, 0.8, 0.137),
       "r = 1, alpha = 32": (2.4, 0.1, 0.121), "r = 8, alpha = 32": (0.7, 0.1, 0.460),
       "r = 64, alpha = 32": (0.8, 0.1, 0.449)}
# Two pairs of (shape, place of the best rate between two of the grid, in steps). The first lean as
# differently as any of nano's or SmolLM2's, p - q = 2.3 and 0.5. In the second one best rate is
# missed by half a step of the grid, the other hit.
UNLIKE = ((2.4, 0.1, 0.121), None), ((0.8, 0.3, 0.287), None)
HALF_A_STEP = (UPS["r = 8"], -0.5), (UPS["r = 8"], 0.0)
ANY_PAIR = (None, None), (None, None)
# Standard deviations in nats. Of these pool_noise finds what it finds in nano's rows.
SEED = 0.005        # of a seed, in all arms
ARM = 0.005         # of an arm in a seed, at all rates
RUN = 0.014         # of a run
STEEP = 0.15        # more for runs above the best rate: this times what they are worse
SEEDS = (1, 2, 3, 5, 10)
EFFECTS = (0.5, 1, 1.5, 2, 3, 5)
POWER = 0.8
TRIALS = 2000
KNOWN = 2.0         # how far apart the rates are from which results/ knows the noise
KNOWN_DF = 26       # and its degrees of freedom


# ----- arms with a known truth --------------------------------------------------------------------

def true_nll(x, shape: tuple) -> np.ndarray:
    """How far the NLL lies above its minimum, at x = ln(rate / best rate)."""
    p, q, w = shape
    return w * ((np.exp(p * x) - 1) / p + (np.exp(-q * x) - 1) / q)


def draw_arm(rng, seed_effects, factor: float, near_best=False, shape=None, place=None
             ) -> tuple[Arm, float]:
    """-> an arm whose lowest NLL is 1 in truth, and its true best rate.

    Its rates are a `factor` apart. near_best: only the first seed has all seven, the others the
    three around its best. Without a shape, one of UPS; without a place, anywhere.
    """
    shape = shape or list(UPS.values())[rng.integers(len(UPS))]
    place = rng.uniform(-0.5, 0.5) if place is None else place
    x = math.log(factor) * (np.arange(-3, 4) + place)                           # (R,)
    above = true_nll(x, shape)
    sd = RUN + STEEP * np.where(x > 0, above, 0.0)
    n_seeds = len(seed_effects)
    nll = (1 + above + seed_effects[:, None] + rng.normal(0, ARM, (n_seeds, 1))
           + rng.normal(0, 1, (n_seeds, len(x))) * sd)                          # (S, R)
    if near_best:
        i = max(1, int(np.argmin(nll[0])))
        nll[1:, :i - 1] = nll[1:, i + 2:] = np.nan
    lrs = 1e-4 * factor ** np.arange(-3.0, 4.0)
    arm = Arm("lora", "all-linear", 1, 1, 16, 1, list(range(n_seeds)), list(lrs), np.zeros(1),
              nll[:, :, None])
    return arm, lrs[3] * math.exp(-x[3])


def draw_noise(rng, factor: float) -> dict:
    """What a folder under results/ would tell: twelve arms, three seeds, as nano's."""
    seed_effects = rng.normal(0, SEED, 3)
    arms = [draw_arm(rng, seed_effects, factor)[0] for _ in range(12)]
    sweep = Sweep("", "", np.zeros(1), arms, set())
    return {name: pool_noise([sweep], quantity) for name, quantity in QUANTITIES.items()}


def draw_claims(rng, n_seeds: int, factor: float, near_best: bool, pair: tuple, noise: dict,
                effect: float) -> list[Claim]:
    """Claims that a gap and a ratio of rates exceed something, which they do by `effect`.

    In nats, and in ln(ratio). With an effect of 0 both are exactly at the boundary.
    """
    seed_effects = rng.normal(0, SEED, n_seeds)
    one, best = draw_arm(rng, seed_effects, factor, near_best, *pair[0])
    other, other_best = draw_arm(rng, seed_effects, factor, near_best, *pair[1])
    ratio = best / other_best
    return [claim_gap("", one, other, noise, interval=(-effect, math.inf)),
            claim_rate("", one, other, 1, noise)._replace(
                interval=(ratio * math.exp(-effect), math.inf))]


# ----- errors and power ---------------------------------------------------------------------------

def verdict_rates(n_seeds: int, factor=2.0, near_best=False, pair=ANY_PAIR, effect=0.0,
                  trials=TRIALS) -> tuple[float, float]:
    """How often a claim on a gap, and one on a ratio of rates, is decided.

    Of the two words the one that is said more often. With an effect of 0 both are wrong.
    """
    rng = np.random.default_rng(n_seeds)
    noises = [draw_noise(rng, KNOWN) for _ in range(40)]
    words = [[], []]
    for i in range(trials):
        claims = draw_claims(rng, n_seeds, factor, near_best, pair, noises[i % len(noises)],
                             effect)
        for said, claim in zip(words, claims):
            said.append(judge_claim(claim).word)
    return tuple(max(said.count("supported"), said.count("contradicted")) / trials
                 for said in words)


def chance_of_verdict(effect: float, n_seeds: int, heavy_tails=False, trials=20_000) -> float:
    """How often a difference of `effect` standard deviations is *supported* to be above 0.

    The grid of rates has no part in it. With an effect of 0 it is how often that is wrong. Of fewer
    than three seeds the noise is known from results/.
    """
    rng = np.random.default_rng(n_seeds)
    noise = rng.laplace(0, 0.5 ** 0.5, (trials, n_seeds)) if heavy_tails else (
        rng.normal(0, 1, (trials, n_seeds)))
    values = effect + noise
    if n_seeds < 3:
        sd, df = np.sqrt(rng.chisquare(KNOWN_DF, trials) / KNOWN_DF), KNOWN_DF
    else:
        sd, df = values.std(axis=1, ddof=1), n_seeds - 1
    return float((values.mean(axis=1) > student_t(df) * sd / math.sqrt(n_seeds)).mean())


def seeds_needed(effect: float) -> int:
    """The fewest seeds that give a verdict in 80 % of cases."""
    return next(n for n in range(1, 1000) if chance_of_verdict(effect, n) >= POWER)


def seeds_needed_on_grid(effect: float, which: int, factor: float) -> str:
    """The same with a grid of rates: of a gap (0) in nats, of a ratio (1) in its logarithm."""
    for n in (*range(1, 11), 15, 20, 30, 50):
        if verdict_rates(n, factor, effect=effect, trials=300)[which] >= POWER:
            return f"{n}"
    return "more than 50"


# ----- tables and figure --------------------------------------------------------------------------

CASES = {       # what is drawn and printed: {name: (which claim, how it is simulated)}
    "gap": (0, {}),
    "gap, rates 3 apart": (0, {"factor": 3.0}),
    "gap, near_best": (0, {"near_best": True}),
    "gap, half a step off": (0, {"pair": HALF_A_STEP}),
    "ratio": (1, {}),
    "ratio, rates 1.5 apart": (1, {"factor": 1.5}),
    "ratio, unlike U's": (1, {"pair": UNLIKE})}


def simulate_cases() -> dict[str, list[float]]:
    """{case: its errors with each of SEEDS}"""
    return {name: [verdict_rates(n, **how)[which] for n in SEEDS]
            for name, (which, how) in CASES.items()}


def print_tables(errors: dict[str, list[float]]):
    percent = "{:.1%}".format
    rows = [[str(n), *(percent(errors[case][i]) for case in errors)] for i, n in enumerate(SEEDS)]
    print(markdown_table(["seeds", *errors], rows), "\n")
    rows = [[f"{effect:g}", *(f"{chance_of_verdict(effect, n):.0%}" for n in SEEDS),
             str(seeds_needed(effect))] for effect in EFFECTS]
    header = ["effect, deviations", *(str(n) for n in SEEDS), "seeds for 80%"]
    print(markdown_table(header, rows), "\n")
    rows = [[name, *(seeds_needed_on_grid(effect, which, factor) for factor in (2.0, 3.0))]
            for name, which, effect in (
                *((f"a gap by {gap:g} nats", 0, gap) for gap in (0.01, 0.02, 0.03, 0.05, 0.1)),
                *((f"a ratio by a factor of {ratio:g}", 1, math.log(ratio))
                  for ratio in (1.2, 1.5, 2, 3)))]
    print(markdown_table(["beyond the boundary", "rates 2 apart", "3 apart"], rows,
                         text={"beyond the boundary"}), "\n")
    rows = [[str(n), percent(chance_of_verdict(0, n)),
             percent(chance_of_verdict(0, n, heavy_tails=True))] for n in SEEDS]
    print(markdown_table(["seeds", "wrong, normal noise", "heavy tails"], rows), "\n")


def print_noise():
    """The noise of one arm, as pool_noise finds it in nano's rows and in simulated ones."""
    rng = np.random.default_rng(0)
    measured = find_noise(select_sweeps(read_runs(HERE / "findings_nano"))[0].usual)
    for name in ("nll", "rate"):
        print(f"{name}: measured {measured[name].sd:.4f}", end="")
        for factor in (2.0, 3.0):
            squares = [draw_noise(rng, factor)[name].sd ** 2 for _ in range(200)]
            print(f", simulated {np.mean(squares) ** 0.5:.4f} (rates {factor:.3g} apart)", end="")
        print()


def pair_deviations(table) -> np.ndarray:
    """The standard deviation over seeds of each difference of two rows of (A, S)."""
    first, second = np.triu_indices(len(table), 1)
    return (table[first] - table[second]).std(axis=1, ddof=1)


def print_homogeneity():
    """Is one noise for all pairs of arms fair? The largest and the smallest deviation of nano's 55
    pairs, and how often they would be as large and as small if all arms had one noise."""
    rng = np.random.default_rng(0)
    usual = select_sweeps(read_runs(HERE / "findings_nano"))[0].usual
    arms = [arm for arm in usual.arms if arm.batch == usual.batch]
    for name, table in (("nll", np.array([arm.best.nll for arm in arms])),
                        ("rate", np.array([QUANTITIES["rate"](arm) for arm in arms]))):
        noise = pool_noise([replace(usual, arms=arms)], QUANTITIES[name])
        found = pair_deviations(table)
        drawn = [pair_deviations(rng.normal(0, noise.sd, table.shape)) for _ in range(4000)]
        larger = np.mean([some.max() >= found.max() for some in drawn])
        smaller = np.mean([some.min() <= found.min() for some in drawn])
        print(f"{name}: {len(found)} pairs, {found.min():.4f} to {found.max():.4f}; by chance the "
              f"largest is as large in {larger:.0%} and the smallest as small in {smaller:.0%}")


def print_estimators(trials=4000):
    """How far the gap of two arms is off, by the lowest NLL measured and by the parabola's."""
    for factor in (2.0, 3.0):
        rng, errors = np.random.default_rng(0), []
        for _ in range(trials):
            seed_effects, gaps = rng.normal(0, SEED, 1), np.zeros(2)
            for sign in (1, -1):
                arm, _ = draw_arm(rng, seed_effects, factor)
                i = int(np.argmin(arm.nll[0, :, 0]))
                if 0 < i < 6:
                    around = slice(i - 1, i + 2)
                    fitted = parabola_minimum(arm.lrs[around], arm.nll[0, around, 0])[1]
                    gaps += sign * np.array([arm.nll[0, i, 0], fitted])
            errors.append(gaps)
        lowest, parabola = np.sqrt(np.mean(np.square(errors), axis=0))
        print(f"gap of one seed, rates {factor:g} apart: off by {lowest:.4f} by the lowest NLL, "
              f"{parabola:.4f} by the parabola's")


def draw_figure(errors: dict[str, list[float]], path: Path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12.5, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for case, marker in zip(errors, "osP^vDX"):
        percent = [100 * error if error else math.nan for error in errors[case]]
        left.plot(SEEDS, percent, marker=marker, label=case)
    left.axhline(100 * ERROR, color="black", linewidth=1)
    left.set(xlabel="seeds", ylabel="wrong verdicts of one kind, %", xscale="log", yscale="log",
             title="a claim exactly at its boundary")
    left.set_xticks(SEEDS, [str(n) for n in SEEDS])
    left.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    left.set_xticks([], minor=True)
    effects = np.linspace(0, 5, 26)
    for n in SEEDS:
        right.plot(effects, [100 * chance_of_verdict(effect, n, trials=4000) for effect in effects],
                   label=f"{n} seeds" if n > 1 else "1 seed")
    right.axhline(100 * POWER, color="black", linewidth=1)
    right.set(xlabel="effect, in standard deviations of a paired difference (nano: 0.021 nats)",
              ylabel="verdicts, %", title="a claim that is true by so much")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main():
    print_noise()
    print_homogeneity()
    print_estimators()
    errors = simulate_cases()
    print_tables(errors)
    draw_figure(errors, HERE / "rule.png")


if __name__ == "__main__":
    main()
