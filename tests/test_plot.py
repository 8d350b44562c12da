"""Figures, table and verdicts from CSV files made by hand, whose answers are known."""
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from runs import one_line

import plot
from plumbing.records import write_rows


class Arm(NamedTuple):
    method: str
    targets: str
    rank: float
    alpha: float
    batch: float


STEPS = (0, 10, 20, 30)
FULL, R1, R64 = Arm("full", "", -1, -1, 16), Arm("lora", "all-linear", 1, 1, 16), Arm("lora", "all-linear", 64, 64, 16)


def rows(arm, lr, nll, seed=42, steps=STEPS, trainable=1000, **columns):
    """The rows of one run, as sweep.py writes them."""
    known = {"model": "nano", "data": "nano", "method": arm.method, "targets": arm.targets, "lr": lr, "batch_eff": arm.batch,
             "seed": seed, "train_nll": "", "tokens": 0, "seconds": 1.0, "peak_gb": "", "trainable": trainable} | columns
    known |= {"rank": "", "alpha": ""} if arm.method == "full" else {"rank": arm.rank, "alpha": arm.alpha}
    known.setdefault("run", f"{known['model']}{known['data']}{arm}{lr}{seed}{len(steps)}")
    return [known | {"step": step, "test_nll": value} for step, value in zip(steps, nll, strict=True)]


def line(lr, best, floor, start=3.0, steps=STEPS):
    """A run that falls from `start` to floor + (ln(lr / best))^2 / 10."""
    end = floor + math.log(lr / best) ** 2 / 10
    return [start + (end - start) * step / steps[-1] for step in steps]


def write(folder, *runs):
    folder.mkdir(exist_ok=True)
    for i, run in enumerate(runs):
        write_rows(folder / f"{i}.csv", run)
    return folder


def sweep_of(folder, *runs):
    one, = plot.group(plot.read_runs(write(folder, *runs)))
    return one


def found(sweep, arm):
    """What plot.py made of the runs of `arm`."""
    one, = (one for one in sweep.arms if all(getattr(one, name) in (value, "") for name, value in arm._asdict().items()))
    return one


def grid(arm, lrs, best, floor, seeds=(42,), steps=STEPS, shift=(0.0,) * 9, **columns):
    """The runs of an arm whose best rate is `best` and whose NLL there is `floor`, a little higher for each seed of `shift`."""
    return [rows(arm, lr, line(lr, best, floor + shift[i], steps=steps), seed, steps, **columns)
            for i, seed in enumerate(seeds) for lr in lrs]


# ----- reading ------------------------------------------------------------------------------------------------------

def test_one_file_or_many_are_the_same_and_other_csv_files_are_left_out(tmp_path, capsys):
    runs = [*grid(FULL, (1e-5, 2e-5), 1e-5, 1.0), *grid(R64, (1e-4, 2e-4), 1e-4, 1.0)]
    many = plot.read_runs(write(tmp_path / "many", *runs))
    one = plot.read_runs(write(tmp_path / "one", [row for run in runs[::-1] for row in run[::-1]]))
    assert sorted(many, key=str) == sorted(one, key=str) and len(one) == 4 and [row["step"] for row in one[0]] == list(STEPS)
    (tmp_path / "many" / "other.csv").write_text("a,b\n1,2\n")
    assert len(plot.read_runs(tmp_path / "many")) == 4 and "other.csv is left out" in capsys.readouterr().err


def test_runs_that_the_columns_do_not_tell_apart_are_refused(tmp_path, capsys):
    alike = [rows(FULL, 1e-5, [3, 2, 1, 1], run=run) for run in ("aaa", "bbb")]
    with pytest.raises(SystemExit) as e:
        plot.main([str(write(tmp_path / "a", *alike))])
    assert "runs aaa and bbb are alike in every column" in one_line(e.value.code, capsys.readouterr().err)
    for folder, message in ((tmp_path, "has no CSV file"), (write(tmp_path / "b", alike[0]), "none that make one of the figures")):
        with pytest.raises(SystemExit) as e:
            plot.main([str(folder)])
        assert message in one_line(e.value.code, capsys.readouterr().err)


def test_runs_that_were_evaluated_otherwise_are_refused(tmp_path, capsys):
    """On fewer test samples, say: at step 0 they differ by more than the rounding of another dtype, and QLoRA's base is another."""
    qlora, start = R1._replace(method="qlora"), [3.0, 2.0, 1.5, 1.0]
    runs = rows(FULL, 1e-5, start, run="aaa"), rows(R1, 1e-4, [3.02, *start[1:]]), rows(qlora, 1e-4, [3.2, *start[1:]])
    assert len(sweep_of(tmp_path / "a", *runs).arms) == 3
    with pytest.raises(SystemExit) as e:
        plot.main([str(write(tmp_path / "b", *runs, rows(R64, 1e-4, [3.04, *start[1:]], run="bbb")))])
    assert "runs aaa and bbb begin at test NLLs of 3.000 and 3.040" in one_line(e.value.code, capsys.readouterr().err)


