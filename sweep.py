"""Many runs of train.py: the questions about LoRA and full fine-tuning, each as a grid of settings.

    python sweep.py all && python plot.py out           # the embedded model: findings 1 to 4
    python sweep.py finding2 --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --seeds 3
    python sweep.py all --seeds 3 --near_best           # for verdicts: every best rate bracketed
    python sweep.py all --preset tutorial --dry_run     # only list the runs, and how long they take
    python sweep.py --grid my_grid.toml --bracket       # a grid of one's own
    torchrun --nproc_per_node=8 sweep.py capacity --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k

A comparison of LoRA with full fine-tuning needs five things:

- The same samples in the same order in every arm. Otherwise luck with the data counts as method.
- float32 weights under full fine-tuning. bfloat16 rounds a step of 2e-5 away, and full fine-tuning
  would look worse than it is (train.weight_dtype has the numbers).
- A loss in which every token weighs the same. Otherwise it would depend on how a batch is cut into
  micro-batches, and batch sizes could not be compared.
- A sweep of the learning rate in every arm. The best rates differ by a factor of 10 and more; at
  one common rate we would compare how well the rate fits, not the methods. The best rate must lie
  between two that are worse: at the edge of a grid, nobody knows how much better the next rate
  would have been. `--bracket` runs that next rate, until the best one has worse neighbours.
- Several seeds. On nano the arms of finding 1 differ by 0.03 to 0.44 nats, and one arm's seeds by
  0.01 to 0.07. `--seeds 3` makes every run with the seeds 42, 43 and 44 (--seed and those after
  it). `--near_best` saves most of the further seeds' runs: they try only the first seed's best rate
  and the two next to it, until each knows its own best. Epoch e of a run has the sample order of
  seed + e, as in the Hugging Face Trainer, so the second epoch of seed 42 has the order of seed
  43's first. Runs of neighbouring seeds that are longer than an epoch therefore see some of the
  same orders.

A run is named by the hash of the settings that decide its result (Config.run). Its rows, the same
that train.py logs, go to OUT/<run>.csv, and those settings to OUT/<run>.json, because the columns
do not show them all; weights are not kept, because the questions need only losses. Two findings
that need the same run find the same file, so it is made once, and a sweep that was stopped goes on
with the same command. Any number of processes and machines can share OUT: whoever makes a run
claims its file (see plumbing/workers.py). If a run fails, OUT/<run>.failed says why. The other
ranks of torchrun then leave it alone, and the next sweep tries it again.

`--stack K` trains up to K runs in one pass over their common base (see stack.py). Each has the rows
that it has alone, up to rounding. Its `seconds` are 1 / K of the stack's, and `peak_gb` is empty.

A grid of one's own is a TOML file. It is read and not executed, so a grid from somebody else can do
no harm. Each [[name]] begins an arm of the grid `name`; an arm is every combination of its values:

    flags = "--max_steps 100 --eval_steps 20"   # of train.py; if missing, those of the preset

    [[schedules]]
    method = "lora"
    rank = 8
    schedule = ["constant", "cosine"]
    lr = [3e-4, 1e-3, 3e-3]

`python sweep.py schedules --grid FILE` makes these six runs, and without a name all grids of the
file are made. Arms are named by what differs: "r = 8, schedule = cosine".
"""
import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import shlex
import sys
import threading
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import stack
import train
from arms import NO_ARM, name_values
from lora import find_targets
from model import ModelConfig, Transformer
from plumbing.cli import (add_flags, flag, make_parser, nearest, read_flags, run_command,
                          suggest_flag)
from plumbing.device import take_gpu
from plumbing.errors import UserError, errors_in_one_line, is_of_the_machine, is_out_of_memory
from plumbing.fields import check, shape_of_flag, show_value, whole
from plumbing.files import existing, make_folder, replacing, write_json
from plumbing.records import read_rows, read_rows_of, write_rows
from plumbing.text import count_noun, print_fitted
from plumbing.workers import BUSY, claim_file, do_jobs, local_rank, rank_and_world
from rates import best_tried, diverged, extend_grid, plan_rates
from settings import LESS_MEMORY, SHARED_FLAGS, Config, check_config, missing_settings, settled

# ----- the grids: change them here ----------------------------------------------------------------
# A grid is a list of arms. An arm is every combination of its values; the names are train.py's
# settings. alpha is the rank where it is not given. Grids of your own may stand here, too, or in a
# file (see the top). A new setting must be a field of Config.
#
# `match` compares placements at equal cost. At one rank the MLP's adapters are larger than those of
# attention, because its matrices are. So one rank is chosen from each list: those with the most
# equal numbers of parameters. On nano these are r = 80 (614,400), 48 (608,256) and 30 (610,560).

PRESET_FLAGS = {        # of train.py, for all runs; the command line can override them
    "tutorial": "--max_steps 60 --eval_steps 10 --micro_bs 4 --grad_accum 4 --max_length 256 "
                "--gradient_checkpointing",
    "nano": "--max_steps 40 --eval_steps 10 --micro_bs 4 --grad_accum 4 --max_length 256 "
            "--eval_samples 128",
}

