"""CSV -> figures and a table: what the sweeps of sweep.py say about the four findings.

    python plot.py out                              # draws what is there: out/finding1.png, .svg ...
    python plot.py out --table                      # the same as Markdown: rates, gaps, and a verdict on each claim

Only CSV files are read, all that lie in FOLDER itself, one run a file or many in one. What is drawn follows from their columns
alone, not from the command that made them: arms of three rates or more make finding 2's figure, whatever they were swept for.

Best-of-sweep is the lowest test NLL over the learning rates, at each step apart. With several seeds a curve is their mean and
the band around it goes from the smallest to the largest; the spread of a number is the largest minus the smallest. Differences
between two arms are taken within a seed, where both saw the same samples in the same order.
"""
import itertools
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from plumbing.cli import make_parser, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.records import COLUMNS, read_rows
from verdicts import diverged, times_full

plt.switch_backend("agg")       # no screen is needed
np.seterr(invalid="ignore")     # the difference of two arms that diverged is nan

# ----- the rules by which a claim is judged ---------------------------------------------------------------------------

MARGIN = 0.02       # as good as full fine-tuning: within this share of what full fine-tuning gains over the base
ABOUT = (1 / 2, 2)  # "about": a factor of two to either side
WITHIN, BEYOND, POSITIVE = (-math.inf, MARGIN), (MARGIN, math.inf), (0.0, math.inf)
LONG = 10           # evaluations after step 0; runs that have more show where a low rank leaves the curve


def verdict(values, interval: tuple[float, float], at_edge=(), ratio: bool = False) -> tuple[str, str]:
    """-> ("supported", "contradicted" or "undecided", why), for the claim that a quantity lies in `interval`.

    `values`: what each seed measured, their spread is the largest minus the smallest. Supported if the mean and all that is
    within the spread around it lies in the interval, contradicted if all of that lies outside, undecided otherwise; and where
    one seed shows no spread, or an arm's best rate is the first or last of its grid (`at_edge`), so that it is not its best.
    A ratio is judged by its logarithm: half and twice are as far from 1.
    """
    values, (low, high) = (np.log(values), np.log(interval)) if ratio else (values, interval)
    values = known(values)
    if at_edge:
        return "undecided", f"the best rate lies at the edge of the grid: {'; '.join(at_edge)}"
    if not len(values) or not np.isfinite(values).all():
        return "undecided", "there is no number for it"
    if len(values) < 2:
        return "undecided", "one seed shows no spread"
    mean, spread = values.mean(), np.ptp(values)
    if low < mean - spread and mean + spread < high:
        return "supported", ""
    if mean + spread < low or mean - spread > high:
        return "contradicted", ""
    return "undecided", "the difference is within the spread"


def known(values) -> np.ndarray:
    """Without nan: a seed that is not there, or at which both arms of a difference diverged."""
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


# ----- what is compared, and what its runs measured: S seeds, R learning rates, T evaluations -------------------------

class Best(NamedTuple):
    """The best learning rate: of one seed, or a vector (S,) each."""
    lr: float           # of the lowest NLL at the last step; the smaller one of two that are equal; nan if all diverged
    nll: float
    edge: bool          # whether that is the first or the last rate of the grid
    vertex: float       # the rate at the minimum of a parabola through it and its neighbours; where there is none, lr


def best_rate(lrs, nll) -> Best:
    """From the NLL of one seed at the last step, (R,)."""
    i = int(np.argmin(nll))
    if not math.isfinite(nll[i]):
        return Best(math.nan, nll[i], math.isinf(nll[i]), math.nan)
    edge = i in (0, len(lrs) - 1)
    return Best(lrs[i], nll[i], edge, lrs[i] if edge else vertex(lrs[i - 1:i + 2], nll[i - 1:i + 2]))


def vertex(lrs, nll) -> float:
    """Where the parabola through three points (log rate, NLL) is lowest; the middle rate if a neighbour diverged."""
    if not np.isfinite(nll).all():
        return lrs[1]
    a, b, _ = np.polyfit(np.log(np.array(lrs) / lrs[1]), nll, 2)
    return float(lrs[1] * math.exp(-b / (2 * a))) if a > 0 else lrs[1]