def test_damaged_files_are_named(tmp_path, capsys):
    folder = write(tmp_path / "a", rows(FULL, 1e-5, [3, 2, 1, 1]))
    (folder / "other.csv").write_bytes("Größe,a\n".encode("latin-1"))
    assert len(plot.read_runs(folder)) == 1 and "other.csv is left out" in capsys.readouterr().err
    text = (folder / "0.csv").read_text()
    for half in (text[:-30], text.replace("1e-05", "rate")):
        (folder / "0.csv").write_text(half)
        with pytest.raises(SystemExit) as e:
            plot.main([str(folder)])
        assert "0.csv is damaged; delete it" in one_line(e.value.code, capsys.readouterr().err)


# ----- best of sweep ------------------------------------------------------------------------------------------------

def test_best_of_sweep_is_the_lowest_at_each_step_apart(tmp_path):
    """Worked by hand: the high rate is ahead at first, then the middle one; the last one diverges after step 10."""
    sweep = sweep_of(tmp_path / "a", rows(R64, 1e-4, [3.0, 2.5, 2.0, 1.50]), rows(R64, 2e-4, [3.0, 2.2, 1.6, 1.4]),
                     rows(R64, 4e-4, [3.0, 1.9, 1.8, 1.7]), rows(R64, 8e-4, [3.0, 1.8, 6.5, math.nan]),
                     rows(R64, 16e-4, [3.0, math.nan, math.nan, math.nan]), rows(R64, 32e-4, [3.0, 7.0, 0.5, 0.5]))
    curve, = found(sweep, R64).curves
    assert curve.tolist() == [3.0, 1.8, 1.6, 1.4]       # a value above twice that of step 0, and all that follows, counts as lost
    assert [value.tolist() for value in found(sweep, R64).best[:3]] == [[2e-4], [1.4], [False]]
    assert plot.cells(found(sweep, R64), None)[3:5] == ["6", "3 of 6"]


@pytest.mark.parametrize(("nll", "lr", "lowest", "edge"), [
    ([1.5, 1.2, 1.1, 1.3, 1.9], 4, 1.1, False), ([1.0, 1.2, 1.1, 1.3, 1.9], 1, 1.0, True),
    ([1.5, 1.2, 1.1, 1.05, 1.0], 16, 1.0, True), ([1.5, 1.1, 1.1, 1.3, 1.9], 2, 1.1, False),
    ([1.5, 1.2, 1.1, 1.0, math.inf], 8, 1.0, False),
    ([math.inf, 1.2, 1.3, 1.4, 1.5], 2, 1.2, False), ([math.inf] * 5, math.nan, math.inf, True)])
def test_best_rate_its_ties_and_its_edges(nll, lr, lowest, edge):
    """The smaller of two equal ones; a rate beyond which the next one diverges is not at the edge: both arms of the U are there."""
    best = plot.best_rate([2.0 ** i for i in range(5)], nll)
    assert best[1:3] == (lowest, edge) and (best.lr == lr or math.isnan(best.lr) and math.isnan(lr))


def test_vertex_of_a_parabola_through_log_rate():
    for best in (1.5e-4, 2e-4, 3.1e-4):
        lrs = (5e-5, 1e-4, 2e-4, 7e-4, 9e-4)            # not evenly spaced
        one = plot.best_rate(lrs, [1 + 0.3 * math.log10(lr / best) ** 2 for lr in lrs])
        assert one.lr == 2e-4 and one.vertex == pytest.approx(best, rel=1e-9)
    assert plot.vertex([1, 2, 4], [1.0, 1.0, math.inf]) == 2 and plot.vertex([1, 2, 4], [1.0, 1.0, 1.0]) == 2
    assert plot.vertex([1, 2, 4], [1.5, 1.0, 1.5]) == pytest.approx(2) and 1 < plot.vertex([1, 2, 4], [1.1, 1.0, 1.5]) < 2


def test_only_seeds_that_have_all_rates_are_compared(tmp_path, capsys):
    """And that the others are left out is said."""
    runs = grid(R64, (1e-4, 2e-4, 4e-4), 2e-4, 1.0, seeds=(42, 43, 44))

    def kept(name, *runs):
        arm = found(sweep_of(tmp_path / name, *runs), R64)
        assert (~np.isnan(arm.curves)).all(1).tolist() == arm.seeds.tolist() and arm.runs == sum(arm.seeds) * len(arm.lrs)
        return arm.seeds.tolist(), capsys.readouterr().err.partition(" are")[0]
    assert kept("a", *runs) == ([True] * 3, "") and kept("b", *runs[:-1]) == ([True, True, False], "2 runs")
    assert kept("c", *runs[:2], *runs[4:5]) == ([True, False], "1 runs")
    assert kept("d", *runs[4:5], *runs[:1]) == ([True, False], "1 runs")            # none has all: the first of those with the most


