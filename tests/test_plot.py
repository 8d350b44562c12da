"""Figures and the command, from CSV files made by hand, with known answers."""
import dataclasses
import itertools
import math
import os
import subprocess
import sys

import matplotlib.colors
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from conftest import REPO
from csv_runs import (FULL, FULL_LR, LORA_LR, R1, R64, SEEDS, SHIFT, ArmKey, find_arm, full_grid,
                      leaving_runs, line_to, make_grid, other_settings, placement_grids, run_rows,
                      sweep_of, sweeps_of, write_csv)
from runs import one_line

import arms
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
    sweeps, = arms.select_sweeps(arms.read_runs(folder))
    return sweeps


@pytest.fixture
def sweep(sweeps):
    return sweeps.usual


@pytest.fixture
def long(sweeps):
    return sweeps.long


def curve_of(ax, label):
    curve, = (line for line in ax.get_lines() if line.get_label().startswith(label))
    return curve


def legend_of(figure):
    """The texts of a figure's legend: arms, then what marks mean."""
    legend, = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def labels_of(ax):
    return [line.get_label() for line in ax.get_lines() if line.get_label()[0] != "_"]


def keys_of(figure):
    """Those entries of the legend that are about marks."""
    labels = {label for ax in figure.axes for label in labels_of(ax)}
    return [text for text in legend_of(figure) if text not in labels]


# ----- the command --------------------------------------------------------------------------------

