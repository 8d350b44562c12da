"""The training loop: its numbers against transformers and torch, its files, and that stopping it anywhere changes nothing."""
import builtins
import csv
import io
import json
import math
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peers import use_dequantized_weights
from runs import command, contents, numbers, start
from safetensors import safe_open
from safetensors.torch import load_file

import dataset
import lora
import plumbing.checkpoint
import plumbing.state
import train
from engine import mean_nll
from model import Transformer
from settings import Config, settled
from settings import parse as parse_run
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def samples(checkpoint, chat):
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    return {split: dataset.load_split(chat / f"{split}.jsonl", tokenizer, 256)[0] for split in ("train", "test")}


@pytest.fixture(scope="module")
def whole(checkpoint, chat, tmp_path_factory):
    """whole(method, **settings) -> the folder of a run that nothing stopped. Do not write into it."""
    made = {}

    def make(method, **settings):
        key = method, *settings.items()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            train.main(command(checkpoint(), chat, made[key], method=method, **settings))
        return made[key]
    return make


def weights(out):
    return [p.read_bytes() for p in (out / "adapter_model.safetensors", out / "model.safetensors") if p.exists()]


def same_result(out, reference):
    assert numbers(out) == numbers(reference) and len(weights(reference)) == 1
    assert weights(out) == weights(reference)                                   # to the last bit
    assert {p.name for p in out.rglob("*")} == {p.name for p in reference.rglob("*")}           # nothing left lying about


# ----- one step -----------------------------------------------------------------------------------------------------

def peers_nll(peer, sample):
    """transformers' logits for one sample, unpadded -> the sum of the NLL over its supervised part."""
    logits = peer(torch.tensor([sample.ids])).logits[0]
    return F.cross_entropy(logits[sample.start - 1:-1], torch.tensor(sample.ids[sample.start:]), reduction="sum")


def test_full_fine_tuning_follows_transformers(checkpoint, chat, samples, tmp_path):
    """Five steps of torch.optim.AdamW on transformers' model: warm-up, cosine, weight decay and clipping included."""
    from transformers import AutoModelForCausalLM, Trainer, get_scheduler
    train.main(command(checkpoint(), chat, tmp_path, method="full", lr=3e-3, max_steps=5, eval_steps=1, schedule="cosine",
                       warmup_ratio=0.2, weight_decay=0.1))
    peer = AutoModelForCausalLM.from_pretrained(checkpoint())
    decayed = Trainer.get_decay_parameter_names(None, peer)
    groups = [{"params": [p for name, p in peer.named_parameters() if (name in decayed) == decay], "weight_decay": 0.1 * decay}
              for decay in (True, False)]
    optimizer = torch.optim.AdamW(groups, 3e-3, betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=5)
    losses, norms = [], []
    for step in range(5):
        window = [samples["train"][i] for i in dataset.window(40, 16, step, seed=42)]
        loss = sum(peers_nll(peer, s) for s in window) / sum(len(s.ids) - s.start for s in window)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0).item())
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert [row["train_nll"] for row in numbers(tmp_path)[1:]] == pytest.approx(losses, abs=1e-4)
    assert losses[0] - losses[-1] > 0.1 and max(norms) > 1.5                    # it learned, and clipping was at work
    tuned = load_file(tmp_path / "model.safetensors")
    for name, p in peer.named_parameters():
        if name in tuned:                                                       # a tied lm_head is there once
            torch.testing.assert_close(tuned[name], p.detach(), atol=1e-4, rtol=0)


class Recorder:
    """In an optimizer's place: keeps the gradients instead of stepping."""
    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": None}]

    def step(self):
        self.gradients = [p.grad.clone() for p in self.param_groups[0]["params"]]

    def zero_grad(self, set_to_none):
        for p in self.param_groups[0]["params"]:
            p.grad = None


