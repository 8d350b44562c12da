"""analyze.py: its figures against the tensors, and where it looks for the base."""
import json
import re
import shutil
import socket

import huggingface_hub
import peft
import pytest
import torch
from adapters import LINEARS, randomise_adapter
from runs import contents, one_line
from transformers import AutoModelForCausalLM

import analyze
from lora import apply_lora, load_adapter, lora_layers, read_adapter, save_adapter
from model import Transformer


def run(capsys, *argv):
    capsys.readouterr()
    analyze.main([str(a) for a in argv])
    return capsys.readouterr().out


def test_what_is_printed(folder, tasks, capsys):
    said = run(capsys, tasks["sums"])
    model = Transformer.from_pretrained(folder)
    total = sum(p.numel() for p in model.parameters())
    size = sum(f.A.numel() + f.B.numel() for f in read_adapter(tasks["sums"]).values())
    n_bytes = (tasks["sums"] / "adapter_model.safetensors").stat().st_size
    base_bytes = (folder / "model.safetensors").stat().st_size
    assert f"base        {folder}\nrank        4\nalpha       6: B A is scaled by 1.5\n" in said
    assert f"parameters  {size:,}, {size / total:.3g} of the base's {total:,}\n" in said
    assert (f"MB on disk  {n_bytes / 1e6:,.2f}, {n_bytes / base_bytes:.3g} of the base's "
            f"{base_bytes / 1e6:,.2f}\n") in said

    rows = {row.split()[0]: row for row in said.partition("||dW||")[2].splitlines()[1:]}
    assert set(rows) == set(LINEARS)
    assert re.search(r"2 +32 -> 48 +640 ", rows["up_proj"])
    assert re.search(r"2 +48 -> 32 +640 ", rows["down_proj"])
    load_adapter(model, tasks["sums"])
    for kind, row in rows.items():
        norms = [layer.delta().norm() for name, layer in lora_layers(model).items()
                 if name.endswith(kind)]
        expected = torch.stack(norms).square().mean().sqrt().item()
        assert float(row.split()[-1]) == pytest.approx(expected, rel=1e-3)


def test_several_ranks_and_alphas(folder, tmp_path, capsys):
    """An adapter of PEFT's: k_proj has rank 9 and alpha 2, the other layers 4 and 6."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=LINEARS,
                             rank_pattern={"k_proj": 9}, alpha_pattern={"k_proj": 2})
    model = AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    said = run(capsys, tmp_path)
    assert "rank        4 to 9\n" in said
    assert "alpha       2 to 6: B A is scaled by 0.222222 to 1.5\n" in said


@pytest.mark.parametrize("where", ["the cache", "nowhere", "a folder that is gone", "unsaid"])
def test_it_never_goes_online(folder, tasks, where, tmp_path, monkeypatch, capsys):
    """The base may be in the hub's cache, at the revision that the adapter names."""
    def refuse(*_):
        raise AssertionError("the network was asked for")

    name = {"a folder that is gone": "/no/such/folder", "unsaid": None}.get(where, "owner/base")
    path = tasks["names"] / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = name
    config["revision"] = "v1" if where == "the cache" else None
    path.write_text(json.dumps(config))
    if where == "the cache":
        cached = tmp_path / "hub/models--owner--base"
        shutil.copytree(folder, cached / "snapshots" / ("1" * 40))
        (cached / "refs").mkdir()
        (cached / "refs/v1").write_text("1" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    said = run(capsys, tasks["names"])
    if where == "the cache":
        assert "base        owner/base@v1\n" in said and " of the base's" in said
    else:
        assert "parameters  " in said and "of the base's" not in said
        assert re.search("^base        unknown: .*--model", said, re.MULTILINE)
    assert " of the base's" in run(capsys, tasks["names"], "--model", folder)


@pytest.mark.parametrize("named", ["nano", "/in/another/clone/data/nano/base"])
def test_the_base_of_an_adapter_of_nano_is_found(named, tmp_path, capsys):
    model = Transformer.from_pretrained("nano")
    total = sum(p.numel() for p in model.parameters())
    save_adapter(randomise_adapter(apply_lora(model, 1)), tmp_path, named)
    said = run(capsys, tmp_path)
    assert "base        nano\n" in said and f"of the base's {total:,}\n" in said


MISTAKES = {
    "no adapter": ([], "the following arguments are required: adapter"),
    "an unknown setting": (["sums", "--rank", "4"], "unrecognized arguments: --rank 4"),
    "no such adapter": (["nowhere"], "nowhere has no adapter_config.json"),
    "another base": (["sums", "--model", "nano"], "sums: the adapter is for another base"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tasks, case, tmp_path, monkeypatch, capsys):
    argv, words = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as e:
        run(capsys, *argv)
    assert words in one_line(e.value.code, capsys.readouterr().err)
    assert contents(tmp_path) == before
