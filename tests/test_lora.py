"""LoRA against PEFT, both ways; its counts against the papers'; and how adapters go wrong."""
import copy
import json
import math
import random
import shutil
import subprocess
import sys

import peft
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from adapters import LINEARS, in_peft, logits, randomise_adapter
from conftest import REPO, TINY
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, ViTConfig, ViTModel

from lora import (
    LoRALinear,
    apply_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    read_adapter,
    remove_lora,
    save_adapter,
    set_adapter,
    unmerge_lora,
)
from methods.dora import DoRALinear
from methods.pissa import PiSSALinear
from model import ModelConfig, Transformer
from plumbing.errors import UserError
from quant import quantize_model


@pytest.fixture
def model(folder):
    return Transformer.from_pretrained(folder)


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(TINY["vocab_size"], (2, 20), generator=generator)


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def base_weights(model):
    return {name: p.clone() for name, p in model.named_parameters() if "lora_" not in name}


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


# ----- the layer ----------------------------------------------------------------------------------

def slow_twin(layer, x):
    """h = W x + b + s B (A x), written as it stands in the paper."""
    W, b = layer.base.weight, layer.base.bias
    BAx = torch.einsum("or,ri,...i->...o", layer.lora_B, layer.lora_A, x)
    return x @ W.T + (0 if b is None else b) + layer.scale * BAx


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_equation(shape, bias):
    layer = LoRALinear(nn.Linear(12, 7, bias=bias), rank=4, alpha=6)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), slow_twin(layer, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_rows, dtype, dropout, training, summed", [
    (200, torch.float32, 0.0, True, True), (200, torch.float32, 0.5, False, True),
    (20, torch.float32, 0.0, True, False), (200, torch.bfloat16, 0.0, True, False),
    (200, torch.float32, 0.5, True, False)])
