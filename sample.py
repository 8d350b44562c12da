"""Talk to a model; base and adapted answers side by side.

    python sample.py --adapter out/3f087d1874 "Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có bao nhiêu quả táo?"
    python sample.py --adapter out/3f087d1874 --adapter sums=out/5f0c9d2e11         # a chat: /adapter sums, /base, /reset, /help
    python sample.py --adapter out/3f087d1874 --against full=out/0b8d1c77f3 --compare --data nano --n 10 --markdown answers.md

An adapter goes by the last part of its folder's path, or by the name before "=". All of them share one base: switching merges
the one that is asked for in place (lora.set_adapter). A question and a chat begin with the first of them.
"""
import argparse
import contextlib
import itertools
import math
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

import dataset
from engine import base_of, fit_prompt, generate_answers, open_model, room_for_prompt, stream_answer
from lora import read_adapter, set_adapter
from model import Transformer
from plumbing.cli import make_parser, run_command
from plumbing.device import DTYPES
from plumbing.errors import UserError, errors_in_one_line, interruption
from plumbing.files import NANO_BASE, replacing, resolve
from tokenizer import Tokenizer

HELP = """/reset          forget the conversation
/adapter NAME   answer with this adapter, one of: {}
/base           answer without one
/exit, Ctrl-D   leave
Ctrl-C          stop the answer under way"""
UNSEEN = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd") | {13: None}
BATCH = 8           # samples that --compare answers at once
LINES = 16          # of a cell in the terminal; what is longer has most likely lost the thread
LETTERS = 1500      # of a cell in Markdown


# ----- settings -----------------------------------------------------------------------------------------------------

def parse(argv=None) -> argparse.Namespace:
    parser = make_parser("sample.py", __doc__)
    add = parser.add_argument
    add("question", nargs="?", help="answered once; without it: a chat, a line a turn")
    add("--model", help="folder, hub repository, or nano; default: the first adapter's base, else nano")
    add("--adapter", action="append", default=[], metavar="[NAME=]FOLDER", help="given several times, or with commas: several")
    add("--system", help="what the conversation begins with, as the system's message")
    add = parser.add_argument_group("generation").add_argument
    add("--max_new_tokens", type=int, default=256, help="longest answer (default: 256)")
    add("--temperature", type=float, default=0.0, help="0: the likeliest token; above: drawn, the flatter the higher (default: 0)")
    add("--top_p", type=float, default=1.0, help="draw from the likeliest tokens that make up this probability (default: 1)")
    add("--seed", type=int, default=42, help="of the drawing (default: 42)")
    add = parser.add_argument_group("comparison").add_argument
    add("--compare", action="store_true", help="set base and adapters side by side, for the question or for --data")
    add("--data", help="name under data/, or a folder: answer its first test samples, beside the reference")
    add("--n", type=int, default=5, help="how many of them (default: 5)")
    add("--against", action="append", default=[], metavar="[NAME=]MODEL", help="a whole model beside them, fully fine-tuned, say")
    add("--markdown", metavar="FILE", help="write the comparison there, too")
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ...; auto: cuda if there is one, else cpu")
    add("--dtype", default="auto", choices=("auto", *DTYPES), help="of the computation; auto: as in train.py")
    add("--nf4", action="store_true", help="the base in four bits, adapters beside it and not merged")
    args = parser.parse_args(argv)
    args.adapter, args.against = named(args.adapter), named(args.against)
    return args


def named(values: list[str]) -> dict[str, str]:
    """["out/a,b=out/c", ...] -> {"a": "out/a", "b": "out/c", ...}."""
    pairs = []
    for value in filter(None, ",".join(values).split(",")):
        name, _, folder = value.partition("=") if "=" in value and not Path(value).is_dir() else ("", "", value)
        pairs.append((name or Path(folder).resolve().name, folder))
    if len(dict(pairs)) < len(pairs) or {"base", "reference"} & dict(pairs).keys():
        raise UserError(f"{', '.join(name for name, _ in pairs)}: two of one name (base and reference are taken); give NAME=FOLDER")
    return dict(pairs)


def check(args):
    """Raise UserError for a setting that cannot be meant."""
    for name, good, words in (("max_new_tokens", args.max_new_tokens >= 1, "at least 1"), ("n", args.n >= 1, "at least 1"),
                              ("temperature", 0 <= args.temperature < math.inf, "a number of at least 0"),
                              ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1"),
                              ("seed", 0 <= args.seed < 2 ** 63, "at least 0")):
        if not good:
            raise UserError(f"--{name} {getattr(args, name)}: it has to be {words}")
    if shared := args.adapter.keys() & args.against.keys():
        raise UserError(f"--adapter and --against are both called {min(shared)}; give NAME=FOLDER")
    if args.compare and bool(args.question) == bool(args.data):
        raise UserError("--compare needs a question or --data, one of them")
    for name in ("data", "against", "markdown"):
        if getattr(args, name) and not args.compare:
            raise UserError(f"--{name} goes with --compare")
    if args.system and args.data:
        raise UserError("--system and --data contradict each other: the samples say what their conversation begins with")


