"""Chat lines to tokens to batches: is exactly the answer supervised, is every sample seen, does the seed alone give the order?"""
import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHATML, tiny_tokenizer
from runs import one_line, write_lines

import dataset
import train
from settings import Config
from settings import settled
from dataset import Sample
from plumbing.errors import UserError
from tokenizer import Tokenizer

LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
          "{{ m.content | trim }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
QWEN2, QWEN3, SMOLLM = ((Path(__file__).parent / f"templates/{name}.jinja").read_text(encoding="utf-8")
                        for name in ("qwen2_5", "qwen3", "smollm2"))
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

ASK = {"role": "user", "content": "Lan có 12 quả táo?"}
TELL = {"role": "assistant", "content": "<think>\nnghĩ\n</think>\n\n12 quả."}
AGAIN, ANSWER = {"role": "user", "content": "Thêm 7 quả?"}, {"role": "assistant", "content": "12 + 7 = 19."}
CONVERSATIONS = {"one turn": [ASK, ANSWER], "two turns": [ASK, TELL, AGAIN, ANSWER], "thoughts": [ASK, ANSWER, AGAIN, TELL],
                 "system": [{"role": "system", "content": "Trả lời ngắn."}, ASK, ANSWER]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """tokenizer(template, **config) -> the tests' tokenizer with this chat template and the special tokens of Llama 3."""
    folder = tmp_path_factory.mktemp("tokenizer")

    def make(template=CHATML, **changes):
        tiny_tokenizer(folder, template=template)
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        n = len(spec["model"]["vocab"])
        spec["added_tokens"] += [spec["added_tokens"][0] | {"id": n + i, "content": text} for i, text in enumerate(SPECIAL)]
        (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | changes
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return Tokenizer.from_pretrained(folder)
    return make


# ----- what is supervised -------------------------------------------------------------------------------------------

TEMPLATES = {           # the template, the token that ends its turns, what it puts before an answer without thoughts
    "chatml": (CHATML, "<|im_end|>", ""), "qwen2.5": (QWEN2, "<|im_end|>", ""), "smollm2": (SMOLLM, "<|im_end|>", ""),
    "qwen3": (QWEN3, "<|im_end|>", "<think>\n\n</think>\n\n"), "llama3": (LLAMA3, "<|eot_id|>", "")}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("template", "end", "no_thoughts"), TEMPLATES.values(), ids=TEMPLATES)
def test_supervised_is_the_last_answer_with_its_end_token(tokenizer, template, end, no_thoughts, messages):
    t = tokenizer(template, bos_token="<|begin_of_text|>")
    sample = dataset.encode(messages, t)
    answer = messages[-1]["content"] if "</think>" in messages[-1]["content"] else no_thoughts + messages[-1]["content"]
    assert t.decode(sample.ids[sample.start:]) == answer + end
    assert sample.ids[-1] == t.end_of_turn == t.added[end]
    ids, labels = dataset.collate([sample])
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

    for messages in CONVERSATIONS.values():
        train.answer(Model(), t, messages, train.contextlib.nullcontext)
        sample = dataset.encode(messages, t)
        assert sample.ids[:sample.start] == seen[-1]
        assert seen[-1] == t.encode(t.apply_chat_template(messages[:-1], add_generation_prompt=True))
    assert "nghĩ" not in t.decode(seen[1]) or template != QWEN3     # the rewritten turn


def test_no_token_reaches_over_the_boundary(tokenizer):
    """The prompt ends in a newline; encoded in one piece with an answer that begins with one, they would be one token."""
    t, messages = tokenizer(), [ASK, {"role": "assistant", "content": "\n19."}]
    sample, whole = dataset.encode(messages, t), t.encode(t.apply_chat_template(messages))
    assert t.decode(sample.ids[sample.start:]) == "\n19.<|im_end|>" and t.decode(sample.ids[:sample.start]).endswith("assistant\n")
    assert whole[:sample.start] != sample.ids[:sample.start]


def test_the_end_token_is_supervised_where_it_is_the_padding_token(tokenizer):
    """Masking by id would hide every end token, and the model would never learn to stop."""
    t = tokenizer(pad_token="<|im_end|>", eos_token="<|im_end|>")
    samples = [dataset.encode(m, t) for m in CONVERSATIONS.values()]
    ids, labels = dataset.collate(samples)
    for row, sample in zip(labels.tolist(), samples, strict=True):
        assert row[len(sample.ids) - 1] == t.added["<|im_end|>"]
        assert set(row[len(sample.ids):]) <= {-100}


def test_a_template_that_rewrites_the_prompt_is_an_error(tokenizer):
    with pytest.raises(UserError, match="rewrites the prompt"):
        dataset.encode([ASK, ANSWER], tokenizer("{{ messages | length }} messages\n" + CHATML))


def test_the_first_sample_is_shown_with_its_supervised_part_marked(tokenizer, capsys, monkeypatch):
    t = tokenizer()
    sample = dataset.encode([ASK, ANSWER], t)
    dataset.show_sample(sample, t)
    shown = capsys.readouterr().out
    assert "<|im_start|>user\nLan có 12 quả táo?<|im_end|>\n<|im_start|>assistant\n»12 + 7 = 19.<|im_end|>«" in shown
    assert f"{len(sample.ids)} tokens, of which the {len(sample.ids) - sample.start} between" in shown
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    dataset.show_sample(sample, t)
    assert "assistant\n\033[32m12 + 7 = 19.<|im_end|>\033[0m\n" in capsys.readouterr().out


# ----- files --------------------------------------------------------------------------------------------------------

def test_samples_are_cut_at_the_right_end_dropped_and_counted(tokenizer, tmp_path):
    t = tokenizer()
    long = [{"role": "user", "content": "Lan có 12 quả táo? " * 10}, ANSWER]
    write_lines(tmp_path / "x.jsonl", [[ASK, ANSWER], long, [ASK, TELL]])
    whole = [dataset.encode(m, t) for m in ([ASK, ANSWER], long, [ASK, TELL])]
    assert dataset.load_split(tmp_path / "x.jsonl", t, 10_000) == (whole, 0)
    fits = len(whole[0].ids)
    assert len(whole[2].ids) > fits and whole[1].start > fits
    assert dataset.load_split(tmp_path / "x.jsonl", t, fits) == ([whole[0], Sample(whole[2].ids[:fits], whole[2].start)], 1)
    one_left = whole[0].start + 1
    assert dataset.load_split(tmp_path / "x.jsonl", t, one_left)[0][0] == (whole[0].ids[:one_left], whole[0].start)
    with pytest.raises(UserError, match=f"no sample has a supervised token within --max_length {one_left - 1}"):
        dataset.load_split(tmp_path / "x.jsonl", t, one_left - 1)


def test_only_a_line_feed_ends_a_line(tmp_path):
    """U+2028 and its like stand inside JSON strings unescaped, and str.splitlines would cut there."""
    said = "một\u2028hai\u2029ba\x85bốn\x0bnăm"
    row = [ASK, {"role": "assistant", "content": said}]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": row}, ensure_ascii=False).encode() + b"\r\n\n"
                     + json.dumps({"messages": [ASK, ANSWER]}).encode())
    assert dataset.read_messages(path) == [row, [ASK, ANSWER]]