@dataclass(eq=False)
class Arm:
    """All that a sweep varies but the learning rate and the seed."""
    method: str
    targets: str        # "" for full fine-tuning, as rank and alpha
    rank: float
    alpha: float
    batch: float        # samples
    trainable: float    # parameters
    tone: int           # how many ranks in the folder are higher: its colour
    lrs: list[float]    # ascending
    nll: np.ndarray     # (S, R, T) of the test set; inf from where a run diverged, nan for a seed that is not there

    def __str__(self):
        if self.method == "full":
            return "full"
        kind = [self.method] * (self.method != "lora") + [self.targets] * (self.targets != "all-linear")
        return ", ".join([*kind, f"r = {self.rank:g}", *[f"alpha = {self.alpha:g}"] * (self.alpha != self.rank)])

    @property
    def place(self) -> str:
        return "all layers, " * (self.targets == "all-linear") + str(self)

    @property
    def seeds(self) -> np.ndarray:
        """Which seeds are there, (S,)."""
        return ~np.isnan(self.nll[:, 0, 0])

    @property
    def runs(self) -> int:
        return int(self.seeds.sum()) * len(self.lrs)

    @property
    def lost(self) -> int:
        """How many of the runs diverged."""
        return int(np.isinf(self.nll[:, :, -1]).sum())

    @cached_property
    def curves(self) -> np.ndarray:
        """Best of sweep, (S, T): the lowest NLL over the learning rates at each step."""
        return self.nll.min(1)

    @cached_property
    def best(self) -> Best:
        return Best(*map(np.array, zip(*(best_rate(self.lrs, ends) for ends in self.nll[:, :, -1]))))


class Sweep(NamedTuple):
    """The runs of one model on one data set that were evaluated at the same steps."""
    model: str
    data: str
    steps: np.ndarray       # (T,)
    arms: list[Arm]

    @property
    def batch(self) -> float:
        """That of the most runs, and of two that have as many the smaller one."""
        runs = Counter(arm.batch for arm in self.arms for _ in range(arm.runs))
        return max(runs, key=lambda batch: (runs[batch], -batch))

    def full(self, batch: float | None = None) -> Arm | None:
        """The arm of full fine-tuning."""
        return next((arm for arm in self.arms if arm.method == "full" and arm.batch == (batch or self.batch)), None)

    def lora(self, *targets: str, alpha: float | None = None, batch: float | None = None) -> list[Arm]:
        """The arms of LoRA on `targets` (none: all layers), by rank; alpha None is alpha = rank."""
        return sorted((arm for arm in self.arms if arm.method == "lora" and arm.targets in (targets or ("all-linear",))
                       and arm.alpha == (alpha or arm.rank) and arm.batch == (batch or self.batch)), key=lambda arm: arm.rank)

    def fixed_alpha(self) -> list[Arm]:
        """LoRA on all layers at several ranks and one alpha, that which most of them have."""
        alphas = Counter(arm.alpha for arm in self.arms if arm.alpha != arm.rank and arm in self.lora(alpha=arm.alpha))
        arms = self.lora(alpha=max(alphas, key=alphas.get)) if alphas else []
        return arms if len(arms) > 1 else []

    def matched(self) -> tuple[Arm, Arm] | tuple[()]:
        """Attention and MLP of other ranks, the pair that is closest in parameters, if they differ by less than a tenth."""
        pairs = {(a, m): abs(math.log(a.trainable / m.trainable))
                 for a in self.lora("attention") for m in self.lora("mlp") if a.rank != m.rank}
        pair = min(pairs, key=pairs.get, default=())
        return pair if pair and pairs[pair] < 0.1 else ()

    def batches(self) -> dict[float, tuple[Arm, Arm]]:
        """batch -> (LoRA, full fine-tuning), LoRA at the highest rank that there is at the most batches. Each with the rates
        alone that all batches have: one at which more were tried would look better."""
        pairs = [(arm, self.full(batch)) for batch in sorted({arm.batch for arm in self.arms}) if self.full(batch)
                 for arm in self.lora(batch=batch)]
        ranks = Counter(arm.rank for arm, _ in pairs)
        rank = max(ranks, key=lambda rank: (ranks[rank], rank), default=None)
        kinds = [same_rates(kind) for kind in zip(*(pair for pair in pairs if pair[0].rank == rank))]
        return {pair[0].batch: pair for pair in zip(*kinds)}

    def gain(self) -> float:
        """What full fine-tuning gains over the base, in nats; without it, what the best arm does; nan if there is no gain."""
        arms = [self.full()] if self.full() else self.arms
        gain = float(np.nanmax([arm.curves[:, 0] - arm.curves[:, -1] for arm in arms]))
        return gain if gain > 0 else math.nan

    def leaves(self, arm: Arm) -> np.ndarray:
        """The first evaluated step from which on `arm` stays more than MARGIN above full fine-tuning, (S,); the last step if
        there is none."""
        above, T = arm.curves - self.full().curves, len(self.steps)
        last_within = np.max((above <= MARGIN * self.gain()) * np.arange(T), axis=1)
        return np.where(np.isnan(above[:, 0]), np.nan, self.steps[np.minimum(last_within + 1, T - 1)])

    def title(self, arms) -> str:
        """Model, data, the batch if there is one, and the number of runs that `arms` are made of."""
        runs, seeds = sum(arm.runs for arm in arms), sum(np.any([arm.seeds for arm in arms], 0).tolist())
        batches = {arm.batch for arm in arms}
        names = f"{Path(self.model).name} on {Path(self.data).name}" + f", batch {min(batches):g}" * (len(batches) == 1)
        return f"{names}, {runs} run{'s' * (runs > 1)}, {seeds} seed{'s' * (seeds > 1)}"


