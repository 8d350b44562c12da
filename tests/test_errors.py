"""Which errors become one line, and which keep their traceback."""
import errno
import os
from pathlib import Path

import pytest
import torch
from runs import one_line
from safetensors import SafetensorError

from plumbing.errors import UserError, errors_in_one_line, is_disk_full
from plumbing.files import make_folder, read_json, replacing, write_json
from plumbing.records import COLUMNS, read_rows, write_rows
from plumbing.workers import claim_or_stop


def ends_in(error, capsys, **advice):
    with pytest.raises(SystemExit) as stop, errors_in_one_line(**advice):
        raise error
    return one_line(stop.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("error", [
    UserError("mend\nthis"), PermissionError(errno.EACCES, "Permission denied", "x"),
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only"),
    OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"), RuntimeError("Symlink loop from 'x'"),
    IsADirectoryError(errno.EISDIR, "Is a directory"), OSError(errno.ELOOP, "Too many levels"),
    SafetensorError("I/O error: No space left on device")])
def test_what_a_user_can_mend_is_one_line(error, capsys):
    assert " ".join(str(error).split()) in ends_in(error, capsys)


@pytest.mark.parametrize("error", [
    FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("of a forker's own"),
    TimeoutError(), RuntimeError("shapes"),
    ValueError("of a forker's own"), KeyError("x")])
def test_a_fault_of_the_program_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)) as kept, errors_in_one_line():
        raise error
    assert kept.value is error and capsys.readouterr().err == ""


def test_advice_goes_with_its_error(capsys):
    advice = {"out_of_memory": "lower --micro_bs", "no_space": "make room"}
    full = OSError(errno.ENOSPC, "No space left on device")
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    for error in (full, quota):
        assert ends_in(error, capsys, **advice).endswith("; make room\n")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                  OSError(errno.ENOMEM, "Cannot allocate memory"),
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
    with pytest.raises(OSError) as full, replacing(path) as part:
        part.write_text("half")
        raise OSError(errno.EFBIG, "File too large")
    assert str(full.value) == f"[Errno 27] File too large: '{path}'"
    with pytest.raises(OSError, match="^of a library's own$"), replacing(path) as part:
        raise OSError("of a library's own")
    with pytest.raises(OSError) as full, replacing(path) as part:
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert is_disk_full(full.value) and str(path) in str(full.value)
    assert read_json(path) == {"a": "Lan có 12 quả"} and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A device would be gone, and a link would no longer lead anywhere."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device or a pipe"), replacing(tmp_path / "pipe"):
        pass
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("x.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(UserError, match="gone is gone, or no file"), \
            replacing(tmp_path / "gone" / "x.json"):
        pass


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_json_that_is_not_there_is_asked_for_in_one_line(tmp_path, make):
    """A file where a folder is meant, and a folder where a file is meant."""
    make(tmp_path / "x")
    with pytest.raises(UserError, match="has no x.json; is it the right folder"):
        read_json(tmp_path / "x" / "x.json")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_json(tmp_path / "nowhere" / "x.json")
    (tmp_path / "run" / "state").mkdir(parents=True)
    with pytest.raises(UserError, match="a run that is not finished, and has no x.json yet"):
        read_json(tmp_path / "run" / "x.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="folder.json is no file"):
        read_json(tmp_path / "folder.json")


def test_an_adapter_in_a_models_place_is_named(tmp_path):
    for wrong, right, words in (("adapter_config.json", "config.json", "an adapter, and no model"),
                                ("config.json", "adapter_config.json", "a model, and no adapter")):
        folder = tmp_path / wrong
        folder.mkdir()
        write_json(folder / wrong, {})
        with pytest.raises(UserError, match=words):
            read_json(folder / right)


@pytest.mark.parametrize(("column", "cell"), [("rank", "inf"), ("rank", "12.5"), ("lr", "x")])
def test_a_damaged_cell_is_a_users_error(tmp_path, column, cell):
    row = dict.fromkeys(COLUMNS, "1") | {column: cell}
    (tmp_path / "x.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    with pytest.raises(UserError, match="x.csv is damaged .*; delete it"):
        read_rows(tmp_path / "x.csv")


def test_rows_come_back_as_they_were_written(tmp_path):
    """Whole numbers as whole numbers, also where an older edition wrote 64.0."""
    row = dict.fromkeys(COLUMNS, 2) | {"run": "a", "model": "b", "data": "c", "method": "full",
                                       "targets": "", "rank": "", "lr": 1e-4, "test_nll": 0.5}
    write_rows(tmp_path / "x.csv", [row])
    again, = read_rows(tmp_path / "x.csv")
    assert again == row and isinstance(again["step"], int)
    text = (tmp_path / "x.csv").read_text().replace(",2,", ",2.0,")
    (tmp_path / "x.csv").write_text(text)
    assert isinstance(read_rows(tmp_path / "x.csv")[0]["step"], int)


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "x").write_text("mine")
    for folder in (tmp_path / "x", tmp_path / "x" / "below" / "it"):
        with pytest.raises(UserError, match="a file is in the way"):
            make_folder(folder)
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_folder_in_which_nothing_can_be_made(tmp_path):
    with pytest.raises(UserError, match="/proc/x: no folder can be made here"):
        make_folder("/proc/x")
    with pytest.raises(UserError, match="/proc: no file can be made here"), \
            claim_or_stop(Path("/proc/x")):
        pass
