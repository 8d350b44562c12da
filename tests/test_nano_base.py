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
from pretrain import VOCAB  # noqa: E402


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
    ids = torch.randint(0, VOCAB, (2, 40))
    with torch.no_grad():
        assert torch.allclose(model(ids), peer(ids).logits, atol=1e-4)
    rows, _ = model.model.embed_tokens.weight.shape
    assert rows == Tokenizer.from_pretrained("nano").n_vocab == VOCAB


HARD = ["12 34  567", "a1b2 x3", "  hai   khoảng\n\n trắng \t", "I'll DON'T we'Ve", "5%, ½ ² ٣٤",
        "Tie\u0302\u0301ng Vie\u0323\u0302t", "日本語 русский العربية हिन्दी", "\r\n\r\n a\r b",
        "👍🏽🇻🇳 x\u200dy\u00a0z", " ", "", "<think>3x4=12</think>\n12<|im_end|>\n<|im_start|>user",
        "<think> </think><|endoftext|>", "<|im_start|><|im_start|> <|im_end|"]


def test_its_tokenizer_is_transformers_too():
    """AutoTokenizer gives a qwen2 model Qwen2's split pattern; the file has the same."""
    ours = Tokenizer.from_pretrained("nano")
    peer = transformers.AutoTokenizer.from_pretrained(NANO_BASE)
    folder = dataset.find_dataset("nano")
    chats = [chat for split in ("train", "test")
             for chat in dataset.read_messages(folder / f"{split}.jsonl")]
    texts = [ours.apply_chat_template(chat) for chat in chats]
    assert texts[:50] == [peer.apply_chat_template(chat, tokenize=False) for chat in chats[:50]]
    for text in texts + HARD:
        ids = ours.encode(text)
        assert ids == peer.encode(text), text
        assert ours.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False), text
    assert (ours.eos_token, ours.end_of_turn) == (peer.eos_token, peer.eos_token_id)


def test_raised_gains_are_the_same_function():
    """The same bit for bit in float32, although the weights did change."""
    model = Transformer.from_pretrained("nano", torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, VOCAB, (2, 40))
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


@pytest.mark.slow
def test_it_starts_near_the_task_and_learns_it(problems, tmp_path: Path):
    """Answers cost 2 to 5 nats per token at step 0. 20 steps of LoRA more than halve that."""
    model = Transformer.from_pretrained("nano", torch.float32)
    base = mean_nll(model, dataset.micro_batches(problems, 16), contextlib.nullcontext)
    assert 2 < base < 5
    rows = train.train(Config(max_steps=20, eval_samples=64, eval_steps=20, device="cpu",
                              out=str(tmp_path / "run")))
    assert rows[-1]["test_nll"] < rows[0]["test_nll"] / 2


def test_bfloat16_where_the_processor_has_it(monkeypatch):
    """Either kind of hardware is enough, and a torch without the questions means float32."""
    for avx512, amx, expected in ((True, False, True), (False, True, True), (False, False, False)):
        with monkeypatch.context() as m:
            m.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
            m.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
            assert pretrain.has_bfloat16() is expected
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert pretrain.has_bfloat16() is False


def test_pretraining_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Stopped after two of four steps and resumed, it ends in the same weights, bit for bit."""
    tokenizer = Tokenizer.from_pretrained("nano")
    monkeypatch.setattr(pretrain, "make_tokenizer", tokenizer.save_pretrained)
    for name, value in (("STEPS", 4), ("SAVE_EVERY", 2), ("BATCH", 2), ("BLOCK", 32)):
        monkeypatch.setattr(pretrain, name, value)
    pretrain.main(tmp_path / "whole", resume=False)

    def stop(model, tokenizer):
        if (tmp_path / "halves/state.safetensors").exists():
            raise KeyboardInterrupt
        return 0.0
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(pretrain, "measure_held_out_nll", stop)
        pretrain.main(tmp_path / "halves", resume=False)
    pretrain.main(tmp_path / "halves", resume=True)
    assert "after step 2" in capsys.readouterr().out
    whole, halves = (Transformer.from_pretrained(tmp_path / name).state_dict()
                     for name in ("whole", "halves"))
    assert all(torch.equal(halves[name], p) for name, p in whole.items())
