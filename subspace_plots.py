"""The figures of analyze.py. Each says what to look for, the paper's number and ours.

`make_figures` makes them all, of the rows that analyze.py has measured, and `save_figures` writes
them. Each other function returns one figure, or draws one panel of it.
"""
import math
import textwrap
from pathlib import Path

import torch

from lora import TARGETS
from plumbing.files import replacing
from plumbing.records import group_by, mean_of
from plumbing.text import range_of
from subspaces import TOP, random_phi, random_spectrum, share_held

SHOWN = ("q_proj", "v_proj")    # the kinds that Hu et al. draw; of a layer in the middle
STYLE = {"font.size": 11, "axes.titlesize": 11, "figure.titlesize": 13, "legend.fontsize": 9.5,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
         "figure.constrained_layout.use": True, "text.parse_math": False}
# Okabe and Ito's colours, which the colour-blind tell apart
KINDS = {"q_proj": "#0072B2", "k_proj": "#56B4E9", "v_proj": "#009E73", "o_proj": "#000000",
         "gate_proj": "#E69F00", "up_proj": "#D55E00", "down_proj": "#CC79A7"}


def next_to_chance(rows: list[dict], key: str) -> str:
    """The mean of a column of phi and of what random directions have -> 0.430 (0.330)"""
    return f"{mean_of(rows, key):.3f} ({mean_of(rows, f'{key} by chance'):.3f})"


def captioned_figure(title: str, height: float, *caption: str):
    """A figure with the lines of `caption` below its panels."""
    from matplotlib.figure import Figure            # takes half a second, so only for --out
    figure = Figure(figsize=(12.5, height))
    figure.suptitle(title)
    lines = [textwrap.fill(line, 145, subsequent_indent="    ", break_on_hyphens=False)
             for line in caption]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=11)
    return figure


