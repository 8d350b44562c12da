"""Fine-tune a decoder on chat data, fully or with LoRA: one run, read from top to bottom.

    python train.py --rank 64 --lr 2e-4                                             # the embedded model and data, on a CPU
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --rank 64 --lr 2e-4
    python train.py --method full --lr 2e-5 --resume                                # go on where it stopped, or begin

`--out` then holds log.csv (a row an evaluation), run.json (settings, versions), the adapter in PEFT's files or, after full
fine-tuning, a whole Hugging Face checkpoint, and the tokenizer. While it runs there is also state/, what --resume needs.
"""
import argparse
import contextlib
import copy
import csv
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import dataset
from lora import apply_lora, save_adapter
from model import (DTYPES, Transformer, UserError, errors_in_one_line, fail, is_out_of_memory, read_json, replacing,
                   resolve)
from optim import OPTIMIZERS, restore
from quant import NF4Tensor, load_quantized, quantize_model
from tokenizer import FILES, Tokenizer, stop_ids

COLUMNS = ("run model data method targets rank alpha lr batch_eff seed step tokens train_nll test_nll seconds peak_gb "
           "trainable").split()
LESS_MEMORY = "lower --micro_bs (and raise --grad_accum as much), or --max_length, or add --gradient_checkpointing"


# ----- settings -----------------------------------------------------------------------------------------------------

def opt(default, help, **kwargs):
    return dataclasses.field(default=default, metadata={"help": help, **kwargs})


@dataclass
class Config:
    model: str = opt("nano", "folder, hub repository (owner/name, owner/name@revision), or the embedded nano", group="what")
    data: str = opt("nano", "name under data/, or a folder with train.jsonl and test.jsonl")
    method: str = opt("lora", "what is trained: adapters on a frozen base, adapters on one quantized to 4 bits, or every weight",
                      choices=("lora", "qlora", "full"))
    rank: int = opt(64, "rank r of the adapters", group="LoRA")
    alpha: float = opt(None, "the adapters are scaled by alpha / r; default: r", type=float)
    targets: str = opt("all-linear", "all-linear, attention, mlp, or layer names: q_proj,v_proj")
    lr: float = opt(None, "learning rate; default: 2e-4 for lora and qlora, 2e-5 for full", type=float, group="optimization")
    schedule: str = opt("constant", "of the learning rate, after warm-up", choices=("constant", "cosine", "linear"))
    warmup_ratio: float = opt(0.0, "share of the steps in which the learning rate rises from 0")
    optimizer: str = opt("adamw", "AdamW with its two moments in float32 or in 8 bits; paged: beside a GPU, in the host's memory, "
                         "a bucket at a time on the device", choices=tuple(OPTIMIZERS))
    weight_decay: float = opt(0.0, "AdamW's, decoupled")
    grad_clip: float = opt(1.0, "largest norm of the gradient; 0: no clipping")
    micro_bs: int = opt(4, "samples a forward pass: what decides memory")
    grad_accum: int = opt(4, "forward passes an optimizer step; micro_bs x grad_accum samples are a batch")
    max_steps: int = opt(None, "optimizer steps; default: 200, or what --epochs says", type=int)
    epochs: float = opt(None, "passes over the training data, instead of --max_steps", type=float)
    eval_steps: int = opt(None, "steps between two evaluations, step 0 and the last one being always evaluated; default: 10, or "
                          "a fifth of the steps where there are more than 100", type=int)
    eval_samples: int = opt(0, "evaluate on the first N test samples; 0: on all")
    max_length: int = opt(256, "tokens; longer samples are cut at their right end")
    seed: int = opt(42, "of the data's order and of A")
    dtype: str = opt("auto", "of the computation; auto: bfloat16 on a GPU that has it, float16 on one that has not, float32 "
                     "on a CPU. Adapters, optimizer and, in full fine-tuning, the weights are float32 throughout",
                     choices=("auto", *DTYPES), group="machine")
    device: str = opt("auto", "cpu, cuda, cuda:1, mps ...; auto: cuda if there is one, else cpu")
    compile: bool = opt(False, "torch.compile the layers: slower to start, faster a step; needs a C++ compiler")
    gradient_checkpointing: bool = opt(False, "keep only the layers' inputs: a third more computation, much less memory")
    out: str = opt(None, "folder of the run; default: out/<run>", type=str, group="files")
    resume: bool = opt(False, "go on where the run in --out stopped; begin if there is none")
    overwrite: bool = opt(False, "delete the run that is in --out, and begin anew")

    @property
    def batch_eff(self) -> int:
        return self.micro_bs * self.grad_accum

    @property
    def run(self) -> str:
        """A short hash of the settings that decide the result: the same settings are the same run, wherever they are made.

        How a batch is cut into micro-batches is not among them, nor where and how fast the run is computed, nor where the
        optimizer's moments are kept."""
        aside = ("micro_bs", "grad_accum", "device", "compile", "gradient_checkpointing", "out", "resume", "overwrite", "epochs")
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k not in aside} | {"batch_eff": self.batch_eff}
        settings["optimizer"] = self.optimizer.removeprefix("paged_")
        if self.method == "full":
            settings |= {"rank": None, "alpha": None, "targets": None}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def parse(argv=None) -> Config:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message} (python train.py --help lists the settings)")
    for f in dataclasses.fields(Config):
        m = dict(f.metadata)
        if "group" in m:
            group = parser.add_argument_group(m.pop("group"))
        shown = "" if f.default in (None, False) else f" (default: {f.default})"
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": m.pop("type", f.type)}
        group.add_argument(f"--{f.name}", default=f.default, help=m.pop("help").replace("%", "%%") + shown, **kind, **m)
    return Config(**vars(parser.parse_args(argv)))


