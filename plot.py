"""CSV -> figures and a table: what the sweeps of sweep.py say about the four findings.

    python plot.py out                              # draws what is there: out/finding1.png, .svg ...
    python plot.py out --table
    python plot.py out --table                      # the same as Markdown: rates, gaps, and a verdict on each claim

Only CSV files are read, all that lie in FOLDER itself, one run a file or many in one. Which figure a run belongs to follows
from its columns alone. Best-of-sweep is the lowest test NLL over the learning rates, at each step apart. With several seeds a
curve is their mean and the band around it goes from the smallest to the largest; the spread of a number is the largest minus
the smallest. Differences between two arms are taken within a seed, where both saw the same samples in the same order.
"""
import argparse
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import ticker  # noqa: E402

from model import UserError  # noqa: E402
from sweep import diverged  # noqa: E402
from train import COLUMNS, fail, read_csv  # noqa: E402

# ----- the rules by which a claim is judged -------------------------------------------------------------------------

MARGIN = 0.02       # as good as full fine-tuning: within this share of what full fine-tuning gains over the base
TEN = (5, 20)       # "about ten times": a factor of two to either side
SAME = (1 / 2, 2)   # "the same rate": likewise
WITHIN, BEYOND, POSITIVE = (-math.inf, MARGIN), (MARGIN, math.inf), (0.0, math.inf)
LONG = 10           # evaluations after step 0; runs that have more show where a low rank leaves the curve


def verdict(values: list[float], interval: tuple[float, float], at_edge: list[str] = ()) -> tuple[str, str]:
    """-> ("supported", "contradicted" or "undecided", why), for the claim that a quantity lies in `interval`.

    `values`: what each seed measured, their spread is the largest minus the smallest. Supported if the mean and all that is
    within the spread around it lies in the interval, contradicted if all of that lies outside, undecided otherwise; and where
    one seed shows no spread, or an arm's best rate is the first or last of its grid (`at_edge`), so that it is not its best.
    """
    low, high = interval
    if at_edge:
        return "undecided", f"the best rate lies at the edge of the grid: {'; '.join(at_edge)}"
    if not values or not np.isfinite(values).all():
        return "undecided", "there is no number for it"
    if len(values) < 2:
        return "undecided", "one seed shows no spread"
    mean, spread = float(np.mean(values)), max(values) - min(values)
    if low < mean - spread and mean + spread < high:
        return "supported", ""
    if mean + spread < low or mean - spread > high:
        return "contradicted", ""
    return "undecided", "the difference is within the spread"


# ----- reading ------------------------------------------------------------------------------------------------------

class Arm(NamedTuple):
    """What is compared: all that a sweep varies but the learning rate and the seed."""
    method: str
    targets: str
    rank: float         # -1 for full fine-tuning, as alpha
    alpha: float
    batch: float


class Sweep(NamedTuple):
    """The runs of one model on one data set that were evaluated at the same steps."""
    model: str
    data: str
    steps: tuple[float, ...]
    curves: dict[Arm, dict[float, dict[float, np.ndarray]]]         # arm -> seed -> learning rate -> test NLL at each step
    trainable: dict[Arm, float]                                     # parameters
    ranks: set[float]                                               # of all runs of the model on the data: each has its colour


def read_runs(folder: Path) -> list[list[dict]]:
    """The rows of each run, in the order of its steps, from every CSV file in `folder` that has the columns of train.py."""
    rows = {}
    for path in sorted(folder.glob("*.csv")):
        with open(path, encoding="utf-8") as f:
            header = f.readline().strip().split(",")
        if header != COLUMNS:
            print(f"{path} is left out: its columns are not those of train.py", file=sys.stderr)
            continue
        rows |= {(row["run"], row["step"]): row for row in read_csv(path)}
    runs = defaultdict(list)
    for (run, _), row in sorted(rows.items()):
        runs[run].append(row)
    if not runs:
        raise UserError(f"{folder} has no CSV file of sweep.py's; it has to be a folder, for train.py's log.csv the run's own")
    return list(runs.values())


def nll_curve(rows: list[dict]) -> np.ndarray:
    """Test NLL at each step; infinite from where a run diverged, so that it is never the lowest and never lost."""
    nll = np.array([row["test_nll"] for row in rows])
    for i in range(len(rows)):
        if diverged([rows[0], rows[i]]):
            nll[i:] = math.inf
            break
    return nll


