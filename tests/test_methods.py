"""What holds for every file of methods/: counts, starts, files, merging, caches, commands."""
import ast
import json
import shutil
import subprocess
import sys
import types

import pytest
import torch
from adapters import logits
from conftest import REPO, edit_json
from runs import command, contents, numbers, one_line, press_ctrl_c
from safetensors.torch import load_file, save_file

import analyze
import memory
import settings
import sweep
import train
from engine import room_for_prompt
from lora import adapted_layers, merge_lora, remove_lora, save_adapter, unmerge_lora
from methods import (Setup, find_method, method_that_reads, open_adapter, parse_options, put_on,
                     switch_adapter, take_off, trained_parameters)
from model import ModelConfig, Transformer
from plumbing.errors import UserError
from plumbing.files import read_json
from quant import quantize_model
from settings import RELATIVES, Config, settled

UNMERGEABLE = {"prefix_embedding", "prefix_layer", "adapter"}
OPTIONS = {"mora": "form=sharing", "pissa": "niter=4", "adalora": "init_rank=5"}


def setup(name, rank=3, alpha=6.0, targets="all-linear", options="", steps=20):
    return Setup(rank, alpha, targets, parse_options(find_method(name), options), steps)


def adapted(folder, name, quantized=False, **how):
    """The model in `folder` with the method on it."""
    torch.manual_seed(5)
    model = Transformer.from_pretrained(folder)
    if quantized:
        quantize_model(model)
    put_on(model, find_method(name), setup(name, **how))
    return model.eval()


@torch.no_grad()
def shake(model, size=0.3, seed=0):
    """Add noise to all that is trained, so that nothing is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for p in trained_parameters(model).values():
        p.add_(size * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture
def ids():
    return torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))


# ----- what a file says ---------------------------------------------------------------------------

def test_every_file_is_a_method():
    files = {path.stem for path in (REPO / "methods").glob("*.py")} - {"__init__"}
    assert files == set(RELATIVES) == set(settings.METHODS) - {"full", "qlora"}
    for name in RELATIVES:
        method = find_method(name)
        assert method.name == name and method.count.__doc__
        assert bool(method.unmergeable) == (name in UNMERGEABLE)


@pytest.mark.parametrize("path", sorted((REPO / "methods").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_method_can_be_read_in_five_minutes(path):
    """At most 60 lines of code; AdaLoRA's three parts have 115."""
    text = path.read_text(encoding="utf-8")
    documented = ast.Module | ast.FunctionDef | ast.ClassDef
    explained = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node):
            first = node.body[0]
            explained |= set(range(first.lineno, first.end_lineno + 1))
    code = [line for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.strip().startswith("#") and number not in explained]
    assert len(code) <= (115 if path.stem == "adalora" else 60)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,down_proj"])
@pytest.mark.parametrize("name", RELATIVES)
def test_counts(checkpoint, name, targets, family):
    """The file's formula, plan.py's number, and what has a gradient."""
    folder, ignored = checkpoint(family), find_method(name).ignores
    if "targets" in ignored:
        targets = "all-linear"
    run = settled(Config(model=str(folder), method=name, rank=3, targets=targets, max_steps=20), 40)
    model = adapted(folder, name, targets=targets, rank=run.rank)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert memory.method_parameters(ModelConfig.from_pretrained(folder), run) == trained > 0


@pytest.mark.parametrize("name", RELATIVES)
def test_the_start_is_the_base(folder, name, ids):
    """Virtual tokens change it; DoRA rounds."""
    expected = logits(Transformer.from_pretrained(folder), ids)
    got = logits(adapted(folder, name), ids)
    if name.startswith("prefix"):
        assert (got - expected).abs().max() > 1e-2
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if name == "dora" else 0)


@pytest.mark.parametrize("name", RELATIVES)
def test_everything_that_is_trained_has_a_gradient(folder, name, ids):
    """Also after the first step: `shake` makes B, l and the others other than zero."""
    model = shake(adapted(folder, name))
    loss, _ = model.loss(ids, ids)
    loss.backward()
    for parameter, p in trained_parameters(model).items():
        assert p.grad is not None and p.grad.abs().max() > 0, parameter
    assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)


