"""What sweep.py wrote: CSV rows -> runs -> arms -> sweeps. verdicts.py judges them, plot.py draws.

Plain Python and numpy.

    run            one training. Its rows hold the test NLL at step 0, 10, 20, ...
    arm            all runs that differ in learning rate and seed alone: "r = 64, batch 16". Next to
                   the columns of its rows, a run may have a file <run>.json with its settings. Two
                   runs with other schedules are two arms, "r = 64, schedule = cosine": a name has
                   what differs among the runs of a folder, and nothing else
    sweep          the arms of one model on one data set, at the same steps
    best of sweep  the lowest test NLL of an arm over its learning rates, at each step separately,
                   so that one curve may change from one rate to another along the way.
                   LoRA and full fine-tuning want different rates, so at one common rate the
                   comparison would be unfair to one of them. Each arm gets its own best.

The seeds of an arm need not have the same rates: sweep.py --near_best runs the first seed at all
rates of the grid and the others only at the three around its best. Each seed's best is sought among
its own rates. A seed counts if it brackets its best: it was run at the next rate on either side,
and both were worse. Otherwise a rate beyond the edge might be better, and nobody knows yet how good
that arm can be with that seed.

It does not matter that some seeds have few rates: only the best rate and its two neighbours enter a
comparison. Early in a curve a higher rate can lead, and three rates may miss that; on nano they did
not.
"""
import math
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing.errors import UserError
from plumbing.files import read_json
from plumbing.records import COLUMNS, read_rows
from plumbing.text import count_noun
from rates import Best, diverged, extend_grid, find_best_rate, rates_around_best
from settings import Config

MARGIN = 0.02       # as good as full fine-tuning: behind by at most this share of the gain
LONG = 10           # runs with more evaluations after step 0 show where a low rank leaves the curve
MATCHED = 0.1       # placements are of one size if their parameters differ by at most this share

# Settings that make no arm: the columns and the steps of the rows show them, or they decide what is
# measured and not what is trained (eval_samples), or only dropout's draws (the last three).
NO_ARM = {"model", "data", "method", "targets", "rank", "alpha", "lr", "batch_eff", "seed",
          "max_steps", "eval_steps", "eval_samples", "micro_bs", "device", "compile"}
# The first edition wrote these columns also for methods that ignore them. Today they are empty.
IGNORED = {"bitfit": ("rank", "alpha"), "adapter": ("alpha", "targets"),
           "prefix_embedding": ("alpha", "targets"), "prefix_layer": ("alpha", "targets")}
OF_METHODS = {"options"}                            # settings that only some methods have
OF_ADAPTERS = {"options", "nf4", "dropout"}         # and that full fine-tuning has not


# ----- arms ---------------------------------------------------------------------------------------
# S seeds, R learning rates, T evaluations

