"""How fast a training step is: ours and somebody else's, in turn, in one run.

    python bench.py --model Qwen/Qwen2.5-0.5B-Instruct --data vi_gsm8k --dtype bfloat16
    python bench.py --peer trl                      # against transformers + PEFT + TRL
    python bench.py --peer ../before                # against another copy of this repository
    python bench.py --peer dora                     # LoRA against another method of ours
    python bench.py --profile                       # where the time of our step goes
    python bench.py --generate --peer transformers  # tokens per second of answers

Why in turn? A machine that others use, or that grows warm, can be a fifth slower in this minute
than in the last one. Both sides are loaded, each in a process of its own, and one step of ours is
followed by one of theirs, then theirs is first, and so on. What slows one slows the other, so the
ratio of two steps side by side says more than two times measured an hour apart. Printed are the
median of the ratios and its quartiles. Steps differ in size, so seconds and rates are means: all
tokens by all seconds.

Model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B) is the share of the arithmetic
that the machine could do:

    MFU = FLOPs that a step needs / (its seconds x FLOP/s of matrix products alone)

What a step needs: 2 per weight and token for y = W x, 2 more for dx, and 2 more for dW of what is
trained; real tokens, without padding, and without what checkpointing computes twice. The ceiling is
not the maker's number. It is measured between the steps: the products of one layer, with their own
shapes and in the dtype of the run, one after the other. So it says what is lost around the
products, on this machine, and not how good the machine is.

The peers must be installed: pip install transformers peft trl bitsandbytes datasets. If they live
in another environment, --peer_python is its Python; what requirements.txt lists must be there, too.
"""
import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

import dataset
import train
from engine import open_model
from lora import TARGETS, AdaptedLinear, linear_layers
from model import MLP, Attention, Layer, RMSNorm
from plumbing.cli import add_flags, flag, make_parser, read_flags, run_command
from plumbing.device import DTYPES, peak_gb
from plumbing.errors import UserError, errors_in_one_line
from plumbing.fields import Number, check, whole
from plumbing.files import ROOT, resolve
from settings import LESS_MEMORY, METHODS, SHARED_FLAGS, Config, check_config, settled

INSTALL = "pip install transformers peft trl bitsandbytes datasets"
NEW_TOKENS = 64         # per answer, for --generate
BATCHES = (1, 16)       # prompts at once, for --generate


# ----- a side: a process that makes a step when it is asked for one ------------------------------
# It reads one line of standard input per step, and answers with one line of JSON.

def wait_for_turn():
    if not sys.stdin.readline():
        sys.exit()                      # the other end is gone


def reply(**numbers):
    print(json.dumps(numbers), file=REPLIES, flush=True)