# ----- files --------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("name", RELATIVES)
def test_saved_and_loaded_it_is_the_same_model(folder, name, options, ids, tmp_path):
    how = {"options": OPTIONS.get(name, "") if options else ""}
    model = shake(adapted(folder, name, **how))
    method = find_method(name)
    method.save(model, tmp_path, str(folder), setup(name, **how))
    other = Transformer.from_pretrained(folder)
    switch_adapter(other, open_adapter(tmp_path, other), merge=False)
    torch.testing.assert_close(logits(other, ids), logits(model, ids), rtol=0, atol=1e-4)
    plain = {"rslora": "lora", "loraplus": "lora", "pissa": "lora"}
    config = read_json(tmp_path / "adapter_config.json")
    assert method_that_reads(config, tmp_path).name == plain.get(name, name)
    take_off(other)
    assert torch.equal(logits(other, ids), logits(Transformer.from_pretrained(folder), ids))


@pytest.mark.parametrize("name", RELATIVES)
def test_an_adapter_of_another_base_is_refused_and_changes_nothing(
        folder, checkpoint, name, ids, tmp_path):
    other = checkpoint("qwen2", hidden_size=64, intermediate_size=80, num_hidden_layers=3)
    model = shake(adapted(other, name))
    method = find_method(name)
    method.save(model, tmp_path, str(other), setup(name))
    model = Transformer.from_pretrained(folder)
    with pytest.raises(UserError, match="another base|no linear|fits no"):
        open_adapter(tmp_path, model)
    assert torch.equal(logits(model, ids), logits(Transformer.from_pretrained(folder), ids))


@pytest.mark.parametrize("length", ["--max_steps=12", "--epochs=4"])
def test_adalora_ends_at_its_budget(checkpoint, chat, tmp_path, length):
    """The pitfall: its schedule must know how many steps there are. 40 samples are 3 steps."""
    train.main([f"--model={checkpoint()}", f"--data={chat}", f"--out={tmp_path}", length,
                "--method=adalora", "--rank=2", "--eval_steps=12", "--lr=1e-2"])
    config = read_json(tmp_path / "adapter_config.json")
    ranks = [sum(on) for on in config["rank_pattern"].values()]
    assert config["total_step"] == 12 and len(ranks) == 14 and sum(ranks) == 2 * 14 < 3 * 14


@pytest.mark.parametrize("config, words", [
    ({"peft_type": "IA3"}, "no method here reads .*IA3"),
    ({"peft_type": "LORA", "bias": "all"}, "its config has bias$"),
    ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "its config has modules_to_save$"),
    ({"peft_type": "LORA", "use_dora": True, "init_lora_weights": "olora"},
     "its config has use_dora, init_lora_weights$")])
def test_an_unknown_kind_is_refused(folder, tmp_path, config, words):
    shutil.copytree(folder, tmp_path / "a")
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(UserError, match=words):
        open_adapter(tmp_path / "a")


