"""Chat lines to tokens to batches: is exactly the answer supervised, is every sample seen, and does
the seed alone decide the order?"""
import itertools
import json
import sys
from pathlib import Path

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


def start_of(sample):
    """The length of the prompt, where the last message alone is learned."""
    start = len(sample.ids) - sample.learned
    assert sample.labels == [-100] * start + sample.ids[start:]
    return start


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
    assert t.decode(sample.ids[start_of(sample):]) == answer + end
    assert sample.ids[-1] == t.end_of_turn == t.added[end]
    ids, labels = dataset.pad_batch([sample])
    assert labels[0].tolist() == [-100] * start_of(sample) + sample.ids[start_of(sample):]
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
        train.answer_question(Model(), t, messages)
        sample = dataset.encode_sample(messages, t)
        assert sample.ids[:start_of(sample)] == seen[-1]
        prompt = t.apply_chat_template(messages[:-1], add_generation_prompt=True)
        assert seen[-1] == t.encode(prompt)
    assert "nghĩ" not in t.decode(seen[1]) or template != QWEN3     # the rewritten turn


def test_no_token_reaches_over_the_boundary(tokenizer):
    """The prompt ends in a newline and the answer begins with one. In one piece they would become
    one token."""
    t, messages = tokenizer(), [ASK, {"role": "assistant", "content": "\n19."}]
    sample = dataset.encode_sample(messages, t)
    in_one_piece = t.encode(t.apply_chat_template(messages))
    assert t.decode(sample.ids[start_of(sample):]) == "\n19.<|im_end|>"
    assert t.decode(sample.ids[:start_of(sample)]).endswith("assistant\n")
    assert in_one_piece[:start_of(sample)] != sample.ids[:start_of(sample)]


def test_the_end_token_is_supervised_where_it_is_the_padding_token(tokenizer):
    """Masking by id would hide every end token, and the model would never learn to stop."""
    t = tokenizer(pad_token="<|im_end|>", eos_token="<|im_end|>")
    samples = [dataset.encode_sample(m, t) for m in CONVERSATIONS.values()]
    ids, labels = dataset.pad_batch(samples)
    for row, sample in zip(labels.tolist(), samples, strict=True):
        assert row[len(sample.ids) - 1] == t.added["<|im_end|>"]
        assert set(row[len(sample.ids):]) <= {-100}


def test_a_person_is_shown_the_question_or_all_turns():
    system, question = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}
    assert dataset.question_of([system, question]) == "Hi"
    turns = [system, question, {"role": "assistant", "content": "Hello"}, question]
    assert dataset.question_of(turns) == "user: Hi\nassistant: Hello\nuser: Hi"


def test_a_template_that_rewrites_the_prompt_is_an_error(tokenizer):
    counting = tokenizer("{{ messages | length }} messages\n" + CHATML)
    with pytest.raises(UserError, match="rewrites the prompt"):
        dataset.encode_sample([ASK, ANSWER], counting)


def test_the_first_sample_is_shown_with_its_supervised_part_marked(tokenizer, capsys, monkeypatch):
    t = tokenizer()
    sample = dataset.encode_sample([ASK, ANSWER], t)
    dataset.show_sample(sample, t)
    shown = capsys.readouterr().out
    n, learned = len(sample.ids), len(sample.ids) - start_of(sample)
    assert f"{n} tokens; the {learned} between »these marks« are learned" in shown
    assert ("<|im_start|>user\nLan có 12 quả táo?<|im_end|>\n"
            "<|im_start|>assistant\n»12 + 7 = 19.<|im_end|>«") in shown
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    dataset.show_sample(sample, t)
    green = "assistant\n\033[32m12 + 7 = 19.<|im_end|>\033[0m\n"
    assert green in capsys.readouterr().out


# ----- --supervise all ----------------------------------------------------------------------------

