"""What a run takes, before it runs: memory, FLOPs, a learning rate and a rank, from config.json.

    python plan.py --model Qwen/Qwen2.5-0.5B-Instruct --method lora --rank 64 --max_length 512
    python plan.py --model config.json --method full --dtype bfloat16 --plot plan.png
    python plan.py --model nano --data nano --measure       # compare with two real steps
    python plan.py --model Qwen/Qwen2.5-7B --gpus 1,8,64 --fsdp     # what each GPU holds and sends

On one device all of a run must fit. In GB of 10^9 bytes, with AdamW, 4 x 512
tokens per micro-batch and rank 64 on all linear layers:

               Llama-3.2-1B (1.24e9 parameters)  Qwen2.5-7B (7.62e9 parameters)
                  full    LoRA    LoRA   QLoRA      full   LoRA   LoRA  QLoRA
                  fp32    fp32    bf16    bf16      fp32   fp32   bf16   bf16
    weights       4.94    4.94    2.47    1.03     30.46  30.46  15.23   5.55
    adapters      0.00    0.18    0.18    0.18      0.00   0.65   0.65   0.65
    optimizer     9.89    0.36    0.36    0.36     60.92   1.29   1.29   1.29
    gradients     4.94    0.18    0.18    0.18     30.46   0.65   0.65   0.65
    activations   5.26    5.30    2.74    2.74     19.06  19.14   9.89   9.89
    temporary     2.40    0.82    0.94    0.94      4.73   0.99   1.12   1.12
    peak         27.43   11.78    6.87    5.43    145.64  53.17  28.83  19.14

Weights, gradients, optimizer: full fine-tuning in float32 takes 16 bytes per parameter, 4 for the
weight, 4 for its gradient, 8 for AdamW's two moments. LoRA freezes the weights. What is frozen has
no gradient and no moments, and 12 of the 16 bytes are gone. QLoRA makes the frozen 4 bytes half a
byte in the layers' linear maps; embeddings stay in 16 bits, which is why 1.24e9 parameters are not
0.62 GB but 1.03.

Activations: what the forward pass keeps for the backward pass. They grow with the tokens, not with
what is trained. They do not shrink under LoRA (5.26 -> 5.30), because the gradient of an adapter
must flow through all frozen layers above it, and because each adapter keeps its input x for dA as
the full map kept it for dW. What helps is 16 bits, and gradient checkpointing, which keeps only the
layers' inputs (0.14 instead of 2.74) and computes the rest a second time.

Temporary: logits of a chunk of tokens, gradients of one layer's activations. Only the largest
counts.

Symbols: B sequences of T tokens per micro-batch, N = B T; C hidden size, I width of the MLP, Q and
K widths of queries and keys, V vocabulary, L layers, hd size of a head; P parameters, W those of
the layers' linear maps, a those of the adapters, r rank; s bytes per number of the computation, 4
or 2; w per weight of the linear maps; t per number of the residual stream, 4 in full fine-tuning,
else s; n GPUs over which --fsdp cuts every weight, else 1; E parameters outside the layers.
"""
import bisect
import contextlib
import io
import math
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import train
from communication import gathered_bytes, passes, sent_per_step
from dataset import find_dataset, load_split
from lora import TARGETS
from methods import Shapes, Target, find_method, setup_of
from model import LinearNLL, ModelConfig, Transformer, plain_is_faster
from optim import BUCKET
from plumbing.cli import add_flags, make_parser, run_command
from plumbing.device import DTYPES, peak_gb
from plumbing.errors import UserError, errors_in_one_line, is_out_of_memory
from plumbing.fields import check, number_of, whole
from plumbing.files import make_folder, replacing, resolve
from plumbing.text import print_fitted
from quant import quantize_layer
from rates import lora_rate_multiple
from settings import RELATIVES, Config, check_config, settled
from tokenizer import Tokenizer

# GB of 10^9 bytes. A card's GB are 2^30 bytes, 7 % more: that is left for CUDA's context.
CARDS = (8, 16, 24, 48, 80)
BASELINE = 0.33e9               # resident bytes of a CPU process with torch and no model (measured)
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8      # per weight, scales included: 4.127 bits
MOMENT_BYTES = {                # per trained parameter, for both moments
    "adamw": 8,                         # float32
    "adamw8bit": 2 * (1 + 4 / 256)}     # a byte each, and a float32 scale per 256
