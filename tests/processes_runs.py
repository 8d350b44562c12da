"""Start several processes that train one model: with torchrun, or each by hand."""
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist
from conftest import REPO
from torch._C._distributed_c10d import _set_thread_isolation_mode
from torch.testing._internal.distributed import multi_threaded_pg as threads


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(n, argv, wait=True, script=REPO / "train.py", **env):
    """`torchrun --nproc_per_node=N train.py ...` on a port of its own."""
    line = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}",
            f"--master_port={free_port()}", str(script), *map(str, argv)]
    process = subprocess.Popen(line, env=os.environ | env, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    if wait:
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err
    return process


def train_all(n, runs, folder):
    """Make all `runs`, lists of flags, in n processes that are started once."""
    path = folder / f"runs{n}.json"
    path.write_text(json.dumps([list(map(str, flags)) for flags in runs]))
    return torchrun(n, [path], script=REPO / "tests/several_runs.py")


def start_rank(rank, n, port, argv, **how):
    """Process `rank` of n, told by hand what torchrun would tell it; how: of Popen.

    With a `cwd` it is the first process of a machine of its own, whose files are there.
    """
    local = 0 if "cwd" in how else rank
    env = {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(n),
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen([sys.executable, REPO / "train.py", *map(str, argv)], text=True,
                            env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding="utf-8", **how)


def in_threads(n, work):
    """What work() returns in each of n threads, which torch takes for n processes."""
    _set_thread_isolation_mode(True)
    threads._install_threaded_pg()
    store = dist.HashStore()

    def begin(rank):
        try:
            dist.init_process_group("threaded", rank=rank, world_size=n, store=store)
            return work()
        except BaseException as e:
            threads.ProcessLocalGroup.exception_handle(e)       # or the others wait for this one
            raise

    try:
        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(begin, range(n)))
    finally:
        threads.ProcessLocalGroup.reset()
        threads._uninstall_threaded_pg()
        _set_thread_isolation_mode(False)
