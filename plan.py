"""What a run will take, before it is run: memory, FLOPs, learning rate and rank to begin with, from config.json alone.

    python plan.py --model Qwen/Qwen2.5-0.5B-Instruct --method lora --rank 64 --micro_bs 4 --max_length 512
    python plan.py --model config.json --method full --dtype bfloat16 --plot plan.png
    python plan.py --model nano --data nano --measure       # make two real steps, and set what they took beside

Three kinds of memory. There throughout: the weights, the adapters, and the optimizer's two moments of each trained parameter;
from the first backward pass on also a gradient for each. Kept from forward to backward pass: the activations, which grow with
the tokens of a micro-batch, and which gradient checkpointing trades for a second forward pass. And passing: the logits of a
chunk of tokens, the gradients of one layer's activations. Of what passes only the largest counts.

LoRA does away with the gradients and moments of what is frozen, 12 of the 16 bytes a parameter. It does not do away with the
activations, for the gradient has to flow through the frozen layers all the same. QLoRA makes the frozen weights small.

Symbols: B sequences of T tokens a micro-batch, N = B T; C hidden size, I width of the MLP, Q and K widths of queries and keys,
V vocabulary, L layers, P parameters, a those of the adapters, r rank; s bytes a number of the computation, 4 or 2.
"""
import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

import dataset
import train
from lora import TARGETS, apply_lora
from model import DTYPES, LinearNLL, ModelConfig, Transformer, UserError, read_json, replacing, resolve
from optim import BUCKET, OPTIMIZERS
from quant import quantize_layer
from tokenizer import Tokenizer

CARDS = (8, 16, 24, 48, 80)         # GB, here of 10^9 bytes; a card's are 2^30, and the 7 % between are left to CUDA's context
BASELINE = 0.33e9                   # a CPU's resident memory with torch loaded and no model (measured: torch 2.13.0, Linux)
MOMENTS = {"adamw": 8, "adamw8bit": 2 * (1 + 4 / 256)}      # bytes a trained parameter: float32; codes, and a scale for 256
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8        # bytes a weight: a 4-bit code, a scale of 8 bits for 64, one of 32 for 64 x 256
ATTENTION, MLP = TARGETS["attention"], TARGETS["mlp"]
HU, KINGMA, DETTMERS, CHEN = "arXiv 2106.09685, 4.2", "arXiv 1412.6980", "arXiv 2305.14314", "arXiv 1604.06174"


class Row(NamedTuple):
    when: str           # throughout, gradients, kept; or passing: loss, layer, end, step
    name: str
    bytes: float
    formula: str
    source: str


# ----- sizes --------------------------------------------------------------------------------------------------------

