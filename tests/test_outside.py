"""What files, terminals and other processes may do to a command: it ends in one line, or it is
right. Each of these was once a traceback, a hang, or a number that was wrong or lost."""
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO, edit_json, tiny
from csv_runs import FULL, FULL_LR, R64, make_grid, run_rows, write_csv
from runs import command, contents, numbers, one_line, press_ctrl_c, write_chat, write_lines
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import engine
import evaluate
import plan
import plot
import sample
import sweep
import train
from dataset import Sample, load_split
from engine import fit_prompt, load_quantized, save_quantized
from lora import apply_lora, lora_layers, read_adapter, save_adapter
from model import ModelConfig, Transformer, draw_token
from plumbing.errors import UserError
from plumbing.records import COLUMNS, read_rows
from plumbing.workers import claim_file, local_rank
from tokenizer import Tokenizer


@pytest.fixture
def fails(capsys):
    """fails(main, argv) -> the one line on stderr, after asserting that it is one."""
    def run(main, argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        return one_line(e.value.code, capsys.readouterr().err)
    return run


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of a checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def adapter(checkpoint, tmp_path):
    decoder = apply_lora(Transformer.from_pretrained(checkpoint()), 4)
    for layer in lora_layers(decoder).values():
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(decoder, tmp_path / "adapter", str(checkpoint()))
    return tmp_path / "adapter"


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def stopped_run(model, data, out, monkeypatch):
    """The arguments of a run that was interrupted after one of its six steps."""
    argv = [str(a) for a in command(model, data, out)]
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        press_ctrl_c(m, 1)
        train.main(argv)
    return argv


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


# ----- the folder of a run ------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_run_has_its_folder_for_itself(checkpoint, chat, tmp_path, fails, flags):
    out = tmp_path / "out"
    with claim_file(out) as ours:                   # another process of train.py does the same
        assert ours
        error = fails(train.main, [*command(checkpoint(), chat, out), *flags])
        assert f"another process is making {out}" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"name": "mine"}, {"run": "x", "finished": True},
                                     {"run": "x", "finished": True, "settings": {"rank": 3}}])
def test_overwrite_deletes_only_what_a_run_has_written(model, chat, fails, content):
    (model / "run.json").write_text(json.dumps(content))
    before = contents(model)
    error = fails(train.main, command("nano", chat, model, "--overwrite"))
    assert "run.json" in error and contents(model) == before


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("mine"), Path.mkdir, os.mkfifo,
    lambda path: path.symlink_to("empty")])
def test_a_lock_that_is_none_is_left(checkpoint, chat, tmp_path, fails, make):
    """Cargo and poetry have files of such names, too."""
    (tmp_path / "empty").touch()
    make(tmp_path / "cargo.lock")
    assert "cargo.lock is in the way" in fails(
        train.main, command(checkpoint(), chat, tmp_path / "cargo"))
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "cargo.lock"}


def change_data(data, model, out):
    path = data / "train.jsonl"
    path.write_text("".join(reversed(path.read_text(encoding="utf-8").splitlines(True))),
                    encoding="utf-8")


def change_weights(data, model, out):
    edit_weights(model / "model.safetensors", lambda weights: weights[NORM].mul_(1.5))


def change_state(data, model, out):
    """The state of a run with another seed."""
    state = out / "state/state.safetensors"
    with safe_open(state, "pt") as f:
        progress = json.loads(f.metadata()["progress"])
    progress.get("origin", {})["run"] = "0123456789"
    save_file(load_file(state), state, metadata={"progress": json.dumps(progress)})


def test_what_changed_since_the_stop_is_said(model, tmp_path, fails, monkeypatch):
    (tmp_path / "data").mkdir()
    data, out = write_chat(tmp_path / "data"), tmp_path / "out"
    argv = stopped_run(model, data, out, monkeypatch)
    for change, words in ((change_data, "made from other data;"),
                          (change_weights, "made from other weights;"),
                          (change_state, "made from other run;")):
        unchanged = contents(tmp_path)
        change(data, model, out)
        before = contents(out)
        assert words in fails(train.main, [*argv, "--resume"])
        assert contents(out) == before
        for path, content in unchanged.items():
            path.write_bytes(content)


