"""data/gsm8k/prepare.py and data/vi_gsm8k/prepare.py, run as a user runs them: a process, its exit code, its output.

No test touches data/ or the network. Each runs copies of the scripts in its own folder, with a loopback server in place of
GitHub and of the hub, to which the real huggingface_hub client talks, and with 3 and 2 samples to expect instead of thousands.
"""
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
GITHUB = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, kiểm tra lại phép tính, "
          "và kết thúc bằng đáp án cuối cùng.")
COUNTS = {"gsm8k": '{"train": 7_473, "test": 1_319}', "vi_gsm8k": '{"train": 7_470, "test": 1_322}'}
RAW_NAMES = {"gsm8k": ["train.jsonl", "test.jsonl"], "vi_gsm8k": ["vi_train.json", "vi_test.json"]}


def gsm8k_record(i: int) -> dict:
    # U+2028 is a line end to str.splitlines() but not to JSON; the real train.jsonl has one too.
    return {"question": f"What is {i} + 1?\u2028", "answer": f"{i} + 1 = $<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}


def vi_record(i: int) -> dict:
    return {"index": i, "question": f"{i} cộng 1?", "explanation": f"{i} + 1 = {i + 1}\nXong", "answer": str(i + 1)}


def json_lines(records: list) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


RECORD = {"gsm8k": gsm8k_record, "vi_gsm8k": vi_record}


def good_files(name: str) -> dict[str, str]:
    """The raw files, 3 and 2 records: JSON lines for gsm8k, one array for vi_gsm8k."""
    splits = {f: [RECORD[name](i) for i in range(n)] for f, n in zip(RAW_NAMES[name], (3, 2))}
    write = json_lines if name == "gsm8k" else lambda records: json.dumps(records, indent=1, ensure_ascii=False)
    return {f: write(records) for f, records in splits.items()}


class Handler(BaseHTTPRequestHandler):
    """Serves server.files under their last path component, with the headers that the hub's client wants to see."""

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path.rsplit("/", 1)[1])
        self.send_response(404 if content is None else 200)
        body = (content or "").encode("utf-8")
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("Content-Length", str(len(body) + self.server.withheld))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


