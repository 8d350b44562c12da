"""The nano task: 8,792 Vietnamese word problems in the form of vi_gsm8k, made here from nothing in a second.

    python data/nano/prepare.py

GSM8K (https://arxiv.org/abs/2110.14168) in Vietnamese asks for more than a model of three million parameters can learn. This
set keeps its form (question, explanation in one to four steps, answer) and its size, and asks for less: numbers mostly
below 100, products from the multiplication table, divisions that come out even. templates.py holds its scenarios. A problem:

    Năm nay Lan 8 tuổi, tuổi của mẹ Lan gấp 4 lần tuổi Lan. Hỏi mẹ hơn Lan bao nhiêu tuổi?
    <think>Mẹ của Lan 8 x 4 = 32 tuổi.
    Mẹ hơn Lan 32 - 8 = 24 tuổi.</think>
    24

No two problems are alike even with the names taken out, so the test split holds no renamed copy of a training problem; it
does hold the same scenarios with other numbers, things and wordings. The same seed gives the same bytes on every machine.
"""
import hashlib
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE))
import lexicon  # noqa: E402
from common import fail, sample, write_splits  # noqa: E402
from templates import SCENARIOS  # noqa: E402

SEED, SIZES = 1337, {"train": 7470, "test": 1322}  # the sizes of vi_gsm8k
SHA256 = {"train": "194c760fec5cd616bbaa97488a6c46085148069fab80edc33798e8727059431a",
          "test": "6c7e6787a884a8eea36d365d619a1a56ff10b298407d00787efbb898d7c75e41"}
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, kiểm tra lại phép tính, "
          "và kết thúc bằng đáp án cuối cùng.")
LISTS = {"A": lexicon.NAMES, "B": lexicon.NAMES, "C": lexicon.NAMES, "family": lexicon.FAMILY} | {
    slot: [vietnamese for vietnamese, *_ in entries] for slot, entries in {
        "fruit": lexicon.FRUIT, "pen": lexicon.STATIONERY, "toy": lexicon.TOYS, "sweet": lexicon.SWEETS,
        "animal": lexicon.ANIMALS, "colour": lexicon.COLOURS}.items()}


def pick(rng, choices):
    """One of the choices. Python promises to keep the numbers of random(), and of no other method, the same for ever."""
    return choices[int(rng.random() * len(choices))]


# ----- reading templates.py -----

def options(choices: str) -> list:
    """'8-60' and '20-90/10' -> the numbers of a range; '20|50' -> numbers; 'túi|giỏ' -> words."""
    if bounds := re.fullmatch(r"(\d+)-(\d+)(?:/(\d+))?", choices):
        low, high, step = map(int, bounds.groups(default="1"))
        return list(range(low, high + 1, step))
    return [int(word) if word.isdigit() else word for word in choices.split("|")]


def parse(scenario: str):
    """A paragraph -> its questions, its explanation, the words and the numbers to draw from, the steps to compute."""
    words, numbers, steps = {}, {}, []
    for slot in re.findall("{(.+?)}", scenario):
        name, _, choices = slot.partition(":")
        if "=" in name:
            steps.append((name.replace("= ", "").split(), options(choices) if choices else None))
        elif choices:
            (numbers if len(name) == 1 else words)[name] = options(choices)
        elif name not in words and not re.fullmatch("[a-z]", name):
            words[name] = LISTS[name.rstrip("23")]
    *questions, explanation = re.split(r"(?<=\?) ", re.sub(":[^{}]*}", "}", " ".join(scenario.split())))
    return questions, explanation, words, numbers, steps


# ----- drawing one problem -----

def easy(x: int, op: str, y: int, z: int) -> bool:
    """Is `x op y = z` true and within reach: sums to 120 or of tens, the 12 x 12 table, doubles, a digit times tens?"""
    if op in "-/":
        x, z = z, x                                     # x - y = z says z + y = x, and x / y = z says z x y = x
    if op in "+-":
        return x > 0 and x + y == z and (z <= 120 or x % 10 == y % 10 == 0 and z <= 990)
    low, high = min(x, y), max(x, y)
    return low > 1 and x * y == z and (high <= 12 or low == 2 and high <= 50 or low <= 9 and high % 10 == 0 and z <= 990)


def draw_numbers(numbers: dict, steps: list, rng) -> dict:
    """Numbers for every slot and the result of every step, drawn again until all the steps are easy."""
    while True:
        values = {name: pick(rng, choices) for name, choices in numbers.items()}
        for (x, op, y, result), wanted in steps:
            x, y = (values[v] if v.isalpha() else int(v) for v in (x, y))
            values[result] = z = {"+": x + y, "-": x - y, "x": x * y, "/": x // y}[op]
            if not easy(x, op, y, z) or wanted and z not in wanted:
                break
        else:
            return values


def draw_words(words: dict, rng) -> dict:
    """A word for every slot, no word twice: two people of a problem have two names."""
    while True:
        values = {slot: pick(rng, choices) for slot, choices in words.items()}
        if len(set(values.values())) == len(values):
            return values


def fill(text: str, values: dict) -> str:
    """Put the values into the slots, '{a x 7 = c}' -> '5 x 7 = 35', and begin every sentence with a capital letter."""
    text = re.sub("{(.+?)}", lambda slot: " ".join(str(values.get(word, word)) for word in slot[1].split()), text)
    text = re.sub(" (?=[.,?])", "", " ".join(text.split()))  # an empty wording leaves two spaces, or one before a full stop
    return re.sub(r"(^|[.?] )(\w)", lambda start: start[1] + start[2].upper(), text)


def problems(n: int, seed: int):
    """Yield n problems {index, question, explanation, answer}, no two alike even when all people are called the same."""
    rng, scenarios, seen = random.Random(seed), [parse(scenario) for scenario in SCENARIOS], set()
    while len(seen) < n:
        questions, explanation, words, numbers, steps = pick(rng, scenarios)
        values = draw_numbers(numbers, steps, rng) | draw_words(words, rng)
        question, explanation = (re.sub(r"\(([^()]*)\)", lambda wordings: pick(rng, wordings[1].split("|")), text)
                                 for text in (pick(rng, questions), explanation))
        nameless = fill(question, values | {"A": "A", "B": "B", "C": "C"})
        if nameless not in seen:
            seen.add(nameless)
            (*_, result), _ = steps[-1]
            yield {"index": len(seen) - 1, "question": fill(question, values), "answer": str(values[result]),
                   "explanation": fill(explanation, values).replace(". ", ".\n")}


# ----- the two files -----

def to_sample(problem: dict) -> dict:
    """A problem as a chat: the model is to think in steps and then to give the bare number."""
    return sample(problem["question"], f"<think>{problem['explanation']}</think>\n{problem['answer']}", SYSTEM)


def digests() -> dict[str, str]:
    """The sha256 of each file that is there."""
    paths = {split: HERE / f"{split}.jsonl" for split in SIZES}
    return {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in paths.items() if path.exists()}


def main():
    if digests() == SHA256:
        return print("nano: train.jsonl and test.jsonl are there already")
    samples = [to_sample(problem) for problem in problems(sum(SIZES.values()), SEED)]
    write_splits(HERE, SIZES, train=samples[:SIZES["train"]], test=samples[SIZES["train"]:])
    if digests() != SHA256:
        fail(f"nano: the data are not those that prepare.py expects; if you meant to change them, paste SHA256 = {digests()}")


if __name__ == "__main__":
    main()
