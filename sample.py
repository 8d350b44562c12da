"""Talk to a model, or set base and adapted answers side by side.

    python sample.py --adapter out/3f087d1874 \\
        "Lan có 12 quả táo, mua thêm 7 quả. Lan có mấy quả táo?"
    python sample.py --adapter out/3f087d1874 --adapter sums=out/5f0c9d2e11         # a chat; /help
    python sample.py --adapter out/3f087d1874 --against full=out/0b8d1c77f3 \\
        --compare --data nano --n 10 --markdown answers.md

An adapter is called by the last part of its folder's path, or by the name before "=". A question
and a chat begin with the first adapter that is given.

All adapters share one base, which is loaded once. To switch, the adapter that is asked for is
merged into it: W becomes W + (alpha / r) B A, and a token costs no more than the base's
(lora.set_adapter). A base in four bits stays as it is, and B A is computed next to it. Rounding the
sum to four bits again would lose most of B A, because B A is smaller than the steps between the 16
values that four bits can hold.
"""
import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import dataset
from engine import (default_base, fit_prompt, generate_answers, open_model, room_for_prompt,
                    stream_answer)
from methods import open_adapter, switch_adapter
from plumbing.cli import flag, parse_flags, run_command
from plumbing.device import DTYPES
from plumbing.errors import UserError, errors_in_one_line, interruption
from plumbing.files import NANO_BASE, read_json, replacing, resolve
from plumbing.text import escape_markdown, replace_control, terminal_table, wrap_text

CHAT_HELP = """/reset          forget the conversation
/adapter NAME   answer with this adapter, one of: {}
/base           answer without one
/quit, Ctrl-D   leave
Ctrl-C          stop the current answer"""
COMPARE_BATCH = 8       # answers that --compare generates together
CELL_LINES = 16         # of a text in the terminal; a longer one has most likely lost the thread
CELL_LETTERS = 1500     # of a text in Markdown


# ----- settings -----------------------------------------------------------------------------------

@dataclass
class Settings:
    question: str = flag(None, "answered once; without it: a chat, a line per turn", nargs="?")
    model: str = flag(
        None, "folder, hub repository, or nano; default: the first adapter's base, else nano")
    adapter: list = flag(
        None, "given several times, or with commas: several",
        action="append", metavar="[NAME=]FOLDER")
    system: str = flag(None, "what the conversation begins with, as the system's message")
    max_new_tokens: int = flag(256, "longest answer, in tokens", at_least=1, group="generation")
    temperature: float = flag(
        0.0, "0: always the likeliest token; above: tokens are drawn, and the higher it is, the "
        "more often unlikely ones; default: 0", at_least=0)
    top_p: float = flag(
        1.0, "draw from the likeliest tokens that make up this probability", above=0, at_most=1)
    seed: int = flag(42, "of the drawing", at_least=0)
    compare: bool = flag(
        False, "set base and adapters side by side, for the question or for --data",
        group="comparison")
    data: str = flag(
        None, "name under data/, or a folder: answer its first test samples, next to the reference")
    n: int = flag(5, "how many of them", at_least=1)
    against: list = flag(
        None, "a whole model next to them, fully fine-tuned for instance",
        action="append", metavar="[NAME=]MODEL")
    markdown: str = flag(None, "write the comparison to this file, too", metavar="FILE")
    device: str = flag(
        "auto", "cpu, cuda, cuda:1, mps ...; auto: cuda if there is one, else cpu",
        group="machine")
    dtype: str = flag(
        "auto", "of the computation; auto: as in train.py", choices=("auto", *DTYPES))
    nf4: bool = flag(
        False, "the base in four bits; adapters are computed next to it and not merged")


