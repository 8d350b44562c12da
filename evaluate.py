r"""Measure a model by the test split of a data set: the test NLL, and the metric of the task.

    python evaluate.py --adapter out/3f087d1874 --data nano
    python evaluate.py --table out/eval_*.json              # several models side by side, as Markdown

    test NLL      nats a supervised token, as train.py logs it (in 16 bits to rounding: adapters are merged, nothing is autocast)
    exact_match   maths: the share of answers whose final number is the reference's (final_answer has the rule)
    accuracy      classification: the share of right labels, once as the model writes them and once as it thinks them likely
                  (behind ± the standard error of a share)
    bleu          corpus BLEU against several references, to the last digit sacrebleu's

The folder of a data set says in task.json which of them is its own: {"metric": "exact_match"}, {"metric": "accuracy", "labels":
["negative", "positive"]}, {"metric": "bleu"}, or null: the NLL alone. A line of test.jsonl may have beside its "messages"
"references": ["...", "..."], all the right answers; else the assistant's message is the one right answer.

--out, FILE.jsonl, has a line for each answer, so that one can read the mistakes, and FILE.json the result. Each batch is added
to the file when it is done: the same command goes on where a stopped one was.
"""
import contextlib
import hashlib
import json
import math
import sys
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import dataset
import train
from engine import base_of, generate_answers, open_model, room_for_prompt
from lora import load_adapter, merge_lora, read_tensors, remove_lora
from metrics import VIETNAMESE, confusion, corpus_bleu, final_answer, label_in
from plumbing.checkpoint import weight_files
from plumbing.cli import make_parser, run_command
from plumbing.device import DTYPES, choose_device
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import NANO_BASE, make_folder, read_json, replacing, resolve, write_json
from plumbing.records import read_rows as read_log

METRICS = {"exact_match": 256, "accuracy": 16, "bleu": 96}          # and how many tokens an answer may have


class Task(NamedTuple):
    metric: str | None
    labels: list[str]           # of accuracy; else none


class Question(NamedTuple):
    index: int                  # its place in test.jsonl, counted from 0
    messages: list[dict]
    references: list[str]       # the right answers


# ----- accuracy: labels weighed ---

@torch.no_grad()
def label_nll(model, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """-log p(answer | prompt) in nats, (B, n), of n possible answers to each of B prompts, all of them lists of ids.

    A sequence holds the prompt and all its answers, one behind the other. Each of them has the positions that follow the
    prompt's, and sees the prompt and itself: as if it stood there alone, at the price of one pass over the prompt, not n.
    """
    T = max(len(p) + sum(map(len, some)) for p, some in zip(prompts, answers))
    ids, positions, part = (torch.zeros(len(prompts), T, dtype=torch.long) for _ in range(3))
    scored = []                                     # (sequence, answer, place before the token, token)
    for b, (prompt, some) in enumerate(zip(prompts, answers)):
        end = P = len(prompt)
        ids[b, :P], positions[b, :P] = torch.tensor(prompt), torch.arange(P)
        for k, answer in enumerate(some):
            here = slice(end, end + len(answer))
            ids[b, here], positions[b, here], part[b, here] = torch.tensor(answer), torch.arange(P, P + len(answer)), k + 1
            scored += [(b, k, end + j - 1 if j else P - 1, token) for j, token in enumerate(answer)]
            end += len(answer)
    device = model.model.embed_tokens.weight.device
    mask = (part[:, None] == 0) | (part[:, None] == part[..., None])                            # (B, T, T); part 0: the prompt
    h = model.hidden(ids.to(device), positions.to(device), mask.tril()[:, None].to(device))     # (B, T, C)
    b, k, before, token = torch.tensor(scored, device=device).T
    logp = model.lm_head(h[b, before]).float().log_softmax(-1).gather(1, token[:, None])[:, 0]  # of the scored places alone
    return torch.zeros(len(prompts), len(answers[0]), device=device).index_put_((b, k), -logp, accumulate=True)


# ----- the questions ------------------------------------------------------------------------------------------------

def task_of(folder: Path, metric: str | None = None, labels: str | None = None) -> Task:
    """What the data set's task.json says, unless the command line says otherwise."""
    path = folder / "task.json"
    given = read_json(path) if path.exists() else {}
    metric = metric or given.get("metric")
    if metric not in (None, *METRICS):
        raise UserError(f"{path}: the metric {metric!r} is none of {', '.join(METRICS)}, nor null")
    if metric != "accuracy":
        return Task(metric, [])
    names = [label.strip() for label in labels.split(",")] if labels else given.get("labels")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(label, str) and label.strip() for label in names):
        raise UserError("accuracy needs at least two labels: --labels negative,positive, or in the data set's task.json")
    return Task(metric, [unicodedata.normalize("NFC", label) for label in names])


