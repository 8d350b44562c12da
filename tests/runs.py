"""What the tests of train.py share: a small chat data set, the command line of a short run, and what a run leaves."""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from conftest import REPO

from plumbing.records import read_rows


def write_chat(folder, n_train=40, n_test=10):
    """Sums in Vietnamese whose answers are worked once to eight times, so that their lengths differ much."""
    draw = random.Random(0)
    for split, n in (("train", n_train), ("test", n_test)):
        rows = []
        for _ in range(n):
            a, b = draw.randint(1, 50), draw.randint(1, 50)
            question, worked = f"Lan có {a} quả táo, mẹ cho thêm {b} quả. Hỏi Lan có tất cả bao nhiêu?", f"{a} + {b} = {a + b}. "
            worked *= draw.choice((1, 1, 3, 8))
            rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": worked}])
        write_lines(Path(folder) / f"{split}.jsonl", rows)
    return Path(folder)


def write_lines(path, conversations):
    path.write_text("".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in conversations), encoding="utf-8")


def command(model, data, out, *flags, **settings):
    """The arguments of a run of six steps over 40 samples: two epochs, the last window of each with only eight."""
    settings = {"model": model, "data": data, "out": out, "rank": 4, "lr": 1e-2, "max_steps": 6, "eval_steps": 2} | settings
    return [*(f"--{name}={value}" for name, value in settings.items()), *flags]


def start(argv, **env):
    """`python train.py` as a user has it, in a process of its own."""
    return subprocess.Popen([sys.executable, REPO / "train.py", *map(str, argv)], env=os.environ | env, text=True,
                            encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def numbers(out):
    """log.csv without what is the clock's and the machine's."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_gb")} for row in read_rows(Path(out) / "log.csv")]


def contents(*folders):
    """Every file's bytes: what has to be the same before and after something that failed."""
    return {path: path.read_bytes() for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def one_line(code, error):
    """What a user's mistake ends in; -> the line."""
    assert code == 2 and error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1 and len(error) < 600, error
    return error
