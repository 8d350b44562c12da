"""Training on several processes: the numbers of one, whatever the shares; and how it goes wrong."""
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from processes_runs import free_port, start_rank, torchrun, train_all
from runs import command, contents, numbers, one_line, press_ctrl_c, write_chat
from safetensors.torch import load_file, save_file

import dataset
import train
from plumbing import processes
from plumbing.errors import UserError
from plumbing.files import read_json


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """18 samples of very different lengths: batches of 8, 8 and 2, so that some share is empty."""
    return write_chat(tmp_path_factory.mktemp("uneven"), n_train=18)


def weights(out):
    return load_file(next(out.glob("*model.safetensors")))


SETTINGS = {
    "lora": {}, "full": {"method": "full", "lr": 2e-3}, "qlora": {"method": "qlora"},
    "adalora": {"method": "adalora", "max_steps": 10}, "rslora": {"method": "rslora"},
    "loraplus": {"method": "loraplus"}, "mora": {"method": "mora"}, "bitfit": {"method": "bitfit"},
    "adapter": {"method": "adapter"}, "dropout": {"dropout": 0.3},
    "lora in 8 bits": {"optimizer": "adamw8bit"},
    "the best of full": {"method": "full", "lr": 0.1, "keep": "best"},
    "full, untied": {"method": "full", "lr": 2e-3, "model": "untied"}}
CHECKPOINTING = ("full", "lora", "qlora")
# what the several processes make: (name in SETTINGS, flags)
WHOLE = [(name, ()) for name in ("lora", "full", "qlora", "adalora", "dropout")]
SHARDS = [(name, ("--fsdp",)) for name in SETTINGS]
SHARDS += [(name, ("--fsdp", "--gradient_checkpointing")) for name in CHECKPOINTING]
# in every run of the suite
FEW = [("dropout", ()), ("full", ("--fsdp",)), ("qlora", ("--fsdp",))]


@pytest.fixture(scope="module")
def argv_of(checkpoint, uneven):
    """argv_of(name, out, *flags) -> the flags of a run of SETTINGS."""
    def make(name, out, *flags, **more):
        how = {"micro_bs": 2, "warmup_ratio": 0.2, "schedule": "cosine"} | SETTINGS[name] | more
        tied = how.pop("model", "tied") == "tied"
        data = how.pop("data", uneven)
        return command(checkpoint(tie_word_embeddings=tied), data, out, *flags, **how)
    return make


@pytest.fixture(scope="module")
def alone(argv_of, tmp_path_factory):
    """alone(name) -> the folder of the run on one process, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("alone") / "run"
            train.main(argv_of(name, made[name]))
        return made[name]
    return make


def folder_of(name, flags):
    return " ".join((name, *flags)).replace(" ", "_")


@pytest.fixture(scope="module")
def together(argv_of, tmp_path_factory):
    """together(n, runs) -> the folder with all `runs`, made by n processes, and what they printed.

    The first run is made twice: it is finished the second time.
    """
    made = {}

    def make(n, runs):
        if (n, len(runs)) not in made:
            folder = tmp_path_factory.mktemp("together")
            flags = [argv_of(name, folder / folder_of(name, flags), *flags)
                     for name, flags in [*runs, runs[0]]]
            code, out, err = train_all(n, flags, folder)
            assert code == 0, err
            made[n, len(runs)] = folder, out
        return made[n, len(runs)]
    return make


def assert_same_run(out, reference):
    """The same rows and the same weights, to rounding."""
    expected, got = numbers(reference), numbers(out)
    assert len(got) == len(expected) > 3
    for row, other in zip(expected, got):
        for column, value in row.items():
            if isinstance(value, float):
                assert other[column] == pytest.approx(value, rel=1e-5), column
            else:
                assert other[column] == value
    ours, theirs = weights(reference), weights(out)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=2e-5)
    assert read_json(out / "run.json")["finished"] and not (out / "state").exists()


def test_two_processes_give_the_numbers_of_one(alone, together):
    """Whole models and shards. A step has four micro-batches, or one at the epoch's end: then one
    process has nothing. And one process speaks, also of a run that is finished."""
    folder, out = together(2, FEW)
    for name, flags in FEW:
        assert_same_run(folder / folder_of(name, flags), alone(name))
    assert out.count("the first sample") == len(FEW)
    assert out.count("question ") == 1          # whole models are asked, shards not
    assert out.count("holds this run, finished") == 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name, flags", WHOLE + SHARDS)
def test_several_processes_give_the_numbers_of_one(alone, together, n, name, flags):
    """With three, no weight of 32 rows divides evenly."""
    folder, _ = together(n, WHOLE + SHARDS)
    assert_same_run(folder / folder_of(name, flags), alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["full", "lora", "qlora"])
def test_shards_in_16_bits(argv_of, tmp_path, name, dtype):
    """Near one process's numbers: what is gathered in 16 bits is what autocast would round."""
    runs = [argv_of(name, tmp_path / how, *flags, dtype=dtype)
            for how, flags in (("whole", ()), ("shards", ("--fsdp",)))]
    code, _, err = train_all(2, runs, tmp_path)
    assert code == 0, err
    for row, other in zip(numbers(tmp_path / "whole"), numbers(tmp_path / "shards"), strict=True):
        assert other["test_nll"] == pytest.approx(row["test_nll"], rel=2e-3)


