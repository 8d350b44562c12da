"""Seeded mutants of every kind of file (tests/hostile.py): no traceback, no hang, nothing else
changed. `python tests/hostile.py 50000` is the long form."""
import collections
import shutil

import pytest
from hostile import cases, make_valid_files, try_mutant

KINDS = ["config", "llama", "checkpoint", "full", "tokenizer", "adapter", "export", "data",
         "finished", "curve", "resume", "sweep", "grid", "evaluation", "table"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(where valid files lie, where a mutated copy of them goes: the paths in them name it)."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.move(make_valid_files(folder / "files"), folder / "valid")
    assert list(cases(folder)) == KINDS
    return folder / "valid", folder / "files"


def try_mutants(files, seeds):
    counts, wrong = collections.Counter(), []
    for seed in seeds:
        for kind in KINDS:
            result, text = try_mutant(kind, seed, *files)
            counts[result] += 1
            if result not in ("accepted", "refused"):
                wrong.append(f"{kind} {seed}: {result}\n{text}")
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > counts["accepted"] / 4 > 0       # it is no fuzzer of mere noise


@pytest.mark.slow
def test_the_valid_files_are_accepted(files):
    valid, scratch = files
    for kind in KINDS:
        result, text = try_mutant(kind, None, valid, scratch)
        assert result == "accepted", f"{kind}: {result}\n{text}"


def test_some_mutants(files):
    try_mutants(files, range(1))


@pytest.mark.slow
def test_two_thousand_mutants(files):
    try_mutants(files, range(1, 134))
