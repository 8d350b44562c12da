"""Many runs of train.py: the four findings about LoRA and full fine-tuning, each as a grid of settings.

    python sweep.py all && python plot.py out                                       # the embedded model: findings 1 to 4
    python sweep.py finding2 --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --seeds 3
    python sweep.py all --preset tutorial --dry_run                                 # what would be run, and how long
    torchrun --nproc_per_node=8 sweep.py capacity --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k

A run is known by the hash of the settings that decide its result, and has one file, OUT/<run>.csv: the rows that train.py
would log, and no weights. What is there is not made again, whichever sweep or machine made it, so a sweep that was stopped
goes on with the same command, and any number of processes and machines can share OUT. While a run is being made, its file is
claimed by a lock that the kernel drops when the process ends, however it ends. A file system or a system without such locks
(Windows, some network folders) loses only time: two sweeps may make the same run there, and write the same rows. Of a run that
failed OUT/<run>.failed says why, so that the other ranks of torchrun leave it; the next sweep tries it again.

What a comparison of LoRA with full fine-tuning needs, and each of these has: the same samples in the same order in every
arm, float32 weights under full fine-tuning, a loss that weighs tokens alike, a sweep of the rate in every arm and, by --seeds,
several seeds.
"""
import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path

import torch
from tqdm import tqdm

import train
from lora import matching
from model import ModelConfig, Transformer
from plumbing.cli import make_parser, run_command
from plumbing.errors import UserError, errors_in_one_line, is_disk_full, is_out_of_memory
from plumbing.files import make_folder, read_json, resolve
from plumbing.records import read_rows, write_rows
from settings import LESS_MEMORY, Config, check_config, parse as parse_run, settled
from verdicts import diverged

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

# ----- the grids: change them here ----------------------------------------------------------------------------------
# A sweep is a list of arms; an arm is every combination of its values. The names are train.py's settings, and alpha is the
# rank where it is not given. `match` gives the ranks among which those of attention and of the MLP are chosen that have the
# most equal numbers of parameters. SETTINGS are flags of train.py for all runs; the command line can override them.

SETTINGS = {
    "tutorial": "--max_steps 60 --eval_steps 10 --micro_bs 4 --grad_accum 4 --max_length 256 --gradient_checkpointing",
    "nano": "--max_steps 40 --eval_steps 10 --micro_bs 4 --grad_accum 4 --max_length 256 --eval_samples 128",
}

