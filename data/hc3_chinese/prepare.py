r"""HC3-Chinese, open_qa (Guo et al., 2023, https://arxiv.org/abs/2301.07597): questions and what people answered, in Chinese.

    python data/hc3_chinese/prepare.py               # through the hub's client: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE count
    python data/hc3_chinese/prepare.py RAW_FOLDER    # offline: RAW_FOLDER holds open_qa.jsonl

The data set sets people's answers beside ChatGPT's. A raw record, as https://huggingface.co/datasets/Hello-SimpleAI/HC3-Chinese
publishes it under CC BY-SA 4.0 (the text here is an illustration):

    {"question": "为什么天空是蓝色的？", "human_answers": ["因为空气散射蓝光更多。", ...], "chatgpt_answers": ["...", ...]}

becomes one line of train.jsonl, if it is drawn, with the first human answer:

    {"messages": [{"role": "user", "content": "为什么天空是蓝色的？"}, {"role": "assistant", "content": "因为空气散射蓝光更多。"}]}

Of the 3,293 records 2,000 are drawn with seed 42, 1,800 to train on and 200 to test. An open question has no one answer, so
there is nothing to measure but the loss.
"""
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import fail, hub_file, is_prepared, parse_json, raw_folder, sample, write_splits

REPO, FILE = "Hello-SimpleAI/HC3-Chinese", "open_qa.jsonl"
RAW, SEED = 3_293, 42
EXPECTED = {"train": 1_800, "test": 200}
HERE = Path(__file__).resolve().parent


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The (question, first human answer) of each record."""
    pairs = []
    for index, record in enumerate(parse_json(path)):
        match record:
            case {"question": str(question), "human_answers": [str(answer), *_]}:
                pairs.append((question.strip(), answer.strip()))
            case _:
                fail(f"{path}: the record at index {index} has no `question`, or no text in `human_answers`")
    if len(pairs) != RAW:
        fail(f"{path} has {len(pairs):,} records instead of {RAW:,}; it is incomplete or of another version: fetch it again")
    return pairs


def main(raw: Path | None):
    if is_prepared(HERE, EXPECTED):
        return
    pairs = [pair for pair in read_pairs(raw / FILE if raw else hub_file(REPO, FILE)) if all(pair)]
    rng = random.Random(SEED)
    pairs.sort(key=lambda _: rng.random())  # Python promises to keep the numbers of random(), not those of shuffle(), for ever
    drawn = [sample(*pair) for pair in pairs[:sum(EXPECTED.values())]]
    write_splits(HERE, EXPECTED, train=drawn[:EXPECTED["train"]], test=drawn[EXPECTED["train"]:])
    # hc3_chinese: train.jsonl, 1,800 samples
    # hc3_chinese: test.jsonl, 200 samples


if __name__ == "__main__":
    main(raw_folder(__doc__))
