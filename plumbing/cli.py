"""Command lines: flags from a dataclass, their ranges, and the frame that every command shares."""
import argparse
import dataclasses
import difflib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable

from plumbing.errors import fail
from plumbing.fields import RANGES, check_ranges

# What flags are called elsewhere (transformers, PEFT, TRL, other trainers), and here.
OURS = {
    "model_name_or_path": "--model", "model_name": "--model",
    "dataset": "--data", "dataset_name": "--data",
    "r": "--rank", "lora_r": "--rank", "lora_rank": "--rank", "lora_alpha": "--alpha",
    "lora_dropout": "--dropout", "lora_target_modules": "--targets", "target_modules": "--targets",
    "rslora": "--method rslora", "use_rslora": "--method rslora",
    "dora": "--method dora", "use_dora": "--method dora",
    "qlora": "--method qlora", "load_in_4bit": "--nf4",
    "load_in_8bit": "--nf4 (four bits; there is no base in eight)",
    "learning_rate": "--lr", "lr_scheduler_type": "--schedule", "lr_scheduler": "--schedule",
    "warmup_steps": "--warmup_ratio (a share of the steps)",
    "optim": "--optimizer", "max_grad_norm": "--grad_clip",
    "per_device_train_batch_size": "--micro_bs", "batch_size": "--micro_bs",
    "micro_batch_size": "--micro_bs", "gradient_accumulation_steps": "--grad_accum",
    "logging_steps": "--eval_steps (each evaluation is a row of log.csv)",
    "save_steps": "--resume (a run saves by itself)",
    "save_strategy": "--keep (last or best)",
    "num_train_epochs": "--epochs", "num_epochs": "--epochs",
    "max_seq_length": "--max_length", "max_seq_len": "--max_length", "cutoff_len": "--max_length",
    "bf16": "--dtype bfloat16", "fp16": "--dtype float16", "torch_dtype": "--dtype",
    "torch_compile": "--compile", "output_dir": "--out",
    "load_best_model_at_end": "--keep best", "resume_from_checkpoint": "--resume",
    "overwrite_output_dir": "--overwrite"}
OUR_CHOICES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "8bit": "adamw8bit",
               "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_bnb_8bit": "adamw8bit"}


def flag(default, help: str, **how):
    """A field of a settings dataclass that is also a flag of the command line.

    how: `group`, the title of the group of flags that begins here; `at_least`, `above`, `at_most`,
    its range; `positional`, for an argument without dashes; and whatever argparse's add_argument
    takes.
    """
    return dataclasses.field(default=default, metadata={"help": help, **how})


