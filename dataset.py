"""Lines of {"messages": [...]} -> token ids and their supervised part -> micro-batches.

A sample is a conversation whose last message is the assistant's. It has two parts:

    prompt      all messages but the last, rendered by the model's chat template, and the opening of
                an assistant's turn: the model reads it
    answer      what the rendering of all messages adds to that, up to and with the token that ends
                the turn: the model learns it

    <|im_start|>user\\n2 + 2?<|im_end|>\\n<|im_start|>assistant\\n  4<|im_end|>
    ---------- prompt, 15 tokens of nano's tokenizer ----------  answer, 2 tokens

The prompt carries no loss, because in use it is given, and never written. With it, the NLL would
also measure how well questions can be guessed.

Prompt and answer are encoded separately, so the boundary is exact. It is also the boundary of
generation, where the model is given the prompt alone. Encoded as one text, a merge could join the
prompt's last characters and the answer's first into one token, and no position would be the
boundary.

--supervise all learns the earlier answers too, each with the token that ends its turn. Then a
sample has several learned parts:

    <|im_start|>user\\n2 + 2?<|im_end|>\\n<|im_start|>assistant\\n       4<|im_end|>   learned
    \\n<|im_start|>user\\nAnd + 3?<|im_end|>\\n<|im_start|>assistant\\n   7<|im_end|>   learned

Which tokens carry loss is decided by position, never by token id. In many models the padding token
is the end token: masking by id would hide the end from the loss, and the model would never stop.
"""
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from plumbing.errors import UserError
from plumbing.fields import check
from plumbing.files import ROOT, existing
from plumbing.workers import in_turn

ROLES = ("system", "user", "assistant", "tool")
IGNORED = -100      # the label of a token that is not learned, as in Hugging Face's code
# Llama 3's templates print today's date unless they are given one. A seed must mean the same data
# tomorrow, so they are given this one.
DATE = "26 Jul 2024"


class Sample(NamedTuple):
    ids: list[int]
    labels: list[int]   # the same ids where they are learned, IGNORED elsewhere

    @property
    def learned(self) -> int:
        """The number of tokens that are learned. Nothing predicts the first one of a text."""
        return len(self.labels[1:]) - self.labels[1:].count(IGNORED)

    def cut(self, length: int) -> "Sample":
        """The first `length` tokens."""
        return Sample(self.ids[:length], self.labels[:length])


# ----- files --------------------------------------------------------------------------------------

def find_dataset(name: str) -> Path:
    """The folder of a data set: a path, or a name under data/.

    If its files are missing, its prepare.py is run: that of a folder under data/, not a stranger's.
    Raises UserError if the folder has no train.jsonl and test.jsonl in the end.
    """
    folder = Path(name) if Path(name).is_dir() else ROOT / "data" / name
    script = folder / "prepare.py"
    if not missing_splits(folder):
        return folder
    if script.exists() and folder.resolve().parent == ROOT / "data":
        with in_turn(script):           # the second of two processes finds what the first has made
            if missing_splits(folder):
                made = subprocess.run([sys.executable, script], stdout=sys.stderr)
                if made.returncode:
                    raise UserError(f"data set {name} could not be prepared; see above, and "
                                    f"{script}")
        return folder
    if Path(name).is_dir():
        hint = ""
        missing = missing_splits(folder)
        if missing == ["test"]:
            hint = f"; python data/check.py {name} --convert NEW_FOLDER draws one by share"
        raise UserError(f"--data {name}: the folder has no {missing[0]}.jsonl{hint}")
    if Path(name).is_file():
        raise UserError(f"--data {name}: a file, but a folder with train.jsonl and test.jsonl is "
                        "needed; python data/check.py FILE --convert NEW_FOLDER makes one of a "
                        ".jsonl, .json or .csv file, and a spreadsheet can be saved as .csv")
    known = sorted(path.parent.name for path in (ROOT / "data").glob("*/prepare.py"))
    raise UserError(f"--data {name}: no folder with train.jsonl and test.jsonl, and none of "
                    + ", ".join(known) + " (data/custom/README.md has how to write one)")


