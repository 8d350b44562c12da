"""What a run takes, before it runs: memory, FLOPs, a learning rate and a rank, from config.json.

    python plan.py --model Qwen/Qwen2.5-0.5B-Instruct --method lora --rank 64 --max_length 512
    python plan.py --model config.json --method full --dtype bfloat16 --plot plan.png
    python plan.py --model nano --data nano --measure       # compare with two real steps
    python plan.py --model Qwen/Qwen2.5-7B --gpus 1,8,64 --fsdp     # what each GPU holds and sends

It takes all flags of train.py, so that a command can be planned as it is. memory.py has the
symbols, the formula of each term with an example, and a table of two models.
"""
import contextlib
import io
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

import train
from communication import sent_per_step
from dataset import Sample, find_dataset, load_split
from memory import (Sizes, adapter_parameters, all_terms, at_peak, count_parameters, first_line,
                    largest_micro_bs, linear_parameters, method_parameters, name_bytes, peak_bytes)
from methods import find_method
from model import ModelConfig, Transformer
from plumbing.cli import add_flags, make_parser, run_command
from plumbing.device import peak_gb
from plumbing.errors import UserError, errors_in_one_line, is_out_of_memory
from plumbing.fields import check, number_of, whole
from plumbing.files import make_folder, replacing, resolve
from plumbing.text import print_fitted
from quant import quantize_layer
from rates import LIKE_LORA, starting_rate
from settings import RELATIVES, Config, check_config, settled
from tokenizer import Tokenizer

# GB of 10^9 bytes. A card's GB are 2^30 bytes, 7 % more: that is left for CUDA's context.
CARDS = (8, 16, 24, 48, 80)
BASELINE = 0.33e9               # resident bytes of a CPU process with torch and no model (measured)
KIND_COLOURS = {                # Okabe and Ito's, which the colour-blind tell apart
    "weights": "#0072B2", "adapters": "#56B4E9", "optimizer": "#009E73", "gradients": "#F0E442",
    "activations": "#E69F00", "temporary": "#D55E00"}
SCHULMAN = "Schulman et al., 2025"      # LoRA Without Regret


# ----- computation --------------------------------------------------------------------------------

def flops_ratio(weights: float, in_out: float, rank: float) -> float:
    """FLOPs of a LoRA step over a full one's, on maps of `weights` weights, with sum(in + out).

    Per token a weight costs 2 FLOPs, a product and a sum, in each of three products of equal size:

        forward  y = W x            backward  dx = W^T dy  and  dW = dy x^T

    LoRA never needs dW of a frozen W: two of three are left. A and B need all three. Together
    (4 W + 6 r (in + out)) / 6 W, which on a C x C map is 2/3 + 2 r / C (LoRA Without Regret). With
    C = 896 and r = 64 that is 0.667 + 0.143 = 0.81.
    """
    return (4 * weights + 6 * rank * in_out) / (6 * weights)


def break_even(weights: float, in_out: float) -> float:
    """The rank at which `flops_ratio` is 1: W / (3 sum(in + out)); on a C x C map C / 6."""
    return weights / (3 * in_out)


def step_flops(c: ModelConfig, config: Config) -> float:
    """FLOPs of an optimizer step of `config` on full-length samples with all tokens supervised.

    6 per weight and token, 4 where dW is not needed: of the unembedding, too, which has no adapter.
    Causal attention sees T / 2 keys on average: 2 T Q per token and layer, twice that backwards.
    """
    z = Sizes(c, config)
    attention = 2 * z.T * z.Q * z.L
    per_weight = 6 if z.full else 4
    per_token = per_weight * (z.W + z.V * z.C) + 6 * z.a + 3 * attention
    if z.config.gradient_checkpointing:
        # the layers' forward pass again, until it has what is kept
        again = z.W + z.a
        if z.full:
            again -= z.L * z.I * z.C        # nothing after down_proj's input is kept
        per_token += 2 * again + attention
    return per_token * config.batch_eff * config.max_length


