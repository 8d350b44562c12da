"""The decoder of Qwen2 / Qwen2.5, Qwen3 (dense) and Llama, with Hugging Face's weights in and out.

    ids (B, T)                              sequences of tokens
    x = embedding[ids]                      (B, T, C)
    L times:  x = x + Attention(RMSNorm(x))
              x = x + SwiGLU(RMSNorm(x))
    logits = RMSNorm(x) W^T                 (B, T, V), W the unembedding

The three families are one architecture. config.json says which parts a model has:

                q, k, v bias    RMSNorm on q and k    rope_scaling        head_dim
    Qwen2/2.5   yes             no                    no                  hidden / heads
    Qwen3       if it says so   yes                   no                  given
    Llama       if it says so   no                    none or "llama3"    either

Parameter names are Hugging Face's own ("model.layers.0.self_attn.q_proj.weight"). So loading is an
assignment, and adapters need no table of names.

Training needs no padding mask. Batches are padded on the right, and under the causal mask a token
sees only what is to its left: no token of a sample ever sees padding. Padding sees the sample, but
its labels are -100, so what it computes is never used. Only `generate`, which pads on the left so
that all prompts end in the same column, needs a mask.

Shapes: B sequences, T positions, C hidden size, V vocabulary, nh query heads, nk key/value heads,
hd size of a head, S positions in the cache.
"""
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.checkpoint import read_weights, write_checkpoint
from plumbing.device import multiplies_bfloat16, send
from plumbing.errors import UserError
from plumbing.fields import Number, check, whole
from plumbing.files import check_weight, read_json, resolve
from plumbing.processes import is_shard
from plumbing.shards import shard_like

# MKL computes torch's matrix products on Intel processors. By default the order in which it adds
# depends on the number of threads, and so does the rounding. This asks for one order, so that a run
# gives the same numbers on one thread and on two. It stands here because MKL reads the variable
# only once, at its first product. With more than two threads numbers may still differ: silu and exp
# can round differently where one thread's share of a tensor ends.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# cuDNN's attention makes a plan for each shape that it meets, which takes up to a second on some
# GPUs, and here every micro-batch has a length of its own. torch's other kernels make none.
torch.backends.cuda.enable_cudnn_sdp(False)


# ----- configuration ------------------------------------------------------------------------------

