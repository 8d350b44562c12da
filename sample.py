"""Talk to a model; base and adapted answers side by side.

    python sample.py --model nano --adapter out/a46cea5b7d "Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có bao nhiêu quả táo?"
"""
import torch

from model import DTYPES, Transformer
from quant import load_quantized
from tokenizer import Tokenizer
from train import device_and_dtype


def load(name: str, device: str = "auto", dtype: str = "auto", nf4: bool = False) -> tuple[Transformer, Tokenizer]:
    """The model called `name` (as --model of train.py has it) and its tokenizer, ready to answer; nf4: with its linear layers in
    four bits, as --method qlora trains on them."""
    device, dtype = device_and_dtype(device, dtype)
    read = load_quantized if nf4 else Transformer.from_pretrained
    return read(name, DTYPES[dtype], torch.device(device)).requires_grad_(False), Tokenizer.from_pretrained(name)