def group(runs: list[list[dict]]) -> list[Sweep]:
    """Runs put together by model, data and steps. Raises UserError for two that differ in what the columns do not show."""
    sweeps, owner, ranks = {}, {}, defaultdict(set)
    for rows in runs:
        first, steps = rows[0], tuple(row["step"] for row in rows)
        key = first["model"], first["data"], steps
        rank, alpha = (-1 if first[column] == "" else first[column] for column in ("rank", "alpha"))
        arm = Arm(first["method"], first["targets"], rank, alpha, first["batch_eff"])
        place = key, arm, first["seed"], first["lr"]
        if owner.setdefault(place, first["run"]) != first["run"]:
            raise UserError(f"runs {owner[place]} and {first['run']} are alike in every column but differ in other settings "
                            "(--eval_samples, --dtype ...); put their files into different folders")
        sweep = sweeps.setdefault(key, Sweep(*key, {}, {}, ranks[key[:2]]))
        sweep.curves.setdefault(arm, {}).setdefault(first["seed"], {})[first["lr"]] = nll_curve(rows)
        sweep.trainable[arm] = first["trainable"]
        if arm.method != "full" and arm.targets == "all-linear":
            sweep.ranks.add(rank)
    return list(sweeps.values())


# ----- best of sweep, best rate -------------------------------------------------------------------------------------

def complete(seeds: dict[float, dict]) -> dict[float, dict]:
    """The seeds that have every rate that any has (all of them if none has): a minimum over fewer rates is no comparison."""
    every = set().union(*seeds.values())
    return {seed: by_lr for seed, by_lr in sorted(seeds.items()) if set(by_lr) == every} or seeds


def best_of_sweep(by_lr: dict[float, np.ndarray]) -> np.ndarray:
    """The lowest NLL over the learning rates at each step."""
    return np.minimum.reduce(list(by_lr.values()))


class Best(NamedTuple):
    lr: float           # of the lowest NLL at the last step; the smaller one of two that are equal
    nll: float
    edge: bool          # whether that is the first or the last rate of the grid
    vertex: float       # the rate at the minimum of a parabola through it and its neighbours; where there is none, lr


def best_rate(by_lr: dict[float, np.ndarray]) -> Best:
    lrs = sorted(by_lr)
    nll = [by_lr[lr][-1] for lr in lrs]
    i = int(np.argmin(nll))
    if not math.isfinite(nll[i]):
        return Best(math.nan, math.inf, True, math.nan)
    edge = i in (0, len(lrs) - 1)
    return Best(lrs[i], float(nll[i]), edge, lrs[i] if edge else vertex(lrs[i - 1:i + 2], nll[i - 1:i + 2]))


def vertex(lrs, nll) -> float:
    """Where the parabola through three points (log rate, NLL) is lowest; the middle rate if a neighbour diverged."""
    if not np.isfinite(nll).all():
        return lrs[1]
    a, b, _ = np.polyfit(np.log(np.array(lrs) / lrs[1]), nll, 2)
    return float(lrs[1] * math.exp(-b / (2 * a))) if a > 0 else lrs[1]


# ----- which arms -----------------------------------------------------------------------------------------------------

def usual_batch(sweep: Sweep) -> float:
    return Counter(arm.batch for arm, seeds in sweep.curves.items() for by_lr in seeds.values() for _ in by_lr).most_common(1)[0][0]


def full(sweep: Sweep, batch: float | None = None) -> Arm | None:
    """The arm of full fine-tuning."""
    return next((arm for arm in sweep.curves if arm.method == "full" and arm.batch == (batch or usual_batch(sweep))), None)


def lora(sweep: Sweep, targets=("all-linear",), alpha: float | None = None, batch: float | None = None) -> list[Arm]:
    """The arms of LoRA on `targets`, by rank; alpha None is alpha = rank."""
    return sorted((arm for arm in sweep.curves if arm.method == "lora" and arm.targets in targets
                   and arm.alpha == (alpha or arm.rank) and arm.batch == (batch or usual_batch(sweep))), key=lambda arm: arm.rank)


def fixed_alpha(sweep: Sweep) -> float | None:
    """The alpha at which several ranks were swept."""
    alphas = Counter(arm.alpha for arm in sweep.curves if arm.method == "lora" and arm.targets == "all-linear"
                     and arm.batch == usual_batch(sweep) and arm.alpha != arm.rank)
    return max(alphas, key=alphas.get) if alphas else None


def placements(sweep: Sweep) -> list[Arm]:
    """Adapters on attention, on the MLP, and those on all layers that have the rank of one of them."""
    some = lora(sweep, ("attention", "mlp"))
    return [arm for arm in lora(sweep) if arm.rank in {other.rank for other in some}] + sorted(some, key=lambda arm: arm.targets)


