"""Quantization by hand, from eight bits to QLoRA's four, in the order in which one learns it.

    absmax int8     one scale per row            s = 127 / max|x|             q = round(s x)
    affine int8     a scale and a zero point     s = 255 / (alpha - beta)     q = round(s x) + z
    block-wise      one scale per 64 weights     an outlier harms its own block only
    dynamic         256 uneven values            for numbers of very different sizes
    NF4             16 uneven values             quantiles of N(0, 1), scaled to [-1, 1]
    double          the scales quantized too     0.127 bits per weight for them instead of 0.5

QLoRA (Dettmers et al., arXiv 2305.14314) uses the last four. A weight then takes 4 bits for its
code, 8 / 64 for its block's scale, and 32 / (64 * 256) for the float32 scale that 256 scales share:
4.127 in all. A float32 scale per block would cost 32 / 64 = 0.5 bits instead of 0.127, for 7B
weights 0.33 GB more. That last scale costs 0.002 bits, so more than 256 need not share it. The
quantized weights are frozen; LoRA learns next to them in float32.

Four bits are not free: SmolLM2-135M's loss before training is 1.4595 instead of 1.2522. Four steps
later 0.152 of these 0.207 nats are left; more was not measured (results/qlora.md).

Shapes: n weights are flattened and cut into K = ceil(n / 64) blocks, the last filled up with zeros.
Codes and scales computed on a CPU are those of bitsandbytes 0.50 there, bit for bit.
"""
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

from plumbing.errors import UserError

TINY = 1e-38    # replaces a scale of 0 where we divide by it

# ----- eight bits, evenly spaced ------------------------------------------------------------------
# Absmax suits weights, which lie around zero: in [-4, 4] it has s = 31.75, and affine 31.875, too
# little gain for a zero point, which must be stored and subtracted in every product.
# Affine suits what lies to one side, such as activations after a ReLU: in [0, 4] absmax never uses
# its codes below 0; affine has s = 63.75, so its steps have half the size.
# Zero, which padding needs, is exact in absmax, and in affine if the range includes it.

def quantize_absmax(x):
    """q = round(s x) with s = 127 / max|x|: x (..., n) -> int8 codes (..., n), scales s (..., 1).

    With s = 31.75, 1 becomes 32, that is 32 / 31.75 = 1.007874. Both 1.75 and 1.77 become 56.
    """
    x = x.float()
    absmax = x.abs().amax(-1, keepdim=True)
    s = 127 / absmax.clamp(min=1e-30)       # a row of zeros gets some scale, and stays zeros
    return (s * x).round().to(torch.int8), s


def dequantize_absmax(q, s):
    """-> float32, off by at most half a step, 1 / (2 s)."""
    return q / s


def quantize_affine(x):
    """q = round(s x) + z: x of any shape -> int8 codes of that shape, s, z.

    s = 255 / (alpha - beta),  z = -round(s beta) - 128, alpha and beta x's largest and smallest
    value: beta becomes -128 and alpha 127. With alpha = 4 and beta = -3, s = 36.4286 and
    z = 109 - 128 = -19; 1 becomes 36 - 19 = 17, which stands for (17 + 19) / 36.4286 = 0.988235.
    """
    x = x.float()
    alpha, beta = x.max(), x.min()
    s = 255 / (alpha - beta).clamp(min=1e-30)   # if all x are one number below 1e6, it stays so
    z = -(s * beta).round() - 128
    q = (s * x).round() + z             # up to 128, where s alpha and s beta end in .5
    return q.clamp(-128, 127).to(torch.int8), s, z


def dequantize_affine(q, s, z):
    """-> float32, off by at most half a step, 1 / (2 s)."""
    return (q - z) / s


# ----- block by block -----------------------------------------------------------------------------
# Let one weight be 50 and all others 0.02. If all share the scale s = 127 / 50 = 2.54, 0.02 becomes
# round(0.05) = 0, and every small weight is lost. If each block of 64 weights has its own scale,
# quantize_absmax(split_into_blocks(x, 64)), only the 63 in the block of the 50 are lost.

