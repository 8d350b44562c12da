"""Fine-tune a decoder on chat data, fully or with LoRA: one run, in the order in which it happens.

    python train.py --rank 64 --lr 2e-4                     # the embedded model and data, on a CPU
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --rank 64 --lr 2e-4
    python train.py --method full --lr 2e-5 --resume        # go on where it stopped, or begin

`--out` then holds log.csv (one row per evaluation), run.json (settings, versions), the tokenizer,
and the adapter in PEFT's files or, after full fine-tuning, a whole Hugging Face checkpoint. While
the run goes on there is also state/, which is what --resume needs.

The file reads as the run goes: read the data, load the model, choose what is trained, look where
the run stands, show what is about to happen, loop over steps, save, show what was learned. `train`,
at the end, calls these parts in this order. A run uses one device, or with torchrun several: each
process has the whole model, or with --fsdp its shard of each weight, and computes its share of a
step's micro-batches. Where that matters it says "all processes" (plumbing/processes.py and
plumbing/shards.py have what they say to each other).

The first command makes 200 steps of 4 x 4 samples, 0.43 epochs of nano's 7,470 samples. All losses
are NLLs in nats per supervised token. A model that gives each of V tokens the same probability has
ln V, 11.9 for V = 151,936.
"""
import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import curves
import dataset
from curves import draw_runs, lowest_row
from engine import generate_answers, load_base, load_shards, mean_nll
from lora import adapted_layers
from methods import Method, find_method, kept_buffers, put_on, setup_of
from model import Transformer
from optim import OPTIMIZERS, expected_tensors, restore_tensor, state_tensors
from plumbing import processes, records, shards
from plumbing.checkpoint import weight_files
from plumbing.cli import run_command
from plumbing.device import DTYPES, multiplies_bfloat16, peak_gb, send
from plumbing.errors import UserError, errors_in_one_line, interruption
from plumbing.fields import Number, check, whole
from plumbing.files import hash_file, make_folder, read_json, resolve
from plumbing.state import load_state, save_state
from plumbing.text import print_fitted, stack_cells, text_width
from plumbing.workers import claim_or_stop, local_rank
from quant import NF4Tensor, quantize_model
from rates import LIKE_LORA, starting_rate
from settings import (FULL_LR, LESS_MEMORY, Config, check_config, missing_settings, parse,
                      settled)
from tokenizer import TOKENIZER_FILES, Tokenizer, stop_ids

# ----- 1. read the data ---------------------------------------------------------------------------

class Data(NamedTuple):
    tokenizer: Tokenizer
    folder: Path
    train_set: list[dataset.Sample]
    dropped: int                        # training samples with nothing supervised left
    test_set: list[dataset.Sample]
    test_dropped: int                   # the same of the test samples


def read_data(config: Config) -> Data:
    """Both splits as token ids, cut to --max_length.

    All of it is in memory: 7,470 samples of 150 tokens are a million numbers, and no run of this
    project has more than a few hundred thousand samples. Test samples are cut like the others,
    because a loss beyond --max_length would test what was never trained. Raises UserError for
    settings and files that cannot be meant.
    """
    check_config(config)
    tokenizer = Tokenizer.from_pretrained(config.model)
    folder = dataset.find_dataset(config.data)
    how = tokenizer, config.max_length, config.supervise
    train_set, dropped = dataset.load_split(folder / "train.jsonl", *how)
    test_set, test_dropped = dataset.load_split(folder / "test.jsonl", *how)
    test_set = test_set[:config.eval_samples or None]
    return Data(tokenizer, folder, train_set, dropped, test_set, test_dropped)


# ----- 2. load the model --------------------------------------------------------------------------

def weight_dtype(config: Config) -> torch.dtype:
    """What is trained is float32, whatever the computation is in; what is frozen need not be.

    bfloat16 has 8 bits of precision: a weight of 0.1 is 0.0005 from its neighbours. A step of AdamW
    at the rate 2e-5 moves it by 2e-5, which would be rounded away, step after step. So full
    fine-tuning keeps its weights in float32 and computes in bfloat16 under autocast. The frozen
    base of LoRA is held in the dtype of the computation, and its adapters are float32.
    """
    return torch.float32 if config.method == "full" else DTYPES[config.dtype]


