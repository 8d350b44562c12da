"""How your own file looks to a model, before anything is trained on it (data/custom/README.md).

    python data/check.py my_folder --model HuggingFaceTB/SmolLM2-135M-Instruct --max_length 256
    python data/check.py my.jsonl --test my_test.jsonl

Says which lines are wrong and why, how long the samples are and how many are cut, which prompts
come twice, and shows one sample with the part that is learned marked. The exit code is 2 if a line
is wrong, else 0.
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
from dataset import (  # noqa: E402
    Sample,
    encode_sample,
    find_dataset,
    numbered_lines,
    parse_line,
    show_sample,
)
from plumbing.cli import check_ranges, flag, parse_flags, run_command  # noqa: E402
from plumbing.errors import UserError, errors_in_one_line, fail  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

SHOWN = 10          # wrong lines that are shown of a file


@dataclass
class Settings:
    data: str = flag(
        None, "a .jsonl file, a folder with train.jsonl and test.jsonl, or a name under data/",
        positional=True)
    model: str = flag("nano", "whose tokenizer and chat template are used")
    max_length: int = flag(256, "tokens, as train.py cuts them", at_least=1)
    test: Path = flag(None, "the test file that goes with the file")


class Line(NamedTuple):
    number: int
    messages: list[dict]
    sample: Sample


# ----- what is in a file --------------------------------------------------------------------------

def survey_file(path: Path, tokenizer) -> tuple[list[Line], list[str]]:
    """Every line that can be learned from, uncut, and for every other one what is wrong with it."""
    lines, wrong = [], []
    for number, line in numbered_lines(path):
        try:
            messages = parse_line(line)
            lines.append(Line(number, messages, encode_sample(messages, tokenizer)))
        except ValueError as e:
            wrong.append(f"line {number}: {' '.join(str(e).split())}")
    if not lines and not wrong:
        raise UserError(f"{path} holds no samples")
    return lines, wrong


def find_repeats(lines: list[Line], among: list[Line]) -> list[tuple[Line, Line]]:
    """(first, line) for each of `lines` with the prompt of another line, the first of `among`."""
    first_with = {}
    for line in among:
        first_with.setdefault(fold(line.messages[:-1]), line)
    pairs = [(first_with.get(fold(line.messages[:-1]), line), line) for line in lines]
    return [(first, line) for first, line in pairs if first is not line]


def fold(messages: list[dict]) -> str:
    """The same text for messages that differ in nothing but case and spacing."""
    return json.dumps([[m["role"], *m["content"].casefold().split()] for m in messages])


# ----- what is shown of it ------------------------------------------------------------------------

def show_lengths(samples: list[Sample], max_length: int):
    lengths = [len(sample.ids) for sample in samples]
    prompts = [sample.start for sample in samples]
    answers = [n - start for n, start in zip(lengths, prompts, strict=True)]
    print(f"\n  {'tokens per sample':<18}{'median':>9}{'longest':>10}{'in all':>14}")
    for name, some in (("prompt", prompts), ("answer, learned", answers), ("together", lengths)):
        print(f"  {name:<18}{statistics.median_low(some):>9,}{max(some):>10,}{sum(some):>14,}")
    print()
    show_histogram(lengths, max_length)
    cut = sum(n > max_length for n in lengths)
    dropped = sum(start >= max_length for start in prompts)
    print(f"\n  cut at --max_length {max_length:,} (░): {cut:,}; dropped, because nothing of the "
          f"answer is left: {dropped:,}")


def show_histogram(lengths: list[int], max_length: int):
    """A bar for each half of an octave: up to 1, 2, 3, 4, 6, 8, 12, 16, 24 ... tokens."""
    ends = [0, 1]
    for k in range(1, 40):
        ends += [2 ** k, 3 * 2 ** (k - 1)]
    count = Counter(bisect.bisect_left(ends, n) for n in lengths)
    longer = Counter(bisect.bisect_left(ends, n) for n in lengths if n > max_length)
    most = max(count.values())
    for i in range(min(count), max(count) + 1):
        width, light = math.ceil(40 * count[i] / most), math.ceil(40 * longer[i] / most)
        bar = "█" * (width - light) + "░" * light
        print(f"  {ends[i - 1] + 1:>7,} - {ends[i]:<7,}{bar:<40}{count[i]:>8,}")


def show_repeats(pairs: list[tuple[Line, Line]], what: str):
    if not pairs:
        print(f"  {what}: 0")
        return
    same_answer = sum(fold(first.messages) == fold(line.messages) for first, line in pairs)
    print(f"  {what}: {len(pairs):,}, {same_answer:,} with the same answer")
    first, line = pairs[0]
    question = " ".join(line.messages[-2]["content"].split())[:120]
    print(f"    line {line.number} has that of line {first.number}: {question}")


def show_file(path: Path, lines: list[Line], wrong: list[str], max_length: int):
    samples = "1 sample" if len(lines) == 1 else f"{len(lines):,} samples"
    print(f"{path}: {samples}, wrong lines: {len(wrong):,}")
    for reason in wrong[:SHOWN]:
        print(f"  {reason}")
    if len(wrong) > SHOWN:
        print(f"  and {len(wrong) - SHOWN:,} more")
    if lines:
        show_lengths([line.sample for line in lines], max_length)
        show_repeats(find_repeats(lines, lines), "prompts that an earlier line has, too")
    print()


def check_files(paths: list[Path], tokenizer, max_length: int) -> int:
    """Print how a training file, and a test file if there is one, look -> the wrong lines."""
    files = [survey_file(path, tokenizer) for path in paths]
    for path, (lines, wrong) in zip(paths, files, strict=True):
        show_file(path, lines, wrong, max_length)
    (train, _), (test, _) = files[0], files[-1]
    if len(paths) > 1:
        what = f"prompts of {paths[1].name} that {paths[0].name} has, too"
        show_repeats(find_repeats(test, train), what)
    cut = [Sample(line.sample.ids[:max_length], line.sample.start) for line in train]
    learned = [sample for sample in cut if sample.start < len(sample.ids)]
    if learned:
        show_sample(learned[0], tokenizer)
    return sum(len(wrong) for _, wrong in files)


# ----- the command --------------------------------------------------------------------------------

def main(argv=None):
    settings = parse_flags(Settings, "data/check.py", __doc__, argv)
    with errors_in_one_line():
        check_ranges(settings)
        tokenizer = Tokenizer.from_pretrained(settings.model)
        if settings.data.endswith(".jsonl"):
            paths = [Path(settings.data), settings.test]
        else:
            folder = find_dataset(settings.data)
            paths = [folder / "train.jsonl", settings.test or folder / "test.jsonl"]
        wrong = check_files([path for path in paths if path], tokenizer, settings.max_length)
    if wrong:
        fail(f"wrong lines: {wrong:,}, up to {SHOWN} per file shown above; training stops at the "
             "first")


if __name__ == "__main__":
    run_command(main)
