"""data/*/prepare.py, run as a user runs them: a process, its exit code, its output.

No test touches data/ or the network. Each runs a copy of a script in a folder of its own. A
loopback server takes the place of GitHub, of Google Drive and of the hub (the real huggingface_hub
client talks to it), and the copy expects a few samples instead of thousands. data/nano downloads
nothing; its tests are in test_nano.py.
"""
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[1]
DATA = REPO / "data"
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, "
          "kiểm tra lại phép tính, và kết thúc bằng đáp án cuối cùng.")
FEEDBACK = ("Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực? "
            "Chỉ trả lời bằng một trong các nhãn đó.")
REVIEW = "Is this review positive or negative? Answer with one word."
RESTAURANT = "Describe this restaurant in one or two sentences."


# ----- six small data sets, in the form in which they are published -----

class Case(NamedTuple):
    script: dict[str, str]          # text of the script: its replacement, with the server's {url}
    raw: dict[str, str]             # raw file: its text
    paths: list[str]                # the path under which the server gets asked for each of them
    splits: dict[str, list]         # split: the lines it must have
    wrong: dict[str, tuple]         # a mistake: the raw file, its text, what the error must say


def chat(question, answer, system=None, **more):
    messages = [("system", system), ("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": text} for role, text in messages if text]
    return {"messages": messages, **more}


