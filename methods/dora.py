r"""DoRA: the length and the direction of each row of W apart (Liu et al., arXiv 2402.09353).

    W' = m (W + s B A) / ||W + s B A||          equation 5

The norm is taken of each row, so that each output has a length m_i of its own, (out,). It starts as
the row's length in W: with B = 0 the model begins as its base. B A then only turns the rows, and m
scales them. (The paper writes W as (in, out), and speaks of columns.)

The norm counts as a constant in the gradient (section 4.3): dL/dW' reaches B A multiplied by
m / ||W + s B A||. The exact gradient would also lose its part along the row; that is left out, to
save memory. Even so the norm is computed again in every forward pass, from the whole W + s B A, and
for a base in four bits W is dequantized once more. So DoRA costs more than LoRA's few percent.

Trained: r (in + out) + out per target. Saved: A, B and m in PEFT's form, with "use_dora". Merges.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from lora import (LoRALinear, check_fit, factor_tensors, is_plain_lora, lora_layers, pair_factors,
                  peft_config, wrap_layer, wrap_targets, write_adapter)
from methods import Method, Setup, Shapes
from plumbing.errors import UserError

KEY = "base_model.model.{}.lora_magnitude_vector"       # PEFT's name of m


class DoRALinear(LoRALinear):
    """h = c (W x + s B A x) + bias, with c = m / ||W + s B A||, (out,).

    Computed as base(x) + (c - 1) W x + c s B A x. c is near 1, where bfloat16 has steps of 0.8 %,
    but c - 1 is near 0, where its steps are small.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, rslora=False):
        super().__init__(base, rank, alpha, rslora=rslora)
        self.magnitude = nn.Parameter(self.base_weight().detach().float().norm(dim=1))     # (out,)

    @torch.no_grad()
    def direction(self):
        """W + s B A, (out, in), and the norm of each row, (out,), in float32."""
        V = self.base_weight().float() + super().delta()
        return V, V.norm(dim=1).clamp(min=1e-12)        # a row of zeros has no direction

    def adapted(self, x):
        c = self.magnitude / self.direction()[1]                            # (out,)
        y = self.base(x)
        Wx = y if self.bias is None else y - self.bias
        u = F.linear(x, self.lora_A.to(x.dtype)) * self.scale               # (..., r)
        BAx = F.linear(u, self.lora_B.to(x.dtype))
        return y + (c - 1).to(x.dtype) * Wx + c.to(x.dtype) * BAx

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


def save(method, model, folder, base_model: str, setup: Setup):
    layers = lora_layers(model)
    lengths = {KEY.format(name): layer.magnitude for name, layer in layers.items()}
    write_adapter(folder, factor_tensors(layers) | lengths,
                  peft_config(model, layers, base_model) | {"use_dora": True})


@torch.no_grad()
def load(method, model, config: dict, tensors: dict, folder):
    factors = {key: t for key, t in tensors.items() if not key.endswith("magnitude_vector")}
    adapter = pair_factors(config, factors, folder)
    check_fit(model, adapter, folder)
    if tensors.keys() - factors.keys() != {KEY.format(name) for name in adapter}:
        raise UserError(f"{folder}: lengths m are missing, or belong to no A and B")
    for name, f in adapter.items():
        m = tensors[KEY.format(name)]
        if m.shape != f.B.shape[:1]:
            raise UserError(f"{folder}: {name} has {tuple(m.shape)} lengths for {len(f.B)} rows")
        layer = wrap_layer(model, name, lambda base, f=f: DoRALinear(
            base, f.rank, f.alpha, f.rslora))
        for p, tensor in ((layer.lora_A, f.A), (layer.lora_B, f.B), (layer.magnitude, m)):
            p.copy_(tensor)


def reads(config: dict) -> bool:
    return bool(config.get("use_dora")) and is_plain_lora(config | {"use_dora": False})


METHOD = Method("dora", apply, count, save=save, load=load, reads=reads, reads_base=True)
