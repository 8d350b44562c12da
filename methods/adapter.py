"""Adapter layers: two small bottlenecks per layer (Houlsby et al., arXiv 1902.00751, figure 2).

    h <- h + W_up gelu(W_down h + b_down) + b_up        h: what attention or the MLP puts out

W_down (m, C), W_up (C, m); --rank is m. Hu et al. call it Adapter-H. There is one behind attention
and one behind the MLP, each before the sum with the residual stream. W_up = 0 and b_up = 0 at the
start, so the model begins as its base. Houlsby et al. also train the norms; here they are frozen,
because this file is about the bottlenecks.

Unlike B A it has a nonlinearity between the two maps, and lies behind a whole block and not next to
one matrix. So it cannot become part of any W, and what it costs in generation stays (Hu et al.,
section 3): two more products in sequence per block.

Trained and saved: 2 L (2 C m + m + C), under the names of this project. Nothing merges into W.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from methods import Method, Setup, Shapes, Target, Wrapper, wrap_module


class AdapterBlock(Wrapper):
    """Attention or an MLP, and a bottleneck behind it."""

    def __init__(self, base: nn.Module, size: int, m: int, device):
        super().__init__(base)
        down = torch.empty(m, size, device="cpu")
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))      # as LoRA's A
        self.down = nn.Parameter(down.to(device))                           # (m, C)
        self.down_bias = nn.Parameter(torch.zeros(m, device=device))
        self.up = nn.Parameter(torch.zeros(size, m, device=device))         # (C, m)
        self.up_bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, *args):
        h = self.base(*args)
        down, down_bias, up, up_bias = (
            p.to(h.dtype) for p in (self.down, self.down_bias, self.up, self.up_bias))
        return h + F.linear(F.gelu(F.linear(h, down, down_bias)), up, up_bias)


def apply(model, setup: Setup):
    model.requires_grad_(False)
    for k in range(model.config.num_hidden_layers):
        for part in ("self_attn", "mlp"):
            wrap_module(model, f"model.layers.{k}.{part}", lambda base: AdapterBlock(
                base, model.config.hidden_size, setup.rank, model.device))


def count(shapes: Shapes, setup: Setup) -> int:
    """2 L (2 C m + m + C)."""
    C, m = shapes.hidden, setup.rank
    return 2 * shapes.layers * (2 * C * m + m + C)


def keeps(t: Target, setup: Setup) -> int:
    """s N (C + 2 m) per block: h, before and after gelu; in 16 bits 4 C m: both maps."""
    C, m = t.size_out, setup.rank
    return t.s * t.N * (C + 2 * m) + t.casts(C * m) + t.dx * t.casts(C * m)


METHOD = Method(
    "adapter", apply, count, lr=2e-3, ignores=("alpha", "targets"), keeps=keeps, keeps_x=False,
    behind=("o_proj", "down_proj"), unmergeable="a nonlinearity stands between its two maps")
