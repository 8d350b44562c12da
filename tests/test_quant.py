"""Quantization against bitsandbytes, bit for bit; against examples by hand; QLoRA against PEFT."""
import gc
import json
import os

import bitsandbytes
import bitsandbytes.functional as bnb
import peft
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from peers import use_dequantized_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import engine
from engine import load_quantized, save_quantized
from lora import (
    apply_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    remove_lora,
    save_adapter,
    unmerge_lora,
)
from model import Transformer
from plumbing.checkpoint import BNB_PARTS, BNB_STATE
from plumbing.errors import UserError
from quant import (
    NF4,
    NF4Linear,
    NF4Tensor,
    dequantize_absmax,
    dequantize_affine,
    dequantize_dynamic,
    derive_nf4,
    dynamic_code,
    nf4_pairs,
    quantize_absmax,
    quantize_affine,
    quantize_dynamic,
    quantize_model,
    quantize_nf4,
    split_into_blocks,
)

WIDE = {"hidden_size": 64, "intermediate_size": 128}    # bitsandbytes: rows of whole blocks
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def ids():
    return torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))


def nf4_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, NF4Linear)}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ----- examples by hand ---------------------------------------------------------------------------

def test_absmax_by_hand():
    """Range [-4, 4]: s = 127 / 4 = 31.75; 1 -> 32 -> 1.007874; 1.75 and 1.77 become one weight."""
    q, s = quantize_absmax(torch.tensor([-4.0, 1, 1.75, 1.77, 0, 3]))
    assert s.item() == 31.75
    assert q.dtype == torch.int8 and q.tolist() == [-127, 32, 56, 56, 0, 95]
    expected = torch.tensor([-4.0, 1.007874, 1.763780, 1.763780, 0, 2.992126])
    torch.testing.assert_close(dequantize_absmax(q, s), expected, atol=1e-6, rtol=0)


def test_affine_by_hand():
    """alpha = 4, beta = -3: s = 255 / 7, z = -19, and both ends of the codes are used."""
    q, s, z = quantize_affine(torch.tensor([4.0, -3, 1, 0]))
    assert s.item() == pytest.approx(36.4286, abs=1e-4) and z.item() == -19
    assert q.tolist() == [127, -128, 17, -19]
    expected = torch.tensor([0.988235, 0.0])
    torch.testing.assert_close(dequantize_affine(q, s, z)[2:], expected, atol=1e-6, rtol=0)


def test_affine_does_not_wrap_around():
    """s = 127.5: s alpha rounds to 128, which no int8 holds."""
    q, s, z = quantize_affine(torch.tensor([1.0, -1.0]))
    assert z.item() == 0 and q.tolist() == [127, -128]


@pytest.mark.parametrize("low, high", [(-4.0, 4.0), (0.0, 4.0), (-3.0, 4.0), (5.0, 6.0)])
def test_which_of_the_two_has_the_smaller_steps(low, high):
    """Both are off by at most half a step; how much smaller affine's is depends on the range."""
    x = torch.linspace(low, high, 10001)
    q, s_absmax = quantize_absmax(x)
    assert (dequantize_absmax(q, s_absmax) - x).abs().max() <= 0.5 / s_absmax.item() + 1e-6
    q, s_affine, z = quantize_affine(x)
    assert (dequantize_affine(q, s_affine, z) - x).abs().max() <= 0.5 / s_affine.item() + 1e-6
    expected = 255 / 127 * max(abs(low), abs(high)) / (high - low)
    assert (s_affine / s_absmax).item() == pytest.approx(expected)


def test_an_outlier_spoils_its_own_block():
    w = 0.02 * randn(4, 64)
    w[1, 5] = 50.0
    whole = dequantize_absmax(*quantize_absmax(w.view(1, -1))).view(4, 64)
    by_block = dequantize_absmax(*quantize_absmax(split_into_blocks(w, 64)))
    rest = [0, 2, 3]
    assert not whole[rest].any() and whole[1].count_nonzero() == 1      # everything else is lost
    assert not by_block[1, 6:].any()                                    # its own block still is
    half_step = w[rest].abs().max() / 127 / 2
    assert (by_block[rest] - w[rest]).abs().max() <= half_step + 1e-9


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_constants(dtype):
    zeros, fives = torch.zeros(2, 8, dtype=dtype), torch.full((8,), 5.0, dtype=dtype)
    assert not dequantize_absmax(*quantize_absmax(zeros)).any()
    assert not dequantize_affine(*quantize_affine(zeros)).any()
    torch.testing.assert_close(dequantize_affine(*quantize_affine(fives)), torch.full((8,), 5.0))