# ----- merging ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", sorted(set(RELATIVES) - UNMERGEABLE))
def test_merged_gives_the_same_logits_and_unmerged_the_base_bit_for_bit(folder, name, ids):
    model = shake(adapted(folder, name))
    bits = {n: p.clone() for n, p in model.named_parameters()}
    before = logits(model, ids)
    merge_lora(model)
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=1e-4)
    unmerge_lora(model)
    assert all(torch.equal(p, bits[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model, ids), before)
    merge_lora(model)
    remove_lora(model)
    assert not adapted_layers(model)
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_base_in_four_bits(folder, name, ids):
    model = adapted(folder, name, quantized=True)
    dense = Transformer.from_pretrained(folder)
    for module, layer in list(quantize_model(dense).named_modules()):
        if hasattr(layer, "weight") and not torch.is_tensor(layer.weight):
            linear = torch.nn.Linear(layer.in_features, layer.out_features)
            linear.weight = torch.nn.Parameter(layer.weight.dequantize())
            linear.bias = layer.bias
            dense.set_submodule(module, linear)
    torch.manual_seed(5)
    put_on(dense.eval(), find_method(name), setup(name))
    shake(model)
    shake(dense)
    few = ids[:1, :9]           # many would meet W + dW in the dense one alone
    torch.testing.assert_close(logits(model, few), logits(dense, few), rtol=0, atol=1e-5)
    for one in (model, dense):
        one.loss(ids, ids)[0].backward()
    expected = trained_parameters(dense)
    for parameter, p in trained_parameters(model).items():
        torch.testing.assert_close(p.grad, expected[parameter].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@pytest.mark.parametrize("name", RELATIVES)
def test_in_16_bits_logits_and_gradients_are_nearly_those_of_float32(
        folder, name, dtype, rtol, ids):
    """Against the same weights in float32; what is trained stays float32."""
    torch.manual_seed(5)
    model = Transformer.from_pretrained(folder, dtype=dtype)
    wide = Transformer.from_pretrained(folder, dtype=dtype).float()
    for one in (model, wide):
        torch.manual_seed(5)
        put_on(one, find_method(name), setup(name))
        shake(one.eval(), size=0.1)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    got, expected = logits(model, ids), logits(wide, ids)
    assert got.dtype == dtype and (got.float() - expected).norm() < rtol * expected.norm()
    grads = []
    for one in (model, wide):
        nll, n = one.loss(ids, ids)
        (nll / n).backward()
        grads.append({parameter: p.grad for parameter, p in trained_parameters(one).items()})
    for parameter, grad in grads[0].items():
        exact = grads[1][parameter]
        assert (grad - exact).norm() < 3 * rtol * exact.norm(), parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_compiled_layers_give_the_eager_gradients(folder, name, ids, monkeypatch):
    """One graph per layer and micro-batch, of any length. The backend needs no compiler."""
    calls = []

    def counting(graph, _):
        return lambda *args: calls.append(1) or graph.forward(*args)

    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda layer, **how: compile_layer(layer, backend=counting, **how))
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        config = settled(Config(model=str(folder), method=name, rank=3, alpha=None, max_steps=20,
                                device="cpu", compile=compiled), 40)
        model = shake(train.set_up(config, None, Transformer.from_pretrained(folder)).model)
        losses = []
        for micro_batch in (ids, ids[:, :11], ids[:1, :7]):
            before = len(calls)
            nll, _ = model.loss(micro_batch, micro_batch)
            nll.backward()
            losses.append(nll.item())
            assert len(calls) - before == (2 if compiled else 0)
        results.append((losses, {n: p.grad for n, p in trained_parameters(model).items()}))
    (losses, grads), (eager_losses, eager_grads) = results[1], results[0]
    assert losses == pytest.approx(eager_losses, rel=1e-5)
    for (parameter, grad), (_, eager) in zip(grads.items(), eager_grads.items(), strict=True):
        torch.testing.assert_close(grad, eager, rtol=1e-4, atol=1e-5, msg=parameter)


# ----- generation ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RELATIVES)
def test_a_cache_and_left_padding_change_no_token(folder, name):
    """Prompts of different lengths in one batch, against the whole forward pass for each token."""
    model = shake(adapted(folder, name), size=0.1)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    rows = model.generate(prompts, 12)
    for prompt, row in zip(prompts, rows):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
        assert row == ids


@pytest.mark.parametrize("name", ["prefix_embedding", "prefix_layer", "adapter", "dora"])
def test_gradient_checkpointing_changes_no_gradient(folder, name, ids):
    gradients = []
    for checkpointing in (False, True):
        model = shake(adapted(folder, name))
        model.gradient_checkpointing = checkpointing
        model.loss(ids, ids)[0].backward()
        gradients.append({n: p.grad for n, p in trained_parameters(model).items()})
    for parameter, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], expected, rtol=1e-5, atol=1e-6)


