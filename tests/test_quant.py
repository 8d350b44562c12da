"""Quantization against bitsandbytes, bit for bit; against the course's worked examples; and QLoRA against PEFT on both."""
import gc
import json
import os

import bitsandbytes.functional as bnb
import peft
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import quant
from lora import apply_lora, load_adapter, lora_layers, merge_lora, remove_lora, save_adapter, unmerge_lora
from model import Transformer
from plumbing.errors import UserError
from quant import (
    NF4, NF4Linear, NF4Tensor, blocks, dequantize_absmax, dequantize_affine, dequantize_dynamic, dynamic_code, load_quantized,
    normal_quantiles, quantize_absmax, quantize_affine, quantize_dynamic, quantize_model, quantize_nf4, save_quantized)

WIDE = {"hidden_size": 64, "intermediate_size": 128}     # bitsandbytes needs rows of whole blocks on a CPU
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def ids():
    return torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))


def nf4_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, NF4Linear)}


# ----- worked examples ----------------------------------------------------------------------------------------------

def test_absmax_by_hand():
    """Range [-4, 4]: s = 127 / 4 = 31.75; 1 -> 32 -> 1.007874; 1.75 and 1.77 are one weight afterwards."""
    q, s = quantize_absmax(torch.tensor([-4.0, 1, 1.75, 1.77, 0, 3]))
    assert s.item() == 31.75 and q.dtype == torch.int8 and q.tolist() == [-127, 32, 56, 56, 0, 95]
    expected = torch.tensor([-4.0, 1.007874, 1.763780, 1.763780, 0, 2.992126])
    torch.testing.assert_close(dequantize_absmax(q, s), expected, atol=1e-6, rtol=0)


def test_affine_by_hand():
    """alpha = 4, beta = -3: s = 255 / 7, z = -19; both ends are used, which absmax would not do below."""
    q, s, z = quantize_affine(torch.tensor([4.0, -3, 1, 0]))
    assert s.item() == pytest.approx(36.4286, abs=1e-4) and z.item() == -19 and q.tolist() == [127, -128, 17, -19]
    torch.testing.assert_close(dequantize_affine(q, s, z)[2:], torch.tensor([0.988235, 0.0]), atol=1e-6, rtol=0)
    q, s, z = quantize_affine(torch.tensor([1.0, 9.0, -9.0]), alpha=4.0, beta=-3.0)
    assert z.item() == -19 and q.tolist() == [17, 127, -128]        # what lies outside is clipped, and does not wrap around


def test_an_outlier_spoils_its_own_block():
    w = 0.02 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    w[1, 5] = 50.0
    whole, by_block = (dequantize_absmax(*quantize_absmax(x)).view(4, 64) for x in (w.view(1, -1), blocks(w, 64)))
    rest = [0, 2, 3]
    assert not whole[rest].any() and whole[1].count_nonzero() == 1             # everything else is lost
    assert not by_block[1, 6:].any()                                           # its own block still is
    assert (by_block[rest] - w[rest]).abs().max() <= w[rest].abs().max() / 127 / 2 + 1e-9


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_constants(dtype):
    assert not dequantize_absmax(*quantize_absmax(torch.zeros(2, 8, dtype=dtype))).any()
    assert not dequantize_affine(*quantize_affine(torch.zeros(8, dtype=dtype))).any()
    torch.testing.assert_close(dequantize_affine(*quantize_affine(torch.full((8,), 5.0, dtype=dtype))), torch.full((8,), 5.0))


def test_nf4_comes_from_the_normal_distribution():
    """The table to 2e-7; every level between zero and the last takes as much of the probability as its neighbours."""
    torch.testing.assert_close(normal_quantiles(), torch.tensor(NF4, dtype=torch.float64), atol=2e-7, rtol=0)
    phi = torch.special.ndtr(normal_quantiles() * torch.special.ndtri(torch.tensor(1 - (1 / 32 + 1 / 30) / 2, dtype=torch.float64)))
    torch.testing.assert_close(phi.diff()[:7], torch.full((7,), (phi[7] - phi[0]).item() / 7, dtype=torch.float64))
    torch.testing.assert_close(phi.diff()[7:], torch.full((8,), (phi[15] - phi[7]).item() / 8, dtype=torch.float64))


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_code(signed):
    assert torch.equal(dynamic_code(signed), bnb.create_dynamic_map(signed))


