"""AdamW (arXiv 1711.05101) with its moments in 8 bits, in the host's memory, or both.

    m <- b1 m + (1 - b1) g            the mean of the last gradients
    v <- b2 v + (1 - b2) g^2          and of their squares
    m' = m / (1 - b1^t)               step t: m and v start at 0, which this corrects
    v' = v / (1 - b2^t)
    w <- (1 - lr wd) w - lr m' / (sqrt(v') + eps)

m reaches back over about 1 / (1 - b1) = 10 steps, v over 1 / (1 - b2) = 1,000. With b1 = 0.9, m is
0.1 g after the first step, and m' = m / (1 - 0.9) = g. Likewise v' = g^2, so the first step is lr
long; uncorrected it would be 0.1 / sqrt(0.001) = 3.2 lr. eps bounds the step where all gradients
were nearly 0. "Decoupled" decay shrinks w directly. Added to g instead, it would be divided by
sqrt(v') too, and weights with large gradients would decay less.

                        bytes per trained parameter
    adamw               8       float32 m and v, on the device: torch's own
    adamw8bit           2.03    a byte each for m and v, plus two float32 scales per 256 parameters:
                                2 + 8 / 256 (Dettmers et al., arXiv 2110.02861)
    paged_adamw         8       in pinned host memory; only what is being updated visits the GPU
    paged_adamw8bit     2.03    both

The update itself is torch's in all four. They differ in how m and v are kept between two steps, so
paged_adamw is AdamW to the last bit.

Why page? Memory peaks around the loss, when all activations are kept. m and v are not needed then,
and are not on the GPU. They visit in `step`, when activations are gone, at most two buckets at a
time. The cost: all of them cross the bus twice per step, partly hidden behind the update. LoRA with
r = 64 on Qwen2.5-0.5B trains 35.2M parameters: 282 MB each way, 11 ms out and 11 ms back at 25 GB/s
(PCIe 4.0, 16 lanes). Training all 494M: 3.95 GB each way, 158 ms out and 158 ms back. In 8 bits it
is a quarter. So LoRA hardly needs paging; full fine-tuning may not fit without it. Without a GPU
nothing is copied.

QLoRA's paged optimizer uses CUDA's unified memory, which moves pages only when the GPU is full.
Here the moments are always on the host: always the price, but no surprise.
"""
from functools import partial

import torch
from torch.optim.adamw import adamw

from plumbing.shards import shard_like
from quant import dequantize_dynamic, dynamic_code, quantize_dynamic

BUCKET = 2 ** 24        # parameters updated together: 128 MB of moments keep a bus busy
SMALL = 4096            # elements; below (norms, biases) 8 bits would save next to nothing
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}    # torch's names of m and v -> has it a sign?


class AdamW(torch.optim.Optimizer):
    """bits: 32 or 8, per moment. paged: keep them in the host's memory. Else torch.optim.AdamW."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
                 fused=False, bits=32, paged=False):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "fused": fused,
                                  "weight_decay": weight_decay, "bits": bits, "paged": paged})
        device = next(p.device for group in self.param_groups for p in group["params"])
        self.copies = None      # a queue of copies that runs next to the GPU's computing
        if paged and device.type == "cuda":
            self.copies = torch.cuda.Stream(device)

    @torch.no_grad()
    def step(self):
        """One update. While a bucket is computed, the next one's moments are being copied:

            copies    fetch 1   fetch 2   store 1   fetch 3   store 2 ...
            compute             update 1            update 2
        """
        work = [(group, bucket) for group in self.param_groups
                for bucket in split_into_buckets(group["params"])]
        fetched = self.fetch(work[0][1]) if work else None
        for i, (group, bucket) in enumerate(work):
            states, arrived = fetched           # lets go of the bucket before
            fetched = self.fetch(work[i + 1][1]) if i + 1 < len(work) else None
            if arrived is not None:
                torch.cuda.current_stream(bucket[0].device).wait_event(arrived)
            self.update(group, bucket, states)
            self.store(bucket, states)
        if self.copies is not None:
            self.copies.synchronize()           # from here on anyone may read the moments

    def fetch(self, bucket):
        """Start copying a bucket's states to the device -> the copies, the event of their arrival.

        Without paging: the states themselves, and None.
        """
        for p in bucket:
            if not self.state[p]:
                put_state(self, p, make_state(p, self.defaults["bits"]))
        states = [self.state[p] for p in bucket]
        if self.copies is None:
            return states, None
        with torch.cuda.stream(self.copies):
            for i, p in enumerate(bucket):
                states[i] = states[i] | {key: t.to(p.device, non_blocking=True)
                                         for key, t in states[i].items() if key != "step"}
            return states, self.copies.record_event()

    def update(self, group, bucket, states):
        """torch's own AdamW on a bucket: weights and states change in place."""
        m, v = ([dequantize_moment(p, state, name) for p, state in zip(bucket, states)]
                for name in MOMENTS)
        grads, steps = [p.grad for p in bucket], [state["step"] for state in states]
        b1, b2 = group["betas"]
        adamw(bucket, grads, m, v, [], steps, beta1=b1, beta2=b2, lr=group["lr"], eps=group["eps"],
              weight_decay=group["weight_decay"], fused=group["fused"],
              foreach=False, amsgrad=False, maximize=False)
        for name, moments in zip(MOMENTS, (m, v)):
            for state, values in zip(states, moments):
                requantize_moment(state, name, values)

    def store(self, bucket, states):
        """Copy a bucket's states back to the host, once its update is computed.

        Their memory belongs to the stream `copies`, so only later work on that stream reuses it.
        """
        if self.copies is None:
            return
        self.copies.wait_stream(torch.cuda.current_stream(bucket[0].device))
        with torch.cuda.stream(self.copies):
            for p, state in zip(bucket, states):
                for key, home in self.state[p].items():
                    if key != "step":
                        home.copy_(state[key], non_blocking=True)

    def load_state_dict(self, state_dict):
        """torch's would turn the codes into float32, and bring paged moments to the device."""
        super().load_state_dict(state_dict | {"state": {}})
        params = [p for group in self.param_groups for p in group["params"]]
        for i, state in state_dict["state"].items():
            put_state(self, params[i], {key: t.clone() for key, t in state.items()})


