"""The nano task: is every problem true, solvable from its question, within reach of a small model, and unlike every other?"""
import collections
import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "data" / "nano"
spec = importlib.util.spec_from_file_location("nano_prepare", FOLDER / "prepare.py")
nano = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nano)

STEP = re.compile(r"\b(\d+) ([-+x/]) (\d+) = (\d+)\b")
TRUE = {"+": lambda x, y, z: x + y == z, "-": lambda x, y, z: x - y == z,
        "x": lambda x, y, z: x * y == z, "/": lambda x, y, z: x / y == z}


@pytest.fixture(scope="module")
def problems():
    return list(nano.problems(sum(nano.SIZES.values()), nano.SEED))


def steps_of(problem):
    return [(int(x), op, int(y), int(z)) for x, op, y, z in STEP.findall(problem["explanation"])]


def nameless(problem):
    return re.sub(rf"\b({'|'.join(nano.lexicon.NAMES)})\b", "X", problem["question"])


def test_every_line_is_one_true_step_and_the_last_gives_the_answer(problems):
    for problem in problems:
        steps, lines = steps_of(problem), problem["explanation"].split("\n")
        assert all(line.count("=") == len(re.findall(" [-+x/] ", line)) == 1 and line.endswith(".") for line in lines), problem
        assert len(steps) == len(lines), problem
        assert all(TRUE[op](x, y, z) for x, op, y, z in steps), problem
        assert problem["answer"] == str(steps[-1][3]) and steps[-1][3] > 0, problem


def test_every_operand_is_given_or_computed_before(problems):
    """What is not: a half, a quarter, the mean of three, two and four legs, seven days a week, sixty minutes."""
    for problem in problems:
        known = {int(n) for n in re.findall(r"\d+", problem["question"])} | {2, 3, 4, 7, 60}
        for x, _, y, z in steps_of(problem):
            assert x in known and y in known, problem
            known.add(z)


def test_arithmetic_is_within_reach(problems):
    steps = [step for problem in problems for step in steps_of(problem)]
    assert max(max(x, y, z) for x, _, y, z in steps) <= 990
    assert sum(max(x, y, z) > 100 for x, _, y, z in steps) < 0.08 * len(steps)
    for x, op, y, z in steps:
        if op in "x/":
            low, high = sorted((x, y) if op == "x" else (y, z))
            assert low >= 2 and (high <= 12 or low == 2 and high <= 50 or low <= 9 and high % 10 == 0), (x, op, y, z)


def test_one_to_four_steps_in_their_shares(problems):
    shares = collections.Counter(len(steps_of(problem)) for problem in problems)
    assert len(nano.SCENARIOS) == 125
    assert {steps: round(n / len(problems), 1) for steps, n in shares.items()} == {1: 0.2, 2: 0.3, 3: 0.3, 4: 0.2}


def test_no_problem_is_another_one_renamed(problems):
    assert len(problems) == 8792 and [problem["index"] for problem in problems] == list(range(8792))
    assert len({problem["question"] for problem in problems}) == 8792
    assert len({nameless(problem) for problem in problems}) == 8792


def test_texts_are_short_and_clean(problems):
    questions = [len(problem["question"].split()) for problem in problems]
    explanations = [len(problem["explanation"].split()) for problem in problems]
    assert statistics.mean(questions) < 30 and max(questions) <= 60
    assert statistics.mean(explanations) < 30 and max(explanations) <= 60
    for text in (text for problem in problems for text in (problem["question"], problem["explanation"])):
        assert not re.search("[{}()|_]|  | [.,?]", text), text
        assert not any(start.islower() for start in re.findall(r"(?:^|[.?]\s)(.)", text)), text
    assert all(problem["question"].endswith("?") for problem in problems)


def test_the_same_bytes_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    nano.main()
    assert nano.digests() == nano.SHA256
    assert "already" not in capsys.readouterr().out
    nano.main()
    assert "already" in capsys.readouterr().out
    assert list(nano.problems(50, 7)) == list(nano.problems(50, 7)) != list(nano.problems(50, 8))


def test_files_hold_chats(tmp_path, monkeypatch, problems):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    nano.main()
    for split, start in [("train", 0), ("test", 7470)]:
        chats = [json.loads(line)["messages"] for line in open(tmp_path / f"{split}.jsonl", encoding="utf-8")]
        assert len(chats) == nano.SIZES[split]
        assert [message["role"] for message in chats[3]] == ["system", "user", "assistant"]
        assert chats[3][1]["content"] == problems[start + 3]["question"]
        assert chats[3][2]["content"] == "<think>{explanation}</think>\n{answer}".format(**problems[start + 3])


def test_changed_data_end_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nano, "HERE", tmp_path)
    monkeypatch.setattr(nano, "SEED", 1)
    with pytest.raises(SystemExit) as exit:
        nano.main()
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "SHA256" in error
