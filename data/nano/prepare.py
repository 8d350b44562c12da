"""The nano task: 8,792 Vietnamese word problems in the form of vi_gsm8k, generated in a second.

    python data/nano/prepare.py

GSM8K (https://arxiv.org/abs/2110.14168) in Vietnamese is too hard for a model of three million
parameters. This set keeps its form (question, explanation in one to four steps, answer) and its
size, and asks for less: numbers up to 150, products from the 12 x 12 table, divisions without a
remainder. Its scenarios are in templates.py. A problem:

    Năm nay Lan 8 tuổi, tuổi của mẹ Lan gấp 4 lần tuổi Lan. Hỏi mẹ hơn Lan bao nhiêu tuổi?
    <think>Mẹ của Lan 8x4=32 tuổi.
    Mẹ hơn Lan 32-8=24 tuổi.</think>
    24

No two problems are alike even with the names taken out, so no test problem is a renamed training
problem. Both splits do share the scenarios, with other numbers, things and wordings. The same seed
gives the same bytes on every machine.
"""
import hashlib
import operator
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lexicon import LISTS, PEOPLE
from templates import SCENARIOS

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import fail, make_sample, write_splits

HERE = Path(__file__).resolve().parent
SEED = 1337
SIZES = {"train": 7470, "test": 1322}       # those of vi_gsm8k
SHA256 = {"train": "9d720baa701c20d69385b0bd9084b4c67cd9900322670263f27d200148b1a6f7",
          "test": "706a9f07557e3fb1ece0d6c8518b930e538bbd59657e6ae905a49a84efb177cd"}
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, "
          "kiểm tra lại phép tính, và kết thúc bằng đáp án cuối cùng.")
OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.floordiv}


def draw_one(rng, choices):
    """One of the choices. Only random() gives the same numbers in every version of Python."""
    return choices[int(rng.random() * len(choices))]


# ----- reading templates.py -----

class Step(NamedTuple):
    """{x op y = result:wanted}. x and y are slots or numbers; wanted: the range of the result."""
    x: str
    op: str
    y: str
    result: str
    wanted: list[int] | None


class Scenario(NamedTuple):
    questions: list[str]
    explanation: str
    words: dict[str, list[str]]         # slot: the words to draw from
    numbers: dict[str, list[int]]       # slot: the numbers to draw from
    steps: list[Step]


def parse_choices(choices: str) -> list:
    """'8-60' and '20-90/10' -> the numbers of a range; '20|50' -> numbers; 'túi|giỏ' -> words."""
    if bounds := re.fullmatch(r"(\d+)-(\d+)(?:/(\d+))?", choices):
        low, high, increment = map(int, bounds.groups(default="1"))
        return list(range(low, high + 1, increment))
    return [int(word) if word.isdigit() else word for word in choices.split("|")]


def parse_scenario(paragraph: str) -> Scenario:
    """A slot says once what it is drawn from, {a:8-60}, and is repeated without that, {a}."""
    words, numbers, steps = {}, {}, []
    for content in re.findall("{(.+?)}", paragraph):
        slot, _, choices = content.partition(":")
        is_number = re.fullmatch("[a-z]", slot)
        if "=" in slot:
            x, op, y, _, result = slot.split()
            steps.append(Step(x, op, y, result, parse_choices(choices) if choices else None))
        elif is_number and choices:
            numbers[slot] = parse_choices(choices)
        elif choices:
            words[slot] = parse_choices(choices)
        elif not is_number and slot not in words:
            words[slot] = LISTS[slot.rstrip("23")]         # {fruit}, {fruit2}
    text = re.sub(":[^{}]*}", "}", " ".join(paragraph.split()))     # {box:túi|giỏ} -> {box}
    *questions, explanation = re.split(r"(?<=\?) ", text)
    return Scenario(questions, explanation, words, numbers, steps)


# ----- drawing one problem -----

def is_easy(x: int, op: str, y: int, z: int) -> bool:
    """Is `x op y = z` true and within reach of a small model?

    Within reach are sums up to 150, the 12 x 12 table, and doubles of numbers up to 50. A
    difference counts as the sum that it undoes (x - y = z says z + y = x), a quotient as the
    product (x / y = z says z x y = x).
    """
    if op in "-/":
        x, z = z, x
    if op in "+-":
        return x > 0 and x + y == z <= 150
    low, high = min(x, y), max(x, y)
    return low > 1 and x * y == z and (high <= 12 or low == 2 and high <= 50)