TUTORIAL = {
    "finding1": [
        {"method": "full", "lr": [1e-5, 2e-5]},
        {"method": "lora", "rank": [1, 64, 256], "lr": [1e-4, 2e-4]}],
    "finding2": [
        {"method": "full", "lr": [5e-6, 1e-5, 2e-5, 5e-5, 1e-4]},
        {"method": "lora", "rank": [16, 64, 256], "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]}],
    "finding3": [
        {"method": "full", "lr": [1e-5, 2e-5], "grad_accum": [2, 4, 8]},
        {"method": "lora", "rank": 256, "lr": [1e-4, 2e-4], "grad_accum": [2, 4, 8]}],
    "finding4": [
        {"method": "lora", "targets": ["all-linear", "attention", "mlp"], "rank": 128, "lr": [1e-4, 2e-4]},
        {"method": "lora", "match": {"attention": [64, 96, 128, 192, 256, 320, 384, 512],
                                     "mlp": [16, 24, 32, 48, 64, 80, 96, 112, 128, 160]}, "lr": [1e-4, 2e-4]}],
    "alpha": [
        {"method": "full", "lr": [5e-6, 1e-5, 2e-5, 5e-5, 1e-4]},
        {"method": "lora", "rank": [1, 16, 64, 256], "alpha": 32, "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]},
        {"method": "lora", "rank": [1, 16, 64, 256], "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]}],
    "capacity": [
        {"method": "full", "lr": [1e-5, 2e-5, 4e-5], "max_steps": 1400, "eval_steps": 50},
        {"method": "lora", "rank": [1, 4, 16, 64], "lr": [1e-4, 2e-4, 4e-4], "max_steps": 1400, "eval_steps": 50}],
}

# the embedded model is 192 wide, so that rank 64 is a third of it; with alpha = r a low rank wants a higher rate
NANO_RATES = [
    {"method": "full", "lr": [3e-6, 1e-5, 3e-5, 1e-4, 3e-4]},
    {"method": "lora", "rank": 1, "lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
    {"method": "lora", "rank": 8, "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
    {"method": "lora", "rank": 64, "lr": [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]}]
NANO = {
    "finding1": NANO_RATES,
    "finding2": NANO_RATES,
    "finding3": [
        {"method": "full", "lr": [1e-5, 3e-5, 1e-4, 3e-4], "grad_accum": [2, 4, 8]},
        {"method": "lora", "rank": 64, "lr": [3e-5, 1e-4, 3e-4, 1e-3], "grad_accum": [2, 4, 8]}],
    "finding4": [
        {"method": "lora", "targets": ["all-linear", "attention", "mlp"], "rank": 64, "lr": [1e-4, 3e-4, 1e-3, 3e-3]},
        {"method": "lora", "match": {"attention": [32, 48, 64, 80, 96, 128], "mlp": [16, 24, 32, 48, 64, 80]},
         "lr": [1e-4, 3e-4, 1e-3, 3e-3]}],
    "alpha": [
        *NANO_RATES,
        {"method": "lora", "rank": [1, 8, 64], "alpha": 32, "lr": [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]}],
    "capacity": [
        {"method": "full", "lr": [1e-5, 3e-5, 1e-4], "max_steps": 400, "eval_steps": 20},
        {"method": "lora", "rank": 1, "lr": [1e-3, 3e-3, 1e-2], "max_steps": 400, "eval_steps": 20},
        {"method": "lora", "rank": 4, "lr": [3e-4, 1e-3, 3e-3], "max_steps": 400, "eval_steps": 20},
        {"method": "lora", "rank": 16, "lr": [1e-4, 3e-4, 1e-3], "max_steps": 400, "eval_steps": 20},
        {"method": "lora", "rank": 64, "lr": [3e-5, 1e-4, 3e-4], "max_steps": 400, "eval_steps": 20}],
}

PRESETS = {"tutorial": TUTORIAL, "nano": NANO}
ALL = ("finding1", "finding2", "finding3", "finding4")


# ----- from a grid to runs ------------------------------------------------------------------------------------------

def expand(arms: list[dict], model: str) -> list[dict]:
    """The settings of every run of `arms`."""
    points = []
    for arm in arms:
        arm = {name: value if isinstance(value, list) else [value] for name, value in arm.items()}
        matched = [{}]
        if "match" in arm:
            matched = [{"targets": targets, "rank": rank} for targets, rank in matched_ranks(model, **arm.pop("match")[0]).items()]
        points += [dict(zip(arm, values, strict=True)) | match for match in matched for values in itertools.product(*arm.values())]
    return points


def shape(model: str) -> ModelConfig:
    """What config.json says; nothing else is fetched."""
    return ModelConfig.from_hf(read_json(resolve(model, ["config.json"]) / "config.json"))


def matched_ranks(model: str, attention: list[int], mlp: list[int]) -> dict[str, int]:
    """The pair of ranks, one of each list, at which adapters on attention and on the MLP differ least in parameters, which are
    r (in + out) a layer; the first such pair. From config.json: no weights are read."""
    with torch.device("meta"):
        module = Transformer(shape(model))
    layers = {targets: map(module.get_submodule, matching(module, targets)) for targets in ("attention", "mlp")}
    of_rank_1 = {targets: sum(m.in_features + m.out_features for m in some) for targets, some in layers.items()}
    pair = min(itertools.product(attention, mlp), key=lambda r: abs(r[0] * of_rank_1["attention"] - r[1] * of_rank_1["mlp"]))
    return dict(zip(("attention", "mlp"), pair, strict=True))


def plan(sweeps, preset: str, common: Config, seeds: int) -> dict[str, Config]:
    """The distinct runs of `sweeps`, by their hash, the first seed's before the second's."""
    points = [point for sweep in sweeps for point in expand(PRESETS[preset][sweep], common.model)]
    runs = {}
    for seed, point in itertools.product(range(common.seed, common.seed + seeds), points):
        if "alpha" in point:
            point = point | {"alpha": float(point["alpha"])}        # 32 and 32.0 are one run
        config = dataclasses.replace(common, **point, seed=seed)
        check_config(config)
        config = settled(config, 0)
        runs.setdefault(config.run, config)
    return runs


def arm(config: Config) -> str:
    lora = "" if config.method == "full" else f" {config.targets} r={config.rank} alpha={config.alpha:g}"
    return f"{config.method}{lora} lr={config.lr:g}"


def label(config: Config) -> str:
    return f"{arm(config)} batch={config.batch_eff} steps={config.max_steps} seed={config.seed}"


# ----- one run ------------------------------------------------------------------------------------------------------

def make(config: Config, data: train.Data, base: Transformer) -> list[dict]:
    """The rows of one run. One that diverges is stopped, and from there on its rows have no number (nan) for the NLL."""
    model = train.model_for(config, base)
    data.tokenizer.check_vocabulary(model.config.vocab_size, config.model)
    run = train.set_up(config, data, model)
    rows = run.progress.rows
    for evaluated in train.training_steps(run, quiet=True):
        if evaluated and diverged(rows):
            for step in range(rows[-1]["step"] + 1, config.max_steps + 1):
                if step % config.eval_steps == 0 or step == config.max_steps:
                    rows.append(rows[-1] | {"step": step, "train_nll": math.nan, "test_nll": math.nan})
            break
    if not config.device.startswith("cuda"):
        rows = [row | {"peak_gb": ""} for row in rows]          # the process's memory is that of all its runs
    return rows


@contextlib.contextmanager
def claim(path: Path):
    """Whether this process may make `path`: nobody else may until the block ends, or this process does."""
    lock = path.with_suffix(".lock")
    if fcntl is None:
        yield True
        return
    with open(lock, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:             # no locks on this file system
            pass
        try:                        # whose file was deleted between opening and locking it holds nothing
            held = os.path.samestat(os.stat(lock), os.fstat(f.fileno()))
        except FileNotFoundError:
            held = False
        try:
            yield held
        finally:
            if held:
                lock.unlink(missing_ok=True)


def attempt(config: Config, path: Path, load) -> str:
    """Make the run if it is not there and nobody is at it -> "made", "there", "busy", or what went wrong, with us or with
    another process of this sweep. Raises OSError for a full disk, which would take every other run too."""
    failed = path.with_suffix(".failed")
    try:
        with claim(path) as ours:
            if path.exists():
                return "there"
            if failed.exists():
                return failed.read_text(encoding="utf-8")
            if not ours:
                time.sleep(0.5)         # who asks again at once keeps a core from working
                return "busy"
            for half in path.parent.glob(f"{path.name}.*.part"):        # of a process that was killed
                half.unlink(missing_ok=True)
            write_rows(path, make(config, *load()))
            return "made"
    except Exception as e:              # whatever else it is, the other runs are to go on
        if is_disk_full(e):
            raise
        why = f"out of memory: {LESS_MEMORY}" if is_out_of_memory(e) else f"{type(e).__name__}: {e}"
        if not (isinstance(e, UserError) or is_out_of_memory(e)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            failed.write_text(why, encoding="utf-8")
        return why


# ----- many runs ----------------------------------------------------------------------------------------------------

def loader(data: train.Data, model: str):
    """load() -> the data and the base model of all runs, the latter read when first asked for."""
    return functools.cache(lambda: (data, Transformer.from_pretrained(model)))


def work(conn, number: int, threads: int, out: Path, data: train.Data, model: str):
    """A process that attempts the runs that come through `conn`, until None comes or its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is the parent's affair
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())        # its own is a semaphore, of which Python warns where the process is ended early
    load = loader(data, model)
    for config in iter(conn.recv, None):
        try:
            outcome = attempt(placed(config, number), out / f"{config.run}.csv", load)
        except OSError as e:
            outcome = e
        conn.send(outcome)


def placed(config: Config, number: int) -> Config:
    """`config` on the GPU of process `number`, where there are several."""
    if config.device != "cuda":
        return config
    return dataclasses.replace(config, device=f"cuda:{number % torch.cuda.device_count()}")


def outcomes(todo: deque, data: train.Data, jobs: int, number: int, out: Path):
    """Attempt the runs of `todo` in `jobs` processes -> (config, outcome) as they end. A process that dies (the system kills
    one that takes too much memory) costs its run and is replaced."""
    model = todo[0].model
    if jobs == 1:
        load = loader(data, model)
        while todo:
            config = placed(todo.popleft(), number)
            yield config, attempt(config, out / f"{config.run}.csv", load)
        return
    context, threads = multiprocessing.get_context("spawn"), max(1, torch.get_num_threads() // jobs)

    def hire(number):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, number, threads, out, data, model), daemon=True)
        process.start()
        theirs.close()              # so that our end says when the process is gone
        return ours, process, number

    idle, busy = [hire(n) for n in range(jobs)], {}
    while todo or busy:
        while todo and idle:
            worker = idle.pop()
            try:
                worker[0].send(todo[0])
                busy[worker[0]] = worker, todo.popleft()
            except ConnectionError:         # it was killed while it waited
                idle.append(hire(worker[2]))
        for conn in multiprocessing.connection.wait(list(busy)):
            worker, config = busy.pop(conn)
            try:
                outcome = conn.recv()
                idle.append(worker)
            except (EOFError, ConnectionError):
                worker[1].join()
                outcome = f"its process died (exit code {worker[1].exitcode})"
                idle.append(hire(worker[2]))
            if isinstance(outcome, OSError):
                raise outcome
            yield config, outcome
    for conn, process, _ in idle:
        with contextlib.suppress(ConnectionError):
            conn.send(None)
        process.join()


def run_all(runs: dict[str, Config], data: train.Data, jobs: int, out: Path, rank: int = 0, world: int = 1) -> dict[str, str]:
    """Make what is missing of `runs`, and wait for what others are making -> {run: what went wrong}."""
    make_folder(out)
    finals = {}                     # {run: last row} of those that are there
    missing = remaining(runs, out, finals)
    cost, begun, failed = sum(map(samples, missing)), time.perf_counter(), {}
    share = [config for i, (run, config) in enumerate(runs.items()) if i % world == rank and run not in finals]
    todo = deque(share + [config for config in missing if config not in share])         # its own first; then it helps the others
    for config in share:            # what failed before is tried again
        (out / f"{config.run}.failed").unlink(missing_ok=True)
    for config, outcome in outcomes(todo, data, jobs, rank, out) if todo else ():
        if outcome == "busy":
            todo.append(config)
        elif outcome in ("made", "there"):
            left = sum(map(samples, remaining(runs, out, finals)))
            print(progress_line(runs, config, finals, (time.perf_counter() - begun) * left / max(1, cost - left)), flush=True)
        else:
            failed[config.run] = outcome
            print(f"FAILED {label(config)}: {' '.join(outcome.split())}", flush=True)
    return failed


def remaining(runs, out: Path, finals: dict) -> list[Config]:
    """The runs that are not there yet; the last rows of the others are put into `finals`."""
    for run in runs:
        if run not in finals and (out / f"{run}.csv").exists():
            rows = read_rows(out / f"{run}.csv")
            finals[run] = rows[-1] | {"diverged": diverged(rows)}
    return [config for run, config in runs.items() if run not in finals]


def samples(config: Config) -> int:
    """What a run costs, in samples that it trains on."""
    return config.max_steps * config.batch_eff


def progress_line(runs, config, finals, seconds: float) -> str:
    whole = [row for row in finals.values() if not row["diverged"]]
    best = min(whole, key=lambda row: row["test_nll"], default=None)
    nll = "diverged" if finals[config.run]["diverged"] else f"test NLL {finals[config.run]['test_nll']:.4f}"
    return (f"run {len(finals)} of {len(runs)}: {label(config)}: {nll}; "
            + (f"best so far {best['test_nll']:.4f} ({arm(runs[best['run']])}); " if best else "") + f"{duration(seconds)} left")


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show_plan(runs, jobs: int, out: Path):
    """List the runs; the last line is their number and the time that they will take, as the finished ones took it."""
    finals = {}
    missing = remaining(runs, out, finals)
    for run, config in runs.items():
        print(f"{run}  {'to do' if run not in finals else 'there'}  {label(config)}")
    whole = [row for row in finals.values() if not row["diverged"]]
    rate = sum(row["seconds"] for row in whole) / sum(row["step"] * row["batch_eff"] for row in whole) if whole else None
    about = f"{duration(rate * sum(map(samples, missing)) / jobs)} of training" if whole else "? (nothing to go by yet)"
    print(f"{len(runs)} runs, {len(missing)} to do, about {about}")


# ----- the command --------------------------------------------------------------------------------------------------

def parse(argv=None):
    """-> (our own settings, those of train.py that all runs share, which of them the grids set)."""
    parser = make_parser("sweep.py", __doc__, allow_abbrev=False,
        epilog="Every other flag is train.py's (--model, --data, --max_steps, --eval_samples, --device ...) and goes for all runs.")
    parser.add_argument("sweep", choices=(*ALL, "all", "alpha", "capacity"), help="all: findings 1 to 4")
    parser.add_argument("--preset", choices=PRESETS, help="the grids; default: nano for the embedded model, else tutorial")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each run: --seed (default: 42) and those after it")
    parser.add_argument("--jobs", type=int, help="processes, among which the cores are divided; default: one a GPU, or one a core "
                        "for the embedded model, else 1")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the rows (default: out)")
    parser.add_argument("--dry_run", action="store_true", help="list the runs, and stop")
    args, rest = parser.parse_known_args(argv)
    args.preset = args.preset or ("nano" if parse_run(rest).model == "nano" else "tutorial")
    args.sweeps = ALL if args.sweep == "all" else (args.sweep,)
    usual = shlex.split(SETTINGS[args.preset])
    common, plain = parse_run([*usual, *rest]), parse_run(usual)
    set_here = {name for sweep in args.sweeps for arm in PRESETS[args.preset][sweep] for name in arm}
    for name in sorted(set_here | {"rank", "targets", "alpha", "epochs", "resume", "overwrite"}):
        if name != "match" and getattr(common, name) != getattr(plain, name):
            raise UserError(f"--{name}: the grid of {args.sweep} says that (at the top of sweep.py), or it has no place in a sweep")
    if args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise UserError("--seeds and --jobs have to be at least 1")
    return args, common


def usual_jobs(config: Config) -> int:
    if config.device.startswith("cuda"):
        return torch.cuda.device_count() if config.device == "cuda" else 1
    return torch.get_num_threads() if config.model == "nano" else 1


def sweep(argv=None) -> int:
    args, common = parse(argv)
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))    # torchrun's
    shape(common.model)             # a model that is not there, or not one of ours, shows here, also in a dry run
    runs = plan(args.sweeps, args.preset, common, args.seeds)
    first = next(iter(runs.values()))
    jobs = min(len(runs), args.jobs or (usual_jobs(first) if world == 1 else 1))
    if args.dry_run:
        show_plan(runs, jobs, args.out)
        return 0
    data = train.read_data(first)   # what is wrong with data or settings shows here, once
    failed = run_all(runs, data, jobs, args.out, rank, world)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are in {args.out}: python plot.py {args.out}")
    for run, why in failed.items():
        print(f"failed: {label(runs[run])}: {' '.join(why.split())}", file=sys.stderr)
    return 1 if failed else 0


def main(argv=None):
    with errors_in_one_line(no_space="make room; the same command goes on", stopped="stopped; the same command goes on"):
        raise SystemExit(sweep(argv))


if __name__ == "__main__":
    run_command(main)
