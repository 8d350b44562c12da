"""Which errors become one line, and which keep their traceback."""
import errno

import pytest
import torch
from runs import one_line
from safetensors import SafetensorError

from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import make_folder, read_json, replacing, write_json


def ends_in(error, capsys, **advice):
    with pytest.raises(SystemExit) as stop, errors_in_one_line(**advice):
        raise error
    return one_line(stop.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("error", [
    UserError("mend\nthis"), PermissionError(errno.EACCES, "Permission denied", "x"),
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only"),
    SafetensorError("I/O error: No space left on device")])
def test_what_a_user_can_mend_is_one_line(error, capsys):
    assert " ".join(str(error).split()) in ends_in(error, capsys)


@pytest.mark.parametrize("error", [
    FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("of a forker's own"),
    IsADirectoryError(errno.EISDIR, "Is a directory"), TimeoutError(), RuntimeError("shapes"),
    ValueError("of a forker's own"), KeyError("x")])
def test_a_fault_of_the_program_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)) as kept, errors_in_one_line():
        raise error
    assert kept.value is error and capsys.readouterr().err == ""


def test_advice_goes_with_its_error(capsys):
    advice = {"out_of_memory": "lower --micro_bs", "no_space": "make room"}
    full = OSError(errno.ENOSPC, "No space left on device")
    assert ends_in(full, capsys, **advice).endswith("; make room\n")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                  RuntimeError("can't allocate memory: you tried to allocate 9 bytes")):
        assert ends_in(error, capsys, **advice) == "error: out of memory: lower --micro_bs\n"
    assert "make room" not in ends_in(UserError("else"), capsys, **advice)


def test_ctrl_c_is_130(capsys):
    for error, words in ((KeyboardInterrupt(), "bye"), (KeyboardInterrupt("at step 3"), "at st")):
        with pytest.raises(SystemExit, match="130"), errors_in_one_line(stopped="bye"):
            raise error
        assert words in capsys.readouterr().err


def test_a_file_is_whole_or_what_it_was_before(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": "Lan có 12 quả"})
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        1 / 0
    assert read_json(path) == {"a": "Lan có 12 quả"} and list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "x").write_text("mine")
    for folder in (tmp_path / "x", tmp_path / "x" / "below" / "it"):
        with pytest.raises(UserError, match="a file is in the way"):
            make_folder(folder)
    assert (tmp_path / "x").read_text() == "mine"