def test_a_finished_run_that_is_damaged(checkpoint, chat, tmp_path, fails):
    argv = command(checkpoint(), chat, tmp_path / "out", max_steps=1)
    train.main([str(a) for a in argv])
    header, *rows = (tmp_path / "out/log.csv").read_text().splitlines(keepends=True)
    of_run = (tmp_path / "out/run.json").read_text()
    for name, text in (
            ("log.csv", ""), ("log.csv", ",".join(COLUMNS) + "\n"), ("log.csv", "a,b\n1,2\n"),
            ("log.csv", header + rows[0] + rows[1] + rows[1]), ("log.csv", header + rows[0]),
            ("log.csv", header + rows[1] + rows[0]),
            ("log.csv", header + rows[0].replace(",0.01,", ",0.5,") + rows[1]),
            ("log.csv", "".join([header, *rows])[:-3]),
            ("run.json", "{}"), ("run.json", of_run.replace('"seed": 42', '"seed": 43')),
            ("run.json", '{"run": 3, "finished": true, "settings": {}}')):
        whole = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_text(text)
        assert name in fails(train.main, argv)
        # a seed that is not that of the rows shows at the rows
        words = "its rows are not those of the run" if '"seed": 43' in text else name
        assert words in fails(plot.main, [tmp_path / "out"])
        assert words in fails(evaluate.main, ["--adapter", tmp_path / "out", "--limit=1",
                                              "--data", chat])
        (tmp_path / "out" / name).write_bytes(whole)


# ----- a checkpoint -------------------------------------------------------------------------------

def test_what_cannot_be_saved_is_said_before_the_training(model, chat, tmp_path, fails):
    edit_json(model / "config.json", eos_token_id=[2, "</s>"])
    error = fails(train.main, command(model, chat, tmp_path / "out", method="full"))
    assert "config.json: eos_token_id[1] '</s>': it must be a whole number" in error
    assert not (tmp_path / "out").exists()


