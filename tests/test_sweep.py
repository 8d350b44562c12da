"""The sweep: its grids, that its rows are train.py's, and that no kill, failure, divergence or second process changes them."""
import csv
import dataclasses
import errno
import itertools
import json
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPO
from runs import command, contents, one_line

import sweep
import train
from settings import Config
from settings import parse as parse_run
from settings import LESS_MEMORY
from plumbing.records import read_rows
from plumbing.records import write_rows
from plumbing.records import COLUMNS
from plumbing.files import read_json
from model import Transformer
from plumbing.errors import UserError

QWEN = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
GRID = [{"method": "full", "lr": [1e-3, 1e-2]}, {"method": "lora", "rank": [2, 4], "lr": [1e-2, 5e-2]}]
N = 6
FLAGS = ("--preset=nano", "--max_steps=6", "--eval_steps=2", "--eval_samples=0")


@pytest.fixture
def tiny_grid(monkeypatch):
    def change(arms):
        monkeypatch.setitem(sweep.PRESETS["nano"], "finding1", arms)
    change(GRID)
    return change


@pytest.fixture
def argv(checkpoint, chat):
    """argv(out, *flags) -> the arguments of finding 1, as GRID has it."""
    return lambda out, *flags: ["finding1", f"--model={checkpoint()}", f"--data={chat}", f"--out={out}", *FLAGS, *flags]


def code_of(argv):
    with pytest.raises(SystemExit) as e:
        sweep.main(argv)
    return e.value.code


def rows_of(out):
    """{run: rows without what is the clock's}, of every file."""
    return {path.stem: [{k: v for k, v in row.items() if k not in ("seconds", "peak_gb")} for row in read_rows(path)]
            for path in sorted(Path(out).glob("*.csv"))}


@pytest.fixture(scope="module")
def whole(checkpoint, chat, tmp_path_factory):
    """The rows of a sweep that one process made and nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sweep.PRESETS["nano"], "finding1", GRID)
        assert code_of(["finding1", f"--model={checkpoint()}", f"--data={chat}", f"--out={out}", *FLAGS]) == 0
    return rows_of(out)


SCRIPT = """
import os, sys
sys.path.insert(0, {repo!r})
import sweep, train
sweep.PRESETS["nano"]["finding1"] = {grid!r}
set_up, optimizer_step, load = train.set_up, train.optimizer_step, train.dataset.load_split
def reading(path, *args):
    with open({log!r} + ".read", "a") as f:
        f.write(path.name + "\\n")
    return load(path, *args)
def noted(config, *args):
    with open({log!r}, "a") as f:
        f.write(config.run + "\\n")
    return set_up(config, *args)
def deadly(model, optimizer, scaler, micro, autocast, lr, clip):
    if lr == 0.666:
        os.kill(os.getpid(), 9)
    if lr == 0.777:
        raise OSError(28, "No space left on device")
    return optimizer_step(model, optimizer, scaler, micro, autocast, lr, clip)
train.set_up, train.optimizer_step, train.dataset.load_split = noted, deadly, reading
if __name__ == "__main__":
    sweep.main(sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    """script(grid) -> a program that is sweep.py with that grid, notes each run it begins and each file of data it reads, and is
    killed by a rate of 0.666, and finds the disk full at one of 0.777."""
    def write(grid=GRID):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(repo=str(REPO), grid=grid, log=str(tmp_path / "begun")))
        return path
    return write


