"""Runs that train in one pass: the same rows, adapters and files as when each trains alone."""
import dataclasses
import math
import time

import pytest
import torch
from runs import command

import stack
import sweep
import train
from lora import last_name
from plumbing.files import read_json
from plumbing.records import make_row, read_rows
from plumbing.workers import claim_file
from rates import diverged
from settings import LESS_MEMORY, parse, settled

DIVERGES = 5
EIGHT = [{"rank": 4, "lr": 1e-2}, {"rank": 1, "lr": 5e-2}, {"rank": 8, "lr": 3e-3, "alpha": 2.0},
         {"rank": 4, "lr": 2e-2, "grad_clip": 0.05}, {"rank": 3, "lr": 2e-2, "grad_clip": 0.0},
         {"rank": 8, "lr": 1e12},
         {"rank": 5, "lr": 1e-2, "method": "rslora", "schedule": "cosine", "warmup_ratio": 0.4},
         {"rank": 6, "lr": 1e-2, "method": "loraplus", "weight_decay": 0.5}]


@pytest.fixture(autouse=True)
def forget_the_base():
    sweep.read_base.cache_clear()
    sweep.start_nlls.clear()


@pytest.fixture
def common(checkpoint, chat):
    return parse(["--device=cpu", *command(checkpoint(qkv_bias=True), chat, "out", max_steps=3,
                                           grad_accum=2)])


def list_runs(common, points):
    return [settled(dataclasses.replace(common, out=None, **point), 0) for point in points]


def make(configs, data, monkeypatch):
    """sweep.make_runs -> (rows, train.Run) of each."""
    runs, real = [], train.set_up
    with monkeypatch.context() as m:
        m.setattr(train, "set_up", lambda *args: runs.append(real(*args)) or runs[-1])
        return list(zip(sweep.make_runs(configs, data), runs, strict=True))


def assert_same_rows(stacked, alone):
    """Every column but the clock's; each NLL to 1e-4, or nan in both."""
    assert [row["step"] for row in stacked] == [row["step"] for row in alone]
    for ours, theirs in zip(stacked, alone):
        for name in ours.keys() - {"seconds", "peak_gb"}:
            if name.endswith("_nll") and theirs[name] != "":
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, nan_ok=True), name
            else:
                assert ours[name] == theirs[name], name


def assert_same_runs(common, points, monkeypatch, adapters_within=1e-3):
    """Rows and adapters of a stack are those of its runs alone -> the stack's runs."""
    configs = list_runs(common, points)
    data = train.read_data(configs[0])
    alone = [make([config], data, monkeypatch)[0] for config in configs]
    sweep.start_nlls.clear()            # the stack measures the base's own
    stacked = make(configs, data, monkeypatch)
    for (rows, run), (rows_alone, run_alone) in zip(stacked, alone, strict=True):
        assert_same_rows(rows, rows_alone)
        assert [p.shape for p in run.trained.values()] == [
            p.shape for p in run_alone.trained.values()]
        if not diverged(rows):
            for name, p in run_alone.trained.items():
                distance = torch.dist(run.trained[name], p)
                assert 0 < p.norm() and distance < adapters_within * p.norm(), name
    return [run for _, run in stacked]


def test_eight_runs_are_those_of_eight_passes(common, monkeypatch):
    """Of different ranks, rates, methods, clipping, decay and schedules; one becomes nan.

    What pads a rank stays exactly zero. Were clipping, rate or loss shared, curves would differ:
    seven of the runs are clipped or not, and all have a rate of their own.
    """
    start = time.perf_counter()
    runs = assert_same_runs(common, EIGHT, monkeypatch)
    lost = runs[DIVERGES]
    assert not all(torch.isfinite(p).all() for p in lost.trained.values())
    layers = {name: m for name, m in lost.model.named_modules()
              if isinstance(m, stack.StackedLinear)}
    assert {last_name(name) for name in layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for layer in layers.values():
        for k, run in enumerate(runs):
            r = run.config.rank
            if k != DIVERGES:
                assert not layer.lora_A[k, r:].any() and not layer.lora_B[k, :, r:].any()
    # each has its share of the seconds, and the rest of the test took some, too
    seconds, = {run.progress.seconds for run in runs}
    assert 0 < len(runs) * seconds < time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"method": "qlora"}, {"gradient_checkpointing": True}, {"targets": "attention"},
    {"optimizer": "paged_adamw"}])
def test_other_settings_that_runs_share(common, monkeypatch, changes):
    points = [{"rank": 4, "lr": 1e-2}, {"rank": 2, "lr": 2e-2}, {"rank": 1, "lr": 1e12}]
    assert_same_runs(dataclasses.replace(common, **changes), points, monkeypatch)


