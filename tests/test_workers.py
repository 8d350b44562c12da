"""Claims that one process holds at a time, and a pool in which a process may die."""
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path

import pytest

from plumbing import workers

TESTS = Path(__file__).parent
REPO = TESTS.parent         # conftest has it too, but every process of a pool would load its torch

# ----- claims -------------------------------------------------------------------------------------

HOLD_A_CLAIM = """
import sys, time
from pathlib import Path
from plumbing.workers import claim_file
with claim_file(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_claim_is_held_by_one_and_falls_with_its_process(tmp_path):
    path = tmp_path / "run.csv"
    with workers.claim_file(path) as first, workers.claim_file(path) as second:
        assert (first, second) == (True, False)
    with workers.claim_file(path) as again:
        assert again
    assert list(tmp_path.iterdir()) == []

    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_CLAIM, path], cwd=REPO, text=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    with workers.claim_file(path) as ours:
        assert not ours
    process.kill()
    process.communicate()
    assert (tmp_path / "run.csv.lock").exists()
    with workers.claim_file(path) as ours:
        assert ours


def test_a_lock_on_a_file_that_is_gone_claims_nothing(tmp_path, monkeypatch):
    """Between opening and locking the file, its owner may delete it, and another make a new one."""
    real = workers.fcntl.flock

    def lock_late(f, how):
        (tmp_path / "run.csv.lock").unlink()
        real(f, how)
    monkeypatch.setattr(workers.fcntl, "flock", lock_late)
    with workers.claim_file(tmp_path / "run.csv") as ours:
        assert not ours


def test_without_locks_every_claim_is_granted(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")
    monkeypatch.setattr(workers.fcntl, "flock", no_locks)           # some network folders
    with workers.claim_file(tmp_path / "run.csv") as ours:
        assert ours
    monkeypatch.setattr(workers, "fcntl", None)                     # Windows
    with workers.claim_file(tmp_path / "run.csv") as ours:
        assert ours


# ----- jobs: what they do is plain arithmetic here, or dying --------------------------------------

def prepare(folder: Path, number: int):
    (folder / f"process{number}").touch()


def work(job, folder: Path):
    """The square of a number; it is busy twice before. Other jobs die, fail or never end."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "fail":
        raise OSError(errno.ENOSPC, "No space left on device")
    if job == "sleep":
        (folder / f"{os.getpid()}.pid").touch()
        time.sleep(600)
    calls = folder / f"job{job}"
    with open(calls, "a") as f:
        f.write(".")
    return job ** 2 if calls.stat().st_size > 2 else workers.BUSY


def do_jobs(jobs, processes, folder):
    """Do all `jobs`. Those that are busy go to the end of the list."""
    todo = deque(jobs)
    answers = workers.do_jobs(lambda: todo.popleft() if todo else None,
                              partial(work, folder=folder), processes, partial(prepare, folder))
    for job, answer in answers:
        if answer == workers.BUSY:
            todo.append(job)
        else:
            yield job, answer


@pytest.mark.parametrize("processes", [1, 2])
def test_an_answer_may_call_for_new_jobs(tmp_path, processes):
    """Also the answer of the last job, when all other processes wait."""
    jobs, squares = [1], {}
    answers = workers.do_jobs(lambda: jobs.pop() if jobs else None, partial(work, folder=tmp_path),
                              processes, partial(prepare, tmp_path))
    for job, answer in answers:
        if answer == workers.BUSY:
            jobs.append(job)
            continue
        squares[job] = answer
        if job == 1:
            jobs += [4, 5]
    assert squares == {1: 1, 4: 16, 5: 25}


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_answered_and_the_busy_ones_are_tried_again(tmp_path, processes):
    answers = list(do_jobs(range(5), processes, tmp_path))
    assert sorted(answers) == [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]
    assert [(tmp_path / f"job{job}").stat().st_size for job in range(5)] == [3] * 5
    prepared = sorted(path.name for path in tmp_path.glob("process*"))
    assert prepared == (["process0", "process1"] if processes == 2 else [])
    assert not multiprocessing.active_children()