# ----- the commands -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", sorted(set(RELATIVES) - {"lora"}))
def test_a_run_stopped_and_resumed_ends_bit_for_bit_the_same(
        checkpoint, chat, name, tmp_path, monkeypatch):
    usual = {"method": name, "max_steps": 8, "grad_accum": 2, "lr": 3e-3}
    argv = command(checkpoint(), chat, tmp_path / "whole", **usual)
    train.main(argv)
    argv = command(checkpoint(), chat, tmp_path / "stopped", **usual)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        press_ctrl_c(patched, step=3)       # adalora looks at gradients until step 4 of 8
        train.main(argv)
    train.main([*argv, "--resume"])
    rows = numbers(tmp_path / "whole")
    assert rows == numbers(tmp_path / "stopped")
    assert rows[-1]["test_nll"] < rows[0]["test_nll"] and rows[0]["method"] == name
    files = [contents(tmp_path / run) for run in ("whole", "stopped")]
    weights = [{path.name: data for path, data in some.items() if "adapter" in path.name}
               for some in files]
    assert weights[0] == weights[1] and len(weights[0]) == 2


@pytest.mark.slow
def test_a_run_says_what_rate_and_factor_the_method_has_and_what_the_base_answers(
        checkpoint, chat, tmp_path, capsys, monkeypatch):
    """A rate that is far too low is named. The base answers before virtual tokens are there."""
    base_answers, shown, answers, show = {}, {}, [], train.show_answers
    monkeypatch.setattr(train, "show_answers",
                        lambda *args: answers.append(args[1]) or show(*args))
    for name in ("lora", "rslora", "adalora", "prefix_layer", "full"):
        train.main(command(checkpoint(), chat, tmp_path / name, method=name, lr=2e-4, max_steps=4,
                           eval_steps=4, eval_samples=2))
        base_answers[name] = read_json(tmp_path / name / "run.json")["base_answer"]
        said, _, after = capsys.readouterr().out.partition("step    0")
        shown[name] = dict(line.strip().split("  ", 1) for line in said.splitlines()
                           if line.startswith("  ") and "  " in line.strip())
        assert answers[-1] == base_answers[name] and "\nbase  " in after
    assert len(set(base_answers.values())) == 1 and base_answers["lora"]
    factors = {name: some.get("factor of dW", "").strip() for name, some in shown.items()}
    assert factors == {"lora": "1", "rslora": "2", "adalora": "0.666666", "prefix_layer": "",
                       "full": ""}
    usual = find_method("adalora").lr
    assert shown["adalora"]["lr"].strip() == f"0.0002, low: without --lr adalora takes {usual:.2g}"
    assert shown["lora"]["lr"].strip() == (
        "0.0002, low: for this model, r and alpha plan.py names 0.0041")
    assert shown["full"]["lr"].strip() == "0.0002"
    assert shown["full"]["ignored"].strip() == "--rank: full fine-tuning has no adapters"
    assert shown["prefix_layer"]["virtual tokens"].strip().startswith("4 in front of each text")

    train.main(command(checkpoint(), chat, tmp_path / "qlora", method="qlora", max_steps=1))
    assert "\nbase (nf4)  " in capsys.readouterr().out         # another base


LOW = "0.0008, low: for this model, r and alpha plan.py names 0.0041"


# 5e-5 (2000 / 32)^0.0775 is 6.89e-5: of full fine-tuning, and 15 times that of LoRA with alpha = 32
@pytest.mark.parametrize("changes, why", [
    *[({"lr": 8e-4, "method": method}, LOW) for method in ("lora", "qlora", "dora")],
    ({"lr": 9e-4}, ""), ({"lr": 3e-4, "alpha": 32.0}, ""),
    ({"lr": 2e-4, "alpha": 32.0}, "0.0002, low: for this model, r and alpha plan.py names 0.001"),
    ({"lr": 3e-6, "method": "full"}, "3e-06, low: without --lr full takes 2e-05"),
    ({"lr": 5e-6, "method": "full"}, "")])
def test_a_rate_that_is_far_too_low_is_named(checkpoint, changes, why):
    config = settled(Config(**{"rank": 4, "max_steps": 4} | changes), 1)
    method = None if config.method == "full" else find_method(config.adapter_method)
    model = types.SimpleNamespace(config=ModelConfig.from_pretrained(checkpoint()))
    run = types.SimpleNamespace(config=config, method=method, model=model,
                                data=types.SimpleNamespace(train_set=[], test_set=[]))
    assert train.doubts(run).get("lr", "") == why