KIND_COLOURS = {                # Okabe and Ito's, which the colour-blind tell apart
    "weights": "#0072B2", "adapters": "#56B4E9", "optimizer": "#009E73", "gradients": "#F0E442",
    "activations": "#E69F00", "temporary": "#D55E00"}
SCHULMAN = "Schulman et al., 2025"      # LoRA Without Regret


# ----- sizes --------------------------------------------------------------------------------------

def linear_shapes(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear maps of one layer."""
    C, I = c.hidden_size, c.intermediate_size
    Q, K = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {"q_proj": (C, Q), "k_proj": (C, K), "v_proj": (C, K), "o_proj": (Q, C),
            "gate_proj": (C, I), "up_proj": (C, I), "down_proj": (I, C)}


def targeted_maps(targets: str) -> list[str]:
    """The linear maps of a layer that --targets means. Raises UserError for an unknown one."""
    known = [*TARGETS["attention"], *TARGETS["mlp"]]
    names = known if targets == "all-linear" else TARGETS.get(targets, targets.split(","))
    check([*names], [tuple(known)], name="--targets")
    return [name for name in known if name in names]


def linear_parameters(c: ModelConfig) -> int:
    """W: the weights of the layers' linear maps, without biases. They get adapters, or NF4."""
    return c.num_hidden_layers * sum(i * o for i, o in linear_shapes(c).values())


def count_parameters(c: ModelConfig) -> int:
    """P: all parameters of the model. A tied unembedding counts once."""
    (C, Q), (_, K), (I, _) = (linear_shapes(c)[name] for name in ("q_proj", "k_proj", "down_proj"))
    vectors = 2 * C                         # of a layer: two norms
    if c.qk_norm:
        vectors += 2 * c.head_dim
    if c.qkv_bias:
        vectors += Q + 2 * K
    if c.o_bias:
        vectors += C
    if c.mlp_bias:
        vectors += 2 * I + C
    tables = 1 if c.tie_word_embeddings else 2
    last_norm = C
    return (linear_parameters(c) + c.num_hidden_layers * vectors + tables * c.vocab_size * C
            + last_norm)


def adapter_parameters(c: ModelConfig, rank: int, targets: str = "all-linear") -> int:
    """LoRA's a = r (in + out), summed over the adapted maps."""
    shapes = linear_shapes(c)
    in_out = sum(sum(shapes[name]) for name in targeted_maps(targets))
    return c.num_hidden_layers * rank * in_out


def method_parameters(c: ModelConfig, config: Config) -> int:
    """What the run trains: the formula of its method's file (`count`), or P."""
    if config.method == "full":
        return count_parameters(c)
    shapes = linear_shapes(c)
    maps = {name: shapes[name] for name in targeted_maps(config.targets)}
    method = find_method(config.adapter_method)
    return method.count(Shapes(maps, c.hidden_size, c.num_hidden_layers), setup_of(config))


def first_line(function) -> str:
    """Of its docstring: where a method's file has the formula."""
    return function.__doc__.partition("\n")[0].rstrip(".")


class Sizes:
    """The symbols of the formulas: of the model `c`, the run `config` and the number of GPUs."""

    def __init__(self, c: ModelConfig, config: Config, gpus: int = 1):
        self.c, self.config = c, config
        self.shapes = linear_shapes(c)
        self.full = config.method == "full"
        self.mixed = self.full and config.dtype != "float32"    # autocast: 16-bit products
        self.on_gpu = config.device.startswith("cuda")
        self.paged = self.on_gpu and config.optimizer.startswith("paged_")
        self.moment_bytes = MOMENT_BYTES[config.optimizer.removeprefix("paged_")]

        # the model: widths, counts, parameters
        self.C = c.hidden_size                          # the residual stream
        self.I = c.intermediate_size                    # the MLP
        self.Q = self.shapes["q_proj"][1]               # queries of all heads
        self.K = self.shapes["k_proj"][1]               # keys of all heads; values are as wide
        self.V = c.vocab_size                           # vocabulary
        self.L = c.num_hidden_layers                    # layers
        self.P = count_parameters(c)                    # all parameters
        self.W = linear_parameters(c)                   # those of the layers' linear maps
        tables = 1 if c.tie_word_embeddings else 2
        self.E = tables * self.V * self.C + self.C      # those in no layer

        # what is trained
        self.r = config.rank                            # rank of the adapters
        self.a = 0                                      # parameters of the adapters
        self.virtual = 0                                # tokens in front of each sample
        self.trained, self.trained_maps = self.P, list(self.shapes)
        if not self.full:
            self.method, self.setup = find_method(config.adapter_method), setup_of(config)
            self.a = self.trained = method_parameters(c, config)
            self.trained_maps = list(self.method.behind)
            if "targets" not in self.method.ignores:
                self.trained_maps = targeted_maps(config.targets)
            self.virtual = config.rank if self.method.virtual else 0
        self.dW = 4 * self.V * self.C if self.full else 0       # bytes of one embedding's gradient

        # a micro-batch: tokens, and bytes per number
        self.T = config.max_length + self.virtual       # of a sample
        self.N = config.micro_bs * self.T               # of all samples
        self.predicted = config.micro_bs * (config.max_length - 1)      # of the text, but its first
        self.m = min(self.predicted, LinearNLL.CHUNK)   # of a chunk of the loss
        self.s = DTYPES[config.dtype].itemsize          # of the computation
        self.t = 4 if self.full else self.s             # of the residual stream
        self.w = NF4_BYTES if config.four_bits else self.s      # of a weight of the linear maps

        # several GPUs
        self.n = gpus if config.fsdp else 1             # shards of each weight
        self.passes = passes(config.grad_accum, gpus)   # micro-batches of each GPU in a step


class Term(NamedTuple):
    """One item of memory, and when it is held:

    throughout              from the first step to the last
    gathered                from a forward pass to the end of its backward pass
    gradients, embedding    from the backward pass to the update; the embedding's come last
    kept                    from a layer's forward pass to its backward pass
    loss, layer, end, step  at that moment alone
    """
    when: str
    name: str
    bytes: float
    formula: str        # in the symbols above
    source: str


# ----- memory that is held throughout -------------------------------------------------------------
# The worked numbers are those of Qwen2.5-0.5B, 4 x 512 tokens, r = 64 on a GPU: P = 494,032,768,
# W = 357,826,560, a = 35,192,832, N = 2,048, C = 896, I = 4,864, Q = 896, K = 128, V = 151,936,
# L = 24. It is LoRA in bfloat16, s = t = 2, if nothing else is said.

def term_of_weights(z: Sizes) -> Term:
    """4 P, s P or, with W of them in four bits, 4.127 / 8 W + s (P - W): 2 P = 0.988 GB.

    Full fine-tuning keeps float32 weights even if it computes in 16 bits: see train.weight_dtype.
    """
    held, formula, source = z.s * z.P, "s P: frozen", "arXiv 2106.09685"
    if z.full:
        held, formula, source = 4 * z.P, "4 P: kept in float32", "arXiv 1710.03740"
    if z.config.four_bits:
        held = z.w * z.W + z.s * (z.P - z.W)
        formula, source = "4.127 / 8 W + s (P - W)", "arXiv 2305.14314"
    return Term("throughout", "weights", held / z.n, formula, source)


def term_of_gathered(z: Sizes) -> Term:
    """With --fsdp, what is whole in a step: E, the layer that computes and the one that arrives.

    s E + 2 s (P - E) / L = 0.332 GB.
    """
    layers, rest = gathered_bytes(z)
    held = rest + 2 * layers / z.L if z.n > 1 else 0
    return Term("gathered", "gathered weights", held, "E and two layers", "fully_shard")


def term_of_adapters(z: Sizes) -> Term:
    """What the method trains, in float32, and what else it holds: A and B, 4 a = 0.141 GB."""
    per_number, formula = 4, ""
    if not z.full:
        per_number = 4 * (1 + z.method.buffers)
        formula = f"{per_number:g} a, a = {first_line(z.method.count)}: float32"
    return Term("throughout", "adapters", per_number * z.a, formula, "methods/")


def term_of_moments(z: Sizes) -> Term:
    """AdamW's m and v of what is trained: 8 a = 0.282 GB. In full fine-tuning 8 P = 3.952 GB.

    Paged moments stay in the host's memory. On a CPU that is the device's memory.
    """
    held = 0 if z.paged else z.moment_bytes * z.trained
    if z.full:
        held /= z.n
    formula = f"{z.moment_bytes:g} " + ("P" if z.full else "a")
    return Term("throughout", "optimizer", held, formula, "arXiv 1412.6980")


# ----- gradients ----------------------------------------------------------------------------------

def terms_of_gradients(z: Sizes) -> list[Term]:
    """One float32 number per trained parameter: 4 a = 0.141 GB.

    In full fine-tuning the embedding's comes last of all. An untied unembedding's comes first, and
    `term_of_layer_backwards` counts it until then. Both have a term of their own: 4 V C = 0.545 GB
    each.
    """
    own, own_formula = (z.dW, "4 V C") if z.c.tie_word_embeddings else (2 * z.dW, "4 V C, twice")
    formula, source = "4 P less these" if z.full else "4 a", "as what is trained"
    shards = z.n if z.full else 1
    return [Term("gradients", "gradients", (4 * z.trained - own) / shards, formula, source),
            Term("embedding", "  of embeddings", own / shards, own_formula, source)]


# ----- activations: what one layer keeps from its forward to its backward pass --------------------
# Autograd goes operation by operation: a product keeps each factor if its partner needs a gradient.
# So a frozen map keeps nothing. These functions count to the byte what autograd keeps on a CPU. On
# CUDA, attention's output is laid out such that o_proj needs no copy of it: s N Q per layer less.
# needing: the tensors of the layer that need a gradient. `activations` sums the terms over layers.

INPUT_OF = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "o_proj": "attention",
            "gate_proj": "middle", "up_proj": "middle", "down_proj": "product"}