GREETING = {"role": "assistant", "content": "Xin chào!"}
THREE_TURNS = [SYSTEM, ASK, TELL, AGAIN, ANSWER, ASK, TELL]
# The tests' template, with marks around each answer that tell transformers what an answer is.
TO_MARK = {
    "chatml": ("{{ message.role }}\n{{ message.content }}<|im_end|>\n",
               "{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}"
               "{{ message.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}"
               "{{ message.content }}<|im_end|>\n{% endif %}"),
    "llama3": ("{{ m.content | trim }}<|eot_id|>",
               "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>"
               "{% endgeneration %}{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}"),
    "qwen3": (QWEN3[QWEN3.index("        {%- if loop.index0 > ns.last"):
                    QWEN3.index('    {%- elif message.role == "tool" %}')],
              "{{- '<|im_start|>assistant\n' }}{% generation %}"
              "{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}"
              "{{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}{%- endif %}"
              "{{- content }}{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}")}


def learned_texts(sample, t):
    """The text of each learned part of a sample."""
    parts = itertools.groupby(zip(sample.ids, sample.labels), key=lambda pair: pair[1] != -100)
    return [t.decode([i for i, _ in part]) for learned, part in parts if learned]


@pytest.mark.parametrize("name", TO_MARK)
def test_all_answers_are_those_that_transformers_masks(tokenizer, name, tmp_path):
    """transformers' assistant mask, which TRL's assistant_only_loss takes. It needs a template that
    marks the same text. Qwen3's takes the thoughts out of earlier turns."""
    from transformers import AutoTokenizer
    template, marked = TEMPLATES[name][0], template_with_marks(name)
    t = tokenizer(template, bos_token="<|begin_of_text|>")
    t.save_pretrained(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    for messages in [*CONVERSATIONS.values(), THREE_TURNS]:
        rendered = peer.apply_chat_template(messages, chat_template=marked, tokenize=False)
        assert rendered == t.apply_chat_template(messages)          # the marks change no text
        masked = peer.apply_chat_template(
            messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True)
        sample = dataset.encode_sample(messages, t, "all")
        n = len(sample.ids)
        assert masked["input_ids"][:n] == sample.ids
        assert t.decode(masked["input_ids"][n:]) in ("", "\n")      # after the last turn
        mask = [int(label != -100) for label in sample.labels]
        assert masked["assistant_masks"] == mask + [0] * (len(masked["input_ids"]) - n)
        answers = [m for m in messages if m["role"] == "assistant"]
        assert len(learned_texts(sample, t)) == len(answers)


def template_with_marks(name):
    template, (plain, marked) = TEMPLATES[name][0], TO_MARK[name]
    assert template.count(plain) == 1
    return template.replace(plain, marked)


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "smollm2", "llama3"])
def test_all_answers_are_those_of_renderings_that_stop_there(tokenizer, name):
    """By hand, for templates that only ever add text: render up to each answer, and with it."""
    template, end, _ = TEMPLATES[name]
    t = tokenizer(template, bos_token="<|begin_of_text|>")
    for messages in [*CONVERSATIONS.values(), THREE_TURNS]:
        sample = dataset.encode_sample(messages, t, "all")
        labels = [-100] * len(sample.ids)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = t.apply_chat_template(messages[:turn], add_generation_prompt=True)
                whole = t.apply_chat_template(messages[:turn + 1])
                start, stop = len(t.encode(prompt)), len(t.encode(whole.removesuffix("\n")))
                labels[start:stop] = sample.ids[start:stop]
                assert sample.ids[stop - 1] == t.added[end]
        assert sample.labels == labels
        assert sample.ids == dataset.encode_sample(messages, t).ids


def test_thoughts_that_the_template_takes_out_are_not_learned(tokenizer):
    t = tokenizer(QWEN3)
    sample = dataset.encode_sample(THREE_TURNS, t, "all")
    assert learned_texts(sample, t) == [
        "12 quả.<|im_end|>", "12 + 7 = 19.<|im_end|>",
        "<think>\nnghĩ\n</think>\n\n12 quả.<|im_end|>"]


def test_a_greeting_is_context(tokenizer):
    t = tokenizer(read_template("qwen2_5"))
    sample = dataset.encode_sample([GREETING, ASK, TELL, AGAIN, ANSWER], t, "all")
    assert learned_texts(sample, t) == [TELL["content"] + "<|im_end|>", "12 + 7 = 19.<|im_end|>"]
    assert "Xin chào!" in t.decode(sample.ids)