# ----- a rank to start with -----------------------------------------------------------------------

def rank_for(c: ModelConfig, tokens: int, targets: str = "all-linear") -> int:
    """The smallest rank that can memorize so many supervised tokens: 1 bit each, 2 per parameter.

    2 bits per parameter is what language models were found to store of the knowledge they are
    trained on (Allen-Zhu and Li, Physics of Language Models 3.3, arXiv 2404.05405). 1 bit per token
    is what LoRA Without Regret takes: memorizing a token takes at most as many bits as its loss
    has, and the loss of typical data is of the order of 0.69 nats, which is 1 bit (nano's base has
    6.0). Both are orders of magnitude, and so is the rank. Data of nano: 317,143 tokens, 20,352
    parameters per rank, 317,143 / (2 x 20,352) = 7.8, so rank 8. Capacity is not all: on nano r = 1
    was behind long before it was full (results/findings_nano.md).
    """
    return max(1, math.ceil(tokens / (2 * adapter_parameters(c, 1, targets))))


def read_training_samples(config: Config) -> list[Sample]:
    """The training split, as train.py reads it; of the model only its tokenizer is needed."""
    if Path(config.model).is_file():
        folder = Path(config.model).parent
    else:
        folder = resolve(config.model, ["tokenizer*.json", "chat_template*"])
    tokenizer = Tokenizer.from_pretrained(folder)
    path = find_dataset(config.data) / "train.jsonl"
    return load_split(path, tokenizer, config.max_length, config.supervise)[0]


def count_supervised_tokens(samples: list[Sample], config: Config) -> tuple[int, int]:
    """-> (supervised tokens of the training split, how many of them the run sees)."""
    tokens = sum(sample.learned for sample in samples)
    epochs = config.max_steps * config.batch_eff / len(samples)
    return tokens, round(tokens * min(1, epochs))


# ----- measuring: two real steps ------------------------------------------------------------------

def make_stepper(c: ModelConfig, config: Config):
    """train.py's optimizer step on random weights and tokens, as a function without arguments."""
    device, dtype = torch.device(config.device), train.weight_dtype(config)
    model = Transformer.empty(c)
    # one weight at a time, as from_pretrained puts them and load_quantized quantizes them
    for name, p in list(model.named_parameters()):
        model.put(name, torch.empty(p.shape, dtype=dtype, device=device).normal_(std=0.02), "")
        if config.four_bits:
            quantize_layer(model, name.rpartition(".")[0])
    model.tie_weights()
    made = train.set_up(config, None, model)
    ids = torch.randint(c.vocab_size, (config.micro_bs, config.max_length))
    micro_batches = [(ids, ids)] * min(2, config.grad_accum)   # a third holds what the second holds
    return lambda: train.optimizer_step(
        model, made.optimizer, made.scaler, micro_batches, made.autocast, lr=1e-4, grad_clip=1.0,
        **train.method_hooks(made))