def missing_splits(folder: Path) -> list[str]:
    return [split for split in ("train", "test") if not (folder / f"{split}.jsonl").exists()]


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each line that is not blank."""
    # Opened as bytes: then only \n ends a line, and a byte that is not UTF-8 spoils no other line.
    with open(existing(path), "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_messages(path: Path) -> list[list[dict]]:
    """The messages of each line. Raises UserError that names file and line of a wrong one."""
    samples = []
    for number, line in numbered_lines(path):
        try:
            samples.append(parse_line(line))
        except ValueError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
    if not samples:
        raise UserError(f"{path} holds no samples")
    return samples


def parse_line(line: bytes) -> list[dict]:
    """The messages of one line; other keys of the line are left alone. Raises ValueError."""
    return check_messages(load_row(line))


def load_row(line: bytes):
    """What the JSON of one line says. Raises ValueError with the place that is wrong."""
    if b"\0" in line:       # no text in UTF-8 has a zero byte; every ASCII letter in UTF-16 does
        raise ValueError("not UTF-8 but UTF-16, as some programs on Windows save text; save the "
                         "file as UTF-8")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8: byte {e.start + 1} of the line") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"not valid JSON: {e.msg} at character {e.pos + 1}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deep") from None


def check_messages(row) -> list[dict]:
    """The messages of a row.

    Raises ValueError unless it is {"messages": [..., {"role": "assistant", "content": "..."}]}.
    """
    if isinstance(row, dict) and "messages" not in row:
        raise ValueError("it has no messages; if the whole file has another form, python "
                         "data/check.py FILE --convert NEW_FOLDER converts it")
    check(row, {"messages": [{"role": ROLES, "content": str}]})
    messages = row["messages"]
    if any(m["role"] == "system" for m in messages[1:]):
        raise ValueError("a system message must come first, where chat templates expect it")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's answer to one before it, "
                         "because it is what is learned")
    if not messages[-1]["content"]:
        raise ValueError("the assistant's answer is empty, and it is what is learned")
    return messages


# ----- text to tokens -----------------------------------------------------------------------------

def prompt_of(messages: list[dict], tokenizer) -> str:
    """`messages`, of which the last is a question, and the opening of an assistant's turn."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, date_string=DATE)


def question_of(messages: list[dict]) -> str:
    """What a person is shown of a prompt's messages: the question, or every turn with its role."""
    turns = [message for message in messages if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)


def encode_sample(messages: list[dict], tokenizer, supervise: str = "last",
                  max_length: float = math.inf) -> Sample:
    """The sample's ids and labels, uncut, or the first of them: at least `max_length`.

    supervise: "last", the last message is learned; "all", every answer of the assistant. What it
    says before the first question (a greeting) answers nothing, and is never learned. Raises
    UserError if the template leaves open which tokens are an answer's.
    """
    whole = tokenizer.apply_chat_template(messages, date_string=DATE)
    turns = [len(messages) - 1]
    if supervise == "all":
        turns = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"]
    ids, labels, done = [], [], 0           # done: characters of `whole` that are encoded
    for turn in turns:
        if len(ids) >= max_length:      # each turn renders all before it: 20,000 would take hours
            break
        start, end = find_answer(messages, turn, whole, tokenizer)
        context, answer = tokenizer.encode(whole[done:start]), tokenizer.encode(whole[start:end])
        ids += context + answer
        labels += [IGNORED] * len(context) + answer
        done = end
    return Sample(ids, labels)


def find_answer(messages: list[dict], turn: int, whole: str, tokenizer) -> tuple[int, int]:
    """Where the answer messages[turn] begins and ends in `whole`, the rendering of all messages.

    It begins where its prompt ends, so `whole` must begin with the prompt. A rendering that stops
    after the answer shows how it is written as the last one, and usually `whole` has the same in
    this place. But some templates rewrite a turn when others follow. Qwen3's drops the thoughts:

        messages[:turn + 1]    assistant\\n<think>\\n2 + 2\\n</think>\\n\\n4<|im_end|>
        whole                  assistant\\n4<|im_end|>\\n<|im_start|>user\\nAnd + 3?<|im_end|>

    Then what is left, up to the end of the turn, must be the end of the answer: 4<|im_end|>. If a
    template does neither, UserError is raised.
    """
    prompt = prompt_of(messages[:turn], tokenizer)
    if not whole.startswith(prompt):
        raise UserError("the chat template rewrites the prompt when the answer follows, so that "
                        f"their boundary is unclear; it begins with {prompt[-40:]!r}")
    start, rest = len(prompt), whole[len(prompt):]
    end = "" if tokenizer.end_of_turn is None else tokenizer.decode([tokenizer.end_of_turn])
    answer = tokenizer.apply_chat_template(messages[:turn + 1], date_string=DATE)
    answer = answer.removeprefix(prompt)
    # Most templates write a newline after the end of the turn. Generation stops before it, so it is
    # not learned.
    if end in answer:
        answer = answer[:answer.rindex(end) + len(end)]
    if rest.startswith(answer):
        return start, start + len(answer)
    left = rest[:rest.find(end) + len(end)]
    if left and left.endswith(end) and answer.endswith(left):
        return start, start + len(left)
    raise UserError(f"the chat template rewrites message {turn + 1} when others follow, so that it "
                    "is unclear which tokens are its answer; --supervise last learns the last "
                    "message alone")


