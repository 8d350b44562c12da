"""Quantization by hand, from eight bits to QLoRA's four, in the order in which one learns it.

    absmax int8     one scale per row            s = 127 / max|x|             q = round(s x)
    affine int8     a scale and a zero point     s = 255 / (alpha - beta)     q = round(s x) + z
    block-wise      one scale per 64 weights     an outlier harms its own block only
    dynamic         256 uneven values            for numbers of very different sizes
    NF4             16 uneven values             equally likely where weights are normal
    double          the scales quantized too     0.127 bits per weight for them instead of 0.5

QLoRA (Dettmers et al., arXiv 2305.14314) uses the last three. A weight then takes 4 bits for its
code, 8 / 64 for its block's scale, and 32 / (64 * 256) for the float32 scale that 256 scales share:
4.127 in all. The quantized weights are frozen; LoRA learns next to them in float32.

Codes and scales that are computed on a CPU are those of bitsandbytes 0.50 there, bit for bit.

Shapes: a weight of n numbers is flattened and cut into K = ceil(n / 64) blocks. A last block that
is not full counts as filled up with zeros.
"""
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

from plumbing.errors import UserError

TINY = 1e-38    # what a scale of 0 is replaced by where we divide by it

# ----- eight bits, evenly spaced ------------------------------------------------------------------
# Absmax for weights, which lie around zero: in [-4, 4] absmax has s = 31.75, affine 31.875. There
# is nothing to gain, and absmax has no zero point to store and to subtract in every product.
# Affine for what lies to one side, such as activations after a ReLU: in [0, 4] absmax has s = 31.75
# and never uses its codes below 0; affine has s = 63.75, and so steps of half the size.
# Zero is exact in both (padding needs it): round(s 0) = 0, and z is a whole number.

def quantize_absmax(x):
    """q = round(s x) with s = 127 / max|x|: x (..., n) -> int8 codes (..., n), scales s (..., 1).

    In [-4, 4] s = 31.75. 1 becomes 32, which stands for 32 / 31.75 = 1.007874. Both 1.75 and 1.77
    become 56: numbers that are closer than 1 / s cannot always be told apart.
    """
    x = x.float()
    absmax = x.abs().amax(-1, keepdim=True)
    s = 127 / absmax.clamp(min=1e-30)       # a row of zeros gets some scale, and stays zeros
    return (s * x).round().to(torch.int8), s


def dequantize_absmax(q, s):
    """-> float32, off by at most half a step, 1 / (2 s)."""
    return q / s


def quantize_affine(x, alpha=None, beta=None):
    """q = round(s x) + z: x of any shape -> int8 codes of that shape, s, z.

    s = 255 / (alpha - beta),  z = -round(s beta) - 128:  beta becomes -128 and alpha 127.
    alpha and beta are the largest and the smallest value of x, unless given; values outside are
    clipped. With alpha = 4 and beta = -3: s = 36.4286, z = 109 - 128 = -19, and 1 becomes
    36 - 19 = 17, which stands for (17 + 19) / 36.4286 = 0.988235.
    """
    x = x.float()
    alpha = x.max() if alpha is None else torch.tensor(alpha)
    beta = x.min() if beta is None else torch.tensor(beta)
    s = 255 / (alpha - beta).clamp(min=1e-30)
    z = -(s * beta).round() - 128
    q = (s * x).round() + z
    return q.clamp(-128, 127).to(torch.int8), s, z


def dequantize_affine(q, s, z):
    """-> float32, off by at most half a step, 1 / (2 s), between beta and alpha."""
    return (q - z) / s


# ----- block by block -----------------------------------------------------------------------------
# Let one weight be 50 and the others 0.02. One scale for all is s = 127 / 50 = 2.54, and 0.02
# becomes round(0.05) = 0: all are lost. With a scale per 64 weights, 63 are.
# Block-wise int8 is quantize_absmax(split_into_blocks(x, 64)).
#
# Why 64? A smaller block has a smaller max|w|, so smaller steps, but there are more scales to
# store. Bits per weight for these, and the root mean square error of NF4 on N(0, 1) weights:
#
#     block   float32 scales   double-quantized   error
#        32             1.0               0.254   0.0874      5 % less error for another 1/8 bit
#        64             0.5               0.127   0.0920      QLoRA's choice
#       128             0.25              0.063   0.0956

def split_into_blocks(x, block_size):
    """x of any shape -> float32 (K, block_size), the last block filled up with zeros."""
    x = x.reshape(-1).float()
    missing = -len(x) % block_size
    if missing:
        x = F.pad(x, (0, missing))
    return x.view(-1, block_size)


