r"""Measure a model on the test split of a data set: the test NLL, and the metric of the task.

    python evaluate.py --adapter out/3f087d1874 --data nano
    python evaluate.py --table out/eval_*.json          # several models side by side, in Markdown

    test NLL      nats per supervised token, as train.py logs it. In 16 bits the two differ by
                  rounding, because adapters are merged here (unless --nf4) and nothing is
                  autocast
    exact_match   maths: the share of answers whose final number is the reference's
    accuracy      classification: the share of right labels, counted in two ways
    bleu          corpus BLEU against any number of references, as sacrebleu has it

metrics.py has the rules of each. Without a metric the answers are written all the same, to be read.
The folder of a data set names its metric in task.json:

    {"metric": "exact_match"}
    {"metric": "accuracy", "labels": ["negative", "positive"]}
    {"metric": "bleu"}
    {"metric": null}                                    none, as if there were no task.json

A line of test.jsonl may hold "references": ["...", "..."] next to its "messages": all the right
answers. Without it, the assistant's message is the one right answer.

Why accuracy is counted in two ways. The written label is the first one in the model's answer: it is
what a user gets. The likeliest label is the one with the largest p(label | question): it is what
the model thinks, even where it would rather write a sentence, or anything that is not a label. A
base model often knows more than it writes. Fine-tuning teaches the task and also the form of the
answer, and the two numbers tell these apart.

The uncertainty of a share. If k of n answers are right, the table writes behind the ± how well n
answers tell the true share: sqrt(p (1 - p) / (n + 3)) with p = (k + 1) / (n + 2). For 80 of 400 it
is 0.02, so 20.0 ± 2.0 %, as the usual sqrt(p (1 - p) / n) with p = k / n has it. That would be 0 if
4 of 4 are right, as if four answers left no doubt; here it is 100.0 ± 14.1 %. (It is the standard
deviation of the true share if every share was equally likely before.) Two models that differ by one
such deviation may well be equally good. They answered the same questions, so comparing them
question by question says more: --out has the lines.

--out FILE.jsonl gets a line for each answer, so that one can read the mistakes, and FILE.json the
result. Each batch is added to the file when it is done. If the program is stopped, the same command
continues where it was.
"""
import hashlib
import json
import math
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

import dataset
from engine import default_base, generate_answers, mean_nll, open_model, room_for_prompt
from lora import remove_lora
from methods import method_that_reads, open_adapter, switch_adapter
from metrics import Task, judge_answer, summarize_answers
from plumbing.checkpoint import weight_files
from plumbing.cli import flag, parse_flags, run_command
from plumbing.device import DTYPES, choose_device
from plumbing.errors import UserError, errors_in_one_line
from plumbing.fields import Number, check, whole
from plumbing.files import (NANO_BASE, hash_file, read_json, read_tensors, replacing, resolve,
                            write_json)
from plumbing.records import read_rows_of
from plumbing.text import markdown_table, print_markdown
from plumbing.workers import claim_or_stop
from settings import SUPERVISE, Config

# Each metric, and how many tokens an answer may have: a calculation, a label, a sentence or two.
METRICS = {"exact_match": 256, "accuracy": 16, "bleu": 96}
TOKENS_WITHOUT_METRIC = 256
TASK = {"metric?": (*METRICS, None), "labels?": [str]}            # task.json


# ----- settings -----------------------------------------------------------------------------------