HEADER = ("{% for m in messages %}{% set earlier = m.role == 'assistant' and not loop.last %}"
          "<|im_start|>{{ m.role }}\n")
FOOTER = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
UNCLEAR = {
    "shortened": "{{ m.content[:3] if earlier else m.content }}<|im_end|>\n",
    "a note": "{{ m.content }}{{ ' (old)' if earlier }}<|im_end|>\n",
    "closed by nothing": "{{ m.content }}{{ '' if earlier else '<|im_end|>' }}\n"}


@pytest.mark.parametrize("body", UNCLEAR.values(), ids=UNCLEAR)
def test_an_earlier_answer_that_cannot_be_found_is_refused_with_its_line(tokenizer, tmp_path, body):
    t, path = tokenizer(HEADER + body + FOOTER), tmp_path / "x.jsonl"
    messages = [ASK, {"role": "assistant", "content": "Mười hai."}, AGAIN, ANSWER]
    write_lines(path, [[ASK, ANSWER], messages])
    with pytest.raises(UserError, match="x.jsonl, line 2: the chat template rewrites message 2 .*"
                                        "--supervise last learns the last message alone"):
        dataset.load_split(path, t, 1000, "all")
    assert dataset.load_split(path, t, 1000)[1] == 0                # the last one is clear


def test_what_is_cut_of_several_answers(tokenizer, tmp_path):
    t, path = tokenizer(), tmp_path / "x.jsonl"
    write_lines(path, [[ASK, ANSWER, AGAIN, ANSWER]])
    whole = dataset.encode_sample([ASK, ANSWER, AGAIN, ANSWER], t, "all")
    first = dataset.encode_sample([ASK, ANSWER], t)
    fits = len(first.ids) + 1                       # the first answer, and a token of what follows
    [cut], dropped = dataset.load_split(path, t, fits, "all")
    assert cut == (whole.ids[:fits], [*first.labels, -100]) and dropped == 0
    assert cut.learned == first.learned == whole.learned / 2
    with pytest.raises(UserError, match="no sample has a supervised token"):
        dataset.load_split(path, t, start_of(first), "all")


def test_several_answers_are_shown_marked(tokenizer, capsys):
    t = tokenizer()
    sample = dataset.encode_sample([ASK, ANSWER, AGAIN, ANSWER], t, "all")
    dataset.show_sample(sample, t)
    shown = capsys.readouterr().out
    assert f"{len(sample.ids)} tokens; the {sample.learned} between »these marks«" in shown
    assert ("assistant\n»12 + 7 = 19.<|im_end|>«\n<|im_start|>user\nThêm 7 quả?<|im_end|>\n"
            "<|im_start|>assistant\n»12 + 7 = 19.<|im_end|>«\n") in shown


# ----- files --------------------------------------------------------------------------------------

def test_samples_are_cut_at_the_right_end_dropped_and_counted(tokenizer, tmp_path):
    t, path = tokenizer(), tmp_path / "x.jsonl"
    long_question = [{"role": "user", "content": "Lan có 12 quả táo? " * 10}, ANSWER]
    conversations = [[ASK, ANSWER], long_question, [ASK, TELL]]
    write_lines(path, conversations)
    first, long, last = samples = [dataset.encode_sample(m, t) for m in conversations]
    assert dataset.load_split(path, t, 10_000) == (samples, 0)

    fits = len(first.ids)
    assert len(last.ids) > fits and start_of(long) > fits
    cut_last = Sample(last.ids[:fits], last.labels[:fits])
    assert dataset.load_split(path, t, fits) == ([first, cut_last], 1)

    one_left = start_of(first) + 1
    kept, _ = dataset.load_split(path, t, one_left)
    assert kept[0] == (first.ids[:one_left], first.labels[:one_left])
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
    (tmp_path / "shop.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="a file, but a folder with .* can be saved as .csv"):
        dataset.find_dataset(str(tmp_path / "shop.xlsx"))


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
    samples = []
    for i, n in enumerate(lengths):
        ids = [1 + i] * n
        samples.append(Sample(ids, [-100] * (n // 2) + ids[n // 2:]))
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