def test_differences_are_taken_within_a_seed(tmp_path):
    """Full fine-tuning of seed 43 is worse by 0.5, and so is LoRA's: the gap and its spread do not see that."""
    shift = (0.0, 0.5)
    sweep = sweep_of(tmp_path / "a", *grid(FULL, (1e-5, 2e-5, 4e-5), 2e-5, 1.0, (42, 43), shift=shift),
                     *grid(R64, (1e-4, 2e-4, 4e-4), 2e-4, 1.1, (43, 42), shift=shift[::-1]))
    full, r64 = sweep.full(), found(sweep, R64)
    assert r64.best.nll - full.best.nll == pytest.approx([0.1, 0.1])
    assert r64.best.vertex / full.best.vertex == pytest.approx([10, 10])
    assert sweep.gain() == pytest.approx(2.0) and sweep_of(tmp_path / "b", *grid(R1, (1e-4,), 1e-4, 1.5)).gain() == 1.5
    better = sweep_of(tmp_path / "c", *grid(FULL, (1e-5,), 1e-5, 1.0), *grid(R1, (1e-4,), 1e-4, 0.5))
    assert better.gain() == 2.0                         # full fine-tuning's, though r = 1 gains 2.5
    assert plot.cells(r64, full)[5:] == ["2.0e-04", "2.0e-04", "1.3500 ± 0.5000", "+0.1000 ± 0.0000", "10"]


def test_a_seed_that_one_arm_lacks_is_left_out_of_the_difference(tmp_path):
    sweep = sweep_of(tmp_path / "a", *grid(FULL, (1e-5, 2e-5, 4e-5), 2e-5, 1.0, (42, 43, 44), shift=(0.0, 0.3, 0.1)),
                     *grid(R64, (1e-4, 2e-4, 4e-4), 2e-4, 1.1, (44, 43), shift=(0.2, 0.5)))
    gap = found(sweep, R64).best.nll - sweep.full().best.nll
    assert math.isnan(gap[0]) and plot.known(gap) == pytest.approx([0.3, 0.2])
    assert plot.cells(found(sweep, R64), sweep.full())[8] == "+0.2500 ± 0.1000" and "6 runs, 2 seeds" in sweep.title(sweep.lora())
    assert plot.verdict(gap, plot.POSITIVE)[0] == "supported"


def test_cells_are_short(tmp_path):
    """The geometric mean, and the smallest and the largest where they differ."""
    assert plot.rate([1e-5, 1e-4, 2.7e-5]) == "3.0e-05 (1.0e-05 to 1.0e-04)" and plot.rate([3e-5, 3e-5]) == "3.0e-05"
    assert plot.rate([1.6e-3, math.nan, 4e-4]) == "8.0e-04 (4.0e-04 to 1.6e-03)" and plot.rate([math.nan]) == "-"
    assert plot.rate([5.487, 6.25], ".3g") == "5.86 (5.49 to 6.25)" and plot.spread([math.inf, 1.0], ".4f") == "-"


# ----- verdicts -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("values", "interval", "word"), [
    ([0.10, 0.12, 0.11], (0, math.inf), "supported"), ([-0.10, -0.12, -0.11], (0, math.inf), "contradicted"),
    ([0.10, 0.30, 0.15], (0, math.inf), "undecided"),                   # mean 0.183, spread 0.2
    ([0.10, 0.28, 0.19], (0, math.inf), "supported"),                   # mean 0.19, spread 0.18
    ([0.0, 0.0], (0, math.inf), "undecided"), ([-0.1, 0.1], (0, math.inf), "undecided"),
    ([8, 9, 10], (5, 20), "supported"), ([30, 31, 32], (5, 20), "contradicted"), ([18, 19, 20], (5, 20), "undecided"),
    ([1, 1.2], (5, 20), "contradicted"), ([-5, -6], (-math.inf, 0.02), "supported"), ([0.1], (0, math.inf), "undecided"),
    ([], (0, math.inf), "undecided"), ([math.inf, 1], (0, math.inf), "undecided"), ([math.nan, 1.0], (0, 9), "undecided")])
def test_the_rule(values, interval, word):
    assert plot.verdict(values, interval)[0] == word
    assert plot.verdict(values, interval, ["r = 1"]) == ("undecided", "the best rate lies at the edge of the grid: r = 1")


