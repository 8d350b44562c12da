"""The rows of log.csv and the file run.json: what a run leaves next to its weights. No torch."""
import contextlib
import csv
import dataclasses
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

from plumbing.errors import UserError
from plumbing.fields import Number, check, number_of, whole
from plumbing.files import existing, replacing, write_json

STATE = "state/state.safetensors"       # of a run that is not finished: what --resume needs
BEST = "state/best.safetensors"         # and the weights of the lowest test NLL, with --keep best


ROW = {             # of log.csv: one evaluation. "" is what full fine-tuning, or step 0, has not
    "run": str, "model": str, "data": str, "method": str, "targets": str,
    "rank": ("", whole(1)), "alpha": ("", Number(above=0)), "lr": Number(above=0),
    "batch_eff": whole(1), "seed": whole(), "step": whole(), "tokens": whole(),
    "train_nll": (int, float, ""), "test_nll": (int, float),        # nan, inf: it diverged
    "seconds": (int, float), "peak_gb": (Number(0), ""), "trainable": whole(1)}
COLUMNS = list(ROW)
WHOLE_COLUMNS = ("rank", "batch_eff", "seed", "step", "tokens", "trainable")
RUN = {             # of run.json, what is read; of its settings, those that settle a run
    "run": str, "finished": bool, "base_answer": str, "samples?": (whole(1), None),
    "settings": {"alpha": Number(), "lr": Number(), "max_steps": whole(), "eval_steps": whole(),
                 "dtype": ("float32", "bfloat16", "float16")}}


# ----- rows ---------------------------------------------------------------------------------------

def make_row(config, **measured) -> dict:
    """One evaluation as a row; measured: step, tokens, train_nll, test_nll, seconds ...

    measured may also replace a setting: "" where the method has none.
    """
    values = dataclasses.asdict(config) | {"run": config.run, "batch_eff": config.batch_eff}
    values |= measured
    return {column: values[column] for column in COLUMNS}


def write_rows(path: Path, rows: list[dict]):
    with (replacing(path) as part,
          open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as f):
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict]:
    """The rows with the types that make_row gave them; an empty cell is "".

    Raises UserError for a file that is not a run's, and for one without rows.
    """
    existing(path)
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as f:
            rows = check([{name: cell_value(name, cell) for name, cell in row.items()}
                          for row in csv.DictReader(f)], [ROW], name="rows")
        if not rows or any(row.keys() != ROW.keys() for row in rows):
            raise UserError("it has no rows, or other columns")
    except (csv.Error, UserError) as e:
        raise UserError(f"{path} is damaged ({e}); delete it and make the run again") from None
    return rows


def read_rows_of(path: Path, config, run: str, finished: bool = True) -> list[dict]:
    """The rows of the run `config`, whose name is `run`; finished: all of them.

    Raises UserError if they are another run's, or not those of its evaluations in their order.
    """
    rows = read_rows(path)
    steps = [row["step"] for row in rows]
    same = {"run": run, "lr": config.lr, "batch_eff": config.batch_eff,
            "seed": config.seed, "trainable": rows[0]["trainable"]}
    if (steps != [*itertools.islice(config.evaluated_steps(), len(rows))]
            or finished and steps[-1] != config.max_steps
            or any((row | same) != row for row in rows)):
        raise UserError(f"{path} is damaged (its rows are not those of the run {run}, one "
                        "for each evaluation); delete it and make the run again")
    return rows


def cell_value(column: str, cell: str):
    """What a cell says, as JSON would have it; the cell itself if that is none of its column's."""
    if ROW.get(column) is str or not isinstance(cell, str):
        return cell
    # the first edition wrote 64.0
    return number_of(cell.removesuffix(".0") if column in WHOLE_COLUMNS else cell)


def row_line(row: dict) -> str:
    """A row as one line for the terminal."""
    train_nll = " " * 18
    if row["train_nll"] != "":
        train_nll = f"train NLL {row['train_nll']:.4f}  "
    return (f"step {row['step']:>4}  {train_nll}test NLL {row['test_nll']:.4f}  "
            f"{row['seconds']:7.1f} s training  {row['peak_gb']:.2f} GB peak")