def read_questions(path: Path, task: Task, limit: int | None) -> list[Question]:
    questions = []
    for index, (messages, (number, line)) in enumerate(zip(dataset.read_messages(path), dataset.numbered(path))):
        references = json.loads(line).get("references", [messages[-1]["content"]])
        if not isinstance(references, list) or not references or not all(isinstance(r, str) and r.strip() for r in references):
            raise UserError(f"{path}, line {number}: the references (else the assistant's message is the one) have to be a list of "
                            "one text or more, none of them empty")
        if task.metric == "accuracy":
            references = [unicodedata.normalize("NFC", r.strip()) for r in references]
            if not set(references) <= set(task.labels):
                raise UserError(f"{path}, line {number}: the answer {references[0][:60]!r} is none of the labels "
                                f"{', '.join(task.labels)}")
        questions.append(Question(index, messages, references))
    return questions[:limit]


def judged(task: Task, question: Question, answer: str) -> dict:
    """What an answer is worth by itself; BLEU is of all of them together."""
    if task.metric == "exact_match":
        vietnamese = any(VIETNAMESE.search(unicodedata.normalize("NFC", m["content"]).lower()) for m in question.messages)
        got = final_answer(answer, vietnamese)
        return {"pred": str(got), "correct": any(got == final_answer(r, vietnamese) for r in question.references)}
    if task.metric == "accuracy":
        label = label_in(answer, task.labels)
        return {"pred": label, "correct": label in question.references}
    return {}


# ----- the answers --------------------------------------------------------------------------------------------------

def answer_all(model, tokenizer, task: Task, questions: list[Question], rows: dict[int, dict], out: Path, args):
    """Answer, greedily, the questions that `rows` lacks, and add each batch to `rows` and to the file `out`.

    The longest prompts go first, so that what does not fit shows at once, and neighbours in a batch need little padding.
    """
    todo = [(q, tokenizer.encode(dataset.prompt_of(q.messages, tokenizer))) for q in questions if q.index not in rows]
    todo.sort(key=lambda pair: len(pair[1]), reverse=True)
    if todo and len(todo[0][1]) > (room := room_for_prompt(model, args.max_new_tokens)):
        raise UserError(f"test sample {todo[0][0].index + 1} takes {len(todo[0][1])} tokens, and beside --max_new_tokens the model "
                        f"has room for {room}")
    with (open(out, "a", encoding="utf-8", errors="backslashreplace") as file,
          tqdm(total=len(questions), initial=len(rows), unit="answer", disable=None, dynamic_ncols=True) as bar):
        for i in range(0, len(todo), args.batch):
            start = time.perf_counter()
            batch = answered(model, tokenizer, task, *zip(*todo[i:i + args.batch]), args.max_new_tokens)
            seconds = (time.perf_counter() - start) / len(batch)
            batch = [row | {"seconds": round(seconds, 4)} for row in batch]
            file.write("".join(map(line_of, batch)))
            file.flush()
            rows |= {row["index"]: row for row in batch}
            bar.update(len(batch))
            if "correct" in batch[0]:
                bar.set_postfix_str(f"{sum(row['correct'] for row in rows.values()) / len(rows):.1%} right")


