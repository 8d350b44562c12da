"""What every data/<name>/prepare.py needs: raw files in, train.jsonl and test.jsonl out, one-line errors.

A prepared data set is a folder with train.jsonl and test.jsonl, one {"messages": [{"role", "content"}, ...]} a line, the
last message being the assistant's. A script reads, checks and converts everything in memory first and writes last: what
goes wrong on the way leaves the folder as it was.
"""
import http.client
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """End the script as every error of the user's ends: one line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def is_prepared(folder: Path, expected: dict[str, int]) -> bool:
    """Whether the folder already holds all splits with the right number of lines: then there is nothing to do."""
    for split, n in expected.items():
        path = folder / f"{split}.jsonl"
        if not path.exists() or path.read_bytes().count(b"\n") != n:
            return False
    counts = ", ".join(f"{split}.jsonl ({n:,})" for split, n in expected.items())
    print(f"{folder.name}: {counts} already there, nothing to do")
    return True


def write_files(contents: dict[Path, bytes]):
    """Write all the files or none: each lies complete beside its place before the first one is renamed into it."""
    parts = {path.with_name(path.name + ".part"): path for path in contents}
    try:
        for part, path in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(contents[path])
        for part, path in parts.items():
            os.replace(part, path)
    except OSError as e:
        for part in filter(Path.is_file, parts):
            part.unlink()
        fail(f"cannot write {path}: {e.strerror}; give {path.parent} space and permission and run it again")


def download(url: str, path: Path):
    """Fetch `url` into `path`, unless it is there."""
    if path.exists():
        return
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as e:  # the latter is a connection that broke off in mid-file
        fail(f"cannot download {url}: {e}; fetch it elsewhere and give its folder: python {sys.argv[0]} RAW_FOLDER")
    write_files({path: content})


def parse_json(path: Path) -> list:
    """What a raw file holds, one JSON value a line or one array of them."""
    if not path.exists():
        fail(f"{path} is missing; RAW_FOLDER has to hold it under this name")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{path} is not a readable UTF-8 file: {e}")
    if text.lstrip().startswith("["):
        documents = [text]
    else:
        documents = text.split("\n")  # not splitlines(), which also cuts at a U+2028 inside of a string; GSM8K has one
    values = []
    for number, document in enumerate(documents):
        if document.strip():
            try:
                value = json.loads(document)
            except json.JSONDecodeError as e:
                fail(f"{path}, line {number + e.lineno}: not valid JSON ({e.msg}); delete the file and fetch it again")
            values += value if isinstance(value, list) else [value]
    return values


def read_records(path: Path, fields: list[str]) -> list[dict[str, str]]:
    """The `fields` of each record of a raw file, as text; a number is text too, a null is not."""
    records = parse_json(path)
    for index, record in enumerate(records):
        for field in fields:
            if not isinstance(record, dict) or not isinstance(record.get(field), (str, int, float)):
                fail(f"{path}: the record at index {index} has no `{field}`; it needs {', '.join(fields)}")
    return [{field: str(record[field]) for field in fields} for record in records]


def write_splits(folder: Path, expected: dict[str, int], **splits: list[list[dict]]):
    """Write {split}.jsonl for each split, a list of message lists, once the number of samples is what it has to be."""
    for split, samples in splits.items():
        if len(samples) != expected[split]:
            fail(f"{folder.name}: the {split} split has {len(samples):,} samples instead of {expected[split]:,}; the raw "
                 "files are incomplete or of another version: delete them and fetch them again")
    contents = {}
    for split, samples in splits.items():
        lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in samples)
        contents[folder / f"{split}.jsonl"] = "".join(lines).encode("utf-8")
    write_files(contents)
    for split, samples in splits.items():
        print(f"{folder.name}: {split}.jsonl, {len(samples):,} samples")
