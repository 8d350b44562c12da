"""The one way in for what comes from outside: JSON, rows of CSV, TOML, flags, the environment.

A shape says what may come. It looks like what it describes:

    {"type": "BPE",                     this text and no other
     "vocab": {str: whole()},           a table with any keys, of whole numbers from 0 on
     "merges": [(str, [str])],          a list of texts, or of lists of texts
     "normalizer?": (None, dict)}       may be missing, or null. Keys that are not named may come

    check({"type": "BPE", "vocab": {}, "merges": [3]}, shape, "tokenizer.json")
    UserError: tokenizer.json: merges[0] 3: it must be a text or a list

check() converts nothing: "8" is no number, "false" is not false, and true is not 1. Where there is
nothing but text, in a cell or in the environment, number_of() comes first.
"""
import contextlib
import dataclasses
import json
import math
import re

from plumbing.errors import UserError

LARGEST = 2 ** 63 - 1                               # what torch and a file can hold
WORDS = {str: "a text", bool: "true or false", list: "a list", dict: "a table", int: "a number",
         float: "a number"}


@dataclasses.dataclass(frozen=True)
class Number:
    """A range. A whole number may stand where any may; nan lies in no range."""
    at_least: float = -LARGEST
    above: float = -math.inf
    at_most: float = LARGEST
    kinds: tuple = (int, float)

    def holds(self, value) -> bool:
        return type(value) in self.kinds and (
            self.at_least <= value <= self.at_most and value > self.above)

    def __str__(self):
        ends = " and ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in RANGES
                            if getattr(self, name) != getattr(Number, name))
        kind = "a number" if float in self.kinds else "a whole number"
        return f"{kind}, {ends}" if ends else kind


RANGES = ("at_least", "above", "at_most")


def whole(at_least=0, at_most=LARGEST) -> Number:
    return Number(at_least, at_most=at_most, kinds=(int,))


def check(value, shape, source="", name: str = ""):
    """-> `value`. Raises UserError unless it has this shape.

    source: the file that it is from; name: where it is in there.
    """
    choices = shape if isinstance(shape, tuple) else (shape,)
    if any([is_single(value, one) for one in choices]):
        return value
    inner = next((one for one in choices if isinstance(one, list | dict)
                  and type(one) is type(value)), None)
    if isinstance(inner, list):                     # [shape of every item]
        check_items(enumerate(value), inner[0], source, name)
    elif inner is not None and str in inner:        # {str: shape of every value}
        check_items(value.items(), inner[str], source, name)
    elif inner is not None:                         # {key: shape of its value, ...}
        for key, of_value in inner.items():
            key, optional = key.removesuffix("?"), key.endswith("?")
            if key in value or not optional:
                check(value.get(key, ...), of_value, source, f"{name}.{key}".lstrip("."))
    else:
        found = "is missing" if value is ... else show_value(value)
        if type(value) in (int, float) and abs(value) > LARGEST:
            found += " (too large)"
        where = f"{source}: {name or 'its content'}".removeprefix(": ")
        raise UserError(f"{where} {found}: it must be {describe(shape)}")
    return value


def check_items(items, shape, source, name):
    """check() every (key, value) of `items`."""
    for key, item in items:
        if type(item) is not shape:                 # a vocabulary has 150,000 that are
            check(item, shape, source, f"{name}[{key!r}]")


def is_single(value, shape) -> bool:
    """Whether `value` is in a range, of a type, or just what stands in the shape."""
    if isinstance(shape, Number):
        return shape.holds(value)
    return type(value) is shape or type(value) is type(shape) and value == shape


def describe(shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(map(describe, shape)))
    if isinstance(shape, Number | str):
        return str(shape) or "empty"
    kind = type(shape) if isinstance(shape, list | dict) else shape
    return WORDS[kind] if isinstance(kind, type) else show_value(shape)


def show_value(value) -> str:
    """null, true and false as files have them; the rest as Python shows it, cut to 60 letters."""
    return json.dumps(value) if value is None or isinstance(value, bool) else f"{value!r:.60}"


def shape_of_flag(field):
    """The shape of a flag's value; field: of a dataclass of flags (plumbing/cli.py)."""
    if field.type not in (int, float):
        return tuple(field.metadata.get("choices", (field.type,)))
    ends = {name: field.metadata[name] for name in RANGES if name in field.metadata}
    return Number(**ends, kinds=(int,) if field.type is int else (int, float))


def check_ranges(settings):
    """Raise UserError for the first flag of a command line that is out of its range."""
    for field in dataclasses.fields(settings):
        value, shape = getattr(settings, field.name), shape_of_flag(field)
        if isinstance(shape, Number) and value is not None:
            check(value, shape, name=f"--{field.name}")


def number_of(text: str) -> int | float | str:
    """The number that a text says, else the text: check() says what is wrong with it.

    Python's int() would also take "1_000", "٣" and " 8 ". (argparse uses it for flags.)
    """
    if not re.fullmatch("[-+.0-9a-zA-Z]+", text):       # letters: 1e-5, nan, inf
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def fits_pattern(pattern: str, text: str) -> bool:
    """Whether all of `text` fits a stranger's regular expression, which may be none."""
    try:
        return re.fullmatch(pattern, text) is not None
    except (re.error, RecursionError, OverflowError) as e:
        raise UserError(f"{pattern!r:.60} is no regular expression: {e}") from None
