"""The training loop: its numbers against transformers and torch, its files, and that stopping it
anywhere changes nothing."""
import builtins
import contextlib
import csv
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peers import use_dequantized_weights
from runs import command, contents, numbers, one_line, press_ctrl_c, start, write_lines
from safetensors import safe_open
from safetensors.torch import load_file

import dataset
import lora
import plumbing.checkpoint
import plumbing.state
import train
from engine import mean_nll, open_model
from methods import open_adapter, switch_adapter
from model import Transformer
from settings import Config
from settings import parse as parse_run
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def samples(checkpoint, chat):
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    return {split: dataset.load_split(chat / f"{split}.jsonl", tokenizer, 256)[0]
            for split in ("train", "test")}


@pytest.fixture(scope="module")
def whole(checkpoint, chat, tmp_path_factory):
    """whole(method, **settings) -> the folder of a run that nothing stopped. Do not write there."""
    made = {}

    def make(method, **settings):
        key = method, *settings.items()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            train.main(command(checkpoint(), chat, made[key], method=method, **settings))
        return made[key]
    return make


def weights(out):
    paths = [out / "adapter_model.safetensors", out / "model.safetensors"]
    return [path.read_bytes() for path in paths if path.exists()]


def assert_same_result(out, reference):
    """The same log, the same weights to the last bit, the same files and nothing left over."""
    assert numbers(out) == numbers(reference) and len(weights(reference)) == 1
    assert weights(out) == weights(reference)
    names, expected = ({path.name for path in folder.rglob("*")} for folder in (out, reference))
    assert names == expected


# ----- one step -----------------------------------------------------------------------------------

def count_supervised(samples):
    return sum(sample.learned for sample in samples)


def step_samples(samples, step):
    """The training samples of optimizer step `step`, with seed 42."""
    return [samples["train"][i] for i in dataset.window(40, 16, step, seed=42)]


def peers_nll(peer, sample):
    """transformers' logits for one sample, unpadded -> the NLL summed over its supervised part."""
    logits = peer(torch.tensor([sample.ids])).logits[0]                     # (T, V)
    return F.cross_entropy(logits[:-1], torch.tensor(sample.labels[1:]), reduction="sum")


@torch.no_grad()
def peers_test_nll(peer, samples):
    nll_sum = sum(peers_nll(peer, sample).item() for sample in samples["test"])
    return nll_sum / count_supervised(samples["test"])


def test_full_fine_tuning_follows_transformers(checkpoint, chat, samples, tmp_path):
    """Five steps of torch.optim.AdamW on transformers' model: warm-up, cosine, decay, clipping."""
    from transformers import AutoModelForCausalLM, Trainer, get_scheduler
    train.main(command(checkpoint(), chat, tmp_path, method="full", lr=3e-3, max_steps=5,
                       eval_steps=1, schedule="cosine", warmup_ratio=0.2, weight_decay=0.1))

    peer = AutoModelForCausalLM.from_pretrained(checkpoint())
    decayed = Trainer.get_decay_parameter_names(None, peer)
    with_decay = [p for name, p in peer.named_parameters() if name in decayed]
    without = [p for name, p in peer.named_parameters() if name not in decayed]
    groups = [{"params": with_decay, "weight_decay": 0.1}, {"params": without, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, 3e-3, betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=5)
    losses, norms = [], []
    for step in range(5):
        batch = step_samples(samples, step)
        loss = sum(peers_nll(peer, sample) for sample in batch) / count_supervised(batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0).item())
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())

    ours = [row["train_nll"] for row in numbers(tmp_path)[1:]]
    assert ours == pytest.approx(losses, abs=1e-4)
    assert losses[0] - losses[-1] > 0.1 and max(norms) > 1.5        # it learned, it was clipped
    tuned = load_file(tmp_path / "model.safetensors")
    for name, p in peer.named_parameters():
        if name in tuned:                                   # a tied lm_head is stored once
            torch.testing.assert_close(tuned[name], p.detach(), atol=1e-4, rtol=0)


class Recorder:
    """In an optimizer's place: keeps the gradients instead of making a step."""
    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": None}]

    def step(self):
        gradients = [p.grad.flatten() for p in self.param_groups[0]["params"]]
        self.gradient = torch.cat(gradients)

    def zero_grad(self, set_to_none):
        for p in self.param_groups[0]["params"]:
            p.grad = None


NO_SCALING = torch.amp.GradScaler("cpu", enabled=False)


