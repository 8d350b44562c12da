r"""UIT-VSFC (Nguyen et al., 2018, https://ieeexplore.ieee.org/document/8573337): what Vietnamese students say of their courses.

    python data/vsfc/prepare.py                  # downloads into data/vsfc/raw/, then converts
    python data/vsfc/prepare.py RAW_FOLDER       # offline: RAW_FOLDER holds train/, dev/ and test/ as published

A raw folder has a sentence a line in sents.txt, and on the same line of sentiments.txt 0 for negative, 1 for neutral, 2 for
positive. (topics.txt is not used.) A line each of the two,

    giảng viên dạy dễ hiểu .
    2

becomes one line of train.jsonl, here wrapped ("Is this feedback of a student's positive, neutral or negative? Answer with one
of these labels alone."):

    {"messages": [{"role": "user", "content": "Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực? Chỉ trả lời
                                               bằng một trong các nhãn đó.\n\ngiảng viên dạy dễ hiểu ."},
                  {"role": "assistant", "content": "tích cực"}]}

The files lie on the authors' Google Drive: https://huggingface.co/datasets/uitnlp/vietnamese_students_feedback is a script that
points to these same addresses. No licence is stated: ask the authors before any use but research.
"""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import download, fail, is_prepared, raw_folder, read_lines, sample, write_splits

URL = "https://drive.google.com/uc?export=download&id="
IDS = {"train/sents.txt": "1nzak5OkrheRV1ltOGCXkT671bmjODLhP", "train/sentiments.txt": "1ye-gOZIBqXdKOoi_YxvpT6FeRNmViPPv",
       "dev/sents.txt": "1sMJSR3oRfPc3fe1gK-V3W5F24tov_517", "dev/sentiments.txt": "1GiY1AOp41dLXIIkgES4422AuDwmbUseL",
       "test/sents.txt": "1aNMOeZZbNwSRkjyCWAGtNCMa3YrshR-n", "test/sentiments.txt": "1vkQS5gI0is4ACU58-AbWusnemw7KZNfO"}
EXPECTED = {"train": 11_426, "dev": 1_583, "test": 3_166}
LABELS = {"0": "tiêu cực", "1": "trung tính", "2": "tích cực"}
QUESTION = "Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực? Chỉ trả lời bằng một trong các nhãn đó."
HERE = Path(__file__).resolve().parent


def read_samples(folder: Path) -> list[dict]:
    sentences, labels = (read_lines(folder / name) for name in ("sents.txt", "sentiments.txt"))
    if len(sentences) != len(labels):
        fail(f"{folder}: {len(sentences):,} lines in sents.txt and {len(labels):,} in sentiments.txt; delete both and fetch them "
             "again")
    samples = []
    for number, (sentence, label) in enumerate(zip(sentences, labels), 1):
        if label.strip() not in LABELS:
            fail(f"{folder / 'sentiments.txt'}, line {number}: it has to be 0, 1 or 2, not {label[:60]!r}; delete "
                 "the file and fetch it again")
        samples.append(sample(f"{QUESTION}\n\n{sentence.strip()}", LABELS[label.strip()]))
    return samples


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: URL + id for name, id in IDS.items()}, HERE / "raw")
    write_splits(HERE, EXPECTED, **{split: read_samples(raw / split) for split in EXPECTED})
    # vsfc: train.jsonl, 11,426 samples
    # vsfc: dev.jsonl, 1,583 samples
    # vsfc: test.jsonl, 3,166 samples


if __name__ == "__main__":
    main(raw_folder(__doc__))