def test_every_figure_is_drawn_as_png_and_svg(folder, tmp_path, capsys):
    out = tmp_path / "figures"
    plot.main([str(folder), f"--out={out}"])
    names = ["finding1", "finding2", "finding3", "finding4", "alpha", "rank_rates", "capacity"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{out / name}.png (and .svg)" for name in names]
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == expected
    for path in out.glob("*.png"):
        image, svg = matplotlib.image.imread(path)[..., :3], path.with_suffix(".svg").read_text()
        assert image.shape[1] == 1300 and 598 < image.shape[0] < 800     # higher by its legend
        # the long runs have only the lowest of the three ranks: 1, of which 64 is the sixth double
        color, _ = plot.RANKS[0 if path.stem == "capacity" else 6]
        drawn = np.abs(image - matplotlib.colors.to_rgb(color)).max(-1) < 0.01
        assert drawn.sum() > 100 and color.lower() in svg, path
    assert not list(folder.glob("*.png"))


def test_figures_without_full_fine_tuning_and_of_several_models_are_drawn_too(tmp_path, capsys):
    runs = [*make_grid(R64, LORA_LR, 2e-4, 1.0), *make_grid(R1, LORA_LR, 2e-4, 1.0)]
    for arm in (R1, R64):
        runs += make_grid(arm, LORA_LR, 2e-4, 1.0, model="/models/other", data="gsm8k")
    plot.main([str(write_csv(tmp_path, *runs))])
    assert {path.stem for path in tmp_path.glob("*.svg")} == {
        f"{name}_{figure}" for name in ("nano_nano", "other_gsm8k")
        for figure in ("finding1", "finding2", "rank_rates")}
    capsys.readouterr()
    plot.main([str(tmp_path), "--table"])
    assert "## other on gsm8k, batch 16, 10 runs, 1 seed" in capsys.readouterr().out


def test_the_table_is_printed_and_nothing_is_drawn(folder, sweeps, capsys):
    before = sorted(folder.iterdir())
    plot.main([str(folder), "--table"])
    assert capsys.readouterr().out == verdicts.verdict_table(sweeps) + "\n"
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
    error = error_of(capsys, tmp_path)
    assert f"{tmp_path} has no CSV file that sweep.py wrote; for the sweep in a folder of" in error
    assert error.endswith(f": python plot.py {one_run}\n")
    write_csv(tmp_path, run_rows(R1, 1e-4, [3, 2, 1, 1]), run_rows(R64, 1e-4, [4, 2, 1, 1]))
    error = error_of(capsys, tmp_path)      # runs that cannot be compared, and a sweep below them
    assert "were not evaluated alike" in error and error.endswith(f": python plot.py {one_run}\n")
    assert f"there is no folder {tmp_path / 'missing'}" in error_of(capsys, tmp_path / "missing")
    path = one_run / "0.csv"
    assert f"{path} is a file; give the folder that it lies in: {one_run}\n" in error_of(
        capsys, path)
    assert "has 1 run of nano on nano, and a figure compares two" in error_of(capsys, one_run)
    assert "required: folder" in error_of(capsys)


def test_a_file_in_the_way_of_the_figures_is_named(folder, tmp_path, capsys):
    (tmp_path / "README.md").write_text("here already")
    error = error_of(capsys, folder, "--out", tmp_path / "README.md")
    assert "README.md: a file is in the way of this folder; give another one" in error


def test_a_figure_is_whole_or_what_it_was_before(tmp_path, monkeypatch):
    """Here the disk is full after half of the file."""
    def write_half(figure, path, **how):
        path.write_text("half")
        raise OSError(28, "No space left on device")
    old = tmp_path / "finding1.png"
    old.write_text("old")
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", write_half)
    with pytest.raises(OSError):
        plot.save_figure(matplotlib.figure.Figure(), old)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_damaged_files_are_named(tmp_path, capsys):
    folder = write_csv(tmp_path, run_rows(R64, 1e-5, [3, 2, 1, 1]))
    (folder / "other.csv").write_bytes("Größe,a\n".encode("latin-1"))
    assert len(arms.read_runs(folder)) == 1
    assert "other.csv is left out" in capsys.readouterr().err
    (folder / "other.csv").unlink()
    text = (folder / "0.csv").read_text()
    infinite_rank = text.replace("all-linear,64,", "all-linear,inf,")
    assert infinite_rank != text
    for damaged in (text[:-30], text.replace("1e-05", "rate"), infinite_rank):
        (folder / "0.csv").write_text(damaged)
        assert "0.csv is damaged (" in error_of(capsys, folder)


# ----- what is drawn ------------------------------------------------------------------------------

def test_curves_are_means_of_best_of_sweep_and_bands_go_from_seed_to_seed(sweeps):
    figure = plot.plot_rank(sweeps)
    left, right = figure.axes
    curve = curve_of(left, "r = 1 ")
    assert curve.get_xdata().tolist() == [10, 20, 30]
    expected = np.mean([line_to(4e-4, 4e-4, 1.3 + shift)[1:] for shift in SHIFT], axis=0)
    assert curve.get_ydata().tolist() == pytest.approx(expected)
    band = left.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.3, line_to(4e-4, 4e-4, 1.302)[1]))
    gaps = sorted(line.get_ydata()[-1] for line in right.get_lines()[:3])
    assert gaps == pytest.approx([0.001, 0.001, 0.301])
    grey, = right.patches
    # 2 % of 2 nats to either side
    assert (grey.get_y(), grey.get_height()) == pytest.approx((-0.04, 0.08))
    n = 3 * (5 + 5 + 6 + 5)
    assert figure.get_suptitle() == f"Finding 1, rank: nano on nano, batch 16, {n} runs, 3 seeds"
    label = curve_of(left, "r = 64").get_label()
    assert label == "r = 64 (6 rates, 2 of 18 runs diverged)"


def tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [text.get_text() for place, text in ticks if low <= place <= high]


