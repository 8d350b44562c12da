"""What --resume needs, in one file: tensors, and how far the run is, as JSON in the metadata."""
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from plumbing import processes, shards
from plumbing.errors import UserError
from plumbing.fields import check
from plumbing.files import open_tensors, replacing

REMEDY = "--overwrite starts over"


def save_state(path: Path, tensors: dict[str, torch.Tensor], progress: dict):
    """The first process writes the file; of shards all must call it (shards.gather)."""
    tensors = shards.gather(tensors)
    if processes.rank() > 0:
        return
    with replacing(path) as part:
        save_file(tensors, part, metadata={"progress": json.dumps(progress)})


def load_state(path: Path, expect: Callable, give_back: Callable,
               check_progress: Callable = lambda progress: None) -> dict:
    """Call give_back(name, tensor) for each tensor of the file -> the progress.

    expect(names): {name: a tensor of the shape and type that it must have} of a file in which there
    are these names. check_progress(progress) raises UserError for what cannot be one. Raises
    UserError for a file that is not as expected, before the first call of give_back.
    """
    with open_tensors(path, REMEDY) as f:
        progress = read_progress(path, f.metadata(), check_progress)
        tensors = {name: f.get_tensor(name) for name in f.keys()}       # mapped, not yet read
        expected = expect(tensors.keys())
        for name in sorted(tensors.keys() | expected.keys()):
            found, due = describe_tensor(tensors.get(name)), describe_tensor(expected.get(name))
            if found != due:
                raise UserError(f"{path} is damaged ({name}: there is {found}, and there must be "
                                f"{due}); {REMEDY}")
        for name, tensor in tensors.items():
            give_back(name, tensor)
    return progress


def read_progress(path: Path, metadata: dict | None, check_progress: Callable) -> dict:
    try:
        progress = check(json.loads((metadata or {}).get("progress", "null")), dict)
        check_progress(progress)
        return progress
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is damaged ({e}); {REMEDY}") from None


def describe_tensor(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"one of {tensor.dtype}, {tuple(tensor.shape)}"
