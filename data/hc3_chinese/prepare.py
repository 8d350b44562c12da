r"""HC3-Chinese, open_qa (Guo et al., 2023, https://arxiv.org/abs/2301.07597): open questions.

    python data/hc3_chinese/prepare.py              # from the hub
    python data/hc3_chinese/prepare.py RAW_FOLDER   # offline: it holds open_qa.jsonl

The hub's client does the download, so HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their effect.
https://huggingface.co/datasets/Hello-SimpleAI/HC3-Chinese publishes people's answers next to
ChatGPT's, under CC BY-SA 4.0. A raw record (the text is an illustration):

    {"question": "为什么天空是蓝色的？",
     "human_answers": ["因为空气散射蓝光更多。", ...], "chatgpt_answers": ["...", ...]}

If it is drawn, it becomes one line of train.jsonl with the first human answer, here wrapped:

    {"messages": [{"role": "user", "content": "为什么天空是蓝色的？"},
                  {"role": "assistant", "content": "因为空气散射蓝光更多。"}]}

Of the 3,293 records 2,000 are drawn with seed 42: 1,800 to train on and 200 to test. An open
question has more than one good answer, so only the loss is measured.
"""
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import (fail, fetch_from_hub, is_prepared, make_sample, parse_raw_folder, read_raw_json,
                    write_splits)

REPO, FILE = "Hello-SimpleAI/HC3-Chinese", "open_qa.jsonl"
RAW, SEED = 3_293, 42
EXPECTED = {"train": 1_800, "test": 200}
HERE = Path(__file__).resolve().parent


def read_question_pairs(path: Path) -> list[tuple[str, str]]:
    """The (question, first human answer) of each record."""
    pairs = []
    for index, record in enumerate(read_raw_json(path)):
        match record:
            case {"question": str(question), "human_answers": [str(answer), *_]}:
                pairs.append((question.strip(), answer.strip()))
            case _:
                fail(f"{path}: the record at index {index} has no `question`, or no text in "
                     "`human_answers`")
    if len(pairs) != RAW:
        fail(f"{path} has {len(pairs):,} records instead of {RAW:,}; it is incomplete or of "
             "another version: fetch it again")
    return pairs


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    pairs = read_question_pairs(raw / FILE if raw else fetch_from_hub(REPO, FILE))
    pairs = [pair for pair in pairs if all(pair)]
    # A shuffle whose order no version of Python changes: only random() gives the same numbers.
    rng = random.Random(SEED)
    pairs.sort(key=lambda _: rng.random())
    n_train, n_test = EXPECTED["train"], EXPECTED["test"]
    samples = [make_sample(*pair) for pair in pairs[:n_train + n_test]]
    write_splits(HERE, EXPECTED, train=samples[:n_train], test=samples[n_train:])
    # hc3_chinese: train.jsonl, 1,800 samples
    # hc3_chinese: test.jsonl, 200 samples


if __name__ == "__main__":
    main(parse_raw_folder(__doc__))