def model_for(config: Config, base: Transformer | None = None) -> Transformer:
    """The pretrained model of a run. For qlora and --nf4 its linear layers are in four bits.

    Qwen2.5-0.5B, 494M parameters: 1.98 GB in float32 (full), 0.99 GB in bfloat16 (lora), 0.46 GB
    with the layers' linear maps in four bits (qlora).

    base: the model as its files have it, for callers that make many runs. It is copied, so that
    each run starts from the same weights.
    """
    device, dtype = torch.device(config.device), weight_dtype(config)
    if config.fsdp and processes.world() > 1:
        return load_shards(config.model, dtype, device, config.four_bits, DTYPES[config.dtype])
    if base is None:
        return load_base(config.model, dtype, device, nf4=config.four_bits)
    model = copy.deepcopy(base).to(device, dtype)
    return quantize_model(model) if config.four_bits else model


# ----- 3. what is trained, and by what ------------------------------------------------------------

@dataclass
class Progress:
    """Where a run stands between two steps, next to its weights and AdamW's moments."""
    step: int = 0               # optimizer steps so far
    tokens: int = 0             # trained on so far, supervised or not, without padding
    seconds: float = 0.0        # of training so far, without evaluation
    nll_sum: float = 0.0        # of the supervised tokens since the last evaluation, in nats
    nll_tokens: int = 0         # their number
    rows: list[dict] = field(default_factory=list)          # of log.csv
    scaler: dict = field(default_factory=dict)              # the gradient scaler's state
    origin: dict = field(default_factory=dict)      # what it is the progress of: see train_in

    def note_step(self, samples: list[dataset.Sample], nll: float, nll_tokens: int,
                  seconds: float):
        self.step += 1
        self.nll_sum += nll
        self.nll_tokens += nll_tokens
        self.tokens += sum(len(sample.ids) for sample in samples)
        self.seconds += seconds


PROGRESS = {"step": whole(), "tokens": whole(), "seconds": (int, float), "nll_sum": (int, float),
            "nll_tokens": whole(), "rows": [records.ROW], "scaler": dict, "origin": dict}


@dataclass
class Run:
    config: Config
    data: Data
    model: Transformer
    method: Method | None       # None: full fine-tuning
    trained: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable          # autocast() is the context of every forward pass
    progress: Progress


def set_up(config: Config, data: Data, model: Transformer) -> Run:
    """A run of the settled `config` before its first step."""
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    if device.type == "cuda":       # a sweep's runs share a process, and each has a peak of its own
        torch.cuda.reset_peak_memory_stats(device)

    # LoRA: freeze the base and put A and B next to its layers. The seed decides A; B is zero, so
    # the first evaluation is the base's own, whatever the rank. Its relatives do as their files in
    # methods/ say, and begin as the base, too. Virtual tokens are an exception.
    method = None
    if config.method != "full":
        method = find_method(config.adapter_method)
        torch.manual_seed(config.seed)
        put_on(model, method, setup_of(config))
        if not isinstance(model.lm_head, torch.nn.Linear):
            raise UserError("lm_head cannot be a target here: the loss reads its weight, and would "
                            "make W + dW, (V, C), for each micro-batch; leave it out")
    model.eval()        # dropout is off but in a step: see make_step
    model.gradient_checkpointing = config.gradient_checkpointing
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    processes.copy_from_first(list(trained.values()))

    # Autocast: full fine-tuning in 16 bits casts its float32 weights for each product. LoRA's base
    # is in 16 bits already, and LoRALinear casts A and B.
    autocast = contextlib.nullcontext
    if dtype != weight_dtype(config):
        autocast = functools.partial(torch.autocast, device.type, dtype)

    # Scaling: float16 has nothing below 6e-8, and many gradients are smaller. The scaler multiplies
    # the loss by a factor, 65,536 at first, and divides the gradients again before the update.
    # bfloat16 has float32's range and needs none.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # One layer after the other, not the whole model: all have the same code, which is compiled
    # once. dynamic: for any B and T, because every micro-batch has a shape of its own.
    if config.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    optimizer = make_optimizer(config, trained, method)
    return Run(config, data, model, method, trained, optimizer, scaler, autocast, Progress())


def make_optimizer(config: Config, trained: dict, method: Method | None = None
                   ) -> torch.optim.Optimizer:
    """AdamW (optim.py has its equations) with the Trainer's betas and eps.

    Weight decay takes w <- (1 - lr wd) w in each step, so it pulls matrices towards zero. Norms,
    near one, and biases are left alone, as in Hugging Face's Trainer. Under LoRA all that is
    trained is matrices. A method may give some parameters a multiple of the learning rate.
    """
    kinds = defaultdict(list)
    for name, p in trained.items():
        multiple = method.multiple(name, setup_of(config)) if method else 1.0
        kinds[p.dim() < 2, multiple].append(p)
    groups = [{"params": params, "weight_decay": 0.0 if is_vector else config.weight_decay,
               "multiple": multiple} for (is_vector, multiple), params in sorted(kinds.items())]
    # fused: one kernel updates all parameters, instead of several small ones for each
    fused = torch.device(config.device).type in ("cpu", "cuda")
    return OPTIMIZERS[config.optimizer](
        groups, config.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)


