"""Quantization by hand, from eight bits to QLoRA's four (Dettmers et al., arXiv 2305.14314), in the order in which one learns it.

    absmax int8        one scale a tensor           s = 127 / max|x|,  q = round(s x)
    affine int8        scale and zero point         s = 255 / (alpha - beta),  q = round(s x) + z
    block-wise         one scale for 64 weights     an outlier spoils its own block, not the tensor
    NF4                sixteen uneven levels        each as likely as the others where weights are normal
    double             the scales quantized too     32/64 bits a weight for them become 8/64 + 32/(64 * 256)

so that a weight costs 4 + 0.127 bits instead of 16. What is quantized is frozen: LoRA learns beside it, in float32. Codes,
scales and their statistics, computed on a CPU, are those of bitsandbytes 0.50 there, bit for bit, and what is saved loads there.

Shapes: n weights of a tensor, flattened; K = ceil(n / 64) blocks; a last block that is not full counts as filled up with zeros.
"""
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

from plumbing.errors import UserError

# ----- eight bits, evenly spaced ------------------------------------------------------------------------------------

def quantize_absmax(x):
    """x (..., n) -> int8 codes (..., n) and scales s (..., 1), one a row: q = round(s x), s = 127 / max|x|.

    In [-4, 4] s = 31.75: 1 becomes 32, which is 1.007874; 1.75 and 1.77 both become 56: what fell within 1 / s is one.
    """
    x = x.float()
    s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-30)       # a row of zeros has some scale, and stays zeros
    return (s * x).round().to(torch.int8), s


def dequantize_absmax(q, s):
    """-> float32, x to 1 / (2 s)."""
    return q / s


def quantize_affine(x, alpha=None, beta=None):
    """x (...) -> int8 codes, s, z: q = round(s x) + z with s = 255 / (alpha - beta), z = -round(s beta) - 128.

    alpha and beta are x's largest and smallest value, unless given. The range need not lie around zero: where absmax would
    leave codes unused on the shorter side, here beta is -128 and alpha 127.
    """
    x = x.float()
    alpha, beta = x.max() if alpha is None else torch.tensor(alpha), x.min() if beta is None else torch.tensor(beta)
    s = 255 / (alpha - beta).clamp(min=1e-30)
    z = -(s * beta).round() - 128
    return ((s * x).round() + z).clamp(-128, 127).to(torch.int8), s, z


def dequantize_affine(q, s, z):
    """-> float32, x to 1 / s: two roundings, of s x and of s beta."""
    return (q - z) / s


# ----- block by block -----------------------------------------------------------------------------------------------

def blocks(x, block_size):
    """x of any shape -> (K, block_size) in float32, filled up with zeros.

    quantize_absmax(blocks(x, 64)) is block-wise int8. With one scale for all, a single weight of 50 among weights of 0.02
    makes s = 2.54 and every other code 0; with one for 64, the other 63 are lost and the rest of the tensor is as before.
    """
    x = x.reshape(-1).float()
    return (F.pad(x, (0, -len(x) % block_size)) if len(x) % block_size else x).view(-1, block_size)


def rescaled(values, absmax, block_size):
    """values (n,), each times the absmax (K,) of its block; in place where all blocks are full."""
    if len(values) % block_size:
        return values * absmax.repeat_interleave(block_size)[:len(values)]
    return values.view(-1, block_size).mul_(absmax[:, None]).view(-1)


# ----- eight bits, unevenly spaced: what varies over orders of magnitude ---------------------------------------------

@functools.cache
def dynamic_code(signed=True, device="cpu"):
    """The 256 values of the dynamic data type in [-1, 1], or [0, 1], ascending (arXiv 2110.02861, section 2.1 and figure 2).

    Leading zero bits are the exponent, and what bits they leave the fraction: between 10^(i-7) and 10^(i-6), i = 0 .. 6, lie
    2^i values of each sign, or 2^(i+1) where there are no signs, in the middle of as many even steps. So seven orders of
    magnitude are reached, and the values that weigh most are met most exactly.
    """
    code = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, device="cpu")
        values = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        code += values.tolist() + (-values).tolist() * signed
    return torch.tensor(sorted(code), device=device)


