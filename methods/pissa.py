r"""PiSSA: LoRA that begins at W's own largest directions (Meng et al., arXiv 2404.02948).

    W = U S V^T                                 its SVD, the largest singular values first
    B0 = U_r sqrt(S_r / s)      (out, r)        equations 2 and 3
    A0 = sqrt(S_r / s) V_r^T    (r, in)
    W_res = W - s B0 A0                         equation 4: frozen
    h = W_res x + s B A x                       A and B begin as A0 and B0

Nothing has changed at the start, because W_res + s B0 A0 = W. But neither A nor B is zero, so both
learn from the first step, and they learn where W is largest. The paper sees faster descent.

What to beware of: A and B belong to W_res. Added to the untouched W they would count its largest
directions twice. Here W stays, and the same h is computed as a plain LoRA of rank 2 r:

    h = W x + s [B, -B0] [A; A0] x

So W may be in four bits, the start is exact in any dtype, and what is saved is that plain LoRA,
which every library opens. With --nf4 W itself is quantized. The paper's QPiSSA quantizes W_res, and
loses less. PEFT writes A and B alone, and computes W_res from W again. Such files are read here,
too: signs of another SVD do not matter, because B0 A0 is the same.

The exact SVD takes O(out in min(out, in)): 0.8 s for 896 x 4864 on a core. `--options niter=16`
finds the top r by a randomized SVD (Halko et al., arXiv 0909.4061) with so many power iterations.

Trained: r (in + out) per target. Saved: 2 r (in + out). Merges into W.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from lora import (LoRALinear, attach_factors, check_fit, factor_tensors, is_plain_lora,
                  lora_entries, lora_layers, pair_factors, wrap_targets)
from methods import Method, Setup, Target
from methods.lora import count
from methods.lora import keeps as lora_keeps
from plumbing.errors import UserError


class PiSSALinear(LoRALinear):
    """h = W x + s (B A - B0 A0) x."""

    @torch.no_grad()
    def __init__(self, base: nn.Module, rank: int, alpha: float, niter=0, rslora=False):
        super().__init__(base, rank, alpha, rslora=rslora)
        W = self.base_weight().float()
        if rank > min(W.shape):
            raise UserError(f"--rank {rank}: PiSSA begins from singular vectors, and a matrix of "
                            f"{tuple(W.shape)} has only {min(W.shape)}")
        U, S, V = top_directions(W, rank, niter)
        root = (S / self.scale).sqrt()                                      # (r,)
        self.lora_A.copy_(root[:, None] * V.T)                              # (r, in)
        self.lora_B.copy_(U * root)                                         # (out, r)
        # buffers, so that --resume has them: another processor's SVD would round in another way
        self.register_buffer("A0", self.lora_A.detach().clone(), persistent=False)
        self.register_buffer("B0", self.lora_B.detach().clone(), persistent=False)

    def adapted(self, x):
        BAx, B0A0x = (F.linear(F.linear(x, A.to(x.dtype)) * self.scale, B.to(x.dtype))
                      for A, B in ((self.lora_A, self.lora_B), (self.A0, self.B0)))
        return self.base(x) + (BAx - B0A0x)

    def delta(self):
        """dW = s (B A - B0 A0), (out, in), in float32."""
        return self.scale * (self.lora_B @ self.lora_A - self.B0 @ self.A0)

    @torch.no_grad()
    def as_lora(self) -> LoRALinear:
        """The plain LoRA of rank 2 r: s [B, -B0] [A; A0]."""
        r = 2 * self.rank
        layer = LoRALinear(self.base, r, r * self.scale)        # alpha / (2 r) is s then
        layer.lora_A.copy_(torch.cat((self.lora_A, self.A0)))
        layer.lora_B.copy_(torch.cat((self.lora_B, -self.B0), dim=1))
        return layer


def top_directions(W, r: int, niter: int):
    """The r largest of W = U diag(S) V^T: (out, r), (r,), (in, r). niter 0: by the exact SVD."""
    if niter:
        return torch.svd_lowrank(W, r, niter=niter)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r], S[:r], Vh[:r].T


def apply(model, setup: Setup):
    wrap_targets(model, setup.targets, lambda layer: PiSSALinear(
        layer, setup.rank, setup.alpha, setup.options["niter"]))


def keeps(t: Target, setup: Setup) -> int:
    """s N r per map: u = A x; in 16 bits 4 r (in + out): A, B, A0, B0."""
    frozen = t.casts(setup.rank * (t.size_in + t.size_out))
    return lora_keeps(t, setup) + t.dx * frozen


def pack(model, setup: Setup) -> tuple[dict, dict]:
    layers = {name: layer.as_lora() for name, layer in lora_layers(model).items()}
    return factor_tensors(layers), lora_entries(model, layers)


def unpack(model, config: dict, tensors: dict, folder):
    """PEFT's own form: A and B of W_res, which PEFT computes again by the exact SVD."""
    adapter = pair_factors(config, tensors, folder)
    check_fit(model, adapter, folder)
    attach_factors(model, adapter, lambda base, f: PiSSALinear(
        base, f.rank, f.alpha, rslora=f.rslora))


def reads(config: dict) -> bool:
    """Not "pissa_niter_4": PEFT draws that SVD, so each load gives it another W_res."""
    return config.get("init_lora_weights") == "pissa" and is_plain_lora(
        config | {"init_lora_weights": True})


METHOD = Method("pissa", apply, count, options={"niter": 0}, pack=pack, unpack=unpack, reads=reads,
                keeps=keeps, buffers=1.0, reads_base=True)
