"""How your own file looks to a model, before anything is trained on it (data/custom/README.md).

    python data/check.py my_folder --model HuggingFaceTB/SmolLM2-135M-Instruct --max_length 256
    python data/check.py my.jsonl --test my_test.jsonl
    python data/check.py my.csv --convert my_folder --test_share 0.1

For each file it says which lines are wrong and why, how long the samples are, how many are cut, and
which prompts occur twice. It also looks for test prompts in the training file, and shows one sample
with the part that is learned marked. Exit code 2 if a line is wrong, else 0.

--convert writes train.jsonl and test.jsonl in our form, from a file in ShareGPT's or Alpaca's form,
from prompt / completion or question / answer pairs (forms.py shows them), from a table with such
columns, or from our own form. If there is no test split, it draws one.
"""
import bisect
import json
import math
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path += [str(Path(__file__).resolve().parents[n]) for n in (0, 1)]     # data/, and above it
from common import write_files  # noqa: E402
from dataset import (  # noqa: E402
    Sample,
    encode_sample,
    find_dataset,
    numbered_lines,
    parse_line,
    question_of,
    show_sample,
)
from forms import (  # noqa: E402
    NO_FORM,
    find_form,
    is_list,
    kind_of_rows,
    read_any_form,
    split_by_share,
)
from plumbing.cli import flag, parse_flags, run_command  # noqa: E402
from plumbing.errors import UserError, errors_in_one_line, fail  # noqa: E402
from plumbing.text import count_noun, print_fitted  # noqa: E402
from settings import SUPERVISE  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

SHOWN = 10          # reasons that are shown of a file, and line numbers of a reason
BAR = 40            # characters of the longest bar of a histogram
NAMES = ("call its columns or keys question and answer; data/custom/README.md has the names that "
         "other forms have")


@dataclass
class Settings:
    data: str = flag(
        None, "a .jsonl, .json or .csv file, a folder with train.jsonl and test.jsonl, or a name "
        "under data/", positional=True)
    model: str = flag("nano", "whose tokenizer and chat template are used")
    max_length: int = flag(256, "tokens, as train.py cuts them", at_least=1)
    supervise: str = flag("last", "the answers that are learned, as in train.py", choices=SUPERVISE)
    test: Path = flag(None, "the test file that goes with the file")
    convert: Path = flag(
        None, "write train.jsonl and test.jsonl in our form to this folder, and nothing over what "
        "exists", group="other forms, and a test split")
    test_share: float = flag(
        0.1, "share of the samples that are drawn for testing, if there is no test split; at least "
        "one. Samples that begin with the same question stay together", above=0, at_most=0.9)
    seed: int = flag(42, "of that draw", at_least=0)


class Line(NamedTuple):
    number: int             # in the file, counted from 1
    messages: list[dict]
    sample: Sample          # uncut


# ----- read a file --------------------------------------------------------------------------------

def survey_file(path: Path, tokenizer, supervise: str = "last"
                ) -> tuple[list[Line], list[tuple[int, str]]]:
    """Every line that can be learned from; of every other one its number and the reason.

    It reads and encodes lines as training does. But training stops at the first wrong line.
    """
    lines, wrong = [], []
    for number, line in numbered_lines(path):
        try:
            messages = parse_line(line)
            sample = encode_sample(messages, tokenizer, supervise)
            lines.append(Line(number, messages, sample))
        except ValueError as e:
            wrong.append((number, str(e)))
    if not lines and not wrong:
        raise UserError(f"{path} holds no samples")
    return lines, wrong


def find_repeats(lines: list[Line], among: list[Line]) -> list[tuple[Line, Line]]:
    """(the first of `among` with this prompt, line) for each of `lines` that is another line."""
    first_with = {}
    for line in among:
        first_with.setdefault(fold_messages(line.messages[:-1]), line)
    pairs = []
    for line in lines:
        first = first_with.get(fold_messages(line.messages[:-1]))
        if first is not None and first is not line:
            pairs.append((first, line))
    return pairs


def fold_messages(messages: list[dict]) -> str:
    """The same text for messages that differ only in case and spacing."""
    return json.dumps([[m["role"], *m["content"].casefold().split()] for m in messages])


# ----- show what was found ------------------------------------------------------------------------

