"""Fine-tune a decoder on chat data, fully or with LoRA: one run, in the order in which it happens.

    python train.py --rank 64 --lr 2e-4                     # the embedded model and data, on a CPU
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --rank 64 --lr 2e-4
    python train.py --method full --lr 2e-5 --resume        # go on where it stopped, or begin

`--out` then holds log.csv (one row per evaluation), run.json (settings, versions), the tokenizer,
and the adapter in PEFT's files or, after full fine-tuning, a whole Hugging Face checkpoint. While
the run goes on there is also state/, which is what --resume needs.

The file reads as the run goes: read the data, load the model, choose what is trained, look where
the run stands, show what is about to happen, loop over steps, save, show what was learned. `train`,
at the end, calls these parts in this order. A run uses one device.
"""
import contextlib
import copy
import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import dataset
from engine import generate_answers, load_base, mean_nll
from lora import apply_lora, save_adapter
from model import Transformer
from optim import OPTIMIZERS, restore_tensor, state_tensors
from plumbing.cli import run_command
from plumbing.device import DTYPES, peak_gb
from plumbing.errors import UserError, errors_in_one_line, interruption
from plumbing.files import make_folder, read_json, resolve
from plumbing.records import (
    clear_run,
    finished_rows,
    make_row,
    row_line,
    write_rows,
    write_run,
)
from plumbing.state import load_state, save_state
from quant import NF4Tensor, quantize_model
from settings import LESS_MEMORY, Config, check_config, parse, settled
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
    project has more than a few hundred thousand samples. Raises UserError for settings and files
    that cannot be meant.
    """
    check_config(config)
    tokenizer = Tokenizer.from_pretrained(config.model)
    folder = dataset.find_dataset(config.data)
    train_set, dropped = dataset.load_split(folder / "train.jsonl", tokenizer, config.max_length)
    test_set, test_dropped = dataset.load_split(folder / "test.jsonl", tokenizer, config.max_length)
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
    """The pretrained model of a run. For qlora its linear layers are in four bits.

    base: the model as its files have it, for callers that make many runs of it. It is copied, so
    that each run starts from the same weights.
    """
    device, dtype, nf4 = torch.device(config.device), weight_dtype(config), config.method == "qlora"
    if base is None:
        return load_base(config.model, dtype, device, nf4)
    model = copy.deepcopy(base).to(device, dtype)
    return quantize_model(model) if nf4 else model


# ----- 3. what is trained, and by what ------------------------------------------------------------

@dataclass
class Progress:
    """Where a run stands between two steps. Nothing else decides how it goes on."""
    step: int = 0               # optimizer steps so far
    tokens: int = 0             # trained on so far, supervised or not, without padding
    seconds: float = 0.0        # of training so far, without evaluation
    nll_sum: float = 0.0        # of the supervised tokens since the last evaluation, in nats
    nll_tokens: int = 0         # their number
    rows: list[dict] = field(default_factory=list)          # of log.csv
    scaler: dict = field(default_factory=dict)              # the gradient scaler's state


@dataclass
class Run:
    config: Config
    data: Data
    model: Transformer
    trained: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable          # autocast() is the context of every forward pass
    progress: Progress


def set_up(config: Config, data: Data, model: Transformer) -> Run:
    """A run of the settled `config` before its first step."""
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    # LoRA: freeze the base and put A and B next to its layers. The seed decides A; B is zero, so
    # the first evaluation is the base's own, whatever the rank.
    if config.method != "full":
        torch.manual_seed(config.seed)
        apply_lora(model, config.rank, config.alpha, config.targets)
        if not isinstance(model.lm_head, torch.nn.Linear):
            raise UserError("lm_head cannot be trained with LoRA, because the loss reads its "
                            "weight; leave it out of the targets")
    model.gradient_checkpointing = config.gradient_checkpointing
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    # Weight decay pulls matrices towards zero. Norms, near one, and biases are left alone, as in
    # Hugging Face's Trainer. Under LoRA all that is trained is matrices.
    matrices = [p for p in trained.values() if p.dim() >= 2]
    vectors = [p for p in trained.values() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    fused = device.type in ("cpu", "cuda")
    optimizer = OPTIMIZERS[config.optimizer](
        groups, config.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)

    # Autocast: full fine-tuning in 16 bits casts its float32 weights for each product.
    # Scaling: float16 has nothing below 6e-8, and many gradients are smaller. The scaler multiplies
    # the loss by up to 65,536 and divides the gradients again before the update. bfloat16 has
    # float32's range and needs none.
    autocast = contextlib.nullcontext
    if dtype != weight_dtype(config):
        autocast = functools.partial(torch.autocast, device.type, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if config.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    return Run(config, data, model, trained, optimizer, scaler, autocast, Progress())


# ----- 4. where it stands: what --resume needs ----------------------------------------------------
# Weights, AdamW's moments and the progress are enough. No random state is kept, because nothing
# random happens after the first step: the order of the samples follows from the seed and the step,
# and there is no dropout.

def keep_state(run: Run, path: Path):
    run.progress.scaler = run.scaler.state_dict()
    tensors = state_tensors(run.trained, run.optimizer)
    save_state(path, tensors, dataclasses.asdict(run.progress))


def go_on_from(run: Run, path: Path):
    """Bring `run` to where the file says. Raises UserError for a damaged file."""
    needed = [f"{name}/weight" for name in run.trained]
    give_back = functools.partial(restore_tensor, run.trained, run.optimizer)
    run.progress = Progress(**load_state(path, needed, give_back))
    run.scaler.load_state_dict(run.progress.scaler)


# ----- 5. show what is about to happen ------------------------------------------------------------
# A wrong template, a cut answer or a factor alpha / r of 0.01 shows here, before it costs an hour.

def show_settings(run: Run):
    config, data = run.config, run.data
    hidden = {"out", "resume", "overwrite"}
    if config.method == "full":
        hidden |= {"rank", "alpha", "targets"}
    shown = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)
             if f.name not in hidden}
    if config.method != "full":
        shown["alpha / r"] = config.alpha / config.rank
    shown["samples"] = (
        f"{len(data.train_set):,} for training ({data.dropped} dropped: nothing supervised within "
        f"--max_length), {len(data.test_set):,} for testing ({data.test_dropped} dropped)")
    trainable, total = (sum(p.numel() for p in some)
                        for some in (run.trained.values(), run.model.parameters()))
    quantized = [m for m in run.model.modules() if isinstance(m, NF4Tensor)]
    if quantized:
        n, nbytes = sum(w.numel() for w in quantized), sum(w.nbytes for w in quantized)
        total += n
        shown["quantized to NF4"] = (f"{n:,} weights of the base, {nbytes / 1e9:.3f} GB: "
                                     f"{8 * nbytes / n:.3f} bits each")
    shown["trainable parameters"] = f"{trainable:,} of {total:,} ({trainable / total:.2%})"
    if run.progress.step:
        shown["resumed after step"] = run.progress.step
    print(f"run {config.run} -> {config.out}")
    for name, value in shown.items():
        print(f"  {name:<23}{value:g}" if isinstance(value, float) else f"  {name:<23}{value}")


def answer_question(run: Run, messages: list[dict]) -> str:
    """The model's own answer to the last question of `messages`, greedily."""
    prompt = run.data.tokenizer.encode(dataset.prompt_of(messages, run.data.tokenizer))
    with run.autocast():
        return generate_answers(run.model, run.data.tokenizer, [prompt], 160)[0].text


