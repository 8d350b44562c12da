"""Chat data in other people's forms, read as ours; and a test split drawn by share.

    our                  {"messages": [{"role": "user", "content": "..."}, ...]}
    ShareGPT             {"conversations": [{"from": "human", "value": "..."}, ...]}; or gpt, system
    Alpaca               {"instruction": "...", "input": "...", "output": "..."}; input may be empty
    prompt / completion  {"prompt": "...", "completion": "..."}
    question / answer    {"question": "...", "answer": "..."}

A file holds one such object per line (.jsonl), one list of them (.json), or a table whose first row
has these names (.csv). data/check.py --convert uses what is here.
"""
import csv
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dataset import check_messages, load_row, numbered_lines
from plumbing.errors import UserError
from plumbing.fields import check
from plumbing.files import existing

SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant",
                  "assistant": "assistant"}
PAIRS = {"prompt / completion": ("prompt", "completion"),
         "question / answer": ("question", "answer")}
REST = "cells without a name"       # of a table's row: an answer with a comma, and no quotes
NO_FORM = "it is in none of the forms that data/forms.py lists"
SHAPES = {"ShareGPT": {"conversations": [{"from": tuple(SHAREGPT_ROLES), "value": str}]},
          "Alpaca": {"instruction": str, "input?": (str, None), "output": str, f"{REST}?": None},
          **{form: {**dict.fromkeys(names, str), f"{REST}?": None}
             for form, names in PAIRS.items()}}


# ----- files --------------------------------------------------------------------------------------

def is_list(path: Path) -> bool:
    """Whether the file is one list. Some files that are called .json have an object per line."""
    first = next(numbered_lines(path), (0, b""))[1]
    byte_order_mark = b"\xef\xbb\xbf"
    return path.suffix == ".json" and first.removeprefix(byte_order_mark).lstrip().startswith(b"[")


def numbered_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and the JSON of each sample.

    They are lines, the items of a list, or the rows of a table. The first row of a table has the
    names, so the first sample is in row 2, as in a spreadsheet. Blank rows are not counted.
    """
    first = 1
    if path.suffix == ".csv":
        rows, first = read_table(path), 2
    elif is_list(path):
        rows = read_list(path)
    else:
        yield from numbered_lines(path)
        return
    for number, row in enumerate(rows, first):
        yield number, json.dumps(row).encode()


def kind_of_rows(path: Path) -> str:
    """What the numbers of numbered_rows count."""
    return "row" if path.suffix == ".csv" else "item" if is_list(path) else "line"


def read_list(path: Path) -> list:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:       # ValueError: also for bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON: {e}") from None


def read_table(path: Path) -> list[dict]:
    """The rows of a .csv file by the names in its first row, in lower case.

    Spreadsheet programs write commas between the cells, or semicolons where a comma is the decimal
    point, and some a byte order mark before the first name.
    """
    existing(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        first, _, _ = text.partition("\n")
        between = ";" if first.count(";") > first.count(",") else ","
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey=REST, delimiter=between))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as UTF-8 (spreadsheet programs call it CSV "
                        "UTF-8)") from None
    except csv.Error as e:
        raise UserError(f"{path} is not a table: {e}") from None
    return [{str(name).strip().lower(): cell for name, cell in row.items()} for row in rows]


def find_form(path: Path) -> str | None:
    """What form the first sample of a file has: "our", the name of another one, or None."""
    for _, line in numbered_rows(path):
        try:
            return form_of(load_row(line))
        except ValueError:
            break
    return None


def read_any_form(path: Path) -> tuple[list[dict], list[tuple[int, str]]]:
    """The rows of a file in our form; of each that cannot be read so its number and the reason.

    A row that is in our form stays whole, with its other keys.
    """
    rows, wrong = [], []
    for number, line in numbered_rows(path):
        try:
            row = load_row(line)
            if form_of(row) != "our":
                row = {"messages": read_messages_of(row)}
                if not all(message["content"].strip() for message in row["messages"][:-1]):
                    raise ValueError("the question is empty")
            check_messages(row)
            rows.append(row)
        except ValueError as e:
            wrong.append((number, str(e)))
    return rows, wrong


# ----- forms --------------------------------------------------------------------------------------

def form_of(row) -> str | None:
    """The name of a row's form, by its keys."""
    keys = set(row) if isinstance(row, dict) else set()
    if "messages" in keys:
        return "our"
    if "conversations" in keys:
        return "ShareGPT"
    if {"instruction", "output"} <= keys:
        return "Alpaca"
    return next((form for form, names in PAIRS.items() if {*names} <= keys), None)


def read_messages_of(row) -> list[dict]:
    """The messages of a row in another form. Raises ValueError for a row in none of them."""
    form = form_of(row)
    if form not in SHAPES:
        has = f" (it has {', '.join(row)})" if isinstance(row, dict) else ""
        raise ValueError(NO_FORM + has)
    check(row, SHAPES[form], form)
    if form == "ShareGPT":
        return read_sharegpt(row["conversations"])
    if form == "Alpaca":
        question, more, answer = row["instruction"], row.get("input") or "", row["output"]
    else:
        (question, answer), more = [row[name] for name in PAIRS[form]], ""
    if more.strip():
        question = f"{question}\n\n{more}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read_sharegpt(turns: list[dict]) -> list[dict]:
    """A question at the end that nobody answers is left out: nothing can be learned from it."""
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


# ----- training and test samples ------------------------------------------------------------------

def split_by_share(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Draw about `share` of the rows for testing, at least one -> (training rows, test rows).

    Rows that begin with the same question go to the same side, however they differ in case, in
    spacing, or in what comes after: otherwise a test question would be one that was learned. They
    are drawn together, and left in training where they are too many for the share. Raises UserError
    if all begin with the same question.
    """
    together = defaultdict(list)
    for row in rows:
        together[first_question(row["messages"])].append(row)
    groups = list(together.values())
    if len(groups) < 2:
        raise UserError("all samples begin with the same question, so that no test sample would be "
                        "a new one; split them by hand (data/custom/README.md)")
    random.Random(seed).shuffle(groups)
    wanted = min(round(share * len(rows)), len(rows) - 1)
    train, test = [], []
    for group in groups:
        side = test if len(test) + len(group) <= wanted else train
        side += group
    if not test:                            # each group, even of one, is larger than the share
        test = min(groups, key=len)
        train = [row for group in groups if group is not test for row in group]
    return train, test


def first_question(messages: list[dict]) -> str:
    """The user's first message, without differences of case and spacing."""
    asked = [m["content"] for m in messages if m["role"] == "user"]
    return " ".join(asked[0].casefold().split()) if asked else ""
