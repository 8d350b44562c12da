r"""SST-2 (Socher et al., 2013, https://nlp.stanford.edu/sentiment/): is a film review positive?

    python data/sst2/prepare.py               # downloads into data/sst2/raw/, then converts
    python data/sst2/prepare.py RAW_FOLDER    # offline: it holds train.tsv, dev.tsv and test.tsv

These are the whole sentences of the Stanford Sentiment Treebank that are not neutral, in the
authors' splits, as https://github.com/clairett/pytorch-sentiment-classification has them:
lower-case tokens, a tab, and 1 for positive or 0 for negative. The licence is for research, and the
data are not part of this project. A raw line

    no movement , no yuks , not much of anything	0

becomes one line of train.jsonl, here wrapped:

    {"messages": [
      {"role": "user", "content": "Is this review positive or negative? Answer with one word.\n\n
                                   no movement , no yuks , not much of anything"},
      {"role": "assistant", "content": "negative"}]}

This is not the SST-2 of GLUE, which adds 60,000 phrases to the training sentences and does not
publish the labels of its test set.
"""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (download, fail, is_prepared, make_sample, parse_raw_folder, read_raw_lines,
                    write_splits)

URL = "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2"
EXPECTED = {"train": 6_920, "dev": 872, "test": 1_821}
FILES = {split: f"{split}.tsv" for split in EXPECTED}
LABELS = {"0": "negative", "1": "positive"}
QUESTION = "Is this review positive or negative? Answer with one word."
HERE = Path(__file__).resolve().parent


def read_reviews(path: Path) -> list[dict]:
    samples = []
    for number, line in enumerate(read_raw_lines(path), 1):
        sentence, _, label = line.rpartition("\t")
        if not sentence.strip() or label not in LABELS:
            fail(f"{path}, line {number}: it must be a sentence, a tab and 0 or 1, not "
                 f"{line[:60]!r}; delete the file and fetch it again")
        samples.append(make_sample(f"{QUESTION}\n\n{sentence.strip()}", LABELS[label]))
    return samples


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: f"{URL}/{name}" for name in FILES.values()}, HERE / "raw")
    splits = {split: read_reviews(raw / name) for split, name in FILES.items()}
    write_splits(HERE, EXPECTED, **splits)
    # sst2: train.jsonl, 6,920 samples
    # sst2: dev.jsonl, 872 samples
    # sst2: test.jsonl, 1,821 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
