"""The corpus of the nano base: true, the same everywhere, and without the task."""
import hashlib
import json
import operator
import random
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

NANO = Path(__file__).resolve().parents[1] / "data" / "nano"
sys.path.insert(0, str(NANO))
from corpus import KINDS, conversations, draw_operation  # noqa: E402
from prepare import is_easy  # noqa: E402

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
    assert sha256 == "e302e119a9f77a50951c317fc378c4aa4d44c0e6ef130fc9f542f08c967c9cb6"
    assert talks != others


def test_turns(talks):
    for talk in talks:
        roles = [message["role"] for message in talk]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and 2 <= len(turns) <= 8, roles
        for message in talk:
            text = message["content"]
            assert text and text == text.strip(), message
            assert not re.search(r"[{}|]|None|  ", text), message       # what a template leaves


def test_equations_are_true(messages):
    equations = Counter()
    for message in messages:
        for a, op, b, c in re.findall(r"(\d+)([-+x/])(\d+)=(\d+)", message["content"]):
            assert OPERATORS[op](int(a), int(b)) == int(c), message
            equations[op] += 1
    assert min(equations[op] for op in OPERATORS) > 3000, equations


def test_arithmetic_is_that_of_the_task():
    """Within reach, every operation, and sums and differences in two of three."""
    rng = random.Random(0)
    drawn = [draw_operation(rng) for _ in range(10_000)]
    drawn += [draw_operation(rng, x) for x in range(2, 150)]
    assert all(is_easy(x, op, y, z) for x, op, y, z in drawn)
    counts = Counter(op for _, op, _, _ in drawn)
    assert 0.6 < (counts["+"] + counts["-"]) / len(drawn) < 0.75 and min(counts.values()) > 1000


def test_shares(talks):
    """Four conversations in ten have a system message, one question in eleven is English."""
    assert sum(KINDS.values()) == 100       # percent
    systems = [talk[0]["content"] for talk in talks if talk[0]["role"] == "system"]
    assert 0.38 < len(systems) / len(talks) < 0.42 and len(set(systems)) > 50
    questions = [m["content"] for talk in talks for m in talk if m["role"] == "user"]
    english = [q for q in questions if re.match("What|How|Calculate", q)]
    assert 0.07 < len(english) / len(questions) < 0.11


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
