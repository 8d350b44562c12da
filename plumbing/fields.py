"""The one way in for what comes from outside: JSON, rows of CSV, TOML, command lines.

A shape says what may come. It looks like what it describes:

    {"type": "BPE",                     this text and no other
     "vocab": {str: whole()},           a table with any keys, of whole numbers from 0 on
     "merges": [(str, [str])],          a list of texts, or of lists of texts
     "normalizer?": (None, dict)}       may be missing, or null. Keys that are not named may come

    check({"type": "BPE", "vocab": {}, "merges": [3]}, shape, "tokenizer.json")
    UserError: tokenizer.json: merges[0] 3: it must be a text or a list

Nothing is converted: "8" is no number, "false" is not false, and true is not 1.
"""
import dataclasses
import math
import re
import reprlib
from collections.abc import Iterator

from plumbing.errors import UserError

LARGEST = 2 ** 63 - 1                               # what torch and a file can hold
WORDS = {str: "a text", bool: "true or false", list: "a list", dict: "a table", int: "a number",
         float: "a number"}
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


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
        ends = [f"{name.replace('_', ' ')} {getattr(self, name)}" for name in RANGES
                if getattr(self, name) != getattr(Number, name)]
        return ", ".join(["a number" if float in self.kinds else "a whole number", *ends])


RANGES = ("at_least", "above", "at_most")


def whole(at_least=0, at_most=LARGEST) -> Number:
    return Number(at_least, at_most=at_most, kinds=(int,))


def check(value, shape, source="", name: str = ""):
    """Raise UserError unless `value` has this shape. source: the file; name: where it is in it."""
    for place, part, wanted in misfits(value, shape, name):
        found = "is missing" if part is MISSING else shorten(part)
        source = f"{source}: " if source else ""
        raise UserError(f"{source}{place or 'it'} {found}: it must be {describe(wanted)}")


MISSING = object()


def misfits(value, shape, name: str) -> Iterator[tuple]:
    """Yield (its name, the part, what it must be) for each part that is not as `shape` says."""
    if isinstance(value, list) and isinstance(shape, list):
        for i, item in enumerate(value):
            yield from misfits(item, shape[0], f"{name}[{i}]")
    elif isinstance(value, dict) and isinstance(shape, dict) and str in shape:
        for key, item in value.items():
            yield from misfits(item, shape[str], f"{name}[{key!r}]")
    elif isinstance(value, dict) and isinstance(shape, dict):
        for key, one in shape.items():
            part = value.get(key.removesuffix("?"), MISSING)
            if not key.endswith("?") or part is not MISSING:
                yield from misfits(part, one, f"{name}.{key.removesuffix('?')}".lstrip("."))
    elif isinstance(shape, tuple):                  # one of these
        alike = [one for one in shape if isinstance(one, list | dict) and type(one) is type(value)]
        if alike:
            yield from misfits(value, alike[0], name)
        elif not any(is_single(value, one) for one in shape):
            yield name, value, shape
    elif not is_single(value, shape):
        yield name, value, shape


def is_single(value, shape) -> bool:
    """Whether `value` is in a range, of a type, or just what stands in the shape."""
    if isinstance(shape, Number):
        return shape.holds(value)
    return type(value) is shape or type(value) is type(shape) and value == shape


def describe(shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(map(describe, shape)))
    if isinstance(shape, list | dict):
        return WORDS[type(shape)]
    return WORDS[shape] if isinstance(shape, type) else str(shape)


def shorten(value) -> str:
    """`value` for an error, as Python writes it, and not all of a long one."""
    return str(value)[:60] if isinstance(value, int | float) else SHORT.repr(value)


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
        if isinstance(shape, Number) and value is not None and not shape.holds(value):
            _, *must = str(shape).split(", ")
            if value > shape.at_most == LARGEST or not must:
                must.append(f"at most {LARGEST}")
            raise UserError(f"--{field.name} {shorten(value)}: it must be {' and '.join(must)}")


def fits_pattern(pattern: str, text: str) -> bool:
    """Whether all of `text` fits a stranger's regular expression, which may be none."""
    try:
        return re.fullmatch(pattern, text) is not None
    except (re.error, RecursionError, OverflowError) as e:
        raise UserError(f"{shorten(pattern)} is no regular expression: {e}") from None