# The grids of the tutorial that the findings are compared with (results/findings_nano.md), for a
# model of about 0.5B parameters. LoRA's rates are ten times those of full fine-tuning. That is what
# "LoRA Without Regret" (Schulman et al., 2025) expects in long runs; in runs as short as these, of
# 60 steps, it expects 15 times. Finding 2 measures it.
TUTORIAL_GRIDS = {
    # rank: does a high rank learn as well as full fine-tuning, and does a low one fall behind?
    "finding1": [
        {"method": "full", "lr": [1e-5, 2e-5]},
        {"method": "lora", "rank": [1, 64, 256], "lr": [1e-4, 2e-4]}],
    # learning rate: how many times that of full fine-tuning is LoRA's best rate?
    "finding2": [
        {"method": "full", "lr": [5e-6, 1e-5, 2e-5, 5e-5, 1e-4]},
        {"method": "lora", "rank": [16, 64, 256], "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]}],
    # batch size: does LoRA lose more to full fine-tuning where the batch is large?
    "finding3": [
        {"method": "full", "lr": [1e-5, 2e-5], "grad_accum": [2, 4, 8]},
        {"method": "lora", "rank": 256, "lr": [1e-4, 2e-4], "grad_accum": [2, 4, 8]}],
    # placement: is LoRA on attention alone, or on the MLP alone, as good as on all layers?
    "finding4": [
        {"method": "lora", "targets": ["all-linear", "attention", "mlp"], "rank": 128,
         "lr": [1e-4, 2e-4]},
        {"method": "lora", "lr": [1e-4, 2e-4],
         "match": {"attention": [64, 96, 128, 192, 256, 320, 384, 512],
                   "mlp": [16, 24, 32, 48, 64, 80, 96, 112, 128, 160]}}],
    # alpha: does the best rate depend on the rank, with alpha = 32 and with alpha = r?
    "alpha": [
        {"method": "full", "lr": [5e-6, 1e-5, 2e-5, 5e-5, 1e-4]},
        {"method": "lora", "rank": [1, 16, 64, 256], "alpha": 32,
         "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]},
        {"method": "lora", "rank": [1, 16, 64, 256],
         "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]}],
    # capacity: after how many steps does a low rank leave the curve of full fine-tuning?
    "capacity": [
        {"method": "full", "lr": [1e-5, 2e-5, 4e-5], "max_steps": 1400, "eval_steps": 50},
        {"method": "lora", "rank": [1, 4, 16, 64], "lr": [1e-4, 2e-4, 4e-4],
         "max_steps": 1400, "eval_steps": 50}],
}

# The same questions for the embedded model, which is 192 wide: rank 64 is a third of that. Each arm
# has rates on both sides of its best one, a factor of two apart, or less where a claim is close:
# they leave open about a third of what rates a factor of three apart do (rates.fit_errors). With
# alpha = r the best rate falls as the rank grows, so each rank has rates of its own.
NANO_RATES = [
    {"method": "full", "lr": [4e-5, 5.6e-5, 8e-5, 1.13e-4]},
    {"method": "lora", "rank": 1, "lr": [2.8e-3, 4e-3, 5.6e-3, 8e-3]},
    {"method": "lora", "rank": 8, "lr": [1.13e-3, 1.6e-3, 2.26e-3, 3.2e-3]},
    {"method": "lora", "rank": 64, "lr": [1e-4, 2e-4, 4e-4, 8e-4]}]
NANO_LONG = {"max_steps": 400, "eval_steps": 20}        # long runs want lower rates
# Batches of 4 to 128 samples. All are evaluated at step 40 and after 640 samples. The number before
# each multiplies the rates, because larger batches want higher ones, and fewer steps do, too.
NANO_BATCHES = [
    (1, {"grad_accum": 1, "max_steps": 160, "eval_steps": 40}),
    (1, {"grad_accum": 2, "max_steps": 80, "eval_steps": 20}),
    (2, {"grad_accum": 4, "max_steps": 40, "eval_steps": 10}),
    (2, {"grad_accum": 8, "max_steps": 40, "eval_steps": 10}),
    (2, {"grad_accum": 16, "max_steps": 40, "eval_steps": 10}),
    (2, {"grad_accum": 32, "max_steps": 40, "eval_steps": 5})]
NANO_GRIDS = {
    "finding1": NANO_RATES,
    "finding2": NANO_RATES,
    "finding3": [
        {"method": "full", "lr": [2e-5, 4e-5, 8e-5], "grad_accum": 2},
        {"method": "lora", "rank": 64, "lr": [1e-4, 2e-4, 4e-4], "grad_accum": 2},
        NANO_RATES[0], NANO_RATES[-1],
        {"method": "full", "lr": [4e-5, 8e-5, 1.6e-4], "grad_accum": 8},
        {"method": "lora", "rank": 64, "lr": [2e-4, 4e-4, 8e-4], "grad_accum": 8}],
    "finding4": [
        NANO_RATES[-1],
        {"method": "lora", "targets": ["attention", "mlp"], "rank": 64, "lr": [2e-4, 4e-4, 8e-4]},
        {"method": "lora", "lr": [2e-4, 4e-4, 8e-4, 1.6e-3],
         "match": {"attention": [32, 48, 64, 80, 96, 128], "mlp": [16, 24, 32, 48, 64, 80],
                   "all-linear": [16, 20, 24, 28, 30, 32, 40]}}],
    # the same question over batches of 4 to 128
    "batches": [arm | batch for times, batch in NANO_BATCHES for arm in (
        {"method": "full", "lr": [2e-5 * times * 2**i for i in range(4)]},
        {"method": "lora", "rank": 64, "lr": [1e-4 * times * 2**i for i in range(4)]})],
    "alpha": [
        *NANO_RATES,
        {"method": "lora", "rank": [1, 8, 64], "alpha": 32,
         "lr": [1e-4, 2e-4, 2.8e-4, 4e-4, 5.6e-4, 8e-4]}],
    "capacity": [
        {"method": "full", "lr": [2e-5, 4e-5, 8e-5], **NANO_LONG},
        {"method": "lora", "rank": 1, "lr": [1e-3, 2e-3, 4e-3], **NANO_LONG},
        {"method": "lora", "rank": 4, "lr": [4e-4, 8e-4, 1.6e-3], **NANO_LONG},
        {"method": "lora", "rank": 16, "lr": [2e-4, 4e-4, 8e-4], **NANO_LONG},
        {"method": "lora", "rank": 64, "lr": [5e-5, 1e-4, 2e-4], **NANO_LONG}],
    # LoRA's relatives and rivals: are they better, at about as many parameters? 81,408 at r = 4 of
    # the LoRA kind, and as near to it as the others can be: BitFit has 10,368 and nothing to
    # choose, and prompt tuning with 81,408 would put 424 tokens in front of 150.
    "methods": [
        {"method": "full", "lr": [2e-5, 4e-5, 8e-5, 1.6e-4]},
        {"method": "lora", "rank": 4, "lr": [8e-4, 1.6e-3, 3.2e-3, 6.4e-3]},
        {"method": "mora", "rank": 4, "lr": [2e-4, 4e-4, 8e-4]},
        {"method": ["dora", "rslora", "pissa"], "rank": 4, "lr": [8e-4, 1.6e-3, 3.2e-3]},
        {"method": "loraplus", "rank": 4, "lr": [1e-4, 2e-4, 4e-4]},
        {"method": "adalora", "rank": 4, "lr": [4e-3, 8e-3, 1.6e-2, 3.2e-2]},
        {"method": "bitfit", "lr": [3.2e-2, 6.4e-2, 1.28e-1]},
        {"method": "adapter", "rank": 17, "lr": [8e-3, 1.6e-2, 3.2e-2]},              # 80,844
        {"method": "prefix_layer", "rank": 70, "lr": [0.64, 1.28, 2.56]},             # 80,640
        {"method": "prefix_embedding", "rank": 70, "lr": [0.32, 0.64, 1.28]}],        # 13,440
    # Hu et al., table 5: one budget (59,904 to 63,360 here), on which matrices?
    "matrices": [
        {"method": "lora", "targets": targets, "rank": rank, "lr": lrs}
        for targets, rank, lrs in (
            ("q_proj", 26, [4e-4, 8e-4, 1.6e-3]), ("k_proj", 40, [4e-4, 8e-4, 1.6e-3]),
            ("v_proj", 40, [4e-4, 8e-4, 1.6e-3]), ("o_proj", 26, [4e-4, 8e-4, 1.6e-3]),
            ("q_proj,k_proj", 16, [5e-4, 1e-3, 2e-3]), ("q_proj,v_proj", 16, [5e-4, 1e-3, 2e-3]),
            ("attention", 8, [8e-4, 1.6e-3, 3.2e-3]), ("mlp", 5, [1e-3, 2e-3, 4e-3]),
            ("all-linear", 3, [1e-3, 2e-3, 4e-3]))],
    # Hu et al., table 6: which rank, on which matrices?
    "ranks": [
        {"method": "lora", "targets": ["q_proj", "q_proj,v_proj", "attention", "all-linear"],
         "rank": rank, "lr": lrs}
        for rank, lrs in (
            (1, [2e-3, 4e-3, 8e-3]), (2, [1e-3, 2e-3, 4e-3]), (4, [8e-4, 1.6e-3, 3.2e-3]),
            (8, [4e-4, 8e-4, 1.6e-3]), (64, [1e-4, 2e-4, 4e-4]))],
}

PRESETS = {"tutorial": TUTORIAL_GRIDS, "nano": NANO_GRIDS}
FINDINGS = ("finding1", "finding2", "finding3", "finding4")         # what `all` means

# What no grid can set, and why. The data are read once, for all runs.
ONCE = "is the same in all runs: give it as a flag"
NOT_IN_GRIDS = {
    "model": ONCE, "data": ONCE, "max_length": ONCE, "eval_samples": ONCE, "device": ONCE,
    "supervise": ONCE, "keep": "is of saved weights, and sweeps save none",
    "seed": "comes from --seed and --seeds", "out": "is the flag --out",
    "epochs": "is not in sweeps: give max_steps", "resume": "is not in sweeps",
    "overwrite": "is not in sweeps", "fsdp": "is not in sweeps"}


def read_grids(path: Path) -> tuple[dict[str, list[dict]], list[str]]:
    """The grids of a TOML file by their names, and its flags of train.py."""
    try:
        grids = tomllib.loads(existing(path).read_text(encoding="utf-8"))
        flags = shlex.split(check(grids.pop("flags", ""), str, name="flags"))
        for name, arms in grids.items():
            if isinstance(arms, dict):
                raise ValueError(f"[{name}] needs two brackets on each side: [[{name}]]")
            if not (isinstance(arms, list) and arms and all(isinstance(arm, dict) for arm in arms)):
                raise ValueError(f"{name} = {show_value(arms)} is no arm: settings stand below a "
                                 "line like [[my_grid]]")
    except tomllib.TOMLDecodeError as e:
        hint = "python sweep.py --help has an example"
        if "Invalid value" in str(e):
            hint = ("texts are in quotation marks, true and false are in small letters, and a list "
                    "ends with ]; ") + hint
        raise UserError(f"--grid {path}: {e}; {hint}") from None
    except (ValueError, RecursionError) as e:       # also: no UTF-8, a quotation without an end
        raise UserError(f"--grid {path}: {e}") from None
    if not any(grids.values()):
        raise UserError(f"--grid {path} has no arm; each begins with a line like [[my_grid]]")
    if "all" in grids:
        raise UserError(f"--grid {path}: `all` means all grids of the file; call [[all]] otherwise")
    return grids, flags


# ----- from a grid to runs ------------------------------------------------------------------------

def expand_grid(grid: list[dict], model: str) -> list[dict]:
    """The settings of every run of `grid`: every combination of each arm's values."""
    points = []
    for arm in grid:
        arm = dict(arm)                 # a copy, because "match" is taken out
        match = arm.pop("match", None)      # as {attention = [64, 96], mlp = [16, 24]}
        if match is None:
            points += combine_values(arm)
            continue
        check(match, {str: [whole(1)]}, "in a grid", "match")
        for targets, rank in match_ranks(model, match).items():
            points += combine_values(arm | {"targets": targets, "rank": rank})
    return points


def combine_values(arm: dict) -> list[dict]:
    """{"rank": 8, "lr": [1, 2]} -> [{"rank": 8, "lr": 1}, {"rank": 8, "lr": 2}]"""
    choices = [value if isinstance(value, list) else [value] for value in arm.values()]
    for name, values in zip(arm, choices):
        if not values:
            raise UserError(f"{name} = [] in a grid: an arm without a value has no runs")
    return [dict(zip(arm, values, strict=True)) for values in itertools.product(*choices)]


def typed_point(point: dict) -> dict:
    """The values of one run as the command line has them: alpha = 32 is 32.0, which is one run.

    Raises UserError for what is no setting, not one of a grid, or not one of its values.
    """
    fields, typed = {field.name: field for field in dataclasses.fields(Config)}, {}
    for name, value in point.items():
        if name == "flags":
            raise UserError("flags in a grid: they stand at the top of the file, above all arms")
        if name not in fields:
            hint = suggest_flag(name, [f"--{key}" for key in fields]).replace("--", "")
            remedy = f"write {hint}" if hint else "python train.py --help lists them"
            raise UserError(f"{name} in a grid is no setting of train.py; {remedy}")
        if name in NOT_IN_GRIDS:
            raise UserError(f"{name} in a grid: it {NOT_IN_GRIDS[name]}")
        try:
            check(value, shape_of_flag(fields[name]), "in a grid", name)
        except UserError as e:
            close = nearest(str(value), fields[name].metadata.get("choices", ()))
            raise UserError(f"{e}; write {close}" if close else e) from None
        typed[name] = fields[name].type(value)
    return typed


def match_ranks(model: str, ranks: dict[str, list[int]]) -> dict[str, int]:
    """One rank for each of the targets, out of its list, so that the adapters' sizes differ least.

    An adapter of rank r on a layer (in, out) has r (in + out) parameters: A is (r, in), B (out, r).
    Qwen2.5-0.5B: r = 96 on attention has 12,976,128 and r = 32 on the MLP 13,271,040.
    """
    decoder = Transformer.empty(ModelConfig.from_pretrained(model))

    def rank1_size(targets: str) -> int:
        layers = [decoder.get_submodule(name) for name in find_targets(decoder, targets)]
        return sum(layer.in_features + layer.out_features for layer in layers)

    rank1_sizes = [rank1_size(targets) for targets in ranks]

    def difference(chosen: dict[str, int]) -> int:
        sizes = [rank * size for rank, size in zip(chosen.values(), rank1_sizes)]
        return max(sizes, default=0) - min(sizes, default=0)

    return min(combine_values(ranks), key=difference)


class GridArm(NamedTuple):
    """The runs that differ in learning rate and seed alone, and the rates that its grid gives."""
    config: Config          # of the first seed at one of the rates
    lrs: list[float]        # ascending

    def run_at(self, lr: float, seed: int) -> Config:
        return dataclasses.replace(self.config, lr=lr, seed=seed)


def list_arms(grid: list[dict], common: Config) -> list[GridArm]:
    """What two findings ask for is one arm, with the rates of both."""
    arms = {}
    for point in expand_grid(grid, common.model):
        config = dataclasses.replace(common, **typed_point(point))
        check_config(config)
        if config.lr is None:
            raise UserError(f"an arm in a grid has no learning rates ({point}); give "
                            "it some, as lr = [1e-4, 2e-4, 4e-4]")
        config = settled(config, n_train=0)             # only --epochs would need it
        same_arm = dataclasses.replace(config, lr=1.0).run
        _, lrs = arms.setdefault(same_arm, (config, set()))
        lrs.add(config.lr)
    return [GridArm(config, sorted(lrs)) for config, lrs in arms.values()]


def plan_arm(arm: GridArm, settings, finals) -> list[dict[str, Config]]:
    """For each seed {name: settings} of the runs that are needed, as far as `finals` tell by now.

    finals: {name: test NLL at the last step}, inf if the run diverged, nan if it failed.
    """
    first = arm.config.seed
    runs = [{lr: arm.run_at(lr, seed) for lr in extend_grid(arm.lrs)}
            for seed in range(first, first + settings.seeds)]
    tried = [{lr: finals[config.run] for lr, config in of_seed.items() if config.run in finals}
             for of_seed in runs]
    plan = plan_rates(arm.lrs, tried, settings.bracket, settings.near_best)
    return [{of_seed[lr].run: of_seed[lr] for lr in lrs} for of_seed, lrs in zip(runs, plan)]


def plan_runs(arms: list[GridArm], settings, finals) -> dict[str, Config]:
    """The runs of all arms: those of the first seed before those of the second."""
    plans = [plan_arm(arm, settings, finals) for arm in arms]
    runs = {}
    for seed in range(settings.seeds):
        for plan in plans:
            runs |= plan[seed]
    return runs


def describe_arm(config) -> str:
    """lora all-linear r=8 alpha=32 schedule=cosine; without alpha where it is r."""
    parts = {"targets": config.targets, "rank": f"r={config.rank}",
             "alpha": f"alpha={config.alpha:g}"}
    missing = missing_settings(config)
    if config.alpha == config.rank:
        missing += ("alpha",)
    names = [config.method, *(text for name, text in parts.items() if name not in missing)]
    plain = Config()
    more = [(key, value) for key, value in config.decides.items()
            if key not in NO_ARM | {"dtype"} and value != getattr(plain, key)]
    return " ".join([*names, *(text.replace(" = ", "=") for text in name_values(more))])


def describe_run(config) -> str:
    return (f"{describe_arm(config)} lr={config.lr:g} batch={config.batch_eff} "
            f"steps={config.max_steps} seed={config.seed}")


# ----- one run ------------------------------------------------------------------------------------

@functools.cache
def read_base(model: str) -> Transformer:
    """The base model, on the CPU: read once per process, when its first run needs it."""
    return Transformer.from_pretrained(model)


# The settings that the test NLL before the first step depends on. As B = 0, it is the base's own at
# every rank, on all targets and for each seed. (Its relatives begin as the base, too, whatever
# their options; virtual tokens are an exception.) Full fine-tuning may compute it under autocast.
START_SETTINGS = ("model", "data", "method", "nf4", "dtype", "device", "max_length",
                  "eval_samples", "micro_bs")
start_nlls = {}     # their values: that test NLL, once a run of this process has measured it


def make_runs(configs: list[Config], data) -> list[list[dict]]:
    """Train -> the rows that train.py would log, of each run. Several train in one pass.

    Training stops when all have diverged. Until then a stack computes nan for those that have.
    """
    first = configs[0]
    gc.collect()                # --compile leaves the last run's model in a cycle
    model = train.model_for(first, read_base(first.model))
    data.tokenizer.check_vocabulary(model.config.vocab_size, first.model)
    if len(configs) == 1:
        runs = [train.set_up(first, data, model)]
        steps = train.training_steps(runs[0], quiet=True)
    else:
        together = stack.stack_runs(configs, data, model)
        runs, steps = together.runs, stack.stacked_steps(together)
    start = tuple(getattr(first, name) for name in START_SETTINGS)
    if start in start_nlls and not model.virtual_ids:
        for run in runs:
            train.add_row(run, start_nlls[start])
    for evaluated in steps:
        if evaluated and all(diverged(run.progress.rows) for run in runs):
            break
    start_nlls[start] = runs[0].progress.rows[0]["test_nll"]
    return [rows_of_run(run, alone=len(runs) == 1) for run in runs]


def rows_of_run(run: train.Run, alone: bool) -> list[dict]:
    """The rows of a finished run. After the first at which it had diverged they have no numbers."""
    rows, config = run.progress.rows, run.config
    for n in range(1, len(rows) + 1):
        if diverged(rows[:n]):
            rows = rows[:n] + rows_without_numbers(rows[n - 1], config)
            break
    if not alone or not config.device.startswith("cuda"):   # others had a part of this memory
        rows = [row | {"peak_gb": ""} for row in rows]
    return rows


def rows_without_numbers(last: dict, config) -> list[dict]:
    """The rows that a run would have had after its row `last`, with nan for each NLL."""
    return [last | {"step": step, "train_nll": math.nan, "test_nll": math.nan}
            for step in config.evaluated_steps() if step > last["step"]]


def attempt_runs(configs: list[Config], data, out: Path) -> list[str]:
    """Make the runs, but those whose files exist or which another process has claimed.

    -> for each "" if its file exists now, BUSY, or what went wrong. Raises OSError for a full disk
    or a lost permission: no other run could be written either.
    """
    answers = {}
    try:
        with contextlib.ExitStack() as claims:
            for config in configs:
                answer = claim_run(config, out, claims)
                if answer is not None:
                    answers[config.run] = answer
            left = [config for config in configs if config.run not in answers]
            for config, rows in zip(left, make_runs(left, data) if left else ()):
                write_settings(config, out)     # first: whoever sees the rows finds their settings
                write_rows(out / f"{config.run}.csv", rows)
                answers[config.run] = ""
    except Exception as e:              # whatever it is, the other runs go on
        if is_of_the_machine(e):
            raise
        failed = [config.run for config in configs if config.run not in answers]
        answers |= dict.fromkeys(failed, note_failure(e, failed, out))
    if set(answers.values()) == {BUSY}:
        time.sleep(0.5)                 # asking again at once would keep a core busy
    return [answers[config.run] for config in configs]


def claim_run(config, out: Path, claims: contextlib.ExitStack) -> str | None:
    """Claim the run's file until `claims` closes -> None, or why this process need not make it."""
    path = out / f"{config.run}.csv"
    failed = path.with_suffix(".failed")
    ours = claims.enter_context(claim_file(path))
    if path.exists():
        return ""
    if failed.exists():                 # another rank of this sweep has tried
        return failed.read_text(encoding="utf-8", errors="replace")
    if not ours:
        return BUSY
    for half_written in out.glob(f"{path.stem}.*.part"):        # by a process that was killed
        half_written.unlink(missing_ok=True)
    return None


def write_settings(config, out: Path):
    """OUT/<run>.json: all settings that decide the result of the run. arms.py reads it."""
    path = out / f"{config.run}.json"
    if not path.exists():
        write_json(path, {"run": config.run, "settings": config.decides})


def note_failure(e, names: list[str], out: Path) -> str:
    """Write to OUT/<run>.failed of each why they failed -> the same.

    Faults of the program print a traceback.
    """
    why = f"{type(e).__name__}: {e}"
    if is_out_of_memory(e):
        stacked = f"{len(names)} runs in one pass; lower --stack, or " if len(names) > 1 else ""
        why = f"out of memory: {stacked}{LESS_MEMORY}"
    elif not isinstance(e, UserError):
        traceback.print_exc()
    for name in names:
        # the report at the end has it all the same
        with contextlib.suppress(OSError, UserError), \
                replacing(out / f"{name}.failed") as part:
            part.write_text(why, encoding="utf-8", errors="backslashreplace")
    return why


# ----- many runs ----------------------------------------------------------------------------------

class Board:
    """What a process knows of the sweep: which runs are needed, finished, failed or under way.

    It is worked out again and again from the plan and the files in `out`, which other processes and
    machines may be writing, too. Only failures and refused claims are remembered, and only until
    the process ends.
    """

    def __init__(self, plan, out: Path, rank=0, world=1, stack_size=1):
        self.plan = plan            # plan(finals) -> {name: settings}: what is needed by now
        self.out = out
        self.rank, self.world = rank, world
        self.stack_size = stack_size    # how many runs may train in one pass
        self.finals = {}            # {name: test NLL at the last step}; inf: diverged, nan: failed
        self.errors = {}            # {name: what went wrong}
        self.at_work = set()        # names
        self.refusals = Counter()   # how often a run was found claimed by another process
        self.look()

    def look(self):
        """Read the new files. A result may call for more runs, whose files may exist already."""
        known = -1
        while known < len(self.finals):
            known = len(self.finals)
            self.runs = self.plan(self.finals)
            for name in self.runs:
                path = self.out / f"{name}.csv"
                if name not in self.finals and path.exists():
                    rows = read_rows_of(path, self.runs[name], name)
                    self.finals[name] = math.inf if diverged(rows) else rows[-1]["test_nll"]

    @property
    def own(self) -> list[str]:
        """This rank's share of the runs, every world-th."""
        return list(self.runs)[self.rank::self.world]

    @property
    def waiting(self) -> list[str]:
        """Runs to be made, this rank's share first: then it helps the others."""
        ordered = dict.fromkeys([*self.own, *self.runs])
        return [name for name in ordered if name not in self.finals and name not in self.at_work]

    @property
    def stacks(self) -> list[list[str]]:
        """Runs to be made, those that train in one pass side by side; without --stack each alone.

        A rank's share and the runs of others are not mixed, because others will begin theirs soon.
        """
        groups, own = {}, set(self.own)
        for name in self.waiting:
            shared = stack.shared_settings(self.runs[name]) if self.stack_size > 1 else None
            groups.setdefault((name in own, shared or name), []).append(name)
        return [names[i:i + self.stack_size] for names in groups.values()
                for i in range(0, len(names), self.stack_size)]

    def next_runs(self) -> list[Config] | None:
        """The next runs to be trained in one pass."""
        stacks = self.stacks
        if not stacks:
            return None
        # those refused least often; of equal ones the first
        names = min(stacks, key=lambda names: sum(self.refusals[name] for name in names))
        self.at_work.update(names)
        return [self.runs[name] for name in names]

    def note_answer(self, config, error: str):
        """error: what attempt_runs returned of this run."""
        self.at_work.remove(config.run)
        if error == BUSY:
            self.refusals[config.run] += 1
        elif error:
            self.finals[config.run] = math.nan
            self.errors[config.run] = " ".join(error.split())
        self.look()

    def count_samples(self, finished: bool) -> int:
        """Samples trained on by the finished runs, or still to be by the others."""
        return sum(config.max_steps * config.batch_eff
                   for name, config in self.runs.items() if (name in self.finals) == finished)


def prepare_process(first_gpu: int, threads: int, device: str, number: int):
    """The first thing in process `number` of several, before it touches a GPU."""
    if device == "cuda":
        take_gpu(first_gpu + number)
    torch.set_num_threads(threads)
    # tqdm's own lock is a semaphore. Python warns about it if the process is ended from outside.
    tqdm.set_lock(threading.RLock())


def make_missing_runs(board: Board, data, jobs: int, may_grow=False):
    """Make the planned runs that are missing, and wait for those that others are making.

    Failures of earlier sweeps are tried again, by the rank in whose share they are. may_grow:
    whether results can call for more runs.
    """
    make_folder(board.out)
    for failed in board.out.glob("*.failed"):       # also of runs that results may call for later
        if failed.stem in board.own or failed.stem not in board.runs:
            failed.unlink(missing_ok=True)
    for name in board.finals:       # of an edition that wrote none; the name says the settings
        write_settings(board.runs[name], board.out)
    if not board.waiting:
        return

    start, finished_before = time.perf_counter(), board.count_samples(finished=True)
    work = functools.partial(attempt_runs, data=data, out=board.out)
    first_gpu = local_rank() * jobs     # this machine's ranks before this one use `jobs` GPUs each
    if not may_grow:
        jobs = min(jobs, len(board.stacks))     # a process without a run would only take threads
    threads = max(1, torch.get_num_threads() // jobs)
    device = board.runs[board.waiting[0]].device
    prepare = functools.partial(prepare_process, first_gpu, threads, device)
    for configs, errors in do_jobs(board.next_runs, work, jobs, prepare):
        if isinstance(errors, str):             # the process died, with all of them
            errors = [errors] * len(configs)
        for config, error in zip(configs, errors):
            board.note_answer(config, error)
            if error == BUSY:
                continue
            if error:
                print_fitted(f"FAILED {describe_run(config)}: {board.errors[config.run]}")
                continue
            made = board.count_samples(finished=True) - finished_before
            seconds_per_sample = (time.perf_counter() - start) / max(1, made)
            print_fitted(describe_progress(board, config, seconds_per_sample))


def describe_progress(board, config, seconds_per_sample: float) -> str:
    """run 3 of 40: lora ... seed=42: test NLL 0.6259; best so far 0.6243 (full lr=3e-05); ..."""
    nll = board.finals[config.run]
    result = f"test NLL {nll:.4f}" if math.isfinite(nll) else "diverged"
    line = f"run {len(board.finals)} of {len(board.runs)}: {describe_run(config)}: {result}; "
    sound = {name: nll for name, nll in board.finals.items() if math.isfinite(nll)}
    if sound:
        best = min(sound, key=sound.get)
        config = board.runs[best]
        line += f"best so far {sound[best]:.4f} ({describe_arm(config)} lr={config.lr:g}); "
    return line + f"{format_duration(seconds_per_sample * board.count_samples(False))} left"


def format_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def list_runs(board: Board, jobs: int):
    """Print every run, then their number and how long the missing ones will take.

    The finished ones tell how many seconds a sample takes.
    """
    for name, config in board.runs.items():
        state = "done " if name in board.finals else "to do"
        print_fitted(f"{name}  {state}  {describe_run(config)}")
    how_long = "how long they take is known when the first one is finished"
    lasts = [read_rows(board.out / f"{name}.csv")[-1]
             for name, nll in board.finals.items() if math.isfinite(nll)]   # others were cut short
    if lasts:
        seconds = sum(row["seconds"] for row in lasts)
        samples = sum(row["step"] * row["batch_eff"] for row in lasts)
        left = board.count_samples(finished=False)
        how_long = f"about {format_duration(seconds / samples * left / jobs)} of training"
    print(f"{count_noun(len(board.runs), 'run')}, {len(board.waiting)} to do, {how_long}")


def explain_plan(arms: list[GridArm], settings, finals):
    """Print for each arm and seed what is known of its best rate, and so what is next.

    Then how many runs this takes, and how many if every seed tried every rate.
    """
    n_runs = n_all = 0
    for arm in arms:
        plan = plan_arm(arm, settings, finals)
        for seed, runs in enumerate(plan, arm.config.seed):
            print_fitted(f"{describe_arm(arm.config)} batch={arm.config.batch_eff} seed={seed}: "
                         + explain_seed(list(runs.values()), finals))
        n_runs += sum(map(len, plan))
        n_all += len(plan) * len({config.lr for runs in plan for config in runs.values()})
    print(f"{count_noun(n_runs, 'run')} so far; every rate at every seed would be {n_all}")


def explain_seed(runs: list[Config], finals) -> str:
    """runs: the planned runs of one arm and seed."""
    if not runs:
        return "waits for the first seed's best rate"
    tried = {config.lr: finals[config.run] for config in runs if config.run in finals}
    if not tried:
        return f"{count_noun(len(runs), 'rate')} to try"
    best = best_tried(tried)
    text = f"best {best:g} ({tried[best]:.4f}) of {count_noun(len(tried), 'rate')}"
    if best in (min(tried), max(tried)):
        text += ", at their end"
    missing = ", ".join(f"{config.lr:g}" for config in runs if config.lr not in tried)
    return f"{text}; next {missing}" if missing else text


# ----- the command --------------------------------------------------------------------------------

@dataclasses.dataclass
class Settings:
    sweep: str = flag(None, "which grid", nargs="?", metavar="SWEEP")
    grid: Path = flag(None, "TOML file with grids of your own; above is how it is written",
                      metavar="FILE")
    preset: str = flag(
        None, "the grids, and with --grid the flags if the file has none; default: nano for the "
        "embedded model, else tutorial",
        choices=tuple(PRESETS))
    seeds: int = flag(
        1, "seeds of each run: --seed (default: 42) and those after it", at_least=1, at_most=1000)
    bracket: bool = flag(
        False, "extend an arm's rates by the grid's own step until its best one lies between two "
        "that are worse, or diverged")
    near_best: bool = flag(
        False, "seeds after the first try only the first seed's best rate and the two next to it, "
        "and go on until each knows its own best; implies --bracket")
    jobs: int = flag(
        None, "processes; they divide the cores among them. Default: one per GPU; without a GPU "
        "one per core for the embedded model, else 1", at_least=1)
    stack: int = flag(
        1, "train up to K LoRA runs of a process in one pass over the base, where seed, batch, "
        "steps and targets are the same: for GPUs that one run leaves idle. Activations take K "
        "times the memory", metavar="K", at_least=1)
    out: Path = flag(Path("out"), "folder of the rows")
    dry_run: bool = flag(
        False, "list the runs, with --bracket also what is known and what is next, and stop")

    @property
    def arms(self) -> list[dict]:
        """The arms that are asked for, of one grid or of all: findings 1 to 4, or the whole file.

        Raises UserError if there is no such grid.
        """
        grids, every, where = PRESETS[self.preset], FINDINGS, f"the preset {self.preset}"
        if self.grid:
            grids, _ = read_grids(self.grid)
            every, where = grids, f"{self.grid}"
        check(self.sweep, (*grids, "all"), where, "grid")
        return [arm for name in (every if self.sweep == "all" else [self.sweep])
                for arm in grids[name]]


def parse_sweep(argv=None) -> tuple[Settings, Config]:
    """-> (sweep.py's own flags, the settings of train.py that all runs share)."""
    parser = make_parser("sweep.py", __doc__)
    names = dict.fromkeys(name for grids in PRESETS.values() for name in grids)
    add_flags(parser, Settings, sweep={"help": (
        f"which grid: {', '.join(names)}; all: findings 1 to 4. With --grid: one of the file's; "
        "default: all of them")})
    add_flags(parser.add_argument_group("of train.py, for all runs"), Config, only=SHARED_FLAGS)

    argv = sys.argv[1:] if argv is None else argv
    settings, common = read_flags(parser, argv, Settings, Config)
    if settings.sweep is None and settings.grid is None:
        parser.error(f"say which sweep: {', '.join(names)} or all; or give --grid FILE")
    preset = settings.preset or ("nano" if common.model == "nano" else "tutorial")
    usual_flags = shlex.split(PRESET_FLAGS[preset])
    if settings.grid:
        _, flags = read_grids(settings.grid)
        usual_flags = flags or usual_flags
    _, plain = read_flags(parser, usual_flags, Settings, Config)
    argv = [*usual_flags, *argv]        # what comes later counts
    settings, common = read_flags(parser, argv, Settings, Config)
    settings.preset, settings.sweep = preset, settings.sweep or "all"
    if settings.near_best and settings.seeds == 1:
        raise UserError("--near_best says which rates further seeds try; add --seeds 3, or leave "
                        "it out")
    settings.bracket |= settings.near_best
    refuse_grid_settings(settings, common, plain)
    return settings, common


def refuse_grid_settings(settings, common: Config, plain: Config):
    """Raise UserError if the command line changes what the grid decides.

    common and plain: the settings with and without the flags of the command line. A flag that
    repeats its default cannot be told from none, and passes.
    """
    in_grid, where = {"rank", "targets", "alpha"}, "at the top of sweep.py"
    if settings.grid:
        where = f"in {settings.grid}"
    for arm in settings.arms:
        in_grid |= arm.keys() & {field.name for field in dataclasses.fields(Config)}
    for name in sorted(in_grid):
        if getattr(common, name) != getattr(plain, name):
            raise UserError(f"--{name}: the grid of {settings.sweep} sets it, {where}; leave it "
                            "out")


def warn_of_rates(arms: list[GridArm], settings):
    """Say on stderr if a grid of one's own has too few rates for a best one to be known.

    The tutorial's grids have, too, and the README says so.
    """
    few = [arm for arm in arms if len(arm.lrs) < 3]
    if settings.grid and few and not settings.bracket:
        print(f"warning: fewer than three rates in {len(few)} of {count_noun(len(arms), 'arm')}, "
              "so that no best rate can lie between two that are worse, and nothing will be "
              "judged; add rates or --bracket", file=sys.stderr)


def default_jobs(config, world: int) -> int:
    """One process per GPU. Without GPUs one process, which uses all cores.

    nano's matrices are too small to be divided among cores, so it gets one process per core. A rank
    of torchrun or srun is a process already.
    """
    if world > 1:
        return 1
    if config.device == "cuda":
        return torch.cuda.device_count()
    if config.model == "nano" and not config.device.startswith("cuda"):
        return torch.get_num_threads()
    return 1


def sweep(argv=None) -> int:
    """-> the exit code: 1 if a run failed."""
    settings, common = parse_sweep(argv)
    rank, world = rank_and_world()
    if common.device in ("auto", "cuda"):
        take_gpu(local_rank())              # from here on "cuda" is this rank's own GPU
    ModelConfig.from_pretrained(common.model)   # a missing model shows here, also in a dry run
    arms = list_arms(settings.arms, common)
    if rank == 0:
        warn_of_rates(arms, settings)
    first = arms[0].config
    jobs = settings.jobs or default_jobs(first, world)
    board = Board(functools.partial(plan_runs, arms, settings), settings.out, rank, world,
                  settings.stack)
    if settings.dry_run:
        list_runs(board, jobs)
        if settings.bracket:
            explain_plan(arms, settings, board.finals)
        return 0

    data = train.read_data(first)           # what is wrong with the data shows here, once
    make_missing_runs(board, data, jobs, may_grow=settings.bracket)
    made = len(board.runs) - len(board.errors)
    print(f"{settings.out} has {made} of {count_noun(len(board.runs), 'run')}: "
          f"python plot.py {settings.out}")
    for name, error in board.errors.items():
        print(f"failed: {describe_run(board.runs[name])}: {error}", file=sys.stderr)
    return 1 if board.errors else 0


def main(argv=None):
    with errors_in_one_line(no_space="make room; the same command goes on",
                            stopped="stopped; the same command goes on"):
        raise SystemExit(sweep(argv))


if __name__ == "__main__":
    run_command(main)