@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear, PiSSALinear])
def test_many_rows_without_a_backward_pass_meet_the_sum(
        kind, n_rows, dtype, dropout, training, summed, monkeypatch):
    """x (W + dW)^T once instead of x W^T + s x A^T B^T, where that is less work and as exact."""
    layer = kind(nn.Linear(30, 50, dtype=dtype), rank=4, alpha=8).train(training)
    layer.dropout.p = dropout
    nn.init.normal_(layer.lora_B)
    x, slow, adapted = torch.randn(2, n_rows // 2, 30, dtype=dtype), [], kind.adapted
    monkeypatch.setattr(kind, "adapted", lambda self, x: slow.append(x) or adapted(self, x))
    with torch.no_grad():
        h = layer(x)
    assert bool(slow) != summed
    if summed:
        torch.testing.assert_close(h, adapted(layer, x), rtol=1e-5, atol=1e-5)
    slow.clear()
    layer(x)                    # it may have a backward pass
    assert slow


@pytest.mark.parametrize("alpha, rslora, scale", [
    (16, False, 2.0), (8, False, 1.0), (4, False, 0.5), (4, True, 2 ** 0.5)])
def test_the_scale(alpha, rslora, scale):
    """With alpha = r the factor is 1, whatever the rank."""
    layer = LoRALinear(nn.Linear(9, 9), 8, alpha, rslora=rslora)
    assert layer.scale == pytest.approx(scale)


def test_alpha_is_the_rank_unless_given(model):
    assert {layer.scale for layer in lora_layers(apply_lora(model, 5)).values()} == {1.0}
    remove_lora(model)
    assert {layer.scale for layer in lora_layers(apply_lora(model, 5, alpha=10)).values()} == {2.0}


def test_A_is_uniform_and_B_zero():
    """U(-1/sqrt(in), 1/sqrt(in)): bounds, mean 0, variance bound^2 / 3."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 10), 500, 500)
    A, bound = layer.lora_A.detach(), 1 / math.sqrt(400)
    assert A.dtype == torch.float32 and 0.999 * bound < A.abs().max() <= bound
    assert abs(A.mean()) < 0.005 * bound
    assert A.var() == pytest.approx(bound ** 2 / 3, rel=0.01)
    assert layer.lora_B.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_to_the_last_bit(model, ids, dtype):
    before = logits(model.to(dtype), ids)
    assert torch.equal(logits(apply_lora(model, 8, dropout=0.1), ids), before)


def test_gradients_are_those_of_autograd_on_the_sum():
    layer = LoRALinear(nn.Linear(12, 7), rank=4, alpha=6)
    nn.init.normal_(layer.lora_B)
    x, y = torch.randn(5, 12), torch.randn(5, 7)
    F.mse_loss(layer(x), y).backward()
    got = layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    layer.zero_grad()
    F.mse_loss(slow_twin(layer, x), y).backward()
    torch.testing.assert_close(got, (layer.lora_A.grad, layer.lora_B.grad))


def test_gradients_at_the_start_are_those_of_the_docstring():
    """dL/dB = s dy u^T and dL/dA = s B^T dy x^T: the first step moves B alone, the second both."""
    layer = LoRALinear(nn.Linear(12, 7), rank=4, alpha=6)
    x, dy = torch.randn(12), torch.randn(7)
    for B in (torch.zeros(7, 4), torch.randn(7, 4)):
        layer.zero_grad()
        layer.lora_B.data.copy_(B)
        layer(x).backward(dy)
        u = layer.lora_A @ x
        torch.testing.assert_close(layer.lora_B.grad, 1.5 * torch.outer(dy, u))
        torch.testing.assert_close(layer.lora_A.grad, 1.5 * torch.outer(B.T @ dy, x))


def test_a_bfloat16_base_keeps_its_adapter_in_float32(model, ids):
    apply_lora(model.bfloat16(), 4)
    randomise_adapter(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert logits(model, ids).dtype == torch.bfloat16
    model.loss(ids, ids)[0].backward()
    assert {p.grad.dtype for p in trained} == {torch.float32}


def test_autocast_gives_what_the_cast_model_gives(model, ids):
    apply_lora(model, 4)
    randomise_adapter(model)
    exact = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits(model, ids)
    assert cast.dtype == torch.bfloat16
    assert 0 < (cast - exact).abs().max() < 0.03 * exact.abs().max()


def test_dropout_is_on_the_adapter_alone_and_in_training_alone():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 8), 4, 4, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 64)
    assert torch.equal(layer.eval()(x), layer(x))
    y = torch.stack([layer.train()(x) for _ in range(4000)])
    assert y.std(0).min() > 0.1
    assert (y.mean(0) - layer.eval()(x)).abs().max() < 5 * (y.std(0) / math.sqrt(4000)).max()
    nn.init.zeros_(layer.lora_B)
    assert torch.equal(layer.train()(x), layer.base(x))


# ----- which layers -------------------------------------------------------------------------------

@pytest.mark.parametrize("targets, leaves", [
    ("all-linear", LINEARS), ("attention", LINEARS[:4]), ("mlp", LINEARS[4:]),
    ("q_proj,v_proj", ["q_proj", "v_proj"]), (["up_proj"], ["up_proj"]),
])
def test_targets(model, targets, leaves):
    apply_lora(model, 2, targets=targets)
    layers = lora_layers(model)
    assert len(layers) == 2 * len(leaves)
    assert {name.rpartition(".")[2] for name in layers} == set(leaves)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{factor}" for name in layers for factor in "AB"}


def test_a_target_may_be_a_path(model):
    targets = "layers.1.mlp.up_proj,model.layers.0.self_attn.q_proj,mlp.down_proj"
    apply_lora(model, 2, targets=targets)
    assert list(lora_layers(model)) == [
        "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("arguments, message", [
    ({"rank": 0}, "rank 0: it must be a whole number, at least 1"),
    ({"rank": -3}, "rank -3"),
    ({"rank": 1, "targets": "query"},
     "'query' fits no linear layer of this model; it has down_proj, gate_proj"),
    ({"rank": 1, "targets": "q_proj,proj"}, "'proj' fits no linear layer"),
    ({"rank": 1, "targets": "lm_head"}, "lm_head is tied to model.embed_tokens"),
])
def test_what_cannot_be_meant_is_refused_and_changes_nothing(model, arguments, message):
    with pytest.raises(UserError, match=message):
        apply_lora(model, **arguments)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_twice_is_refused(model):
    apply_lora(model, 1)
    with pytest.raises(UserError, match="has LoRA layers already"):
        apply_lora(model, 1)


def test_lm_head_is_not_offered_as_a_target(checkpoint):
    """train.py refuses it, and where it is tied nobody can have it."""
    with pytest.raises(UserError, match="it has down_proj, gate_proj, k_proj, o_proj, q_proj") as e:
        apply_lora(Transformer.from_pretrained(checkpoint()), 2, targets="q")
    assert "lm_head" not in str(e.value)


def test_an_untied_lm_head_may_be_wrapped(checkpoint, ids):
    folder = checkpoint("qwen2", tie_word_embeddings=False)
    model = apply_lora(Transformer.from_pretrained(folder), 2, targets="lm_head")
    assert list(lora_layers(model)) == ["lm_head"]
    randomise_adapter(model)
    likeliest = logits(model, ids)[:, -1].argmax(-1)
    assert torch.equal(model.generate(ids, 1)[:, -1], likeliest)


def test_a_wrapped_lm_head_is_trained_by_the_loss(checkpoint, ids):
    """The loss multiplies by lm_head.weight itself. Reference: the cross-entropy of the logits."""
    folder = checkpoint("qwen2", tie_word_embeddings=False)
    model = apply_lora(Transformer.from_pretrained(folder), 2, alpha=3, targets="lm_head")
    head = lora_layers(randomise_adapter(model))["lm_head"]
    F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
                    ).backward()
    expected = [head.lora_A.grad.clone(), head.lora_B.grad.clone()]
    model.zero_grad()
    model.loss(ids, ids)[0].backward()
    torch.testing.assert_close([head.lora_A.grad, head.lora_B.grad], expected)


# ----- other modules of torch ---------------------------------------------------------------------

@pytest.fixture
def encoder():
    """torch's own encoder. In .eval() it reads the layers' weights and calls none of them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("targets", [
    "all-linear", "out_proj", "linear1,layers.1.self_attn.out_proj"])
def test_what_multihead_attention_never_calls_is_refused(encoder, targets):
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    with pytest.raises(UserError, match="out_proj is part of an nn.MultiheadAttention, which reads "
                       "its weight and never calls it.* name other targets"):
        apply_lora(encoder, 2, targets=targets)
    assert_same_tensors(dict(encoder.named_parameters()), before)
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("train", [True, False])
def test_the_rest_of_an_encoder_can_be_adapted(encoder, train):
    """Reference: a plain encoder with W + s B A in the place of W."""
    apply_lora(encoder, 2, alpha=3, targets="linear1,linear2")
    assert len(lora_layers(randomise_adapter(encoder))) == 4
    plain = copy.deepcopy(encoder)
    for name, layer in lora_layers(plain).items():
        layer.base.weight.data += 1.5 * layer.lora_B.data @ layer.lora_A.data
        plain.set_submodule(name, layer.base)
    x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True               # with a mask of the padding, another fast path is taken
    with torch.no_grad():
        for mask in (None, padding):
            got = encoder.train(train)(x, src_key_padding_mask=mask)
            expected = plain.train(train)(x, src_key_padding_mask=mask)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    encoder(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters() if p.requires_grad)


def test_a_layer_of_any_kind_can_be_wrapped():
    """A layer that is not an nn.Linear and has no `weight`."""
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 6, 5
            codes = torch.randint(-8, 8, (5, 6), dtype=torch.int8)
            self.codes = nn.Parameter(codes, requires_grad=False)

        def forward(self, x):
            return x @ (self.codes.float() / 8).T

    module = nn.ModuleDict({"a": Codes(), "b": nn.Linear(5, 6)})
    randomise_adapter(apply_lora(module, 2, targets=["a"]))
    x, layer = torch.randn(3, 6), module["a"]
    expected = x @ (layer.base.codes.float() / 8).T + x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected)
    assert trainable(module) == 2 * (6 + 5)


