r"""MoRA: one square matrix instead of two narrow ones (Jiang et al., arXiv 2405.12130).

    dW x = s decompress(M compress(x))              equation 5: M (k, k), trained, 0 at the start

With k = floor(sqrt(r (in + out))) M has as many parameters as A and B of rank r. Its rank can be
k, far above r: for 896 -> 896 and r = 8, k = 119. The price is that nothing trained leads from x to
k numbers and back. x is cut into n = ceil(in / k) pieces, the last filled up with zeros. Two ways
(`--options form=...`):

    sharing     compress sums neighbours, n at a time; decompress repeats the k numbers until `out`
                are reached (equation 6). Numbers of one group get the same column of dW. So the
                rank of dW is at most k.
    rotation    no sum: M acts on each piece by itself, turned first by an angle that depends on the
                piece, as RoPE turns positions (equation 9). So pieces are told apart. The results
                are put one after the other, and repeated or cut to `out`. The default. k is made
                even, because numbers turn in pairs: 118. dW has n turned copies of M on its
                diagonal, and zeros elsewhere. So its rank can be that of W, but a piece of the
                output sees one piece of x alone.

In a map that shrinks, like down_proj, rotation ignores what lies beyond the first out / k pieces.
The authors' code (kongds/MoRA) does so too. It differs in details: it fills the last piece with x's
own beginning, rounds k instead of cutting it, has no alpha, and recommends rotation for small ranks
and sharing for large ones.

Trained: k^2 per target. Saved: M (no library has a form for it). Merges into W.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from lora import AdaptedLinear, wrap_targets
from methods import Method, Setup, Shapes, Target
from plumbing.fields import check


class MoRALinear(AdaptedLinear):
    """h = base(x) + s decompress(M compress(x))."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, form: str):
        super().__init__(base)
        self.scale, self.form = alpha / rank, form
        k = square_size(base.in_features, base.out_features, rank, form)
        self.M = nn.Parameter(torch.zeros(k, k, device=self.device))

    def adapted(self, x):
        return self.base(x) + self.change(x, (self.scale * self.M).to(x.dtype))

    def change(self, x, M):         # s is in M, which is smaller than what comes out
        """decompress(M compress(x)): (..., in) -> (..., out)."""
        k, n = len(M), math.ceil(x.shape[-1] / len(M))
        x = F.pad(x, (0, n * k - x.shape[-1]))
        if self.form == "sharing":
            z = x.unflatten(-1, (k, n)).sum(-1) @ M.T                       # (..., k)
        else:
            z = (turn(x.unflatten(-1, (n, k))) @ M.T).flatten(-2)           # (..., n k)
        repeats = math.ceil(self.base.out_features / z.shape[-1])
        return torch.cat([z] * repeats, dim=-1)[..., :self.base.out_features]

    def delta(self):
        """dW (out, in): what the change does to each unit vector is a column of it."""
        units = torch.eye(self.base.in_features, device=self.M.device)
        return self.change(units, self.scale * self.M).T


def square_size(size_in: int, size_out: int, rank: int, form: str) -> int:
    """k: as large as r (in + out) parameters allow."""
    k = math.isqrt(rank * (size_in + size_out))
    return k - k % 2 if form == "rotation" else k


def turn(pieces):
    """Turn piece i (..., n, k) by the angles i theta_j, theta_j = 10000^(-2j / k), pair by pair.

    A pair is number j with number j + k / 2, as in the decoder's RoPE (model.py).
    """
    n, k = pieces.shape[-2:]
    theta = 10000.0 ** (-torch.arange(0, k, 2, device=pieces.device) / k)   # (k / 2,)
    angles = torch.arange(n, device=pieces.device)[:, None] * theta         # (n, k / 2)
    cos, sin = angles.cos().to(pieces.dtype), angles.sin().to(pieces.dtype)
    a, b = pieces.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def apply(model, setup: Setup):
    form = setup.options["form"]
    check(form, ("rotation", "sharing"), "--options", "form")
    wrap_targets(model, setup.targets,
                 lambda layer: MoRALinear(layer, setup.rank, setup.alpha, form))


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of k^2, about r (in + out)."""
    return shapes.layers * sum(square_size(i, o, setup.rank, setup.options["form"]) ** 2
                               for i, o in shapes.maps.values())


def keeps(t: Target, setup: Setup) -> int:
    """s N n k + s k^2 per map: turned x, s M; sharing: s N k + s k^2.

    What M multiplies for dM, and s M for dx. x itself is not kept.
    """
    k = square_size(t.size_in, t.size_out, setup.rank, setup.options["form"])
    width, angles = k, 0
    if setup.options["form"] == "rotation":
        width = angles = k * math.ceil(t.size_in / k)
    return t.s * (t.N * width + t.dx * (angles + k * k))


METHOD = Method("mora", apply, count, options={"form": "rotation"}, keeps=keeps, keeps_x=False)