def line_of(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def answered(model, tokenizer, task: Task, questions: list[Question], prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
    """A row for each question of a batch."""
    rows = []
    for q, answer in zip(questions, generate_answers(model, tokenizer, prompts, max_new_tokens)):
        rows.append({"index": q.index, "question": q.messages[-2]["content"], "references": q.references, "answer": answer.text}
                    | judged(task, q, answer.text) | {"tokens": answer.tokens})
    if task.metric == "accuracy":
        said = [[dataset.encode([*q.messages[:-1], {"role": "assistant", "content": label}], tokenizer) for label in task.labels]
                for q in questions]
        nlls = label_nll(model, prompts, [[s.ids[s.start:] for s in some] for some in said]).tolist()
        for row, nll in zip(rows, nlls):
            row |= {"nll": dict(zip(task.labels, nll)), "likeliest": task.labels[nll.index(min(nll))]}
    return rows


def measured(task: Task, rows: list[dict]) -> dict:
    """The metric over all answers, shares being between 0 and 1."""
    result = {"n": len(rows)} | {f"answer_{key}": round(sum(row[key] for row in rows), 3) for key in ("tokens", "seconds")}
    if task.metric == "bleu":
        return result | {"bleu": corpus_bleu([row["answer"] for row in rows], [row["references"] for row in rows])}
    result[task.metric] = sum(row["correct"] for row in rows) / len(rows)
    if task.metric == "accuracy":
        written, likeliest = ([(row[key] if row[key] in row["references"] else row["references"][0], row[key]) for row in rows]
                              for key in ("pred", "likeliest"))             # (what was right, what was said)
        result |= {"accuracy_by_likelihood": sum(right == said for right, said in likeliest) / len(rows), "labels": task.labels,
                   "confusion": confusion(task.labels, written), "confusion_by_likelihood": confusion(task.labels, likeliest)}
    return result


# ----- one evaluation -----------------------------------------------------------------------------------------------

def evaluate(args) -> dict:
    """Measure what `args` describes -> the content of FILE.json. Raises UserError for what the user can mend."""
    # ----- what is asked -----
    args.device, args.dtype = choose_device(args.device, args.dtype)
    folder = dataset.find_dataset(args.data)
    task = task_of(folder, args.metric, args.labels)
    questions = read_questions(folder / "test.jsonl", task, args.limit)
    args.max_new_tokens = args.max_new_tokens or METRICS.get(task.metric)
    settings = settings_of(args, task, folder)
    out = Path(args.out or f"out/eval_{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]}.jsonl")
    result = begun(settings, out)
    if result["finished"]:
        print(f"{out.with_suffix('.json')} holds this evaluation, finished; delete it and {out.name} to make it anew")
        return result
    rows = read_rows(out)

    # ----- the model -----
    model, tokenizer = open_model(args.model, args.device, args.dtype, args.nf4)
    if args.adapter:
        load_adapter(model, args.adapter)
        if not args.nf4:            # merged, a token costs no more than the base's; four bits would have to become sixteen
            merge_lora(model)
            remove_lora(model)
    result |= weights_of(args.model, args.adapter)
    make_folder(out.parent)

    # ----- what it does -----
    try:
        if "test_nll" not in result:
            samples, result["test_dropped"] = dataset.load_split(folder / "test.jsonl", tokenizer, args.max_length)
            batches = dataset.micro_batches(samples[:args.limit], args.batch)
            result["test_nll"] = train.mean_nll(model, batches, contextlib.nullcontext)
            write_result(result, out)
        if task.metric:
            answer_all(model, tokenizer, task, questions, rows, out, args)
            rows = {q.index: rows[q.index] for q in questions}                                  # in the order of the test set
            with replacing(out) as part:
                part.write_text("".join(map(line_of, rows.values())), "utf-8", "backslashreplace")
            result |= measured(task, list(rows.values()))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped with {len(rows)} of {len(questions)} answers; the same command goes on") from None
    result["finished"] = True
    write_result(result, out)
    return result


def settings_of(args, task: Task, folder: Path) -> dict:
    """What decides the answers, the content of the test file and of the weights included (of a model's, size and date)."""
    names = ("model", "adapter", "data", "limit", "max_length", "max_new_tokens", "dtype", "nf4")
    weights = [(f.name, f.stat().st_size, f.stat().st_mtime) for f in weight_files(resolve(args.model))]
    return {name: getattr(args, name) for name in names} | task._asdict() | {
        "weights": hashlib.sha256(repr(weights).encode()).hexdigest(),
        "adapter_sha256": args.adapter and sha256(Path(args.adapter) / "adapter_model.safetensors"),
        "test_sha256": sha256(folder / "test.jsonl")}


def sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; is it the right folder?") from None


def begun(settings: dict, out: Path) -> dict:
    """The result as far as it is there. Raises UserError if `out` holds another evaluation."""
    path = out.with_suffix(".json")
    if path.exists():
        result = read_json(path)
        there = result.get("settings", {})
        if differ := [name for name in settings if there.get(name) != settings[name]]:
            raise UserError(f"{path} holds another evaluation, with another {', '.join(differ)}; give another --out, or delete it "
                            f"and {out.name}")
        return result
    if out.exists():
        raise UserError(f"{out} is there, and no {path.name} that says what made it; give another --out")
    return {"settings": settings, "finished": False}


def read_rows(path: Path) -> dict[int, dict]:
    """The answers that are there, by index. A last line that a killed process left half written is taken off the file."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[:data.rfind(b"\n") + 1]
    try:
        rows = {row["index"]: row for row in map(json.loads, whole.splitlines())}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged ({e}); delete it and {path.with_suffix('.json').name} to begin anew") from None
    if whole != data:
        with replacing(path) as part:
            part.write_bytes(whole)
    return rows


def write_result(result: dict, out: Path):
    write_json(out.with_suffix(".json"), result)


def weights_of(model: str, adapter: str | None) -> dict:
    """How the weights came to be, and what they cost: of the base that was trained, by what, its trainable parameters, seconds of
    training, bytes on disk. The run's own files say it; a checkpoint without them counts as pretrained."""
    folder = Path(adapter) if adapter else resolve(model)
    files = [folder / "adapter_model.safetensors"] if adapter else weight_files(folder)
    name = "nano" if resolve(model) == NANO_BASE else model
    result = {"model": name, "method": "pretrained", "rank": None, "trainable": 0, "bytes": sum(f.stat().st_size for f in files)}
    if adapter:
        result |= {"method": "lora", "rank": read_json(folder / "adapter_config.json").get("r"),
                   "trainable": sum(t.numel() for t in read_tensors(files[0]).values())}
    if (folder / "run.json").exists() and (folder / "log.csv").exists():
        last = read_log(folder / "log.csv")[-1]
        result |= {"model": name if adapter else last["model"], "method": last["method"],
                   "rank": int(last["rank"]) if last["rank"] else None, "trainable": int(last["trainable"]),
                   "steps": int(last["step"]), "train_seconds": last["seconds"]}
    return result


# ----- what one looks at --------------------------------------------------------------------------------------------

def share(result: dict, key: str) -> str:
    """A share with its standard error, sqrt(p (1 - p) / n), in percent."""
    if (p := result.get(key)) is None:
        return ""
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / result['n']):.1f} %"


