"""Files as strangers, faults and mistakes leave them: a seeded mutator, and what must come of it.

    python tests/hostile.py 50000 [first seed]      # the long form of tests/test_fuzz.py

A mutant is one file of a small valid set (a checkpoint, an adapter, a run, a sweep, an evaluation,
a data set, a grid), changed in structure, type, size or bytes. A command then reads it. It must end
with exit code 0, or with 2 and one line, and compute for at most LIMIT seconds, and no file but its
own may change, also in the working directory. (1 is for a sweep whose runs failed: none runs here.)
One that takes HANG seconds, because it waits, ends everything, and where it waits is printed.
"""
import contextlib
import faulthandler
import functools
import io
import json
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from conftest import REPO, tiny  # first: it makes the rooms of the house importable
import torch
from adapters import save_tasks
from runs import command, contents, write_chat
from safetensors import safe_open
from safetensors.torch import save_file

import analyze
import evaluate
import export
import plan
import plot
import sample
import sweep
import train
from engine import load_quantized, save_quantized
from methods import Setup, find_method, put_on
from model import Transformer
from settings import RELATIVES

sys.path.insert(0, str(REPO / "data"))
import check  # noqa: E402

LIMIT = 10          # seconds of computing: a busy machine is no hang
HANG = 60           # seconds of the clock
ODD = [None, True, False, 0, -1, 1, 2, 7, 10 ** 9, 10 ** 400, -2.5, 1e-40, 1e300, float("nan"),
       float("inf"), "", "x", "8", "false", "nan", "../x", "\ud800", "\x00", "(a+)+$", "[", "{{ 1",
       [], [[]], ["x"], [None], {}, {"x": 1}, {"": []}, "é" * 300, [0] * 300, {"type": "NFKC"}]


# ----- the mutator --------------------------------------------------------------------------------

