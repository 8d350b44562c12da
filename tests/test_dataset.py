"""Chat lines to tokens to batches: is exactly the answer supervised, is every sample seen, and does
the seed alone decide the order?"""
import itertools
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CHATML, edit_json, tiny_tokenizer
from runs import write_lines

import dataset
import train
from dataset import Sample
from plumbing.errors import UserError
from settings import Config, settled
from tokenizer import Tokenizer


def read_template(name):
    return (Path(__file__).parent / f"templates/{name}.jinja").read_text(encoding="utf-8")


LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
          "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
          "{% endif %}")
QWEN3 = read_template("qwen3")
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

ASK = {"role": "user", "content": "Lan có 12 quả táo?"}
TELL = {"role": "assistant", "content": "<think>\nnghĩ\n</think>\n\n12 quả."}
AGAIN = {"role": "user", "content": "Thêm 7 quả?"}
ANSWER = {"role": "assistant", "content": "12 + 7 = 19."}
SYSTEM = {"role": "system", "content": "Trả lời ngắn."}
CONVERSATIONS = {
    "one turn": [ASK, ANSWER],
    "two turns": [ASK, TELL, AGAIN, ANSWER],
    "thoughts": [ASK, ANSWER, AGAIN, TELL],
    "system": [SYSTEM, ASK, ANSWER]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """tokenizer(template, **config) -> the tests' tokenizer with this chat template.

    It has the special tokens of Llama 3 in addition to its own.
    """
    folder = tmp_path_factory.mktemp("tokenizer")

    def make(template=CHATML, **changes):
        tiny_tokenizer(folder, template=template)
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added, n = spec["added_tokens"], len(spec["model"]["vocab"])
        added += [added[0] | {"id": n + i, "content": text}
                  for i, text in enumerate(LLAMA3_SPECIAL)]
        edit_json(folder / "tokenizer.json", added_tokens=added)
        edit_json(folder / "tokenizer_config.json", **changes)
        return Tokenizer.from_pretrained(folder)
    return make


# ----- what is supervised -------------------------------------------------------------------------

TEMPLATES = {
    # the template, the token that ends its turns, what it puts before an answer without thoughts
    "chatml": (CHATML, "<|im_end|>", ""),
    "qwen2.5": (read_template("qwen2_5"), "<|im_end|>", ""),
    "smollm2": (read_template("smollm2"), "<|im_end|>", ""),
    "qwen3": (QWEN3, "<|im_end|>", "<think>\n\n</think>\n\n"),
    "llama3": (LLAMA3, "<|eot_id|>", "")}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("template", "end", "no_thoughts"), TEMPLATES.values(), ids=TEMPLATES)
def test_supervised_is_the_last_answer_with_its_end_token(
        tokenizer, template, end, no_thoughts, messages):
    t = tokenizer(template, bos_token="<|begin_of_text|>")
    sample = dataset.encode_sample(messages, t)
    answer = messages[-1]["content"]
    if "</think>" not in answer:
        answer = no_thoughts + answer
    assert t.decode(sample.ids[sample.start:]) == answer + end
    assert sample.ids[-1] == t.end_of_turn == t.added[end]
    ids, labels = dataset.pad_batch([sample])
    assert labels[0].tolist() == [-100] * sample.start + sample.ids[sample.start:]
    assert ids[0].tolist() == sample.ids