def test_bits_a_parameter():
    """4 + 8/64 + 32/(64 * 256) = 4.127, and 4.5 without double quantization."""
    w = torch.randn(1024, 1024)
    assert quantize_nf4(w).nbytes * 8 / w.numel() == pytest.approx(4.126953125 + 32 / w.numel())
    assert quantize_nf4(w, double_quant=False).nbytes * 8 / w.numel() == 4.5


# ----- against bitsandbytes -----------------------------------------------------------------------------------------

def same_as_bitsandbytes(w, block_size=64, double_quant=True):
    codes, state = bnb.quantize_4bit(w, blocksize=block_size, quant_type="nf4", compress_statistics=double_quant)
    ours = quantize_nf4(w, block_size, double_quant)
    assert torch.equal(ours.packed, codes.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    absmax = state.absmax
    if double_quant:
        assert torch.equal(ours.absmax2, state.state2.absmax) and torch.equal(ours.offset, state.offset)
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(ours.scales(), absmax)
    if w.shape[-1] % block_size == 0:       # elsewhere its CPU kernel looks up another block's absmax
        theirs = bnb.dequantize_4bit(codes, state).view(w.shape)
        assert torch.equal(ours.dequantize(), theirs) and theirs.dtype == w.dtype
    return ours


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(576, 192), (1000, 1000), (10, 100), (100, 7), (33, 63), (3, 5), (65,), (1, 1)])
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