@pytest.mark.slow
def test_in_bfloat16(common, monkeypatch):
    """A product of more rows may round differently, so curves differ by a tenth of their fall."""
    configs = list_runs(dataclasses.replace(common, dtype="bfloat16"), EIGHT[:4])
    data = train.read_data(configs[0])
    for rows, config in zip(sweep.make_runs(configs, data), configs):
        alone, = sweep.make_runs([config], data)
        fall = alone[0]["test_nll"] - alone[-1]["test_nll"]
        assert fall > 0.05 and abs(rows[-1]["test_nll"] - alone[-1]["test_nll"]) < fall / 10
        assert rows[0] | {"seconds": 0} == alone[0] | {"seconds": 0}


@pytest.mark.slow
def test_nano(monkeypatch):
    """Ranks and rates as the sweeps of nano have them, and a rate far beyond."""
    common = parse(["--max_steps=8", "--eval_steps=4", "--eval_samples=8", "--grad_accum=1",
                    "--device=cpu"])
    points = [{"rank": 1, "lr": 5.6e-3}, {"rank": 8, "lr": 8e-4}, {"rank": 8, "lr": 1.6e-3},
              {"rank": 8, "lr": 3.2e-3}, {"rank": 64, "lr": 2e-4}, {"rank": 64, "lr": 4e-4},
              {"rank": 64, "lr": 8e-4}, {"rank": 16, "lr": 1e30}]
    runs = assert_same_runs(common, points, monkeypatch, adapters_within=1e-2)
    assert [diverged(run.progress.rows) for run in runs] == [False] * 7 + [True]


# ----- the command --------------------------------------------------------------------------------

GRID = """
flags = "--max_steps 2 --eval_steps 1 --grad_accum 1"

[[mixed]]
method = "full"
lr = [1e-3]

[[mixed]]
method = "lora"
rank = 2
lr = [1e-2, 5e-2]

[[mixed]]
method = "lora"
rank = 2
lr = 1e-2
grad_accum = 2

[[mixed]]
method = "lora"
rank = 4
lr = [1e-2, 5e-2]
"""


@pytest.fixture
def argv(checkpoint, chat, tmp_path):
    """argv(out, *flags) -> the arguments of a sweep of GRID on a tiny model."""
    (tmp_path / "grid.toml").write_text(GRID)
    return lambda out, *flags: [
        f"--grid={tmp_path / 'grid.toml'}", f"--model={checkpoint()}", f"--data={chat}",
        "--device=cpu", "--jobs=1", f"--out={out}", *flags]


@pytest.fixture
def passes(monkeypatch):
    """The numbers of runs that train in one pass, as they are begun."""
    passes, real = [], sweep.make_runs
    monkeypatch.setattr(
        sweep, "make_runs", lambda configs, *rest: passes.append(len(configs)) or real(
            configs, *rest))
    return passes


def sweep_ends(argv):
    with pytest.raises(SystemExit) as e:
        sweep.main(argv)
    return e.value.code


def test_the_files_are_those_of_a_sweep_without_it(argv, tmp_path, passes, capsys):
    """Full fine-tuning and a run of another batch go their usual way. A finished file stays."""
    assert sweep_ends(argv(tmp_path / "alone")) == 0 and passes == [1] * 6
    alone = {path.name: path for path in (tmp_path / "alone").iterdir()}
    done = next(path for path in alone.values() if path.suffix == ".csv"
                and read_rows(path)[0]["rank"] == 4)
    out = tmp_path / "stacked"
    out.mkdir()
    (out / done.name).write_bytes(done.read_bytes())
    passes.clear()
    assert sweep_ends(argv(out, "--stack=8")) == 0 and passes == [1, 3, 1]
    assert {path.name for path in out.iterdir()} == set(alone)
    assert (out / done.name).read_bytes() == done.read_bytes()
    for name, path in alone.items():
        if path.suffix == ".csv":
            assert_same_rows(read_rows(out / name), read_rows(path))
        else:
            assert read_json(out / name) == read_json(path)
    assert "has 6 of 6 runs: " in capsys.readouterr().out


def test_a_stack_leaves_out_what_another_process_makes(argv, tmp_path, passes):
    settings, common = sweep.parse_sweep(argv(tmp_path))
    arms = sweep.list_arms(settings.arms, common)
    configs = [c for c in sweep.plan_runs(arms, settings, {}).values()
               if c.method == "lora" and c.grad_accum == 1]
    data = train.read_data(common)
    with claim_file(tmp_path / f"{configs[2].run}.csv") as ours:
        assert ours
        assert sweep.attempt_runs(configs, data, tmp_path) == ["", "", sweep.BUSY, ""]
    assert {path.stem for path in tmp_path.glob("*.csv")} == {
        config.run for i, config in enumerate(configs) if i != 2}
    assert sweep.attempt_runs(configs, data, tmp_path) == [""] * 4 and passes == [3, 1]
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize(("error", "message", "tracebacks"), [
    (RuntimeError("no such thing"), "RuntimeError: no such thing", 1),
    (torch.OutOfMemoryError("CUDA out of memory"),
     f"out of memory: 4 runs in one pass; lower --stack, or {LESS_MEMORY}", 0)])
