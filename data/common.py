"""What every data/<name>/prepare.py needs: raw files in, train.jsonl and test.jsonl out, one-line errors.

A prepared data set is a folder with train.jsonl and test.jsonl (and dev.jsonl, where the authors made such a split), one
{"messages": [{"role", "content"}, ...]} a line, the last message being the assistant's. A script reads, checks and converts
everything in memory first and writes last: what goes wrong on the way leaves the folder as it was. task.json beside the
script says how answers are judged, for evaluate.py: {"metric": "exact_match"}, {"metric": "accuracy", "labels": [...]},
{"metric": "bleu"}, or {"metric": null} where there is no more to measure than the loss.
"""
import argparse
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


def raw_folder(doc: str) -> Path | None:
    """The one argument of every script, RAW_FOLDER, or None where the raw files are to be fetched."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message} (python {sys.argv[0]} --help says what it takes)")
    parser.add_argument("raw_folder", nargs="?", type=Path, help="folder with the raw files (default: fetch them)")
    return parser.parse_args().raw_folder


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


def download(urls: dict[str, str], folder: Path) -> Path:
    """Fetch each {name: url} as `folder`/name, unless it is there -> `folder`."""
    for name, url in urls.items():
        if (folder / name).exists():
            continue
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as e:  # the latter is a connection that broke off in mid-file
            fail(f"cannot download {url}: {e}; fetch it elsewhere as {name} and give its folder: python {sys.argv[0]} RAW_FOLDER")
        write_files({folder / name: content})
    return folder


def hub_file(repo: str, name: str) -> Path:
    """The place in the hub's own cache of a file of a data set, to which it is downloaded if need be."""
    from huggingface_hub import hf_hub_download, logging  # here, because a RAW_FOLDER needs no hub

    print(f"fetching {name} of {repo} from the hub (gives up after half a minute)", flush=True)
    logging.set_verbosity_error()  # it would log every attempt
    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    # The client's errors, its HTTP library's and the disk's share no narrower class.
    except Exception as e:  # noqa: BLE001
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        fail(f"cannot get {name} of {repo} from the hub: {reason.rstrip('.')}; without a network, fetch it elsewhere and "
             f"give its folder: python {sys.argv[0]} RAW_FOLDER")


def read_text(path: Path) -> str:
    """What a raw file holds, without a byte order mark and with its line ends as they are."""
    if not path.exists():
        fail(f"{path} is missing; RAW_FOLDER has to hold it under this name")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{path} is not a readable UTF-8 file: {e}")


def read_lines(path: Path) -> list[str]:
    return read_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")


def parse_json(path: Path) -> list:
    """What a raw file holds, one JSON value a line or one array of them."""
    text = read_text(path)
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


def sample(question: str, answer: str, system: str | None = None, **more) -> dict:
    """One line of a split. What `more` holds, training passes over; evaluate.py may want it."""
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write_splits(folder: Path, expected: dict[str, int], **splits: list[dict]):
    """Write {split}.jsonl for each split, a list of samples, once their number is what it has to be."""
    for split, samples in splits.items():
        if len(samples) != expected[split]:
            fail(f"{folder.name}: the {split} split has {len(samples):,} samples instead of {expected[split]:,}; the raw "
                 "files are incomplete or of another version: delete them and fetch them again")
    contents = {}
    for split, samples in splits.items():
        lines = (json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
        contents[folder / f"{split}.jsonl"] = "".join(lines).encode("utf-8")
    write_files(contents)
    for split, samples in splits.items():
        print(f"{folder.name}: {split}.jsonl, {len(samples):,} samples")