def quantize_dynamic(x, code, block_size=256, steps=None):
    """x of any shape, code (256,) ascending -> uint8 codes of x's shape and float32 absmax (K,): x is about code[codes] * absmax.

    Each value goes to the nearest code, a tie to the lower. steps: round x / absmax to that many even steps from -1 to 1
    first, as bitsandbytes does on a CPU, where it looks the code up in a table of 65,536: the last digit of a few codes.
    """
    rows = blocks(x, block_size)
    absmax = rows.abs().amax(1)
    scaled = (rows * (1 / absmax)[:, None]).clamp_(-1, 1)
    if steps:
        scaled = -1 + 2 * ((scaled + 1) * 0.5 * (steps - 1) + 0.5).int() / (steps - 1)
    codes = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2, out_int32=True).to(torch.uint8)     # of 0 / 0: any, times 0
    return codes.view(-1)[:x.numel()].view(x.shape), absmax


def dequantize_dynamic(codes, absmax, code, block_size=256):
    """-> float32 of codes' shape: code[codes], each block times its absmax."""
    values = code.index_select(0, codes.reshape(-1).int())
    return rescaled(values, absmax, block_size).view(codes.shape)


# ----- four bits: NF4 -----------------------------------------------------------------------------------------------

def normal_quantiles():
    """NF4's sixteen values from the quantiles of N(0, 1), ascending, float64 (section 3 and appendix E of QLoRA).

    Weights are about normal, so levels at even steps of probability are used equally often. Zero has to be exact (padding,
    pruned weights), hence two halves that share it: 8 steps above, 7 below. The outermost quantile would be infinite; `p` lies
    midway between 1 - 1/32 and 1 - 1/30, half a step from the end of either half. The whole is scaled to [-1, 1].
    """
    p = 1 - (1 / 32 + 1 / 30) / 2                                                       # 0.9677083
    upper = torch.special.ndtri(torch.linspace(p, 0.5, 9, dtype=torch.float64))[:-1]    # 8 above zero
    lower = -torch.special.ndtri(torch.linspace(p, 0.5, 8, dtype=torch.float64))[:-1]   # 7 below
    values = torch.cat((lower, torch.zeros(1, dtype=torch.float64), upper)).sort().values
    return values / values.abs().max()


# The table that every implementation shares: the above, computed once in lower precision; they agree to 2e-7.
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


@functools.cache
def nf4_pairs(device):
    """Both values of each byte, (256,): two float32 seen as one int64, the first, of the high nibble, in front.

    One word to fetch for two weights, four times as fast as to take the nibbles apart and look each of them up.
    """
    code = torch.tensor(NF4, device=device)
    return torch.cartesian_prod(code, code).view(torch.int64).view(256)


def quantize_nf4(w, block_size=64, double_quant=True) -> "NF4Tensor":
    """w, any shape and any of the three float types -> NF4Tensor; block_size even. Raises UserError for a w that is not finite.

    Block by block: q = the nearest of NF4's values to w / max|w|; a tie goes to the lower. A block of zeros has absmax 0
    and code 7, the zero. double_quant: absmax, less its mean (all are positive), is quantized itself, 8 bits in blocks of 256.
    """
    rows = blocks(w, block_size)
    absmax = rows.abs().amax(1)                                                         # (K,)
    scaled = rows * (1 / absmax.clamp(min=1e-38))[:, None]
    if w.numel() % block_size:          # bitsandbytes divides in a last block that is not full, and lets its absmax be no zero
        absmax[-1].clamp_(min=1e-38)
        scaled[-1] = rows[-1] / absmax[-1]
    code = torch.tensor(NF4, device=w.device)
    if not absmax.isfinite().all():
        raise UserError("a weight is infinite or no number, and cannot be quantized; is the checkpoint sound?")
    codes = torch.bucketize(scaled.view(-1)[:w.numel() + w.numel() % 2], (code[:-1] + code[1:]) / 2, out_int32=True).to(torch.uint8)
    packed = codes[::2] << 4 | codes[1::2]                                              # two codes a byte
    if not double_quant:
        return NF4Tensor(packed, absmax, None, None, w.shape, block_size, w.dtype)
    offset = absmax.mean()
    absmax, absmax2 = quantize_dynamic(absmax - offset, dynamic_code(True, w.device), steps=65536)
    return NF4Tensor(packed, absmax, absmax2, offset, w.shape, block_size, w.dtype)


