"""LoRA: h = W x + s B A x. The file lora.py of this project explains it, and this one names it.

Trained: r (in + out) per target. Saved: A and B, in PEFT's form. Merges into W.
"""
from lora import (apply_lora, check_fit, factor_tensors, is_plain_lora, lora_entries, lora_layers,
                  pair_factors, set_adapter)
from methods import Method, Setup, Shapes, Target


def apply(model, setup: Setup):
    apply_lora(model, setup.rank, setup.alpha, setup.targets, setup.dropout)


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of r (in + out)."""
    return shapes.layers * setup.rank * sum(i + o for i, o in shapes.maps.values())


def keeps(t: Target, setup: Setup) -> int:
    """s N r per map: u = A x; in 16 bits 2 r (in + out): A, B.

    u for dB; the 16-bit copies of A and B for dx and du.
    """
    r = setup.rank
    return t.s * t.N * r + t.casts(r * t.size_out) + t.dx * t.casts(r * t.size_in)


def pack(model, setup: Setup) -> tuple[dict, dict]:
    layers = lora_layers(model)
    return factor_tensors(layers), lora_entries(model, layers)


def unpack(model, config: dict, tensors: dict, folder):
    adapter = pair_factors(config, tensors, folder)
    check_fit(model, adapter, folder)           # set_adapter does so too, but knows no folder
    set_adapter(model, adapter, merge=False)


METHOD = Method("lora", apply, count, stacks=True, pack=pack, unpack=unpack, reads=is_plain_lora,
                keeps=keeps)
