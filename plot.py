"""CSV -> figures and a table: what the sweeps of sweep.py say about the four findings.

    python plot.py out              # draws what the runs allow: out/finding1.png, .svg ...
    python plot.py out --table      # prints Markdown: rates, gaps, and a verdict on each claim

Only the CSV files directly in FOLDER are read, with one run per file or many. Their columns alone
decide what is drawn, not the command that made them: arms of three rates or more make finding 2's
figure, whatever they were swept for. verdicts.py explains what "arm", "best of sweep" and "spread"
mean, and how a claim is judged.

How to read the figures. A curve is the mean over seeds, the band around it goes from the smallest
to the largest. Where NLL is drawn against the learning rate, a ring marks the lowest mean that was
measured. A triangle on the axis marks the best rate of one seed, from a parabola through its lowest
point and the two neighbours, because the grid of rates is coarse. An arm with its best rate at the
edge of the grid has no triangle. A cross near the top marks a rate at which a run diverged.
"""
import itertools
import math
from pathlib import Path

import numpy as np

from plumbing.cli import make_parser, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import make_folder
from rates import find_best_rate
from verdicts import (MARGIN, Arm, Sweep, count_noun, format_parameters, format_rate_multiple,
                      format_rates, group_runs, read_runs, select_sweeps, verdict_table)

# Importing matplotlib takes half a second, so only new_figure and draw_figures do it: --help and
# --table answer at once.


# ----- colours, markers, labels -------------------------------------------------------------------
# Okabe and Ito's colours, which colour-blind readers can tell apart. Each means the same in every
# figure, and so does each marker. Those of RANKS go from the highest rank down.

BLACK, PLACES = "#000000", {"attention": "#D55E00", "mlp": "#CC79A7"}
RANKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#56B4E9", "D"), ("#999999", "v"),
         ("#F0E442", "P"))
LINES = (":", "--", "-", "-.")
STYLE = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 9.5,
         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
         "legend.frameon": False, "legend.handlelength": 3.2, "lines.linewidth": 1.8,
         "lines.markersize": 5, "figure.constrained_layout.use": True, "svg.hashsalt": "nanoLoRA"}


def style_of(arm, name: str = "", **more) -> dict:
    """matplotlib's keywords for the curve of an arm. Colour and marker say what is trained.

    Full fine-tuning is black. LoRA on all layers has the colour of its rank, elsewhere that of the
    place. The label says of how many rates the best was taken: "r = 1 (5 rates)".
    """
    details = count_noun(len(arm.lrs), "rate")
    if arm.n_diverged:
        details += f", {arm.n_diverged} of {arm.n_runs} runs diverged"
    style = {"label": f"{name or arm} ({details})", "markeredgecolor": "#333333",
             "markeredgewidth": 0.6}
    if arm.method == "full":
        style |= {"color": BLACK, "marker": "x", "markeredgecolor": BLACK, "markeredgewidth": 1.8}
    elif arm.targets in PLACES:
        style |= {"color": PLACES[arm.targets], "marker": "p"}
    else:
        style["color"], style["marker"] = RANKS[arm.higher_ranks % len(RANKS)]
    return style | more


# ----- what the figures are made of ---------------------------------------------------------------