def test_ties_go_to_the_lower_value():
    code = torch.tensor(NF4)
    middles = (code[1:] + code[:-1]) / 2
    w = F.pad(torch.cat((middles, torch.ones(1), -middles, torch.ones(1))), (0, 32))
    ours = same_as_bitsandbytes(w, double_quant=False)
    assert [byte >> 4 if i % 2 == 0 else byte & 15 for i in range(15) for byte in [int(ours.packed[i // 2])]] == list(range(15))


def test_rounding_at_a_tie_in_the_last_block():
    """bitsandbytes multiplies by 1 / absmax, and in a block that is not full divides: three ties in four go another way."""
    code, generator = torch.tensor(NF4), torch.Generator().manual_seed(0)
    for absmax in torch.rand(20, generator=generator) + 0.1:
        w = torch.cat(((code[1:] + code[:-1]) / 2 * absmax, absmax[None]))                     # 16 of 64
        same_as_bitsandbytes(torch.cat((F.pad(w, (0, 48)), w)))


def test_a_weight_that_is_not_contiguous():
    w = torch.randn(128, 64).T
    assert not w.is_contiguous()
    assert torch.equal(same_as_bitsandbytes(w.contiguous()).dequantize(), quantize_nf4(w).dequantize())


def test_every_linear_weight_of_a_real_model():
    """MODEL=folder names another one than the embedded base."""
    weights = [(name, m.weight.detach()) for name, m in Transformer.from_pretrained(os.environ.get("MODEL", "nano")).named_modules()
               if isinstance(m, nn.Linear)]
    assert len(weights) % 7 == 1
    for name, w in weights:
        same_as_bitsandbytes(w)
        same_as_bitsandbytes(w.float())


@pytest.mark.parametrize("signed", [True, False])
def test_the_nearest_dynamic_code(signed):
    """Exactly the nearest, against the (n, 256) distances; bitsandbytes' own rounding differs in few codes, by one."""
    x = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 0, 100)
    x = x if signed else x.square()
    codes, absmax = quantize_dynamic(x, dynamic_code(signed))
    assert codes.shape == x.shape and torch.equal(absmax, blocks(x, 256).abs().amax(1))
    scaled = (blocks(x, 256) / absmax[:, None]).view(-1)[:2000]
    distance = (scaled[:, None] - dynamic_code(signed)).abs()
    torch.testing.assert_close(distance.gather(1, codes.view(-1, 1).long())[:, 0], distance.amin(1), atol=1e-7, rtol=0)
    theirs, state = bnb.quantize_blockwise(x, dynamic_code(signed).clone(), blocksize=256)
    coarse, _ = quantize_dynamic(x, dynamic_code(signed), steps=65536)
    assert torch.equal(coarse, theirs)
    assert torch.equal(dequantize_dynamic(coarse, absmax, dynamic_code(signed)), bnb.dequantize_blockwise(theirs, state))


# ----- the tensor ---------------------------------------------------------------------------------------------------

def slow_dequantize(t):
    """A weight at a time."""
    n, scales, out = t.shape.numel(), t.scales().tolist(), []
    for i in range(n):
        byte = int(t.packed[i // 2])
        out.append(torch.tensor(NF4[byte >> 4 if i % 2 == 0 else byte & 15]) * torch.tensor(scales[i // t.block_size]))
    return torch.stack(out).view(t.shape)


@pytest.mark.parametrize("shape, block_size", [((4, 64), 64), ((7, 9), 64), ((6, 36), 128), ((5, 5), 2)])
def test_dequantize_against_a_slow_twin(shape, block_size):
    t = quantize_nf4(torch.randn(shape, generator=torch.Generator().manual_seed(0)), block_size)
    assert torch.equal(t.dequantize(), slow_dequantize(t))
    assert torch.equal(t.dequantize(torch.bfloat16), slow_dequantize(t).bfloat16())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad):
    w = torch.randn(64, 64)
    w[3, 3] = bad
    with pytest.raises(UserError, match="no number"):
        quantize_nf4(w)


def test_bytes_stored_as_another_type(checkpoint, ids, tmp_path):
    """bnb_4bit_quant_storage=bfloat16, which sharded training asks for."""
    model = load_quantized(checkpoint("qwen2", **WIDE))
    save_quantized(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name + quant.STATE in tensors]:
        tensors[name] = tensors[name].view(-1).view(torch.bfloat16)[:, None]
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))


def test_half_leaves_the_statistics_alone():
    t = quantize_nf4(torch.randn(64, 64))
    before = t.dequantize(torch.float32)
    t.half()
    assert t.dequantize().dtype == torch.float16
    assert t.absmax2.dtype == torch.float32 and torch.equal(t.dequantize(torch.float32), before)
    assert {b.device.type for b in t.to("meta").buffers()} == {"meta"}


# ----- the layer ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_product_with_the_dequantized_weight(bias, dtype):
    linear = nn.Linear(24, 40, bias=bias)
    layer = NF4Linear(quantize_nf4(linear.weight.detach()), linear.bias).to(dtype)
    W = layer.weight.dequantize(dtype)
    x, dy = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True), torch.randn(3, 5, 40, dtype=dtype)
    got = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    expected = torch.autograd.grad(F.linear(x, W, layer.bias), [x, *layer.parameters()], dy)
    assert torch.equal(layer(x), F.linear(x, W, layer.bias)) and len(got) == 1 + bias
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


def test_nothing_is_kept_for_the_backward_pass():
    """Neither W in 16 bits nor x: that is what the second dequantization buys. nn.Linear's frozen W would be kept."""
    kept, linear = [], nn.Linear(64, 64)
    layer = NF4Linear(quantize_nf4(linear.weight.detach()))
    x = torch.randn(2, 64, requires_grad=True)
    before = {id(o) for o in gc.get_objects() if type(o) is torch.Tensor}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert not kept
    assert {o.shape for o in gc.get_objects() if type(o) is torch.Tensor and id(o) not in before} == {y.shape}


def test_a_vector():
    layer = NF4Linear(quantize_nf4(torch.randn(8, 64)), nn.Parameter(torch.zeros(8)))
    layer(torch.randn(64)).sum().backward()
    assert layer.bias.grad.tolist() == [1] * 8


def test_it_compiles_into_one_graph():
    """Forward and backward, around an adapter; "aot_eager" needs no compiler."""
    model = quantize_model(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 128, bias=False)))
    apply_lora(model, 4)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    x = torch.randn(16, 128)
    results = []
    for f in (model, torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)):
        y = f(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [p for p in model.parameters() if p.requires_grad])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-5)


