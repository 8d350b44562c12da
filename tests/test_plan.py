"""The plan's numbers against autograd's own bookkeeping, the profiler's count of live bytes, whole models, and known cases."""
import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from conftest import REPO, TINY
from runs import one_line
from torch.profiler import ProfilerActivity, profile

import plan
import train
from lora import apply_lora
from model import DTYPES, ModelConfig, Transformer, UserError
from quant import NF4Tensor, quantize_model

CONFIGS = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "llama": {"model_type": "llama", "num_key_value_heads": 4, "num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True},
}
QWEN = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True}
QWEN3_8B = {"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "head_dim": 128,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151_936}
LLAMA = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}


def config(name="qwen2", **changes):
    return ModelConfig.from_hf(TINY | CONFIGS[name] | changes)


def setting(**changes):
    default = {"rank": 5, "micro_bs": 3, "max_length": 12, "dtype": "float32", "device": "cpu", "grad_accum": 2}
    return train.Config(**default | changes)


def build(c, run):
    model = Transformer(c).to(torch.float32 if run.method == "full" else DTYPES[run.dtype])
    if run.method == "qlora":
        quantize_model(model)
    return model if run.method == "full" else apply_lora(model, run.rank, targets=run.targets)


# ----- sizes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp", "v_proj,gate_proj"])
def test_parameters(name, targets):
    """As the model has them, and the adapters on it."""
    c = config(name)
    model = Transformer(c)
    assert plan.parameters(c) == sum(p.numel() for p in model.parameters())
    apply_lora(model, 5, targets=targets)
    assert plan.adapter_parameters(c, 5, targets) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_known_sizes():
    qwen, qwen3, llama = (ModelConfig.from_hf(hf) for hf in (QWEN, QWEN3_8B, LLAMA))
    assert plan.parameters(qwen) == 494_032_768 and plan.adapter_parameters(qwen, 64) == 35_192_832
    assert [plan.adapter_parameters(qwen, 1, t) / 24 for t in ("attention", "mlp")] == [135_168 / 24, 414_720 / 24]
    millions = [round(plan.adapter_parameters(qwen3, 256, t) / 1e6) for t in ("mlp", "attention", "all-linear")]
    assert millions == [453, 245, 698]
    assert plan.parameters(llama) == 1_235_814_400


def test_rule_of_thumb():
    """1.23B parameters at 16 bytes, and at 24 with 8 for activations: 29.5 GB, not the 24 GB that 20 bytes would be."""
    assert plan.rule_of_thumb(1e9) == 16e9
    assert plan.rule_of_thumb(1.23e9, 8) == pytest.approx(29.5e9, rel=2e-3)


@pytest.mark.parametrize("parameters, dtype, expected", [(1e9, "float32", 4e9), (1e9, "bfloat16", 2e9), (109e9, "bfloat16", 220e9)])
def test_weights_of_a_size(parameters, dtype, expected):
    """1B parameters are 4 GB in float32 and 2 GB in 16 bits; 109B in 16 bits are the 220 GB that they are said to take."""
    c = config("llama", hidden_size=1024, head_dim=64, num_attention_heads=16, num_key_value_heads=16, vocab_size=1000)
    c = dataclasses.replace(c, intermediate_size=round(parameters / 3 / 3 / 1024))      # nearly all in the three layers' MLPs
    got = plan.memory(c, setting(method="lora", dtype=dtype), False)[0]
    assert got.name == "weights" and got.bytes == pytest.approx(expected, rel=0.02)


# ----- activations --------------------------------------------------------------------------------------------------

def kept_by_autograd(c, run, checkpointing):
    """Bytes of the storages, parameters left out, that autograd holds after the forward pass."""
    torch.manual_seed(0)
    model = build(c, run)
    model.gradient_checkpointing = checkpointing
    ids = torch.randint(c.vocab_size, (run.micro_bs, run.max_length))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()      # held, so that no address comes twice
        return t

    mixed = run.method == "full" and run.dtype != "float32"
    with torch.autocast("cpu", DTYPES[run.dtype]) if mixed else contextlib.nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            nll, _ = model.loss(ids, ids)
    return sum(storage.nbytes() for storage in kept.values())


ADAPTED = ["all-linear", "attention", "mlp", "q_proj,v_proj", "o_proj", "k_proj,up_proj", "down_proj"]


@pytest.mark.parametrize("name, dtype, method, targets", [
    *((name, dtype, "full", "all-linear") for name in CONFIGS for dtype in ("float32", "bfloat16")),
    *(("qwen3", "bfloat16", "lora", targets) for targets in ADAPTED), ("qwen2", "float32", "lora", "all-linear"),
    ("llama", "float32", "lora", "q_proj,v_proj"), ("llama", "bfloat16", "lora", "all-linear"),
    ("qwen2", "float32", "qlora", "all-linear")])
def test_activations_are_what_autograd_keeps(name, dtype, method, targets):
    """To the byte, with and without checkpointing."""
    c, run = config(name), setting(method=method, dtype=dtype, targets=targets)
    for checkpointing in (False, True):
        rows = plan.memory(c, run, checkpointing)
        planned = sum(row.bytes for row in rows if row.when == "kept" or row.name.startswith("~ dNLL"))
        assert planned == kept_by_autograd(c, run, checkpointing), checkpointing


# ----- the peak -----------------------------------------------------------------------------------------------------

def peak_of_tensors(c, run, checkpointing):
    """The most bytes of tensors alive at once while a model is made and steps twice, as the profiler sees the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = plan.stepper(c, run, checkpointing)
        step()
        step()
    events = sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak


BIG = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 2000}     # tensors, not crumbs
PEAKS = {           # what of a plan decides, and settings in which it does
    "full": {"method": "full"}, "lora": {"method": "lora", "rank": 32}, "qlora": {"method": "qlora", "rank": 32},
    "16 bits": {"method": "full", "dtype": "bfloat16"}, "lora in 16 bits": {"method": "lora", "dtype": "bfloat16"},
    "two chunks": {"method": "lora", "micro_bs": 9, "max_length": 96}, "a layer": {"method": "full", "max_length": 300},
    "8-bit moments": {"method": "full", "micro_bs": 1, "optimizer": "adamw8bit"},
    "paged": {"method": "lora", "optimizer": "paged_adamw"},
    "one micro-batch": {"method": "full", "grad_accum": 1}, "embedding": {"method": "full", "max_length": 4, "grad_accum": 1},
}


@pytest.mark.parametrize("what", PEAKS)
def test_peak_is_the_allocator_s(what):
    run = setting(**{"micro_bs": 2, "max_length": 100} | PEAKS[what])
    for checkpointing in (False, True):
        for tied in (True, False) if run.method == "full" else (True,):
            c = config(**BIG | {"tie_word_embeddings": tied})
            true = peak_of_tensors(c, run, checkpointing)
            assert plan.peak(c, run, checkpointing) == pytest.approx(true, rel=0.03), (checkpointing, tied)