def test_nf4_comes_from_the_normal_distribution():
    """The values to 2e-7; on either side of zero, neighbours are equally far in probability."""
    levels, p = derive_nf4(), torch.tensor(0.9677083333333333, dtype=torch.float64)
    expected = torch.tensor(NF4, dtype=torch.float64)
    torch.testing.assert_close(levels, expected, atol=2e-7, rtol=0)
    steps = torch.special.ndtr(levels * torch.special.ndtri(p)).diff()
    below, above = torch.full((7,), 0.0668154762), torch.full((8,), 0.0584635417)
    torch.testing.assert_close(steps, torch.cat((below, above)).double(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_code(signed):
    assert torch.equal(dynamic_code(signed), bnb.create_dynamic_map(signed))


def value_of_bits(bits, signed):
    """A byte of the dynamic data type, bit by bit; None for the two patterns that are left over."""
    sign = -1 if signed and bits[0] == "1" else 1
    bits = bits[1:] if signed else bits
    exponent, found, fraction = bits.partition("1")
    if not found or len(exponent) > 6:
        return None
    part = int(fraction or "0", 2)
    middle = 0.1 + 0.9 * (part + 0.5) / 2 ** len(fraction)
    return sign * middle * 10.0 ** -len(exponent)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_code_bit_by_bit(signed):
    """Each of the 256 bytes read as figure 2 of arXiv 2110.02861 draws it."""
    values = [value_of_bits(f"{byte:08b}", signed) for byte in range(256)]
    assert values.count(None) == 2
    values = sorted([v for v in values if v is not None] + [0.0, 1.0])
    torch.testing.assert_close(dynamic_code(signed), torch.tensor(values), atol=0, rtol=1e-6)
    assert value_of_bits("00011010", True) == pytest.approx(0.00690625)
    assert dynamic_code()[153].item() == pytest.approx(0.00690625)


def test_bits_per_weight():
    """4 + 8/64 + 32/(64 * 256) = 4.127, and 4.5 without double quantization."""
    w = randn(1024, 1024)
    bits = quantize_nf4(w).nbytes * 8 / w.numel()
    assert bits == pytest.approx(4.126953125 + 32 / w.numel())
    assert quantize_nf4(w, double_quant=False).nbytes * 8 / w.numel() == 4.5


@pytest.mark.parametrize("block_size, bits, error",
                         [(32, 0.254, 0.0874), (64, 0.127, 0.0920), (128, 0.063, 0.0956)])
def test_what_the_size_of_a_block_costs_and_gains(block_size, bits, error):
    """The table in quant.py, which says why 64."""
    w = randn(1024, 1024)
    t = quantize_nf4(w, block_size)
    assert t.nbytes * 8 / w.numel() - 4 == pytest.approx(bits, abs=6e-4)
    assert (t.dequantize() - w).square().mean().sqrt().item() == pytest.approx(error, abs=2e-4)


def test_even_levels_would_lose_more():
    """derive_nf4 names both errors."""
    rows = randn(16384, 64)
    absmax = rows.abs().amax(1, keepdim=True)
    int4 = (rows / absmax * 7).round() / 7 * absmax
    assert (int4 - rows).square().mean().sqrt().item() == pytest.approx(0.1077, abs=2e-4)


def test_how_often_the_codes_are_used():
    """The percentages that derive_nf4 names. Even use would be 6.25 each."""
    counts = torch.bincount(torch.tensor(unpack_nibbles(quantize_nf4(randn(1024, 1024)).packed)))
    percent = 100 * counts / counts.sum()
    assert len(percent) == 16 and percent.argmax() == 6 and percent.argmin() == 15
    assert percent.max().item() == pytest.approx(9.2, abs=0.1)
    assert percent.min().item() == pytest.approx(1.7, abs=0.1)


# ----- against bitsandbytes -----------------------------------------------------------------------

def same_as_bitsandbytes(w, block_size=64, double_quant=True):
    codes, state = bnb.quantize_4bit(w, blocksize=block_size, quant_type="nf4",
                                     compress_statistics=double_quant)
    ours = quantize_nf4(w, block_size, double_quant)
    assert torch.equal(ours.packed, codes.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    absmax = state.absmax
    if double_quant:
        assert torch.equal(ours.absmax2, state.state2.absmax)
        assert torch.equal(ours.offset, state.offset)
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(ours.scales(), absmax)
    if w.shape[-1] % block_size == 0:       # elsewhere its CPU kernel uses another block's absmax
        theirs = bnb.dequantize_4bit(codes, state).view(w.shape)
        assert theirs.dtype == w.dtype and torch.equal(ours.dequantize(), theirs)
    return ours


SHAPES = [(576, 192), (1000, 1000), (10, 100), (100, 7), (33, 63), (3, 5), (65,), (1, 1)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_weights(shape, dtype):
    generator = torch.Generator().manual_seed(len(shape) * shape[0])
    for block_size, double_quant in [(64, True), (64, False), (128, True), (32, True)]:
        w = 0.02 * torch.randn(shape, generator=generator)
        same_as_bitsandbytes(w.to(dtype), block_size, double_quant)
        w.view(-1)[::97] *= 100                                                 # outliers
        same_as_bitsandbytes(w.to(dtype), block_size, double_quant)
        w.view(-1)[-w.numel() // 2:] = 0                                        # blocks of zeros
        same_as_bitsandbytes(w.to(dtype), block_size, double_quant)
        same_as_bitsandbytes(torch.zeros(shape, dtype=dtype), block_size, double_quant)


def unpack_nibbles(packed):
    """The codes, one after the other: the upper half of each byte, then the lower."""
    codes = []
    for byte in packed.tolist():
        codes += [byte >> 4, byte & 15]
    return codes


def middles_of_nf4():
    code = torch.tensor(NF4)
    return (code[1:] + code[:-1]) / 2


def test_ties_go_to_the_lower_value():
    w = torch.cat((middles_of_nf4(), torch.ones(1), -middles_of_nf4(), torch.ones(1)))
    ours = same_as_bitsandbytes(F.pad(w, (0, 32)), double_quant=False)
    assert unpack_nibbles(ours.packed)[:15] == list(range(15))


def test_rounding_at_a_tie_in_the_last_block():
    """bitsandbytes divides by absmax in a block that is not full: 3 of 4 ties go another way."""
    for absmax in torch.rand(20, generator=torch.Generator().manual_seed(0)) + 0.1:
        w = torch.cat((middles_of_nf4() * absmax, absmax[None]))                # 16 of 64
        same_as_bitsandbytes(torch.cat((F.pad(w, (0, 48)), w)))


def test_a_weight_that_is_not_contiguous():
    w = randn(128, 64).T
    assert not w.is_contiguous()
    expected = same_as_bitsandbytes(w.contiguous()).dequantize()
    assert torch.equal(quantize_nf4(w).dequantize(), expected)


def test_every_linear_weight_of_a_real_model():
    """MODEL=folder names another one than the embedded base."""
    model = Transformer.from_pretrained(os.environ.get("MODEL", "nano"))
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linears) % 7 == 1            # seven per layer and lm_head
    for linear in linears:
        same_as_bitsandbytes(linear.weight.detach())
        same_as_bitsandbytes(linear.weight.detach().float())


@pytest.mark.parametrize("signed", [True, False])
def test_the_nearest_dynamic_code(signed):
    """Against all (n, 256) distances, and with 65,536 steps against bitsandbytes."""
    code = dynamic_code(signed)
    x = randn(20, 100) * torch.logspace(-4, 0, 100)
    x = x if signed else x.square()
    codes, absmax = quantize_dynamic(x, code)
    assert codes.shape == x.shape
    assert torch.equal(absmax, split_into_blocks(x, 256).abs().amax(1))
    scaled = (split_into_blocks(x, 256) / absmax[:, None]).view(-1)[:2000]
    distance = (scaled[:, None] - code).abs()
    chosen = distance.gather(1, codes.view(-1, 1).long())[:, 0]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-7, rtol=0)
    theirs, state = bnb.quantize_blockwise(x, code.clone(), blocksize=256)
    coarse, _ = quantize_dynamic(x, code, steps=65536)
    assert torch.equal(coarse, theirs)
    assert torch.equal(dequantize_dynamic(coarse, absmax, code),
                       bnb.dequantize_blockwise(theirs, state))


@pytest.mark.parametrize("steps", [None, 65536])
def test_a_block_of_zeros_stays_zeros(steps):
    """0 / 0 gives some code, which is multiplied by an absmax of 0."""
    code = dynamic_code()
    x = torch.cat((randn(256), torch.zeros(256)))
    codes, absmax = quantize_dynamic(x, code, steps=steps)
    back = dequantize_dynamic(codes, absmax, code)
    assert not back[256:].any() and back[:256].any()


# ----- the tensor ---------------------------------------------------------------------------------

def dequantize_slowly(t):
    """One weight at a time."""
    scales, weights = t.scales().tolist(), []
    for i, code in enumerate(unpack_nibbles(t.packed)[:t.numel()]):
        weights.append(torch.tensor(NF4[code]) * torch.tensor(scales[i // t.block_size]))
    return torch.stack(weights).view(t.shape)


def test_a_pair_is_what_the_nibbles_of_its_byte_mean():
    """All 256 bytes, and the one that the docstring works through."""
    every_byte = torch.arange(256, dtype=torch.uint8)
    expected = torch.tensor([NF4[code] for code in unpack_nibbles(every_byte)])
    assert torch.equal(nf4_pairs("cpu").view(torch.float32), expected)
    assert torch.equal(nf4_pairs("cpu")[0x9F:0xA0].view(torch.float32), torch.tensor(NF4)[[9, 15]])


@pytest.mark.parametrize("shape, block_size",
                         [((4, 64), 64), ((7, 9), 64), ((6, 36), 128), ((5, 5), 2)])
def test_dequantize_against_a_slow_twin(shape, block_size):
    t = quantize_nf4(randn(*shape), block_size)
    assert torch.equal(t.dequantize(), dequantize_slowly(t))
    assert torch.equal(t.dequantize(torch.bfloat16), dequantize_slowly(t).bfloat16())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(64, 64), (3, 33)])
def test_a_weight_that_is_not_finite_is_refused(bad, shape):
    w = randn(*shape)
    w[-1, -1] = bad
    with pytest.raises(UserError, match="not a number"):
        quantize_nf4(w)


def test_bytes_stored_as_another_type(checkpoint, ids, tmp_path):
    """bnb_4bit_quant_storage=bfloat16, which sharded training asks for."""
    model = load_quantized(checkpoint("qwen2", **WIDE))
    save_quantized(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name + BNB_STATE in tensors]:
        tensors[name] = tensors[name].view(-1).view(torch.bfloat16)[:, None]
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))


def test_half_leaves_the_statistics_alone():
    t = quantize_nf4(randn(64, 64))
    before = t.dequantize(torch.float32)
    t.half()
    assert t.dequantize().dtype == torch.float16
    assert t.absmax2.dtype == torch.float32
    assert torch.equal(t.dequantize(torch.float32), before)
    assert {b.device.type for b in t.to("meta").buffers()} == {"meta"}


# ----- the layer ----------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_product_with_the_dequantized_weight(bias, dtype):
    linear = nn.Linear(24, 40, bias=bias)
    layer = NF4Linear(quantize_nf4(linear.weight.detach()), linear.bias).to(dtype)
    W = layer.weight.dequantize(dtype)
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    dy = torch.randn(3, 5, 40, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, W, layer.bias))
    got = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    expected = torch.autograd.grad(F.linear(x, W, layer.bias), [x, *layer.parameters()], dy)
    assert len(got) == 1 + bias
    atol = 1e-5 if dtype == torch.float32 else 0.1
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_the_layer_is_linear4bit_in_training():
    """There bitsandbytes does not repack, so its product is that of its dequantized weight."""
    w, bias = 0.1 * randn(40, 64), nn.Parameter(randn(40, seed=1))
    theirs = bitsandbytes.nn.Linear4bit(64, 40, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict({"weight": w, "bias": bias.detach()})
    theirs.to("cpu").train()
    x = randn(3, 5, 64, seed=2).requires_grad_()
    y = NF4Linear(quantize_nf4(w), bias)(x)
    torch.testing.assert_close(y, theirs(x), atol=1e-5, rtol=0)
    expected = use_dequantized_weights(nn.Sequential(theirs))(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)


def test_nothing_is_kept_for_the_backward_pass():
    """Neither W nor x: that is what dequantizing twice buys. A frozen nn.Linear keeps its W."""
    kept, linear = [], nn.Linear(64, 64)
    layer = NF4Linear(quantize_nf4(linear.weight.detach()))
    x = torch.randn(2, 64, requires_grad=True)
    before = {id(o) for o in gc.get_objects() if type(o) is torch.Tensor}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert not kept
    after = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    assert {o.shape for o in after if id(o) not in before} == {y.shape}


def test_a_vector():
    layer = NF4Linear(quantize_nf4(randn(8, 64)), nn.Parameter(torch.zeros(8)))
    layer(torch.randn(64)).sum().backward()
    assert layer.bias.grad.tolist() == [1] * 8


def test_it_compiles_into_one_graph():
    """Forward and backward, around an adapter; "aot_eager" needs no compiler."""
    layers = nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 128, bias=False)
    model = with_adapter(quantize_model(nn.Sequential(*layers)), std=1.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(16, 128)
    results = []
    for f in (model, torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)):
        y = f(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), trained)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-5)