def matched(sweep: Sweep) -> tuple[Arm, Arm] | None:
    """Attention and MLP of other ranks, the pair that is closest in parameters, if they differ by less than a tenth."""
    pairs = [(abs(math.log(sweep.trainable[a] / sweep.trainable[m])), a, m) for a in lora(sweep, ("attention",))
             for m in lora(sweep, ("mlp",)) if a.rank != m.rank]
    return min(pairs)[1:] if pairs and min(pairs)[0] < 0.1 else None


def by_batch(sweep: Sweep) -> dict[float, tuple[Arm, Arm]]:
    """batch -> (LoRA, full fine-tuning), LoRA at the highest rank that there is at the most batches."""
    arms = [arm for batch in {arm.batch for arm in sweep.curves} if full(sweep, batch) for arm in lora(sweep, batch=batch)]
    ranks = Counter(arm.rank for arm in arms)
    rank = max(ranks, key=lambda rank: (ranks[rank], rank), default=None)
    return {arm.batch: (arm, full(sweep, arm.batch)) for arm in sorted(arms, key=lambda arm: arm.batch) if arm.rank == rank}


def rates(sweep: Sweep, arm: Arm) -> set[float]:
    return set().union(*sweep.curves[arm].values())


def same_rates(sweep: Sweep, arms) -> Sweep:
    """`sweep` with no other rates in `arms` than those that all of them have: a batch that was swept more would look better."""
    common = set.intersection(*(rates(sweep, arm) for arm in arms))
    return sweep._replace(curves=sweep.curves | {
        arm: {seed: {lr: curve for lr, curve in by_lr.items() if lr in common} for seed, by_lr in sweep.curves[arm].items()}
        for arm in (arms if common else ())})


def batches(sweep: Sweep) -> tuple[Sweep, dict[float, tuple[Arm, Arm]]]:
    """by_batch, and the sweep with the rates that all batches have."""
    arms = by_batch(sweep)
    for same in zip(*arms.values(), strict=True):
        sweep = same_rates(sweep, same)
    return sweep, arms


# ----- numbers of an arm, by seed -------------------------------------------------------------------------------------

def curves(sweep: Sweep, arm: Arm) -> dict[float, np.ndarray]:
    return {seed: best_of_sweep(by_lr) for seed, by_lr in complete(sweep.curves[arm]).items()}


def best(sweep: Sweep, arm: Arm) -> dict[float, Best]:
    return {seed: best_rate(by_lr) for seed, by_lr in complete(sweep.curves[arm]).items()}


def shared(one: dict, other: dict) -> dict[float, tuple]:
    """The values of both for each seed that both have."""
    return {seed: (one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())}


def above(sweep: Sweep, arm: Arm, reference: Arm) -> dict[float, np.ndarray]:
    """By how much best-of-sweep of `arm` lies above that of `reference` at each step, for each seed."""
    with np.errstate(invalid="ignore"):         # where both diverged there is no difference
        return {seed: a - b for seed, (a, b) in shared(curves(sweep, arm), curves(sweep, reference)).items()}


def gaps(sweep: Sweep, arm: Arm, reference: Arm) -> list[float]:
    """The same after the last step."""
    return [float(difference[-1]) for difference in above(sweep, arm, reference).values()]


def ratios(sweep: Sweep, arm: Arm, reference: Arm) -> list[float]:
    """For each seed, the best rate of `arm` over that of `reference`."""
    return [a.vertex / b.vertex for a, b in shared(best(sweep, arm), best(sweep, reference)).values()]


def gain(sweep: Sweep, batch: float | None = None) -> float:
    """What full fine-tuning gains over the base, in nats; without it, what the best arm does."""
    arms = [full(sweep, batch)] if full(sweep, batch) else list(sweep.curves)
    ends = [curve for arm in arms for curve in curves(sweep, arm).values()]
    return float(max(curve[0] - curve[-1] for curve in ends))


def leaves(sweep: Sweep, arm: Arm) -> list[float]:
    """For each seed, the first evaluated step from which on `arm` stays more than MARGIN above full fine-tuning; the last step
    of the run if there is none."""
    within = [difference <= MARGIN * gain(sweep) for difference in above(sweep, arm, full(sweep)).values()]
    last_within = [int(np.flatnonzero(some).max(initial=-1)) for some in within]
    return [sweep.steps[min(i + 1, len(sweep.steps) - 1)] for i in last_within]


