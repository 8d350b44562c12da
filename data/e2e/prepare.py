r"""E2E NLG (Novikova et al., 2017, https://arxiv.org/abs/1706.09254): facts about a restaurant, put into words, CC BY-SA 4.0.

    python data/e2e/prepare.py                   # downloads into data/e2e/raw/, then converts
    python data/e2e/prepare.py RAW_FOLDER        # offline: RAW_FOLDER holds devset.csv and testset_w_refs.csv as published

A raw row, as https://github.com/tuetschek/e2e-dataset publishes it, is a meaning representation and what one person made of it:

    mr,ref
    "name[Blue Spice], eatType[coffee shop], area[city centre]",A coffee shop in the city centre area called Blue Spice.

and becomes one line of train.jsonl, here wrapped:

    {"messages": [{"role": "user", "content": "Describe this restaurant in one or two sentences.\n\n
                                               name[Blue Spice], eatType[coffee shop], area[city centre]"},
                  {"role": "assistant", "content": "A coffee shop in the city centre area called Blue Spice."}]}

Several people wrote for each representation. In training each row is a sample. In the test set a representation is one sample,
asked once: the assistant's message is the first reference, the one that the test NLL is of, and beside "messages" there is
"references": [...] with all of them, which BLEU compares with. 4,693 rows are 630 such samples.

The authors' training set, trainset.csv, has 42,061 rows. Here the development set is what is trained on: its 4,672 rows are a
task for minutes. No representation of it is in the test set.
"""
import csv
import io
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import download, fail, is_prepared, raw_folder, read_text, sample, write_splits

URL = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master"
FILES = {"train": "devset.csv", "test": "testset_w_refs.csv"}
EXPECTED = {"train": 4_672, "test": 630}
HERE = Path(__file__).resolve().parent


def read_rows(path: Path) -> list[tuple[str, str]]:
    """The (mr, ref) of each row."""
    reader, rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True), []
    try:
        for row in reader:
            if len(row) != 2 or not all(field.strip() for field in row):
                fail(f"{path}, line {reader.line_num}: a row has to be a meaning representation and a sentence, not "
                     f"{str(row)[:60]}; delete the file and fetch it again")
            rows.append((row[0].strip(), row[1].strip()))
    except csv.Error as e:
        fail(f"{path}, line {reader.line_num}: not valid CSV ({e}); delete the file and fetch it again")
    if rows[:1] != [("mr", "ref")]:
        fail(f"{path}, line 1: the header has to be mr,ref; delete the file and fetch it again")
    return rows[1:]


def prompt(mr: str) -> str:
    return f"Describe this restaurant in one or two sentences.\n\n{mr}"


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    raw = raw or download({name: f"{URL}/{name}" for name in FILES.values()}, HERE / "raw")
    train, references = read_rows(raw / FILES["train"]), {}
    for mr, ref in read_rows(raw / FILES["test"]):
        references.setdefault(mr, []).append(ref)
    write_splits(HERE, EXPECTED, train=[sample(prompt(mr), ref) for mr, ref in train],
                 test=[sample(prompt(mr), refs[0], references=refs) for mr, refs in references.items()])
    # e2e: train.jsonl, 4,672 samples
    # e2e: test.jsonl, 630 samples


if __name__ == "__main__":
    main(raw_folder(__doc__))