def new_figure(head: str, sweep, arms, panels=2):
    """-> the figure and its axes, one for each panel. The title counts the runs of `arms`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12.5, 6))
    title = f"{head}: {sweep.describe(arms)}"
    if any(arm.has_seed.sum() > 1 for arm in arms):
        title += " (bands: from the smallest to the largest)"
    figure.suptitle(title, fontsize=13)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def draw_curve(ax, x, values: np.ndarray, **style):
    """Mean over seeds and band of `values` (S, len(x)). Diverged points are left out."""
    values = values[~np.isnan(values[:, 0])]
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values):
        ax.plot(x, values.mean(0), **style)
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def scale_nll_axis(ax, label: str = "test NLL, nats a token"):
    """Label the axis, and make it logarithmic if it covers more than a factor of two."""
    low, high = ax.dataLim.intervaly
    if 0 < 2 * low < high:      # a label at 1, 1.5, 2, 3 ... of each decade
        ax.set_yscale("log")
        ax.yaxis.get_major_locator().set_params(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_minor_formatter("")
    ax.set_ylabel(label)


def draw_best(ax, sweep, styles: dict[Arm, dict], note: str):
    """Best of sweep against steps. The legend stands below both panels, where it hides nothing."""
    for arm, style in styles.items():
        draw_curve(ax, sweep.steps[1:], arm.curves[:, 1:], **style)
    every = math.ceil(len(sweep.steps[1:]) / 12)        # at most twelve labels on the axis
    ax.set(xlabel=f"steps ({note})", title="best of sweep", xticks=sweep.steps[1::every])
    scale_nll_axis(ax)
    longest = max(len(style["label"]) for style in styles.values())
    columns = 2 if len(styles) <= 4 or longest > 45 else 3
    ax.figure.legend(loc="outside lower center", ncols=columns)


def finish_gap_axis(ax, **labels):
    """The axis of gaps to full fine-tuning: its line at 0, and signs."""
    ax.axhline(0, color=BLACK, linewidth=1.8)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:+g}" if y else "0")
    ax.set(ylabel="nats a token above full fine-tuning", **labels)


def curves_figure(head: str, sweep, arms: list[Arm], choose_style=style_of):
    """Left: best of sweep against steps. Right: how far it lies above full fine-tuning."""
    full = sweep.full_arm()
    styles = {arm: choose_style(arm) for arm in (full, *arms) if arm}
    figure, (left, right) = new_figure(head, sweep, styles)
    base = np.nanmean([arm.curves[:, 0] for arm in arms])
    draw_best(left, sweep, styles, f"the base, at step 0: {base:.3f}")
    if not full:
        right.set_axis_off()
        return figure
    for arm in arms:
        style = styles[arm] | {"label": None}       # the legend has it from the left panel
        draw_curve(right, sweep.steps[1:], (arm.curves - full.curves)[:, 1:], **style)
    margin = MARGIN * sweep.full_gain()
    right.axhspan(-margin, margin, color=BLACK, alpha=0.08, linewidth=0)
    finish_gap_axis(right, xlabel="steps", xticks=left.get_xticks(),
                    title=f"the same, less full fine-tuning (grey: {MARGIN:.0%} of its gain)")
    return figure


def rates_figure(head: str, sweep, panels: dict[str, list[Arm]]):
    """NLL after the last step against the learning rate, a panel for each {title: arms}."""
    full = sweep.full_arm()
    if full:
        panels = {title: [full, *arms] for title, arms in panels.items()}
    shown = {arm for arms in panels.values() for arm in arms}       # an arm may be in both panels
    figure, axes = new_figure(head, sweep, shown, len(panels))
    for ax, (title, arms) in zip(axes, panels.items()):
        ax.sharey(axes[0])
        for i, arm in enumerate(arms):
            draw_rates(ax, arm, full, cross_height=0.97 - 0.035 * i)
        scale_nll_axis(ax, f"test NLL after {sweep.steps[-1]:g} steps, nats a token")
        ax.set(xscale="log", title=title, xlabel="learning rate (ring: the lowest; cross: diverged;"
               "\ntriangles: each seed's best by a parabola, and in the legend their mean)")
        ax.set_ymargin(0.25)        # room for the crosses
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2 // len(panels))
    return figure


def draw_rates(ax, arm, full: Arm | None, cross_height: float):
    """One arm: its curve over the rates, ring, triangles and crosses.

    Arms may diverge at the same rate, so each has a `cross_height` of its own, from 0 to 1.
    """
    label = f"{arm}: best {format_rates(arm.best.vertex)}"
    if any(arm.best.edge):
        label += ", at the edge"
    multiple = format_rate_multiple(arm, full)
    if multiple:
        label += f", {multiple} x full's"
    last = arm.nll[:, :, -1]                                                # (S, R)
    style = style_of(arm, label=label)
    color = style["color"]
    draw_curve(ax, arm.lrs, last, **style)
    lowest = find_best_rate(arm.lrs, last[arm.has_seed].mean(0))
    ax.plot(lowest.lr, lowest.nll, "o", color=color, markersize=13, markerfacecolor="none",
            markeredgewidth=1.6)
    marks = {"color": color, "linestyle": "", "markersize": 9,
             "transform": ax.get_xaxis_transform()}     # x in rates, y from 0 to 1 in the panel
    vertices = arm.best.vertex[~arm.best.edge]
    diverged_lrs = np.array(arm.lrs)[np.isinf(last).any(0)]
    ax.plot(vertices, np.full(len(vertices), 0.015), marker="^", **marks)
    ax.plot(diverged_lrs, np.full(len(diverged_lrs), cross_height), marker="X", **marks)


# ----- the figures: each function returns None if its runs are missing ----------------------------

def plot_rank(sweep):
    """LoRA on all layers at every rank. A high rank should stay in the grey, a low one above it."""
    arms = sweep.lora_arms()
    return curves_figure("Finding 1, rank", sweep, arms) if arms else None


def plot_rates(sweep):
    """A U for each rank with three rates or more. How far right of full fine-tuning is it?"""
    arms = [arm for arm in sweep.lora_arms() if len(arm.lrs) > 2]
    return rates_figure("Finding 2, learning rate", sweep, {"": arms}) if arms else None


def plot_batch_sizes(sweep):
    """LoRA and full fine-tuning at each batch size. Does the gap on the right grow?

    The curves of different batches are not comparable with each other, only the two of each pair.
    """
    pairs = sweep.pairs_by_batch()
    if len(pairs) < 2:
        return None
    styles, gaps = {}, []
    for line, (batch, (lora, full)) in zip(itertools.cycle(LINES), pairs.items()):
        gaps.append(lora.best.nll - full.best.nll)
        for arm in (lora, full):
            styles[arm] = style_of(arm, f"batch {batch:g}, {arm}", linestyle=line)
    figure, (left, right) = new_figure("Finding 3, batch size", sweep, styles)
    draw_best(left, sweep, styles, "a larger batch has seen more data")
    draw_curve(right, list(pairs), np.stack(gaps, axis=1), **style_of(lora, label=None))
    title = f"{lora} less full fine-tuning, after {sweep.steps[-1]:g} steps"
    finish_gap_axis(right, xlabel="batch, samples", title=title)
    right.set_xscale("log", base=2)
    right.set_xticks(list(pairs), [f"{batch:g}" for batch in pairs])
    return figure


def plot_placement(sweep):
    """Adapters on attention, on the MLP, on both. Dashed: the pair with as many parameters."""
    apart = sweep.lora_arms("attention") + sweep.lora_arms("mlp")
    if not apart:
        return None
    ranks, matched = {arm.rank for arm in apart}, sweep.matched_placements()

    def choose_style(arm):
        name = f"{arm.place}: {format_parameters(arm.trainable)} trained"
        if arm in matched:
            return style_of(arm, f"{name}, matched", linestyle="--")
        return style_of(arm, name)

    arms = [arm for arm in sweep.lora_arms() if arm.rank in ranks] + apart
    return curves_figure("Finding 4, placement", sweep, arms, choose_style)


def plot_alpha(sweep):
    """The U of each rank with alpha fixed, next to alpha = r. On the left they should align."""
    fixed, ranks = sweep.fixed_alpha_arms(), sweep.lora_arms()
    if not fixed:
        return None
    panels = {f"alpha = {fixed[0].alpha:g}": fixed}
    if ranks:
        panels["alpha = r"] = ranks
    return rates_figure("alpha", sweep, panels)


def plot_capacity(sweep):
    """Like plot_rank, for the long runs. Dotted: where a rank leaves the grey for good."""
    arms = sweep.lora_arms()
    if not arms or not sweep.full_arm():
        return None
    figure = curves_figure("Capacity", sweep, arms)
    right, lines = figure.axes[1], []
    for arm in arms:
        step = np.nanmean(sweep.leaving_steps(arm))
        if step < sweep.steps[-1]:
            lines.append(right.axvline(step, color=style_of(arm)["color"], linestyle=":",
                                       label=f"{arm} leaves at step {step:.0f}"))
    if lines:
        right.legend(handles=lines, frameon=True)
    return figure


FIGURES = {"finding1": plot_rank, "finding2": plot_rates, "finding3": plot_batch_sizes,
           "finding4": plot_placement, "alpha": plot_alpha, "capacity": plot_capacity}


def draw_figures(sweep, long: Sweep | None, out: Path, prefix: str) -> list[Path]:
    """Save every figure that the runs allow as PNG and SVG -> the PNGs' paths."""
    import matplotlib
    make_folder(out)
    paths = []
    for name, plot_finding in FIGURES.items():
        runs = long if name == "capacity" else sweep
        with matplotlib.rc_context(STYLE):
            figure = plot_finding(runs) if runs else None
            if figure:
                path = out / f"{prefix}{name}.png"
                figure.savefig(path, dpi=130)
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                paths.append(path)
    return paths


# ----- the command --------------------------------------------------------------------------------

def main(argv=None):
    parser = make_parser("plot.py", __doc__)
    parser.add_argument("folder", type=Path, help="folder with the CSV files")
    parser.add_argument("--out", type=Path, help="folder of the figures; default: FOLDER")
    parser.add_argument("--table", action="store_true", help="print Markdown instead of drawing")
    args = parser.parse_args(argv)
    # If both arms of a gap diverged it is inf - inf. That is nan, as it should be.
    with errors_in_one_line(), np.errstate(invalid="ignore"):
        pairs = select_sweeps(group_runs(read_runs(args.folder)))
        for sweep, long in pairs:
            if args.table:
                print(verdict_table(sweep, long))
                continue
            prefix = ""
            if len(pairs) > 1:
                prefix = f"{Path(sweep.model).name}_{Path(sweep.data).name}_"
            paths = draw_figures(sweep, long, args.out or args.folder, prefix)
            if not paths:
                raise UserError(f"{args.folder} has runs of {sweep.model} on {sweep.data}, but "
                                "none that make one of the figures")
            for path in paths:
                print(f"{path} (and .svg)")


if __name__ == "__main__":
    run_command(main)