class Sandbox:
    """A folder with copies of the scripts, and the server they talk to."""

    def __init__(self, folder: Path, name: str, server: ThreadingHTTPServer):
        self.name, self.server, self.folder, self.raw = name, server, folder / "data" / name, folder / "downloaded"
        self.folder.mkdir(parents=True)
        self.raw.mkdir()
        self.url = f"http://127.0.0.1:{server.server_port}"
        script = (DATA / name / "prepare.py").read_text(encoding="utf-8")
        assert COUNTS[name] in script and (GITHUB in script or name != "gsm8k")
        script = script.replace(COUNTS[name], '{"train": 3, "test": 2}').replace(GITHUB, self.url)
        (self.folder / "prepare.py").write_text(script, encoding="utf-8")
        (folder / "data" / "common.py").write_bytes((DATA / "common.py").read_bytes())
        # A client that waits before it tries again would make the tests wait too.
        (folder / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        self.env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(folder),
                     "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}

    def save_raw(self, files: dict[str, str]) -> str:
        for name, content in files.items():
            (self.raw / name).write_text(content, encoding="utf-8")
        return str(self.raw)

    def run(self, *args: str, preexec=None, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(self.folder / "prepare.py"), *args]
        return subprocess.run(command, env=self.env | env, preexec_fn=preexec, check=False, capture_output=True,
                              text=True, encoding="utf-8", timeout=60)

    def fails(self, *args: str, **kwargs) -> str:
        """Run, check that it ended as an error should and wrote nothing, and return its one line."""
        before = self.written()
        done = self.run(*args, **kwargs)
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert self.written() == before and not list(self.folder.rglob("*.part"))
        return done.stderr

    def written(self) -> dict[str, bytes]:
        """The files in the data set's folder besides the script; the downloads are in raw/ below it."""
        return {p.name: p.read_bytes() for p in self.folder.iterdir() if p.is_file() and p.name != "prepare.py"}

    def messages(self, split: str) -> list:
        with open(self.folder / f"{split}.jsonl", encoding="utf-8") as f:
            return [json.loads(line)["messages"] for line in f]


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.files, server.withheld = [], {}, 0
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def sandbox(request, tmp_path, server):
    server.files = good_files(request.param)
    return Sandbox(tmp_path, request.param, server)


gsm8k = pytest.mark.parametrize("sandbox", ["gsm8k"], indirect=True)
vi_gsm8k = pytest.mark.parametrize("sandbox", ["vi_gsm8k"], indirect=True)
both = pytest.mark.parametrize("sandbox", ["gsm8k", "vi_gsm8k"], indirect=True)


def check_samples(sandbox: Sandbox):
    for split, n in (("train", 3), ("test", 2)):
        if sandbox.name == "gsm8k":
            expected = [[{"role": "user", "content": f"What is {i} + 1?\u2028"},
                         {"role": "assistant", "content": f"{i} + 1 = ${i + 1}.\n#### {i + 1}"}] for i in range(n)]
        else:
            expected = [[{"role": "system", "content": SYSTEM},
                         {"role": "user", "content": f"{i} cộng 1?"},
                         {"role": "assistant", "content": f"<think>{i} + 1 = {i + 1}\nXong</think>\n{i + 1}"}]
                        for i in range(n)]
        assert sandbox.messages(split) == expected
    assert set(sandbox.written()) == {"train.jsonl", "test.jsonl"}


# ----- what works -----

@both
def test_downloads_and_converts(sandbox):
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert f"{sandbox.name}: train.jsonl, 3 samples\n{sandbox.name}: test.jsonl, 2 samples\n" in done.stdout
    check_samples(sandbox)
    if sandbox.name == "vi_gsm8k":
        assert "GET /datasets/hllj/vi_gsm8k/resolve/main/vi_train.json" in sandbox.server.requests


@both
def test_second_run_does_nothing(sandbox):
    assert sandbox.run().returncode == 0
    before, sandbox.server.requests[:] = sandbox.written(), []
    done = sandbox.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{sandbox.name}: train.jsonl (3), test.jsonl (2) already there, nothing to do\n"
    assert sandbox.server.requests == [] and sandbox.written() == before


@both
def test_an_incomplete_result_is_made_again_from_the_kept_raw_files(sandbox):
    assert sandbox.run().returncode == 0
    (sandbox.folder / "test.jsonl").write_text("{}\n")  # one line instead of two
    sandbox.server.files, sandbox.server.requests[:] = {}, []
    assert sandbox.run(HF_HUB_OFFLINE="1").returncode == 0
    assert sandbox.server.requests == []
    check_samples(sandbox)


@both
def test_raw_folder_needs_no_network(sandbox):
    done = sandbox.run(sandbox.save_raw(good_files(sandbox.name)))
    assert done.returncode == 0, done.stderr
    assert sandbox.server.requests == []
    check_samples(sandbox)


@vi_gsm8k
def test_json_lines_a_byte_order_mark_and_numbers_are_fine(sandbox):
    train, test = ([vi_record(i) | {"answer": i + 1} for i in range(n)] for n in (3, 2))
    files = {"vi_train.json": "\ufeff" + json_lines(train) + "\n", "vi_test.json": json_lines(test)}
    assert sandbox.run(sandbox.save_raw(files)).returncode == 0
    check_samples(sandbox)


# ----- what does not: one line, exit code 2, nothing written -----

@both
def test_nobody_answers(sandbox):
    sandbox.server.shutdown()
    sandbox.server.server_close()
    error = sandbox.fails()
    assert "prepare.py RAW_FOLDER" in error and "elsewhere" in error
    assert ("Connection refused" if sandbox.name == "gsm8k" else "hllj/vi_gsm8k") in error


@vi_gsm8k
def test_hub_offline_mode(sandbox):
    assert "cannot get vi_train.json of hllj/vi_gsm8k" in sandbox.fails(HF_HUB_OFFLINE="1")
    assert sandbox.server.requests == []


@both
def test_file_is_not_on_the_server(sandbox):
    missing = RAW_NAMES[sandbox.name][1]
    del sandbox.server.files[missing]
    error = sandbox.fails()
    assert missing in error and "404" in error


@gsm8k
def test_download_that_breaks_off(sandbox):
    sandbox.server.withheld = 10  # fewer bytes come than the header promises
    assert "train.jsonl" in sandbox.fails()
    assert not (sandbox.folder / "raw").exists()


@both
def test_raw_file_is_missing(sandbox):
    train, test = RAW_NAMES[sandbox.name]
    raw = sandbox.save_raw({train: good_files(sandbox.name)[train]})
    assert f"{test} is missing" in sandbox.fails(raw)


@both
@pytest.mark.parametrize("split, n", [(0, 2), (0, 4), (1, 1)])
def test_wrong_count(sandbox, split, n):
    name, expected = RAW_NAMES[sandbox.name][split], (3, 2)[split]
    raw = sandbox.save_raw(good_files(sandbox.name) | {name: json_lines([RECORD[sandbox.name](i) for i in range(n)])})
    assert f"the {('train', 'test')[split]} split has {n} samples instead of {expected}" in sandbox.fails(raw)


@both
def test_broken_line(sandbox):
    name = RAW_NAMES[sandbox.name][0]
    lines = json_lines([RECORD[sandbox.name](i) for i in range(3)]).split("\n")
    lines[1] = lines[1][:-5]
    raw = sandbox.save_raw(good_files(sandbox.name) | {name: "\n".join(lines)})
    assert f"{name}, line 2: not valid JSON" in sandbox.fails(raw)


@vi_gsm8k
def test_broken_array_names_its_line(sandbox):
    text = good_files("vi_gsm8k")["vi_train.json"].replace('"answer": "2"', '"answer": 2"')
    raw = sandbox.save_raw(good_files("vi_gsm8k") | {"vi_train.json": text})
    line = 1 + text[: text.index('"answer": 2"')].count("\n")
    assert f"vi_train.json, line {line}: not valid JSON" in sandbox.fails(raw)


@pytest.mark.parametrize("sandbox, broken, field", [
    ("gsm8k", {"question": "?"}, "answer"),
    ("gsm8k", {"question": None, "answer": "!"}, "question"),
    ("vi_gsm8k", {"question": "?", "answer": "!"}, "explanation"),
    ("vi_gsm8k", "no object at all", "question"),
], indirect=["sandbox"])
def test_record_without_its_fields(sandbox, broken, field):
    name = RAW_NAMES[sandbox.name][1]
    raw = sandbox.save_raw(good_files(sandbox.name) | {name: json_lines([RECORD[sandbox.name](0), broken])})
    assert f"{name}: the record at index 1 has no `{field}`" in sandbox.fails(raw)


@both
def test_what_is_there_survives_a_failure(sandbox):
    (sandbox.folder / "train.jsonl").write_text("mine\n")
    raw = sandbox.save_raw(good_files(sandbox.name) | {RAW_NAMES[sandbox.name][1]: "{"})
    sandbox.fails(raw)
    assert (sandbox.folder / "train.jsonl").read_text() == "mine\n"


@gsm8k
def test_full_disk_leaves_both_splits_alone(sandbox):
    resource = pytest.importorskip("resource")  # a limit on the size of a file stands in for the disk: test.jsonl breaks it
    long_records = [gsm8k_record(0) | {"question": "?" * 5000}] * 2
    raw = sandbox.save_raw(good_files("gsm8k") | {"test.jsonl": json_lines(long_records)})
    error = sandbox.fails(raw, preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert "cannot write" in error and "test.jsonl" in error