def measure_two_steps(c: ModelConfig, config: Config) -> tuple[float, float]:
    """-> (bytes before the model exists, the most bytes in two steps). Only the second step holds
    AdamW's moments throughout.

    Call it in a process of its own, because a peak is that of all that a process ever did.
    """
    device = torch.device(config.device)
    tiny = replace(
        c, vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    make_stepper(tiny, replace(config, rank=1))()      # loads the libraries' own buffers
    before = peak_gb(device)
    step = make_stepper(c, config)
    step()
    step()
    return before * 1e9, peak_gb(device) * 1e9


def in_fresh_process(function, *args, **env):
    """function(*args) in a new process with the user's environment and `env`.

    MALLOC_MMAP_THRESHOLD_ is what `env` says or unset, whatever the user's own value is.
    """
    users = os.environ.copy()
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    os.environ.update(env)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    except RuntimeError as e:
        if not isinstance(e, BrokenProcessPool) and not is_out_of_memory(e):
            raise                   # BrokenProcessPool: the system killed the process
        raise UserError("--measure ran out of memory; lower --micro_bs or --max_length") from None
    finally:
        os.environ.clear()
        os.environ.update(users)


# ----- what is printed and drawn ------------------------------------------------------------------

def each_method(config: Config) -> dict[str, Config]:
    """`config` with full, lora, qlora and its own method, without and with checkpointing."""
    runs = {method: replace(config, method=method, nf4=False, options="")
            for method in ("full", "lora", "qlora")}
    configs = {}
    for method, run in (runs | {config.method: config}).items():
        for name, checkpointing in ((method, False), (f"{method} + checkpointing", True)):
            configs[name] = replace(run, gradient_checkpointing=checkpointing)
    return configs


def gb(n: float, width: int = 0) -> str:
    return f"{n / 1e9:{width}.3f}"


def show_summary(c: ModelConfig, config: Config, on_gpu: Config):
    """The answers that most come for. The tables after it say how they come about."""
    fits = [card for card in CARDS if largest_micro_bs(c, on_gpu, card * 1e9) >= config.micro_bs]
    card = f"a card of {fits[0]} GB is enough" if fits else f"too much for {CARDS[-1]} GB"
    if config.method == "full" or config.adapter_method in LIKE_LORA:
        rate = starting_rate(c, config.method, config.max_steps, config.alpha)
        rate = f"{rate:.1e}; when it matters, also half and twice that"
    else:
        rate = (f"{find_method(config.adapter_method).lr:.1e}, the method's default for any model "
                "and rank; sweep it")
    plain, less = (peak_bytes(c, replace(config, gradient_checkpointing=checkpointing))
                   for checkpointing in (False, True))
    of_process, how = "", ""
    if config.gradient_checkpointing:
        how = ", with --gradient_checkpointing"
    if config.device == "cpu":
        low, high = (name_bytes(BASELINE + n * peak_bytes(c, config)) for n in (1, 2))
        of_process = (f"RAM of the process{how}: {low} with its libraries, up to {high} where "
                      "freed memory stays as holes\n")
    print(f"memory at the peak: {name_bytes(plain)} on {config.device}, {name_bytes(less)} with "
          f"--gradient_checkpointing\n{of_process}"
          f"on a GPU, in {on_gpu.dtype}{how}: {name_bytes(peak_bytes(c, on_gpu))}; {card}\n"
          f"a rate to start with: --lr {rate}")
    uncounted = [flag for flag in ("dropout", "compile") if getattr(config, flag)]
    if uncounted:
        print(f"not counted: what --{' and --'.join(uncounted)} takes")
    print()


def show_sizes(c: ModelConfig, config: Config):
    z = Sizes(c, config)
    attention, mlp = (adapter_parameters(c, 1, targets) for targets in ("attention", "mlp"))
    a = 0 if z.full else z.a
    print(f"{config.model}: {config.method} in {config.dtype} on {config.device}, "
          f"{config.optimizer}, {config.micro_bs} x {config.max_length} tokens per micro-batch, "
          f"{config.grad_accum} per step\n"
          f"  P = {z.P:,}  W = {z.W:,}  a = {a:,} (r = {config.rank}, {config.targets})  "
          f"sum of in + out: attention {attention:,}, MLP {mlp:,}\n"
          f"  N = {z.N:,}  C = {z.C}  I = {z.I:,}  Q = {z.Q}  K = {z.K}  V = {z.V:,}  L = {z.L}  "
          f"s = {z.s}")


def show_memory(c: ModelConfig, config: Config):
    plain = replace(config, gradient_checkpointing=False)
    checkpointed = replace(config, gradient_checkpointing=True)
    unit, title = 1e9, "memory, GB = 10^9 bytes"
    if peak_bytes(c, plain) < 1e9:
        unit, title = 1e6, "memory, MB = 10^6 bytes"
    print(f"\n{title:<24}{'plain':>9}{'checkpt.':>10}  bytes [source]; "
          "of rows with ~ only the largest counts")
    for term, less in zip(all_terms(c, plain), all_terms(c, checkpointed)):
        if term.bytes or less.bytes:
            print(f"  {term.name:<23}{term.bytes / unit:8.3f}{less.bytes / unit:10.3f}  "
                  f"{less.formula}  [{less.source}]")
    when, held = at_peak(c, plain)
    when_less, held_less = at_peak(c, checkpointed)
    peak, peak_less = sum(held.values()), sum(held_less.values())
    print(f"  {'peak':<23}{peak / unit:8.3f}{peak_less / unit:10.3f}  "
          f"at {when}; checkpointed at {when_less}")
    z = Sizes(c, config)
    if z.trained_maps and not z.full and not z.method.keeps:
        print(f"  methods/{z.method.name}.py does not say what is kept next to the maps")
    # weight + gradient + moments. The 8 P often added for activations are a guess, because these
    # grow with the tokens and not with the parameters.
    P = count_parameters(c)
    print(f"  rule of thumb, full float32 with Adam: (4 + 4 + 8) P = "
          f"{16 * P / unit:.3f}; with 8 P for activations {24 * P / unit:.3f}")


def show_methods(c: ModelConfig, config: Config):
    """What each method trains at this rank and on these targets: its file's formula, worked out."""
    print(f"\ntrained parameters at --rank {config.rank}, --targets {config.targets}")
    print(f"  {'full':<20}{count_parameters(c):>15,}  P")
    for name in RELATIVES:
        run = replace(config, method=name, nf4=False, options="")
        try:
            formula = first_line(find_method(name).count)
            print(f"  {name:<20}{method_parameters(c, run):>15,}  {formula}")
        except Exception as e:      # of a method in the making, while another one is planned
            print(f"  {name:<20}{'':>15}  methods/{name}.py fails: {e!r}")


def show_cards(c: ModelConfig, config: Config):
    print(f"\n{'on a GPU, in ' + config.dtype:<23}{f'peak at {config.micro_bs}':>12}"
          + "".join(f"{card:>6} GB" for card in CARDS) + "\n  the largest micro_bs that fits")
    for name, variant in each_method(config).items():
        fits = [largest_micro_bs(c, variant, card * 1e9) or "-" for card in CARDS]
        print(f"  {name:<21}{gb(peak_bytes(c, variant), 9)} GB"
              + "".join(f"{micro_bs:>9}" for micro_bs in fits))


def show_gpus(c: ModelConfig, config: Config, numbers: list[int]):
    """What each of several GPUs holds at the peak, and what it sends in a step."""
    how = "shards (--fsdp)" if config.fsdp else "data parallel"
    print(f"\n{how}, in {config.dtype}: GB on each GPU, and GB that it sends per step of "
          f"{config.grad_accum} x {config.micro_bs} x {config.max_length} tokens\n" + " " * 25
          + "".join(f"{n:>16} GPU" + ("s" if n > 1 else " ") for n in numbers))
    for name, variant in each_method(config).items():
        line = f"  {name:<23}"
        for n in numbers:
            sent = sum(sent_per_step(Sizes(c, variant, n), n).values())
            line += f"{peak_bytes(c, variant, n) / 1e9:12.2f}{sent / 1e9:9.2f}"
        print(line)


def show_computation(c: ModelConfig, config: Config):
    C, W, in_out = c.hidden_size, linear_parameters(c), adapter_parameters(c, 1)
    print(f"\ncomputation, {config.batch_eff} x {config.max_length} tokens per step, "
          f"qlora as lora  [{SCHULMAN}]")
    variants = each_method(config)
    full = step_flops(c, variants["full"])
    for name in ("full", "full + checkpointing", "lora", "lora + checkpointing"):
        n = step_flops(c, variants[name])
        print(f"  {name:<25}{n / 1e12:11.2f} TFLOP{n / full:8.3f} x full")
    print(f"  of the layers' maps alone {flops_ratio(W, in_out, config.rank):.3f} = "
          "2/3 + r sum(in + out) / W; on a C x C map "
          f"{flops_ratio(C * C, 2 * C, config.rank):.3f} = 2/3 + 2 r / C\n"
          f"  LoRA stops being cheaper at r = {break_even(W, in_out):.0f} = W / (3 sum(in + out)); "
          f"on a C x C map at C / 6 = {break_even(C * C, 2 * C):.0f}")


def show_start(c: ModelConfig, config: Config, supervised: tuple[int, int] | None):
    full = starting_rate(c, "full", config.max_steps)
    lora = starting_rate(c, "lora", config.max_steps)
    print(f"\nto start with, {config.max_steps} steps  [{SCHULMAN}]\n"
          f"  learning rate {full:.1e} for full fine-tuning, {lora:.1e} = {lora / full:.0f} x that "
          "for LoRA with --alpha 32  [tinker-cookbook]\n"
          f"  with alpha = r, train.py's default, (32 / r)^(2/3) times that: "
          f"{starting_rate(c, 'lora', config.max_steps, config.rank):.1e} at r = {config.rank}  "
          "[2/3: fitted to nano]")
    if supervised:
        split, seen = supervised
        per_rank = adapter_parameters(c, 1, config.targets)
        for what, tokens in (("the split's", split), ("the run's", seen)):
            print(f"  {what} {tokens:,} supervised tokens fit into rank "
                  f"{rank_for(c, tokens, config.targets)}: 1 bit per token, 2 bits per parameter, "
                  f"{per_rank:,} parameters per rank")


def show_measurement(c: ModelConfig, config: Config):
    """Two real steps next to the prediction, without and with checkpointing.

    On a CPU glibc does not give back small freed blocks. They stay as holes between what is in use,
    and what counts as small grows to 32 MB as the process runs. So a process holds more than its
    tensors. With a fixed threshold it gives all back. Both are measured.
    """
    cpu = not config.device.startswith("cuda")
    baseline = BASELINE if cpu else 0
    times, libraries, malloc = 2, "", ""
    if cpu:
        times, malloc = 4, "   peak, malloc left to itself"
        libraries = f". Predicted: the peak above and {gb(BASELINE)} of libraries"
    print(f"\nmeasuring: two steps of two micro-batches, {times} times; on a CPU this can take "
          f"minutes{libraries}\n{'measured, GB':<24}{'before':>9}{'peak':>10}{'predicted':>12}"
          f"{'off by':>9}{malloc}", flush=True)
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        config = replace(config, gradient_checkpointing=checkpointing)
        before, peak = in_fresh_process(
            measure_two_steps, c, config, MALLOC_MMAP_THRESHOLD_="65536")
        predicted = peak_bytes(c, config) + baseline
        line = (f"  {name:<23}{gb(before, 8)}{gb(peak, 10)}{gb(predicted, 12)}"
                f"{predicted / peak - 1:+9.1%}")
        if cpu:
            _, untouched = in_fresh_process(measure_two_steps, c, config)
            line += gb(untouched, 11)
        print(line, flush=True)


def draw_memory(c: ModelConfig, config: Config, path: Path):
    """A stacked bar per method, without and with checkpointing, and the cards as lines."""
    from matplotlib.figure import Figure
    fig = Figure(figsize=(9, 5), layout="constrained")
    ax = fig.subplots()
    held = {name.replace(" + ", "\n+ "): at_peak(c, variant)[1]
            for name, variant in each_method(config).items()}
    tops = [0.0] * len(held)
    for kind, colour in KIND_COLOURS.items():
        heights = [by_kind[kind] / 1e9 for by_kind in held.values()]
        bars = ax.bar(list(held), heights, 0.6, tops, color=colour, label=kind, edgecolor="white",
                      linewidth=0.5)
        tops = [top + height for top, height in zip(tops, heights)]
    ax.bar_label(bars, [f"{top:#.3g}".rstrip(".") for top in tops], padding=2)
    for card in CARDS:
        if card < 1.5 * max(tops):
            ax.axhline(card, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
            ax.annotate(f"{card} GB", (1, card), (3, 0), ("axes fraction", "data"),
                        "offset points", va="center")
    ax.set_ylabel("GB at the peak")
    model = Path(config.model)
    name = model.resolve().parent.name if model.suffix == ".json" else model.name
    ax.set_title(f"{name} on a GPU: {config.micro_bs} x {config.max_length} tokens, "
                 f"r = {config.rank}, {config.dtype}, {config.optimizer}",
                 parse_math=False)              # a $ in a name is a $
    ax.legend(loc="upper right", framealpha=1, edgecolor="none")
    with replacing(path) as part:
        fig.savefig(part, format=path.suffix[1:], dpi=150)


# ----- the command --------------------------------------------------------------------------------

def parse_plan_flags(argv=None) -> tuple[Config, Path | None, bool, list[int]]:
    """-> (the run, --plot, --measure, --gpus). Its data is None if no rank is to be planned.

    Raises UserError for a --plot that cannot be drawn.
    """
    parser = make_parser("plan.py", __doc__)
    add_flags(
        parser, Config,
        model={"help": "folder, config.json, hub repository (only config.json is fetched), or the "
                       "embedded nano"},
        data={"help": "name under data/, or folder with train.jsonl and test.jsonl, to plan the "
                      "rank for; default: none", "default": None})
    parser.add_argument("--plot", metavar="FILE.png", type=Path,
                        help="draw the memory of each method, without and with checkpointing")
    parser.add_argument("--measure", action="store_true",
                        help="make two of train.py's steps on random weights, and compare")
    parser.add_argument("--gpus", metavar="N,N,N", default="", help=(
        "what each of N GPUs holds and sends, data parallel or with --fsdp in shards"))
    flags = vars(parser.parse_args(argv))
    picture, measuring = flags.pop("plot"), flags.pop("measure")
    gpus = [number_of(n) for n in flags.pop("gpus").split(",") if n]
    check(gpus, [whole(1, 2 ** 20)], name="--gpus")
    if picture:
        check(picture.suffix, (".png", ".svg", ".pdf"), f"--plot {picture}", "its ending")
        make_folder(picture.parent)
    return Config(**flags), picture, measuring, gpus


def print_plan(argv=None):
    asked, picture, measuring, gpus = parse_plan_flags(argv)
    check_config(asked)
    if asked.epochs and not asked.data:
        raise UserError("--epochs needs --data: its size decides how many steps they are")
    samples = read_training_samples(asked) if asked.data else []
    config = settled(asked, len(samples))
    dtype = "bfloat16" if asked.dtype == "auto" else config.dtype
    on_gpu = replace(config, device="cuda", dtype=dtype)
    c = ModelConfig.from_pretrained(config.model, quantized=config.four_bits)
    supervised = count_supervised_tokens(samples, config) if samples else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        show_summary(c, config, on_gpu)
        show_sizes(c, config)
        show_memory(c, config)
        show_methods(c, config)
        show_cards(c, replace(on_gpu, fsdp=False))
        if gpus:
            show_gpus(c, on_gpu, gpus)
        show_computation(c, config)
        show_start(c, config, supervised)
    print_fitted(printed.getvalue().rstrip("\n"))
    if measuring:
        show_measurement(c, config)
    if picture:
        draw_memory(c, on_gpu, picture)
        print(f"\n{picture}: the table of the GPU, drawn")


def main(argv=None):
    with errors_in_one_line():
        print_plan(argv)


if __name__ == "__main__":
    run_command(main)