def test_ticks_are_round_and_have_two_decimals_and_a_real_minus(sweeps):
    left, right = plot.plot_rank(sweeps).axes
    assert tick_labels(left.xaxis) == tick_labels(right.xaxis) == ["10", "15", "20", "25", "30"]
    labels = tick_labels(left.yaxis)
    assert len(labels) > 2 and all(len(label) == 4 and label[1] == "." for label in labels)
    assert tick_labels(right.yaxis) == ["0.00", *(f"+0.{n}0" for n in range(1, 7))][
        :len(tick_labels(right.yaxis))]
    figure = matplotlib.figure.Figure()
    for i, (gaps, expected) in enumerate((
            ([-0.021, 0.021], ["\u22120.02", "\u22120.01", "0.00", "+0.01", "+0.02"]),
            ([-0.001, 0.002], ["\u22120.0010", "\u22120.0005", "0.0000", "+0.0005", "+0.0010",
                               "+0.0015", "+0.0020"]))):
        ax = figure.add_subplot(1, 2, i + 1)
        ax.plot([0, 1], gaps)
        plot.finish_gap_axis(ax)
        assert tick_labels(ax.yaxis) == expected
    assert [plot.write_power(lr) for lr in (1e-4, 2e-4, 5e-3)] == [
        "10⁻⁴", "2×10⁻⁴", "5×10⁻³"]


def test_the_labels_of_a_narrow_axis_do_not_collide():
    """Matplotlib's own, 2 x 10^4, 3 x 10^4 and 4 x 10^4, stood on top of each other."""
    figure = matplotlib.figure.Figure()
    for sizes, expected in (([10_400, 81_000], ["10k", "20k", "50k"]),
                            ([1e4, 2e6], ["10k", "100k", "1.0M"])):
        ax = figure.add_subplot()
        ax.plot(sizes, [1, 2])
        plot.make_logarithmic(ax, verdicts.format_parameters)
        assert [label for label in tick_labels(ax.xaxis) if label] == expected
        assert not any(text.get_text() for text in ax.xaxis.get_minorticklabels())


def test_a_grid_of_other_settings_is_no_finding(tmp_path, capsys):
    """Its table used to begin with a claims table without claims."""
    runs = []
    for schedule in ("constant", "cosine"):
        runs += make_grid(R64, LORA_LR, 2e-4, 1.0, settings=other_settings(schedule=schedule))
    sweeps = sweeps_of(*runs)
    drawn = [name for name, plot_finding in plot.FIGURES.items() if plot_finding(sweeps)]
    assert drawn == ["settings"]
    table = verdicts.verdict_table(sweeps)
    assert table.startswith("## Settings") and "## Claims" not in table


def test_rates_show_the_ratio_to_full_fine_tuning(sweeps):
    ax, = plot.plot_rates(sweeps).axes
    assert ax.get_xscale() == "log"
    assert curve_of(ax, "full").get_label() == "full: best 2.0e-05"
    curve = curve_of(ax, "r = 64")
    assert curve.get_label() == "r = 64: best 2.0e-04, 10.0 x full's"
    assert curve.get_xdata().tolist() == [*LORA_LR, 3.2e-3]
    assert math.isnan(curve.get_ydata()[-1])
    edge = sweeps_of(*full_grid(), *make_grid(R64, LORA_LR, 8e-4, 1.0, SEEDS))
    label = curve_of(plot.plot_rates(edge).axes[0], "r = 64").get_label()
    assert label == "r = 64: best 8.0e-04, at the edge"


def test_rates_mark_the_lowest_the_best_of_each_seed_and_diverged_runs(sweeps):
    ax, = plot.plot_rates(sweeps).axes
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


def test_seeds_with_different_rates_are_drawn_and_said_to_be():
    """Seed 43 has three of the five rates, 44 two, with its best at the edge: not in the curves."""
    runs = full_grid() + make_grid(R64, LORA_LR, 2e-4, 1.1, (42,))
    runs += make_grid(R64, LORA_LR[1:4], 2e-4, 1.2, (43,))
    runs += make_grid(R64, LORA_LR[:2], 2e-4, 1.9, (44,))
    sweeps = sweeps_of(*runs)
    left, right = plot.plot_rank(sweeps).axes
    curve = curve_of(left, "r = 64")
    assert curve.get_label() == "r = 64 (2 to 5 rates, 2 of 3 seeds count)"
    assert curve.get_ydata()[-1] == pytest.approx(1.15)
    ax, = plot.plot_rates(sweeps).axes
    curve, rise = curve_of(ax, "r = 64"), math.log(2) ** 2 / 10
    assert curve.get_label() == "r = 64: best 2.0e-04, 2 of 3 seeds count, 10.0 x full's"
    assert curve.get_ydata() == pytest.approx([
        (1.1 + 1.9) / 2 + 4 * rise, (1.1 + 1.2 + 1.9) / 3 + rise, (1.1 + 1.2) / 2,
        (1.1 + 1.2) / 2 + rise, 1.1 + 4 * rise])
    triangles = [line for line in ax.get_lines() if line.get_marker() == "^"
                 and line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in triangles] == [3, 2]