def mutate_file(path: Path, draw: random.Random):
    """Change one file: as JSON, text or tensors where it is that, or as bytes."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and draw.random() < 0.8:
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        i = draw.randrange(len(lines))
        content = mutate_json(json.loads(lines[i]), draw)
        lines[i] = json.dumps(content)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix in (".csv", ".toml", ".jinja") and draw.random() < 0.8:
        path.write_text(mutate_text(data.decode(), draw))
    elif path.suffix == ".safetensors" and draw.random() < 0.8:
        mutate_tensors(path, draw)
    else:
        path.write_bytes(mutate_bytes(data, draw))


def mutate_json(content, draw: random.Random):
    """One change, somewhere: a value replaced, taken out, doubled, renamed or nudged."""
    places = list(places_in(content))
    if not places:
        return draw.choice(ODD)
    for _ in range(draw.choice((1, 1, 1, 2))):
        parent, key = draw.choice(places)
        what = draw.randrange(6)
        try:
            if what == 0:
                del parent[key]
            elif what == 1 and isinstance(parent, dict):
                parent[f"{key}{draw.choice(['', 'x', '.y'])}"] = parent.pop(key)
            elif what == 2 and isinstance(parent, list):
                parent.insert(draw.randrange(len(parent) + 1), parent[key])
            elif what == 3 and isinstance(parent[key], int | float):
                parent[key] = parent[key] * draw.choice((-1, 0, 2, 0.5, 1000, 1e30)) + 1
            elif what == 3 and isinstance(parent[key], str):
                parent[key] = mutate_text(parent[key], draw)
            else:
                parent[key] = draw.choice(ODD)
        except (KeyError, IndexError):
            pass                        # the first of two changes has taken it out
    return content


def places_in(content, limit=400):
    """(table or list, key) of every value, of long lists the first ones."""
    pairs = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    for key, value in pairs[:limit]:
        yield content, key
        yield from places_in(value, 20)


def mutate_text(text: str, draw: random.Random) -> str:
    pieces = ["", ",", "\n", '"', "nan", "inf", "-1", "1e999", "9" * 400, "x", "\x00", "$\\frac{",
              "{%", "}}", "[[", "=", "é", " " * 2000, "(", "*", "\\p{"]
    for _ in range(draw.choice((1, 1, 2, 5))):
        a = draw.randrange(len(text) + 1)
        b = min(len(text), a + draw.choice((0, 1, 1, 5, 40)))
        text = text[:a] + draw.choice(pieces) + text[b:]
    return text


def mutate_tensors(path: Path, draw: random.Random):
    """One tensor taken out, renamed, of another shape or type, or not finite; or the progress."""
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
        tensors = {name: f.get_tensor(name).clone() for name in f.keys()}
    name = draw.choice(sorted(tensors))
    tensor, what = tensors.pop(name), draw.randrange(6)
    flat = tensor.reshape(-1)
    if what == 1:
        name += draw.choice(("x", "/x", ".weight"))
    elif what == 2:
        tensor = draw.choice((flat[:1], flat[:0], flat[0], flat, flat[1:], torch.cat((flat, flat)),
                              tensor[None], tensor.mT if tensor.ndim > 1 else tensor))
    elif what == 3:
        tensor = tensor.to(draw.choice((torch.float64, torch.bfloat16, torch.int64, torch.uint8,
                                        torch.bool, torch.complex64, torch.float8_e4m3fn)))
    elif what == 4 and tensor.is_floating_point():
        flat[draw.randrange(len(flat))] = draw.choice((float("nan"), float("inf"), float("-inf")))
    elif what == 5 and "progress" in (metadata or {}):
        metadata["progress"] = json.dumps(mutate_json(json.loads(metadata["progress"]), draw))
    if what != 0:
        tensors[name] = tensor.contiguous()
    save_file(tensors, path, metadata)


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    what, n = draw.randrange(6), len(data)
    a = draw.randrange(n + 1)
    if draw.random() < 0.5:
        a = min(a, draw.randrange(400))         # the header, where there is one
    if what == 0:
        return data[:a]
    if what == 1:
        return data[:a] + draw.randbytes(draw.choice((1, 8, 100))) + data[a:]
    if what == 2:
        return data[:a] + data[a + draw.choice((1, 8, 100)):]
    if what == 3:
        return draw.choice((b"", b"\n", b"\xff\xfe", data * 2, draw.randbytes(100)))
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 50))):
        if changed:
            at = min(a + draw.randrange(30), n - 1)
            changed[at] = draw.randrange(256) if what == 4 else changed[at] ^ 1 << draw.randrange(8)
    return bytes(changed)


# ----- what is mutated, and who reads it ----------------------------------------------------------

def make_valid_files(folder: Path) -> Path:
    """One of each kind, small and valid."""
    (folder / "data").mkdir(parents=True)
    write_chat(folder / "data", 20, 4)
    tiny("qwen2", folder / "model")
    tiny("llama", folder / "llama", num_hidden_layers=1, shard="20KB", rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    save_tasks(folder / "model", folder / "tasks")
    save_relatives(folder / "model", folder / "relatives")
    save_quantized(load_quantized(folder / "model"), folder / "quantized")
    for path in (folder / "model").glob("tokenizer*"):
        shutil.copy(path, folder / "quantized")
    pairs = [{"instruction": f"{i} + 2?", "input": "", "output": str(i + 2)} for i in range(5)]
    (folder / "data/alpaca.json").write_text(json.dumps(pairs))
    turns = [{"conversations": [{"from": "human", "value": pair["instruction"]},
                                {"from": "gpt", "value": pair["output"]}]} for pair in pairs]
    (folder / "data/sharegpt.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (folder / "data/pairs.csv").write_text("Question;Answer\n" + "".join(
        f"{pair['instruction']};{pair['output']}\n" for pair in pairs))
    with quiet():
        train.train(train.parse(command(folder / "model", folder / "data", folder / "run",
                                        max_steps=2)))
        stop_after_one_step(folder)
        (folder / "grid.toml").write_text(
            f'flags = "--model {folder}/model --data {folder}/data --max_steps 2 --eval_steps 1 '
            '--device cpu --gradient_checkpointing"\n[[g]]\nmethod = "lora"\nrank = 2\n'
            'lr = [1e-3, 1e-2]\nschedule = "linear"\n')
        code_of(sweep.main, ["--grid", folder / "grid.toml", "--out", folder / "sweep",
                             "--jobs=1"])
        code_of(evaluate.main, ["--model", folder / "model", "--data", folder / "data", "--limit=2",
                                "--max_new_tokens=2", "--out", folder / "eval/e.jsonl"])
        write_labels(folder / "labels")
        code_of(evaluate.main, ["--model", folder / "model", "--data", folder / "labels",
                                "--max_new_tokens=2", "--out", folder / "judged/e.jsonl"])
    return folder


def save_relatives(base: Path, folder: Path):
    """An adapter of each method whose files are not LoRA's."""
    for name in sorted({*RELATIVES} - {"lora", "rslora", "loraplus"}):
        model, method = Transformer.from_pretrained(base), find_method(name)
        setup = Setup(2, 2.0, "all-linear", dict(method.options), steps=10)
        put_on(model, method, setup)
        method.save(model, folder / name, str(base), setup)