def check(config: Config):
    """Raise UserError for a setting that cannot be meant."""
    for name in ("rank", "micro_bs", "grad_accum", "max_length"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it has to be at least 1")
    for name in ("lr", "alpha", "epochs", "max_steps", "eval_steps"):
        if getattr(config, name) is not None and not 0 < getattr(config, name) < math.inf:      # nan is in no interval
            raise UserError(f"--{name} {getattr(config, name)}: it has to be a number above 0")
    for name in ("warmup_ratio", "weight_decay", "grad_clip", "eval_samples", "seed"):
        if not 0 <= getattr(config, name) < 2 ** 63:
            raise UserError(f"--{name} {getattr(config, name)}: it has to be a number of at least 0")
    if config.warmup_ratio > 1:
        raise UserError(f"--warmup_ratio {config.warmup_ratio}: it is a share of the steps, at most 1")
    if config.max_steps and config.epochs:
        raise UserError("--max_steps and --epochs both say how long to train; give one of them")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl"))):
        raise UserError("--compile needs a C++ compiler, and there is none on the PATH; install one, or leave the flag out")
    if config.resume and config.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")


# ----- one step -----------------------------------------------------------------------------------------------------

def lr_at(step: int, config: Config) -> float:
    """The learning rate of optimizer step `step`, counted from 0, as transformers' schedules of the same names have it."""
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    if step < warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)                              # 0 .. 1
    return config.lr * {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[config.schedule]


def optimizer_step(model, optimizer, scaler, micro_batches, autocast, lr, grad_clip) -> tuple[float, int]:
    """One AdamW step on the gradient of the mean NLL over all supervised tokens of all micro-batches -> (NLL sum, tokens).

    A mean of the micro-batches' own means would weight a token of a short answer more than one of a long answer, and give
    another gradient for another way to cut the same samples. So sums are added up, and divided by the tokens of the window.
    """
    window_tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in micro_batches)
    device = model.model.embed_tokens.weight.device
    total = torch.zeros((), device=device)
    for ids, labels in micro_batches:
        with autocast():
            nll, _ = model.loss(ids.to(device), labels.to(device))
        scaler.scale(nll / window_tokens).backward()
        total += nll.detach()
    scaler.unscale_(optimizer)
    if grad_clip:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total.item(), window_tokens


