"""The embedded base: an ordinary Qwen2 checkpoint, small, not at the task yet, able to learn it."""
import contextlib
import random
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import REPO

import dataset
import train
from engine import mean_nll
from model import Transformer
from plumbing.files import NANO_BASE
from settings import Config
from tokenizer import Tokenizer

sys.path.insert(0, str(REPO / "data/nano"))
import pretrain  # noqa: E402


@pytest.fixture(scope="module")
def problems():
    """64 of the test problems, drawn at random, as samples."""
    path = dataset.find_dataset("nano") / "test.jsonl"
    samples, dropped = dataset.load_split(path, Tokenizer.from_pretrained("nano"), 256)
    assert len(samples) == 1322 and dropped == 0
    return random.Random(0).sample(samples, 64)


def test_it_is_small_and_opens_in_transformers():
    assert sum(file.stat().st_size for file in NANO_BASE.iterdir()) < 16e6
    peer = transformers.AutoModelForCausalLM.from_pretrained(NANO_BASE, dtype=torch.float32)
    assert type(peer).__name__ == "Qwen2ForCausalLM"
    model = Transformer.from_pretrained("nano", torch.float32)
    ids = torch.randint(0, 4096, (2, 40))
    with torch.no_grad():
        assert torch.allclose(model(ids), peer(ids).logits, atol=1e-4)
    rows, _ = model.model.embed_tokens.weight.shape
    assert rows == Tokenizer.from_pretrained("nano").n_vocab == 4096


def test_its_tokenizer_is_transformers_too():
    # not AutoTokenizer: in transformers 5 it puts Qwen2's split pattern in place of the file's
    ours = Tokenizer.from_pretrained("nano")
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(NANO_BASE)
    for messages in dataset.read_messages(dataset.find_dataset("nano") / "test.jsonl")[:200]:
        text = ours.apply_chat_template(messages)
        assert text == peer.apply_chat_template(messages, tokenize=False)
        assert ours.encode(text) == peer.encode(text)


def test_raised_gains_are_the_same_function():
    """The same bit for bit in float32, although the weights did change."""
    model = Transformer.from_pretrained("nano", torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, 4096, (2, 40))
    logits = model(ids)
    pretrain.raise_gains(model, 4.0, 2.0)
    assert torch.equal(model(ids), logits)
    ratios = {}
    for name, p in model.named_parameters():
        module = name.removesuffix(".weight").split(".", 3)[-1]     # model.layers.0.MODULE.weight
        ratios.setdefault(module, set()).add((p / before[name]).nanmedian().item())
    for module, ratio in (("input_layernorm", 4), ("self_attn.q_proj", 1/4),
                          ("self_attn.v_proj", 1/2), ("self_attn.o_proj", 1/2),
                          ("mlp.gate_proj", 1/4), ("mlp.up_proj", 1/2), ("mlp.down_proj", 1/2)):
        assert ratios[module] == {ratio}, module


def test_it_starts_near_the_task_and_learns_it(problems, tmp_path: Path):
    """Answers cost 1 to 3 nats per token at step 0. 20 steps of LoRA more than halve that."""
    model = Transformer.from_pretrained("nano", torch.float32)
    base = mean_nll(model, dataset.micro_batches(problems, 16), contextlib.nullcontext)
    assert 1 < base < 3.2
    rows = train.train(Config(max_steps=20, eval_samples=64, eval_steps=20, device="cpu",
                              out=str(tmp_path / "run")))
    assert rows[-1]["test_nll"] < rows[0]["test_nll"] / 2