def write_labels(folder: Path):
    """A data set that is judged by accuracy."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"messages": [{"role": "user", "content": question},
                              {"role": "assistant", "content": answer}], "references": [answer]}
                for question, answer in (("tốt?", "yes"), ("xấu?", "no"), ("?", "yes"))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.json").write_text('{"metric": "accuracy", "labels": ["yes", "no"]}')


def stop_after_one_step(folder: Path):
    """A run that was interrupted: its state is there."""
    real = train.make_step

    def step(run):
        nll = real(run)
        signal.raise_signal(signal.SIGINT)
        return nll

    train.make_step = step
    try:
        code_of(train.main, command(folder / "model", folder / "data", folder / "stopped",
                                    max_steps=3, eval_steps=1))
    finally:
        train.make_step = real


def cases(folder: Path) -> dict:
    """{kind: (the files that are mutated, the command that reads them, its arguments)}"""
    model, llama, quantized, data, sums = (
        folder / name for name in ("model", "llama", "quantized", "data", "tasks/sums"))
    fresh = command(model, data, folder / "new", max_steps=1)
    return {
        "config": ([model / "config.json"], plan.main,
                   ["--model", model, "--max_steps=1", "--gpus=1,8", "--fsdp"]),
        "llama": ([llama / "config.json", llama / "model.safetensors.index.json",
                   *sorted(llama.glob("model-*.safetensors"))],
                  train.main, command(llama, data, folder / "new", max_steps=1)),
        "checkpoint": ([model / "config.json", model / "model.safetensors",
                        model / "generation_config.json"], train.main, fresh),
        "full": ([model / "config.json", model / "generation_config.json"], train.main,
                 [*fresh, "--method=full"]),
        "tokenizer": ([model / "tokenizer.json", model / "tokenizer_config.json"], sample.main,
                      ["--model", model, "--max_new_tokens=2", "Lan có 2 quả táo?"]),
        "adapter": ([sums / "adapter_config.json", sums / "adapter_model.safetensors"], sample.main,
                    ["--model", model, "--adapter", sums, "--max_new_tokens=2", "hi"]),
        "export": ([sums / "adapter_config.json", sums / "adapter_model.safetensors",
                    model / "config.json"], export.main,
                   ["--adapter", sums, "--out", folder / "new"]),
        "data": ([data / "train.jsonl", data / "test.jsonl"], train.main, fresh),
        "finished": ([folder / "run/run.json", folder / "run/log.csv"], train.main,
                     command(model, data, folder / "run", max_steps=2)),
        "curve": ([folder / "run/run.json", folder / "run/log.csv"], plot.main, [folder / "run"]),
        "resume": ([folder / "stopped/run.json", folder / "stopped/log.csv",
                    folder / "stopped/state/state.safetensors"], train.main,
                   command(model, data, folder / "stopped", "--resume", max_steps=3,
                           eval_steps=1)),
        "sweep": ([*sorted((folder / "sweep").glob("*.csv")),
                   *sorted((folder / "sweep").glob("*.json"))], plot.main,
                  [folder / "sweep", "--table"]),
        "grid": ([folder / "grid.toml", *sorted((folder / "sweep").glob("*.csv"))], sweep.main,
                 ["--grid", folder / "grid.toml", "--out", folder / "sweep", "--dry_run"]),
        "evaluation": ([folder / "eval/e.json", folder / "eval/e.jsonl"], evaluate.main,
                       ["--model", model, "--data", data, "--limit=2", "--max_new_tokens=2",
                        "--out", folder / "eval/e.jsonl"]),
        "supervise": ([folder / "run/run.json", folder / "run/log.csv"], evaluate.main,
                      ["--adapter", folder / "run", "--data", data, "--limit=2",
                       "--max_new_tokens=2", "--out", folder / "new/e.jsonl"]),
        **{name: ([data / name], check.main, [data / name, "--convert", folder / "new"])
           for name in ("alpaca.json", "sharegpt.jsonl", "pairs.csv")},
        "table": ([folder / "judged/e.json"], evaluate.main, ["--table", folder / "judged/e.json"]),
        "judged": ([*sorted((folder / "judged").glob("*")), folder / "labels/task.json",
                    folder / "labels/test.jsonl"], evaluate.main,
                   ["--model", model, "--data", folder / "labels", "--max_new_tokens=2",
                    "--out", folder / "judged/e.jsonl"]),
        "relative": (sorted((folder / "relatives").glob("*/adapter_*")), sample.main,
                     ["--model", model, "--compare", "hi", "--max_new_tokens=1", "--adapter",
                      ",".join(map(str, sorted((folder / "relatives").glob("*"))))]),
        "four bits": ([quantized / "config.json", quantized / "model.safetensors"], sample.main,
                      ["--model", quantized, "--nf4", "--max_new_tokens=2", "hi"]),
        "analysis": ([sums / "adapter_config.json", sums / "adapter_model.safetensors",
                      model / "config.json", model / "model.safetensors"], analyze.main,
                     [sums, folder / "tasks/names"]),
    }


# files that a command may write: everything in these folders
OWN = {"curve": "run", "finished": "run", "resume": "stopped", "sweep": "sweep", "grid": "sweep",
       "evaluation": "eval", "judged": "judged"}


@contextlib.contextmanager
def quiet():
    """Yield what is written to stderr."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        yield error