@dataclass
class Settings:
    model: str = flag(
        None, "folder, hub repository, or nano; default: the adapter's base, else nano")
    adapter: str = flag(None, "folder of an adapter for it")
    data: str = flag("nano", "name under data/, or a folder with train.jsonl and test.jsonl")
    limit: int = flag(
        None, "the first N test samples (for the NLL, of those that fit --max_length); "
        "default: all", at_least=1)
    batch: int = flag(16, "answers generated together", at_least=1)
    max_new_tokens: int = flag(
        None, "longest answer, in tokens; default: "
        + ", ".join(f"{most} for {metric}" for metric, most in METRICS.items())
        + f", {TOKENS_WITHOUT_METRIC} without a metric", at_least=1)
    max_length: int = flag(
        None, "tokens; for the test NLL longer samples are cut, as in train.py; default: as the "
        "run had it that made the weights, else 256", at_least=1)
    supervise: str = flag(
        None, "the answers that the test NLL is of, as in train.py; default: as the run had it, "
        "else last", choices=SUPERVISE)
    metric: str = flag(
        None, "default: what the data set's task.json says", choices=tuple(METRICS))
    labels: str = flag(None, "of accuracy, separated by commas; default: those of task.json")
    out: str = flag(
        None, "FILE.jsonl for the answers, FILE.json next to it for the result; "
        "default: out/eval_<settings>.jsonl")
    device: str = flag("auto", "cpu, cuda, cuda:1, mps ...; auto: cuda if there is one, else cpu")
    dtype: str = flag(
        "auto", "of the computation; auto: as in train.py, float32 on a CPU",
        choices=("auto", *DTYPES))
    nf4: bool = flag(
        False, "the base in four bits, as --method qlora trains on it; the adapter is not merged")
    table: list = flag(
        None, "print these results side by side, and nothing else",
        nargs="+", type=str, metavar="FILE.json")


def parse_evaluation(argv=None) -> Settings:
    settings = parse_flags(Settings, "evaluate.py", __doc__, argv)
    if settings.model is None:
        settings.model = default_base(settings.adapter)
    return settings


def take_settings_of_run(settings):
    """Measure the test NLL as the run did that made the weights, unless the flags say otherwise."""
    folder = Path(settings.adapter or resolve(settings.model))
    of_run = Config.of_run(folder)[0] if (folder / "run.json").exists() else Config()
    for name in ("max_length", "supervise"):
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(of_run, name))


# ----- the questions ------------------------------------------------------------------------------

class Question(NamedTuple):
    index: int                  # its place in test.jsonl, counted from 0
    messages: list[dict]        # the whole conversation; its last message is the reference answer
    references: list[str]       # the right answers


def read_task(folder: Path, metric: str | None = None, labels: str | None = None) -> Task:
    """What the data set's task.json says, unless the command line says otherwise."""
    path = folder / "task.json"
    given = read_json(path, TASK) if path.exists() else {}
    metric = metric or given.get("metric")
    if metric != "accuracy":
        return Task(metric, [])
    names = [name.strip() for name in labels.split(",")] if labels else given.get("labels")
    names = [unicodedata.normalize("NFC", name) for name in names or ()]
    if len(names) < 2 or not all(map(str.strip, names)) or len({*names}) < len(names):
        raise UserError("accuracy needs two or more labels, each once: --labels negative,positive, "
                        "or in the data set's task.json")
    return Task(metric, names)


def read_questions(path: Path, task, limit: int | None) -> list[Question]:
    """The first `limit` test samples. Raises UserError, with the line, for a wrong reference."""
    questions = []
    lines = zip(dataset.read_messages(path), dataset.numbered_lines(path))
    for index, (messages, (number, line)) in enumerate(lines):
        row = check(dataset.load_row(line), {"references?": [str]}, f"{path}, line {number}")
        references = row.get("references", [messages[-1]["content"]])
        if not all(map(str.strip, references or [""])):
            raise UserError(f"{path}, line {number}: the references (else the assistant's message "
                            "is the one) must be a list of at least one text, none of them empty")
        if task.metric == "accuracy":
            references = [unicodedata.normalize("NFC", text.strip()) for text in references]
            check(references, [tuple(task.labels)], f"{path}, line {number}", "references")
        questions.append(Question(index, messages, references))
    return questions[:limit]


# ----- the answers --------------------------------------------------------------------------------

