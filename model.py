"""The decoder of Qwen2 / Qwen2.5, Qwen3 (dense) and Llama, written out, with Hugging Face's weights in and out.

    ids (B, T) -> embedding -> L x [x + Attention(RMSNorm(x)), x + SwiGLU(RMSNorm(x))] -> RMSNorm -> unembedding -> (B, T, V)

The three families are one architecture; config.json says which of its parts are there:

                q, k, v bias    RMSNorm on q and k    rope_scaling        head_dim
    Qwen2/2.5   yes             no                    no                  hidden / heads
    Qwen3       no              yes                   no                  given
    Llama       no              no                    none or "llama3"    either

Parameter names are Hugging Face's own ("model.layers.0.self_attn.q_proj.weight"), so that loading is an assignment and
adapters need no table of names. There is no padding mask: batches are padded on the right, and under the causal mask a
token never sees what stands to the right of it. Only `generate`, which pads on the left, needs a mask.

Shapes: B sequences, T positions, C hidden size, V vocabulary, nh query heads, nk key/value heads, hd size of a head.
"""
import math
import os
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.checkpoint import read_weights, write_checkpoint
from plumbing.errors import UserError
from plumbing.files import read_json, resolve

# MKL adds up a matrix product in another order for another number of threads, unless it is told not to before its first use. So
# a run gives the same numbers on one thread and on two, on Intel's processors. On more, and for layers whose half is not a whole
# number of vectors, silu and exp can still round differently where a thread's share ends.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# ----- configuration ------------------------------------------------------------------------------------------------

@dataclass
class ModelConfig:
    vocab_size: int                 # V
    hidden_size: int                # C
    intermediate_size: int          # width of the MLP
    num_hidden_layers: int
    num_attention_heads: int        # nh
    num_key_value_heads: int        # nk; nh / nk query heads share one key/value head
    head_dim: int                   # hd; nh * hd need not be C
    rms_norm_eps: float
    rope_theta: float               # base of the rotary frequencies
    rope_scaling: dict | None       # Llama 3's stretching of them, or None
    tie_word_embeddings: bool       # the unembedding is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    hf: dict = field(repr=False)    # config.json as it was read, for save_pretrained

    @classmethod
    def from_hf(cls, hf: dict) -> "ModelConfig":
        """Read config.json's content. Raises UserError for what this decoder would not compute as transformers does."""
        family = hf.get("model_type")
        if family not in ("qwen2", "qwen3", "llama"):
            raise UserError(f"model_type {family!r} is not supported; it has to be qwen2, qwen3 or llama")
        if hf.get("hidden_act", "silu") != "silu":
            raise UserError(f"hidden_act {hf['hidden_act']!r} is not supported; it has to be silu")
        if hf.get("use_sliding_window"):
            raise UserError("sliding-window attention (use_sliding_window) is not supported")
        if hf.get("quantization_config"):
            raise UserError("a quantized checkpoint (quantization_config): bitsandbytes' NF4 is read by --method qlora; for other "
                            "methods, and of other kinds, give the model that it was made from")
        rope = {"rope_theta": hf.get("rope_theta", 10_000.0)} | (hf.get("rope_parameters") or hf.get("rope_scaling") or {})
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "llama3"):
            raise UserError(f"rope_scaling of type {rope_type!r} is not supported; it has to be none or llama3")
        for name in SIZES:
            if not isinstance(hf.get(name), int) or hf[name] < 1:
                raise UserError(f"config.json lacks {name!r}, or it is no whole number above 0")
        bias = hf.get("attention_bias", False)
        try:
            heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
            config = cls(
                vocab_size=hf["vocab_size"], hidden_size=hidden, intermediate_size=hf["intermediate_size"],
                num_hidden_layers=hf["num_hidden_layers"], num_attention_heads=heads,
                num_key_value_heads=hf.get("num_key_value_heads") or heads,
                head_dim=hf.get("head_dim") or (128 if family == "qwen3" else hidden // heads),
                rms_norm_eps=hf.get("rms_norm_eps", 1e-6), rope_theta=rope["rope_theta"],
                rope_scaling={key: rope[key] for key in LLAMA3} if rope_type == "llama3" else None,
                tie_word_embeddings=hf.get("tie_word_embeddings", False),
                qkv_bias=family == "qwen2" or bias, o_bias=family != "qwen2" and bias,
                mlp_bias=family == "llama" and hf.get("mlp_bias", False),
                qk_norm=family == "qwen3", hf=hf)
        except KeyError as e:
            raise UserError(f"config.json lacks {e.args[0]!r}") from None
        if heads % config.num_key_value_heads:
            raise UserError(f"{heads} attention heads cannot share {config.num_key_value_heads} key/value heads evenly")
        return config


# ----- the parts ----------------------------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    """y = w * x / sqrt(mean(x^2) + eps), in float32, rounded before the multiplication by w (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rope_frequencies(config: ModelConfig) -> torch.Tensor:
    """theta_i = base^(-2i / hd), i = 0 .. hd/2 - 1: radians a position for each pair of coordinates (arXiv 2104.09864).

    Llama 3 was trained on a context of `old` positions and stretched to `factor` times that: frequencies that turn less
    than `low` times in the old context are divided by `factor`, those that turn more than `high` times are left, and
    between them the two are blended linearly.
    """
    i = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    theta = 1.0 / config.rope_theta ** (i / config.head_dim)                                    # (hd / 2,)
    if config.rope_scaling is None:
        return theta
    s = config.rope_scaling
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    turns = s["original_max_position_embeddings"] * theta / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * theta + (1 - keep) * theta / s["factor"]


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + hd/2}) by its angle; x (B, n, T, hd), cos and sin (B or 1, 1, T, hd / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention in which groups of nh / nk query heads share a key/value head (GQA, arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, self.hd = config.hidden_size, config.head_dim
        q, kv = config.num_attention_heads * self.hd, config.num_key_value_heads * self.hd
        self.q_proj = nn.Linear(C, q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q, C, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(self.hd, config.rms_norm_eps), RMSNorm(self.hd, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x, cos, sin, mask=None, cache=None):
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.hd)).transpose(1, 2)                 # (B, nh, T, hd)
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.hd)).transpose(1, 2)                 # (B, nk, T, hd)
        v = self.v_proj(x).view(B, T, -1, self.hd).transpose(1, 2)                              # (B, nk, T, hd)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self, k, v)                                                     # (B, nk, S, hd), S so far
        causal = mask is None and T > 1             # a single new token sees all that the cache holds
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))                                 # (B, T, C)


