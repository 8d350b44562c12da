"""CSV -> figures and a table: what the sweeps of sweep.py say about the four findings.

    python plot.py out              # draws what the runs allow: out/finding1.png, .svg ...
    python plot.py out --table      # prints Markdown: a verdict on each claim, rates, gaps
    python plot.py out/RUN          # of train.py: the curve of the run (curves.py)
    python plot.py out/A out/B      # and of several in one figure, out/curve.png
    python plot.py out/RUN --watch  # draws it again after each evaluation, until the run ends

What follows is about sweeps. Only the CSV files directly in FOLDER are read, with one run per file
or many, and next to them <run>.json, the settings of a run. These decide what is drawn, not the
command that made them: arms of three rates or more make finding 2's figure, whatever they were
swept for. Arms that differ in another setting alone (schedule, weight_decay ...) are drawn in
settings.png, and the other figures and the claims are about what most runs have. arms.py explains
what "arm" and "best of sweep" mean, verdicts.py how a claim is judged.

How to read the figures. A curve is the mean over seeds, the band around it goes from the smallest
to the largest. The seeds of an arm may have different rates (sweep.py --near_best). A seed counts
where it brackets its own best rate. Where some do not, the label says "2 of 3 seeds count", and
only those are in the curve. Where none does, it says "at the edge", and all are drawn. Against the
learning rate every run is drawn, and a point is the mean of the seeds that were run there.

There, a ring marks the lowest mean that was measured. A triangle on the axis marks the best rate of
one seed, by a parabola fit: through its lowest point and the two neighbours, because the grid of
rates is coarse. The legend has the mean of the triangles. A seed with its best rate at the edge of
its grid has none. A cross near the top marks a rate at which a run diverged.

Where theory says something, thin grey lines show it: how the best rate goes with the rank, and when
a rank has seen more than it can hold.
"""
import itertools
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import curves
from arms import (MARGIN, Arm, mean_over_seeds, name_arms, name_left_out, read_runs,
                  select_sweeps, suggest_folders)
from curves import SERIES
from plumbing.cli import flag, parse_flags, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import make_folder, read_json, replacing
from plumbing.records import RUN, read_rows
from plumbing.text import count_noun, print_markdown
from rates import find_best_rate
from verdicts import (claim_gap, drop_nan, find_noise, format_parameters, geometric_mean,
                      judge_claim, rate_multiples, verdict_table)

# Importing matplotlib takes half a second, so only new_figure and draw_figures do it: --help and
# --table answer at once.


# ----- colours, markers, labels -------------------------------------------------------------------
# Okabe and Ito's colours, which colour-blind readers can tell apart, and for rare ranks four more.
# Each means the same in every figure, whatever else was run, and so does each marker. Where arms of
# one rank stand side by side (methods, sets of targets, other settings), they have curves.SERIES.

BLACK, GREY = "#000000", "#888888"
PLACES = {"attention": ("#D55E00", "p"), "mlp": ("#CC79A7", "*")}
# of rank 1, 2, 4 ... 256; other ranks have those of the nearest, and 512 begins again
RANKS = (("#009E73", "^"), ("#F0E442", "P"), ("#661100", "v"), ("#56B4E9", "D"), ("#E69F00", "s"),
         ("#8C6D31", "<"), ("#0072B2", "o"), ("#332288", ">"), ("#882255", "d"))
LINES = ("--", ":")
STYLE = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 9.5,
         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
         "legend.frameon": False, "legend.handlelength": 3.2, "lines.linewidth": 1.8,
         "lines.markersize": 5, "figure.titlesize": 13, "figure.constrained_layout.use": True,
         "figure.constrained_layout.wspace": 0.06, "svg.hashsalt": "nanoLoRA",
         "text.parse_math": False}          # a $ in a model's name is a $
WIDTH, PANEL_HEIGHT, ROW_HEIGHT = 10, 4.6, 0.21     # inches: of a figure, its panels, a legend row


