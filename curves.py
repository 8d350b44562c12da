"""The curve of a run, or of several side by side: log.csv -> a figure.

train.py draws it at its end, `plot.py out/RUN [out/OTHER ...]` whenever you want. Training and test
NLL stand against the optimizer steps, step 0 included. A ring marks the lowest test NLL. Where the
test NLL turns and rises while the training NLL still falls, a run over-fits.
"""
import itertools
import math
import textwrap
from pathlib import Path

from plumbing.files import replacing
from plumbing.records import COLUMNS, read_rows, read_rows_of
from settings import ADAPTER_SETTINGS, Config

# Colours that colour-blind readers can tell apart, and markers. Neighbours differ in both,
# and no two of the 56 pairs are equal: 8 and 7 have no common divisor.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#882255")
MARKERS = "osDv^P<"
SERIES = [(COLOURS[i % 8], MARKERS[i % 7]) for i in range(56)]
HEIGHT, LINE_HEIGHT = 4.5, 0.22         # inches: of the figure, and of a line of a legend below it
# of COLUMNS, those that say what a run is; run.json has more settings
NAMING = COLUMNS[1:COLUMNS.index("step")]
FILE = "curve.png"


def read_run(folder: Path) -> tuple[list[dict], dict]:
    """-> the rows of a run's log.csv, and its settings: run.json's, else those of the rows.

    A setting that the run's method does not have is "".
    """
    if (folder / "run.json").exists():
        config, run = Config.of_run(folder)
        rows = read_rows_of(folder / "log.csv", config, run["run"], run["finished"])
        missing = {name: "" for name in ADAPTER_SETTINGS if rows[0][name] == ""}
        return rows, run["settings"] | missing | {"samples": run.get("samples")}
    rows = read_rows(folder / "log.csv")
    return rows, {name: rows[0][name] for name in NAMING}


def name_runs(settings: list[dict]) -> list[str]:
    """Each run by the settings in which they differ: "rank 8, lr 0.001"; "" for one alone.

    Named are settings that all runs have, because older runs lack some. A setting that the run's
    method does not have, "", is left out. epochs is said by max_steps, and an alpha that is the
    rank by the rank.
    """
    unnamed = {"out", "resume", "overwrite", "samples", "epochs"}
    if all(one.get("alpha") in ("", one.get("rank")) for one in settings):
        unnamed.add("alpha")
    names = set.intersection(*map(set, settings)) - unnamed
    differing = [name for name in settings[0]
                 if name in names and len({str(one[name]) for one in settings} - {""}) > 1]
    return [", ".join(f"{name} {format_setting(one[name])}"
                      for name in differing if one[name] != "") for one in settings]


def format_setting(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def lowest_row(rows: list[dict]) -> dict:
    """The row of the lowest test NLL; of two, the earlier."""
    return min(rows, key=lambda row: row["test_nll"] if not math.isnan(row["test_nll"])
               else math.inf)


def draw_runs(folders: list[Path], path: Path):
    """Save the figure of all runs in `folders` as the PNG `path`."""
    import matplotlib.figure
    matplotlib.rcParams["text.parse_math"] = False          # a $ in a name is a $
    runs = [read_run(folder) for folder in folders]
    figure = matplotlib.figure.Figure(figsize=(8, HEIGHT), layout="constrained")
    ax = figure.subplots()
    names = name_runs([one for _, one in runs])
    if len({*names}) < len(names):          # runs of one setting: their folders tell them apart
        names = [", ".join(filter(None, [str(folder), name]))
                 for folder, name in zip(folders, names)]
    for (rows, _), name, look in zip(runs, names, itertools.cycle(SERIES)):
        draw_run(ax, rows, name if len(runs) > 1 else "", *look)
    first, settings = runs[0]
    longest = max(1, *(one.get("max_steps") or rows[-1]["step"] for rows, one in runs))
    ax.set(xlabel="steps", ylabel="NLL, nats per token", xlim=(-0.015 * longest, 1.03 * longest))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.plot([], [], color="#888888" if len(runs) > 1 else COLOURS[0], linestyle="--", linewidth=1.2,
            marker=".", label="training NLL, mean since the point before")
    places = [f"{Path(rows[0]['model']).name} on {Path(rows[0]['data']).name}" for rows, _ in runs]
    if len({*places}) == 1 < len(runs):
        ax.set_title(places[0])
    if len(runs) == 1:
        rank = f" r = {first[0]['rank']:g}" if first[0]["rank"] else ""
        ax.set_title(f"{places[0]}, {first[0]['method']}{rank}, learning rate {first[0]['lr']:g}")
        add_passes(ax, first, settings)
    low, high = ax.dataLim.intervaly
    if 0 < 3 * low < high:
        ax.set_yscale("log")
        ax.yaxis.get_major_locator().set_params(subs=(1, 1.5, 2, 3, 5, 7))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_minor_formatter("")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(runs) == 1:
        ax.legend(frameon=False)
    else:
        legend = figure.legend(loc="outside lower center", frameon=False, fontsize=9)
        n_lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
        figure.set_figheight(HEIGHT + LINE_HEIGHT * n_lines)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=130)


def draw_run(ax, rows: list[dict], name: str, colour: str, marker: str):
    """Test NLL, with a ring at its lowest, and training NLL, dashed."""
    steps = [row["step"] for row in rows]
    trained = [(row["step"], row["train_nll"]) for row in rows if row["train_nll"] != ""]
    lowest = lowest_row(rows)
    label = f"test NLL: lowest {lowest['test_nll']:.3f}, at step {lowest['step']}"
    label = "\n".join(textwrap.wrap(f"{name}; {label}" if name else label, 100))
    ax.plot(steps, [row["test_nll"] for row in rows], color=colour, marker=marker, markersize=4,
            label=label)
    if trained:
        ax.plot(*zip(*trained), color=colour, linestyle="--", linewidth=1.2, marker=".")
    ax.plot(lowest["step"], lowest["test_nll"], "o", color=colour, markersize=11,
            markerfacecolor="none")


def add_passes(ax, rows: list[dict], settings: dict):
    """A second axis: how often the run has seen each sample. Older runs do not say how many."""
    if settings.get("samples"):
        per_step = 1 / math.ceil(settings["samples"] / rows[0]["batch_eff"])
        ax.secondary_xaxis("top", functions=(lambda step: step * per_step,
                                             lambda passes: passes / per_step)
                           ).set_xlabel("passes over the training data")