def test_micro_batches_of_any_size_give_the_same_gradient(checkpoint, samples):
    """Answers of 16 samples differ eightfold in length, so that a mean of means is another gradient."""
    decoder, off = Transformer.from_pretrained(checkpoint(), torch.float32), torch.amp.GradScaler("cpu", enabled=False)
    window = [samples["train"][i] for i in dataset.window(40, 16, 0, seed=42)]
    recorder = Recorder(decoder.parameters())
    gradients = {}
    for size in (1, 4, 16):
        result = train.optimizer_step(decoder, recorder, off, dataset.micro_batches(window, size), nullcontext, 0.1, grad_clip=0)
        assert result == (pytest.approx(4.9 * result[1], rel=0.5), sum(len(s.ids) - s.start for s in window))
        assert recorder.param_groups[0]["lr"] == 0.1
        gradients[size] = torch.cat([g.flatten() for g in recorder.gradients])
    for ids, labels in dataset.micro_batches(window, 4):                        # what it must not be
        nll, tokens = decoder.loss(ids, labels)
        (nll / tokens / 4).backward()
    means = torch.cat([p.grad.flatten() for p in decoder.parameters()])
    largest = gradients[1].abs().max()
    assert (gradients[4] - gradients[1]).abs().max() < 1e-5 * largest
    assert (gradients[16] - gradients[1]).abs().max() < 1e-5 * largest
    assert (means - gradients[1]).abs().max() > 0.05 * largest


def test_clipping_brings_the_gradient_to_its_norm_and_0_leaves_it(checkpoint, samples):
    decoder, off = Transformer.from_pretrained(checkpoint(), torch.float32), torch.amp.GradScaler("cpu", enabled=False)
    recorder, micro = Recorder(decoder.parameters()), dataset.micro_batches(samples["train"][:4], 4)
    norms = []
    for clip in (0.0, 0.5, 1e6):
        train.optimizer_step(decoder, recorder, off, micro, nullcontext, 0.1, clip)
        norms.append(torch.cat([g.flatten() for g in recorder.gradients]).norm().item())
    assert norms[0] == pytest.approx(norms[2]) and norms[0] > 1 and norms[1] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.13, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), [("constant", "constant_with_warmup"), ("cosine", "cosine"), ("linear", "linear")])