def test_micro_batches_of_any_size_give_the_same_gradient(checkpoint, samples):
    """The answers of 16 samples differ eightfold in length, so a mean of means would differ."""
    model = Transformer.from_pretrained(checkpoint(), torch.float32)
    batch = step_samples(samples, 0)
    recorder = Recorder(model.parameters())
    gradients = {}
    for size in (1, 4, 16):
        nll_sum, tokens = train.optimizer_step(
            model, recorder, NO_SCALING, dataset.micro_batches(batch, size), nullcontext, 0.1,
            grad_clip=0)
        assert tokens == count_supervised(batch)
        assert nll_sum == pytest.approx(4.9 * tokens, rel=0.5)
        assert recorder.param_groups[0]["lr"] == 0.1
        gradients[size] = recorder.gradient

    for ids, labels in dataset.micro_batches(batch, 4):     # the mean of means, the wrong loss
        nll, tokens = model.loss(ids, labels)
        (nll / tokens / 4).backward()
    mean_of_means = torch.cat([p.grad.flatten() for p in model.parameters()])
    largest = gradients[1].abs().max()
    assert (gradients[4] - gradients[1]).abs().max() < 1e-5 * largest
    assert (gradients[16] - gradients[1]).abs().max() < 1e-5 * largest
    assert (mean_of_means - gradients[1]).abs().max() > 0.05 * largest


def test_clipping_brings_the_gradient_to_its_norm_and_0_leaves_it(checkpoint, samples):
    model = Transformer.from_pretrained(checkpoint(), torch.float32)
    recorder = Recorder(model.parameters())
    micro_batches = dataset.micro_batches(samples["train"][:4], 4)
    norms = []
    for clip in (0.0, 0.5, 1e6):
        train.optimizer_step(model, recorder, NO_SCALING, micro_batches, nullcontext, 0.1, clip)
        norms.append(recorder.gradient.norm().item())
    assert norms[0] == pytest.approx(norms[2]) and norms[0] > 1
    assert norms[1] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.13, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), [
    ("constant", "constant_with_warmup"), ("cosine", "cosine"), ("linear", "linear")])
def test_schedules_are_those_of_transformers(ours, theirs, warmup_ratio):
    from transformers import get_scheduler
    config = Config(lr=3e-4, schedule=ours, warmup_ratio=warmup_ratio, max_steps=30)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 3e-4)
    scheduler = get_scheduler(theirs, optimizer, num_training_steps=30,
                              num_warmup_steps=math.ceil(warmup_ratio * 30))
    for step in range(30):
        expected = scheduler.get_last_lr()[0]
        assert train.lr_at(step, config) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_test_nll_is_that_of_transformers_and_weights_tokens(checkpoint, samples, whole):
    from transformers import AutoModelForCausalLM
    peer, test = AutoModelForCausalLM.from_pretrained(checkpoint()), samples["test"]
    by_token = peers_test_nll(peer, samples)
    with torch.no_grad():
        means = [peers_nll(peer, sample).item() / count_supervised([sample]) for sample in test]
    by_sample = sum(means) / len(means)
    assert numbers(whole("lora"))[0]["test_nll"] == pytest.approx(by_token, abs=1e-5)
    assert abs(by_sample - by_token) > 1e-3
    model = Transformer.from_pretrained(checkpoint(), torch.float32)
    for size in (1, 3, 10):
        nll = mean_nll(model, dataset.micro_batches(test, size), nullcontext)
        assert nll == pytest.approx(by_token, abs=1e-5)


MARKED = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
          "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}"
          "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}")


