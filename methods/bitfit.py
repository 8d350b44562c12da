"""BitFit: only biases are trained (Ben Zaken et al., arXiv 2106.10199).

    h = W x + b + db            db (out,), 0 at the start

Decoders of our families have few biases: Qwen2 has them on q, k and v, Llama and Qwen3 have none.
Where a layer has none, b is 0, and db is a bias that the method adds. Each target gets one, so with
the default targets every linear map of a layer has a trained bias.

A bias shifts what a map puts out, by the same vector for every token. It cannot make the map react
to anything that it did not react to before. Its gradient is dy alone, so no x is kept.

Trained: out per target, whatever --rank and --alpha are. Saved: db, under this project's names.
Merges into b; where the architecture has no b, export.py has nowhere to write it.
"""
import torch
import torch.nn as nn

from lora import AdaptedLinear, wrap_targets
from methods import Method, Setup, Shapes, Target


class BiasLinear(AdaptedLinear):
    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.db = nn.Parameter(torch.zeros(base.out_features, device=self.device))

    def adapted(self, x):
        return self.base(x) + self.db.to(x.dtype)

    @property
    def weight(self):
        return self.base_weight()

    @property
    def bias(self):
        b, dtype = self.base.bias, self.base_weight().dtype
        total = self.db.detach() if b is None else b.float() + self.db.detach()
        return nn.Parameter(total.to(dtype), requires_grad=False)


def apply(model, setup: Setup):
    wrap_targets(model, setup.targets, BiasLinear)


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of out."""
    return shapes.layers * sum(o for _, o in shapes.maps.values())


def keeps(t: Target, setup: Setup) -> int:
    """0: the gradient of db is dy."""
    return 0


METHOD = Method("bitfit", apply, count, lr=1e-2, ignores=("rank", "alpha"), keeps=keeps,
                keeps_x=False)