# ----- the model ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_what_is_quantized(checkpoint, family):
    folder = checkpoint(family, num_hidden_layers=3)
    model = quantize_model(Transformer.from_pretrained(folder))
    assert len(nf4_layers(model)) == 3 * 7 and isinstance(model.lm_head, nn.Linear)
    whole = Transformer.from_pretrained(folder)
    for name, layer in nf4_layers(model).items():
        linear = whole.get_submodule(name)
        assert torch.equal(layer.weight.packed, quantize_nf4(linear.weight.detach()).packed)
        assert layer.bias is None and linear.bias is None or torch.equal(layer.bias, linear.bias)


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_loading_is_quantizing_what_was_loaded_layer_by_layer(checkpoint, ids, dtype, shard, monkeypatch):
    """The same model, while never more than one linear weight is there that is not in four bits."""
    folder, whole, real = checkpoint("qwen2", shard=shard), [], quant.quantize_layer

    def watched(model, name):
        whole.append(sum(type(m) is nn.Linear and not m.weight.is_meta for m in model.model.modules()))
        real(model, name)

    expected = quantize_model(Transformer.from_pretrained(folder, dtype))(ids)
    monkeypatch.setattr(quant, "quantize_layer", watched)
    model = load_quantized(folder, dtype)
    assert torch.equal(model(ids), expected) and whole.count(1) == 14 and max(whole) == 1
    assert {p.dtype for p in model.parameters()} == {dtype} and not any(p.is_meta for p in model.parameters())


def in_transformers(folder, quantize=True, dtype=torch.float32):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **({"quantization_config": config} if quantize else {}))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_logits_are_those_of_transformers_on_bitsandbytes(checkpoint, ids, family):
    folder = checkpoint(family, **WIDE, head_dim=32)
    with torch.no_grad():
        theirs = in_transformers(folder)(ids).logits
        torch.testing.assert_close(load_quantized(folder)(ids), theirs, atol=1e-4, rtol=0)
        assert (Transformer.from_pretrained(folder)(ids) - theirs).abs().max() > 0.01


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_saved_and_loaded_without_the_16_bit_form(checkpoint, ids, tmp_path, tied, dtype):
    """By us and by transformers, which computes in the type that we did; with no weight of a layer in the file but its codes."""
    model = load_quantized(checkpoint("qwen2", tie_word_embeddings=tied, **WIDE), dtype)
    save_quantized(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(t.nbytes for name, t in tensors.items() if ".mlp." in name and name.endswith(".weight")) == 2 * 3 * 64 * 128 / 2
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_checkpoint_in_four_bits_is_used_in_another_type(checkpoint, ids, tmp_path, dtype):
    """Made in bfloat16, used in float16 where there is no bfloat16: also what it is merged into."""
    save_quantized(load_quantized(checkpoint("qwen2", **WIDE), torch.bfloat16), tmp_path)
    model = with_adapter(load_quantized(tmp_path, dtype, "cpu"), seed=1)
    with torch.no_grad():
        before = model(ids)
        with pytest.warns(UserWarning):
            merge_lora(model)
        assert before.dtype == dtype and {p.dtype for name, p in model.named_parameters() if "lora" not in name} == {dtype}
        bound = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]         # of logits up to 5
        torch.testing.assert_close(model(ids), before, atol=bound, rtol=0)


def test_without_double_quantization(checkpoint, ids, tmp_path):
    model = quantize_model(Transformer.from_pretrained(checkpoint("qwen3", **WIDE, head_dim=32)), 32, double_quant=False)
    save_quantized(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(ids), model(ids))
        torch.testing.assert_close(in_transformers(tmp_path, quantize=False)(ids).logits, model(ids), atol=1e-4, rtol=0)


def test_a_checkpoint_of_bitsandbytes_is_taken_as_it_is(checkpoint, ids, tmp_path):
    theirs = in_transformers(checkpoint("qwen2", **WIDE))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(load_quantized(tmp_path)(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="quantized"):
        Transformer.from_pretrained(tmp_path)


def test_quantized_weights_are_not_left_out_in_silence(checkpoint, tmp_path):
    with pytest.raises(UserError, match="save_quantized"):
        load_quantized(checkpoint("qwen2", **WIDE)).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["lacks", "cut", "shape", "state", "list", "type", "extra", "lm_head"])