def answer_questions(model, tokenizer, task, questions: list[Question],
                     rows: dict[int, dict], out: Path, settings):
    """Answer the questions that `rows` lacks. Add each batch to `rows` and to the file `out`.

    Answers are greedy: at each step the likeliest token, so the same model gives the same answers.

    The longest prompts go first. If something does not fit into memory, it shows at once and not
    after an hour. And the prompts of a batch are padded to the longest of them: neighbours in this
    order have similar lengths and need little padding.
    """
    todo = []
    for question in questions:
        if question.index not in rows:
            prompt = tokenizer.encode(dataset.prompt_of(question.messages[:-1], tokenizer))
            todo.append((question, prompt))
    todo.sort(key=lambda pair: len(pair[1]), reverse=True)
    if todo:
        question, prompt = todo[0]
        room = room_for_prompt(model, settings.max_new_tokens)
        if len(prompt) > room:
            raise UserError(f"test sample {question.index + 1} takes {len(prompt)} tokens, and "
                            f"next to --max_new_tokens the model has room for {room}")
    with (open(out, "a", encoding="utf-8", errors="backslashreplace") as file,
          tqdm(total=len(questions), initial=len(rows), unit="answer", disable=None,
               dynamic_ncols=True) as bar):
        for i in range(0, len(todo), settings.batch):
            batch = [question for question, _ in todo[i:i + settings.batch]]
            prompts = [prompt for _, prompt in todo[i:i + settings.batch]]
            start = time.perf_counter()
            new = answer_batch(model, tokenizer, task, batch, prompts, settings.max_new_tokens)
            seconds = (time.perf_counter() - start) / len(batch)
            for row in new:
                row["seconds"] = round(seconds, 4)          # an equal share of the batch's time
            file.write(answer_lines(new))
            file.flush()
            rows |= {row["index"]: row for row in new}
            bar.update(len(new))
            if "correct" in new[0]:
                right = sum(row["correct"] for row in rows.values())
                bar.set_postfix_str(f"{right / len(rows):.1%} right")


def answer_batch(model, tokenizer, task, questions, prompts, max_new_tokens) -> list[dict]:
    """A row of FILE.jsonl for each question, but for its seconds. prompts: lists of ids."""
    rows = []
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens)
    for question, answer in zip(questions, answers, strict=True):
        judged = judge_answer(task, question.messages, question.references, answer.text)
        rows.append({"index": question.index,
                     "question": dataset.question_of(question.messages[:-1]),
                     "references": question.references, "answer": answer.text, **judged,
                     "tokens": answer.tokens})
    if task.metric == "accuracy":
        labels = encode_labels(questions, task.labels, tokenizer)
        for row, nll in zip(rows, label_nll(model, prompts, labels).tolist()):
            row["nll"] = dict(zip(task.labels, nll))
            row["likeliest"] = min(row["nll"], key=row["nll"].get)
    return rows


def answer_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ----- accuracy: how likely each label is ---------------------------------------------------------

def encode_labels(questions, labels, tokenizer) -> list[list[list[int]]]:
    """For each question and label the ids of the label as an answer, with the end of the turn.

    The end belongs to it. Otherwise "good" would always be likelier than "good enough", because
    p(good enough) = p(good) p(enough | good).
    """
    encoded = []
    for question in questions:
        answers = []
        for label in labels:
            messages = [*question.messages[:-1], {"role": "assistant", "content": label}]
            sample = dataset.encode_sample(messages, tokenizer)
            answers.append(sample.ids[-sample.learned:])
        encoded.append(answers)
    return encoded