class MLP(nn.Module):
    """SwiGLU: W_down (silu(W_gate x) * W_up x) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, I, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(C, I, bias=bias)
        self.up_proj = nn.Linear(C, I, bias=bias)
        self.down_proj = nn.Linear(I, C, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, mask=None, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Cache:
    """Keys and values of the positions so far, one buffer an attention layer, filled from the left."""

    def __init__(self, size: int):
        self.size, self.used, self.kv = size, 0, {}

    def append(self, layer, k, v):
        end = self.used + k.shape[2]
        if layer not in self.kv:
            self.kv[layer] = [t.new_empty(*t.shape[:2], self.size, t.shape[3]) for t in (k, v)]
        for buffer, new in zip(self.kv[layer], (k, v)):
            buffer[:, :, self.used:end] = new
        return [buffer[:, :, :end] for buffer in self.kv[layer]]

    def keep(self, rows):
        """Forget all sequences but `rows`."""
        self.kv = {layer: [buffer[rows] for buffer in buffers] for layer, buffers in self.kv.items()}


# ----- the loss -----------------------------------------------------------------------------------------------------

class LinearNLL(torch.autograd.Function):
    """Sum of the NLL of `target` (N,) under softmax(h W^T), h (N, C), W (V, C), a chunk of rows at a time.

    With p = softmax(h W^T) and y the one-hot target, dNLL/dlogits = p - y, so dNLL/dh = (p - y) W and
    dNLL/dW = (p - y)^T h. They cost two products with logits that are at hand in the forward pass, so they are taken
    there: the logits of one chunk are all that ever exists of the (N, V) tensor, which at V = 151,936 and N = 4,096
    would be 2.5 GB in float32, and nothing is computed twice. The products are in h's dtype, the sum dW in W's.
    """
    CHUNK = 512     # rows: 0.3 GB of float32 logits at V = 151,936, and as much again while their softmax is taken

    @staticmethod
    def forward(ctx, h, W, target):
        need_h, need_W, _ = ctx.needs_input_grad
        dh, dW = (torch.zeros_like(t) if need else None for t, need in ((h, need_h), (W, need_W)))
        nll, W = torch.zeros((), device=h.device), W.to(h.dtype)
        half = h.dtype == torch.float16         # dW is not scaled yet, and its sum over the rows could overflow there
        for start in range(0, len(h), LinearNLL.CHUNK):
            rows = slice(start, start + LinearNLL.CHUNK)
            logp = (h[rows] @ W.T).float().log_softmax(-1)                                      # (n, V)
            picked = target[rows, None]
            nll -= logp.gather(1, picked).sum()
            if need_h or need_W:
                dlogits = logp.exp_().scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=logp.dtype)).to(h.dtype)
            if need_h:
                dh[rows] = dlogits @ W
            if need_W:
                dW += dlogits.T.float() @ h[rows].float() if half else dlogits.T @ h[rows]      # (V, C)
        ctx.save_for_backward(dh, dW)
        return nll

    @staticmethod
    def backward(ctx, grad):
        return *(None if d is None else d * grad.to(d.dtype) for d in ctx.saved_tensors), None


# ----- the model ----------------------------------------------------------------------------------------------------

class Transformer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False         # keep each layer's input only, and compute the rest again backwards
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.theta = rope_frequencies(config)

    def tie_weights(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, ids, positions=None, mask=None, cache=None):
        """ids (B, T) -> what the unembedding is applied to, (B, T, C)."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]                     # (1, T)
        x = self.model.embed_tokens(ids)                                                        # (B, T, C)
        angles = positions[:, None, :, None] * self.theta.to(ids.device)                        # (B or 1, 1, T, hd / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.model.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # not the re-entrant kind: that one gives no gradients when its input, a frozen embedding's output, has none
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache)
        return self.model.norm(x)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, V)."""
        return self.lm_head(self.hidden(ids))

    def loss(self, ids, labels):
        """-> (sum of the NLL in nats, number of supervised tokens).

        ids, labels (B, T), aligned as Hugging Face does it: position t predicts labels[:, t + 1]; -100 is not supervised.
        The sum, not the mean: who accumulates gradients over micro-batches divides by the tokens of all of them.
        """
        h, target = self.hidden(ids)[:, :-1], labels[:, 1:]
        at = (target != -100).nonzero(as_tuple=True)
        W, device = self.lm_head.weight, ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W.dtype
        with torch.autocast(device, enabled=False):
            # detached where nothing is differentiated: a Function is told that W needs a gradient even there
            return LinearNLL.apply(h[at].to(dtype), W if torch.is_grad_enabled() else W.detach(), target[at]), len(at[0])

    def generate(self, ids, max_new_tokens: int, stop_ids=(), temperature: float = 0.0, top_p: float = 1.0, generator=None):
        """Continue each sequence until one of `stop_ids` (kept as its last token) or for `max_new_tokens` tokens.

        ids: a tensor (B, T), or a list of B lists of ids of any lengths. Returns the same form, prompt and continuation:
        lists end where they end, a tensor is filled up with the stop token. temperature 0 takes the likeliest token;
        otherwise tokens are drawn from the smallest set of likeliest ones whose probabilities sum to `top_p`.
        """
        rows = ids.tolist() if torch.is_tensor(ids) else [list(row) for row in ids]
        for new in self.stream(rows, max_new_tokens, stop_ids, temperature, top_p, generator):
            for i, token in new.items():
                rows[i].append(token)
        if not torch.is_tensor(ids):
            return rows
        longest = max(map(len, rows))
        return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=ids.device)

    @torch.no_grad()
    def stream(self, rows: list[list[int]], max_new_tokens: int, stop_ids=(), temperature: float = 0.0, top_p: float = 1.0,
               generator=None):
        """`generate`, a token at a time: yields {index of a sequence: its next token} for those that have not ended."""
        device, live = self.model.embed_tokens.weight.device, list(range(len(rows)))        # live: who has not ended
        T, pad = max(map(len, rows)), torch.tensor([max(map(len, rows)) - len(row) for row in rows], device=device)[:, None]
        step = torch.tensor([[0] * (T - len(row)) + row for row in rows], device=device)        # (B, T), padded on the left
        padded = bool(pad.any())                    # without padding there is nothing to mask, and attention has a faster way
        cache, at_work = Cache(T + max_new_tokens), live                                    # at_work: who is computed
        for _ in range(max_new_tokens):
            at = torch.arange(cache.used, cache.used + step.shape[1], device=device)            # places of the new tokens
            mask = None
            if padded:                              # (B, 1, T, S); padding sees itself
                seen = torch.arange(cache.used + step.shape[1], device=device)                  # places of all so far
                mask = ((seen <= at[:, None]) & (seen >= pad[..., None]) | (seen == at[:, None]))[:, None]
            h = self.hidden(step, (at - pad).clamp(min=0), mask, cache)
            cache.used += step.shape[1]
            step = pick(self.lm_head(h[:, -1]).float(), temperature, top_p, generator)          # (B, 1)
            new = {i: token for i, token in zip(at_work, step[:, 0].tolist()) if i in live}
            live = [i for i, token in new.items() if token not in stop_ids]
            yield new
            if not live:
                return
            if 2 * len(live) <= len(at_work):       # the ended ones go in heaps, for each time the cache is copied
                stay = torch.tensor([at_work.index(i) for i in live], device=device)
                step, pad, at_work = step[stay], pad[stay], live
                cache.keep(stay)

    # ----- Hugging Face's files -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path, dtype=None, device=None, each=None) -> "Transformer":
        """Load a folder or hub repository ("owner/name", "owner/name@revision"); dtype None keeps that of the file.

        The model is made without storage and each tensor is read, cast and put in its place in turn, so that there is
        never a second copy. each(model, name of a module), if given, is called after each tensor that the module receives.
        Raises UserError for files that are missing, broken or do not fit the config.
        """
        folder = resolve(name_or_path)
        with torch.device("meta"):
            model = cls(ModelConfig.from_hf(read_json(folder / "config.json")))
        wanted = {name: p.shape for name, p in model.named_parameters()}
        for file, name, tensor in read_weights(folder):
            if name in wanted:
                model.put(name, tensor.to(device=device, dtype=dtype, copy=True), wanted.pop(name), file)
                if each is not None:
                    each(model, name.rpartition(".")[0])
            elif name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq"):     # a tied copy; a constant
                raise UserError(f"{file}: {name} belongs to no model that config.json describes")
        if wanted:
            raise UserError(f"{folder}: the weights lack {next(iter(wanted))} and {len(wanted) - 1} more that config.json asks for")
        model.tie_weights()
        return model

    def put(self, name: str, tensor, shape, file):
        """Make `tensor` the parameter called `name`."""
        if tensor.shape != shape:
            raise UserError(f"{file}: {name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(shape)}")
        module, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(module), leaf, nn.Parameter(tensor))

    def save_pretrained(self, folder, stop_ids=()):
        """Write config.json and model.safetensors, as transformers, vLLM and llama.cpp's converter read them.

        `stop_ids` join config.json's eos_token_id, so that others' generation stops where ours does."""
        if next(self.buffers(), None) is not None:
            raise UserError("the model has weights that are no parameters, quantized ones; engine.save_quantized writes these")
        eos = self.config.hf.get("eos_token_id")
        eos = {"eos_token_id": sorted({*stop_ids, *(eos if isinstance(eos, list) else [eos])} - {None})} if stop_ids else {}
        write_checkpoint(folder, dict(self.named_parameters()), self.config.hf | eos)           # a tied lm_head only once


def pick(logits, temperature, top_p, generator):
    """The next token of each row of logits (B, V): (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    p[p.cumsum(-1) - p > top_p] = 0                 # the first token is always kept
    return order.gather(1, torch.multinomial(p, 1, generator=generator))