def test_all_answers_of_a_conversation_are_learned_as_transformers_masks_them(
        checkpoint, tmp_path):
    """The loss before and in the first step, with the labels that TRL's assistant_only_loss makes:
    ids where the assistant's mask is 1. The template is the tests' own, with its answers marked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    draw = random.Random(0)
    splits = {"train": [], "test": []}
    for conversations, n in zip(splits.values(), (16, 6), strict=True):
        for _ in range(n):
            messages = []
            for _ in range(draw.randint(1, 3)):
                a, b = draw.randint(1, 50), draw.randint(1, 50)
                messages.append({"role": "user", "content": f"Lan có {a} quả táo, thêm {b} quả?"})
                messages.append({"role": "assistant", "content": f"{a} + {b} = {a + b}. " * 3})
            conversations.append(messages)
    for split, conversations in splits.items():
        write_lines(tmp_path / f"{split}.jsonl", conversations)

    peer = AutoModelForCausalLM.from_pretrained(checkpoint())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint())
    expected = {}
    for split, conversations in splits.items():
        nll_sum, tokens = 0.0, 0
        for messages in conversations:
            row = tokenizer.apply_chat_template(
                messages, chat_template=MARKED, return_dict=True, return_tensors="pt",
                return_assistant_tokens_mask=True)
            labels = row["input_ids"].masked_fill(row["assistant_masks"] == 0, -100)
            n = int((labels != -100).sum())
            with torch.no_grad():
                nll_sum += n * peer(row["input_ids"], labels=labels).loss.item()
            tokens += n
        expected[split] = nll_sum / tokens

    losses = {}
    for supervise in ("all", "last"):
        out = tmp_path / supervise
        train.main(command(checkpoint(), tmp_path, out, max_steps=1, supervise=supervise))
        before, after = numbers(out)
        losses[supervise] = before["test_nll"], after["train_nll"]
    assert losses["all"] == pytest.approx((expected["test"], expected["train"]), abs=1e-4)
    assert max(abs(a - b) for a, b in zip(*losses.values(), strict=True)) > 0.01


# ----- precision ----------------------------------------------------------------------------------

def optimized(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.fixture
def spy(monkeypatch):
    """What a run hands to optimizer_step: the objects, and the weights before and after a step."""
    seen = {"before": [], "after": []}
    step = train.optimizer_step

    def watched(model, optimizer, *rest, **how):
        seen.update(model=model, optimizer=optimizer)
        seen["before"].append([p.detach().clone() for p in optimized(optimizer)])
        result = step(model, optimizer, *rest, **how)
        seen["after"].append([p.detach().clone() for p in optimized(optimizer)])
        return result

    monkeypatch.setattr(train, "optimizer_step", watched)
    return seen


def change_scaler(monkeypatch, **settings):
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler",
                        lambda *args, **how: real(*args, **how | settings))


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_float16_trains_with_a_scaler_and_skips_a_step_that_overflows(
        checkpoint, chat, tmp_path, spy, monkeypatch, method):
    """Adapters, master weights and AdamW's moments are float32, losses finite, infinite gradients
    never applied."""
    change_scaler(monkeypatch, init_scale=2.0 ** 40, backoff_factor=2.0 ** -24)
    train.main(command(checkpoint(), chat, tmp_path, method=method, dtype="float16"))
    changed = []
    for before, after in zip(spy["before"], spy["after"], strict=True):
        same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        changed.append(not all(same))
    assert changed == [False, True, True, True, True, True]     # the first overflowed: skipped
    nll = [row["test_nll"] for row in numbers(tmp_path)]
    assert all(map(math.isfinite, nll)) and nll[-1] < nll[0] - 0.05

    frozen = {p.dtype for p in spy["model"].parameters() if not p.requires_grad}
    assert frozen == (set() if method == "full" else {torch.float16})
    assert {p.dtype for p in optimized(spy["optimizer"])} == {torch.float32}
    moments = []
    for state in spy["optimizer"].state.values():
        moments += [state["exp_avg"], state["exp_avg_sq"]]
    assert moments and {m.dtype for m in moments} == {torch.float32}
    assert all(m.isfinite().all() for m in moments)


def test_float16_that_makes_no_step_is_told(checkpoint, chat, tmp_path, capsys):
    """After the first step all is nan, and the scaler skips each of the others."""
    with pytest.raises(SystemExit) as end:
        train.main(command(checkpoint(), chat, tmp_path, dtype="float16", lr=1e9, grad_accum=1,
                           max_steps=40, eval_steps=30))
    assert "no step was made for a while" in one_line(end.value.code, capsys.readouterr().err)


def test_bfloat16_full_fine_tuning_keeps_small_updates(checkpoint, chat, tmp_path, spy):
    """AdamW's first step at lr 1e-6 moves each weight by 1e-6; in bfloat16 0.1 would not move."""
    train.main(command(checkpoint(), chat, tmp_path, method="full", dtype="bfloat16", lr=1e-6,
                       max_steps=1))
    assert torch.is_autocast_enabled("cpu") is False
    before, after = (torch.cat([p.flatten() for p in spy[when][0]]) for when in ("before", "after"))
    assert before.dtype == torch.float32 and (before.abs() > 0.01).float().mean() > 0.9
    moved = (after - before).abs()
    assert (moved > 5e-7).float().mean() > 0.7      # all but the rows of tokens that never occur
    assert moved.max() < 2e-6
    tensors = load_file(tmp_path / "model.safetensors").values()
    saved = torch.cat([t.flatten() for t in tensors])
    assert saved.dtype == torch.float32
    assert saved.double().sum().item() == pytest.approx(after.double().sum().item(), abs=1e-6)