@torch.no_grad()
def label_nll(model, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """-log p(answer | prompt) in nats, for n possible answers to each of B prompts: (B, n).

    All prompts and answers are lists of ids. The answer's tokens are summed, not averaged:
    log p(a0 a1 | prompt) = log p(a0 | prompt) + log p(a1 | prompt a0).

    Prompts are long and labels short, so each prompt is computed once. Every answer then follows it
    in the cache, in the place of the answer before.
    """
    room = max(len(answer) for some in answers for answer in some)
    ids, cache = model.start_cache(prompts, room)                               # (B, P)
    last = model.hidden_after(ids, cache)[:, -1:]       # (B, 1, C): predicts an answer's first
    cache.used = ids.shape[1]
    nlls = []
    for answer in zip(*answers):                        # B lists of ids, one for each prompt
        ids, targets = dataset.pad_batch([dataset.Sample(row, row) for row in answer])  # (B, T)
        h = model.hidden_after(ids.to(model.device), cache)                     # (B, T, C)
        h = torch.cat((last, h[:, :-1]), dim=1)         # each predicts the token after it
        logits = model.lm_head(h).float().transpose(1, 2)                       # (B, V, T)
        nll = F.cross_entropy(logits, targets.to(model.device), reduction="none")   # (B, T)
        nlls.append(nll.sum(1))                         # 0 where targets are -100, the padding
    return torch.stack(nlls, dim=1)


# ----- one evaluation -----------------------------------------------------------------------------

def run_evaluation(settings) -> dict:
    """Measure what `settings` say -> the content of FILE.json. Raises UserError."""
    # ----- what is asked -----
    settings.device, settings.dtype = choose_device(settings.device, settings.dtype)
    take_settings_of_run(settings)
    folder = dataset.find_dataset(settings.data)
    task = read_task(folder, settings.metric, settings.labels)
    questions = read_questions(folder / "test.jsonl", task, settings.limit)
    if settings.max_new_tokens is None:
        settings.max_new_tokens = METRICS.get(task.metric, TOKENS_WITHOUT_METRIC)
    identity = describe_evaluation(settings, task, folder)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    out = Path(settings.out or f"out/eval_{digest[:10]}.jsonl")
    with claim_or_stop(out):
        return finish_evaluation(settings, task, folder, questions, identity, out)


def finish_evaluation(settings, task, folder: Path, questions, identity: dict, out: Path) -> dict:
    """Do what `out` lacks of the evaluation `identity` -> the content of FILE.json."""
    # ----- what has been done already -----
    path = out.with_suffix(".json")
    result = read_earlier_result(out, identity)
    if result["finished"]:
        print(f"{path} holds this evaluation, finished; delete it and {out.name} to make it again")
        return result
    rows = read_answers(out, task)

    # ----- the model, its test NLL, its answers -----
    model, tokenizer = open_adapted_model(settings)
    result |= describe_weights(settings.model, settings.adapter)
    try:
        if "test_nll" not in result:
            result |= measure_test_nll(model, tokenizer, folder / "test.jsonl", settings)
            write_json(path, result)
        answer_questions(model, tokenizer, task, questions, rows, out, settings)
        in_order = [rows[question.index] for question in questions]
        with replacing(out) as part:
            part.write_text(answer_lines(in_order), encoding="utf-8", errors="backslashreplace")
        result |= summarize_answers(task, in_order)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped with {len(rows)} of {len(questions)} answers; the same "
                                "command continues") from None
    result["finished"] = True
    write_json(path, result)
    print(f"{out} has every answer, {path.name} this result")
    return result


def open_adapted_model(settings):
    """The base, with the adapter merged: W + s B A is one matrix.

    Then a token costs no more than the base's, where B A apart would be two more products in every
    layer. A base in four bits is not merged. Rounding the sum to four bits again would lose most of
    B A, and keeping it in 16 bits would no longer be the model that was asked for.
    """
    model, tokenizer = open_model(settings.model, settings.device, settings.dtype, settings.nf4)
    if settings.adapter:
        switch_adapter(model, open_adapter(settings.adapter), merge=not settings.nf4)
        if not settings.nf4:
            remove_lora(model)          # the bases of merged layers need no memory any more
    return model, tokenizer


def measure_test_nll(model, tokenizer, path, settings) -> dict:
    """test_nll as train.py logs it; test_dropped: samples whose prompt alone fills --max_length."""
    samples, dropped = dataset.load_split(path, tokenizer, settings.max_length, settings.supervise)
    batches = dataset.micro_batches(samples[:settings.limit], settings.batch)
    return {"test_dropped": dropped, "test_nll": mean_nll(model, batches)}


# ----- what an evaluation is, and how far it has come ---------------------------------------------

def describe_evaluation(settings, task, folder: Path) -> dict:
    """All that decides the answers. Two evaluations with the same description are the same.

    The test file and the adapter count by their content. The weights of a model, which may have
    gigabytes, count by size and date.
    """
    names = ("model", "adapter", "data", "limit", "max_length", "max_new_tokens", "dtype", "nf4")
    description = {name: getattr(settings, name) for name in names} | task._asdict()
    if settings.supervise != "last":        # a later setting: earlier results keep their names
        description["supervise"] = settings.supervise
    weights = []
    for file in weight_files(resolve(settings.model)):
        weights.append((file.name, file.stat().st_size, file.stat().st_mtime))
    description["weights"] = hashlib.sha256(repr(weights).encode()).hexdigest()
    description["adapter_sha256"] = None
    if settings.adapter:
        adapter_file = Path(settings.adapter) / "adapter_model.safetensors"
        description["adapter_sha256"] = hash_file(adapter_file)
    description["test_sha256"] = hash_file(folder / "test.jsonl")
    return description


