"""The corpus of the nano base: true, the same everywhere, and without the task."""
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
    """The bytes are the same in Python 3.10 to 3.13. If they change, train the base again."""
    talks, others = (list(islice(conversations(seed), 1000)) for seed in (1, 2))
    sha256 = hashlib.sha256(json.dumps(talks, ensure_ascii=False).encode()).hexdigest()
    assert sha256 == "72266548cc6e1b1967a07a794fd5f7c5763f7dc059287be38ed7ffd85095210c"
    assert talks != others


def test_turns(talks):
    for talk in talks:
        roles = [message["role"] for message in talk]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and 2 <= len(turns) <= 10, roles
        for message in talk:
            text = message["content"]
            assert text and text == text.strip(), message
            assert not re.search(r"[{}|]|None|  ", text), message       # what a template leaves


def test_equations_are_true(messages):
    equations = Counter()
    for message in messages:
        for a, op, b, c in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", message["content"]):
            assert OPERATORS[op](int(a), int(b)) == int(c), message
            equations[op] += 1
    assert min(equations[op] for op in OPERATORS) > 3000, equations


def test_shares(talks):
    """Three conversations in four are Vietnamese, six in ten have a system message."""
    systems = [talk[0]["content"] for talk in talks if talk[0]["role"] == "system"]
    vietnamese = [text for text in systems if not text.isascii()]
    assert 0.58 < len(systems) / len(talks) < 0.62
    assert 0.73 < len(vietnamese) / len(systems) < 0.77
    assert len(set(systems)) > 1000
    assert sum(KINDS.values()) == 100       # percent


def test_number_words():
    for n, vi, en in (
        (0, "không", "zero"),
        (10, "mười", "ten"),
        (15, "mười lăm", "fifteen"),
        (21, "hai mươi mốt", "twenty-one"),
        (40, "bốn mươi", "forty"),
        (100, "một trăm", "one hundred"),
        (105, "một trăm linh năm", "one hundred and five"),
        (111, "một trăm mười một", "one hundred and eleven"),
        (995, "chín trăm chín mươi lăm", "nine hundred and ninety-five"),
    ):
        assert (spell_vi(n), spell_en(n)) == (vi, en)
    for spell in (spell_vi, spell_en):
        assert len({spell(n) for n in range(1000)}) == 1000


def test_the_task_is_not_in_it(messages):
    """No thoughts in <think>, and neither the system message of the task nor a test question."""
    texts = {message["content"] for message in messages}
    assert not any("Bạn là trợ lý AI chuyên giải toán" in text for text in texts)
    for text in texts:
        thoughts = re.findall(r"<think>(.*?)</think>", text)
        assert len(thoughts) * 2 == text.count("think>"), text
        for thought in thoughts:
            assert re.fullmatch(r"[^\W\d]+ [^\W\d]+", thought), text       # two words, no number
    if not (NANO / "test.jsonl").exists():
        pytest.skip("data/nano/test.jsonl is missing: python data/nano/prepare.py")
    everything = "\n".join(texts)
    for line in (NANO / "test.jsonl").read_text(encoding="utf-8").splitlines():
        system, question, _ = json.loads(line)["messages"]
        assert system["content"] not in everything
        assert question["content"] not in everything, question
