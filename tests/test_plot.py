"""Figures and the command, from CSV files made by hand, with known answers."""
import math
import os
import subprocess
import sys

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from conftest import REPO
from csv_runs import (FULL, FULL_LR, LORA_LR, R1, R64, SEEDS, SHIFT, ArmKey, find_arm, full_grid,
                      leaving_runs, line_to, make_grid, placement_grids, run_rows, sweep_of,
                      write_csv)
from runs import one_line

import plot
import verdicts


def runs_of_all_figures():
    runs = [*full_grid(), *placement_grids(1.2, 1.0),
            *make_grid(R1, LORA_LR, 4e-4, 1.3, SEEDS, shift=SHIFT)]
    for rank in (64, 1):
        runs += make_grid(ArmKey("lora", "all-linear", rank, 32, 16), LORA_LR, 3e-4, 1.1, SEEDS)
    for batch in (8, 32):
        runs += make_grid(FULL._replace(batch=batch), FULL_LR, 2e-5, 1.0, SEEDS)
        runs += make_grid(R64._replace(batch=batch), LORA_LR, 2e-4, 1.0 + batch / 100, SEEDS)
    diverging, bad = [3.0, 9.0, math.nan, math.nan], [3.0, 2.9, 2.9, 2.9]
    for seed, nll in zip(SEEDS, (diverging, diverging, bad), strict=True):
        runs.append(run_rows(R64, 3.2e-3, nll, seed, trainable=1_302_000))
    for seed, at in zip(SEEDS, (80, 80, 140), strict=True):
        runs += leaving_runs(R1, at, seed) + leaving_runs(FULL, 300, seed)
    return runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("figures") / "csv", *runs_of_all_figures())


@pytest.fixture(scope="module")
def sweeps(folder):
    """(usual, long)"""
    pair, = verdicts.select_sweeps(verdicts.group_runs(verdicts.read_runs(folder)))
    return pair


@pytest.fixture
def sweep(sweeps):
    return sweeps[0]


@pytest.fixture
def long(sweeps):
    return sweeps[1]


def curve_of(ax, label):
    curve, = (line for line in ax.get_lines() if line.get_label().startswith(label))
    return curve


def legend_of(legend):
    return [text.get_text() for text in legend.get_texts()]


# ----- the command --------------------------------------------------------------------------------