def read_earlier_result(out: Path, identity: dict) -> dict:
    """The result so far. Raises UserError if `out` holds another evaluation than `identity`."""
    path = out.with_suffix(".json")
    if not path.exists():
        if out.exists():
            raise UserError(f"{out} exists, but no {path.name} says what made it; give another "
                            "--out")
        return {"settings": identity, "finished": False}
    result = read_json(path, {"settings": dict, "finished": bool, "test_nll?": (int, float)})
    if result["finished"]:
        check(result, FINISHED, path)
    existing = result["settings"]
    different = [name for name in identity if existing.get(name) != identity[name]]
    if different:
        raise UserError(f"{path} holds another evaluation, with another {', '.join(different)}; "
                        f"give another --out, or delete it and {out.name}")
    return result


ANSWER = {          # of a line of FILE.jsonl
    "index": whole(), "answer": str, "references": [str], "tokens": whole(), "seconds": Number(0)}
JUDGED = {"exact_match": {"pred": str, "correct": bool},
          "accuracy": {"pred": str, "correct": bool, "likeliest": str}}


def read_answers(path: Path, task: Task) -> dict[int, dict]:
    """The answers so far, by index. A last line that a killed process left half written is cut."""
    data = path.read_bytes() if path.exists() else b""
    lines = data[:data.rfind(b"\n") + 1]
    try:
        rows = check([dataset.load_row(line) for line in lines.split(b"\n")[:-1]],
                     [ANSWER | JUDGED.get(task.metric, {})], "its rows")
    except ValueError as e:                     # UserError is one
        raise UserError(f"{path} is damaged ({e}); delete it and {path.with_suffix('.json').name} "
                        "to start over") from None
    if lines != data:
        with replacing(path) as part:
            part.write_bytes(lines)
    return {row["index"]: row for row in rows}


def describe_weights(model: str, adapter: str | None) -> dict:
    """How the weights came to be and what they cost: bytes on disk, trainable parameters, seconds.

    The run's own files say it. A checkpoint without them counts as pretrained.
    """
    folder = Path(adapter) if adapter else resolve(model)
    files = [folder / "adapter_model.safetensors"] if adapter else weight_files(folder)
    name = "nano" if resolve(model) == NANO_BASE else model
    result = {"model": name, "method": "pretrained", "rank": None, "trainable": 0,
              "bytes": sum(file.stat().st_size for file in files)}
    if adapter:
        tensors, config = read_tensors(files[0]), read_json(folder / "adapter_config.json")
        result |= {"method": method_that_reads(config, folder).name, "rank": config.get("r"),
                   "trainable": sum(tensor.numel() for tensor in tensors.values())}
    if (folder / "run.json").exists() and (folder / "log.csv").exists():
        of_run, run = Config.of_run(folder)
        last = read_rows_of(folder / "log.csv", of_run, run["run"], run["finished"])[-1]
        result |= {"model": name if adapter else last["model"], "method": last["method"],
                   "rank": last["rank"] or None, "trainable": last["trainable"],
                   "steps": last["step"], "train_seconds": last["seconds"]}
    return result


SHARE = Number(0, at_most=1)
FINISHED = {        # of FILE.json, what is printed
    "settings": {"data": str, "nf4": bool, "adapter?": (str, None)}, "finished": True,
    "model": str, "method": str, "rank": (whole(1), None), "trainable": whole(),
    "bytes": whole(), "test_nll": (int, float), "train_seconds?": Number(0), "n": whole(1),
    "exact_match?": SHARE, "accuracy?": SHARE, "accuracy_by_likelihood?": SHARE,
    "bleu?": Number(0), "labels?": [str], "confusion?": [[whole()]],
    "confusion_by_likelihood?": [[whole()]]}