def style_of(arm, name: str = "", **more) -> dict:
    """matplotlib's keywords for the curve of an arm. Colour and marker say what is trained.

    Full fine-tuning is black. LoRA on all layers has the colour of its rank, elsewhere that of the
    place. The label says of how many rates the best was taken, and which seeds count: "r = 1 (3 to
    5 rates, 2 of 3 seeds count)".
    """
    style = {"label": f"{name or arm} ({arm.describe_grid()})", "markeredgecolor": "#333333",
             "markeredgewidth": 0.6}
    if arm.method == "full":
        style |= {"color": BLACK, "marker": "x", "markeredgecolor": BLACK, "markeredgewidth": 1.8}
    elif arm.targets in PLACES:
        style["color"], style["marker"] = PLACES[arm.targets]
        style["markersize"] = 7
    else:
        style["color"], style["marker"] = look_of_rank(arm)
    return style | more


def look_of_rank(arm) -> tuple[str, str]:
    rank = arm.rank or 1            # BitFit has none
    return RANKS[round(math.log2(rank)) % len(RANKS)]


# ----- what the figures are made of ---------------------------------------------------------------

def new_figure(head: str, sweep, arms, panels=2):
    """-> the figure and its axes, one for each panel. The title counts the runs of `arms`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT))
    figure.suptitle(f"{head}: {sweep.describe(arms)}")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def draw_curve(ax, x, values: np.ndarray, **style):
    """Mean over seeds and band of `values` (S, len(x)).

    nan was not run, and the mean is that of the others. A point where a run diverged is left out.
    """
    values = values[~np.isnan(values).all(axis=1)]
    if len(values) == 0:
        return
    mean, low, high = mean_over_seeds(values), np.fmin.reduce(values), np.fmax.reduce(values)
    mean = np.where(np.isfinite(mean), mean, np.nan)
    ax.plot(x, mean, **style)
    if len(values) > 1:
        ax.fill_between(x, low, high, where=np.isfinite(mean), color=style["color"], alpha=0.15,
                        linewidth=0)


def key_line(label: str, **style):
    """A grey entry of a legend: what a line or a mark means, whatever its colour."""
    from matplotlib.lines import Line2D
    return Line2D([], [], **{"color": GREY, "linestyle": "", "label": label} | style)


def key_area(label: str, alpha: float):
    """The same for an area."""
    from matplotlib.patches import Patch
    return Patch(facecolor=BLACK, alpha=alpha, label=label)


def keys_of_bands(arms) -> list:
    """What the bands are, if there are any."""
    if any(arm.has_seed.sum() > 1 for arm in arms):
        return [key_area("from the lowest seed to the highest", 0.15)]
    return []


def add_legend(figure, handles: list, keys=()):
    """The legend below all panels, where it hides nothing: arms, then what marks mean.

    The figure grows by its rows, so that the panels keep their height.
    """
    handles = [*handles, *keys]
    lengths = [len(handle.get_label()) for handle in handles]
    half = math.ceil(len(lengths) / 2)
    in_two = max(lengths[:half]) + max(lengths[half:], default=0)       # letters of the longest row
    columns = 3 if max(lengths) < 39 and len(handles) > 4 else 2 if in_two < 122 else 1
    figure.set_figheight(PANEL_HEIGHT + ROW_HEIGHT * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def labelled(*panels) -> list:
    """What a legend shows: the lines of all panels that have a label, each label once."""
    lines = {line.get_label(): line for ax in panels for line in ax.get_lines()}
    return [line for label, line in lines.items() if not label.startswith("_")]


def label_ticks(axis, sign: str = ""):
    """Ticks at round numbers, all with two decimals or, where they are closer, more.

    sign: "+" to write it also before a number above zero.
    """
    axis.get_major_locator().set_params(nbins=7, steps=[1, 2, 5, 10])

    def write(y, _):
        step = float(np.diff(axis.get_majorticklocs()).min())
        decimals = max(2, -math.floor(math.log10(step) + 1e-6))
        if abs(y) < step / 2:
            return f"{0:.{decimals}f}"
        return f"{y:{sign}.{decimals}f}".replace("-", "\N{MINUS SIGN}")

    axis.set_major_formatter(write)


def scale_nll_axis(ax, label: str = "test NLL, nats per token"):
    """Label the axis, and make it logarithmic if it covers more than a factor of two."""
    ax.set_ylabel(label)
    low, high = ax.dataLim.intervaly
    if not 0 < 2 * low < high:
        label_ticks(ax.yaxis)
        return
    # labels at 1, 1.5, 2, 3 ... of each decade; at fewer where these would be too close
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 5 * low else (1, 1.5, 2, 3, 5, 7)
    if high < 3 * low:
        subs = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ax.set_yscale("log")
    ax.yaxis.get_major_locator().set_params(subs=subs if high < 20 * low else (1, 2, 5))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.2f}")
    ax.yaxis.set_minor_formatter("")


def scale_steps_axis(ax, label: str = "steps"):
    ax.xaxis.get_major_locator().set_params(nbins=5, steps=[1, 2, 5, 10], integer=True)
    ax.set_xlabel(label)


def draw_best(ax, sweep, styles: dict[Arm, dict]):
    """Best of sweep against steps."""
    for arm, style in styles.items():
        draw_curve(ax, sweep.steps[1:], arm.curves[:, 1:], **style)
    base = np.nanmean([arm.curves[:, 0] for arm in styles])
    scale_steps_axis(ax, f"steps (step 0 is not drawn: {base:.2f})")
    ax.set_title("best of sweep")
    scale_nll_axis(ax)


def finish_gap_axis(ax):
    """The axis of gaps to full fine-tuning: its line at 0, and signs."""
    ax.axhline(0, color=BLACK, linewidth=1.8)
    label_ticks(ax.yaxis, "+")
    ax.set_ylabel("nats per token above full fine-tuning")


def curves_figure(head: str, sweep, arms: list[Arm], choose_style=style_of, mark=None):
    """Left: best of sweep against steps. Right: how far it lies above full fine-tuning.

    mark(ax): draws what else is to be seen on the right -> the legend's keys for it.
    """
    full = sweep.full_arm()
    styles = {arm: choose_style(arm) for arm in (full, *arms) if arm}
    figure, panels = new_figure(head, sweep, styles, panels=2 if full else 1)
    keys = keys_of_bands(styles)
    draw_best(panels[0], sweep, styles)
    if full:
        right = panels[1]
        for arm in arms:
            style = styles[arm] | {"label": None}       # the legend has it from the left panel
            draw_curve(right, sweep.steps[1:], (arm.curves - full.curves)[:, 1:], **style)
        margin = MARGIN * sweep.full_gain()
        right.axhspan(-margin, margin, color=BLACK, alpha=0.08, linewidth=0)
        keys.append(key_area(f"within {MARGIN:.0%} of full fine-tuning's gain", 0.08))
        finish_gap_axis(right)
        scale_steps_axis(right)
        right.set_title("minus full fine-tuning")
        keys += mark(right) if mark else []
    add_legend(figure, labelled(panels[0]), keys)
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
        finish_rates_axis(ax, sweep)
        ax.set_title(title)
    add_legend(figure, labelled(*axes), [*keys_of_rates(shown), *keys_of_bands(shown)])
    return figure


def finish_rates_axis(ax, sweep):
    scale_nll_axis(ax, f"test NLL after {sweep.end}, nats per token")
    ax.set_ymargin(0.25)        # room for the crosses
    ax.set_xlabel("learning rate")
    make_logarithmic(ax, write_power)


def make_logarithmic(ax, write):
    """Make x logarithmic, with a label write(x) at each power of ten, or at 1, 2, 5, 10, 20 ..."""
    low, high = ax.dataLim.intervalx
    ax.set_xscale("log")
    ax.xaxis.get_major_locator().set_params(subs=(1,) if high > 50 * low else (1, 2, 5))
    ax.xaxis.set_major_formatter(lambda x, _: write(x))
    ax.xaxis.set_minor_formatter("")


def write_power(x: float) -> str:
    """0.0002 -> 2×10⁻⁴."""
    digit, _, power = f"{x:.0e}".partition("e")
    factor = "" if digit == "1" else f"{digit}×"
    return f"{factor}10{str(int(power)).translate(SUPERSCRIPT)}"


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def keys_of_rates(arms) -> list:
    """What draw_rates marks; crosses only where a run diverged."""
    keys = [key_line("lowest mean", marker="o", markersize=11, markerfacecolor="none"),
            key_line("best rate of a seed, parabola fit", marker="^", markersize=9)]
    if any(arm.n_diverged for arm in arms):
        keys.append(key_line("a run diverged", marker="X", markersize=9))
    return keys


def draw_rates(ax, arm, full: Arm | None, cross_height: float, name: str = "", **style):
    """One arm: its curve over the rates, ring, triangles and crosses. name: else the arm's own.

    Arms may diverge at the same rate, so each has a `cross_height` of its own, from 0 to 1.
    """
    label = f"{name or arm}: best {geometric_mean(arm.best.vertex[arm.shown]):.1e}"
    if arm.describe_seeds():
        label += f", {arm.describe_seeds()}"
    multiples = rate_multiples(arm, full)
    if len(multiples):
        label += f", {geometric_mean(multiples):.1f} x full's"
    last = arm.nll[:, :, -1]                                                # (S, R)
    style = style_of(arm, label=label, **style)
    color = style["color"]
    draw_curve(ax, arm.lrs, last, **style)
    lowest = find_best_rate(arm.lrs, mean_over_seeds(last))
    ax.plot(lowest.lr, lowest.nll, "o", color=color, markersize=13, markerfacecolor="none",
            markeredgewidth=1.6)
    marks = {"color": color, "linestyle": "", "markersize": 9,
             "transform": ax.get_xaxis_transform()}     # x in rates, y from 0 to 1 in the panel
    vertices = arm.best.vertex[arm.counts]
    diverged_lrs = np.array(arm.lrs)[np.isinf(last).any(0)]
    ax.plot(vertices, np.full(len(vertices), 0.015), marker="^", **marks)
    ax.plot(diverged_lrs, np.full(len(diverged_lrs), cross_height), marker="X", **marks)


# ----- the figures: each function returns None if its runs are missing ----------------------------

def plot_rank(sweeps):
    """LoRA on all layers at every rank. A high rank should stay in the grey, a low one above it."""
    arms = sweeps.usual.lora_arms()
    if not is_finding(sweeps, arms):
        return None
    return curves_figure("Finding 1, rank", sweeps.usual, arms)


def is_finding(sweeps, arms: list[Arm]) -> bool:
    """Whether there is something to compare: full fine-tuning with a rank, or two ranks."""
    return len(arms) > (0 if sweeps.usual.full_arm() else 1)


def plot_rates(sweeps):
    """A U for each rank with three rates or more. How far right of full fine-tuning is it?"""
    arms = [arm for arm in sweeps.usual.lora_arms() if len(arm.lrs) > 2]
    if not is_finding(sweeps, arms):
        return None
    return rates_figure("Finding 2, learning rate", sweeps.usual, {"": arms})


def plot_batch_sizes(sweeps):
    """The gap to full fine-tuning at each batch size. Does it grow to the right?

    Left after equal steps, right after equal samples.
    """
    compared = [sweep for sweep in (sweeps.equal_steps, sweeps.equal_samples)
                if sweep and len(sweep.pairs_by_batch()) > 1]
    if not compared:
        return None
    sweep = compared[0]
    shown = [arm for pair in sweep.pairs_by_batch().values() for arm in pair]
    figure, axes = new_figure("Finding 3, batch size", sweep, shown, len(compared))
    for ax, sweep in zip(axes, compared):
        ax.sharey(axes[0])
        draw_gaps(ax, sweep)
    add_legend(figure, [
        key_line("mean over the seeds", marker="o", markersize=7),
        key_line("a seed", marker="."),
        key_line("where the gap lies, by the noise of seeds", linestyle="-", linewidth=7,
                 alpha=0.4),
        key_line("and with what the rates leave open", linestyle="-")])
    return figure


def draw_gaps(ax, sweep):
    """The gap at each batch size: a point per seed, their mean, and where it lies by the rule."""
    pairs, at_edge = sweep.pairs_by_batch(), []
    for batch, (lora, full) in pairs.items():
        claim = claim_gap("", lora, full, find_noise(sweep))
        values, verdict = drop_nan(claim.values), judge_claim(claim)
        if len(values) == 0:
            at_edge.append(f"{batch:g}")
            continue
        style, mean = style_of(lora, label=None), values.mean()
        ax.plot([batch] * len(values), values, ".", color=style["color"], alpha=0.6)
        if math.isfinite(verdict.high - verdict.low):
            ax.vlines(batch, verdict.low + claim.below, verdict.high - claim.above, linewidth=7,
                      color=style["color"], alpha=0.4)
            ends = [[mean - verdict.low], [verdict.high - mean]]
            ax.errorbar([batch], [mean], ends, capsize=5, **style)
    note = f" (no bracketed rate at {', '.join(at_edge)})" if at_edge else ""
    finish_gap_axis(ax)
    ax.set(title=f"{lora}, after {sweep.end}", xlabel=f"batch, samples{note}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(pairs), [f"{batch:g}" for batch in pairs])


def plot_placement(sweeps):
    """Adapters on attention, on the MLP, on both. Dashed: those with as many parameters."""
    sweep = sweeps.usual
    apart = sweep.lora_arms("attention") + sweep.lora_arms("mlp")
    if not apart:
        return None
    matched = list(sweep.matched_places().values())
    ranks = {arm.rank for arm in [*apart, *matched]}
    of_place = Counter(arm.targets for arm in apart)

    def choose_style(arm):
        name, more = f"{arm.place}: {format_parameters(arm.trainable)} trained", {}
        if of_place[arm.targets] > 2:       # the place's own colour would not tell them apart
            more["color"], _ = look_of_rank(arm)
        if arm in matched:
            return style_of(arm, f"{name}, matched", linestyle="--", **more)
        return style_of(arm, name, **more)

    arms = [arm for arm in sweep.lora_arms() if arm.rank in ranks] + apart
    return curves_figure("Finding 4, placement", sweep, arms, choose_style)


def plot_alpha(sweeps):
    """The U of each rank with alpha fixed, next to alpha = r. On the left they should align."""
    fixed, ranks = sweeps.usual.fixed_alpha_arms(), sweeps.usual.lora_arms()
    if not fixed:
        return None
    panels = {f"alpha = {fixed[0].alpha:g}": fixed}
    if ranks:
        panels["alpha = r"] = ranks
    return rates_figure("Alpha", sweeps.usual, panels)


def plot_rank_rates(sweeps):
    """The best rate against the rank, with alpha fixed and with alpha = r, and what theory says.

    Adam moves each entry of B by about the rate. The step of W is alpha / r times a sum of r outer
    products. If they all point the same way, the sum grows like r; if their signs are random, like
    sqrt(r). The best rate does the opposite, so that the step of W stays the same.
    """
    sweep, panels = sweeps.usual, {}
    for arms, name, powers in (
            (sweep.fixed_alpha_arms(), "alpha fixed", (0.0, 0.5)),
            (sweep.lora_arms(), "alpha = r", (-1.0, -0.5))):
        arms = [arm for arm in arms if arm.counts.any()]
        if len(arms) > 1:
            panels[name] = arms, powers
    if not panels:
        return None
    shown = {arm for arms, _ in panels.values() for arm in arms}
    figure, axes = new_figure("Best rate against rank", sweep, shown, len(panels))
    for ax, (name, (arms, powers)) in zip(axes, panels.items()):
        ax.sharey(axes[0])
        draw_rank_rates(ax, arms, powers)
        ax.set(title=name, xlabel="rank", ylabel="best learning rate")
    add_legend(figure, [
        key_line("a seed, parabola fit", marker="^", markersize=7),
        key_line("what the grid of rates leaves open", linestyle="-"),
        key_line("theory, terms alike: no change, or 1 / r", linestyle=LINES[0], linewidth=1),
        key_line("theory, random signs: r^(±1/2)", linestyle=LINES[1], linewidth=1)])
    return figure


def draw_rank_rates(ax, arms: list[Arm], powers: tuple[float, float]):
    """powers: of the rank that the best rate goes with if the terms are alike, if they are random.

    Both lines begin at the lowest rank.
    """
    ranks = np.array([arm.rank for arm in arms])
    for arm in arms:
        best, style = arm.best, style_of(arm, label=None, marker="^", linestyle="")
        vertices = best.vertex[arm.counts]
        mean, error = geometric_mean(vertices), math.exp(best.error[arm.counts].max())
        ax.plot([arm.rank] * len(vertices), vertices, **style)
        ax.vlines(arm.rank, mean / error, mean * error, color=style["color"])
    first = geometric_mean(arms[0].best.vertex[arms[0].counts])
    for line, power in zip(LINES, powers):
        ax.plot(ranks, first * (ranks / ranks[0]) ** power, line, color=GREY, linewidth=1)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(ranks, [f"{rank:g}" for rank in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.6f}".rstrip("0"))
    ax.yaxis.set_minor_formatter("")


def plot_capacity(sweeps, supervised: float = 1.0):
    """Like plot_rank, for the long runs. Dotted: where a rank leaves the grey for good.

    A parameter is said to hold about 2 bits (Morris et al., arXiv 2505.24832), and a supervised
    token to bring about 1 (Schulman et al.). The thin dashed line of a rank is where it has seen
    more than it can hold. supervised: the share of the tokens that are supervised. The rows do not
    tell it; with 1 the lines are as early as they could be.

    Worked: r = 1 on nano has 20,352 parameters, which hold 40,704 bits. Of 2,020 tokens per step
    0.34 are supervised, so that is step 60.
    """
    long = sweeps.long
    arms = long.lora_arms() if long else []
    if not arms or not long.full_arm():
        return None

    def mark(ax) -> list:
        lines = []
        for arm in arms:
            color = style_of(arm)["color"]
            step = np.nanmean(long.leaving_steps(arm))
            if step < long.steps[-1]:
                lines.append(ax.axvline(step, color=color, linestyle=":",
                                        label=f"{arm} leaves at step {step:.0f}"))
            bits_seen, bits_held = supervised * arm.tokens, 2 * arm.trainable
            if bits_seen[-1] > bits_held:
                step = np.interp(bits_held, bits_seen, long.steps)
                lines.append(ax.axvline(step, color=color, linestyle="--", linewidth=1,
                                        label=f"{arm} is full at step {step:.0f}, in theory"))
        return lines

    return curves_figure("Capacity", long, arms, mark=mark)


def plot_methods(sweeps):
    """LoRA's relatives and rivals. Left: which are below LoRA's line, at as many parameters?"""
    sweep = sweeps.usual
    methods, loras = sweep.method_arms(), sweep.lora_arms()
    if not methods:
        return None
    full, series = sweep.full_arm(), {str(arm): [arm] for arm in methods}
    if loras:
        series = {"lora": loras} | series
    arms = [arm for some in series.values() for arm in some]
    figure, (left, right) = new_figure("Methods", sweep, [full, *arms] if full else arms)
    keys = draw_sizes(left, sweep, series)
    if len(loras) == 1:
        keys.append(left.axhline(loras[0].best.nll[loras[0].shown].mean(), color=SERIES[0][0],
                                 linestyle=":", linewidth=1.2, label="LoRA's line"))
    for i, some in enumerate(series.values()):
        color, marker = SERIES[i % len(SERIES)]
        for j, arm in enumerate(some):
            name = f"lora, {arm}" if arm.method == "lora" else ""
            draw_rates(right, arm, None, 0.97 - 0.03 * i, name, color=color, marker=marker,
                       alpha=1 - 0.25 * j / len(some))
    finish_rates_axis(right, sweep)
    add_legend(figure, labelled(right), [*keys, *keys_of_rates(arms), *keys_of_bands(arms)])
    return figure


def plot_settings(sweeps):
    """Arms that differ in another setting alone. Left: best of sweep. Right: against the rate."""
    arms = sweeps.usual.twins()
    return arms_figure("Settings", sweeps.usual, arms) if arms else None


def plot_arms(sweeps):
    """All arms of the usual batch, for grids that no other figure is about: those of qlora."""
    sweep = sweeps.usual
    arms = sorted((arm for arm in sweep.arms if arm.batch == sweep.batch), key=str)
    return arms_figure("Arms", sweep, arms) if sum(arm.n_runs for arm in arms) > 1 else None


def arms_figure(head: str, sweep, arms: list[Arm]):
    """Left: best of sweep. Right: against the rate. Each arm has its own colour and marker."""
    figure, (left, right) = new_figure(head, sweep, arms)
    names = name_arms(arms)
    looks = {arm: {"color": color, "marker": marker}
             for arm, (color, marker) in zip(arms, itertools.cycle(SERIES))}
    draw_best(left, sweep, {arm: style_of(arm, names[arm], **look) for arm, look in looks.items()})
    for i, (arm, look) in enumerate(looks.items()):
        draw_rates(right, arm, None, 0.97 - 0.03 * i, names[arm], **look)
    finish_rates_axis(right, sweep)
    add_legend(figure, labelled(right), [*keys_of_rates(arms), *keys_of_bands(arms)])
    return figure


def plot_targets(sweeps):
    """LoRA on sets of matrices. At one number of parameters: where are they used best?"""
    sweep = sweeps.usual
    series = sweep.arms_by_targets()
    if not set(series) - {"all-linear", "attention", "mlp"}:
        return None
    arms = [arm for some in series.values() for arm in some]
    figure, (left, right) = new_figure("Targets", sweep, arms)
    keys = draw_sizes(left, sweep, series)
    draw_sizes(right, sweep, series, lambda arm: arm.rank, "rank")
    ranks = sorted({arm.rank for arm in arms})
    right.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    right.set_xticks([], minor=True)
    add_legend(figure, left.containers, keys)
    return figure


def draw_sizes(ax, sweep, series: dict[str, list[Arm]], size=lambda arm: arm.trainable,
               label: str = "trained parameters") -> list:
    """Test NLL at the best rate against size(arm): a line for each of `series`, full below.

    -> the legend's keys for the bars and for full.
    """
    keys = []
    for (name, arms), (color, marker) in zip(series.items(), itertools.cycle(SERIES)):
        nll = [drop_nan(arm.best.nll[arm.shown]) for arm in arms]
        mean = np.array([some.mean() for some in nll])
        ends = [mean - [some.min() for some in nll], [some.max() for some in nll] - mean]
        ends = np.maximum(ends, 0)          # rounding can take a mean past the smallest
        edge = "" if all(arm.counts.any() for arm in arms) else " (a best rate at the edge)"
        ax.errorbar([size(arm) for arm in arms], mean, ends, color=color, marker=marker, capsize=3,
                    linewidth=1.2, label=f"{name}{edge}")
    full = sweep.full_arm()
    if full:
        keys.append(ax.axhline(np.nanmean(full.best.nll[full.shown]), color=BLACK, linestyle="--",
                               linewidth=1.2, label="full fine-tuning"))
    ax.set(xlabel=label, title=f"at the best rate, after {sweep.end}")
    sizes = [size(arm) for arms in series.values() for arm in arms]
    if max(sizes) < 1.5 * min(sizes):       # one budget: what differs a little is drawn as alike
        ax.set_xlim(min(sizes) / 2, 2 * max(sizes))
    make_logarithmic(ax, format_parameters)
    scale_nll_axis(ax)
    return keys


FIGURES = {"finding1": plot_rank, "finding2": plot_rates, "finding3": plot_batch_sizes,
           "finding4": plot_placement, "alpha": plot_alpha, "rank_rates": plot_rank_rates,
           "capacity": plot_capacity, "methods": plot_methods, "settings": plot_settings,
           "targets": plot_targets}


def draw_figures(sweeps, out: Path, prefix: str, supervised: float) -> list[Path]:
    """Save every figure that the runs allow as PNG and SVG -> the PNGs' paths."""
    import matplotlib
    make_folder(out)
    paths = []
    for name, plot_finding in [*FIGURES.items(), ("arms", plot_arms)]:
        if name == "arms" and paths:
            continue
        more = {"supervised": supervised} if name == "capacity" else {}
        with matplotlib.rc_context(STYLE):
            figure = plot_finding(sweeps, **more)
            if figure:
                path = out / f"{prefix}{name}.png"
                save_figure(figure, path, dpi=130)
                save_figure(figure, path.with_suffix(".svg"), metadata={"Date": None})
                paths.append(path)
    return paths