def name_folders(values: list[str]) -> dict[str, str]:
    """["out/a,b=out/c", ...] -> {"a": "out/a", "b": "out/c", ...}."""
    folders = {}
    for value in filter(None, ",".join(values).split(",")):
        name, folder = "", value
        if "=" in value and not Path(value).is_dir():
            name, _, folder = value.partition("=")
        name = name or Path(folder).resolve().name
        if name in folders or name in ("base", "reference"):
            raise UserError(f"{value}: the name {name} is taken; give another one, NAME=FOLDER")
        folders[name] = folder
    return folders


def check_sampling(settings):
    """Raise UserError for a setting that cannot be meant."""
    shared = settings.adapter.keys() & settings.against.keys()
    if shared:
        raise UserError(f"--adapter and --against are both called {min(shared)}; give NAME=FOLDER")
    # os.path and not Path, which raises for a long question
    if os.path.isfile(os.path.join(settings.question or "", "adapter_config.json")):
        raise UserError(f"{settings.question} is an adapter, and no question; write --adapter "
                        "before each folder")
    if settings.compare and bool(settings.question) == bool(settings.data):
        raise UserError("--compare needs a question or --data, one of them")
    for name in ("data", "against", "markdown"):
        if getattr(settings, name) and not settings.compare:
            raise UserError(f"--{name} goes with --compare")
    if settings.system and settings.data:
        raise UserError("--system and --data contradict each other: the samples say what their "
                        "conversation begins with")
    page = Path(settings.markdown).absolute() if settings.markdown else None
    if page and (page.is_dir() or not page.parent.is_dir()):
        raise UserError(f"--markdown {page}: it must be a file in a folder that exists")
    # what is missing shows now, before a model is loaded and answers
    for folder in settings.adapter.values():
        read_json(Path(folder) / "adapter_config.json")
    for folder in settings.against.values():
        resolve(folder)
    if settings.data:
        dataset.find_dataset(settings.data)


# ----- how tokens are chosen ----------------------------------------------------------------------