def same_rates(arms: tuple[Arm, ...]) -> list[Arm]:
    """`arms` with those rates alone that all of them have, if there are any."""
    common = set.intersection(*(set(arm.lrs) for arm in arms))
    return [replace(arm, lrs=sorted(common), nll=arm.nll[:, [lr in common for lr in arm.lrs]]) if common else arm for arm in arms]


# ----- reading --------------------------------------------------------------------------------------------------------

def read_runs(folder: Path) -> list[list[dict]]:
    """The rows of each run, in the order of its steps, from every CSV file in `folder` that has the columns of train.py."""
    rows, runs = {}, defaultdict(list)
    for path in sorted(folder.glob("*.csv")):
        with open(path, encoding="utf-8", errors="replace") as f:
            ours = f.readline().strip().split(",") == COLUMNS
        if ours:
            try:
                rows |= {(row["run"], float(row["step"])): row | {"test_nll": float(row["test_nll"])} for row in read_rows(path)}
            except (ValueError, TypeError):
                raise UserError(f"{path} is damaged; delete it, and let the sweep make it again") from None
        else:
            print(f"{path} is left out: its columns are not those of train.py", file=sys.stderr)
    for (run, _), row in sorted(rows.items()):
        runs[run].append(row)
    if not runs:
        raise UserError(f"{folder} has no CSV file of sweep.py's; it has to be a folder, for train.py's log.csv the run's own")
    return list(runs.values())


def refuse_other_tests(runs: list[list[dict]]):
    """Raise UserError for runs of one base that begin at test NLLs which rounding cannot explain: their test sets differ."""
    begin = defaultdict(list)
    for first, *_ in runs:
        begin[first["model"], first["data"], first["method"] == "qlora"].append((first["test_nll"], first["run"]))
    for (low, one), (high, other) in ((min(some), max(some)) for some in begin.values()):
        if high > 1.01 * low:
            raise UserError(f"runs {one} and {other} begin at test NLLs of {low:.3f} and {high:.3f}, so they were not evaluated "
                            "alike (--eval_samples, --max_length ...); put their files into different folders")