def at_edge(sweep: Sweep, *arms: Arm) -> list[str]:
    """Which of `arms` have, for any seed, their best rate at the edge of their grid."""
    return [name(arm) for arm in dict.fromkeys(arms) if any(b.edge for b in best(sweep, arm).values())]


# ----- the claims of "LoRA Without Regret" (Schulman et al., 2025) ----------------------------------------------------

class Claim(NamedTuple):
    text: str
    quantity: str
    values: list[float]
    interval: tuple[float, float]
    edges: list[str]


def share(values: list[float], whole: float) -> list[float]:
    return [value / whole for value in values]


def claims(sweep: Sweep, long: Sweep | None) -> list[Claim]:
    """What can be asked of the runs that are there; `long`: those that tell of capacity."""
    return [*rank_claims(sweep), *rate_claims(sweep), *batch_claims(sweep), *placement_claims(sweep), *alpha_claims(sweep),
            *(capacity_claims(long) if long else ())]


def rank_claims(sweep) -> list[Claim]:
    reference, ranks = full(sweep), lora(sweep)
    if not reference or not ranks:
        return []
    found = [Claim(f"a high rank learns as well as full fine-tuning: at most {MARGIN:.0%} of the gain behind",
                   f"{name(ranks[-1])} above full, share of the gain", share(gaps(sweep, ranks[-1], reference), gain(sweep)),
                   WITHIN, at_edge(sweep, ranks[-1], reference))]
    if len(ranks) > 1:
        found.append(Claim(f"too low a rank falls behind: more than {MARGIN:.0%} of the gain",
                           f"{name(ranks[0])} above full, share of the gain", share(gaps(sweep, ranks[0], reference), gain(sweep)),
                           BEYOND, at_edge(sweep, ranks[0], reference)))
    return found


def rate_claims(sweep) -> list[Claim]:
    reference = full(sweep)
    return [Claim(f"LoRA's best rate is about ten times that of full fine-tuning ({TEN[0]} to {TEN[1]})",
                  f"rate of {name(arm)} / rate of full", ratios(sweep, arm, reference), TEN, at_edge(sweep, arm, reference))
            for arm in (lora(sweep) if reference else ())]


def batch_claims(sweep) -> list[Claim]:
    sweep, arms = batches(sweep)
    if len(arms) < 2:
        return []
    small, large = min(arms), max(arms)
    differences = [float(b[-1] - a[-1]) for a, b in shared(*(above(sweep, *arms[batch]) for batch in (small, large))).values()]
    return [Claim("LoRA loses more to full fine-tuning where the batch is large",
                  f"{name(arms[large][0])} above full at batch {large:g}, less that at {small:g}", differences, POSITIVE,
                  [f"{edge}, batch {batch:g}" for batch in (small, large) for edge in at_edge(sweep, *arms[batch])])]


def placement_claims(sweep) -> list[Claim]:
    found, arms = [], {(arm.targets, arm.rank): arm for arm in placements(sweep)}
    if pair := matched(sweep):
        found.append(Claim("attention alone is worse than the MLP alone, with as many parameters",
                           f"{name(pair[0])} above {name(pair[1])}", gaps(sweep, *pair), POSITIVE, at_edge(sweep, *pair)))
    for rank in sorted({rank for targets, rank in arms if targets == "all-linear"}):
        everywhere, attention, mlp = (arms.get((targets, rank)) for targets in ("all-linear", "attention", "mlp"))
        if attention:
            found.append(Claim("attention alone is worse than all layers", f"{name(attention)} above {where(everywhere)}",
                               gaps(sweep, attention, everywhere), POSITIVE, at_edge(sweep, attention, everywhere)))
        if mlp:
            found.append(Claim(f"the MLP alone does as well as all layers: at most {MARGIN:.0%} of the gain behind",
                               f"{name(mlp)} above {where(everywhere)}, share of the gain",
                               share(gaps(sweep, mlp, everywhere), gain(sweep)), WITHIN, at_edge(sweep, mlp, everywhere)))
    return found


def alpha_claims(sweep) -> list[Claim]:
    arms = lora(sweep, alpha=fixed_alpha(sweep)) if fixed_alpha(sweep) else []
    if len(arms) < 2:
        return []
    return [Claim(f"with alpha fixed the best rate hardly depends on rank ({SAME[0]:g} to {SAME[1]:g})",
                  f"rate of {name(arms[-1])} / rate of {name(arms[0])}", ratios(sweep, arms[-1], arms[0]), SAME,
                  at_edge(sweep, arms[0], arms[-1]))]