def group_by(key: str, rows: list[dict]) -> dict:
    """{value: the rows that have it in the column `key`}, in the order of their first."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def mean_of(rows: list[dict], key: str) -> float:
    """The mean of a column."""
    return sum(row[key] for row in rows) / len(rows)


# ----- run.json -----------------------------------------------------------------------------------

def write_run(config, out: Path, base_answer: str, finished: bool, samples: int, **more):
    """run.json: settings, versions, and what the base answered before the first step.

    samples: their number in the training split. more: what else there is to say.
    """
    versions = {"python": sys.version.split()[0], "torch": version("torch")}
    write_json(out / "run.json", {
        "run": config.run, "finished": finished, "settings": dataclasses.asdict(config),
        "versions": versions, "samples": samples, "base_answer": base_answer} | more)


def finished_rows(config, out: Path) -> list[dict] | None:
    """The rows of the run in `out` if it is this one and finished, else None. It says so aloud.

    Raises UserError if what `out` holds is in the way of this run.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    if not (out / "run.json").exists():
        refuse_other_files(out)
        return None
    made, held = config.of_run(out)
    if made.run != held["run"]:
        raise UserError(f"{out / 'run.json'} is not what a run writes, so {out} may hold something "
                        "else; give another --out")
    if config.overwrite:
        return None
    if held["run"] != config.run:
        ours, theirs = config.decides, made.decides
        differing = [f"{name} {theirs.get(name)} there, {ours.get(name)} here"
                     for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        raise UserError(f"{out} holds another run ({'; '.join(differing)}); give another --out, or "
                        "--overwrite")
    if not held["finished"]:
        if config.resume:
            return None
        raise UserError(f"{out} holds this run, unfinished; --resume goes on with it, --overwrite "
                        "starts over")
    drop_state(out)                     # left by a kill after the last file
    if not (out / "log.csv").exists():
        raise UserError(f"{out} holds this run, finished, but its log.csv is gone; --overwrite "
                        "makes it again")
    rows = read_rows_of(out / "log.csv", made, made.run)
    print(f"{out} holds this run, finished:\n{row_line(rows[-1])}")
    if made.optimizer != config.optimizer:
        print(f"It was made with --optimizer {made.optimizer}, which gives the same numbers.")
    print("Nothing to do; --overwrite makes it again.")
    return rows


def refuse_other_files(out: Path):
    """Raise UserError if `out` holds what no run has made.

    A run that was killed at its very start leaves a folder for its state, and perhaps half of its
    run.json (a .part). The shell may have begun a .txt or .log with the run's own output.
    """
    harmless = (".part", ".txt", ".log")
    foreign = [path for path in out.glob("*") if path.name != "state"
               and not path.name.startswith(".") and not path.name.endswith(harmless)]
    foreign += {*out.glob("state/*")} - {*files_of_state(out)}
    if foreign:
        name = min(foreign).relative_to(out)
        raise UserError(f"{out} holds {name} and no run.json: it is no run's folder, or a part of "
                        "one; give another --out")


def files_of_state(out: Path) -> list[Path]:
    """What a run has in out/state, half written files too (.tmp: safetensors' own)."""
    patterns = (STATE, BEST, f"{STATE}.*.part", f"{BEST}.*.part", "state/.tmp??????")
    return [path for pattern in patterns for path in out.glob(pattern)]


def drop_state(out: Path):
    """Delete the state of a run that is finished. Whatever else lies in its folder stays."""
    for path in files_of_state(out):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):          # not empty, or not there
        (out / "state").rmdir()


def clear_run(out: Path, names: list[str], overwrite: bool):
    """Delete what a killed process left half written; to overwrite, also the run's files `names`.

    run.json comes last, because it is what tells that the folder is a run's.
    """
    names = ["log.csv", "curve.png", BEST, STATE, *names, "run.json"]
    half_written = [path for name in names for path in out.glob(f"{name}.*.part")]
    for folder in (out, out / "state"):
        half_written += folder.glob(".tmp??????")       # safetensors' own
    finals = [out / name for name in names] if overwrite else []
    for path in finals:
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a run writes a file; move it away first")
    for path in [*half_written, *finals]:
        path.unlink(missing_ok=True)