def test_what_fails_is_noted_for_each_run_of_a_stack(
        argv, tmp_path, monkeypatch, capsys, error, message, tracebacks):
    def fail(*_):
        raise error
    monkeypatch.setattr(stack, "make_stacked_step", fail)
    assert sweep_ends(argv(tmp_path / "out", "--stack=8")) == 1
    said = capsys.readouterr()
    assert said.err.count("Traceback") == tracebacks and said.out.count("FAILED lora") == 4
    failed = list((tmp_path / "out").glob("*.failed"))
    assert [path.read_text() for path in failed] == [message] * 4
    assert len(list((tmp_path / "out").glob("*.csv"))) == 2


def board_of(argv, tmp_path, **how):
    settings, common = sweep.parse_sweep(argv(tmp_path, "--seeds=2"))
    arms = sweep.list_arms(settings.arms, common)
    return sweep.Board(lambda finals: sweep.plan_runs(arms, settings, finals), tmp_path, **how)


def test_what_is_stacked(argv, tmp_path):
    """Up to K of one seed and batch; own share and others' apart; without --stack each alone."""
    board = board_of(argv, tmp_path, stack_size=3)
    full, a, b, larger_batch, c, d, *_ = names = list(board.runs)
    assert board.stacks[:4] == [[full], [a, b, c], [d], [larger_batch]]
    assert [len(names) for names in board.stacks[4:]] == [1, 3, 1, 1]
    assert board_of(argv, tmp_path).stacks == [[name] for name in names]
    second = board_of(argv, tmp_path, stack_size=8, rank=1, world=2)
    assert second.stacks[:2] == [[a, d], [larger_batch]]


def test_all_runs_of_a_process_that_died_are_reported(argv, tmp_path, monkeypatch):
    board = board_of(argv, tmp_path, stack_size=8)

    def die(next_runs, *_):
        while (configs := next_runs()) is not None:
            yield configs, "its process died (exit code -9)"
    monkeypatch.setattr(sweep, "do_jobs", die)
    sweep.make_missing_runs(board, None, 2)
    assert board.errors == dict.fromkeys(board.runs, "its process died (exit code -9)")


def test_a_bracket_of_stacks_makes_the_runs_of_a_bracket(argv, tmp_path, monkeypatch):
    """The rows are looked up: the best rate is 1e-3.

    As with --jobs, two rates are begun where one alone might have made the other unnecessary.
    """
    def look_up(configs, data):
        return [[make_row(config, step=step, tokens=step, train_nll="", seconds=1.0, peak_gb="",
                          test_nll=2 + step * abs(math.log(config.lr / 1e-3)) / 100, trainable=1)
                 for step in config.evaluated_steps()] for config in configs]
    monkeypatch.setattr(sweep, "make_runs", look_up)
    made = []
    for size in (1, 4):
        out = tmp_path / str(size)
        flags = ["--near_best", "--seeds=2", f"--stack={size}"]
        assert sweep_ends(argv(out, *flags)) == 0
        made.append({path.name: path.read_text() for path in out.iterdir()})
    alone, stacked = made
    assert alone.items() <= stacked.items() and 48 < len(alone) <= len(stacked) <= len(alone) + 4


@pytest.mark.slow
def test_processes_share_the_stacks(argv, tmp_path):
    for size in (1, 2):
        assert sweep_ends([*argv(tmp_path / str(size), f"--stack={size}"), "--jobs=2"]) == 0
    for path in (tmp_path / "1").glob("*.csv"):
        assert_same_rows(read_rows(tmp_path / "2" / path.name), read_rows(path))


@pytest.mark.parametrize(("changes", "together"), [
    *(({name: value}, True) for name, value in (
        ("rank", 3), ("alpha", 5.0), ("lr", 1.0), ("grad_clip", 0.5), ("weight_decay", 0.1),
        ("schedule", "cosine"), ("warmup_ratio", 0.1), ("method", "rslora"),
        ("method", "loraplus"))),
    *(({name: value}, False) for name, value in (
        ("seed", 1), ("micro_bs", 2), ("grad_accum", 1), ("max_steps", 9), ("eval_steps", 3),
        ("targets", "mlp"), ("dtype", "bfloat16"), ("method", "qlora"),
        ("gradient_checkpointing", True), ("optimizer", "paged_adamw"))),
    *(({name: value}, None) for name, value in (
        ("method", "full"), ("method", "dora"), ("method", "pissa"), ("method", "adalora"),
        ("dropout", 0.1), ("optimizer", "adamw8bit")))])
def test_which_runs_can_train_together(common, changes, together):
    one, other = list_runs(common, [{}, changes])
    shared = stack.shared_settings(other)
    if together is None:
        assert shared is None
    else:
        assert shared is not None and (shared == stack.shared_settings(one)) == together
