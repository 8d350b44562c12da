"""What a run will take, before it is run: memory, FLOPs, learning rate and rank to begin with, from config.json alone.

    python plan.py --model Qwen/Qwen2.5-0.5B-Instruct --method lora --rank 64 --micro_bs 4 --max_length 512
    python plan.py --model config.json --method full --dtype bfloat16 --plot plan.png
    python plan.py --model nano --data nano --measure       # make two real steps, and set what they took beside

Memory is of three kinds. There throughout: the weights, the adapters, the optimizer's two moments of each trained parameter;
from the first backward pass on, also a gradient for each. Kept from forward to backward pass: the activations, which grow with
the tokens of a micro-batch, and which gradient checkpointing trades for a second forward pass. And passing: the logits of a
chunk of tokens, the gradients of one layer's activations. Of what passes, only the largest counts.

LoRA does away with the gradients and moments of what is frozen, 12 of the 16 bytes a parameter. It does not do away with the
activations, for the gradient has to flow through the frozen layers all the same. QLoRA makes the frozen weights small.

Symbols: B sequences of T tokens a micro-batch, N = B T; C hidden size, I width of the MLP, Q and K widths of queries and keys,
V vocabulary, L layers, P parameters, W those of the layers' linear maps, a those of the adapters, r rank; s bytes a number of
the computation, 4 or 2; t a number of the residual stream, which in full fine-tuning is 4, else s.
"""
import argparse
import dataclasses
import math
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch

import dataset
import train
from lora import TARGETS
from model import LinearNLL, ModelConfig, Transformer
from optim import BUCKET
from plumbing.cli import add_flags, make_parser, run_command
from plumbing.device import DTYPES, peak_gb
from plumbing.errors import UserError, errors_in_one_line, is_out_of_memory
from plumbing.files import read_json, replacing, resolve
from quant import quantize_layer
from settings import Config, check_config, settled
from tokenizer import Tokenizer
from verdicts import times_full

CARDS = (8, 16, 24, 48, 80)         # GB, here of 10^9 bytes; a card's are 2^30, and the 7 % between are left to CUDA's context
BASELINE = 0.33e9                   # a CPU's resident memory with torch loaded and no model (measured: torch 2.13.0, Linux)
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8                    # bytes a weight: a code, and double-quantized scales: 4.127 bits
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2 * (1 + 4 / 256)}      # bytes a trained parameter: float32; codes, and a scale for 256
ATTENTION, MLP = TARGETS["attention"], TARGETS["mlp"]
COLOURS = {"weights": "#0072B2", "adapters": "#56B4E9", "optimizer": "#009E73", "gradients": "#F0E442", "activations": "#E69F00",
           "passing": "#D55E00"}    # Okabe and Ito's, which the colour-blind tell apart


class Row(NamedTuple):
    when: str           # throughout, gradients, embedding (theirs), kept; or passing: loss, layer, end, step
    name: str
    bytes: float
    formula: str        # in the symbols above
    source: str


# ----- sizes --------------------------------------------------------------------------------------------------------

