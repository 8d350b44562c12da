r"""GSM8K (Cobbe et al., 2021, https://arxiv.org/abs/2110.14168): grade school math word problems, in English, MIT licence.

    python data/gsm8k/prepare.py                 # downloads into data/gsm8k/raw/, then converts
    python data/gsm8k/prepare.py RAW_FOLDER      # offline: RAW_FOLDER holds train.jsonl and test.jsonl as published

A raw record, as https://github.com/openai/grade-school-math publishes it:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many
                  clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in
                April and May.\n#### 72"}

becomes one line {"messages": [...]} of train.jsonl, here wrapped:

    {"role": "user", "content": "Natalia sold clips to 48 of her friends in April, ... in April and May?"}
    {"role": "assistant", "content": "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in
                                      April and May.\n#### 72"}

The answer is the authors' text, steps first and "#### final answer" last, without its <<...>> notes: they were meant for a
calculator that the authors let the model call, and cost tokens that no chat model has to print. There is no system message.
"""
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import download, is_prepared, raw_folder, read_records, sample, write_splits

URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
FILES = {"train": "train.jsonl", "test": "test.jsonl"}
EXPECTED = {"train": 7_473, "test": 1_319}
HERE = Path(__file__).resolve().parent


def to_sample(record: dict) -> dict:
    return sample(record["question"], re.sub(r"<<[^<>]*>>", "", record["answer"]))


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: f"{URL}/{name}" for name in FILES.values()}, HERE / "raw")
    records = {split: read_records(raw / name, ["question", "answer"]) for split, name in FILES.items()}
    write_splits(HERE, EXPECTED, **{split: [to_sample(r) for r in records[split]] for split in EXPECTED})
    # gsm8k: train.jsonl, 7,473 samples
    # gsm8k: test.jsonl, 1,319 samples


if __name__ == "__main__":
    main(raw_folder(__doc__))
