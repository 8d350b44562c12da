"""Kills at random moments, two processes in one folder, full disks, folders that may not be
written. Afterwards the same command gives the same rows as without."""
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPO
from csv_runs import FULL, FULL_LR, make_grid, write_csv
from runs import command, numbers, one_line, start

from plumbing.records import read_rows

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", 3))     # of each case: CI's share; KILLS=84 makes 504
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}


def run(script, *argv, launch=(), before=()):
    """A command as a user has it, in a process group of its own."""
    words = [*before, sys.executable, *launch, REPO / script, *argv]
    return subprocess.Popen([*map(str, words)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def result_of(process):
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def rows_of(folder):
    """Of train.py's run, or of all runs of a sweep, without what the clock says."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        for row in read_rows(path):
            rows.append({key: value for key, value in row.items()
                         if key not in ("seconds", "peak_gb")})
    return rows


# ----- kills --------------------------------------------------------------------------------------

def jobs(model, data, adapter, folder):
    """{name: (script, its arguments, its folder)}; each can be given again after a kill."""
    folder.mkdir(exist_ok=True)
    train = command(model, data, folder / "run", "--resume", max_steps=25, eval_steps=1)
    (folder / "grid.toml").write_text(
        'flags = "--max_steps 3 --eval_steps 1"\n[[g]]\nmethod = "lora"\nrank = 2\n'
        "lr = [1e-3, 1e-2]\n")
    return {
        "train": ("train.py", train, "run"),
        "sweep": ("sweep.py", ["--grid", folder / "grid.toml", "--out", folder / "sweep",
                               f"--model={model}", f"--data={data}"], "sweep"),
        "evaluate": ("evaluate.py", [f"--model={model}", f"--data={data}", "--batch=2",
                                     "--max_new_tokens=8", "--out", folder / "eval/e.jsonl"],
                     "eval"),
        "export": ("export.py", ["--adapter", adapter, "--model", model, "--out",
                                 folder / "merged"], "merged")}


def bytes_of(folder, name):
    """What must be the same: rows, weights, answers."""
    if name in ("run", "sweep"):
        files = {path.name: path.read_bytes() for path in (folder / name).glob("*.safetensors")}
        return rows_of(folder / name), files
    if name == "eval":
        lines = (folder / "eval/e.jsonl").read_text().splitlines()
        return [line.partition(', "seconds"')[0] for line in lines]
    return {path.name: path.read_bytes() for path in (folder / name).iterdir()}


@pytest.fixture(scope="module")
def job_in(checkpoint, chat, tmp_path_factory):
    """job_in(folder, job) -> (script, its arguments, the name of what it makes in `folder`)."""
    adapter = tmp_path_factory.mktemp("faults") / "adapter"
    assert result_of(start(command(checkpoint(), chat, adapter, max_steps=1)))[0] == 0
    return lambda folder, job: jobs(checkpoint(), chat, adapter, folder)[job]


@pytest.fixture(scope="module")
def undisturbed(job_in, tmp_path_factory):
    """undisturbed(job, processes) -> what it makes, and in how many seconds. Made once."""
    made = {}

    def make(job, processes=1):
        if (job, processes) not in made:
            folder, begun = tmp_path_factory.mktemp("undisturbed"), time.perf_counter()
            script, argv, name = job_in(folder, job)
            code, _, error = result_of(run(script, *argv, launch=LAUNCH[processes]))
            assert code == 0, error
            made[job, processes] = bytes_of(folder, name), time.perf_counter() - begun
        return made[job, processes]
    return make


@pytest.mark.parametrize(("job", "processes"), [
    ("train", 1), ("train", 2), ("sweep", 1), ("sweep", 2), ("evaluate", 1), ("export", 1)])
def test_a_kill_at_any_moment_changes_nothing(job_in, undisturbed, tmp_path, job, processes):
    """KILLS kills that found the command running. Whenever it has finished, another job begins."""
    expected, seconds = undisturbed(job, processes)
    draw, kills, begun, code = random.Random(f"{job} {processes}"), 0, 0, 0
    while kills < KILLS or code != 0:
        if code == 0:
            folder, begun = tmp_path / f"killed{begun}", begun + 1
            script, argv, name = job_in(folder, job)
        process = run(script, *argv, launch=LAUNCH[processes])
        if kills < KILLS:
            kill_after(process, draw_moment(draw, seconds), folder)
        code, _, error = result_of(process)
        assert code in (0, -signal.SIGKILL), error
        kills += code != 0
        if job == "export" and (folder / name).exists():
            code = 0                    # killed after its last rename; it makes no folder twice
        if code == 0:
            assert bytes_of(folder, name) == expected
            left = [path.name for path in folder.rglob("*.part")]
            assert not left or job == "export", left    # a folder next to `merged`, renamed
    print(f"{kills} kills, {begun} jobs")


def draw_moment(draw, seconds):
    """Of a command that takes so long: one in four while Python starts, which takes half of it."""
    return seconds * draw.choice((draw.uniform(0.1, 0.6), *[draw.uniform(0.6, 1.1)] * 3))


def kill_after(process, moment, folder):
    """Kill the process and all that it has started, unless it ends before.

    By the folder in their command lines: torchrun's processes are in sessions of their own, and one
    that it has just started waits for it, although it is gone.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=moment)
        return
    while subprocess.run(["pkill", "-KILL", "-f", f"{folder}/"]).returncode == 0:
        time.sleep(0.02)


# ----- pairs --------------------------------------------------------------------------------------

FLAGS = [(), ("--resume",), ("--overwrite",)]
# CI's share: each flag, and another rate. PAIRS=100 goes on with all of them in turn.
FEW = [((), ("--resume",), 5e-3), (("--resume",), ("--overwrite",), 1e-2),
       (("--overwrite",), (), 5e-3)]
ALL = itertools.cycle(itertools.product(FLAGS, FLAGS, (1e-2, 5e-3)))
N_PAIRS = int(os.environ.get("PAIRS", len(FEW)))
PAIRS = list(itertools.islice(itertools.chain(FEW, ALL), N_PAIRS))


@pytest.mark.parametrize("one, two, lr", PAIRS)
def test_two_processes_in_one_folder(checkpoint, chat, tmp_path, one, two, lr):
    """One works. The other says that it does, or that the run is there. All rows are one run's."""
    usual = {"max_steps": 6, "eval_steps": 1}
    expected = {}
    for rate in {1e-2, lr}:
        out = tmp_path / f"alone{rate}"
        assert result_of(start(command(checkpoint(), chat, out, lr=rate, **usual)))[0] == 0
        expected[rate] = numbers(out)
    out = tmp_path / "shared"
    first = start(command(checkpoint(), chat, out, *one, **usual))
    second = start(command(checkpoint(), chat, out, *two, lr=lr, **usual))
    results = [result_of(first), result_of(second)]
    assert 0 in [code for code, *_ in results], results
    for code, shown, error in results:
        if code:
            assert "another process" in one_line(code, error) or "holds" in error
    assert numbers(out) in expected.values()
    settings = read_rows(out / "log.csv")[0]["lr"]
    assert numbers(out) == expected[settings]
    assert not out.with_name("shared.lock").exists() and not (out / "state").exists()


# ----- the machine --------------------------------------------------------------------------------

@pytest.mark.parametrize("n_bytes", [0, 100, 3000, 20_000, 60_000])
@pytest.mark.parametrize("job", ["train", "sweep", "evaluate", "export"])
def test_a_disk_that_is_full_from_some_size_on(job_in, undisturbed, tmp_path, job, n_bytes):
    script, argv, name = job_in(tmp_path / "full", job)
    limited = ("import resource, runpy, sys\n"
               f"resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, -1))\n"
               f"sys.argv = sys.argv[1:]\nsys.path.insert(0, {str(REPO)!r})\n"
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    process = subprocess.run([sys.executable, "-c", limited, REPO / script, *map(str, argv)],
                             capture_output=True, text=True, timeout=600)
    assert "Traceback" not in process.stderr, process.stderr
    if process.returncode:
        assert process.returncode in (1, 2), process.stderr
    code, _, error = result_of(run(script, *argv))
    assert code == 0 or "is not empty" in error, error
    assert bytes_of(tmp_path / "full", name) == undisturbed(job)[0]


def start_obeying(argv):
    """train.py, to which permissions apply. root is usually exempt from them."""
    exempt = os.getuid() == 0
    if exempt and not shutil.which("setpriv"):
        pytest.skip("root needs setpriv, to give up its exemption from permissions")
    obey = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] * exempt
    return run("train.py", *argv, before=obey)


def test_a_folder_that_may_not_be_written(checkpoint, chat, tmp_path):
    """A finished run can be looked at there."""
    folder = tmp_path / "closed"
    argv = command(checkpoint(), chat, folder / "out", max_steps=1)
    assert result_of(start(argv))[0] == 0
    for path in (folder / "out", folder):
        path.chmod(0o555)
    code, shown, error = result_of(start_obeying(argv))
    assert code == 0 and "holds this run, finished" in shown, error
    code, _, error = result_of(start_obeying(
        command(checkpoint(), chat, folder / "new", max_steps=1)))
    assert "Permission denied" in one_line(code, error)


def test_a_permission_that_is_lost_midway(checkpoint, chat, tmp_path):
    def steps(out, *flags):
        return command(checkpoint(), chat, tmp_path / out, *flags, max_steps=30, eval_steps=1)

    folders = tmp_path / "out", tmp_path / "out/state"
    process = start_obeying(steps("out"))
    wait_for_state(process, tmp_path / "out")
    for folder in folders:
        folder.chmod(0o555)
    code, _, error = result_of(process)
    assert "Permission denied" in one_line(code, error)
    for folder in folders:
        folder.chmod(0o755)
    code, _, error = result_of(start_obeying(steps("out", "--resume")))
    assert code == 0, error
    assert result_of(start(steps("whole")))[0] == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")


def wait_for_state(process, out):
    while not (out / "state/state.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_terminal_that_is_closed(checkpoint, chat, tmp_path):
    """SIGHUP ends the run, as it ends other programs. --resume goes on."""
    argv = command(checkpoint(), chat, tmp_path / "out", max_steps=30, eval_steps=1)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)       # as nohup pytest has not
    process = run("train.py", *argv)
    signal.signal(signal.SIGHUP, before)
    wait_for_state(process, tmp_path / "out")
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait() == -signal.SIGHUP
    process.communicate()
    assert result_of(start([*argv, "--resume"]))[0] == 0
    assert result_of(start([*argv[:2], f"--out={tmp_path / 'b'}", *argv[3:]]))[0] == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "b")


def test_nobody_reads_what_is_printed(tmp_path):
    """`2>&1 | head -c 0`, which closes both."""
    write_csv(tmp_path, *make_grid(FULL, FULL_LR, 2e-5, 1.0))
    for end in ("| head -c 0", "2>&1 | head -c 0"):
        done = subprocess.run(f"set -o pipefail; '{sys.executable}' '{REPO}/plot.py' '{tmp_path}' "
                              f"--table {end}", shell=True, executable="/bin/bash",
                              capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, 141) and done.stderr == "", done