def test_ratios_are_judged_by_their_logarithm():
    """6 and 8.5: less their difference of 2.5 the mean is below 5, less their ratio of 1.42 it is not."""
    assert plot.verdict([6, 8.5], (5, 20), [], ratio=True)[0] == "supported"
    assert plot.verdict([6, 8.5], (5, 20), [], ratio=False)[0] == "undecided"


SEEDS, SHIFT = (42, 43, 44), (0.0, 0.002, 0.001)
FULL_LR, LORA_LR = (5e-6, 1e-5, 2e-5, 4e-5, 8e-5), (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)


def claims_of(tmp_path, *runs):
    """{quantity: (verdict, why)} of the claims that hand-made runs allow."""
    tmp_path.mkdir(exist_ok=True)
    (sweep, long), = plot.chosen(plot.group(plot.read_runs(write(tmp_path / "claims", *runs))))
    return {claim.quantity: plot.verdict(*claim[2:]) for claim in plot.claims(sweep, long)}


def full_grid(**kwargs):
    return grid(FULL, FULL_LR, 2e-5, 1.0, SEEDS, **kwargs)


@pytest.mark.parametrize(("floor", "shift", "high", "low"), [
    (1.01, SHIFT, "supported", "contradicted"),         # 0.01 of a gain of 2.0: well within 2 %
    (1.20, SHIFT, "contradicted", "supported"), (1.03, (0.0, 0.05, 0.01), "undecided", "undecided")])
def test_claims_on_rank(tmp_path, floor, shift, high, low):
    best = 2e-4
    judged = claims_of(tmp_path, *full_grid(), *grid(R64, LORA_LR, best, floor, SEEDS, shift=shift),
                      *grid(R1, LORA_LR, best, floor, SEEDS, shift=shift))
    assert judged["r = 64 above full, share of the gain"][0] == high
    assert judged["r = 1 above full, share of the gain"][0] == low


@pytest.mark.parametrize(("best", "last", "word"), [
    (2e-4, 30, "supported"), (1.4e-4, 30, "undecided"), (9e-5, 30, "contradicted"), (8e-4, 30, "undecided"),
    (2e-4, 100, "supported"), (1.4e-4, 100, "supported"), (9e-5, 100, "undecided"), (7.5e-5, 100, "contradicted")])
def test_claim_on_the_ratio_of_rates(tmp_path, best, last, word):
    """Full fine-tuning's best is at 2e-5; seeds differ by 0, 10 and 20 % in LoRA's; at 8e-4 it lies at the edge. The ratio is to be
    15 in runs of less than 100 steps, else 10."""
    lora = [run for i, seed in enumerate(SEEDS) for run in grid(R64, LORA_LR, best * (1 + i / 10), 1.0, (seed,), (0, last))]
    word_found, why = claims_of(tmp_path, *full_grid(steps=(0, last)), *lora)["rate of r = 64 / rate of full"]
    assert word_found == word and ("edge" in why) == (best == 8e-4)


@pytest.mark.parametrize(("gaps", "word"), [((0.0, 0.1), "supported"), ((0.1, 0.0), "contradicted"), ((0.05, 0.0505), "undecided")])
def test_claim_on_batch_size(tmp_path, gaps, word):
    """And the rate that only batch 16 was swept at is not used: it would make LoRA better there. Of two ranks the higher counts."""
    runs = []
    for batch, gap in ((8, gaps[0]), (16, 0.0), (32, gaps[1])):
        full, lora = FULL._replace(batch=batch), R64._replace(batch=batch)
        shift = SHIFT if batch == 8 else (0.001, 0.0, 0.002)
        runs += grid(full, FULL_LR, 2e-5, 1.0, SEEDS) + grid(lora, LORA_LR, 2e-4, 1.0 + gap, SEEDS, shift=shift)
        runs += grid(R1._replace(batch=batch), (2e-4,), 2e-4, 1.5)
    lucky = [rows(R64, 1.6e-3, [3.0, 0.5, 0.5, 0.5], seed) for seed in SEEDS]
    judged = claims_of(tmp_path, *runs, *lucky)
    assert judged["r = 64 above full at batch 32, less that at 8"][0] == word
    pairs = sweep_of(tmp_path / "again", *runs, *lucky).batches()
    assert list(pairs) == [8, 16, 32] and pairs[16][0].lrs == list(LORA_LR) and pairs[16][0].nll.shape == (3, 5, 4)
    assert pairs[16][0].curves[:, -1] == pytest.approx([1.001, 1.0, 1.002])


