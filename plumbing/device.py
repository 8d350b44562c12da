"""Which device and which number format: what this machine has, and the most memory used on it."""
import functools
import sys

import torch

from plumbing.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_device(device: str, dtype: str) -> tuple[str, str]:
    """Replace "auto" by what this machine has. Raises UserError for a device that it has not.

    auto is a GPU if there is one, with bfloat16 if it computes in it, else float16. A CPU computes
    in float32.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):      # no such kind, none here, or torch built without it
        raise UserError(f"--device {device}: torch cannot use such a device on this machine; leave "
                        "the flag out") from None
    if dtype == "auto" and not device.startswith("cuda"):
        dtype = "float32"
    elif dtype == "auto":
        # from Ampere on; asked of this GPU, because a machine may have several kinds
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = "bfloat16" if has_bfloat16 else "float16"
    return device, dtype


@functools.cache
def multiplies_bfloat16() -> str | None:
    """The processor's instructions for products of bfloat16: "amx", "avx512", or "" for none.

    Without them bfloat16 saves memory and costs time: on a processor with AVX2 and no AVX-512 a
    product took 60 times as long as in float32. None is for processors that torch does not describe
    or that were not measured.
    """
    known = getattr(torch.cpu, "get_capabilities", dict)()       # torch 2.6 cannot tell
    if known.get("amx_bf16"):
        return "amx"
    if known.get("avx512_bf16"):
        return "avx512"
    return "" if known.get("avx2") and not known.get("avx512_f") else None


def take_gpu(number: int):
    """Make "cuda" mean GPU `number` in this process; with 4 GPUs, process 5 takes GPU 1.

    Call it before anything touches a GPU. The first touch opens a context, which takes some 0.5 GB:
    without this call every one of several processes would open one on GPU 0.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. A GPU copies it in its turn, and the host goes on at once.

    A plain .to() waits until the GPU has done all that it was told before: after each micro-batch
    it would stand still until the host has prepared the next. Only from pinned memory, which the
    system does not move, can the GPU copy by itself.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def peak_gb(device: torch.device) -> float:
    """The most memory used so far, in 10^9 bytes: a GPU's tensors, else the process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:         # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