@dataclass(eq=False)
class Arm:
    """The runs that differ in learning rate and seed alone."""
    method: str
    targets: str            # "" where a method has none, like rank and alpha
    rank: float | str
    alpha: float | str
    batch: float            # samples per optimizer step
    trainable: float        # parameters
    seeds: list[int]        # of the sweep, ascending
    lrs: list[float]        # all that any seed was run at, ascending
    tokens: np.ndarray      # (T,) seen so far in training, padding not counted
    nll: np.ndarray         # (S, R, T); inf from where a run diverged, nan if it is missing
    more: tuple = ()        # (name, value) of each setting that differs among the folder's runs
    variant: int = 0        # the number of these values: 0 is what most runs have

    def __str__(self):
        parts = []
        if self.method != "lora":
            parts.append(self.method)
        if self.targets not in ("", "all-linear"):
            parts.append(self.targets)
        if self.rank:
            parts.append(f"r = {self.rank:g}")
        if self.alpha not in ("", self.rank):
            parts.append(f"alpha = {self.alpha:g}")
        return ", ".join([*parts, *name_values(self.more)])

    @property
    def columns(self) -> tuple:
        """What its runs have in common in the columns: alike in arms that differ in `more`."""
        return (self.method, self.targets, self.rank, self.alpha, self.batch, self.trainable)

    @property
    def place(self) -> str:
        """The name, with the place of the adapters even if that is every layer."""
        return f"all layers, {self}" if self.targets == "all-linear" else str(self)

    @property
    def was_run(self) -> np.ndarray:
        """(S, R)"""
        return ~np.isnan(self.nll[:, :, 0])

    @property
    def has_seed(self) -> np.ndarray:
        """Which seeds were run at any rate, (S,)."""
        return self.was_run.any(axis=1)

    @property
    def n_runs(self) -> int:
        return int(self.was_run.sum())

    @property
    def n_diverged(self) -> int:
        return int(np.isinf(self.nll[:, :, -1]).sum())

    @cached_property
    def best(self) -> Best:
        """The best rate of each seed among its own rates."""
        of_seeds = []
        for s in range(len(self.seeds)):
            of_seeds.append(find_best_rate(self.own_rates(s), self.nll[s, self.was_run[s], -1]))
        return Best(*map(np.array, zip(*of_seeds)))

    @property
    def counts(self) -> np.ndarray:
        """Which seeds bracket their best rate, (S,): those that count in claims."""
        return self.has_seed & ~self.best.edge

    @property
    def shown(self) -> np.ndarray:
        """Which seeds are drawn, (S,): those that count. If there are none, all."""
        return self.counts if self.counts.any() else self.has_seed

    @cached_property
    def curves(self) -> np.ndarray:
        """Best of sweep, (S, T): the lowest NLL at each step. nan for a seed that is not shown."""
        lowest = np.fmin.reduce(self.nll, axis=1)           # fmin leaves out nan
        return np.where(self.shown[:, None], lowest, np.nan)

    def describe_rates(self) -> str:
        """"5 rates", or "3 to 7 rates" if not every seed was run at as many."""
        n_rates = self.was_run.sum(axis=1)[self.has_seed]
        low, high = n_rates.min(), n_rates.max()
        return count_noun(int(low), "rate") if low == high else f"{low} to {high} rates"

    def describe_seeds(self) -> str:
        """Whether some do not bracket their best: "2 of 3 seeds count", "at the edge", or ""."""
        n, n_counting = self.has_seed.sum(), self.counts.sum()
        if n == n_counting:
            return ""
        verb = "counts" if n_counting == 1 else "count"
        return f"{n_counting} of {n} seeds {verb}" if n_counting else "at the edge"

    def describe_grid(self) -> str:
        """"3 to 5 rates, 2 of 3 seeds count, 1 of 13 runs diverged", as far as there is to say."""
        parts = [self.describe_rates(), self.describe_seeds()]
        if self.n_diverged:
            parts.append(f"{self.n_diverged} of {count_noun(self.n_runs, 'run')} diverged")
        return ", ".join(filter(None, parts))

    def own_rates(self, s: int) -> list[float]:
        """The rates that seed number `s` was run at."""
        return [lr for lr, was_run in zip(self.lrs, self.was_run[s]) if was_run]

    def rates_to_add(self) -> dict[float, list[int]]:
        """{rate: seeds}: what is missing where a seed does not bracket its best rate.

        It is what sweep.py --bracket would run if all rates of the arm were one grid.
        """
        to_add, ladder = defaultdict(list), extend_grid(self.lrs)
        for s in np.flatnonzero(self.has_seed & ~self.counts):
            own = self.own_rates(s)
            last = dict(zip(own, self.nll[s, self.was_run[s], -1]))
            for lr in rates_around_best(last, ladder):
                if lr not in own:
                    to_add[lr].append(self.seeds[s])
        return to_add

    def rates_between(self) -> list[float]:
        """The rates halfway from the best one to its neighbours. They halve the grid's step."""
        s = int(np.flatnonzero(self.counts)[0])
        own = self.own_rates(s)
        i = own.index(self.best.lr[s])
        return [math.sqrt(own[i - 1] * own[i]), math.sqrt(own[i] * own[i + 1])]


