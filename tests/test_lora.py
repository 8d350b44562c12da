"""LoRA against PEFT, both ways; its counts against the papers'; and the ways in which adapters are known to go wrong."""
import copy
import json
import math
import random
import re
import shutil
import socket

import huggingface_hub
import peft
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import TINY, tiny_tokenizer
from runs import contents, one_line
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, ViTConfig, ViTModel

import lora
from lora import (LoRALinear, apply_lora, load_adapter, lora_layers, merge_lora, read_adapter, remove_lora, save_adapter,
                  set_adapter, unmerge_lora)
from model import ModelConfig, Transformer
from plumbing.errors import UserError
from quant import quantize_model
from tokenizer import Tokenizer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def folder(checkpoint):
    return checkpoint("qwen2", tie_word_embeddings=True)


@pytest.fixture
def model(folder):
    return Transformer.from_pretrained(folder)


@pytest.fixture
def ids():
    return torch.randint(TINY["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(0))


def logits(model, ids):
    with torch.no_grad():
        out = model.eval()(ids)
    return getattr(out, "logits", out)


def randomise_adapter(model, seed=0, size=0.3):
    """B is zero at the start: random numbers, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data = size * torch.randn(layer.lora_B.shape, generator=generator)
    return model


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def base_weights(model):
    return {name: p.clone() for name, p in model.named_parameters() if "lora_" not in name}


# ----- the layer ----------------------------------------------------------------------------------------------------

def slow_twin(layer, x):
    """h = W x + b + scale * B (A x), written as it stands in the paper."""
    return x @ layer.base.weight.T + (layer.base.bias if layer.base.bias is not None else 0) \
        + layer.scale * torch.einsum("or,ri,...i->...o", layer.lora_B, layer.lora_A, x)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_equation(shape, bias):
    layer = LoRALinear(nn.Linear(12, 7, bias=bias), rank=4, alpha=6)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), slow_twin(layer, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha, rslora, scale", [(16, False, 2.0), (8, False, 1.0), (4, False, 0.5), (4, True, 2 ** 0.5)])
def test_the_scale(alpha, rslora, scale):
    """With alpha = r the factor is 1, whatever the rank."""
    assert LoRALinear(nn.Linear(9, 9), 8, alpha, rslora=rslora).scale == pytest.approx(scale)


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


def test_gradients_are_those_of_autograd_on_the_sum(ids):
    layer = LoRALinear(nn.Linear(12, 7), rank=4, alpha=6)
    nn.init.normal_(layer.lora_B)
    x, y = torch.randn(5, 12), torch.randn(5, 7)
    F.mse_loss(layer(x), y).backward()
    got = layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    layer.zero_grad()
    F.mse_loss(slow_twin(layer, x), y).backward()
    torch.testing.assert_close(got, (layer.lora_A.grad, layer.lora_B.grad))


def test_a_bfloat16_base_keeps_its_adapter_in_float32(model, ids):
    apply_lora(model.bfloat16(), 4)
    randomise_adapter(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model, ids).dtype == torch.bfloat16
    model.loss(ids, ids)[0].backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_autocast_gives_what_the_cast_model_gives(model, ids):
    apply_lora(model, 4)
    randomise_adapter(model)
    exact = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits(model, ids)
    assert cast.dtype == torch.bfloat16 and 0 < (cast - exact).abs().max() < 0.03 * exact.abs().max()


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


# ----- which layers -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("targets, leaves", [
    ("all-linear", LINEARS), ("attention", LINEARS[:4]), ("mlp", LINEARS[4:]), ("q_proj,v_proj", ["q_proj", "v_proj"]),
    (["up_proj"], ["up_proj"]),
])
def test_targets(model, targets, leaves):
    apply_lora(model, 2, targets=targets)
    layers = lora_layers(model)
    assert len(layers) == 2 * len(leaves) and {name.rpartition(".")[2] for name in layers} == set(leaves)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {f"{name}.lora_{x}" for name in layers for x in "AB"}


def test_a_target_may_be_a_path(model):
    apply_lora(model, 2, targets="layers.1.mlp.up_proj,model.layers.0.self_attn.q_proj,mlp.down_proj")
    assert list(lora_layers(model)) == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
                                        "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("arguments, message", [
    ({"rank": 0}, "rank 0: it has to be at least 1"), ({"rank": -3}, "rank -3"),
    ({"rank": 1, "targets": "query"}, "'query' fits no linear layer of this model; it has down_proj, gate_proj"),
    ({"rank": 1, "targets": "q_proj,proj"}, "'proj' fits no linear layer"),
    ({"rank": 1, "targets": "lm_head"}, "lm_head is tied to the embedding"),
])
def test_what_cannot_be_meant_is_refused_and_changes_nothing(model, arguments, message):
    with pytest.raises(UserError, match=message):
        apply_lora(model, **arguments)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_twice_is_refused(model):
    apply_lora(model, 1)
    with pytest.raises(UserError, match="has LoRA layers already"):
        apply_lora(model, 1)


def test_an_untied_lm_head_may_be_wrapped(checkpoint, ids):
    model = apply_lora(Transformer.from_pretrained(checkpoint("qwen2", tie_word_embeddings=False)), 2, targets="lm_head")
    assert list(lora_layers(model)) == ["lm_head"]
    assert torch.equal(randomise_adapter(model).generate(ids, 1)[:, -1], logits(model, ids)[:, -1].argmax(-1))


# ----- counts -------------------------------------------------------------------------------------------------------

def meta(**config):
    with torch.device("meta"):
        return Transformer(ModelConfig.from_hf(config))


def qwen2_5_05b():
    return meta(model_type="qwen2", vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)


def qwen3_8b():
    return meta(model_type="qwen3", vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
                num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False)


@pytest.mark.parametrize("size, rank, count", [((1024, 4096), 16, 81_920), ((100, 100), 5, 1_000)])
def test_counts_of_one_layer(size, rank, count):
    module = nn.Sequential(nn.Linear(*size))
    assert trainable(apply_lora(module, rank, targets=["0"])) == count


@pytest.mark.parametrize("targets, rank, count", [
    ("all-linear", 64, 35_192_832), ("attention", 1, 135_168), ("mlp", 1, 414_720),
    ("attention", 96, 12_976_128), ("mlp", 32, 13_271_040),         # as many parameters as can be had from either
])
def test_counts_of_qwen2_5_05b(targets, rank, count):
    assert trainable(apply_lora(qwen2_5_05b(), rank, targets=targets)) == count


@pytest.mark.parametrize("targets, billions", [("mlp", 0.453), ("attention", 0.245), ("all-linear", 0.698),
                                               ("gate_proj,up_proj,down_proj,lm_head", 0.493)])
def test_counts_of_qwen3_8b(targets, billions):
    assert round(trainable(apply_lora(qwen3_8b(), 256, targets=targets)) / 1e9, 3) == billions


@pytest.mark.parametrize("rank, targets", [(8, ["q"]), (4, ["q", "v"]), (2, ["q", "k", "v", "o"])])
def test_budget_of_gpt3(rank, targets):
    """Hu et al., section 7.1: 18M parameters, spread over one, two or four attention matrices of each of 96 layers."""
    with torch.device("meta"):
        blocks = nn.ModuleList(nn.ModuleDict({name: nn.Linear(12_288, 12_288) for name in "qkvo"}) for _ in range(96))
    assert trainable(apply_lora(blocks, rank, targets=targets)) == 18_874_368


@pytest.mark.parametrize("targets, count", [("q_proj,v_proj", 589_824)])
def test_counts_of_vit_base(targets, count):
    """query and value, as transformers called these layers before version 5."""
    with torch.device("meta"):
        vit = ViTModel(ViTConfig())
    assert trainable(apply_lora(vit, 16, targets=targets)) == count


# ----- merge and unmerge --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_merges_leave_the_base_bit_identical(model, ids, dtype):
    apply_lora(model.to(dtype), 4)
    randomise_adapter(model)
    before, expected = base_weights(model), logits(model, ids)
    for _ in range(100):
        merge_lora(model)
        assert not torch.equal(model.model.layers[0].mlp.up_proj.base.weight, before["model.layers.0.mlp.up_proj.base.weight"])
        unmerge_lora(model)
    after = base_weights(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model, ids), expected)


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
    """B A is added in float32 and the sum is rounded, instead of rounding B A first."""
    apply_lora(model.bfloat16(), 4)
    randomise_adapter(model, size=0.05)
    exact = {name: layer.base.weight.float() + layer.delta() for name, layer in lora_layers(model).items()}
    naive = {name: layer.base.weight + layer.delta().bfloat16() for name, layer in lora_layers(model).items()}
    side = logits(model, ids).float()
    merge_lora(model)
    shift = (logits(model, ids).float() - side).abs().max()
    print(f"largest difference of a logit, merged in bfloat16: {shift:.3f} of {side.abs().max():.1f}")
    ours = twice = 0
    for name, layer in lora_layers(model).items():
        W = layer.base.weight
        assert W.dtype == torch.bfloat16 and torch.equal(W, exact[name].bfloat16())
        ours, twice = ours + (W.float() - exact[name]).abs().sum(), twice + (naive[name].float() - exact[name]).abs().sum()
    assert ours < twice
    assert 0 < shift < 0.05 * side.abs().max()           # a random adapter: the equality above is what is exact


def test_eval_and_train_never_merge(model):
    randomise_adapter(apply_lora(model, 4))
    before = base_weights(model)
    for mode in (model.eval, model.train, model.eval):
        mode()
        assert all(torch.equal(p, before[name]) for name, p in base_weights(model).items())
        assert all(layer.unmerged is None for layer in lora_layers(model).values())
    merge_lora(model)
    merged = base_weights(model)
    for mode in (model.train, model.eval):
        mode()
        assert all(torch.equal(p, merged[name]) for name, p in base_weights(model).items())


def test_a_merged_checkpoint_gives_the_same_logits_in_transformers(model, ids, tmp_path):
    names = list(model.state_dict())
    randomise_adapter(apply_lora(model, 4, alpha=6))
    expected = logits(model, ids)
    merge_lora(model)
    remove_lora(model)
    assert list(model.state_dict()) == names and not lora_layers(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(Transformer.from_pretrained(tmp_path), ids), expected, atol=1e-4, rtol=0)


TASKS = {       # three adapters that differ in rank, alpha and targets
    "sums": {"rank": 4, "alpha": 6}, "names": {"rank": 2, "alpha": 5, "targets": "attention"},
    "tones": {"rank": 7, "targets": "layers.0.mlp.up_proj,layers.1.mlp.up_proj,v_proj"},
}


@pytest.fixture
def tasks(folder, tmp_path):
    """TASKS as PEFT's folders."""
    for seed, (name, how) in enumerate(TASKS.items()):
        save_adapter(randomise_adapter(apply_lora(Transformer.from_pretrained(folder), **how), seed), tmp_path / name, str(folder))
    return {name: tmp_path / name for name in TASKS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_switches(folder, tasks, ids, dtype):
    """{(W + B A) - B A} + B' A': the base stays bit-identical, and each task's logits are those of a model that never switched."""
    def fresh(name=None):
        model = Transformer.from_pretrained(folder, dtype)
        return load_adapter(model, tasks[name]) if name else model

    model = fresh()
    before, alone = base_weights(model), {None: logits(model, ids)}
    adapters = {None: None} | {name: read_adapter(path, model) for name, path in tasks.items()}
    for name in tasks:
        merge_lora(never_switched := fresh(name))
        alone[name] = logits(never_switched, ids)
        assert (alone[name] - alone[None]).abs().max() > 0.3
        if dtype == torch.float32:
            torch.testing.assert_close(alone[name], logits(in_peft(folder, tasks[name]), ids), atol=1e-4, rtol=0)
    draw = random.Random(0)
    for switch in range(100):
        name = draw.choice(list(adapters))
        set_adapter(model, adapters[name])
        assert torch.equal(logits(model, ids), alone[name]), (switch, name)
    set_adapter(model, None)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_merged_model_costs_what_the_base_costs(model, tasks, ids):
    def flops():
        with FlopCounterMode(display=False) as counter:
            logits(model, ids)
        return counter.get_total_flops()

    base, adapter = flops(), read_adapter(tasks["sums"])
    set_adapter(model, adapter)
    assert flops() == base
    set_adapter(model, adapter, merge=False)        # two products of a token with r (in + out) numbers
    assert flops() == base + 2 * ids.numel() * sum(A.numel() + B.numel() for A, B, *_ in adapter.values())


def test_switching_on_a_quantized_base(model, tasks, ids):
    """Not merged, so that it stays in four bits; the codes are the same tensors after it."""
    before = logits(quantize_model(model), ids)
    expected = logits(load_adapter(copy.deepcopy(model), tasks["names"]), ids)
    set_adapter(model, read_adapter(tasks["names"]), merge=False)
    assert torch.equal(logits(model, ids), expected) and not torch.equal(expected, before)
    assert torch.equal(logits(set_adapter(model, None), ids), before)


def test_switching_keeps_the_mode(model, tmp_path):
    """Not merged, an adapter with dropout would answer by chance in a model that is set to answer."""
    save_adapter(randomise_adapter(apply_lora(model, 2, dropout=0.5)), tmp_path)
    for mode in (True, False):
        load_adapter(model.train(mode), tmp_path)
        assert {layer.dropout.training for layer in lora_layers(model).values()} == {mode}


def test_an_adapter_of_another_base_changes_nothing(checkpoint, model, tasks, ids):
    other = read_adapter(tasks["sums"])
    other |= {name.replace("layers.1", "layers.2"): factors for name, factors in other.items()}
    set_adapter(model, read_adapter(tasks["tones"]))
    before = logits(model, ids)
    with pytest.raises(UserError, match="another base: this one has no layer model.layers.2"):
        set_adapter(model, other)
    assert torch.equal(logits(model, ids), before)


# ----- PEFT's files -------------------------------------------------------------------------------------------------

OURS = {
    "all-linear": {"rank": 4, "alpha": 6},
    "attention": {"rank": 2, "targets": "attention"},
    "one layer": {"rank": 3, "targets": "layers.1.self_attn.q_proj,layers.0.mlp.up_proj"},
    "dropout": {"rank": 4, "alpha": 2.5, "dropout": 0.1},
}


def in_peft(folder, adapter):
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_ours_in_peft(checkpoint, family, name, ids, tmp_path):
    folder = checkpoint(family)
    model = Transformer.from_pretrained(folder)
    base = logits(model, ids)
    randomise_adapter(apply_lora(model, **OURS[name]))
    save_adapter(model, tmp_path, "owner/base")
    expected = logits(model, ids)
    assert (expected - base).abs().max() > 0.05
    theirs = in_peft(folder, tmp_path)
    torch.testing.assert_close(logits(theirs, ids), expected, atol=1e-4, rtol=0)
    assert sum("lora_A" in key for key, _ in theirs.named_parameters()) == len(lora_layers(model))
    config = theirs.peft_config["default"]
    assert config.base_model_name_or_path == "owner/base" and config.lora_dropout == OURS[name].get("dropout", 0)


THEIRS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": LINEARS},
    "all-linear": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "regex": {"r": 4, "lora_alpha": 6, "target_modules": r".*\.(q_proj|up_proj)"},
    "rslora": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "some layers": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.mlp.up_proj"]},
    "dropout": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "lora_dropout": 0.2},
    "patterns": {"r": 4, "lora_alpha": 6, "target_modules": LINEARS,
                 "rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 3, r".*\.0\..*down_proj": 1},
                 "alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 17, r"layers\.\d+\.self_attn\.v_proj": 5}},
    "patterns and rslora": {"r": 4, "lora_alpha": 6, "target_modules": LINEARS, "use_rslora": True,
                            "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"k_proj": 2, "o_proj": 1}},
}


@pytest.fixture(params=THEIRS)
def theirs(request, folder):
    """PEFT's model with a random adapter."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **THEIRS[request.param])
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def test_peft_in_ours_and_back(theirs, folder, model, ids, tmp_path):
    """What PEFT wrote gives the same logits here; what is written again from that gives them in PEFT."""
    base, expected = logits(model, ids), logits(theirs, ids)
    assert (expected - base).abs().max() > 0.05
    theirs.save_pretrained(tmp_path / "theirs")
    load_adapter(model, tmp_path / "theirs")
    assert len(lora_layers(model)) == sum("lora_A" in key for key, _ in theirs.named_parameters())
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=0)
    assert {layer.dropout.p for layer in lora_layers(model).values()} == {theirs.peft_config["default"].lora_dropout}
    save_adapter(model, tmp_path / "ours")
    torch.testing.assert_close(logits(in_peft(folder, tmp_path / "ours"), ids), expected, atol=1e-4, rtol=0)
    tensors = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    assert tensors[0].keys() == tensors[1].keys() and all(torch.equal(t, tensors[1][key]) for key, t in tensors[0].items())


def test_peft_reads_an_adapter_of_another_module(tmp_path):
    """Nothing in it is of our decoder: one of transformers' own models may be wrapped."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32}
    vit, pixels = ViTModel(ViTConfig(**config)).eval(), torch.randn(2, 3, 32, 32)
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
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{x}" for name in lora_layers(model) for x in "AB"}


# ----- adapters that do nothing, or do not fit ----------------------------------------------------------------------

def test_a_trained_adapter_does_something(model, ids, tmp_path):
    """After one step the file holds every tensor, no B of it is zero, and the base has not moved."""
    base, before = logits(model, ids), base_weights(model)
    apply_lora(model.train(), 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first, n = model.loss(ids, ids)
    first.backward()
    optimizer.step()
    assert model.loss(ids, ids)[0] < first
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.model.layers.{i}.{block}.{leaf}.lora_{x}.weight" for i in range(2) for x in "AB"
                            for leaf in LINEARS for block in ["self_attn" if leaf in LINEARS[:4] else "mlp"]}
    assert all(t.abs().max() > 0 for t in tensors.values())
    tuned = logits(model, ids)
    remove_lora(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    load_adapter(model, tmp_path)
    assert torch.equal(logits(model, ids), tuned) and not torch.equal(tuned, base)


def test_there_is_something_to_save(model, tmp_path):
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def edit(tensors, config, what):
    """Spoil an adapter."""
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    match what:
        case "a B is missing":
            del tensors[key.format("B")]
        case "nothing is in it":
            tensors.clear()
        case "a trained embedding":
            tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(322, 32)
        case "an adapter on the embedding":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 320)
        case "a layer too many":
            tensors |= {k.replace("layers.0", "layers.9"): t.clone() for k, t in list(tensors.items()) if "layers.0" in k}
        case "other sizes":
            tensors[key.format("B")] = torch.zeros(50, 4)
        case "ranks of A and B differ":
            tensors[key.format("B")] = torch.zeros(48, 5)
        case "a tied lm_head":
            tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 32)
            tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(320, 4)
        case "DoRA":
            config["use_dora"] = True
        case "biases":
            config["bias"] = "lora_only"
        case "another method":
            config["peft_type"] = "IA3"


@pytest.mark.parametrize("what, message", [
    ("a B is missing", "not pairs of A and B of linear layers, or some are missing"),
    ("nothing is in it", "or some are missing"),
    ("a trained embedding", "not pairs of A and B"), ("an adapter on the embedding", "not pairs of A and B"),
    ("a layer too many", "for another base: this one has no layer model.layers.9"),
    ("other sizes", r"for another base: .*up_proj is \(48, 32\) here, B A is \(50, 32\) there"),
    ("ranks of A and B differ", "for another base"),
    ("a tied lm_head", "lm_head is tied to the embedding"),
    ("DoRA", "only plain LoRA"), ("biases", "only plain LoRA"), ("another method", "only plain LoRA"),
])
def test_what_does_not_fit_is_refused_and_changes_nothing(model, ids, what, message, tmp_path):
    """The model carries an adapter already, and keeps it."""
    randomise_adapter(apply_lora(model, 4))
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    edit(tensors, config, what)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merge_lora(randomise_adapter(model, seed=5))
    before = logits(model, ids)
    with pytest.raises(UserError, match=message):
        load_adapter(model, tmp_path)
    assert torch.equal(logits(model, ids), before) and all(layer.unmerged is not None for layer in lora_layers(model).values())


def test_a_larger_vocabulary_is_another_base(checkpoint, tmp_path):
    """PEFT saves a resized embedding with the adapter, which is not plain LoRA; nothing is resized here."""
    folder = checkpoint("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(330)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match="not pairs of A and B"):
        load_adapter(Transformer.from_pretrained(folder), tmp_path)


def test_anything_that_maps_x_to_Wx_can_be_wrapped():
    """A layer that is no nn.Linear and has no `weight`, as a quantized one."""
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 6, 5
            self.codes = nn.Parameter(torch.randint(-8, 8, (5, 6), dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x @ (self.codes.float() / 8).T

    module = nn.ModuleDict({"a": Codes(), "b": nn.Linear(5, 6)})
    randomise_adapter(apply_lora(module, 2, targets=["a"]))
    x = torch.randn(3, 6)
    expected = x @ (module["a"].base.codes.float() / 8).T + x @ module["a"].lora_A.T @ module["a"].lora_B.T
    torch.testing.assert_close(module["a"](x), expected)
    assert trainable(module) == 2 * (6 + 5)


# ----- python lora.py ... -------------------------------------------------------------------------------------------

def run(capsys, *argv):
    capsys.readouterr()
    lora.main([str(a) for a in argv])
    return capsys.readouterr().out


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as e:
        run(capsys, *argv)
    return one_line(e.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("task", TASKS)
def test_the_merged_checkpoint_is_pefts(folder, tasks, task, ids, tmp_path, capsys):
    said = run(capsys, "merge", "--model", folder, "--adapter", tasks[task], "--out", tmp_path / "merged", "--dtype", "float32")
    theirs = in_peft(folder, tasks[task])
    beside = logits(theirs, ids)
    expected = logits(theirs.merge_and_unload(), ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(merged, ids), beside, atol=1e-4, rtol=0)
    assert float(re.search(r"rounded, is ([\d.e-]+)", said)[1]) < 1e-4


def test_merging_is_rounded_once_and_says_how_much_it_changed(folder, tasks, tmp_path, capsys):
    """The dtype is the checkpoint's own, the base the one that the adapter names."""
    half = tmp_path / "half"
    Transformer.from_pretrained(folder, torch.bfloat16).save_pretrained(half)
    tiny_tokenizer(half)
    config = json.loads((tasks["sums"] / "adapter_config.json").read_text())
    (tasks["sums"] / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(half)}))
    said = run(capsys, "merge", "--adapter", tasks["sums"], "--out", tmp_path / "merged")
    model, merged = Transformer.from_pretrained(half), load_file(tmp_path / "merged/model.safetensors")
    ids = torch.tensor([Tokenizer.from_pretrained(half).encode(lora.PROBE)])
    beside = logits(load_adapter(model, tasks["sums"]), ids).float()
    for name, layer in lora_layers(model).items():
        assert torch.equal(merged[name + ".weight"], (layer.base.weight.float() + layer.delta()).bfloat16())
    after = logits(Transformer.from_pretrained(tmp_path / "merged"), ids).float()
    told = re.search(r"(\d+) tokens .* rounded, is ([\d.e-]+),\nwith logits up to ([\d.e-]+); .* same at (\d+)", said).groups()
    measured = (beside - after).abs().max(), beside.abs().max(), (beside.argmax(-1) == after.argmax(-1)).sum()
    assert [float(x) for x in told] == pytest.approx([ids.shape[1], *(m.item() for m in measured)], rel=5e-3)
    assert 0 < float(told[1]) < 0.05 * float(told[2])


def test_others_stop_where_we_stop(folder, tasks, ids, tmp_path, capsys):
    """A base whose config.json names another end than its template's; the tokenizer comes along."""
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | {"eos_token_id": 5}))
    (base / "chat_template.jinja").write_text(Tokenizer.from_pretrained(base).template)
    run(capsys, "merge", "--model", base, "--adapter", tasks["sums"], "--out", tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["eos_token_id"] == [2, 5]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config.eos_token_id == [2, 5]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_merging_into_what_qlora_saw(folder, tasks, ids, tmp_path, capsys):
    """The dequantized weights, those that the adapter leaves alone as well; they are no four bits any more."""
    run(capsys, "merge", "--model", folder, "--adapter", tasks["names"], "--out", tmp_path / "merged", "--nf4")
    expected = logits(load_adapter(quantize_model(Transformer.from_pretrained(folder)), tasks["names"]), ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=0)
    run(capsys, "merge", "--model", folder, "--adapter", tasks["names"], "--out", tmp_path / "of the original")
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "of the original"), ids) - expected).abs().max() > 0.01