def capacity_claims(long) -> list[Claim]:
    arms = lora(long)
    if len(arms) < 2 or not full(long):
        return []
    steps = [b - a for a, b in zip(leaves(long, arms[0]), leaves(long, arms[-1]))]
    return [Claim("the lower the rank, the earlier it leaves the curve of full fine-tuning",
                  f"step at which {name(arms[-1])} leaves it, less that of {name(arms[0])}", steps, POSITIVE,
                  at_edge(long, arms[0], arms[-1], full(long)))]


def judged(claim: Claim) -> tuple[str, str]:
    """A ratio is judged by its logarithm: half and twice are as far from 1."""
    if claim.interval in (TEN, SAME):
        return verdict([math.log(v) for v in claim.values], tuple(map(math.log, claim.interval)), claim.edges)
    return verdict(claim.values, claim.interval, claim.edges)


# ----- the table ------------------------------------------------------------------------------------------------------

def name(arm: Arm) -> str:
    if arm.method == "full":
        return "full"
    where = "" if arm.targets == "all-linear" else f"{arm.targets}, "
    return f"{where}r = {arm.rank:g}" + (f", alpha = {arm.alpha:g}" if arm.alpha != arm.rank else "")


def where(arm: Arm) -> str:
    return f"all layers, {name(arm)}" if arm.targets == "all-linear" else name(arm)


def size(parameters: float) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 999_500 else f"{parameters / 1e3:.0f}k"


def spread(values: list[float], form: str) -> str:
    """The mean over seeds and, where there are several, the spread."""
    if not values or not np.isfinite(values).all():
        return "-"
    return format(float(np.mean(values)), form) + (f" ± {max(values) - min(values):{form.strip('+')}}" if len(values) > 1 else "")


def mean_rate(values: list[float], form: str = ".1e") -> str:
    """The geometric mean over seeds."""
    return f"{math.exp(np.mean(np.log(values))):{form}}" if values and np.isfinite(values).all() else "-"


def rate(values: list[float], form: str = ".1e") -> str:
    """The same and, where there are several seeds, smallest and largest."""
    text = mean_rate(values, form)
    return f"{text} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 and text != "-" else text


HEADER = ("arm", "batch", "trainable", "rates", "diverged", "best rate, measured", "by a parabola", "test NLL", "above full",
          "rate / full's")


def cells(sweep: Sweep, arm: Arm) -> list[str]:
    """The table's row of an arm."""
    found, reference = list(best(sweep, arm).values()), full(sweep, arm.batch)
    ends = [curve[-1] for by_lr in sweep.curves[arm].values() for curve in by_lr.values()]
    edge = any(b.edge for b in found)
    row = [name(arm), f"{arm.batch:g}", size(sweep.trainable[arm]), str(len(rates(sweep, arm))),
           f"{np.isinf(ends).sum()} of {len(ends)}", rate([b.lr for b in found]) + " (edge)" * edge,
           "-" if edge else rate([b.vertex for b in found]), spread([b.nll for b in found], ".4f")]
    if reference and reference != arm:
        row += [spread(gaps(sweep, arm, reference), "+.4f"), rate(ratios(sweep, arm, reference), ".3g")]
    return row + [""] * (len(HEADER) - len(row))


def markdown(header, rows) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def arms_table(sweep: Sweep) -> list[str]:
    arms = sorted(sweep.curves, key=lambda arm: (arm.batch, arm.method != "full", arm.targets, arm.alpha != arm.rank, arm.rank))
    return [f"## {title(sweep, sweep.curves)}", "",
            f"Test NLL in nats a token after {sweep.steps[-1]:g} steps, at the best rate. With several seeds: mean ± spread (the "
            "largest minus the smallest); of rates, the geometric mean (smallest to largest).", "",
            *markdown(HEADER, [cells(sweep, arm) for arm in arms]), ""]


def table(sweep: Sweep, long: Sweep | None = None) -> str:
    """A row an arm, then a row a claim, in Markdown."""
    judgements = []
    for claim in claims(sweep, long):
        value = rate(claim.values, ".3g") if claim.interval in (TEN, SAME) else spread(claim.values, ".4g")
        word, why = judged(claim)
        judgements.append([claim.text, claim.quantity, value, f"*{word}*", why])
    return "\n".join([*arms_table(sweep), *(arms_table(long) if long and long is not sweep else ()),
                      *markdown(("claim", "what was measured", "value", "verdict", "why"), judgements)])


