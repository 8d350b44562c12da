"""Batches that change nothing, likelihoods that are transformers', evaluations that can be stopped
anywhere. How an answer is judged is in test_metrics.py."""
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, tiny
from runs import command, one_line, write_lines
from sacrebleu import corpus_bleu
from transformers import AutoModelForCausalLM

import dataset
import evaluate
import train
from lora import apply_lora, lora_layers, save_adapter
from metrics import Task
from model import Transformer
from plumbing.records import read_rows
from tokenizer import Tokenizer, stop_ids


def write_task(folder, samples, **task):
    """A data set of (question, answer) or (question, answer, references), and its task.json."""
    folder.mkdir()
    lines = []
    for question, answer, *references in samples:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        line = {"messages": messages}
        if references:
            line["references"] = references[0]
        lines.append(json.dumps(line) + "\n")
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(lines))
    if task:
        (folder / "task.json").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """48 questions for nano, some of which it answers right, in eight tokens or in twenty."""
    draw, samples = random.Random(0), []
    for i in range(48):
        a, b = draw.randint(2, 30), draw.randint(2, 20)
        questions = (f"Lan có {a} quả táo, mẹ cho thêm {b} quả. Hỏi Lan có tất cả bao nhiêu quả "
                     "táo?",
                     f"Tính {a} + {b}.",
                     f"Kể một câu chuyện về {a} con mèo.",
                     f"{a} + {b} = ?")
        samples.append((questions[i % 4], f"<think>{a} + {b} = {a + b}</think>\n{a + b}"))
    return write_task(tmp_path_factory.mktemp("sums") / "sums", samples, metric="exact_match")


@pytest.fixture(scope="module")
def nano():
    return Transformer.from_pretrained("nano", torch.float32), Tokenizer.from_pretrained("nano")


def run(*argv, **settings):
    """evaluate.py in this process -> (FILE.json, the rows of FILE.jsonl)."""
    evaluate.main([*map(str, argv), *(f"--{name}={value}" for name, value in settings.items())])
    out = settings["out"]
    return json.loads(out.with_suffix(".json").read_text()), read_lines(out)


def read_lines(path):
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def without_times(rows):
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


# ----- labels -------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("prompt_lengths", [(3, 17, 1, 9), (5, 5, 5, 5)])
def test_the_likelihood_of_labels_is_transformers(checkpoint, family, prompt_lengths):
    """Prompts and labels of all lengths, against each label by itself."""
    torch.manual_seed(1)
    prompts = [torch.randint(320, (length,)).tolist() for length in prompt_lengths]
    answers = []
    for lengths in ((1, 4, 2), (3, 1, 1), (2, 2, 6), (1, 1, 1)):
        answers.append([torch.randint(320, (length,)).tolist() for length in lengths])
    peer = AutoModelForCausalLM.from_pretrained(checkpoint(family))

    @torch.no_grad()
    def nll(prompt, answer):
        logits = peer(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1]
        return F.cross_entropy(logits, torch.tensor(answer), reduction="sum")

    expected = torch.tensor([[nll(prompt, answer) for answer in some]
                             for prompt, some in zip(prompts, answers)])
    ours = Transformer.from_pretrained(checkpoint(family))
    torch.testing.assert_close(
        evaluate.label_nll(ours, prompts, answers), expected, atol=1e-4, rtol=0)