def multiply_blocks(values, absmax, block_size):
    """values (n,), each times the absmax (K,) of its block. Overwrites values if it can."""
    if len(values) % block_size:
        return values * absmax.repeat_interleave(block_size)[:len(values)]
    return values.view(-1, block_size).mul_(absmax[:, None]).view(-1)


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

    Two zeros mean 10^-2, and the 1 marks their end. The fraction 1010 is part 10 (of 0 .. 15) of
    [0.1, 1], from 0.6625 to 0.71875, and stands for its middle: 0.690625 * 10^-2 = 0.00690625.
    Stored is not this pattern, but the value's place among the 256, here 153.

    So a fraction of i bits goes with 10^(i - 6), i = 0 .. 6: large values have the finest steps,
    and seven orders of magnitude are reached. Without a sign the fraction has one bit more. Either
    way two patterns are left over; they are 0 and 1.
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

    x is about code[codes] * absmax. steps: round x / absmax to that many even steps from -1 to 1
    first. bitsandbytes does on a CPU, to look codes up in a list of 65,536; it moves a few by one.
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

    Weights are about normal, so levels at even steps of probability are used equally often. Zero
    must be exact (padding, pruned weights), so two halves share it: 8 levels above, 7 below.

    The outermost level cannot lie at probability 1, where the quantile is infinite. With a level in
    the middle of each of 16 equal shares, the last lies at 1 - 1/32; of 15 shares (7 levels, zero,
    7 levels), at 1 - 1/30. NF4 takes the mean of the two, p, for both halves (the paper gives no
    reason; arXiv 2306.06965 reads p like this). A step is (p - 1/2) / 8 = 0.0585 above zero and
    (p - 1/2) / 7 = 0.0668 below. Last, all are divided by the largest, to reach from -1 to 1.
    """
    p = 1 - (1 / 32 + 1 / 30) / 2       # 0.9677083
    upper = torch.special.ndtri(torch.linspace(p, 0.5, 9, dtype=torch.float64))[:-1]    # (8,)
    lower = -torch.special.ndtri(torch.linspace(p, 0.5, 8, dtype=torch.float64))[:-1]   # (7,)
    zero = torch.zeros(1, dtype=torch.float64)
    values = torch.cat((lower, zero, upper)).sort().values
    return values / values.abs().max()


# What every implementation uses: the above, computed once in lower precision (2e-7 off).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
       -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
       0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


def quantize_nf4(w, block_size=64, double_quant=True) -> "NF4Tensor":
    """q = the nearest of NF4's values to w / max|w|, block by block; a tie goes to the lower.

    With max|w| = 0.08 a weight of 0.02 is 0.25, which is nearest to NF4[10] = 0.2461; it comes back
    as 0.2461 * 0.08 = 0.0197. A block of zeros has absmax 0 and code 7, the zero.

    w: any shape and float type; block_size: even. double_quant: the scales are quantized too, in
    blocks of 256, after their mean is subtracted (they are all positive). Raises UserError if a
    weight is not finite.
    """
    rows = split_into_blocks(w, block_size)                                 # (K, block_size)
    absmax = rows.abs().amax(1)                                             # (K,)
    if not absmax.isfinite().all():
        raise UserError("a weight is infinite or not a number, and cannot be quantized; is the "
                        "checkpoint sound?")
    scaled = rows * (1 / absmax.clamp(min=TINY))[:, None]                   # in [-1, 1]
    if w.numel() % block_size:
        scale_last_block_as_bitsandbytes(rows, absmax, scaled)
    even = w.numel() + w.numel() % 2                # an odd number of codes gets one of the padding
    codes = find_nearest(scaled.view(-1)[:even], torch.tensor(NF4, device=w.device))
    packed = codes[::2] << 4 | codes[1::2]                                  # two codes per byte
    if not double_quant:
        return NF4Tensor(packed, absmax, None, None, w.shape, block_size, w.dtype)
    offset = absmax.mean()
    code = dynamic_code(True, w.device)
    absmax, absmax2 = quantize_dynamic(absmax - offset, code, steps=65536)
    return NF4Tensor(packed, absmax, absmax2, offset, w.shape, block_size, w.dtype)


def scale_last_block_as_bitsandbytes(rows, absmax, scaled):
    """Overwrite the last entries of absmax (K,) and scaled (K, block_size) for a block not full.

    bitsandbytes multiplies full blocks by 1 / absmax, but divides one that is not full by absmax,
    and does not let this absmax be 0. The last digits differ, and decide where ties go.
    """
    absmax[-1].clamp_(min=TINY)
    scaled[-1] = rows[-1] / absmax[-1]


@functools.cache
def nf4_pairs(device):
    """Both values of each of the 256 bytes, (256,): two float32 whose 8 bytes pass for one int64.

    The byte 0x9F holds code 9 and, in its lower half, code 15. nf4_pairs[0x9F] is the float32
    NF4[9] = 0.1609 and behind it the float32 NF4[15] = 1.0. So m bytes look up (m,) int64, and the
    same memory read as float32 is (2 m,), the weights in order. One fetch for two weights is three
    times as fast as taking the halves of each byte apart.
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
        # The lookup tables are buffers too, so that they are on the device where they are used.
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
        values = multiply_blocks(values, self.scales(), self.block_size)
        return values.to(dtype or self.dtype).view(self.shape)

    def _apply(self, fn, recurse=True):
        """.to(), .half() ... call this with what to do to a tensor. It may move our buffers, but
        not round them; a change of type is one of what `dequantize` returns."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return super()._apply(lambda t: t.to(fn(t).device), recurse)


# ----- a linear layer on it -----------------------------------------------------------------------

class DequantizedLinear(torch.autograd.Function):
    """y = x W^T + b with W in four bits: x (..., in) -> y (..., out), in x's dtype.

    The gradient dx = dy W needs W again. Autograd would keep the dequantized W of every layer until
    then: for 7B weights 14 GB in 16 bits, the model that four bits were to avoid. So W lives only
    as long as its product, and backward dequantizes again. W is frozen: there is no dW, and x need
    not be kept for it.
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
    """Make every nn.Linear in `model` an NF4Linear, in place; lm_head, embeddings, norms stay."""
    for name, _ in list(model.named_modules()):
        quantize_layer(model, name, block_size, double_quant)
    return model


def quantize_layer(model: nn.Module, name: str, block_size=64, double_quant=True):
    """Make the module `name` an NF4Linear if it is an nn.Linear with weights and not lm_head."""
    layer = model.get_submodule(name)
    if not name or not isinstance(layer, nn.Linear):        # "" is the model, which has no parent
        return
    if layer.weight.is_meta or "lm_head" in name.split("."):
        return
    weight = quantize_nf4(layer.weight.detach(), block_size, double_quant)
    model.set_submodule(name, NF4Linear(weight, layer.bias))