NAMES = {"pretrained": "pretrained", "full": "full", "lora": "LoRA", "qlora": "QLoRA"}
CELLS = {
    "data": lambda r: Path(r["settings"]["data"]).name,
    "model": lambda r: Path(r["model"]).name + (", NF4" if r["settings"]["nf4"] else ""),
    "trained": lambda r: NAMES[r["method"]] + (f", r = {r['rank']}" if r["rank"] else ""),
    "parameters": lambda r: f"{r['trainable']:,}" if r["trainable"] else "–",
    "on disk": lambda r: f"{r['bytes'] / 1e6:,.1f} MB",
    "training": lambda r: f"{r['train_seconds']:,.0f} s" if "train_seconds" in r else "–",
    "test NLL": lambda r: f"{r['test_nll']:.4f}",
    "exact match": lambda r: share(r, "exact_match"),
    "accuracy": lambda r: share(r, "accuracy"),
    "by likelihood": lambda r: share(r, "accuracy_by_likelihood"),
    "BLEU": lambda r: f"{r['bleu']:.2f}" if "bleu" in r else "",
    "answers": lambda r: f"{r['n']:,}" if "n" in r else "",
}


def table(results: list[dict]) -> str:
    """Evaluations side by side, as Markdown: a data set after another; pretrained, full, LoRA."""
    order = list(NAMES)
    results = sorted(results, key=lambda r: (CELLS["data"](r), CELLS["model"](r), order.index(r["method"]), r["rank"] or 0))
    columns = [[name, *(cell(r) for r in results)] for name, cell in CELLS.items()]
    return markdown([column for column in columns if any(column[1:])], left=3)


