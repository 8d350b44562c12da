"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose moments are kept in 8 bits, in the host's memory, or both.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        w <- (1 - lr wd) w - lr m' / (sqrt(v') + eps)
    m' = m / (1 - b1^t),  v' = v / (1 - b2^t)

                        bytes a parameter, and where
    adamw               8       float32 m and v, on the device: torch's own
    adamw8bit           2.03    block-wise dynamic codes of m and v (Dettmers et al., arXiv 2110.02861), on the device
    paged_adamw         8       in pinned memory of the host; on the device only what is being updated
    paged_adamw8bit     2.03    both

An update is torch's own in each of them; they differ in how m and v are kept between two steps. Paged, therefore, is AdamW to
the last bit, and a GPU that is full of activations never holds more than two buckets of moments. Without a GPU there is nowhere
to page from: the buckets are the same, the copies fall away.
"""
import contextlib
from functools import partial

import torch
from torch.optim.adamw import adamw

from quant import dequantize_dynamic, dynamic_code, quantize_dynamic

BUCKET = 2 ** 24        # parameters updated together, or one larger tensor: 128 MB of moments, enough to keep a bus busy
SMALL = 4096            # fewer elements than this are kept in float32: norms and biases, which cost nothing


class AdamW(torch.optim.Optimizer):
    """bits: 32 or 8, of each moment. paged: keep them in the host's memory. The rest as in torch.optim.AdamW."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, fused=False, bits=32, paged=False):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused, bits=bits, paged=paged))
        self.device = next(p.device for group in self.param_groups for p in group["params"])
        self.copies = torch.cuda.Stream(self.device) if paged and self.device.type == "cuda" else None

    @torch.no_grad()
    def step(self):
        """One update. While a bucket is computed, the copies of the next one's moments are already under way."""
        todo = [(group, bucket) for group in self.param_groups for bucket in buckets(group["params"])]
        ahead = self.fetch(todo[0][1]) if todo else None
        for i, (group, bucket) in enumerate(todo):
            here = ahead                        # lets go of the bucket before it
            ahead = self.fetch(todo[i + 1][1]) if i + 1 < len(todo) else None
            self.update(group, bucket, here)
            self.store(bucket, here)
        if self.copies is not None:
            self.copies.synchronize()           # whoever reads the moments next, reads these

    def load_state_dict(self, state_dict):
        """torch's own would make float32 of the codes, and bring what is paged to the device."""
        super().load_state_dict(state_dict | {"state": {}})
        params = [p for group in self.param_groups for p in group["params"]]
        for i, state in state_dict["state"].items():
            restore(self, params[i], {key: t.clone() for key, t in state.items()})

    def fetch(self, bucket):
        """The states of a bucket on the device; the state itself where that is where it lives."""
        for p in bucket:
            if not self.state[p]:
                restore(self, p, new_state(p, self.defaults["bits"]))
        with self.on_copies():
            here = [{key: t if key == "step" else t.to(p.device, non_blocking=True) for key, t in self.state[p].items()}
                    for p in bucket]
            return here, self.copies and self.copies.record_event()

    def update(self, group, bucket, fetched):
        here, arrived = fetched
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)
        m, v = ([dequantized(p, state, name, signed) for p, state in zip(bucket, here)] for name, signed in MOMENTS)
        b1, b2 = group["betas"]
        settings = {key: group[key] for key in ("lr", "eps", "weight_decay", "fused")}
        adamw(bucket, [p.grad for p in bucket], m, v, [], [state["step"] for state in here], beta1=b1, beta2=b2, **settings,
              foreach=False, amsgrad=False, maximize=False)
        for (name, signed), moment in zip(MOMENTS, (m, v)):
            for state, values in zip(here, moment):
                requantize(state, name, signed, values)

    def store(self, bucket, fetched):
        """Send a bucket's states home. The copies wait for the update, so its memory may be used again after them."""
        if self.copies is None:
            return
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with self.on_copies():
            for p, state in zip(bucket, fetched[0]):
                for key, home in self.state[p].items():
                    if key != "step":
                        home.copy_(state[key], non_blocking=True)

    def on_copies(self):
        return contextlib.nullcontext() if self.copies is None else torch.cuda.stream(self.copies)


def buckets(params) -> list[list]:
    """The parameters that have a gradient, in runs of about BUCKET elements."""
    runs, size = [], BUCKET
    for p in params:
        if p.grad is not None:
            if size + p.numel() > BUCKET:
                runs, size = [*runs, []], 0
            runs[-1].append(p)
            size += p.numel()
    return runs


# ----- a parameter's state ------------------------------------------------------------------------------------------

MOMENTS = (("exp_avg", True), ("exp_avg_sq", False))        # m has signs, v has none


def new_state(p, bits: int) -> dict:
    """step and, for m and v, float32 zeros or the codes and scales of zeros."""
    state = {"step": torch.zeros((), device="cpu")}
    for name, signed in MOMENTS:
        state[name] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.preserve_format)
        if bits == 8 and p.numel() >= SMALL:
            state[name], state[f"{name}_absmax"] = quantize_dynamic(state[name], dynamic_code(signed, p.device))
    return state


def dequantized(p, state: dict, name: str, signed: bool):
    """A moment in float32, laid out in memory as p is."""
    if f"{name}_absmax" not in state:
        return state[name]
    values = dequantize_dynamic(state[name], state[f"{name}_absmax"], dynamic_code(signed, p.device))
    return torch.empty_like(p, dtype=torch.float32).copy_(values)


def requantize(state: dict, name: str, signed: bool, values):
    """Put a moment back, in place.

    No v is left at zero, as bitsandbytes would leave it: where it was rounded down to it, the next step would be as long as
    m / eps. What truly is zero is lifted with it, by 3e-7 of its block's largest.
    """
    if f"{name}_absmax" in state:
        codes, absmax = quantize_dynamic(values, dynamic_code(signed, values.device))
        if not signed:
            codes = codes.clamp_(min=1)
        state[name].copy_(codes)
        state[f"{name}_absmax"].copy_(absmax)


def restore(optimizer, p, state: dict):
    """Put `state` where `optimizer` keeps p's: the host's memory or p's device. torch's fused AdamW has its steps there, too."""
    for key, t in state.items():
        if key == "step":
            t = t.to(p.device if optimizer.defaults["fused"] else "cpu")
        elif optimizer.defaults.get("paged") and p.is_cuda:
            t = t.cpu().pin_memory()
        else:
            t = t.to(p.device)
        optimizer.state[p][key] = t


def state_tensors(trained: dict, optimizer) -> dict:
    """Every trained weight and what `optimizer` keeps of it, by name: "NAME/weight", "NAME/exp_avg" ..."""
    tensors = {f"{name}/weight": p.detach() for name, p in trained.items()}
    for name, p in trained.items():
        tensors |= {f"{name}/{key}": t for key, t in optimizer.state[p].items()}
    return tensors


def restore_tensor(trained: dict, optimizer, key: str, tensor):
    """Put back one tensor that `state_tensors` gave."""
    name, what = key.rsplit("/", 1)
    if what == "weight":
        trained[name].data.copy_(tensor)
    else:
        restore(optimizer, trained[name], {what: tensor.clone()})


OPTIMIZERS = {"adamw": torch.optim.AdamW, "adamw8bit": partial(AdamW, bits=8), "paged_adamw": partial(AdamW, paged=True),
              "paged_adamw8bit": partial(AdamW, bits=8, paged=True)}
