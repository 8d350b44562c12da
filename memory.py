"""What a step of training holds on its device, term by term, from config.json alone.

On one device all of a run must fit. In GB of 10^9 bytes, with AdamW, 4 x 512
tokens per micro-batch and rank 64 on all linear layers:

               Llama-3.2-1B (1.24e9 parameters)  Qwen2.5-7B (7.62e9 parameters)
                  full    LoRA    LoRA   QLoRA      full   LoRA   LoRA  QLoRA
                  fp32    fp32    bf16    bf16      fp32   fp32   bf16   bf16
    weights       4.94    4.94    2.47    1.03     30.46  30.46  15.23   5.55
    adapters      0.00    0.18    0.18    0.18      0.00   0.65   0.65   0.65
    optimizer     9.89    0.36    0.36    0.36     60.92   1.29   1.29   1.29
    gradients     4.94    0.18    0.18    0.18     30.46   0.65   0.65   0.65
    activations   5.66    5.70    2.74    2.74     20.47  20.54   9.89   9.89
    temporary     2.40    0.82    0.94    0.94      4.73   0.99   1.12   1.12
    peak         27.83   12.19    6.87    5.43    147.05  54.58  28.83  19.14

Weights, gradients, optimizer: full fine-tuning in float32 takes 16 bytes per parameter, 4 for the
weight, 4 for its gradient, 8 for AdamW's two moments. LoRA freezes the weights. What is frozen has
no gradient and no moments, and 12 of the 16 bytes are gone. QLoRA makes the frozen 4 bytes half a
byte in the layers' linear maps; embeddings stay in 16 bits, which is why 1.24e9 parameters are not
0.62 GB but 1.03.

Activations: what the forward pass keeps for the backward pass. They grow with the tokens, not with
what is trained. They do not shrink under LoRA (5.66 -> 5.70), because the gradient of an adapter
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
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from communication import gathered_bytes, passes
from lora import TARGETS
from methods import Shapes, Target, find_method, setup_of
from model import LinearNLL, ModelConfig, plain_is_faster
from optim import BUCKET
from plumbing.device import DTYPES
from plumbing.fields import check
from settings import Config

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8      # per weight, scales included: 4.127 bits
MOMENT_BYTES = {                # per trained parameter, for both moments
    "adamw": 8,                         # float32
    "adamw8bit": 2 * (1 + 4 / 256)}     # a byte each, and a float32 scale per 256


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
    """Of its docstring, if it has one: where a method's file has the formula."""
    return (function.__doc__ or "").partition("\n")[0].rstrip(".")


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
    again in the backward pass. Where model.plain_attention is faster, their softmax is kept. On a
    GPU in float32 k and v are repeated for each head of q; so they are before Ampere in float16,
    which is not counted.
    """
    held, heads = 0, z.c.num_attention_heads
    formula = "2 s N (Q + K) + 4 N heads: q, k, v, output, lse"
    K = z.Q if z.on_gpu and z.config.dtype == "float32" else z.K
    if "attention" in needing:
        held = 2 * z.s * z.N * (z.Q + K) + 4 * z.N * heads
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
        positions += 8 * z.N                            # ids, which the embedding's gradient needs
        formula += "; 8 N"
    if z.virtual:
        positions += 9 * z.N                            # which ids are virtual, and their rows of P
        formula += "; 9 N"
    return [Term("kept", "  layers' inputs", starts, "t N C L", "arXiv 1604.06174"), *terms,
            Term("kept", "  positions, ids", positions, formula, "Transformer")]


# ----- temporary memory ---------------------------------------------------------------------------
# All tokens count as supervised, which takes the most memory.

def term_of_loss_gradients(z: Sizes) -> Term:
    """dNLL/dh, which LinearNLL makes in its forward pass, and the index of 8 bytes that picked h.

    (s C + 8) B (T - 1) = 3.7 MB; in full fine-tuning also dNLL/dW, 4 V C. In float16 dNLL/dh is
    kept in float32: 4 C instead of s C.
    """
    size, symbol = (4, "4") if z.config.dtype == "float16" else (z.s, "s")
    name, formula = "~ dNLL/dh", f"{symbol} C + 8 per token"
    if z.full:
        name, formula = f"{name}, dNLL/dW", f"{formula}, 4 V C"
    return Term("loss", name, (size * z.C + 8) * z.predicted + z.dW, formula, "LinearNLL")


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

def all_terms(c: ModelConfig, config: Config, gpus: int = 1) -> list[Term]:
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
    terms, total = all_terms(c, config, gpus), Counter()
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


def name_bytes(n: float) -> str:
    return f"{n / 1e6:.0f} MB" if n < 1e9 else f"{n / 1e9:.1f} GB"