def test_schedules_are_those_of_transformers(ours, theirs, warmup_ratio):
    from transformers import get_scheduler
    config = Config(lr=3e-4, schedule=ours, warmup_ratio=warmup_ratio, max_steps=30)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 3e-4)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=math.ceil(warmup_ratio * 30), num_training_steps=30)
    for step in range(30):
        assert train.lr_at(step, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_test_nll_is_that_of_transformers_and_weights_tokens(checkpoint, chat, samples, whole):
    from transformers import AutoModelForCausalLM
    peer, test = AutoModelForCausalLM.from_pretrained(checkpoint()), samples["test"]
    with torch.no_grad():
        nll = [peers_nll(peer, s).item() for s in test]
    tokens = [len(s.ids) - s.start for s in test]
    by_token, by_sample = sum(nll) / sum(tokens), sum(x / n for x, n in zip(nll, tokens, strict=True)) / len(test)
    assert numbers(whole("lora"))[0]["test_nll"] == pytest.approx(by_token, abs=1e-5)
    assert abs(by_sample - by_token) > 1e-3
    decoder = Transformer.from_pretrained(checkpoint(), torch.float32)
    for size in (1, 3, 10):
        assert mean_nll(decoder, dataset.micro_batches(test, size), nullcontext) == pytest.approx(by_token, abs=1e-5)


# ----- precision ----------------------------------------------------------------------------------------------------

def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.fixture
def spy(monkeypatch):
    """What train() hands to optimizer_step, seen before and after each step."""
    seen = {"before": [], "after": []}
    step = train.optimizer_step

    def watched(decoder, optimizer, scaler, *rest):
        seen.update(decoder=decoder, optimizer=optimizer, scaler=scaler)
        seen["before"].append([p.detach().clone() for p in parameters(optimizer)])
        result = step(decoder, optimizer, scaler, *rest)
        seen["after"].append([p.detach().clone() for p in parameters(optimizer)])
        return result

    monkeypatch.setattr(train, "optimizer_step", watched)
    return seen


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_float16_trains_with_a_scaler_and_skips_a_step_that_overflows(checkpoint, chat, tmp_path, spy, monkeypatch, method):
    """Adapters, master weights and AdamW's moments are float32, losses finite, infinite gradients never applied."""
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: real(*a, init_scale=2.0 ** 40, backoff_factor=2.0 ** -24, **k))
    train.main(command(checkpoint(), chat, tmp_path, method=method, dtype="float16"))
    steps = zip(spy["before"], spy["after"], strict=True)
    changed = [any(not torch.equal(x, y) for x, y in zip(*step, strict=True)) for step in steps]
    assert changed == [False, True, True, True, True, True]                     # the first overflowed and was skipped
    rows = numbers(tmp_path)
    assert all(math.isfinite(row["test_nll"]) for row in rows) and rows[-1]["test_nll"] < rows[0]["test_nll"] - 0.05
    frozen = {p.dtype for p in spy["decoder"].parameters() if not p.requires_grad}
    assert frozen == (set() if method == "full" else {torch.float16})
    assert {p.dtype for p in parameters(spy["optimizer"])} == {torch.float32}
    moments = [s[key] for s in spy["optimizer"].state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert moments and {m.dtype for m in moments} == {torch.float32} and all(m.isfinite().all() for m in moments)


def test_bfloat16_full_fine_tuning_keeps_small_updates(checkpoint, chat, tmp_path, spy):
    """AdamW's first step at lr 1e-6 moves every weight by 1e-6, which a bfloat16 weight of 0.1 would not show."""
    train.main(command(checkpoint(), chat, tmp_path, method="full", dtype="bfloat16", lr=1e-6, max_steps=1))
    assert torch.is_autocast_enabled("cpu") is False
    before, after = (torch.cat([p.flatten() for p in spy[when][0]]) for when in ("before", "after"))
    assert before.dtype == torch.float32 and (before.abs() > 0.01).float().mean() > 0.9
    moved = (after - before).abs()
    assert (moved > 5e-7).float().mean() > 0.7 and moved.max() < 2e-6           # all but the rows of tokens that never occur
    saved = torch.cat([t.flatten() for t in load_file(tmp_path / "model.safetensors").values()])
    assert saved.dtype == torch.float32 and saved.double().sum().item() == pytest.approx(after.double().sum().item(), abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_bfloat16_computes_in_bfloat16_and_nearly_the_same(checkpoint, chat, tmp_path, spy, whole, method):
    train.main(command(checkpoint(), chat, tmp_path, method=method, dtype="bfloat16"))
    ours, exact = ([row["test_nll"] for row in numbers(out)] for out in (tmp_path, whole(method)))
    assert ours == pytest.approx(exact, abs=0.05) and ours != pytest.approx(exact, abs=1e-5)
    assert {p.dtype for p in parameters(spy["optimizer"])} == {torch.float32}


# ----- what a run writes and shows ----------------------------------------------------------------------------------

def test_log_has_the_columns_of_the_contract_and_a_row_an_evaluation(whole, samples):
    out = whole("lora")
    with open(out / "log.csv", newline="") as f:
        header, *rows = csv.reader(f)
    assert header == ("run model data method targets rank alpha lr batch_eff seed step tokens train_nll test_nll seconds peak_gb "
                      "trainable").split()
    assert [int(row[10]) for row in rows] == [0, 2, 4, 6]
    assert [row[12] == "" for row in rows] == [True, False, False, False]       # no training loss before the first step
    per_epoch = sum(len(s.ids) for s in samples["train"])
    assert [int(row[11]) for row in rows][::3] == [0, 2 * per_epoch]            # real tokens, padding not counted
    assert [row[3:10] for row in rows] == [["lora", "all-linear", "4", "4.0", "0.01", "16", "42"]] * 4
    assert len({row[0] for row in rows}) == 1 and all(float(row[15]) > 0.1 for row in rows)
    decoder = 2 * 4 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 48, 32 + 48, 48 + 32))      # layers x rank x (in + out)
    assert {int(row[16]) for row in rows} == {decoder}
    seconds = [float(row[14]) for row in rows]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[-1]