# ----- how it looks ---------------------------------------------------------------------------------------------------
# Okabe and Ito's colours, which the colour-blind can tell apart. Each means the same in every figure, and so do the markers;
# those of RANKS go from the highest rank down.

BLACK, ATTENTION, MLP = "#000000", "#D55E00", "#CC79A7"
RANKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#56B4E9", "D"), ("#999999", "v"), ("#F0E442", "P"))
STYLE = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 9.5, "axes.grid": True, "grid.alpha": 0.3,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "nanoLoRA",
         "figure.constrained_layout.use": True, "legend.handlelength": 3.2, "lines.linewidth": 1.8, "lines.markersize": 5}


def look(sweep: Sweep, arm: Arm) -> dict:
    """Colour by what is trained: full, the rank on all layers, or where the adapters are."""
    if arm.method == "full":
        return {"color": BLACK, "marker": "x", "markeredgewidth": 1.8}
    if arm.targets in ("attention", "mlp"):
        line = "-" if arm.rank in {other.rank for other in lora(sweep)} else "--"        # dashed: a rank made to match
        return {"color": ATTENTION if arm.targets == "attention" else MLP, "marker": "p", "linestyle": line}
    color, marker = RANKS[sorted(sweep.ranks | {arm.rank}, reverse=True).index(arm.rank) % len(RANKS)]
    return {"color": color, "marker": marker, "markeredgecolor": "#333333", "markeredgewidth": 0.6}


def title(sweep: Sweep, arms) -> str:
    """Model, data, and the number of runs that `arms` are made of."""
    runs = sum(len(by_lr) for arm in arms for by_lr in sweep.curves[arm].values())
    seeds = len({seed for arm in arms for seed in sweep.curves[arm]})
    return f"{Path(sweep.model).name} on {Path(sweep.data).name}, {runs} run{'s' * (runs > 1)}, {seeds} seed{'s' * (seeds > 1)}"


def legend_name(sweep: Sweep, arm: Arm, text: str = "") -> str:
    """Name (or `text`), and over how many rates its best is taken, the diverged ones among them."""
    runs = [curve for by_lr in sweep.curves[arm].values() for curve in by_lr.values()]
    lost, n = sum(math.isinf(curve[-1]) for curve in runs), len(rates(sweep, arm))
    return f"{text or name(arm)} ({n} rate{'s' * (n > 1)}" + (f", {lost} of {len(runs)} runs diverged)" if lost else ")")


def present(*arms) -> list[Arm]:
    return [arm for arm in arms if arm]


def draw(ax, x, by_seed, **kwargs):
    """The mean over seeds, and a band from the smallest to the largest. What is not finite is left out."""
    values = np.array(list(by_seed))
    values = np.where(np.isfinite(values), values, np.nan)
    ax.plot(x, values.mean(0), **kwargs)
    if len(values) > 1:
        ax.fill_between(x, values.min(0), values.max(0), color=kwargs["color"], alpha=0.15, linewidth=0)


def nll_axis(ax, label: str = "test NLL, nats a token"):
    """Logarithmic where it covers more than a factor of two."""
    low, high = ax.dataLim.intervaly
    if 0 < 2 * low < high:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_ylabel(label)


def draw_curves(axes, sweep: Sweep, arms: list[Arm], reference: Arm | None, names=legend_name):
    """Left: best of sweep against steps. Right: by how much it lies above full fine-tuning."""
    (left, right), steps = axes, sweep.steps[1:]
    for arm in [*present(reference), *arms]:
        draw(left, steps, [curve[1:] for curve in curves(sweep, arm).values()], label=names(sweep, arm), **look(sweep, arm))
        if reference and arm != reference and (differences := above(sweep, arm, reference)):
            draw(right, steps, [difference[1:] for difference in differences.values()], **look(sweep, arm))
    base = float(np.mean([curve[0] for arm in arms for curve in curves(sweep, arm).values()]))
    left.set(xlabel=f"steps (the base, at step 0: {base:.3f})", title="best of sweep")
    nll_axis(left)
    legend_below(left)
    for ax in axes if len(steps) <= 12 else ():
        ax.set_xticks(steps)
    gap_axis(right, sweep) if reference else right.set_axis_off()


