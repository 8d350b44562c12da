"""The nano task: every problem true, solvable, within reach of a small model, and unlike others."""
import collections
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "nano"))
import prepare as nano  # noqa: E402
from lexicon import NAMES  # noqa: E402

STEP = re.compile(r"\b(\d+)([-+x/])(\d+)=(\d+)\b")
TRUE = {"+": lambda x, y, z: x + y == z, "-": lambda x, y, z: x - y == z,
        "x": lambda x, y, z: x * y == z, "/": lambda x, y, z: x / y == z}


@pytest.fixture(scope="module")
def problems():
    return list(nano.generate_problems(sum(nano.SIZES.values()), nano.SEED))


def steps_of(problem):
    return [(int(x), op, int(y), int(z)) for x, op, y, z in STEP.findall(problem["explanation"])]


def nameless(problem):
    return re.sub(rf"\b({'|'.join(NAMES)})\b", "X", problem["question"])


def test_every_line_is_one_true_step_and_the_last_gives_the_answer(problems):
    for problem in problems:
        steps, lines = steps_of(problem), problem["explanation"].split("\n")
        for line in lines:
            assert line.count("=") == len(re.findall(r"\d[-+x/]\d", line)) == 1, problem
            assert line.endswith("."), problem
        assert len(steps) == len(lines), problem
        assert all(TRUE[op](x, y, z) for x, op, y, z in steps), problem
        _, _, _, result = steps[-1]
        assert problem["answer"] == str(result) and result > 0, problem


def test_every_operand_is_given_or_computed_before(problems):
    """Two need not be given: 2 for a half, a double and a perimeter, 3 for a mean of three."""
    for problem in problems:
        known = {int(n) for n in re.findall(r"\d+", problem["question"])} | {2, 3}
        for x, _, y, z in steps_of(problem):
            assert x in known and y in known, problem
            known.add(z)


def test_arithmetic_is_within_reach(problems):
    steps = [step for problem in problems for step in steps_of(problem)]
    assert 140 < max(max(x, y, z) for x, _, y, z in steps) <= 150
    for x, op, y, z in steps:
        if op in "+-":
            continue
        low, high = sorted((x, y) if op == "x" else (y, z))
        assert low >= 2 and (high <= 12 or low == 2 and high <= 50), (x, op, y, z)


def test_one_to_four_steps_in_their_shares(problems):
    counts = collections.Counter(len(steps_of(problem)) for problem in problems)
    shares = {steps: round(n / len(problems), 1) for steps, n in counts.items()}
    assert len(nano.SCENARIOS) == 50
    assert shares == {1: 0.2, 2: 0.3, 3: 0.3, 4: 0.2}


def test_no_problem_is_another_one_renamed(problems):
    assert len(problems) == 8792
    assert [problem["index"] for problem in problems] == list(range(8792))
    assert len({problem["question"] for problem in problems}) == 8792
    assert len({nameless(problem) for problem in problems}) == 8792


def test_texts_are_short_and_clean(problems):
    for kind in ("question", "explanation"):
        texts = [problem[kind] for problem in problems]
        lengths = [len(text.split()) for text in texts]
        assert statistics.mean(lengths) < 30 and max(lengths) <= 60
        for text in texts:
            assert not re.search("[{}()|_]|  | [.,?]", text), text
            sentence_starts = re.findall(r"(?:^|[.?]\s)(.)", text)
            assert not any(start.islower() for start in sentence_starts), text
    assert all(problem["question"].endswith("?") for problem in problems)


def test_the_same_bytes_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    nano.main()
    assert nano.hash_splits() == nano.SHA256
    assert "already" not in capsys.readouterr().out
    nano.main()
    assert "already" in capsys.readouterr().out
    some, same, other = (list(nano.generate_problems(50, seed)) for seed in (7, 7, 8))
    assert some == same != other


def test_files_hold_chats(tmp_path, monkeypatch, problems):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    nano.main()
    for split, start in [("train", 0), ("test", 7470)]:
        lines = (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == nano.SIZES[split]
        chat, problem = json.loads(lines[3])["messages"], problems[start + 3]
        assert [message["role"] for message in chat] == ["system", "user", "assistant"]
        assert chat[1]["content"] == problem["question"]
        expected = "<think>{explanation}</think>\n{answer}".format(**problem)
        assert chat[2]["content"] == expected


def test_changed_data_end_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    monkeypatch.setattr(nano, "SEED", 1)
    with pytest.raises(SystemExit) as exit:
        nano.main()
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "SHA256" in error