# ----- stopping and going on ----------------------------------------------------------------------

def train_until_rows(process, out, rows):
    """Wait until log.csv has so many rows."""
    log = out / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > rows):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name, first, second", [
    ("lora", (2, ()), (1, ())), ("lora", (1, ()), (3, ())),
    ("full", (2, ("--fsdp",)), (1, ())), ("full", (1, ()), (3, ("--fsdp",))),
    ("full", (3, ("--fsdp",)), (2, ("--fsdp",))),
    ("qlora", (2, ("--fsdp",)), (3, ()))])
def test_a_run_goes_on_on_another_number_of_processes(
        argv_of, name, first, second, tmp_path):
    """One of its processes is told to stop after the second evaluation or later: all do, after the
    same step, and the first has saved before torchrun ends the others."""
    out = tmp_path / "run"
    (n, flags), (then, other_flags) = first, second
    process = torchrun(n, argv_of(name, out, *flags, max_steps=100), wait=False)
    train_until_rows(process, out, 2)
    os.kill(children_of(process)[-1], signal.SIGINT)
    assert end_of(process)[0] != 0
    code, shown, err = torchrun(then, argv_of(name, out, *other_flags, "--resume", max_steps=100))
    assert code == 0 and "resumed after step" in shown, err
    train.main(argv_of(name, tmp_path / "whole", max_steps=100))
    for row, other in zip(numbers(tmp_path / "whole"), numbers(out), strict=True):
        assert other["test_nll"] == pytest.approx(row["test_nll"], rel=1e-4)


# ----- what goes wrong: all processes end, each with one line -------------------------------------

def end_of(process, seconds=60):
    """Its exit code and its stderr, within `seconds`."""
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err


KILLS = int(os.environ.get("KILLS", 2))     # of each case, as in test_faults.py; ten seconds each


@pytest.mark.slow
@pytest.mark.parametrize("flags, name", [((), "lora"), (("--fsdp",), "full")])
def test_killed_at_any_moment_it_goes_on(argv_of, tmp_path, name, flags):
    """KILLS kills of one of two processes, at random moments of the start, the steps or the end.

    All end. What they print is no traceback of ours, but one line, unless torchrun is faster. What
    was written until then are the numbers of a run that nothing stopped. Whenever a run is finished
    in spite of it, another begins.
    """
    train.main(argv_of(name, tmp_path / "whole", max_steps=60))
    draw, kills, runs, usual = random.Random(0), 0, 0, None
    while kills < KILLS:
        out = tmp_path / f"run{runs}"
        argv = argv_of(name, out, "--resume", *flags, max_steps=60)
        process = torchrun(2, argv, wait=False)
        while len(victims := children_of(process)) < 2 and process.poll() is None:
            time.sleep(0.05)
        begun = time.monotonic()
        try:
            process.wait(None if usual is None else draw.uniform(0, usual))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):       # it has just ended by itself
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills += 1
        usual = usual or time.monotonic() - begun       # the first one, which nobody kills
        code, err = end_of(process)
        assert not any(is_running(pid) for pid in victims)
        assert not any("train.py" in line for line in err.splitlines() if "File " in line), err
        ours = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(ours) < 2 and all("another process of this run has ended" in x for x in ours)
        rows = numbers(out) if (out / "log.csv").exists() else []
        for row, other in zip(numbers(tmp_path / "whole"), rows):
            assert other["test_nll"] == pytest.approx(row["test_nll"], rel=1e-4)
        runs += code == 0
    code, _, err = torchrun(2, argv)
    assert code == 0, err
    assert_same_run(out, tmp_path / "whole")