def test_accuracy_in_both_ways(checkpoint, tmp_path):
    """The NLL of the right labels, over all their tokens, is the test NLL."""
    draw, samples = random.Random(1), []
    for n in range(30):
        subject = draw.choice(("he", "this here thing"))
        samples.append((f"Is {subject} {n}?", draw.choice(("no", "maybe", "yes"))))
    data = write_task(tmp_path / "data", samples, metric="accuracy", labels=["no", "yes", "maybe"])
    result, rows = run(model=checkpoint(), data=data, out=tmp_path / "out.jsonl", batch=7,
                       max_length=512)
    right = [answer for _, answer in samples]
    assert (result["method"], result["trainable"]) == ("pretrained", 0)
    assert result["bytes"] == (checkpoint() / "model.safetensors").stat().st_size

    tokenizer = Tokenizer.from_pretrained(checkpoint())
    encoded, _ = dataset.load_split(data / "test.jsonl", tokenizer, 512)
    tokens = sum(sample.learned for sample in encoded)
    nll = sum(row["nll"][label] for row, label in zip(rows, right))
    assert nll / tokens == pytest.approx(result["test_nll"], abs=1e-5)

    for row in rows:
        assert len(row["nll"]) == 3
        assert row["likeliest"] == min(row["nll"], key=row["nll"].get)
    likeliest = [row["likeliest"] for row in rows]
    hits = sum(a == b for a, b in zip(likeliest, right))
    assert result["accuracy_by_likelihood"] == hits / 30
    for i, label in enumerate(result["labels"]):
        for j, given in enumerate([*result["labels"], "none"]):
            count = list(zip(right, likeliest)).count((label, given))
            assert result["confusion_by_likelihood"][i][j] == count
    assert result["accuracy"] == sum(row["correct"] for row in rows) / 30
    assert sum(map(sum, result["confusion"])) == 30


def test_a_confusion_matrix_in_markdown():
    """The column "none" is left out where nobody gave it."""
    written = evaluate.format_confusion(["no", "yes"], [[0, 2, 0], [0, 1, 1]], "written")
    assert written.splitlines() == [
        "| right \\ written | no | yes | none |",
        "|-----------------|---:|----:|-----:|",
        "| no              |  0 |   2 |    0 |",
        "| yes             |  0 |   1 |    1 |"]
    without_none = evaluate.format_confusion(["no", "yes"], [[0, 2, 0], [0, 1, 0]], "written")
    assert "none" not in without_none and "| yes" in without_none


# ----- BLEU ---------------------------------------------------------------------------------------

def test_bleu_of_a_data_set(tmp_path):
    """All references count. The first one is the one whose NLL is the test NLL."""
    samples = []
    for n in range(2, 8):
        references = [f"{n + 1}", f"1 + {n} = {n + 1}.", f"1 + {n} = {n + 2}"]
        samples.append((f"1 + {n} = ?", f"{n + 1}", references))
    data = write_task(tmp_path / "data", samples, metric="bleu")
    result, rows = run(model="nano", data=data, out=tmp_path / "out.jsonl", max_new_tokens=12)
    references = [references for _, _, references in samples]
    streams = [list(stream) for stream in zip(*references)]
    expected = corpus_bleu([row["answer"] for row in rows], streams).score
    assert result["bleu"] == pytest.approx(expected, abs=1e-9)
    assert expected > 5
    assert [row["references"] for row in rows] == references


# ----- generation in batches ----------------------------------------------------------------------

def test_a_batch_takes_as_many_passes_as_one_answer(nano, sums, monkeypatch):
    """All weights are read once per pass, so sixteen answers take little longer than one."""
    model, tokenizer = nano
    conversations = dataset.read_messages(sums / "test.jsonl")[:16]
    prompts = [tokenizer.encode(dataset.prompt_of(m[:-1], tokenizer)) for m in conversations]
    hidden, sizes = Transformer.hidden, []

    def counted(model, ids, *more):
        sizes.append(len(ids))
        return hidden(model, ids, *more)

    monkeypatch.setattr(Transformer, "hidden", counted)
    model.generate(prompts, 12)
    assert sizes == [16] * 12