def tensors_needing_gradient(z: Sizes, lowest: bool) -> set[str]:
    """Which tensors of a layer need a gradient; "q" is what q_proj puts out, and so on.

        x -> q, k, v -> attention -> o;  middle = x + o -> gate, up -> product -> down

    A tensor needs one if something trained lies before it. In full fine-tuning, behind virtual
    tokens and in all layers but the lowest that is every tensor. In the lowest layer of LoRA with
    adapters on gate_proj and up_proj alone, x to middle need none: no gradient has anywhere to go
    there.
    """
    needing = {name.removesuffix("_proj") for name in z.trained_maps}
    if z.full or z.virtual or not lowest:
        needing |= {"x", "q", "k", "v"}
    if needing & {"q", "k", "v"}:
        needing |= {"attention", "o"}
    if "o" in needing:
        needing |= {"middle", "gate", "up"}
    if needing & {"gate", "up"}:
        needing |= {"product", "down"}
    return needing


def norm_keeps(z: Sizes, width: int, x_bytes: int, heads: int = 1) -> int:
    """RMSNorm of `width` numbers per token, in `heads` parts: t N C + 4 N = 3.7 MB for width C.

    x, in `x_bytes` per number, and 1 / rms of each part in float32.
    """
    return z.N * (x_bytes * width + 4 * heads)