def save_figure(figure, path: Path, **how):
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:], **how)


# ----- the command --------------------------------------------------------------------------------

@dataclass
class Settings:
    folders: list[Path] = flag(
        None, "folder with a sweep's CSV files, or folders of train.py's runs", positional=True,
        nargs="+", type=Path, metavar="folder")
    out: Path = flag(None, "folder of the figures; default: that of the CSV files, or of the run; "
                     "of several runs, the one that all lie in")
    watch: bool = flag(False, "draw the runs' curves again after each evaluation until all have "
                       "ended; watch.html shows them in a browser")
    table: bool = flag(False, "print Markdown instead of drawing")
    supervised: float = flag(1.0, "share of the tokens that are supervised, for the figure on "
                             "capacity; nano: 0.34", above=0, at_most=1, metavar="SHARE")


def main(argv=None):
    # If both arms of a gap diverged it is inf - inf. That is nan, as it should be.
    with errors_in_one_line(), np.errstate(invalid="ignore"):
        args = parse_flags(Settings, "plot.py", __doc__, argv)
        if args.watch and args.table:
            raise UserError("--watch draws, and --table prints; leave one of them out")
        if args.watch:
            wait_for(args.folders)
        is_run = [(folder / "log.csv").exists() or (folder / "run.json").exists()
                  for folder in args.folders]
        if all(is_run) and not args.table:
            plot_runs(args)
        elif len(args.folders) > 1 or args.watch:
            if all(is_run):
                raise UserError("--table is of one folder, a sweep's")
            other = args.folders[is_run.index(False)]
            raise UserError(f"{other} is no run of train.py, or not yet (no run.json); several "
                            "folders, and --watch, are for runs")
        else:
            plot_sweep(args)