def group(runs: list[list[dict]]) -> list[Sweep]:
    """Runs put together by model, data and steps. Raises UserError for two that differ in what the columns do not show."""
    refuse_other_tests(runs)
    ranks = {rows[0]["rank"] for rows in runs if rows[0]["targets"] == "all-linear"}
    tree = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))          # sweep -> arm -> seed -> rate -> rows
    for rows in runs:
        first, steps = rows[0], tuple(row["step"] for row in rows)
        arm = tuple(first[column] for column in ("method", "targets", "rank", "alpha", "batch_eff", "trainable"))
        by_lr = tree[first["model"], first["data"], steps][arm][first["seed"]]
        if (other := by_lr.setdefault(first["lr"], rows)) is not rows:
            raise UserError(f"runs {other[0]['run']} and {first['run']} are alike in every column but differ in other settings "
                            "(--eval_samples, --dtype ...); put their files into different folders")
    sweeps = []
    for (model, data, steps), arms in tree.items():
        seeds = sorted(set().union(*arms.values()))
        arms = [Arm(*arm, sum(rank > (arm[2] or 0) for rank in ranks), *measured(by_seed, seeds)) for arm, by_seed in arms.items()]
        sweeps.append(Sweep(model, data, np.array(steps), arms))
    if left := len(runs) - sum(arm.runs for sweep in sweeps for arm in sweep.arms):
        print(f"{left} runs are left out: of their seed, not all rates of the arm are there", file=sys.stderr)
    return sweeps


def measured(by_seed: dict[float, dict], seeds: list[float]) -> tuple[list[float], np.ndarray]:
    """-> (an arm's rates, its NLL). Only seeds that have all of the rates count: a minimum over fewer is no comparison."""
    lrs = max((sorted(by_seed[seed]) for seed in seeds if seed in by_seed), key=len)
    curves = [[nll_curve(by_seed[seed][lr]) for lr in lrs] if sorted(by_seed.get(seed, ())) == lrs else None for seed in seeds]
    missing = np.full_like(next(curve for curve in curves if curve), np.nan)
    return lrs, np.array([missing if curve is None else curve for curve in curves])


def nll_curve(rows: list[dict]) -> np.ndarray:
    """Test NLL at each step; infinite from where a run diverged, so that it is never the lowest and never lost."""
    lost = [diverged([rows[0], row]) for row in rows]
    return np.where(np.logical_or.accumulate(lost), np.inf, [row["test_nll"] for row in rows])


def chosen(sweeps: list[Sweep]) -> list[tuple[Sweep, Sweep | None]]:
    """For each model and data set: the runs of the usual length, which most have, and the longest if they have more than LONG
    evaluations; these are the usual ones only where there are no others."""
    by_name = defaultdict(list)
    for sweep in sweeps:
        by_name[sweep.model, sweep.data].append(sweep)
    usual = [max(some, key=lambda sweep: (len(sweep.steps) <= LONG + 1, sum(arm.runs for arm in sweep.arms)))
             for some in by_name.values()]
    longest = [max(some, key=lambda sweep: sweep.steps[-1]) for some in by_name.values()]
    pairs = [(sweep, long if len(long.steps) > LONG + 1 else None) for sweep, long in zip(usual, longest)]
    kept = {id(sweep) for pair in pairs for sweep in pair}
    for sweep in (sweep for sweep in sweeps if id(sweep) not in kept):
        print(f"{sum(arm.runs for arm in sweep.arms)} runs of {sweep.steps[-1]:g} steps are left out, for most have another "
              "length; they need a folder of their own", file=sys.stderr)
    return pairs


# ----- the claims of "LoRA Without Regret" (Schulman et al., 2025) ----------------------------------------------------

class Claim(NamedTuple):
    text: str
    quantity: str
    values: np.ndarray              # (S,)
    interval: tuple[float, float]
    edges: list[str]
    ratio: bool = False


def at_edge(*arms: Arm) -> list[str]:
    """Which of `arms` have, for any seed, their best rate at the edge of their grid."""
    return [str(arm) for arm in arms if any(arm.best.edge)]


def higher(text: str, arm: Arm, other: Arm, interval=POSITIVE, gain: float | None = None) -> Claim:
    """On how far `arm` ends above `other`, in nats or as a share of `gain`."""
    quantity = f"{arm} above {other.place}" + ", share of the gain" * bool(gain)
    return Claim(text, quantity, (arm.best.nll - other.best.nll) / (gain or 1), interval, at_edge(arm, other))


def faster(text: str, arm: Arm, other: Arm, times: float) -> Claim:
    """On the ratio of their best rates, which is to be about `times`."""
    interval = (times * ABOUT[0], times * ABOUT[1])
    return Claim(f"{text} ({interval[0]:g} to {interval[1]:g})", f"rate of {arm} / rate of {other}",
                 arm.best.vertex / other.best.vertex, interval, at_edge(arm, other), ratio=True)