def markdown(columns: list[list[str]], left: int) -> str:
    """A table from its columns, headings first; all but the first `left` are aligned to the right."""
    rows = []
    for i, column in enumerate(columns):
        width = max(map(len, column))
        rule = "-" * (width + 2) if i < left else "-" * (width + 1) + ":"
        cells = [f" {cell.ljust(width) if i < left else cell.rjust(width)} " for cell in column]
        rows.append([cells[0], rule, *cells[1:]])
    return "\n".join("|" + "|".join(cells) + "|" for cells in zip(*rows))


def matrix(labels: list[str], counts: list[list[int]], how: str) -> str:
    said = [[name, *map(str, column)] for name, column in zip((*labels, "none"), zip(*counts)) if name in labels or any(column)]
    return markdown([[f"right \\ {how}", *labels], *said], left=1)


def show(result: dict):
    print("\n" + table([result]))
    for key, how in (("confusion", "written"), ("confusion_by_likelihood", "likeliest")):
        if key in result:
            print("\n" + matrix(result["labels"], result[key], how))


def read_results(paths: list[str]) -> list[dict]:
    results = []
    for path in map(Path, paths):
        result = read_json(path)
        if "settings" not in result or "finished" not in result:
            raise UserError(f"{path} is no result of an evaluation; --table takes the .json beside the .jsonl")
        if result["finished"]:
            results.append(result)
        else:
            print(f"{path} is left out: it is not finished", file=sys.stderr)
    if not results:
        raise UserError("--table: none of these evaluations is finished")
    return results


# ----- the command line ---------------------------------------------------------------------------------------------

def parse(argv=None):
    parser = make_parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("--model", help="folder, hub repository, or nano; default: the adapter's base, else nano")
    add("--adapter", help="folder of an adapter for it")
    add("--data", default="nano", help="name under data/, or a folder with train.jsonl and test.jsonl (default: nano)")
    add("--limit", type=int, help="the first N test samples (for the NLL, of those that fit --max_length); default: all")
    add("--batch", type=int, default=16, help="answers at a time (default: 16)")
    add("--max_new_tokens", type=int, help="of an answer; default: " + ", ".join(f"{n} for {name}" for name, n in METRICS.items()))
    add("--max_length", type=int, default=256, help="tokens: for the test NLL longer samples are cut, as in train.py; default: 256")
    add("--metric", choices=METRICS, help="default: what the data set's task.json says")
    add("--labels", help="of accuracy, separated by commas; default: those of task.json")
    add("--out", help="FILE.jsonl for the answers, FILE.json beside it for the result; default: out/eval_<settings>.jsonl")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ...; auto: cuda if there is one, else cpu")
    add("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: as train.py has it, float32 on a CPU")
    add("--nf4", action="store_true", help="the base in four bits, as --method qlora trains on it; the adapter is not merged then")
    add("--table", nargs="+", metavar="FILE.json", help="print these results side by side, and nothing else")
    args = parser.parse_args(argv)
    args.model = args.model or (base_of(args.adapter) if args.adapter else "nano")
    return args


def check(args):
    """Raise UserError for a setting that cannot be meant."""
    for name in ("limit", "batch", "max_new_tokens", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: it has to be at least 1")
    if args.out and Path(args.out).suffix != ".jsonl":
        raise UserError(f"--out {args.out}: its name has to end in .jsonl")


def main(argv=None):
    with errors_in_one_line("lower --batch, then give the same command again: it goes on where this one stopped"):
        args = parse(argv)
        if args.table:
            print(table(read_results(args.table)))
        else:
            check(args)
            show(evaluate(args))


if __name__ == "__main__":
    run_command(main)