@dataclass
class ModelConfig:
    vocab_size: int                 # V
    hidden_size: int                # C
    intermediate_size: int          # I, the width of the MLP
    num_hidden_layers: int          # L
    num_attention_heads: int        # nh
    num_key_value_heads: int        # nk; nh / nk query heads share one key/value head
    head_dim: int                   # hd; nh * hd need not be C
    rms_norm_eps: float
    rope_theta: float               # base of the rotary frequencies
    rope_scaling: dict | None       # Llama 3's numbers for stretching them, or None
    tie_word_embeddings: bool       # embedding and unembedding are one matrix
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool                   # Qwen3: RMSNorm on each head's q and k
    hf: dict = field(repr=False)    # config.json as it was read, for save_pretrained

    @classmethod
    def from_pretrained(cls, name_or_path, quantized=False) -> "ModelConfig":
        """The config of a folder, a config.json, or a hub repository: nothing else is fetched.

        quantized: read that of a checkpoint in four bits, too.
        """
        file = Path(name_or_path)
        if not file.is_file():
            file = resolve(name_or_path, ["config.json"]) / "config.json"
        hf = read_json(file)
        if quantized:
            hf.pop("quantization_config", None)
        return cls.from_hf(hf)

    @classmethod
    def from_hf(cls, hf: dict) -> "ModelConfig":
        """Read the content of config.json.

        Raises UserError for a model that this decoder would not compute as transformers does.
        """
        check(hf, CONFIG, "config.json")
        if hf.get("quantization_config"):
            raise UserError("this checkpoint is quantized (quantization_config). train.py reads "
                            "bitsandbytes' NF4 with --method qlora, sample.py, evaluate.py and "
                            "export.py with --nf4; otherwise give the model that it was made from")
        family, hidden, heads = hf["model_type"], hf["hidden_size"], hf["num_attention_heads"]
        kv_heads = hf.get("num_key_value_heads") or heads
        if heads % kv_heads:
            raise UserError(f"{heads} attention heads cannot share {kv_heads} key/value heads "
                            "evenly")
        head_dim = hf.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
        if head_dim < 2 or head_dim % 2:
            raise UserError(f"head_dim {head_dim}: it must be even, because RoPE turns pairs")
        kinds, layers = hf.get("layer_types"), hf["num_hidden_layers"]
        if kinds is not None and len(kinds) != layers:
            raise UserError(f"config.json: layer_types must name {layers} layers")
        rope = rope_settings(hf)
        bias = hf.get("attention_bias", False)
        return cls(
            vocab_size=hf["vocab_size"],
            hidden_size=hidden,
            intermediate_size=hf["intermediate_size"],
            num_hidden_layers=hf["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            rope_theta=rope["rope_theta"],
            rope_scaling=rope if rope["rope_type"] == "llama3" else None,
            tie_word_embeddings=hf.get("tie_word_embeddings", False),
            qkv_bias=family == "qwen2" or bias,         # Qwen2 has it without saying so
            o_bias=family != "qwen2" and bias,
            mlp_bias=family == "llama" and hf.get("mlp_bias", False),
            qk_norm=family == "qwen3",
            hf=hf)


SIZE, FACTOR = whole(1, 2 ** 24), Number(above=0)
# No value is a table: that would be RoPE for one kind of layer, and another for the next.
ROPE_ENTRIES = {str: (str, int, float, bool, list, None)}
CONFIG = {          # of config.json, what is read here
    "model_type": ("qwen2", "qwen3", "llama"),
    "hidden_act?": "silu", "use_sliding_window?": (False, None), "is_causal?": (True, None),
    "vocab_size": SIZE, "hidden_size": SIZE, "intermediate_size": SIZE,
    "num_hidden_layers": whole(1, 1000), "num_attention_heads": whole(1, 4096),
    "num_key_value_heads?": (whole(1), None), "head_dim?": (whole(2, 4096), None),
    "rms_norm_eps?": Number(above=0, at_most=1), "rope_theta?": Number(above=1),
    "rope_parameters?": (ROPE_ENTRIES, None), "rope_scaling?": (ROPE_ENTRIES, None),
    "tie_word_embeddings?": bool,
    "layer_types?": (["full_attention"], None), "attention_bias?": bool, "mlp_bias?": bool,
    "max_position_embeddings?": (whole(1), None), "eos_token_id?": (whole(), [whole()], None)}
ROPE = {"rope_type": ("default", "llama3"), "rope_theta": Number(above=1)}
LLAMA3_ROPE = ROPE | {"factor": FACTOR, "low_freq_factor": FACTOR, "high_freq_factor": FACTOR,
                      "original_max_position_embeddings": whole(1)}


def rope_settings(hf: dict) -> dict:
    """{"rope_type": "default" or "llama3", "rope_theta": ...} and, for llama3, its four numbers.

    transformers 5 writes all of them under "rope_parameters". transformers 4 wrote rope_theta at
    the top and the others, if any, under "rope_scaling". If a file has both, rope_scaling counts.
    """
    rope = {"rope_theta": hf.get("rope_theta", 10_000.0)}
    rope |= hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    rope_type = rope.setdefault("rope_type", rope.get("type", "default"))
    check(rope, LLAMA3_ROPE if rope_type == "llama3" else ROPE, "config.json", "rope_parameters")
    if rope_type == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise UserError("config.json: low_freq_factor must be below high_freq_factor")
    return rope


# ----- the parts ----------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    """y = w * x / sqrt(mean(x^2) + eps), over the last dimension (arXiv 1910.07467).

    The mean is taken in float32. In float16 the square of 300 is already infinite (the largest
    number is 65,504), and in bfloat16, with 8 bits, a sum of equal squares stops growing after 256
    of them. Like transformers, x / sqrt(...) is rounded to x's dtype before w multiplies it. Unlike
    LayerNorm it subtracts no mean and adds no bias: the scale turned out to be what matters.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return Normalise.apply(x, self.weight, self.eps)


class Normalise(torch.autograd.Function):
    """RMSNorm's arithmetic: x (..., size), w (size,) -> y (..., size).

    With h = x / rms, y = w h. In each row, g = w dy is the gradient that arrives at h, and

        dw = sum over rows of dy h          dx = (g - h mean(g h)) / rms

    because h does not change where x is stretched: dx has no part along h.

    For this backward pass autograd would keep x in float32 and, where w is trained, what w
    multiplies. Here it is x as it came and one number per row, and h is computed again. That is
    half the memory, except for a frozen w in float32, where it is the same.
    """

    @staticmethod
    def forward(ctx, x, w, eps):
        x32 = x.float()
        inverse_rms = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, w, inverse_rms)
        return w * (x32 * inverse_rms).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, w, inverse_rms = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        h = x.float() * inverse_rms
        dx = dw = None
        if need_w:
            dw = (dy * h.to(x.dtype)).flatten(0, -2).sum(0)
        if need_x:
            g = (dy * w).float()
            dx = ((g - h * (g * h).mean(-1, keepdim=True)) * inverse_rms).to(x.dtype)
        return dx, dw, None