def linears(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of a layer's linear maps."""
    C, I, Q, K = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {"q_proj": (C, Q), "k_proj": (C, K), "v_proj": (C, K), "o_proj": (Q, C),
            "gate_proj": (C, I), "up_proj": (C, I), "down_proj": (I, C)}


def targeted(targets: str) -> tuple[str, ...]:
    """The linear maps of a layer that --targets means."""
    names = ATTENTION + MLP if targets == "all-linear" else TARGETS.get(targets, targets.split(","))
    if unknown := set(names) - {*ATTENTION, *MLP}:
        raise UserError(f"target {min(unknown)!r} is none that is planned for; give all-linear, attention, mlp, or some of "
                        + ",".join(ATTENTION + MLP))
    return tuple(name for name in ATTENTION + MLP if name in names)


def linear_parameters(c: ModelConfig) -> int:
    """W: the weights, without biases, of the layers' linear maps. Adapters stand beside them, and NF4 quantizes them."""
    return c.num_hidden_layers * sum(i * o for i, o in linears(c).values())


def parameters(c: ModelConfig) -> int:
    """P: all of them, a tied unembedding counted once."""
    out = {name: o for name, (_, o) in linears(c).items()}
    biases = c.qkv_bias * (out["q_proj"] + 2 * out["k_proj"]) + c.o_bias * out["o_proj"] + c.mlp_bias * sum(out[m] for m in MLP)
    norms = 2 * c.hidden_size + 2 * c.head_dim * c.qk_norm
    embeddings = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    return linear_parameters(c) + c.num_hidden_layers * (biases + norms) + embeddings + c.hidden_size


def adapter_parameters(c: ModelConfig, rank: int, targets: str = "all-linear") -> int:
    """a = r (in + out), summed over the adapted maps."""
    return c.num_hidden_layers * sum(rank * sum(linears(c)[name]) for name in targeted(targets))


def rule_of_thumb(P: float, activations: float = 0) -> float:
    """Bytes of training P parameters in float32 with Adam: 4 weight + 4 gradient + 8 moments = 16 a parameter.

    With 8 for activations, as is often taught, 24. But activations grow with the tokens, not with the parameters: that term
    is a guess, and what `layer_activations` counts is not."""
    return (4 + 4 + 8 + activations) * P


# ----- activations --------------------------------------------------------------------------------------------------

def layer_activations(c: ModelConfig, run: Config, first: bool = False) -> Counter:
    """Bytes that autograd keeps of one layer, `first`: of the lowest, from its forward to its backward pass, by kind.

    Operation by operation: a product keeps the factors whose partner needs a gradient. So a frozen linear map keeps nothing,
    one with an adapter its input x (for dA) and u = A x (for dB), and what several maps keep, as q, k and v their x, is there
    once. Below the lowest adapter nothing needs a gradient. It is to the byte what autograd keeps on a CPU; CUDA's kernels
    lay the attention's output out so that the copy of it before o_proj, s Q a token, falls away.
    """
    full, s, shapes = run.method == "full", DTYPES[run.dtype].itemsize, linears(c)
    on, mixed, t = ATTENTION + MLP if full else targeted(run.targets), full and s == 2, 4 if full else s
    kept, weights = Counter(), 0

    def norm(x, size, heads=1, out=s):          # x in float32 and 1 / rms; for dw also what w multiplies
        kept["norms"] += x * (4 * size + 4 * heads) + full * out * size

    def linear(names, x):                       # x: does the input need a gradient? -> do the outputs?
        nonlocal weights
        mine = [name for name in names if name in on]
        kept["inputs"] += s * shapes[names[0]][0] * (len(mine) if mixed else bool(mine))        # autocast casts x for each anew
        kept["u"] += 0 if full else s * run.rank * len(mine)
        weights += sum(i * o if full else run.rank * (o + x * i) for i, o in (shapes[name] for name in mine))
        return [bool(x or name in on) for name in names]

    x = full or not first
    norm(x, c.hidden_size, out=t)
    q, k, v = linear(("q_proj", "k_proj", "v_proj"), x)
    if c.qk_norm:
        norm(q, shapes["q_proj"][1], c.num_attention_heads)
        norm(k, shapes["k_proj"][1], c.num_key_value_heads)
    x = x or q or k or v
    kept["attention"] += x * (2 * s * (shapes["q_proj"][1] + shapes["k_proj"][1]) + 4 * c.num_attention_heads)
    x, = linear(("o_proj",), x)
    norm(x, c.hidden_size, out=t)
    gate, up = linear(("gate_proj", "up_proj"), x)
    kept["mlp"] += s * c.intermediate_size * (2 * gate + up)
    linear(("down_proj",), gate or up)
    N = run.micro_bs * run.max_length
    return Counter({name: N * n for name, n in kept.items()} | {"copies": 2 * weights if s == 2 else 0})


def activations(c: ModelConfig, run: Config, checkpointing: bool) -> list[Row]:
    """What is kept of all layers, or only each layer's input; and of the last norm."""
    full, t = run.method == "full", 4 if run.method == "full" else DTYPES[run.dtype].itemsize
    N, C, L = run.micro_bs * run.max_length, c.hidden_size, c.num_hidden_layers
    kept = Counter()
    for layer in range(0 if checkpointing else L):
        kept.update(layer_activations(c, run, first=layer == 0))
    rows = [("layers' inputs", checkpointing * t * N * C * L, "t N C L", "arXiv 1604.06174"),
            ("norms", kept["norms"] + N * (4 * C + 4 + full * 4 * C), "4 N (C + 1) each" + full * ", t N C for dw", "RMSNorm"),
            ("inputs of maps", kept["inputs"], f"s N in, for {'dW' if full else 'dA'}; q, k, v share, gate, up too", "autograd"),
            ("u = A x", kept["u"], "s N r a map, for dB", "autograd"),
            ("attention", kept["attention"], "2 s N (Q + K) + 4 N heads: q, k, v, output, lse", "arXiv 2307.08691"),
            ("SwiGLU", kept["mlp"], "3 s N I: gate, silu(gate), up", "arXiv 2002.05202"),
            ("16-bit copies", kept["copies"], "2 W" if full else "2 a", "autocast" if full else "LoRALinear"),
            ("positions, ids", run.max_length * c.head_dim * t + full * 8 * N, "t T hd: cos, sin" + full * "; 8 N", "Transformer")]
    return [Row("kept", "  " + name, *rest) for name, *rest in rows]


# ----- memory -------------------------------------------------------------------------------------------------------

def memory(c: ModelConfig, run: Config, checkpointing: bool) -> list[Row]:
    """What an optimizer step of `run` holds; `at_peak` says what of it at once. All tokens count as supervised: the most."""
    full, qlora, s, cuda = run.method == "full", run.method == "qlora", DTYPES[run.dtype].itemsize, run.device.startswith("cuda")
    N, n, t, mixed = run.micro_bs * run.max_length, run.micro_bs * (run.max_length - 1), 4 if full else s, full and s == 2
    P, W, V, C = parameters(c), linear_parameters(c), c.vocab_size, c.hidden_size
    a = 0 if full else adapter_parameters(c, run.rank, run.targets)
    trained, dW, maps, tied = P if full else a, full * 4 * V * C, list(linears(c).values()), c.tie_word_embeddings

    # LinearNLL, at most: float32 logits and log p of a chunk; those of the next, beside log p (and 16-bit dlogits) of this one; or
    # these beside dlogits^T h, which a CPU makes float32 to add it
    m, done = min(n, LinearNLL.CHUNK), 4 + s % 4
    product = full * (s + 4 * (mixed and not cuda)) * V * C
    logits = max(8 * m * V, (n > m) * (8 * min(m, n - m) + done * m) * V, done * m * V + product)
    logits += mixed * (2 * V * C + checkpointing * 2 * W)       # autocast keeps what it cast until the forward pass is over
    # a 4-bit weight is dequantized for each product: its codes' indices or 16-bit form, 2 bytes, beside its float32 form, 4
    once, embeddings = run.grad_accum == 1, dW * (2 - tied)        # a gradient that is the first becomes .grad, others are added
    layer = 2 * s * N * c.intermediate_size + dW * (tied or once) + qlora * 6 * max(i * o for i, o in maps)
    layer += checkpointing * sum(layer_activations(c, run).values())
    # 8-bit moments are float32 while their bucket is updated, and 9 bytes while they are quantized; paged ones come in two buckets
    each, paged = MOMENT_BYTES[run.optimizer.removeprefix("paged_")], run.optimizer.startswith("paged") and cuda
    tensor = V * C if full else run.rank * max(map(max, maps))
    bucket = max(tensor, min(trained, BUCKET))
    step = paged * 2 * each * bucket + (each < 8) * (8 * bucket + 9 * tensor)

    weights = {"full": (4 * P, "4 P: kept in float32", "arXiv 1710.03740"), "lora": (s * P, "s P: frozen", "arXiv 2106.09685"),
               "qlora": (NF4_BYTES * W + s * (P - W), "4.127 / 8 W + s (P - W)", "arXiv 2305.14314")}[run.method]
    return [
        Row("throughout", "weights", *weights),
        Row("throughout", "adapters", 4 * a, "4 a, a = r (in + out) a map: float32", "arXiv 2106.09685"),
        Row("throughout", "optimizer", 0 if paged else each * trained, f"{each:g} " + ("P" if full else "a"), "arXiv 1412.6980"),
        Row("gradients", "gradients", 4 * trained - embeddings, "4 P less these" if full else "4 a", "as what is trained"),
        Row("embedding", "  of embeddings", embeddings, "4 V C" + (not tied) * ", twice", "as what is trained"),
        *activations(c, run, checkpointing),
        Row("loss", "~ dNLL/dh" + full * ", dNLL/dW", (s * C + 16) * n + dW, "s C + 16 a token" + full * ", 4 V C", "LinearNLL"),
        Row("loss", "~ logits", logits + t * N * C, f"8 x {m} V and more; uncut 4 N V = {4 * N * V / 1e9:.2f}", "LinearNLL"),
        Row("layer", "~ a layer backwards", layer, "2 s N I: d silu, d up" + full * ", 4 V C" + qlora * ", 6 in out"
            + checkpointing * ", its activations", "autograd"),
        Row("end", "~ embedding's gradient", dW * (1 + tied - once), "4 V C, beside dNLL/dW where tied", "nn.Embedding"),
        Row("step", "~ optimizer's step", step, "8 bits: 8 a bucket's parameter; paged: 2 buckets", "optim.py"),
    ]


def at_peak(rows: list[Row], grad_accum: int) -> tuple[str, dict[str, float]]:
    """The moment at which most is held, and what is held then: their sum is the peak.

    With one micro-batch a step there are no gradients before the backward pass, which frees activations as it makes them."""
    b = Counter()
    for row in rows:
        b[row.when] += row.bytes
    every = b["gradients"] + b["embedding"]
    before = every if grad_accum > 1 else 0
    moments = {"the loss": (before, b["kept"], b["loss"]), "a layer's backward pass": (before, b["kept"], b["layer"]),
               "the lowest layer's backward pass": (b["gradients"], 0, b["layer"]),
               "the embedding's gradient": (every, 0, b["end"]), "the optimizer's step": (every, 0, b["step"])}
    moment = max(moments, key=lambda name: sum(moments[name]))
    held = {row.name: row.bytes for row in rows if row.when == "throughout"}
    return moment, held | dict(zip(("gradients", "activations", "passing"), moments[moment]))


def peak(c: ModelConfig, run: Config, checkpointing: bool) -> float:
    return sum(at_peak(memory(c, run, checkpointing), run.grad_accum)[1].values())


def largest(c: ModelConfig, run: Config, checkpointing: bool, size: float) -> int:
    """The largest micro-batch whose peak is at most `size` bytes, by bisection; 0: not even one sample."""
    low, high = 0, 2 ** 16
    while high - low > 1:
        B = (low + high) // 2
        low, high = (B, high) if peak(c, dataclasses.replace(run, micro_bs=B), checkpointing) <= size else (low, B)
    return low


# ----- computation --------------------------------------------------------------------------------------------------

def flops_ratio(weights: float, in_out: float, rank: float) -> float:
    """A LoRA step's FLOPs over a full one's, on linear maps of `weights` weights in all, whose (in + out) sum to `in_out`.

    A token costs 2 FLOPs a weight in each of: forward, dx, dW. LoRA leaves out dW, and does all three for A and B:
    (4 W + 6 r (in + out)) / 6 W, which on an N x N map is 2/3 + 2 r / N (Schulman et al., 2025, LoRA Without Regret)."""
    return (4 * weights + 6 * rank * in_out) / (6 * weights)


def break_even(weights: float, in_out: float) -> float:
    """The rank at which `flops_ratio` is 1: W / (3 (in + out)), on an N x N map N / 6."""
    return weights / (3 * in_out)


def flops(c: ModelConfig, run: Config, checkpointing: bool) -> float:
    """Of an optimizer step on full-length samples, all tokens supervised.

    The unembedding is a map without adapter. Causal attention sees T / 2 keys on average: 2 T Q a token and layer forward,
    twice that backward. Checkpointing makes the layers' forward pass again, until what is kept is there: without adapters that
    is before down_proj."""
    full, W, L = run.method == "full", linear_parameters(c), c.num_hidden_layers
    a, last = 0 if full else adapter_parameters(c, run.rank, run.targets), full * L * c.intermediate_size * c.hidden_size
    attention = 2 * run.max_length * c.num_attention_heads * c.head_dim * L
    a_token = (6 if full else 4) * (W + c.vocab_size * c.hidden_size) + 6 * a + 3 * attention
    a_token += checkpointing * (2 * (W + a - last) + attention)
    return a_token * run.batch_eff * run.max_length


# ----- rate and rank to begin with ----------------------------------------------------------------------------------

def learning_rate(c: ModelConfig, method: str, steps: int) -> float:
    """5e-5 (2000 / C)^p, p = 0.0775 for Qwen and 0.781 for Llama (tinker-cookbook, get_lr); LoRA's is a multiple of that.
    Found with alpha = 32 and the factor alpha / r."""
    full = 5e-5 * (2000 / c.hidden_size) ** (0.781 if c.hf["model_type"] == "llama" else 0.0775)
    return full * (1 if method == "full" else times_full(steps))


def rank_for(c: ModelConfig, tokens: int, targets: str = "all-linear") -> int:
    """The rank whose parameters, at 2 bits each, hold `tokens` supervised tokens of 1 bit each (Schulman et al., 2025)."""
    return max(1, math.ceil(tokens / (2 * adapter_parameters(c, 1, targets))))


def supervised(run: Config, data: str) -> tuple[int, int]:
    """-> (supervised tokens of the training split, those among them that the run sees)."""
    tokenizer = Tokenizer.from_pretrained(folder_of(run.model, ["tokenizer*.json", "chat_template*"]))
    samples, _ = dataset.load_split(dataset.find_dataset(data) / "train.jsonl", tokenizer, run.max_length)
    tokens = sum(len(sample.ids) - sample.start for sample in samples)
    return tokens, round(tokens * min(1, run.max_steps * run.batch_eff / len(samples)))


# ----- the truth ----------------------------------------------------------------------------------------------------

def stepper(c: ModelConfig, run: Config, checkpointing: bool):
    """train.py's optimizer step on random weights and tokens, as a function without arguments."""
    device, held = torch.device(run.device), train.weight_dtype(run)
    with torch.device("meta"):
        model = Transformer(c)
    for name, p in list(model.named_parameters()):          # as from_pretrained puts them, and load_quantized quantizes them
        model.put(name, torch.empty(p.shape, dtype=held, device=device).normal_(std=0.02), p.shape, "")
        if run.method == "qlora":
            quantize_layer(model, name.rpartition(".")[0])
    model.tie_weights()
    made = train.set_up(dataclasses.replace(run, gradient_checkpointing=checkpointing), None, model)
    ids = torch.randint(c.vocab_size, (run.micro_bs, run.max_length))
    micro_batches = [(ids, ids)] * min(2, run.grad_accum)       # what the second holds, later ones hold
    return lambda: train.optimizer_step(model, made.optimizer, made.scaler, micro_batches, made.autocast, 1e-4, 1.0)


def measure(c: ModelConfig, run: Config, checkpointing: bool) -> tuple[float, float]:
    """Bytes before the model is there, and at most in two steps: from the second on, the moments are there throughout.

    To be called in a process of its own: a peak is that of all that the process did before."""
    device = torch.device(run.device)
    tiny = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    stepper(dataclasses.replace(c, head_dim=8, **tiny), dataclasses.replace(run, rank=1), checkpointing)()     # loads what is used
    before, step = peak_gb(device), stepper(c, run, checkpointing)
    step()
    step()
    return before * 1e9, peak_gb(device) * 1e9


def measured(*args, **env) -> tuple[float, float]:
    """`measure` in a fresh process, with `env` added to its environment."""
    try:
        os.environ.update(env)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, *args).result()
    except RuntimeError as e:       # killed by the system, or told by it
        if not isinstance(e, BrokenProcessPool) and not is_out_of_memory(e):
            raise
        raise UserError("--measure ran out of memory; lower --micro_bs or --max_length") from None
    finally:
        for name in env:
            del os.environ[name]