# Why 64? A smaller block has a smaller max|w|, so smaller steps, but more scales must be stored.
# Bits per weight for the scales, and the root mean square error of NF4 on N(0, 1) weights:
#
#     block   float32 scales   double-quantized   error
#        32             1.0               0.254   0.0874      5 % less error for another 1/8 bit
#        64             0.5               0.127   0.0920      QLoRA's choice
#       128             0.25              0.063   0.0956      4 % more error, 1/16 bit saved

def split_into_blocks(x, block_size):
    """x of any shape -> float32 (K, block_size), the last block filled up with zeros."""
    x = x.reshape(-1).float()
    missing = -len(x) % block_size
    if missing:
        x = F.pad(x, (0, missing))
    return x.view(-1, block_size)


def multiply_blocks(values, absmax, block_size, dtype=torch.float32):
    """values (n,), each times the absmax (K,) of its block, rounded to dtype.

    values, in float32, may be overwritten.
    """
    if len(values) % block_size:
        return (values * absmax.repeat_interleave(block_size)[:len(values)]).to(dtype)
    values = values.view(-1, block_size)
    product = values
    # A GPU rounds in the pass that multiplies: 6 bytes per value move instead of 14. A CPU makes
    # the float32 product first, and that is faster in place.
    if values.is_cuda and dtype != torch.float32:
        product = torch.empty_like(values, dtype=dtype)
    return torch.mul(values, absmax[:, None], out=product).view(-1).to(dtype)


def find_nearest(x, code):
    """uint8: which value of code (ascending) is nearest to each x; a tie goes to the lower."""
    middles = (code[:-1] + code[1:]) / 2        # binary search: no tensor of all distances
    return torch.bucketize(x, middles, out_int32=True).to(torch.uint8)


# ----- eight bits, unevenly spaced ----------------------------------------------------------------
# For numbers that differ by orders of magnitude: the scales below, and Adam's moments in optim.py.

@functools.cache
def dynamic_code(signed=True, device="cpu"):
    """The 256 values of the dynamic data type, ascending, in [-1, 1], or [0, 1] if not signed.

    Section 2.1 and figure 2 of Dettmers et al., arXiv 2110.02861. One byte, worked through:

        0      00         1           1010
        sign   exponent   indicator   fraction

    Two zeros mean 10^-2, and the 1 marks their end. The fraction cuts [0.1, 1] into 16 parts; 1010
    is part 10, from 0.6625 to 0.71875. Its middle is the value: 0.690625 * 10^-2 = 0.00690625. What
    is stored is not this pattern, but the value's place among the 256 in order, here 153.

    So 10^(i - 6) leaves i bits for the fraction, i = 0 .. 6: large values have the finest steps.
    Without a sign the fraction has one more bit. Two patterns are left over; they are 0 and 1.
    """
    code = [0.0, 1.0]
    for i in range(7):
        parts = 2 ** i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, parts + 1, device="cpu")
        values = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        code += values.tolist()
        if signed:
            code += (-values).tolist()
    return torch.tensor(sorted(code), device=device)


def quantize_dynamic(x, code, block_size=256, steps=None):
    """Block-wise: x of any shape, code (256,) -> uint8 codes of x's shape, float32 absmax (K,).

    x is about code[codes] * absmax. steps: first round x / absmax to that many even steps, as
    bitsandbytes does on a CPU with 65,536. A few codes move by one.
    """
    rows = split_into_blocks(x, block_size)                                 # (K, block_size)
    absmax = rows.abs().amax(1)                                             # (K,)
    # An all-zero block gives NaN here; its code is multiplied by 0.
    scaled = (rows * (1 / absmax)[:, None]).clamp_(-1, 1)
    if steps:
        step = ((scaled + 1) * 0.5 * (steps - 1) + 0.5).int()               # 0 .. steps - 1
        scaled = -1 + 2 * step / (steps - 1)
    codes = find_nearest(scaled, code)
    return codes.view(-1)[:x.numel()].view(x.shape), absmax


def dequantize_dynamic(codes, absmax, code, block_size=256):
    """-> float32 of codes' shape: code[codes], times the absmax of each block."""
    values = code.index_select(0, codes.reshape(-1).int())
    return multiply_blocks(values, absmax, block_size).view(codes.shape)