def claims(sweep: Sweep, long: Sweep | None) -> Iterator[Claim]:
    """What can be asked of the runs that are there; `long`: those that tell of capacity."""
    full, ranks, batches, fixed, gain = sweep.full(), sweep.lora(), sweep.batches(), sweep.fixed_alpha(), sweep.gain()
    if full and len(ranks) > 1:         # of one rank alone nobody can say whether it is high or low
        yield higher(f"a high rank learns as well as full fine-tuning: at most {MARGIN:.0%} of the gain behind",
                     ranks[-1], full, WITHIN, gain)
        yield higher(f"too low a rank falls behind: more than {MARGIN:.0%} of the gain", ranks[0], full, BEYOND, gain)
    times = times_full(sweep.steps[-1])
    for arm in ranks if full else ():
        yield faster(f"LoRA's best rate is about {times} times that of full fine-tuning", arm, full, times)
    if len(batches) > 1:
        (small, few), *_, (large, many) = batches.items()
        gaps = [arm.best.nll - reference.best.nll for arm, reference in (few, many)]
        yield Claim("LoRA loses more to full fine-tuning where the batch is large",
                    f"{many[0]} above full at batch {large:g}, less that at {small:g}", gaps[1] - gaps[0],
                    POSITIVE, [f"{edge}, batch {pair[0].batch:g}" for pair in (few, many) for edge in at_edge(*pair)])
    if pair := sweep.matched():
        yield higher("attention alone is worse than the MLP alone, with as many parameters", *pair)
    for arm, everywhere in itertools.product(sweep.lora("attention"), ranks):
        if arm.rank == everywhere.rank:
            yield higher("attention alone is worse than all layers", arm, everywhere)
    for arm, everywhere in itertools.product(sweep.lora("mlp"), ranks):
        if arm.rank == everywhere.rank:
            yield higher(f"the MLP alone does as well as all layers: at most {MARGIN:.0%} of the gain behind",
                         arm, everywhere, WITHIN, gain)
    if fixed:
        yield faster("with alpha fixed the best rate hardly depends on rank", fixed[-1], fixed[0], 1)
    if long and long.full() and len(ranks := long.lora()) > 1:
        low, *_, high = ranks
        yield Claim("the lower the rank, the earlier it leaves the curve of full fine-tuning",
                    f"step at which {high} leaves it, less that of {low}", long.leaves(high) - long.leaves(low), POSITIVE,
                    at_edge(low, high, long.full()))


# ----- the table ------------------------------------------------------------------------------------------------------

ARMS = ("arm", "batch", "trainable", "rates", "diverged", "best rate, measured", "by a parabola", "test NLL", "above full",
        "rate / full's")
CLAIMS = ("claim", "what was measured", "value", "verdict", "why")


def table(sweep: Sweep, long: Sweep | None = None) -> str:
    """A row an arm, then a row a claim, in Markdown."""
    lines = []
    for some in [sweep, long] if long and long is not sweep else [sweep]:
        arms = sorted(some.arms, key=lambda arm: (arm.batch, arm.method != "full", arm.targets, arm.alpha != arm.rank, arm.rank))
        lines += [f"## {some.title(arms)}", "",
                  f"Test NLL in nats a token after {some.steps[-1]:g} steps, at the best rate. With several seeds: mean ± spread "
                  "(the largest minus the smallest); of rates, the geometric mean (smallest to largest).", "",
                  *markdown(ARMS, [cells(arm, some.full(arm.batch)) for arm in arms]), ""]
    judged = []
    for claim in claims(sweep, long):
        value = rate(claim.values, ".3g") if claim.ratio else spread(claim.values, ".4g")
        word, why = verdict(*claim[2:])
        judged.append((claim.text, claim.quantity, value, f"*{word}*", why))
    return "\n".join([*lines, *markdown(CLAIMS, judged)])