def show_file(path: Path, lines: list[Line], wrong: list[tuple[int, str]], max_length: int):
    print(f"{path}: {count_noun(len(lines), 'sample')}, wrong lines: {len(wrong):,}")
    show_wrong(wrong, "line")
    if lines:
        show_lengths([line.sample for line in lines], max_length)
        show_repeats(find_repeats(lines, lines), "prompts that an earlier line also has")
    print()


def show_wrong(wrong: list[tuple[int, str]], kind: str):
    """Each reason once, up to SHOWN reasons, with the lines (`kind`) that it holds for."""
    numbers = defaultdict(list)
    for number, reason in wrong:
        numbers[" ".join(reason.split())].append(number)
    for reason, some in list(numbers.items())[:SHOWN]:
        first = ", ".join(map(str, some[:SHOWN]))
        more = f" and {len(some) - SHOWN:,} more" if len(some) > SHOWN else ""
        print_fitted(f"  {kind if len(some) == 1 else kind + 's'} {first}{more}: {reason}")
    rest = sum(map(len, list(numbers.values())[SHOWN:]))
    if rest:
        print(f"  and {count_noun(rest, kind)} more")


def show_lengths(samples: list[Sample], max_length: int):
    """How long the samples are, and what --max_length does to them.

    A cut answer has lost its end, so the model does not learn from it where to stop. If the prompt
    alone fills max_length, nothing is left to learn, and training drops the sample.
    """
    lengths = [len(sample.ids) for sample in samples]
    answers = [sample.learned for sample in samples]
    prompts = [n - learned for n, learned in zip(lengths, answers, strict=True)]
    print(f"\n  {'tokens per sample':<18}{'median':>9}{'longest':>10}{'in all':>14}")
    for name, some in (("prompt", prompts), ("answer, learned", answers), ("together", lengths)):
        print(f"  {name:<18}{statistics.median_low(some):>9,}{max(some):>10,}{sum(some):>14,}")
    print()
    show_histogram(lengths, max_length)
    cut = sum(n > max_length for n in lengths)
    dropped = sum(not sample.cut(max_length).learned for sample in samples)
    print_fitted(f"\n  cut at --max_length {max_length:,} (░): {cut:,}; dropped, because nothing "
                 f"of the answer is left: {dropped:,}")


def show_histogram(lengths: list[int], max_length: int):
    """A bar for each range of lengths: 1, 2, 3, 4, 5 - 6, 7 - 8, 9 - 12, 13 - 16, 17 - 24 ...

    Lengths spread over decades, so the ranges grow: two per doubling. What is longer than
    max_length is drawn lighter. A bar is rounded up, so that one sample among thousands still
    shows.
    """
    ends = [0, 1]                       # range i holds the lengths ends[i - 1] + 1 .. ends[i]
    for k in range(1, 40):
        ends += [2 ** k, 3 * 2 ** (k - 1)]
    count = Counter(bisect.bisect_left(ends, n) for n in lengths)
    longer = Counter(bisect.bisect_left(ends, n) for n in lengths if n > max_length)
    most = max(count.values())
    for i in range(min(count), max(count) + 1):
        width = math.ceil(BAR * count[i] / most)
        light = math.ceil(BAR * longer[i] / most)
        bar = "█" * (width - light) + "░" * light
        print(f"  {ends[i - 1] + 1:>7,} - {ends[i]:<7,}{bar:<{BAR}}{count[i]:>8,}")


def show_repeats(pairs: list[tuple[Line, Line]], what: str):
    """Print the number of pairs, how many of them also share their answer, and the first pair.

    With the same answer, the sample just counts twice. With another, one of the two may be wrong.
    """
    if not pairs:
        print(f"  {what}: 0")
        return
    same_answer = [line for first, line in pairs
                   if fold_messages(first.messages) == fold_messages(line.messages)]
    print(f"  {what}: {len(pairs):,}, {len(same_answer):,} with the same answer")
    first, line = pairs[0]
    question = " ".join(question_of(line.messages[:-1]).split())[:120]
    print_fitted(f"    line {line.number} has that of line {first.number}: {question}")


def show_first_sample(lines: list[Line], tokenizer, max_length: int):
    """The first sample of which something is learned, as training cuts it."""
    for line in lines:
        cut = line.sample.cut(max_length)
        if cut.learned:
            show_sample(cut, tokenizer)
            return


# ----- other forms --------------------------------------------------------------------------------