# ----- 6. the loop --------------------------------------------------------------------------------
# A step takes micro_bs x grad_accum samples, 4 x 4 by default. grad_accum forward and backward
# passes of micro_bs samples add up their gradients, and AdamW updates once. Memory is decided by
# micro_bs, learning by the product.

def lr_at(step: int, config: Config) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    It rises linearly from 0 over the warm-up, then follows the schedule to the last step, as
    transformers' schedules of the same names do. 100 steps, warmup_ratio 0.1, cosine: step 0 has
    0, step 5 half of --lr, step 10 all of it, step 55 half, step 99 almost none.
    """
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    if step < warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)          # 0 .. 1
    factor = {"constant": 1.0,
              "linear": 1 - progress,
              "cosine": (1 + math.cos(math.pi * progress)) / 2}[config.schedule]
    return config.lr * factor


def optimizer_step(model, optimizer, scaler, micro_batches, autocast, lr, grad_clip
                   ) -> tuple[float, int]:
    """One AdamW step on the samples of all `micro_batches` -> (sum of the NLL, supervised tokens).

    The loss is the mean NLL over the supervised tokens of the whole batch. A mean of the
    micro-batches' own means would be another number: with answers of 10 and 90 tokens in two
    micro-batches, each token of the short answer would weigh nine times as much, and another cut of
    the same samples would give another gradient. So sums are added up, and each is divided by the
    tokens of the whole batch, here 100.
    """
    device = model.model.embed_tokens.weight.device
    batch_tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in micro_batches)
    total = torch.zeros((), device=device)

    # Forward and backward. The gradients of the micro-batches add up in p.grad.
    for ids, labels in micro_batches:
        with autocast():
            nll, _ = model.loss(ids.to(device), labels.to(device))
        scaler.scale(nll / batch_tokens).backward()
        total += nll.detach()

    # The gradient of a rare batch can be ten times the usual one. Clipping shortens it to the norm
    # grad_clip and leaves its direction.
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if grad_clip:
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)

    # Update, unless a float16 gradient overflowed: then the scaler skips the step and scales less.
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total.item(), batch_tokens


def training_steps(run: Run, quiet: bool | None = None) -> Iterator[bool]:
    """The loop: evaluate, make a step, and so on until the last step is evaluated.

    A generator, so that the caller decides what happens between two steps: `train` writes files,
    sweep.py looks whether the run diverged. It yields whenever run.progress is whole, before each
    step and after the last one: True if the model was evaluated just now.

    quiet: no progress bar; None: one if there is a terminal.
    """
    config, data, progress = run.config, run.data, run.progress
    device = run.model.model.embed_tokens.weight.device
    test_batches = dataset.micro_batches(data.test_set, 4 * config.micro_bs)    # no gradients: 4 x
    trainable = sum(p.numel() for p in run.trained.values())
    bar = tqdm(total=config.max_steps, initial=progress.step, unit="step", disable=quiet,
               dynamic_ncols=True)
    with bar:
        while True:
            # ----- evaluate -----
            # Step 0 too: it is the base's loss, which everything is compared with. train_nll is the
            # mean over the steps since the last row, each measured before its update. So it lags
            # behind test_nll, and only a test_nll that turns and rises is over-fitting.
            step = progress.step
            due = step % config.eval_steps == 0 or step == config.max_steps
            done = bool(progress.rows) and progress.rows[-1]["step"] == step    # before a resume
            if due and not done:
                train_nll = progress.nll_sum / progress.nll_tokens if step else ""
                progress.nll_sum, progress.nll_tokens = 0.0, 0
                progress.rows.append(make_row(
                    config, step=step, tokens=progress.tokens, train_nll=train_nll,
                    test_nll=mean_nll(run.model, test_batches, run.autocast),
                    seconds=round(progress.seconds, 3), peak_gb=round(peak_gb(device), 3),
                    trainable=trainable))
            yield due and not done
            if step == config.max_steps:
                return

            # ----- the samples of this step -----
            start = time.perf_counter()
            indices = dataset.window(len(data.train_set), config.batch_eff, step, config.seed)
            samples = [data.train_set[i] for i in indices]
            micro_batches = dataset.micro_batches(samples, config.micro_bs)

            # ----- forward, backward, update -----
            nll, tokens = optimizer_step(
                run.model, run.optimizer, run.scaler, micro_batches, run.autocast,
                lr_at(step, config), config.grad_clip)

            # ----- log -----
            progress.step += 1
            progress.nll_sum += nll
            progress.nll_tokens += tokens
            progress.tokens += sum(len(sample.ids) for sample in samples)
            progress.seconds += time.perf_counter() - start
            bar.update()
            bar.set_postfix_str(
                f"loss {nll / tokens:.3f}, test {progress.rows[-1]['test_nll']:.3f}, "
                f"{progress.tokens / progress.seconds:,.0f} tokens/s")


# ----- 7. save, and show what was learned ---------------------------------------------------------

def save_result(run: Run, out: Path):
    """The adapter in PEFT's files or a whole checkpoint, and the tokenizer's files."""
    if run.config.method == "full":
        run.model.save_pretrained(out, stop_ids(run.data.tokenizer))
    else:
        save_adapter(run.model, out, run.config.model)
    run.data.tokenizer.save_pretrained(out)


def show_answers(messages: list[dict], base_answer: str, tuned_answer: str):
    texts = {"question": messages[-2]["content"], "reference": messages[-1]["content"],
             "base": base_answer, "tuned": tuned_answer}
    print()
    for name, text in texts.items():
        print(f"{name:<11}" + text.replace("\n", "\n" + " " * 11))


# ----- the whole run ------------------------------------------------------------------------------

def train(config: Config) -> list[dict]:
    """Make the run that `config` describes, in config.out -> its rows of log.csv.

    Raises UserError for errors that the user can fix.
    """
    # 1. read the data; stop if the run is made already or something is in its way
    data = read_data(config)
    config = settled(config, len(data.train_set))
    out = Path(config.out)
    if out.resolve() in (resolve(config.model).resolve(), data.folder.resolve()):
        raise UserError(f"--out {out} is the folder of the model or of the data; give another "
                        "--out")
    rows = finished_rows(config, out)
    if rows is not None:
        return rows

    # 2 and 3. load the model, choose what is trained
    model = model_for(config)
    data.tokenizer.check_vocabulary(model.config.vocab_size, config.model)
    run = set_up(config, data, model)

    # 4. where it stands
    state = out / "state" / "state.safetensors"
    question = dataset.read_messages(data.folder / "test.jsonl")[0]
    clear_run(out, RESULT_FILES, config.overwrite)
    if state.exists():
        go_on_from(run, state)
        base_answer = read_json(out / "run.json")["base_answer"]
    else:
        base_answer = answer_question(run, question)
        make_folder(state.parent)
        write_run(config, out, base_answer, finished=False)

    # 5. show what is about to happen
    show_settings(run)
    first = dataset.window(len(data.train_set), config.batch_eff, 0, config.seed)[0]
    dataset.show_sample(data.train_set[first], data.tokenizer)

    # 6. the loop; between two steps, write down what must not be lost
    save_after = 0.0
    with interruption() as interrupted:
        for evaluated in training_steps(run):
            if evaluated:
                tqdm.write(row_line(run.progress.rows[-1]))
                write_rows(out / "log.csv", run.progress.rows)
            if interrupted or (evaluated and time.perf_counter() > save_after):
                start = time.perf_counter()
                keep_state(run, state)
                seconds = time.perf_counter() - start
                save_after = time.perf_counter() + 20 * seconds     # at most 5 % of the time
            if interrupted:
                break
    if interrupted and run.progress.step < config.max_steps:
        raise KeyboardInterrupt(f"stopped after step {run.progress.step}; {out} has all that is "
                                "needed to go on: add --resume to the command")

    # 7. save, and show what was learned
    save_result(run, out)
    write_run(config, out, base_answer, finished=True)
    shutil.rmtree(state.parent)
    show_answers(question, base_answer, answer_question(run, question))
    how = {"full": "--model", "lora": "--adapter", "qlora": "--nf4 --adapter"}[config.method]
    print(f"\n{out}: log.csv, run.json and the trained weights; to talk to it: "
          f"python sample.py {how} {out}", flush=True)
    return run.progress.rows


RESULT_FILES = ["adapter_config.json", "adapter_model.safetensors", "config.json",
                "model.safetensors", *TOKENIZER_FILES]


def main(argv=None):
    with errors_in_one_line(LESS_MEMORY, no_space="make room, then add --resume to the command"):
        train(parse(argv, __doc__))


if __name__ == "__main__":
    run_command(main)
