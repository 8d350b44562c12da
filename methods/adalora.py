r"""AdaLoRA: a budget of ranks that moves to the layers that need it (Zhang et al., 2303.10512).

    dW = s P diag(l) Q                      equation 3: P (out, r), l (r,), Q (r, in)

like an SVD. A triplet (column of P, number in l, row of Q) can be switched off by l_i = 0, alone
and for good or until later, whereas a row of LoRA's A and a column of B cannot be told to be
unimportant. Three parts:

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

from lora import (AdaptedLinear, adapted_layers, base_entries, find_targets, last_name,
                  wrap_targets, write_adapter)
from methods import Method, Setup, Shapes, fill_in, trained_parameters
from plumbing.errors import UserError
from plumbing.fields import Number, check, whole

B1 = B2 = 0.85
PREFIX = "base_model.model."
PARTS = ("lora_B", "lora_E", "lora_A")      # PEFT's names of P, l and Q, here and in the files


class SVDLinear(AdaptedLinear):
    """h = base(x) + s P diag(l) Q x."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, init_rank: int):
        super().__init__(base)
        self.scale = alpha / (init_rank + 1e-5)
        device = next(iter(base.state_dict().values())).device
        P = torch.empty(base.out_features, rank, device="cpu")
        Q = torch.empty(rank, base.in_features, device="cpu")
        starts = (nn.init.normal_(P, std=0.02), torch.zeros(rank, 1), nn.init.normal_(Q, std=0.02))
        for name, start in zip(PARTS, starts):      # l = 0, so that the model begins as its base
            self.register_parameter(name, nn.Parameter(start.to(device)))
            self.register_buffer(f"I_{name}", torch.zeros_like(start, device=device), False)
            self.register_buffer(f"U_{name}", torch.zeros_like(start, device=device), False)
        self.register_buffer("on", torch.ones(rank, 1, dtype=torch.bool, device=device), False)

    def adapted(self, x):
        u = F.linear(x, (self.lora_E * self.lora_A).to(x.dtype)) * self.scale       # (..., r)
        return self.base(x) + F.linear(u, self.lora_B.to(x.dtype))

    def delta(self):
        return self.scale * self.lora_B @ (self.lora_E * self.lora_A)

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
    grads = [p.grad for p in trained_parameters(model).values()]
    overflow = not all(grad.isfinite().all() for grad in grads)     # float16: AdamW skips it, too
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
            layer.lora_E.mul_(layer.on)


def penalty(model, setup: Setup):
    """orth times the mean of ||P^T P - I|| and ||Q Q^T - I|| over all layers: a number ()."""
    distances = []
    for layer in adapted_layers(model).values():
        P, Q = layer.lora_B, layer.lora_A
        one = torch.eye(len(Q), device=Q.device)
        distances += [(P.T @ P - one).norm(), (Q @ Q.T - one).norm()]
    return setup.options["orth"] * torch.stack(distances).mean()


# ----- what is common to all methods --------------------------------------------------------------

def apply(model, setup: Setup):
    start, (first, last) = init_rank(setup), phases(setup.steps)
    if start < setup.rank:
        raise UserError(f"--options init_rank={start}: it must be at least --rank {setup.rank}")
    if setup.steps and first >= last:
        raise UserError(f"AdaLoRA needs at least 4 steps for its budget to fall, and not "
                        f"{setup.steps}; raise --max_steps")
    wrap_targets(model, setup.targets, lambda layer: SVDLinear(layer, start, setup.alpha, start))


def count(shapes: Shapes, setup: Setup) -> int:
    """L sum of init_rank (in + out + 1)."""
    return shapes.layers * init_rank(setup) * sum(i + o + 1 for i, o in shapes.maps.values())


def kept(model) -> dict:
    """I', U' and what is on: what --resume needs."""
    return {f"{name}.{key}": buffer for name, layer in adapted_layers(model).items()
            for key, buffer in layer.named_buffers(recurse=False)}


def save(method, model, folder, base_model: str, setup: Setup):
    tensors, pattern = {}, {}
    for name, layer in adapted_layers(model).items():
        on = layer.on[:, 0]
        pattern[f"{name}.lora_E"] = on.tolist()
        kept_parts = (layer.lora_B[:, on], layer.lora_E[on], layer.lora_A[on])
        tensors |= {f"{PREFIX}{name}.{part}": p for part, p in zip(PARTS, kept_parts)}
    first, last = phases(setup.steps)
    write_adapter(folder, tensors, base_entries(model, base_model) | {
        "peft_type": "ADALORA", "target_r": setup.rank, "init_r": init_rank(setup),
        "lora_alpha": setup.alpha, "rank_pattern": pattern, "bias": "none",
        "target_modules": sorted({last_name(name) for name in adapted_layers(model)}),
        "total_step": setup.steps, "tinit": first, "tfinal": setup.steps - last,
        "beta1": B1, "beta2": B2, "orth_reg_weight": setup.options["orth"]})


def load(method, model, config: dict, tensors: dict, folder):
    shape = {"init_r": whole(1), "lora_alpha": Number(above=0), "rank_pattern?": (dict, None)}
    check(config, shape, folder / "adapter_config.json")
    start, alpha = config["init_r"], config["lora_alpha"]
    tensors = {key.removeprefix(PREFIX): tensor.float() for key, tensor in tensors.items()}
    ranks = {key.removesuffix(".lora_A"): len(Q) for key, Q in tensors.items()
             if key.endswith(".lora_A")}
    pattern = config.get("rank_pattern") or {f"{name}.lora_E": [] for name in ranks}
    if not ranks or {f"{name}.lora_E" for name in ranks} != set(pattern):
        raise UserError(f"{folder}: the adapter's tensors are not those of its rank_pattern")
    in_order = iter([ranks[name] for name in find_targets(model, list(ranks))])
    wrap_targets(model, list(ranks), lambda layer: SVDLinear(layer, next(in_order), alpha, start))
    fill_in(trained_parameters(model), tensors, folder)


METHOD = Method(
    "adalora", apply, count, options={"init_rank": 0, "orth": 0.5}, penalty=penalty,
    after_update=after_update, kept=kept, save=save, load=load)
