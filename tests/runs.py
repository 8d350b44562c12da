"""What the tests of training share: a small data set, the flags of a short run, what a run left."""
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from conftest import REPO

from plumbing.records import read_rows


def write_chat(folder, n_train=40, n_test=10):
    """Sums in Vietnamese, each worked once to eight times, so that answers differ in length."""
    draw = random.Random(0)
    for split, n in (("train", n_train), ("test", n_test)):
        conversations = []
        for _ in range(n):
            a, b = draw.randint(1, 50), draw.randint(1, 50)
            question = f"Lan có {a} quả táo, mẹ cho thêm {b} quả. Hỏi Lan có tất cả bao nhiêu?"
            answer = f"{a} + {b} = {a + b}. " * draw.choice((1, 1, 3, 8))
            conversations.append([{"role": "user", "content": question},
                                  {"role": "assistant", "content": answer}])
        write_lines(Path(folder) / f"{split}.jsonl", conversations)
    return Path(folder)


def write_lines(path, conversations):
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
             for messages in conversations]
    path.write_text("".join(lines), encoding="utf-8")


def command(model, data, out, *flags, **settings):
    """The arguments of a run of six steps over 40 samples.

    They are two epochs of three batches: 16 samples, 16, and the last eight.
    """
    usual = {"model": model, "data": data, "out": out, "rank": 4, "lr": 1e-2, "max_steps": 6,
             "eval_steps": 2}
    return [*(f"--{name}={value}" for name, value in (usual | settings).items()), *flags]


def start(argv, **env):
    """`python train.py` as a user has it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, REPO / "train.py", *map(str, argv)], env=os.environ | env, text=True,
        encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def press_ctrl_c(monkeypatch, step, times=1):
    """Press Ctrl-C `times` times when optimizer step `step` (1, 2 ...) begins.

    Returns a list that has an entry for each step that began.
    """
    import train
    begun, optimizer_step = [], train.optimizer_step

    def watched(*args, **hooks):
        begun.append(True)
        if len(begun) == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return optimizer_step(*args, **hooks)

    monkeypatch.setattr(train, "optimizer_step", watched)
    return begun


def numbers(out):
    """The rows of log.csv without what depends on the clock and the machine."""
    rows = read_rows(Path(out) / "log.csv")
    for row in rows:
        del row["seconds"], row["peak_gb"]
    return rows


def contents(*folders):
    """Every file's bytes: what must be the same before and after something that failed."""
    return {path: path.read_bytes() for folder in folders
            for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def one_line(code, error):
    """Assert that an error of the user's ended in one line -> the line."""
    assert code == 2 and error.startswith("error: "), error
    assert error.endswith("\n") and error.count("\n") == 1 and len(error) < 600, error
    return error