def test_other_keys_are_passed_over(tmp_path):
    """data/e2e keeps all references of a prompt beside its messages."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"references": ["19.", "12 + 7 = 19."], "messages": [ASK, ANSWER], "id": 7}))
    assert dataset.read_messages(path) == [[ASK, ANSWER]]


def test_a_data_set_is_a_folder_or_a_name(chat, tmp_path):
    assert dataset.find_dataset(str(chat)) == chat
    with pytest.raises(UserError, match="the folder has no train.jsonl"):
        dataset.find_dataset(str(tmp_path))
    with pytest.raises(UserError, match="none of .*gsm8k.*nano.*vi_gsm8k"):
        dataset.find_dataset("nowhere")


# ----- python dataset.py check --------------------------------------------------------------------------------------

def say(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def check(checkpoint, capsys):
    """check(*arguments) -> what `python dataset.py check` prints for the tests' tokenizer."""
    model = checkpoint()
    capsys.readouterr()                 # what transformers prints as it writes

    def run(*arguments):
        dataset.main(["check", *map(str, arguments), f"--model={model}"])
        return capsys.readouterr().out
    return run


@pytest.fixture
def check_fails(check, capsys):
    """The same where it has to end with code 2 -> (what it prints, its one line on stderr)."""
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            check(*arguments)
        out, error = capsys.readouterr()
        return out, one_line(stop.value.code, error)
    return run