def placed(attention, mlp, everywhere=1.0):
    arms = {("attention", 64): (attention, 490), ("attention", 80): (attention, 614), ("mlp", 64): (mlp, 811),
            ("mlp", 48): (mlp, 608), ("all-linear", 64): (everywhere, 1302)}
    return [run for (targets, rank), (floor, n) in arms.items()
            for run in grid(Arm("lora", targets, rank, rank, 16), LORA_LR, 2e-4, floor, SEEDS, shift=SHIFT, trainable=1000 * n)]


@pytest.mark.parametrize(("attention", "mlp", "words"), [
    (1.2, 1.0, ("supported", "supported", "supported")), (1.0, 1.2, ("contradicted", "undecided", "contradicted"))])
def test_claims_on_placement(tmp_path, attention, mlp, words):
    judged = claims_of(tmp_path, *full_grid(), *placed(attention, mlp))
    names = ("attention, r = 80 above mlp, r = 48", "attention, r = 64 above all layers, r = 64",
             "mlp, r = 64 above all layers, r = 64, share of the gain")
    assert tuple(judged[name][0] for name in names) == words


@pytest.mark.parametrize(("trainable", "matched"), [(1090, ["attention", "mlp"]), (1120, [])])
def test_matched_placements_differ_by_less_than_a_tenth(tmp_path, trainable, matched):
    attention, mlp = Arm("lora", "attention", 80, 80, 16), Arm("lora", "mlp", 48, 48, 16)
    sweep = sweep_of(tmp_path / "a", *grid(attention, (1e-4,), 1e-4, 1.0), *grid(mlp, (1e-4,), 1e-4, 1.0, trainable=trainable))
    assert [arm.targets for arm in sweep.matched()] == matched


@pytest.mark.parametrize(("bests", "word"), [((2e-4, 2.2e-4), "supported"), ((1e-4, 3.9e-4), "contradicted")])
def test_claim_on_alpha(tmp_path, bests, word):
    """On the alpha that most arms have: 32, not 16."""
    runs = [run for rank, best in zip((8, 128), bests, strict=True)
            for run in grid(Arm("lora", "all-linear", rank, 32, 16), LORA_LR, best, 1.0, SEEDS)]
    runs += grid(Arm("lora", "all-linear", 32, 32, 16), LORA_LR, 2e-4, 1.0, SEEDS)         # alpha 32 and alpha = r in one
    runs += grid(Arm("lora", "all-linear", 8, 16, 16), LORA_LR, 8e-4, 1.0, SEEDS)
    judged = claims_of(tmp_path, *full_grid(), *runs)
    assert judged["rate of r = 128, alpha = 32 / rate of r = 8, alpha = 32"][0] == word


LONGER = tuple(range(0, 301, 20))


def leaving(arm, at, seed=42):
    """On full fine-tuning's line to 3 - step / 150 until step `at`, flat from there on."""
    return [rows(arm, lr, [3 - min(step, at) / 150 + 0.5 * (lr != 2e-4 and step > 0) for step in LONGER], seed, LONGER)
            for lr in (1e-4, 2e-4, 4e-4)]


@pytest.mark.parametrize(("low", "high", "word"), [(100, 300, "supported"), (200, 100, "contradicted"), (100, 100, "undecided")])
def test_claim_on_capacity_and_the_step_at_which_a_rank_leaves(tmp_path, low, high, word):
    full = [rows(FULL, lr, [3 - step / 150 + 0.5 * (lr != 2e-5 and step > 0) for step in LONGER], seed, LONGER)
            for lr in (1e-5, 2e-5, 4e-5) for seed in SEEDS]
    runs = [run for seed in SEEDS for run in leaving(R1, low, seed) + leaving(R64, high, seed)]
    judged = claims_of(tmp_path, *full, *runs, *full_grid(), *grid(R64, LORA_LR, 2e-4, 1.0, SEEDS))
    assert judged["step at which r = 64 leaves it, less that of r = 1"][0] == word
    sweep, long = plot.chosen(plot.group(plot.read_runs(tmp_path / "claims")))[0]
    assert tuple(sweep.steps) == STEPS and tuple(long.steps) == LONGER
    assert long.leaves(found(long, R1)).tolist() == [low + 20] * 3       # 2 % of 2 nats above: at low + 6
    assert long.leaves(found(long, R64)).tolist() == [min(high + 20, 300)] * 3


def test_claims_that_cannot_be_asked(tmp_path):
    """Of one rank alone nobody can say whether it is high, and of no gain there is no share."""
    alone = claims_of(tmp_path / "alone", *full_grid(), *grid(R64, LORA_LR, 2e-4, 1.0, SEEDS, shift=SHIFT))
    assert list(alone) == ["rate of r = 64 / rate of full"]
    worse = [rows(FULL, lr, [3.0, 3.2, 3.2, 3.2 + abs(math.log(lr / 2e-5))], seed) for lr in FULL_LR for seed in SEEDS]
    judged = claims_of(tmp_path / "worse", *worse, *(run for arm in (R1, R64) for run in grid(arm, LORA_LR, 2e-4, 1.0, SEEDS)))
    assert judged["r = 64 above full, share of the gain"] == ("undecided", "there is no number for it")


