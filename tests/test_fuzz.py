"""Seeded mutants of every kind of file (tests/hostile.py): no traceback, no hang, nothing else
changed. `python tests/hostile.py 50000` is the long form."""
import collections
import random
import shutil
from pathlib import Path

import peft
import pytest
import torch
from adapters import logits
from hostile import cases, make_valid_files, mutate_file, try_mutant
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora import load_adapter
from model import Transformer
from plumbing.errors import UserError
from tokenizer import Tokenizer

KINDS = list(cases(Path()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(where valid files lie, where a mutated copy of them goes: the paths in them name it)."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.move(make_valid_files(folder / "files"), folder / "valid")
    return folder / "valid", folder / "files"


def try_mutants(files, seeds):
    counts, wrong = collections.Counter(), []
    for seed in seeds:
        for kind in KINDS:
            result, text = try_mutant(kind, seed, *files)
            counts[result] += 1
            if result not in ("accepted", "refused"):
                wrong.append(f"{kind} {seed}: {result}\n{text}")
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > counts["accepted"] / 4 > 0       # it is no fuzzer of mere noise


@pytest.mark.slow
def test_the_valid_files_are_accepted(files):
    valid, scratch = files
    for kind in KINDS:
        result, text = try_mutant(kind, None, valid, scratch)
        assert result == "accepted", f"{kind}: {result}\n{text}"


def test_some_mutants(files):
    try_mutants(files, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_mutants(files, part):
    """22 of each of the 23 kinds in each part, so that processes can share them."""
    try_mutants(files, range(1 + 22 * part, 23 + 22 * part))


IDS = torch.tensor([[5, 17, 300, 41, 7]])
TEXT = "Natalia sold 48 clips: Lan có 12 quả táo?\n\n  \t'LL <|im_end|> <think>7</think> 苹果 é"
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": " 4 "}]


def compute(kind, model, adapter):
    """What our side makes of the files, in numbers or ids."""
    if kind == "tokenizer":
        tokenizer = Tokenizer.from_pretrained(model)
        return tokenizer.encode(TEXT), tokenizer.apply_chat_template(CHAT)
    ours = Transformer.from_pretrained(model, torch.float32)
    if kind == "adapter":
        load_adapter(ours, adapter)
    return logits(ours, IDS)


def compute_by_peers(kind, model, adapter):
    if kind == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(model)
        return (tokenizer.encode(TEXT, add_special_tokens=False),
                tokenizer.apply_chat_template(CHAT, tokenize=False))
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if kind == "adapter":
        theirs = peft.PeftModel.from_pretrained(theirs, adapter)
    return logits(theirs, IDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "tokenizer"])
def test_what_is_accepted_is_what_the_peers_compute(files, kind):
    """Of the mutants that both sides read. A peer also refuses fields that nothing here reads."""
    valid, scratch = files
    model, adapter = scratch / "model", scratch / "tasks/sums"
    spoilt = {"checkpoint": [model / "config.json", model / "model.safetensors"],
              "adapter": [adapter / name for name in
                          ("adapter_config.json", "adapter_model.safetensors")],
              "tokenizer": [model / "tokenizer.json", model / "tokenizer_config.json"]}[kind]
    compared = 0
    for seed in range(120):
        shutil.rmtree(scratch, ignore_errors=True)
        for name in ("model", "tasks"):
            shutil.copytree(valid / name, scratch / name)
        draw = random.Random(f"peers {kind} {seed}")
        mutate_file(draw.choice(spoilt), draw)
        try:
            ours = compute(kind, model, adapter)
        except UserError:
            continue
        try:
            theirs = compute_by_peers(kind, model, adapter)
        except BaseException:  # noqa: BLE001      a panic of Rust is no Exception
            continue
        if kind == "tokenizer":
            assert ours == theirs, f"{kind} {seed}"
        else:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3, equal_nan=True,
                                       msg=lambda text: f"{kind} {seed}: {text}")
        compared += 1
    assert compared > 20
