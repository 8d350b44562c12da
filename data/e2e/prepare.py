r"""E2E NLG (Novikova et al., 2017, https://arxiv.org/abs/1706.09254): describe a restaurant.

    python data/e2e/prepare.py                # downloads into data/e2e/raw/, then converts
    python data/e2e/prepare.py RAW_FOLDER     # offline: it holds devset.csv and testset_w_refs.csv

https://github.com/tuetschek/e2e-dataset publishes it under CC BY-SA 4.0. A raw row is a meaning
representation (mr) and the sentence that one person wrote for it (here wrapped):

    mr,ref
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
     A coffee shop in the city centre area called Blue Spice.

It becomes one line of train.jsonl, also wrapped here:

    {"messages": [
      {"role": "user", "content": "Describe this restaurant in one or two sentences.\n\n
                                   name[Blue Spice], eatType[coffee shop], area[city centre]"},
      {"role": "assistant", "content": "A coffee shop in the city centre area called Blue Spice."}]}

Several people wrote for each representation. In training each row is a sample. In the test set each
representation is one sample: its 4,693 rows become 630 samples. The assistant's message is the
first reference, on which the test NLL is measured. A second key, "references", holds all of them
for BLEU.

The authors' training set, trainset.csv, has 42,061 rows. We train on the 4,672 rows of their
development set instead, which takes minutes. It shares no representation with the test set.
"""
import csv
import io
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (download, fail, is_prepared, make_sample, parse_raw_folder, read_raw_text,
                    write_splits)

URL = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master"
FILES = {"train": "devset.csv", "test": "testset_w_refs.csv"}
EXPECTED = {"train": 4_672, "test": 630}
HERE = Path(__file__).resolve().parent


def read_references(path: Path) -> list[tuple[str, str]]:
    """The (mr, ref) of each row."""
    reader = csv.reader(io.StringIO(read_raw_text(path), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if len(row) != 2 or not all(field.strip() for field in row):
                fail(f"{path}, line {reader.line_num}: a row must be a meaning representation and "
                     f"a sentence, not {str(row)[:60]}; delete the file and fetch it again")
            rows.append((row[0].strip(), row[1].strip()))
    except csv.Error as e:
        fail(f"{path}, line {reader.line_num}: not valid CSV ({e}); delete the file and fetch it "
             "again")
    if rows[:1] != [("mr", "ref")]:
        fail(f"{path}, line 1: the header must be mr,ref; delete the file and fetch it again")
    return rows[1:]


def make_prompt(mr: str) -> str:
    return f"Describe this restaurant in one or two sentences.\n\n{mr}"


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: f"{URL}/{name}" for name in FILES.values()}, HERE / "raw")
    train = [make_sample(make_prompt(mr), ref) for mr, ref in read_references(raw / FILES["train"])]
    references = {}
    for mr, ref in read_references(raw / FILES["test"]):
        references.setdefault(mr, []).append(ref)
    test = [make_sample(make_prompt(mr), refs[0], references=refs)
            for mr, refs in references.items()]
    write_splits(HERE, EXPECTED, train=train, test=test)
    # e2e: train.jsonl, 4,672 samples
    # e2e: test.jsonl, 630 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
