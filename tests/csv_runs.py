"""Runs and CSV files made by hand, with known answers, for the tests of arms, verdicts and plot."""
import dataclasses
import math
from typing import NamedTuple

from arms import Sweeps, select_sweeps
from plumbing.records import write_rows
from settings import Config


class ArmKey(NamedTuple):
    method: str
    targets: str
    rank: float         # "" for full fine-tuning, and so is alpha
    alpha: float
    batch: float


FULL = ArmKey("full", "", "", "", 16)
R1 = ArmKey("lora", "all-linear", 1, 1, 16)
R64 = ArmKey("lora", "all-linear", 64, 64, 16)
STEPS = (0, 10, 20, 30)
LONGER = tuple(range(0, 301, 20))
SEEDS, SHIFT = (42, 43, 44), (0.0, 0.002, 0.001)
FULL_LR = (5e-6, 1e-5, 2e-5, 4e-5, 8e-5)
LORA_LR = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)


def run_rows(arm, lr, nll, seed=42, steps=STEPS, **columns):
    """The rows of one run, as sweep.py writes them. nll: one number per step.

    columns: others, and `settings`, what its .json has (see `other_settings`).
    """
    row = {"model": "nano", "data": "nano", "method": arm.method, "targets": arm.targets,
           "lr": lr, "batch_eff": arm.batch, "seed": seed, "train_nll": "", "tokens": 0,
           "seconds": 1.0, "peak_gb": "", "trainable": 1000, "rank": arm.rank, "alpha": arm.alpha}
    row |= columns
    row.setdefault("run", f"{row['model']}{row['data']}{arm}{lr}{seed}{len(steps)}"
                   + "".join(map(str, row.get("settings", {}).values())))
    return [row | {"step": step, "test_nll": value}
            for step, value in zip(steps, nll, strict=True)]


def line_to(lr, best, floor, steps=STEPS):
    """The NLLs of a run that falls from 3 to floor + (ln(lr / best))^2 / 10 on a straight line."""
    end = floor + math.log(lr / best) ** 2 / 10
    return [3.0 + (end - 3.0) * step / steps[-1] for step in steps]


def make_grid(arm, lrs, best, floor, seeds=(42,), steps=STEPS, shift=(0.0,) * 3, **columns):
    """The runs of an arm with best rate `best` and NLL `floor` there, plus the seed's shift."""
    runs = []
    for seed, more in zip(seeds, shift):
        for lr in lrs:
            nll = line_to(lr, best, floor + more, steps)
            runs.append(run_rows(arm, lr, nll, seed, steps, **columns))
    return runs


def other_settings(**changes):
    """The settings of a run whose rows are made by hand: those of Config but for the changes."""
    return dataclasses.replace(Config(device="cpu", dtype="float32"), **changes).decides


def full_grid(**kwargs):
    return make_grid(FULL, FULL_LR, 2e-5, 1.0, SEEDS, **kwargs)


def placement_grids(attention, mlp, everywhere=1.0):
    """Six arms with these floors. Attention, r = 80, MLP, r = 48, all, r = 30: about one size."""
    runs = []
    for targets, rank, floor, thousands in (
            ("attention", 64, attention, 490), ("attention", 80, attention, 614),
            ("mlp", 64, mlp, 811), ("mlp", 48, mlp, 608), ("all-linear", 64, everywhere, 1302),
            ("all-linear", 30, everywhere, 610)):
        arm = ArmKey("lora", targets, rank, rank, 16)
        runs += make_grid(arm, LORA_LR, 2e-4, floor, SEEDS, shift=SHIFT,
                          trainable=1000 * thousands)
    return runs


def leaving_runs(arm, at, seed=42, best=2e-4):
    """Three long runs. The one at `best` follows 3 - step / 150 until step `at` and then stays."""
    runs = []
    for lr in (best / 2, best, 2 * best):
        worse = 0.0 if lr == best else 0.5
        nll = [3.0] + [3 - min(step, at) / 150 + worse for step in LONGER[1:]]
        runs.append(run_rows(arm, lr, nll, seed, LONGER))
    return runs


def write_csv(folder, *runs):
    """One file per run -> the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, run in enumerate(runs):
        write_rows(folder / f"{i}.csv", run)
    return folder


def sweeps_of(*runs) -> Sweeps:
    """The sweeps that the runs of one model make."""
    sweeps, = select_sweeps(runs)
    return sweeps


def sweep_of(*runs):
    """Their usual sweep."""
    return sweeps_of(*runs).usual


def find_arm(sweep, key):
    """The arm of the sweep that was made from the runs of `key`."""
    arm, = (arm for arm in sweep.arms
            if (arm.method, arm.targets, arm.rank, arm.alpha, arm.batch) == key)
    return arm