# ----- a model and its answers --------------------------------------------------------------------------------------

def generation(args, model) -> dict:
    """How to generate, for model.generate and model.stream; what is drawn begins anew with each call of this."""
    generator = torch.Generator(model.model.embed_tokens.weight.device).manual_seed(args.seed)
    return {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p, "generator": generator}


def show(piece: str):
    """Print `piece`. A terminal is spared control characters, with which a text could take it over."""
    print(piece.translate(UNSEEN) if sys.stdout.isatty() else piece, end="", flush=True)


def note(text: str):
    """What is no answer goes to stderr: in a pipe, stdout holds the answers alone."""
    print(text, file=sys.stderr, flush=True)


# ----- the chat -----------------------------------------------------------------------------------------------------

def chat(model, tokenizer, adapters: dict, system: list[dict], how: dict, merge: bool):
    """A turn a line until the input ends; the model carries the first of `adapters`. At a terminal Ctrl-C stops the answer under
    way, and what was said of it counts as said."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401           input() edits its line with it
        note("/help lists the commands, Ctrl-D leaves")
    messages, active, adapters = [*system], next(iter(adapters), "base"), adapters | {"base": None}
    while True:
        try:
            line = input(f"{active}> " if terminal else "").strip()
            command, _, name = line.partition(" ")
            name = "base" if command == "/base" else name.strip()
            if command in ("/adapter", "/base") and name in adapters:
                with interruption():                # a Ctrl-C is left unheard: half a switch would be neither
                    set_adapter(model, adapters[name], merge)
                active = name
            elif command == "/adapter":
                note(f"no adapter {name!r}; there are: {', '.join(adapters)}")
            elif command == "/reset":
                messages = [*system]
                note("the conversation begins anew")
            elif command == "/help":
                note(HELP.format(", ".join(adapters)))
            elif command == "/exit":
                return
            elif command.startswith("/"):
                note(f"no command {command}; /help lists them")
            elif line:
                turn(model, tokenizer, messages, line, how)
        except EOFError:
            return print() if terminal else None
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
        except UserError as e:
            note(str(e))


def turn(model, tokenizer, messages: list[dict], question: str, how: dict):
    """Answer `question`, and put both at the end of `messages`, of which the oldest turns may have to go."""
    asked, said = [*messages, {"role": "user", "content": question}], []
    ids = fit_prompt(asked, tokenizer, room_for_prompt(model, how["max_new_tokens"]))
    if forgotten := (len(messages) + 1 - len(asked)) // 2:
        note(f"(the context is full: {forgotten} of the oldest turns forgotten)")
    try:
        for piece in stream_answer(model, tokenizer, ids, **how):
            said.append(piece)
            show(piece)
        print()
    finally:
        if "".join(said):
            messages[:] = [*asked, {"role": "assistant", "content": "".join(said)}]


# ----- side by side -------------------------------------------------------------------------------------------------

def compare(args, model, tokenizer, adapters: dict, system: list[dict]):
    """Answers of the base, of each adapter and of each model of --against, as a table for each question."""
    if args.data:
        conversations = dataset.read_messages(dataset.find_dataset(args.data) / "test.jsonl")[:args.n]
        answers = {"reference": [messages[-1]["content"] for messages in conversations]}
    else:
        conversations, answers = [[*system, {"role": "user", "content": args.question}, {}]], {}
    for name, model, tokenizer in sides(args, model, tokenizer, adapters):
        start = time.perf_counter()
        answers[name] = answer_all(model, tokenizer, [messages[:-1] for messages in conversations], generation(args, model))
        note(f"{name}: {len(conversations)} answered in {time.perf_counter() - start:.1f} s")
    questions, rows = [messages[-2]["content"] for messages in conversations], list(zip(*answers.values()))
    columns = shutil.get_terminal_size((100, 24)).columns
    for number, (question, row) in enumerate(zip(questions, rows), 1):
        print(f"\n{f'{number} of {len(rows)} ':─<{columns}}", *wrap(question, columns), "", *table(answers, row, columns), sep="\n")
    if args.markdown:
        with replacing(Path(args.markdown)) as part:
            part.write_text(markdown(args, list(answers), questions, rows), encoding="utf-8")


def sides(args, model, tokenizer, adapters: dict) -> Iterator[tuple[str, Transformer, Tokenizer]]:
    for name, adapter in ({"base": None} | adapters).items():
        yield name, set_adapter(model, adapter, merge=not args.nf4), tokenizer
    for name, folder in args.against.items():
        yield name, *open_model(folder, args.device, args.dtype, args.nf4)


def answer_all(model, tokenizer, conversations: list[list[dict]], how: dict) -> list[str]:
    room = room_for_prompt(model, how["max_new_tokens"])
    prompts, answers = [fit_prompt([*messages], tokenizer, room) for messages in conversations], []
    for batch in (prompts[i:i + BATCH] for i in range(0, len(prompts), BATCH)):
        answers += [answer.text for answer in generate_answers(model, tokenizer, batch, **how)]
    return answers


# ----- a table in the terminal --------------------------------------------------------------------------------------

def columns_of(text: str) -> int:
    """How many columns of a terminal `text` takes: none for a mark on the letter before it, two for a wide character."""
    return sum(0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` columns, broken at a space where there is one, and anywhere between wide characters."""
    lines = []
    for line in text.expandtabs(4).translate(UNSEEN).split("\n"):
        while columns_of(line) > columns:
            widths = itertools.accumulate(map(columns_of, line))
            end = max(1, sum(width <= columns for width in widths))        # as many characters as fit
            space = line.rfind(" ", 0, end + 1)
            if line[:max(space, 0)].strip() and max(map(columns_of, line[space + 1:end + 1]), default=0) < 2:
                end = space
            lines.append(line[:end].rstrip())
            line = line[end:].lstrip()
        lines.append(line)
    return lines


