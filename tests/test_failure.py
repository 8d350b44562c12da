"""What a user can get wrong ends in one line that says what is wrong and what to do, with exit code
2, and nothing is lost."""
import csv
import errno
import json
import math
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from conftest import edit_json, tiny
from runs import command, contents, numbers, one_line, press_ctrl_c, start, write_lines
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lora
import plumbing.state
import train
from lora import apply_lora, load_adapter, save_adapter
from model import Transformer
from plumbing import records
from plumbing.errors import UserError

HI, YES = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.fixture
def fails(capsys):
    """fails(argv) -> the one line on stderr, after asserting that it is one, and exit code 2."""
    def run(argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            train.main([str(a) for a in argv])
        return one_line(e.value.code, capsys.readouterr().err)
    return run


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of a checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


# ----- settings -----------------------------------------------------------------------------------

SETTINGS = {
    "--rank=0": "--rank 0: it must be a whole number, at least 1",
    "--rank=-1": "--rank -1: it must be",
    "--rank=abc": "--rank: invalid int",
    "--lr=0": "--lr 0.0: it must be",
    "--lr=-1e-3": "--lr -0.001: it must",
    "--lr=nan": "--lr nan: it must",
    "--lr=inf": "--lr inf",
    "--alpha=0": "--alpha 0.0",
    "--alpha=nan": "--alpha nan",
    "--epochs=0": "--epochs 0.0",
    "--max_steps=0": "--max_steps 0",
    "--max_steps=1.5": "invalid int",
    "--micro_bs=0": "--micro_bs 0",
    "--grad_accum=0": "--grad_accum 0",
    "--eval_steps=0": "--eval_steps 0",
    "--eval_samples=-1": "--eval_samples -1",
    "--max_length=0": "--max_length 0",
    "--warmup_ratio=1.1": "at most 1",
    "--warmup_ratio=nan": "--warmup_ratio nan",
    "--weight_decay=-1": "--weight_decay -1.0",
    "--weight_decay=inf": "--weight_decay inf",
    "--grad_clip=nan": "--grad_clip nan",
    "--grad_clip=-1": "--grad_clip -1.0",
    "--dropout=1": "--dropout 1.0: it must be a number, at least 0 and at most 0.9",
    "--dropout=0.1 --method=mora": "--dropout is of LoRA's input, and --method mora",
    "--seed=-1": "--seed -1",
    "--seed=99999999999999999999": "--seed 99999999999999999999",
    "--epochs=1 --max_steps=3": "give one of them",
    "--resume --overwrite": "--resume and --overwrite contradict",
    "--schedule=sawtooth": "invalid choice: 'sawtooth'",
    "--method=nothing": "invalid choice",
    "--dtype=float8": "invalid choice",
    "--wramup_ratio=0.1": "unrecognized arguments: --wramup_ratio",
    "--ran=3": "unrecognized arguments: --ran=3",
    "--device=banana": "--device banana: torch cannot use",
    "--device=meta": "--device meta: torch cannot use",
    "--device=cuda:99": "--device cuda:99: torch cannot use",
    "--targets=nonsense":
        "target 'nonsense' fits no linear layer of this model; it has down_proj",
    "--targets=q_proj,nonsense": "target 'nonsense'",
    "--data=nowhere": "--data nowhere: no folder with train.jsonl",
    "--model=nowhere": "nowhere: no such folder",
    "--model=/no/where": "/no/where: no such folder",
    "--model=": "no such folder",
}


@pytest.mark.parametrize("flags", SETTINGS)
def test_settings(checkpoint, chat, tmp_path, fails, flags):
    argv = command(checkpoint(), chat, tmp_path / "out")
    if "--epochs" in flags:
        argv = [a for a in argv if not a.startswith("--max_steps")]
    error = fails([*argv, *flags.split()])
    assert SETTINGS[flags] in error
    assert not (tmp_path / "out").exists()


def test_settings_that_are_no_mistake(checkpoint, chat, tmp_path):
    train.main(command(checkpoint(), chat, tmp_path, warmup_ratio=1, grad_clip=0, eval_samples=3,
                       seed=0, max_steps=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(checkpoint, chat, tmp_path, fails):
    error = fails(command(checkpoint(), chat, tmp_path, device="cuda"))
    assert "--device cuda: torch cannot use such a device" in error


def test_compile_without_a_compiler(checkpoint, chat, tmp_path, fails, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    error = fails(command(checkpoint(), chat, tmp_path / "out", "--compile"))
    assert "--compile needs a C++ compiler" in error


def test_lm_head_as_a_target(checkpoint, chat, tmp_path, fails):
    tied = checkpoint("qwen2", tie_word_embeddings=True)
    error = fails(command(tied, chat, tmp_path / "out", targets="q_proj,lm_head"))
    assert "lm_head is tied to model.embed_tokens" in error
    untied = checkpoint("qwen2", tie_word_embeddings=False)
    error = fails(command(untied, chat, tmp_path / "out", targets="lm_head"))
    assert "lm_head cannot be a target here" in error
    assert not (tmp_path / "out").exists()


def test_out_is_the_model(checkpoint, chat, fails):
    """--overwrite would delete what is to be trained."""
    folder = checkpoint("qwen2")
    before = contents(folder)
    error = fails(command(folder, chat, folder, "--overwrite"))
    assert "is the folder of the model" in error
    assert contents(folder) == before


# ----- checkpoints --------------------------------------------------------------------------------
# Each of these gives a function that spoils a folder.

def edit(name, **changes):
    return lambda folder: edit_json(folder / name, **changes)


def lack(name, key):
    return lambda folder: edit_json(folder / name, without=[key])


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def delete(name):
    return lambda folder: (folder / name).unlink()


def cut(name, share):
    def spoil(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:int(len(data) * share)])
    return spoil


def edit_weights(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
    return spoil


def shorten(name):
    """Take the last row off a weight."""
    return lambda weights: weights.update({name: weights[name][:-1].clone()})


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
YARN = {"rope_type": "yarn", "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
UNIGRAM = {"model": {"type": "Unigram", "vocab": []}, "added_tokens": [], "pre_tokenizer": None}
NO_WEIGHT_MAP, TWO_SHARDS = b"{}", b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
ID_400 = [{"id": 400, "content": "<x>", "special": True}]
CHECKPOINTS = {
    # config.json
    "unknown model type": (
        edit("config.json", model_type="mamba"),
        "config.json: model_type 'mamba': it must be qwen2 or"),
    "no model type": (
        lack("config.json", "model_type"),
        "config.json: model_type is missing"),
    "activation": (
        edit("config.json", hidden_act="gelu"),
        "hidden_act 'gelu': it must be silu"),
    "sliding window": (
        edit("config.json", use_sliding_window=True),
        "use_sliding_window"),
    "rope of another kind": (
        edit("config.json", rope_parameters=YARN),
        "rope_type 'yarn': it must be"),
    "llama3 without its numbers": (
        edit("config.json", rope_parameters=LLAMA3),
        "config.json: rope_parameters.low_freq_factor is missing"),
    "config missing": (
        delete("config.json"),
        "has no config.json"),
    "config not JSON": (
        write("config.json", b'{"model_type": '),
        "config.json is not valid JSON"),
    "config not UTF-8": (
        write("config.json", b'{"model_type": "\xff"}'),
        "config.json is not valid JSON"),
    "config a list": (
        write("config.json", b"[]"),
        "config.json: its content []: it must be a table"),
    "config lacking a key": (
        lack("config.json", "hidden_size"),
        "config.json: hidden_size is missing"),
    "config with a null": (
        write("config.json", b'{"model_type": "qwen2", "vocab_size": null}'),
        "vocab_size null: it must be a whole number"),
    "config with a text": (
        edit("config.json", hidden_size="32"),
        "hidden_size '32': it must be a whole number, at least 1"),
    "heads that do not divide": (
        edit("config.json", num_key_value_heads=3),
        "4 attention heads cannot share 3"),
    # weights
    "weights missing": (
        delete("model.safetensors"),
        "has no model.safetensors"),
    "weights empty": (
        write("model.safetensors", b""),
        "model.safetensors is damaged or incomplete"),
    "weights no safetensors": (
        write("model.safetensors", b"PK\x03\x04" * 100),
        "model.safetensors is damaged or incomplete"),
    "weights truncated": (
        cut("model.safetensors", 0.7),
        "model.safetensors is damaged or incomplete"),
    "weights truncated in the header": (
        cut("model.safetensors", 0.005),
        "model.safetensors is damaged or incomplete"),
    "shape": (
        edit_weights(shorten(UP)),
        f"{UP} has shape (47, 32), config.json asks for (48, 32)"),
    "shape by the config": (
        edit("config.json", intermediate_size=64),
        "config.json asks for"),
    "tensor missing": (
        edit_weights(lambda weights: weights.pop(NORM)),
        f"the weights lack {NORM}"),
    "layers missing": (
        edit("config.json", num_hidden_layers=3, layer_types=None),
        "the weights lack model.layers.2."),
    "index without a table": (
        write("model.safetensors.index.json", NO_WEIGHT_MAP),
        "weight_map is missing"),
    "shard missing": (
        write("model.safetensors.index.json", TWO_SHARDS),
        "has no model-00002-of-00002.safetensors"),
    # tokenizer
    "tokenizer missing": (
        delete("tokenizer.json"),
        "has no tokenizer.json"),
    "tokenizer not JSON": (
        write("tokenizer.json", b"{"),
        "tokenizer.json is not valid JSON"),
    "tokenizer of another kind": (
        write("tokenizer.json", json.dumps(UNIGRAM).encode()),
        "model.type 'Unigram': it must be BPE"),
    "tokenizer without a pre-tokenizer": (
        lack("tokenizer.json", "pre_tokenizer"),
        "pre_tokenizer is missing"),
    "tokenizer with another normalizer": (
        edit("tokenizer.json", normalizer={"type": "Lowercase"}),
        "normalizer.type 'Lowercase': it must be NFC"),
    "tokenizer larger than the embedding": (
        edit("tokenizer.json", added_tokens=ID_400),
        "the tokenizer has 401 tokens, the embedding 320"),
    "tokenizer without merges": (
        edit("tokenizer.json", model={"type": "BPE", "vocab": {}}),
        "model.merges is missing"),
    # chat template
    "no chat template": (
        lack("tokenizer_config.json", "chat_template"),
        "this tokenizer has no chat template"),
    "chat template that is none": (
        edit("tokenizer_config.json", chat_template="{% for %}"),
        "the model's chat template refuses"),
    "chat template that objects": (
        edit("tokenizer_config.json", chat_template="{{ raise_exception('no system\nrole') }}"),
        "the model's chat template refuses these messages: no system role"),
    "chat template that fails": (
        edit("tokenizer_config.json", chat_template="{{ 1 / 0 }}"),
        "the model's chat template refuses"),
    "chat template that rewrites": (
        edit("tokenizer_config.json", chat_template="{{ messages | length }}"),
        "the chat template rewrites the prompt"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(broken, chat, tmp_path, fails, case):
    spoil, words = CHECKPOINTS[case]
    spoil(broken)
    before = contents(broken, chat)
    assert words in fails(command(broken, chat, tmp_path / "out"))
    assert contents(broken, chat) == before and not (tmp_path / "out").exists()


def test_a_shard_that_is_missing_or_truncated(chat, tmp_path, fails):
    folder = tmp_path / "sharded"
    folder.mkdir()
    tiny("qwen2", folder, shard="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    cut(shards[1].name, 0.5)(folder)
    error = fails(command(folder, chat, tmp_path / "out"))
    assert f"{shards[1]} is damaged or incomplete" in error
    shards[1].unlink()
    assert f"has no {shards[1].name}" in fails(command(folder, chat, tmp_path / "out"))


# ----- data ---------------------------------------------------------------------------------------

def line_of(*messages):
    return json.dumps({"messages": messages}).encode()


GOOD = line_of(HI, YES)
LAST_MESSAGE = "the last message must be the assistant's answer"
LINES = {
    # the line, what is said of it
    "not JSON": (b'{"messages": [', "not valid JSON: Exp"),
    "not UTF-8": (b'{"messages": "\xff"}', "not UTF-8: byte"),
    "nested": (b"[" * 100_000, "not valid JSON: nest"),
    "a list": (b"[]", "its content []: it must be a table"),
    "a number": (b"7", "its content 7: it must be a table"),
    "no messages": (b'{"text": "hi"}', "it has no messages; if the whole file has"),
    "messages no list": (b'{"messages": "hi"}', "messages 'hi': it must be a list"),
    "empty": (line_of(), LAST_MESSAGE),
    "no assistant": (line_of(HI), LAST_MESSAGE),
    "user last": (line_of(HI, YES, HI), LAST_MESSAGE),
    "assistant alone": (line_of(YES), LAST_MESSAGE),
    "no text": (line_of(HI, YES | {"content": 7}), "messages[1].content 7: it must be a text"),
    "null": (line_of(HI, YES | {"content": None}), "messages[1].content null: it must"),
    "parts": (line_of(HI, YES | {"content": [{"type": "text"}]}), "messages[1].content [{"),
    "no role": (line_of({"content": "hi"}, YES), "messages[0].role is missing"),
    "unknown role": (line_of(HI | {"role": "human"}, YES), "messages[0].role 'human'"),
    "message no table": (line_of("hi", YES), "messages[0] 'hi': it must be a t"),
    "empty answer": (line_of(HI, YES | {"content": ""}), "the assistant's answer is empty"),
    "system message in the middle": (
        line_of(HI, {"role": "system", "content": "Be brief."}, YES), "a system message must"),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("case", LINES)
def test_lines(checkpoint, tmp_path, fails, case, split):
    line, words = LINES[case]
    for name in ("train", "test"):
        second = line if name == split else GOOD
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join([GOOD, second, GOOD]))
    before = contents(tmp_path)
    error = fails(command(checkpoint(), tmp_path, tmp_path / "out"))
    assert f"{tmp_path / split}.jsonl, line 2: {words}" in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_samples(checkpoint, chat, tmp_path, fails, split):
    data = shutil.copytree(chat, tmp_path / "data")
    path, argv = data / f"{split}.jsonl", command(checkpoint(), data, tmp_path / "out")
    path.write_text("\n\n")
    assert f"{split}.jsonl holds no samples" in fails(argv)
    write_lines(path, [[HI | {"content": "hi " * 300}, YES]])
    error = fails(argv)
    assert f"{split}.jsonl: no sample has a supervised token within --max_length 256" in error
    path.unlink()
    assert f"the folder has no {split}.jsonl" in fails(argv)


# ----- the folder of a run ------------------------------------------------------------------------

@pytest.fixture
def interrupted(checkpoint, chat, tmp_path, monkeypatch, capsys):
    """The folder of a run that was stopped after three of its six steps."""
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        press_ctrl_c(m, 3)
        train.main(command(checkpoint(), chat, tmp_path / "out"))
    return tmp_path / "out"


def goes_on(checkpoint, chat, out, reference):
    """The run in `out` can still be resumed, and ends as one that nothing happened to."""
    train.main(command(checkpoint(), chat, out, "--resume"))
    train.main(command(checkpoint(), chat, reference))
    assert numbers(out) == numbers(reference)
    ours, expected = ((folder / "adapter_model.safetensors").read_bytes()
                      for folder in (out, reference))
    assert ours == expected


def test_a_run_in_the_way(checkpoint, chat, interrupted, fails):
    before = contents(interrupted)
    error = fails(command(checkpoint(), chat, interrupted))
    assert "holds this run, unfinished; --resume goes on with it, --overwrite starts over" in error
    for flags in ([], ["--resume"]):
        error = fails([*command(checkpoint(), chat, interrupted, lr=0.5), *flags])
        assert "holds another run (lr 0.01 there, 0.5 here); give another --out, or" in error
    assert contents(interrupted) == before


def test_nothing_is_overwritten_for_a_run_that_cannot_begin(
        checkpoint, broken, chat, interrupted, fails):
    before = contents(interrupted)
    delete("model.safetensors")(broken)
    fails(command(checkpoint(), chat, interrupted, "--overwrite", targets="nonsense"))
    fails(command(broken, chat, interrupted, "--overwrite"))
    fails(command(checkpoint(), "nowhere", interrupted, "--overwrite"))
    assert contents(interrupted) == before


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_files_of_something_else_are_left(checkpoint, chat, tmp_path, broken, fails, flags):
    data = shutil.copytree(chat, tmp_path / "data")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.md").write_text("mine")
    (tmp_path / "states" / "state").mkdir(parents=True)
    (tmp_path / "states" / "state" / "thesis.md").write_text("mine")
    before = contents(tmp_path)
    for folder in (broken, data, notes, tmp_path / "states"):
        error = fails(command(checkpoint(), chat, folder, *flags))
        assert "it is no run's folder, or a part of one; give another --out" in error
    assert contents(tmp_path) == before


def test_what_lies_next_to_a_state_is_left(checkpoint, chat, tmp_path):
    """In a finished run, and in one that finishes."""
    argv = command(checkpoint(), chat, tmp_path / "out", max_steps=1)
    train.main(argv)
    (tmp_path / "out" / "state").mkdir()
    for flags in ((), ("--overwrite",)):
        (tmp_path / "out" / "state" / "notes.md").write_text("mine")
        (tmp_path / "out" / records.STATE).write_text("left by a kill after the last file")
        train.main([*argv, *flags])
        assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["notes.md"]


def test_out_is_a_file(checkpoint, chat, tmp_path, fails):
    (tmp_path / "out").write_text("mine")
    error = fails(command(checkpoint(), chat, tmp_path / "out"))
    assert "out is a file; give another --out" in error
    assert "out" in fails(command(checkpoint(), chat, tmp_path / "out" / "below"))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["model/config.json", "model/model.safetensors",
                                  "model/tokenizer.json"])
def test_files_that_may_not_be_read(broken, chat, tmp_path, fails, name):
    (tmp_path / name).chmod(0)
    if os.access(tmp_path / name, os.R_OK):
        pytest.skip("no file is forbidden to root")
    assert name in fails(command(broken, chat, tmp_path / "out"))


def test_a_folder_that_may_not_be_written(checkpoint, chat, tmp_path, fails, monkeypatch):
    def forbidden(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(train.Path, "mkdir", forbidden)
    assert "Permission denied" in fails(command(checkpoint(), chat, tmp_path / "out"))


STATE = "state/state.safetensors"


def write_another_state(out):
    save_file({"x": torch.zeros(3)}, out / STATE)


def change_state(change):
    """change(tensors, progress) changes them in place."""
    def spoil(out):
        with safe_open(out / STATE, framework="pt") as f:
            tensors = {name: f.get_tensor(name).clone() for name in f.keys()}
            progress = json.loads(f.metadata()["progress"])
        change(tensors, progress)
        save_file(tensors, out / STATE, {"progress": json.dumps(progress)})
    return spoil


A = "model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize("change", [
    lambda t, _: t.update({f"{A}/exp_avg": t[f"{A}/exp_avg"].view(-1)[:1].clone()}),
    lambda t, _: t.update({f"{A}/weight": t[f"{A}/weight"].view(-1)[:1].clone()}),
    lambda t, _: t.update({f"{A}/weight": t[f"{A}/weight"].double()}),
    lambda t, _: t.update({f"{A}/step": t[f"{A}/step"].to(torch.int64)}),
    lambda t, _: t.update({f"{A}/exp_avg_sq": t[f"{A}/exp_avg_sq"].mT.contiguous()}),
    lambda t, _: t.pop(f"{A}/exp_avg"), lambda t, _: t.pop(f"{A}/step"),
    lambda t, _: t.pop(f"{A}/weight"),
    lambda t, _: t.update({f"{A}/max_exp_avg": t.pop(f"{A}/exp_avg")}),
    lambda t, _: t.update({f"{A}/else": torch.zeros(1)}),
    lambda _, progress: progress.update(step=-1), lambda _, progress: progress.pop("rows"),
    lambda _, progress: progress["rows"][0].update(test_nll="low"),
    lambda _, progress: progress.update(origin=[]),
    lambda _, progress: progress.update(step=10 ** 15),
    lambda _, progress: progress["rows"].pop(),
    lambda _, progress: progress["rows"][0].update(step=1),
    lambda _, progress: progress.update(nll_tokens=7 * (not progress["nll_tokens"]))])
def test_a_state_that_is_not_this_runs(checkpoint, chat, interrupted, fails, monkeypatch, change):
    """Nothing is given back before all is compared."""
    change_state(change)(interrupted)
    given = []
    monkeypatch.setattr(train, "restore_tensor", lambda *_: given.append(True))
    before = contents(interrupted)
    error = fails(command(checkpoint(), chat, interrupted, "--resume"))
    assert "state.safetensors is damaged" in error and "--overwrite starts over" in error
    assert not given and contents(interrupted) == before


def test_a_state_that_is_a_pipe(checkpoint, chat, interrupted, fails):
    (interrupted / STATE).unlink()
    os.mkfifo(interrupted / STATE)
    error = fails(command(checkpoint(), chat, interrupted, "--resume"))
    assert "state.safetensors is no file" in error


@pytest.mark.parametrize("spoil", [cut(STATE, 0.5), write(STATE, b""), write_another_state])
def test_a_broken_state(checkpoint, chat, interrupted, fails, spoil):
    spoil(interrupted)
    before = contents(interrupted)
    error = fails(command(checkpoint(), chat, interrupted, "--resume"))
    assert "state.safetensors is damaged" in error and "--overwrite starts over" in error
    assert contents(interrupted) == before
    train.main(command(checkpoint(), chat, interrupted, "--overwrite"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}"])
def test_a_broken_run_json(checkpoint, chat, interrupted, fails, content):
    (interrupted / "run.json").write_bytes(content)
    assert "run.json" in fails(command(checkpoint(), chat, interrupted, "--resume"))


# ----- the machine --------------------------------------------------------------------------------

@pytest.mark.parametrize("where", ["state", "log"])
def test_a_full_disk(checkpoint, chat, interrupted, tmp_path, fails, monkeypatch, where):
    """The error comes while a file is half written. The earlier state is kept, no piece is left."""
    def full(*args, **_):
        if where == "state":
            args[1].write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(interrupted)
    writers = {"state": (plumbing.state, "save_file"), "log": (csv.DictWriter, "writerows")}
    with monkeypatch.context() as m:
        m.setattr(*writers[where], full)
        error = fails(command(checkpoint(), chat, interrupted, "--resume"))
    assert "No space left on device" in error and "make room, then add --resume" in error
    after = contents(interrupted)
    assert set(after) == set(before)
    changed = {path.name for path in before if after[path] != before[path]}
    assert changed <= ({"log.csv", "run.json"} if where == "state" else set())
    goes_on(checkpoint, chat, interrupted, tmp_path / "whole")


@contextmanager
def largest_file(n_bytes):
    """Inside, no file of this process may grow beyond `n_bytes`."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [200, 2 * 1024, 40 * 1024])
def test_a_disk_that_really_refuses(checkpoint, chat, interrupted, tmp_path, fails, n_bytes):
    """It refuses log.csv, which Python writes, or the state, which safetensors writes."""
    before = contents(interrupted)
    with largest_file(n_bytes):
        error = fails(command(checkpoint(), chat, interrupted, "--resume"))
    assert "File too large" in error
    assert contents(interrupted)[interrupted / STATE] == before[interrupted / STATE]
    assert not list(interrupted.rglob("*.part")) + list(interrupted.rglob(".tmp*"))
    goes_on(checkpoint, chat, interrupted, tmp_path / "whole")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.32 GiB"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("where", [(Transformer, "loss"), (train, "restore_tensor")])
def test_out_of_memory(checkpoint, chat, interrupted, tmp_path, fails, monkeypatch, where, error):
    """In a step, and while the moments are read back: that must not be called a damaged state."""
    before = contents(interrupted)

    def fail(*_):
        raise error

    with monkeypatch.context() as m:
        m.setattr(*where, fail)
        line = fails(command(checkpoint(), chat, interrupted, "--resume"))
    for words in ("out of memory", "--micro_bs", "--grad_accum", "--max_length",
                  "--gradient_checkpointing"):
        assert words in line
    assert contents(interrupted) == before
    goes_on(checkpoint, chat, interrupted, tmp_path / "whole")


def test_a_bug_of_ours_is_no_users_error(checkpoint, chat, tmp_path, monkeypatch):
    """The user cannot fix it, and one line "error: ..." would hide it from those who can."""
    def loss(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Transformer, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train.main(command(checkpoint(), chat, tmp_path))


# ----- adapters -----------------------------------------------------------------------------------

@pytest.fixture
def adapter(checkpoint, tmp_path):
    decoder = apply_lora(Transformer.from_pretrained(checkpoint()), 4)
    for layer in lora.lora_layers(decoder).values():
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(decoder, tmp_path / "adapter")
    return tmp_path / "adapter"


def leave_alone(folder):
    pass


ADAPTERS = {
    # what is different about the base, what spoils the adapter, what is said
    "of another width": (
        {"hidden_size": 64}, leave_alone, "the adapter is for another base: "),
    "of a deeper base": (
        {"num_hidden_layers": 1}, leave_alone, "this one has no linear layer model.layers.1."),
    "truncated": (
        {}, cut("adapter_model.safetensors", 0.5), "adapter_model.safetensors is damaged"),
    "without weights": (
        {}, delete("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "without a config": ({}, delete("adapter_config.json"), "has no adapter_config.json"),
    "of another method": (
        {}, edit("adapter_config.json", use_dora=True), "only plain LoRA adapters"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(checkpoint, adapter, case):
    changes, spoil, words = ADAPTERS[case]
    spoil(adapter)
    base = Transformer.from_pretrained(checkpoint("qwen2", **changes))
    before = {name: p.clone() for name, p in base.named_parameters()}
    with pytest.raises(UserError) as e:
        load_adapter(base, adapter)
    assert words in str(e.value) and "\n" not in str(e.value)
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name]) and p.requires_grad


# ----- as a user sees it --------------------------------------------------------------------------

def test_one_line_in_a_shell(broken, chat, tmp_path):
    edit("config.json", model_type="mamba")(broken)
    process = start(command(broken, chat, tmp_path / "out"))
    out, error = process.communicate(timeout=600)
    line = one_line(process.returncode, error)
    assert out == "" and "config.json: model_type 'mamba': it must be qwen2 or" in line


def test_a_terminal_that_cannot_show_a_letter(checkpoint, chat, tmp_path):
    process = start(command(checkpoint(), chat, tmp_path, max_steps=1),
                    PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, "") and "Lan c? " in out
    assert math.isfinite(numbers(tmp_path)[-1]["test_nll"])