def layer_norms(z: Sizes, needing: set[str]) -> Term:
    """The two norms of the residual stream: 2 t N C + 8 N = 7.4 MB. Qwen3 also norms q and k."""
    norms = dict.fromkeys(("x", "middle"), norm_keeps(z, z.C, z.t))
    if z.c.qk_norm:
        norms["q"] = norm_keeps(z, z.Q, z.s, z.c.num_attention_heads)
        norms["k"] = norm_keeps(z, z.K, z.s, z.c.num_key_value_heads)
    held = sum(norms[tensor] for tensor in norms.keys() & needing)
    return Term("kept", "  norms", held, "t N C + 4 N each", "RMSNorm")


def layer_inputs(z: Sizes, needing: set[str]) -> Term:
    """The input x of each trained map, for dW or dA: s N (3 C + I) = 30.9 MB where Q = C.

    q, k and v share their input, and so do gate and up. Only autocast casts it for each again.
    """
    widths = {}             # maps that share an input have one entry
    for name in z.trained_maps if z.full or z.method.keeps_x else ():
        kept_as = name if z.mixed else INPUT_OF[name]
        widths[kept_as] = z.shapes[name][0]
    formula = f"s N in, for {'dW' if z.full else 'dA'}; q, k, v share, gate, up too"
    return Term("kept", "  inputs of maps", z.s * z.N * sum(widths.values()), formula, "autograd")