ELSEWHERE = """
import sys
import torch
from torch import nn
from lora import apply_lora, load_adapter, merge_lora, save_adapter, unmerge_lora

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
base = [p.clone() for p in model.parameters()]
apply_lora(model, rank=2, alpha=4)
x, y = torch.randn(32, 8), torch.randn(32, 4)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
before = nn.functional.mse_loss(model(x), y)
before.backward()
optimizer.step()
trained = model(x)
assert nn.functional.mse_loss(trained, y) < before
merge_lora(model)
torch.testing.assert_close(model(x), trained)
unmerge_lora(model)
assert torch.equal(model(x), trained)
save_adapter(model, "adapter")

other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
for p, q in zip(other.parameters(), base, strict=True):
    p.data.copy_(q)
assert torch.equal(load_adapter(other, "adapter")(x), trained)
files = {getattr(m, "__file__", None) or "" for m in sys.modules.values()}
print(sorted(file[len(sys.path[0]) + 1:] for file in files if file.startswith(sys.path[0])))
"""


def test_it_works_in_a_folder_of_its_own(tmp_path):
    """lora.py and three files of plumbing, copied elsewhere, adapt a module of torch there."""
    needed = ["lora.py", "plumbing/errors.py", "plumbing/fields.py", "plumbing/files.py"]
    (tmp_path / "plumbing").mkdir()
    for name in needed:
        shutil.copy(REPO / name, tmp_path / name)
    (tmp_path / "use.py").write_text(ELSEWHERE)
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[*needed, 'use.py']}\n"         # and nothing else of the house


