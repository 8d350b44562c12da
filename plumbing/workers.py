"""Many processes, many jobs: which process takes which job, and what happens when one dies.

    claim_file      makes sure that no two processes make the same file, also on many machines
    do_jobs         does one job after another, here or in several processes
    rank_and_world  which of torchrun's or srun's processes this is, and of how many

Nothing here knows what a job is. The caller hands in the function that does the work. No torch.
"""
import contextlib
import functools
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from plumbing.errors import UserError
from plumbing.fields import check, number_of, whole
from plumbing.files import make_folder

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

BUSY = "busy"       # the answer to a job that another process has claimed: to be tried again


def rank_and_world() -> tuple[int, int]:
    """Which of `world` processes this is, 0 to world - 1, as torchrun or srun says; else (0, 1).

    torchrun first, because it may itself be a task of srun's. The number of tasks is the one that
    srun alone sets: SLURM_NTASKS is also set in a batch script and in a shell of salloc's, where
    one process runs.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            n = read_variable(world, 1)
            return read_variable(rank, 0, n - 1), n
    return 0, 1


def local_rank() -> int:
    """Which of its machine's processes this is: the number of its own GPU.

    RANK alone is set by hand, on one machine.
    """
    for name in ("LOCAL_RANK", "RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return read_variable(name)
    return 0


def read_variable(name: str, *ends: int) -> int:
    """A whole number of the environment. Raises UserError if it is none, or not between `ends`."""
    return check(number_of(os.environ[name]), whole(*ends), "the environment", name)


# ----- claims -------------------------------------------------------------------------------------
# A claim is a lock on a file next to the one to be made. The kernel drops the lock when its process
# ends, however it ends, so a killed process blocks nobody.

@contextlib.contextmanager
def claim_file(path: Path) -> Iterator[bool]:
    """Yield whether this process may make `path`. If so, no other may until the block ends.

    Without locks (Windows, some network folders, a folder in which no lock file may be made) every
    claim is granted, so that two processes may make the same file. This loses time, but no data if
    the file is renamed into its place.
    """
    lock = Path(f"{path.resolve()}.lock")
    if fcntl is None or not os.access(lock.parent, os.W_OK):
        yield True
        return
    with contextlib.suppress(FileNotFoundError):
        there = lock.lstat()            # one look: another process may delete its lock just now
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise UserError(f"{lock} is in the way: a lock is an empty file, and this is something "
                            "else; move it, or give another --out")
    try:
        f = open(lock, "a")
    except FileNotFoundError:           # below /proc, for instance
        raise UserError(f"{lock.parent}: no file can be made here; give another folder") from None
    with f:
        held = lock_at_once(f) and is_open_as(f, lock)
        try:
            yield held
        finally:
            if held:
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def claim_or_stop(path: Path):
    """Let no other process make `path`, a file or a folder, until the block ends.

    Raises UserError if one is making it now.
    """
    make_folder(path.parent)
    with claim_file(path) as ours:
        if not ours:
            raise UserError(f"another process is making {path}; wait for it, or give another --out")
        yield


@contextlib.contextmanager
def in_turn(path: Path):
    """Let one process after another run the block. path: a file that they all have.

    Without locks all run it at once.
    """
    with open(path) as f:
        if fcntl is not None:
            with contextlib.suppress(OSError):          # no locks on this file system
                fcntl.flock(f, fcntl.LOCK_EX)
        yield


def lock_at_once(f) -> bool:
    """Lock the open file `f` without waiting. False if another process holds the lock."""
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:         # no locks on this file system
        pass
    return True


def is_open_as(f, path: Path) -> bool:
    """Whether `path` is still the file that was opened as `f`.

    The owner of a claim deletes its lock file at the end. If this happens between our opening and
    our locking, we hold a lock on a deleted file, which keeps nobody else away.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(f.fileno()))
    except FileNotFoundError:
        return False


# ----- jobs ---------------------------------------------------------------------------------------

def do_jobs(next_job: Callable, work: Callable, processes: int, prepare: Callable
            ) -> Iterator[tuple]:
    """Yield (job, work(job)) for each job, in the order in which they are finished.

    next_job() returns a job, or None if there is none at the moment. It is called for each idle
    process, and again after each answer, because an answer may bring new jobs. All is done when it
    returns None and no process is working.

    One process means this one, and `prepare` is not called. Several are started; each calls
    prepare(its number: 0, 1 ...) once, before its first job. Whatever work(job) raises is raised
    here. A process that dies (the system kills one that takes too much memory) costs its job, and
    is replaced.
    """
    if processes == 1:
        return do_here(next_job, work)
    return do_in_processes(next_job, processes, functools.partial(start_worker, work, prepare))


def do_here(next_job, work):
    while (job := next_job()) is not None:
        yield job, work(job)


def do_in_processes(next_job, processes: int, start):
    """Give each idle process the next job; yield (job, answer).

    concurrent.futures has such a pool, but there one process that dies takes all jobs along.
    """
    idle = [start(number) for number in range(processes)]
    at_work = {}                        # {connection: (worker, its job)}
    try:
        while True:
            while idle and (job := next_job()) is not None:
                worker = send_job(idle.pop(), job, start)
                at_work[worker.connection] = worker, job
            if not at_work:
                return
            for connection in wait(list(at_work)):
                worker, job = at_work.pop(connection)
                idle.append(worker)
                answer = receive_answer(worker)
                if isinstance(answer, Exception):
                    raise answer
                yield job, answer
    finally:
        for worker in [*idle, *(worker for worker, _ in at_work.values())]:
            worker.process.terminate()
            worker.process.join()


class Worker(NamedTuple):
    number: int
    process: multiprocessing.process.BaseProcess
    connection: Connection              # jobs go out, answers come back


def start_worker(work, prepare, number: int) -> Worker:
    context = multiprocessing.get_context("spawn")      # a fork would share CUDA and threads
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_jobs, args=(theirs, work, prepare, number), daemon=True)
    # Ctrl-C is for the parent, which ends its workers. They inherit that from here, because they
    # import torch before they come to serve_jobs, which says it again for Windows
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, before)
    theirs.close()              # now the process has the only other end: its death ends `ours`
    return Worker(number, process, ours)


def send_job(worker: Worker, job, start) -> Worker:
    """Give `job` to the worker, or to a new one in its place if it has died -> who has it."""
    while True:
        try:
            worker.connection.send(job)
            return worker
        except ConnectionError:         # killed in its last job, or while it waited
            worker = start(worker.number)


def receive_answer(worker: Worker):
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        return f"its process died (exit code {worker.process.exitcode})"


def serve_jobs(connection, work, prepare, number: int):
    """What a worker does, from its start until its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # see start_worker
    threading.Thread(target=end_with_parent, daemon=True).start()
    prepare(number)
    with contextlib.suppress(EOFError, ConnectionError):        # the parent has ended
        while True:
            job = connection.recv()
            try:
                answer = work(job)
            except Exception as e:
                answer = e
            connection.send(answer)


def end_with_parent():
    """End this process as soon as its parent does, also in the middle of a job."""
    multiprocessing.parent_process().join()
    os._exit(1)