def markdown(header, rows) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def cells(arm: Arm, full: Arm | None) -> list[str]:
    """The table's row of an arm."""
    best, edge = arm.best, any(arm.best.edge)
    to_full = full and full is not arm and [spread(best.nll - full.best.nll, "+.4f"), ratio(arm, full) or "-"]
    return [str(arm), f"{arm.batch:g}", size(arm.trainable), str(len(arm.lrs)), f"{arm.lost} of {arm.runs}",
            rate(best.lr) + " (edge)" * edge, "-" if edge else rate(best.vertex), spread(best.nll, ".4f"), *(to_full or ["", ""])]


def ratio(arm: Arm, full: Arm) -> str:
    """Of the best rates; nothing where one of them lies at the edge of its grid, for then it is not known."""
    return "" if at_edge(arm, full) else rate(arm.best.vertex / full.best.vertex, ".3g")


def spread(values, form: str) -> str:
    """The mean over seeds and, where there are several, the spread."""
    values = known(values)
    if not len(values) or not np.isfinite(values).all():
        return "-"
    return format(values.mean(), form) + (f" ± {np.ptp(values):{form.strip('+')}}" if len(values) > 1 else "")


def rate(values, form: str = ".1e") -> str:
    """The geometric mean over seeds and, where they differ, smallest and largest."""
    values = known(values)
    if not len(values):
        return "-"
    low, high = (f"{value:{form}}" for value in (values.min(), values.max()))
    return f"{math.exp(np.log(values).mean()):{form}}" + (f" ({low} to {high})" if low != high else "")


def size(parameters: float) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 999_500 else f"{parameters / 1e3:.0f}k"


# ----- how it looks ---------------------------------------------------------------------------------------------------
# Okabe and Ito's colours, which the colour-blind can tell apart. Each means the same in every figure, and so do the markers;
# those of RANKS go from the highest rank down.

BLACK, PLACES = "#000000", {"attention": "#D55E00", "mlp": "#CC79A7"}
RANKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#56B4E9", "D"), ("#999999", "v"), ("#F0E442", "P"))
STYLE = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 9.5, "axes.grid": True, "grid.alpha": 0.3,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "nanoLoRA",
         "figure.constrained_layout.use": True, "legend.handlelength": 3.2, "lines.linewidth": 1.8, "lines.markersize": 5}


def look(arm: Arm, text: str = "", **more) -> dict:
    """Colour by what is trained: full, the rank on all layers, or where the adapters are. And for the legend, name (or `text`)
    and over how many rates the best is taken, the diverged ones among them."""
    lost = f", {arm.lost} of {arm.runs} runs diverged" if arm.lost else ""
    more = {"label": f"{text or arm} ({len(arm.lrs)} rate{'s' * (len(arm.lrs) > 1)}{lost})"} | more
    if arm.method == "full":
        return {"color": BLACK, "marker": "x", "markeredgewidth": 1.8} | more
    color, marker = (PLACES[arm.targets], "p") if arm.targets in PLACES else RANKS[arm.tone % len(RANKS)]
    return {"color": color, "marker": marker, "markeredgecolor": "#333333", "markeredgewidth": 0.6} | more


def draw(ax, x, values, **style):
    """The mean over seeds of `values` (S, len(x)), and a band from the smallest to the largest. What diverged is left out."""
    values = values[~np.isnan(values[:, 0])]
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values):
        ax.plot(x, values.mean(0), **style)
    if len(values) > 1:
        ax.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0)


def new_figure(head: str, sweep: Sweep, arms, panels: int = 2):
    figure, axes = plt.subplots(1, panels, figsize=(12.5, 6), squeeze=False)
    bands = " (bands: from the smallest to the largest)" * any(sum(arm.seeds) > 1 for arm in arms)
    figure.suptitle(f"{head}: {sweep.title(arms)}{bands}", fontsize=13)
    return figure, axes[0]


def nll_axis(ax, label: str = "test NLL, nats a token"):
    """Logarithmic where it covers more than a factor of two."""
    low, high = ax.dataLim.intervaly
    if 0 < 2 * low < high:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_ylabel(label)


