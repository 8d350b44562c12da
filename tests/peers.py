"""A peer's numbers without the parts of its arithmetic that depend on the processor."""
import bitsandbytes as bnb
import torch.nn as nn


def use_dequantized_weights(model):
    """Replace each Linear4bit in `model` by an nn.Linear with its dequantized weight; -> model.

    On a processor with AVX512-BF16, Linear4bit repacks its weights and computes in bfloat16 outside
    training. Elsewhere it multiplies by its dequantized weights in its compute dtype, as the
    nn.Linear does everywhere. Call this before the first forward pass, which repacks.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert layers
    for name, layer in layers.items():
        state = layer.weight.quant_state
        assert not getattr(state, "packing_format_for_cpu", False)
        W = bnb.functional.dequantize_4bit(layer.weight.data, state)
        linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
        linear.weight = nn.Parameter(W.to(layer.compute_dtype or W.dtype), requires_grad=False)
        linear.bias = layer.bias
        model.set_submodule(name, linear)
    return model