# ----- four bits: NF4 -----------------------------------------------------------------------------

def derive_nf4():
    """NF4's 16 values from the quantiles of N(0, 1): ascending, float64 (QLoRA, appendix E).

    Weights are about normal, so levels at even steps of probability would be used equally often if
    we divided by the standard deviation sigma. We divide by a block's maximum, which for 64 weights
    is 2.6 sigma on average, where NF4's 1 means 1.85 sigma. So the outermost code is used 1.7 % of
    the time and one near zero 9.2 %, instead of 6.25 % each (see arXiv 2306.06965).

    Zero must be exact (padding, pruned weights), so two halves share it: 7 levels below, 8 above.
    The last cannot lie at probability 1, where the quantile is infinite. In the middle of the last
    of 16 equal shares it lies at 1 - 1/32; of 15 shares (7, zero, 7), at 1 - 1/30. NF4's p is the
    mean of the two; the paper gives no reason.

    The error on N(0, 1) weights in blocks of 64 is 0.0920. With the 15 even levels k / 7 of int4 it
    would be 0.1077.
    """
    p = 1 - (1 / 32 + 1 / 30) / 2       # 0.9677083
    below = torch.linspace(1 - p, 0.5, 8, dtype=torch.float64)[:-1]     # (7,), steps of 0.0668
    above = torch.linspace(0.5, p, 9, dtype=torch.float64)              # (9,), of 0.0585, and zero
    values = torch.special.ndtri(torch.cat((below, above)))             # (16,), -1.85 to 1.85
    return values / values[-1]


# What every implementation uses: derive_nf4() in lower precision (2e-7 off).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
       -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
       0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


def quantize_nf4(w, block_size=64, double_quant=True) -> "NF4Tensor":
    """q = the nearest of NF4's values to w / max|w|, block by block; a tie goes to the lower.

    With max|w| = 0.08 a weight of 0.02 is 0.25, which is nearest to NF4[10] = 0.2461; it comes back
    as 0.2461 * 0.08 = 0.0197.

    w: any shape and float type; block_size: even. double_quant: the scales, less their mean because
    all are positive, are quantized too. Raises UserError if a weight is not finite.
    """
    rows = split_into_blocks(w, block_size)                                 # (K, block_size)
    absmax = rows.abs().amax(1)                                             # (K,)
    if not absmax.isfinite().all():
        raise UserError("a weight is infinite or not a number, and cannot be quantized; is the "
                        "checkpoint sound?")
    scaled = rows * (1 / absmax.clamp(min=TINY))[:, None]                   # in [-1, 1]
    if w.numel() % block_size:
        # bitsandbytes divides a last block that is not full by its absmax, which it keeps above 0.
        # The last digits differ from those of a product, and decide where ties go.
        absmax[-1].clamp_(min=TINY)
        scaled[-1] = rows[-1] / absmax[-1]
    even = w.numel() + w.numel() % 2                # one code of the padding, if n is odd
    codes = find_nearest(scaled.view(-1)[:even], torch.tensor(NF4, device=w.device))
    packed = (codes[::2] << 4) | codes[1::2]                                # two codes per byte
    absmax2 = offset = None
    if double_quant:
        offset = absmax.mean()
        code = dynamic_code(True, w.device)
        absmax, absmax2 = quantize_dynamic(absmax - offset, code, steps=65536)
    return NF4Tensor(packed, absmax, absmax2, offset, w.shape, block_size, w.dtype)


@functools.cache
def nf4_pairs(device):
    """For each of the 256 bytes its two float32 values, side by side in one int64: (256,).

    Entry 0x9F is NF4[9] = 0.1609, then NF4[15] = 1.0. Looking up m bytes gives (m,) int64. Read as
    float32 this is (2 m,), the weights in order: three times as fast as splitting each byte.
    """
    code = torch.tensor(NF4, device=device)
    return torch.cartesian_prod(code, code).view(torch.int64).view(256)     # (256, 2) before


