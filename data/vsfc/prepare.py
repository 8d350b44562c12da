r"""UIT-VSFC (Nguyen et al., 2018): what Vietnamese students say about their courses.

    python data/vsfc/prepare.py               # downloads into data/vsfc/raw/, then converts
    python data/vsfc/prepare.py RAW_FOLDER    # offline: it holds train/, dev/ and test/

The paper is https://ieeexplore.ieee.org/document/8573337. Each raw folder has sents.txt with one
sentence per line, and sentiments.txt with 0 for negative, 1 for neutral or 2 for positive on the
same line. (topics.txt is not used.) The lines

    giảng viên dạy dễ hiểu .
    2

become one line of train.jsonl, here wrapped:

    {"messages": [
      {"role": "user", "content": "Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực?
                                   Chỉ trả lời bằng một trong các nhãn đó.\n\n
                                   giảng viên dạy dễ hiểu ."},
      {"role": "assistant", "content": "tích cực"}]}

("Is this student's feedback positive, neutral or negative? Answer with one of these labels only.")

The files are on the authors' Google Drive, at the addresses to which the script of
https://huggingface.co/datasets/uitnlp/vietnamese_students_feedback points. No licence is stated:
ask the authors before any use other than research.
"""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (download, fail, is_prepared, make_sample, parse_raw_folder, read_raw_lines,
                    write_splits)

URL = "https://drive.google.com/uc?export=download&id="
FILE_IDS = {
    "train/sents.txt": "1nzak5OkrheRV1ltOGCXkT671bmjODLhP",
    "train/sentiments.txt": "1ye-gOZIBqXdKOoi_YxvpT6FeRNmViPPv",
    "dev/sents.txt": "1sMJSR3oRfPc3fe1gK-V3W5F24tov_517",
    "dev/sentiments.txt": "1GiY1AOp41dLXIIkgES4422AuDwmbUseL",
    "test/sents.txt": "1aNMOeZZbNwSRkjyCWAGtNCMa3YrshR-n",
    "test/sentiments.txt": "1vkQS5gI0is4ACU58-AbWusnemw7KZNfO",
}
EXPECTED = {"train": 11_426, "dev": 1_583, "test": 3_166}
LABELS = {"0": "tiêu cực", "1": "trung tính", "2": "tích cực"}
QUESTION = ("Phản hồi này của sinh viên là tích cực, trung tính hay tiêu cực? "
            "Chỉ trả lời bằng một trong các nhãn đó.")
HERE = Path(__file__).resolve().parent


def read_feedback(folder: Path) -> list[dict]:
    sentences = read_raw_lines(folder / "sents.txt")
    labels = read_raw_lines(folder / "sentiments.txt")
    if len(sentences) != len(labels):
        fail(f"{folder}: {len(sentences):,} lines in sents.txt and {len(labels):,} in "
             "sentiments.txt; delete both and fetch them again")
    samples = []
    for number, (sentence, label) in enumerate(zip(sentences, labels), 1):
        if label.strip() not in LABELS:
            fail(f"{folder / 'sentiments.txt'}, line {number}: it must be 0, 1 or 2, not "
                 f"{label[:60]!r}; delete the file and fetch it again")
        samples.append(make_sample(f"{QUESTION}\n\n{sentence.strip()}", LABELS[label.strip()]))
    return samples


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: URL + id for name, id in FILE_IDS.items()}, HERE / "raw")
    splits = {split: read_feedback(raw / split) for split in EXPECTED}
    write_splits(HERE, EXPECTED, **splits)
    # vsfc: train.jsonl, 11,426 samples
    # vsfc: dev.jsonl, 1,583 samples
    # vsfc: test.jsonl, 3,166 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
