"""export.py: the merged checkpoint against PEFT's, its rounding, and what a user gets wrong."""
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from adapters import TASKS, in_peft, logits, randomise_adapter
from conftest import TINY, edit_json, tiny_tokenizer
from runs import contents, one_line
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import export
import train
from engine import base_of
from lora import apply_lora, load_adapter, lora_layers, save_adapter
from model import Transformer
from plumbing.files import NANO_BASE
from quant import quantize_model
from settings import parse
from tokenizer import Tokenizer


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(TINY["vocab_size"], (2, 20), generator=generator)


def run(capsys, *argv):
    capsys.readouterr()
    export.main([str(a) for a in argv])
    return capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_the_merged_checkpoint_is_pefts(folder, tasks, task, ids, tmp_path, capsys):
    out = tmp_path / "merged"
    said = run(capsys, "--model", folder, "--adapter", tasks[task], "--out", out,
               "--dtype", "float32")
    theirs = in_peft(folder, tasks[task])
    unmerged = logits(theirs, ids)
    expected = logits(theirs.merge_and_unload(), ids)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(merged, ids), unmerged, atol=1e-4, rtol=0)
    assert float(re.search(r"change of a logit is ([\d.e-]+)", said)[1]) < 1e-4


def test_merging_is_rounded_once_and_says_how_much_it_changed(folder, tasks, tmp_path, capsys):
    """The dtype is the checkpoint's own, the base the one that the adapter names."""
    half, out = tmp_path / "half", tmp_path / "merged"
    Transformer.from_pretrained(folder, torch.bfloat16).save_pretrained(half)
    tiny_tokenizer(half)
    edit_json(tasks["sums"] / "adapter_config.json", base_model_name_or_path=str(half))
    said = run(capsys, "--adapter", tasks["sums"], "--out", out)

    model, merged = Transformer.from_pretrained(half), load_file(out / "model.safetensors")
    ids = torch.tensor([Tokenizer.from_pretrained(half).encode(export.PROBE)])
    before = logits(load_adapter(model, tasks["sums"]), ids).float()
    for name, layer in lora_layers(model).items():
        exact = layer.base.weight.float() + layer.delta()
        assert torch.equal(merged[name + ".weight"], exact.bfloat16())
    after = logits(Transformer.from_pretrained(out), ids).float()
    largest, highest = (before - after).abs().max(), before.abs().max()
    same = (before.argmax(-1) == after.argmax(-1)).sum()
    nlls = [torch.nn.functional.cross_entropy(z[0, :-1], ids[0, 1:]).item()
            for z in (before, after)]
    told = re.search(r"text of (\d+) tokens has the NLL ([\d.]+) .* ([\d.]+) merged and rounded "
                     r"to bfloat16\nthe largest change of a logit is ([\d.e-]+), with logits up to "
                     r"([\d.e-]+); .* same at (\d+) of (\d+)\n", said)
    expected = [ids.shape[1], *nlls, largest.item(), highest.item(), same.item(),
                len(ids[0])]
    assert [float(x) for x in told.groups()] == pytest.approx(expected, rel=5e-3)
    assert ("more than rounding should cost" in said) == (nlls[1] - nlls[0] > 0.01)
    assert 0 < largest < 0.05 * highest


def test_others_stop_where_we_stop(folder, tasks, tmp_path, capsys):
    """A base whose config.json names another end than its template; the tokenizer comes along."""
    base, out = shutil.copytree(folder, tmp_path / "base"), tmp_path / "merged"
    edit_json(base / "config.json", eos_token_id=5)
    (base / "chat_template.jinja").write_text(Tokenizer.from_pretrained(base).template)
    run(capsys, "--model", base, "--adapter", tasks["sums"], "--out", out)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 5]
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.generation_config.eos_token_id == [2, 5]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_merging_into_what_qlora_saw(folder, tasks, ids, tmp_path, capsys):
    """The weights are dequantized, also those without an adapter, and stay so."""
    settings = "--model", folder, "--adapter", tasks["names"], "--out"
    run(capsys, *settings, tmp_path / "merged", "--nf4")
    model = quantize_model(Transformer.from_pretrained(folder))
    expected = logits(load_adapter(model, tasks["names"]), ids)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)
    run(capsys, *settings, tmp_path / "of the original")
    other = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "of the original"), ids)
    assert (other - expected).abs().max() > 0.01