# ----- the model ----------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_what_is_quantized(checkpoint, family):
    folder = checkpoint(family, num_hidden_layers=3)
    model = quantize_model(Transformer.from_pretrained(folder))
    assert len(nf4_layers(model)) == 3 * 7 and isinstance(model.lm_head, nn.Linear)
    whole = Transformer.from_pretrained(folder)
    for name, layer in nf4_layers(model).items():
        linear = whole.get_submodule(name)
        assert torch.equal(layer.weight.packed, quantize_nf4(linear.weight.detach()).packed)
        if linear.bias is None:
            assert layer.bias is None
        else:
            assert torch.equal(layer.bias, linear.bias)


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_loading_is_quantizing_what_was_loaded_layer_by_layer(checkpoint, ids, dtype, shard,
                                                              monkeypatch):
    """The same model, and never more than one linear weight that is not in four bits."""
    folder = checkpoint("qwen2", shard=shard)
    quantize_layer, in_16_bits = engine.quantize_layer, []

    def count_first(model, name):
        linears = [m for m in model.model.modules() if type(m) is nn.Linear]
        in_16_bits.append(sum(not m.weight.is_meta for m in linears))
        quantize_layer(model, name)

    expected = quantize_model(Transformer.from_pretrained(folder, dtype))(ids)
    monkeypatch.setattr(engine, "quantize_layer", count_first)
    model = load_quantized(folder, dtype)
    assert torch.equal(model(ids), expected)
    assert in_16_bits.count(1) == 14 and max(in_16_bits) == 1
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any(p.is_meta for p in model.parameters())


