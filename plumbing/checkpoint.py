"""Hugging Face's checkpoints: tensors in and out, in 16 or 32 bits and in bitsandbytes' four."""
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from plumbing import processes, shards
from plumbing.device import DTYPES, dtype_name
from plumbing.errors import UserError
from plumbing.fields import Number, check, whole
from plumbing.files import (check_weight, existing, make_folder, open_tensors, read_json, replacing,
                            write_json)


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        table = read_json(index, {"weight_map": {str: str}})["weight_map"]
        names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():     # a path, a pipe, nothing
            existing(folder / "config.json")        # without one, this says what the folder is
            raise UserError(f"{folder} has no {name}; fetch the checkpoint again (only safetensors "
                            "is read)")
    return [folder / name for name in names]


def read_weights(folder: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """Yield (file, name, tensor) for every tensor of a checkpoint.

    The tensor is a mapped piece of the file: whoever keeps it must copy it. The file is opened
    again for each tensor. Through one mapping, every page once read would count as this process's
    memory until the last tensor is read.
    """
    for file in weight_files(folder):
        with open_tensors(file) as f:
            names = list(f.keys())
        for name in names:
            with open_tensors(file) as f:
                tensor = f.get_tensor(name)
            yield file, name, tensor


def read_parts(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensor called `name` and those that begin with this name, which four bits have.

    No other tensor is read. Raises UserError if there is none.
    """
    parts = {}
    for file in weight_files(folder):
        with open_tensors(file) as f:
            parts |= {key: f.get_tensor(key) for key in f.keys() if key.startswith(name)}
    if name not in parts:
        raise UserError(f"{folder} has no tensor {name}; is it the right checkpoint?")
    return parts


def write_checkpoint(folder, tensors: dict[str, torch.Tensor], hf: dict):
    """Write model.safetensors and config.json: `hf`, with the type that the embedding has.

    The first process writes; of shards all must call it (shards.gather).
    """
    if any(".lora_" in name or ".base." in name for name in tensors):
        raise UserError("the model carries LoRA layers: save_adapter writes these; remove_lora "
                        "takes them off")
    tensors = shards.gather(tensors)
    if processes.rank() > 0:
        return
    folder = make_folder(folder)
    dtype = dtype_name(tensors["model.embed_tokens.weight"].dtype)
    tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
    with replacing(folder / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_json(folder / "config.json", hf | {"dtype": dtype, "torch_dtype": dtype})


# ----- bitsandbytes' four bits --------------------------------------------------------------------
# A quantized weight NAME is stored as several tensors: NAME holds the packed codes, the others are
# called NAME plus one of these. The last is a JSON object, stored as bytes.
BNB_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
             ".quant_state.bitsandbytes__nf4")
BNB_STATE = BNB_PARTS[-1]


QUANT_STATE = {"shape": [whole(1)], "blocksize": whole(1), "dtype": tuple(DTYPES),
               "quant_type?": "nf4", "nested_blocksize?": 256, "nested_offset?": Number()}


def unpack_bnb(parts: dict[str, torch.Tensor], name: str, folder) -> dict | None:
    """What bitsandbytes' parts of the weight `name` say; None if it is not quantized.

    The keys are the arguments of quant.NF4Tensor. Raises UserError for parts that are not in
    bitsandbytes' form.
    """
    if name + BNB_STATE not in parts:
        return None
    try:
        state = check(json.loads(bytes(parts[name + BNB_STATE].tolist())), QUANT_STATE, BNB_STATE)
        packed = parts[name].reshape(-1).view(torch.uint8)  # some recipes call the bytes bfloat16
        absmax, absmax2 = parts[name + ".absmax"].flatten(), parts.get(name + ".nested_absmax")
        n, offset = math.prod(state["shape"]), None
        K = -(-n // state["blocksize"])                     # blocks; both are rounded up
        fits = packed.numel() == -(-n // 2) and absmax.numel() == K
        if absmax2 is not None:
            absmax2 = absmax2.flatten()
            offset = torch.tensor(state.get("nested_offset", 0.0), device=packed.device)
            fits = fits and absmax.dtype == torch.uint8 and absmax2.numel() == -(-K // 256)
        if not fits:
            raise ValueError(f"the parts do not fit {n} weights")
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"{folder}: {name} is not in bitsandbytes' form ({e}); fetch it again"
                        ) from None
    check_weight(folder, f"{name}'s scales", absmax if absmax2 is None else absmax2)
    return {"packed": packed, "absmax": absmax, "absmax2": absmax2, "offset": offset,
            "shape": state["shape"], "block_size": state["blocksize"],
            "dtype": DTYPES[state["dtype"]]}


def pack_bnb(name: str, w, code: torch.Tensor, code2: torch.Tensor) -> dict[str, torch.Tensor]:
    """bitsandbytes' parts of `w`, a quant.NF4Tensor. code (16,), code2 (256,): the tables used."""
    state = {"quant_type": "nf4", "blocksize": w.block_size, "dtype": dtype_name(w.dtype),
             "shape": list(w.shape)}
    parts = {"": w.packed[:, None], ".absmax": w.absmax, ".quant_map": code}
    if w.absmax2 is not None:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32",
                  "nested_offset": w.offset.item()}
        parts |= {".nested_absmax": w.absmax2, ".nested_quant_map": code2.clone()}
    parts[BNB_STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {name + part: tensor for part, tensor in parts.items()}


def bnb_config(compute_dtype: torch.dtype, double_quant: bool) -> dict:
    """config.json's quantization_config, by which transformers knows such a checkpoint."""
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": dtype_name(compute_dtype),
            "bnb_4bit_use_double_quant": double_quant}