# Rotary position embedding, RoPE (arXiv 2104.09864). The coordinates of q and k are taken in pairs,
# and at position m pair i is turned by the angle m theta_i. Call this rotation R(m). A query at
# position m meets a key at position n as
#
#     (R(m) q) . (R(n) k) = q^T R(m)^T R(n) k = q^T R(n - m) k
#
# because turning back by m and then forward by n is turning by n - m. So attention depends on how
# far apart two tokens are, not on where they stand.
#
# The paper pairs neighbours, Hugging Face pairs the two halves of a head. For hd = 6:
#
#     paper (interleaved)   (x0, x1) (x2, x3) (x4, x5)        x_2i with x_2i+1
#     here (halves)         (x0, x3) (x1, x4) (x2, x5)        x_i with x_i+hd/2
#
# It is the same model with the rows of q_proj and k_proj in another order: q . k does not change
# when both are reordered alike. Hugging Face's files hold the rows in the order for halves. Weights
# for one convention give nonsense under the other.
#
# v is not turned, because only the scores need positions. A key's angle depends on its own position
# alone, so the cache keeps keys that are turned already.

def rope_frequencies(config):
    """theta_i = base^(-2i / hd) for i = 0 .. hd/2 - 1, radians per position, (hd / 2,) in float32.

    With base 10,000 and hd = 64, pair 0 makes a full turn every 6.3 positions and tells neighbours
    apart. Pair 31 needs 47,000 positions and tells the start of a text from its end.

    Llama 3 was trained on a context of `original_max_position_embeddings` positions and stretched
    to `factor` times that. Pairs that make fewer than `low_freq_factor` turns in the old context
    would reach angles never seen in training: their frequency is divided by `factor`. Pairs that
    make more than `high_freq_factor` turns keep theirs. Between the two it is blended linearly.
    """
    i = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")      # this is 2i
    theta = 1.0 / config.rope_theta ** (i / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return theta
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * theta / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)       # 1: as it was, 0: divided by factor
    return keep * theta + (1 - keep) * theta / scaling["factor"]


def rotate(x, cos, sin):
    """Turn each pair (a, b) = (x_i, x_i+hd/2) by its angle: (a cos - b sin, b cos + a sin).

    x (B, n, T, hd) of n heads; cos, sin (B or 1, 1, T, hd / 2), the same for every head.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal softmax(q k^T / sqrt(hd)) v, with grouped query heads (GQA, arXiv 2305.13245).

    q . k is a sum of hd products. Of independent numbers of variance 1 it has the variance hd, and
    softmax of such large scores would be nearly one-hot, with nearly no gradient; / sqrt(hd) makes
    the variance 1 again. Qwen3 also normalises each head's q and k: their length is then set by the
    norm's w and not by W_q x, and scores do not drift into the one-hot range in a long training.

    Query head i uses key/value head i // (nh / nk). Qwen2.5-0.5B has nh = 14 and nk = 2: query
    heads 0 to 6 use key/value head 0, and 7 to 13 use key/value head 1.

    Fewer key/value heads make a smaller cache. Generation spends its time reading weights and
    cache, and the cache grows with context and batch. Per token it holds k and v of each layer,
    2 L nk hd numbers: here 2 * 24 * 2 * 64 = 6,144, in bfloat16 12,288 bytes. With nk = 14 it would
    be 86,016 bytes. For 32,768 tokens that is 0.4 GB instead of 2.8 GB.
    """

    def __init__(self, config):
        super().__init__()
        C, self.hd = config.hidden_size, config.head_dim
        q_size = config.num_attention_heads * self.hd
        kv_size = config.num_key_value_heads * self.hd
        self.q_proj = nn.Linear(C, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, C, bias=config.o_bias)
        norm = RMSNorm if config.qk_norm else nn.Identity   # Identity ignores its arguments
        self.q_norm = norm(self.hd, config.rms_norm_eps)
        self.k_norm = norm(self.hd, config.rms_norm_eps)

    def forward(self, x, cos, sin, mask=None, cache=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.hd)                          # (B, T, nh, hd)
        k = self.k_proj(x).view(B, T, -1, self.hd)                          # (B, T, nk, hd)
        v = self.v_proj(x).view(B, T, -1, self.hd).transpose(1, 2)          # (B, nk, T, hd)
        # under autocast cos and sin are float32, and so is what they multiply
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin).to(v.dtype)    # (B, nh, T, hd)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin).to(v.dtype)    # (B, nk, T, hd)
        if cache is not None:
            k, v = cache.append(self, k, v)                                 # (B, nk, S, hd)
        # A single token after a filled cache sees everything in it. Several tokens there need
        # `mask`, because is_causal would let the first see one column.
        causal = mask is None and (cache is None or cache.used == 0)
        # One token: the query heads that share a key stand one below the other, as tokens do. Each
        # sees all keys, so there is no triangle.
        if T == 1:
            q, causal = q.reshape(B, k.shape[1], -1, self.hd), False        # (B, nk, nh / nk, hd)
        plain = plain_is_faster(q.device.type, q.dtype, k.shape[2])
        attend = plain_attention if plain else F.scaled_dot_product_attention
        # On a GPU only FlashAttention lets heads share keys. Elsewhere the keys are repeated:
        # otherwise torch would hold all scores in float32.
        gqa = q.shape[1] != k.shape[1]
        if gqa and not q.is_cpu and (mask is not None or not has_flash(q)):
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
            gqa = False
        y = attend(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)
        y = y.reshape(B, -1, T, self.hd)                                    # (B, nh, T, hd)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))             # (B, T, C)