# ----- printed output -----------------------------------------------------------------------------

METHOD_NAMES = {"lora": "LoRA", "qlora": "QLoRA"}       # others are called what they are called


def format_results(results: list[dict]) -> str:
    """A row for each evaluation, in Markdown: by data set, then by model, then by method."""
    def sort_key(result):
        cells = format_result(result)
        method = result["method"]
        return (cells["data"], cells["model"], method != "pretrained", method != "full", method,
                result["rank"] or 0)

    rows = [format_result(result) for result in sorted(results, key=sort_key)]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return markdown_table(columns, [[row[name] for name in columns] for row in rows],
                          text={"data", "model", "trained", "adapter"})


def format_result(result: dict) -> dict[str, str]:
    """The cells of one evaluation by column; "" where it has no such number."""
    model = Path(result["model"]).name
    if result["settings"]["nf4"]:
        model += ", NF4"
    trained = METHOD_NAMES.get(result["method"], result["method"])
    if result["rank"]:
        trained += f", r = {result['rank']}"
    return {
        "data": Path(result["settings"]["data"]).name,
        "model": model,
        "trained": trained,
        "adapter": result["settings"].get("adapter") or "",
        "parameters": f"{result['trainable']:,}" if result["trainable"] else "–",
        "on disk": f"{result['bytes'] / 1e6:,.1f} MB",
        "training": f"{result['train_seconds']:,.0f} s" if "train_seconds" in result else "–",
        "test NLL": f"{result['test_nll']:.4f}",
        "exact match": format_share(result, "exact_match"),
        "accuracy": format_share(result, "accuracy"),
        "by likelihood": format_share(result, "accuracy_by_likelihood"),
        "BLEU": f"{result['bleu']:.2f}" if "bleu" in result else "",
        "answers": f"{result['n']:,}"}


def format_share(result: dict, key: str) -> str:
    """A share of n answers and its standard deviation (see the top), in percent."""
    if key not in result:
        return ""
    share, n = result[key], result["n"]
    p = (share * n + 1) / (n + 2)
    return f"{100 * share:.1f} ± {100 * math.sqrt(p * (1 - p) / (n + 3)):.1f} %"


def format_confusion(labels: list[str], counts: list[list[int]], how: str) -> str:
    """A row for each right label, a column for each given one; "none" if it ever was."""
    n = len(labels)
    if [*map(len, counts)] != [n + 1] * n:
        raise UserError(f"the confusion matrix of a finished evaluation must be {n} x {n + 1}")
    given = [*labels, "none"] if any(row[-1] for row in counts) else labels
    rows = [[label, *map(str, row[:len(given)])] for label, row in zip(labels, counts)]
    return markdown_table([f"right \\ {how}", *given], rows, text={f"right \\ {how}"})


def print_result(result: dict):
    print_markdown("\n" + format_results([result]))
    for key, how in (("confusion", "written"), ("confusion_by_likelihood", "likeliest")):
        if key in result:
            print("\n" + format_confusion(result.get("labels", []), result[key], how))


def read_finished_results(paths: list[str]) -> list[dict]:
    """What --table compares. Names unfinished ones on stderr and leaves them out."""
    results = []
    for path in map(Path, paths):
        result = read_json(path)
        if result.get("finished") is not False:
            results.append(check(result, FINISHED, f"{path} is not the result of an evaluation, as "
                                 "the .json next to a .jsonl is"))
        else:
            print(f"{path} is left out: it is not finished", file=sys.stderr)
    if not results:
        raise UserError("--table: none of these evaluations is finished")
    return results


# ----- the command line ---------------------------------------------------------------------------

def main(argv=None):
    advice = "lower --batch, then give the same command again: it continues where this one stopped"
    with errors_in_one_line(advice):
        settings = parse_evaluation(argv)
        if settings.out and Path(settings.out).suffix != ".jsonl":
            raise UserError(f"--out {settings.out}: its name must end in .jsonl")
        if settings.table:
            print_markdown(format_results(read_finished_results(settings.table)))
        else:
            print_result(run_evaluation(settings))


if __name__ == "__main__":
    run_command(main)