# ----- 4. where it stands: what --resume needs ----------------------------------------------------
# Weights, AdamW's moments and the progress are enough. No random state is kept, because all that is
# random after the first step follows from the seed and the step: the order of the samples, and what
# --dropout sets to zero (make_step).
# What a method keeps in buffers, as AdaLoRA its averages, is kept, too.

RESULT_FILES = ["adapter_config.json", "adapter_model.safetensors", "config.json",
                "model.safetensors", *TOKENIZER_FILES]      # what save_result writes


def goes_on(config: Config, out: Path) -> bool:
    """Whether `out` has a state from which the run will go on."""
    return (out / records.STATE).exists() and not config.overwrite


def begin_or_resume(run: Run, out: Path, base_answer: str) -> str:
    """Go on from the state in `out` if there is one, else begin -> the base's answer.

    It is `base_answer`, or what run.json has kept for a run that goes on.
    """
    state = out / records.STATE
    if processes.rank() == 0:
        records.clear_run(out, RESULT_FILES, run.config.overwrite)
    if processes.first_says(state.exists()):
        go_on_from(run, state)
        return read_json(out / "run.json", records.RUN)["base_answer"]
    if processes.rank() > 0:
        return ""
    make_folder(state.parent)
    records.write_run(run.config, out, base_answer, finished=False,
                      samples=len(run.data.train_set))
    return base_answer


def go_on_from(run: Run, state: Path):
    """Bring `run` to where the file `state` says. Raises UserError for a damaged file."""
    origin = run.progress.origin
    progress = load_state(state, *restorer(run), functools.partial(check_progress, run))
    run.progress = Progress(**progress)
    changed = [name for name in origin if run.progress.origin.get(name) != origin[name]]
    if changed:
        raise UserError(f"{state} was made from other {' and '.join(changed)}; bring these back, "
                        "or --overwrite begins again")
    run.scaler.load_state_dict(run.progress.scaler)


def check_progress(run: Run, progress: dict):
    """Raise UserError for what cannot be the progress of this run."""
    check(progress, PROGRESS | {"scaler": dict.fromkeys(run.scaler.state_dict(), Number())})
    check(progress["step"], whole(at_most=run.config.max_steps), name="step")
    evaluated = [*itertools.takewhile(lambda step: step <= progress["step"],
                                      run.config.evaluated_steps())]
    if [row["step"] for row in progress["rows"]] != evaluated:
        raise UserError(f"its rows are not the evaluations of {progress['step']} steps")
    if (progress["step"] in evaluated) != (progress["nll_tokens"] == 0):
        raise UserError("its training NLL is not of the steps since the last evaluation")


def restorer(run: Run) -> tuple[Callable, Callable]:
    """The function that says how a state's tensors must look, and the one that puts one back."""
    kept = kept_tensors(run)

    def expect(names):
        return expected_tensors(run.trained, run.optimizer, names) | kept

    def give_back(key, tensor):
        if key in kept:
            kept[key].copy_(tensor)
        else:
            restore_tensor(run.trained, run.optimizer, key, tensor)

    return expect, give_back


def keep_state(run: Run, state: Path):
    """Write the file `state`. It replaces the one before when it is whole.

    All processes call it. The first one writes what it has, or what all give it of their shards. So
    a run goes on with any number of processes, and with or without --fsdp.
    """
    run.progress.scaler = run.scaler.state_dict()
    tensors = state_tensors(run.trained, run.optimizer) | kept_tensors(run)
    save_state(state, tensors, dataclasses.asdict(run.progress))


def keep_best(run: Run, best: Path):
    """Write the weights to the file `best` if the last evaluation is the lowest so far.

    A run that was killed and goes on may meet a file that is ahead of it. It makes the same
    evaluations again, and writes the same file again.
    """
    rows = run.progress.rows
    if lowest_row(rows) is rows[-1]:
        weights = {f"{name}/weight": p.detach() for name, p in run.trained.items()}
        save_state(best, weights | kept_tensors(run), {"step": rows[-1]["step"]})


def take_best(run: Run, best: Path) -> int:
    """Give the model the weights in the file `best` -> the step that they are of."""
    return load_state(best, *restorer(run),
                      lambda progress: check(progress, {"step": whole()}))["step"]


