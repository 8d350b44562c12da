"""The one way in for what comes from outside: JSON, rows of CSV, TOML, command lines.

A form is a dataclass. Its types and limits say what may come, and an error says it in one line:

    @dataclass
    class Rope:
        rope_theta: float = entry(above=1)
        rope_type: str = entry("default", choices=("default", "llama3"))

    read_fields(Rope, {"rope_theta": "1e4"}, "config.json")
    UserError: config.json: rope_theta '1e4': it must be a number, above 1

Nothing is converted but a whole number where a number is asked for: "8" is no 8, "false" is not
false, and true is not 1.
"""
import dataclasses
import re
import reprlib
import types
from typing import get_args, get_origin

from plumbing.errors import UserError, time_limit

LARGEST = 2 ** 63 - 1                               # what torch and a file can hold
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false",
         list: "a list", dict: "a table", types.NoneType: "null"}
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


def entry(default=dataclasses.MISSING, **limits):
    """A field of a form. Without a default it must be there.

    limits: `at_least`, `above`, `at_most`: a number's range; `choices`: all that it may be;
    `any_number`: it may be infinite or nan. Those of a list or a table are those of its values.
    """
    return dataclasses.field(default=default, metadata=limits)


def read_fields(form, content, source, prefix: str = ""):
    """An instance of the dataclass `form` from the table `content`. Other keys are left alone.

    null means the default where that is None. source: the file, for errors. prefix: where in it
    the table stands. Raises UserError for a field that is missing, of another type or out of its
    limits.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: {prefix or 'it'} must be a table, and not {shorten(content)}")
    values = {}
    for field in dataclasses.fields(form):
        name = prefix + field.name
        value = content.get(field.name)
        if value is not None or field.name in content and field.default is not None:
            values[field.name] = read_value(source, name, value, field.type, field.metadata)
        elif field.default is dataclasses.MISSING:
            must = describe_kind(field.type, field.metadata)
            raise UserError(f"{source} lacks {name!r}: it must be {must}")
    return form(**values)


def check_ranges(settings):
    """Raise UserError for the first flag of a command line that is out of its limits."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, int | float) and not is_within(value, **field.metadata):
            must = describe_limits(value, **field.metadata)
            raise UserError(f"--{field.name} {shorten(value)}: it must be {must}")


def read_value(source, name: str, value, kind, limits):
    """`value`, if it is of `kind` and within `limits`."""
    for one in get_args(kind) if isinstance(kind, types.UnionType) else [kind]:
        outer, (*_, inner) = get_origin(one) or one, get_args(one) or [None]
        if dataclasses.is_dataclass(one) and isinstance(value, dict):
            return read_fields(one, value, source, f"{name}.")
        if type(value) is outer and outer in (list, dict):
            return value if inner is None else read_items(source, name, value, inner, limits)
        if type(value) is one or one is float and type(value) is int:
            if is_within(value, **limits):
                return one(value) if one is float else value
            must = describe_limits(value, **limits)
            raise UserError(f"{source}: {name} {shorten(value)}: it must be {must}")
    must = describe_kind(kind, limits)
    raise UserError(f"{source}: {name} {shorten(value)}: it must be {must}")


def read_items(source, name: str, items, kind, limits):
    """The same for each item of a list, or each value of a table."""
    pairs = items.items() if isinstance(items, dict) else enumerate(items)
    read = {key: item if type(item) is kind and is_within(item, **limits)       # most are: quickly
            else read_value(source, f"{name}[{shorten(key)}]", item, kind, limits)
            for key, item in pairs}
    return read if isinstance(items, dict) else list(read.values())


def is_within(value, at_least=-LARGEST, above=None, at_most=LARGEST, choices=None,
              any_number=False, **_) -> bool:
    """Whether `value` is within the limits of an `entry`. nan lies in no range."""
    if choices is not None:
        return value in choices
    if any_number or not isinstance(value, int | float):
        return True
    return at_least <= value <= at_most and (above is None or value > above)


def describe_kind(kind, limits) -> str:
    """int | None, at_least=1 -> "a whole number or null, at least 1"."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else [kind]
    words = " or ".join(KINDS.get(get_origin(one) or one, "a table") for one in kinds)
    return ", ".join(filter(None, [words, describe_limits(**limits)]))


def describe_limits(value=0, at_least=None, above=None, at_most=None, choices=None, **_) -> str:
    if choices is not None:
        return f"one of {', '.join(map(str, choices))}"
    if at_most is None and value > LARGEST:
        at_most = LARGEST
    words = {"at least": at_least, "above": above, "at most": at_most}
    return " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)


def shorten(value) -> str:
    """`value` for an error, as Python writes it, and not all of a long one."""
    return str(value)[:60] if isinstance(value, int | float) else SHORT.repr(value)


def fits_pattern(pattern: str, text: str) -> bool:
    """Whether all of `text` fits a stranger's regular expression, which may be none, or slow."""
    with time_limit(1, f"the pattern {shorten(pattern)}"):
        try:
            return re.fullmatch(pattern, text) is not None
        except (re.error, RecursionError, OverflowError) as e:
            raise UserError(f"{shorten(pattern)} is no regular expression: {e}") from None