def test_answers_are_those_of_generate(nano, sums, tmp_path):
    """A batch at a time, the longest prompt first, and written in the test set's order.

    The prompts have many lengths, and answers end early and late.
    """
    result, rows = run(model="nano", data=sums, limit=20, batch=8, max_new_tokens=30,
                       out=tmp_path / "out.jsonl")
    model, tokenizer = nano
    conversations = dataset.read_messages(sums / "test.jsonl")[:20]
    for i, (row, messages) in enumerate(zip(rows, conversations, strict=True)):
        question, reference = [message["content"] for message in messages]
        assert (row["index"], row["question"], row["references"]) == (i, question, [reference])
        prompt = tokenizer.encode(
            tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True))
        new = model.generate([prompt], 30, stop_ids(tokenizer))[0][len(prompt):]
        assert row["answer"] == tokenizer.decode(new, skip_special=True).strip()
        assert row["tokens"] == len(new)
        last_number = re.findall("[0-9]+", row["answer"])[-1:]
        assert row["correct"] == (last_number == [reference.split("\n")[-1]]), row
    lengths = [row["tokens"] for row in rows]
    assert len(set(lengths)) > 4 and max(lengths) > 3 * min(lengths)
    right = sum(row["correct"] for row in rows)
    assert 3 < right < 17
    assert (result["exact_match"], result["n"], result["finished"]) == (right / 20, 20, True)


# ----- the test NLL, and adapters -----------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(checkpoint, chat, tmp_path_factory):
    """trained(method) -> the folder of a short run."""
    made = {}

    def make(method, **settings):
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method)
            train.main(command(checkpoint(), chat, made[method], method=method, **settings))
        return made[method]
    return make


@pytest.mark.parametrize("method, train_settings, flags", [
    ("lora", {"eval_samples": 6}, ["--limit=6"]), ("full", {}, []), ("qlora", {}, ["--nf4"])])
def test_the_test_nll_is_the_one_that_train_logged(checkpoint, chat, trained, tmp_path, method,
                                                   train_settings, flags):
    folder = trained(method, **train_settings)
    weights = folder / "adapter_model.safetensors"
    argv = ["--model", checkpoint(), "--adapter", folder]
    if method == "full":
        weights = folder / "model.safetensors"
        argv = ["--model", folder]
    result, rows = run(*argv, *flags, data=chat, out=tmp_path / "out.jsonl")
    logged = read_rows(folder / "log.csv")
    first, last = logged[0], logged[-1]
    assert abs(first["test_nll"] - last["test_nll"]) > 0.01
    assert result["test_nll"] == pytest.approx(last["test_nll"], abs=1e-5)
    expected = {"method": method, "trainable": last["trainable"], "steps": 6,
                "train_seconds": last["seconds"], "bytes": weights.stat().st_size,
                "rank": None if method == "full" else 4, "model": str(checkpoint())}
    assert {name: result[name] for name in expected} == expected
    # no metric is named: every answer is written, and none is judged
    questions = dataset.read_messages(chat / "test.jsonl")[:train_settings.get("eval_samples")]
    asked = [(row["question"], *row["references"]) for row in rows]
    assert asked == [(ask["content"], tell["content"]) for ask, tell in questions]
    assert all(row["tokens"] > 0 and "correct" not in row for row in rows)
    assert result["n"] == len(rows) and not set(evaluate.METRICS) & set(result)