def test_the_longest_runs_are_the_usual_ones_only_where_there_are_no_others(tmp_path):
    """Three usual runs and six long ones; and of batches with as many runs the smaller one counts."""
    long = leaving(R1, 100) + leaving(R64, 300)
    pair, = plot.chosen(plot.group(plot.read_runs(write(tmp_path / "a", *long, *grid(R64, LORA_LR[:3], 1e-4, 1.0)))))
    assert [len(sweep.steps) for sweep in pair] == [len(STEPS), len(LONGER)]
    pair, = plot.chosen(plot.group(plot.read_runs(write(tmp_path / "b", *long))))
    assert [len(sweep.steps) for sweep in pair] == [len(LONGER)] * 2
    runs = [run for batch in (32, 8, 16) for run in grid(R64._replace(batch=batch), LORA_LR, 1e-4, 1.0)]
    assert sweep_of(tmp_path / "c", *runs).batch == 8 and sweep_of(tmp_path / "d", *runs, *grid(R1, (1e-4,), 1e-4, 1.0)).batch == 16


def test_runs_of_another_length_are_named(tmp_path, capsys):
    short, shorter = grid(FULL, FULL_LR, 2e-5, 1.0), grid(R64, LORA_LR[:3], 1e-4, 1.0, steps=STEPS[:3])
    plot.chosen(plot.group(plot.read_runs(write(tmp_path / "x", *short))))
    assert capsys.readouterr().err == ""
    (sweep, _), = plot.chosen(plot.group(plot.read_runs(write(tmp_path / "y", *short, *shorter))))
    assert sum(arm.runs for arm in sweep.arms) == 5
    assert capsys.readouterr().err.startswith(f"3 runs of {STEPS[2]:g} steps are left out")