def layer_adapters(z: Sizes, needing: set[str]) -> Term:
    """What the method keeps besides the inputs: its file's `keeps`, summed over the maps.

    Of LoRA on seven maps 14 N r + 2 a / L = 4.8 MB: u = A x for dB, and 16-bit copies of A and B
    for dx and du.
    """
    held, formula = 0, ""
    if not z.full and z.method.keeps:
        formula = first_line(z.method.keeps)
        for name in z.trained_maps:
            target = Target(*z.shapes[name], z.N, z.s, dx=INPUT_OF[name] in needing)
            held += z.method.keeps(target, z.setup)
    return Term("kept", "  next to the maps", held, formula, "methods/")


def layer_attention(z: Sizes, needing: set[str]) -> Term:
    """q, k, v, the output, and the log-sum-exp of each row of scores.

    2 s N (Q + K) + 4 N heads = 8.5 MB. The T x T scores are not kept: FlashAttention computes them
    again in the backward pass. Where model.plain_attention is faster, their softmax is kept.
    """
    held, heads = 0, z.c.num_attention_heads
    formula = "2 s N (Q + K) + 4 N heads: q, k, v, output, lse"
    if "attention" in needing:
        held = 2 * z.s * z.N * (z.Q + z.K) + 4 * z.N * heads
    if held and plain_is_faster(z.config.device, DTYPES[z.config.dtype], z.T):
        # each factor of a product is kept if the other needs a gradient
        partners = {"q": z.K, "k": z.Q, "v": 0}
        numbers = sum(partners[tensor] for tensor in partners.keys() & needing)
        numbers += z.K if needing & {"q", "k"} else 0
        held = z.s * z.N * (numbers + heads * z.T)
        formula = "s N (Q + 2 K + heads T): q, k, v, softmax"
    return Term("kept", "  attention", held, formula, "arXiv 2307.08691")


def layer_swiglu(z: Sizes, needing: set[str]) -> Term:
    """silu(gate) * up: 2 s N I = 39.8 MB, the largest item of most models.

    model.Gate keeps both, and computes silu again.
    """
    held = 2 * z.s * z.N * z.I if needing & {"gate", "up"} else 0
    return Term("kept", "  SwiGLU", held, "2 s N I: gate, up", "arXiv 2002.05202")


def layer_copies(z: Sizes, needing: set[str]) -> Term:
    """16-bit copies of the float32 weights in full fine-tuning: 2 W / L = 29.8 MB.

    Not if they are gathered in 16 bits (--fsdp).
    """
    held = 2 * z.W // z.L if z.mixed and z.n == 1 else 0
    return Term("kept", "  16-bit copies", held, "2 W", "autocast")


# All take `needing`, although some ignore it, so that one loop can call them.
LAYER_TERMS = (
    layer_norms, layer_inputs, layer_adapters, layer_attention, layer_swiglu, layer_copies)


def activations(z: Sizes) -> list[Term]:
    """What all layers keep, and the last norm: 2.193 GB, or 0.092 GB with checkpointing."""
    terms = []
    for layer_term in LAYER_TERMS:
        lowest = layer_term(z, tensors_needing_gradient(z, lowest=True))
        other = layer_term(z, tensors_needing_gradient(z, lowest=False))
        held = 0
        if not z.config.gradient_checkpointing:
            held = lowest.bytes + (z.L - 1) * other.bytes
        if layer_term == layer_norms:
            # the last norm is of the text alone, and keeps a view of all
            held += norm_keeps(z, z.C, z.t) - 4 * z.config.micro_bs * z.virtual
        terms.append(other._replace(bytes=held))

    starts = z.t * z.N * z.C * z.L if z.config.gradient_checkpointing else 0
    positions, formula = z.t * z.T * z.c.head_dim, "t T hd: cos, sin"   # half of hd each
    if z.full:
        positions += 8 * z.N                            # ids, for the embedding's gradient
        formula += "; 8 N"
    if z.virtual:
        positions += 9 * z.N                            # which ids are virtual, and their rows of P
        formula += "; 9 N"
    return [Term("kept", "  layers' inputs", starts, "t N C L", "arXiv 1604.06174"), *terms,
            Term("kept", "  positions, ids", positions, formula, "Transformer")]


# ----- temporary memory ---------------------------------------------------------------------------
# All tokens count as supervised, which takes the most memory.

