"""A base and an adapter as one whole Hugging Face checkpoint: W + s B A in every layer.

    python export.py --adapter out/3f087d1874 --out merged              # for vLLM, llama.cpp ...

Rounding the sum to the checkpoint's dtype changes it a little, and a weight in bfloat16 has only 8
significant bits. So the command prints the NLL of a short text with B A next to W and merged into
it, and how far the logits move. What counts is the NLL: a logit that moves by 1 while others move
along with it changes no probability.

An adapter of --method qlora was trained next to weights rounded to four bits. With --nf4 it is
merged into these: the model is the one that was trained, in 16 bits. Without, it is merged into the
base's own weights, which it has never seen; evaluate.py tells which of the two is better.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from engine import base_of, load_base
from lora import dense_linear, merge_lora, remove_lora
from methods import open_adapter, switch_adapter
from model import Transformer
from plumbing.cli import flag, parse_flags, run_command
from plumbing.device import DTYPES, dtype_name
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import make_folder, replacing
from plumbing.text import print_fitted
from quant import NF4Linear
from tokenizer import Tokenizer, stop_ids

PROBE = ("Lan có 12 quả táo, mẹ cho thêm 7 quả. Natalia sold 48 clips in April, and then half as "
         "many in May: 48 / 2 = 24.")


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
        False, "merge into the weights that --method qlora saw: rounded to four bits")


@torch.no_grad()
def merge_to_checkpoint(settings: Settings):
    """Write the checkpoint, and print what the rounding did to the logits of PROBE."""
    folder = Path(settings.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} exists and is not empty; give another one, or delete it")

    # ----- the base -----
    adapter = open_adapter(settings.adapter)
    if adapter.method.unmergeable:
        raise UserError(f"{settings.adapter}: {adapter.method.name} cannot be merged into W: "
                        f"{adapter.method.unmergeable}; sample.py and evaluate.py take it as "
                        "--adapter")
    base_name = settings.model or base_of(settings.adapter)
    model = load_base(base_name, DTYPES.get(settings.dtype), nf4=settings.nf4)
    for name, layer in list(model.named_modules()):     # all: the checkpoint has plain weights
        if isinstance(layer, NF4Linear):
            model.set_submodule(name, dense_linear(layer.weight.dequantize(), layer.bias))
    tokenizer = Tokenizer.from_pretrained(base_name)
    tokenizer.check_vocabulary(model.config.vocab_size, base_name)

    # ----- the merge, with a look at the logits before and after -----
    ids = torch.tensor([tokenizer.encode(PROBE)])                           # (1, T)
    switch_adapter(model, adapter, merge=False).eval()
    before = model(ids)[0].float()                                          # (T, V)
    merge_lora(model)
    remove_lora(model)
    after = model(ids)[0].float()
    known = dict(Transformer.empty(model.config).named_parameters())
    if extra := [name for name, _ in model.named_parameters() if name not in known]:
        raise UserError(f"{settings.adapter}: a checkpoint of {model.config.hf['model_type']} has "
                        f"no {extra[0]} that could be written")

    # ----- the checkpoint -----
    make_folder(folder.absolute().parent)
    with replacing(folder, Path.mkdir) as part:
        model.save_pretrained(part, stop_ids(tokenizer))
        tokenizer.save_pretrained(part)
    dtype = dtype_name(model.lm_head.weight.dtype)
    print_fitted(f"{folder}: {base_name} with {settings.adapter} merged, in {dtype}")
    print_rounding(before, after, ids[0], dtype)


def print_rounding(before, after, ids, dtype: str):
    """What rounding W + B A did to the logits (T, V) of `ids` (T,)."""
    apart, merged = (F.cross_entropy(logits[:-1], ids[1:]).item() for logits in (before, after))
    largest = (before - after).abs().max()
    same = (before.argmax(-1) == after.argmax(-1)).sum()
    print_fitted(
        f"a text of {len(ids)} tokens has the NLL {apart:.4f} with B A next to W, and "
        f"{merged:.4f} merged and rounded to {dtype}\n"
        f"the largest change of a logit is {largest:.3g}, with logits up to "
        f"{before.abs().max():.3g}; the likeliest token is the same at {same} of {len(ids)}")
    if not merged - apart <= 0.01 and dtype != "float32":       # nan, too
        print_fitted("that is more than rounding should cost: try --dtype float32, which takes "
                     "twice the room, or keep the adapter apart (sample.py --adapter)")


def main(argv=None):
    advice = "merging keeps W and W + B A; try --dtype bfloat16, or a machine with more"
    with errors_in_one_line(advice):
        merge_to_checkpoint(parse_flags(Settings, "export.py", __doc__, argv))


if __name__ == "__main__":
    run_command(main)