def test_training_loss_in_the_log_weights_the_tokens_since_the_last_row(checkpoint, chat, tmp_path, whole, samples):
    train.main(command(checkpoint(), chat, tmp_path, eval_steps=1))
    each, pairs = (list(numbers(out))[1:] for out in (tmp_path, whole("lora")))
    windows = [[samples["train"][i] for i in dataset.window(40, 16, step, seed=42)] for step in range(6)]
    tokens = [sum(len(s.ids) - s.start for s in window) for window in windows]
    for i, row in enumerate(pairs):
        x, y = 2 * i, 2 * i + 1
        mean = (each[x]["train_nll"] * tokens[x] + each[y]["train_nll"] * tokens[y]) / (tokens[x] + tokens[y])
        assert row["train_nll"] == pytest.approx(mean, abs=1e-6)
        assert row["test_nll"] == pytest.approx(each[y]["test_nll"], abs=1e-9)


def test_full_fine_tuning_leaves_the_columns_of_lora_empty(whole):
    assert {(row["method"], row["targets"], row["rank"], row["alpha"]) for row in numbers(whole("full"))} == {("full", "", "", "")}


def test_the_run_shows_what_it_is_about_to_do_and_what_it_learned(checkpoint, chat, tmp_path, capsys):
    """One sample with its supervised part marked; alpha and alpha / r; before the first evaluation."""
    train.main(command(checkpoint(), chat, tmp_path, alpha=32, max_steps=1))
    shown, _, after = capsys.readouterr().out.partition("step    0")
    for line in ("alpha                  32", "alpha / r              8", "trainable parameters   3,712 of 39,840 (9.32%)"):
        assert f"\n  {line}\n" in shown
    assert "40 for training (0 dropped: nothing supervised within --max_length), 10 for testing (0 dropped)" in shown
    first = dataset.window(40, 16, 0, seed=42)[0]
    question, reply = (m["content"] for m in dataset.read_messages(chat / "train.jsonl")[first])
    assert f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n»{reply}<|im_end|>«" in shown
    assert all(f"\n{word}" in after for word in ("question", "reference", "base", "tuned"))
    settings = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["alpha"], settings["rank"], settings["dtype"], settings["lr"]) == (32, 4, "float32", 0.01)


def test_peft_reads_the_adapter(checkpoint, whole, samples):
    """Its logits give the last row's test NLL."""
    import peft
    from transformers import AutoModelForCausalLM
    config = json.loads((whole("lora") / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, str(checkpoint()))
    peer = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint()), whole("lora"))
    first, *_, last = numbers(whole("lora"))
    assert last["test_nll"] == pytest.approx(peers_test_nll(peer, samples), abs=1e-4)
    assert last["test_nll"] < first["test_nll"] - 0.05


@torch.no_grad()
def peers_test_nll(peer, samples):
    return sum(peers_nll(peer, s).item() for s in samples["test"]) / sum(len(s.ids) - s.start for s in samples["test"])


def test_qlora_stopped_and_resumed_is_what_peft_reads_on_bitsandbytes(
        checkpoint, chat, samples, tmp_path, monkeypatch):
    """With 8-bit moments, paged before it stops and not after: the run's hash leaves that out."""
    import peft
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    # bitsandbytes needs rows of whole blocks on a CPU, and 64 x 64 is large enough for 8 bits.
    base = checkpoint("qwen2", hidden_size=64, intermediate_size=128)
    argv = command(base, chat, tmp_path / "out", method="qlora", rank=64)
    train.main([*argv, "--optimizer=adamw8bit", f"--out={tmp_path / 'whole'}"])
    first, *_, last = numbers(tmp_path / "whole")
    step, calls = train.optimizer_step, []

    def press_ctrl_c(*args):
        calls.append(args)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    with monkeypatch.context() as m, pytest.raises(SystemExit, match="130"):
        m.setattr(train, "optimizer_step", press_ctrl_c)
        train.main([*argv, "--optimizer=paged_adamw8bit"])
    train.main([*argv, "--optimizer=adamw8bit", "--resume"])
    assert len(calls) == 3
    same_result(tmp_path / "out", tmp_path / "whole")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                   bnb_4bit_use_double_quant=True)
    peer = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32,
                                                quantization_config=four_bits)
    peer = use_dequantized_weights(peft.PeftModel.from_pretrained(peer, tmp_path / "out"))
    with peer.disable_adapter():
        assert first["test_nll"] == pytest.approx(peers_test_nll(peer, samples), abs=1e-4)
    assert last["test_nll"] == pytest.approx(peers_test_nll(peer, samples), abs=1e-4)
    assert last["test_nll"] < first["test_nll"] - 0.05
    assert first["trainable"] == 2 * 64 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))


