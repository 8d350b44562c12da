r"""Several LoRA runs in one pass: K adapters side by side on one base, for `sweep.py --stack K`.

Most runs of a sweep differ in rate and rank alone. Base, samples and their order are the same. So
a micro-batch of B samples is laid K times one below the other, a copy for each run. The frozen W
multiplies all K B samples in one product, and copy k also goes through the adapter of run k:

               x (K B, T, in)           the B samples for run 1, the same for run 2, ...
             /                \
    W x in one product      s_k B_k A_k x, a batched product: each copy with its own A and B
             \                /
               h (K B, T, out)

A pass over K copies takes hardly more kernels than a pass over one, and larger products. This is
for GPUs, which a few samples leave idle most of the time, and for small models: on two cores of a
CPU four runs of nano take half the time. Four of SmolLM2 gain nothing there (results/speed.md).

No run knows of the others. Each has its own loss, gradient norm, AdamW and rate. One backward pass
of the sum of all losses gives each adapter the gradient of its own loss, because no other loss
depends on it. So a run has the curve that it has alone, up to rounding. If it diverges, nan fills
its own copy alone, because nothing in the decoder mixes the samples of a batch.

Ranks differ. All A_k and B_k have the size of the largest rank, and are zero beyond their own.
There they stay zero: dL/dA = s B^T dy x^T is zero where B is, dL/dB = s dy (A x)^T is zero where A
is, and AdamW does not move a zero whose gradients were all zero.

K copies have K times the activations of one. The base is in memory once.
"""
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn as nn

import dataset
import train
from lora import AdaptedLinear, lora_layers, remove_lora, wrap_layer
from methods import find_method
from model import Transformer, find_supervised
from plumbing.device import send
from settings import Config

# What the runs of a stack may differ in. Whether the base is in four bits follows from two of them.
OWN = {"method", "nf4", "options", "rank", "alpha", "lr", "schedule", "warmup_ratio",
       "weight_decay", "grad_clip", "out"}


def shared_settings(config: Config) -> tuple | None:
    """Runs for which this is equal can train in one pass. None: the run must train alone.

    With dropout a run would draw other zeros than it draws alone. In 8 bits the moments of 256
    neighbours share a scale, and here a run's numbers have other neighbours.
    """
    if config.method == "full" or config.dropout or config.optimizer.endswith("8bit"):
        return None
    if not find_method(config.adapter_method).stacks:
        return None
    return config.four_bits, *(value for name, value in vars(config).items() if name not in OWN)


# ----- the adapters -------------------------------------------------------------------------------

class StackedLinear(AdaptedLinear):
    """h = base(x) + s_k B_k A_k x for the k-th of K equal parts of the samples in x (K B, T, in).

    A (K, r, in), B (K, out, r) and the factors s (K, 1, 1), where r is the largest rank.
    """

    def __init__(self, base: nn.Module, A, B, scale):
        super().__init__(base)
        self.lora_A, self.lora_B, self.scale = nn.Parameter(A), nn.Parameter(B), scale

    def adapted(self, x):
        y, K = self.base(x), len(self.scale)                                # (K B, T, out)
        u = x.reshape(K, -1, x.shape[-1]) @ self.lora_A.to(x.dtype).mT      # (K, B T, r)
        u = (u * self.scale).to(x.dtype)
        h = torch.baddbmm(y.view(K, -1, y.shape[-1]), u, self.lora_B.to(x.dtype).mT)
        return h.view(y.shape)


class Stack(NamedTuple):
    model: Transformer
    runs: list[train.Run]
    rows: dict[str, tuple]      # {"lora_A": K tensors (1, all A of a run), "lora_B": ...}


@torch.no_grad()
def stack_runs(configs: list[Config], data: train.Data, model: Transformer) -> Stack:
    """Runs before their first step, all on `model`. Each starts from the A that it has alone.

    There is one matrix of all A, (K, numbers), with a row for each run, and one of all B. What the
    layers have are views of them. So AdamW and the gradient norm of a run see two tensors, its
    rows, and not two for each layer.
    """
    runs, adapters = [], []
    for config in configs:
        runs.append(train.set_up(config, data, model))
        adapters.append(lora_layers(model))
        remove_lora(model)
    K, r = len(configs), max(config.rank for config in configs)
    layers = list(adapters[0].values())
    scale = torch.tensor([next(iter(adapter.values())).scale for adapter in adapters],
                         device=model.device).view(K, 1, 1)
    sizes_A = [r * layer.base.in_features for layer in layers]
    sizes_B = [r * layer.base.out_features for layer in layers]
    all_A = torch.zeros(K, sum(sizes_A), device=model.device)
    all_B = torch.zeros(K, sum(sizes_B), device=model.device)
    for name, A, B in zip(adapters[0], all_A.split(sizes_A, 1), all_B.split(sizes_B, 1)):
        A, B = A.view(K, r, -1), B.view(K, -1, r)
        wrap_layer(model, name, lambda base, A=A, B=B: StackedLinear(base, A, B, scale))
        for k, (run, adapter) in enumerate(zip(runs, adapters)):
            own_A, own_B = A[k, :run.config.rank], B[k, :, :run.config.rank]
            own_A.copy_(adapter[name].lora_A)
            run.trained |= {f"{name}.lora_A": own_A, f"{name}.lora_B": own_B}
    rows = {"lora_A": all_A.split(1), "lora_B": all_B.split(1)}
    for k, run in enumerate(runs):
        of_run = {name: of_all[k] for name, of_all in rows.items()}
        run.optimizer = train.make_optimizer(run.config, of_run, run.method)
    return Stack(model, runs, rows)