def draw_best(ax, sweep: Sweep, looks: list[tuple[Arm, dict]], note: str):
    """Best of sweep against steps, and the legend of the figure, below both panels, where it hides nothing."""
    for arm, style in looks:
        draw(ax, sweep.steps[1:], arm.curves[:, 1:], **style)
    ax.set(xlabel=f"steps ({note})", title="best of sweep")
    ax.xaxis.set_major_locator(ticker.FixedLocator(sweep.steps[1:], nbins=12))
    nll_axis(ax)
    longest = max(len(style["label"]) for _, style in looks)
    ax.figure.legend(loc="outside lower center", ncols=2 if len(looks) <= 4 or longest > 45 else 3)


def draw_gaps(ax, x, gaps: list[tuple[np.ndarray, dict]], **labels):
    """By how much something (S, len(x)) lies above full fine-tuning."""
    for values, style in gaps:
        draw(ax, x, values, **style | {"label": None})
    ax.axhline(0, color=BLACK, linewidth=1.8)
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:+g}" if y else "0"))
    ax.set(ylabel="nats a token above full fine-tuning", **labels)


def curves_figure(head: str, sweep: Sweep, arms: list[Arm], looks=look):
    """Left: best of sweep against steps. Right: by how much it lies above full fine-tuning."""
    full, steps = sweep.full(), sweep.steps[1:]
    figure, (left, right) = new_figure(head, sweep, [full, *arms] if full else arms)
    base = np.nanmean([arm.curves[:, 0] for arm in arms])
    draw_best(left, sweep, [(arm, looks(arm)) for arm in (full, *arms) if arm], note=f"the base, at step 0: {base:.3f}")
    if full:
        draw_gaps(right, steps, [((arm.curves - full.curves)[:, 1:], looks(arm)) for arm in arms], xlabel="steps",
                  title=f"the same, less full fine-tuning (grey: {MARGIN:.0%} of its gain)", xticks=left.get_xticks())
        right.axhspan(-MARGIN * sweep.gain(), MARGIN * sweep.gain(), color=BLACK, alpha=0.08, linewidth=0)
    else:
        right.set_axis_off()
    return figure


def rates_figure(head: str, sweep: Sweep, panels: dict[str, list[Arm]]):
    """NLL after the last step against the learning rate, a panel for each {title: arms}."""
    full = [sweep.full()] if sweep.full() else []
    figure, axes = new_figure(head, sweep, dict.fromkeys(full + sum(panels.values(), [])), len(panels))
    for ax, (text, arms) in zip(axes, panels.items()):
        ax.sharey(axes[0])
        for i, arm in enumerate(full + arms):
            draw_rates(ax, arm, full, height=0.97 - 0.035 * i)
        nll_axis(ax, f"test NLL after {sweep.steps[-1]:g} steps, nats a token")
        ax.set(xscale="log", title=text, xlabel="learning rate (ring: the lowest; cross: diverged;\n"
               "triangles: each seed's best by a parabola, and in the legend their mean)")
        ax.set_ymargin(0.25)        # room for the crosses
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2 // len(panels))
    return figure


def draw_rates(ax, arm: Arm, full: list[Arm], height: float):
    """One arm of it. The rates at which a run diverged have a cross near the top, at `height`."""
    label = f"{arm}: best {rate(arm.best.vertex)}" + ", at the edge" * any(arm.best.edge)
    if full and arm is not full[0] and (times := ratio(arm, full[0])):
        label += f", {times} x full's"
    style = look(arm, label=label)
    ends, at = arm.nll[:, :, -1], {"color": style["color"], "linestyle": "", "transform": ax.get_xaxis_transform(), "markersize": 9}
    draw(ax, arm.lrs, ends, **style)
    lowest = best_rate(arm.lrs, ends[arm.seeds].mean(0))
    ax.plot(lowest.lr, lowest.nll, "o", markersize=13, markerfacecolor="none", color=style["color"], markeredgewidth=1.6)
    inner, lost = arm.best.vertex[~arm.best.edge], np.array(arm.lrs)[np.isinf(ends).any(0)]
    ax.plot(inner, np.full(len(inner), 0.015), marker="^", **at)
    ax.plot(lost, np.full(len(lost), height), marker="X", **at)


# ----- the figures: each returns None where its runs are not there ----------------------------------------------------

def finding1(sweep: Sweep):
    return curves_figure("Finding 1, rank", sweep, sweep.lora()) if sweep.lora() else None