# ----- counts -------------------------------------------------------------------------------------

def meta(**config):
    with torch.device("meta"):
        return Transformer(ModelConfig.from_hf(config))


def qwen2_5_05b():
    return meta(model_type="qwen2", vocab_size=151_936, hidden_size=896, intermediate_size=4864,
                num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                tie_word_embeddings=True)


def qwen3_8b():
    return meta(model_type="qwen3", vocab_size=151_936, hidden_size=4096, intermediate_size=12_288,
                num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                tie_word_embeddings=False)


@pytest.mark.parametrize("size, rank, count", [((1024, 4096), 16, 81_920), ((100, 100), 5, 1_000)])
def test_counts_of_one_layer(size, rank, count):
    module = nn.Sequential(nn.Linear(*size))
    assert trainable(apply_lora(module, rank, targets=["0"])) == count


@pytest.mark.parametrize("targets, rank, count", [
    ("all-linear", 64, 35_192_832), ("attention", 1, 135_168), ("mlp", 1, 414_720),
    ("attention", 96, 12_976_128), ("mlp", 32, 13_271_040),     # about as many from either
])
def test_counts_of_qwen2_5_05b(targets, rank, count):
    assert trainable(apply_lora(qwen2_5_05b(), rank, targets=targets)) == count


@pytest.mark.parametrize("targets, billions", [
    ("mlp", 0.453), ("attention", 0.245), ("all-linear", 0.698),
    ("gate_proj,up_proj,down_proj,lm_head", 0.493)])
def test_counts_of_qwen3_8b(targets, billions):
    count = trainable(apply_lora(qwen3_8b(), 256, targets=targets))
    assert round(count / 1e9, 3) == billions


@pytest.mark.parametrize("rank, targets", [(8, ["q"]), (4, ["q", "v"]), (2, ["q", "k", "v", "o"])])
def test_budget_of_gpt3(rank, targets):
    """Hu et al., section 7.1: 18M parameters in one, two or four attention matrices a layer."""
    with torch.device("meta"):
        blocks = nn.ModuleList()
        for _ in range(96):
            blocks.append(nn.ModuleDict({name: nn.Linear(12_288, 12_288) for name in "qkvo"}))
    assert trainable(apply_lora(blocks, rank, targets=targets)) == 18_874_368


@pytest.mark.parametrize("targets, count", [("q_proj,v_proj", 589_824)])
def test_counts_of_vit_base(targets, count):
    """query and value, as transformers called these layers before version 5."""
    with torch.device("meta"):
        vit = ViTModel(ViTConfig())
    assert trainable(apply_lora(vit, 16, targets=targets)) == count