def wait_for(folders: list[Path]):
    """Wait for the runs that have not begun. A folder with other CSV files is a sweep's."""
    for folder in folders:
        said = False
        while not (folder / "run.json").exists() and not list(folder.glob("*.csv")):
            if not said:
                print(f"waiting for {folder}; Ctrl-C stops", flush=True)
                said = True
            time.sleep(1)


def plot_runs(args):
    """Draw the curves of train.py's runs; --watch: until all have ended."""
    folders = args.folders
    if args.out and args.out.suffix == ".png":
        raise UserError(f"--out {args.out}: give a folder; the figure in it will be {curves.FILE}")
    out = make_folder(args.out or common_place(folders))
    path, drawn = out / curves.FILE, None
    if args.watch:
        with replacing(out / "watch.html") as part:
            part.write_text(WATCH_PAGE, encoding="utf-8")
        print(f"open {out / 'watch.html'} in a browser; Ctrl-C stops")
    while True:
        waits = [folder for folder in folders if not (folder / "log.csv").exists()]
        if waits and not args.watch:
            raise UserError(f"{waits[0]} has no evaluation yet; --watch waits for it")
        last = drawn if waits else [read_rows(folder / "log.csv")[-1] for folder in folders]
        if last != drawn:
            curves.draw_runs(folders, path)
            print(f"{path}: {'step' if len(last) == 1 else 'steps'} "
                  f"{', '.join(str(row['step']) for row in last)}", flush=True)
            drawn = last
        if not args.watch or all(has_ended(folder) for folder in folders):
            return
        time.sleep(2)


