r"""vi_gsm8k: GSM8K in Vietnamese, the data of the four findings (https://huggingface.co/datasets/hllj/vi_gsm8k, MIT licence).

    python data/vi_gsm8k/prepare.py                 # through the hub's client: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE count
    python data/vi_gsm8k/prepare.py RAW_FOLDER      # offline: RAW_FOLDER holds vi_train.json and vi_test.json

A raw record has a question, the steps of its solution, the final answer, and its index (the text here is an illustration):

    {"index": 0, "question": "An có 3 quả táo và mua thêm 5 quả. An có tất cả bao nhiêu quả táo?",
     "explanation": "An có tất cả 3 + 5 = 8 quả táo.", "answer": "8"}

and becomes one line {"messages": [...]} of train.jsonl, here wrapped:

    {"role": "system", "content": "Bạn là trợ lý AI chuyên giải toán. ... và kết thúc bằng đáp án cuối cùng."}
    {"role": "user", "content": "An có 3 quả táo và mua thêm 5 quả. An có tất cả bao nhiêu quả táo?"}
    {"role": "assistant", "content": "<think>An có tất cả 3 + 5 = 8 quả táo.</think>\n8"}

The translation has as many samples as GSM8K, 8,792, but splits them a little differently: 7,470 and 1,322.
"""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import hub_file, is_prepared, raw_folder, read_records, sample, write_splits

REPO = "hllj/vi_gsm8k"
FILES = {"train": "vi_train.json", "test": "vi_test.json"}
EXPECTED = {"train": 7_470, "test": 1_322}
HERE = Path(__file__).resolve().parent
SYSTEM = (  # "You are an AI assistant for mathematics. Solve step by step and clearly, check the sums, end with the answer."
    "Bạn là trợ lý AI chuyên giải toán. Hãy giải bài toán từng bước một cách rõ ràng, "
    "kiểm tra lại phép tính, và kết thúc bằng đáp án cuối cùng."
)


def to_sample(record: dict) -> dict:
    return sample(record["question"], f"<think>{record['explanation']}</think>\n{record['answer']}", SYSTEM)


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    paths = {split: raw / name if raw else hub_file(REPO, name) for split, name in FILES.items()}
    records = {split: read_records(path, ["question", "explanation", "answer"]) for split, path in paths.items()}
    write_splits(HERE, EXPECTED, **{split: [to_sample(r) for r in records[split]] for split in EXPECTED})
    # vi_gsm8k: train.jsonl, 7,470 samples
    # vi_gsm8k: test.jsonl, 1,322 samples


if __name__ == "__main__":
    main(raw_folder(__doc__))
