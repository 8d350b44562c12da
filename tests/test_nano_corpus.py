"""The text of nano's base model: true, the same everywhere, and without the task."""
import hashlib
import json
import operator
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

NANO = Path(__file__).resolve().parents[1] / "data" / "nano"
sys.path.insert(0, str(NANO))
from corpus import KINDS, conversations, spell_en, spell_vi  # noqa: E402

OPERATORS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module")
def talks():
    return list(islice(conversations(seed=0), 20_000))


@pytest.fixture(scope="module")
def messages(talks):
    return [message for talk in talks for message in talk]


def test_same_seed_same_text():
    """The bytes are those of Python 3.10 to 3.13; a change of the corpus changes the sum, and calls for a new base model."""
    text = json.dumps(list(islice(conversations(seed=1), 1000)), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == "72266548cc6e1b1967a07a794fd5f7c5763f7dc059287be38ed7ffd85095210c"
    assert text != json.dumps(list(islice(conversations(seed=2), 1000)), ensure_ascii=False)


def test_turns(talks):
    for talk in talks:
        roles = [message["role"] for message in talk]
        turns = roles[roles[0] == "system":]
        assert turns == ["user", "assistant"] * (len(turns) // 2) and 2 <= len(turns) <= 10, roles
        for message in talk:
            assert message["content"] and message["content"] == message["content"].strip(), message
            assert not re.search(r"[{}|]|None|  ", message["content"]), message  # a template's bones


def test_equations_are_true(messages):
    equations = Counter()
    for message in messages:
        for a, op, b, c in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", message["content"]):
            assert OPERATORS[op](int(a), int(b)) == int(c), message
            equations[op] += 1
    assert min(equations[op] for op in OPERATORS) > 3000, equations


def test_shares(talks):
    """Three conversations of four are Vietnamese, six of ten have a system message; the shares of the kinds are percents."""
    systems = [talk[0]["content"] for talk in talks if talk[0]["role"] == "system"]
    assert 0.58 < len(systems) / len(talks) < 0.62
    assert 0.73 < sum(not text.isascii() for text in systems) / len(systems) < 0.77
    assert len(set(systems)) > 1000
    assert sum(KINDS.values()) == 100


def test_number_words():
    for n, vi, en in ((0, "không", "zero"), (10, "mười", "ten"), (15, "mười lăm", "fifteen"), (40, "bốn mươi", "forty"),
                      (21, "hai mươi mốt", "twenty-one"), (105, "một trăm linh năm", "one hundred and five"),
                      (111, "một trăm mười một", "one hundred and eleven"), (100, "một trăm", "one hundred"),
                      (995, "chín trăm chín mươi lăm", "nine hundred and ninety-five")):
        assert (spell_vi(n), spell_en(n)) == (vi, en)
    assert len({spell_vi(n) for n in range(1000)}) == len({spell_en(n) for n in range(1000)}) == 1000


def test_the_task_is_not_in_it(messages):
    """Nothing is thought between <think> and </think>, and neither the task's system message nor a test question is there."""
    texts = {message["content"] for message in messages}
    assert not any("Bạn là trợ lý AI chuyên giải toán" in text for text in texts)
    for text in texts:
        thoughts = re.findall(r"<think>(.*?)</think>", text)
        assert len(thoughts) * 2 == text.count("think>"), text
        assert all(re.fullmatch(r"[^\W\d]+ [^\W\d]+", two_words) for two_words in thoughts), text
    if not (NANO / "test.jsonl").exists():
        pytest.skip("data/nano/test.jsonl is not there: python data/nano/prepare.py")
    samples = [json.loads(line)["messages"] for line in open(NANO / "test.jsonl", encoding="utf-8")]
    everything = "\n".join(texts)
    for message in (message for sample in samples for message in sample if message["role"] != "assistant"):
        assert message["content"] not in everything, message