def make_parser(script: str, doc: str, **more) -> argparse.ArgumentParser:
    """A parser that prints `doc` as its help, and ends a wrong command line with one line."""
    columns = shutil.get_terminal_size((100, 24)).columns
    parser = argparse.ArgumentParser(
        prog=script, description=fit_doc(doc or "", columns), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def end(message):
        flags = {name: action for action in parser._actions for name in action.option_strings}
        hint = suggest_flags(message, list(flags)) or suggest_choice(message, flags)
        fail(f"{message}{hint} (python {script} --help lists the settings)")

    parser.error = end
    return parser


def fit_doc(doc: str, columns: int) -> str:
    """`doc` with its prose in lines of at most `columns`.

    Indented lines stay as they are: a command in two lines could not be pasted.
    """
    paragraphs = doc.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if not paragraph.startswith(" "):
            points = paragraph.replace("\n- ", "\n\n- ").split("\n\n")        # a list's, or one
            paragraphs[i] = "\n".join(textwrap.fill(
                " ".join(point.split()), min(columns, 100), break_on_hyphens=False,
                subsequent_indent="  " * point.startswith("- ")) for point in points)
    return "\n\n".join(paragraphs)


def suggest_flags(message: str, flags: list[str]) -> str:
    """What was probably meant by unknown flags, from argparse's message about them.

    "unrecognized arguments: --lora_r 8 --sed=4" -> "; for --lora_r write --rank; for --sed write
    --seed". flags: those that exist.
    """
    start, hints = "unrecognized arguments: ", ""
    if not message.startswith(start):
        return ""
    asked = [word.partition("=")[0] for word in message.removeprefix(start).split()]
    for word in dict.fromkeys(asked):
        if word.startswith("-") and (ours := suggest_flag(word.lstrip("-"), flags)):
            hints += f"; for {word} write {ours}"
    return hints


def suggest_choice(message: str, flags: dict) -> str:
    """The choice that was probably meant, from argparse's message about one that does not exist.

    "argument --method: invalid choice: 'DoRa' (choose from ..." -> "; write dora".
    flags: {name: argparse's action}.
    """
    wrong = re.match(r"argument (--\w+): invalid choice: '(.*?)'", message)
    if not wrong:
        return ""
    choices = flags[wrong[1]].choices
    close = OUR_CHOICES.get(wrong[2].lower(), "")
    if close not in choices:
        close = nearest(wrong[2], choices)
    return f"; write {close}" if close else ""


def nearest(word: str, known) -> str:
    """The one of `known` that is spelt most like `word`; "" if none is."""
    plain = word.lower().replace("-", "").replace(" ", "_")
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")


def suggest_flag(name: str, flags: list[str]) -> str:
    """The flag that somebody who wrote `name` meant: by its name elsewhere, or by its spelling."""
    name = name.replace("-", "_")
    ours = OURS.get(name, "")
    if ours.partition(" ")[0] in flags:
        return ours
    return next(iter(difflib.get_close_matches(f"--{name}", flags, n=1, cutoff=0.8)), "")


def add_flags(parser, settings_class, only=None, **changes):
    """Give `parser` a flag for each field of the dataclass; only: for these names alone.

    changes: {name: {...}} replaces entries of the field's metadata; "default" its default.
    """
    group = parser
    for field in dataclasses.fields(settings_class):
        if only is not None and field.name not in only:
            continue
        how = {key: value for key, value in field.metadata.items() if key not in RANGES}
        how |= changes.get(field.name, {})
        title = how.pop("group", None)
        if title and only is None:
            group = parser.add_argument_group(title)
        add_flag(group, field.name, field.type, how.pop("default", field.default), **how)


def add_flag(group, name: str, kind, default, help: str, **how):
    if default is not None and default is not False and "default" not in help:
        help += f" (default: {default})"
    if kind is bool:
        how["action"] = argparse.BooleanOptionalAction
    elif "action" not in how:
        how.setdefault("type", kind)
    if len(str(how.get("choices", ""))) > 80:       # too many for a line
        help += f"; one of {', '.join(how['choices'])}"
        how["metavar"] = name.upper()
    positional = how.pop("positional", False) or how.get("nargs") == "?"
    name = name if positional else f"--{name}"
    group.add_argument(name, default=default, help=help.replace("%", "%%"), **how)


def parse_flags(settings_class, script: str, doc: str, argv=None):
    """-> an instance of `settings_class`. Raises UserError for a number out of its range."""
    parser = make_parser(script, doc)
    add_flags(parser, settings_class)
    return read_flags(parser, argv, settings_class)[0]


def read_flags(parser, argv, *classes) -> list:
    """-> an instance of each settings class. Raises UserError for a number out of its range."""
    values = vars(parser.parse_args(argv))
    made = [one(**{field.name: values[field.name] for field in dataclasses.fields(one)
                   if field.name in values}) for one in classes]
    for settings in made:
        check_ranges(settings)
    return made


def run_command(main: Callable):
    """Run a script's main(), with streams that can be written to whatever the caller left of them.

    A closed stream becomes one that leads nowhere. Otherwise the next file that is opened would
    take its number, and get what is printed. A letter that a terminal cannot show is no reason to
    stop. Where the reader of the output has gone, as `| head` goes, it ends without a word and with
    exit code 141, as other programs do in a shell.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))    # takes the number
        if hasattr(getattr(sys, name), "reconfigure"):          # a notebook's streams have none
            getattr(sys, name).reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):         # Python flushes both again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)
