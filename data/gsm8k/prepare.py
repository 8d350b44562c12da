r"""GSM8K (Cobbe et al., 2021, https://arxiv.org/abs/2110.14168): grade school word problems.

    python data/gsm8k/prepare.py              # downloads into data/gsm8k/raw/, then converts
    python data/gsm8k/prepare.py RAW_FOLDER   # offline: it holds train.jsonl and test.jsonl

https://github.com/openai/grade-school-math publishes it under the MIT licence. A raw record:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many
                  clips in May. How many clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72
                clips altogether in April and May.\n#### 72"}

It becomes one line {"messages": [...]} of train.jsonl with the messages, here wrapped:

    {"role": "user", "content": "Natalia sold clips to 48 of her ... in April and May?"}
    {"role": "assistant", "content": "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72
                                      clips altogether in April and May.\n#### 72"}

The answer is the authors' text, first the steps and last "#### final answer", without its <<...>>
notes. They are for a calculator that the authors let the model call, and cost tokens that no chat
model needs to print. There is no system message.
"""
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (download, is_prepared, make_sample, parse_raw_folder, read_raw_fields,
                    write_splits)

URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
FILES = {"train": "train.jsonl", "test": "test.jsonl"}
EXPECTED = {"train": 7_473, "test": 1_319}
HERE = Path(__file__).resolve().parent


def read_problems(path: Path) -> list[dict]:
    samples = []
    for record in read_raw_fields(path, ["question", "answer"]):
        answer = re.sub(r"<<[^<>]*>>", "", record["answer"])
        samples.append(make_sample(record["question"], answer))
    return samples


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: f"{URL}/{name}" for name in FILES.values()}, HERE / "raw")
    splits = {split: read_problems(raw / name) for split, name in FILES.items()}
    write_splits(HERE, EXPECTED, **splits)
    # gsm8k: train.jsonl, 7,473 samples
    # gsm8k: test.jsonl, 1,319 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