def term_of_loss_gradients(z: Sizes) -> Term:
    """dNLL/dh, which LinearNLL makes in its forward pass, and two indices of 8 bytes that picked h.

    (s C + 16) B (T - 1) = 3.7 MB; in full fine-tuning also dNLL/dW, 4 V C. In float16 dNLL/dh is
    kept in float32: 4 C instead of s C.
    """
    size, symbol = (4, "4") if z.config.dtype == "float16" else (z.s, "s")
    name, formula = "~ dNLL/dh", f"{symbol} C + 16 per token"
    if z.full:
        name, formula = f"{name}, dNLL/dW", f"{formula}, 4 V C"
    return Term("loss", name, (size * z.C + 16) * z.predicted + z.dW, formula, "LinearNLL")


def softmax_bytes(z: Sizes) -> int:
    """The float32 logits of a chunk of m tokens next to log p: 8 m V = 0.622 GB."""
    return 8 * z.m * z.V


def dlogits_bytes(z: Sizes) -> int:
    """What a chunk leaves: dlogits, in the place of log p, and a 16-bit copy: 6 m V = 0.467 GB."""
    per_logit = 4 if z.s == 4 else 6
    return per_logit * z.m * z.V


def next_softmax_bytes(z: Sizes) -> int:
    """The softmax of the next chunk, next to what this one leaves: 8 m V + 6 m V = 1.089 GB."""
    next_m = min(z.m, z.predicted - z.m)
    return 8 * next_m * z.V + dlogits_bytes(z)


def dW_product_bytes(z: Sizes) -> int:
    """dW = dlogits^T h (V, C) of a chunk, next to dlogits. Full: 6 m V + 2 V C = 0.739 GB.

    A CPU makes the 16-bit product float32 before it adds it. float16 is multiplied in float32,
    for which dlogits are copied once more.
    """
    if not z.full:
        return 0
    if z.config.dtype == "float16":
        return dlogits_bytes(z) + 4 * z.m * z.V + 4 * z.V * z.C
    per_weight = z.s
    if z.mixed and not z.on_gpu:
        per_weight += 4
    return dlogits_bytes(z) + per_weight * z.V * z.C


def term_of_logits(z: Sizes) -> Term:
    """The most of LinearNLL's three moments, next to h: 14 m V + t N C = 1.093 GB.

    The float32 logits of all tokens at once would take 4 N V, 1.245 GB, and log p as much again.
    """
    held = max(softmax_bytes(z), next_softmax_bytes(z), dW_product_bytes(z)) + z.t * z.N * z.C
    if z.mixed:
        held += 2 * z.V * z.C       # autocast keeps 16-bit weights until the forward pass is over
        if z.config.gradient_checkpointing and z.n == 1:
            held += 2 * z.W
    formula = f"8 x {z.m} V and more; uncut 4 N V = {name_bytes(4 * z.N * z.V)}"
    return Term("loss", "~ logits", held, formula, "LinearNLL")


def term_of_layer_backwards(z: Sizes) -> Term:
    """The gradients of gate and of up: 2 s N I = 39.8 MB, and what is held next to them:

    dNLL/dW in full fine-tuning, one dequantized weight in QLoRA, and with checkpointing the layer's
    activations.
    """
    held, formula = 2 * z.s * z.N * z.I, "2 s N I: d gate, d up"
    if z.full:
        formula += ", 4 V C"
        # dNLL/dW waits for the embedding's half, or is .grad already, or waits to be cut
        if z.c.tie_word_embeddings or z.passes == 1 or z.n > 1:
            held += z.dW
        if z.n > 1:             # the layer's gradients are whole, next to a float32 copy to be sent
            held += (z.s + 4) * (z.P - z.E) / z.L
    if z.config.four_bits:
        # one dequantized weight: 2 bytes of indices or 16-bit form next to 4 of float32
        held += 6 * max(size_in * size_out for size_in, size_out in z.shapes.values())
        formula += ", 6 in out"
    if z.config.gradient_checkpointing:
        needing = tensors_needing_gradient(z, lowest=False)
        held += sum(layer_term(z, needing).bytes for layer_term in LAYER_TERMS)
        formula += ", its activations"
    return Term("layer", "~ a layer backwards", held, formula, "autograd")