@torch.no_grad()
def evaluate(model, micro_batches, autocast) -> float:
    """Nats a supervised token over all of `micro_batches`, every token weighing the same."""
    device, nll, tokens = model.model.embed_tokens.weight.device, 0.0, 0
    with autocast():
        for ids, labels in micro_batches:
            batch_nll, batch_tokens = model.loss(ids.to(device), labels.to(device))
            nll, tokens = nll + batch_nll.item(), tokens + batch_tokens
    return nll / tokens


# ----- one run ------------------------------------------------------------------------------------------------------

class Data(NamedTuple):
    """What a run reads. `dropped` and `test_dropped` count the samples of which nothing supervised was left."""
    tokenizer: Tokenizer
    folder: Path
    train_set: list[dataset.Sample]
    dropped: int
    test_set: list[dataset.Sample]
    test_dropped: int


class Run(NamedTuple):
    """What the steps of a run work on; `progress` says where it stands, its rows included."""
    config: Config
    data: Data
    model: Transformer
    trained: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable
    progress: dict


def read_data(config: Config) -> Data:
    check(config)
    tokenizer = Tokenizer.from_pretrained(config.model)
    folder = dataset.find(config.data)
    train_set, dropped = dataset.load(folder / "train.jsonl", tokenizer, config.max_length)
    test_set, test_dropped = dataset.load(folder / "test.jsonl", tokenizer, config.max_length)
    return Data(tokenizer, folder, train_set, dropped, test_set[:config.eval_samples or None], test_dropped)


def set_up(config: Config, data: Data, base: Transformer | None = None) -> Run:
    """A run of settled `config` before its first step. `base`: the model as its files have it, for who makes many runs of it;
    it is copied, not changed."""
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(config.seed)
    # what is trained is float32 throughout: in bfloat16 most of a small learning rate's updates would be rounded away
    held = torch.float32 if config.method == "full" else dtype
    if base is None:
        load = load_quantized if config.method == "qlora" else Transformer.from_pretrained
        model = load(config.model, held, device)
    else:
        model = copy.deepcopy(base).to(device, held)
        if config.method == "qlora":
            quantize_model(model)
    data.tokenizer.check_vocabulary(model.config.vocab_size, config.model)
    mixed = config.method == "full" and dtype != torch.float32

    def autocast():
        return torch.autocast(device.type, dtype) if mixed else contextlib.nullcontext()

    if config.method != "full":
        apply_lora(model, config.rank, config.alpha, config.targets)
        if not isinstance(model.lm_head, torch.nn.Linear):
            raise UserError("lm_head cannot be trained with LoRA, for the loss reads its weight; leave it out of the targets")
    model.gradient_checkpointing = config.gradient_checkpointing
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # matrices are decayed, norms and biases are not, as in Hugging Face's Trainer
    groups = [{"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[config.optimizer](groups, config.lr, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda"))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    progress = {"step": 0, "tokens": 0, "seconds": 0.0, "nll_sum": 0.0, "nll_tokens": 0, "rows": [], "scaler": scaler.state_dict()}
    if config.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    return Run(config, data, model, trained, optimizer, scaler, autocast, progress)


def steps(run: Run, quiet: bool | None = None) -> Iterator[bool]:
    """The loop: evaluate, step, until the last evaluation. Yields between two steps, where run.progress is whole, whether that
    was evaluated just now. quiet: no progress bar; None: one where there is a terminal."""
    config, data, model, trained, optimizer, scaler, autocast, progress = run
    test_batches = dataset.micro_batches(data.test_set, 4 * config.micro_bs)
    trainable, device = sum(p.numel() for p in trained.values()), model.model.embed_tokens.weight.device
    with tqdm(total=config.max_steps, initial=progress["step"], unit="step", disable=quiet, dynamic_ncols=True) as bar:
        while True:
            step, rows = progress["step"], progress["rows"]

            # ----- evaluate -----
            due = step % config.eval_steps == 0 or step == config.max_steps
            if due := due and not (rows and rows[-1]["step"] == step):
                nll = progress["nll_sum"] / progress["nll_tokens"] if step else ""
                progress["nll_sum"], progress["nll_tokens"] = 0.0, 0
                rows.append(row(config, step, progress, nll, evaluate(model, test_batches, autocast), device, trainable))
            yield due
            if step == config.max_steps:
                break

            # ----- one step -----
            start = time.perf_counter()
            picked = dataset.window(len(data.train_set), config.batch_eff, step, config.seed)
            micro = dataset.micro_batches([data.train_set[i] for i in picked], config.micro_bs)
            nll, tokens = optimizer_step(model, optimizer, scaler, micro, autocast, lr_at(step, config), config.grad_clip)
            progress["step"] += 1
            progress["nll_sum"] += nll
            progress["nll_tokens"] += tokens
            progress["tokens"] += sum(len(data.train_set[i].ids) for i in picked)
            progress["seconds"] += time.perf_counter() - start
            bar.update()
            bar.set_postfix_str(f"loss {nll / tokens:.3f}, test {rows[-1]['test_nll']:.3f}, "
                                f"{progress['tokens'] / progress['seconds']:,.0f} tokens/s")


