"""Errors that the user can fix, told in one line; Ctrl-C; running out of memory, disk or time.

A command's work runs inside `errors_in_one_line`. A UserError there ends the command with one line
on stderr and exit code 2. Everything else is a fault of the program and keeps its traceback,
because whoever forks the project needs it.
"""
import contextlib
import errno
import signal
import sys
import threading
from typing import NoReturn

from safetensors import SafetensorError

# The machine's answers that only its user can change: a full or broken disk, a folder on another
# machine that is gone, no permission, too many open files, a folder where a file must be. Any other
# OSError, a FileNotFoundError for instance, is a fault of the program unless somebody has made a
# UserError of it.
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MACHINE_ERRORS = DISK_FULL | {
    errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE,
    errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}


class UserError(ValueError):
    """An error that the user can fix. The message says what is wrong and what to do."""


def fail(message, code: int = 2) -> NoReturn:
    """Print one line on stderr and end the process with `code`."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)


@contextlib.contextmanager
def errors_in_one_line(out_of_memory: str = "", no_space: str = "", stopped: str = "stopped"):
    """Turn errors that the user can fix into one line and exit code 2, Ctrl-C into 130.

    out_of_memory, no_space: advice that is added to the line in these two cases.
    stopped: what to print on Ctrl-C if the KeyboardInterrupt itself carries no message.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        print(f"\n{str(e) or stopped}", file=sys.stderr)
        raise SystemExit(130) from None
    except (UserError, OSError, SafetensorError, RuntimeError, MemoryError) as e:
        if is_out_of_memory(e):
            fail(f"out of memory: {out_of_memory}" if out_of_memory else "out of memory")
        if isinstance(e, RuntimeError) and "Symlink loop" not in str(e):    # pathlib's
            raise
        if isinstance(e, OSError) and not is_of_the_machine(e):
            raise
        fail(f"{e}; {no_space}" if no_space and is_disk_full(e) else e)


def is_out_of_memory(e: BaseException) -> bool:
    """torch has one exception for CUDA and plain RuntimeErrors elsewhere; their words are alike."""
    if isinstance(e, RuntimeError):
        return "out of memory" in str(e) or "allocate memory" in str(e)
    return isinstance(e, MemoryError) or isinstance(e, OSError) and e.errno == errno.ENOMEM


def is_of_the_machine(e: BaseException) -> bool:
    return isinstance(e, OSError) and e.errno in MACHINE_ERRORS


def is_disk_full(e: BaseException) -> bool:
    """Also over quota, or larger than a file may be."""
    return isinstance(e, OSError) and e.errno in DISK_FULL


@contextlib.contextmanager
def interruption():
    """Yield a list that the first Ctrl-C makes non-empty, so that a step under way can finish.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """
    asked = []

    def note(*_):
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def time_limit(seconds: float, what: str):
    """Raise UserError if the block computes longer: for a program that came with a stranger's file.

    A signal ends it, which only the main thread can receive, and not on Windows: there is no limit
    elsewhere. What counts is the process's computing time, so a busy machine changes nothing.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return

    def stop(*_):
        raise UserError(f"{what} takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