def test_files_can_be_read_by_those_who_may_read_the_folder(whole):
    for out in (whole("lora"), whole("full")):
        assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {(out / "log.csv").stat().st_mode & 0o777}


def test_run_is_a_hash_of_what_decides_the_result():
    base = {"rank": 8, "lr": 1e-3, "max_steps": 100}
    config = settled(Config(**base), 100)
    for same in ({"micro_bs": 2, "grad_accum": 8}, {"micro_bs": 16, "grad_accum": 1}, {"gradient_checkpointing": True},
                 {"out": "elsewhere"}, {"resume": True}, {"alpha": 8.0}, {"device": "cpu"}, {"compile": True},
                 {"optimizer": "paged_adamw"}):
        assert settled(Config(**base | same), 100).run == config.run, same
    others = [{}, {"micro_bs": 2}, {"lr": 2e-3}, {"alpha": 16.0}, {"rank": 16}, {"targets": "mlp"}, {"seed": 1}, {"max_steps": 99},
              {"eval_steps": 5}, {"max_length": 128}, {"model": "other"}, {"data": "other"}, {"method": "full"},
              {"schedule": "linear"}, {"dtype": "bfloat16"}, {"weight_decay": 0.1}, {"grad_clip": 0.0}, {"warmup_ratio": 0.1},
              {"eval_samples": 5}, {"method": "qlora"}, {"optimizer": "paged_adamw8bit"}]
    runs = [settled(Config(**base | other), 100).run for other in others]
    assert len(set(runs)) == len(others)
    full = [settled(Config(method="full", lr=1e-3, rank=rank), 100).run for rank in (8, 16)]
    assert full[0] == full[1]                                                   # where there is no rank, it decides nothing


def test_epochs_count_windows_as_the_trainer_does():
    assert [settled(Config(epochs=e), 40).max_steps for e in (1, 2, 0.5)] == [3, 6, 2]


def test_gradient_checkpointing_and_another_cut_change_nothing_but_rounding(checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path, "--gradient_checkpointing", micro_bs=2, grad_accum=8))
    for ours, reference in zip(numbers(tmp_path), numbers(whole("lora")), strict=True):
        assert ours["test_nll"] == pytest.approx(reference["test_nll"], abs=1e-5) and ours["run"] == reference["run"]


def test_default_path_needs_no_compiler(checkpoint, chat, tmp_path, whole):
    """No program is on the PATH, so that anything which wants to compile fails."""
    process = start(command(checkpoint(), chat, tmp_path), PATH="/nonexistent", CXX="/nonexistent/c++")
    _, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, "")
    same_result(tmp_path, whole("lora"))


# ----- stopping -----------------------------------------------------------------------------------------------------