def kept_tensors(run: Run) -> dict:
    """What the method keeps besides weights and moments: {"NAME/kept": tensor}."""
    return {f"{name}/kept": tensor for name, tensor in kept_buffers(run.model).items()}


def hash_samples(data: Data) -> str:
    """Two processes with the same hash have the same samples."""
    samples = [data.train_set, data.test_set]
    return hashlib.sha256(json.dumps(samples).encode()).hexdigest()


def answer_question(model, tokenizer, messages: list[dict], autocast=contextlib.nullcontext) -> str:
    """The model's own answer, greedily. messages: a test sample, answer included."""
    if shards.is_cut(model):
        return "(not asked: with --fsdp each token would gather the whole model)"
    prompt = tokenizer.encode(dataset.prompt_of(messages[:-1], tokenizer))
    # --compile is for the steps. Each length of the cache would be compiled again, and after eight
    # times torch stops compiling that layer, also for training.
    with autocast(), torch.compiler.set_stance("force_eager"):
        return generate_answers(model, tokenizer, [prompt], 160)[0].text


# ----- 5. show what is about to happen ------------------------------------------------------------
# A wrong template, a cut answer or a factor of 0.01 in front of B A shows here, before it costs an
# hour.

def show_settings(run: Run):
    config, data = run.config, run.data
    shown = dataclasses.asdict(config)
    # --epochs is already in max_steps, and in the number of passes below
    for name in ("out", "resume", "overwrite", "epochs", *(() if config.options else ("options",))):
        del shown[name]
    ignored = missing_settings(config)
    if not config.dropout:
        ignored += ("dropout",)
    if config.method == "qlora":        # which says it
        ignored += ("nf4",)
    for name in ignored:
        del shown[name]
    for layer in adapted_layers(run.model).values():
        if isinstance(getattr(layer, "scale", None), int | float):      # not a method's tensor
            shown["factor of dW"] = layer.scale
    steps_per_pass = math.ceil(len(data.train_set) / config.batch_eff)      # the last is smaller
    passes = config.max_steps / steps_per_pass
    shown["passes"] = f"{passes:.3g} over the training samples"
    shown["samples"] = f"{len(data.train_set):,} for training, {len(data.test_set):,} for testing"
    if data.dropped or data.test_dropped:
        shown["dropped samples"] = (f"{data.dropped} and {data.test_dropped}: nothing supervised "
                                    "within --max_length")
    trainable = sum(p.numel() for p in run.trained.values())
    total = sum(p.numel() for p in run.model.parameters() if p.is_floating_point())
    quantized = [m for m in run.model.modules() if isinstance(m, NF4Tensor)]
    if quantized:           # these are bytes, and not among the numbers that were just counted
        n, nbytes = sum(w.numel() for w in quantized), sum(w.nbytes for w in quantized)
        total += n
        shown["quantized to NF4"] = (f"{n:,} weights of the base, {nbytes / 1e6:,.1f} MB: "
                                     f"{8 * nbytes / n:.3f} bits each; step 0 is this base's")
    if run.model.virtual_ids:
        shown["virtual tokens"] = (f"{len(run.model.virtual_ids)} in front of each text; at step 0 "
                                   "they are untrained, and the base without them may do better")
    shown["trainable parameters"] = f"{trainable:,} of {total:,} ({trainable / total:.2%})"
    if run.progress.step:
        shown["resumed after step"] = run.progress.step
    shown |= doubts(run)
    print(f"run {config.run} -> {config.out}")
    for name, value in shown.items():
        text = f"{value:g}" if isinstance(value, float) else value
        print_fitted(f"  {name:<23}{text}")


def doubts(run: Run) -> dict[str, str]:
    """Settings and data that may be a mistake: {name: why}. None of them stops the run."""
    config, data, found = run.config, run.data, {}
    if config.device == "cpu":
        fast = multiplies_bfloat16()
        wide = run.model.config.hidden_size >= 512          # nano is as fast in either
        if config.dtype == "float32" and fast and wide:
            found["dtype"] = "float32; this processor is faster with --dtype bfloat16"
        elif config.dtype == "bfloat16" and fast == "":
            found["dtype"] = "bfloat16; this processor is faster with --dtype float32"

    usual, whose = run.method.lr if run.method else FULL_LR, f"without --lr {config.method} takes"
    if config.adapter_method in LIKE_LORA:
        usual = starting_rate(run.model.config, config.method, config.max_steps, config.alpha)
        whose = "for this model, r and alpha plan.py names"
    if config.lr < usual / 5:           # starting_rate is right within a factor of three
        found["lr"] = f"{config.lr:g}, low: {whose} {usual:.2g}"

    given = {"--rank": config.rank != Config.rank, "--alpha": config.alpha != config.rank,
             "--targets": config.targets != Config.targets}
    if not run.method and any(given.values()):
        names = ", ".join(name for name in given if given[name])
        found["ignored"] = f"{names}: full fine-tuning has no adapters"

    tested = {tuple(sample.ids) for sample in data.test_set}
    learned = tested.intersection(tuple(sample.ids) for sample in data.train_set)
    known = sum(tuple(sample.ids) in learned for sample in data.test_set)
    if known:
        found["test samples"] = (f"{known:,} of {len(data.test_set):,} are training samples, too, "
                                 "and test nothing")
    return found


