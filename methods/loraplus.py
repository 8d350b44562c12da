"""LoRA+: B learns `ratio` times as fast as A (Hayou et al., arXiv 2402.12354, section 4).

    A <- A - lr AdamW(dL/dA)            B <- B - ratio lr AdamW(dL/dB)

Why? Adam moves each entry of A and of B by about its learning rate. u = A x is a sum over `in`
terms, and a common rate that suits it leaves B, whose sums have only r terms, nearly where it
began. The paper lets the width go to infinity: A and B then both learn only if B's rate exceeds
A's by a factor of the order of the width. It recommends 16 in practice, and lr below LoRA's.

Trained and saved: as LoRA. The ratio is of training alone: the adapter is a plain one.
"""
from methods import Method, Setup
from methods.lora import apply, count, keeps, pack, unpack


def multiple(name: str, setup: Setup) -> float:
    return setup.options["ratio"] if name.endswith("lora_B") else 1.0


# reads: never, because the method lora reads its files
METHOD = Method(
    "loraplus", apply, count, lr=5e-5, options={"ratio": 16.0}, multiple=multiple, stacks=True,
    pack=pack, unpack=unpack, reads=lambda config: False, keeps=keeps)