def synchronize(device: torch.device):
    """Wait until the GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train_ours(config: Config):
    """One step of train.py per turn."""
    run = start_run(config)
    device = torch.device(run.config.device)
    while True:
        wait_for_turn()
        samples, tokens = next_samples(run), run.progress.tokens
        start = time.perf_counter()
        loss = train.make_step(run)
        synchronize(device)
        reply(seconds=time.perf_counter() - start, tokens=run.progress.tokens - tokens, loss=loss,
              peak_gb=peak_gb(device), flops=needed_flops(run, samples),
              ceiling=product_ceiling(run, samples))


def start_run(config: Config) -> train.Run:
    data = train.read_data(config)
    config = settled(config, len(data.train_set))
    return train.set_up(config, data, train.model_for(config))


def next_samples(run: train.Run) -> list[dataset.Sample]:
    """The samples of the step that comes next, as train.make_step takes them."""
    config, data = run.config, run.data
    indices = dataset.window(len(data.train_set), config.batch_eff, run.progress.step, config.seed)
    return [data.train_set[i] for i in indices]


COUNTED = ("full", "lora", "qlora", "rslora", "loraplus")       # what needed_flops is right for


def needed_flops(run: train.Run, samples: list[dataset.Sample]) -> float:
    """Of the matrix products of one step, for `samples`: see the top.

    Causal attention multiplies each query with T / 2 keys on average, and as many values: 2 T^2
    per sample for each number of a query. Backwards it is twice that.
    """
    c, full = run.model.config, run.method is None
    tokens = sum(len(sample.ids) for sample in samples)
    learned = sum(sample.learned for sample in samples)
    weights = sum(W.in_features * W.out_features for W in linear_layers(run.model.model).values())
    trained = 0 if full else sum(p.numel() for p in run.trained.values())
    query = c.num_attention_heads * c.head_dim * c.num_hidden_layers
    per_weight = 6 if full else 4
    return (per_weight * (weights * tokens + c.vocab_size * c.hidden_size * learned)
            + 6 * trained * tokens
            + 3 * 2 * query * sum(len(sample.ids) ** 2 for sample in samples))


def product_ceiling(run: train.Run, samples: list[dataset.Sample], repeats=3) -> float:
    """FLOP/s that one layer's products reach, y = x W^T and dx = dy W.

    They have as many rows as a micro-batch of `samples` has tokens. A GPU makes them many times
    over, because on small ones it would mostly be waited for.
    """
    config = run.config
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    rows = sum(len(sample.ids) for sample in samples) // config.grad_accum
    products = []
    for layer in linear_layers(run.model.model.layers[0]).values():
        W = torch.randn(layer.out_features, layer.in_features, device=device).to(dtype)
        x, dy = (torch.randn(rows, n, device=device).to(dtype) for n in reversed(W.shape))
        products += [(x, W.T), (dy, W)]
    if device.type == "cuda":
        products *= 20
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        for left, right in products:
            left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return sum(2 * left.numel() * right.shape[1] for left, right in products) / best


def train_trl(config: Config):
    """One step of TRL's SFTTrainer per turn, on the same samples in the same order.

    Every setting that both have is the same. The defaults of the others are TRL's own. The losses
    differ a little: TRL draws another A, and learns the newline after the end token, too.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig,
                              TrainerCallback)
    from trl import SFTConfig, SFTTrainer

    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    folder = resolve(config.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    chats = dataset.read_messages(dataset.find_dataset(config.data) / "train.jsonl")
    samples = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in chats])

    four_bits = None
    if config.method == "qlora":
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four_bits,
        dtype=torch.float32 if config.method == "full" else dtype).to(device)
    model.config.use_cache = False
    if config.method != "full":
        targets = config.targets
        if targets != "all-linear":
            targets = list(TARGETS.get(targets, targets.split(",")))
        model = get_peft_model(model, LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
            target_modules=targets, task_type="CAUSAL_LM"))

    class OneStepPerTurn(TrainerCallback):
        def on_step_begin(self, *_, **__):
            wait_for_turn()
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronize(device)
            self.seconds = time.perf_counter() - self.start

        def on_log(self, args, state, control, logs, **__):
            if "loss" in logs:
                tokens, before = logs["num_tokens"], getattr(self, "tokens", 0)
                self.tokens = tokens
                reply(seconds=self.seconds, tokens=round(tokens - before), loss=logs["loss"],
                      peak_gb=peak_gb(device))      # TRL counts tokens as floats

    with tempfile.TemporaryDirectory() as out:
        SFTTrainer(
            model=model, train_dataset=samples, processing_class=tokenizer,
            callbacks=[OneStepPerTurn()],
            args=SFTConfig(
                output_dir=out, max_steps=config.max_steps, learning_rate=config.lr,
                lr_scheduler_type=config.schedule, seed=config.seed, data_seed=config.seed,
                warmup_steps=math.ceil(config.warmup_ratio * config.max_steps),
                per_device_train_batch_size=config.micro_bs,
                gradient_accumulation_steps=config.grad_accum, max_length=config.max_length,
                max_grad_norm=config.grad_clip, weight_decay=config.weight_decay,
                gradient_checkpointing=config.gradient_checkpointing,
                bf16=config.dtype == "bfloat16", fp16=config.dtype == "float16",
                use_cpu=device.type == "cpu", logging_steps=1, report_to=[], save_strategy="no",
                eval_strategy="no", disable_tqdm=True),
        ).train()


def prompts_of(config: Config, count: int) -> list[list[dict]]:
    """The questions of the first `count` test samples; of fewer, again from the first."""
    chats = dataset.read_messages(dataset.find_dataset(config.data) / "test.jsonl")
    return [chats[i % len(chats)][:-1] for i in range(count)]


def generate_ours(config: Config):
    """Per turn NEW_TOKENS tokens for each prompt, greedily: one prompt, then 16, and so on."""
    model, tokenizer = open_model(config.model, config.device, config.dtype,
                                  nf4=config.four_bits)
    while True:
        for count in BATCHES:
            rows = [tokenizer.encode(dataset.prompt_of(chat, tokenizer))
                    for chat in prompts_of(config, count)]
            wait_for_turn()
            start = time.perf_counter()
            ids = model.generate(rows, NEW_TOKENS)
            synchronize(model.device)
            reply(seconds=time.perf_counter() - start, tokens=count * NEW_TOKENS,
                  ids=[row[-NEW_TOKENS:] for row in ids], peak_gb=peak_gb(model.device))