def refuse_other_form(path: Path, settings):
    """Raise UserError if train.py cannot read a file; it names the command that converts it."""
    form, one_list = find_form(path), is_list(path)
    if form is None and path.suffix in (".json", ".csv"):
        _, wrong = read_any_form(path)
        if not wrong:
            raise UserError(f"{path} holds no samples")
        number, reason = wrong[0]
        if NO_FORM in reason:
            reason += f"; {NAMES}"
        if path.suffix != ".csv" or NO_FORM not in reason:      # the header is every row's
            reason = f"{kind_of_rows(path)} {number}: {reason}"
        raise UserError(f"{path}: {reason}")
    if form is None or (form == "our" and not one_list):
        return
    command = ["python", "data/check.py", settings.data, "--convert", "out_folder"]
    if settings.test:
        command += ["--test", str(settings.test)]
    what = "one list of samples in our form" if form == "our" else f"in {form} form"
    raise UserError(f"{path} is {what}; {shlex.join(command)} writes it as train.py reads it")


def convert_files(train: Path, test: Path | None, settings):
    """Write train.jsonl and test.jsonl to the folder --convert, both or none.

    Rows that cannot be learned from are left out and named.
    """
    targets = [settings.convert / "train.jsonl", settings.convert / "test.jsonl"]
    for path in targets:
        if path.exists():
            raise UserError(f"{path} exists already; give another folder to --convert")
    train_rows = read_rows_to_convert(train)
    if test:
        test_rows, drawn = read_rows_to_convert(test), ""
    else:
        train_rows, test_rows = split_by_share(train_rows, settings.test_share, settings.seed)
        drawn = f", drawn by --test_share {settings.test_share:g} --seed {settings.seed}"
    splits = train_rows, test_rows
    write_files({path: lines_of(rows) for path, rows in zip(targets, splits, strict=True)})
    print(f"{targets[0]}: {count_noun(len(train_rows), 'sample')}\n"
          f"{targets[1]}: {count_noun(len(test_rows), 'sample')}{drawn}\n"
          f"To check them: {shlex.join(['python', 'data/check.py', str(settings.convert)])}")


def read_rows_to_convert(path: Path) -> list[dict]:
    """The rows of `path` in our form. Prints which are left out. Raises UserError if all are."""
    form = find_form(path)
    rows, wrong = read_any_form(path)
    print(f"{path}: {count_noun(len(rows), 'sample')} in {form or 'no known'} form, left out: "
          f"{len(wrong):,}")
    show_wrong(wrong, kind_of_rows(path))
    if not rows:
        raise UserError(f"{path} holds no sample that can be converted; {NAMES}")
    return rows


def lines_of(rows: list[dict]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", errors="backslashreplace")      # half a surrogate pair: \\ud83d


# ----- the command --------------------------------------------------------------------------------

def check_files(train: Path, test: Path | None, tokenizer, max_length: int, supervise: str) -> int:
    """Print how a training file and, if given, its test file look -> how many lines are wrong."""
    train_lines, wrong = survey_file(train, tokenizer, supervise)
    if test:
        test_lines, test_wrong = survey_file(test, tokenizer, supervise)
    show_file(train, train_lines, wrong, max_length)
    if test:
        show_file(test, test_lines, test_wrong, max_length)
        wrong = wrong + test_wrong
        show_repeats(find_repeats(test_lines, train_lines),
                     f"prompts of {test.name} that {train.name} also has")
    show_first_sample(train_lines, tokenizer, max_length)
    return len(wrong)


def find_files(settings) -> tuple[Path, Path | None]:
    """The training file, and the test file if there is one."""
    path = Path(settings.data)
    if path.suffix in (".json", ".jsonl", ".csv") and not path.is_dir():
        return path, settings.test
    test = path / "test.jsonl"
    if settings.convert and path.is_dir():
        return path / "train.jsonl", settings.test or (test if test.exists() else None)
    folder = find_dataset(settings.data)
    return folder / "train.jsonl", settings.test or folder / "test.jsonl"


def main(argv=None):
    with errors_in_one_line():
        settings = parse_flags(Settings, "data/check.py", __doc__, argv)
        train, test = find_files(settings)
        if settings.convert:
            convert_files(train, test, settings)
            return
        for path in (train, test) if test else (train,):
            refuse_other_form(path, settings)
        tokenizer = Tokenizer.from_pretrained(settings.model)
        wrong = check_files(train, test, tokenizer, settings.max_length, settings.supervise)
    if wrong:
        fail(f"wrong lines: {wrong:,}, named above; training stops at the first")


if __name__ == "__main__":
    run_command(main)