def children_of(process) -> list[int]:
    """The processes that torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], text=True,
                           capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


def is_running(pid) -> bool:
    """Whether the process exists, and is more than an entry (Z) that its parent has not read."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], text=True, capture_output=True)
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_says_in_one_line_that_the_other_is_gone(argv_of, tmp_path, victim):
    """Without torchrun, which would end it, too."""
    out, port = tmp_path / "run", free_port()
    argv = argv_of("lora", out, max_steps=300)
    processes = [start_rank(rank, 2, port, argv) for rank in range(2)]
    train_until_rows(processes[0], out, 2)
    processes[victim].kill()
    line = one_line(*end_of(processes[1 - victim]))
    assert "another process of this run has ended" in line and "own line says why" in line
    processes[victim].communicate()


def train_by_hand(argv, n=2):
    """Make a run on n processes -> their exit codes."""
    port = free_port()
    processes = [start_rank(rank, n, port, argv) for rank in range(n)]
    return [end_of(process, 600)[0] for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("flags, name", [((), "lora"), (("--fsdp",), "full")])
def test_a_full_disk_on_the_first_process_ends_all(argv_of, tmp_path, name, flags):
    """Its files may not grow beyond what the first state takes: both say why they end."""
    resource = pytest.importorskip("resource")
    out, port = tmp_path / "run", free_port()
    argv = argv_of(name, out, *flags)

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    first = start_rank(0, 2, port, argv, preexec_fn=fill_disk)
    second = start_rank(1, 2, port, argv)
    (code, err), (other_code, other_err) = end_of(first), end_of(second)
    assert "File too large" in one_line(code, err)
    assert "another process of this run has ended" in one_line(other_code, other_err)
    train.main(argv_of(name, tmp_path / "whole"))
    assert train_by_hand([*argv, "--resume"]) == [0, 0]
    assert_same_run(out, tmp_path / "whole")


def test_a_port_that_is_taken_ends_in_one_line(argv_of, tmp_path):
    """Of a process that is told, as torchrun tells it, to open a port that another one has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        process = start_rank(0, 2, s.getsockname()[1], argv_of("lora", tmp_path / "run"))
        code, err = end_of(process)
    assert "the processes cannot meet" in one_line(code, err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("difference", [
    "data", *(pytest.param(what, marks=pytest.mark.slow) for what in (
        "settings", "shards", "model files", "model files of shards"))])
def test_processes_with_other_files_or_settings_are_told(
        argv_of, checkpoint, uneven, tmp_path, difference):
    """Two processes by hand. The second one's model and data have the names of the first one's,
    elsewhere, and one weight, or one sample, is another."""
    port, out = free_port(), tmp_path / "run"
    argv = [*argv_of("lora", out, data="data"), "--model=model"]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(uneven, folder / "data")
        shutil.copytree(checkpoint(), folder / "model")
    if difference == "data":
        write_chat(folders[1] / "data", n_train=17)
    elif "model files" in difference:
        file = folders[1] / "model/model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
        save_file(tensors, file)
    if "of shards" in difference:
        argv.append("--fsdp")
    other = {"settings": [*argv, "--micro_bs=4"], "shards": [*argv, "--fsdp"]}
    started = [start_rank(rank, 2, port, flags, cwd=folder) for rank, (flags, folder) in
               enumerate(zip((argv, other.get(difference, argv)), folders))]
    what = {"shards": "--fsdp", "settings": "--micro_bs"}.get(
        difference, difference.removesuffix(" of shards"))
    for process in started:
        assert f"processes 0 and 1 have different {what}" in one_line(*end_of(process))
    assert not out.exists()


@pytest.mark.slow
def test_a_state_that_only_the_first_process_sees(argv_of, tmp_path, monkeypatch):
    """Two machines and a folder of each one's own: both end, and the state is unharmed."""
    folders = [tmp_path / "a", tmp_path / "b"]
    argv, port = argv_of("lora", "run"), free_port()
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    press_ctrl_c(monkeypatch, step=2)
    with pytest.raises(SystemExit):
        train.main(argv)
    before = contents(folders[0])
    started = [start_rank(rank, 2, port, [*argv, "--resume"], cwd=folder)
               for rank, folder in enumerate(folders)]
    first, second = (one_line(*end_of(process)) for process in started)
    assert "another process of this run has ended" in first
    assert "run/state: no such folder" in second
    assert contents(folders[0]) == before and not contents(folders[1])


@pytest.mark.parametrize("gone, e", [
    (True, RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]")),
    (True, RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")),
    (True, dist.DistBackendError("NCCL error: remote process exited or there was a network error")),
    (True, dist.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed.")),
    (False, RuntimeError("[enforce fail at /gloo/allreduce.cc:40] tensors of different shapes")),
    (False, RuntimeError("[/gloo/unbound_buffer.cc:78] Timed out waiting 8000ms for recv")),
    (False, dist.DistBackendError("NCCL error: invalid usage")),
    (False, dist.DistBackendError("Detected mismatch between collectives on ranks"))])
def test_only_a_lost_process_is_called_one(monkeypatch, gone, e):
    """Any other fault of a collective keeps its traceback."""
    monkeypatch.setattr(processes, "world", lambda: 2)
    with pytest.raises(UserError if gone else type(e)) as raised:
        with processes.lost_process_in_one_line():
            raise e
    assert gone == ("another process of this run has ended" in str(raised.value))


def test_one_process_of_a_machine_prepares_the_data(uneven, tmp_path, monkeypatch):
    """The other one waits."""
    folder = tmp_path / "data" / "new"
    folder.mkdir(parents=True)
    (folder / "prepare.py").write_text(f"""
import shutil, time
print("once", file=open({str(tmp_path / "log")!r}, "a"))
time.sleep(0.3)
for split in ("train", "test"):
    shutil.copy({str(uneven)!r} + f"/{{split}}.jsonl", {str(folder)!r})
""")
    monkeypatch.setattr(dataset, "ROOT", tmp_path)
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(dataset.find_dataset, ["new", "new"])] == [folder, folder]
    assert (tmp_path / "log").read_text() == "once\n"


def test_with_one_process_nothing_is_communicated():
    p = torch.nn.Parameter(torch.ones(3))
    processes.sum_gradients([p])
    assert p.grad is None and processes.take_share([1, 2, 3], 0) == [1, 2, 3]
    assert processes.sum_over_processes(2.5, 3) == [2.5, 3] and processes.world() == 1


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--device cuda:1 is one GPU, and these are 2 processes"):
        processes.join_processes("cuda:1")
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT do not say"):
        processes.join_processes("cpu")


def test_shares_are_dealt_to_and_fro(monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.take_share([9, 8, 7, 6, 5, 4, 3], 0))
    assert shares == [[9, 4, 3], [8, 5, 0], [7, 6, 0]]


def test_gradients_are_sent_in_buckets(monkeypatch):
    monkeypatch.setattr(processes, "BUCKET", 10)
    tensors = [torch.zeros(n) for n in (5, 4, 3, 20, 1)]
    sizes = [[t.numel() for t in bucket] for bucket in processes.buckets_of(tensors)]
    assert sizes == [[5, 4], [3], [20], [1]]