def train(config: Config) -> list[dict]:
    """Make the run that `config` describes, in config.out -> its rows of log.csv. Raises UserError for what the user can mend."""
    # ----- data and model -----
    data = read_data(config)
    config = settled(config, len(data.train_set))
    out = Path(config.out)
    if out.resolve() in (resolve(config.model).resolve(), data.folder.resolve()):
        raise UserError(f"--out {out} is the folder of the model or of the data; give another --out")
    if finished := begun(config, out):
        return finished
    run = set_up(config, data)
    model, autocast, progress = run.model, run.autocast, run.progress

    # ----- where it stands -----
    state = out / "state" / "state.safetensors"
    question = dataset.read(data.folder / "test.jsonl")[0]
    clear(out, config.overwrite)
    if state.exists():
        progress |= load_state(state, run.trained, run.optimizer)
        run.scaler.load_state_dict(progress["scaler"])
        base_answer = read_json(out / "run.json")["base_answer"]
    else:
        base_answer = answer(model, data.tokenizer, question, autocast)
        (out / "state").mkdir(parents=True, exist_ok=True)
        write_run(config, out, base_answer, finished=False)

    # ----- what is about to happen -----
    show_settings(run)
    first = dataset.window(len(data.train_set), config.batch_eff, 0, config.seed)[0]
    dataset.show_sample(data.train_set[first], data.tokenizer)

    # ----- the steps, and after each what is to be kept -----
    save_after = 0.0
    with interruption() as interrupted:
        for evaluated in steps(run):
            if evaluated:
                tqdm.write(report(progress["rows"]))
                write_csv(out / "log.csv", progress["rows"])
            if interrupted or (evaluated and time.perf_counter() > save_after):
                start = time.perf_counter()
                save_state(state, run.trained, run.optimizer, progress | {"scaler": run.scaler.state_dict()})
                save_after = time.perf_counter() + 20 * (time.perf_counter() - start)           # at most 5 % of the time
            if interrupted:
                break
    if interrupted and progress["step"] < config.max_steps:
        raise KeyboardInterrupt(f"stopped after step {progress['step']}; {out} has all that is needed to go on: add --resume to "
                                "the command")

    # ----- save -----
    if config.method != "full":
        save_adapter(model, out, str(resolve("nano")) if config.model == "nano" else config.model)
    else:
        model.save_pretrained(out, stop_ids(data.tokenizer))
    data.tokenizer.save_pretrained(out)
    write_run(config, out, base_answer, finished=True)
    shutil.rmtree(state.parent)

    # ----- show what it learned -----
    show_answers(question, base_answer, answer(model, data.tokenizer, question, autocast))
    how = {"full": "--model", "lora": "--adapter", "qlora": "--nf4 --adapter"}[config.method]
    print(f"\n{out}: log.csv, run.json and the trained weights; to talk to it: python sample.py {how} {out}", flush=True)
    return progress["rows"]


# ----- settings that depend on the machine and the data -------------------------------------------------------------