@pytest.mark.parametrize("hidden, instructions, dtype, hinted", [
    (512, "amx", "float32", "bfloat16"), (512, "amx", "bfloat16", ""), (512, "", "float32", ""),
    (32, "amx", "float32", ""), (32, "", "bfloat16", "float32"), (32, None, "bfloat16", "")])
def test_a_run_says_which_dtype_would_be_faster(
        checkpoint, chat, tmp_path, monkeypatch, capsys, hidden, instructions, dtype, hinted):
    monkeypatch.setattr(train, "multiplies_bfloat16", lambda: instructions)
    train.main(command(checkpoint(hidden_size=hidden), chat, tmp_path, dtype=dtype, max_steps=1))
    said = capsys.readouterr().out
    hint = f"  {dtype}; this processor is faster with --dtype {hinted}\n"
    assert hint in said if hinted else "this processor" not in said


def test_a_run_says_how_many_test_samples_it_learns(checkpoint, chat, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(chat, data)
    for lines in (3, 0):
        learned = (chat / "train.jsonl").read_text(encoding="utf-8").splitlines(True)[:lines]
        other = (chat / "test.jsonl").read_text(encoding="utf-8")
        (data / "test.jsonl").write_text("".join(learned) + other, encoding="utf-8")
        train.main(command(checkpoint(), data, tmp_path / str(lines), max_steps=1))
        said = capsys.readouterr().out
        count = f"  3 of {3 + other.count(chr(10))} are training samples, too"
        assert (count in said) == (lines == 3) and ("are training samples" in said) == (lines == 3)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_bfloat16_computes_in_bfloat16_and_nearly_the_same(
        checkpoint, chat, tmp_path, spy, whole, method):
    train.main(command(checkpoint(), chat, tmp_path, method=method, dtype="bfloat16"))
    ours, exact = ([row["test_nll"] for row in numbers(out)] for out in (tmp_path, whole(method)))
    assert ours == pytest.approx(exact, abs=0.05) and ours != pytest.approx(exact, abs=1e-5)
    assert {p.dtype for p in optimized(spy["optimizer"])} == {torch.float32}


# ----- what a run writes and shows ----------------------------------------------------------------

def test_log_has_the_columns_of_the_contract_and_a_row_per_evaluation(whole, samples):
    path = whole("lora") / "log.csv"
    header = path.read_text(encoding="utf-8").partition("\n")[0]
    assert header.strip() == ("run,model,data,method,targets,rank,alpha,lr,batch_eff,seed,step,"
                              "tokens,train_nll,test_nll,seconds,peak_gb,trainable")
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))

    def column(name):
        return [row[name] for row in rows]

    assert column("step") == ["0", "2", "4", "6"]
    empty = [cell == "" for cell in column("train_nll")]
    assert empty == [True, False, False, False]             # before the first step there is none
    per_epoch = sum(len(sample.ids) for sample in samples["train"])
    tokens = [int(cell) for cell in column("tokens")]
    assert tokens[::3] == [0, 2 * per_epoch]                # two epochs; padding is not counted
    expected = {"method": "lora", "targets": "all-linear", "rank": "4", "alpha": "4.0",
                "lr": "0.01", "batch_eff": "16", "seed": "42"}
    for name, cell in expected.items():
        assert column(name) == [cell] * 4
    assert len(set(column("run"))) == 1
    assert all(float(cell) > 0.1 for cell in column("peak_gb"))
    in_plus_out = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32)
    layers, rank = 2, 4
    assert set(column("trainable")) == {str(layers * rank * in_plus_out)}
    seconds = [float(cell) for cell in column("seconds")]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[-1]


def test_training_loss_in_the_log_weights_the_tokens_since_the_last_row(
        checkpoint, chat, tmp_path, whole, samples):
    train.main(command(checkpoint(), chat, tmp_path, eval_steps=1))
    each, pairs = (numbers(out)[1:] for out in (tmp_path, whole("lora")))
    tokens = [count_supervised(step_samples(samples, step)) for step in range(6)]
    for i, row in enumerate(pairs):
        x, y = 2 * i, 2 * i + 1
        nll_sum = each[x]["train_nll"] * tokens[x] + each[y]["train_nll"] * tokens[y]
        assert row["train_nll"] == pytest.approx(nll_sum / (tokens[x] + tokens[y]), abs=1e-6)
        assert row["test_nll"] == pytest.approx(each[y]["test_nll"], abs=1e-9)