def test_a_damaged_checkpoint_in_four_bits(checkpoint, tmp_path, damage):
    save_quantized(load_quantized(checkpoint("qwen2", **WIDE)), tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "lacks":
        del tensors[f"{name}.absmax"]
    elif damage == "cut":
        tensors[name] = tensors[name][:-1].clone()
    elif damage == "shape":
        config["intermediate_size"] = 50
    elif damage == "state":
        tensors[name + quant.STATE] = torch.zeros(9, dtype=torch.uint8)
    elif damage == "list":
        tensors[name + quant.STATE] = torch.tensor(list(b"[1]"), dtype=torch.uint8)
    elif damage == "extra":
        tensors["model.layers.9.foo"] = torch.zeros(1)
    elif damage == "lm_head":
        parts = {part: tensors[name + part].clone() for part in ("", *quant.PARTS)}
        tensors |= {f"lm_head.weight{part}": t for part, t in parts.items()}
        state = json.loads(bytes(parts[quant.STATE].tolist())) | {"shape": [320, 64]}
        parts = {"": [0] * 320 * 32, ".absmax": [0] * 320, quant.STATE: list(json.dumps(state).encode())}
        tensors |= {f"lm_head.weight{part}": torch.tensor(values, dtype=torch.uint8) for part, values in parts.items()}
    else:
        config["quantization_config"]["quant_method"] = "gptq"
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match={"type": "NF4 is read", "lm_head": "only the layers'"}.get(damage, "layers")):
        load_quantized(tmp_path)


def test_the_model_itself_and_what_lies_within_lm_head_are_left():
    assert type(quantize_model(nn.Linear(64, 64))) is nn.Linear
    model = nn.ModuleDict({"lm_head": nn.ModuleDict({"base": nn.Linear(64, 64)}), "up_proj": nn.Linear(64, 64)})
    assert list(nf4_layers(quantize_model(model))) == ["up_proj"]


def test_adapters_are_not_written_into_a_checkpoint(checkpoint, tmp_path):
    with pytest.raises(UserError, match="remove_lora"):
        save_quantized(with_adapter(load_quantized(checkpoint("qwen2"))), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_gradients_are_the_same_under_checkpointing(checkpoint, ids):
    model, grads = with_adapter(load_quantized(checkpoint("qwen2"))), []
    for model.gradient_checkpointing in (False, True):
        grads.append(torch.autograd.grad(model.loss(ids, ids)[0], [p for p in model.parameters() if p.requires_grad]))
    assert len(grads[0]) == 28 and all(torch.equal(a, b) for a, b in zip(*grads))


# ----- LoRA on it ---------------------------------------------------------------------------------------------------

def with_adapter(model, rank=4, seed=0):
    torch.manual_seed(seed)         # for A
    apply_lora(model, rank)
    for layer in lora_layers(model).values():
        layer.lora_B.data = 0.3 * torch.randn(layer.lora_B.shape)
    return model


def test_an_adapter_trained_on_four_bits_loads_in_peft_on_bitsandbytes(checkpoint, ids, tmp_path):
    """Logits, loss, and the gradient of every A and B."""
    folder = checkpoint("qwen2", **WIDE)
    model = with_adapter(load_quantized(folder))
    save_adapter(model, tmp_path, str(folder))
    theirs = peft.PeftModel.from_pretrained(in_transformers(folder), tmp_path, is_trainable=True)
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
            torch.testing.assert_close(getattr(layer, f"lora_{x}").grad, grads[f"base_model.model.{name}.lora_{x}.default.weight"],
                                       atol=1e-5, rtol=1e-4)


def test_an_adapter_of_peft_on_bitsandbytes_loads_here(checkpoint, ids, tmp_path):
    folder = checkpoint("llama", **WIDE)
    theirs = peft.get_peft_model(in_transformers(folder), peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEARS))
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    model = load_adapter(load_quantized(folder), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_merging_goes_into_the_dequantized_weights_and_says_so(checkpoint, ids, tmp_path):
    """Four bits again would round the adapter away. Unmerged, the codes are the same tensors as before."""
    model = with_adapter(load_quantized(checkpoint("qwen2", **WIDE)))
    packed = [m.packed for m in model.modules() if isinstance(m, NF4Tensor)]
    with torch.no_grad():
        before = model(ids)
        with pytest.warns(UserWarning, match="14 quantized layers are merged into their dequantized weights"):
            merge_lora(model)
        torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=0)
        assert not nf4_layers(model)
        unmerge_lora(model)
        assert torch.equal(model(ids), before)
        assert all(a is b for a, b in zip(packed, (m.packed for m in model.modules() if isinstance(m, NF4Tensor)), strict=True))
        with pytest.warns(UserWarning):
            merge_lora(model)
        remove_lora(model).save_pretrained(tmp_path)
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, before, atol=1e-4, rtol=0)