def test_gaps_over_batches_after_equal_steps_and_after_equal_samples(sweeps):
    """At batch 16 it is the mean of 0, 0.002 and 0.001. The bar is where the rule has the gap."""
    left, right = plot.plot_batch_sizes(sweeps).axes
    means = [line for line in left.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in means] == [8, 16, 32]
    assert [line.get_ydata()[0] for line in means] == pytest.approx([0.08, 0.001, 0.32])
    lora, full = sweeps.usual.pairs_by_batch()[16]
    verdict = verdicts.judge_claim(verdicts.claim_gap("", lora, full, {}))
    claim = verdicts.claim_gap("", lora, full, {})
    thick, thin = (bars.get_segments()[0][:, 1] for bars in left.collections[2:4])
    assert thin == pytest.approx([verdict.low, verdict.high])
    assert thick == pytest.approx([verdict.low + claim.below, verdict.high - claim.above])
    assert left.get_title() == "r = 64, after 30 steps"
    assert right.get_title() == "r = 64, after 320 samples"
    assert [line.get_xdata()[0] for line in right.get_lines() if line.get_marker() == "o"] == [
        16, 32]


def test_a_batch_without_a_bracketed_rate_is_named():
    runs = []
    for batch, best in ((8, 2e-4), (16, 8e-4)):
        runs += make_grid(FULL._replace(batch=batch), FULL_LR, 2e-5, 1.0, SEEDS)
        runs += make_grid(R64._replace(batch=batch), LORA_LR, best, 1.0, SEEDS)
    ax = plot.plot_batch_sizes(sweeps_of(*runs)).axes[0]
    assert "(no bracketed rate at 16)" in ax.get_xlabel()
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"] == [8]


def test_the_best_rate_against_the_rank_and_what_theory_says(sweeps):
    """With alpha = r theory has it fall between r^(-1/2) and 1 / r, from 4e-4 at r = 1."""
    fixed, equal = plot.plot_rank_rates(sweeps).axes
    (alike, ranks), (random, _) = [(line.get_ydata(), line.get_xdata())
                                   for line in equal.get_lines() if line.get_color() == "#888888"]
    assert ranks.tolist() == [1, 30, 64]
    assert alike == pytest.approx([4e-4, 4e-4 / 30, 4e-4 / 64], rel=1e-3)
    assert random[-1] == pytest.approx(4e-4 / 8, rel=1e-3)
    flat, rising = [line.get_ydata() for line in fixed.get_lines()
                    if line.get_color() == "#888888"]
    assert flat == pytest.approx([flat[0]] * 2) and rising[-1] == pytest.approx(8 * flat[0])
    seeds = [line for line in equal.get_lines() if line.get_marker() == "^"]
    assert seeds[0].get_ydata() == pytest.approx([4e-4] * 3)
    low, high = equal.collections[0].get_segments()[0][:, 1]
    assert high / low == pytest.approx(math.exp(2 / 3 * math.log(2) ** 2))