@pytest.mark.parametrize("named", ["nano", "/in/another/clone/data/nano/base"])
def test_an_adapter_of_nano_finds_nano_in_any_clone(named, tmp_path, capsys):
    """train.py names nano as its base. Adapters made before name the folder in their own clone."""
    model = Transformer.from_pretrained("nano", torch.float32)
    randomise_adapter(apply_lora(model, 2), size=0.05)
    save_adapter(model, tmp_path / "adapter", named)
    assert base_of(tmp_path / "adapter") == "nano"
    run(capsys, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged",
        "--dtype", "float32")

    ids = torch.tensor([[5, 17, 300, 41]])
    expected = logits(model, ids)
    merged = Transformer.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-3, rtol=0)
    theirs = in_peft(NANO_BASE, tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(logits(theirs, ids), expected, atol=1e-3, rtol=0)


def test_a_run_on_nano_names_nano_and_no_folder(chat, tmp_path, capsys):
    argv = ["--data", chat, "--out", tmp_path / "run", "--max_steps", 1, "--rank", 1]
    train.train(parse([str(a) for a in argv]))
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "nano"
    run(capsys, "--adapter", tmp_path / "run", "--out", tmp_path / "merged")
    assert (tmp_path / "merged/config.json").is_file()


MISTAKES = {
    "no adapter": (["--out", "new"], "required: --adapter"),
    "no folder": (["--adapter", "sums"], "required: --out"),
    "an unknown setting": (["--adapter", "sums", "--out", "new", "--rank", "4"],
                           "unrecognized arguments: --rank 4"),
    "no such base": (["--adapter", "sums", "--out", "new", "--model", "nowhere"],
                     "nowhere: no such folder"),
    "another base": (["--adapter", "sums", "--out", "new", "--model", "nano"],
                     "sums: the adapter is for another base"),
    "a folder with files": (["--adapter", "sums", "--out", "names"],
                            "--out names exists and is not empty"),
    "a file": (["--adapter", "sums", "--out", "sums/adapter_config.json"],
               "exists and is not empty"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tasks, case, tmp_path, monkeypatch, capsys):
    argv, words = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as e:
        run(capsys, *argv)
    assert words in one_line(e.value.code, capsys.readouterr().err)
    assert contents(tmp_path) == before and not Path("new").exists()


def test_a_bases_folder_may_have_an_at_in_its_name(tmp_path):
    """owner/name@revision is a repository's revision; a folder is a folder."""
    folder = tmp_path / "me@lab"
    folder.mkdir()
    model = apply_lora(Transformer.from_pretrained("nano"), 2)
    save_adapter(model, tmp_path / "adapter", str(folder))
    assert base_of(tmp_path / "adapter") == str(folder)
    save_adapter(model, tmp_path / "of the hub", "owner/name@v1")
    assert base_of(tmp_path / "of the hub") == "owner/name@v1"


@pytest.mark.parametrize("logit, dtype, warned", [
    (0.04, "bfloat16", True), (0.04, "float32", False), (0.01, "bfloat16", False),
    (-0.04, "bfloat16", False), (float("nan"), "bfloat16", True)])
def test_rounding_that_costs_more_than_it_should_is_named(logit, dtype, warned, capsys):
    """ln 2 before. log(1 + e^x) is x / 2 above it for a small x: 0.02, and 0.005 for 0.01."""
    ids, before = torch.tensor([0, 1]), torch.zeros(2, 2)
    export.print_rounding(before, torch.tensor([[logit, 0.0], [0.0, 0.0]]), ids, dtype)
    assert ("more than rounding should cost" in capsys.readouterr().out) == warned