# ----- what one looks at --------------------------------------------------------------------------------------------

def variants(run: Config) -> dict[str, tuple[Config, bool]]:
    """Each method, without and with gradient checkpointing."""
    return {method + checkpointing * " + checkpointing": (dataclasses.replace(run, method=method), checkpointing)
            for method in ("full", "lora", "qlora") for checkpointing in (False, True)}


def gb(n: float, width: int = 0) -> str:
    return f"{n / 1e9:{width}.3f}"


def show_sizes(c: ModelConfig, run: Config):
    maps, (attention, mlp) = linears(c), (adapter_parameters(c, 1, targets) for targets in TARGETS)
    print(f"{run.model}: {run.method} in {run.dtype} on {run.device}, {run.optimizer}, {run.micro_bs} x {run.max_length} tokens a "
          f"micro-batch, {run.grad_accum} a step\n  P = {parameters(c):,}  W = {linear_parameters(c):,}  "
          f"a = {adapter_parameters(c, run.rank, run.targets):,} (r = {run.rank}, {run.targets})  sum of in + out: attention "
          f"{attention:,}, MLP {mlp:,}\n  N = {run.micro_bs * run.max_length:,}  C = {c.hidden_size}  I = {c.intermediate_size}  "
          f"Q = {maps['q_proj'][1]}  K = {maps['k_proj'][1]}  V = {c.vocab_size:,}  L = {c.num_hidden_layers}  "
          f"s = {DTYPES[run.dtype].itemsize}")