class NF4Tensor(nn.Module):
    """A weight in four bits. A module, so that it goes to another device with the layer that holds it.

        packed    uint8 (ceil(n / 2),)    two codes a byte
        absmax    uint8 (K,), the scales' codes; float32 without double quantization
        absmax2   float32 (ceil(K / 256),), the scales of the scales; None without
        offset    float32 (), the mean of the scales; None without
    """

    def __init__(self, packed, absmax, absmax2, offset, shape, block_size, dtype):
        super().__init__()
        for name, tensor in zip(("packed", "absmax", "absmax2", "offset"), (packed, absmax, absmax2, offset)):
            self.register_buffer(name, tensor)
        self.register_buffer("pairs", nf4_pairs(packed.device), persistent=False)       # the tables, where they are needed
        self.register_buffer("code", dynamic_code(True, packed.device), persistent=False)
        self.shape, self.block_size, self.dtype = torch.Size(shape), block_size, dtype      # dtype: what it is dequantized to

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.packed, self.absmax, self.absmax2, self.offset) if t is not None)

    def numel(self) -> int:
        return self.shape.numel()

    def scales(self):
        """The float32 absmax of each block, (K,)."""
        if self.absmax2 is None:
            return self.absmax
        return dequantize_dynamic(self.absmax, self.absmax2, self.code) + self.offset

    def dequantize(self, dtype=None):
        """NF4[codes] * absmax in float32, then rounded to `dtype` (None: self.dtype, at first that of w), of the old shape."""
        values = self.pairs.index_select(0, self.packed.int()).view(torch.float32)[:self.shape.numel()]         # (n,)
        return rescaled(values, self.scales(), self.block_size).to(dtype or self.dtype).view(self.shape)

    def _apply(self, fn, recurse=True):         # .half() says to what it dequantizes, and rounds no statistics
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return super()._apply(lambda t: t.to(fn(t).device), recurse)


# ----- a linear layer on it -----------------------------------------------------------------------------------------

class DequantizedLinear(torch.autograd.Function):
    """y = x W^T + b with W in four bits, x (..., in), y (..., out), in x's dtype.

    The dequantized W lives as long as the product. Autograd would keep it for dx = dy W, for all layers at once the 16-bit
    model that was to be avoided; so backward dequantizes again. W is frozen and has no gradient.
    """

    @staticmethod
    def forward(ctx, x, W: NF4Tensor, bias):
        ctx.W = W
        return F.linear(x, W.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx, dy):
        dx = dy @ ctx.W.dequantize(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None


class NF4Linear(nn.Module):
    """nn.Linear with its weight (out, in) in four bits; bias as it was."""

    def __init__(self, weight: NF4Tensor, bias=None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return DequantizedLinear.apply(x, self.weight, self.bias)


# ----- a whole model ------------------------------------------------------------------------------------------------

def quantize_model(model: nn.Module, block_size=64, double_quant=True) -> nn.Module:
    """Make every nn.Linear within `model` an NF4Linear, in place, one at a time; lm_head, embeddings and norms stay as they are."""
    for name, _ in list(model.named_modules()):
        quantize_layer(model, name, block_size, double_quant)
    return model


def quantize_layer(model: nn.Module, name: str, block_size=64, double_quant=True):
    layer = model.get_submodule(name)
    if name and isinstance(layer, nn.Linear) and not layer.weight.is_meta and "lm_head" not in name.split("."):
        model.set_submodule(name, NF4Linear(quantize_nf4(layer.weight.detach(), block_size, double_quant), layer.bias))