def code_of(main, argv) -> int:
    try:
        main([str(word) for word in argv])
    except SystemExit as e:
        return e.code or 0
    return 0


@functools.cache
def contents_once(folder: Path) -> dict:
    return contents(folder)


def restore(valid: Path, scratch: Path) -> dict:
    """Make `scratch` a copy of `valid` again, by copying what was touched -> its contents."""
    copies = {scratch / path.relative_to(valid): path for path in contents_once(valid)}
    folders = {folder for path in copies for folder in path.parents}
    for path in sorted(scratch.rglob("*"), reverse=True):       # a folder comes after what is in it
        if path.is_dir() and path not in folders:
            path.rmdir()
        elif path not in folders | copies.keys():
            path.unlink()
    for path, original in copies.items():
        if not path.exists() or path.stat().st_mtime_ns != original.stat().st_mtime_ns:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original, path)
    return {path: contents_once(valid)[original] for path, original in copies.items()}


def try_mutant(kind: str, seed: int, valid: Path, scratch: Path) -> tuple[str, str]:
    """-> ("accepted" or "refused" or what is wrong, the error). Without a seed nothing is mutated.

    scratch: where the mutated copy lies, always under the same name.
    """
    before = restore(valid, scratch)
    files, main, argv = cases(scratch)[kind]
    draw = random.Random(f"{kind} {seed}")
    if seed is not None:
        spoilt = draw.choice(files)
        mutate_file(spoilt, draw)
        before[spoilt] = spoilt.read_bytes()
    own = scratch / OWN.get(kind, "new")
    start = time.process_time()
    faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
    # a file whose name is taken for one in the working directory is seen, too
    with contextlib.chdir(scratch / "data"), quiet() as error:
        try:
            code = code_of(main, argv)
        except BaseException:  # noqa: BLE001      a panic of Rust is no Exception
            return "traceback", traceback.format_exc()
        finally:
            faulthandler.cancel_dump_traceback_later()
    seconds, error = time.process_time() - start, error.getvalue()
    if seconds > LIMIT:
        return "slow", f"{seconds:.1f} s"
    after = contents(scratch)
    if changed := [path for path in before.keys() | after.keys()
                   if before.get(path) != after.get(path) and own not in path.parents]:
        return "changed", f"{changed}"
    if code == 2:
        ours = [line for line in error.splitlines() if line.startswith("error: ")]
        return ("refused", error) if len(ours) == 1 else ("not one line", error)
    return ("accepted", error) if code == 0 else ("code", f"{code} {error}")


def main(n: int, first: int):
    """Try n mutants, all kinds in turn, and print what is wrong with any of them."""
    import collections
    import tempfile
    folder = Path(tempfile.mkdtemp())
    valid = make_valid_files(folder / "files")
    shutil.move(valid, folder / "valid")            # paths in the files name folder / "files"
    counts, start = collections.Counter(), time.perf_counter()
    kinds = list(cases(valid))
    for seed in range(first, first + n):
        kind = kinds[seed % len(kinds)]
        result, text = try_mutant(kind, seed, folder / "valid", valid)
        counts[result] += 1
        if result not in ("accepted", "refused"):
            print(f"{kind} {seed}: {result}\n{text}", flush=True)
        if (seed + 1) % 500 == 0:
            print(f"{seed + 1 - first}: {dict(counts)}, {time.perf_counter() - start:.0f} s",
                  file=sys.__stderr__, flush=True)
    shutil.rmtree(folder)
    print(dict(counts))
    return 0 if set(counts) <= {"accepted", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