def middle_rows(rows: list[dict]) -> list[dict]:
    """The rows that are drawn: W_q and W_v of the middle layer, or the first two kinds."""
    kinds = group_by("kind", rows)
    shown = [kind for kind in SHOWN if kind in kinds] or list(kinds)[:2]
    return [kinds[kind][len(kinds[kind]) // 2] for kind in shown]


def draw_phi(ax, matrix, title: str, zoom=0):
    """A heat map of phi, 0 to 1. zoom: only the lower left triangle, j <= i <= zoom."""
    if zoom:
        matrix = matrix[:zoom, :zoom]
        matrix = matrix.where(torch.ones_like(matrix).tril() > 0, math.nan)
    n_rows, n_columns = matrix.shape
    ax.set(title=title, xlabel="j", ylabel="i")
    image = ax.imshow(matrix.numpy(), vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                      extent=(0.5, n_columns + 0.5, n_rows + 0.5, 0.5))
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return image


def overlap_figure(one: str, two: str, rows: list[dict]):
    """Figures 3 and 4: phi of A and of B, with the zoom, next to Gaussian matrices."""
    ours = [f"{key}: {next_to_chance(rows, key)}" for key in ("A top", "A all", "B top", "B all")]
    figure = captioned_figure(
        f"what they share: phi of the top i directions of {one} and the top j of {two}", 6.6,
        "Look for: bright at the left and in the corner. The top directions are shared, the others "
        "are not.",
        "GPT-3, A of r = 8 and r = 64 (Hu et al., figure 3): above 0.5 for the top direction, near "
        "0 for random ones. Two seeds at r = 64 share more of W_q than of W_v (figure 4). Here, as "
        f"means over layers, in brackets by chance: {', '.join(ours)}.",
        "Against it: no more than the Gaussian panel. But a short run leaves A as it started, so "
        "look at B; and with one seed the first layer's A starts alike.")
    shown = middle_rows(rows)
    axes = figure.subplots(len(shown), 6, squeeze=False, width_ratios=(3, 2, 3) * 2)
    for row, line in zip(shown, axes):
        zoom = min(8, *row["A"].shape, *row["B"].shape)
        for side, (ax, corner, gaussian) in (("A", line[:3]), ("B", line[3:])):
            draw_phi(ax, row[side], f"{side} of {row['kind']}, layer {row['depth']}")
            draw_phi(corner, row[side], "j <= i", zoom)
            random = random_phi(*row[side].shape, row[f"{side} size"])
            image = draw_phi(gaussian, random, f"Gaussian {side}")
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    figure.colorbar(image, ax=axes, label="phi", pad=0.01)
    return figure


def weight_figure(label: str, rows: list[dict]):
    """Table 7 over depth, and figure 8: the overlap of dW's directions with W's."""
    row = middle_rows(rows)[0]
    where, four = f"{row['kind']} of layer {row['depth']}", min(4, row["rank"]) - 1
    figure = captioned_figure(
        f"what dW does to W: {label}", 9.4,
        "Look for: the orange line between the others. dW takes directions in which W does little, "
        "but more than by chance, and amplifies them. And dark maps: they are not W's top ones.",
        "GPT-3, W_q of layer 48 (Hu et al., table 7), ||U^T W V||, not divided by ||W||, for U, V "
        "of dW, of W, random: 0.32, 21.67, 0.02 at r = 4, amplification 21.5; 1.90, 37.71, 0.33 at "
        "r = 64, "
        f"amplification 1.9. Here {where}, r = {row['rank']}: {row['UWV_dW']:.3g}, "
        f"{row['UWV_W']:.3g}, {row['UWV_random']:.3g}, amplification {row['amplification']:.3g}.",
        "phi of the top 4 of dW and the top tenth of W: hardly above 0.2 (figure 8). Here "
        f"{row['phi_in'][-1, four]:.2f} for inputs, {row['phi_out'][-1, four]:.2f} for outputs.",
        "Against it: the orange line on the grey one, so dW ignores W; on the black one, or bright "
        "maps, so dW repeats what W does most.")
    axes = figure.subplot_mosaic("aaabbb;ccddee", height_ratios=(5, 4))
    for kind, of_kind in group_by("kind", rows).items():
        draw_depths(axes["a"], of_kind, "amplification", kind, KINDS.get(kind),
                    "o-" if kind in TARGETS["attention"] else "s--")
    shares = [row | {key: row[key] / (row["W"] or math.nan) for key in THROUGH} for row in rows]
    for key, (color, name) in THROUGH.items():
        draw_depths(axes["b"], shares, key, f"U, V: {name}", color)
    axes["a"].set(title="amplification", ylabel="||dW|| / ||U^T W V||")
    axes["b"].set(title="mean over kinds", ylabel="||U^T W V|| / ||W||")
    draw_phi(axes["c"], row["phi_in"], "phi: inputs of W (i) and of dW (j)")
    draw_phi(axes["d"], row["phi_out"], f"their outputs ({where})")
    random = random_phi(*row["phi_in"].shape, row["shape"][1])
    image = draw_phi(axes["e"], random, "Gaussian, as inputs")
    figure.colorbar(image, ax=axes["e"], label="phi")
    return figure


THROUGH = {"UWV_W": ("#000000", "W's own"), "UWV_dW": ("#D55E00", "dW's"),
           "UWV_random": ("#999999", "random")}


def write_powers(axis):
    """Label a logarithmic axis at powers of ten, without the $ of matplotlib's own labels.

    Where the data cover less than a factor of 30, at 2 and 5 times these, too.
    """
    low, high = axis.get_data_interval()
    axis.get_major_locator().set_params(subs=(1, 2, 5) if high < 30 * low else (1,))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter("")


def draw_depths(ax, rows: list[dict], key: str, label: str, color, style="o-"):
    """The mean of a column in each layer, logarithmic."""
    by_depth = group_by("depth", rows)
    ax.plot(list(by_depth), [mean_of(at, key) for at in by_depth.values()], style, color=color,
            label=label)
    ax.set(xlabel="layer", yscale="log")
    write_powers(ax.yaxis)
    ax.margins(y=0.25)          # room for the legend
    ax.grid(alpha=0.3)
    ax.legend(ncols=4, loc="upper center")


PANELS = {"dW/W": "||dW|| / ||W||", "effective_rank": "effective rank of dW",
          "intruders": f"intruders among the top {TOP} of W + dW"}


def change_figure(label: str, rows: list[dict]):
    """Where the change is: maps over depth and kind. The fourth one is of A and B if they exist."""
    panels, rank = PANELS | {"B/A": "||B|| / ||A||"}, "near r, so that all directions are used"
    if "B/A" not in rows[0]:
        panels = PANELS | {"held_by_8": "share of ||dW||^2 in the top 8"}
        rank = "far below the rank of W, so that few directions hold most of dW"
    figure = captioned_figure(
        f"where the change is: {label}", 7.4,
        "Look for: bright rows and columns, the kinds and depths that training moved most; an "
        f"effective rank {rank}.",
        "GPT-3, W_q of layer 48 (Hu et al., table 7): ||dW|| / ||W|| is 0.11 at r = 4, 0.06 at "
        "r = 64. LoRA has intruders at low ranks, full fine-tuning hardly any (2410.21228). Here "
        f"the means are {mean_of(rows, 'dW/W'):.2g}, {mean_of(rows, 'intruders'):.2g} intruders "
        f"per matrix, and an effective rank of {mean_of(rows, 'effective_rank'):.3g}, where "
        f"{range_of(len(row['S']) for row in rows)} is the most.",
        "Against it: even colours, so no place matters more; intruders in full fine-tuning.")
    for ax, (key, title) in zip(figure.subplots(2, 2).flat, panels.items()):
        image = draw_map(ax, rows, key, title)
        figure.colorbar(image, ax=ax)
    return figure


def draw_map(ax, rows: list[dict], key: str, title: str):
    """A column of `rows` as colours over depth and kind; white where no layer has a row."""
    kinds, depths = list(group_by("kind", rows)), list(group_by("depth", rows))
    cells = torch.full((len(kinds), max(depths) + 1), math.nan)
    for row in rows:
        cells[kinds.index(row["kind"]), row["depth"]] = row[key]
    ax.set(title=title, xlabel="layer")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.xaxis.get_major_locator().set_params(integer=True)
    highest = TOP if key == "intruders" else None
    return ax.imshow(cells.numpy(), vmin=0, vmax=highest, aspect="auto", interpolation="nearest")


def spectrum_figure(label: str, rows: list[dict]):
    """Full fine-tuning's singular values, and the share of ||dW||^2 that rank r holds."""
    figure = captioned_figure(
        f"how low is the rank of full fine-tuning's dW? {label}", 6.2,
        "Look for: lines far from the dotted ones. Then few directions hold most of dW.",
        "Hu et al. suppose a low intrinsic rank, and only results speak for it: r = 1 does about "
        f"as well as r = 64 (table 6). Here, of ||dW||^2, one direction holds "
        f"{mean_of(rows, 'held_by_1'):.0%} and eight hold {mean_of(rows, 'held_by_8'):.0%}, as "
        "means over layers.",
        "Against it: lines on the dotted ones, so that dW is like noise. A checkpoint in bfloat16 "
        "adds noise of its own.")
    left, right = figure.subplots(1, 2)
    for kind, of_kind in group_by("kind", rows).items():
        middle = of_kind[len(of_kind) // 2]
        S, noise = middle["S"], random_spectrum(*middle["shape"])
        ranks, color = range(1, len(noise) + 1), KINDS.get(kind)
        share = torch.stack([share_held(row["S"]) for row in of_kind]).mean(0)
        left.plot(ranks, (S / S[0]).numpy(), color=color, label=kind)
        left.plot(ranks, (noise / noise[0]).numpy(), ":", color=color)
        right.plot(ranks, share.numpy(), color=color)
        right.plot(ranks, share_held(noise).numpy(), ":", color=color)
    left.set(title=f"layer {middle['depth']} (dotted: Gaussian matrices)", xlabel="i", yscale="log",
             ylim=(1e-3, 1.5), ylabel="S_i / S_1")
    right.set(title="mean over layers", xlabel="r", ylabel="share of ||dW||^2 in the top r")
    for ax in (left, right):
        ax.set_xscale("log")
        write_powers(ax.xaxis)
        ax.grid(alpha=0.3)
    write_powers(left.yaxis)
    left.legend(ncols=2)
    return figure


def make_figures(rows: list[dict], overlaps: dict, tuned: str | None) -> dict:
    """{file name: figure} of what was measured."""
    import matplotlib
    figures = {}
    with matplotlib.rc_context(STYLE):
        for (one, two), shared in overlaps.items():
            if shared:
                figures[f"phi_{one}_{two}.png"] = overlap_figure(one, two, shared)
        for label, changes in group_by("source", rows).items():
            figures[f"weight_{label}.png"] = weight_figure(label, changes)
            figures[f"change_{label}.png"] = change_figure(label, changes)
            if label == tuned:
                figures[f"spectrum_{label}.png"] = spectrum_figure(label, changes)
    return figures


def save_figures(figures: dict, folder: Path):
    """Write each figure, whole or not at all."""
    import matplotlib
    with matplotlib.rc_context(STYLE):      # the layout is made here
        for name, figure in figures.items():
            with replacing(folder / name) as part:
                figure.savefig(part, format="png", dpi=130)
