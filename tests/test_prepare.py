"""data/*/prepare.py, run as a user runs them: a process, its exit code, its output.

No test touches data/ or the network. Each runs a copy of a script in its own folder, with a loopback server in place of GitHub,
of Google Drive and of the hub, to which the real huggingface_hub client talks, and with a few samples to expect instead of
thousands. data/nano has nothing to fetch; its tests are in test_nano.py.
"""
import hashlib
import json
import os
import random
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, kiểm tra lại phép tính, "
          "và kết thúc bằng đáp án cuối cùng.")
FEEDBACK = "Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực? Chỉ trả lời bằng một trong các nhãn đó."
REVIEW = "Is this review positive or negative? Answer with one word."
RESTAURANT = "Describe this restaurant in one or two sentences."


# ----- six data sets in small, in the form in which they are published -----

class Case(NamedTuple):
    script: dict[str, str]          # what the script says: what its copy says instead, {url} being the server's
    raw: dict[str, str]             # raw file: its text
    paths: list[str]                # what each of them is asked for as
    splits: dict[str, list]         # split: the lines that become of it
    wrong: dict[str, tuple]         # a way to go wrong: a raw file, its text, what the error says of it


def chat(question, answer, system=None, **more):
    messages = [("system", system), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in messages if text], **more}