def generate_transformers(config: Config):
    """The same with transformers' generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    device, folder = torch.device(config.device), resolve(config.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[config.dtype])
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None         # every answer has NEW_TOKENS
    model.generation_config.repetition_penalty = 1.0    # Qwen2.5's files ask for 1.1
    while True:
        for count in BATCHES:
            batch = tokenizer.apply_chat_template(
                prompts_of(config, count), add_generation_prompt=True, return_tensors="pt",
                padding=True, return_dict=True).to(device)
            wait_for_turn()
            start = time.perf_counter()
            ids = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
            synchronize(device)
            reply(seconds=time.perf_counter() - start, tokens=count * NEW_TOKENS,
                  ids=ids[:, -NEW_TOKENS:].tolist(), peak_gb=peak_gb(device))


SIDES = {"ours": train_ours, "trl": train_trl, "generate": generate_ours,
         "transformers": generate_transformers}
PEERS = ("trl", "transformers")
REPLIES = None          # where a side writes its lines


def be_a_side(name: str, settings: str):
    """What a side's process does: `name` of SIDES, with `settings`, a Config as JSON."""
    global REPLIES
    # what libraries print must not get among the replies
    REPLIES = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name in PEERS:       # as it is without us: model.py has set these for ours
        os.environ.pop("MKL_CBWR", None)
        torch.backends.cuda.enable_cudnn_sdp(True)
    SIDES[name](Config(**json.loads(settings)))


# ----- the parent: sides in turn ------------------------------------------------------------------

REPLY = {"seconds": Number(above=0), "tokens": whole(1), "peak_gb": Number(0),
         "loss?": (int, float), "ids?": [[whole()]]}