# ----- merge and unmerge --------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_merges_leave_the_base_bit_identical(model, ids, dtype):
    apply_lora(model.to(dtype), 4)
    randomise_adapter(model)
    before, expected = base_weights(model), logits(model, ids)
    name = "model.layers.0.mlp.up_proj"
    for _ in range(100):
        merge_lora(model)
        merged = model.get_parameter(f"{name}.merged.weight")
        assert not torch.equal(merged, before[f"{name}.base.weight"])
        unmerge_lora(model)
    assert_same_tensors(base_weights(model), before)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("casts", [
    [torch.float16], [torch.bfloat16], [torch.float64], [torch.float16, torch.float32]])
def test_a_base_that_was_cast_while_merged(model, ids, casts):
    """What casts or moves the model reaches the base next to the merged weight. Reference: the
    same model, cast without having been merged."""
    apply_lora(model, 4)
    randomise_adapter(model)
    never_merged = copy.deepcopy(model)
    merge_lora(model)
    for dtype in casts:
        model.to(dtype)
        never_merged.to(dtype)
    assert logits(model, ids).dtype == casts[-1]            # the merged weights were cast, too
    unmerge_lora(model)
    assert_same_tensors(base_weights(model), base_weights(never_merged))
    assert {p.dtype for p in model.parameters()} == {casts[-1]}
    assert torch.equal(logits(model, ids), logits(never_merged, ids))


def test_a_base_in_four_bits_keeps_its_codes_through_a_cast(model, ids):
    """.half() changes what a weight in four bits is dequantized to, and no code."""
    apply_lora(quantize_model(model), 4)
    randomise_adapter(model)
    never_merged = copy.deepcopy(model).bfloat16()
    with pytest.warns(UserWarning, match="14 quantized layers"):
        merge_lora(model)
    unmerge_lora(model.bfloat16())
    assert {layer.base.weight.dtype for layer in lora_layers(model).values()} == {torch.bfloat16}
    assert_same_tensors(dict(model.named_buffers()), dict(never_merged.named_buffers()))
    assert torch.equal(logits(model, ids), logits(never_merged, ids))


def test_merged_gives_the_same_logits(model, ids):
    base = logits(model, ids)
    randomise_adapter(apply_lora(model, 4, alpha=6))
    expected = logits(model, ids)
    assert (expected - base).abs().max() > 0.5
    merge_lora(model)
    merge_lora(model)                               # once merged, merging again adds nothing
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=0)
    unmerge_lora(model)
    unmerge_lora(model)
    assert torch.equal(logits(model, ids), expected)


def test_merging_in_bfloat16_rounds_once(model, ids):
    """B A is added in float32 and the sum is rounded. Rounding B A first would lose more."""
    apply_lora(model.bfloat16(), 4)
    randomise_adapter(model, size=0.05)
    exact, naive = {}, {}
    for name, layer in lora_layers(model).items():
        exact[name] = layer.base.weight.float() + layer.delta()
        naive[name] = layer.base.weight + layer.delta().bfloat16()
    unmerged = logits(model, ids).float()
    merge_lora(model)
    shift = (logits(model, ids).float() - unmerged).abs().max()
    error_once = error_twice = 0
    for name, layer in lora_layers(model).items():
        W = layer.merged.weight
        assert W.dtype == torch.bfloat16 and torch.equal(W, exact[name].bfloat16())
        error_once += (W.float() - exact[name]).abs().sum()
        error_twice += (naive[name].float() - exact[name]).abs().sum()
    assert error_once < error_twice
    assert 0 < shift < 0.05 * unmerged.abs().max()      # rough; the equality above is exact


def test_eval_and_train_never_merge(model):
    randomise_adapter(apply_lora(model, 4))
    before = base_weights(model)
    for mode in (model.eval, model.train, model.eval):
        mode()
        assert_same_tensors(base_weights(model), before)
        assert all(layer.merged is None for layer in lora_layers(model).values())
    merge_lora(model)
    merged = base_weights(model)
    for mode in (model.train, model.eval):
        mode()
        assert_same_tensors(base_weights(model), merged)


