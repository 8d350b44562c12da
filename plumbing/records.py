"""The rows of log.csv and the file run.json: what a run leaves next to its weights. No torch."""
import contextlib
import csv
import dataclasses
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from plumbing.errors import UserError
from plumbing.fields import entry, read_fields
from plumbing.files import describe_missing_file, read_json, replacing, write_json

STATE = "state/state.safetensors"       # of a run that is not finished: what --resume needs
BEST = "state/best.safetensors"         # and the weights of the lowest test NLL, with --keep best


@dataclasses.dataclass(kw_only=True)
class Row:
    """A row of log.csv: one evaluation. In a dict, an empty cell is "", and here it is None."""
    run: str
    model: str
    data: str
    method: str
    targets: str                                        # "" in full fine-tuning
    rank: int = entry(None, at_least=1)
    alpha: float = entry(None, above=0)
    lr: float = entry(above=0)
    batch_eff: int = entry(at_least=1)
    seed: int = entry(at_least=0)
    step: int = entry(at_least=0)
    tokens: int = entry(at_least=0)
    train_nll: float = entry(None, any_number=True)     # None at step 0
    test_nll: float = entry(any_number=True)            # nan or inf: the run diverged
    seconds: float = entry(at_least=0)
    peak_gb: float = entry(None, at_least=0)
    trainable: int = entry(at_least=1)


KINDS = {field.name: field.type for field in dataclasses.fields(Row)}
COLUMNS = list(KINDS)


# ----- rows ---------------------------------------------------------------------------------------

def make_row(config, **measured) -> dict:
    """One evaluation as a row; measured: step, tokens, train_nll, test_nll, seconds ..."""
    values = dataclasses.asdict(config) | measured
    values |= {"run": config.run, "batch_eff": config.batch_eff}
    if config.method == "full":
        values |= {"targets": "", "rank": "", "alpha": ""}
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
    if not path.is_file():
        raise UserError(describe_missing_file(path))
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as f:
            rows = [read_row(number, cells) for number, cells in enumerate(csv.DictReader(f), 2)]
        if not rows:
            raise UserError("it has no rows")
    except (csv.Error, UserError) as e:
        raise UserError(f"{path} is damaged ({e}); delete it and make the run again") from None
    return rows


def read_row(number: int, cells: dict) -> dict:
    """Cells as CSV or JSON have them -> a row. number: of the line, for errors."""
    if None in cells:
        raise UserError(f"line {number} has too many cells")
    values = {name: cell_value(cell, KINDS.get(name)) for name, cell in cells.items()}
    row = read_fields(Row, values, f"line {number}")
    return {name: "" if value is None else value for name, value in vars(row).items()}


def cell_value(cell: str, kind):
    """What a cell says, as JSON would have it. What is not of its column's kind stays text."""
    if kind is str or not isinstance(cell, str):
        return cell
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            number = convert(cell)
            # the first edition wrote some whole numbers as 64.0
            return int(number) if kind is int and number % 1 == 0 else number
    return cell or None


def row_line(row: dict) -> str:
    """A row as one line for the terminal."""
    train_nll = " " * 18
    if row["train_nll"] != "":
        train_nll = f"train NLL {row['train_nll']:.4f}  "
    return (f"step {row['step']:>4}  {train_nll}test NLL {row['test_nll']:.4f}  "
            f"{row['seconds']:7.1f} s  {row['peak_gb']:.2f} GB")


# ----- run.json -----------------------------------------------------------------------------------

@dataclasses.dataclass
class RunFile:
    """What is read of run.json."""
    run: str
    finished: bool
    settings: dict
    base_answer: str = ""
    samples: int = entry(None, at_least=1)      # older runs do not say

def write_run(config, out: Path, base_answer: str, finished: bool, samples: int, **more):
    """run.json: settings, versions, and what the base answered before the first step.

    samples: their number in the training split. more: what else there is to say.
    """
    versions = {"python": sys.version.split()[0], "torch": version("torch")}
    write_json(out / "run.json", {
        "run": config.run, "finished": finished, "settings": dataclasses.asdict(config),
        "versions": versions, "samples": samples, "base_answer": base_answer} | more)


def finished_rows(config, out: Path, quiet=False) -> list[dict] | None:
    """The rows of the run in `out` if it is this one and finished, else None. It says so aloud.

    Raises UserError if what `out` holds is in the way of this run.
    """
    if not (out / "run.json").exists():
        refuse_other_files(out)
        return None
    existing = read_json(out / "run.json", RunFile)
    given = {name: value for name, value in existing.settings.items() if value is not None}
    made = read_fields(type(config), given, out / "run.json", "settings.")
    if not made.is_settled or made.run != existing.run:
        raise UserError(f"{out / 'run.json'} is not what a run writes, so {out} may hold files of "
                        "something else; give another --out")
    if config.overwrite:
        return None
    if existing.run != config.run:
        raise UserError(f"{out} holds another run, with other settings ({out / 'run.json'}); give "
                        "another --out, or --overwrite")
    if not existing.finished:
        if config.resume:
            return None
        raise UserError(f"{out} holds this run, unfinished; --resume goes on with it, --overwrite "
                        "begins again")
    shutil.rmtree(out / "state", ignore_errors=True)    # left by a kill after the last file
    if not (out / "log.csv").exists():
        raise UserError(f"{out} holds this run, finished, but its log.csv is gone; --overwrite "
                        "makes it again")
    rows = read_rows(out / "log.csv")
    if quiet:
        return rows
    print(f"{out} holds this run, finished: {row_line(rows[-1])}")
    if made.optimizer != config.optimizer:
        print(f"It was made with --optimizer {made.optimizer}, which gives the same numbers.")
    print("Nothing to do; --overwrite makes it again.")
    return rows


def refuse_other_files(out: Path):
    """Raise UserError if `out` holds what no run has made.

    A run that was killed at its very start leaves a folder for its state, and perhaps half of its
    run.json (a .part). The shell may have begun a .txt or .log with the run's own output.
    """
    harmless = (".part", ".txt", ".log", ".lock")
    for path in sorted(out.iterdir()) if out.exists() else []:
        name = path.name
        if name != "state" and not name.startswith(".") and not name.endswith(harmless):
            raise UserError(f"{out} holds files of something else than a run ({name}); give "
                            "another --out")


def clear_run(out: Path, names: list[str], overwrite: bool):
    """Delete what a killed process left half written; to overwrite, also the run's files `names`.

    run.json comes last, because it is what tells that the folder is a run's.
    """
    names = ["log.csv", "curve.png", BEST, STATE, *names, "run.json"]
    half_written = [path for name in names for path in out.glob(f"{name}.*.part")]
    for folder in (out, out / "state"):
        half_written += folder.glob(".tmp??????")       # safetensors' own
    finals = [out / name for name in names] if overwrite else []
    for path in [*half_written, *finals]:
        path.unlink(missing_ok=True)