def finding2(sweep: Sweep):
    arms = [arm for arm in sweep.lora() if len(arm.lrs) > 2]
    return rates_figure("Finding 2, learning rate", sweep, {"": arms}) if arms else None


def finding3(sweep: Sweep):
    pairs = sweep.batches()
    if len(pairs) < 2:
        return None
    figure, (left, right) = new_figure("Finding 3, batch size", sweep, sum(pairs.values(), ()))
    draw_best(left, sweep, [(arm, look(arm, f"batch {batch:g}, {arm}", linestyle=line)) for (batch, pair), line
                            in zip(pairs.items(), (":", "--", "-", "-.") * 9) for arm in pair], "a larger batch has seen more data")
    lora = pairs[max(pairs)][0]
    draw_gaps(right, list(pairs), [(np.stack([arm.best.nll - full.best.nll for arm, full in pairs.values()], 1), look(lora))],
              xlabel="batch, samples", title=f"{lora} less full fine-tuning, after {sweep.steps[-1]:g} steps")
    right.set_xscale("log", base=2)
    right.set_xticks(list(pairs), [f"{batch:g}" for batch in pairs])
    return figure


def finding4(sweep: Sweep):
    def looks(arm):
        twin = arm in sweep.matched()
        text = f"{arm.place}: {size(arm.trainable)} trained{', matched' * twin}"
        return look(arm, text, linestyle="--" if twin else "-")

    apart = sweep.lora("attention") + sweep.lora("mlp")
    arms = [arm for arm in sweep.lora() if arm.rank in {other.rank for other in apart}] + apart
    return curves_figure("Finding 4, placement", sweep, arms, looks) if apart else None


def alpha(sweep: Sweep):
    if fixed := sweep.fixed_alpha():
        panels = {f"alpha = {fixed[0].alpha:g}": fixed, "alpha = r": sweep.lora()}
        return rates_figure("alpha", sweep, {text: arms for text, arms in panels.items() if arms})


def capacity(sweep: Sweep):
    if not sweep.lora() or not sweep.full():
        return None
    figure = curves_figure("Capacity", sweep, sweep.lora())
    steps = {arm: known(sweep.leaves(arm)).mean() for arm in sweep.lora()}
    lines = [figure.axes[1].axvline(step, color=look(arm)["color"], linestyle=":", label=f"{arm} leaves at step {step:.0f}")
             for arm, step in steps.items() if step < sweep.steps[-1]]
    if lines:
        figure.axes[1].legend(handles=lines, frameon=True)
    return figure


def draw_all(sweep: Sweep, long: Sweep | None, out: Path, prefix: str = "") -> Iterator[Path]:
    """Every figure that can be drawn, as PNG and SVG -> the PNGs' paths."""
    out.mkdir(parents=True, exist_ok=True)
    for one in (finding1, finding2, finding3, finding4, alpha, capacity):
        with plt.rc_context(STYLE):
            runs, path = long if one is capacity else sweep, out / f"{prefix}{one.__name__}.png"
            if runs and (figure := one(runs)):
                figure.savefig(path, dpi=130)
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                plt.close(figure)
                yield path


# ----- the command ----------------------------------------------------------------------------------------------------

def main(argv=None):
    parser = make_parser("plot.py", __doc__)
    parser.add_argument("folder", type=Path, help="folder with the CSV files")
    parser.add_argument("--out", type=Path, help="folder of the figures; default: that of the CSV files")
    parser.add_argument("--table", action="store_true", help="print Markdown instead of drawing")
    args = parser.parse_args(argv)
    with errors_in_one_line():
        pairs = chosen(group(read_runs(args.folder)))
        for sweep, long in pairs:
            prefix = f"{Path(sweep.model).name}_{Path(sweep.data).name}_" if len(pairs) > 1 else ""
            if args.table:
                print(table(sweep, long))
            elif paths := list(draw_all(sweep, long, args.out or args.folder, prefix)):
                print("\n".join(f"{path} (and .svg)" for path in paths))
            else:
                raise UserError(f"{args.folder} has runs of {sweep.model} on {sweep.data}, but none that make one of the figures")


if __name__ == "__main__":
    run_command(main)