def test_info(folder, model, tasks, capsys):
    said = run(capsys, "info", tasks["sums"])
    size, total = sum(A.numel() + B.numel() for A, B, *_ in read_adapter(tasks["sums"]).values()), trainable(model)
    files = tasks["sums"] / "adapter_model.safetensors", folder / "model.safetensors"
    nbytes, base_bytes = (file.stat().st_size for file in files)
    assert f"base        {folder}\nrank        4\nalpha       6: B A is scaled by 1.5\n" in said
    assert f"parameters  {size:,}, {size / total:.3g} of the base's {total:,}\n" in said
    assert f"MB on disk  {nbytes / 1e6:,.2f}, {nbytes / base_bytes:.3g} of the base's {base_bytes / 1e6:,.2f}\n" in said
    rows = {row.split()[0]: row for row in said.partition("||dW||")[2].splitlines()[1:]}
    assert set(rows) == set(LINEARS)
    assert re.search(r"2 +32 -> 48 +640 ", rows["up_proj"]) and re.search(r"2 +48 -> 32 +640 ", rows["down_proj"])
    load_adapter(model, tasks["sums"])
    for kind, row in rows.items():
        norms = torch.stack([layer.delta().norm() for name, layer in lora_layers(model).items() if name.endswith(kind)])
        assert float(row.split()[-1]) == pytest.approx(norms.square().mean().sqrt().item(), rel=1e-3)


