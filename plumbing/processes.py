"""Several processes that train one model: what torchrun started, over torch.distributed.

    torchrun --nproc_per_node=2 train.py --rank 64 --lr 2e-4

Each has the whole model and a share of each step's micro-batches. With one process, everything here
does nothing. (Shards of a model instead of the whole: plumbing/shards.py.)
"""
import contextlib
import datetime
import hashlib
import os

import torch
import torch.distributed as dist

from plumbing.device import take_gpu
from plumbing.errors import UserError
from plumbing.workers import local_rank, rank_and_world

BUCKET = 2 ** 24        # numbers that are sent together: 64 MB of float32
TIME_TO_MEET = datetime.timedelta(minutes=10)       # some may read torch from a slow network disk
# All wait while the first process writes what has been trained: for full fine-tuning of 72B that is
# 870 GB. A process that is gone is noticed at once by torchrun.
TIME_TO_WRITE = datetime.timedelta(hours=2)


def join_processes(device: str):
    """Meet the other processes, if several were started. device: that of the command line.

    On GPUs process i of a machine takes GPU i: "cuda" means that one from here on. Call it before
    anything touches a GPU. Raises UserError if they cannot meet.
    """
    number, n = rank_and_world()
    if n == 1:
        return
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():    # torchrun sets them, not srun
        raise UserError(f"this is one of {n} tasks, and MASTER_ADDR and MASTER_PORT do not say "
                        "where they meet; start torchrun in each node's only task, as "
                        "examples/train.sbatch does, or set them")
    backend, gpu = "gloo", None
    if device.startswith("cuda:"):
        raise UserError(f"--device {device} is one GPU, and these are {n} processes; --device cuda "
                        "gives each its own")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise UserError(f"more processes than GPUs; give --nproc_per_node "
                            f"{torch.cuda.device_count()}")
        take_gpu(local_rank())
        backend, gpu = "nccl", torch.device("cuda", torch.cuda.current_device())
    try:
        store, *_ = next(dist.rendezvous("env://", number, n, timeout=TIME_TO_MEET))
        # With device_id NCCL connects here already, and torch need not guess which GPU is ours.
        dist.init_process_group(backend, store=store, rank=number, world_size=n, device_id=gpu,
                                timeout=TIME_TO_WRITE)
    except (RuntimeError, ValueError) as e:         # a port that is taken, a machine out of reach
        raise UserError(f"the processes cannot meet ({str(e).splitlines()[0]}); is the port of "
                        "torchrun free, and can all machines reach it?") from None


def leave_processes():
    """Part from the others, at a normal end: NCCL waits for what is under way."""
    if dist.is_initialized():
        dist.destroy_process_group()


# What gloo, NCCL and torch's store say of a process that is gone. Whatever else they complain of,
# tensors of different shapes for instance, is a fault of the program.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited",
        "Connection was likely closed")


@contextlib.contextmanager
def lost_process_in_one_line():
    """Raise UserError if another process is gone. Its own line, or the system's, says why.

    With NCCL there is seldom an exception, because the host does not wait for what it has sent to
    the GPU. Then torch's watchdog, or torchrun before it, ends this process.
    """
    try:
        yield
    except RuntimeError as e:
        if world() == 1 or not any(words in str(e) for words in GONE):
            raise
        raise UserError("another process of this run has ended, so this one ends, too; that one's "
                        "own line says why") from None
    finally:
        # After an error gloo's threads must end before Python does. NCCL could wait for a process
        # that is gone; torch aborts it when Python ends, with a warning.
        if dist.is_initialized() and dist.get_backend() == "gloo":
            leave_processes()


def rank() -> int:
    """Which of the processes this is: 0, 1 ..."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train this model."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all():
    if world() > 1:
        dist.barrier()


def first_says(flag: bool) -> bool:
    """The first process's `flag`, in all of them. They wait for it.

    Whatever is decided by looking at a folder is decided so: two machines may see other files, and
    processes that go other ways wait for each other at different places.
    """
    return sum_over_processes(flag if rank() == 0 else 0)[0] == 1


def take_share(items: list, blank) -> list:
    """This process's part. Sorted items, longest first, are dealt back and forth.

    Of the lengths 9, 7, 6 and 4 one process gets 9 and 4, the other 7 and 6: 13 each. Dealt in one
    direction they would be 15 and 11, and a step ends when the last process is done.

    All get as many, because a model in shards computes only together: the last round is filled up
    with `blank`.
    """
    items = [*items, *[blank] * (-len(items) % world())]
    mine = []
    for i, start in enumerate(range(0, len(items), world())):
        cards = items[start:start + world()]
        mine.append(cards[::-1][rank()] if i % 2 else cards[rank()])
    return mine


def sum_over_processes(*numbers: float) -> list[float]:
    """Each number, summed over all processes."""
    if world() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=communication_device())
    dist.all_reduce(sums)
    return sums.tolist()


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor. Without loading what defines these."""
    return hasattr(tensor, "full_tensor")


def sum_gradients(parameters: list[torch.nn.Parameter]):
    """Make each p.grad the sum over all processes. A shard's is that already: see plumbing/shards.

    This comes after the last backward pass. DDP sends during it, for which it needs hooks in the
    model. LoRA sends little. Full fine-tuning of 7B sends 53 GB, and nothing is computed meanwhile.
    """
    if world() == 1:
        return
    for grads in buckets_of([p.grad for p in parameters if not is_shard(p)]):
        if len(grads) == 1:                 # an embedding's would take 2 GB twice
            dist.all_reduce(grads[0])
            continue
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(part.view_as(grad))


def buckets_of(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """`tensors` in groups of at most BUCKET numbers, or of one tensor."""
    buckets, size = [], 0
    for tensor in tensors:
        if not buckets or size + tensor.numel() > BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets


@torch.no_grad()
def copy_from_first(tensors: list[torch.Tensor]):
    """Give all processes the first one's values: another processor may have rounded its own.

    A shard is read from the file, so no other process has its values.
    """
    if world() > 1:
        for tensor in tensors:
            if not is_shard(tensor):
                dist.broadcast(tensor, 0)


def refuse_differences(what: str, value):
    """Raise UserError unless `value` is equal in all processes. None: this one does not know it.

    What they exchange is its hash. Objects would be unpickled where they arrive.
    """
    if world() == 1:
        return
    unknown = bytes(32)
    digest = unknown if value is None else hashlib.sha256(repr(value).encode()).digest()
    sent = torch.tensor([*digest], dtype=torch.uint8, device=communication_device())
    received = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(received, sent)
    first, *others = (bytes(tensor.tolist()) for tensor in received)
    for i, other in enumerate(others, 1):
        if other not in (first, unknown):
            raise UserError(f"processes 0 and {i} have different {what}; give all of them the same")


def communication_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