# ----- the loop -----------------------------------------------------------------------------------

class Batch(NamedTuple):
    """A micro-batch on the device, with what the loss needs of its labels."""
    ids: torch.Tensor           # (B, T)
    positions: torch.Tensor     # (n,): which of the B T positions predict a supervised token
    targets: torch.Tensor       # (n,): these tokens


def to_batch(ids, labels, device) -> Batch:
    return Batch(*(send(tensor, device) for tensor in (ids, *find_supervised(labels))))


def copies_nll(stack: Stack, batch: Batch):
    """The NLL of each run, summed over the supervised tokens of `batch`, in nats: (K,)."""
    K = len(stack.runs)
    h = stack.model.hidden(batch.ids.repeat(K, 1))                          # (K B, T, C)
    h = h.reshape(K, -1, h.shape[-1]).index_select(1, batch.positions)      # (K, n, C)
    return torch.stack([stack.model.nll(h_k, batch.targets) for h_k in h])


@torch.no_grad()
def mean_nlls(stack: Stack, batches: list[Batch]) -> list[float]:
    """engine.mean_nll of each run."""
    sums = torch.stack([copies_nll(stack, batch) for batch in batches])     # (batches, K)
    n = sum(len(batch.targets) for batch in batches)
    return (sums.cpu().double().sum(0) / n).tolist()


def make_stacked_step(stack: Stack):
    """train.make_step for all runs at once. A run's seconds are its share, 1 / K of the step."""
    start = time.perf_counter()
    first, device = stack.runs[0], stack.model.device
    config, data = first.config, first.data
    indices = dataset.window(len(data.train_set), config.batch_eff, first.progress.step,
                             config.seed)
    samples = [data.train_set[i] for i in indices]
    batches = [to_batch(*micro_batch, device)
               for micro_batch in dataset.micro_batches(samples, config.micro_bs)]
    tokens = sum(len(batch.targets) for batch in batches)

    totals = torch.zeros(len(stack.runs), device=device)
    for batch in batches:
        nll = copies_nll(stack, batch)                                      # (K,)
        sum(run.scaler.scale(loss) for run, loss in zip(stack.runs, nll / tokens)).backward()
        totals += nll.detach()

    give_gradients(stack)
    for run in stack.runs:
        lr = train.lr_at(run.progress.step, run.config)
        train.clip_and_update(run.optimizer, run.scaler, lr, run.config.grad_clip)
    nll_sums = totals.tolist()
    seconds = (time.perf_counter() - start) / len(stack.runs)
    for run, nll in zip(stack.runs, nll_sums):
        run.progress.note_step(samples, nll, tokens, seconds)


def give_gradients(stack: Stack):
    """Move the gradients from the layers, where backward() left them, to the rows of the runs."""
    layers = [module for module in stack.model.modules() if isinstance(module, StackedLinear)]
    for name, rows in stack.rows.items():
        parameters = [getattr(layer, name) for layer in layers]
        gradients = torch.cat([p.grad.flatten(1) for p in parameters], dim=1)
        for row, gradient in zip(rows, gradients.split(1)):
            row.grad = gradient
        for p in parameters:
            p.grad = None


def stacked_steps(stack: Stack) -> Iterator[bool]:
    """train.training_steps for all runs at once."""
    first, progress = stack.runs[0].config, stack.runs[0].progress
    test_batches = [to_batch(*micro_batch, stack.model.device) for micro_batch in
                    dataset.micro_batches(stack.runs[0].data.test_set, 4 * first.micro_bs)]
    while True:
        due = first.evaluates(progress.step)
        if progress.rows and progress.rows[-1]["step"] == progress.step:
            due = False             # the base was evaluated before
        if due:
            for run, nll in zip(stack.runs, mean_nlls(stack, test_batches)):
                train.add_row(run, nll)
        yield due
        if progress.step == first.max_steps:
            return
        make_stacked_step(stack)
