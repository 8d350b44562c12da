"""A base and an adapter as one whole Hugging Face checkpoint: W + (alpha / r) B A in every layer.

    python export.py --adapter out/3f087d1874 --out merged              # for vLLM, llama.cpp ...
"""
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import base_of, load_base
from lora import load_adapter, merge_lora, merged, remove_lora
from plumbing.cli import flag, parse_flags, run_command
from plumbing.device import DTYPES, dtype_name
from plumbing.errors import UserError, errors_in_one_line
from quant import NF4Linear
from tokenizer import Tokenizer, stop_ids

@dataclass
class Settings:
    adapter: str = flag(None, "its folder", required=True)
    out: str = flag(None, "folder of the checkpoint, new or empty", required=True)
    model: str = flag(
        None, "the base: folder, hub repository or nano; default: the one that the adapter names")
    dtype: str = flag(
        None, "of W + B A, which is summed in float32 and rounded; default: the base's own",
        choices=tuple(DTYPES))
    nf4: bool = flag(
        False, "merge into the weights that --method qlora saw: rounded to four bits",
        action="store_true")


PROBE = "Lan có 12 quả táo, mẹ cho thêm 7 quả. Natalia sold 48 clips in April, and then half as many in May: 48 / 2 = 24."


def merge(adapter: str, out: str, model: str | None = None, dtype: str | None = None, nf4: bool = False):
    """Write W + (alpha / r) B A of every layer as a whole Hugging Face checkpoint, and print what the rounding did."""
    name, folder = model or base_of(adapter), Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {out} is there already and not empty; give another one, or delete it")
    module = load_base(name, DTYPES.get(dtype), nf4=nf4)
    for layer, m in list(module.named_modules()):
        if isinstance(m, NF4Linear):
            module.set_submodule(layer, merged(m, 0.0))
    tokenizer = Tokenizer.from_pretrained(name)
    tokenizer.check_vocabulary(module.config.vocab_size, name)
    ids = torch.tensor([tokenizer.encode(PROBE)])
    with torch.no_grad():
        beside = load_adapter(module, adapter).eval()(ids)[0].float()                           # (T, V)
        merge_lora(module)
        after = remove_lora(module)(ids)[0].float()
    module.save_pretrained(folder, stop_ids(tokenizer))
    tokenizer.save_pretrained(folder)
    print(f"{out}: {name} with {adapter} merged, in {dtype_name(module.lm_head.weight.dtype)}\n"
          f"over {len(after)} tokens the largest difference of a logit, B A beside W or merged and rounded, is "
          f"{(beside - after).abs().max():.3g},\nwith logits up to {beside.abs().max():.3g}; the likeliest token is the same at "
          f"{(beside.argmax(-1) == after.argmax(-1)).sum()} of them")



def main(argv=None):
    with errors_in_one_line("merging keeps W and W + B A; try --dtype bfloat16, or a machine with more"):
        merge(**vars(parse_flags(Settings, "export.py", __doc__, argv)))


if __name__ == "__main__":
    run_command(main)
