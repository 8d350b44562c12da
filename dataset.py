"""Lines of {"messages": [...]} -> token ids with their supervised part -> micro-batches of similar length.

    prompt      the chat template's rendering of all but the last message, and the opening of an assistant's turn
    answer      what the rendering of all messages adds to it, up to and with the token that ends the turn: supervised

Prompt and answer are encoded apart, so that the boundary is exact and the same as in generation, where the prompt is all
there is. Which tokens carry loss is told by position, never by token id: where the padding token is the end token, as in
many models, masking by id would hide the end from the loss and yield a model that never stops.
"""
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from plumbing.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
DATE = "26 Jul 2024"        # what Llama 3's templates print where they are given none: the same seed is the same data tomorrow


class Sample(NamedTuple):
    ids: list[int]
    start: int          # the first supervised position


# ----- files --------------------------------------------------------------------------------------------------------

def find_dataset(name: str) -> Path:
    """The folder of a data set: a path, or a name under data/, whose prepare.py is run if its files are missing."""
    folder = Path(name) if Path(name).is_dir() else Path(__file__).parent / "data" / name
    missing = [split for split in ("train", "test") if not (folder / f"{split}.jsonl").exists()]
    if missing and (folder / "prepare.py").exists():
        made = subprocess.run([sys.executable, folder / "prepare.py"], stdout=sys.stderr)
        if made.returncode:
            raise UserError(f"data set {name} could not be prepared; see above, and {folder / 'prepare.py'}")
    elif missing and Path(name).is_dir():
        raise UserError(f"--data {name}: the folder has no {missing[0]}.jsonl")
    elif missing:
        known = ", ".join(sorted(p.parent.name for p in (Path(__file__).parent / "data").glob("*/prepare.py")))
        raise UserError(f"--data {name}: no folder with train.jsonl and test.jsonl, and none of {known}")
    return folder


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each line that is not blank."""
    with open(path, "rb") as lines:         # bytes end a line at \n alone, and what is not UTF-8 is an error of its line
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def read_messages(path: Path) -> list[list[dict]]:
    """The messages of each line. Raises UserError that names file and line for a line that is not what it has to be."""
    samples = []
    for number, line in numbered(path):
        try:
            samples.append(checked(line))
        except ValueError as e:
            raise UserError(f"{path}, line {number}: {e}") from None
    if not samples:
        raise UserError(f"{path} holds no samples")
    return samples


def checked(line: bytes) -> list[dict]:
    """A line's messages, if it is {"messages": [..., {"role": "assistant", "content": "..."}]}, whatever else it may hold."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8: byte {e.start + 1} of the line") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"not valid JSON: {e.msg} at character {e.pos + 1}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deep") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError('it has to be {"messages": [...]}')
    for m in row["messages"]:
        if not isinstance(m, dict) or m.get("role") not in ROLES or not isinstance(m.get("content"), str):
            raise ValueError(f'a message has to be {{"role": one of {", ".join(ROLES)}, "content": text}}, not {str(m)[:60]}')
    if row["messages"] and row["messages"][-1] == {"role": "assistant", "content": ""}:
        raise ValueError("the assistant's answer is empty, and it is what is learned")
    if len(row["messages"]) < 2 or row["messages"][-1]["role"] != "assistant" or not row["messages"][-1]["content"]:
        raise ValueError("the last message has to be the assistant's answer to one before it, for it is what is learned")
    return row["messages"]


# ----- text to tokens -----------------------------------------------------------------------------------------------

def prompt_of(messages: list[dict], tokenizer) -> str:
    """All but the last message, and the opening of an assistant's turn: what generation begins with."""
    return tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, date_string=DATE)


def encode(messages: list[dict], tokenizer) -> Sample:
    """The sample's ids, uncut. Raises UserError if the template does not render the prompt as the beginning of the whole."""
    prompt, whole = prompt_of(messages, tokenizer), tokenizer.apply_chat_template(messages, date_string=DATE)
    if not whole.startswith(prompt):
        raise UserError("the chat template rewrites the prompt when the answer follows, so that their boundary is unclear; "
                        f"it begins with {prompt[-40:]!r}")
    prompt_ids, answer_ids = tokenizer.encode(prompt), tokenizer.encode(whole[len(prompt):])
    if tokenizer.end_of_turn in answer_ids:         # what the template writes behind it, a newline, is not the model's to say
        last = len(answer_ids) - answer_ids[::-1].index(tokenizer.end_of_turn)
        answer_ids = answer_ids[:last]
    return Sample(prompt_ids + answer_ids, len(prompt_ids))


def load_split(path: Path, tokenizer, max_length: int) -> tuple[list[Sample], int]:
    """The samples of a split, cut at the right end to `max_length` tokens -> (samples, number dropped).

    A sample is dropped when nothing supervised is left of it; an empty remainder is an error of the user's.
    """
    cut = [Sample(s.ids[:max_length], s.start) for s in (encode(messages, tokenizer) for messages in read_messages(path))]
    samples = [s for s in cut if s.start < len(s.ids)]
    if not samples:
        raise UserError(f"{path}: no sample has a supervised token within --max_length {max_length}")
    return samples, len(cut) - len(samples)


# ----- tokens to batches --------------------------------------------------------------------------------------------

def window(n: int, size: int, step: int, seed: int) -> list[int]:
    """Indices, of n samples, of the `size` that optimizer step `step` sees (fewer at the end of an epoch).

    A function of the seed alone: a run that is resumed at `step` goes on with the same samples, and runs with other
    methods or learning rates see the same ones. The order is that of Hugging Face's Trainer for the same seed.
    """
    epoch, i = divmod(step, -(-n // size))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
    return order[i * size:(i + 1) * size].tolist()


def micro_batches(samples: list[Sample], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sort by length, cut into groups of `size`, pad each on the right -> [(ids, labels)], both (B, T), -100 unsupervised."""
    samples = sorted(samples, key=lambda s: len(s.ids), reverse=True)       # the longest first: what does not fit shows at once
    return [collate(samples[i:i + size]) for i in range(0, len(samples), size)]


def collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    shape = len(samples), max(len(s.ids) for s in samples)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, (tokens, start) in enumerate(samples):
        ids[row, :len(tokens)] = torch.tensor(tokens)
        labels[row, start:len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels


# ----- what a person looks at ---

def show_sample(sample: Sample, tokenizer):
    """The first sample of a run, its supervised part marked: green in a terminal, between » and « elsewhere."""
    left, right = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("»", "«")
    print(f"\nthe first sample, {len(sample.ids)} tokens, of which the {len(sample.ids) - sample.start} between {left}these marks"
          f"{right} are learned:\n{tokenizer.decode(sample.ids[:sample.start])}{left}{tokenizer.decode(sample.ids[sample.start:])}"
          f"{right}\n", flush=True)