@pytest.mark.parametrize("max_length", [None, 50, 100, 1000])
def test_check_measures_what_training_will_see(checkpoint, tmp_path, check, max_length):
    draw, path, t = random.Random(0), tmp_path / "x.jsonl", Tokenizer.from_pretrained(checkpoint())
    conversations = [say("Lan có 12 quả? " * draw.randint(1, 6), "12 + 7 = 19. " * draw.randint(1, 9)) for _ in range(60)]
    write_lines(path, conversations)
    samples = [dataset.encode(m, t) for m in conversations]
    max_length = max_length or samples[0].start         # None: not one token of the first answer is left
    kept, dropped = dataset.load_split(path, t, max_length)
    out = check(path, f"--max_length={max_length}")

    assert f"{path}: 60 samples, wrong lines: 0\n" in out
    for name, lengths in {"prompt": [s.start for s in samples], "answer, learned": [len(s.ids) - s.start for s in samples],
                          "together": [len(s.ids) for s in samples]}.items():
        median, longest, whole = re.search(rf"^  {name} +(\S+) +(\S+) +(\S+)$", out, re.MULTILINE).groups()
        assert int(longest) == max(lengths) and int(whole.replace(",", "")) == sum(lengths)
        assert sorted(lengths)[29] == int(median)
    cut, lost = re.search(r"cut at --max_length [\d,]+ \(░\): (\d+); dropped, .* is left: (\d+)\n", out).groups()
    assert (int(cut), int(lost)) == (sum(len(s.ids) > max_length for s in samples), dropped)
    shown = re.search(r"the first sample, (\d+) tokens, of which the (\d+) between .*?»(?!these)(.*)«", out, re.DOTALL).groups()
    assert shown == (str(len(kept[0].ids)), str(len(kept[0].ids) - kept[0].start), t.decode(kept[0].ids[kept[0].start:]))


@pytest.mark.parametrize("max_length", [1, 100, 300, 10_000])
def test_the_histogram_holds_every_length_once(capsys, max_length):
    draw = random.Random(1)
    lengths = [1, 2, 3, 4, 5] + [int(2 ** draw.uniform(4, 12)) for _ in range(500)]
    dataset.show_histogram(lengths, max_length)
    rows = re.findall(r"^ +(\S+) - (\S+) +(█*)(░*) +(\S+)$", capsys.readouterr().out.replace(",", ""), re.MULTILINE)
    ranges = [(int(low), int(high)) for low, high, *_ in rows]
    assert [low for low, _ in ranges] == [1] + [high + 1 for _, high in ranges[:-1]]                # no gap, no overlap
    assert {(1, 1), (2, 2), (4, 4), (5, 6), (65, 96), (97, 128), (129, 192), (193, 256)} < set(ranges)
    inside = [[n for n in lengths if low <= n <= high] for low, high in ranges]
    assert [int(count) for *_, count in rows] == [len(some) for some in inside]
    most = max(map(len, inside))
    for some, (_, _, full, light, _) in zip(inside, rows, strict=True):
        longer = sum(n > max_length for n in some)
        assert 0 <= len(full + light) - 40 * len(some) / most < 1 and 0 <= len(light) - 40 * longer / most < 1


def test_check_names_every_wrong_line_up_to_ten(tmp_path, check_fails):
    good, bad = json.dumps({"messages": say("?", "!")}), ["{", "[]", '{"messages": []}', json.dumps({"messages": say("?", "")})]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good, "", *bad, good, *bad[:2] * 4]), encoding="utf-8")
    out, error = check_fails(path)
    assert f"{path}: 2 samples, wrong lines: 12\n" in out and "wrong lines: 12" in error
    shown = re.findall(r"^  line (\d+): (.*)$", out, re.MULTILINE)
    assert [int(number) for number, _ in shown] == [3, 4, 5, 6, 8, 9, 10, 11, 12, 13] and "  and 2 more\n" in out
    assert [reason[:16] for _, reason in shown[:4]] == \
        ["not valid JSON: ", 'it has to be {"m', "the last message", "the assistant's "]
    assert "of which the" in out                                    # the good ones are shown all the same


def test_check_names_what_the_template_refuses(tmp_path):
    tiny_tokenizer(tmp_path, template="{{ raise_exception('no\nsystem') if messages[0].role == 'system' }}" + CHATML)
    write_lines(tmp_path / "x.jsonl", [CONVERSATIONS["one turn"], CONVERSATIONS["system"]])
    lines, wrong = dataset.survey(tmp_path / "x.jsonl", Tokenizer.from_pretrained(tmp_path))
    assert [line.number for line in lines] == [1]
    assert wrong == ["line 2: the model's chat template refuses these messages: no system"]