def show_memory(c: ModelConfig, run: Config):
    plain, less = memory(c, run, False), memory(c, run, True)
    print(f"\n{'memory, GB = 10^9 bytes':<24}{'plain':>9}{'checkpt.':>10}  bytes [source]; of rows with ~ only the largest counts")
    for row, checkpointed in zip(plain, less):
        if row.bytes or checkpointed.bytes:
            print(f"  {row.name:<23}{gb(row.bytes, 8)}{gb(checkpointed.bytes, 10)}  {checkpointed.formula}  [{row.source}]")
    (when, held), (when_less, held_less) = at_peak(plain, run.grad_accum), at_peak(less, run.grad_accum)
    print(f"  {'peak':<23}{gb(sum(held.values()), 8)}{gb(sum(held_less.values()), 10)}  at {when}; checkpointed at {when_less}")
    print(f"  rule of thumb, full float32 with Adam: (4 + 4 + 8) P = {gb(rule_of_thumb(parameters(c)))}; with 8 P for activations "
          f"{gb(rule_of_thumb(parameters(c), 8))}")


def show_cards(c: ModelConfig, run: Config):
    print(f"\n{'on a GPU, in ' + run.dtype:<27}{'peak at ' + str(run.micro_bs):>14}" + "".join(f"{card:>9} GB" for card in CARDS)
          + "\n  the largest micro_bs that fits")
    for name, (variant, checkpointing) in variants(run).items():
        fits = [largest(c, variant, checkpointing, card * 1e9) or "-" for card in CARDS]
        print(f"  {name:<25}{gb(peak(c, variant, checkpointing), 11)} GB" + "".join(f"{B:>12}" for B in fits))


