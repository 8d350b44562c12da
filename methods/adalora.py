r"""AdaLoRA: a budget of ranks that moves to the layers that need it (Zhang et al., 2303.10512).

    dW = s P diag(l) Q                      equation 3: P (out, r), l (r,), Q (r, in)

like an SVD. A triplet is a column of P, a number in l and a row of Q. l_i = 0 switches it off, and
later it may be switched on again. LoRA's A and B have no such number: nothing says which of their r
directions matters. Three parts:

Orthogonality. To make l_i say how much a triplet does, P and Q are kept near orthonormal: to the
loss is added `orth` times the mean over all P and Q of ||P^T P - I|| and ||Q Q^T - I||. (The paper
adds the squares, equation 4. Its code and PEFT add the norms, and so do we.)

Importance. The sensitivity of a number w is I = |w dL/dw|: about how much the loss would change
without it. One batch's I is noisy. So its moving average and its moving uncertainty are multiplied,
and those of a triplet are added up (equations 7 to 11):

    I' = b1 I' + (1 - b1) I             U' = b2 U' + (1 - b2) |I - I'|          b1 = b2 = 0.85
    score_i = (I' U')(l_i) + mean of (I' U') over P's column + mean over Q's row

Budget. All layers together keep the `budget` triplets of the highest scores; the others get l = 0.
It begins at init_rank (default 1.5 r) per target, stays there for a tenth of the steps, falls as a
cubic (equation 12) to r per target, and for the last three tenths nothing is switched any more.

Trained: init_rank (in + out + 1) per target, of which at the end r on average are not zero. Saved:
PEFT's form, without what is switched off. Merges. s = alpha / init_rank, as in PEFT.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from lora import (PREFIX, AdaptedLinear, adapted_layers, find_targets, last_name,
                  refuse_unwrappable, wrap_layer, wrap_targets)
from methods import Method, Setup, Shapes, Target, fill_in, read_rank_and_alpha, trained_parameters
from plumbing.errors import UserError

B1 = B2 = 0.85
PARTS = {"P": "lora_B", "l": "lora_E", "Q": "lora_A"}       # PEFT's names of them


class SVDLinear(AdaptedLinear):
    """h = base(x) + s P diag(l) Q x."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, init_rank: int):
        super().__init__(base)
        self.scale = alpha / (init_rank + 1e-5)
        # l = 0, so that the model begins as its base. Drawn on the CPU, as LoRA's A.
        P = 0.02 * torch.randn(base.out_features, rank, device="cpu")
        l = torch.zeros(rank, 1)
        Q = 0.02 * torch.randn(rank, base.in_features, device="cpu")
        for name, start in (("P", P), ("l", l), ("Q", Q)):
            p = nn.Parameter(start.to(self.device))
            self.register_parameter(name, p)
            self.register_buffer(f"I_{name}", torch.zeros_like(p), persistent=False)
            self.register_buffer(f"U_{name}", torch.zeros_like(p), persistent=False)
        self.register_buffer("on", torch.ones_like(self.l, dtype=torch.bool), persistent=False)

    def adapted(self, x):
        u = F.linear(x, (self.l * self.Q).to(x.dtype)) * self.scale         # (..., r)
        return self.base(x) + F.linear(u, self.P.to(x.dtype))

    def delta(self):
        return self.scale * self.P @ (self.l * self.Q)

    def observe(self):
        """Take this step's gradients into I' and U'."""
        for name in PARTS:
            p, I, U = (getattr(self, key) for key in (name, f"I_{name}", f"U_{name}"))
            now = (p * p.grad).abs()
            I.mul_(B1).add_(now, alpha=1 - B1)
            U.mul_(B2).add_((now - I).abs(), alpha=1 - B2)

    def scores(self):
        """(r,): how much each triplet matters."""
        P, l, Q = (getattr(self, f"I_{name}") * getattr(self, f"U_{name}") for name in PARTS)
        return l[:, 0] + P.mean(dim=0) + Q.mean(dim=1)


# ----- the schedule -------------------------------------------------------------------------------

def init_rank(setup: Setup) -> int:
    return setup.options["init_rank"] or math.ceil(1.5 * setup.rank)


def phases(steps: int) -> tuple[int, int]:
    """-> the last step with the whole budget, and the step from which on nothing is switched."""
    return math.ceil(0.1 * steps), steps - math.ceil(0.3 * steps)


def budget_at(step: int, setup: Setup, n_targets: int) -> int:
    """How many triplets are on after update `step`, all targets together (equation 12)."""
    first, last = phases(setup.steps)
    left = 1 - min(1, max(0, (step - first) / (last - first)))             # 1 .. 0
    spare = n_targets * (init_rank(setup) - setup.rank)
    return int(spare * left ** 3 + n_targets * setup.rank)