# ----- 6. the loop --------------------------------------------------------------------------------
# First its parts in the order in which it calls them, then the loop itself.
#
# A step takes micro_bs x grad_accum samples, 4 x 4 by default. grad_accum forward and backward
# passes of micro_bs samples add up their gradients, and AdamW updates once. Memory is decided by
# micro_bs, learning by the product.

def add_row(run: Run, test_nll: float):
    """Add a row to run.progress: what log.csv says of this step.

    train_nll is the mean over the steps since the last row, each measured before its update. So it
    lags behind test_nll, and a train_nll above test_nll is no mistake. Over-fitting is a test_nll
    that turns and rises while train_nll still falls.
    """
    config, progress = run.config, run.progress
    train_nll = progress.nll_sum / progress.nll_tokens if progress.step else ""
    progress.nll_sum, progress.nll_tokens = 0.0, 0
    progress.rows.append(records.make_row(
        config, **dict.fromkeys(missing_settings(config), ""), step=progress.step,
        tokens=progress.tokens, train_nll=train_nll, test_nll=test_nll,
        seconds=round(progress.seconds, 3),
        peak_gb=round(peak_gb(torch.device(config.device)), 3),
        trainable=sum(p.numel() for p in run.trained.values())))


def lr_at(step: int, config: Config) -> float:
    """The learning rate of optimizer step `step`, counted from 0, with n = max_steps.

    The first w = ceil(warmup_ratio n) steps warm up. After them p = (step - w) / (n - w):

        step < w        lr step / w
        constant        lr
        linear          lr (1 - p)
        cosine          lr (1 + cos(pi p)) / 2

    as transformers' schedules of the same names. 100 steps, warmup_ratio 0.1, cosine: step 0 has 0,
    step 5 half of --lr, step 10 all of it, step 55 half, step 99 almost none.
    """
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    if step < warmup:
        return config.lr * step / warmup
    p = (step - warmup) / max(1, config.max_steps - warmup)                 # 0 .. 1
    factor = {"constant": 1.0, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2}
    return config.lr * factor[config.schedule]


def optimizer_step(model, optimizer, scaler, micro_batches, autocast, lr, grad_clip,
                   penalty=None, after_update=None, seed=None) -> tuple[float, int]:
    """One AdamW step on the samples of all `micro_batches` -> (sum of the NLL, supervised tokens).

    The loss is the mean NLL over the n supervised tokens of the whole batch, and its gradient

        g = sum over micro-batches of grad(sum of the NLL) / n

    With answers of 10 and 90 tokens in two micro-batches, n = 100 divides both sums. A mean of the
    two means would count each token of the short answer nine times as much, and another cut of the
    same samples would give another gradient.

    micro_batches: pairs of ids and labels (B, T). grad_clip: 0 for none. penalty() is added to the
    loss once, and after_update() called while the gradients are still there: see methods/.
    seed: of dropout. Micro-batch i draws with seed ^ i. None: there is no dropout.
    """
    device = model.device
    # labels[:, 0] is never predicted, because nothing comes before it
    batch_tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in micro_batches)
    total = torch.zeros((), device=device)

    # Forward and backward. backward() adds to p.grad, so the micro-batches' gradients add up.
    # `total` stays on the device: .item() would wait for the GPU after each micro-batch.
    numbered = list(enumerate(micro_batches))
    for i, (ids, labels) in processes.take_share(numbered, (0, dataset.BLANK)):
        if seed is not None:
            torch.manual_seed(seed ^ i)     # whichever process computes it drops the same
        with autocast():
            nll, _ = model.loss(send(ids, device), labels)
        scaler.scale(nll / batch_tokens).backward()
        total += nll.detach()
    if penalty and processes.rank() == 0:
        scaler.scale(penalty()).backward()

    # Over all processes gradients are summed, not averaged, because each has divided its own sum by
    # the tokens of the whole batch already. (Those of shards are: backward() has summed them.) From
    # here on all of them do the same.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.sum_gradients(parameters)
    clip_and_update(optimizer, scaler, lr, grad_clip, after_update)
    return processes.sum_over_processes(total.item())[0], batch_tokens


