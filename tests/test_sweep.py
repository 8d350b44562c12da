"""The sweep: its grids, that its rows are train.py's, and what kills, failures and others change.

Nothing: after a kill, a failed run, a divergence or with a second process the rows are the same.
"""
import csv
import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO
from runs import command, contents, one_line

import memory
import sweep
import train
from arms import read_runs, select_sweeps
from model import ModelConfig, Transformer
from plumbing.device import choose_device
from plumbing.errors import UserError
from plumbing.files import read_json
from plumbing.records import COLUMNS, read_rows, write_rows
from plumbing.workers import BUSY
from rates import diverged
from settings import LESS_MEMORY, parse, settled

QWEN = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True}
GRID = [{"method": "full", "lr": [1e-3, 1e-2]},
        {"method": "lora", "rank": [2, 4], "lr": [1e-2, 5e-2]}]
N = 6
FLAGS = ("--preset=nano", "--max_steps=6", "--eval_steps=2", "--eval_samples=0")


@pytest.fixture(autouse=True)
def forget_the_base():
    sweep.read_base.cache_clear()
    sweep.start_nlls.clear()


@pytest.fixture
def tiny_grid(monkeypatch):
    """Finding 1 is GRID; tiny_grid(arms) makes it another."""
    change = functools.partial(monkeypatch.setitem, sweep.PRESETS["nano"], "finding1")
    change(GRID)
    return change


@pytest.fixture(scope="module")
def argv(checkpoint, chat):
    """argv(out, *flags) -> the arguments of finding 1 on a tiny model."""
    base = ["finding1", f"--model={checkpoint()}", f"--data={chat}", *FLAGS]
    return lambda out, *flags: [*base, f"--out={out}", *flags]


@pytest.fixture
def runs_and_data(tiny_grid, argv, tmp_path):
    settings, common = sweep.parse_sweep(argv(tmp_path))
    return planned(settings, common), train.read_data(common)


def planned(settings, common):
    return sweep.plan_runs(sweep.list_arms(settings.arms, common), settings, {})


def write_run(out, config, **changes):
    """The file of a run that somebody made. changes: of its last row."""
    row = dict.fromkeys(COLUMNS, 1.0) | {"run": config.run, "lr": config.lr, "seed": config.seed,
                                         "batch_eff": config.batch_eff}
    rows = [row | {"step": step} for step in config.evaluated_steps()]
    write_rows(out / f"{config.run}.csv", [*rows[:-1], rows[-1] | changes])


def make_missing(runs, data, jobs, out, **share):
    """make_missing_runs for these runs -> {name: what went wrong}."""
    board = sweep.Board(lambda finals: runs, out, **share)
    sweep.make_missing_runs(board, data, jobs)
    return board.errors


def code_of(argv):
    with pytest.raises(SystemExit) as e:
        sweep.main(argv)
    return e.value.code


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_gb")} for row in rows]


def rows_of(out):
    """{run: rows without what the clock says}, of every file."""
    return {path.stem: without_clock(read_rows(path)) for path in sorted(Path(out).glob("*.csv"))}