def test_a_process_that_dies_costs_its_job_and_is_replaced(tmp_path):
    """Here both of them die, so that nobody but their successors can do the rest."""
    died, rest = [], {}
    for job, answer in do_jobs(["die", "die", 1, 2, 3], 2, tmp_path):
        if job == "die":
            died.append(answer)
        else:
            rest[job] = answer
    assert died == ["its process died (exit code -9)"] * 2 and rest == {1: 1, 2: 4, 3: 9}


def test_a_process_that_is_killed_while_it_waits_is_replaced(tmp_path, monkeypatch):
    """Two are killed before their first job; two others take their places."""
    process, hired = multiprocessing.get_context("spawn").Process, []
    real = process.start

    def start_and_kill(self):
        real(self)
        hired.append(self)
        if len(hired) <= 2:
            self.kill()
            self.join()
    monkeypatch.setattr(process, "start", start_and_kill)
    assert dict(do_jobs([1, 2, 3], 2, tmp_path)) == {1: 1, 2: 4, 3: 9}
    assert len(hired) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_job_raises_ends_the_work(tmp_path, processes):
    with pytest.raises(OSError, match="No space left"):
        list(do_jobs(["fail", "sleep"][:processes], processes, tmp_path))
    assert not multiprocessing.active_children()


START_A_POOL = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
if __name__ == "__mp_main__" and sys.argv[4:] == ["slow"]:
    Path(sys.argv[3], "importing").touch()
    time.sleep(600)                     # as an import of torch on a slow disk
import test_workers
if __name__ == "__main__":
    list(test_workers.do_jobs(["sleep", "sleep"], 3, Path(sys.argv[3])))
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_the_parent_ends_the_children(tmp_path, ending):
    """Both those in the middle of a job and the one that waits. No process says anything of it."""
    script = tmp_path / "script.py"
    script.write_text(START_A_POOL)
    command = [sys.executable, script, REPO, TESTS, tmp_path]
    parent = subprocess.Popen(command, text=True, stderr=subprocess.PIPE, start_new_session=True)
    while len(list(tmp_path.glob("*.pid"))) < 2 or not (tmp_path / "process0").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    if ending == signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, signal.SIGINT)        # as the terminal's Ctrl-C: to all of them
    _, error = parent.communicate(timeout=60)       # ends when the last child has closed stderr
    assert error.count("Traceback") == (ending == signal.SIGINT)        # the parent's own


def test_ctrl_c_is_not_for_workers_that_import_yet(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(START_A_POOL)
    command = [sys.executable, script, REPO, TESTS, tmp_path, "slow"]
    parent = subprocess.Popen(command, text=True, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "importing").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)                     # the parent has started the others, too
    os.killpg(parent.pid, signal.SIGINT)
    _, error = parent.communicate(timeout=60)
    assert error.count("Traceback") == 1 and "__mp_main__" not in error     # the parent's own


SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.mark.parametrize("told, place", [
    ({}, (0, 1, 0)),
    ({"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1}, (5, 8, 1)),
    # task 5 of `srun --ntasks=8`, on two nodes
    ({"SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_NTASKS": 8, "SLURM_STEP_NUM_TASKS": 8},
     (5, 8, 1)),
    # torchrun with four processes in task 1 of `srun --ntasks=2`
    ({"SLURM_PROCID": 1, "SLURM_LOCALID": 0, "SLURM_NTASKS": 2, "SLURM_STEP_NUM_TASKS": 2,
      "RANK": 6, "LOCAL_RANK": 2, "WORLD_SIZE": 8}, (6, 8, 2)),
    # a batch script with --ntasks=8, and a shell of `salloc --ntasks=8`: one process runs there
    ({"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NTASKS": 8}, (0, 1, 0)),
    ({"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NTASKS": 8, "SLURM_STEP_NUM_TASKS": 1},
     (0, 1, 0))])
def test_torchrun_or_srun_says_which_process_this_is(monkeypatch, told, place):
    for name in (*SLURM, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    assert (*workers.rank_and_world(), workers.local_rank()) == place