class Side:
    """A process of `be_a_side`. kind: of SIDES; name: how it is called where it is printed."""

    def __init__(self, kind: str, config: Config, python=sys.executable, folder=ROOT, name=""):
        self.name, self.rows = name or kind, []
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.began = time.perf_counter()
        env = dict(os.environ)
        if kind == "trl" and config.device.startswith("cuda"):
            # transformers would use all GPUs that it sees, as nn.DataParallel
            index, seen = torch.device(config.device).index or 0, env.get("CUDA_VISIBLE_DEVICES")
            env["CUDA_VISIBLE_DEVICES"] = seen.split(",")[index] if seen else str(index)
            config = dataclasses.replace(config, device="cuda")
        self.process = subprocess.Popen(
            [python, str(folder / "bench.py"), "--side", kind,
             json.dumps(dataclasses.asdict(config))], env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)

    def take_turn(self):
        """Ask for a step and wait for it. Raises UserError, with its last words, if it died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        try:
            row = json.loads(self.process.stdout.readline())
        except ValueError:                  # no line, the end
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["it said nothing"]
            hint = f"; is everything there? {INSTALL}" if "No module" in last[0] else ""
            raise UserError(f"{self.name} ended: {last[0]}{hint}") from None
        self.rows.append(check(row, REPLY, f"a reply of {self.name}"))
        if len(self.rows) == 1:
            self.first_step = time.perf_counter() - self.began

    def leave(self):
        self.process.kill()
        self.process.wait()


def measure(make_sides: list, turns: int) -> list[Side]:
    """Start the sides one after the other, and let them take `turns` turns each."""
    sides = []
    try:
        for make in make_sides:         # each makes its first step alone, so its start is its own
            sides.append(make())
            sides[-1].take_turn()
        for turn in range(1, turns):
            for side in sides if turn % 2 else sides[::-1]:
                side.take_turn()
            show_turn(turn, sides)
    finally:
        for side in sides:
            side.leave()
    return sides


# ----- where the time of a step goes --------------------------------------------------------------

class Stopwatch:
    """Gives each moment to the innermost part that is at work then.

    Modules announce when their forward and their backward pass begin and end. What belongs to no
    module is the loss with its unembedding, after the first module of a step, and the input before.
    """

    def __init__(self, run: train.Run):
        self.device = torch.device(run.config.device)
        self.seconds = defaultdict(float)       # part -> seconds so far
        self.stack = ["input"]
        self.last = time.perf_counter()
        for name, module in run.model.named_modules():
            if part := part_of(module):
                self.watch(module, part)
        run.model.model.embed_tokens.register_forward_pre_hook(
            lambda *_: self.begin("unembedding and loss"))
        run.optimizer.register_step_pre_hook(lambda *_: self.enter("optimizer"))
        run.optimizer.register_step_post_hook(lambda *_: self.leave("optimizer"))

    def watch(self, module: nn.Module, part: str):
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        # checkpointing ends what it computes again by an exception, once it has all that it needs
        module.register_forward_hook(lambda *_: self.leave(part), always_call=True)
        module.register_full_backward_pre_hook(lambda *_: self.enter(part))
        module.register_full_backward_hook(lambda *_: self.leave(part))

    def begin(self, part: str):
        """From here on, what belongs to no module is `part`."""
        self.tick()
        self.stack[0] = part

    def enter(self, part: str):
        self.tick()
        self.stack.append(part)

    def leave(self, part: str):
        self.tick()
        if part in self.stack[1:]:      # the lowest layer's backward pass may end twice
            del self.stack[len(self.stack) - 1 - self.stack[::-1].index(part)]

    def tick(self):
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.last
        self.last = now


def part_of(module: nn.Module) -> str | None:
    if isinstance(module, AdaptedLinear):
        return "adapters"
    if hasattr(module, "in_features"):
        return "products with W"
    return {Attention: "attention: RoPE, scores, softmax", MLP: "SwiGLU", RMSNorm: "norms",
            Layer: "sums of the residual stream"}.get(type(module))


def show_profile(config: Config, steps: int):
    """Print where the time of `steps` steps goes, after one that is not counted.

    The stopwatch takes time itself, above all on a GPU, which it waits for at each part. So a step
    without it is shown, too.
    """
    run = start_run(config)
    train.make_step(run)
    began = time.perf_counter()
    train.make_step(run)
    synchronize(torch.device(config.device))
    print(f"a step without the stopwatch: {time.perf_counter() - began:.3f} s")
    # torch warns of frozen layers with nothing trained below them, which have no dx to time
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    watch = Stopwatch(run)
    for _ in range(steps):
        watch.begin("input")
        train.make_step(run)
    watch.tick()
    total = sum(watch.seconds.values())
    print(f"{'part':<34}s per step    share")
    for part, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1]):
        print(f"{part:<34}{seconds / steps:10.3f}{seconds / total:9.1%}")
    print(f"{'together':<34}{total / steps:10.3f}")


# ----- what is printed ----------------------------------------------------------------------------

def show_turn(turn: int, sides: list[Side]):
    print(f"turn {turn}: " + ", ".join(
        f"{side.name} {side.rows[-1]['seconds']:.3f} s" for side in sides), flush=True)


def show_sides(sides: list[Side], groups: dict[str, slice]):
    """A table per group of turns: means, and what the first side is better by."""
    for title, turns in groups.items():
        print(f"\n{title:<26}" + "".join(f"{side.name:>14}" for side in sides)
              + ("         ratio" if len(sides) > 1 else ""))
        rows = [side.rows[turns] for side in sides]
        seconds = [[row["seconds"] for row in one] for one in rows]
        rates = [[row["tokens"] / row["seconds"] for row in one] for one in rows]
        tokens = [sum(row["tokens"] for row in one) for one in rows]
        print_row("seconds", [statistics.fmean(one) for one in seconds], ".3f",
                  [b / a for a, b in zip(*seconds)] if len(sides) > 1 else [])
        print_row("tokens per second", [n / sum(one) for n, one in zip(tokens, seconds)], ",.0f",
                  [a / b for a, b in zip(*rates)] if len(sides) > 1 else [])
    print()
    print_row("peak memory, GB", [side.rows[-1]["peak_gb"] for side in sides], ".2f")
    print_row("first after, s", [side.first_step for side in sides], ".1f")


def print_row(name: str, values: list[float], form: str, ratios: list[float] = ()):
    text = f"{name:<26}" + "".join(f"{value:>14{form}}" for value in values)
    if len(ratios) > 1:
        low, middle, high = statistics.quantiles(ratios, n=4)
        text += f"{middle:14.2f} (quartiles {low:.2f} to {high:.2f})"
    print(text)


def show_mfu(sides: list[Side]):
    rows = sides[0].rows[1:]
    flops = statistics.fmean(row["flops"] for row in rows)
    ceiling = statistics.median(row["ceiling"] for row in rows)
    print_row("MFU, %", [100 * flops / ceiling / statistics.fmean(
        row["seconds"] for row in side.rows[1:]) for side in sides], ".0f")
    print(f"a step needs {flops / 1e12:.2f} TFLOP on average; "
          f"products alone reach {ceiling / 1e12:.2f} TFLOP/s")
    losses = [[row["loss"] for row in side.rows] for side in sides]
    for side, one in zip(sides, losses):
        print(f"losses of {side.name}: " + " ".join(f"{loss:.4f}" for loss in one))


# ----- the command --------------------------------------------------------------------------------

@dataclasses.dataclass
class Settings:
    peer: str = flag(
        None, "trl, with --generate transformers, another --method, or the folder of another copy "
        "of this repository", group="bench")
    peer_python: str = flag(None, "the Python of the peer; default: the one that runs this")
    turns: int = flag(8, "steps of each side; the first is not counted", at_least=3)
    profile: bool = flag(False, "say where the time of our step goes")
    generate: bool = flag(False, "answers instead of steps")


def parse_bench(argv) -> tuple[Settings, list[Config]]:
    """-> bench.py's own flags, and our run's settings; then the peer's, if it is another --method.

    Raises UserError for what cannot be compared.
    """
    parser = make_parser("bench.py", __doc__)
    add_flags(parser, Settings)
    add_flags(parser.add_argument_group("of train.py"), Config, only=SHARED_FLAGS)
    settings, config = read_flags(parser, argv, Settings, Config)
    check_config(config)
    resolve(config.model)           # a missing model shows here, before a side is started
    peer = settings.peer
    if peer == ("trl" if settings.generate else "transformers"):
        raise UserError("--peer trl makes steps, and --peer transformers answers (--generate)")
    if peer in METHODS and settings.generate:
        raise UserError(f"--peer {peer} makes steps, and --generate answers; leave one of them out")
    if peer and peer not in PEERS + METHODS and not (Path(peer) / "bench.py").exists():
        raise UserError(f"--peer {peer}: it must be one of {', '.join(PEERS)}, another --method, "
                        "or the folder of a copy of this repository that has a bench.py")
    if peer == "trl" and (config.method not in ("full", "lora", "qlora")
                          or config.supervise != "last" or config.optimizer != "adamw"):
        raise UserError("--peer trl does full, lora and qlora with --supervise last and "
                        "--optimizer adamw")
    if settings.generate and config.method != Config.method:
        raise UserError("--generate is of the model as it is; leave --method out, or give --nf4")
    if peer == "transformers" and config.nf4:
        raise UserError("--peer transformers has no four bits; leave --nf4 out")
    if settings.profile and config.compile:
        raise UserError("--profile times each part, and --compile makes one of them all; leave one "
                        "of them out")
    if settings.peer_python and not shutil.which(settings.peer_python):
        raise UserError(f"--peer_python {settings.peer_python}: there is no such program")
    configs = [config]
    if peer in METHODS:         # not settled yet: that would make lora with --nf4 another method
        configs.append(dataclasses.replace(config, method=peer, lr=None))
        check_config(configs[1])
    configs = [settled(one, 1) for one in configs]
    if configs[1:] == configs[:1]:
        raise UserError(f"--peer {peer}: that is what --method says; give another")
    if not settings.generate and settings.turns > configs[0].max_steps:
        raise UserError(f"--turns {settings.turns} are more than the run's {configs[0].max_steps} "
                        "steps; raise --max_steps")
    return settings, configs


def run_bench(settings: Settings, configs: list[Config]):
    config = configs[0]
    if settings.profile:
        show_profile(config, settings.turns)
        return
    ours = "generate" if settings.generate else "ours"
    peer, python = settings.peer, settings.peer_python or sys.executable
    sides = [functools.partial(Side, ours, config, name="ours")]
    if peer in PEERS:
        sides.append(functools.partial(Side, peer, config, python))
    elif peer in METHODS:
        sides.append(functools.partial(Side, ours, configs[1], name=peer))
    elif peer:
        folder = Path(peer)
        sides.append(functools.partial(Side, ours, config, python, folder, folder.resolve().name))
    groups = {"per step": slice(1, None)}
    if settings.generate:
        groups = {f"{count} answers of {NEW_TOKENS}": slice(i + len(BATCHES), None, len(BATCHES))
                  for i, count in enumerate(BATCHES)}
    sides = measure(sides, settings.turns * len(groups))
    show_sides(sides, groups)
    if not settings.generate:
        if config.method in COUNTED and peer not in METHODS:
            show_mfu(sides)
    elif peer:
        answers = [[ids for row in side.rows[:len(BATCHES)] for ids in row["ids"]]
                   for side in sides]
        same = sum(mine == theirs for mine, theirs in zip(*answers))
        print(f"the same tokens in {same} of {len(answers[0])} answers")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--side"]:
        be_a_side(*argv[1:])
        return
    with errors_in_one_line(LESS_MEMORY):
        run_bench(*parse_bench(argv))


if __name__ == "__main__":
    run_command(main)