def test_a_merged_checkpoint_gives_the_same_logits_in_transformers(model, ids, tmp_path):
    names = list(model.state_dict())
    randomise_adapter(apply_lora(model, 4, alpha=6))
    expected = logits(model, ids)
    merge_lora(model)
    remove_lora(model)
    assert list(model.state_dict()) == names and not lora_layers(model)
    model.save_pretrained(tmp_path)
    for reader in (AutoModelForCausalLM, Transformer):
        got = logits(reader.from_pretrained(tmp_path), ids)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


# ----- switch tasks -------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_switches(folder, tasks, ids, dtype):
    """W + B A - B A + B' A': the base stays bit-identical, and each task's logits are those of a
    model that never switched."""
    def fresh(name=None):
        model = Transformer.from_pretrained(folder, dtype)
        return load_adapter(model, tasks[name]) if name else model

    model = fresh()
    before, alone = base_weights(model), {None: logits(model, ids)}
    adapters = {None: None}
    for name, path in tasks.items():
        adapters[name] = read_adapter(path, model)
        merge_lora(never_switched := fresh(name))
        alone[name] = logits(never_switched, ids)
        assert (alone[name] - alone[None]).abs().max() > 0.3
        if dtype == torch.float32:
            theirs = logits(in_peft(folder, tasks[name]), ids)
            torch.testing.assert_close(alone[name], theirs, atol=1e-4, rtol=0)
    draw = random.Random(0)
    for switch in range(100):
        name = draw.choice(list(adapters))
        set_adapter(model, adapters[name])
        assert torch.equal(logits(model, ids), alone[name]), (switch, name)
    set_adapter(model, None)
    assert_same_tensors(dict(model.named_parameters()), before)


def test_a_merged_model_costs_what_the_base_costs(model, tasks, ids):
    def flops():
        with FlopCounterMode(display=False) as counter:
            logits(model, ids[:1, :9])         # few rows: not those of `sum_is_less_work`
        return counter.get_total_flops()

    base, adapter = flops(), read_adapter(tasks["sums"])
    set_adapter(model, adapter)
    assert flops() == base
    set_adapter(model, adapter, merge=False)
    size = sum(f.A.numel() + f.B.numel() for f in adapter.values())     # sum of r (in + out)
    assert flops() == base + 2 * 9 * size


def test_switching_on_a_quantized_base(model, tasks, ids):
    """Unmerged, so that the base stays in four bits; its codes are the same tensors afterwards."""
    before = logits(quantize_model(model), ids)
    expected = logits(load_adapter(copy.deepcopy(model), tasks["names"]), ids)
    set_adapter(model, read_adapter(tasks["names"]), merge=False)
    assert torch.equal(logits(model, ids), expected) and not torch.equal(expected, before)
    assert torch.equal(logits(set_adapter(model, None), ids), before)


def test_switching_keeps_the_mode(model, tmp_path):
    """An unmerged adapter with dropout would answer at random in a model that is set to answer."""
    save_adapter(randomise_adapter(apply_lora(model, 2, dropout=0.5)), tmp_path)
    for mode in (True, False):
        load_adapter(model.train(mode), tmp_path)
        assert {layer.dropout.training for layer in lora_layers(model).values()} == {mode}


def test_an_adapter_of_another_base_changes_nothing(model, tasks, ids):
    other = read_adapter(tasks["sums"])
    other |= {name.replace("layers.1", "layers.2"): factors for name, factors in other.items()}
    set_adapter(model, read_adapter(tasks["tones"]))
    before = logits(model, ids)
    with pytest.raises(UserError, match="has no linear layer model.layers.2"):
        set_adapter(model, other)
    assert torch.equal(logits(model, ids), before)


# ----- PEFT's files -------------------------------------------------------------------------------