@pytest.mark.parametrize("name", RELATIVES)
def test_a_method_has_a_rate_of_its_own(name):
    assert settled(Config(method=name), 40).lr == find_method(name).lr
    assert settled(Config(method=name, lr=3e-3), 40).lr == 3e-3


@pytest.mark.parametrize("flags, message", [
    (["--method=full", "--nf4"], "contradict each other"),
    (["--method=full", "--options=a=1"], "has none"),
    (["--method=dora", "--options=ratio=1"], "dora has no option 'ratio'; it has: none"),
    (["--method=loraplus", "--options=ratio=fast"], "ratio 'fast': it must be a number"),
    (["--method=mora", "--options=form=square"], "must be rotation or sharing"),
    (["--method=pissa", "--rank=33"], "has only 32"),
    (["--method=prefix_layer", "--rank=512"], "leave no room for text"),
    (["--method=loraplus", "--options=ratio=-1"], "ratio -1: it must be a number, at least 0"),
    (["--method=pissa", "--options=niter=1.5"], "niter 1.5: it must be a whole number, at least 0"),
    (["--method=pissa", "--options=niter"], "niter '': it must be a whole number, at least 0"),
    (["--method=adapter", "--targets=q_proj"], "--targets does not go with --method adapter"),
    (["--method=prefix_layer", "--alpha=3"], "--alpha does not go with --method prefix_layer"),
    (["--method=adalora", "--max_steps=2", "--eval_steps=1"], "at least 3 steps"),
    (["--method=adalora", "--options=init_rank=2"], "must be at least --rank 4"),
])
def test_what_cannot_be_meant_ends_in_one_line(
        checkpoint, chat, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*command(checkpoint(), chat, tmp_path / "out"), *flags])
    assert message in one_line(stop.value.code, capsys.readouterr().err)


def test_one_run_has_one_name(folder):
    def name(**how):
        return settled(Config(model=str(folder), **how), 40)

    assert name(method="qlora").run == name(method="lora", nf4=True).run
    assert name(method="lora", nf4=True).method == "qlora"
    assert name(method="qlora", nf4=True).run == name(method="qlora").run
    assert name(method="dora").run != name(method="dora", nf4=True).run
    plain, same = name(method="loraplus"), name(method="loraplus", options="ratio=16")
    assert plain.run == same.run and same.options == ""
    other = name(method="loraplus", options="ratio=8")
    assert other.options == "ratio=8.0" and other.run != plain.run
    assert plain.lr == 5e-5
    assert name(method="bitfit", rank=4).run == name(method="bitfit", rank=8).run


TOY = '''
"""A scale for the output of each target: h = (1 + g) W x."""
import torch
import torch.nn as nn

from lora import AdaptedLinear, wrap_targets
from methods import Method


class Scaled(AdaptedLinear):
    def __init__(self, base):
        super().__init__(base)
        self.g = nn.Parameter(torch.zeros(base.out_features))

    def adapted(self, x):
        return self.base(x) * (1 + self.g.to(x.dtype))

    def delta(self):
        return self.g[:, None] * self.base_weight().float()


def apply(model, setup):
    wrap_targets(model, setup.targets, Scaled)


def count(shapes, setup):
    """L sum of out."""
    return shapes.layers * sum(o for _, o in shapes.maps.values())


METHOD = Method("toy", apply, count, ignores=("rank", "alpha"))
'''