def plain_attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=True):
    """torch's scaled_dot_product_attention as two products and a softmax, in q's dtype.

    The nh / nk query heads that share a key head are laid one below the other, so that each product
    is one of (nh / nk * T, hd) with (hd, S), and no key is repeated.
    """
    B, nh, T, hd = q.shape
    nk, S = k.shape[1:3]
    q = (q * hd ** -0.5).reshape(B, nk, -1, hd)                         # (B, nk, nh / nk * T, hd)
    scores = (q @ k.mT).view(B, nk, -1, T, S)                           # (B, nk, nh / nk, T, S)
    if is_causal:
        attn_mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        unseen = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
        scores += unseen.masked_fill_(~attn_mask, -math.inf).unsqueeze(-3)
    p = scores.softmax(-1).view(B, nk, -1, S)                           # (B, nk, nh / nk * T, S)
    return (p @ v).view(B, nh, T, hd)


def has_flash(q) -> bool:
    """Whether FlashAttention's kernels take q: in 16 bits, on NVIDIA's GPUs from Ampere on.

    A T4, for instance, has none of them, nor has a Mac.
    """
    return (q.is_cuda and q.dtype != torch.float32
            and torch.cuda.get_device_properties(q.device).major >= 8)


def plain_is_faster(device: str, dtype: torch.dtype, keys: int) -> bool:
    """Whether `plain_attention` beats torch's own.

    torch's is FlashAttention (arXiv 2205.14135), which never holds the T x S scores. Its kernel for
    CPUs does not use the processor's products of bfloat16, except AMX's, and above all backwards it
    is slow. Both ways, 4 samples with 9 query and 3 key heads, on two cores of an AMD EPYC with
    AVX512-BF16: at T = 150 it takes 16 ms and the plain products 4 ms; at 250, 22 and 10; at 512
    both 70; at 1,024 147 and 265. In float32 the two are equal up to 250.

    Without a backward pass torch's stays, which rounds as transformers does.
    """
    return (torch.is_grad_enabled() and device == "cpu" and dtype == torch.bfloat16
            and keys <= PLAIN_UP_TO and PLAIN_PAYS)


PLAIN_UP_TO = 384
PLAIN_PAYS = multiplies_bfloat16() == "avx512"      # asked here: torch.compile cannot look into it


class MLP(nn.Module):
    """SwiGLU: W_down (silu(W_gate x) * W_up x), silu(z) = z / (1 + e^-z) (arXiv 2002.05202).

    The gate decides, number by number, how much of W_up x passes.
    """

    def __init__(self, config):
        super().__init__()
        C, I, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(C, I, bias=bias)
        self.up_proj = nn.Linear(C, I, bias=bias)
        self.down_proj = nn.Linear(I, C, bias=bias)

    def forward(self, x):
        return self.down_proj(Gate.apply(self.gate_proj(x), self.up_proj(x)))


class Gate(torch.autograd.Function):
    """silu(gate) * up. Autograd would keep gate, up and silu(gate); here silu is computed again.

    The three are what a layer keeps most of: see memory.py.
    """

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        need_gate, need_up = ctx.needs_input_grad
        dgate = torch.ops.aten.silu_backward(dy * up, gate) if need_gate else None
        dup = F.silu(gate).mul_(dy) if need_up else None
        return dgate, dup


