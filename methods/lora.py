"""LoRA: h = W x + s B A x. The file lora.py of this project explains it, and this one names it.

Trained: r (in + out) per target. Saved: A and B, in PEFT's form. Merges into W.
"""
from lora import apply_lora, check_fit, is_plain_lora, pair_factors, save_adapter, set_adapter
from methods import Method, Setup, Shapes


def apply(model, setup: Setup):
    apply_lora(model, setup.rank, setup.alpha, setup.targets, setup.dropout)


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of r (in + out)."""
    return shapes.layers * setup.rank * sum(i + o for i, o in shapes.maps.values())


def save(method, model, folder, base_model: str, setup: Setup):
    save_adapter(model, folder, base_model)


def load(method, model, config: dict, tensors: dict, folder):
    adapter = pair_factors(config, tensors, folder)
    check_fit(model, adapter, folder)           # set_adapter does so too, but knows no folder
    set_adapter(model, adapter, merge=False)


METHOD = Method("lora", apply, count, save=save, load=load, reads=is_plain_lora)