def load_split(path: Path, tokenizer, max_length: int, supervise: str = "last"
               ) -> tuple[list[Sample], int]:
    """The samples of one file, cut at the right end to `max_length` tokens -> (samples, dropped).

    A cut sample has lost its end token: it still teaches, but not where to stop. A sample is
    dropped if its prompt alone fills `max_length`, because nothing supervised is left. Raises
    UserError if that happens to all of them, or with the line that the template refuses.
    """
    samples, dropped = [], 0
    for messages, (number, _) in zip(read_messages(path), numbered_lines(path)):
        try:
            sample = encode_sample(messages, tokenizer, supervise, max_length).cut(max_length)
        except UserError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
        if sample.learned:
            samples.append(sample)
        else:
            dropped += 1
    if not samples:
        raise UserError(f"{path}: no sample has a supervised token within --max_length "
                        f"{max_length}; raise it")
    return samples, dropped


# ----- tokens to batches --------------------------------------------------------------------------

def window(n: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of the samples that optimizer step `step` sees: `size` of n, fewer at an epoch's end.

    A function of its arguments alone. So a resumed run goes on with the same samples, and runs with
    other methods or learning rates see the same ones in the same order, which makes their
    comparison fair.

    With n = 40 and size = 16, steps 0, 1, 2 see 16, 16 and 8 samples; step 3 begins epoch 1. The
    short step moves as far as the others, because AdamW's step has the size of the rate.

    Epoch e is the permutation of the seed `seed + e`. That is the order of Hugging Face's Trainer,
    and it has a consequence: seed 42's second epoch is in the order of seed 43's first.
    """
    steps_per_epoch = -(-n // size)                                             # rounded up
    epoch, i = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator)                              # (n,)
    return order[i * size:(i + 1) * size].tolist()


def micro_batches(samples: list[Sample], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sort by length and cut into groups of `size` -> [(ids, labels)], both (B, T).

    Neighbours have similar lengths, so little is padding: lengths 90, 10, 80, 20 in groups of two
    are padded by 20 tokens instead of by 140. In training only the samples of one step are sorted,
    so no step sees longer samples than another. The longest group goes first, so that running out
    of memory shows at once.

    Packing several samples into one row would save the rest of the padding, but it needs a mask and
    positions that keep them apart.
    """
    samples = sorted(samples, key=lambda sample: len(sample.ids), reverse=True)
    return [pad_batch(samples[i:i + size]) for i in range(0, len(samples), size)]


def pad_batch(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, T), padded with 0 on the right, and labels (B, T), -100 where nothing is learned.

    What the padding is does not matter. Under the causal mask no token sees what is to its right,
    and no padding has a label.
    """
    B, T = len(samples), max(len(sample.ids) for sample in samples)
    ids = torch.zeros((B, T), dtype=torch.long)
    labels = torch.full((B, T), IGNORED)
    for b, sample in enumerate(samples):
        ids[b, :len(sample.ids)] = torch.tensor(sample.ids)
        labels[b, :len(sample.labels)] = torch.tensor(sample.labels)
    return ids, labels


# A micro-batch of one token, of which nothing is learned: its gradient is zero.
BLANK = torch.zeros((1, 1), dtype=torch.long), torch.full((1, 1), IGNORED)


# ----- one sample, shown --------------------------------------------------------------------------

def show_sample(sample: Sample, tokenizer):
    """Print a sample, what is learned in green or, outside a terminal, between » and «."""
    left, right = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("»", "«")
    shown = ""
    pairs = zip(sample.ids, sample.labels, strict=True)
    for learned, part in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in part])
        shown += left + text + right if learned else text
    print(f"\nthe first sample, {len(sample.ids)} tokens; the {sample.learned} between {left}these "
          f"marks{right} are learned:\n{shown}\n", flush=True)