class Layer(nn.Module):
    """Each half reads a normalised x and adds to x itself, so gradients pass the sums unchanged."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, mask=None, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


# ----- the loss -----------------------------------------------------------------------------------

def find_supervised(labels):
    """labels (B, T) -> which of the B T positions predict a supervised token, and these tokens.

    (n,) each. With the labels on the host n is known there, and it need not wait for a GPU.
    [[-100, -100, 7], [-100, 5, 6]] gives the positions 1, 3 and 4, and the tokens 7, 5 and 6.
    """
    b, t = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return b * labels.shape[1] + t, labels[b, t + 1]


class LinearNLL(torch.autograd.Function):
    """Sum over N rows of -log softmax(h W^T)[target], without ever holding all N rows of logits.

    h (N, C), W (V, C), target (N,) -> nll (), in float32.

    With logits z = h W^T, p = softmax(z) and y the one-hot target, a row's NLL is
    log(sum_j e^z_j) - z_target. The first term has the derivative e^z_i / sum_j e^z_j = p_i, the
    second y_i, so

        dNLL/dlogits = p - y        dNLL/dh = (p - y) W        dNLL/dW = (p - y)^T h

    Logits (2, 1, 0) with the first token as target give p = (0.665, 0.245, 0.090), the NLL
    -ln 0.665 = 0.408, and p - y = (-0.335, 0.245, 0.090).

    Ordinary autograd keeps the logits of all rows for the backward pass: 2.5 GB in float32 at
    V = 151,936 and N = 4,096. Here the rows are taken CHUNK at a time. p - y needs nothing but the
    logits, so both products are taken in the forward pass, while a chunk's logits exist, and the
    backward pass only multiplies them by the gradient that arrives. Nothing is computed twice.
    The products are in h's dtype. dW is summed in W's dtype, or in float32 if h is float16.
    """
    CHUNK = 512     # rows: 0.3 GB of float32 logits at V = 151,936, and as much for their softmax

    # float16 has full precision down to 2^-14 = 6e-5, and nothing below 3e-8. Of p - y = 1e-8
    # nothing would be left. A gradient scaler exists to avoid this, but its factor arrives in
    # backward, when the products are already taken. So they are taken of 2^10 (p - y), and backward
    # divides by 2^10. Why 2^10? The smallest p - 1 in float32, 2^-24, becomes 2^-14. And nothing
    # overflows: a row of |p - y| sums to at most 2, so |dh| < 2 * 2^10 max |W|, which fits for |W|
    # up to 31 (2 * 1,024 * 31 = 63,488). Trained weights are below 10.
    FLOAT16_SCALE = 2.0 ** 10

    @staticmethod
    def forward(ctx, h, W, target):
        need_h, need_W, _ = ctx.needs_input_grad
        half = h.dtype == torch.float16
        # float32 next to float16, because dW, a sum over many rows, has no such bound
        sum_dtype = torch.float32 if half else None
        dh = torch.zeros_like(h, dtype=sum_dtype) if need_h else None       # (N, C)
        dW = torch.zeros_like(W, dtype=sum_dtype) if need_W else None       # (V, C)
        nll = torch.zeros((), device=h.device)
        W = W.to(h.dtype)       # under autocast h has 16 bits and W 32
        for start in range(0, len(h), LinearNLL.CHUNK):
            rows = slice(start, start + LinearNLL.CHUNK)
            logp = (h[rows] @ W.T).float().log_softmax(-1)                  # (n, V)
            at_target = (torch.arange(len(logp), device=h.device), target[rows])
            nll -= logp[at_target].sum()
            if not (need_h or need_W):
                continue
            dlogits = logp.exp_()           # p, in the memory of log p
            dlogits[at_target] -= 1.0       # p - y
            if half:
                dlogits *= LinearNLL.FLOAT16_SCALE
            dlogits = dlogits.to(h.dtype)
            if need_h:
                dh[rows] = dlogits @ W
            if need_W:
                left, right = dlogits.T, h[rows]                            # (V, n), (n, C)
                dW += left.float() @ right.float() if half else left @ right
        ctx.save_for_backward(dh, dW)
        ctx.scale = LinearNLL.FLOAT16_SCALE if half else 1.0
        return nll

    @staticmethod
    def backward(ctx, grad):
        # float16: 2^10 leaves here, where `grad` brings the scaler's factor. All is in float32, and
        # autograd rounds what is returned to the dtypes of h and W.
        grad = grad / ctx.scale
        dh, dW = (None if d is None else d.float() * grad for d in ctx.saved_tensors)
        return dh, dW, None


# ----- what generation needs ----------------------------------------------------------------------

class Cache:
    """Keys and values of all positions so far, so that a new token needs only its own.

    Each attention layer has two buffers (B, nk, size, hd), made once and filled from the left,
    because torch.cat would copy all of it for each token. `used` columns are filled. The caller
    advances it after each pass. A caller that does not can try several continuations of one prompt:
    each overwrites the last (evaluate.label_nll).
    """

    def __init__(self, pad, padded: bool, size: int):
        self.pad = pad              # (B, 1): the column in which each sequence begins
        self.padded = padded        # whether one begins after column 0
        self.size = size
        self.used = 0
        self.kv = {}        # attention layer -> [keys, values]

    def append(self, layer, k, v):
        """Add k and v of new positions, (B, nk, T, hd); return those of all, (B, nk, S, hd)."""
        B, nk, T, hd = k.shape
        end = self.used + T
        if layer not in self.kv:
            self.kv[layer] = [t.new_empty(B, nk, self.size, hd) for t in (k, v)]
        keys, values = self.kv[layer]
        keys[:, :, self.used:end] = k
        values[:, :, self.used:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def evict_all_but(self, rows):
        """Keep the sequences in `rows` (a tensor of row numbers). This copies what is kept."""
        self.pad = self.pad[rows]
        for layer, (keys, values) in self.kv.items():
            self.kv[layer] = [keys[rows], values[rows]]


def left_padding_mask(pad, columns, S: int):
    """(B, 1, T, S): which of the columns 0 .. S-1 the tokens in `columns` (T,) see.

    pad (B, 1): sequence b begins in column pad[b]. The prompts abcd, ef and ghi make a batch of
    3 x 4 ids, where - is padding. Its mask has a row for each token, and an x (True) for each
    column that it sees:

        a b c d          - - e f          - g h i
      a x . . .        - x . . .        - x . . .
      b x x . .        - . x . .        g . x . .
      c x x x .        e . . x .        h . x x .
      d x x x x        f . . x x        i . x x x

    Padding must see something, itself: a softmax over nothing is 0 / 0 = NaN, and one NaN among the
    values spreads to all, because 0 * NaN is NaN. In later steps T = 1 and the mask is one row.
    """
    key = torch.arange(S, device=columns.device)                            # (S,)
    query = columns[:, None]                                                # (T, 1)
    causal = key <= query                                                   # (T, S)
    not_padding = key >= pad[:, :, None]                                    # (B, 1, S)
    itself = key == query                                                   # (T, S)
    return ((causal & not_padding) | itself)[:, None]                      # (B, 1, T, S)


def draw_token(logits, temperature: float, top_p: float, generator=None):
    """The next token of each sequence, (B, 1), from logits (B, V).

    top_p: draw from the smallest set of the likeliest tokens with a total probability above top_p
    (arXiv 1904.09751). For p = (0.5, 0.3, 0.2) and top_p = 0.6 the sums before each token are
    0, 0.5 and 0.8: the first two stay. The first always stays.
    """
    if temperature < 1e-6:      # nearer to 0 than the division below can tell
        return logits.argmax(-1, keepdim=True)
    p, tokens = (logits / temperature).softmax(-1).sort(descending=True)    # (B, V)
    sum_before = p.cumsum(-1) - p
    p[sum_before > top_p] = 0
    return tokens.gather(1, torch.multinomial(p, 1, generator=generator))


# ----- the model ----------------------------------------------------------------------------------

class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        # Keep only each layer's input, (B, T, C), for the backward pass, and compute the layer
        # again there: much less memory for one more forward pass of the layers. Where the backward
        # pass costs two forward passes (full fine-tuning), that is at most a third more time; with
        # LoRA, where it costs one, at most a half. memory.py counts it.
        self.gradient_checkpointing = False
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.theta = rope_frequencies(config)   # not a buffer: .half() would round it

    @classmethod
    def empty(cls, config) -> "Transformer":
        """The model on the meta device: shapes without memory."""
        with torch.device("meta"):
            return cls(config)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def virtual_ids(self) -> range:
        """Ids beyond the vocabulary that precede every sequence: of methods/prefix_embedding.py."""
        return getattr(self.model.embed_tokens, "virtual_ids", range(0))

    def tie_weights(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, ids, positions=None, mask=None, cache=None):
        """ids (B, T) -> the vectors that the unembedding is applied to, (B, T, C).

        positions (B or 1, T): default 0 .. T-1. mask (B, 1, T, S), True where a token sees another:
        default causal. cache: what came before; the new keys and values are added to it. Without
        one, virtual tokens are put in front of ids and left out of the result.
        """
        virtual = self.virtual_ids if cache is None else ()
        if virtual:
            front = torch.arange(virtual.start, virtual.stop, device=ids.device)
            front = front.expand(len(ids), -1)                              # (B, l)
            ids = torch.cat((front, ids), dim=1)                            # T is l more now
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]     # (1, T)
        if self.theta.device != ids.device:
            self.theta = self.theta.to(ids.device)
        x = self.model.embed_tokens(ids)                                    # (B, T, C)
        angles = positions[:, None, :, None] * self.theta                   # (B or 1, 1, T, hd/2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.model.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # The re-entrant kind gives no gradients if its input has none, and the output of a
                # frozen embedding has none. Random numbers are drawn by dropout alone, and .eval()
                # turns it off.
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False,
                               preserve_rng_state=self.training)
            else:
                x = layer(x, cos, sin, mask, cache)
        return self.model.norm(x[:, len(virtual):])

    def start_cache(self, rows: list[list[int]], room: int):
        """Prompts of any lengths -> ids (B, T), padded on the left, and an empty Cache.

        The cache has room for the prompts and `room` tokens after them.
        """
        rows = [[*self.virtual_ids, *row] for row in rows]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        ids = torch.tensor([[0] * n + row for n, row in zip(padding, rows)], device=self.device)
        pad = torch.tensor(padding, device=self.device)[:, None]
        return ids, Cache(pad, any(padding), longest + room)

    def hidden_after(self, ids, cache):
        """`hidden` of ids (B, T) that follow what `cache` holds; it does not advance cache.used."""
        T = ids.shape[1]
        columns = torch.arange(cache.used, cache.used + T, device=ids.device)       # (T,)
        positions = (columns - cache.pad).clamp(min=0)                              # (B, T)
        mask = None             # faster, and right for one token, or at the start
        if cache.padded or (T > 1 and cache.used):
            mask = left_padding_mask(cache.pad, columns, cache.used + T)
        return self.hidden(ids, positions, mask, cache)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, V)."""
        return self.lm_head(self.hidden(ids))

    def loss(self, ids, labels):
        """-> (sum of the NLL in nats, number of supervised tokens).

        ids, labels (B, T), aligned as Hugging Face aligns them: position t predicts labels[:, t+1],
        and -100 is not supervised. A sum and not a mean, because a caller that accumulates over
        micro-batches must divide by the tokens of all of them.

        Only supervised positions reach the unembedding. In chat data most positions are question or
        padding, and a position costs V C multiplications: at V = 151,936 and C = 896 as many as 9
        layers of Qwen2.5-0.5B.
        """
        positions, target = (send(x, ids.device) for x in find_supervised(labels))
        h = self.hidden(ids).flatten(0, 1).index_select(0, positions)       # (n, C)
        return self.nll(h, target), len(target)

    def nll(self, h, target):
        """The sum of -log p(target) in nats: h (n, C), of `hidden`, predict the tokens (n,)."""
        W, device = self.lm_head.weight, h.device.type
        if not torch.is_grad_enabled():
            W = W.detach()      # autograd tells a Function that W needs a gradient even here
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else W.dtype
        with torch.autocast(device, enabled=False):     # LinearNLL chooses its dtypes itself
            return LinearNLL.apply(h.to(dtype), W, target)

    # ----- generation -----------------------------------------------------------------------------

    def generate(self, ids, max_new_tokens: int, stop_ids=(), temperature=0.0, top_p=1.0,
                 generator=None):
        """Continue each sequence for `max_new_tokens` tokens, or until one of `stop_ids`.

        ids: a tensor (B, T), or B lists of ids of any lengths. Returns prompts and continuations in
        the same form, the stop token included. Lists may differ in length; a shorter row of a
        tensor is filled up with its stop token. temperature 0 takes the likeliest token, otherwise
        `draw_token` draws one. The same generator state gives the same tokens.
        """
        rows = ids.tolist() if torch.is_tensor(ids) else [list(row) for row in ids]
        for new in self.stream(rows, max_new_tokens, stop_ids, temperature, top_p, generator):
            for i, token in new.items():
                rows[i].append(token)
        if not torch.is_tensor(ids):
            return rows
        longest = max(map(len, rows))
        filled = [row + row[-1:] * (longest - len(row)) for row in rows]
        return torch.tensor(filled, device=ids.device)

    @torch.no_grad()
    def stream(self, rows: list[list[int]], max_new_tokens: int, stop_ids=(), temperature=0.0,
               top_p=1.0, generator=None):
        """`generate`, token by token.

        Yields {i: next token of rows[i]} for the sequences that have not ended.
        """
        ids, cache = self.start_cache(rows, max_new_tokens)
        batch = list(range(len(rows)))      # batch[b]: the index in rows of the b-th sequence
        unfinished = batch
        for _ in range(max_new_tokens):
            h = self.hidden_after(ids, cache)       # (B, T, C): all prompts, later one new token
            cache.used += ids.shape[1]
            logits = self.lm_head(h[:, -1]).float()                         # (B, V)
            ids = draw_token(logits, temperature, top_p, generator)         # (B, 1)

            tokens = dict(zip(batch, ids[:, 0].tolist()))
            yield {i: tokens[i] for i in unfinished}
            unfinished = [i for i in unfinished if tokens[i] not in stop_ids]
            if not unfinished:
                return
            # Finished sequences are computed along with the others until they are half of the
            # batch, and then evicted together, because each eviction copies the cache.
            if 2 * len(unfinished) <= len(batch):
                stay = torch.tensor([batch.index(i) for i in unfinished], device=self.device)
                ids, batch = ids[stay], unfinished
                cache.evict_all_but(stay)

    # ----- Hugging Face's files -------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path, dtype=None, device=None, each=None) -> "Transformer":
        """Load a folder or a hub repository, "owner/name" or "owner/name@revision".

        dtype None keeps the file's. The model is made on the meta device, without storage. Then one
        tensor after the other is read, cast and put in its place, so there is never a second copy.
        each(model, module_name), if given, is called after each tensor with the name of the module
        that received it, and before the first with "": this is where engine.load_quantized
        quantizes a layer, before the next weight is read. Raises UserError for files that are
        missing, damaged or do not fit the config.
        """
        folder = resolve(name_or_path)
        model = cls.empty(ModelConfig.from_pretrained(folder))
        wanted = [name for name, _ in model.named_parameters()]
        if each is not None:
            each(model, "")
        for file, name, tensor in read_weights(folder):
            if name in wanted:
                wanted.remove(name)
                model.put(name, tensor, file, dtype, device)
                if each is not None:
                    each(model, name.rpartition(".")[0])
            # some checkpoints also hold the tied unembedding, or RoPE's constants
            elif name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq"):
                raise UserError(f"{file}: {name} belongs to no model that config.json describes")
        if wanted:
            raise UserError(f"{folder}: the weights lack {wanted[0]} and "
                            f"{len(wanted) - 1} more that config.json asks for")
        model.tie_weights()     # put() replaced the embedding; the unembedding is still on meta
        return model

    def put(self, name: str, tensor, file, dtype=None, device=None):
        """Make a copy of `tensor`, read from `file`, the parameter called `name`.

        Raises UserError if it does not have the shape that the config gives it, or is no weight.
        """
        path, _, leaf = name.rpartition(".")
        module = self.get_submodule(path)
        empty = getattr(module, leaf)               # on the meta device, perhaps cut into shards
        if tensor.shape != empty.shape:
            raise UserError(f"{file}: {name} has shape {tuple(tensor.shape)}, config.json asks for "
                            f"{tuple(empty.shape)}")
        own = shard_like(tensor, empty)             # `tensor` itself, or a copy of some rows
        check_weight(file, name, own.to_local() if is_shard(own) else own)
        own = own.to(device=device, dtype=dtype, copy=own is tensor)
        setattr(module, leaf, nn.Parameter(own))

    def save_pretrained(self, folder, stop_ids=()):
        """Write config.json and model.safetensors as transformers, vLLM and llama.cpp read them.

        `stop_ids` join config.json's eos_token_id, so that generation stops there where it stops
        here. Raises UserError for a quantized model.
        """
        if next(self.buffers(), None) is not None:      # only quantized layers have buffers
            raise UserError("the model has weights that are not parameters (quantized ones); "
                            "engine.save_quantized writes these")
        hf = dict(self.config.hf)
        if stop_ids:
            eos = hf.get("eos_token_id")
            eos = eos if isinstance(eos, list) else [eos]
            hf["eos_token_id"] = sorted({*stop_ids, *eos} - {None})
        # a tied unembedding is one parameter with the embedding, and is written once
        write_checkpoint(folder, dict(self.named_parameters()), hf)