def suffixes(folder):
    return {path.suffix for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """The rows of a sweep that one process made and nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sweep.PRESETS["nano"], "finding1", GRID)
        assert code_of(argv(out)) == 0
    return rows_of(out)


SCRIPT = """
import os, sys
sys.path.insert(0, {repo!r})
import sweep, train
sweep.PRESETS["nano"]["finding1"] = {grid!r}
set_up, optimizer_step, load_split = train.set_up, train.optimizer_step, train.dataset.load_split
steps = 0

def note_file(path, *args):
    with open({log!r} + ".read", "a") as f:
        f.write(path.name + "\\n")
    return load_split(path, *args)

def note_run(config, *args):
    with open({log!r}, "a") as f:
        f.write(config.run + "\\n")
    return set_up(config, *args)

def step_or_die(model, optimizer, scaler, micro, autocast, lr, clip, seed):
    global steps
    steps += 1
    if lr == 0.666 or steps == int(os.environ.get("KILL_AT", 0)):
        os.kill(os.getpid(), 9)
    if lr == 0.777:
        raise OSError(28, "No space left on device")
    return optimizer_step(model, optimizer, scaler, micro, autocast, lr, clip, seed=seed)

train.set_up, train.optimizer_step, train.dataset.load_split = note_run, step_or_die, note_file
if __name__ == "__main__":
    sweep.main(sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    """script(grid) -> a program that is sweep.py with that grid as finding 1.

    It notes each run that it begins and each data file that it reads. A rate of 0.666 kills it, as
    does its step KILL_AT, and at a rate of 0.777 it finds the disk full.
    """
    def write(grid=GRID):
        path = tmp_path / "script.py"
        log = str(tmp_path / "begun")
        path.write_text(SCRIPT.format(repo=str(REPO), grid=grid, log=log))
        return path
    return write


def start(*argv, **env):
    return subprocess.Popen([sys.executable, *map(str, argv)], env=os.environ | env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ends(process):
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


# ----- the grids ----------------------------------------------------------------------------------

@pytest.fixture
def qwen(tmp_path):
    """A model of which there is only config.json: no weights are needed to list its runs."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    return str(tmp_path)


def tutorial(sweeps, model, seeds=1):
    common = parse([*sweep.PRESET_FLAGS["tutorial"].split(), f"--model={model}"])
    grid = [arm for name in sweeps for arm in sweep.TUTORIAL_GRIDS[name]]
    arms = sweep.list_arms(grid, common)
    return list(sweep.plan_runs(arms, sweep.Settings("all", seeds=seeds), {}).values())


def test_tutorial_grids_are_those_of_the_tutorial(qwen):
    """Written out again: method, rank, rate, batch."""
    lora_rates = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
    expected = {
        "finding1": {("full", 0, lr, 16) for lr in (1e-5, 2e-5)}
        | {("lora", r, lr, 16) for r in (1, 64, 256) for lr in (1e-4, 2e-4)},
        "finding2": {("full", 0, lr, 16) for lr in (5e-6, 1e-5, 2e-5, 5e-5, 1e-4)}
        | {("lora", r, lr, 16) for r in (16, 64, 256) for lr in lora_rates},
        "finding3": {("full", 0, lr, b) for b in (8, 16, 32) for lr in (1e-5, 2e-5)}
        | {("lora", 256, lr, b) for b in (8, 16, 32) for lr in (1e-4, 2e-4)}}
    for name, points in expected.items():
        found = tutorial([name], qwen)
        ranks = [c.rank if c.method == "lora" else 0 for c in found]
        assert {(c.method, r, c.lr, c.batch_eff) for c, r in zip(found, ranks)} == points
        assert {c.targets for c in found if c.method == "lora"} == {"all-linear"}
    assert [len(tutorial([name], qwen)) for name in sweep.FINDINGS] == [8, 20, 12, 10]
    every = tutorial(sweep.FINDINGS, qwen)
    assert len(every) == 8 + 14 + 8 + 10            # what two findings share is one run
    for c in every:
        assert (c.max_steps, c.eval_steps, c.micro_bs, c.max_length) == (60, 10, 4, 256)
        assert (c.schedule, c.warmup_ratio, c.seed) == ("constant", 0, 42)
        assert c.gradient_checkpointing and (c.alpha == c.rank or c.method == "full")


def test_placement_has_the_pair_of_ranks_with_the_most_equal_parameters(qwen):
    found = {(c.targets, c.rank) for c in tutorial(["finding4"], qwen)}
    everywhere = {("all-linear", 128), ("attention", 128), ("mlp", 128)}
    assert found == everywhere | {("attention", 96), ("mlp", 32)}
    q, kv, C, I = 14 * 64, 2 * 64, 896, 4864
    attention, mlp = 24 * ((C + q) + 2 * (C + kv) + (q + C)), 24 * 3 * (C + I)
    assert (96 * attention, 32 * mlp) == (12_976_128, 13_271_040)
    def match(model, attention, mlp):
        return tuple(sweep.match_ranks(model, {"attention": attention, "mlp": mlp}).values())
    assert match(qwen, [64, 192], [24, 64]) == (192, 64)
    # both pairs have 506,880 on either side: the first of them
    assert match("nano", [66, 33], [20, 40]) == (66, 40)


def test_nano_compares_three_placements_with_as_many_parameters():
    found = {(c.targets, c.rank): c for c in nano_runs("finding4")}
    matched = [("attention", 80), ("mlp", 48), ("all-linear", 30)]
    assert set(found) == {(targets, 64) for targets, _ in matched} | set(matched)
    # 6 layers, C = 192, Q = 192, K = 64, I = 512
    attention = 6 * ((192 + 192) + 2 * (192 + 64) + (192 + 192))
    mlp = 6 * 3 * (192 + 512)
    assert [80 * attention, 48 * mlp, 30 * (attention + mlp)] == [614_400, 608_256, 610_560]


def test_batches_of_nano_meet_at_one_step_and_at_one_number_of_samples():
    runs = nano_runs("batches")
    assert {c.batch_eff for c in runs} == {4, 8, 16, 32, 64, 128}
    for c in runs:
        evaluated = range(0, c.max_steps + 1, c.eval_steps)
        assert 40 in evaluated and 640 / c.batch_eff in evaluated


@pytest.mark.parametrize("name, budget, off, exceptions", [
    ("methods", 81_408, 0.13, {"full": None, "bitfit": 10_368, "prefix_embedding": 13_440,
                               "adalora": 122_364}),        # 6 triplets of which 4 are left
    ("matrices", 61_440, 0.04, {})])
def test_grids_at_one_budget(name, budget, off, exceptions):
    c = ModelConfig.from_pretrained("nano")
    for run in nano_runs(name):
        trained = memory.method_parameters(c, run)
        if run.method in exceptions:
            assert exceptions[run.method] in (None, trained)
        else:
            assert abs(trained / budget - 1) < off, (run.method, run.targets)


def nano_runs(name):
    settings, common = sweep.parse_sweep([name])
    return list(planned(settings, common).values())


def test_every_arm_of_the_nano_grids_has_three_rates_or_more():
    for grid in sweep.NANO_GRIDS.values():
        assert all(len(arm["lr"]) >= 3 and arm["lr"] == sorted(arm["lr"]) for arm in grid)
    assert {arm["method"] for arm in sweep.NANO_GRIDS["finding2"]} == {"full", "lora"}


def test_seeds_are_those_that_follow_and_a_point_that_two_sweeps_need_is_one_run(qwen):
    runs = tutorial(["finding1", "finding2"], qwen, seeds=3)
    assert [c.seed for c in runs] == [42] * 22 + [43] * 22 + [44] * 22          # 8 + 14 each
    alpha = tutorial(["alpha"], qwen)       # 32 in the grid and train.py's 32.0 are one setting
    assert {type(c.alpha) for c in alpha} == {float}
    assert len({c.run for c in alpha}) == len(alpha)


def test_a_grid_that_is_added_can_be_named(monkeypatch, tmp_path, capsys):
    """As the comment above the grids says; in the preset that has it."""
    own = [{"method": "lora", "rank": 8, "schedule": ["constant", "cosine"],
            "lr": [3e-4, 1e-3, 3e-3]}]
    monkeypatch.setitem(sweep.NANO_GRIDS, "schedules", own)
    flags = ["schedules", "--dry_run", f"--out={tmp_path / 'out'}"]
    assert code_of(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("6 runs, 6 to do")
    code = code_of([*flags, "--preset=tutorial"])
    assert ("the preset tutorial: grid 'schedules': it must be finding1 or"
            in one_line(code, capsys.readouterr().err))


def test_dry_run_lists_the_runs_and_makes_nothing(tiny_grid, argv, tmp_path, capsys, qwen):
    out = tmp_path / "out"
    assert code_of(argv(out, "--dry_run", "--seeds=2")) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * N
    assert last == (f"{2 * N} runs, {2 * N} to do, "
                    "how long they take is known when the first one is finished")
    expected = "to do  lora all-linear r=4 lr=0.05 batch=16 steps=6 seed=43"
    assert lines[-1].endswith(expected) and not out.exists()
    for name, n in (("finding1", 8), ("finding2", 20), ("finding3", 12), ("all", 40)):
        # another model than nano gets the tutorial's grids
        assert code_of([name, f"--model={qwen}", "--dry_run", f"--out={out}"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"{n} runs, {n} to do, how long ")


def test_runs_are_listed_with_the_settings_that_their_methods_have(tiny_grid, argv, tmp_path,
                                                                   capsys):
    """BitFit has neither rank nor alpha, bottlenecks no targets. One run is not "1 runs"."""
    listed = []
    for arm in ({"method": "bitfit", "targets": "mlp"}, {"method": "adapter", "rank": 4},
                {"method": "full"}):
        tiny_grid([arm | {"lr": 1e-2}])
        assert code_of(argv(tmp_path, "--dry_run", "--bracket")) == 0
        line, summary, _, planned = capsys.readouterr().out.splitlines()
        listed.append(line.partition("  to do  ")[2].partition(" batch")[0])
        assert summary.startswith("1 run, 1 to do, how long they take is known ")
        assert planned == "1 run so far; every rate at every seed would be 1"
    assert listed == ["bitfit mlp lr=0.01", "adapter r=4 lr=0.01", "full lr=0.01"]


def test_a_dry_run_says_that_the_model_is_missing(tmp_path, capsys, qwen):
    (tmp_path / "empty").mkdir()
    for model, message in (("/nope", "/nope: no such folder"),
                           (tmp_path / "empty", "has no config.json")):
        code = code_of(["finding1", f"--model={model}", "--dry_run"])
        assert message in one_line(code, capsys.readouterr().err)
    assert code_of(["finding1", f"--model={qwen}", "--dry_run"]) == 0


# ----- a grid of one's own ------------------------------------------------------------------------

OWN = """
flags = "--max_steps 6 --eval_steps 2"

[[schedules]]
method = "lora"
rank = 4
schedule = ["constant", "cosine"]
weight_decay = [0, 0.1]
lr = [1e-3, 1e-2, 5e-2]

[[full]]
method = "full"
lr = [1e-3, 1e-2]
"""


@pytest.fixture
def own(checkpoint, chat, tmp_path):
    """own(text, *flags) -> the arguments of a sweep of that file on a tiny model."""
    def write(text, *flags):
        (tmp_path / "my_grid.toml").write_text(text)
        return [f"--grid={tmp_path / 'my_grid.toml'}", f"--model={checkpoint()}", f"--data={chat}",
                f"--out={tmp_path / 'out'}", *flags]
    return write


def test_a_file_has_grids_of_ones_own(own, capsys):
    """By name or all; the file's flags instead of the preset's, and the command line's over both.
    0 is train.py's 0.0, so that its runs are those of the default."""
    assert code_of([*own(OWN), "--dry_run"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("14 runs, 14 to do")
    assert said.err == (
        "warning: fewer than three rates in 1 of 5 arms, so that no best rate can lie between "
        "two that are worse, and nothing will be judged; add rates or --bracket\n")
    settings, common = sweep.parse_sweep(["schedules", *own(OWN, "--eval_steps=3")])
    runs = list(planned(settings, common).values())
    assert {(c.max_steps, c.eval_steps, c.eval_samples) for c in runs} == {(6, 3, 0)}
    assert [(c.schedule, c.weight_decay, c.lr) for c in runs[3:7]] == [
        ("constant", 0.1, 1e-3), ("constant", 0.1, 1e-2), ("constant", 0.1, 5e-2),
        ("cosine", 0.0, 1e-3)]
    assert {type(c.weight_decay) for c in runs} == {float}
    assert sweep.describe_arm(runs[-1]) == (
        "lora all-linear r=4 schedule=cosine weight_decay=0.1")
    assert code_of(["schedules", *own(OWN), "--dry_run"]) == 0
    assert capsys.readouterr().err == ""
    assert code_of([*own(OWN), "--dry_run", "--bracket"]) == 0
    assert capsys.readouterr().err == ""
    _, common = sweep.parse_sweep(own(OWN.replace("flags", "[[other]]\nrank = 3\n#"),
                                      "--preset=nano"))
    assert (common.max_steps, common.eval_samples) == (40, 128)


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no arm; each begins with a line like [[my_grid]]"),
    ("flags = '--lr 1'", "has no arm"),
    ("a = [", "grid.toml: Invalid value (at end of document); texts are in quotation marks, "),
    ("[[a]]\nrank = 3\nrank = 4", "Cannot overwrite a value (at end of document); python sweep.py"),
    ("rank = 3", "rank = 3 is no arm: settings stand below a line like [[my_grid]]"),
    ("a = []\n[[b]]\nrank = 3", "a = [] is no arm"),
    ("rank = [3]", "rank = [3] is no arm: settings stand below"),
    ("[a]\nrank = 3", "[a] needs two brackets on each side: [[a]]"),
    ("[[a]]\nflags = '--lr 1'", "flags in a grid: they stand at the top of the file"),
    ("flags = 3\n[[a]]\nrank = 3", "flags 3: it must be a text"),
    ("[[all]]\nrank = 3", "`all` means all grids of the file"),
    ("[[a]]\nranks = 3", "ranks in a grid is no setting of train.py; write rank"),
    ("[[a]]\nlearning_rate = 3", "learning_rate in a grid is no setting of train.py; write lr"),
    ("[[a]]\nfoo = 3", "foo in a grid is no setting of train.py; python train.py --help lists"),
    ("[[a]]\nrank = 'x'", "a grid: rank 'x': it must be a whole number"),
    ("[[a]]\nrank = true", "a grid: rank true: it must be a whole number"),
    ("[[a]]\nlr = 1.0\nrank = [4, 1.5]", "a grid: rank 1.5: it must be a whole number"),
    ("[[a]]\nrank = []", "rank = [] in a grid: an arm without a value has no runs"),
    ("[[a]]\nrank = 0", "a grid: rank 0: it must be a whole number, at least 1"),
    ("[[a]]\nrank = [4, 8]",
     "an arm in a grid has no learning rates ({'rank': 4}); give it some, as lr = [1e-4"),
    ("[[a]]\nschedule = 'sawtooth'",
     "a grid: schedule 'sawtooth': it must be constant or cosine or linear"),
    ("[[a]]\nmax_length = 64", "max_length in a grid: it is the same in all runs: give it as a"),
    ("[[a]]\nseed = [1, 2]", "seed in a grid: it comes from --seed and --seeds"),
    ("[[a]]\nmatch = 3", "a grid: match 3: it must be a table"),
    ("[[a]]\nmatch = {mlp = 'x'}", "a grid: match['mlp'] 'x': it must be a list"),
    ("[[a]]\nmatch = {mlp = []}", "mlp = [] in a grid: an arm without a value has no runs"),
    ("[[a]]\nmatch = {mlp = [0]}", "match['mlp'][0] 0: it must be a whole number, at least 1"),
    ("flags = '--model \"x'\n[[a]]\nrank = 3", "grid.toml: No closing quotation"),
    ("flags = '--rnak 3'\n[[a]]\nlr = 1.0", "unrecognized arguments: --rnak; for --rnak write")])
def test_a_file_that_is_no_grid(own, tmp_path, capsys, text, message):
    code = code_of(own(text))
    assert message in one_line(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_names_are_those_that_are_there(own, tmp_path, capsys):
    for argv, message in (
            (["no", *own(OWN)], f"{tmp_path}/my_grid.toml: grid 'no': it must be schedules or "
                                "full or all\n"),
            (["--dry_run"], "say which sweep: finding1, finding2"),
            (["finding9", "--dry_run"], "the preset nano: grid 'finding9': it must be finding1 or"),
            ([*own(OWN), "--rank=3"], "--rank: the grid of all sets it, in "),
            (["full", "--grid=/nope"], "/ has no nope; is it the right folder"),
            (["--sedes=3", "all"], "unrecognized arguments: --sedes=3; for --sedes write --seeds"),
            (["--lora_r=3", "all"], "; for --lora_r write --rank (python sweep.py --help")):
        assert message in one_line(code_of(argv), capsys.readouterr().err)


def test_the_settings_of_a_run_are_kept_and_arms_are_told_apart_by_them(own, tmp_path, capsys):
    """A grid that plot.py used to refuse. An old folder gets the files from the same command."""
    out = tmp_path / "out"
    argv = ["schedules", *own(OWN.replace("1e-3, ", "")), "--jobs=1"]
    assert code_of(argv) == 0
    usual, = (sweeps.usual for sweeps in select_sweeps(read_runs(out)))
    assert sorted(map(str, usual.arms)) == [
        f"r = 4, schedule = {schedule}, weight_decay = {decay}"
        for schedule in ("constant", "cosine") for decay in ("0", "0.1")]
    for path in out.glob("*.csv"):
        content = read_json(path.with_suffix(".json"))
        hashed = hashlib.sha256(json.dumps(content["settings"], sort_keys=True).encode())
        assert content["run"] == hashed.hexdigest()[:10] == path.stem
    before = contents(out)
    for path in out.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="alike in every column"):
        select_sweeps(read_runs(out))
    assert code_of([*argv, "--dry_run"]) == 0 and not list(out.glob("*.json"))
    assert code_of(argv) == 0 and contents(out) == before


# ----- the runs -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "rank", "lr"), [("lora", 4, 5e-2), ("full", 64, 1e-2)])
def test_rows_are_those_of_train_py(whole, checkpoint, chat, tmp_path, method, rank, lr):
    """To the last bit and under the same name, although the sweep made other runs before."""
    flags = [f for f in FLAGS if "preset" not in f]
    argv = command(checkpoint(), chat, tmp_path, method=method, rank=rank, lr=lr)
    train.main([*argv, *flags])
    run = read_json(tmp_path / "run.json")["run"]
    assert whole[run] == without_clock(read_rows(tmp_path / "log.csv"))
    assert len(whole) == N and {len(rows) for rows in whole.values()} == {4}


def test_files_have_the_columns_of_the_contract_and_nothing_else_is_left(
        tiny_grid, argv, tmp_path, monkeypatch, capsys):
    """The base is read once, progress is shown, and a second sweep has nothing to do.

    A dry run then knows the time that more seeds would take.
    """
    loaded, real = [], Transformer.from_pretrained
    monkeypatch.setattr(
        Transformer, "from_pretrained", lambda *args: loaded.append(args) or real(*args))
    assert code_of(argv(tmp_path)) == 0 and len(loaded) == 1

    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{tmp_path} has {N} of {N} runs: python plot.py {tmp_path}"
    assert [line.split(":")[0] for line in lines] == [f"run {i + 1} of {N}" for i in range(N)]
    finals = [read_rows(path)[-1] for path in tmp_path.glob("*.csv")]
    lowest = min(row["test_nll"] for row in finals)
    assert f"best so far {lowest:.4f} (" in lines[-1] and lines[-1].endswith("; 0 s left")

    assert suffixes(tmp_path) == {".csv", ".json"}
    with open(next(tmp_path.glob("*.csv")), newline="") as f:
        reader = csv.DictReader(f)
        rows = list(reader)
    assert reader.fieldnames == list(COLUMNS)
    assert [row["step"] for row in rows] == ["0", "2", "4", "6"]
    assert {row["peak_gb"] for row in rows} == {""}

    before = contents(tmp_path)
    assert code_of(argv(tmp_path)) == 0 and len(loaded) == 1 and contents(tmp_path) == before
    assert code_of(argv(tmp_path, "--dry_run", "--seeds=3", "--jobs=1")) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    seconds = sum(row["seconds"] for row in finals)
    assert last == f"{3 * N} runs, {2 * N} to do, about {2 * seconds:.0f} s of training"


def test_a_run_that_diverges_is_stopped_and_recorded_and_the_others_go_on(
        tiny_grid, argv, tmp_path, monkeypatch, capsys):
    tiny_grid([{"method": "full", "lr": [50.0, 1e-3]}, {"method": "lora", "rank": 4, "lr": 1e-2}])
    rates, real = [], train.optimizer_step
    monkeypatch.setattr(
        train, "optimizer_step", lambda *args, **how: rates.append(args[5]) or real(*args, **how))
    assert code_of(argv(tmp_path)) == 0
    assert rates.count(50.0) == 2               # up to the next evaluation, not further
    out = capsys.readouterr().out
    assert "run 2 of 3: full lr=50 batch=16 steps=6 seed=42: diverged; " in out
    assert out.count("diverged") == 1 and "nan" not in out
    lost, = (rows for rows in rows_of(tmp_path).values() if rows[0]["lr"] == 50)
    assert [row["step"] for row in lost] == [0, 2, 4, 6]
    assert [row["tokens"] for row in lost[1:]] == [lost[1]["tokens"]] * 3
    assert not lost[1]["test_nll"] <= 2 * lost[0]["test_nll"]
    assert all(math.isnan(row["test_nll"]) for row in lost[2:])
    assert sum(not diverged(rows) for rows in rows_of(tmp_path).values()) == 2


def test_a_run_that_fails_is_reported_and_the_others_go_on(
        tiny_grid, argv, tmp_path, capsys, whole):
    tiny_grid([{"method": "lora", "targets": "nonsense", "rank": 3, "lr": 1e-2}, *GRID])
    assert code_of(argv(tmp_path)) == 1
    out, error = capsys.readouterr()
    run = "lora nonsense r=3 lr=0.01 batch=16 steps=6 seed=42"
    assert error.startswith(f"failed: {run}: UserError: target 'nonsense'")
    assert error.count("\n") == 1 and "FAILED lora nonsense" in out
    assert rows_of(tmp_path) == whole


@pytest.mark.parametrize(("flags", "message"), [
    (["--seeds=0"], "--seeds 0: it must be a whole number, at least 1"),
    (["--jobs=0"], "--jobs 0: it must be a whole number, at least 1"),
    (["--rank=3"], "--rank: the grid of finding1 sets it, at the top of sweep.py; leave it out"),
    (["--lr=1"], "--lr: the grid of finding1 sets it"),
    (["--epochs=1"], "unrecognized arguments: --epochs=1 (python sweep.py"),
    (["--keep=best"], "unrecognized arguments: --keep=best (python sweep.py"),
    (["--data=nowhere"], "--data nowhere: no folder"),
    (["--model=nowhere"], "nowhere: no such folder"),
    (["--micro_bs=0"], "--micro_bs 0: it must be a whole number, at least 1"),
    (["--wramup_ratio=1"], "unrecognized arguments: --wramup_ratio=1"),
    (["--device=banana"], "--device banana: torch cannot use"),
    (["--preset=mine"], "invalid choice: 'mine'")])
def test_settings_that_cannot_be_meant(tiny_grid, argv, tmp_path, capsys, flags, message):
    code = code_of(argv(tmp_path / "out", *flags))
    assert message in one_line(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_flags_of_train_py_go_for_all_runs(tiny_grid, argv):
    settings, common = sweep.parse_sweep(
        argv("out", "--max_steps=7", "--dtype=bfloat16", "--seed=5", "--grad_clip=0.5"))
    settings.seeds = 2
    runs = planned(settings, common).values()
    assert {(c.max_steps, c.dtype, c.grad_clip) for c in runs} == {(7, "bfloat16", 0.5)}
    assert {c.seed for c in runs} == {5, 6}
    assert sweep.parse_sweep(["all"])[0].preset == "nano"
    assert sweep.parse_sweep(["all", "--model=Qwen/Qwen3-0.6B"])[0].preset == "tutorial"
    _, common = sweep.parse_sweep(["all", "--preset=tutorial", "--no-gradient_checkpointing"])
    assert not common.gradient_checkpointing


# ----- one run, one process -----------------------------------------------------------------------

def test_a_run_that_failed_is_left_by_other_ranks_and_tried_again_by_the_next_sweep(
        runs_and_data, tmp_path, monkeypatch, whole):
    runs, data = runs_and_data
    bad = list(runs)[2]                     # of rank 0's share
    tried, real = [], sweep.make_runs

    def make_or_fail(configs, *rest):
        config, = configs
        tried.append(config.run)
        if config.run == bad:
            raise UserError("a GPU that is full")
        return real(configs, *rest)
    monkeypatch.setattr(sweep, "make_runs", make_or_fail)
    for rank in (0, 1):
        failed = make_missing(runs, data, 1, tmp_path, rank=rank, world=2)
        assert failed == {bad: "UserError: a GPU that is full"}
    assert sorted(tried) == sorted(whole)
    assert (tmp_path / f"{bad}.failed").read_text() == "UserError: a GPU that is full"
    monkeypatch.setattr(sweep, "make_runs", real)
    assert make_missing(runs, data, 1, tmp_path) == {}
    assert rows_of(tmp_path) == whole and suffixes(tmp_path) == {".csv", ".json"}


def test_a_run_that_another_makes_is_waited_for(tiny_grid, argv, tmp_path, whole, monkeypatch):
    """The claim is refused twice; then the run is there, or free."""
    refusals = dict.fromkeys(list(whole)[:2], 2)
    real = sweep.attempt_runs

    def refuse_or_attempt(configs, **rest):
        config, = configs
        if refusals.get(config.run, 0):
            refusals[config.run] -= 1
            return [BUSY]
        return real(configs, **rest)
    monkeypatch.setattr(sweep, "attempt_runs", refuse_or_attempt)
    assert code_of(argv(tmp_path)) == 0 and set(refusals.values()) == {0}
    assert rows_of(tmp_path) == whole


def test_a_run_whose_claim_another_holds_is_busy(runs_and_data, tmp_path, whole):
    runs, data = runs_and_data
    config = next(iter(runs.values()))
    path = tmp_path / f"{config.run}.csv"
    with sweep.claim_file(path) as ours:
        assert ours and sweep.attempt_runs([config], data, tmp_path) == [BUSY]
    assert not path.exists()
    assert sweep.attempt_runs([config], data, tmp_path) == [""]
    assert rows_of(tmp_path) == {config.run: whole[config.run]}


@pytest.mark.parametrize(("error", "message", "traceback"), [
    (RuntimeError("no such thing"), "RuntimeError: no such thing", True),
    (OSError(22, "broken"), "OSError: [Errno 22] broken", True),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), f"out of memory: {LESS_MEMORY}", False)])
def test_whatever_fails_is_the_runs_own(
        tiny_grid, argv, tmp_path, monkeypatch, capsys, error, message, traceback):
    """A fault of the program has a traceback, for those who can fix it; the sweep goes on."""
    calls = []

    def write_or_fail(path, rows):
        calls.append(path)
        if len(calls) == 2:
            raise error
        write_rows(path, rows)
    monkeypatch.setattr(sweep, "write_rows", write_or_fail)
    assert code_of(argv(tmp_path)) == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == traceback
    assert said.splitlines()[-1].endswith(f": {message}")
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".csv"] * (N - 1) + [".failed"] + [".json"] * N


def test_an_interrupted_sweep_says_how_to_go_on(tiny_grid, argv, tmp_path, monkeypatch, capsys):
    def press_ctrl_c(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "optimizer_step", press_ctrl_c)
    assert code_of(argv(tmp_path)) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on\n"


# ----- many processes -----------------------------------------------------------------------------

def begun(tmp_path):
    return sorted((tmp_path / "begun").read_text().split())


def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(argv, tmp_path, script, whole):
    """It is killed in the middle of its third run."""
    out = tmp_path / "out"
    assert ends(start(script(), *argv(out), KILL_AT="15"))[0] == -signal.SIGKILL
    made = {path: content for path, content in contents(out).items() if path.suffix == ".csv"}
    assert len(made) == 2 and len(list(out.glob("*.lock"))) == 1
    missing = set(whole) - {path.stem for path in made}
    run = missing.pop()
    for kind in ("csv", "json"):
        (out / f"{run}.{kind}.1.part").write_text("half a fi")

    assert ends(start(script(), *argv(out)))[0] == 0
    assert rows_of(out) == whole and suffixes(out) == {".csv", ".json"}
    assert all(path.read_bytes() == content for path, content in made.items())
    # only the run that was under way is made again
    assert len(begun(tmp_path)) == N + 1 and set(begun(tmp_path)) == set(whole)


def test_two_sweeps_in_one_folder_make_each_run_once(argv, tmp_path, script, whole):
    path = script()
    both = [start(path, *argv(tmp_path / "out")) for _ in range(2)]
    results = [ends(process) for process in both]
    assert [result[0] for result in results] == [0, 0], results
    assert begun(tmp_path) == sorted(whole) and rows_of(tmp_path / "out") == whole
    # each ends when all runs are there
    assert all(f"has {N} of {N} runs: " in out for _, out, _ in results)


def test_jobs_share_the_runs_and_one_that_dies_takes_none_along(argv, tmp_path, script, whole):
    """The process that the system killed is replaced, and its run reported.

    The data are read once, by the parent.
    """
    path = script([GRID[0], {"method": "lora", "rank": 4, "lr": 0.666}, *GRID[1:]])
    code, _, error = ends(start(path, *argv(tmp_path / "out", "--jobs=2")))
    assert code == 1 and "its process died (exit code -9)" in error and "Traceback" not in error
    assert error.startswith("failed: lora all-linear r=4 lr=0.666")
    assert rows_of(tmp_path / "out") == whole and len(begun(tmp_path)) == N + 1
    assert (tmp_path / "begun.read").read_text().split() == ["train.jsonl", "test.jsonl"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_ends_the_sweep(argv, tmp_path, script, jobs):
    """No other run would find room either: each would be trained and thrown away."""
    path = script([{"method": "lora", "rank": 3, "lr": 0.777}, *GRID])
    code, _, error = ends(start(path, *argv(tmp_path / "out", f"--jobs={jobs}")))
    message = "No space left on device; make room; the same command goes on"
    assert message in one_line(code, error)
    assert len(begun(tmp_path)) < N and not list((tmp_path / "out").glob("*.failed"))


def test_ranks_of_torchrun_share_the_runs(argv, tmp_path, script, whole):
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2")
    code, _, error = ends(start(*torchrun, script(), *argv(tmp_path / "out")))
    assert code == 0, error
    assert begun(tmp_path) == sorted(whole) and rows_of(tmp_path / "out") == whole


def test_each_rank_begins_with_its_own_share(runs_and_data, tmp_path, monkeypatch):
    runs, data = runs_and_data
    order = []
    monkeypatch.setattr(
        sweep, "attempt_runs", lambda configs, **_: order.append(configs[0].run) or ["no"])
    failed = make_missing(runs, data, 1, tmp_path, rank=1, world=3)
    others = [run for i, run in enumerate(runs) if i % 3 != 1]
    assert order == [*list(runs)[1::3], *others] and list(failed) == order


def test_each_run_is_in_a_share_when_a_rank_begins_late(runs_and_data, tmp_path, monkeypatch):
    """What failed yesterday is tried again by its rank.

    Also when another rank has made a run of its own by then: shares are of all runs.
    """
    runs, data = runs_and_data
    for run in runs:
        (tmp_path / f"{run}.failed").write_text("of yesterday")
    monkeypatch.setattr(sweep, "attempt_runs", lambda configs, **_: ["no"])
    make_missing(runs, data, 1, tmp_path, rank=0, world=2)
    write_run(tmp_path, runs[list(runs)[0]])
    make_missing(runs, data, 1, tmp_path, rank=1, world=2)
    assert not list(tmp_path.glob("*.failed"))


@pytest.mark.parametrize(("missing", "processes", "threads"), [(1, 1, 16), (2, 2, 8), (6, 4, 4)])
def test_no_more_processes_than_runs_are_missing(
        runs_and_data, tmp_path, monkeypatch, missing, processes, threads):
    """Four are asked for, and there are 16 threads: the last run gets them all."""
    runs, data = runs_and_data
    for name in list(runs)[missing:]:
        write_run(tmp_path, runs[name])
    seen = []

    def note_processes(jobs, work, processes, prepare):
        seen.append(processes)
        prepare(0)
        return []
    monkeypatch.setattr(sweep, "do_jobs", note_processes)
    monkeypatch.setattr(sweep.tqdm, "set_lock", lambda _: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    make_missing(runs, data, 4, tmp_path)
    assert seen == [processes, threads]


# ----- GPUs: two that only note who touches them --------------------------------------------------

@pytest.fixture
def touched(monkeypatch):
    """Pretend that there are two GPUs -> the list of those that are touched.

    That is, on which a tensor is made, or which become the current one.
    """
    touched, current, zeros = [], [0], torch.zeros

    def note_gpu(*size, device="cpu"):
        device = torch.device(device)
        if device.type == "cuda":
            touched.append(current[0] if device.index is None else device.index)
        return zeros(*size)

    def set_device(gpu):
        current[0] = gpu
        touched.append(gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability",
                        lambda gpu: (7, 5) if str(gpu) == "cuda:1" else (9, 0))
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch, "zeros", note_gpu)
    return touched


@pytest.mark.parametrize(("rank", "device", "gpus"), [
    (0, "auto", {0}), (1, "auto", {1}), (3, "auto", {1}), (1, "cuda", {1}), (0, "cuda:1", {1}),
    (1, "cpu", set())])
def test_each_rank_of_torchrun_touches_its_own_gpu_alone(
        tiny_grid, argv, tmp_path, monkeypatch, touched, rank, device, gpus):
    """A context on GPU 0 takes some 0.5 GB, and each of eight ranks used to open one there."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert code_of(argv(tmp_path, "--dry_run", f"--device={device}")) == 0
    assert set(touched) == gpus


def test_each_gpu_has_the_dtype_that_it_computes_in(touched):
    """Here the second is a T4, which has no bfloat16."""
    assert choose_device("auto", "auto") == ("cuda", "bfloat16")
    assert choose_device("cuda:1", "auto") == ("cuda:1", "float16")
    assert choose_device("cuda:1", "float32") == ("cuda:1", "float32")


def test_compiling_for_a_gpu_needs_triton(touched, monkeypatch):
    monkeypatch.setattr("settings.find_spec", lambda name: None)
    settled(parse(["--compile", "--device=cpu"]), 1)
    with pytest.raises(UserError, match="--compile on a GPU needs Triton"):
        settled(parse(["--compile", "--device=cuda:1"]), 1)


def test_a_task_of_srun_touches_the_gpu_of_its_place_on_its_node(
        tiny_grid, argv, tmp_path, monkeypatch, touched):
    """Tasks dealt out in turn to two nodes: number 2 of 4 is the second of the first node."""
    for name, value in (("PROCID", 2), ("LOCALID", 1), ("STEP_NUM_TASKS", 4), ("NTASKS", 4)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert code_of(argv(tmp_path, "--dry_run", "--device=cuda")) == 0
    assert set(touched) == {1}


@pytest.mark.parametrize(("rank", "device", "gpus"), [
    (0, "cuda", [0, 1, 0]), (1, "cuda", [1, 0, 1]), (0, "cuda:1", [1, 1, 1]),
    (0, "cpu", [None, None, None])])
def test_each_process_of_a_sweep_touches_its_own_gpu_alone(
        runs_and_data, tmp_path, monkeypatch, touched, rank, device, gpus):
    """Three processes on two GPUs; a rank's processes go on where those of the rank before end."""
    runs, data = runs_and_data
    for config in runs.values():
        config.device = device
    monkeypatch.setenv("LOCAL_RANK", str(rank))

    found = []

    def use_gpu_in_each(jobs, work, processes, prepare):
        for number in range(processes):
            touched.clear()
            prepare(number)
            torch.zeros(1, device=device)
            found.append(set(touched))
        return []
    monkeypatch.setattr(sweep, "do_jobs", use_gpu_in_each)
    monkeypatch.setattr(sweep.tqdm, "set_lock", lambda _: None)
    make_missing(runs, data, 3, tmp_path, rank=rank, world=2)
    assert found == [set() if gpu is None else {gpu} for gpu in gpus]


# ----- which runs are next: sweeps whose runs are not trained but looked up -----------------------

LADDER = {3e-5: 1.5, 1e-4: 1.2, 3e-4: 1.0, 1e-3: 1.4, 3e-3: 9.0}       # of full; LoRA: 10 times it
BRACKET = [{"method": "full", "lr": [1e-3, 3e-3]},                      # its best is below
           {"method": "lora", "rank": [2, 4], "lr": [1e-3, 3e-3, 1e-2]}]
FAKE = """
import os, sys
sys.path.insert(0, {repo!r})
import plan
import sweep
from plumbing.records import make_row
sweep.PRESETS["nano"]["finding1"] = {grid!r}
made = 0

def look_up(configs, data):
    global made
    config, = configs
    made += 1
    if made == int(os.environ.get("KILL_AT", 0)):
        os.kill(os.getpid(), 9)
    with open({log!r}, "a") as f:
        f.write(config.run + "\\n")
    lr = config.lr if config.method == "full" else config.lr / 10
    if config.seed == 44:               # this seed wants a rate three times as high
        lr /= 3
    ladder = {ladder!r}
    nll = ladder[min(ladder, key=lambda known: abs(known - lr))]
    blank = dict.fromkeys(("rank", "alpha", "targets"), "") if config.method == "full" else {{}}
    return [[make_row(config, **blank, step=step, tokens=step, train_nll="", seconds=1.0,
                      test_nll=nll if step == config.max_steps else 2.0, peak_gb="", trainable=1)
             for step in config.evaluated_steps()]]

sweep.make_runs = look_up
if __name__ == "__main__":
    sweep.main(sys.argv[1:])
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE.format(repo=str(REPO), grid=BRACKET, log=str(tmp_path / "begun"),
                                ladder=LADDER))
    return path


def rates_by_arm(out):
    """{(method, rank, seed): rates}, of the files in `out`."""
    rates = {}
    for path in Path(out).glob("*.csv"):
        last = read_rows(path)[-1]
        key = last["method"], last["rank"] or 0, last["seed"]
        rates.setdefault(key, []).append(last["lr"])
    return {key: sorted(lrs) for key, lrs in rates.items()}


def expected_rates(seeds):
    """What LADDER calls for, worked out by hand.

    full: 1e-3 is best of 1e-3 and 3e-3, so below it come 3.33e-4 (best), 1.11e-4. LoRA: 3e-3 is
    best and has both neighbours. Seed 43 is like 42. Seed 44 finds 1e-3 and 1e-2 best. For full its
    neighbours 3.33e-4 and 3e-3 are there or come; for LoRA 3e-2 is missing, the grid's next.
    """
    rates = {("full", 0, 42): [1.11e-4, 3.33e-4, 1e-3, 3e-3],
             ("full", 0, 43): [1.11e-4, 3.33e-4, 1e-3],
             ("full", 0, 44): [1.11e-4, 3.33e-4, 1e-3, 3e-3]}
    for r in (2, 4):
        rates |= {("lora", r, 42): [1e-3, 3e-3, 1e-2], ("lora", r, 43): [1e-3, 3e-3, 1e-2],
                  ("lora", r, 44): [1e-3, 3e-3, 1e-2, 3e-2]}
    return {key: lrs for key, lrs in rates.items() if key[2] in seeds}


def test_bracket_goes_on_until_the_best_rate_lies_between_worse_ones(argv, tmp_path, fake):
    out = tmp_path / "out"
    code, said, error = ends(start(fake, *argv(out, "--bracket", "--jobs=1")))
    assert code == 0, error
    assert rates_by_arm(out) == expected_rates([42])
    assert "has 10 of 10 runs: " in said.splitlines()[-1]

    # what is known is not made again, and a plain sweep knows nothing of the extension
    assert ends(start(fake, *argv(out, "--bracket", "--jobs=1")))[0] == 0
    assert len(begun(tmp_path)) == 10
    _, said, _ = ends(start(fake, *argv(out, "--dry_run")))
    assert said.splitlines()[-1].startswith("8 runs, 0 to do")


@pytest.mark.slow
def test_further_seeds_try_only_rates_near_the_best(argv, tmp_path, fake):
    """Seed 44's own best is one rate higher. A dry run says what is next, and why."""
    out, flags = tmp_path / "out", ("--near_best", "--seeds=3", "--jobs=1")
    _, said, _ = ends(start(fake, *argv(out, *flags, "--dry_run")))
    assert "full batch=16 seed=42: 2 rates to try" in said
    assert "full batch=16 seed=43: waits for the first seed's best rate" in said
    assert ends(start(fake, *argv(out)))[0] == 0
    _, said, _ = ends(start(fake, *argv(out, *flags, "--dry_run")))
    assert ("full batch=16 seed=42: best 0.001 (1.4000) of 2 rates, at their end; next 0.000333"
            in said)
    assert "r=2 batch=16 seed=43: 3 rates to try" in said

    code, _, error = ends(start(fake, *argv(out, *flags)))
    assert code == 0, error
    assert rates_by_arm(out) == expected_rates([42, 43, 44])
    _, said, _ = ends(start(fake, *argv(out, *flags, "--dry_run")))
    assert "full batch=16 seed=44: best 0.001 (1.0000) of 4 rates\n" in said
    assert said.splitlines()[-1] == "31 runs so far; every rate at every seed would be 36"


@pytest.mark.parametrize("kill_at", [pytest.param(n, marks=[pytest.mark.slow] * (n in (1, 9)))
                                     for n in (1, 5, 9, 20)])
def test_a_bracket_that_was_killed_goes_on_and_ends_the_same(argv, tmp_path, fake, kill_at):
    command = [fake, *argv(tmp_path / "out", "--near_best", "--seeds=3", "--jobs=1")]
    assert ends(start(*command, KILL_AT=str(kill_at)))[0] == -signal.SIGKILL
    assert ends(start(*command))[0] == 0
    assert rates_by_arm(tmp_path / "out") == expected_rates([42, 43, 44])
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == 31


@pytest.mark.parametrize("launch", [(), ("-m", "torch.distributed.run", "--nproc_per_node=2")])
def test_processes_that_share_a_folder_plan_alike(argv, tmp_path, fake, launch):
    """Two sweeps, or two ranks of torchrun. Each run is made once."""
    command = [*launch, fake, *argv(tmp_path / "out", "--near_best", "--seeds=3", "--jobs=1")]
    processes = [start(*command) for _ in range(1 if launch else 2)]
    results = [ends(process) for process in processes]
    assert [result[0] for result in results] == [0] * len(processes), results
    assert rates_by_arm(tmp_path / "out") == expected_rates([42, 43, 44])
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == 31


@pytest.mark.parametrize("content", [
    "", ",".join(COLUMNS) + "\n", "a,b\n1,2\n", {"step": 3}, {"test_nll": ""}, {"lr": "x"}])
def test_a_damaged_file_is_named(runs_and_data, tmp_path, content):
    """Empty, a header alone, other columns, cut off, a hole, a word for a number."""
    runs, _ = runs_and_data
    config = next(iter(runs.values()))
    path = tmp_path / f"{config.run}.csv"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write_run(tmp_path, config, **content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        sweep.Board(lambda finals: runs, tmp_path)


def test_a_failure_of_a_run_that_is_planned_later_is_tried_again(argv, tmp_path, fake):
    """3.33e-4 is not in the plan before the grid is done."""
    out = tmp_path / "out"
    out.mkdir()
    assert ends(start(fake, *argv(out, "--bracket", "--jobs=1")))[0] == 0
    later, = (path for path in out.glob("*.csv") if read_rows(path)[-1]["lr"] == 3.33e-4)
    later.unlink()
    for path in out.glob("*.csv"):
        path.unlink()
    later.with_suffix(".failed").write_text("of yesterday")
    code, _, error = ends(start(fake, *argv(out, "--bracket", "--jobs=1")))
    assert code == 0, error
    assert rates_by_arm(out) == expected_rates([42])


def test_near_best_needs_further_seeds(tiny_grid, argv, tmp_path, capsys):
    code = code_of(argv(tmp_path / "out", "--near_best"))
    assert "--near_best says which rates further seeds try; add --seeds 3" in one_line(
        code, capsys.readouterr().err)


def test_the_base_is_evaluated_once_per_process(tiny_grid, argv, tmp_path, monkeypatch, whole):
    """And full fine-tuning's base once, which can be under autocast. The rows are the same."""
    calls, real = [], train.mean_nll
    monkeypatch.setattr(train, "mean_nll", lambda *args: calls.append(1) or real(*args))
    assert code_of(argv(tmp_path)) == 0
    assert len(calls) == 2 + 3 * N          # three evaluations of each run after step 0
    assert rows_of(tmp_path) == whole