def test_every_figure_is_drawn_as_png_and_svg(folder, tmp_path, capsys):
    out = tmp_path / "figures"
    plot.main([str(folder), f"--out={out}"])
    names = ["finding1", "finding2", "finding3", "finding4", "alpha", "capacity"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{out / name}.png (and .svg)" for name in names]
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == expected
    for path in out.glob("*.png"):
        image, svg = matplotlib.image.imread(path)[..., :3], path.with_suffix(".svg").read_text()
        assert image.shape == (780, 1625, 3)
        # the long runs have only the lower of the two ranks
        color, _ = plot.RANKS[1 if path.stem == "capacity" else 0]
        drawn = np.abs(image - matplotlib.colors.to_rgb(color)).max(-1) < 0.01
        assert drawn.sum() > 100 and color.lower() in svg, path
    assert not list(folder.glob("*.png"))


def test_figures_without_full_fine_tuning_and_of_several_models_are_drawn_too(tmp_path, capsys):
    runs = [*make_grid(R64, LORA_LR, 2e-4, 1.0),
            *make_grid(R1, LORA_LR, 2e-4, 1.0, model="/models/other", data="gsm8k")]
    plot.main([str(write_csv(tmp_path, *runs))])
    assert {path.stem for path in tmp_path.glob("*.svg")} == {
        "nano_nano_finding1", "nano_nano_finding2", "other_gsm8k_finding1", "other_gsm8k_finding2"}
    capsys.readouterr()
    plot.main([str(tmp_path), "--table"])
    assert "## other on gsm8k, batch 16, 5 runs, 1 seed" in capsys.readouterr().out


def test_the_table_is_printed_and_nothing_is_drawn(folder, sweeps, capsys):
    before = sorted(folder.iterdir())
    plot.main([str(folder), "--table"])
    assert capsys.readouterr().out == verdicts.verdict_table(*sweeps) + "\n"
    assert sorted(folder.iterdir()) == before


def test_a_table_takes_neither_matplotlib_nor_torch(folder):
    """So that the command answers at once."""
    code = """if True:
        import sys
        import plot
        plot.main(sys.argv[1:])
        slow = {"torch", "jinja2", "tiktoken", "huggingface_hub", "matplotlib"}
        print(sorted(slow & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code, folder, "--table"], cwd=REPO, text=True,
                          encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"},
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "| claim" in done.stdout


def error_of(capsys, *argv):
    """The line in which the command ends."""
    with pytest.raises(SystemExit) as e:
        plot.main([str(arg) for arg in argv])
    return one_line(e.value.code, capsys.readouterr().err)


def test_runs_that_the_columns_do_not_tell_apart_are_refused(tmp_path, capsys):
    alike = [run_rows(FULL, 1e-5, [3, 2, 1, 1], run=run) for run in ("aaa", "bbb")]
    line = error_of(capsys, write_csv(tmp_path, *alike))
    assert "runs aaa and bbb are alike in every column" in line


def test_folders_without_runs_or_with_too_few_are_refused(tmp_path, capsys):
    one_run = write_csv(tmp_path / "one", run_rows(FULL, 1e-5, [3, 2, 1, 1]))
    for folder in (tmp_path, tmp_path / "missing", one_run / "0.csv"):
        assert f"{folder} has no CSV file that sweep.py wrote" in error_of(capsys, folder)
    assert "none that make one of the figures" in error_of(capsys, one_run)
    assert "required: folder" in error_of(capsys)


def test_a_file_in_the_way_of_the_figures_is_named(folder, tmp_path, capsys):
    (tmp_path / "README.md").write_text("here already")
    error = error_of(capsys, folder, "--out", tmp_path / "README.md")
    assert "README.md: a file is in the way of this folder; give another one" in error


def test_damaged_files_are_named(tmp_path, capsys):
    folder = write_csv(tmp_path, run_rows(R64, 1e-5, [3, 2, 1, 1]))
    (folder / "other.csv").write_bytes("Größe,a\n".encode("latin-1"))
    assert len(verdicts.read_runs(folder)) == 1
    assert "other.csv is left out" in capsys.readouterr().err
    (folder / "other.csv").unlink()
    text = (folder / "0.csv").read_text()
    infinite_rank = text.replace("all-linear,64,", "all-linear,inf,")
    assert infinite_rank != text
    for damaged in (text[:-30], text.replace("1e-05", "rate"), infinite_rank):
        (folder / "0.csv").write_text(damaged)
        assert "0.csv is damaged; delete it" in error_of(capsys, folder)


# ----- what is drawn ------------------------------------------------------------------------------

def test_curves_are_means_of_best_of_sweep_and_bands_go_from_seed_to_seed(sweep):
    figure = plot.plot_rank(sweep)
    left, right = figure.axes
    curve = curve_of(left, "r = 1 ")
    assert curve.get_xdata().tolist() == [10, 20, 30]
    expected = np.mean([line_to(4e-4, 4e-4, 1.3 + shift)[1:] for shift in SHIFT], axis=0)
    assert curve.get_ydata().tolist() == pytest.approx(expected)
    band = left.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.3, line_to(4e-4, 4e-4, 1.302)[1]))
    gaps = sorted(line.get_ydata()[-1] for line in right.get_lines()[:2])
    assert gaps == pytest.approx([0.001, 0.301])
    grey, = right.patches
    # 2 % of 2 nats to either side
    assert (grey.get_y(), grey.get_height()) == pytest.approx((-0.04, 0.08))
    n = 3 * (5 + 5 + 6)
    bands = "(bands: from the smallest to the largest)"
    assert figure.get_suptitle() == (
        f"Finding 1, rank: nano on nano, batch 16, {n} runs, 3 seeds {bands}")
    label = curve_of(left, "r = 64").get_label()
    assert label == "r = 64 (6 rates, 2 of 18 runs diverged)"


def test_rates_show_the_ratio_to_full_fine_tuning(sweep):
    ax, = plot.plot_rates(sweep).axes
    assert ax.get_xscale() == "log"
    assert curve_of(ax, "full").get_label() == "full: best 2.0e-05"
    curve = curve_of(ax, "r = 64")
    assert curve.get_label() == "r = 64: best 2.0e-04, 10 x full's"
    assert curve.get_xdata().tolist() == [*LORA_LR, 3.2e-3]
    assert math.isnan(curve.get_ydata()[-1])
    edge = sweep_of(*full_grid(), *make_grid(R64, LORA_LR, 8e-4, 1.0, SEEDS))
    label = curve_of(plot.plot_rates(edge).axes[0], "r = 64").get_label()
    assert label == "r = 64: best 8.0e-04, at the edge"


def test_rates_mark_the_lowest_the_best_of_each_seed_and_diverged_runs(sweep):
    ax, = plot.plot_rates(sweep).axes
    color = curve_of(ax, "r = 64").get_color()
    marks = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    rings = [line for line in ax.get_lines() if line.get_markersize() == 13]
    ring, = (mark for mark in rings if mark.get_color() == color)
    assert ring.get_xdata() == [2e-4] and ring.get_ydata() == pytest.approx([1.001])
    triangles, = (mark for mark in marks
                  if mark.get_marker() == "^" and mark.get_color() == color)
    assert triangles.get_xdata().tolist() == pytest.approx([2e-4] * 3)
    crosses, = (mark for mark in marks if mark.get_marker() == "X" and len(mark.get_xdata()))
    assert crosses.get_color() == color and crosses.get_xdata().tolist() == [3.2e-3]


def test_gaps_over_batches_lie_above_zero_where_lora_is_worse(sweep):
    """At batch 16 it is the mean of 0, 0.002 and 0.001."""
    left, right = plot.plot_batch_sizes(sweep).axes
    gaps = right.get_lines()[0]
    assert gaps.get_xdata().tolist() == [8, 16, 32]
    assert gaps.get_ydata().tolist() == pytest.approx([0.08, 0.001, 0.32])
    lines = {line.get_label().partition(",")[0]: line.get_linestyle() for line in left.get_lines()}
    assert lines == {"batch 8": ":", "batch 16": "--", "batch 32": "-"}


def test_a_panel_for_one_alpha_and_one_for_alpha_equal_to_rank(sweep):
    """With alpha fixed the lowest NLL is measured at 4e-4. The parabola's minimum is at 3e-4: 15
    times full fine-tuning's rate, not 20."""
    fixed, equal = (legend_of(ax.get_legend()) for ax in plot.plot_alpha(sweep).axes)
    assert fixed == ["full: best 2.0e-05", "r = 1, alpha = 32: best 3.0e-04, 15 x full's",
                     "r = 64, alpha = 32: best 3.0e-04, 15 x full's"]
    assert equal == ["full: best 2.0e-05", "r = 1: best 4.0e-04, 20 x full's",
                     "r = 64: best 2.0e-04, 10 x full's"]
    arm, full = sweep.fixed_alpha_arms()[0], sweep.full_arm()
    row = verdicts.arm_row(arm, full)
    assert row[5:7] == ["4.0e-04", "3.0e-04"] and row[-1] == "15"
    assert verdicts.format_rate_multiple(full, arm) == "0.0667"


def test_placements_show_their_parameters(sweep):
    legend, = plot.plot_placement(sweep).legends
    assert legend_of(legend) == [
        "full: 1k trained (5 rates)",
        "all layers, r = 64: 1.3M trained (6 rates, 2 of 18 runs diverged)",
        "attention, r = 64: 490k trained (5 rates)",
        "attention, r = 80: 614k trained, matched (5 rates)",
        "mlp, r = 48: 608k trained, matched (5 rates)",
        "mlp, r = 64: 811k trained (5 rates)"]


def test_colours_keep_their_meaning_in_every_figure(sweep, long):
    """And they differ in grey."""
    keys = (FULL, R64, R1, ArmKey("lora", "attention", 64, 64, 16),
            ArmKey("lora", "mlp", 48, 48, 16))
    colors = [plot.style_of(find_arm(sweep, key))["color"] for key in keys]
    assert len(set(colors)) == 5
    # r = 64 is not among the long runs, and r = 1 has its colour all the same
    assert 64 not in {arm.rank for arm in long.arms}
    assert plot.style_of(find_arm(long, R1))["color"] == colors[2]
    expected = {"full": colors[0], "r = 64": colors[1], "r = 1 ": colors[2], "r = 1,": colors[2]}
    for name, plot_finding in plot.FIGURES.items():
        figure = plot_finding(long if name == "capacity" else sweep)
        for line in (line for ax in figure.axes for line in ax.get_lines()):
            for start, color in expected.items():
                if line.get_label().startswith(start):
                    assert line.get_color() == color, (name, line.get_label())
    red, green, blue = np.transpose([matplotlib.colors.to_rgb(color) for color in colors])
    lightness = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert min(np.diff(lightness)) > 0.02


def test_capacity_marks_where_a_rank_leaves_the_curve(long):
    """At the mean over seeds of steps 100, 100 and 160."""
    _, right = plot.plot_capacity(long).axes
    assert legend_of(right.get_legend()) == ["r = 1 leaves at step 120"]
    assert curve_of(right, "r = 1 leaves").get_xdata() == [120, 120]


def test_figures_whose_runs_are_missing_are_not_drawn():
    full = sweep_of(*full_grid())
    assert [plot_finding(full) for plot_finding in plot.FIGURES.values()] == [None] * 6
    two_rates = sweep_of(*make_grid(R64, LORA_LR[:2], 1e-4, 1.0))
    drawn = [name for name, plot_finding in plot.FIGURES.items() if plot_finding(two_rates)]
    assert drawn == ["finding1"]