def test_table_has_every_arm_and_every_claim(tmp_path, capsys):
    runs = [*full_grid(), *grid(R64, LORA_LR, 2e-4, 1.01, SEEDS, shift=SHIFT), *grid(R1, LORA_LR, 8e-4, 1.3, SEEDS)]
    plot.main([str(write(tmp_path / "a", *runs)), "--table"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## nano on nano, batch 16, 45 runs, 3 seeds" and list((tmp_path / "a").glob("*.png")) == []
    arms = {row[1]: row for row in ([cell.strip() for cell in text.split("|")] for text in lines) if len(row) == 12}
    assert list(arms)[2:] == ["full", "r = 1", "r = 64"] and arms["r = 64"][2:5] == ["16", "1k", "5"]
    assert arms["r = 64"][8] == "1.0110 ± 0.0020" and arms["r = 64"][9] == "+0.0110 ± 0.0020" and arms["full"][9:11] == ["", ""]
    assert arms["r = 64"][10] == "10" and arms["r = 1"][10] == "-"          # at the edge, how many times is not known
    assert "(edge)" in arms["r = 1"][6] and arms["r = 1"][7] == "-" and "(edge)" not in arms["full"][6]
    words = [text.split("|")[4].strip() for text in lines[-4:]]
    assert words == ["*supported*", "*undecided*", "*undecided*", "*supported*"]


def test_arms_at_the_edge_are_named_in_each_of_their_claims(tmp_path):
    """Full fine-tuning at batch 16, LoRA at batch 32, and the long runs, whose best rate becomes the lowest of their grid."""
    runs = grid(FULL, FULL_LR, 8e-5, 1.0, SEEDS) + [run for arm in (R1, R64) for run in grid(arm, LORA_LR, 2e-4, 1.0, SEEDS)]
    runs += grid(FULL._replace(batch=32), FULL_LR, 2e-5, 1.0, SEEDS) + grid(R64._replace(batch=32), LORA_LR[:4], 5e-5, 1.1, SEEDS)
    runs += [run for seed in SEEDS for arm, at in ((R1, 100), (R64, 300), (FULL, 300)) for run in leaving(arm, at, seed)[1:]]
    judged = claims_of(tmp_path, *runs)
    assert {quantity: why.partition("the edge of the grid: ")[2] for quantity, (_, why) in judged.items()} == {
        **{f"r = {rank} above full, share of the gain": "full" for rank in (1, 64)},
        **{f"rate of r = {rank} / rate of full": "full" for rank in (1, 64)},
        "r = 64 above full at batch 32, less that at 16": "full, batch 16; r = 64, batch 32",
        "step at which r = 64 leaves it, less that of r = 1": "r = 1; r = 64; full"}


# ----- figures ------------------------------------------------------------------------------------------------------

def everything():
    half = Arm("lora", "all-linear", 64, 32, 16), Arm("lora", "all-linear", 1, 32, 16)
    runs = [*full_grid(), *placed(1.2, 1.0), *grid(R1, LORA_LR, 4e-4, 1.3, SEEDS, shift=SHIFT)]
    runs += [run for arm in half for run in grid(arm, LORA_LR, 3e-4, 1.1, SEEDS)]
    runs += [run for batch in (8, 32) for run in grid(FULL._replace(batch=batch), FULL_LR, 2e-5, 1.0, SEEDS)
             + grid(R64._replace(batch=batch), LORA_LR, 2e-4, 1.0 + batch / 100, SEEDS)]
    ends = [9.0, math.nan, math.nan], [9.0, math.nan, math.nan], [2.9, 2.9, 2.9]        # two of three seeds diverge
    runs += [rows(R64, 3.2e-3, [3.0, *end], seed, trainable=1_302_000) for seed, end in zip(SEEDS, ends, strict=True)]
    runs += [run for seed, at in zip(SEEDS, (80, 80, 140), strict=True) for run in leaving(R1, at, seed) + leaving(FULL, 300, seed)]
    return runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("figures") / "csv", *everything())
    return folder, *plot.chosen(plot.group(plot.read_runs(folder)))[0]


def test_every_figure_is_drawn_as_png_and_svg(pair, tmp_path, capsys):
    plot.main([str(pair[0]), f"--out={tmp_path / 'figures'}"])
    names = ("finding1", "finding2", "finding3", "finding4", "alpha", "capacity")
    assert [Path(text.split(" ")[0]).stem for text in capsys.readouterr().out.splitlines()] == list(names)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for path in (tmp_path / "figures").glob("*.png"):
        image, svg = matplotlib.image.imread(path)[..., :3], path.with_suffix(".svg").read_text()
        rank = plot.RANKS[path.stem == "capacity"][0]       # the runs of that figure have the lower of the two ranks alone
        drawn = np.abs(image - matplotlib.colors.to_rgb(rank)).max(-1) < 0.01
        assert image.shape == (780, 1625, 3) and drawn.sum() > 100 and rank.lower() in svg, path
    assert not list(pair[0].glob("*.png"))


def curve_of(ax, label):
    one, = (drawn for drawn in ax.get_lines() if drawn.get_label().startswith(label))
    return one


def test_curves_are_means_of_best_of_sweep_and_bands_go_from_seed_to_seed(pair):
    _, sweep, _ = pair
    figure = plot.finding1(sweep)
    left, right = figure.axes
    drawn = curve_of(left, "r = 1 ")
    assert drawn.get_xdata().tolist() == [10, 20, 30]
    expected = np.mean([line(4e-4, 4e-4, 1.3 + shift)[1:] for shift in SHIFT], 0)
    assert drawn.get_ydata().tolist() == pytest.approx(expected)
    band = left.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.3, line(4e-4, 4e-4, 1.302)[1]))
    assert sorted(drawn.get_ydata()[-1] for drawn in right.get_lines()[:2]) == pytest.approx([0.001, 0.301])
    grey, = right.patches
    assert (grey.get_y(), grey.get_height()) == pytest.approx((-0.04, 0.08))        # 2 % of 2 nats to either side
    n = 3 * (5 + 5 + 6)
    bands = "(bands: from the smallest to the largest)"
    assert figure.get_suptitle() == f"Finding 1, rank: nano on nano, batch 16, {n} runs, 3 seeds {bands}"
    assert curve_of(left, "r = 64").get_label() == "r = 64 (6 rates, 2 of 18 runs diverged)"


def test_rates_mark_minimum_ratio_and_diverged_runs(pair, tmp_path):
    _, sweep, _ = pair
    ax, = plot.finding2(sweep).axes
    assert ax.get_xscale() == "log" and curve_of(ax, "full").get_label() == "full: best 2.0e-05"
    drawn = curve_of(ax, "r = 64")
    assert drawn.get_label() == "r = 64: best 2.0e-04, 10 x full's"
    assert drawn.get_xdata().tolist() == [*LORA_LR, 3.2e-3] and math.isnan(drawn.get_ydata()[-1])
    edge = plot.finding2(sweep_of(tmp_path, *full_grid(), *grid(R64, LORA_LR, 8e-4, 1.0, SEEDS))).axes[0]
    assert curve_of(edge, "r = 64").get_label() == "r = 64: best 8.0e-04, at the edge"
    rings = {drawn.get_color(): drawn for drawn in ax.get_lines() if drawn.get_markersize() == 13}
    assert rings[drawn.get_color()].get_xdata() == [2e-4] and rings[drawn.get_color()].get_ydata() == pytest.approx([1.001])
    triangles = [mark for mark in ax.get_lines() if mark.get_marker() == "^" and mark.get_linestyle() == "None"]
    assert {mark.get_color(): mark.get_xdata().tolist() for mark in triangles}[drawn.get_color()] == pytest.approx([2e-4] * 3)
    crosses = [mark for mark in ax.get_lines() if mark.get_marker() == "X" and len(mark.get_xdata())]
    assert [(mark.get_color(), mark.get_xdata().tolist()) for mark in crosses] == [(drawn.get_color(), [3.2e-3])]