OURS = {
    "all-linear": {"rank": 4, "alpha": 6},
    "attention": {"rank": 2, "targets": "attention"},
    "one layer": {"rank": 3, "targets": "layers.1.self_attn.q_proj,layers.0.mlp.up_proj"},
    "dropout": {"rank": 4, "alpha": 2.5, "dropout": 0.1},
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_ours_in_peft(checkpoint, family, name, ids, tmp_path):
    folder = checkpoint(family)
    model = Transformer.from_pretrained(folder)
    base = logits(model, ids)
    randomise_adapter(apply_lora(model, **OURS[name]))
    save_adapter(model, tmp_path, "owner/base@v1")
    expected = logits(model, ids)
    assert (expected - base).abs().max() > 0.05
    theirs = in_peft(folder, tmp_path)
    torch.testing.assert_close(logits(theirs, ids), expected, atol=1e-4, rtol=0)
    wrapped = sum("lora_A" in key for key, _ in theirs.named_parameters())
    assert wrapped == len(lora_layers(model))
    config = theirs.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("owner/base", "v1")
    assert config.lora_dropout == OURS[name].get("dropout", 0)


THEIRS = {
    "plain": {"target_modules": LINEARS},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.(q_proj|up_proj)"},
    "rslora": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"],
               "use_rslora": True},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": ["q_proj", "up_proj"],
                 "exclude_modules": ["layers.0.mlp.up_proj"]},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.2},
    "patterns": {
        "target_modules": LINEARS,
        "rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 3, r".*\.0\..*down_proj": 1},
        "alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 17,
                          r"layers\.\d+\.self_attn\.v_proj": 5}},
    "patterns and rslora": {
        "target_modules": LINEARS, "use_rslora": True,
        "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"k_proj": 2, "o_proj": 1}},
}


@pytest.fixture(params=THEIRS)
def theirs(request, folder):
    """PEFT's model with a random adapter."""
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 6} | THEIRS[request.param]
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def test_peft_in_ours_and_back(theirs, folder, model, ids, tmp_path):
    """What PEFT wrote gives the same logits here, and what we write from that gives them there."""
    base, expected = logits(model, ids), logits(theirs, ids)
    assert (expected - base).abs().max() > 0.05
    theirs.save_pretrained(tmp_path / "theirs")
    load_adapter(model, tmp_path / "theirs")
    wrapped = sum("lora_A" in key for key, _ in theirs.named_parameters())
    assert len(lora_layers(model)) == wrapped
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=0)
    dropouts = {layer.dropout.p for layer in lora_layers(model).values()}
    assert dropouts == {theirs.peft_config["default"].lora_dropout}
    save_adapter(model, tmp_path / "ours")
    back = logits(in_peft(folder, tmp_path / "ours"), ids)
    torch.testing.assert_close(back, expected, atol=1e-4, rtol=0)
    assert_same_tensors(load_file(tmp_path / "ours/adapter_model.safetensors"),
                        load_file(tmp_path / "theirs/adapter_model.safetensors"))


