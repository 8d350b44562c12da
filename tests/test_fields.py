"""Shapes: what they let pass, and what they say of the rest."""
import math

import pytest

from plumbing.errors import UserError, time_limit
from plumbing.fields import Number, check, fits_pattern, number_of, whole

SHAPE = {"kind": ("a", "b"), "sizes": [whole(1, 9)], "names": {str: str}, "eps?": Number(above=0),
         "inner?": ({"on": bool}, None), "exactly?": False, "table?": dict}
GOOD = {"kind": "b", "sizes": [1, 9], "names": {"x?": "y", "": ""}}


@pytest.mark.parametrize("more", [
    {}, {"eps": 1}, {"eps": 1e-9}, {"inner": None}, {"inner": {"on": True, "else": 3}},
    {"exactly": False}, {"table": {}}, {"sizes": []}, {"names": {}}, {"unknown": math.nan}])
def test_what_passes(more):
    check(GOOD | more, SHAPE, "f.json")


@pytest.mark.parametrize("change, words", [
    ({"kind": "c"}, "f.json: kind 'c': it must be a or b"), ({"kind": ["a"]}, "kind ['a']"),
    ({"sizes": [1, 10]}, "sizes[1] 10: it must be a whole number, at least 1 and at most 9"),
    ({"sizes": [True]}, "sizes[0] true: it must be"), ({"sizes": [1.0]}, "sizes[0] 1.0"),
    ({"sizes": "1"}, "sizes '1': it must be a list"), ({"sizes": {}}, "sizes {}: it must be a li"),
    ({"names": {"x": 3}}, "names['x'] 3: it must be a text"), ({"names": []}, "names []"),
    ({"eps": 0}, "eps 0: it must be a number, above 0"), ({"eps": None}, "eps null"),
    ({"eps": "1"}, "eps '1'"), ({"eps": math.nan}, "eps nan"), ({"eps": math.inf}, "eps inf"),
    ({"eps": 10 ** 400}, "eps 1000"), ({"eps": True}, "eps true: it must be"),
    ({"inner": {}}, "inner.on is missing: it must be true or false"),
    ({"inner": 3}, "inner 3: it must be a table or null"),
    ({"exactly": 0}, "exactly 0: it must be false"), ({"exactly": "false"}, "exactly 'false'"),
    ({"table": []}, "table []: it must be a table")])
def test_what_does_not(change, words):
    with pytest.raises(UserError) as e:
        check(GOOD | change, SHAPE, "f.json")
    assert words in str(e.value) and len(str(e.value)) < 300


def test_what_is_missing_is_named():
    for name in ("kind", "sizes", "names"):
        with pytest.raises(UserError, match=f"f.json: {name} is missing: it must be "):
            check({key: value for key, value in GOOD.items() if key != name}, SHAPE, "f.json")
    with pytest.raises(UserError, match=r"f.json: its content \[\]: it must be a table"):
        check([], SHAPE, "f.json")


def test_a_text_that_says_a_number():
    numbers = {"8": 8, "-1": -1, "1e-5": 1e-5, ".5": 0.5, "+2.": 2.0, "inf": math.inf}
    for text, number in numbers.items():
        assert number_of(text) == number and type(number_of(text)) is type(number)
    assert math.isnan(number_of("nan"))
    for text in ("1_000", "1_0.5", "٣", "３", " 8 ", "8\n", "", "x", "0x8", "1e", "--1"):
        assert number_of(text) == text


def test_a_pattern_that_is_none():
    assert fits_pattern("a+", "aaa") and not fits_pattern("a+", "aab")
    for pattern in ("(", "[", "a{99999999999999}", "*"):
        with pytest.raises(UserError, match="is no regular expression"):
            fits_pattern(pattern, "a")


def test_a_time_limit_counts_computing_and_ends_with_its_block():
    with pytest.raises(UserError, match="it takes longer than 0.05 s"), time_limit(0.05, "it"):
        while True:
            pass
    with time_limit(0.05, "it"):
        pass
    sum(i for i in range(2_000_000))        # no late signal