def clip_and_update(optimizer, scaler, lr: float, grad_clip: float, after_update=None):
    """Update what `optimizer` has with its gradients, which it then has no more."""
    # The gradient of a rare batch can be ten times the usual one. Clipping, g <- g min(1, c / |g|)
    # with the norm |g| over all parameters, shortens it to c = grad_clip and leaves its direction.
    scaler.unscale_(optimizer)
    if grad_clip:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)

    # Update, unless a float16 gradient overflowed: then the scaler skips the step and scales less.
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("multiple", 1.0)
    scaler.step(optimizer)
    scaler.update()
    if after_update:
        after_update()
    # None and not zero: between two steps no gradient takes memory, which an evaluation can use
    optimizer.zero_grad(set_to_none=True)


def method_hooks(run: Run) -> dict:
    """`penalty` and `after_update` of `optimizer_step`, if the method has them."""
    hooks = {}
    if run.method and run.method.penalty:
        hooks["penalty"] = functools.partial(run.method.penalty, run.model, setup_of(run.config))
    if run.method and run.method.after_update:
        hooks["after_update"] = functools.partial(
            run.method.after_update, run.model, run.progress.step + 1, setup_of(run.config))
    return hooks


def step_seed(seed: int, step: int) -> int:
    """A seed for what is drawn in one step: another one for each seed and step, 0 to 2^63 - 1.

    Not seed + step: then step 1 of seed 42 would draw what step 0 of seed 43 draws.
    """
    return random.Random(f"seed {seed}, step {step}").getrandbits(63)


def make_step(run: Run) -> float:
    """One optimizer step on the samples that are next -> its loss. Advances run.progress."""
    config, data, progress = run.config, run.data, run.progress
    start = time.perf_counter()

    # ----- the samples of this step: a function of the seed and the step alone -----
    indices = dataset.window(len(data.train_set), config.batch_eff, progress.step, config.seed)
    samples = [data.train_set[i] for i in indices]
    micro_batches = dataset.micro_batches(samples, config.micro_bs)

    # ----- dropout: what is set to zero is another such function, so a run can be resumed -----
    seed = step_seed(config.seed, progress.step) if config.dropout else None
    if config.dropout:
        run.model.train()

    # ----- forward, backward, update -----
    nll, tokens = optimizer_step(
        run.model, run.optimizer, run.scaler, micro_batches, run.autocast,
        lr_at(progress.step, config), config.grad_clip, seed=seed, **method_hooks(run))
    if config.dropout:
        run.model.eval()

    progress.note_step(samples, nll, tokens, time.perf_counter() - start)
    return nll / tokens


def training_steps(run: Run, quiet: bool | None = None) -> Iterator[bool]:
    """The loop: evaluate, make a step, and so on until the last step is evaluated.

    A generator, so that the caller decides what happens between two steps: `keep_training` writes
    files, sweep.py looks whether the run diverged. It yields whenever run.progress is whole, before
    each step and after the last one: True if the model was evaluated just now.

    quiet: no progress bar; None: one if there is a terminal.
    """
    config, progress, began_at = run.config, run.progress, run.progress.step
    # Without a backward pass no activations are kept, so four times as many samples fit.
    test_batches = dataset.micro_batches(run.data.test_set, 4 * config.micro_bs)
    with tqdm(total=config.max_steps, initial=progress.step, disable=quiet, dynamic_ncols=True,
              bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}") as bar:
        while True:
            # ----- evaluate -----
            # Step 0 too: it is the base's loss, which everything is compared with.
            due = config.evaluates(progress.step)
            if progress.rows and progress.rows[-1]["step"] == progress.step:
                due = False             # a resumed run, which stopped after this evaluation
            if due:
                add_row(run, mean_nll(run.model, test_batches, run.autocast))
            yield due
            if progress.step == began_at:
                bar.unpause()           # its clock begins with the first step
            if progress.step == config.max_steps:
                return

            # ----- make a step -----
            loss = make_step(run)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, test {progress.rows[-1]['test_nll']:.3f}, "
                                f"{progress.tokens / progress.seconds:,.0f} tokens/s")