@torch.no_grad()
def after_update(model, step: int, setup: Setup):
    """Look at the gradients, switch, and keep off what is off (AdamW's momentum moves it)."""
    layers = list(adapted_layers(model).values())
    first, last = phases(setup.steps)
    finite = [p.grad.isfinite().all() for p in trained_parameters(model).values()]
    overflow = not torch.stack(finite).all()        # float16: AdamW skips the step, too
    if step < last and not overflow:
        for layer in layers:
            layer.observe()
    if first < step <= last:
        scores = [layer.scores() for layer in layers]
        off = len(layers) * init_rank(setup) - budget_at(step, setup, len(layers))
        if off:
            threshold = torch.cat(scores).kthvalue(off).values
            for layer, score in zip(layers, scores):
                layer.on.copy_((score > threshold)[:, None])
    if step > first:
        for layer in layers:
            layer.l.mul_(layer.on)


def penalty(model, setup: Setup):
    """orth times the mean of ||P^T P - I|| and ||Q Q^T - I|| over all layers: a number ()."""
    distances = []
    for layer in adapted_layers(model).values():
        one = torch.eye(len(layer.Q), device=layer.device)
        distances += [(layer.P.T @ layer.P - one).norm(), (layer.Q @ layer.Q.T - one).norm()]
    return setup.options["orth"] * torch.stack(distances).mean()


# ----- what is common to all methods --------------------------------------------------------------

def apply(model, setup: Setup):
    start, (first, last) = init_rank(setup), phases(setup.steps)
    if start < setup.rank:
        raise UserError(f"--options init_rank={start}: it must be at least --rank {setup.rank}")
    if setup.steps and first >= last:
        raise UserError(f"AdaLoRA needs at least 3 steps for its budget to fall, and not "
                        f"{setup.steps}; raise --max_steps")
    wrap_targets(model, setup.targets, lambda layer: SVDLinear(layer, start, setup.alpha, start))


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of init_rank (in + out + 1)."""
    return shapes.layers * init_rank(setup) * sum(i + o + 1 for i, o in shapes.maps.values())


def keeps(t: Target, setup: Setup) -> int:
    """s N r + s r in per map: u, diag(l) Q; in 16 bits 2 r out: P.

    r is init_rank. u for dP, diag(l) Q for dx, the 16-bit copy of P for du.
    """
    r = init_rank(setup)
    return t.s * t.N * r + t.dx * t.s * r * t.size_in + t.casts(r * t.size_out)


def pack(model, setup: Setup) -> tuple[dict, dict]:
    """Without the triplets that are switched off."""
    tensors, pattern = {}, {}
    for name, layer in adapted_layers(model).items():
        on = layer.on[:, 0]
        pattern[f"{name}.lora_E"] = on.tolist()
        for part, p in (("P", layer.P[:, on]), ("l", layer.l[on]), ("Q", layer.Q[on])):
            tensors[f"{PREFIX}{name}.{PARTS[part]}"] = p
    first, last = phases(setup.steps)
    return tensors, {
        "peft_type": "ADALORA", "target_r": setup.rank, "init_r": init_rank(setup),
        "lora_alpha": setup.alpha, "rank_pattern": pattern, "bias": "none",
        "target_modules": sorted({last_name(name) for name in adapted_layers(model)}),
        "total_step": setup.steps, "tinit": first, "tfinal": setup.steps - last,
        "beta1": B1, "beta2": B2, "orth_reg_weight": setup.options["orth"]}


def unpack(model, config: dict, tensors: dict, folder):
    start, alpha = read_rank_and_alpha(config, folder, "init_r")
    ranks = {key.removeprefix(PREFIX).removesuffix(".lora_A"): len(Q)
             for key, Q in tensors.items() if key.endswith(".lora_A") and Q.dim() == 2}
    pattern = config.get("rank_pattern") or {f"{name}.lora_E": [] for name in ranks}
    if not ranks or {f"{name}.lora_E" for name in ranks} != set(pattern):
        raise UserError(f"{folder}: the adapter's tensors are not those of its rank_pattern")
    names = find_targets(model, list(ranks))
    refuse_unwrappable(model, names)
    parameters = {}
    for name in names:
        layer = wrap_layer(model, name, lambda base: SVDLinear(base, ranks[name], alpha, start))
        parameters |= {f"{PREFIX}{name}.{PARTS[part]}": getattr(layer, part) for part in PARTS}
    fill_in(parameters, tensors, folder)


METHOD = Method(
    "adalora", apply, count, lr=4e-3, options={"init_rank": 0, "orth": 0.5}, penalty=penalty,
    after_update=after_update, pack=pack, unpack=unpack, keeps=keeps, buffers=2.0)