def linears(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of a layer's linear maps."""
    C, I, Q, K = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {"q_proj": (C, Q), "k_proj": (C, K), "v_proj": (C, K), "o_proj": (Q, C),
            "gate_proj": (C, I), "up_proj": (C, I), "down_proj": (I, C)}


def targeted(targets: str) -> tuple[str, ...]:
    """The linear maps of a layer that --targets means."""
    names = ATTENTION + MLP if targets == "all-linear" else TARGETS.get(targets, tuple(targets.split(",")))
    for name in set(names) - {*ATTENTION, *MLP}:
        raise UserError(f"target {name!r} is no linear map of a layer; give all-linear, attention, mlp, or of {','.join(ATTENTION + MLP)}")
    return names


def linear_parameters(c: ModelConfig) -> int:
    """The weights of the layers' linear maps, without biases: what adapters stand beside, and what NF4 quantizes."""
    return c.num_hidden_layers * sum(i * o for i, o in linears(c).values())


def parameters(c: ModelConfig) -> int:
    """All of them, a tied unembedding counted once."""
    out = {name: o for name, (_, o) in linears(c).items()}
    biases = c.qkv_bias * (out["q_proj"] + 2 * out["k_proj"]) + c.o_bias * out["o_proj"] + c.mlp_bias * sum(out[m] for m in MLP)
    norms = 2 * c.hidden_size + 2 * c.head_dim * c.qk_norm
    embeddings = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    return linear_parameters(c) + c.num_hidden_layers * (biases + norms) + embeddings + c.hidden_size


def adapter_parameters(c: ModelConfig, rank: int, targets: str = "all-linear") -> int:
    """r (in + out) for each adapted map."""
    return c.num_hidden_layers * sum(rank * sum(linears(c)[name]) for name in targeted(targets))


def rule_of_thumb(P: float, activations: float = 0) -> float:
    """Bytes of training P parameters in float32 with Adam: 4 weight + 4 gradient + 8 moments = 16 a parameter.

    With 8 for activations, as it is often taught, 24. But activations grow with the tokens, not with the parameters: that
    term is a guess, where `layer_activations` counts."""
    return (4 + 4 + 8 + activations) * P


# ----- activations --------------------------------------------------------------------------------------------------

def layer_activations(c: ModelConfig, run: train.Config, first: bool = False) -> Counter:
    """Bytes that autograd keeps of one layer, `first`: of the lowest, from its forward to its backward pass, by kind.

    Operation by operation: a product keeps the factors whose partner needs a gradient. So a frozen linear map keeps nothing,
    one with an adapter its input x (for dA) and u = A x (for dB), and what several maps keep, as q, k and v their x, is there
    once. Below the lowest adapter nothing needs a gradient. To the byte what autograd keeps on a CPU; CUDA's kernels write the
    attention's output so that the copy of it before o_proj, s Q a token, falls away.
    """
    full, s, shapes = run.method == "full", DTYPES[run.dtype].itemsize, linears(c)
    on, mixed = ATTENTION + MLP if full else targeted(run.targets), full and s == 2
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

    x, out = full or not first, 4 if full else s            # the residual stream is float32 under autocast
    norm(x, c.hidden_size, out=out)
    q, k, v = linear(("q_proj", "k_proj", "v_proj"), x)
    if c.qk_norm:
        norm(q, shapes["q_proj"][1], c.num_attention_heads)
        norm(k, shapes["k_proj"][1], c.num_key_value_heads)
    x = x or q or k or v
    kept["attention"] += x * (2 * s * (shapes["q_proj"][1] + shapes["k_proj"][1]) + 4 * c.num_attention_heads)
    x, = linear(("o_proj",), x)
    norm(x, c.hidden_size, out=out)
    gate, up = linear(("gate_proj", "up_proj"), x)
    kept["mlp"] += s * c.intermediate_size * (2 * gate + up)
    linear(("down_proj",), gate or up)
    N = run.micro_bs * run.max_length
    return Counter({name: N * n for name, n in kept.items()} | {"casts": 2 * weights if s == 2 else 0})


def activations(c: ModelConfig, run: train.Config, checkpointing: bool) -> list[Row]:
    """What is kept of all layers, or of each layer its input, and of the last norm."""
    full, s = run.method == "full", DTYPES[run.dtype].itemsize
    N, C, L, stream = run.micro_bs * run.max_length, c.hidden_size, c.num_hidden_layers, 4 if full else s
    kept = Counter({name: n * (L - 1) for name, n in layer_activations(c, run).items()})
    kept.update(layer_activations(c, run, first=True))
    if checkpointing:
        kept = Counter()
    each, stored = ("each of q, k, v, gate, up", "W") if full and s == 2 else ("q, k, v in common, gate, up too", "A, B")
    return [
        Row("kept", "  layers' inputs", checkpointing * L * N * C * stream, f"{stream} N C a layer", CHEN),
        Row("kept", "  norms: x, 1/rms" + full * ", x/rms", kept["norms"] + N * (4 * C + full * 4 * C + 4), "4 N (C + 1) each"
            + full * f", + {stream} N C for dw", "model.py RMSNorm"),
        Row("kept", "  x of linear maps", kept["inputs"], f"{s} N in, {each}", "for dW" if full else "for dA"),
        Row("kept", "  u = A x", kept["u"], f"{s} N r a map", "for dB"),
        Row("kept", "  attention", kept["attention"], f"{s} N (2 Q + 2 K) + 4 N heads: q, k, v, output, log-sum-exp", "arXiv 2205.14135"),
        Row("kept", "  SwiGLU", kept["mlp"], f"3 {s} N I: gate, silu(gate), up", "model.py MLP"),
        Row("kept", "  16-bit copies", kept["casts"], f"2 a weight of {stored}", "autocast" if full else "lora.py"),
        Row("kept", "  positions, ids", run.max_length * c.head_dim * stream + full * 8 * N, "cos, sin, and full: ids for dE", "model.py"),
    ]


# ----- memory -------------------------------------------------------------------------------------------------------

def memory(c: ModelConfig, run: train.Config, checkpointing: bool) -> list[Row]:
    """What an optimizer step of `run` holds; `at_peak` says what of it at once. All tokens count as supervised: the most."""
    full, s, N = run.method == "full", DTYPES[run.dtype].itemsize, run.micro_bs * run.max_length
    P, a, V, C = parameters(c), 0 if full else adapter_parameters(c, run.rank, run.targets), c.vocab_size, c.hidden_size
    linear, trained, stream = linear_parameters(c), P if full else a, 4 if full else s
    n, mixed = run.micro_bs * (run.max_length - 1), full and s == 2
    m = min(n, LinearNLL.CHUNK)

    # LinearNLL: what it hands on; then logits and log p of a chunk beside those of the one before, or else the products with dlogits
    dW = 4 * V * C * full
    logits = max(8 * m * V + (n > m) * (4 + s % 4) * m * V, (4 + s % 4) * m * V + full * (s + mixed * 4 * (run.device == "cpu")) * V * C)
    copies = mixed * (2 * V * C + checkpointing * 2 * linear)       # autocast keeps what it cast until the forward pass is over
    W = {"full": (4 * P, "4 P: float32 masters", "pitfall: AdamW's updates vanish in 16 bits"),
         "lora": (s * P, f"{s} P: frozen, in the compute dtype", HU),
         "qlora": (NF4 * linear + s * (P - linear), f"4.127 bits x {linear:,} linear + {s} x the rest", DETTMERS)}[run.method]
    # a 4-bit weight passes through float32 (4 bytes) and the codes' indices, or 16 bits (2), before and after each product
    layer = sum(layer_activations(c, run).values()) if checkpointing else 0
    weight = 6 * max(i * o for i, o in linears(c).values()) if run.method == "qlora" else 0
    # moments in 8 bits are float32 while their bucket is updated; paged ones come and go in two buckets
    each, paged = MOMENTS[run.optimizer.removeprefix("paged_")], run.optimizer.startswith("paged") and run.device != "cpu"
    tensor = V * C if full else run.rank * max(map(max, linears(c).values()))
    bucket = max(tensor, min(trained, BUCKET))
    step = paged * 2 * each * bucket + (8 * bucket + 9 * tensor if each < 8 else 0)
    return [
        Row("throughout", "weights", *W),
        Row("throughout", "adapters", 4 * a, "4 a, a = r (in + out) a map: float32", HU),
        Row("throughout", "optimizer", 0 if paged else each * trained, f"{each:g} a trained parameter: two moments"
            + paged * ", in the host's memory", KINGMA),
        Row("gradients", "gradients", 4 * trained, "4 a trained parameter", "PyTorch: .grad in the parameter's dtype"),
        *activations(c, run, checkpointing),
        Row("loss", "~ dNLL/dh" + full * ", dNLL/dW", (s * C + 16) * n + dW, f"{s} C a token" + full * " + 4 V C", "model.py LinearNLL"),
        Row("loss", "~ logits", logits + copies + stream * N * C, f"of {m} tokens, 8 V each and more; of all 4 N V = {4 * N * V / 1e9:.2f} GB", "model.py LinearNLL"),
        Row("layer", "~ a layer's backward pass", layer + 3 * s * c.intermediate_size * N + stream * N * C + dW + weight,
            f"3 {s} N I + {stream} N C" + full * " + 4 V C" + bool(weight) * " + 6 in out" + " + the layer again" * checkpointing, "autograd"),
        Row("end", "~ gradient of the embedding", dW * (2 if c.tie_word_embeddings else 1), "4 V C; tied: twice", "dense in PyTorch"),
        Row("step", "~ the optimizer's step", step, "float32 moments of a bucket; paged: two buckets", "optim.py"),
    ]


def at_peak(rows: list[Row], grad_accum: int) -> tuple[str, dict[str, float]]:
    """The moment at which most is held, and what is held then: their sum is the peak.

    With one micro-batch a step the gradients do not exist before the backward pass, which frees activations as it makes them."""
    b = Counter()
    for row in rows:
        b[row.when] += row.bytes
    before = b["gradients"] if grad_accum > 1 else 0
    moments = {"in the loss": (before, b["kept"], b["loss"]), "in a layer's backward pass": (before, b["kept"], b["layer"]),
               "at the end of the backward pass": (b["gradients"], 0, b["end"]),
               "in the optimizer's step": (b["gradients"], 0, b["step"])}
    moment = max(moments, key=lambda name: sum(moments[name]))
    held = {row.name: row.bytes for row in rows if row.when == "throughout"}
    return moment, held | dict(zip(("gradients", "activations", "passing"), moments[moment]))


def peak(c: ModelConfig, run: train.Config, checkpointing: bool) -> float:
    return sum(at_peak(memory(c, run, checkpointing), run.grad_accum)[1].values())


def largest(c: ModelConfig, run: train.Config, checkpointing: bool, size: float) -> int:
    """The largest micro-batch whose peak is at most `size` bytes; 0: not even one sample."""
    def fits(B):
        return peak(c, dataclasses.replace(run, micro_bs=B), checkpointing) <= size
    B = 1
    while B < 4096 and fits(B):
        B *= 2
    low, high = B // 2, B
    while high - low > 1:
        low, high = ((low + high) // 2, high) if fits((low + high) // 2) else (low, (low + high) // 2)
    return low


# ----- computation --------------------------------------------------------------------------------------------------

def flops_ratio(weights: float, in_out: float, rank: float) -> float:
    """A LoRA step's FLOPs over a full one's, on maps of `weights` weights in all, whose (in + out) sum to `in_out`.

    A token costs 2 FLOPs a weight in each of: forward, dx, dW. LoRA leaves out dW and does all three for A and B:
    (4 W + 6 r (in + out)) / 6 W; on an N x N map 2/3 + 2 r / N (Schulman et al., 2025, LoRA Without Regret)."""
    return (4 * weights + 6 * rank * in_out) / (6 * weights)


def break_even(weights: float, in_out: float) -> float:
    """The rank at which `flops_ratio` is 1: W / (3 (in + out)), on an N x N map N / 6."""
    return weights / (3 * in_out)


def flops(c: ModelConfig, run: train.Config, checkpointing: bool) -> float:
    """Of an optimizer step on full-length samples, all tokens supervised.

    The unembedding is a map without adapter. Causal attention sees T / 2 keys on average: 2 T Q a token and layer forward,
    twice that backward. Checkpointing makes the layers' forward pass once more."""
    W, a = linear_parameters(c), 0 if run.method == "full" else adapter_parameters(c, run.rank, run.targets)
    attention = 2 * run.max_length * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    forward, gradients = 2 * (W + a) + attention, 3 if run.method == "full" else 2
    a_token = 2 * gradients * (W + c.vocab_size * c.hidden_size) + 6 * a + 3 * attention + checkpointing * forward
    return a_token * run.batch_eff * run.max_length


# ----- rate and rank to begin with ----------------------------------------------------------------------------------

def learning_rate(c: ModelConfig, method: str, steps: int) -> float:
    """5e-5 (2000 / C)^p, p = 0.0775 for Qwen and 0.781 for Llama (tinker-cookbook, get_lr); LoRA's is 10 times that, and
    15 times in runs below about 100 steps (Schulman et al., 2025). Found with alpha = 32 and the factor alpha / r."""
    full = 5e-5 * (2000 / c.hidden_size) ** (0.781 if c.hf.get("model_type") == "llama" else 0.0775)
    return full * (1 if method == "full" else 15 if steps < 100 else 10)


def rank_for(c: ModelConfig, tokens: int, targets: str = "all-linear") -> int:
    """The rank whose parameters, 2 bits each, hold `tokens` supervised tokens of 1 bit each (Schulman et al., 2025)."""
    return max(1, math.ceil(tokens * 1 / 2 / adapter_parameters(c, 1, targets)))


def supervised(run: train.Config, data: str) -> tuple[int, int, int]:
    """-> (samples and supervised tokens of the training split, supervised tokens that the run sees, each counted once)."""
    tokenizer = Tokenizer.from_pretrained(folder_of(run.model, ["tokenizer*.json", "chat_template*"]))
    samples, _ = dataset.load(dataset.find(data) / "train.jsonl", tokenizer, run.max_length)
    tokens = sum(len(s.ids) - s.start for s in samples)
    return len(samples), tokens, round(tokens * min(1, run.max_steps * run.batch_eff / len(samples)))


# ----- the truth ----------------------------------------------------------------------------------------------------

def stepper(c: ModelConfig, run: train.Config, checkpointing: bool):
    """train.py's optimizer step on random weights and tokens, as a function without arguments."""
    device, dtype = torch.device(run.device), DTYPES[run.dtype]
    held, mixed = torch.float32 if run.method == "full" else dtype, run.method == "full" and dtype != torch.float32
    with torch.device("meta"):
        model = Transformer(c)
    for name, p in list(model.named_parameters()):          # as from_pretrained puts them, and load_quantized quantizes them
        model.put(name, torch.empty(p.shape, dtype=held, device=device).normal_(std=0.02), p.shape, "")
        if run.method == "qlora":
            quantize_layer(model, name.rpartition(".")[0])
    if c.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if run.method != "full":
        apply_lora(model, run.rank, run.alpha, run.targets)
    model.gradient_checkpointing = checkpointing
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[run.optimizer](trained, fused=device.type in ("cpu", "cuda"))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    ids = torch.randint(c.vocab_size, (run.micro_bs, run.max_length))
    return lambda: train.optimizer_step(
        model, optimizer, scaler, [(ids, ids)] * min(2, run.grad_accum),        # what holds in the second, holds in those after it
        lambda: torch.autocast(device.type, dtype) if mixed else contextlib.nullcontext(), 1e-4, 1.0)


def measure(c: ModelConfig, run: train.Config, checkpointing: bool) -> tuple[float, float]:
    """Bytes before the model is there, and at most in two steps: the moments are there from the second on.

    To be called in a process of its own: a peak is that of all that the process did before."""
    device = torch.device(run.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tiny = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    stepper(dataclasses.replace(c, head_dim=8, **tiny), dataclasses.replace(run, rank=1), checkpointing)()     # loads what is used
    before, step = train.peak_gb(device) * 1e9, stepper(c, run, checkpointing)
    step()
    step()
    return before, train.peak_gb(device) * 1e9


def measured(*args, **env) -> tuple[float, float]:
    """`measure` in a fresh process, with `env` in its environment."""
    with mock.patch.dict(os.environ, env), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


# ----- what one looks at --------------------------------------------------------------------------------------------

COLOURS = {"weights": "#0072B2", "adapters": "#56B4E9", "optimizer": "#009E73", "gradients": "#F0E442", "activations": "#E69F00",
           "passing": "#D55E00"}        # Okabe and Ito's, which the colour-blind tell apart


def variants(run: train.Config) -> dict[str, tuple[train.Config, bool]]:
    """Each method, without and with gradient checkpointing."""
    return {method + checkpointing * " + checkpointing": (dataclasses.replace(run, method=method), checkpointing)
            for method in ("full", "lora", "qlora") for checkpointing in (False, True)}


def show_memory(c: ModelConfig, run: train.Config):
    plain, less = memory(c, run, False), memory(c, run, True)
    print(f"\nmemory, GB = 10^9 bytes{'':5}{'plain':>9}{'ckpt':>8}   formula, bytes (~: passing; only the largest of these counts)")
    for row, ckpt in zip(plain, less):
        if row.bytes or ckpt.bytes:
            formula = row.formula if row.bytes else ckpt.formula
            print(f"  {row.name:<27}{row.bytes / 1e9:8.3f}{ckpt.bytes / 1e9:8.3f}   {formula}  [{row.source}]")
    (when, most), (ckpt_when, ckpt_most) = at_peak(plain, run.grad_accum), at_peak(less, run.grad_accum)
    print(f"  {'peak':<27}{sum(most.values()) / 1e9:8.3f}{sum(ckpt_most.values()) / 1e9:8.3f}   {when}; with checkpointing {ckpt_when}")


def show_cards(c: ModelConfig, run: train.Config):
    print(f"\nthe largest micro-batch of {run.max_length} tokens, {run.dtype}, that fits on     peak at {run.micro_bs}"
          + "".join(f"{card:>6} GB" for card in CARDS))
    for name, (variant, checkpointing) in variants(run).items():
        cells = [largest(c, variant, checkpointing, card * 1e9) or "-" for card in CARDS]
        print(f"  {name:<54}{peak(c, variant, checkpointing) / 1e9:7.2f} GB" + "".join(f"{cell:>9}" for cell in cells))


def show_computation(c: ModelConfig, run: train.Config):
    W, in_out = linear_parameters(c), adapter_parameters(c, 1)
    print(f"\ncomputation, {run.batch_eff} samples of {run.max_length} tokens a step")
    full = flops(c, dataclasses.replace(run, method="full"), False)
    for name, (variant, checkpointing) in variants(run).items():
        if variant.method != "qlora":           # LoRA's, and taking the weights out of their 4 bits
            n = flops(c, variant, checkpointing)
            print(f"  {name:<27}{n / 1e12:8.2f} TFLOP a step{n / full:8.3f} x full")
    print(f"  the layers' linear maps alone, r = {run.rank}: {flops_ratio(W, in_out, run.rank):.3f} = 2/3 + r sum(in + out) / W; on a C x C "
          f"map {flops_ratio(c.hidden_size ** 2, 2 * c.hidden_size, run.rank):.3f} = 2/3 + 2 r / C")
    print(f"  LoRA stops being cheaper at r = {break_even(W, in_out):.0f} = W / (3 sum(in + out)); on a C x C map at C / 6 = "
          f"{break_even(c.hidden_size ** 2, 2 * c.hidden_size):.0f}  [Schulman et al., 2025, LoRA Without Regret]")


def show_start(c: ModelConfig, run: train.Config, data: str | None):
    times = 15 if run.max_steps < 100 else 10
    print(f"\nto begin with\n  learning rate  {learning_rate(c, run.method, run.max_steps):.1e} for {run.method} ({run.max_steps} steps); "
          f"full fine-tuning's {learning_rate(c, 'full', run.max_steps):.1e}, LoRA's {times} x that  [tinker-cookbook get_lr; alpha = 32]")
    if data:
        n, all_tokens, tokens = supervised(run, data)
        for what, count in (("the whole split", all_tokens), (f"{run.max_steps} steps of {run.batch_eff}", tokens)):
            print(f"  rank           {rank_for(c, count, run.targets)} for {what}: {count:,} supervised tokens x 1 bit / (2 bits x "
                  f"{adapter_parameters(c, 1, run.targets):,} parameters a rank)  [Schulman et al., 2025]")


def show_measured(c: ModelConfig, run: train.Config):
    """glibc keeps what is freed below a threshold that grows to 32 MB, holes between what is still in use, and so takes more
    than the tensors need; with a fixed threshold it gives everything back. Both are measured."""
    on_cpu = run.device == "cpu"
    print(f"\nmeasured beside predicted, {run.method} on {run.device}: two steps of {min(2, run.grad_accum)} micro-batches"
          f"\n{'':28}{'before':>9}{'peak':>8}{'predicted':>11}{'off by':>9}" + on_cpu * "   GB; peak with malloc's own threshold")
    for checkpointing in (False, True):
        default = measured(c, run, checkpointing)[1] if on_cpu else 0
        before, got = measured(c, run, checkpointing, MALLOC_MMAP_THRESHOLD_="65536")
        predicted = peak(c, run, checkpointing) + on_cpu * BASELINE
        print(f"  {'with' if checkpointing else 'without'} checkpointing{'':{4 + 3 * (not checkpointing)}}{before / 1e9:9.3f}{got / 1e9:8.3f}"
              f"{predicted / 1e9:11.3f}{predicted / got - 1:+9.1%}" + (f"{default / 1e9:8.3f}" if on_cpu else ""), flush=True)


def plot(c: ModelConfig, run: train.Config, path: Path):
    """A stacked bar for each method, without and with checkpointing, and the cards as lines."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    bars = {name: at_peak(memory(c, *v), run.grad_accum)[1] for name, v in variants(run).items()}
    bottom = [0.0] * len(bars)
    for kind, colour in COLOURS.items():
        heights = [held[kind] / 1e9 for held in bars.values()]
        ax.bar([name.replace(" + ", "\n+ ") for name in bars], heights, 0.6, bottom, color=colour, label=kind, edgecolor="white", linewidth=0.5)
        bottom = [b + h for b, h in zip(bottom, heights)]
    for x, top in enumerate(bottom):
        ax.annotate(f"{top:.2f}", (x, top), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom")
    for card in CARDS:
        if card < 1.5 * max(bottom):
            ax.axhline(card, color="0.4", linewidth=0.8, linestyle="--")
            ax.annotate(f"{card} GB", (1, card), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points", va="center")
    ax.set_ylabel("GB at the peak (10$^9$ bytes)")
    ax.set_title(f"{Path(run.model).name}: {run.micro_bs} x {run.max_length} tokens, r = {run.rank}, {run.dtype}, {run.optimizer}")
    ax.legend(loc="upper right", frameon=False)
    with replacing(path) as part:
        fig.savefig(part, format=path.suffix[1:] or "png", dpi=150)
    plt.close(fig)


# ----- settings -----------------------------------------------------------------------------------------------------

def folder_of(name: str, files: list[str]) -> Path:
    """The folder of a checkpoint or of a config.json; of a hub repository `files` alone are fetched."""
    return Path(name).parent if Path(name).is_file() else resolve(name, files)


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: train.fail(f"{message} (python plan.py --help lists the settings)")
    ours = {"model": "folder, config.json, hub repository (config.json alone is fetched), or the embedded nano",
            "data": "name under data/, or a folder with train.jsonl: the rank that its tokens call for", "max_length": "tokens of a sample"}
    settings = {f.name: f for f in dataclasses.fields(train.Config)}
    for name in "model data method rank targets optimizer micro_bs grad_accum max_length max_steps dtype device".split():
        m = dict(settings[name].metadata)
        m.pop("group", None)
        default = None if name == "data" else settings[name].default
        parser.add_argument(f"--{name}", type=m.pop("type", settings[name].type), default=default,
                            **m | {"help": ours.get(name, m["help"]) + (f" (default: {default})" if default is not None else "")})
    parser.add_argument("--plot", metavar="FILE.png", help="draw the memory of each method, without and with checkpointing")
    parser.add_argument("--measure", action="store_true", help="make two steps of train.py's on random weights, and compare")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace):
    own = {name: vars(args).pop(name) for name in ("data", "plot", "measure")}
    run = train.Config(**vars(args))
    train.check(run)
    run = train.settled(run, 1)
    targeted(run.targets)
    file = folder_of(run.model, ["config.json"]) / "config.json"
    c = ModelConfig.from_hf(read_json(Path(run.model) if Path(run.model).is_file() else file))
    P, a = parameters(c), adapter_parameters(c, run.rank, run.targets)
    print(f"{run.model}: {P:,} parameters, {linear_parameters(c):,} of them in the layers' linear maps; sum of (in + out) over "
          f"attention {adapter_parameters(c, 1, 'attention'):,}, MLP {adapter_parameters(c, 1, 'mlp'):,}\n"
          f"adapters, r = {run.rank} on {run.targets}: {a:,} ({a / P:.2%}). Here: {run.method} in {run.dtype} on {run.device}, "
          f"{run.micro_bs} x {run.max_length} tokens a micro-batch, {run.grad_accum} a step, {run.optimizer}")
    show_memory(c, run)
    show_cards(c, run)
    show_computation(c, run)
    show_start(c, run, own["data"])
    if own["measure"]:
        show_measured(c, run)
    if own["plot"]:
        plot(c, run, Path(own["plot"]))


def main(argv=None):
    try:
        plan(parse(argv))
    except (UserError, OSError) as e:
        train.fail(e)


if __name__ == "__main__":
    main()