def beside(cells: list[list[str]], widths: list[int], between: str) -> list[str]:
    """Cells, each some lines, side by side, filled up to their widths."""
    return [between.join(line + " " * (width - columns_of(line)) for line, width in zip(lines, widths)).rstrip()
            for lines in itertools.zip_longest(*cells, fillvalue="")]


def table(names: Iterable[str], texts: Iterable[str], columns: int) -> list[str]:
    """Lines: a column a name, or, where they would be narrower than 20, one under the other."""
    names = list(names)
    width = (columns - 3 * (len(names) - 1)) // len(names)
    if width < 20:
        left = min(20, max(map(columns_of, names)))
        return [line for name, text in zip(names, texts)
                for line in beside([wrap(name, left), cut(wrap(text, columns - left - 2))], [left, columns - left - 2], "  ")]
    widths = [width] * len(names)
    return [*beside([wrap(name, width) for name in names], widths, " │ "), "─┼─".join("─" * width for width in widths),
            *beside([cut(wrap(text, width)) for text in texts], widths, " │ ")]


def cut(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LINES else [*lines[:LINES - 1], "…"]


# ----- and in Markdown ----------------------------------------------------------------------------------------------

def markdown(args, names: list[str], questions: list[str], rows: list[tuple[str]]) -> str:
    drawn = f"drawn at temperature {args.temperature:g}, top_p {args.top_p:g}, seed {args.seed}" if args.temperature else "greedy"
    of = f" of {Path(args.data).resolve().name}" if args.data else ""
    base = "nano" if resolve(args.model) == NANO_BASE else Path(args.model).name
    lines = [f"# {len(rows)} test samples{of}, side by side" if args.data else "# Side by side", "",
             f"The base is {base}; answers are {drawn}, of at most {args.max_new_tokens} tokens.", ""]
    for number, (question, row) in enumerate(zip(questions, rows), 1):
        cells = [" | ".join(map(escaped, texts)) for texts in (names, row)]
        lines += [f"## {number}\n\n> {escaped(question)}\n", f"| {cells[0]} |", "|---" * len(names) + "|", f"| {cells[1]} |", ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """`text` in a cell, its characters meaning themselves."""
    text = text if len(text) <= LETTERS else text[:LETTERS] + " …"
    return re.sub(r"([\\`*_|<>~$#\[\]])", r"\\\1", text.translate(UNSEEN)).replace("\n", "<br>")


# ----- all of it ----------------------------------------------------------------------------------------------------

def sample(args):
    check(args)
    if args.markdown and not Path(args.markdown).absolute().parent.is_dir():
        raise UserError(f"--markdown {args.markdown}: there is no such folder")
    for folder in args.against.values():
        resolve(folder)                 # what is not there is said before the others have answered
    args.model = args.model or (base_of(next(iter(args.adapter.values()))) if args.adapter else "nano")
    model, tokenizer = open_model(args.model, args.device, args.dtype, args.nf4)
    adapters = {name: read_adapter(folder, model) for name, folder in args.adapter.items()}
    system = [{"role": "system", "content": args.system}] if args.system else []
    if args.compare:
        return compare(args, model, tokenizer, adapters, system)
    room_for_prompt(model, args.max_new_tokens)
    set_adapter(model, next(iter(adapters.values()), None), merge=not args.nf4)
    if args.question:
        turn(model, tokenizer, system, args.question, generation(args, model))
    else:
        chat(model, tokenizer, adapters, system, generation(args, model), merge=not args.nf4)


def main(argv=None):
    with errors_in_one_line("lower --max_new_tokens, or try --dtype bfloat16, or --nf4", stopped=""):
        sample(parse(argv))


if __name__ == "__main__":
    run_command(main)