def settled(config: Config, n_train: int) -> Config:
    """`config` with every default that depends on something else put in its place."""
    device, dtype = device_and_dtype(config.device, config.dtype)
    steps = config.max_steps or (math.ceil(config.epochs * math.ceil(n_train / config.batch_eff)) if config.epochs else 200)
    config = dataclasses.replace(
        config, device=device, dtype=dtype, max_steps=steps, eval_steps=config.eval_steps or (10 if steps <= 100 else steps // 5),
        alpha=config.alpha or float(config.rank), lr=config.lr or (2e-5 if config.method == "full" else 2e-4))
    return dataclasses.replace(config, out=config.out or f"out/{config.run}")


def device_and_dtype(device: str, dtype: str) -> tuple[str, str]:
    """`device` and `dtype` with what this machine suggests in the place of "auto"."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):          # no such kind, none here, or a torch built without it
        raise UserError(f"--device {device}: torch cannot use such a device on this machine; leave the flag out") from None
    if dtype == "auto":
        half = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        dtype = half if device.startswith("cuda") else "float32"
    return device, dtype


# ----- files --------------------------------------------------------------------------------------------------------

def begun(config: Config, out: Path) -> list[dict] | None:
    """The rows of the run in `out` if it is this one and finished. Raises UserError if it is in the way of this one."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    if not (out / "run.json").exists():
        if out.exists() and any(p.suffix in (".csv", ".json", ".jsonl", ".safetensors") for p in out.iterdir()):
            raise UserError(f"{out} holds files of something else than a run; give another --out")
        return None
    if config.overwrite:
        return None
    there = read_json(out / "run.json")
    if there.get("run") != config.run:
        raise UserError(f"{out} holds another run, with other settings ({out / 'run.json'}); give another --out, or --overwrite")
    if there["finished"]:
        shutil.rmtree(out / "state", ignore_errors=True)        # a kill after the last file, before this one was deleted
        rows = read_csv(out / "log.csv")
        made = there["settings"].get("optimizer", config.optimizer)
        print(f"{out} holds this run, finished: {report(rows)}\n"
              + (f"It was made with --optimizer {made}, which gives the same numbers. " if made != config.optimizer else "")
              + "Nothing to do; --overwrite makes it anew.")
        return rows
    if not config.resume:
        raise UserError(f"{out} holds this run, unfinished; --resume goes on with it, --overwrite begins anew")


def clear(out: Path, overwrite: bool):
    """Delete what a killed process had half written and, to overwrite, the run itself: run.json last, for it tells a run."""
    files = ("log.csv", "state/state.safetensors", "adapter_config.json", "adapter_model.safetensors", "config.json",
             "model.safetensors", *FILES, "run.json")
    halves = [path for name in files for path in out.glob(f"{name}.*.part")]
    halves += [path for folder in (out, out / "state") for path in folder.glob(".tmp??????")]          # safetensors' own
    for path in [*halves, *(out / name for name in files if overwrite)]:
        path.unlink(missing_ok=True)


def write_run(config: Config, out: Path, base_answer: str, finished: bool):
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    run = {"run": config.run, "finished": finished, "settings": dataclasses.asdict(config), "versions": versions,
           "base_answer": base_answer}
    with replacing(out / "run.json") as part:
        part.write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_state(path: Path, trained, optimizer, progress: dict):
    """Everything that --resume needs, in one file: trained weights, AdamW's moments, and `progress` as its metadata."""
    tensors = {f"{name}/weight": p.detach() for name, p in trained.items()}
    tensors |= {f"{name}/{key}": t for name, p in trained.items() for key, t in optimizer.state[p].items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata={"progress": json.dumps(progress)})


def load_state(path: Path, trained, optimizer) -> dict:
    try:
        with safe_open(path, framework="pt") as f:
            for name, p in trained.items():
                p.data.copy_(f.get_tensor(f"{name}/weight"))
            for key in f.keys():
                name, what = key.rsplit("/", 1)
                if what != "weight":
                    restore(optimizer, trained[name], {what: f.get_tensor(key).clone()})
            return json.loads(f.metadata()["progress"])
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        if is_out_of_memory(e):            # the moments go to the device here: that is no reason to begin anew
            raise
        raise UserError(f"{path} is damaged ({e}); --overwrite begins anew") from None


def row(config: Config, step: int, progress: dict, train_nll, test_nll: float, device, trainable: int) -> dict:
    values = dataclasses.asdict(config) | {
        "run": config.run, "batch_eff": config.batch_eff, "step": step, "tokens": progress["tokens"],
        "seconds": round(progress["seconds"], 3), "peak_gb": round(peak_gb(device), 3),
        "train_nll": train_nll, "test_nll": test_nll, "trainable": trainable}
    if config.method == "full":
        values |= {"targets": "", "rank": "", "alpha": ""}
    return {column: values[column] for column in COLUMNS}


def peak_gb(device) -> float:
    """The most memory used so far, in 10^9 bytes: of the GPU by tensors, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:         # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def write_csv(path: Path, rows: list[dict]):
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as f:
        return [{k: v if k in ("run", "model", "data", "method", "targets") else float(v) if v else "" for k, v in r.items()}
                for r in csv.DictReader(f)]


# ----- what one looks at --------------------------------------------------------------------------------------------

def show_settings(run: Run):
    config, data, step = run.config, run.data, run.progress["step"]
    trainable, total = (sum(p.numel() for p in some) for some in (run.trained.values(), run.model.parameters()))
    quantized = [m for m in run.model.modules() if isinstance(m, NF4Tensor)]
    n, nbytes = sum(m.numel() for m in quantized), sum(m.nbytes for m in quantized)
    total += n
    print(f"run {config.run} -> {config.out}")
    for f in dataclasses.fields(config):
        if f.name not in ("out", "resume", "overwrite", *(("rank", "alpha", "targets") if config.method == "full" else ())):
            value = getattr(config, f.name)
            print(f"  {f.name:<23}{value:g}" if isinstance(value, float) else f"  {f.name:<23}{value}")
    if config.method != "full":
        print(f"  alpha / r              {config.alpha / config.rank:g}")
    print(f"  samples                {len(data.train_set):,} for training ({data.dropped} dropped: nothing supervised within "
          f"--max_length), {len(data.test_set):,} for testing ({data.test_dropped} dropped)")
    if quantized:
        print(f"  quantized to NF4       {n:,} weights of the base, {nbytes / 1e9:.3f} GB: {8 * nbytes / n:.3f} bits each")
    print(f"  trainable parameters   {trainable:,} of {total:,} ({trainable / total:.2%})")
    if step:
        print(f"  resumed after step     {step}")


def report(rows: list[dict]) -> str:
    last = rows[-1]
    train_nll = f"train NLL {last['train_nll']:.4f}  " if last["train_nll"] != "" else " " * 18
    return (f"step {last['step']:>4.0f}  {train_nll}test NLL {last['test_nll']:.4f}  {last['seconds']:7.1f} s  "
            f"{last['peak_gb']:.2f} GB")


def answer(model, tokenizer, messages: list[dict], autocast, max_new_tokens: int = 160) -> str:
    """The model's own answer to the last question of `messages`, greedily."""
    prompt = tokenizer.encode(dataset.prompt_of(messages, tokenizer))
    with autocast():
        ids = model.generate([prompt], max_new_tokens, stop_ids(tokenizer))[0]
    return tokenizer.decode(ids[len(prompt):], skip_special=True).strip()


def show_answers(messages, base_answer, tuned_answer):
    texts = {"question": messages[-2]["content"], "reference": messages[-1]["content"], "base": base_answer, "tuned": tuned_answer}
    print()
    for name, text in texts.items():
        print(f"{name:<11}" + text.replace("\n", "\n" + " " * 11))


# ----- interruption and errors --------------------------------------------------------------------------------------

@contextlib.contextmanager
def interruption():
    """A list that a first Ctrl-C makes non-empty, so that the step under way is finished; a second one ends at once."""
    asked = []

    def note(*_):
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv=None):
    with errors_in_one_line(LESS_MEMORY, no_space="make room, then add --resume to the command"):
        train(parse(argv))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")        # a terminal that cannot show a letter is no reason to stop
    main()