def legend_below(ax):
    """Of both panels, and where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) <= 4 or max(map(len, labels)) > 45 else 3)


def gap_axis(ax, sweep: Sweep):
    """Linear about full fine-tuning's line, logarithmic far from it."""
    margin = MARGIN * gain(sweep)
    ax.axhline(0, color=BLACK, linewidth=1.8)
    ax.axhspan(-margin, margin, color=BLACK, alpha=0.08, linewidth=0)
    ax.set_yscale("symlog", linthresh=2 * margin)
    ax.yaxis.set_major_locator(ticker.SymmetricalLogLocator(base=10, linthresh=2 * margin, subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:+g}" if y else "0"))
    ax.set(xlabel="steps", ylabel="nats a token above full fine-tuning",
           title=f"the same, less full fine-tuning (grey: {MARGIN:.0%} of its gain)")


def draw_rates(ax, sweep: Sweep, arms: list[Arm], reference: Arm | None, ncols: int = 2):
    """NLL after the last step against the learning rate: minima ringed, diverged runs as crosses in a strip at the top."""
    for i, arm in enumerate([*present(reference), *arms]):
        seeds, style = complete(sweep.curves[arm]), look(sweep, arm)
        lrs = sorted(set.intersection(*(set(by_lr) for by_lr in seeds.values())))
        ends = [[by_lr[lr][-1] for lr in lrs] for by_lr in seeds.values()]
        draw(ax, lrs, ends, label=rates_name(sweep, arm, reference), **style)
        mean = best_rate({lr: np.mean([by_lr[lr] for by_lr in seeds.values()], 0) for lr in lrs})
        ax.plot(mean.lr, mean.nll, "o", markersize=13, markerfacecolor="none", color=style["color"], markeredgewidth=1.6)
        lost = sorted({lr for by_lr in seeds.values() for lr, curve in by_lr.items() if math.isinf(curve[-1])})
        ax.plot(lost, [0.97 - 0.035 * i] * len(lost), "X", transform=ax.get_xaxis_transform(), markersize=9, color=style["color"])
    ax.set(xscale="log", xlabel="learning rate (rings: minima; crosses at the top: diverged)")
    nll_axis(ax, f"test NLL after {sweep.steps[-1]:g} steps, nats a token")
    ax.set_ymargin(0.25)        # room for the crosses
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=ncols)


def rates_name(sweep: Sweep, arm: Arm, reference: Arm | None) -> str:
    """Name, best rate (by the parabola; mean over seeds), and its ratio to full fine-tuning's."""
    found = best(sweep, arm).values()
    text = f"{name(arm)}: best {mean_rate([b.vertex for b in found], '.1e')}" + ", at the edge" * any(b.edge for b in found)
    ratio = ratios(sweep, arm, reference) if reference and arm != reference else []
    return text + (f", {mean_rate(ratio, '.3g')} x full's" if ratio else "")


# ----- the figures: each returns None where its runs are not there ----------------------------------------------------

def panels(head: str, sweep: Sweep, arms, n: int = 2, sharey: bool = False):
    figure, axes = plt.subplots(1, n, figsize=(12.5, 6), sharey=sharey, squeeze=False)
    figure.suptitle(f"{head}: {title(sweep, arms)}", fontsize=13)
    return figure, axes[0]


def finding1(sweep: Sweep):
    if not lora(sweep):
        return None
    figure, axes = panels("Finding 1, rank", sweep, present(full(sweep), *lora(sweep)))
    draw_curves(axes, sweep, lora(sweep), full(sweep))
    return figure


def finding2(sweep: Sweep):
    arms = [arm for arm in lora(sweep) if len(rates(sweep, arm)) > 2]
    if not arms:
        return None
    figure, (ax,) = panels("Finding 2, learning rate", sweep, present(full(sweep), *arms), n=1)
    draw_rates(ax, sweep, arms, full(sweep))
    return figure


def finding3(sweep: Sweep):
    sweep, arms = batches(sweep)
    if len(arms) < 2:
        return None
    figure, (left, right) = panels("Finding 3, batch size", sweep, [arm for some in arms.values() for arm in some])
    for (batch, some), line in zip(arms.items(), (":", "--", "-", "-.") * 9):
        for arm in some:
            draw(left, sweep.steps[1:], [curve[1:] for curve in curves(sweep, arm).values()],
                 label=f"batch {batch:g}, {legend_name(sweep, arm)}", **look(sweep, arm) | {"linestyle": line})
    lora_arm = next(iter(arms.values()))[0]
    draw(right, list(arms), np.array([gaps(sweep, *some) for some in arms.values()]).T, **look(sweep, lora_arm))
    left.set(xlabel="steps (a larger batch has seen more data)", title="best of sweep")
    nll_axis(left)
    legend_below(left)
    right.axhline(0, color=BLACK, linewidth=1.8)
    right.set_xscale("log", base=2)
    right.set_xticks(list(arms), [f"{batch:g}" for batch in arms])
    right.set(xlabel="batch, samples", ylabel="nats a token above full fine-tuning",
              title=f"{name(lora_arm)} less full fine-tuning, after {sweep.steps[-1]:g} steps")
    return figure