def term_of_embedding_backwards(z: Sizes) -> Term:
    """The embedding's dense gradient before it is added to the one held, and dNLL/dW where tied.

    In full fine-tuning, tied, 2 x 4 V C = 1.089 GB. The first gradient of a step is not added but
    becomes .grad itself, so with one micro-batch there is one less.
    """
    copies = 2 if z.c.tie_word_embeddings else 1
    if z.passes == 1:
        copies -= 1
    if z.n > 1:
        copies = 2          # the unembedding's is whole, too, until this one is there
    return Term("end", "~ embedding's gradient", copies * z.dW,
                "4 V C, next to dNLL/dW where tied", "nn.Embedding")


def term_of_update(z: Sizes) -> Term:
    """The optimizer updates a bucket at a time. AdamW in float32 and on the device takes nothing.

    8-bit moments are 8 bytes of float32 per parameter of the bucket while they are updated, and 9
    of the tensor that is quantized again. Full, adamw8bit, embedding: (8 + 9) V C = 2.314 GB. Paged
    moments of two buckets are on the device, one updated and one under way.
    """
    tensor = z.V * z.C if z.full else z.r * max(map(max, z.shapes.values()))
    bucket = max(tensor, min(z.trained, BUCKET))
    held = 0
    if z.paged:
        held += 2 * z.moment_bytes * bucket
    if z.moment_bytes < 8:
        held += 8 * bucket + 9 * tensor
    formula = "8 bits: 8 per parameter of a bucket; paged: 2 buckets"
    return Term("step", "~ optimizer's step", held, formula, "optim.py")


# ----- the peak -----------------------------------------------------------------------------------

def memory(c: ModelConfig, config: Config, gpus: int = 1) -> list[Term]:
    """What an optimizer step of `config` holds on each of `gpus` GPUs.

    Not all of it at once: see `at_peak`.
    """
    z = Sizes(c, config, gpus)
    return [term_of_weights(z), term_of_gathered(z), term_of_adapters(z), term_of_moments(z),
            *terms_of_gradients(z), *activations(z),
            term_of_loss_gradients(z), term_of_logits(z), term_of_layer_backwards(z),
            term_of_embedding_backwards(z), term_of_update(z)]


def at_peak(c: ModelConfig, config: Config, gpus: int = 1) -> tuple[str, dict[str, float]]:
    """-> (the moment at which most is held, {kind: bytes then}). The bytes' sum is the peak.

    With one micro-batch per step no gradients exist before the backward pass, which frees
    activations as it makes gradients. With several, the earlier ones' gradients are there.
    """
    terms, total = memory(c, config, gpus), Counter()
    for term in terms:
        total[term.when] += term.bytes
    gradients = total["gradients"] + total["embedding"]
    before = gradients if passes(config.grad_accum, gpus) > 1 else 0
    whole = total["gathered"]
    moments = {             # gradients, activations, temporary
        "the loss": (before, total["kept"], total["loss"] + whole),
        "a layer's backward pass": (before, total["kept"], total["layer"] + whole),
        "the lowest layer's backward pass": (total["gradients"], 0, total["layer"] + whole),
        "the embedding's gradient": (gradients, 0, total["end"] + whole),
        "the optimizer's step": (gradients, 0, total["step"])}
    moment = max(moments, key=lambda name: sum(moments[name]))
    held = {term.name: term.bytes for term in terms if term.when == "throughout"}
    held["gradients"], held["activations"], held["temporary"] = moments[moment]
    return moment, held


def peak_bytes(c: ModelConfig, config: Config, gpus: int = 1) -> float:
    return sum(at_peak(c, config, gpus)[1].values())


def largest_micro_bs(c: ModelConfig, config: Config, size: float) -> int:
    """The largest micro-batch that fits in `size` bytes; 0: not even one sample."""
    return bisect.bisect(range(1, 2 ** 16), size,
                         key=lambda micro_bs: peak_bytes(c, replace(config, micro_bs=micro_bs)))


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


# ----- a rate and a rank to start with ------------------------------------------------------------

def starting_rate(c: ModelConfig, method: str, steps: int, rank: int = 32) -> float:
    """5e-5 (2000 / C)^p for full fine-tuning, a multiple of it for LoRA (tinker-cookbook, get_lr).

    p = 0.781 for Llama and 0.0775 for Qwen; found with alpha = 32, where one rate serves all ranks
    fairly well. With alpha = r the best rate falls as the rank grows, on nano as r^(-2/3)
    (results/findings_nano.md). At r = 32 the two are one, so the rate is (32 / r)^(2/3) times that.
    For r = 64 on SmolLM2-135M this says 1.2e-3, and 9e-4 was measured; for r = 1 on nano 9e-3, and
    5e-3 was.
    """
    p = 0.781 if c.hf["model_type"] == "llama" else 0.0775
    full = 5e-5 * (2000 / c.hidden_size) ** p
    return full if method == "full" else lora_rate_multiple(steps) * full * (32 / rank) ** (2 / 3)


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