def test_peft_reads_an_adapter_of_another_module(tmp_path):
    """The files say nothing of our decoder: one of transformers' own models may be wrapped."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                       intermediate_size=48, image_size=32)
    vit, pixels = ViTModel(config).eval(), torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(vit)
    randomise_adapter(apply_lora(vit, 4, targets="q_proj,v_proj"))
    save_adapter(vit, tmp_path)
    with torch.no_grad():
        expected, base = vit(pixels).last_hidden_state, plain(pixels).last_hidden_state
        got = peft.PeftModel.from_pretrained(plain, tmp_path)(pixels).last_hidden_state
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_loading_freezes_the_base_and_makes_room(model, ids, tmp_path):
    randomise_adapter(apply_lora(model, 4))
    save_adapter(model, tmp_path)
    expected = logits(model, ids)
    randomise_adapter(model, seed=7)
    merge_lora(model)
    load_adapter(model, tmp_path)
    assert torch.equal(logits(model, ids), expected)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{factor}" for name in lora_layers(model) for factor in "AB"}


# ----- adapters that do nothing, or do not fit ----------------------------------------------------

def test_a_trained_adapter_does_something(model, ids, tmp_path):
    """After one step the file holds every tensor, no B is zero, and the base has not moved."""
    base, before = logits(model, ids), base_weights(model)
    apply_lora(model.train(), 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first, _ = model.loss(ids, ids)
    first.backward()
    optimizer.step()
    assert model.loss(ids, ids)[0] < first
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    paths = [f"self_attn.{name}" for name in LINEARS[:4]] + [f"mlp.{name}" for name in LINEARS[4:]]
    assert set(tensors) == {f"base_model.model.model.layers.{i}.{path}.lora_{factor}.weight"
                            for i in range(2) for path in paths for factor in "AB"}
    assert all(t.abs().max() > 0 for t in tensors.values())
    tuned = logits(model, ids)
    remove_lora(model)
    assert_same_tensors(dict(model.named_parameters()), before)
    load_adapter(model, tmp_path)
    assert torch.equal(logits(model, ids), tuned) and not torch.equal(tuned, base)


def test_there_is_something_to_save(model, tmp_path):
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def spoil_adapter(tensors, config, what):
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    match what:
        case "a B is missing":
            del tensors[key.format("B")]
        case "nothing is in it":
            tensors.clear()
        case "a trained embedding":
            tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(322, 32)
        case "an adapter on the embedding":
            key = "base_model.model.model.embed_tokens.lora_embedding_A"
            tensors[key] = torch.zeros(4, 320)
        case "a layer too many":
            for name, tensor in list(tensors.items()):
                tensors[name.replace("layers.0", "layers.9")] = tensor.clone()
        case "a norm":
            for part in "AB":
                tensors[f"base_model.model.model.norm.lora_{part}.weight"] = torch.zeros(4, 4)
            config["target_modules"].append("norm")
        case "other sizes":
            tensors[key.format("B")] = torch.zeros(50, 4)
        case "ranks of A and B differ":
            tensors[key.format("B")] = torch.zeros(48, 5)
        case "a tied lm_head":
            tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 32)
            tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(320, 4)
            config["target_modules"].append("lm_head")
        case "a layer that is no target":
            config["target_modules"].remove("up_proj")
        case "DoRA":
            config["use_dora"] = True
        case "PiSSA":
            config["init_lora_weights"] = "pissa"
        case "biases":
            config["bias"] = "lora_only"
        case "another method":
            config["peft_type"] = "IA3"
        case "no alpha":
            del config["lora_alpha"]


@pytest.mark.parametrize("what, message", [
    ("a B is missing", "not pairs of A and B of linear layers, or some are missing"),
    ("nothing is in it", "or some are missing"),
    ("a trained embedding", "not pairs of A and B"),
    ("an adapter on the embedding", "not pairs of A and B"),
    ("a layer too many", "for another base: this one has no linear layer model.layers.9"),
    ("a norm", "for another base: this one has no linear layer model.norm"),
    ("other sizes", r"for another base: .*up_proj is \(48, 32\) here, B A is \(50, 32\) there"),
    ("ranks of A and B differ", "and by adapter_config.json rank 4"),
    ("a tied lm_head", "lm_head is tied to model.embed_tokens"),
    ("DoRA", "only plain LoRA"), ("PiSSA", "only plain LoRA"), ("biases", "only plain LoRA"),
    ("another method", "only plain LoRA"), ("no alpha", "lora_alpha is missing"),
    ("a layer that is no target", "up_proj has A and B, and by adapter_config.json it is no"),
])
def test_what_does_not_fit_is_refused_and_changes_nothing(model, ids, what, message, tmp_path):
    """The model carries an adapter already, and keeps it."""
    randomise_adapter(apply_lora(model, 4))
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    spoil_adapter(tensors, config, what)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merge_lora(randomise_adapter(model, seed=5))
    before = logits(model, ids)
    with pytest.raises(UserError, match=message):
        load_adapter(model, tmp_path)
    assert torch.equal(logits(model, ids), before)
    assert all(layer.merged is not None for layer in lora_layers(model).values())


def test_a_larger_vocabulary_is_another_base(checkpoint, tmp_path):
    """PEFT saves a resized embedding with the adapter. That is not plain LoRA, and refused."""
    folder = checkpoint("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(330)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match="not pairs of A and B"):
        load_adapter(Transformer.from_pretrained(folder), tmp_path)
