"""What --resume needs, in one file: tensors, and how far the run is, as JSON in the metadata."""
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from plumbing import processes, shards
from plumbing.errors import UserError, is_out_of_memory
from plumbing.fields import check
from plumbing.files import replacing


def save_state(path: Path, tensors: dict[str, torch.Tensor], progress: dict):
    """The first process writes the file; of shards all must call it (shards.gather)."""
    tensors = shards.gather(tensors)
    if processes.rank() > 0:
        return
    with replacing(path) as part:
        save_file(tensors, part, metadata={"progress": json.dumps(progress)})


def load_state(path: Path, needed, give_back: Callable, shape=dict) -> dict:
    """Call give_back(name, tensor) for each tensor of the file -> the progress, of this shape.

    needed: the names that must be there. Raises UserError for a damaged file.
    """
    try:
        with safe_open(path, framework="pt") as f:
            if missing := set(needed) - set(f.keys()):
                raise KeyError(f"it lacks {min(missing)}")
            for name in f.keys():
                give_back(name, f.get_tensor(name))
            return check(json.loads(f.metadata()["progress"]), shape)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        if is_out_of_memory(e):     # moments go to the device here: no reason to begin again
            raise
        raise UserError(f"{path} is damaged ({e}); --overwrite starts over") from None