def json_lines(records: list) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def gsm8k_record(i: int) -> dict:
    # U+2028 is a line end to str.splitlines() but not to JSON; the real train.jsonl has one too.
    return {"question": f"What is {i} + 1?\u2028",
            "answer": f"{i} + 1 = $<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}


def gsm8k() -> Case:
    records = [gsm8k_record(i) for i in range(4)]
    lines = [chat(f"What is {i} + 1?\u2028", f"{i} + 1 = ${i + 1}.\n#### {i + 1}")
             for i in range(3)]
    train, test = json_lines(records[:3]), json_lines(records[:2])
    no_answer = json_lines([records[0], {"question": "?"}])
    null_question = json_lines([{"question": None, "answer": "!"}])
    url = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
    return Case(
        script={'{"train": 7_473, "test": 1_319}': '{"train": 3, "test": 2}', url: "{url}/gsm"},
        raw={"train.jsonl": train, "test.jsonl": test},
        paths=["/gsm/train.jsonl", "/gsm/test.jsonl"],
        splits={"train": lines, "test": lines[:2]},
        wrong={
            "one too few": ("train.jsonl", json_lines(records[:2]),
                            "the train split has 2 samples instead of 3"),
            "one too many": ("train.jsonl", json_lines(records),
                             "the train split has 4 samples instead of 3"),
            "test too few": ("test.jsonl", json_lines(records[:1]),
                             "the test split has 1 samples instead of 2"),
            "broken line": ("train.jsonl", train.replace("1 + 1 =", '1 + 1" ='),
                            "train.jsonl, line 2: not valid JSON"),
            "no answer": ("test.jsonl", no_answer, "[1].answer is missing: it must be a text or a"),
            "null": ("test.jsonl", null_question, "[0].question null: it must be a text or a"),
        })


def vi_record(i: int) -> dict:
    return {"index": i, "question": f"{i} cộng 1?", "explanation": f"{i} + 1 = {i + 1}\nXong",
            "answer": str(i + 1)}


def vi_gsm8k() -> Case:
    train = json.dumps([vi_record(i) for i in range(3)], indent=1, ensure_ascii=False)
    test = json_lines([vi_record(i) for i in range(2)])
    lines = [chat(f"{i} cộng 1?", f"<think>{i} + 1 = {i + 1}\nXong</think>\n{i + 1}", SYSTEM)
             for i in range(3)]
    before_mistake, _, _ = train.partition('"answer": "2"')
    broken_line = 1 + before_mistake.count("\n")
    no_explanation = json_lines([vi_record(0), {"question": "?", "answer": "!"}])
    return Case(
        script={'{"train": 7_470, "test": 1_322}': '{"train": 3, "test": 2}'},
        raw={"vi_train.json": train, "vi_test.json": test},
        paths=["/datasets/hllj/vi_gsm8k/resolve/main/vi_train.json",
               "/datasets/hllj/vi_gsm8k/resolve/main/vi_test.json"],
        splits={"train": lines, "test": lines[:2]},
        wrong={
            "test too few": ("vi_test.json", json.dumps([vi_record(0)]),
                             "the test split has 1 samples instead of 2"),
            "broken line": ("vi_train.json", train.replace('"answer": "2"', '"answer": 2"'),
                            f"vi_train.json, line {broken_line}: not valid JSON"),
            "no explanation": ("vi_test.json", no_explanation,
                               "[1].explanation is missing"),
            "no object": ("vi_test.json", json_lines([vi_record(0), "text"]),
                          "[1] 'text': it must be a table"),
        })


def e2e() -> Case:
    cafe, pub, inn = "name[The Mill], area[riverside]", "name[Zizzi], eatType[pub]", "name[Aromi]"
    train = (f'mr,ref\n"{cafe}","By the river, The Mill."\n"{cafe}",The Mill is riverside. \n'
             f'{inn},"It\'s ""Aromi""."\n')
    test = (f'"mr","ref"\n"{pub}","Zizzi is a pub."\n"{inn}","Aromi."\n'
            f'"{pub}","A pub, Zizzi."\n')

    def answered(mr, ref, **more):
        return chat(f"{RESTAURANT}\n\n{mr}", ref, **more)

    return Case(
        script={'{"train": 4_672, "test": 630}': '{"train": 3, "test": 2}',
                "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master": "{url}/e2e"},
        raw={"devset.csv": train, "testset_w_refs.csv": test},
        paths=["/e2e/devset.csv", "/e2e/testset_w_refs.csv"],
        splits={
            "train": [answered(cafe, "By the river, The Mill."),
                      answered(cafe, "The Mill is riverside."),
                      answered(inn, 'It\'s "Aromi".')],
            "test": [
                answered(pub, "Zizzi is a pub.", references=["Zizzi is a pub.", "A pub, Zizzi."]),
                answered(inn, "Aromi.", references=["Aromi."])],
        },
        wrong={
            "too few": ("devset.csv", train[:train.index(inn)],
                        "the train split has 2 samples instead of 3"),
            "test too few": ("testset_w_refs.csv", test.replace(inn, pub),
                             "the test split has 1 samples instead of 2"),
            "broken line": (
                "devset.csv", train.replace('"By the river, The Mill."', "By the river, The Mill."),
                "devset.csv, line 2: a row must be a meaning representation and a sentence"),
            "no sentence": ("testset_w_refs.csv", test.replace('"Aromi."', '" "'),
                            "testset_w_refs.csv, line 3: a row must be"),
            "quote left open": ("devset.csv", train[:-5], "devset.csv, line 4: not valid CSV"),
            "no header": ("devset.csv", train.partition("\n")[2],
                          "devset.csv, line 1: the header must be mr,ref"),
        })


def sst2() -> Case:
    rows = {
        "train": [("good fun", "positive"), ("dull , dull", "negative"), ("a\u2028b", "positive")],
        "dev": [("so-so", "negative")],
        "test": [("fine", "positive"), ("no", "negative")],
    }
    train = "good fun\t1\ndull , dull\t0\na\u2028b\t1"
    url = "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master"
    return Case(
        script={'{"train": 6_920, "dev": 872, "test": 1_821}': '{"train": 3, "dev": 1, "test": 2}',
                f"{url}/data/SST2": "{url}/sst"},
        # some files lack the last line end, some have those of Windows
        raw={"train.tsv": train, "dev.tsv": "so-so\t0\n", "test.tsv": "fine\t1\r\nno\t0"},
        paths=[f"/sst/{split}.tsv" for split in rows],
        splits={split: [chat(f"{REVIEW}\n\n{sentence}", label) for sentence, label in pairs]
                for split, pairs in rows.items()},
        wrong={
            "dev too many": ("dev.tsv", "so-so\t0\n" * 2,
                             "the dev split has 2 samples instead of 1"),
            "broken line": ("train.tsv", "good fun\t1\ndull , dull\na\t1",
                            "train.tsv, line 2: it must be a sentence, a tab and 0"),
            "no such label": ("test.tsv", "fine\t1\nno\t2\n", "test.tsv, line 2: it must be"),
            "no sentence": ("test.tsv", "\t1\nno\t1\n", "test.tsv, line 1: it must be"),
            "empty": ("dev.tsv", "", "dev.tsv, line 1: it must be"),
        })


def hc3_record(i: int) -> dict:
    return {"question": f" 问题{i}？", "human_answers": [f"答{i}\n", "别的"],
            "chatgpt_answers": ["机器"]}


def hc3_chinese() -> Case:
    records = [hc3_record(i) for i in range(8)]
    records[5]["human_answers"][0] = " "            # nothing to learn from
    text = json_lines(records)

    usable, rng = [0, 1, 2, 3, 4, 6, 7], random.Random(42)
    keys = [rng.random() for _ in usable]           # 0.64, 0.03, 0.28, 0.22, 0.74, 0.68, 0.89
    drawn = [usable[keys.index(key)] for key in sorted(keys)][:5]
    assert drawn == [1, 3, 2, 0, 6]
    lines = [chat(f"问题{i}？", f"答{i}") for i in drawn]

    no_list = json_lines([*records[:6], records[6] | {"human_answers": "答"}, records[7]])
    blank = [record | {"question": " "} for record in records[:4]]
    return Case(
        script={'{"train": 1_800, "test": 200}': '{"train": 3, "test": 2}', "3_293": "8"},
        raw={"open_qa.jsonl": text},
        paths=["/datasets/Hello-SimpleAI/HC3-Chinese/resolve/main/open_qa.jsonl"],
        splits={"train": lines[:3], "test": lines[3:]},
        wrong={way: ("open_qa.jsonl", content, message) for way, content, message in (
            ("too few", json_lines(records[:7]), "open_qa.jsonl has 7 records instead of 8"),
            ("broken line", text.replace('问题3？", ', '问题3？" '),
             "open_qa.jsonl, line 4: not valid JSON"),
            ("answers no list", no_list,
             "the record at index 6 has no `question`, or no text in `human_answers`"),
            ("no answers", json_lines([{"question": "?", "human_answers": []}]),
             "the record at index 0 has no"),
            ("no question", json_lines([{"question": 7, "human_answers": ["!"]}]),
             "the record at index 0 has no"),
            ("too many blank", json_lines(blank + records[4:]),
             "the test split has 0 samples instead of 2"),
        )})


def vsfc() -> Case:
    rows = {
        "train": [("dễ hiểu . ", "2"), ("bình thường", "1"), ("khó\u2028quá", "0")],
        "dev": [("hay", "2")],
        "test": [("dở", "0"), ("tốt", "2")],
    }
    words = {"0": "tiêu cực", "1": "trung tính", "2": "tích cực"}
    ids = {     # on Google Drive: of the sentences, of the labels
        "train": ("1nzak5OkrheRV1ltOGCXkT671bmjODLhP", "1ye-gOZIBqXdKOoi_YxvpT6FeRNmViPPv"),
        "dev": ("1sMJSR3oRfPc3fe1gK-V3W5F24tov_517", "1GiY1AOp41dLXIIkgES4422AuDwmbUseL"),
        "test": ("1aNMOeZZbNwSRkjyCWAGtNCMa3YrshR-n", "1vkQS5gI0is4ACU58-AbWusnemw7KZNfO"),
    }
    raw, paths, splits = {}, [], {}
    for split, pairs in rows.items():
        raw[f"{split}/sents.txt"] = "".join(f"{sentence}\n" for sentence, _ in pairs)
        raw[f"{split}/sentiments.txt"] = "".join(f"{label}\n" for _, label in pairs)
        paths += [f"/uc?export=download&id={id}" for id in ids[split]]
        splits[split] = [chat(f"{FEEDBACK}\n\n{sentence.strip()}", words[label])
                         for sentence, label in pairs]
    return Case(
        script={'{"train": 11_426, "dev": 1_583, "test": 3_166}':
                '{"train": 3, "dev": 1, "test": 2}',
                "https://drive.google.com": "{url}"},
        raw=raw, paths=paths, splits=splits,
        wrong={
            "labels too few": ("train/sentiments.txt", "2\n1\n",
                               "train: 3 lines in sents.txt and 2 in sentiments.txt"),
            "broken line": ("train/sentiments.txt", "2\n\n0\n",
                            "sentiments.txt, line 2: it must be 0, 1 or 2, not ''"),
            "a page instead": ("dev/sentiments.txt", "<!DOCTYPE html>\n",
                               "sentiments.txt, line 1: it must be 0, 1 or 2"),
        })


CASES = {make_case.__name__: make_case()
         for make_case in (gsm8k, vi_gsm8k, e2e, sst2, hc3_chinese, vsfc)}


# ----- a server, and a folder to run in -----

class Handler(BaseHTTPRequestHandler):
    """Serves server.files, with the headers that the hub's client expects."""

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        body = (content or "").encode("utf-8")
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(200)
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
    """A folder with a copy of the script and what it imports, and the server it talks to."""

    def __init__(self, folder: Path, name: str, server: ThreadingHTTPServer):
        self.name, self.server = name, server
        self.folder, self.raw = folder / "data" / name, folder / "downloaded"
        self.folder.mkdir(parents=True)
        self.raw.mkdir()
        self.url = f"http://127.0.0.1:{server.server_port}"
        script = (DATA / name / "prepare.py").read_text(encoding="utf-8")
        for text, replacement in CASES[name].script.items():
            assert text in script
            script = script.replace(text, replacement.replace("{url}", self.url))
        (self.folder / "prepare.py").write_text(script, encoding="utf-8")
        shutil.copy(DATA / "common.py", folder / "data")
        shutil.copytree(REPO / "plumbing", folder / "plumbing",
                        ignore=shutil.ignore_patterns("__pycache__"))
        # A client that waits before it tries again would make the tests wait too.
        (folder / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
        self.env = {key: value for key, value in os.environ.items()
                    if not key.startswith("HF_") and not key.lower().endswith("_proxy")}
        self.env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hub"),
                     "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}

    def save_raw(self, files: dict[str, str]) -> str:
        for name, content in files.items():
            (self.raw / name).parent.mkdir(exist_ok=True)
            (self.raw / name).write_text(content, encoding="utf-8", newline="")
        return str(self.raw)

    def run(self, *args: str, preexec=None, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(self.folder / "prepare.py"), *args]
        return subprocess.run(command, env=self.env | env, preexec_fn=preexec, check=False,
                              capture_output=True, text=True, encoding="utf-8", timeout=60)

    def fails(self, *args: str, **kwargs) -> str:
        """Run, check that it ended as an error should and wrote nothing, and return its line."""
        before = self.written()
        done = self.run(*args, **kwargs)
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert self.written() == before and not list(self.folder.rglob("*.part"))
        return done.stderr

    def written(self) -> dict[str, bytes]:
        """The files next to the script. The downloads are not among them: they are in raw/."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()
                if path.is_file() and path.name != "prepare.py"}

    def check_samples(self):
        splits = CASES[self.name].splits
        assert set(self.written()) == {f"{split}.jsonl" for split in splits}
        for split, lines in splits.items():
            text = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8")
            assert [json.loads(line) for line in text.rstrip("\n").split("\n")] == lines


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
    case = CASES[request.param]
    server.files = dict(zip(case.paths, case.raw.values(), strict=True))
    return Sandbox(tmp_path, request.param, server)


def runs_on(*names):
    return pytest.mark.parametrize("sandbox", names, indirect=True)


# ----- what works -----

@runs_on(*CASES)
def test_downloads_and_converts_once(sandbox):
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    case = CASES[sandbox.name]
    report = "".join(f"{sandbox.name}: {split}.jsonl, {len(lines)} samples\n"
                     for split, lines in case.splits.items())
    assert done.stdout.endswith(report)
    sandbox.check_samples()
    assert set(sandbox.server.requests) >= {f"GET {path}" for path in case.paths}

    before, sandbox.server.requests[:] = sandbox.written(), []
    done = sandbox.run()
    assert (done.returncode, done.stderr) == (0, "")
    counts = ", ".join(f"{split}.jsonl ({len(lines)})" for split, lines in case.splits.items())
    assert done.stdout == f"{sandbox.name}: {counts} already exist, nothing to do\n"
    assert sandbox.server.requests == [] and sandbox.written() == before


@runs_on("vi_gsm8k", "vsfc")
def test_an_incomplete_result_is_made_again_from_the_kept_raw_files(sandbox):
    assert sandbox.run().returncode == 0
    (sandbox.folder / "test.jsonl").write_text("{}\n")      # one line instead of two
    sandbox.server.files, sandbox.server.requests[:] = {}, []
    assert sandbox.run(HF_HUB_OFFLINE="1").returncode == 0
    assert sandbox.server.requests == []
    sandbox.check_samples()


@runs_on(*CASES)
def test_raw_folder_needs_no_network(sandbox):
    done = sandbox.run(sandbox.save_raw(CASES[sandbox.name].raw))
    assert done.returncode == 0, done.stderr
    assert sandbox.server.requests == []
    sandbox.check_samples()


@runs_on("vi_gsm8k")
def test_json_lines_a_byte_order_mark_and_numbers_are_fine(sandbox):
    train, test = ([vi_record(i) | {"answer": i + 1} for i in range(n)] for n in (3, 2))
    files = {"vi_train.json": "\ufeff" + json_lines(train) + "\n", "vi_test.json": json_lines(test)}
    assert sandbox.run(sandbox.save_raw(files)).returncode == 0
    sandbox.check_samples()


@pytest.mark.parametrize("name", [*CASES, "nano"])
def test_every_data_set_says_how_it_is_judged(name):
    task = json.loads((DATA / name / "task.json").read_text(encoding="utf-8"))
    assert task["metric"] in ("exact_match", "accuracy", "bleu", None)
    if task["metric"] != "accuracy":
        return
    answers = set()
    for line in sum(CASES[name].splits.values(), []):
        question, answer = (message["content"] for message in line["messages"][-2:])
        answers.add(answer)
        assert all(label in question for label in task["labels"])
    assert answers == set(task["labels"])


# ----- what does not work: one line, exit code 2, nothing written -----

@runs_on("gsm8k", "vi_gsm8k")
def test_no_server_answers(sandbox):
    sandbox.server.shutdown()
    sandbox.server.server_close()
    error = sandbox.fails()
    assert "prepare.py RAW_FOLDER" in error and "elsewhere" in error
    assert ("Connection refused" if sandbox.name == "gsm8k" else "hllj/vi_gsm8k") in error


@runs_on("vi_gsm8k")
def test_hub_offline_mode(sandbox):
    assert "cannot get vi_train.json of hllj/vi_gsm8k" in sandbox.fails(HF_HUB_OFFLINE="1")
    assert sandbox.server.requests == []


@runs_on(*CASES)
def test_file_is_not_on_the_server(sandbox):
    missing = CASES[sandbox.name].paths[-1]
    del sandbox.server.files[missing]
    error = sandbox.fails()
    assert list(CASES[sandbox.name].raw)[-1] in error and "404" in error


@runs_on("gsm8k")
def test_download_that_breaks_off(sandbox):
    sandbox.server.withheld = 10        # fewer bytes arrive than the header promises
    assert "train.jsonl" in sandbox.fails()
    assert not (sandbox.folder / "raw").exists()


@runs_on("gsm8k")
def test_too_many_arguments(sandbox):
    assert "unrecognized arguments: two (python " in sandbox.fails("one", "two")


@runs_on(*CASES)
def test_raw_file_is_missing(sandbox):
    raw = dict(CASES[sandbox.name].raw)
    missing, _ = raw.popitem()
    assert f"{missing} is missing" in sandbox.fails(sandbox.save_raw(raw))


WRONG = [(name, mistake) for name, case in CASES.items() for mistake in case.wrong]


@pytest.mark.parametrize(("sandbox", "mistake"), WRONG, indirect=["sandbox"])
def test_wrong_raw_file(sandbox, mistake):
    """Wrong counts, broken lines and records without their fields, each named for what it is."""
    case = CASES[sandbox.name]
    name, text, message = case.wrong[mistake]
    assert name in case.raw and text != case.raw[name]
    assert message in sandbox.fails(sandbox.save_raw(case.raw | {name: text}))


@runs_on("gsm8k", "vsfc")
def test_existing_files_survive_a_failure(sandbox):
    (sandbox.folder / "train.jsonl").write_text("mine\n")
    raw = CASES[sandbox.name].raw
    sandbox.fails(sandbox.save_raw(raw | {list(raw)[-1]: "{"}))
    assert (sandbox.folder / "train.jsonl").read_text() == "mine\n"


@runs_on("gsm8k")
def test_full_disk_leaves_both_splits_alone(sandbox):
    """A limit on the size of files stands in for the disk. Only test.jsonl exceeds it."""
    resource = pytest.importorskip("resource")

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    long_records = [gsm8k_record(0) | {"question": "?" * 5000}] * 2
    raw = sandbox.save_raw(CASES["gsm8k"].raw | {"test.jsonl": json_lines(long_records)})
    error = sandbox.fails(raw, preexec=limit_files)
    assert "cannot write" in error and "test.jsonl" in error
