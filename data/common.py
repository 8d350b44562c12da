"""What every data/<name>/prepare.py shares: raw files in, train.jsonl and test.jsonl out.

A prepared data set is a folder with train.jsonl and test.jsonl, and dev.jsonl if its authors made
such a split. Each line is a sample, {"messages": [{"role", "content"}, ...]}. Its last message is
the assistant's. A script reads, checks and converts everything in memory and writes last, so an
error leaves the folder as it was.

task.json next to the script tells evaluate.py how answers are judged: {"metric": "exact_match"},
{"metric": "accuracy", "labels": [...]}, {"metric": "bleu"}, or {"metric": null} if the loss is all
that can be measured.
"""
import contextlib
import http.client
import json
import sys
import urllib.request
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from plumbing.cli import make_parser
from plumbing.errors import errors_in_one_line, fail
from plumbing.fields import check
from plumbing.files import replacing


def parse_raw_folder(doc: str) -> Path | None:
    """The one argument of every script, RAW_FOLDER, or None to download the raw files."""
    parser = make_parser(sys.argv[0], doc)
    parser.add_argument("raw_folder", nargs="?", type=Path,
                        help="folder with the raw files (default: download them)")
    return parser.parse_args().raw_folder


def is_prepared(folder: Path, expected: dict[str, int]) -> bool:
    """Whether the folder already holds all splits with the expected numbers of lines."""
    for split, n in expected.items():
        path = folder / f"{split}.jsonl"
        if not path.exists() or path.read_bytes().count(b"\n") != n:
            return False
    counts = ", ".join(f"{split}.jsonl ({n:,})" for split, n in expected.items())
    print(f"{folder.name}: {counts} already exist, nothing to do")
    return True


def write_files(contents: dict[Path, bytes]):
    """Write all the files or none: the first is put in its place when the last is complete."""
    try:
        with contextlib.ExitStack() as stack:
            for path, content in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(replacing(path)).write_bytes(content)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}; make sure that {path.parent} is writable and its "
             "disk not full, then try again")


# ----- raw files -----

def download(urls: dict[str, str], folder: Path) -> Path:
    """Fetch each {name: url} to `folder`/name, unless it exists -> `folder`."""
    for name, url in urls.items():
        if (folder / name).exists():
            continue
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as e:   # HTTPException: it broke off half-way
            fail(f"cannot download {url}: {e}; fetch it elsewhere as {name} and give its folder: "
                 f"python {sys.argv[0]} RAW_FOLDER")
        write_files({folder / name: content})
    return folder


def fetch_from_hub(repo: str, name: str) -> Path:
    """A file of a data set in the hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download, logging    # a RAW_FOLDER does not need the hub

    print(f"fetching {name} of {repo} from the hub (gives up after half a minute)", flush=True)
    logging.set_verbosity_error()       # otherwise it logs every attempt
    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    # The errors of the client, of its HTTP library and of the disk share no narrower class.
    except Exception as e:  # noqa: BLE001
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        fail(f"cannot get {name} of {repo} from the hub: {reason.rstrip('.')}; without a network, "
             f"fetch it elsewhere and give its folder: python {sys.argv[0]} RAW_FOLDER")


def read_raw_text(path: Path) -> str:
    """The text of a raw file, without a byte order mark and with its line ends as they are."""
    if not path.exists():
        fail(f"{path} is missing; RAW_FOLDER must hold it under this name")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{path} is not a readable UTF-8 file: {e}")


def read_raw_lines(path: Path) -> list[str]:
    return read_raw_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")


def read_raw_json(path: Path) -> list:
    """The JSON values in a raw file: one per line, or one array of them."""
    text = read_raw_text(path)
    if text.lstrip().startswith("["):
        documents = [text]
    else:       # splitlines() would also cut at a U+2028 inside a string; GSM8K has one
        documents = text.split("\n")
    values = []
    for number, document in enumerate(documents):
        if not document.strip():
            continue
        try:
            value = json.loads(document)
        except json.JSONDecodeError as e:
            fail(f"{path}, line {number + e.lineno}: not valid JSON ({e.msg}); delete the file and "
                 "fetch it again")
        values += value if isinstance(value, list) else [value]
    return values


def read_raw_fields(path: Path, fields: list[str]) -> list[dict[str, str]]:
    """The `fields` of each record of a raw file, as text. They may be numbers, but not null."""
    with errors_in_one_line():
        records = check(read_raw_json(path), [dict.fromkeys(fields, (str, int, float))], path)
    return [{field: str(record[field]) for field in fields} for record in records]


# ----- splits -----

def make_sample(question: str, answer: str, system: str | None = None, **more) -> dict:
    """One line of a split. Training ignores `more`; evaluate.py may use it."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **more}


def write_splits(folder: Path, expected: dict[str, int], **splits: list[dict]):
    """Write {split}.jsonl for each split, a list of samples, if their numbers are as expected."""
    contents = {}
    for split, samples in splits.items():
        if len(samples) != expected[split]:
            fail(f"{folder.name}: the {split} split has {len(samples):,} samples instead of "
                 f"{expected[split]:,}; the raw files are incomplete or of another version: delete "
                 "them and fetch them again")
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        contents[folder / f"{split}.jsonl"] = "".join(lines).encode("utf-8")
    write_files(contents)
    for split, samples in splits.items():
        print(f"{folder.name}: {split}.jsonl, {len(samples):,} samples")