@pytest.mark.parametrize(("template", "end", "no_thoughts"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_prompt_is_what_generation_sees(tokenizer, template, end, no_thoughts):
    """Also where the template rewrites earlier turns."""
    t = tokenizer(template, bos_token="<|begin_of_text|>")
    seen = []

    class Model:
        def generate(self, prompts, *_):
            seen.extend(prompts)
            return prompts

    run = SimpleNamespace(model=Model(), autocast=nullcontext, data=SimpleNamespace(tokenizer=t))
    for messages in CONVERSATIONS.values():
        train.answer_question(run, messages)
        sample = dataset.encode_sample(messages, t)
        assert sample.ids[:sample.start] == seen[-1]
        prompt = t.apply_chat_template(messages[:-1], add_generation_prompt=True)
        assert seen[-1] == t.encode(prompt)
    assert "nghĩ" not in t.decode(seen[1]) or template != QWEN3     # the rewritten turn


def test_no_token_reaches_over_the_boundary(tokenizer):
    """The prompt ends in a newline and the answer begins with one. In one piece they would become
    one token."""
    t, messages = tokenizer(), [ASK, {"role": "assistant", "content": "\n19."}]
    sample = dataset.encode_sample(messages, t)
    in_one_piece = t.encode(t.apply_chat_template(messages))
    assert t.decode(sample.ids[sample.start:]) == "\n19.<|im_end|>"
    assert t.decode(sample.ids[:sample.start]).endswith("assistant\n")
    assert in_one_piece[:sample.start] != sample.ids[:sample.start]


def test_the_end_token_is_supervised_where_it_is_the_padding_token(tokenizer):
    """Masking by id would hide every end token, and the model would never learn to stop."""
    t = tokenizer(pad_token="<|im_end|>", eos_token="<|im_end|>")
    samples = [dataset.encode_sample(m, t) for m in CONVERSATIONS.values()]
    ids, labels = dataset.pad_batch(samples)
    for row, sample in zip(labels.tolist(), samples, strict=True):
        assert row[len(sample.ids) - 1] == t.added["<|im_end|>"]
        assert set(row[len(sample.ids):]) <= {-100}


def test_a_template_that_rewrites_the_prompt_is_an_error(tokenizer):
    counting = tokenizer("{{ messages | length }} messages\n" + CHATML)
    with pytest.raises(UserError, match="rewrites the prompt"):
        dataset.encode_sample([ASK, ANSWER], counting)


def test_the_first_sample_is_shown_with_its_supervised_part_marked(tokenizer, capsys, monkeypatch):
    t = tokenizer()
    sample = dataset.encode_sample([ASK, ANSWER], t)
    dataset.show_sample(sample, t)
    shown = capsys.readouterr().out
    n, learned = len(sample.ids), len(sample.ids) - sample.start
    assert f"{n} tokens; the {learned} between »these marks« are learned" in shown
    assert ("<|im_start|>user\nLan có 12 quả táo?<|im_end|>\n"
            "<|im_start|>assistant\n»12 + 7 = 19.<|im_end|>«") in shown
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    dataset.show_sample(sample, t)
    green = "assistant\n\033[32m12 + 7 = 19.<|im_end|>\033[0m\n"
    assert green in capsys.readouterr().out


# ----- files --------------------------------------------------------------------------------------

def test_samples_are_cut_at_the_right_end_dropped_and_counted(tokenizer, tmp_path):
    t, path = tokenizer(), tmp_path / "x.jsonl"
    long_question = [{"role": "user", "content": "Lan có 12 quả táo? " * 10}, ANSWER]
    conversations = [[ASK, ANSWER], long_question, [ASK, TELL]]
    write_lines(path, conversations)
    first, long, last = samples = [dataset.encode_sample(m, t) for m in conversations]
    assert dataset.load_split(path, t, 10_000) == (samples, 0)

    fits = len(first.ids)
    assert len(last.ids) > fits and long.start > fits
    cut_last = Sample(last.ids[:fits], last.start)
    assert dataset.load_split(path, t, fits) == ([first, cut_last], 1)

    one_left = first.start + 1
    kept, _ = dataset.load_split(path, t, one_left)
    assert kept[0] == (first.ids[:one_left], first.start)
    none_left = one_left - 1
    with pytest.raises(UserError, match="no sample has a supervised token within --max_length "
                                        f"{none_left}"):
        dataset.load_split(path, t, none_left)


def test_only_a_line_feed_ends_a_line(tmp_path):
    """JSON strings may hold U+2028 and its like unescaped, and str.splitlines would cut there."""
    said = "một\u2028hai\u2029ba\x85bốn\x0bnăm"
    row = [ASK, {"role": "assistant", "content": said}]
    path = tmp_path / "x.jsonl"
    byte_order_mark = b"\xef\xbb\xbf"
    first = json.dumps({"messages": row}, ensure_ascii=False).encode()
    second = json.dumps({"messages": [ASK, ANSWER]}).encode()
    path.write_bytes(byte_order_mark + first + b"\r\n\n" + second)
    assert dataset.read_messages(path) == [row, [ASK, ANSWER]]


def test_other_keys_are_ignored(tmp_path):
    """data/e2e keeps all references of a prompt next to its messages."""
    path = tmp_path / "x.jsonl"
    row = {"references": ["19.", "12 + 7 = 19."], "messages": [ASK, ANSWER], "id": 7}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert dataset.read_messages(path) == [[ASK, ANSWER]]


def test_a_data_set_is_a_folder_or_a_name(chat, tmp_path):
    assert dataset.find_dataset(str(chat)) == chat
    with pytest.raises(UserError, match="the folder has no train.jsonl"):
        dataset.find_dataset(str(tmp_path))
    with pytest.raises(UserError, match="none of .*gsm8k.*nano.*vi_gsm8k"):
        dataset.find_dataset("nowhere")


# ----- order and batches --------------------------------------------------------------------------

def epoch_order(n, size, epoch, seed):
    """The samples of the windows of one epoch, one after the other."""
    steps = -(-n // size)
    windows = [dataset.window(n, size, epoch * steps + i, seed) for i in range(steps)]
    assert [len(w) for w in windows[:-1]] == [size] * (steps - 1)
    return list(itertools.chain(*windows))


@pytest.mark.parametrize(("n", "size"), [(40, 16), (48, 16), (5, 16), (7, 1)])
def test_an_epoch_sees_every_sample_once(n, size):
    orders = [epoch_order(n, size, epoch, seed=1) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(n))
    assert orders[0][:size] != orders[1][:size]             # another order each epoch


def test_the_order_depends_on_the_seed_alone():
    """It has no state, so a run can be resumed at any step."""
    before = [dataset.window(100, 16, step, seed=42) for step in range(14)]
    torch.manual_seed(7)
    torch.rand(10)
    backwards = [dataset.window(100, 16, step, seed=42) for step in reversed(range(14))]
    assert backwards == before[::-1]
    assert dataset.window(100, 16, 0, seed=43) != before[0]


def test_the_order_is_that_of_accelerate():
    from accelerate.data_loader import SeedableRandomSampler
    sampler = SeedableRandomSampler(range(40), data_seed=42)
    for epoch in range(3):
        assert epoch_order(40, 16, epoch, seed=42) == list(sampler)


def test_a_seeds_second_epoch_is_the_next_seeds_first():
    """As in the Trainer; settings.py says so to whoever chooses seeds."""
    assert epoch_order(40, 16, 1, seed=42) == epoch_order(40, 16, 0, seed=43)


def test_the_order_is_that_of_the_trainer(checkpoint, tmp_path):
    """Trainer's collator sees two epochs of 40 samples in windows of 16, 16 and 8."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    seen = []

    def collate(batch):
        seen.extend(sample["index"] for sample in batch)
        ones = torch.ones(len(batch), 2, dtype=torch.long)
        return {"input_ids": ones, "labels": ones}

    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=2,
        seed=42, use_cpu=True, save_strategy="no", report_to=[], remove_unused_columns=False,
        disable_tqdm=True, logging_strategy="no")
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    trainer = Trainer(model, arguments, collate, train_dataset=[{"index": i} for i in range(40)])
    trainer.train()
    steps = settled(Config(epochs=2), 40).max_steps
    assert trainer.state.global_step == 6 == steps
    windows = [dataset.window(40, 16, step, seed=42) for step in range(6)]
    assert seen == list(itertools.chain(*windows))


def test_micro_batches_hold_every_sample_sorted_and_padded_without_loss():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (18,), generator=generator).tolist()
    samples = [Sample([1 + i] * n, n // 2) for i, n in enumerate(lengths)]
    batches = dataset.micro_batches(samples, 4)
    assert [len(ids) for ids, _ in batches] == [4, 4, 4, 4, 2]
    longest = sorted(lengths, reverse=True)[::4]
    assert [ids.shape[1] for ids, _ in batches] == longest                  # no longer than needed
    assert sum(ids.numel() for ids, _ in batches) < 1.25 * sum(lengths)     # unsorted: 1.5 times

    rows = []
    for ids, labels in batches:
        rows += zip(ids.tolist(), labels.tolist(), strict=True)
    assert sorted(ids[0] for ids, _ in rows) == list(range(1, 19))
    for ids, labels in rows:
        n = lengths[ids[0] - 1]
        padding = len(ids) - n
        assert ids == [ids[0]] * n + [0] * padding
        assert labels == [-100] * (n // 2) + ids[n // 2:n] + [-100] * padding