class NF4Tensor(nn.Module):
    """A weight in four bits. A module, so that it moves between devices with its layer.

        packed    uint8 (ceil(n / 2),)          two codes per byte, the first in the upper half
        absmax    uint8 (K,)                    the scales' codes; float32 without double_quant
        absmax2   float32 (ceil(K / 256),)      the scales' scales; None without
        offset    float32 ()                    the scales' mean; None without
    """

    def __init__(self, packed, absmax, absmax2, offset, shape, block_size, dtype):
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("absmax2", absmax2)
        self.register_buffer("offset", offset)
        # The lookup tables are buffers too, because they must be on the device where they are used.
        self.register_buffer("pairs", nf4_pairs(packed.device), persistent=False)
        self.register_buffer("code", dynamic_code(True, packed.device), persistent=False)
        self.shape = torch.Size(shape)
        self.block_size = block_size
        self.dtype = dtype      # what dequantize returns

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes, without the tables, which all weights share."""
        stored = (self.packed, self.absmax, self.absmax2, self.offset)
        return sum(t.nbytes for t in stored if t is not None)

    def numel(self) -> int:
        return self.shape.numel()

    def scales(self):
        """The float32 absmax of each block, (K,)."""
        if self.absmax2 is None:
            return self.absmax
        return dequantize_dynamic(self.absmax, self.absmax2, self.code) + self.offset

    def dequantize(self, dtype=None):
        """NF4[codes] * absmax in float32, rounded to dtype (None: self.dtype), in w's shape."""
        words = self.pairs.index_select(0, self.packed.int())               # (ceil(n / 2),)
        values = words.view(torch.float32)[:self.numel()]                   # (n,)
        values = multiply_blocks(values, self.scales(), self.block_size, dtype or self.dtype)
        return values.view(self.shape)

    def _apply(self, fn, recurse=True):
        """.to(), .half() and the like call this with the function fn that converts one tensor.

        The buffers follow it to its device and keep their types. Its type becomes that of what
        `dequantize` returns.
        """
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return super()._apply(lambda t: t.to(fn(t).device), recurse)


# ----- a linear layer on it -----------------------------------------------------------------------

class DequantizedLinear(torch.autograd.Function):
    """y = x W^T + b with W in four bits: x (..., in) -> y (..., out), in x's dtype.

    The gradient dx = dy W needs W again. Autograd would keep every layer's dequantized W: 14 GB for
    7B weights, just what four bits avoid. So forward lets go of W, and backward dequantizes again.
    x is not kept either: only dW needs it, and W is frozen.

    Four bits save memory, not computation: the product is in x's dtype, and dequantizing W comes on
    top of it.
    """

    @staticmethod
    def forward(ctx, x, W: NF4Tensor, bias):
        ctx.W = W
        return F.linear(x, W.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx, dy):
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = dy @ ctx.W.dequantize(dy.dtype)                            # (..., in)
        if ctx.needs_input_grad[2]:
            db = dy.reshape(-1, dy.shape[-1]).sum(0)                        # (out,)
        return dx, None, db


class NF4Linear(nn.Module):
    """nn.Linear with its weight (out, in) in four bits; the bias stays as it was."""

    def __init__(self, weight: NF4Tensor, bias=None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias

    def forward(self, x):
        return DequantizedLinear.apply(x, self.weight, self.bias)


# ----- a whole model ------------------------------------------------------------------------------

def quantize_model(model: nn.Module, block_size=64, double_quant=True) -> nn.Module:
    """Make every nn.Linear in `model` but lm_head an NF4Linear, in place.

    lm_head stays in 16 (or 32) bits, because its rounding errors would go straight into the logits,
    and so does the embedding, which is often the same tensor and is only looked up.
    """
    for name, _ in list(model.named_modules()):
        quantize_layer(model, name, block_size, double_quant)
    return model


def quantize_layer(model: nn.Module, name: str, block_size=64, double_quant=True):
    """Make the module `name` an NF4Linear if it is a loaded nn.Linear and not lm_head."""
    layer = model.get_submodule(name)
    if not name or not isinstance(layer, nn.Linear):        # "" is the model, which has no parent
        return
    if layer.weight.is_meta or "lm_head" in name.split("."):
        return
    weight = quantize_nf4(layer.weight.detach(), block_size, double_quant)
    model.set_submodule(name, NF4Linear(weight, layer.bias))