def test_a_panel_for_one_alpha_and_one_for_alpha_equal_to_rank(sweeps, sweep):
    """With alpha fixed the lowest NLL is measured at 4e-4. The parabola's minimum is at 3e-4: 15
    times full fine-tuning's rate, not 20."""
    fixed, equal = (labels_of(ax) for ax in plot.plot_alpha(sweeps).axes)
    assert fixed == ["full: best 2.0e-05", "r = 1, alpha = 32: best 3.0e-04, 15.0 x full's",
                     "r = 64, alpha = 32: best 3.0e-04, 15.0 x full's"]
    assert equal == ["full: best 2.0e-05", "r = 1: best 4.0e-04, 20.0 x full's",
                     "r = 30: best 2.0e-04, 10.0 x full's", "r = 64: best 2.0e-04, 10.0 x full's"]
    arm, full = sweep.fixed_alpha_arms()[0], sweep.full_arm()
    cells = verdicts.arm_cells(arm, full)
    assert cells[1:3] == ["4.0e-04 of 5 rates", "3.0e-04"] and cells[-1] == "15"
    assert verdicts.rate_multiples(full, arm) == pytest.approx([1 / 15] * 3)


def test_placements_show_their_parameters(sweeps):
    figure = plot.plot_placement(sweeps)
    assert labels_of(figure.axes[0]) == [
        "full: 1k trained (5 rates)",
        "all layers, r = 30: 610k trained, matched (5 rates)",
        "all layers, r = 64: 1.3M trained (6 rates, 2 of 18 runs diverged)",
        "attention, r = 64: 490k trained (5 rates)",
        "attention, r = 80: 614k trained, matched (5 rates)",
        "mlp, r = 48: 608k trained, matched (5 rates)",
        "mlp, r = 64: 811k trained (5 rates)"]
    assert keys_of(figure) == ["from the lowest seed to the highest",
                               "within 2% of full fine-tuning's gain"]
    markers = {line.get_marker() for line in figure.axes[0].get_lines()}
    assert markers == {"x", "<", "o", "p", "*"}     # full, ranks 30 and 64, attention, MLP


def test_colours_keep_their_meaning_in_every_figure(sweeps, sweep, long):
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
        figure = plot_finding(sweeps)
        if name in ("methods", "settings", "targets"):      # their runs are missing here
            assert figure is None
            continue
        for line in (line for ax in figure.axes for line in ax.get_lines()):
            for start, color in expected.items():
                if line.get_label().startswith(start):
                    assert line.get_color() == color, (name, line.get_label())
    red, green, blue = np.transpose([matplotlib.colors.to_rgb(color) for color in colors])
    lightness = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert min(np.diff(lightness)) > 0.02


def test_capacity_marks_where_a_rank_leaves_the_curve_and_where_theory_has_it_full(sweeps, long):
    """It leaves at the mean over seeds of steps 100, 100 and 160. Its 1,000 parameters hold 2,000
    bits: at 20 tokens per step of which half are supervised, 200 steps."""
    _, right = plot.plot_capacity(sweeps).axes
    assert labels_of(right) == ["r = 1 leaves at step 120"]
    assert labels_of(right)[0] in legend_of(right.figure)       # below the panels, not on the lines
    assert curve_of(right, "r = 1 leaves").get_xdata() == [120, 120]
    arm = find_arm(long, R1)
    more_tokens = dataclasses.replace(arm, tokens=20 * long.steps)
    others = [other for other in long.arms if other is not arm]
    seen = sweeps._replace(long=dataclasses.replace(long, arms=[more_tokens, *others]))
    for supervised, step in ((1.0, 100), (0.5, 200)):
        _, right = plot.plot_capacity(seen, supervised).axes
        assert curve_of(right, f"r = 1 is full at step {step}").get_xdata() == [step, step]
    _, right = plot.plot_capacity(seen, 0.3).axes       # 333 steps, beyond the last of 300
    assert labels_of(right) == ["r = 1 leaves at step 120"]