def show_computation(c: ModelConfig, run: Config):
    C, W, in_out = c.hidden_size, linear_parameters(c), adapter_parameters(c, 1)
    print(f"\ncomputation, {run.batch_eff} x {run.max_length} tokens a step, qlora as lora  [Schulman et al., 2025]")
    full = flops(c, dataclasses.replace(run, method="full"), False)
    for name, (variant, checkpointing) in list(variants(run).items())[:4]:
        n = flops(c, variant, checkpointing)
        print(f"  {name:<25}{n / 1e12:11.2f} TFLOP{n / full:8.3f} x full")
    print(f"  of the layers' maps alone {flops_ratio(W, in_out, run.rank):.3f} = 2/3 + r sum(in + out) / W; on a C x C map "
          f"{flops_ratio(C * C, 2 * C, run.rank):.3f} = 2/3 + 2 r / C\n"
          f"  LoRA stops being cheaper at r = {break_even(W, in_out):.0f} = W / (3 sum(in + out)); on a C x C map at C / 6 = "
          f"{break_even(C * C, 2 * C):.0f}")


def show_start(c: ModelConfig, run: Config, counted: tuple[int, ...]):
    full, rate = (learning_rate(c, method, run.max_steps) for method in ("full", "lora"))
    print(f"\nto begin with, {run.max_steps} steps  [Schulman et al., 2025]")
    print(f"  learning rate {full:.1e} for full fine-tuning, {rate:.1e} = {rate / full:.0f} x that for LoRA with --alpha 32  "
          "[tinker-cookbook]\n  with alpha = r, train.py's default, LoRA's best rate falls as the rank grows: lower above r = 32")
    for what, tokens in zip(("the split's", "the run's"), counted):
        print(f"  rank {rank_for(c, tokens, run.targets)} for {what} {tokens:,} supervised tokens: 1 bit each / (2 bits x "
              f"{adapter_parameters(c, 1, run.targets):,} parameters a rank)")