def finding4(sweep: Sweep):
    arms = placements(sweep)
    if not lora(sweep, ("attention", "mlp")):
        return None
    figure, axes = panels("Finding 4, placement", sweep, present(full(sweep), *arms))
    draw_curves(axes, sweep, arms, full(sweep), names=placement_name)
    return figure


def placement_name(sweep: Sweep, arm: Arm) -> str:
    twin = ", matched" if arm in (matched(sweep) or ()) else ""
    return legend_name(sweep, arm, f"{where(arm)}: {size(sweep.trainable[arm])} trained{twin}")


def alpha(sweep: Sweep):
    fixed = fixed_alpha(sweep)
    if not fixed or len(lora(sweep, alpha=fixed)) < 2:
        return None
    kinds = [(f"alpha = {fixed:g}", lora(sweep, alpha=fixed)), ("alpha = r", lora(sweep))]
    kinds = [(text, arms) for text, arms in kinds if arms]
    every = dict.fromkeys(arm for _, arms in kinds for arm in arms)
    figure, axes = panels("alpha", sweep, present(full(sweep), *every), n=len(kinds), sharey=True)
    for ax, (text, arms) in zip(axes, kinds):
        draw_rates(ax, sweep, arms, full(sweep), ncols=1)
        ax.set_title(text)
    return figure


def capacity(sweep: Sweep):
    arms = lora(sweep)
    if not arms or not full(sweep):
        return None
    figure, axes = panels("Capacity", sweep, [full(sweep), *arms])
    draw_curves(axes, sweep, arms, full(sweep))
    for arm in arms:
        step = float(np.mean(leaves(sweep, arm)))
        if step < sweep.steps[-1]:
            axes[1].axvline(step, color=look(sweep, arm)["color"], linestyle=":", label=f"{name(arm)} leaves at step {step:.0f}")
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend()
    return figure


# ----- the command ----------------------------------------------------------------------------------------------------

def chosen(sweeps: list[Sweep]) -> list[tuple[Sweep, Sweep | None]]:
    """For each model and data set: the runs of the usual length, and the longest ones if they have more than LONG evaluations."""
    found = []
    for key in dict.fromkeys((sweep.model, sweep.data) for sweep in sweeps):
        some = [sweep for sweep in sweeps if (sweep.model, sweep.data) == key]
        usual = max(some, key=lambda sweep: sum(len(by_lr) for seeds in sweep.curves.values() for by_lr in seeds.values()))
        longest = max(some, key=lambda sweep: sweep.steps[-1])
        found.append((usual, longest if len(longest.steps) > LONG + 1 else None))
    return found


def draw_all(sweep: Sweep, long: Sweep | None, out: Path, prefix: str = "") -> list[Path]:
    """Every figure that can be drawn, as PNG and SVG -> the PNGs' paths."""
    paths = []
    out.mkdir(parents=True, exist_ok=True)
    for one in (finding1, finding2, finding3, finding4, alpha, capacity):
        with plt.rc_context(STYLE):
            runs = long if one is capacity else sweep
            if runs and (figure := one(runs)):
                paths.append(out / f"{prefix}{one.__name__}.png")
                figure.savefig(paths[-1], dpi=130)
                figure.savefig(paths[-1].with_suffix(".svg"), metadata={"Date": None})
                plt.close(figure)
    return paths


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message} (python plot.py --help lists the settings)")
    parser.add_argument("folder", type=Path, help="folder with the CSV files")
    parser.add_argument("--out", type=Path, help="folder of the figures; default: that of the CSV files")
    parser.add_argument("--table", action="store_true", help="print Markdown instead of drawing")
    args = parser.parse_args(argv)
    try:
        pairs = chosen(group(read_runs(args.folder)))
        for sweep, long in pairs:
            prefix = f"{Path(sweep.model).name}_{Path(sweep.data).name}_" if len(pairs) > 1 else ""
            if args.table:
                print(table(sweep, long))
            elif not (paths := draw_all(sweep, long, args.out or args.folder, prefix)):
                raise UserError(f"{args.folder} has runs of {sweep.model} on {sweep.data}, but none that make one of the figures")
            else:
                print("\n".join(f"{path} (and .svg)" for path in paths))
    except (UserError, OSError) as e:
        fail(e)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    main()