def test_info_of_several_ranks(theirs, tmp_path, capsys):
    theirs.save_pretrained(tmp_path)
    said = run(capsys, "info", tmp_path)
    ranks = {len(f.A) for f in read_adapter(tmp_path).values()}
    assert f"rank        {min(ranks)} to {max(ranks)}\n" in said if len(ranks) > 1 else f"rank        {min(ranks)}\n" in said


@pytest.mark.parametrize("where", ["the cache", "nowhere", "a folder that has gone", "unsaid"])
def test_info_never_goes_online(folder, tasks, where, tmp_path, monkeypatch, capsys):
    """The base may be in the hub's cache, at the revision that the adapter names."""
    def socket_(*_):
        raise AssertionError("the network was asked for")

    name = {"a folder that has gone": "/no/such/folder", "unsaid": None}.get(where, "owner/base")
    config = json.loads((tasks["names"] / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": name, "revision": "v1" if where == "the cache" else None}
    (tasks["names"] / "adapter_config.json").write_text(json.dumps(config))
    if where == "the cache":
        shutil.copytree(folder, tmp_path / "hub/models--owner--base/snapshots" / ("1" * 40))
        (tmp_path / "hub/models--owner--base/refs").mkdir()
        (tmp_path / "hub/models--owner--base/refs/v1").write_text("1" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "socket", socket_)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    said = run(capsys, "info", tasks["names"])
    if where == "the cache":
        assert "base        owner/base@v1\n" in said and " of the base's" in said
    else:
        assert "parameters  " in said and "of the base's" not in said and "--model" in said
    assert " of the base's" in run(capsys, "info", tasks["names"], "--model", folder)


MISTAKES = {
    "no command": ([], "required: merge|info"), "no adapter": (["info"], "required: adapter"),
    "an unknown setting": (["info", "sums", "--rank", "4"], "unrecognized arguments: --rank 4"),
    "no such adapter": (["info", "nowhere"], "nowhere has no adapter_config.json"),
    "no such base": (["merge", "--adapter", "sums", "--out", "new", "--model", "nowhere"], "nowhere: no such folder"),
    "another base": (["merge", "--adapter", "sums", "--out", "new", "--model", "nano"], "sums: the adapter is for another base"),
    "of another base": (["info", "sums", "--model", "nano"], "sums: the adapter is for another base"),
    "a folder with files": (["merge", "--adapter", "sums", "--out", "names"], "--out names is there already and not empty"),
    "a file": (["merge", "--adapter", "sums", "--out", "sums/adapter_config.json"], "is there already and not empty"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tasks, case, tmp_path, monkeypatch, capsys):
    argv, words = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert words in refused(capsys, *argv)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()