def show_measured(c: ModelConfig, run: Config):
    """glibc keeps what is freed, up to a threshold that it raises to 32 MB as it goes, as holes between what is in use, and so
    holds more than the tensors need; with a fixed threshold it gives all back. On a CPU, both are measured."""
    cpu = not run.device.startswith("cuda")
    print(f"\nmeasuring: two steps of two micro-batches, {2 + 2 * cpu} times; on a CPU this can take minutes" + cpu * (
          f". Predicted: the peak above and {gb(BASELINE)} of libraries"), flush=True)
    print(f"{'measured, GB':<24}{'before':>9}{'peak':>10}{'predicted':>12}{'off by':>9}" + cpu * "   peak, malloc left to itself")
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        before, got = measured(c, run, checkpointing, MALLOC_MMAP_THRESHOLD_="65536")
        predicted = peak(c, run, checkpointing) + cpu * BASELINE
        print(f"  {name:<23}{gb(before, 8)}{gb(got, 10)}{gb(predicted, 12)}{predicted / got - 1:+9.1%}"
              + (gb(measured(c, run, checkpointing)[1], 11) if cpu else ""), flush=True)


def plot(c: ModelConfig, run: Config, path: Path):
    """Of a run on a GPU: a stacked bar for each method, without and with checkpointing, and the cards as lines."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    held = {name.replace(" + ", "\n+ "): at_peak(memory(c, *v), run.grad_accum)[1] for name, v in variants(run).items()}
    tops = [0.0] * len(held)
    for kind, colour in COLOURS.items():
        heights = [h[kind] / 1e9 for h in held.values()]
        ax.bar(list(held), heights, 0.6, tops, color=colour, label=kind, edgecolor="white", linewidth=0.5)
        tops = [top + height for top, height in zip(tops, heights)]
    for x, top in enumerate(tops):
        ax.annotate(f"{top:.3g}", (x, top), (0, 2), textcoords="offset points", ha="center", va="bottom")
    for card in [card for card in CARDS if card < 1.5 * max(tops)]:
        ax.axhline(card, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
        ax.annotate(f"{card} GB", (1, card), (3, 0), ("axes fraction", "data"), "offset points", va="center")
    ax.set_ylabel("GB at the peak")
    name = Path(run.model).resolve().parent.name if run.model.endswith(".json") else Path(run.model).name
    ax.set_title(f"{name} on a GPU: {run.micro_bs} x {run.max_length} tokens, r = {run.rank}, {run.dtype}, {run.optimizer}")
    ax.legend(loc="upper right", framealpha=1, edgecolor="none")
    with replacing(path) as part:
        fig.savefig(part, format=path.suffix[1:], dpi=150)
    plt.close(fig)


# ----- settings -----------------------------------------------------------------------------------------------------

def folder_of(name: str, files: list[str]) -> Path:
    """The folder of a checkpoint or of a config.json; of a hub repository `files` alone are fetched."""
    return Path(name).parent if Path(name).is_file() else resolve(name, files)


def parse(argv=None) -> argparse.Namespace:
    parser = make_parser("plan.py", __doc__)
    ours = {"model": "folder, config.json, hub repository (config.json alone is fetched), or the embedded nano",
            "data": "name under data/, or folder with train.jsonl and test.jsonl, to plan the rank for; default: none",
            "max_length": "tokens of a sample", "max_steps": "optimizer steps; default: 200"}
    names = "model data method rank targets optimizer micro_bs grad_accum max_length max_steps dtype device"
    changes = {name: {"help": text} for name, text in ours.items()}
    changes["data"]["default"] = None
    add_flags(parser, Config, only=names.split(), **changes)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the memory of each method, without and with checkpointing")
    parser.add_argument("--measure", action="store_true", help="make two of train.py's steps on random weights, and compare")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace):
    settings = dict(vars(args))
    data, picture, measuring = (settings.pop(name) for name in ("data", "plot", "measure"))
    if picture and Path(picture).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {picture}: its name has to end in .png, .svg or .pdf")
    if picture and not Path(picture).parent.is_dir():
        raise UserError(f"--plot {picture}: there is no folder {Path(picture).parent}")
    check_config(Config(**settings))
    run, file = settled(Config(**settings), 1), Path(args.model)
    card = dataclasses.replace(run, device="cuda", dtype="bfloat16" if args.dtype == "auto" else run.dtype)
    hf = read_json(file if file.is_file() else resolve(run.model, ["config.json"]) / "config.json")
    if run.method == "qlora":
        hf.pop("quantization_config", None)         # load_quantized takes a checkpoint in four bits as it is
    c = ModelConfig.from_hf(hf)
    counted = supervised(run, data) if data else ()
    show_sizes(c, run)
    show_memory(c, run)
    show_cards(c, card)
    show_computation(c, run)
    show_start(c, run, counted)
    if measuring:
        show_measured(c, run)
    if picture:
        plot(c, card, Path(picture))
        print(f"\n{picture}: the table of the GPU, drawn")


def main(argv=None):
    with errors_in_one_line():
        plan(parse(argv))


if __name__ == "__main__":
    run_command(main)