def name_values(more: tuple) -> list[str]:
    """(("nf4", True), ("schedule", "cosine")) -> ["nf4", "schedule = cosine"].

    What is off has no name. --options name themselves.
    """
    parts = []
    for name, value in more:
        if name == "options" and value:
            parts += [option.replace("=", " = ") for option in value.split(",")]
        elif value is True:
            parts.append(name)
        elif value is not None and value is not False and value != "":
            parts.append(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}")
    return parts


def name_arms(arms: list[Arm]) -> dict[Arm, str]:
    """The name of each, with its place and its batch if others of `arms` have another."""
    places = {arm.targets for arm in arms if arm.targets}
    batches = {arm.batch for arm in arms}
    names = {arm: arm.place if len(places) > 1 else str(arm) for arm in arms}
    if len(batches) > 1:
        names = {arm: f"{name}, batch {arm.batch:g}" for arm, name in names.items()}
    return names


def mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """The mean of each column of (S, n), inf if it holds inf; nan is left out."""
    present = ~np.isnan(values)
    return np.where(present, values, 0).sum(axis=0) / present.sum(axis=0)


# ----- sweeps -------------------------------------------------------------------------------------

@dataclass(eq=False)
class Sweep:
    """The runs of one model on one data set that were evaluated at the same steps.

    Or after as many samples, whatever the batch: then `steps` counts samples.
    """
    model: str
    data: str
    steps: np.ndarray       # (T,)
    arms: list[Arm]
    names: set[str]         # of its runs
    unit: str = "steps"     # or "samples"

    @property
    def n_runs(self) -> int:
        return sum(arm.n_runs for arm in self.arms)

    @property
    def end(self) -> str:
        return f"{self.steps[-1]:g} {self.unit}"

    @property
    def batch(self) -> float:
        """The batch size of most runs; of two that are equally common, the smaller."""
        n_runs = Counter()
        for arm in self.arms:
            n_runs[arm.batch] += arm.n_runs
        return max(n_runs, key=lambda batch: (n_runs[batch], -batch))

    @property
    def variant(self) -> int:
        """The other settings (arms.variant) that claims are about: those that most runs have."""
        variants = [arm.variant for arm in self.arms
                    if arm.method != "full" and arm.batch == self.batch]
        return min(variants, default=0)

    def full_arm(self, batch: float | None = None, like: Arm | None = None) -> Arm | None:
        """Full fine-tuning at `batch`, or at the most common batch size.

        With the other settings that `like` has, or that claims are about. If there is none, with
        those that most runs have.
        """
        batch = batch or self.batch
        arms = [arm for arm in self.arms if arm.method == "full" and arm.batch == batch]
        arms.sort(key=lambda arm: arm.variant)
        others = [like] if like else [arm for arm in self.arms if arm.variant == self.variant]
        wanted = {without(OF_ADAPTERS, arm.more) for arm in others}
        alike = [arm for arm in arms if without(OF_ADAPTERS, arm.more) in wanted]
        return next(iter([*alike, *arms]), None)

    def lora_arms(self, targets="all-linear", alpha: float | None = None,
                  batch: float | None = None, like: Arm | None = None) -> list[Arm]:
        """LoRA on `targets`, by ascending rank. Without `alpha`, those with alpha = rank.

        With the other settings that `like` has, or that claims are about.
        """
        batch = batch or self.batch
        variant = like.variant if like else self.variant
        arms = [arm for arm in self.arms if arm.method == "lora" and arm.targets == targets
                and arm.batch == batch and arm.alpha == (alpha or arm.rank)
                and arm.variant == variant]
        return sorted(arms, key=lambda arm: arm.rank)

    def method_arms(self) -> list[Arm]:
        """LoRA's relatives and rivals at the most common batch size, by name."""
        arms = [arm for arm in self.arms
                if arm.method not in ("full", "lora", "qlora") and arm.batch == self.batch]
        return sorted(arms, key=str)

    def lora_of_size(self, arm) -> Arm | None:
        """LoRA on all layers with a number of parameters as close to that of `arm` as there is."""
        loras = self.lora_arms(like=arm) or self.lora_arms()
        return min(loras, key=lambda lora: size_ratio(lora, arm), default=None)

    def usual_twin(self, arm) -> Arm | None:
        """The arm that differs from `arm` in `more` alone, and has what most runs have."""
        twins = [other for other in self.arms if other.columns == arm.columns and other is not arm]
        twin = min(twins, key=lambda other: other.variant, default=arm)
        return twin if twin.variant < arm.variant else None

    def twins(self) -> list[Arm]:
        """Arms at the most common batch size that differ from another in `more` alone."""
        arms = [arm for arm in self.arms if arm.batch == self.batch]
        counts = Counter(arm.columns for arm in arms)
        twins = [arm for arm in arms if counts[arm.columns] > 1]
        return sorted(twins, key=lambda arm: (arm.method != "full", arm.method, arm.targets,
                                              arm.rank or 0, arm.variant))

    def arms_by_targets(self) -> dict[str, list[Arm]]:
        """{targets: LoRA on them by ascending rank}."""
        targets = sorted({arm.targets for arm in self.arms if arm.method == "lora"})
        return {name: arms for name in targets if (arms := self.lora_arms(name))}

    def fixed_alpha_arms(self) -> list[Arm]:
        """LoRA on all layers at several ranks and one alpha, the one with the most ranks."""
        alphas = {arm.alpha for arm in self.arms if arm.alpha != arm.rank}
        groups = [self.lora_arms(alpha=alpha) for alpha in sorted(alphas)]
        arms = max(groups, key=len, default=[])
        return arms if len(arms) > 1 else []

    def equal_ranks(self) -> list[dict[str, Arm]]:
        """{place: arm} of each rank at which several places have adapters."""
        by_rank = defaultdict(dict)
        for targets in ("attention", "mlp", "all-linear"):
            for arm in self.lora_arms(targets):
                by_rank[arm.rank][targets] = arm
        return [places for _, places in sorted(by_rank.items()) if len(places) > 1]

    def matched_places(self) -> dict[str, Arm]:
        """{place: arm}: attention and the MLP, at the ranks at which their sizes are closest.

        An attention layer has fewer weights than an MLP, so their ranks must differ. LoRA on all
        layers joins them where it has a rank of about that size.
        """
        pairs = [(attention, mlp) for attention in self.lora_arms("attention")
                 for mlp in self.lora_arms("mlp") if attention.rank != mlp.rank]
        closest = min(pairs, key=lambda pair: size_ratio(*pair), default=None)
        if not closest or size_ratio(*closest) > MATCHED:
            return {}
        places = dict(zip(("attention", "mlp"), closest))
        everywhere = min(self.lora_arms(), key=lambda arm: size_ratio(arm, *closest), default=None)
        if everywhere and size_ratio(everywhere, *closest) <= MATCHED:
            places["all-linear"] = everywhere
        return places

    def pairs_by_batch(self) -> dict[float, tuple[Arm, Arm]]:
        """{batch: (LoRA, full fine-tuning)}, ascending, at the rank that was run at most batches.

        If two ranks were, it is the higher.
        """
        batches = sorted({arm.batch for arm in self.arms if arm.method == "full"})
        loras = [arm for batch in batches for arm in self.lora_arms(batch=batch)]
        n_batches = Counter(arm.rank for arm in loras)
        rank = max(n_batches, key=lambda rank: (n_batches[rank], rank), default=None)
        return {arm.batch: (arm, self.full_arm(arm.batch)) for arm in loras if arm.rank == rank}

    def full_gain(self) -> float:
        """What full fine-tuning gains over the base, in nats, in its best seed.

        Without full fine-tuning it is what the best arm gains; nan if nothing was gained.
        """
        full = self.full_arm()
        arms = [full] if full else self.arms
        gain = float(np.nanmax([arm.curves[:, 0] - arm.curves[:, -1] for arm in arms]))
        return gain if gain > 0 else math.nan

    def leaving_steps(self, arm) -> np.ndarray:
        """The step from which on `arm` stays more than MARGIN above full fine-tuning, (S,).

        It is the first such step that was evaluated, and the last step if `arm` never leaves.
        """
        above = arm.curves - self.full_arm().curves                         # (S, T)
        leaves = np.full(len(above), np.nan)
        for s in np.flatnonzero(~np.isnan(above[:, 0])):
            within = np.flatnonzero(above[s] <= MARGIN * self.full_gain())
            first_apart = within[-1] + 1 if len(within) else 0
            leaves[s] = self.steps[min(first_apart, len(self.steps) - 1)]
        return leaves

    def describe(self, arms: list[Arm]) -> str:
        """Model, data, the batch if it is one, and the number of runs that `arms` consist of."""
        parts = [f"{Path(self.model).name} on {Path(self.data).name}"]
        batches = {arm.batch for arm in arms}
        if len(batches) == 1:
            parts.append(f"batch {min(batches):g}")
        seeds = np.any([arm.has_seed for arm in arms], axis=0)              # (S,)
        parts.append(count_noun(sum(arm.n_runs for arm in arms), "run"))
        parts.append(count_noun(int(seeds.sum()), "seed"))
        return ", ".join(parts)