def keep_training(run: Run, out: Path):
    """Make all steps, and between two of them write down in `out` what must not be lost.

    The state is kept after an evaluation, and saving takes at most 5 % of the time: after one that
    took 10 s the next comes 200 s later or more. A kill loses the steps since then. --resume makes
    them again, so it costs time and nothing else. Ctrl-C ends the run after the step under
    way, and saves; KeyboardInterrupt says so.
    """
    save_after, warned, began = 0.0, False, None
    first_process = processes.rank() == 0           # it alone writes
    with interruption() as asked:
        for evaluated in training_steps(run, None if first_process else True):
            # all processes stop and save after the same step, or they would wait for one another
            late = evaluated and time.perf_counter() > save_after
            interrupted, due = processes.sum_over_processes(len(asked), late)
            now = time.perf_counter()
            if began is None:           # the evaluation before the first step is no step
                began, first, line_after = now, run.progress.step, now + LINE_EVERY
            steps_left = run.config.max_steps - run.progress.step
            if first_process and steps_left and now > line_after and not sys.stderr.isatty():
                line_after = now + LINE_EVERY
                left = (now - began) / (run.progress.step - first) * steps_left
                print(f"step {run.progress.step} of {run.config.max_steps}, about "
                      f"{left / 60:.1f} min left", flush=True)
            if evaluated and first_process:
                tqdm.write(records.row_line(run.progress.rows[-1]))
                records.write_rows(out / "log.csv", run.progress.rows)
                if not warned and is_over_fitting(run.progress.rows):
                    warned = True
                    tqdm.write(OVER_FITTING.format(lowest_row(run.progress.rows)["step"]))
            if evaluated and run.scaler.is_enabled() and run.scaler.get_scale() < NO_STEP:
                raise UserError(        # in all processes: they have one factor
                    "no step was made for a while: in float16 gradients overflow, or are nan. "
                    "Take --dtype bfloat16 or float32, or a lower --lr")
            if evaluated and run.config.keep == "best":
                keep_best(run, out / records.BEST)
            if interrupted or due:
                start = time.perf_counter()
                keep_state(run, out / records.STATE)
                end = time.perf_counter()
                save_after = end + 20 * (end - start)
            if interrupted:
                processes.wait_for_all()    # torchrun ends all when one leaves
                break
    if interrupted and run.progress.step < run.config.max_steps:
        raise KeyboardInterrupt(f"stopped after step {run.progress.step}; {out} has all that is "
                                "needed to go on: add --resume to the command")


LINE_EVERY = 30.0       # seconds between two lines on progress where there is no bar
NO_STEP = 2.0 ** -8     # of the factor of float16, which each skipped step halves, from 2^16 on
RISEN = 1.02            # a test NLL of so many times the lowest is worth a word
OVER_FITTING = ("note: the test NLL has risen since step {}, and the training NLL has fallen: the "
                "run learns its samples by heart. Fewer steps, a lower rate or more data help; "
                "--keep best saves the weights of the lowest test NLL")


def is_over_fitting(rows: list[dict]) -> bool:
    """Whether the test NLL has risen over three evaluations or more, while the training NLL fell.

    It must be RISEN times its lowest or more, and above the value right after that. So a spike is
    no over-fitting, because the test NLL falls again after it.
    """
    lowest = lowest_row(rows)
    since = rows[rows.index(lowest) + 1:]
    return (len(since) >= 3 and since[-1]["test_nll"] >= RISEN * lowest["test_nll"]
            and since[-1]["test_nll"] > since[0]["test_nll"]
            and since[-1]["train_nll"] < since[0]["train_nll"])


# ----- 7. save, and show what was learned ---------------------------------------------------------

def save_result(run: Run, out: Path):
    """The adapter, in PEFT's files if PEFT has the method, or a whole checkpoint; the tokenizer.

    These are the weights of the last step, or with --keep best those of the lowest test NLL.
    """
    if run.config.method == "full":
        shards.let_go(run.model)
        run.model.save_pretrained(out, stop_ids(run.data.tokenizer))
    elif processes.rank() == 0:
        run.method.save(run.model, out, run.config.model, setup_of(run.config))
    if processes.rank() == 0:
        run.data.tokenizer.save_pretrained(out)


def print_how_it_ended(rows: list[dict], keep: str):
    """If the last weights are not the best, say so, and what to do."""
    first, best, last = rows[0]["test_nll"], lowest_row(rows), rows[-1]["test_nll"]
    if not last <= first:               # nan, too
        print(f"the test NLL ended at {last:.3f}, above the base's {first:.3f}: take a lower --lr")
    elif keep == "last" and last >= RISEN * best["test_nll"]:
        print(f"the test NLL was lowest, {best['test_nll']:.3f}, at step {best['step']}, and ended "
              f"at {last:.3f}; --keep best saves the weights of that step")