def test_gaps_over_batches_lie_above_zero_where_lora_is_worse(pair):
    """At batch 16 the mean of 0, 0.002 and 0.001."""
    gaps = plot.finding3(pair[1]).axes[1].get_lines()[0]
    assert gaps.get_xdata().tolist() == [8, 16, 32] and gaps.get_ydata().tolist() == pytest.approx([0.08, 0.001, 0.32])


def test_a_panel_for_one_alpha_and_one_for_alpha_equal_to_rank(pair):
    """With alpha fixed the lowest NLL is measured at 4e-4, the parabola's is at 3e-4: 15 times full's, not 20."""
    _, sweep, _ = pair
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in plot.alpha(sweep).axes]
    fixed = [f"r = {rank}, alpha = 32: best 3.0e-04, 15 x full's" for rank in (1, 64)]
    assert labels == [["full: best 2.0e-05", *fixed],
                      ["full: best 2.0e-05", "r = 1: best 4.0e-04, 20 x full's", "r = 64: best 2.0e-04, 10 x full's"]]
    row = plot.cells(sweep.fixed_alpha()[0], sweep.full())
    assert row[5:7] == ["4.0e-04", "3.0e-04"] and row[-1] == "15" and plot.ratio(sweep.full(), sweep.fixed_alpha()[0]) == "0.0667"


def test_placements_show_their_parameters_and_colours_keep_their_meaning(pair):
    _, sweep, long = pair
    labels = [text.get_text() for text in plot.finding4(sweep).legends[0].get_texts()]
    assert labels == ["full: 1k trained (5 rates)", "all layers, r = 64: 1.3M trained (6 rates, 2 of 18 runs diverged)",
                      "attention, r = 64: 490k trained (5 rates)", "attention, r = 80: 614k trained, matched (5 rates)",
                      "mlp, r = 48: 608k trained, matched (5 rates)", "mlp, r = 64: 811k trained (5 rates)"]
    elsewhere = Arm("lora", "attention", 64, 64, 16), Arm("lora", "mlp", 48, 48, 16)
    colours = [plot.look(found(sweep, arm))["color"] for arm in (FULL, R64, R1, *elsewhere)]
    assert plot.look(found(long, R1))["color"] == colours[2] and len(set(colours)) == 5
    assert 64 not in {arm.rank for arm in long.arms}
    for one in (plot.finding1, plot.finding2, plot.finding3, plot.alpha, plot.capacity):
        figure = one(long if one is plot.capacity else sweep)
        for drawn in (drawn for ax in figure.axes for drawn in ax.get_lines()):
            for text, colour in (("full", colours[0]), ("r = 64", colours[1]), ("r = 1 ", colours[2]), ("r = 1,", colours[2])):
                assert not drawn.get_label().startswith(text) or drawn.get_color() == colour
    lightness = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(matplotlib.colors.to_rgb, colours))
    assert min(np.diff(lightness)) > 0.02              # they differ in grey too


def test_capacity_marks_where_a_rank_leaves_the_curve(pair):
    """The mean over seeds of steps 100, 100 and 160."""
    left, right = plot.capacity(pair[2]).axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["r = 1 leaves at step 120"]
    assert curve_of(right, "r = 1 leaves").get_xdata() == [120, 120]


def test_figures_without_full_fine_tuning_and_several_models_are_drawn_too(tmp_path, capsys):
    runs = [*grid(R64, LORA_LR, 2e-4, 1.0), *grid(R1, LORA_LR, 2e-4, 1.0, model="/models/other", data="gsm8k")]
    plot.main([str(write(tmp_path / "a", *runs))])
    assert {p.stem for p in (tmp_path / "a").glob("*.svg")} == {"nano_nano_finding1", "nano_nano_finding2",
                                                               "other_gsm8k_finding1", "other_gsm8k_finding2"}
    plot.main([str(tmp_path / "a"), "--table"])
    assert "## other on gsm8k, batch 16, 5 runs, 1 seed" in capsys.readouterr().out