def test_figures_whose_runs_are_missing_are_not_drawn():
    full = sweeps_of(*full_grid())
    one_rank = sweeps_of(*make_grid(R64, LORA_LR, 2e-4, 1.0))
    for sweeps in (full, one_rank):                     # nothing to compare it with
        assert [plot_finding(sweeps) for plot_finding in plot.FIGURES.values()] == [None] * 10
    two_rates = sweeps_of(*make_grid(R64, LORA_LR[:2], 1e-4, 1.0), *make_grid(R1, [1e-4], 1, 1.0))
    drawn = [name for name, plot_finding in plot.FIGURES.items() if plot_finding(two_rates)]
    assert drawn == ["finding1"]


# ----- methods and targets ------------------------------------------------------------------------

def test_methods_are_drawn_at_their_size_and_their_best_nll():
    runs = [*full_grid()]
    for rank, floor in ((4, 1.2), (64, 1.05)):
        runs += make_grid(ArmKey("lora", "all-linear", rank, rank, 16), LORA_LR, 2e-4, floor,
                          SEEDS, shift=SHIFT, trainable=1000 * rank)
    for method, floor in (("dora", 1.1), ("bitfit", 1.4)):          # the first edition's bitfit
        runs += make_grid(ArmKey(method, "all-linear", 4, 4, 16), LORA_LR, 2e-4, floor, SEEDS,
                          shift=SHIFT, trainable=5000)
    left, right = plot.plot_methods(sweeps_of(*runs)).axes
    drawn = {container.get_label(): container.lines[0].get_xydata().tolist()
             for container in left.containers}
    assert drawn.keys() == {"lora", "dora, r = 4", "bitfit"}
    np.testing.assert_allclose(drawn["lora"], [[4000, 1.201], [64000, 1.051]], rtol=1e-6)
    np.testing.assert_allclose(drawn["dora, r = 4"], [[5000, 1.101]], rtol=1e-6)
    assert len(labels_of(right)) == 4
    assert labels_of(left) == ["full fine-tuning"] and keys_of(left.figure) == [
        "lowest mean", "best rate of a seed, parabola fit",
        "from the lowest seed to the highest"]
    colors = [container.lines[0].get_color() for container in left.containers]
    assert len(set(colors)) == 3


def test_many_ranks_on_attention_can_be_told_apart():
    runs = [*full_grid()]
    for targets, rank in itertools.product(("attention", "all-linear"), (1, 8, 64)):
        runs += make_grid(ArmKey("lora", targets, rank, rank, 16), LORA_LR, 2e-4, 1 + 1 / rank,
                          SEEDS, trainable=100 * rank)
    left, _ = plot.plot_placement(sweeps_of(*runs)).axes
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle())
             for line in left.get_lines()]
    assert len(looks) == len({*looks}) == 7


def test_targets_are_lines_over_ranks():
    runs = [*full_grid()]
    for targets, rank in (("q_proj", 1), ("q_proj", 8), ("q_proj,v_proj", 8)):
        runs += make_grid(ArmKey("lora", targets, rank, rank, 16), LORA_LR, 2e-4, 1 + 1 / rank,
                          SEEDS, trainable=100 * rank)
    sweeps = sweeps_of(*runs)
    _, right = plot.plot_targets(sweeps).axes
    drawn = {container.get_label(): container.lines[0].get_xydata().tolist()
             for container in right.containers}
    np.testing.assert_allclose(drawn["q_proj"], [[1, 2.0], [8, 1.125]])
    np.testing.assert_allclose(drawn["q_proj,v_proj"], [[8, 1.125]])
    assert plot.plot_targets(sweeps_of(*full_grid(), *placement_grids(1.2, 1.0))) is None


# ----- other settings -----------------------------------------------------------------------------

def runs_of_two_schedules():
    """Ranks 8 and 64 under both schedules; full fine-tuning under the constant one alone."""
    constant, cosine = other_settings(), other_settings(schedule="cosine")
    runs = make_grid(FULL, FULL_LR, 2e-5, 1.0, SEEDS, settings=other_settings(method="full"))
    for rank in (8, 64):
        arm = ArmKey("lora", "all-linear", rank, rank, 16)
        runs += make_grid(arm, LORA_LR, 2e-4, 1.1, SEEDS, settings=constant)
        runs += make_grid(arm, LORA_LR[:3], 1e-4, 1.0 + rank / 1000, SEEDS, settings=cosine)
    return runs