def test_full_fine_tuning_leaves_the_columns_of_lora_empty(whole):
    for row in numbers(whole("full")):
        assert row["method"] == "full"
        assert row["targets"] == row["rank"] == row["alpha"] == ""


def test_the_run_shows_what_it_is_about_to_do_and_what_it_learned(
        checkpoint, chat, tmp_path, capsys):
    """One sample with its supervised part marked; alpha and its factor; before the first row."""
    train.main(command(checkpoint(), chat, tmp_path, alpha=32, max_steps=1))
    shown, _, after = capsys.readouterr().out.partition("step    0")
    for line in ("alpha                  32", "factor of dW           8",
                 "trainable parameters   3,712 of 39,840 (9.32%)"):
        assert f"\n  {line}\n" in shown
    assert "  samples                40 for training, 10 for testing\n" in shown
    assert "dropped" not in shown.partition("the first sample")[0].replace("dropout", "")
    first = dataset.window(40, 16, 0, seed=42)[0]
    question, reply = dataset.read_messages(chat / "train.jsonl")[first]
    assert (f"<|im_start|>user\n{question['content']}<|im_end|>\n"
            f"<|im_start|>assistant\n»{reply['content']}<|im_end|>«") in shown
    for word in ("question", "reference", "base", "tuned"):
        assert f"\n{word}" in after
    settings = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["alpha"], settings["rank"]) == (32, 4)
    assert (settings["dtype"], settings["lr"]) == ("float32", 0.01)


def test_peft_reads_the_adapter(checkpoint, whole, samples):
    """Its logits give the last row's test NLL."""
    import peft
    from transformers import AutoModelForCausalLM
    config = json.loads((whole("lora") / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["base_model_name_or_path"] == str(checkpoint())
    base = AutoModelForCausalLM.from_pretrained(checkpoint())
    peer = peft.PeftModel.from_pretrained(base, whole("lora"))
    first, *_, last = numbers(whole("lora"))
    assert last["test_nll"] == pytest.approx(peers_test_nll(peer, samples), abs=1e-4)
    assert last["test_nll"] < first["test_nll"] - 0.05


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
    with monkeypatch.context() as m, pytest.raises(SystemExit, match="130"):
        steps = press_ctrl_c(m, 3)
        train.main([*argv, "--optimizer=paged_adamw8bit"])
    train.main([*argv, "--optimizer=adamw8bit", "--resume"])
    assert len(steps) == 3
    assert_same_result(tmp_path / "out", tmp_path / "whole")
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
        usual = (out / "log.csv").stat().st_mode & 0o777
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {usual}


def test_gradient_checkpointing_and_another_cut_change_nothing_but_rounding(
        checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path, "--gradient_checkpointing", micro_bs=2,
                       grad_accum=8))
    for ours, reference in zip(numbers(tmp_path), numbers(whole("lora")), strict=True):
        assert ours["test_nll"] == pytest.approx(reference["test_nll"], abs=1e-5)
        assert ours["run"] == reference["run"]


def test_default_path_needs_no_compiler(checkpoint, chat, tmp_path, whole):
    """No program is on the PATH, so anything that wants to compile fails."""
    process = start(command(checkpoint(), chat, tmp_path), PATH="/nonexistent",
                    CXX="/nonexistent/c++")
    _, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, "")
    assert_same_result(tmp_path, whole("lora"))


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_training_runs_the_compiled_layers(checkpoint, chat, tmp_path, monkeypatch, whole, dtype,
                                           within):
    """One graph per layer and micro-batch, although the base answers before the first step.

    The backend only counts, so that no compiler is needed, and the numbers stay.
    """
    calls, per_step = [], []

    def counting(graph, _):
        return lambda *args: calls.append(1) or graph.forward(*args)

    def step_and_count(*args, **how):
        before = len(calls)
        result = optimizer_step(*args, **how)
        per_step.append((len(calls) - before) / len(args[3]))
        return result
    compile_layer, optimizer_step = torch.nn.Module.compile, train.optimizer_step
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda layer, **how: compile_layer(layer, backend=counting, **how))
    monkeypatch.setattr(train, "optimizer_step", step_and_count)
    monkeypatch.setenv("CXX", sys.executable)           # any program will do
    train.main(command(checkpoint(), chat, tmp_path, "--compile", "--dtype", dtype))
    assert per_step == [2] * 6          # two layers
    for ours, reference in zip(numbers(tmp_path), numbers(whole("lora")), strict=True):
        assert ours["test_nll"] == pytest.approx(reference["test_nll"], abs=within)