def show_answers(messages: list[dict], base_answer: str, tuned_answer: str, four_bits: bool):
    """A question of the test split, with what the base and the trained model answer to it."""
    base = "base (nf4)" if four_bits else "base"
    texts = {"question": dataset.question_of(messages[:-1]), "reference": messages[-1]["content"],
             base: base_answer, "tuned": tuned_answer}
    print()
    texts = {name: text.strip() or "(nothing)" for name, text in texts.items()}
    columns = 11 + max(text_width(line) for text in texts.values() for line in text.split("\n"))
    if sys.stdout.isatty():
        columns = min(columns, shutil.get_terminal_size().columns)
    print("\n".join(stack_cells(list(texts), list(texts.values()), columns, sys.maxsize)))


# ----- the whole run ------------------------------------------------------------------------------

def train(config: Config) -> list[dict]:
    """Make the run that `config` describes, in config.out -> its rows of log.csv.

    Raises UserError for errors that the user can fix.
    """
    # 1. read the data; stop if the run is made already or something is in its way
    processes.join_processes(config.device)
    data = read_data(config)
    config = settled(config, len(data.train_set))
    origin = {"run": config.run, "data": hash_samples(data)}
    for name, value in dataclasses.asdict(config).items():
        processes.refuse_differences(f"--{name}", repr(value))
    processes.refuse_differences("data", origin["data"])
    out = Path(config.out)
    if out.resolve() in (resolve(config.model).resolve(), data.folder.resolve()):
        raise UserError(f"--out {out} is the folder of the model or of the data; give another "
                        "--out")
    with claim_or_stop(out) if processes.rank() == 0 else contextlib.nullcontext():
        return train_in(out, config, data, origin)


def train_in(out: Path, config: Config, data: Data, origin: dict) -> list[dict]:
    """The rest of `train`: the settled run in its folder, which no other process may write to."""
    rows = records.finished_rows(config, out) if processes.rank() == 0 else None
    if processes.first_says(rows is not None):
        processes.leave_processes()
        return rows or []

    # 2. load the model. It answers a question now, because what comes next changes it
    model = model_for(config).eval()
    data.tokenizer.check_vocabulary(model.config.vocab_size, config.model)
    if local_rank() == 0:               # once per machine: all its processes read the same files
        origin["weights"] = [*map(hash_file, weight_files(resolve(config.model)))]
    processes.refuse_differences("model files", origin.get("weights"))
    processes.refuse_differences("model files", model.config)
    question = dataset.read_messages(data.folder / "test.jsonl")[0]
    base_answer = ""
    if processes.rank() == 0 and not goes_on(config, out):
        base_answer = answer_question(model, data.tokenizer, question)

    # 3 and 4. choose what is trained, look where it stands
    run = set_up(config, data, model)
    if processes.rank() == 0:
        run.progress.origin = origin
    base_answer = begin_or_resume(run, out, base_answer)

    # 5. show what is about to happen, and the first sample as the model will see it
    if processes.rank() == 0:
        show_settings(run)
        first = dataset.window(len(data.train_set), config.batch_eff, 0, config.seed)[0]
        dataset.show_sample(data.train_set[first], data.tokenizer)

    # 6. the loop
    keep_training(run, out)

    # 7. save, and show what was learned. The state goes last: killed before, the run can go on
    step = config.max_steps
    if config.keep == "best":
        processes.wait_for_all()            # the first one may be writing yet
        step = take_best(run, out / records.BEST)
    save_result(run, out)
    first_process = processes.rank() == 0
    processes.leave_processes()
    if not first_process:
        return run.progress.rows
    print_how_it_ended(run.progress.rows, config.keep)
    if config.keep == "best":
        base = "" if step else ". It never fell below the base's; a lower --lr may help"
        print(f"saved: the weights of step {step}, where the test NLL was lowest{base}")
    draw_runs([out], out / curves.FILE)
    records.write_run(config, out, base_answer, finished=True, samples=len(data.train_set),
                      saved_step=step)
    records.drop_state(out)
    if not shards.is_cut(model):
        tuned_answer = answer_question(model, data.tokenizer, question, run.autocast)
        show_answers(question, base_answer, tuned_answer, config.four_bits)
    how = "--model" if config.method == "full" else "--adapter"
    if config.four_bits:
        how = f"--nf4 {how}"
    print(f"\n{out}: log.csv, run.json, {curves.FILE} and the trained weights; to talk to it:\n"
          f"python sample.py {how} {out}", flush=True)
    return run.progress.rows


def main(argv=None):
    no_space = "make room, then add --resume to the command"
    with errors_in_one_line(LESS_MEMORY, no_space), processes.lost_process_in_one_line():
        train(parse(argv, __doc__))


if __name__ == "__main__":
    run_command(main)