def test_arms_of_one_rank_have_colours_and_markers_of_their_own():
    sweeps = sweeps_of(*runs_of_two_schedules())
    left, right = plot.plot_settings(sweeps).axes
    drawn = [(line.get_label(), line.get_color(), line.get_marker()) for line in left.get_lines()]
    assert drawn == [
        ("r = 8, schedule = constant (5 rates)", "#0072B2", "o"),
        ("r = 8, schedule = cosine (3 rates)", "#E69F00", "s"),
        ("r = 64, schedule = constant (5 rates)", "#009E73", "D"),
        ("r = 64, schedule = cosine (3 rates)", "#D55E00", "v")]
    assert left.get_lines()[1].get_ydata()[-1] == pytest.approx(1.008)
    assert labels_of(right) == [
        "r = 8, schedule = constant: best 2.0e-04",
                      "r = 8, schedule = cosine: best 1.0e-04",
                      "r = 64, schedule = constant: best 2.0e-04",
                      "r = 64, schedule = cosine: best 1.0e-04"]
    # the other figures are about what most runs have
    left, _ = plot.plot_rank(sweeps).axes
    assert [line.get_label() for line in left.get_lines()] == [
        "full, schedule = constant (5 rates)", "r = 8, schedule = constant (5 rates)",
        "r = 64, schedule = constant (5 rates)"]
    assert plot.plot_settings(sweeps_of(*full_grid())) is None


def test_sixteen_settings_of_one_rank_can_be_told_apart():
    runs = []
    for decay in range(16):
        settings = other_settings(weight_decay=decay / 10)
        runs += make_grid(R64, LORA_LR, 2e-4, 1.0, settings=settings)
    for ax in plot.plot_settings(sweeps_of(*runs)).axes:
        curves = [line for line in ax.get_lines() if line.get_label()[0] != "_"]
        looks = [(line.get_color(), line.get_marker()) for line in curves]
        assert len({*looks}) == 16
        assert all(one[0] != next_[0] and one[1] != next_[1]
                   for one, next_ in zip(looks, looks[1:]))


def test_arms_that_no_other_figure_is_about_are_drawn_too(tmp_path, capsys):
    """A grid of qlora used to end in an error, after its runs."""
    runs = []
    for rank in (8, 64):
        arm = ArmKey("qlora", "all-linear", rank, 16, 16)
        runs += make_grid(arm, LORA_LR, 2e-4, 1.0 + rank / 100)
    plot.main([str(write_csv(tmp_path, *runs))])
    assert capsys.readouterr().out == f"{tmp_path / 'arms.png'} (and .svg)\n"
    left, _ = plot.plot_arms(sweeps_of(*runs)).axes
    assert [(line.get_label(), line.get_ydata()[-1], line.get_color())
            for line in left.get_lines()] == [
        ("qlora, r = 64, alpha = 16 (5 rates)", pytest.approx(1.64), "#0072B2"),
        ("qlora, r = 8, alpha = 16 (5 rates)", pytest.approx(1.08), "#E69F00")]


def test_a_rank_has_its_colour_whatever_else_was_run():
    """Another rank in the folder used to move them all."""
    alone = plot.style_of(find_arm(sweep_of(*make_grid(R1, LORA_LR, 2e-4, 1.0)), R1))
    runs = []
    for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        arm = ArmKey("lora", "all-linear", rank, rank, 16)
        runs += make_grid(arm, LORA_LR, 2e-4, 1.0)
    styles = [plot.style_of(arm) for arm in sweep_of(*runs).lora_arms()]
    assert (styles[0]["color"], styles[0]["marker"]) == (alone["color"], alone["marker"])
    assert len({style["color"] for style in styles}) == len({s["marker"] for s in styles}) == 9
