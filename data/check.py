"""How your own file looks to a model, before anything is trained on it (data/custom/README.md).

    python data/check.py my.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --test my_test.jsonl
"""
import bisect
import json
import math
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))
from dataset import Sample, checked, encode, find_dataset, numbered, show_sample  # noqa: E402
from plumbing.cli import check_ranges, flag, parse_flags, run_command  # noqa: E402
from plumbing.errors import UserError, errors_in_one_line, fail  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402


@dataclass
class Settings:
    data: str = flag(
        None, "a .jsonl file, a folder with train.jsonl and test.jsonl, or a name under data/",
        nargs="?")
    model: str = flag("nano", "whose tokenizer and chat template are used")
    max_length: int = flag(256, "tokens, as train.py cuts them", at_least=1)
    test: Path = flag(None, "the test file that goes with the file")


class Line(NamedTuple):
    number: int
    messages: list[dict]
    sample: Sample


def survey(path: Path, tokenizer) -> tuple[list[Line], list[str]]:
    """Every line that can be learned from, uncut, and for every other one what is wrong with it."""
    lines, wrong = [], []
    for number, line in numbered(path):
        try:
            messages = checked(line)
            lines.append(Line(number, messages, encode(messages, tokenizer)))
        except ValueError as e:
            wrong.append(f"line {number}: {' '.join(str(e).split())}")
    if not lines and not wrong:
        raise UserError(f"{path} holds no samples")
    return lines, wrong


def repeats(lines: list[Line], among: list[Line]) -> list[tuple[Line, Line]]:
    """(first, line) for each of `lines` whose prompt another line of `among` has, too; `first` is the first that has it."""
    first = {}
    for line in among:
        first.setdefault(folded(line.messages[:-1]), line)
    pairs = [(first.get(folded(line.messages[:-1]), line), line) for line in lines]
    return [(other, line) for other, line in pairs if other is not line]


def folded(messages: list[dict]) -> str:
    """The same for messages that differ in case and spacing alone."""
    return json.dumps([[m["role"], *m["content"].casefold().split()] for m in messages])


def show_lengths(samples: list[Sample], max_length: int):
    parts = {"prompt": [s.start for s in samples], "answer, learned": [len(s.ids) - s.start for s in samples],
             "together": [len(s.ids) for s in samples]}
    print(f"\n  {'tokens a sample':<17}{'median':>10}{'longest':>10}{'in all':>14}")
    for name, lengths in parts.items():
        print(f"  {name:<17}{statistics.median_low(lengths):>10,}{max(lengths):>10,}{sum(lengths):>14,}")
    print()
    show_histogram(parts["together"], max_length)
    longer = sum(len(s.ids) > max_length for s in samples)
    dropped = sum(s.start >= len(s.ids[:max_length]) for s in samples)
    print(f"\n  cut at --max_length {max_length:,} (░): {longer:,}; dropped, for nothing of the answer is left: {dropped:,}")


def show_histogram(lengths: list[int], max_length: int):
    """A bar for each half of an octave: up to 1, 2, 3, 4, 6, 8, 12, 16, 24, ... tokens."""
    ends = [0, 1] + [n for k in range(1, 40) for n in (2 ** k, 3 * 2 ** (k - 1))]
    count = Counter(bisect.bisect_left(ends, n) for n in lengths)
    longer = Counter(bisect.bisect_left(ends, n) for n in lengths if n > max_length)
    for i in range(min(count), max(count) + 1):
        bar, light = (math.ceil(40 * n / max(count.values())) for n in (count[i], longer[i]))
        print(f"  {ends[i - 1] + 1:>7,} - {ends[i]:<7,}{'█' * (bar - light) + '░' * light:<40}{count[i]:>8,}")


def show_repeats(pairs: list[tuple[Line, Line]], what: str):
    answers = sum(folded(first.messages) == folded(line.messages) for first, line in pairs)
    print(f"  {what}: {len(pairs):,}" + (f", {answers:,} with the same answer" if pairs else ""))
    for first, line in pairs[:1]:
        print(f"    line {line.number} has that of line {first.number}: {' '.join(line.messages[-2]['content'].split())[:120]}")


def check(paths: list[Path], tokenizer, max_length: int) -> int:
    """Print how the training file, and the test file if `paths` has two, look to the model -> the number of wrong lines."""
    files = [survey(path, tokenizer) for path in paths]
    for path, (lines, wrong) in zip(paths, files):
        print(f"{path}: {len(lines):,} sample{'s' * (len(lines) != 1)}, wrong lines: {len(wrong):,}")
        for reason in wrong[:10] + [f"and {len(wrong) - 10:,} more"] * (len(wrong) > 10):
            print(f"  {reason}")
        if lines:
            show_lengths([line.sample for line in lines], max_length)
            show_repeats(repeats(lines, lines), "prompts that an earlier line has, too")
        print()
    (train, _), (test, _) = files[0], files[-1]
    if len(paths) > 1:
        show_repeats(repeats(test, train), f"prompts of {paths[1].name} that {paths[0].name} has, too")
    cut = (Sample(line.sample.ids[:max_length], line.sample.start) for line in train)
    if first := next((s for s in cut if s.start < len(s.ids)), None):
        show_sample(first, tokenizer)
    return sum(len(wrong) for _, wrong in files)


def main(argv=None):
    args = parse_flags(Settings, "data/check.py", __doc__, argv)
    with errors_in_one_line():
        check_ranges(args)
        tokenizer = Tokenizer.from_pretrained(args.model)
        if args.data.endswith(".jsonl"):
            paths = [Path(args.data), args.test]
        else:
            folder = find_dataset(args.data)
            paths = [folder / "train.jsonl", args.test or folder / "test.jsonl"]
        wrong = check([path for path in paths if path], tokenizer, args.max_length)
    if wrong:
        fail(f"wrong lines: {wrong:,}, up to ten of a file shown above; training stops at the first")


if __name__ == "__main__":
    run_command(main)