def json_lines(records: list) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def gsm8k_record(i: int) -> dict:
    # U+2028 is a line end to str.splitlines() but not to JSON; the real train.jsonl has one too.
    return {"question": f"What is {i} + 1?\u2028", "answer": f"{i} + 1 = $<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}


def gsm8k() -> Case:
    records = [gsm8k_record(i) for i in range(4)]
    lines = [chat(f"What is {i} + 1?\u2028", f"{i} + 1 = ${i + 1}.\n#### {i + 1}") for i in range(3)]
    text = json_lines(records[:3])
    return Case(
        {'{"train": 7_473, "test": 1_319}': '{"train": 3, "test": 2}',
         "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data": "{url}/gsm"},
        {"train.jsonl": text, "test.jsonl": json_lines(records[:2])}, ["/gsm/train.jsonl", "/gsm/test.jsonl"],
        {"train": lines, "test": lines[:2]},
        {"one too few": ("train.jsonl", json_lines(records[:2]), "the train split has 2 samples instead of 3"),
         "one too many": ("train.jsonl", json_lines(records), "the train split has 4 samples instead of 3"),
         "test too few": ("test.jsonl", json_lines(records[:1]), "the test split has 1 samples instead of 2"),
         "broken line": ("train.jsonl", text.replace("1 + 1 =", '1 + 1" ='), "train.jsonl, line 2: not valid JSON"),
         "no answer": ("test.jsonl", json_lines([records[0], {"question": "?"}]), "the record at index 1 has no `answer`"),
         "null": ("test.jsonl", json_lines([{"question": None, "answer": "!"}]), "the record at index 0 has no `question`")})


def vi_record(i: int) -> dict:
    return {"index": i, "question": f"{i} cộng 1?", "explanation": f"{i} + 1 = {i + 1}\nXong", "answer": str(i + 1)}


def vi_gsm8k() -> Case:
    text = json.dumps([vi_record(i) for i in range(3)], indent=1, ensure_ascii=False)
    lines = [chat(f"{i} cộng 1?", f"<think>{i} + 1 = {i + 1}\nXong</think>\n{i + 1}", SYSTEM) for i in range(3)]
    broken = text.replace('"answer": "2"', '"answer": 2"')
    line = 1 + text[:text.index('"answer": "2"')].count("\n")
    return Case(
        {'{"train": 7_470, "test": 1_322}': '{"train": 3, "test": 2}'},
        {"vi_train.json": text, "vi_test.json": json_lines([vi_record(i) for i in range(2)])},
        [f"/datasets/hllj/vi_gsm8k/resolve/main/vi_{split}.json" for split in ("train", "test")],
        {"train": lines, "test": lines[:2]},
        {"test too few": ("vi_test.json", json.dumps([vi_record(0)]), "the test split has 1 samples instead of 2"),
         "broken line": ("vi_train.json", broken, f"vi_train.json, line {line}: not valid JSON"),
         "no explanation": ("vi_test.json", json_lines([vi_record(0), {"question": "?", "answer": "!"}]),
                            "the record at index 1 has no `explanation`"),
         "no object": ("vi_test.json", json_lines([vi_record(0), "text"]), "the record at index 1 has no `question`")})


def e2e() -> Case:
    cafe, pub, inn = "name[The Mill], area[riverside]", "name[Zizzi], eatType[pub]", "name[Aromi]"
    train = f'mr,ref\n"{cafe}","By the river, The Mill."\n"{cafe}",The Mill is riverside. \n{inn},"It\'s ""Aromi""."\n'
    test = f'"mr","ref"\n"{pub}","Zizzi is a pub."\n"{inn}","Aromi."\n"{pub}","A pub, Zizzi."\n'
    ask = (RESTAURANT + "\n\n{}").format
    return Case(
        {'{"train": 4_672, "test": 630}': '{"train": 3, "test": 2}',
         "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master": "{url}/e2e"},
        {"devset.csv": train, "testset_w_refs.csv": test}, ["/e2e/devset.csv", "/e2e/testset_w_refs.csv"],
        {"train": [chat(ask(cafe), "By the river, The Mill."), chat(ask(cafe), "The Mill is riverside."),
                   chat(ask(inn), 'It\'s "Aromi".')],
         "test": [chat(ask(pub), "Zizzi is a pub.", references=["Zizzi is a pub.", "A pub, Zizzi."]),
                  chat(ask(inn), "Aromi.", references=["Aromi."])]},
        {"too few": ("devset.csv", train[:train.index(inn)], "the train split has 2 samples instead of 3"),
         "test too few": ("testset_w_refs.csv", test.replace(inn, pub), "the test split has 1 samples instead of 2"),
         "broken line": ("devset.csv", train.replace('"By the river, The Mill."', "By the river, The Mill."),
                         "devset.csv, line 2: a row has to be a meaning representation and a sentence"),
         "no sentence": ("testset_w_refs.csv", test.replace('"Aromi."', '" "'), "testset_w_refs.csv, line 3: a row has to be"),
         "quote left open": ("devset.csv", train[:-5], "devset.csv, line 4: not valid CSV"),
         "no header": ("devset.csv", train.partition("\n")[2], "devset.csv, line 1: the header has to be mr,ref")})


def sst2() -> Case:
    train, dev, test = ["good fun\t1", "dull , dull\t0", "a\u2028b\t1"], ["so-so\t0"], ["fine\t1", "no\t0"]
    rows = {"train": [("good fun", "positive"), ("dull , dull", "negative"), ("a\u2028b", "positive")],
            "dev": [("so-so", "negative")], "test": [("fine", "positive"), ("no", "negative")]}
    return Case(
        {'{"train": 6_920, "dev": 872, "test": 1_821}': '{"train": 3, "dev": 1, "test": 2}',
         "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2": "{url}/sst"},
        {"train.tsv": "\n".join(train), "dev.tsv": "\n".join(dev) + "\n", "test.tsv": "\r\n".join(test)},    # some lack the last \n
        [f"/sst/{split}.tsv" for split in rows],
        {split: [chat(f"{REVIEW}\n\n{sentence}", label) for sentence, label in rows[split]] for split in rows},
        {"dev too many": ("dev.tsv", "so-so\t0\n" * 2, "the dev split has 2 samples instead of 1"),
         "broken line": ("train.tsv", "good fun\t1\ndull , dull\na\t1", "train.tsv, line 2: it has to be a sentence, a tab and 0"),
         "no such label": ("test.tsv", "fine\t1\nno\t2\n", "test.tsv, line 2: it has to be"),
         "no sentence": ("test.tsv", "\t1\nno\t1\n", "test.tsv, line 1: it has to be"),
         "empty": ("dev.tsv", "", "dev.tsv, line 1: it has to be")})


def hc3_chinese() -> Case:
    records = [{"question": f" 问题{i}？", "human_answers": [f"答{i}\n", "别的"], "chatgpt_answers": ["机器"]} for i in range(8)]
    records[5]["human_answers"][0] = " "            # nothing to learn from
    text = json_lines(records)
    usable, rng = [0, 1, 2, 3, 4, 6, 7], random.Random(42)
    keys = [rng.random() for _ in usable]           # 0.64, 0.03, 0.28, 0.22, 0.74, 0.68, 0.89, to sort by
    drawn = [usable[keys.index(key)] for key in sorted(keys)][:5]
    assert drawn == [1, 3, 2, 0, 6]
    lines = [chat(f"问题{i}？", f"答{i}") for i in drawn]
    bad = json_lines([*records[:6], {"question": "?", "human_answers": "答", "chatgpt_answers": []}, records[7]])
    return Case(
        {'{"train": 1_800, "test": 200}': '{"train": 3, "test": 2}', "3_293": "8"},
        {"open_qa.jsonl": text}, ["/datasets/Hello-SimpleAI/HC3-Chinese/resolve/main/open_qa.jsonl"],
        {"train": lines[:3], "test": lines[3:]},
        {"too few": ("open_qa.jsonl", json_lines(records[:7]), "open_qa.jsonl has 7 records instead of 8"),
         "broken line": ("open_qa.jsonl", text.replace('问题3？", ', '问题3？" '), "open_qa.jsonl, line 4: not valid JSON"),
         "answers no list": ("open_qa.jsonl", bad, "the record at index 6 has no `question`, or no text in `human_answers`"),
         "no answers": ("open_qa.jsonl", json_lines([{"question": "?", "human_answers": []}]), "the record at index 0 has no"),
         "no question": ("open_qa.jsonl", json_lines([{"question": 7, "human_answers": ["!"]}]), "the record at index 0 has no"),
         "too many blank": ("open_qa.jsonl", json_lines([r | {"question": " "} for r in records[:4]] + records[4:]),
                            "the test split has 0 samples instead of 2")})


def vsfc() -> Case:
    texts = {"train": [("dễ hiểu . ", "2"), ("bình thường", "1"), ("khó\u2028quá", "0")], "dev": [("hay", "2")],
             "test": [("dở", "0"), ("tốt", "2")]}
    words = {"0": "tiêu cực", "1": "trung tính", "2": "tích cực"}
    raw, paths = {}, []
    for split, ids in (("train", ("1nzak5OkrheRV1ltOGCXkT671bmjODLhP", "1ye-gOZIBqXdKOoi_YxvpT6FeRNmViPPv")),
                       ("dev", ("1sMJSR3oRfPc3fe1gK-V3W5F24tov_517", "1GiY1AOp41dLXIIkgES4422AuDwmbUseL")),
                       ("test", ("1aNMOeZZbNwSRkjyCWAGtNCMa3YrshR-n", "1vkQS5gI0is4ACU58-AbWusnemw7KZNfO"))):
        for name, column in zip(("sents", "sentiments"), zip(*texts[split])):
            raw[f"{split}/{name}.txt"] = "".join(f"{line}\n" for line in column)
        paths += [f"/uc?export=download&id={id}" for id in ids]
    return Case(
        {'{"train": 11_426, "dev": 1_583, "test": 3_166}': '{"train": 3, "dev": 1, "test": 2}',
         "https://drive.google.com": "{url}"},
        raw, paths,
        {split: [chat(f"{FEEDBACK}\n\n{text.strip()}", words[label]) for text, label in texts[split]] for split in texts},
        {"labels too few": ("train/sentiments.txt", "2\n1\n", "train: 3 lines in sents.txt and 2 in sentiments.txt"),
         "broken line": ("train/sentiments.txt", "2\n\n0\n", "sentiments.txt, line 2: it has to be 0, 1 or 2, not ''"),
         "a page instead": ("dev/sentiments.txt", "<!DOCTYPE html>\n", "sentiments.txt, line 1: it has to be 0, 1 or 2")})


CASES = {make.__name__: make() for make in (gsm8k, vi_gsm8k, e2e, sst2, hc3_chinese, vsfc)}


# ----- a server, and a folder to run in -----

class Handler(BaseHTTPRequestHandler):
    """Serves server.files, with the headers that the hub's client wants to see."""

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
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
        for there, instead in CASES[name].script.items():
            assert there in script
            script = script.replace(there, instead.format(url=self.url) if "url" in instead else instead)
        (self.folder / "prepare.py").write_text(script, encoding="utf-8")
        (folder / "data" / "common.py").write_bytes((DATA / "common.py").read_bytes())
        # A client that waits before it tries again would make the tests wait too.
        (folder / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        self.env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(folder),
                     "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}

    def save_raw(self, files: dict[str, str]) -> str:
        for name, content in files.items():
            (self.raw / name).parent.mkdir(exist_ok=True)
            (self.raw / name).write_text(content, encoding="utf-8", newline="")
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
    assert done.stdout.endswith("".join(f"{sandbox.name}: {split}.jsonl, {len(n)} samples\n" for split, n in case.splits.items()))
    sandbox.check_samples()
    assert set(sandbox.server.requests) >= {f"GET {path}" for path in case.paths}

    before, sandbox.server.requests[:] = sandbox.written(), []
    done = sandbox.run()
    assert (done.returncode, done.stderr) == (0, "")
    counts = ", ".join(f"{split}.jsonl ({len(lines)})" for split, lines in case.splits.items())
    assert done.stdout == f"{sandbox.name}: {counts} already there, nothing to do\n"
    assert sandbox.server.requests == [] and sandbox.written() == before


@runs_on("vi_gsm8k", "vsfc")
def test_an_incomplete_result_is_made_again_from_the_kept_raw_files(sandbox):
    assert sandbox.run().returncode == 0
    (sandbox.folder / "test.jsonl").write_text("{}\n")  # one line instead of two
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
    if task["metric"] == "accuracy":        # each answer is a label, and each question names the labels, but in the docstring
        assert {line["messages"][-1]["content"] for line in sum(CASES[name].splits.values(), [])} == set(task["labels"])
        assert all(label in line["messages"][-2]["content"] for line in CASES[name].splits["train"] for label in task["labels"])


# ----- what does not: one line, exit code 2, nothing written -----

@runs_on("gsm8k", "vi_gsm8k")
def test_nobody_answers(sandbox):
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
    sandbox.server.withheld = 10  # fewer bytes come than the header promises
    assert "train.jsonl" in sandbox.fails()
    assert not (sandbox.folder / "raw").exists()


@runs_on("gsm8k")
def test_arguments_that_it_does_not_take(sandbox):
    assert "unrecognized arguments: two (python " in sandbox.fails("one", "two")


@runs_on(*CASES)
def test_raw_file_is_missing(sandbox):
    raw = dict(CASES[sandbox.name].raw)
    missing, _ = raw.popitem()
    assert f"{missing} is missing" in sandbox.fails(sandbox.save_raw(raw))


@pytest.mark.parametrize(("sandbox", "way"), [(name, way) for name, case in CASES.items() for way in case.wrong],
                         indirect=["sandbox"])
def test_wrong_raw_file(sandbox, way):
    """Counts that do not match, broken lines and records without their fields: each named as what it is."""
    name, text, message = CASES[sandbox.name].wrong[way]
    assert name in CASES[sandbox.name].raw and text != CASES[sandbox.name].raw[name]
    assert message in sandbox.fails(sandbox.save_raw(CASES[sandbox.name].raw | {name: text}))


@runs_on("gsm8k", "vsfc")
def test_what_is_there_survives_a_failure(sandbox):
    (sandbox.folder / "train.jsonl").write_text("mine\n")
    raw = CASES[sandbox.name].raw
    sandbox.fails(sandbox.save_raw(raw | {list(raw)[-1]: "{"}))
    assert (sandbox.folder / "train.jsonl").read_text() == "mine\n"


@runs_on("gsm8k")
def test_full_disk_leaves_both_splits_alone(sandbox):
    resource = pytest.importorskip("resource")  # a limit on the size of a file stands in for the disk: test.jsonl breaks it
    long_records = [gsm8k_record(0) | {"question": "?" * 5000}] * 2
    raw = sandbox.save_raw(CASES["gsm8k"].raw | {"test.jsonl": json_lines(long_records)})
    error = sandbox.fails(raw, preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert "cannot write" in error and "test.jsonl" in error
