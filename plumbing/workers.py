"""Many processes, one list of jobs: which process takes which job, and what happens when one dies.

    claim_file      makes sure that no two processes make the same file, also on many machines
    do_jobs         works through a list of jobs, here or in several processes
    rank_and_world  which of torchrun's processes this is, and of how many

Nothing here knows what a job is. The caller hands in the function that does the work. No torch.
"""
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

BUSY = "busy"       # the answer to a job that another process has claimed: it is tried again


def rank_and_world() -> tuple[int, int]:
    """torchrun starts `world` processes and tells each its rank, 0 to world - 1; else (0, 1)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ----- claims -------------------------------------------------------------------------------------
# A claim is a lock on a file next to the one to be made. The kernel drops the lock when its process
# ends, however it ends, so a killed process blocks nobody.

@contextlib.contextmanager
def claim_file(path: Path) -> Iterator[bool]:
    """Yield whether this process may make `path`. If so, no other may until the block ends.

    Without locks (Windows, some network folders) every claim is granted, so that two processes may
    make the same file. This loses time, but no data if the file is renamed into its place.
    """
    if fcntl is None:
        yield True
        return
    lock = path.with_suffix(".lock")
    with open(lock, "a") as f:
        held = lock_at_once(f) and is_open_as(f, lock)
        try:
            yield held
        finally:
            if held:
                lock.unlink(missing_ok=True)


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

def do_jobs(jobs: Iterable, work: Callable, processes: int, prepare: Callable) -> Iterator[tuple]:
    """Yield (job, work(job)) for each of `jobs`, in the order in which they are finished.

    One process means this one. Several are started; each calls prepare(its number: 0, 1 ...) once,
    before its first job. Whatever work(job) raises is raised here. A process that dies (the system
    kills one that takes too much memory) costs its job, and is replaced.
    """
    todo = deque(jobs)
    if processes == 1:
        while todo:
            job = todo.popleft()
            answer = work(job)
            if answer == BUSY:
                todo.append(job)        # again, when the others have been tried
            else:
                yield job, answer
        return
    with Pool(processes, work, prepare) as pool:
        while todo or pool.at_work:
            while todo and pool.idle:
                pool.send(todo.popleft())
            for job, answer in pool.receive():
                if isinstance(answer, Exception):
                    raise answer
                if answer == BUSY:
                    todo.append(job)
                else:
                    yield job, answer


class Worker(NamedTuple):
    number: int
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection       # jobs go out, answers come back


class Pool:
    """Processes that work on one job each at a time. At the end of the `with` block they end too.

    concurrent.futures has such a pool, but there one process that dies takes all jobs along.
    """

    def __init__(self, size: int, work: Callable, prepare: Callable):
        self.work, self.prepare = work, prepare
        self.idle = [self.hire(number) for number in range(size)]
        self.at_work = {}           # {connection: (worker, its job)}

    def hire(self, number: int) -> Worker:
        context = multiprocessing.get_context("spawn")      # a fork would share CUDA and threads
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve_jobs, args=(theirs, number, self.work, self.prepare), daemon=True)
        process.start()
        theirs.close()              # now the process has the only other end: its death ends `ours`
        return Worker(number, process, ours)

    def send(self, job):
        """Give `job` to an idle process, or to a new one in the place of one that has died."""
        worker = self.idle.pop()
        while True:
            try:
                worker.connection.send(job)
                break
            except ConnectionError:         # killed in its last job, or while it waited
                worker = self.hire(worker.number)
        self.at_work[worker.connection] = worker, job

    def receive(self) -> Iterator[tuple]:
        """Wait until a process has finished or died; yield (job, answer) for each that has."""
        for connection in multiprocessing.connection.wait(list(self.at_work)):
            worker, job = self.at_work.pop(connection)
            try:
                answer = connection.recv()
            except (EOFError, ConnectionError):
                worker.process.join()
                answer = f"its process died (exit code {worker.process.exitcode})"
            self.idle.append(worker)
            yield job, answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in [*self.idle, *(worker for worker, _ in self.at_work.values())]:
            worker.process.terminate()
            worker.process.join()


def serve_jobs(connection, number: int, work: Callable, prepare: Callable):
    """What a process of the pool does, from its start until its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the parent, which ends us
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