def seed_generation(settings, model) -> dict:
    """The keyword arguments of model.generate and model.stream. Each call starts the seed again.

    From the last hidden state come the logits z, one per token of the vocabulary. Then

        p_i = exp(z_i / temperature) / sum_j exp(z_j / temperature)

    and the next token is drawn from p. Two tokens with logits 2 and 1 get 73 and 27 % at
    temperature 1, 88 and 12 % at 0.5, 62 and 38 % at 2. At 0 nothing is drawn: the likeliest wins.

    top_p acts after that. The tokens are sorted by p, the likeliest are kept until they sum to
    top_p, and the rest gets 0. The rest is a long tail of unlikely tokens. Each alone is hardly
    ever drawn, but together they are drawn often: 50,000 tokens at 0.0002 % each make 10 %.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    return {"max_new_tokens": settings.max_new_tokens, "temperature": settings.temperature,
            "top_p": settings.top_p, "generator": generator}


# ----- the chat -----------------------------------------------------------------------------------

def run_chat(settings, model, tokenizer, adapters: dict, system: list[dict]):
    """A turn per line until the input ends. `model` carries the first of `adapters`.

    A model remembers nothing. For every turn it reads the whole conversation from the beginning,
    whichever adapter gave the answers in it. At a terminal Ctrl-C stops the current answer. What
    was said of it counts as said.
    """
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401           input() edits its line with it
        print_note("/help lists the commands, Ctrl-D leaves")
    how = seed_generation(settings, model)
    adapters = adapters | {"base": None}
    active = next(iter(adapters))
    messages = [*system]
    while True:
        try:
            line = read_line(f"{active}> " if at_terminal else "")
            command, _, name = line.partition(" ")
            if command in ("/adapter", "/base"):
                name = "base" if command == "/base" else name.strip()
                active = answer_with(model, adapters, name, active, merge=not settings.nf4)
            elif command == "/reset":
                messages = [*system]
                print_note("the conversation starts over")
            elif command == "/help":
                print_note(CHAT_HELP.format(", ".join(adapters)))
            elif command in ("/quit", "/exit"):
                return
            elif command.startswith("/"):
                print_note(f"no command {command}; /help lists them")
            elif line:
                answer_turn(model, tokenizer, messages, line, how)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print()
        except UserError as e:
            print_note(str(e))


def read_line(prompt: str) -> str:
    """What the user types after `prompt`; at the end of the input "/quit"."""
    try:
        return input(prompt).strip()
    except EOFError:
        if prompt:
            print()
        return "/quit"


def answer_with(model, adapters: dict, name: str, active: str, merge: bool) -> str:
    """Merge the adapter called `name` -> the name of the one that now answers."""
    if name not in adapters:
        said = f"no adapter {name!r}" if name else f"{active} answers now"
        print_note(f"{said}; there are: {', '.join(adapters)}")
        return active
    with interruption():                # Ctrl-C waits: half of the layers switched is neither
        switch_adapter(model, adapters[name], merge)
    return name


def answer_turn(model, tokenizer, messages: list[dict], question: str, how: dict):
    """Print the answer to `question`, and append both to `messages`.

    The prompt and the longest answer must fit into the model's context (max_position_embeddings).
    If they do not, the oldest turns are taken out of `messages`. The system's message stays.
    """
    asked = [*messages, {"role": "user", "content": question}]
    prompt = fit_prompt(asked, tokenizer, room_for_prompt(model, how["max_new_tokens"]))
    forgotten = (len(messages) + 1 - len(asked)) // 2
    if forgotten:
        print_note(f"(the context is full: {forgotten} of the oldest turns forgotten)")
    answer = ""
    try:
        for piece in stream_answer(model, tokenizer, prompt, **how):
            answer += piece
            print_piece(piece)
        print()
    finally:                            # also after Ctrl-C
        if answer:
            messages[:] = [*asked, {"role": "assistant", "content": answer}]


def print_piece(piece: str):
    """A terminal is spared control characters, with which a text could take it over."""
    if sys.stdout.isatty():
        piece = replace_control(piece)
    print(piece, end="", flush=True)


def print_note(text: str):
    """What is not an answer goes to stderr, so that in a pipe stdout holds the answers alone."""
    print(text, file=sys.stderr, flush=True)


# ----- side by side -------------------------------------------------------------------------------

def compare_models(settings, model, tokenizer, adapters: dict, system: list[dict]):
    """Print a table for each question: the answers of the base, of each adapter and of --against.

    Each side answers all questions before the next one is loaded. With --temperature, drawing
    starts again from --seed for each side.
    """
    answers = {}
    if settings.data:
        path = dataset.find_dataset(settings.data) / "test.jsonl"
        conversations = dataset.read_messages(path)[:settings.n]
        answers["reference"] = [messages[-1]["content"] for messages in conversations]
        prompts = [messages[:-1] for messages in conversations]
    else:
        prompts = [[*system, {"role": "user", "content": settings.question}]]
    for name, side, side_tokenizer in open_sides(settings, model, tokenizer, adapters):
        start = time.perf_counter()
        how = seed_generation(settings, side)
        answers[name] = answer_conversations(side, side_tokenizer, prompts, how)
        seconds = time.perf_counter() - start
        print_note(f"{name}: {len(prompts)} answered in {seconds:.1f} s")
    questions = [dataset.question_of(messages) for messages in prompts]
    print_comparison(questions, answers)
    if settings.markdown:
        with replacing(Path(settings.markdown)) as part:
            part.write_text(format_comparison(settings, questions, answers), encoding="utf-8",
                            errors="backslashreplace")


def open_sides(settings, model, tokenizer, adapters: dict):
    """Yield (name, model, tokenizer): the base, then with each adapter, then other models.

    The base is loaded once and its adapters take turns, so three adapters need the memory of one.
    """
    for name, adapter in ({"base": None} | adapters).items():
        yield name, switch_adapter(model, adapter, merge=not settings.nf4), tokenizer
    for name, folder in settings.against.items():
        yield name, *open_model(folder, settings.device, settings.dtype, settings.nf4)


def answer_conversations(model, tokenizer, conversations: list[list[dict]], how: dict
                         ) -> list[str]:
    """The answers to conversations that end in a question, a batch at a time."""
    room = room_for_prompt(model, how["max_new_tokens"])
    prompts = [fit_prompt([*messages], tokenizer, room) for messages in conversations]
    answers = []
    for i in range(0, len(prompts), COMPARE_BATCH):
        batch = prompts[i:i + COMPARE_BATCH]
        answers += [answer.text for answer in generate_answers(model, tokenizer, batch, **how)]
    return answers


def print_comparison(questions: list[str], answers: dict[str, list[str]]):
    """answers: {name of a side: its answer to each question}."""
    columns = shutil.get_terminal_size((100, 24)).columns
    for i, question in enumerate(questions):
        texts = [side[i] for side in answers.values()]
        title = f"{i + 1} of {len(questions)} "
        print(f"\n{title:─<{columns}}")
        print(*wrap_text(question, columns), "", sep="\n")
        print(*terminal_table(list(answers), texts, columns, CELL_LINES), sep="\n")


def format_comparison(settings, questions: list[str], answers: dict[str, list[str]]
                      ) -> str:
    """The comparison as a page of Markdown, with a table of one row for each question."""
    how = "greedy"
    if settings.temperature:
        how = (f"drawn at temperature {settings.temperature:g}, top_p {settings.top_p:g}, seed "
               f"{settings.seed}")
    title = "Side by side"
    if settings.data:
        name = Path(settings.data).resolve().name
        title = f"{len(questions)} test samples of {name}, side by side"
    base = "nano" if resolve(settings.model) == NANO_BASE else Path(settings.model).name
    lines = [f"# {title}", "", f"The base is {base}; answers are {how}, of at most "
             f"{settings.max_new_tokens} tokens.", ""]
    # Not padded as plumbing.text.markdown_table does it: a cell may have 1500 letters.
    header = " | ".join(escape_markdown(name, CELL_LETTERS) for name in answers)
    for i, question in enumerate(questions):
        cells = " | ".join(escape_markdown(side[i], CELL_LETTERS) for side in answers.values())
        lines += [f"## {i + 1}", "", f"> {escape_markdown(question, CELL_LETTERS)}", "",
                  f"| {header} |", "|---" * len(answers) + "|", f"| {cells} |", ""]
    return "\n".join(lines)


# ----- the command line ---------------------------------------------------------------------------

def sample(settings):
    """Open the base and the adapters, then compare, answer once, or chat."""
    if settings.model is None:
        first = next(iter(settings.adapter.values()), None)
        settings.model = default_base(first)
    model, tokenizer = open_model(settings.model, settings.device, settings.dtype, settings.nf4)
    adapters = {name: open_adapter(folder, model) for name, folder in settings.adapter.items()}
    system = [{"role": "system", "content": settings.system}] if settings.system else []
    if settings.compare:
        compare_models(settings, model, tokenizer, adapters, system)
        return
    switch_adapter(model, next(iter(adapters.values()), None), merge=not settings.nf4)
    room_for_prompt(model, settings.max_new_tokens)         # an error before the first question
    if settings.question:
        how = seed_generation(settings, model)
        answer_turn(model, tokenizer, system, settings.question, how)
    else:
        run_chat(settings, model, tokenizer, adapters, system)


def main(argv=None):
    advice = "lower --max_new_tokens, or try --dtype bfloat16, or --nf4"
    with errors_in_one_line(advice, stopped=""):
        settings = parse_flags(Settings, "sample.py", __doc__, argv)
        settings.adapter = name_folders(settings.adapter or [])
        settings.against = name_folders(settings.against or [])
        check_sampling(settings)
        sample(settings)


if __name__ == "__main__":
    run_command(main)