BAD_NUMBERS = [math.nan, math.inf, -math.inf]
KINDS = [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_weights_are_finite(model, adapter, value):
    edit_weights(model / "model.safetensors", lambda weights: weights[UP][3].fill_(value))
    with pytest.raises(UserError, match="up_proj.weight holds a number that is infinite"):
        Transformer.from_pretrained(model)
    name = f"base_model.model.{UP.removesuffix('.weight')}.lora_A.weight"
    edit_weights(adapter / "adapter_model.safetensors",
                 lambda weights: weights[name][0].fill_(value))
    with pytest.raises(UserError, match="lora_A.weight holds a number that is infinite"):
        read_adapter(adapter)


@pytest.mark.parametrize("dtype", KINDS)
def test_weights_are_real_numbers(model, adapter, dtype):
    def cast(weights):
        name = next(name for name in weights if "up_proj" in name)
        weights[name] = weights[name].to(dtype)

    edit_weights(model / "model.safetensors", cast)
    with pytest.raises(UserError, match="is of type torch"):
        Transformer.from_pretrained(model)
    edit_weights(adapter / "adapter_model.safetensors", cast)
    with pytest.raises(UserError, match="is of type torch"):
        read_adapter(adapter)


def test_four_bits_that_are_none(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "claims")
    save_quantized(load_quantized(folder), tmp_path / "quantized")
    said = json.loads((tmp_path / "quantized/config.json").read_text())["quantization_config"]
    load_quantized(tmp_path / "quantized")
    edit_json(folder / "config.json", quantization_config=said)
    with pytest.raises(UserError, match="q_proj.weight is in four bits, and it is not"):
        load_quantized(folder)


def test_scales_of_four_bits_may_have_any_shape(checkpoint, tmp_path):
    """bitsandbytes reads them as one row of numbers."""
    folder = tmp_path / "four"
    save_quantized(load_quantized(checkpoint(), torch.float32), folder)
    name, path = f"{UP}.absmax", folder / "model.safetensors"
    weight = load_quantized(folder).get_submodule(UP.removesuffix(".weight")).weight
    edit_weights(path, lambda weights: weights.update({name: weights[name].view(4, -1)}))
    other = load_quantized(folder).get_submodule(UP.removesuffix(".weight")).weight
    assert torch.equal(weight.dequantize(), other.dequantize())


HUGE = 10 ** 400
CONFIGS = {
    "rms_norm_eps": ["1e-6", 0, -1e-6, math.nan, math.inf, None, [], True],
    "rope_theta": ["1e4", 0, -1, math.nan, math.inf, HUGE],
    "rope_scaling": ["yarn", [1], 3, {"rope_type": None}, {"rope_type": ["llama3"]}],
    "tie_word_embeddings": ["false", 0, 1, [], {}],
    "num_hidden_layers": [10 ** 7, HUGE, 0, -2, 2.0, "2", True, None, [2]],
    "num_attention_heads": [0, 10 ** 9, 5.5],
    "num_key_value_heads": [0, -1, "2", [2]],
    "head_dim": [0, -2, 3, 10 ** 9, "8"],
    "vocab_size": [HUGE, 10 ** 12, "320"],
    "hidden_size": [HUGE, 10 ** 12, {}],
    "max_position_embeddings": ["512", 0, math.nan],
    "eos_token_id": ["2", [None], {"id": 2}, -2, 2.5],
    "hidden_act": [None, ["silu"], 3], "model_type": [["qwen2"], {}, 3],
    "attention_bias": ["false", 1], "quantization_config": ["nf4", [1]],
    "layer_types": [["full_attention", "sliding_attention"], "full_attention", [None],
                    ["full_attention"], []],
    "is_causal": [False, "true"],
    "rope_parameters": [{"full_attention": {"rope_type": "default", "rope_theta": 1e6}}],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_is_what_it_should_be(checkpoint, tmp_path, fails, name):
    """The same for plan.py and for the decoder."""
    hf = json.loads((checkpoint() / "config.json").read_text())
    del hf["rope_parameters"]
    hf["model_type"] = "qwen3" if name == "attention_bias" else hf["model_type"]
    for value in CONFIGS[name]:
        with pytest.raises(UserError):
            ModelConfig.from_hf(hf | {name: value})
        (tmp_path / "config.json").write_text(json.dumps(hf | {name: value}))
        fails(plan.main, [f"--model={tmp_path}"])


@pytest.mark.parametrize("table", [
    [], {}, "model.safetensors", {UP: 3}, {UP: None}, {UP: "../x.safetensors"}, {UP: "/dev/zero"},
    {UP: ["model.safetensors"]}])
def test_an_index_names_files_next_to_it(model, tmp_path, table):
    shutil.copy(model / "model.safetensors", tmp_path / "x.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(UserError):
        Transformer.from_pretrained(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_named_pipe_is_not_waited_for(model, chat, tmp_path, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    argv = [sys.executable, REPO / "train.py", *command(model, chat, tmp_path / "out")]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=300)
    words = {"model.safetensors": "has no model.safetensors"}.get(name, f"{name} is no file")
    assert words in one_line(done.returncode, done.stderr)


# ----- an adapter ---------------------------------------------------------------------------------

ADAPTERS = {
    "r": [0, -1, "4", 4.5, None, [], 5, True], "lora_alpha": [math.nan, math.inf, "8", 0, [], HUGE],
    "lora_dropout": ["0", 2, math.nan, None, []], "use_rslora": ["false", 1, []],
    "alpha_pattern": [["x"], {"q_proj": "8"}, {"q_proj": math.nan}, {"(": 8}, 3],
    "rank_pattern": [{"q_proj": 5}, {"q_proj": "4"}, {"[": 2}, ["q_proj"]],
    "target_modules": [3, [3], {}, None, "[", ["q_proj"]], "bias": ["all", [], 3],
    "peft_type": [3, ["LORA"], None, {}], "init_lora_weights": [[], {}, "pissa(", 3.5],
    "layer_replication": [[[0, 2]]], "alora_invocation_tokens": [[1]],
    "exclude_modules": [["q_proj"], r".*\.q_proj", 3], "modules_to_save": [["norm"]],
    "layers_to_transform": [[1], 0, "0"], "layers_pattern": ["h", ["blocks"]],
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_config_json_is_what_it_should_be(adapter, name):
    config = json.loads((adapter / "adapter_config.json").read_text())
    for value in ADAPTERS[name]:
        (adapter / "adapter_config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(UserError):
            read_adapter(adapter)


def test_layers_that_peft_would_take_are_taken(adapter):
    edit_json(adapter / "adapter_config.json", exclude_modules=["lm_head"],
              layers_to_transform=[1, 0], layers_pattern="layers")
    assert len(read_adapter(adapter)) == 14


@pytest.mark.parametrize("name", ["base_model_name_or_path", "revision"])
def test_a_base_is_a_name(adapter, name):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="a/b")
    for value in (3, ["nano"], {}, True):
        edit_json(adapter / "adapter_config.json", **{name: value})
        with pytest.raises(UserError, match=name):
            engine.base_of(adapter)


@pytest.mark.slow
def test_a_pattern_that_tries_every_way_is_stopped(adapter):
    edit_json(adapter / "adapter_config.json", alpha_pattern={"([a-z0-9._]+)+#": 3})
    with pytest.raises(UserError, match="takes longer than 2 s"):
        read_adapter(adapter)


# ----- a tokenizer and its template ---------------------------------------------------------------

def set_at(content, path, value):
    *way, last = path.split("/")
    for key in way:
        content = content[int(key) if isinstance(content, list) else key]
    content[int(last) if isinstance(content, list) else last] = value


TOKENIZERS = {
    "model": [None, [], 3], "model/vocab": [[], None, {"a": "3"}, {"a": -1}, {"a": 10 ** 12}],
    "model/merges": [{}, [3], [["a", 3]], "a b", [[]], ["zz qq"], [["a"]]], "model/type": [[], 3],
    "model/dropout": [0.1, "x"], "normalizer": [3, [], "NFC", {}], "added_tokens": [{}, [3], None],
    "added_tokens/0/id": ["0", -1, 10 ** 12, 2.5, HUGE], "added_tokens/0/content": [3, None, []],
    "added_tokens/0/special": ["false", 0], "pre_tokenizer/pretokenizers": [[], None, 3, {}],
    "pre_tokenizer/pretokenizers/0/pattern": [None, "x", {"Regex": 3}, {"String": " "}],
    "pre_tokenizer/pretokenizers/0/pattern/Regex": ["", "(", "a*", "[a-z]+", "(?=a)", "\\p{L}+"],
}


@pytest.mark.parametrize("path", TOKENIZERS)
def test_tokenizer_json_is_what_it_should_be(model, path, capfd):
    content = (model / "tokenizer.json").read_text(encoding="utf-8")
    for value in TOKENIZERS[path]:
        spoilt = json.loads(content)
        set_at(spoilt, path, value)
        (model / "tokenizer.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError):
            Tokenizer.from_pretrained(model)
    assert capfd.readouterr().err == ""             # Rust would have printed pages


def test_a_merge_that_others_need_is_not_missing(model):
    """tokenizers never makes their tokens then. tiktoken would, from other pieces."""
    spec = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    merges = spec["model"]["merges"]
    needed = next(pair for pair in merges if any("".join(pair) in other for other in merges))
    merges.remove(needed)
    (model / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="each of its merges must join two tokens"):
        Tokenizer.from_pretrained(model)
    spec["model"]["ignore_merges"] = True           # as in Llama 3's file
    (model / "tokenizer.json").write_text(json.dumps(spec))
    Tokenizer.from_pretrained(model)


@pytest.mark.parametrize("file, name, value", [
    ("tokenizer_config.json", "eos_token", 3), ("tokenizer_config.json", "eos_token", {"x": 3}),
    ("tokenizer_config.json", "chat_template", 3), ("tokenizer_config.json", "chat_template", [3]),
    ("tokenizer_config.json", "chat_template", [{"name": "default"}]),
    ("generation_config.json", "eos_token_id", "2"),
    ("generation_config.json", "eos_token_id", {})])
def test_the_other_files_of_a_tokenizer(model, file, name, value):
    edit_json(model / file, **{name: value})
    with pytest.raises(UserError, match=f"{file}.*{name}"):
        Tokenizer.from_pretrained(model)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize("template, words", [
    (ENDLESS, "takes longer than 2 s"),
    ("{% for a in range(10000) %}{{ 'x' * 1000 }}{% endfor %}", "10,000,000 characters")])
def test_a_template_that_takes_everything_is_stopped(model, template, words):
    edit_json(model / "tokenizer_config.json", chat_template=template)
    with pytest.raises(UserError, match=words):
        Tokenizer.from_pretrained(model).apply_chat_template([{"role": "user", "content": "?"}])


def test_a_million_spaces(checkpoint, capfd):
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    assert len(tokenizer.encode("x" + " " * 200_000 + "x")) > 1000
    with pytest.raises(UserError, match="cannot cut a text of 2,000,002 characters"):
        tokenizer.encode("x" + " " * 2_000_000 + "x")
    assert capfd.readouterr().err == ""


def test_a_prompt_of_no_tokens(model, fails):
    edit_json(model / "tokenizer_config.json", chat_template="{{ '' }}")
    assert "the question takes 0 tokens" in fails(sample.main, ["--model", model, "hi"])


def test_a_prompt_of_no_tokens_in_training(model, chat, tmp_path, fails):
    """Its answer of one token is the first of the text, which nothing predicts: not learned."""
    edit_json(model / "tokenizer_config.json", chat_template=(
        "{{ messages[-1].content if messages[-1].role == 'assistant' else '' }}"))
    argv = command(model, chat, tmp_path / "out", max_steps=1)
    assert "makes no text of a question" in fails(train.main, argv)
    argv = [f"--model={model}", f"--data={chat}", "--out", tmp_path / "e.jsonl"]
    assert "makes no text of a question" in fails(evaluate.main, argv)
    assert Sample([5, 6], [5, 6]).learned == 1 and Sample([5, 6], [5, -100]).learned == 0


def test_a_temperature_near_zero_is_zero():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
    for temperature in (1e-7, 1e-40, 1e-300):
        assert draw_token(logits, temperature, 1.0).tolist() == [[1], [2]]


def test_a_long_conversation_is_rendered_a_few_times(checkpoint, monkeypatch):
    """20,000 messages, of which the last ones fit: not 10,000 renderings."""
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages = [{"role": "system", "content": "s"}, *turn * 10_000, turn[0]]
    calls, real = [], Tokenizer.apply_chat_template
    monkeypatch.setattr(Tokenizer, "apply_chat_template",
                        lambda *a, **b: calls.append(1) or real(*a, **b))
    room = len(fit_prompt([messages[0], *turn * 2, turn[0]], tokenizer, math.inf))
    assert len(fit_prompt(messages, tokenizer, room)) == room
    assert messages == [{"role": "system", "content": "s"}, *turn * 2, turn[0]]
    assert len(calls) < 20


# ----- data ---------------------------------------------------------------------------------------

def test_of_a_long_conversation_no_more_is_rendered_than_is_learned(checkpoint, tmp_path,
                                                                    monkeypatch):
    """The same samples as from the conversation's beginning, and not 20,000 renderings."""
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    calls, real = [], Tokenizer.apply_chat_template
    monkeypatch.setattr(Tokenizer, "apply_chat_template",
                        lambda *a, **b: calls.append(1) or real(*a, **b))
    for name, n in (("long", 10_000), ("short", 100)):
        write_lines(tmp_path / name, [turn * n])
    (long, _), (short, _) = (load_split(tmp_path / name, tokenizer, 256, "all")
                             for name in ("long", "short"))
    assert long == short and len(long[0].ids) == 256 and len(calls) < 200


def test_a_stranger_s_program_is_not_run(checkpoint, tmp_path, fails):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "prepare.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    error = fails(train.main, command(checkpoint(), folder, tmp_path / "out"))
    assert "the folder has no train.jsonl" in error and not (tmp_path / "ran").exists()


# ----- rows, figures, evaluations -----------------------------------------------------------------

def test_rows_of_another_run_are_not_believed(tmp_path):
    config = sweep.settled(sweep.Config(max_steps=30, eval_steps=10, device="cpu"), 0)
    write_csv(tmp_path, run_rows(R64, 1e-4, [3, 2, 1, 1], run="another"))
    (tmp_path / "0.csv").rename(tmp_path / f"{config.run}.csv")
    with pytest.raises(UserError, match="its rows are not those of the run"):
        sweep.Board(lambda finals: {config.run: config}, tmp_path)


@pytest.mark.parametrize("damage", [
    lambda text: text.replace(",test_nll", ",x"), lambda text: text.replace("\r\n", ",1,2\r\n"),
    lambda text: text.replace("nano", "x" * 200_000, 1), lambda text: text.replace(",42,", ",-1,"),
    lambda text: text.replace(",0.0001,", ",inf,"), lambda text: text.replace(",0.0001,", ",0,"),
    lambda text: text.replace(",64,", ",0,"), lambda text: text.replace(",1000", ",nan")])
def test_damaged_rows_are_named(tmp_path, damage):
    write_csv(tmp_path, run_rows(R64, 1e-4, [3, 2, 1, 1]))
    text = (tmp_path / "0.csv").read_bytes().decode()
    assert damage(text) != text
    (tmp_path / "0.csv").write_bytes(damage(text).encode())
    with pytest.raises(UserError, match="0.csv is damaged"):
        read_rows(tmp_path / "0.csv")


def test_a_name_with_mathematics_in_it(tmp_path, capsys):
    odd = {"model": "a $\\frac{ b", "data": "$x^"}
    write_csv(tmp_path, *make_grid(FULL, FULL_LR, 2e-5, 1.0, **odd),
              *make_grid(R64, [x * 10 for x in FULL_LR], 2e-4, 1.1, **odd))
    plot.main([str(tmp_path)])
    assert (tmp_path / "finding1.png").exists()
    run = tmp_path / "a_run"
    write_csv(run, run_rows(R64, 1e-4, [3, 2, 1, 1], **odd))
    (run / "0.csv").rename(run / "log.csv")
    plot.main([str(run)])
    assert (run / "curve.png").exists()


def test_a_table_of_results_with_missing_fields(tmp_path, fails):
    path = tmp_path / "e.json"
    result = {"settings": {"data": "d", "nf4": False}, "finished": True, "model": "m",
              "method": "lora", "rank": 4, "trainable": 7, "bytes": 7, "test_nll": 1.0,
              "exact_match": 0.5, "n": 4}
    path.write_text(json.dumps(result))
    evaluate.main(["--table", str(path)])
    for name, value in (("settings", {}), ("settings", {"data": 3, "nf4": False}), ("model", None),
                        ("bytes", "7"), ("test_nll", "1"), ("exact_match", 2), ("rank", "4"),
                        ("finished", "true"), ("n", 0)):
        path.write_text(json.dumps(result | {name: value}))
        assert "is not the result of an evaluation" in fails(evaluate.main, ["--table", path])
    for name in result.keys() - {"exact_match"}:
        path.write_text(json.dumps({key: result[key] for key in result.keys() - {name}}))
        assert "is not the result of an evaluation" in fails(evaluate.main, ["--table", path])
    with pytest.raises(UserError, match="confusion matrix of a finished evaluation must be 0 x 1"):
        evaluate.print_result(result | {"confusion": [[1, 0, 0], [0, 1, 0]]})


@pytest.mark.parametrize("row", [
    {"index": 0}, {"index": "0"}, {"index": 0, "answer": 3, "references": [], "tokens": 1,
                                   "seconds": 1}, 3, []])
def test_answers_with_missing_fields(tmp_path, row):
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="is damaged .its rows: .0."):
        evaluate.read_answers(path, evaluate.Task("exact_match", []))


def test_ten_million_seeds(fails):
    error = fails(sweep.main, ["finding1", "--seeds=10000000", "--dry_run"])
    assert "--seeds 10000000: it must be a whole number, at least 1 and at most 1000" in error


# ----- streams, encodings, the environment --------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("case", ["works", "fails"])
def test_closed_streams(tmp_path, closed, case):
    """What a closed stream should have got goes into no file that is opened after it."""
    write_csv(tmp_path, *make_grid(FULL, FULL_LR, 2e-5, 1.0))
    before = contents(tmp_path)
    folder = tmp_path if case == "works" else tmp_path / "nowhere"
    done = subprocess.run(f"'{sys.executable}' '{REPO}/plot.py' '{folder}' --table {closed}",
                          shell=True, capture_output=True, text=True, timeout=300)
    assert done.returncode == (0 if case == "works" else 2), done.stderr
    assert "Traceback" not in done.stderr and contents(tmp_path) == before
    if "2>" not in closed:
        assert (done.stderr == "") == (case == "works")
    assert "error" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"LANG": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0",
                                                 "PYTHONCOERCECLOCALE": "0"}])
def test_letters_that_neither_terminal_nor_file_system_can_hold(tmp_path, env):
    folder = tmp_path / "mô hình"
    write_csv(folder, *make_grid(FULL, FULL_LR, 2e-5, 1.0, model="mô hình"))
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    for name, code in ((os.fsencode(folder), 0), (os.fsencode(tmp_path) + b"/\xff\xfe", 2)):
        done = subprocess.run([sys.executable, REPO / "plot.py", name, "--table"], text=True,
                              capture_output=True, timeout=300, env=os.environ | env)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_rows_may_hold_a_name_that_is_no_unicode(tmp_path):
    rows = run_rows(R64, 1e-4, [3, 2, 1, 1], model=os.fsdecode(b"m\xff"))
    write_csv(tmp_path, rows)
    assert len(read_rows(tmp_path / "0.csv")) == 4


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_the_environment_is_read_as_the_rest(checkpoint, chat, fails, monkeypatch, name):
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(variable, "x" if variable == name else "1")
    words = f"{name} 'x': it must be a whole number"
    if name == "LOCAL_RANK":
        with pytest.raises(UserError, match=words):
            local_rank()
    else:
        argv = ["finding1", "--dry_run", f"--model={checkpoint()}", f"--data={chat}"]
        assert words in fails(sweep.main, argv)


def test_a_run_on_other_files_is_as_it_was(checkpoint, chat, tmp_path):
    """All this refuses nothing that is right: a sharded Llama with stretched RoPE, in bfloat16."""
    folder = tiny("llama", tmp_path / "model", shard="20KB", dtype=torch.bfloat16,
                  rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                   "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64})
    train.main([str(a) for a in command(folder, chat, tmp_path / "out", max_steps=1)])
    assert math.isfinite(numbers(tmp_path / "out")[-1]["test_nll"])