def test_the_test_nll_of_all_answers(checkpoint, tmp_path):
    """A run with --supervise all logs it, and evaluate.py has it: with the same flag, or without
    one from the run's own settings, as also its --max_length."""
    sums = [f"{a} + {a + 3} = {2 * a + 3}." for a in range(12)]
    conversations = [[{"role": role, "content": text} for text in texts for role in
                      ("user", "assistant")] for texts in zip(*[iter(sums)] * 3)]
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", conversations)
    train.main(command(checkpoint(), tmp_path, tmp_path / "run", max_steps=1, supervise="all"))
    logged = read_rows(tmp_path / "run/log.csv")[0]["test_nll"]
    usual = {"model": checkpoint(), "data": tmp_path, "max_new_tokens": 4}
    every, _ = run(**usual, supervise="all", out=tmp_path / "all.jsonl")
    last, _ = run(**usual, out=tmp_path / "last.jsonl")
    assert every["test_nll"] == pytest.approx(logged, abs=1e-5)
    assert abs(last["test_nll"] - logged) > 0.01
    assert every["settings"]["supervise"] == "all" and "supervise" not in last["settings"]
    train.main(command(checkpoint(), tmp_path, tmp_path / "short", max_steps=1, supervise="all",
                       max_length=115))
    logged = read_rows(tmp_path / "short/log.csv")[-1]["test_nll"]
    own = usual | {"adapter": tmp_path / "short"}
    measured = [run(**own, **flags, out=tmp_path / f"{i}.jsonl")[0]["test_nll"]
                for i, flags in enumerate(({}, {"max_length": 256}, {"supervise": "last"}))]
    assert measured[0] == pytest.approx(logged, abs=1e-5)
    assert min(abs(nll - logged) for nll in measured[1:]) > 1e-3


def test_answers_without_a_metric_are_those_with_one(sums, tmp_path):
    """Also where task.json names none, and where there is no task.json."""
    usual = {"model": "nano", "limit": 6, "max_new_tokens": 20}
    judged, with_metric = run(**usual, data=sums, out=tmp_path / "judged.jsonl")
    test_nll = pytest.approx(judged["test_nll"], abs=1e-6)
    data = tmp_path / "data"
    shutil.copytree(sums, data)
    for name, task in (("null", '{"metric": null}'), ("missing", None)):
        (data / "task.json").unlink()
        if task:
            (data / "task.json").write_text(task)
        result, rows = run(**usual, data=data, out=tmp_path / f"{name}.jsonl")
        assert [row["answer"] for row in rows] == [row["answer"] for row in with_metric]
        assert [row["index"] for row in rows] == list(range(6))
        assert result["test_nll"] == test_nll and "exact_match" not in result
        assert (result["n"], result["answer_tokens"]) == (6, judged["answer_tokens"])
    assert "exact match" in evaluate.format_results([judged])
    table = evaluate.format_results([result])
    assert "exact match" not in table and f"{result['test_nll']:.4f}" in table