def without(names: set, more: tuple) -> tuple:
    return tuple((name, value) for name, value in more if name not in names)


def size_ratio(*arms: Arm) -> float:
    """By which share the largest arm exceeds the smallest, in parameters."""
    sizes = [arm.trainable for arm in arms]
    return max(sizes) / min(sizes) - 1


# ----- reading ------------------------------------------------------------------------------------

def read_runs(folder: Path) -> list[list[dict]]:
    """The rows of each run in the order of its steps, from the CSV files in `folder`.

    A file may hold one run or many. Files with other columns than train.py's are left out. What
    other files say of a run's settings is added to its rows as "settings". Raises UserError for a
    damaged file, and if there is no run at all.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder that it lies in: {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    rows, settings = {}, {}                 # (run, step) -> row; run -> its settings
    for path in sorted(filter(Path.is_file, folder.glob("*.csv"))):
        if not has_runs(path):
            print(f"{path} is left out: its columns are not those of train.py", file=sys.stderr)
            continue
        for row in read_rows(path):
            if row["run"] != path.stem and (folder / f"{path.stem}.json").exists():
                raise UserError(f"{path} holds rows of the run {row['run']}, and its name says "
                                f"{path.stem}; delete it, and the sweep makes that run again")
            if row["run"] not in settings:
                settings[row["run"]] = read_settings(row["run"], folder)
            rows[row["run"], row["step"]] = row | {"settings": settings[row["run"]]}
    if not rows:
        hint = suggest_folders(folder) or "give the folder that does, or that of a run of train.py"
        raise UserError(f"{folder} has no CSV file that sweep.py wrote; {hint}")
    runs = defaultdict(list)
    for (run, _), row in sorted(rows.items()):
        runs[run].append(row)
    return list(runs.values())


def suggest_folders(folder: Path) -> str:
    """What to type for the sweeps, or the runs of train.py, in the folders of `folder`; or ""."""
    paths = [path for path in sorted(folder.glob("*/*.csv")) if has_runs(path)]
    of_train = [str(path.parent) for path in paths if path.name == "log.csv"]
    of_sweeps = [path.parent for path in paths if path.name != "log.csv"]
    hints = []
    if of_sweeps:
        hints.append(f"for the sweep in a folder of it: python plot.py {of_sweeps[0]}")
    if of_train:
        hints.append("for the curve of a run, or of several: python plot.py "
                     f"{' '.join(of_train[:2])}")
    return "; ".join(hints)


def has_runs(path: Path) -> bool:
    """Whether a CSV file has the columns of train.py."""
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.readline().strip().split(",") == COLUMNS


def read_settings(run: str, folder: Path) -> dict | None:
    """The settings that decide the result of `run`, from what sweep.py or train.py wrote.

    None if there is no such file: the first edition wrote none. Settings that a file does not have
    were added later, and are at their defaults.
    """
    for path in (folder / f"{run}.json", folder / "run.json"):
        content = read_json(path) if path.exists() else {}
        if content.get("run") == run:
            return Config.of_settings(content, path).decides
    return None


def mark_divergence(rows: list[dict]) -> list[dict]:
    """The NLL as inf from where the run diverged, so that it is never the lowest."""
    return [row | {"test_nll": math.inf} if diverged(rows[:i + 1]) else row
            for i, row in enumerate(rows)]


def refuse_other_test_sets(runs: list[list[dict]]):
    """Raise UserError for runs that start from one base, but at different test NLLs.

    Rounding explains less than 1%. If it is more, their test sets differ. Methods that put virtual
    tokens in front of the text are left out, because they do not begin as their base.
    """
    starts = defaultdict(list)              # base -> [(test NLL, run)]
    for rows in runs:
        first = rows[0]
        if first["method"].startswith("prefix"):
            continue
        settings = first.get("settings") or {}          # a base in four bits is one of its own:
        quantized = first["method"] == "qlora" or settings.get("nf4", False)
        starts[first["model"], first["data"], quantized].append((first["test_nll"], first["run"]))
    for some in starts.values():
        (low, one), (high, other) = min(some), max(some)
        if high > 1.01 * low:
            raise UserError(
                f"runs {one} and {other} begin at test NLLs of {low:.3f} and {high:.3f}, so they "
                "were not evaluated alike (--eval_samples, --max_length ...); put their files into "
                "different folders")


def drop_ignored(runs: list[list[dict]]) -> list[list[dict]]:
    """The runs without a rank, alpha or targets that their method does not have.

    That a method ignores them today is written in its file, but reading that would load torch.
    """
    return [[row | dict.fromkeys(IGNORED.get(row["method"], ()), "") for row in rows]
            for rows in runs]


def add_differences(runs: list[list[dict]]) -> list[list[dict]]:
    """The runs of one model and data set, with `more` and `variant` (see Arm) in their first rows.

    Raises UserError if settings differ, and nobody knows those of one of the runs.
    """
    known = [rows[0]["settings"] for rows in runs if rows[0].get("settings")]
    differing = []
    for name in sorted({name for settings in known for name in settings} - NO_ARM):
        if len({settings.get(name) for settings in known}) > 1:
            differing.append(name)
    unknown = [rows[0]["run"] for rows in runs if not rows[0].get("settings")]
    if differing and unknown:
        raise UserError(
            f"the runs differ in {' and '.join(differing)}, and no file {unknown[0]}.json says "
            f"which of them run {unknown[0]} had; the sweep's own command writes it, or move the "
            "run's file into a folder of its own")

    values = [tuple((name, rows[0]["settings"].get(name)) for name in differing) for rows in runs]
    columns = ("method", "targets", "rank", "alpha", "batch_eff")
    numbers = number_variants([(tuple(rows[0][name] for name in columns), more)
                               for rows, more in zip(runs, values)])
    return [[rows[0] | {"more": more, "variant": number}, *rows[1:]]
            for rows, more, number in zip(runs, values, numbers)]


def number_variants(runs: list[tuple]) -> list[int]:
    """The number of each run's other settings: 0 for those that most arms have.

    If two are equally common, the one nearer to the defaults comes first. How many rates an arm has
    makes no difference, because --bracket adds some. runs: ((method, ...), more).

    --options belong to a method and not to the others it is compared with, so they do not count.
    Full fine-tuning has no dropout, for instance, so it gets the number of adapters without regard
    to that.
    """
    keys = [without(OF_METHODS, more) for _, more in runs]
    arms = {(columns, key) for (columns, _), key in zip(runs, keys)}
    counts = Counter(key for columns, key in arms if columns[0] != "full")

    def rarity(key):
        changed = [name for name, value in key if value not in (None, getattr(Config, name, None))]
        return -counts[key], len(changed), str(key)

    order = sorted(counts, key=rarity)
    order += sorted({*keys} - {*order}, key=str)
    common = [without(OF_ADAPTERS, key) for key in order]
    return [common.index(without(OF_ADAPTERS, key)) if columns[0] == "full" else order.index(key)
            for (columns, _), key in zip(runs, keys)]


def refuse_twins(runs: list[list[dict]]):
    """Raise UserError for two runs that differ, but in nothing that the files show."""
    seen = {}
    for rows in runs:
        first = rows[0]
        key = first["model"], first["data"], arm_key(rows), point_key(rows), steps_of(rows)
        other = seen.setdefault(key, first)
        if other is first:
            continue
        one, two = other.get("settings"), first.get("settings")
        where = "other settings (--eval_samples, --dtype ...), and no .json file says in which"
        if one and two:
            differing = [name for name in sorted({*one, *two})
                         if one.get(name) != two.get(name) and first.get(name) != ""]
            if not differing:       # one run, under two ranks that its method ignores
                continue
            where = " and ".join(differing)
        raise UserError(f"runs {other['run']} and {first['run']} are alike in every column but "
                        f"differ in {where}; put their files into different folders")


def arm_key(rows: list[dict]) -> tuple:
    names = "method", "targets", "rank", "alpha", "batch_eff", "trainable", "more"
    return tuple(rows[0][name] for name in names)


def point_key(rows: list[dict]) -> tuple:
    return rows[0]["seed"], rows[0]["lr"]


def steps_of(rows: list[dict]) -> tuple:
    return tuple(row["step"] for row in rows)


# ----- from runs to sweeps ------------------------------------------------------------------------

class Sweeps(NamedTuple):
    """What is compared, of one model on one data set."""
    usual: Sweep                # the length that most runs have, for most claims
    long: Sweep | None          # for the claim on capacity
    equal_steps: Sweep | None   # all batch sizes after as many steps
    equal_samples: Sweep | None     # and after as many samples


def select_sweeps(runs: list[list[dict]]) -> list[Sweeps]:
    """The sweeps of each model and data set.

    Raises UserError for runs that cannot be compared, or not be told apart.
    """
    runs = [mark_divergence(rows) for rows in runs]
    refuse_other_test_sets(runs)
    by_name = defaultdict(list)
    for rows in runs:
        by_name[rows[0]["model"], rows[0]["data"]].append(rows)
    return [select_of_model(some) for some in by_name.values()]


def select_of_model(runs: list[list[dict]]) -> Sweeps:
    """The usual runs have the length that most have.

    The long runs have more than LONG evaluations, at the batch size of the usual ones. They also
    serve as the usual ones if there are no others.
    """
    runs = add_differences(drop_ignored(runs))
    refuse_twins(runs)
    by_steps = defaultdict(list)
    for rows in runs:
        by_steps[steps_of(rows)].append(rows)
    usual_steps = max(by_steps, key=lambda steps: (len(steps) <= LONG + 1, len(by_steps[steps])))
    usual, long = make_sweep(by_steps[usual_steps]), None
    for steps, some in sorted(by_steps.items(), key=lambda item: item[0][-1]):
        some = [rows for rows in some if rows[0]["batch_eff"] == usual.batch]
        if some and len(steps) > LONG + 1:
            long = usual if steps == usual_steps else make_sweep(some)
    others = runs
    if long and long is not usual:
        others = [rows for rows in runs if rows[0]["run"] not in long.names]
    return Sweeps(usual, long, cut_at_equal("steps", others), cut_at_equal("samples", others))


def cut_at_equal(unit: str, runs: list[list[dict]]) -> Sweep | None:
    """The runs of all batch sizes after as many steps, or samples (step x batch).

    A longer run is cut there. That is fair if its learning rate is constant, as in the presets of
    sweep.py: then row 40 of a run of 160 steps is the result of one of 40. Other runs only have
    their last step.

    Of the numbers of steps or samples it is the one that most batch sizes have, and of several the
    largest. None if LoRA and full fine-tuning do not both have it at two batch sizes.
    """
    seen = defaultdict(set)                 # batch, method -> numbers of steps or samples
    for rows in runs:
        size = step_size(unit, rows)
        seen[rows[0]["batch_eff"], rows[0]["method"]] |= {size * n for n in fair_steps(rows)}
    n_batches = Counter()
    for batch in {batch for batch, _ in seen}:
        n_batches.update(seen[batch, "full"] & seen[batch, "lora"])
    end = max(n_batches, key=lambda end: (n_batches[end], end), default=0)
    if n_batches[end] < 2:
        return None
    cut = {}
    for rows in sorted(runs, key=lambda rows: rows[-1]["step"]):
        by_end = {step_size(unit, rows) * row["step"]: row for row in rows}
        if end in by_end and by_end[end]["step"] in fair_steps(rows):
            # of two lengths of one run, the shorter counts
            cut.setdefault((arm_key(rows), point_key(rows)), [rows[0], by_end[end]])
    return make_sweep(list(cut.values()), (0, end), unit)


def fair_steps(rows: list[dict]) -> tuple:
    """The steps after which a run is what a shorter one would have been, as far as is known."""
    settings = rows[0].get("settings") or {}
    constant = settings.get("schedule", "constant") == "constant"
    return steps_of(rows)[1 if constant and not settings.get("warmup_ratio") else -1:]


def step_size(unit: str, rows: list[dict]) -> float:
    return rows[0]["batch_eff"] if unit == "samples" else 1


def make_sweep(runs: list[list[dict]], steps: tuple = (), unit="steps") -> Sweep:
    """runs: evaluated at the same steps, or after as many samples."""
    first = runs[0][0]
    seeds = sorted({rows[0]["seed"] for rows in runs})
    by_arm = defaultdict(dict)
    for rows in runs:
        by_arm[arm_key(rows)][point_key(rows)] = rows
    arms = [make_arm(some, seeds) for some in by_arm.values()]
    return Sweep(first["model"], first["data"], np.array(steps or steps_of(runs[0])), arms,
                 names={rows[0]["run"] for rows in runs}, unit=unit)


def make_arm(runs: dict[tuple, list[dict]], seeds: list[int]) -> Arm:
    """runs: {(seed, rate): rows}; seeds: all of the sweep."""
    some_run = next(iter(runs.values()))
    first, lrs = some_run[0], sorted({lr for _, lr in runs})
    nll = np.full((len(seeds), len(lrs), len(some_run)), np.nan)
    for (seed, lr), rows in runs.items():
        nll[seeds.index(seed), lrs.index(lr)] = [row["test_nll"] for row in rows]
    # the most of all runs, because one that diverged was stopped
    tokens = np.max([[row["tokens"] for row in rows] for rows in runs.values()], axis=0)    # (T,)
    return Arm(method=first["method"], targets=first["targets"], rank=first["rank"],
               alpha=first["alpha"], batch=first["batch_eff"], trainable=first["trainable"],
               seeds=seeds, lrs=lrs, tokens=tokens, nll=nll, more=first["more"],
               variant=first["variant"])


def name_left_out(runs: list[list[dict]], selected: list[Sweeps]):
    """Print how many runs no sweep holds."""
    names = {name for sweeps in selected for sweep in sweeps if sweep for name in sweep.names}
    left_out = Counter(rows[-1]["step"] for rows in runs if rows[0]["run"] not in names)
    for step, n in sorted(left_out.items()):
        print(f"left out: {count_noun(n, 'run')} of {step:g} steps, because most have another "
              "length; give them a folder of their own", file=sys.stderr)