# ----- stopping -----------------------------------------------------------------------------------

class Snapshots:
    """Copies the folder `out` whenever something in it changes: all that SIGKILL could leave.

    It copies after each call that opens, renames or deletes a file or a folder. What Python still
    buffers then is not in the file, as after a kill. safetensors writes its files outside Python,
    under the name it is given or, in other versions, under one of its own in the same folder; so
    half of a file is put in both places.
    """

    def __init__(self, out, into, monkeypatch):
        self.out, self.into = out, into
        self.seen, self.copying = set(), False
        for module, names in ((builtins, ["open"]), (io, ["open"]),
                              (os, ["replace", "unlink", "rmdir", "mkdir"])):
            for name in names:
                monkeypatch.setattr(module, name, self.copy_after(getattr(module, name)))
        for module in (plumbing.state, lora, plumbing.checkpoint):
            monkeypatch.setattr(module, "save_file", self.copy_while_saving(module.save_file))

    def copy(self):
        if self.copying or not self.out.exists():
            return
        self.copying = True             # because copying opens files, too
        files = frozenset(contents(self.out).items())
        if files not in self.seen:
            self.seen.add(files)
            snapshot = shutil.copytree(self.out, self.into / str(len(self.seen)))
            # The process that resumes has another id than the one that was killed.
            for part in snapshot.rglob(f"*.{os.getpid()}.part"):
                part.rename(str(part).replace(f".{os.getpid()}.", ".1."))
        self.copying = False

    def copy_after(self, function):
        def watched(*args, **kwargs):
            result = function(*args, **kwargs)
            self.copy()
            return result
        return watched

    def copy_while_saving(self, save_file):
        def watched(tensors, path, **kwargs):
            save_file(tensors, path, **kwargs)
            complete, its_own = Path(path).read_bytes(), Path(path).parent / ".tmpX1y2Z3"
            for place in (path, its_own):
                place.write_bytes(complete[:len(complete) // 2])
            self.copy()
            its_own.unlink()
            save_file(tensors, path, **kwargs)
            self.copy()
        return watched


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_resumed_from_any_state_its_folder_was_ever_in_ends_the_same(
        checkpoint, chat, tmp_path, whole, monkeypatch, method):
    monkeypatch.setattr(train, "answer_question", lambda *_: "")    # answers are not at stake here
    out, into = tmp_path / "out", tmp_path / "snapshots"
    with monkeypatch.context() as watch:
        clock = (30.0 ** i for i in range(200))     # so slow that saving never takes too much of it
        watch.setattr(train.time, "perf_counter", lambda: next(clock))
        Snapshots(out, into, watch)
        train.main(command(checkpoint(), chat, out, method=method))
    assert_same_result(out, whole(method))
    states = sorted(into.iterdir(), key=lambda path: int(path.name))
    assert len(states) >= 40
    for state in states:
        assert_whole_files(state)
        train.main(command(checkpoint(), chat, state, "--resume", method=method))
        assert_same_result(state, whole(method))


def assert_whole_files(out):
    """Whatever has its final name is complete."""
    for path in out.rglob("*"):
        if path.name == "log.csv":
            text = path.read_text(encoding="utf-8")
            n_rows = text.count("\n") - 1
            assert text.endswith("\n") and n_rows >= 1
            assert [row["step"] for row in numbers(out)] == [0, 2, 4, 6][:n_rows]
        elif path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            assert load_file(path)


LONG = {"max_steps": 60, "eval_steps": 5}          # a second or so, and 13 rows


def wait_for_rows(out, n, process):
    """Wait until log.csv has `n` rows, and not for a time, because a machine may be slow."""
    log = out / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > n):
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [("lora", 3), ("full", 3)])
def test_a_run_killed_at_random_moments_ends_the_same(
        checkpoint, chat, tmp_path, whole, method, kills):
    draw = random.Random()
    argv = command(checkpoint(), chat, tmp_path, "--resume", method=method, **LONG)
    for kill in range(kills):
        process = start(argv)
        rows, delay = 3 * kill + draw.randint(1, 3), draw.uniform(0, 0.1)
        process.stdout.readline()                           # "run ...": it has started, or gone on
        wait_for_rows(tmp_path, rows, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        print(f"killed {delay:.3f} s after {rows} rows")
        assert process.returncode == -signal.SIGKILL
    train.main(argv)
    assert_same_result(tmp_path, whole(method, **LONG))


def read_progress(out):
    with safe_open(out / "state/state.safetensors", framework="pt") as f:
        return json.loads(f.metadata()["progress"])


def test_ctrl_c_saves_and_says_how_to_go_on(checkpoint, chat, tmp_path, whole):
    process = start(command(checkpoint(), chat, tmp_path, **LONG))
    wait_for_rows(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in error
    assert len(error.split("\n")) == 3 and "add --resume" in error and str(tmp_path) in error
    step = int(error.split("stopped after step ")[1].split(";")[0])
    assert read_progress(tmp_path)["step"] == step and 0 < step < 60
    train.main(command(checkpoint(), chat, tmp_path, "--resume", **LONG))
    assert_same_result(tmp_path, whole("lora", **LONG))


@pytest.mark.parametrize("presses", [1, 2])
def test_a_second_ctrl_c_does_not_wait_for_the_step(
        checkpoint, chat, tmp_path, whole, monkeypatch, capsys, presses):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as m:
        steps = press_ctrl_c(m, 4, presses)
        with pytest.raises(SystemExit) as e:
            train.main(command(checkpoint(), chat, tmp_path))
    assert e.value.code == 130 and len(steps) == 4
    error = capsys.readouterr().err.strip()
    if presses == 1:
        assert error.startswith("stopped after step 4;")
    else:
        assert error == "stopped"                           # in the middle of the step
    assert signal.getsignal(signal.SIGINT) is handler
    train.main(command(checkpoint(), chat, tmp_path, "--resume"))
    assert_same_result(tmp_path, whole("lora"))


def test_ctrl_c_in_the_last_step_ends_a_run_that_is_done(
        checkpoint, chat, tmp_path, whole, monkeypatch):
    steps = press_ctrl_c(monkeypatch, 6)
    train.main(command(checkpoint(), chat, tmp_path))
    assert len(steps) == 6
    assert_same_result(tmp_path, whole("lora"))


def test_the_scaler_is_resumed_too(checkpoint, chat, tmp_path, monkeypatch):
    """float16: its scale and the steps since it last changed are part of where a run stands."""
    change_scaler(monkeypatch, init_scale=1.0, growth_interval=2)
    settings = {"method": "full", "dtype": "float16"}
    train.main(command(checkpoint(), chat, tmp_path / "whole", **settings))
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        press_ctrl_c(m, 3)
        train.main(command(checkpoint(), chat, tmp_path / "out", **settings))
    scaler = read_progress(tmp_path / "out")["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0, 1)
    train.main(command(checkpoint(), chat, tmp_path / "out", "--resume", **settings))
    assert_same_result(tmp_path / "out", tmp_path / "whole")


# ----- starting where a run exists ----------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_with_dropout_is_resumed_bit_for_bit(
        checkpoint, chat, tmp_path, whole, monkeypatch, method):
    """Stopped in each step, and it is another run than that without dropout, or of another seed.

    Its test NLL is of the whole adapter: the one before the first step is the base's, and a
    loaded adapter has the last one (test_dropout_is_off_where_a_run_is_judged).
    """
    reference = whole(method, dropout=0.5)
    others = whole(method), whole(method, dropout=0.25)
    finals = [numbers(out)[-1]["test_nll"] for out in (reference, *others)]
    assert len(set(finals)) == 3
    for step in range(1, 7):
        out = tmp_path / str(step)
        with monkeypatch.context() as m:
            press_ctrl_c(m, step)
            with contextlib.suppress(SystemExit):       # in the last step it is done
                train.main(command(checkpoint(), chat, out, method=method, dropout=0.5))
        torch.manual_seed(step)             # whatever was drawn in between
        train.main(command(checkpoint(), chat, out, "--resume", method=method, dropout=0.5))
        assert_same_result(out, reference)


def test_dropout_is_off_where_a_run_is_judged(checkpoint, chat, samples, whole):
    """The adapter that was saved, opened to answer, has the test NLL of the log's last row."""
    model, _ = open_model(str(checkpoint()))
    out = whole("lora", dropout=0.5)
    switch_adapter(model, open_adapter(out), merge=False)
    layer = next(iter(lora.lora_layers(model).values()))
    assert layer.dropout.p == 0.5 and not layer.dropout.training
    nll = mean_nll(model, dataset.micro_batches(samples["test"], 16))
    assert nll == pytest.approx(numbers(out)[-1]["test_nll"], abs=1e-6)
    assert numbers(out)[0]["test_nll"] == numbers(whole("lora"))[0]["test_nll"]


def test_what_is_dropped_is_a_function_of_the_seed_and_the_step(
        checkpoint, chat, tmp_path, monkeypatch):
    """Recomputing a layer draws the same again, and no two steps or seeds draw alike."""
    assert len({train.step_seed(seed, step) for seed in range(30) for step in range(30)}) == 900
    assert train.step_seed(42, 0) == 3330960825423142968
    seeds, training = [], []
    step, answer = train.optimizer_step, train.generate_answers
    monkeypatch.setattr(train, "optimizer_step",
                        lambda *args, **how: seeds.append(how["seed"]) or step(*args, **how))
    monkeypatch.setattr(train, "generate_answers",
                        lambda model, *how: training.append(model.training) or answer(model, *how))
    for out, *flags in (("plain",), ("checkpointed", "--gradient_checkpointing")):
        train.main(command(checkpoint(), chat, tmp_path / out, *flags, dropout=0.5))
    assert seeds == [train.step_seed(42, i) for i in range(6)] * 2
    assert training == [False] * 4          # an answer drops nothing
    for ours, reference in zip(numbers(tmp_path / "checkpointed"), numbers(tmp_path / "plain")):
        assert ours["test_nll"] == pytest.approx(reference["test_nll"], abs=1e-5)


def test_a_finished_run_gives_the_rows_that_it_gave_when_it_was_made(checkpoint, chat, tmp_path):
    """Types included: a step is a whole number in both."""
    argv = command(checkpoint(), chat, tmp_path, max_steps=2)
    made, finished = (train.train(parse_run(argv)) for _ in range(2))
    assert finished == made
    assert [list(map(type, row.values())) for row in finished] == [
        list(map(type, row.values())) for row in made]


def test_a_finished_run_without_its_rows(checkpoint, chat, whole, tmp_path, capsys):
    out = shutil.copytree(whole("lora"), tmp_path / "out")
    (out / "log.csv").unlink()
    with pytest.raises(SystemExit, match="2"):
        train.main(command(checkpoint(), chat, out))
    assert "its log.csv is gone; --overwrite" in capsys.readouterr().err


def test_a_finished_run_says_so_and_changes_nothing(checkpoint, chat, whole, capsys):
    before = contents(whole("lora"))
    for flags in ((), ("--resume",)):
        argv = command(checkpoint(), chat, whole("lora"), *flags)
        rows = train.train(parse_run(argv))
        out = capsys.readouterr().out
        assert "holds this run, finished:\nstep    6" in out
        assert f"test NLL {rows[-1]['test_nll']:.4f}" in out
        assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert contents(whole("lora")) == before


def test_resume_begins_where_no_run_exists(checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path / "new", "--resume"))
    assert_same_result(tmp_path / "new", whole("lora"))


def test_the_same_settings_give_the_same_run(checkpoint, chat, tmp_path, whole):
    train.main(command(checkpoint(), chat, tmp_path))
    assert_same_result(tmp_path, whole("lora"))
    train.main(command(checkpoint(), chat, tmp_path / "other", seed=43))
    assert weights(tmp_path / "other") != weights(tmp_path)


CPU_INFO = Path("/proc/cpuinfo")
IS_INTEL = CPU_INFO.exists() and "GenuineIntel" in CPU_INFO.read_text()


@pytest.mark.skipif(not (IS_INTEL and torch.backends.mkl.is_available()),
                    reason="only MKL has a mode for this, on Intel's processors")
def test_one_thread_and_two_give_the_same_numbers():
    """The gradient of a LoRA matrix of nano, x^T dy over 800 tokens.

    Without model.py's setting of MKL the two differ.
    """
    x = torch.randn(800, 192, generator=torch.Generator().manual_seed(192))
    dy = torch.randn(800, 64, generator=torch.Generator().manual_seed(64))
    threads_before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(x.T @ dy)
    torch.set_num_threads(threads_before)
    assert torch.equal(*made)


def test_overwrite_replaces_a_run_of_any_kind(checkpoint, chat, tmp_path, whole):
    """Nothing of the full fine-tuning is left."""
    shutil.copytree(whole("full"), tmp_path / "out")
    train.main(command(checkpoint(), chat, tmp_path / "out", "--overwrite"))
    assert_same_result(tmp_path / "out", whole("lora"))