def common_place(runs: list[Path]) -> Path:
    """The folder of one run, or the one that all of several lie in."""
    if len(runs) == 1:
        return runs[0]
    if len({run.resolve().parent for run in runs}) > 1:
        raise UserError("the runs lie in different folders; --out says where their figure goes")
    return runs[0].parent


WATCH_PAGE = ('<meta http-equiv="refresh" content="3"><title>nanoLoRA</title>'
              f'<img src="{curves.FILE}" style="max-width: 100%">\n')


def has_ended(run: Path) -> bool:
    return read_json(run / "run.json", RUN)["finished"]


def plot_sweep(args):
    """Draw the figures of a sweep, or print its table."""
    folder, = args.folders
    runs = read_runs(folder)
    try:
        selected = select_sweeps(runs)
    except UserError as e:
        raise UserError("; ".join(filter(None, [str(e), suggest_folders(folder)]))) from None
    name_left_out(runs, selected)
    for sweeps in selected:
        model, data = sweeps.usual.model, sweeps.usual.data
        if args.table:
            print_markdown(verdict_table(sweeps))
            continue
        prefix = f"{Path(model).name}_{Path(data).name}_" if len(selected) > 1 else ""
        paths = draw_figures(sweeps, args.out or folder, prefix, args.supervised)
        if not paths:
            raise UserError(f"{folder} has {count_noun(len(runs), 'run')} of {model} on {data}, "
                            "and a figure compares two or more: other rates or ranks (sweep.py). "
                            "--table shows what there is")
        for path in paths:
            print(f"{path} (and .svg)")


if __name__ == "__main__":
    run_command(main)