def load_on_bitsandbytes(folder, dtype=torch.float32):
    """transformers' model, quantized as it is loaded."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


def load_saved_in_four_bits(folder):
    """transformers' model; the folder's config.json says that it is quantized."""
    return use_dequantized_weights(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_logits_are_those_of_transformers_on_bitsandbytes(checkpoint, ids, family):
    folder = checkpoint(family, **WIDE, head_dim=32)
    with torch.no_grad():
        theirs = use_dequantized_weights(load_on_bitsandbytes(folder))(ids).logits
        torch.testing.assert_close(load_quantized(folder)(ids), theirs, atol=1e-4, rtol=0)
        assert (Transformer.from_pretrained(folder)(ids) - theirs).abs().max() > 0.01


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_saved_and_loaded_without_the_16_bit_form(checkpoint, ids, tmp_path, tied, dtype):
    """By us and by transformers, in the type it was saved in. The file has no weight but codes."""
    model = load_quantized(checkpoint("qwen2", tie_word_embeddings=tied, **WIDE), dtype)
    save_quantized(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    mlp = [t for name, t in tensors.items() if ".mlp." in name and name.endswith(".weight")]
    assert sum(t.nbytes for t in mlp) == 2 * 3 * 64 * 128 / 2
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))
        theirs = load_saved_in_four_bits(tmp_path)
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_checkpoint_in_four_bits_is_used_in_another_type(checkpoint, ids, tmp_path, dtype):
    """Made in bfloat16, used in float16 where there is no bfloat16, and merged into that type."""
    save_quantized(load_quantized(checkpoint("qwen2", **WIDE), torch.bfloat16), tmp_path)
    model = with_adapter(load_quantized(tmp_path, dtype, "cpu"), seed=1)
    with torch.no_grad():
        before = model(ids)
        with pytest.warns(UserWarning):
            merge_lora(model)
        base = [p for name, p in model.named_parameters() if "lora" not in name]
        assert before.dtype == dtype and {p.dtype for p in base} == {dtype}
        bounds = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}    # logits up to 5
        torch.testing.assert_close(model(ids), before, atol=bounds[dtype], rtol=0)


def test_without_double_quantization(checkpoint, ids, tmp_path):
    model = Transformer.from_pretrained(checkpoint("qwen3", **WIDE, head_dim=32))
    quantize_model(model, 32, double_quant=False)
    save_quantized(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))
        theirs = load_saved_in_four_bits(tmp_path)
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


def test_a_checkpoint_of_bitsandbytes_is_taken_as_it_is(checkpoint, ids, tmp_path):
    theirs = load_on_bitsandbytes(checkpoint("qwen2", **WIDE))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = use_dequantized_weights(theirs)(ids).logits
        torch.testing.assert_close(load_quantized(tmp_path)(ids), expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="quantized"):
        Transformer.from_pretrained(tmp_path)


def test_quantized_weights_are_not_left_out_in_silence(checkpoint, tmp_path):
    with pytest.raises(UserError, match="save_quantized"):
        load_quantized(checkpoint("qwen2", **WIDE)).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def as_bytes(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def damage_weights(damage, tensors):
    """Break the tensors of a checkpoint in four bits, in place."""
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "lacks":
        del tensors[f"{name}.absmax"]
    elif damage == "cut":
        tensors[name] = tensors[name][:-1].clone()
    elif damage == "state":
        tensors[name + BNB_STATE] = torch.zeros(9, dtype=torch.uint8)
    elif damage == "list":
        tensors[name + BNB_STATE] = as_bytes("[1]")
    elif damage == "extra":
        tensors["model.layers.9.foo"] = torch.zeros(1)
    elif damage == "lm_head":       # quantized too, as no tool does it: 320 x 64, a block per row
        for part in BNB_PARTS:
            tensors["lm_head.weight" + part] = tensors[name + part].clone()
        state = json.loads(bytes(tensors[name + BNB_STATE].tolist())) | {"shape": [320, 64]}
        tensors["lm_head.weight" + BNB_STATE] = as_bytes(json.dumps(state))
        tensors["lm_head.weight.absmax"] = torch.zeros(320, dtype=torch.uint8)
        tensors["lm_head.weight.nested_absmax"] = torch.ones(2)
        tensors["lm_head.weight"] = torch.zeros(320 * 32, dtype=torch.uint8)


@pytest.mark.parametrize("damage, words", [
    ("lacks", "layers"), ("cut", "layers"), ("state", "layers"), ("list", "layers"),
    ("extra", "layers"), ("shape", "layers"), ("type", "NF4 is read"),
    ("lm_head", "only the layers'")])
def test_a_damaged_checkpoint_in_four_bits(checkpoint, tmp_path, damage, words):
    save_quantized(load_quantized(checkpoint("qwen2", **WIDE)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage_weights(damage, tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    if damage == "shape":
        config["intermediate_size"] = 50
    elif damage == "type":
        config["quantization_config"]["quant_method"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        load_quantized(tmp_path)


def test_the_model_itself_and_what_lies_within_lm_head_are_left():
    assert type(quantize_model(nn.Linear(64, 64))) is nn.Linear
    lm_head = nn.ModuleDict({"base": nn.Linear(64, 64)})
    model = nn.ModuleDict({"lm_head": lm_head, "up_proj": nn.Linear(64, 64)})
    assert list(nf4_layers(quantize_model(model))) == ["up_proj"]


def test_adapters_are_not_written_into_a_checkpoint(checkpoint, tmp_path):
    with pytest.raises(UserError, match="remove_lora"):
        save_quantized(with_adapter(load_quantized(checkpoint("qwen2"))), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_gradients_are_the_same_under_checkpointing(checkpoint, ids):
    model, grads = with_adapter(load_quantized(checkpoint("qwen2"))), []
    trained = [p for p in model.parameters() if p.requires_grad]
    for model.gradient_checkpointing in (False, True):
        grads.append(torch.autograd.grad(model.loss(ids, ids)[0], trained))
    assert len(grads[0]) == 28
    assert all(torch.equal(a, b) for a, b in zip(*grads))


# ----- LoRA on it ---------------------------------------------------------------------------------

def with_adapter(model, rank=4, seed=0, std=0.3):
    torch.manual_seed(seed)         # for A
    apply_lora(model, rank)
    for layer in lora_layers(model).values():
        layer.lora_B.data = std * torch.randn(layer.lora_B.shape)
    return model


def test_an_adapter_trained_on_four_bits_loads_in_peft_on_bitsandbytes(checkpoint, ids, tmp_path):
    """Logits, loss, and the gradient of every A and B."""
    folder = checkpoint("qwen2", **WIDE)
    model = with_adapter(load_quantized(folder))
    save_adapter(model, tmp_path, str(folder))
    theirs = load_on_bitsandbytes(folder)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    use_dequantized_weights(theirs)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
    labels = ids.clone()
    labels[:, :5] = -100
    nll, n = model.loss(ids, labels)
    loss = theirs(ids, labels=labels).loss
    torch.testing.assert_close(nll / n, loss, atol=1e-5, rtol=0)
    (nll / n).backward()
    loss.backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(grads) == 2 * 14
    for name, layer in lora_layers(model).items():
        for x in "AB":
            ours = getattr(layer, f"lora_{x}").grad
            expected = grads[f"base_model.model.{name}.lora_{x}.default.weight"]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_of_peft_on_bitsandbytes_loads_here(checkpoint, ids, tmp_path):
    folder = checkpoint("llama", **WIDE)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
    theirs = peft.get_peft_model(load_on_bitsandbytes(folder), config)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    use_dequantized_weights(theirs)
    model = load_adapter(load_quantized(folder), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_merging_goes_into_the_dequantized_weights_and_says_so(checkpoint, ids, tmp_path):
    """Four bits would round the adapter away. After unmerging, the codes are the same tensors."""
    model = with_adapter(load_quantized(checkpoint("qwen2", **WIDE)))
    packed = [m.packed for m in model.modules() if isinstance(m, NF4Tensor)]
    words = "14 quantized layers are merged into their dequantized weights"
    with torch.no_grad():
        before = model(ids)
        with pytest.warns(UserWarning, match=words):
            merge_lora(model)
        torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=0)
        merged = [layer.merged for layer in lora_layers(model).values()]
        assert [type(m) for m in merged] == [nn.Linear] * 14
        unmerge_lora(model)
        assert torch.equal(model(ids), before)
        packed_again = [m.packed for m in model.modules() if isinstance(m, NF4Tensor)]
        assert all(a is b for a, b in zip(packed, packed_again, strict=True))
        with pytest.warns(UserWarning):
            merge_lora(model)
        remove_lora(model).save_pretrained(tmp_path)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs(ids).logits, before, atol=1e-4, rtol=0)