def snapshots(out, into, monkeypatch):
    """Copy `out` whenever a file in it was opened for writing, half written, renamed or deleted: what SIGKILL could leave.

    What Python still buffers at that moment is not in the file, as it would not be. safetensors' files are written outside
    Python, beside their place: half of one is put there, and where it may be in other versions. The process that resumes has
    another id than the one that was killed.
    """
    kept, busy = set(), []

    def keep():
        if busy or not out.exists():
            return
        busy.append(True)
        state = tuple((str(p.relative_to(out)), p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file())
        if state not in kept:
            kept.add(state)
            copy = shutil.copytree(out, into / str(len(kept)))
            for part in copy.rglob(f"*.{os.getpid()}.part"):
                part.rename(str(part).replace(f".{os.getpid()}.", ".1."))
        busy.clear()

    def after(function):
        def watched(*args, **kwargs):
            result = function(*args, **kwargs)
            keep()
            return result
        return watched

    def halved(save_file):
        def watched(tensors, path, **kwargs):
            save_file(tensors, path, **kwargs)
            half, beside = Path(path).read_bytes(), Path(path).parent / ".tmpX1y2Z3"
            for place in (path, beside):
                place.write_bytes(half[:len(half) // 2])
            keep()
            beside.unlink()
            return after(save_file)(tensors, path, **kwargs)
        return watched

    for module, name in ((builtins, "open"), (io, "open"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
        monkeypatch.setattr(module, name, after(getattr(module, name)))
    for module in (plumbing.state, lora, plumbing.checkpoint):
        monkeypatch.setattr(module, "save_file", halved(module.save_file))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_resumed_from_any_state_its_folder_was_ever_in_ends_the_same(checkpoint, chat, tmp_path, whole, monkeypatch, method):
    monkeypatch.setattr(train, "answer_question", lambda *_: "")                         # what is said is not at stake here
    out, into = tmp_path / "out", tmp_path / "snapshots"
    with monkeypatch.context() as watch:
        clock = (30.0 ** i for i in range(200))                                 # so slow that saving never takes too much of it
        watch.setattr(train.time, "perf_counter", lambda: next(clock))
        snapshots(out, into, watch)
        train.main(command(checkpoint(), chat, out, method=method))
    same_result(out, whole(method))
    states = sorted(into.iterdir(), key=lambda p: int(p.name))
    assert len(states) >= 40
    for state in states:
        whole_files(state)
        train.main(command(checkpoint(), chat, state, "--resume", method=method))
        same_result(state, whole(method))


def whole_files(out):
    """Whatever has its final name is complete."""
    for path in out.rglob("*"):
        if path.name == "log.csv":
            text = path.read_text()
            assert text.endswith("\n") and [row["step"] for row in numbers(out)] == [0, 2, 4, 6][:text.count("\n") - 1] != []
        elif path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            assert load_file(path)


LONG = {"max_steps": 60, "eval_steps": 5}          # a second or so, and 13 rows


def wait_for_rows(out, n, process):
    """Until log.csv has `n` rows: not for a time, for a machine may be slow or busy."""
    log = out / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > n):
        time.sleep(0.002)


@pytest.mark.parametrize(("method", "kills"), [("lora", 3), ("full", 1)])
def test_a_run_killed_at_random_moments_ends_the_same(checkpoint, chat, tmp_path, whole, method, kills):
    draw = random.Random()
    for kill in range(kills):
        process = start(command(checkpoint(), chat, tmp_path, "--resume", method=method, **LONG))
        rows, delay = 3 * kill + draw.randint(1, 3), draw.uniform(0, 0.1)
        process.stdout.readline()                                               # "run ...": it has begun, or gone on
        wait_for_rows(tmp_path, rows, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        print(f"killed {delay:.3f} s after {rows} rows")
        assert process.returncode == -signal.SIGKILL
    train.main(command(checkpoint(), chat, tmp_path, "--resume", method=method, **LONG))
    same_result(tmp_path, whole(method, **LONG))


def test_ctrl_c_saves_and_says_how_to_go_on(checkpoint, chat, tmp_path, whole):
    process = start(command(checkpoint(), chat, tmp_path, **LONG))
    wait_for_rows(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in error
    assert len(error.split("\n")) == 3 and "add --resume" in error and str(tmp_path) in error
    step = int(error.split("stopped after step ")[1].split(";")[0])
    with safe_open(tmp_path / "state/state.safetensors", framework="pt") as f:
        assert json.loads(f.metadata()["progress"])["step"] == step and 0 < step < 60
    train.main(command(checkpoint(), chat, tmp_path, "--resume", **LONG))
    same_result(tmp_path, whole("lora", **LONG))


@pytest.mark.parametrize("presses", [1, 2])
def test_a_second_ctrl_c_does_not_wait_for_the_step(checkpoint, chat, tmp_path, whole, monkeypatch, capsys, presses):
    step, calls, before = train.optimizer_step, [], signal.getsignal(signal.SIGINT)

    def pressed(*args):
        calls.append(True)
        for _ in range(presses if len(calls) == 4 else 0):
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    with monkeypatch.context() as m:
        m.setattr(train, "optimizer_step", pressed)
        with pytest.raises(SystemExit) as e:
            train.main(command(checkpoint(), chat, tmp_path))
    assert e.value.code == 130 and len(calls) == 4
    assert capsys.readouterr().err.strip().startswith("stopped after step 4;" if presses == 1 else "stopped")
    assert signal.getsignal(signal.SIGINT) is before
    train.main(command(checkpoint(), chat, tmp_path, "--resume"))
    same_result(tmp_path, whole("lora"))


def test_ctrl_c_in_the_last_step_ends_a_run_that_is_done(checkpoint, chat, tmp_path, whole, monkeypatch):
    step, calls = train.optimizer_step, []
    monkeypatch.setattr(train, "optimizer_step", lambda *a: (calls.append(len(calls) == 5 and signal.raise_signal(signal.SIGINT)),
                                                             step(*a))[1])
    train.main(command(checkpoint(), chat, tmp_path))
    assert len(calls) == 6
    same_result(tmp_path, whole("lora"))


def test_the_scaler_is_resumed_too(checkpoint, chat, tmp_path, monkeypatch):
    """float16: its scale and the count of steps since it last changed are part of where a run stands."""
    real, steps = torch.amp.GradScaler, iter(range(100))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: real(*a, init_scale=1.0, growth_interval=2, **k))
    settings = {"method": "full", "dtype": "float16"}
    train.main(command(checkpoint(), chat, tmp_path / "whole", **settings))
    step = train.optimizer_step
    with monkeypatch.context() as m:
        m.setattr(train, "optimizer_step", lambda *a: (next(steps) == 2 and signal.raise_signal(signal.SIGINT), step(*a))[1])
        with pytest.raises(SystemExit):
            train.main(command(checkpoint(), chat, tmp_path / "out", **settings))
    with safe_open(tmp_path / "out/state/state.safetensors", framework="pt") as f:
        scaler = json.loads(f.metadata()["progress"])["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0, 1)
    train.main(command(checkpoint(), chat, tmp_path / "out", "--resume", **settings))
    same_result(tmp_path / "out", tmp_path / "whole")


# ----- starting where something is ----------------------------------------------------------------------------------

def test_a_finished_run_says_so_and_changes_nothing(checkpoint, chat, whole, capsys):
    before = contents(whole("lora"))
    for flags in ((), ("--resume",)):
        rows = train.train(parse_run(command(checkpoint(), chat, whole("lora"), *flags)))
        out = capsys.readouterr().out
        assert "holds this run, finished: step    6" in out and f"test NLL {rows[-1]['test_nll']:.4f}" in out
        assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert contents(whole("lora")) == before


def test_resume_begins_where_nothing_is(checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path / "new", "--resume"))
    same_result(tmp_path / "new", whole("lora"))


def test_the_same_settings_give_the_same_run(checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path))
    same_result(tmp_path, whole("lora"))
    train.main(command(checkpoint(), chat, tmp_path / "other", seed=43))
    assert weights(tmp_path / "other") != weights(tmp_path)


INTEL = Path("/proc/cpuinfo").exists() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(not (INTEL and torch.backends.mkl.is_available()), reason="only MKL has a mode for this, on Intel's processors")
def test_one_thread_and_two_give_the_same_numbers():
    """The gradient of a LoRA matrix of nano, x^T dy over 800 tokens: without model.py's setting of MKL the two differ."""
    x, dy = (torch.randn(800, n, generator=torch.Generator().manual_seed(n)) for n in (192, 64))
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(x.T @ dy)
    torch.set_num_threads(before)
    assert torch.equal(*made)


def test_overwrite_replaces_a_run_of_any_kind(checkpoint, chat, tmp_path, whole):
    shutil.copytree(whole("full"), tmp_path / "out")
    train.main(command(checkpoint(), chat, tmp_path / "out", "--overwrite"))
    same_result(tmp_path / "out", whole("lora"))                                # and nothing of the full one is left