def split_into_buckets(params) -> list[list]:
    """The parameters that have a gradient, in runs of at most BUCKET elements or one tensor."""
    buckets, size = [], BUCKET      # as if one were full, so that the first tensor begins another
    for p in params:
        if p.grad is None:
            continue
        if size + p.numel() > BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel()
    return buckets


# ----- a parameter's moments ----------------------------------------------------------------------
# One byte of m, worked through: m = 0.003 in a block of 256 with max|m| = 0.4 is 0.0075 of it. The
# nearest of dynamic_code's values is 0.00746875, number 154. Stored: the byte 154, and 0.4 once for
# all 256. It comes back as 0.00746875 * 0.4 = 0.0029875, 0.4 % off. v, never negative, has the code
# without a sign.

def make_state(p, bits: int) -> dict:
    """The state before the first step: t = 0, and m = v = 0, in float32 or as codes and scales."""
    state = {"step": torch.zeros(())}
    for name, signed in MOMENTS.items():
        state[name] = torch.zeros_like(p, dtype=torch.float32)
        if bits == 8 and p.numel() >= SMALL:
            code = dynamic_code(signed, p.device)
            state[name], state[f"{name}_absmax"] = quantize_dynamic(state[name], code)
    return state


def dequantize_moment(p, state: dict, name: str):
    """m or v in float32, with p's strides: the fused update goes through memory in order."""
    if f"{name}_absmax" not in state:
        return state[name]
    code = dynamic_code(MOMENTS[name], p.device)
    values = dequantize_dynamic(state[name], state[f"{name}_absmax"], code)
    return torch.empty_like(p, dtype=torch.float32).copy_(values)


def requantize_moment(state: dict, name: str, values):
    """Put m or v back into `state`, in place.

    v never becomes 0, as it may in bitsandbytes. Let |g| = 3e-5 in a block where another g is 1.
    Then v is 9e-10 of the block's maximum, and the nearest code is 0. From v = 0 the next step is
    32 lr long, 1 / sqrt(1 - b2) times too long; if its gradient is 0, m' / eps = 3000 lr. From code
    1, which is 3e-7 of the maximum, the step is 0.05 lr: too short, which does no harm.
    """
    if f"{name}_absmax" not in state:
        return
    codes, absmax = quantize_dynamic(values, dynamic_code(MOMENTS[name], values.device))
    if name == "exp_avg_sq":
        codes.clamp_(min=1)
    state[name].copy_(codes)
    state[f"{name}_absmax"].copy_(absmax)


# ----- saving and resuming ------------------------------------------------------------------------
# For all four, so that a run may go on with another optimizer of the same number of bits.

def state_tensors(trained: dict, optimizer) -> dict:
    """All that resuming needs: {"NAME/weight": p, "NAME/exp_avg": m, "NAME/step": t ...}.

    trained: {NAME: parameter}. `expected_tensors` says how they must look, and `restore_tensor`
    puts each of them back.
    """
    tensors = {}
    for name, p in trained.items():
        state = {"weight": p.detach()} | optimizer.state[p]
        tensors |= {f"{name}/{key}": t for key, t in state.items()}
    return tensors


def expected_tensors(trained: dict, optimizer, names) -> dict:
    """What `state_tensors` must hold if it holds these names: of its shapes and types, no values.

    A parameter has no moments before its first gradient. But if it has anything of them, it must
    have all.
    """
    expected, bits = {}, optimizer.defaults.get("bits", 32)
    for name, p in trained.items():
        weight = torch.empty(p.shape, dtype=p.dtype, device="meta")         # of a shard: the whole
        state = {f"{name}/{key}": t for key, t in make_state(weight, bits).items()}
        expected |= {f"{name}/weight": weight} | (state if state.keys() & names else {})
    return expected


def restore_tensor(trained: dict, optimizer, key: str, tensor):
    """Put back one tensor of `state_tensors`: a weight in place, a moment where it is kept."""
    name, what = key.rsplit("/", 1)
    tensor = shard_like(tensor, trained[name])
    if what == "weight":
        trained[name].data.copy_(tensor)
    else:
        put_state(optimizer, trained[name], {what: tensor.clone()})


def put_state(optimizer, p, state: dict):
    """Put `state` where `optimizer` keeps p's: in the host's pinned memory, or on p's device.

    The step count t stays on the host, except for fused AdamW, which reads it on the device.
    """
    for key, t in state.items():
        if key == "step":
            t = t.to(p.device if optimizer.defaults["fused"] else "cpu")
        elif optimizer.defaults.get("paged") and p.is_cuda:
            t = t.cpu().pin_memory()        # pinned: the GPU copies it while the host goes on
        else:
            t = t.to(p.device)
        optimizer.state[p][key] = t


OPTIMIZERS = {"adamw": torch.optim.AdamW,
              "adamw8bit": partial(AdamW, bits=8),
              "paged_adamw": partial(AdamW, paged=True),
              "paged_adamw8bit": partial(AdamW, bits=8, paged=True)}