def compute_step(step: Step, values: dict[str, int]) -> bool:
    """Add the step's result to `values`. Returns whether the step is easy and its result wanted."""
    x, y = (values[term] if term.isalpha() else int(term) for term in (step.x, step.y))
    z = values[step.result] = OPERATIONS[step.op](x, y)
    return is_easy(x, step.op, y, z) and (step.wanted is None or z in step.wanted)


def draw_numbers(rng, scenario: Scenario) -> dict[str, int]:
    """Numbers for all slots and the results of all steps, drawn again until every step is easy."""
    while True:
        values = {slot: draw_one(rng, choices) for slot, choices in scenario.numbers.items()}
        if all(compute_step(step, values) for step in scenario.steps):
            return values


def draw_words(rng, scenario: Scenario) -> dict[str, str]:
    """A word for every slot, none of them twice: two people of a problem have two names."""
    while True:
        values = {slot: draw_one(rng, choices) for slot, choices in scenario.words.items()}
        if len(set(values.values())) == len(values):
            return values


def choose_wordings(rng, text: str) -> str:
    """'(tất cả|hết|)' -> one of the three."""
    return re.sub(r"\(([^()]*)\)", lambda match: draw_one(rng, match[1].split("|")), text)


def fill_slots(text: str, values: dict) -> str:
    """'{a x 7 = c} {fruit}.' -> '5x7=35 quả táo.', with a capital letter in every sentence."""
    def fill_slot(slot):
        return "".join(str(values.get(word, word)) for word in slot[1].split())

    text = re.sub("{(.+?)}", fill_slot, text)
    text = " ".join(text.split())               # an empty wording leaves two spaces,
    text = re.sub(" (?=[.,?])", "", text)       # or one before a full stop
    return re.sub(r"(^|[.?] )(\w)", lambda start: start[1] + start[2].upper(), text)


def generate_problems(n: int, seed: int) -> Iterator[dict]:
    """Yield n problems {index, question, answer, explanation}, no two alike but for the names."""
    rng = random.Random(seed)
    scenarios = [parse_scenario(paragraph) for paragraph in SCENARIOS]
    seen = set()
    while len(seen) < n:
        scenario = draw_one(rng, scenarios)
        values = draw_numbers(rng, scenario) | draw_words(rng, scenario)
        question = choose_wordings(rng, draw_one(rng, scenario.questions))
        explanation = choose_wordings(rng, scenario.explanation)
        nameless = fill_slots(question, values | {name: name for name in PEOPLE})
        if nameless in seen:
            continue
        seen.add(nameless)
        yield {"index": len(seen) - 1,
               "question": fill_slots(question, values),
               "answer": str(values[scenario.steps[-1].result]),
               "explanation": fill_slots(explanation, values).replace(". ", ".\n")}


# ----- the two files -----

def problem_to_sample(problem: dict) -> dict:
    """A problem as a chat. The answer thinks in steps and ends in the bare number."""
    answer = f"<think>{problem['explanation']}</think>\n{problem['answer']}"
    return make_sample(problem["question"], answer, SYSTEM)


def hash_splits() -> dict[str, str]:
    """The sha256 of each split that exists."""
    paths = {split: HERE / f"{split}.jsonl" for split in SIZES}
    return {split: hashlib.sha256(path.read_bytes()).hexdigest()
            for split, path in paths.items() if path.exists()}


def main():
    if hash_splits() == SHA256:
        print("nano: train.jsonl and test.jsonl already exist, nothing to do")
        return
    problems = generate_problems(sum(SIZES.values()), SEED)
    samples = [problem_to_sample(problem) for problem in problems]
    n_train = SIZES["train"]
    write_splits(HERE, SIZES, train=samples[:n_train], test=samples[n_train:])
    if hash_splits() != SHA256:
        fail("nano: these are not the data that prepare.py expects; if you changed them on "
             f"purpose, paste SHA256 = {hash_splits()}")


if __name__ == "__main__":
    main()
