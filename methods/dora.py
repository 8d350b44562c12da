r"""DoRA: the length and the direction of each row of W apart (Liu et al., arXiv 2402.09353).

    W' = m (W + s B A) / ||W + s B A||          equation 5

The norm is taken of each row, so that each output has a length m_i of its own, (out,). It starts as
the row's length in W: with B = 0 the model begins as its base. B A then only turns the rows, and m
scales them. (The paper writes W as (in, out), and speaks of columns.)

The norm counts as a constant in the gradient (section 4.3): dL/dW' reaches B A multiplied by
m / ||W + s B A||. The exact gradient would also lose its part along the row; that is left out, to
save memory. Even so the norm is computed again in every forward pass, from the whole W + s B A, and
for a base in four bits W is dequantized once more. And dL/dm needs what the direction put out, so
it is kept: s N out bytes per target that LoRA does not have.

Trained: r (in + out) + out per target. Saved: A, B and m in PEFT's form, with "use_dora". Merges.
"""
import torch
import torch.nn as nn

from lora import (PREFIX, LoRALinear, attach_factors, check_fit, factor_tensors, is_plain_lora,
                  lora_entries, lora_layers, pair_factors, wrap_targets)
from methods import Method, Setup, Shapes, Target, fill_in
from methods.lora import keeps as lora_keeps


class DoRALinear(LoRALinear):
    """h = c V x + bias, with V = W + s B A and c = m / ||V||, (out,).

    Computed as LoRA's V x + bias, and (c - 1) V x more. c is near 1, where bfloat16 has steps of
    0.8 %, but c - 1 is near 0, where its steps are small.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, rslora=False):
        super().__init__(base, rank, alpha, rslora=rslora)
        self.magnitude = nn.Parameter(self.base_weight().detach().float().norm(dim=1))     # (out,)

    @torch.no_grad()
    def direction(self):
        """V, (out, in), and the norm of each row, (out,), in float32."""
        V = self.base_weight().float() + super().delta()
        return V, V.norm(dim=1).clamp(min=1e-12)        # a row of zeros has no direction

    def adapted(self, x):
        c = self.magnitude / self.direction()[1]                            # (out,)
        h = super().adapted(x)                                              # V x + bias
        Vx = h if self.bias is None else h - self.bias
        return h + (c - 1).to(x.dtype) * Vx

    def delta(self):
        """dW = W' - W, (out, in), in float32."""
        V, norm = self.direction()
        return (self.magnitude / norm)[:, None] * V - self.base_weight().float()


def apply(model, setup: Setup):
    wrap_targets(model, setup.targets,
                 lambda layer: DoRALinear(layer, setup.rank, setup.alpha))


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of (r (in + out) + out)."""
    return shapes.layers * sum(setup.rank * (i + o) + o for i, o in shapes.maps.values())


def keeps(t: Target, setup: Setup) -> int:
    """s N (r + out) per map: u = A x and V x.

    V x for dm, all else as in LoRA. The small ones are ||V|| and c - 1.
    """
    return lora_keeps(t, setup) + t.s * t.N * t.size_out + (4 + t.s) * t.size_out


def magnitudes(model) -> dict[str, nn.Parameter]:
    """m of each layer, under PEFT's names."""
    return {f"{PREFIX}{name}.lora_magnitude_vector": layer.magnitude
            for name, layer in lora_layers(model).items()}


def pack(model, setup: Setup) -> tuple[dict, dict]:
    layers = lora_layers(model)
    return (factor_tensors(layers) | magnitudes(model),
            lora_entries(model, layers) | {"use_dora": True})


def unpack(model, config: dict, tensors: dict, folder):
    lengths = {key: m for key, m in tensors.items() if key.endswith("magnitude_vector")}
    factors = {key: tensor for key, tensor in tensors.items() if key not in lengths}
    adapter = pair_factors(config, factors, folder)
    check_fit(model, adapter, folder)
    attach_factors(model, adapter, lambda base, f: DoRALinear(base, f.rank, f.alpha, f.rslora))
    fill_in(magnitudes(model), lengths, folder)


def reads(config: dict) -> bool:
    return bool(config.get("use_dora")) and is_plain_lora(config | {"use_dora": False})


METHOD = Method("dora", apply, count, pack=pack, unpack=unpack, reads=reads, keeps=keeps,
                reads_base=True)