@pytest.mark.slow
def test_a_method_is_a_file(checkpoint, chat, tmp_path):
    """A toy is added as one file to a copy of the house: every command takes it."""
    model = checkpoint("llama")                     # no biases, so that W' = (1 + g) W merges
    for path in REPO.glob("*.py"):
        shutil.copy(path, tmp_path)
    for folder in ("plumbing", "methods", "data"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    (tmp_path / "methods/toy.py").write_text(TOY)
    (tmp_path / "toys.toml").write_text(
        '[[toys]]\nmethod = ["toy", "lora"]\nrank = 2\nlr = [1e-3, 1e-2]\n')

    def run(script, *argv):
        done = subprocess.run([sys.executable, script, *map(str, argv)], cwd=tmp_path, text=True,
                              capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    usual = [f"--model={model}", f"--data={chat}"]
    run("train.py", *usual, "--method=toy", "--max_steps=4", "--out=toy", "--lr=1e-2")
    assert read_json(tmp_path / "toy/adapter_config.json")["peft_type"] == "TOY"
    assert run("sample.py", "--adapter=toy", "--max_new_tokens=4", "Lan?")
    assert "toy" in run("evaluate.py", *usual, "--adapter=toy", "--limit=2", "--out=e.jsonl")
    run("export.py", "--adapter=toy", "--out=merged")
    trained = (tmp_path / "toy/log.csv").read_text().splitlines()[-1]
    nll = run("evaluate.py", "--model=merged", f"--data={chat}", "--out=m.jsonl")
    assert f"{float(trained.split(',')[13]):.4f}" in nll
    assert "toy                             448  L sum of out" in run(
        "plan.py", f"--model={model}", "--method=toy")
    run("sweep.py", "--grid=toys.toml", *usual, "--max_steps=2", "--out=sweep", "--preset=tutorial")
    run("plot.py", "sweep")


def test_export_refuses_what_cannot_be_merged(folder, tmp_path):
    import export
    for name, message in (("adapter", "a nonlinearity stands between"),
                          ("prefix_layer", "input and no weights"),
                          ("bitfit", "no .*o_proj.bias that could be written")):
        model = shake(adapted(folder, name))
        method = find_method(name)
        method.save(model, tmp_path / name, str(folder), setup(name))
        how = export.Settings(adapter=str(tmp_path / name), out=str(tmp_path / "merged"))
        with pytest.raises(UserError, match=message):
            export.merge_to_checkpoint(how)
        assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("first, second", [
    ("lora", "dora"), ("adapter", "adapter"), ("prefix_layer", "lora"), ("lora", "prefix_layer")])
def test_twice_is_refused(folder, first, second):
    model = adapted(folder, first)
    with pytest.raises(UserError, match="already"):
        put_on(model, find_method(second), setup(second))


def test_a_relative_is_not_saved_as_plain_lora(folder, tmp_path):
    with pytest.raises(UserError, match="relative of LoRA"):
        save_adapter(adapted(folder, "dora"), tmp_path)


def test_switching_between_methods_is_exact(folder, ids, tmp_path):
    """Every ordered pair; then the base comes back bit for bit."""
    expected, adapters = {}, {}
    for name in RELATIVES:
        model = shake(adapted(folder, name))
        method = find_method(name)
        method.save(model, tmp_path / name, str(folder), setup(name))
        adapters[name] = open_adapter(tmp_path / name)
        expected[name] = logits(switch_adapter(Transformer.from_pretrained(folder),
                                               adapters[name]), ids)
    model = Transformer.from_pretrained(folder)
    base = logits(model, ids)
    for first in RELATIVES:
        for second in RELATIVES:
            switch_adapter(model, adapters[first])
            assert torch.equal(logits(switch_adapter(model, adapters[second]), ids),
                               expected[second]), (first, second)
    assert torch.equal(logits(switch_adapter(model, None), ids), base)


OF_ALL = [{"r": 0}, {"r": -1}, {"r": "4"}, {"lora_alpha": float("nan")}, {"lora_alpha": None},
          {"target_modules": 5}, {"target_modules": [5]}, {"options": None},
          {"options": {"form": "square", "x": 1}}]


@pytest.mark.parametrize("name, change", [
    *((name, change) for name in ("mora", "adapter", "prefix_layer", "bitfit")
      for change in OF_ALL),
    ("mora", {"r": 10 ** 7}), ("adapter", {"r": 10 ** 7}), ("prefix_layer", {"r": 10 ** 7}),
    ("pissa", {"init_lora_weights": "pissafoo"}), ("pissa", {"init_lora_weights": "pissa_niter_x"}),
    ("adalora", {"init_r": 0}), ("adalora", {"rank_pattern": {"a.lora_E": [True]}})])
def test_a_damaged_config_is_refused(folder, name, change, tmp_path):
    model = shake(adapted(folder, name))
    method = find_method(name)
    method.save(model, tmp_path, str(folder), setup(name))
    edit_json(tmp_path / "adapter_config.json", **change)
    with pytest.raises(UserError):
        open_adapter(tmp_path, Transformer.from_pretrained(folder))


@pytest.mark.parametrize("name", sorted(RELATIVES))
def test_an_adapter_without_tensors_is_refused(folder, name, tmp_path):
    method = find_method(name)
    method.save(adapted(folder, name), tmp_path, str(folder), setup(name))
    path = tmp_path / "adapter_model.safetensors"
    numbers_alone = {key: torch.tensor(1.0) for key in load_file(path)}
    for tensors in ({}, numbers_alone):
        save_file(tensors, path)
        with pytest.raises(UserError):
            open_adapter(tmp_path, Transformer.from_pretrained(folder))


@pytest.mark.parametrize("name", RELATIVES)
def test_analyze_reads_A_and_B_and_says_what_to_do_with_the_others(folder, name, tmp_path, capsys):
    model = shake(adapted(folder, name))
    find_method(name).save(model, tmp_path, str(folder), setup(name))
    if name in ("lora", "rslora", "loraplus", "pissa"):
        analyze.main([str(tmp_path)])
        said = capsys.readouterr().out
        assert f"rank        {6 if name == 'pissa' else 3}\n" in said
        dW = {path: layer.delta() for path, layer in adapted_layers(model).items()}
        norms = [dW[path].norm().square() for path in dW if path.endswith("up_proj")]
        row = next(line for line in said.splitlines() if line.startswith("up_proj"))
        expected = torch.stack(norms).mean().sqrt().item()
        assert float(row.split()[-1]) == pytest.approx(expected, rel=1e-3)
        return
    with pytest.raises(SystemExit) as stop:
        analyze.main([str(tmp_path)])
    line = one_line(stop.value.code, capsys.readouterr().err)
    what = "which changes no W" if name in UNMERGEABLE else "whose dW is not s B A; merge it"
    assert f"its method is {name}, {what}" in line


def test_virtual_tokens_take_room(folder):
    model = adapted(folder, "prefix_embedding", rank=7)
    bare = room_for_prompt(Transformer.from_pretrained(folder), 10)
    assert room_for_prompt(model, 10) == bare - 7


def test_a_sweep_measures_the_start_of_each_prefix(checkpoint, chat, monkeypatch):
    """Two ranks in one process: their step-0 NLLs differ. Two of dora: they are one number."""
    sweep.read_base.cache_clear()
    monkeypatch.setattr(sweep, "start_nlls", {})
    starts = {}
    for name in ("prefix_embedding", "dora"):
        for rank in (2, 5):
            config = settled(Config(model=str(checkpoint()), data=str(chat), method=name, rank=rank,
                                    max_steps=1, device="cpu"), 40)
            rows, = sweep.make_runs([config], train.read_data(config))
            starts[name, rank] = rows[0]["test_nll"]
    assert starts["prefix_embedding", 2] != starts["prefix_embedding", 5]
    assert starts["dora", 2] == starts["dora", 5]


@pytest.mark.parametrize("method, cells", [
    ("full", ("", "", "")), ("bitfit", ("", "", "all-linear")), ("adapter", (64, "", "")),
    ("dora", (64, 64.0, "all-linear"))])
def test_a_row_has_no_value_where_the_method_has_no_such_setting(method, cells):
    config = settled(Config(method=method, device="cpu", dtype="float32"), n_train=1)
    run = types.SimpleNamespace(config=config, progress=train.Progress(), trained={},
                                method=None if method == "full" else find_method(method))
    train.add_row(run, 1.0)
    row, = run.progress.rows
    assert (row["rank"], row["alpha"], row["targets"]) == cells