def count_supervised_tokens(config: Config) -> tuple[int, int]:
    """-> (supervised tokens of the training split, how many of them the run sees)."""
    if Path(config.model).is_file():
        folder = Path(config.model).parent
    else:
        folder = resolve(config.model, ["tokenizer*.json", "chat_template*"])
    tokenizer = Tokenizer.from_pretrained(folder)
    path = find_dataset(config.data) / "train.jsonl"
    samples, _ = load_split(path, tokenizer, config.max_length, config.supervise)
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
    checkpointed = replace(config, gradient_checkpointing=True)
    fits = [card for card in CARDS if largest_micro_bs(c, on_gpu, card * 1e9) >= config.micro_bs]
    card = f"a card of {fits[0]} GB is enough" if fits else f"too much for {CARDS[-1]} GB"
    rate = config.lr            # what the method's file says, if it is none of the three
    if config.method in ("full", "lora", "qlora"):
        rate = starting_rate(c, config.method, config.max_steps, config.rank)
    peak, less = peak_bytes(c, config), peak_bytes(c, checkpointed)
    of_process = ""
    if config.device == "cpu":
        low, high = (name_bytes(BASELINE + n * peak) for n in (1, 2))
        of_process = (f"RAM of the process: {low} with its libraries, up to {high} where freed "
                      "memory stays as holes\n")
    print(f"memory at the peak: {name_bytes(peak)} on {config.device}, {name_bytes(less)} with "
          f"--gradient_checkpointing\n{of_process}"
          f"on a GPU, in {on_gpu.dtype}: {name_bytes(peak_bytes(c, on_gpu))}; {card}\n"
          f"a rate to start with: --lr {rate:.1e}; when it matters, also half and twice that\n")


def name_bytes(n: float) -> str:
    return f"{n / 1e6:.0f} MB" if n < 1e9 else f"{n / 1e9:.1f} GB"


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
    for term, less in zip(memory(c, plain), memory(c, checkpointed)):
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
    for name in ("full", *RELATIVES):
        run = replace(config, method=name, nf4=False, options="")
        formula = "P" if name == "full" else first_line(find_method(name).count)
        print(f"  {name:<20}{method_parameters(c, run):>15,}  {formula}")


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
          "[measured on nano]")
    if supervised:
        split, seen = supervised
        per_rank = adapter_parameters(c, 1, config.targets)
        for what, tokens in (("the split's", split), ("the run's", seen)):
            print(f"  rank {rank_for(c, tokens, config.targets)} for {what} {tokens:,} supervised "
                  f"tokens: 1 bit each / (2 bits x {per_rank:,} parameters per rank)")


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

TRAIN_FLAGS = ["model", "data", "supervise", "method", "nf4", "options", "rank", "targets",
               "optimizer", "micro_bs", "grad_accum", "max_length", "max_steps", "dtype", "device",
               "fsdp"]


def parse_plan_flags(argv=None) -> tuple[Config, Path | None, bool, list[int]]:
    """-> (the run, --plot, --measure, --gpus). Its data is None if no rank is to be planned.

    Raises UserError for a --plot that cannot be drawn.
    """
    parser = make_parser("plan.py", __doc__)
    add_flags(
        parser, Config, only=TRAIN_FLAGS,
        model={"help": "folder, config.json, hub repository (only config.json is fetched), or the "
                       "embedded nano"},
        data={"help": "name under data/, or folder with train.jsonl and test.jsonl, to plan the "
                      "rank for; default: none", "default": None},
        max_steps={"help": "optimizer steps; default: 200"})
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
    config = settled(asked, n_train=1)
    dtype = "bfloat16" if asked.dtype == "auto" else config.dtype
    on_gpu = replace(config, device="cuda", dtype=dtype)
    c = ModelConfig.from_pretrained(config.model, quantized=config.four_bits)
    supervised = count_supervised_tokens(config) if config.data else None
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