def test_check_counts_prompts_that_come_again(tmp_path, check):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    again = [ASK, TELL, *say("A?", "1")]                # the same question, but another prompt
    write_lines(train, [say("A?", "1"), say("B?", "2"), say("a?", "1"), say(" A? ", "3"), say("C?", "4"), again])
    write_lines(test, [say("D?", "1"), say("C?", "4"), say("b?", "5"), say("D?", "1")])
    for arguments in ((train, f"--test={test}"), (tmp_path,)):
        out = check(*arguments)
        assert ("prompts that an earlier line has, too: 2, 1 with the same answer\n    line 3 has that of line 1: a?\n" in out)
        assert ("prompts that an earlier line has, too: 1, 1 with the same answer\n    line 4 has that of line 1: D?\n" in out)
        assert ("prompts of test.jsonl that train.jsonl has, too: 2, 1 with the same answer\n    line 2 has that of line 5: C?\n"
                in out)
    assert "prompts of" not in check(train) and check(train).count("wrong lines") == 1


def test_check_ends_in_one_line_for_what_a_user_gets_wrong(tmp_path, check_fails):
    (tmp_path / "empty.jsonl").write_text("\n")
    for arguments, message in {(tmp_path / "empty.jsonl",): "holds no samples", (tmp_path / "no.jsonl",): "No such file",
                               ("nowhere",): "no folder with train.jsonl", ("nano", "--max_length=0"): "it has to be at least 1",
                               ("nano", "--length=3"): "python dataset.py --help"}.items():
        assert message in check_fails(*arguments)[1]


# ----- order and batches --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "size"), [(40, 16), (48, 16), (5, 16), (7, 1)])
def test_an_epoch_sees_every_sample_once(n, size):
    windows = -(-n // size)
    for epoch in range(3):
        seen = [dataset.window(n, size, epoch * windows + i, seed=1) for i in range(windows)]
        assert sorted(itertools.chain(*seen)) == list(range(n))
        assert [len(w) for w in seen[:-1]] == [size] * (windows - 1)
    assert dataset.window(n, size, 0, 1) != dataset.window(n, size, windows, 1)                 # another order each epoch


def test_the_order_depends_on_the_seed_alone():
    before = [dataset.window(100, 16, step, seed=42) for step in range(14)]
    torch.manual_seed(7)
    torch.rand(10)
    assert [dataset.window(100, 16, step, 42) for step in reversed(range(14))] == before[::-1]  # no state: resume anywhere
    assert dataset.window(100, 16, 0, seed=43) != before[0]


def test_the_order_is_that_of_accelerate():
    from accelerate.data_loader import SeedableRandomSampler
    sampler = SeedableRandomSampler(range(40), data_seed=42)
    for epoch in range(3):
        ours = itertools.chain(*(dataset.window(40, 16, epoch * 3 + i, seed=42) for i in range(3)))
        assert list(ours) == list(sampler)


def test_the_order_is_that_of_the_trainer(checkpoint, tmp_path):
    """Trainer shows its collator two epochs of samples: 40 in windows of 16, the last of an epoch with eight."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    seen = []

    def collate(batch):
        seen.extend(sample["index"] for sample in batch)
        return {"input_ids": torch.ones(len(batch), 2, dtype=torch.long), "labels": torch.ones(len(batch), 2, dtype=torch.long)}

    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=2,
                                  seed=42, use_cpu=True, save_strategy="no", report_to=[], remove_unused_columns=False,
                                  disable_tqdm=True, logging_strategy="no")
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    trainer = Trainer(model, arguments, collate, train_dataset=[{"index": i} for i in range(40)])
    trainer.train()
    assert trainer.state.global_step == 6 == settled(Config(epochs=2), 40).max_steps
    assert seen == list(itertools.chain(*(dataset.window(40, 16, step, seed=42) for step in range(6))))


def test_micro_batches_hold_every_sample_sorted_and_padded_without_loss():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (18,), generator=generator).tolist()
    samples = [Sample([1 + i] * n, n // 2) for i, n in enumerate(lengths)]
    batches = dataset.micro_batches(samples, 4)
    assert [len(ids) for ids, _ in batches] == [4, 4, 4, 4, 2]
    assert [ids.shape[1] for ids, _ in batches] == sorted(lengths, reverse=True)[::4]           # no longer than its longest
    assert sum(ids.numel() for ids, _ in batches) < 1.25 * sum(lengths)                         # unsorted: 1.5 times
    rows = [row for ids, labels in batches for row in zip(ids.tolist(), labels.tolist(), strict=True)]
    assert sorted(ids[0] for ids, _ in rows) == list(range(1, 19))
    for ids, labels in rows:
        n = lengths[ids[0] - 1]
        assert ids == [ids[0]] * n + [0] * (len(ids) - n)
        assert labels == [-100] * (n // 2) + ids[n // 2:n] + [-100] * (len(ids) - n)
