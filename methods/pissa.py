r"""PiSSA: LoRA that begins at W's own largest directions (Meng et al., arXiv 2404.02948).

    W = U S V^T                                 its SVD, the largest singular values first
    B = U_r sqrt(S_r / s)       (out, r)        equations 2 and 3
    A = sqrt(S_r / s) V_r^T     (r, in)
    W_res = W - s B A                           equation 4: frozen, in the place of W

Nothing has changed at the start, because W_res + s B A = W. But neither A nor B is zero, so both
learn from the first step, and they learn where W is largest. The paper sees faster descent.

What to beware of: A and B belong to W_res, not to W. Added to the untouched W they would count its
largest directions twice. So the adapter is saved as a plain LoRA of rank 2 r for the untouched W,
which every library opens:

    dW = s (B A - B0 A0) = s [B, -B0] [A; A0]           A0, B0: as they were at the start

PEFT writes A and B alone, and computes W_res from W anew. Such files are read here, too; signs and
rounding of another SVD do not matter, because B0 A0 is the same.

Exact SVD takes O(out in min(out, in)): 0.8 s for 896 x 4864 on a core. `--options niter=16` finds
the top r by a randomized SVD (Halko et al., arXiv 0909.4061) with so many power iterations instead.

Trained: r (in + out) per target. Saved: 2 r (in + out). Merges into W.
"""
import torch
import torch.nn as nn

from lora import (LoRALinear, check_fit, is_plain_lora, lora_layers, pair_factors, peft_config,
                  peft_name, wrap_layer, wrap_targets, write_adapter)
from methods import Method, Setup
from methods.lora import count
from plumbing.errors import UserError


class PiSSALinear(LoRALinear):
    """h = W_res x + s B A x, with W_res next to the base's W, which stays for `take_off`."""

    @torch.no_grad()
    def __init__(self, base: nn.Module, rank: int, alpha: float, niter=0):
        super().__init__(base, rank, alpha)
        W = self.base_weight().float()
        if rank > min(W.shape):
            raise UserError(f"--rank {rank}: PiSSA begins from singular vectors, and a matrix of "
                            f"{tuple(W.shape)} has only {min(W.shape)}")
        U, S, V = top_directions(W, rank, niter)
        root = (S / self.scale).sqrt()
        self.lora_A.copy_(root[:, None] * V.T)
        self.lora_B.copy_(U * root)
        self.register_buffer("A0", self.lora_A.detach().clone(), persistent=False)
        self.register_buffer("B0", self.lora_B.detach().clone(), persistent=False)
        residual = W - self.scale * self.B0 @ self.A0
        self.register_buffer("residual", residual.to(base.weight.dtype), persistent=False)

    def adapted(self, x):
        u = nn.functional.linear(x, self.lora_A.to(x.dtype)) * self.scale   # (..., r)
        y = nn.functional.linear(x, self.residual.to(x.dtype), self.bias)
        return y + nn.functional.linear(u, self.lora_B.to(x.dtype))

    def delta(self):
        """dW = W_res + s B A - W, (out, in), in float32."""
        return self.scale * (self.lora_B @ self.lora_A - self.B0 @ self.A0)


def top_directions(W, r: int, niter: int):
    """The r largest of W = U diag(S) V^T: (out, r), (r,), (in, r). niter 0: by the exact SVD."""
    if niter:
        return torch.svd_lowrank(W, r, niter=niter)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r], S[:r], Vh[:r].T


def apply(model, setup: Setup):
    wrap_targets(model, setup.targets, lambda layer: PiSSALinear(
        layer, setup.rank, setup.alpha, setup.options["niter"]))


def save(method, model, folder, base_model: str, setup: Setup):
    """As a plain LoRA of rank 2 r. alpha doubles with the rank, so that s = alpha / r stays."""
    layers = lora_layers(model)
    tensors = {}
    for name, layer in layers.items():
        tensors[peft_name(name, "A")] = torch.cat((layer.lora_A, layer.A0))
        tensors[peft_name(name, "B")] = torch.cat((layer.lora_B, -layer.B0), dim=1)
    config = peft_config(model, layers, base_model)
    doubled = {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    write_adapter(folder, tensors, config | doubled)


@torch.no_grad()
def load(method, model, config: dict, tensors: dict, folder):
    """PEFT's own form: A and B of W_res. W_res is computed from the base."""
    adapter = pair_factors(config, tensors, folder)
    check_fit(model, adapter, folder)
    niter = config["init_lora_weights"].partition("_niter_")[2]
    for name, f in adapter.items():
        layer = wrap_layer(model, name, lambda base, f=f: PiSSALinear(
            base, f.rank, f.alpha, int(niter or 0)))
        layer.lora_A.copy_(f.A)
        layer.lora_B.copy_(f.B)


def reads(config: dict) -> bool:
    start = str(config.get("init_lora_weights"))
    return start.startswith("pissa") and is_plain_lora(config | {"init_lora_weights": True})


METHOD = Method(
    "pissa", apply, count, options={"niter": 0}, save=save, load=load, reads=reads,
    four_bits="it takes s B A out of W, and what is left would be rounded to four bits once more, "
              "so that the model would not begin as its base; use a base in 16 bits")