def test_an_adapter_of_others_has_a_size_and_no_training_time(checkpoint, chat, trained, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((trained("lora") / name).read_bytes())
    result, _ = run(model=checkpoint(), adapter=adapter, data=chat, out=tmp_path / "out.jsonl")
    logged = read_rows(trained("lora") / "log.csv")[-1]
    assert result["trainable"] == logged["trainable"]
    assert (result["rank"], result["method"]) == (4, "lora")
    assert "train_seconds" not in result and "–" in evaluate.format_results([result])


def test_merged_before_it_answers(checkpoint, chat, trained, tmp_path, monkeypatch):
    """No wrapper is left when the model answers, unless the base is in four bits."""
    adapter, wrapped = trained("lora"), []

    def count_layers(model, *_):
        wrapped.append(len(lora_layers(model)))
        return 0.0

    monkeypatch.setattr(evaluate, "mean_nll", count_layers)
    settings = {"model": checkpoint(), "adapter": adapter, "data": chat}
    run(**settings, out=tmp_path / "a.jsonl")
    run("--nf4", **settings, out=tmp_path / "b.jsonl")
    assert wrapped == [0, 14]


# ----- stopping and continuing --------------------------------------------------------------------

def test_a_killed_evaluation_continues(sums, tmp_path, monkeypatch):
    """Cut in the middle of a line: what was whole is kept, the rest is answered, nothing twice."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    settings = {"model": "nano", "data": sums, "limit": 24, "batch": 4, "max_new_tokens": 20}
    expected, rows = run(**settings, out=whole)

    order = sorted(rows, key=lambda row: row["seconds"])    # any order, as batches are appended
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in order]
    data = "".join(lines).encode()
    out.write_bytes(data[:len(data) * 2 // 3])
    kept = [row["index"] for row in order[:out.read_bytes().count(b"\n")]]
    assert not out.read_bytes().endswith(b"\n") and 12 < len(kept) < 20
    unfinished = {name: expected[name] for name in ("settings", "test_nll")} | {"finished": False}
    out.with_suffix(".json").write_text(json.dumps(unfinished))

    asked, answer_batch = [], evaluate.answer_batch

    def watched(model, tokenizer, task, questions, *more):
        asked.extend(question.index for question in questions)
        return answer_batch(model, tokenizer, task, questions, *more)

    monkeypatch.setattr(evaluate, "answer_batch", watched)
    monkeypatch.setattr(evaluate, "mean_nll", None)         # known already, so it is not called
    result, again = run(**settings, out=out)
    assert sorted(asked) == sorted(set(range(24)) - set(kept))
    assert without_times(again) == without_times(rows)
    assert result["exact_match"] == expected["exact_match"]
    before = out.read_bytes()
    assert run(**settings, out=out)[0] == result            # finished: nothing is done
    assert out.read_bytes() == before


def test_ctrl_c_in_the_middle(sums, tmp_path):
    """A process of its own: it says that the same command continues, and so it does."""
    out = tmp_path / "out" / "answers.jsonl"                # a folder that does not exist yet
    argv = ["--model=nano", f"--data={sums}", "--batch=1", "--max_new_tokens=24", f"--out={out}"]
    process = subprocess.Popen(
        [sys.executable, REPO / "evaluate.py", *argv], text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and len(read_whole_lines(out)) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    shown, error = process.communicate()
    answered = [row["index"] for row in read_lines(out)]
    assert process.returncode == 130 and "Traceback" not in error and shown == ""
    assert error.endswith(
        f"stopped with {len(answered)} of 48 answers; the same command continues\n")
    assert 2 < len(answered) < 48

    tokenizer = Tokenizer.from_pretrained("nano")
    lengths = []
    for messages in dataset.read_messages(sums / "test.jsonl"):
        lengths.append(len(tokenizer.encode(dataset.prompt_of(messages[:-1], tokenizer))))
    longest_first = sorted(lengths, reverse=True)
    assert [lengths[i] for i in answered] == longest_first[:len(answered)]
    evaluate.main(argv)
    assert [row["index"] for row in read_lines(out)] == list(range(48))


def read_whole_lines(path):
    data = path.read_bytes() if path.exists() else b""
    return data.split(b"\n")[:-1]


def test_nothing_is_mixed(sums, checkpoint, tmp_path, fails):
    """With another setting or other weights it is another evaluation, and is refused."""
    out = tmp_path / "out.jsonl"
    settings = {"model": "nano", "data": sums, "limit": 2, "max_new_tokens": 3, "out": out}
    run(**settings)
    before = out.read_bytes(), out.with_suffix(".json").read_bytes()
    changes = {"limit": 3, "max_new_tokens": 4, "model": checkpoint(), "dtype": "bfloat16",
               "max_length": 99}
    for name, value in changes.items():
        error = fails(**settings | {name: value})
        assert f"holds another evaluation, with another {name}" in error
        assert "; give another --out, or delete it and out.jsonl" in error
    assert (out.read_bytes(), out.with_suffix(".json").read_bytes()) == before

    task = Task("bleu", [])
    described = [evaluate.describe_evaluation(evaluate.parse_evaluation(argv), task, sums)
                 for argv in (["--limit=2"], [])]
    assert described[0] != described[1]

    adapter, other = tmp_path / "adapter", tmp_path / "adapter.jsonl"
    settings_of_other = settings | {"model": checkpoint(), "adapter": adapter, "out": other}
    save_constant_adapter(checkpoint(), adapter, 0.0)
    run(**settings_of_other)
    save_constant_adapter(checkpoint(), adapter, 0.1)       # other weights in the same folder
    assert "another adapter_sha256" in fails(**settings_of_other)

    out.with_suffix(".json").unlink()
    assert "no out.json says what made it" in fails(**settings)
    out.write_text('{"no": "index"}\n')
    unfinished = before[1].replace(b'"finished": true', b'"finished": false')
    out.with_suffix(".json").write_bytes(unfinished)
    assert "is damaged" in fails(**settings)


def save_constant_adapter(base, folder, value):
    model = apply_lora(Transformer.from_pretrained(base), 2)
    first = next(iter(lora_layers(model).values()))
    torch.nn.init.constant_(first.lora_B, value)
    save_adapter(model, folder, str(base))


# ----- the table ----------------------------------------------------------------------------------

TABLE = """\
| data | model  | trained    | parameters | on disk | training | test NLL | exact match | answers |
|------|--------|------------|-----------:|--------:|---------:|---------:|------------:|--------:|
| sums | m      | full       |    974,000 |  1.9 MB |  1,234 s |   0.5000 | 5.0 ± 1.0 % |     475 |
| sums | m, NF4 | pretrained |          – |  1.9 MB |        – |   1.2346 |             |     475 |
"""
WITH_ADAPTER = """\
| data | model  | trained     | adapter  | parameters | on disk | training | test NLL | answers |
|------|--------|-------------|----------|-----------:|--------:|---------:|---------:|--------:|
| sums | m      | LoRA, r = 4 | out/3f08 |      9,000 |  1.9 MB |     61 s |   1.2346 |     475 |
| sums | m, NF4 | pretrained  |          |          – |  1.9 MB |        – |   1.2346 |     475 |
"""


def test_the_table(tmp_path, capsys):
    """By data set, model and method. A number that no model has gets no column.

    sqrt(0.05 * 0.95 / 475) is 0.01.
    """
    base = {"model": "/models/m", "method": "pretrained", "rank": None, "trainable": 0,
            "bytes": 1_940_000, "test_nll": 1.23456, "finished": True, "n": 475,
            "settings": {"data": "/data/sums", "nf4": False}}
    full = {"method": "full", "trainable": 974_000, "train_seconds": 1234.4, "test_nll": 0.5,
            "exact_match": 0.05}
    lora = {"method": "lora", "rank": 4, "trainable": 9_000, "train_seconds": 61.2,
            "settings": {"data": "sums", "nf4": False, "adapter": "out/3f08"}}
    nf4 = {"settings": {"data": "sums", "nf4": True, "adapter": None}}
    changes = [nf4, lora, full, {"finished": False}]
    files = [tmp_path / f"{i}.json" for i in range(4)]
    for file, some in zip(files, changes, strict=True):
        file.write_text(json.dumps(base | some))
    evaluate.main(["--table", str(files[0]), *map(str, files[2:])])
    assert capsys.readouterr() == (TABLE, f"{files[3]} is left out: it is not finished\n")
    evaluate.main(["--table", *map(str, files[:2])])
    assert capsys.readouterr().out == WITH_ADAPTER


# ----- what a user can get wrong ------------------------------------------------------------------

@pytest.fixture
def fails(capsys):
    """fails(*argv, **settings) -> the one line on stderr, exit code 2."""
    def refused(*argv, **settings):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            run(*argv, **settings)
        return one_line(e.value.code, capsys.readouterr().err)
    return refused


MISTAKES = {
    "--limit=0": "--limit 0: it must be a whole number, at least 1",
    "--batch=0": "--batch 0",
    "--max_new_tokens=-1": "--max_new_tokens -1",
    "--max_length=0": "--max_length 0",
    "--limit=x": "--limit: invalid int",
    "--metric=rouge": "--metric: invalid choice: 'rouge'",
    "--out=answers.txt": "must end in .jsonl",
    "--data=nowhere": "--data nowhere: no folder with train.jsonl",
    "--model=nowhere": "nowhere: no such folder",
    "--adapter=nowhere": "nowhere: no such folder",
    "--metric=accuracy": "accuracy needs two or more labels, each once",
    "--metric=accuracy --labels=one": "two or more labels",
    "--metric=accuracy --labels=yes,no,yes": "each once",
    "--metric=accuracy --labels=1,2": "line 1: references[0] ",
    "--device=banana": "--device banana: torch cannot use",
    "--table=nowhere.json": "has no nowhere.json",
    "--lmiit=3": "unrecognized arguments: --lmiit=3",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_settings(checkpoint, chat, tmp_path, fails, flags):
    usual = [f"--model={checkpoint()}", f"--data={chat}", f"--out={tmp_path / 'out.jsonl'}"]
    assert MISTAKES[flags] in fails(*usual, *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_a_question_that_the_context_does_not_hold(tmp_path, fails):
    samples = [("1?", "1"), ("one and " * 600, "2")]
    data = write_task(tmp_path / "data", samples, metric="exact_match")
    error = fails(model="nano", data=data, out=tmp_path / "out.jsonl")
    assert "test sample 2 takes" in error and f"has room for {1024 - 256}\n" in error


def test_an_adapter_for_another_base(chat, trained, tmp_path, fails):
    other = tiny("qwen2", tmp_path, hidden_size=64)
    error = fails(model=other, adapter=trained("lora"), data=chat, out=tmp_path / "out.jsonl")
    assert "the adapter is for another base" in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("references", [[], "one", ["", " "], [1]])
def test_references_that_are_none(checkpoint, tmp_path, fails, references):
    data = write_task(tmp_path / "data", [("a", "b"), ("a", "b", references)], metric="bleu")
    error = fails(model=checkpoint(), data=data)
    assert re.search(r"test.jsonl, line 2: (the )?references(\[0\])? ", error)


def test_a_task_that_is_none(checkpoint, tmp_path, fails):
    data = write_task(tmp_path / "data", [("a", "b")], metric="rouge")
    task = data / "task.json"
    error = fails(model=checkpoint(), data=data)
    assert "task.json: metric 'rouge': it must be exact_match or accuracy or" in error
    task.write_text('{"metric": "accuracy", "labels": "b"}')
    assert "labels 'b': it must be a list" in fails(model=checkpoint(), data=data)
    task.write_text('{"metric": ')
    assert "task.json is not valid JSON" in fails(model=checkpoint(), data=data)


@pytest.mark.parametrize("content", ['{"a": 1}', '{"settings": {}, "finished": true}'])
def test_a_table_of_something_else(tmp_path, fails, content):
    """The second is what a run.json holds."""
    (tmp_path / "some.json").write_text(content)
    assert "is not the result of an evaluation" in fails(table=tmp_path / "some.json")


def test_out_of_memory_names_the_flag(sums, tmp_path, fails, monkeypatch):
    def run_out(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate, "answer_batch", run_out)
    assert "lower --batch" in fails(model="nano", data=sums, limit=2, out=tmp_path / "out.jsonl")


@pytest.mark.parametrize("right, n, text", [
    (4, 4, "100.0 ± 14.1 %"), (0, 4, "0.0 ± 14.1 %"), (80, 400, "20.0 ± 2.0 %"),
    (1, 2, "50.0 ± 22.4 %")])
def test_a_share_is_as_uncertain_as_its_answers_are_few(right, n, text):
    """Against the distribution of the true share, on a fine grid. sqrt(p (1 - p) / n) says 0."""
    import numpy as np
    share = (np.arange(20_000) + 0.5) / 20_000
    weight = share ** right * (1 - share) ** (n - right)
    mean = (weight * share).sum() / weight.sum()
    sd = ((weight * (share - mean) ** 2).sum() / weight.sum()) ** 0.5
    assert text == f"{100 * right / n:.1f} ± {100 * sd:.1f} %"
    assert evaluate.format_share({"accuracy": right / n, "n": n}, "accuracy") == text