def start(*argv):
    return subprocess.Popen([sys.executable, *map(str, argv)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ends(process):
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


# ----- the grids ----------------------------------------------------------------------------------------------------

@pytest.fixture
def qwen(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))         # and nothing else: no weights are needed
    return str(tmp_path)


def tutorial(sweeps, model, seeds=1):
    common = parse_run([*sweep.SETTINGS["tutorial"].split(), f"--model={model}"])
    return list(sweep.plan(sweeps, "tutorial", common, seeds).values())


def test_tutorial_grids_are_those_of_the_tutorial(qwen):
    """Written out again: method, rank, rate, batch."""
    full, lora = itertools.product(["full"], [0]), itertools.product(["lora"], [1, 64, 256])
    expected = {
        "finding1": {(*a, lr, 16) for a in full for lr in (1e-5, 2e-5)} | {(*a, lr, 16) for a in lora for lr in (1e-4, 2e-4)},
        "finding2": {("full", 0, lr, 16) for lr in (5e-6, 1e-5, 2e-5, 5e-5, 1e-4)}
        | {("lora", r, lr, 16) for r in (16, 64, 256) for lr in (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)},
        "finding3": {(m, r, lr, b) for b in (8, 16, 32) for m, r, lrs in (("full", 0, (1e-5, 2e-5)), ("lora", 256, (1e-4, 2e-4)))
                     for lr in lrs}}
    for name, points in expected.items():
        found = tutorial([name], qwen)
        assert {(c.method, c.rank if c.method == "lora" else 0, c.lr, c.batch_eff) for c in found} == points
        assert {c.targets for c in found if c.method == "lora"} == {"all-linear"}
    every = tutorial(sweep.ALL, qwen)
    assert [len(tutorial([name], qwen)) for name in sweep.ALL] == [8, 20, 12, 10] and len(every) == 8 + 14 + 8 + 10
    for c in every:
        assert (c.max_steps, c.eval_steps, c.micro_bs, c.max_length, c.schedule, c.warmup_ratio) == (60, 10, 4, 256, "constant", 0)
        assert c.gradient_checkpointing and c.seed == 42 and (c.alpha == c.rank or c.method == "full")


def test_placement_has_the_pair_of_ranks_with_the_most_equal_parameters(qwen):
    placed = {(c.targets, c.rank) for c in tutorial(["finding4"], qwen)}
    assert placed == {("all-linear", 128), ("attention", 128), ("mlp", 128), ("attention", 96), ("mlp", 32)}
    q, kv, C, I = 14 * 64, 2 * 64, 896, 4864
    attention, mlp = 24 * ((C + q) + 2 * (C + kv) + (q + C)), 24 * 3 * (C + I)
    assert (96 * attention, 32 * mlp) == (12_976_128, 13_271_040)
    assert sweep.matched_ranks(qwen, [64, 192], [24, 64]) == {"attention": 192, "mlp": 64}
    assert sweep.matched_ranks("nano", [66, 33], [20, 40]) == {"attention": 66, "mlp": 40}      # 506,880 both: the first of two


def test_every_arm_of_the_nano_findings_has_a_rate_to_either_side():
    for arms in (sweep.NANO[name] for name in sweep.PRESETS["nano"]):
        assert all(len(arm["lr"]) >= 3 and arm["lr"] == sorted(arm["lr"]) for arm in arms)
    assert all(sum(m in arm["method"] for arm in sweep.NANO["finding2"]) for m in ("full", "lora"))


def test_seeds_are_those_that_follow_and_a_point_that_two_sweeps_need_is_one_run(qwen):
    runs = tutorial(["finding1", "finding2"], qwen, seeds=3)
    assert len(runs) == 3 * (8 + 14) and [c.seed for c in runs] == sorted(c.seed for c in runs)
    assert {c.seed for c in runs} == {42, 43, 44}
    alpha = tutorial(["alpha"], qwen)           # 32 as the grid has it and 32.0 as train.py has it are one setting
    assert {type(c.alpha) for c in alpha} == {float} and len({c.run for c in alpha}) == len(alpha)


def test_dry_run_lists_the_runs_and_makes_nothing(tiny_grid, argv, tmp_path, capsys, qwen):
    out = tmp_path / "out"
    assert code_of(argv(out, "--dry_run", "--seeds=2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * N + 1 and lines[-1] == f"{2 * N} runs, {2 * N} to do, about ? (nothing to go by yet)"
    assert "to do  lora all-linear r=4 alpha=4 lr=0.05 batch=16 steps=6 seed=43" in lines[-2] and not out.exists()
    for name, n in (("finding1", 8), ("finding2", 20), ("finding3", 12), ("all", 40)):
        assert code_of([name, f"--model={qwen}", "--dry_run", f"--out={out}"]) == 0      # tutorial: what another model gets
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{n} runs, {n} to do, about ")


def test_a_dry_run_says_that_the_model_is_not_there(tmp_path, capsys, qwen):
    (tmp_path / "empty").mkdir()
    for model, message in (("/nope", "/nope: no such folder"), (tmp_path / "empty", "has no config.json"), (qwen, "")):
        code = code_of(["finding1", f"--model={model}", "--dry_run"])
        assert message in one_line(code, capsys.readouterr().err) if message else code == 0


# ----- the runs -----------------------------------------------------------------------------------------------------

def test_rows_are_those_of_train_py(whole, checkpoint, chat, tmp_path):
    """To the last bit, and under the same name, whatever other runs the process made of the same base before."""
    for i, (method, rank, lr) in enumerate((("lora", 4, 5e-2), ("full", 64, 1e-2))):
        flags = [f for f in FLAGS if "preset" not in f]
        train.main([*command(checkpoint(), chat, tmp_path / str(i), method=method, rank=rank, lr=lr), *flags])
        (run, rows), = ((read_json(tmp_path / str(i) / "run.json")["run"], read_rows(tmp_path / str(i) / "log.csv")),)
        assert whole[run] == [{k: v for k, v in row.items() if k not in ("seconds", "peak_gb")} for row in rows]
    assert len(whole) == N and {len(rows) for rows in whole.values()} == {4}


def test_files_have_the_columns_of_the_contract_and_nothing_else_is_left(tiny_grid, argv, tmp_path, monkeypatch, capsys):
    """And the base is read once, progress is shown, a second sweep finds all there, and the time it took is known."""
    loaded = []
    real = Transformer.from_pretrained
    monkeypatch.setattr(Transformer, "from_pretrained", lambda *args: loaded.append(args) or real(*args))
    assert code_of(argv(tmp_path)) == 0 and len(loaded) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{N} of {N} runs are in {tmp_path}: python plot.py {tmp_path}"
    assert [line.split(":")[0] for line in lines] == [f"run {i + 1} of {N}" for i in range(N)]
    finals = [read_rows(path)[-1]["test_nll"] for path in tmp_path.glob("*.csv")]
    assert f"best so far {min(finals):.4f} (" in lines[-1] and lines[-1].endswith("; 0 s left")
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv"}
    with open(next(tmp_path.glob("*.csv")), newline="") as f:
        header, *rows = csv.reader(f)
    assert header == COLUMNS and [float(row[10]) for row in rows] == [0, 2, 4, 6] and {row[15] for row in rows} == {""}
    before = contents(tmp_path)
    assert code_of(argv(tmp_path)) == 0 and len(loaded) == 1 and contents(tmp_path) == before
    assert code_of(argv(tmp_path, "--dry_run", "--seeds=3", "--jobs=1")) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    seconds = sum(read_rows(path)[-1]["seconds"] for path in tmp_path.glob("*.csv"))
    assert last == f"{3 * N} runs, {2 * N} to do, about {2 * seconds:.0f} s of training"


def test_a_run_that_diverges_is_stopped_and_recorded_and_the_others_go_on(tiny_grid, argv, tmp_path, monkeypatch, capsys):
    tiny_grid([{"method": "full", "lr": [50.0, 1e-3]}, {"method": "lora", "rank": 4, "lr": 1e-2}])
    steps, real = [], train.optimizer_step
    monkeypatch.setattr(train, "optimizer_step", lambda *args: steps.append(args[5]) or real(*args))
    assert code_of(argv(tmp_path)) == 0 and steps.count(50.0) == 2                  # up to the next evaluation, not further
    out = capsys.readouterr().out
    assert out.count("diverged") == 1 and "run 1 of 3: full lr=50 batch=16 steps=6 seed=42: diverged; " in out and "nan" not in out
    rows, = (rows for rows in rows_of(tmp_path).values() if rows[0]["lr"] == 50)
    assert [row["step"] for row in rows] == [0, 2, 4, 6] and [row["tokens"] == rows[1]["tokens"] for row in rows[1:]] == [True] * 3
    assert not rows[1]["test_nll"] <= 2 * rows[0]["test_nll"] and all(math.isnan(row["test_nll"]) for row in rows[2:])
    assert sum(not sweep.diverged(rows) for rows in rows_of(tmp_path).values()) == 2


@pytest.mark.parametrize(("nll", "expected"), [([2.0, 4.0], False), ([2.0, 4.01], True), ([2.0, math.nan], True),
                                               ([2.0, math.inf], True), ([2.0, 5.0, 1.0], True), ([2.0], False)])
def test_what_diverged_means(nll, expected):
    assert sweep.diverged([{"test_nll": value} for value in nll]) == expected


def test_a_run_that_fails_is_reported_and_the_others_go_on(tiny_grid, argv, tmp_path, capsys, whole):
    tiny_grid([{"method": "lora", "targets": "nonsense", "rank": 3, "lr": 1e-2}, *GRID])
    assert code_of(argv(tmp_path)) == 1
    out, error = capsys.readouterr()
    assert error.startswith("failed: lora nonsense r=3 alpha=3 lr=0.01 batch=16 steps=6 seed=42: UserError: target 'nonsense'")
    assert error.count("\n") == 1 and "FAILED lora nonsense" in out
    assert rows_of(tmp_path) == whole


@pytest.mark.parametrize(("flags", "message"), [
    (["--seeds=0"], "--seeds and --jobs have to be"), (["--jobs=0"], "--seeds and --jobs"), (["--rank=3"], "--rank: the grid of"),
    (["--lr=1"], "--lr: the grid of"), (["--epochs=1"], "--epochs: the grid"), (["--resume"], "--resume: the grid"),
    (["--data=nowhere"], "--data nowhere: no folder"), (["--model=nowhere"], "nowhere: no such folder"),
    (["--micro_bs=0"], "--micro_bs 0: it has to be"), (["--wramup_ratio=1"], "unrecognized arguments: --wramup_ratio=1"),
    (["--device=banana"], "--device banana: torch cannot use"), (["--preset=mine"], "invalid choice: 'mine'")])
def test_settings_that_cannot_be_meant(tiny_grid, argv, tmp_path, capsys, flags, message):
    code = code_of(argv(tmp_path / "out", *flags))
    assert message in one_line(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_flags_of_train_py_go_for_all_runs(tiny_grid, argv):
    args, common = sweep.parse(argv("out", "--max_steps=7", "--dtype=bfloat16", "--seed=5", "--grad_clip=0.5"))
    runs = sweep.plan(args.sweeps, args.preset, common, 2).values()
    assert {(c.max_steps, c.dtype, c.grad_clip) for c in runs} == {(7, "bfloat16", 0.5)} and {c.seed for c in runs} == {5, 6}
    assert sweep.parse(["all"])[0].preset == "nano" and sweep.parse(["all", "--model=Qwen/Qwen3-0.6B"])[0].preset == "tutorial"
    assert not sweep.parse(["all", "--preset=tutorial", "--no-gradient_checkpointing"])[1].gradient_checkpointing


# ----- one run, one process -----------------------------------------------------------------------------------------

def test_a_claim_is_held_by_one_and_falls_with_its_process(tmp_path):
    path = tmp_path / "run.csv"
    with sweep.claim(path) as first, sweep.claim(path) as second:
        assert (first, second) == (True, False)
    with sweep.claim(path) as again:
        assert again
    assert list(tmp_path.iterdir()) == []
    hold = f"import sys, time; sys.path.insert(0, {str(REPO)!r}); import sweep; from pathlib import Path\n" \
           f"with sweep.claim(Path({str(path)!r})): print('held', flush=True); time.sleep(600)"
    process = start("-c", hold)
    assert process.stdout.readline() == "held\n"
    with sweep.claim(path) as ours:
        assert not ours
    process.kill()
    process.wait()
    assert (tmp_path / "run.lock").exists()
    with sweep.claim(path) as ours:
        assert ours


def test_a_lock_on_a_file_that_is_gone_claims_nothing(tmp_path, monkeypatch):
    """Between opening and locking the file, its owner may have deleted it, and another have made and locked a new one."""
    real = sweep.fcntl.flock

    def late(f, how):
        (tmp_path / "run.lock").unlink()
        real(f, how)
    monkeypatch.setattr(sweep.fcntl, "flock", late)
    with sweep.claim(tmp_path / "run.csv") as ours:
        assert not ours
    monkeypatch.setattr(sweep.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks available")))
    with sweep.claim(tmp_path / "run.csv") as ours:
        assert ours                                                 # a file system without locks: the run is made all the same
    monkeypatch.setattr(sweep, "fcntl", None)
    with sweep.claim(tmp_path / "run.csv") as ours:
        assert ours                                                 # Windows


def test_a_run_that_failed_is_left_by_other_ranks_and_tried_again_by_the_next_sweep(tiny_grid, argv, tmp_path, monkeypatch, whole):
    args, common = sweep.parse(argv(tmp_path))
    runs = sweep.plan(args.sweeps, args.preset, common, 1)
    bad, data = list(runs)[2], train.read_data(common)
    tried, real = [], sweep.make

    def failing(config, *rest):
        tried.append(config.run)
        if config.run == bad:
            raise UserError("a GPU that is full")
        return real(config, *rest)
    monkeypatch.setattr(sweep, "make", failing)
    for rank in (0, 1):                     # 2 is of rank 0's share
        assert sweep.run_all(runs, data, 1, tmp_path, rank, world=2) == {bad: "UserError: a GPU that is full"}
    assert sorted(tried) == sorted(whole)
    assert (tmp_path / f"{bad}.failed").read_text() == "UserError: a GPU that is full"
    monkeypatch.setattr(sweep, "make", real)
    assert sweep.run_all(runs, data, 1, tmp_path) == {} and rows_of(tmp_path) == whole
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv"}


def test_a_run_that_another_makes_is_waited_for(tiny_grid, argv, tmp_path, whole, monkeypatch):
    """The claim is refused twice; then the run is there, or free."""
    busy = dict.fromkeys(list(whole)[:2], 2)
    real = sweep.attempt

    def refused(config, path, load):
        if busy.get(config.run, 0):
            busy[config.run] -= 1
            return "busy"
        return real(config, path, load)
    monkeypatch.setattr(sweep, "attempt", refused)
    assert code_of(argv(tmp_path)) == 0 and set(busy.values()) == {0}
    assert rows_of(tmp_path) == whole


# ----- many processes -----------------------------------------------------------------------------------------------

def begun(tmp_path):
    return sorted((tmp_path / "begun").read_text().split())


def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(argv, tmp_path, script, whole):
    out = tmp_path / "out"
    process = start(script(), *argv(out))
    while process.poll() is None and len(list(out.glob("*.csv"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = contents(out)
    (out / f"{(set(whole) - {path.stem for path in there}).pop()}.csv.1.part").write_text("half a fi")
    assert 2 <= sum(path.suffix == ".csv" for path in there) < N
    assert ends(start(script(), *argv(out)))[0] == 0
    assert rows_of(out) == whole and {path.suffix for path in out.iterdir()} == {".csv"}
    assert all(path.read_bytes() == content for path, content in there.items() if path.suffix == ".csv")
    assert len(begun(tmp_path)) <= N + 1 and set(begun(tmp_path)) == set(whole)         # only what was under way is made again


def test_two_sweeps_in_one_folder_make_each_run_once(argv, tmp_path, script, whole):
    path = script()
    both = [start(path, *argv(tmp_path / "out")) for _ in range(2)]
    results = [ends(process) for process in both]
    assert [result[0] for result in results] == [0, 0], results
    assert begun(tmp_path) == sorted(whole) and rows_of(tmp_path / "out") == whole
    assert all(f"run {N} of {N}" in out for _, out, _ in results)                       # each ends when all runs are there


def test_jobs_share_the_runs_and_one_that_dies_takes_none_along(argv, tmp_path, script, whole):
    """The same rows; the process that the system killed is replaced, and its run reported. Data are read once, by the parent."""
    path = script([GRID[0], {"method": "lora", "rank": 4, "lr": 0.666}, *GRID[1:]])
    code, out, error = ends(start(path, *argv(tmp_path / "out", "--jobs=2")))
    assert code == 1 and "its process died (exit code -9)" in error and "Traceback" not in error
    assert error.startswith("failed: lora all-linear r=4 alpha=4 lr=0.666")
    assert rows_of(tmp_path / "out") == whole and len(begun(tmp_path)) == N + 1
    assert (tmp_path / "begun.read").read_text().split() == ["train.jsonl", "test.jsonl"]


def test_ranks_of_torchrun_share_the_runs(argv, tmp_path, script, whole):
    code, _, error = ends(start("-m", "torch.distributed.run", "--nproc_per_node=2", script(), *argv(tmp_path / "out")))
    assert code == 0, error
    assert begun(tmp_path) == sorted(whole) and rows_of(tmp_path / "out") == whole


def test_each_rank_begins_with_its_own_share(tiny_grid, argv, tmp_path, monkeypatch):
    args, common = sweep.parse(argv(tmp_path))
    runs = sweep.plan(args.sweeps, args.preset, common, 1)
    order = []
    monkeypatch.setattr(sweep, "attempt", lambda config, path, load: order.append(config.run) or "no")
    failed = sweep.run_all(runs, None, 1, tmp_path, rank=1, world=3)
    assert order == [*list(runs)[1::3], *(run for i, run in enumerate(runs) if i % 3 != 1)] and list(failed) == order


def test_processes_are_spread_over_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = Config(device="cuda")
    assert [sweep.placed(config, n).device for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert sweep.placed(dataclasses.replace(config, device="cuda:1"), 0).device == "cuda:1"
    assert sweep.placed(Config(device="cpu"), 1).device == "cpu"


def test_a_worker_that_is_killed_while_it_waits_is_replaced(tiny_grid, argv, tmp_path, monkeypatch, whole):
    """Two are killed before their first run; the sweep then has two others."""
    process, hired = multiprocessing.get_context("spawn").Process, []
    real = process.start

    def start(self):
        real(self)
        hired.append(self)
        if len(hired) <= 2:
            self.kill()
            self.join()
    monkeypatch.setattr(process, "start", start)
    assert code_of(argv(tmp_path, "--jobs=2")) == 0 and len(hired) == 4 and rows_of(tmp_path) == whole


@pytest.mark.parametrize(("error", "message", "traceback"), [
    (RuntimeError("no such thing"), "RuntimeError: no such thing", True), (OSError(5, "broken"), "OSError: [Errno 5] broken", True),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to"), f"out of memory: {LESS_MEMORY}", False)])
def test_whatever_fails_is_the_runs_own(tiny_grid, argv, tmp_path, monkeypatch, capsys, error, message, traceback):
    """An error of ours has a traceback, for who can mend it; the sweep goes on."""
    real, calls = write_rows, []

    def failing(path, rows):
        calls.append(path)
        if len(calls) == 2:
            raise error
        real(path, rows)
    monkeypatch.setattr(train, "write_csv", failing)
    assert code_of(argv(tmp_path)) == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == traceback and said.splitlines()[-1].endswith(f": {message}")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv"] * (N - 1) + [".failed"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_ends_the_sweep(argv, tmp_path, script, jobs):
    """No other run would find room either: each would be trained and thrown away."""
    code, _, error = ends(start(script([{"method": "full", "lr": 0.777}, *GRID]), *argv(tmp_path / "out", f"--jobs={jobs}")))
    assert "No space left on device; make room; the same command goes on" in one_line(code, error)
    assert len(begun(tmp_path)) <= 2 * jobs - 1 and not list((tmp_path / "out").glob("*.failed"))


def test_each_run_is_in_a_share_when_a_rank_begins_late(tiny_grid, argv, tmp_path, monkeypatch):
    """What failed yesterday is tried again by its rank, also where another rank has made a run of its own by then."""
    args, common = sweep.parse(argv(tmp_path))
    runs = sweep.plan(args.sweeps, args.preset, common, 1)
    for run in runs:
        (tmp_path / f"{run}.failed").write_text("of yesterday")
    monkeypatch.setattr(sweep, "attempt", lambda config, path, load: "no")
    sweep.run_all(runs, None, 1, tmp_path, rank=0, world=2)
    write_rows(tmp_path / f"{list(runs)[0]}.csv", [dict.fromkeys(COLUMNS, 1.0)])
    sweep.run_all(runs, None, 1, tmp_path, rank=1, world=2)
    assert not list(tmp_path.glob("*.failed"))


def test_an_interrupted_sweep_says_how_to_go_on(tiny_grid, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "optimizer_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert code_of(argv(tmp_path)) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on\n"
