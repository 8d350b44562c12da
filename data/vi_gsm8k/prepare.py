r"""vi_gsm8k: GSM8K in Vietnamese, the data of the four findings.

    python data/vi_gsm8k/prepare.py               # from the hub
    python data/vi_gsm8k/prepare.py RAW_FOLDER    # offline: it holds vi_train.json, vi_test.json

The hub's client does the download, so HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their effect.
https://huggingface.co/datasets/hllj/vi_gsm8k publishes it under the MIT licence. A raw record has a
question, the steps of its solution, the final answer, and its index (the text is an illustration):

    {"index": 0, "question": "An có 3 quả táo và mua thêm 5 quả. An có tất cả bao nhiêu quả táo?",
     "explanation": "An có tất cả 3 + 5 = 8 quả táo.", "answer": "8"}

It becomes one line {"messages": [...]} of train.jsonl with the messages

    {"role": "system", "content": "Bạn là trợ lý AI chuyên giải toán. ... bằng đáp án cuối cùng."}
    {"role": "user", "content": "An có 3 quả táo và mua thêm 5 quả. ... bao nhiêu quả táo?"}
    {"role": "assistant", "content": "<think>An có tất cả 3 + 5 = 8 quả táo.</think>\n8"}

The translation has as many samples as GSM8K, 8,792, but splits them differently: 7,470 and 1,322.
"""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (fetch_from_hub, is_prepared, make_sample, parse_raw_folder, read_raw_fields,
                    write_splits)

REPO = "hllj/vi_gsm8k"
FILES = {"train": "vi_train.json", "test": "vi_test.json"}
EXPECTED = {"train": 7_470, "test": 1_322}
HERE = Path(__file__).resolve().parent
# "You are an AI assistant who solves maths problems. Solve the problem step by step and clearly,
# check the calculations, and end with the final answer."
SYSTEM = ("Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, "
          "kiểm tra lại phép tính, và kết thúc bằng đáp án cuối cùng.")


def read_explained_problems(path: Path) -> list[dict]:
    samples = []
    for record in read_raw_fields(path, ["question", "explanation", "answer"]):
        answer = f"<think>{record['explanation']}</think>\n{record['answer']}"
        samples.append(make_sample(record["question"], answer, SYSTEM))
    return samples


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    paths = {split: raw / name if raw else fetch_from_hub(REPO, name)
             for split, name in FILES.items()}
    splits = {split: read_explained_problems(path) for split, path in paths.items()}
    write_splits(HERE, EXPECTED, **splits)
    # vi_gsm8k: train.jsonl, 7,470 samples
    # vi_gsm8k: test.jsonl, 1,322 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
