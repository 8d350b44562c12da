"""CSV rows -> arms -> sweeps and best rates, from files made by hand, with known answers."""
import dataclasses
import math

import numpy as np
import pytest
from csv_runs import (FULL, FULL_LR, LONGER, LORA_LR, R1, R64, SEEDS, STEPS, ArmKey, find_arm,
                      full_grid, leaving_runs, make_grid, other_settings, run_rows, sweep_of,
                      sweeps_of, write_csv)

import arms
import rates
import verdicts
from methods import find_method
from plumbing.errors import UserError
from plumbing.files import write_json
from plumbing.records import write_rows
from settings import RELATIVES, Config


# ----- reading ------------------------------------------------------------------------------------

def test_one_file_or_many_are_the_same_and_other_csv_files_are_left_out(tmp_path, capsys):
    runs = [*make_grid(FULL, (1e-5, 2e-5), 1e-5, 1.0), *make_grid(R64, (1e-4, 2e-4), 1e-4, 1.0)]
    many = arms.read_runs(write_csv(tmp_path / "many", *runs))
    backwards = [row for run in reversed(runs) for row in reversed(run)]
    one = arms.read_runs(write_csv(tmp_path / "one", backwards))
    assert sorted(many, key=str) == sorted(one, key=str)
    assert len(one) == 4
    assert [row["step"] for row in one[0]] == list(STEPS)
    (tmp_path / "many" / "other.csv").write_text("a,b\n1,2\n")
    assert len(arms.read_runs(tmp_path / "many")) == 4
    assert "other.csv is left out" in capsys.readouterr().err


def test_runs_with_other_test_sets_are_refused():
    """At step 0, 3.02 next to 3.00 is the rounding of another dtype, 3.04 is not.

    QLoRA has another base.
    """
    rest = [2.0, 1.5, 1.0]
    runs = [run_rows(FULL, 1e-5, [3.0, *rest], run="aaa"), run_rows(R1, 1e-4, [3.02, *rest]),
            run_rows(R1._replace(method="qlora"), 1e-4, [3.2, *rest])]
    assert len(sweep_of(*runs).arms) == 3
    runs.append(run_rows(R64, 1e-4, [3.04, *rest], run="bbb"))
    with pytest.raises(UserError, match="runs aaa and bbb begin at test NLLs of 3.000 and 3.040"):
        sweep_of(*runs)


def test_seeds_may_have_different_rates():
    """As after sweep.py --near_best: seed 42 has five rates, 43 the middle three, 44 the first two.

    Seed 44's best is at the edge of its own rates, so it does not count, is not drawn, and lacks
    the rate beyond.
    """
    runs = []
    for seed, lrs in zip(SEEDS, (LORA_LR, LORA_LR[1:4], LORA_LR[:2])):
        runs += make_grid(R64, lrs, 2e-4, 1.0, (seed,))
    arm = find_arm(sweep_of(*runs), R64)
    assert arm.lrs == list(LORA_LR)
    assert arm.was_run.sum(axis=1).tolist() == [5, 3, 2] and arm.n_runs == 10
    assert arm.best.lr.tolist() == [2e-4, 2e-4, 1e-4]
    assert arm.best.edge.tolist() == [False, False, True]
    assert arm.counts.tolist() == arm.shown.tolist() == [True, True, False]
    assert arm.curves[:2, -1] == pytest.approx([1.0, 1.0]) and np.isnan(arm.curves[2]).all()
    assert arm.rates_to_add() == {2e-4: [44]}
    assert (arm.describe_rates(), arm.describe_seeds()) == ("2 to 5 rates", "2 of 3 seeds count")
    assert arm.rates_between() == pytest.approx([2e-4 / 2 ** 0.5, 2e-4 * 2 ** 0.5])


@pytest.mark.parametrize(("lrs", "best", "to_add"), [
    ((1e-4, 2e-4, 4e-4), 4e-4, [8e-4]), ((1e-4, 3e-4, 1e-3), 1e-4, [3e-5]),
    ((2e-4,), 2e-4, [1e-4, 4e-4]), ((1e-4, 2e-4, 4e-4), 2e-4, [])])
def test_rates_to_add_go_on_by_the_factor_of_the_grid(lrs, best, to_add):
    """All three seeds lack the same, and if none counts all are shown."""
    arm = find_arm(sweep_of(*make_grid(R64, lrs, best, 1.0, SEEDS)), R64)
    assert arm.rates_to_add() == {lr: list(SEEDS) for lr in to_add}
    assert arm.shown.all() and arm.describe_seeds() == ("at the edge" if to_add else "")


def test_three_rates_are_as_good_as_five():
    """What is compared comes from the lowest point and its neighbours, whatever else was run."""
    runs = make_grid(R64, LORA_LR, 2.3e-4, 1.0, (42,))
    runs += make_grid(R64, LORA_LR[1:4], 2.3e-4, 1.0, (43,))
    for numbers in find_arm(sweep_of(*runs), R64).best:
        assert numbers[0] == numbers[1]


def test_batches_are_compared_after_equal_steps_and_samples_whatever_their_length():
    """As in nano's grid `batches`: 4 samples for 160 steps, evaluated every 40, up to 32 for 40.

    All have step 40. After 640 samples they are at step 160, 80, 40 and 20. Batch 64 is at step 10,
    which was not evaluated.
    """
    runs = []
    for batch, last, every in ((4, 160, 40), (8, 80, 20), (16, 40, 10), (32, 40, 10), (64, 40, 20)):
        steps = range(0, last + 1, every)
        runs += make_grid(FULL._replace(batch=batch), FULL_LR, 2e-5, 1.0, steps=steps)
        runs += make_grid(R64._replace(batch=batch), LORA_LR, 2e-4, 1.0, steps=steps)
    sweeps = sweeps_of(*runs)
    equal_steps, equal_samples = sweeps.equal_steps, sweeps.equal_samples
    assert (equal_steps.end, list(equal_steps.pairs_by_batch())) == ("40 steps", [4, 8, 16, 32, 64])
    assert (equal_samples.end, list(equal_samples.pairs_by_batch())) == (
        "640 samples", [4, 8, 16, 32])
    for sweep, parts in ((equal_steps, (40 / 160, 40 / 80, 1, 1, 1)),
                         (equal_samples, (1, 1, 1, 20 / 40))):
        nll = [lora.best.nll[0] for lora, _ in sweep.pairs_by_batch().values()]
        assert nll == pytest.approx([3 - 2 * part for part in parts])
    assert sweeps_of(*make_grid(FULL, FULL_LR, 2e-5, 1.0)).equal_samples is None


def test_of_two_lengths_of_one_run_the_shorter_counts():
    runs = []
    for batch in (8, 16):
        for key, lrs in ((FULL, FULL_LR), (R64, LORA_LR)):
            runs += make_grid(key._replace(batch=batch), lrs, lrs[2], 1.0)
    longer = make_grid(R64, LORA_LR[2:3], 2e-4, 0.5, steps=(*STEPS, 40))
    pairs = sweeps_of(*longer, *runs).equal_steps.pairs_by_batch()
    assert pairs[16][0].best.nll == pytest.approx([1.0]) and pairs[16][0].n_runs == 5


def test_long_runs_are_not_compared_over_batches():
    """Those of batch 16 have seen 960 samples at step 60, as those of batch 32 have at step 30."""
    runs = leaving_runs(R64, 100) + leaving_runs(FULL, 100)
    for batch in (16, 32):
        for key, lrs in ((FULL, FULL_LR), (R64, LORA_LR)):
            runs += make_grid(key._replace(batch=batch), lrs, lrs[2], 1.0)
    runs += make_grid(R1, LORA_LR, 2e-4, 1.0)
    sweeps = sweeps_of(*runs)
    assert sweeps.long.steps[-1] == 300 and sweeps.equal_samples.end == "320 samples"
    assert sweeps.equal_samples.full_arm(16).lrs == list(FULL_LR)

def test_the_long_runs_are_the_usual_ones_only_if_there_are_no_others():
    """Three usual runs and six long ones."""
    long = leaving_runs(R1, 100) + leaving_runs(R64, 300)
    sweeps = sweeps_of(*long, *make_grid(R64, LORA_LR[:3], 1e-4, 1.0))
    assert len(sweeps.usual.steps) == len(STEPS) and len(sweeps.long.steps) == len(LONGER)
    sweeps = sweeps_of(*long)
    assert sweeps.usual is sweeps.long and len(sweeps.usual.steps) == len(LONGER)


def test_the_batch_of_a_sweep_is_the_most_common_one_and_the_smaller_of_two():
    runs = []
    for batch in (32, 8, 16):
        runs += make_grid(R64._replace(batch=batch), LORA_LR, 1e-4, 1.0)
    assert sweep_of(*runs).batch == 8
    assert sweep_of(*runs, *make_grid(R1, (1e-4,), 1e-4, 1.0)).batch == 16


def test_runs_of_another_length_are_named(capsys):
    usual = make_grid(FULL, FULL_LR, 2e-5, 1.0)
    shorter = make_grid(R64, LORA_LR[:3], 1e-4, 1.0, steps=STEPS[:3])
    arms.name_left_out(usual, arms.select_sweeps(usual))
    assert capsys.readouterr().err == ""
    sweeps = sweeps_of(*usual, *shorter)
    assert sweeps.usual.n_runs == 5
    arms.name_left_out([*usual, *shorter], [sweeps])
    assert capsys.readouterr().err.startswith(f"left out: 3 runs of {STEPS[2]:g} steps,")


def test_runs_of_another_batch_are_not_the_long_ones():
    """Nano's batch 4 needs four times the steps of batch 16 for as many samples."""
    small = leaving_runs(R64._replace(batch=4), 100) + leaving_runs(R1._replace(batch=4), 100)
    assert sweeps_of(*make_grid(R64, LORA_LR, 2e-4, 1.0), *small).long is None


# ----- best of sweep ------------------------------------------------------------------------------

def test_best_of_sweep_is_the_lowest_at_each_step_separately():
    """Worked by hand. What follows a value above twice that of step 0 counts as diverged too."""
    sweep = sweep_of(
        run_rows(R64, 1e-4, [3.0, 2.5, 2.0, 1.5]), run_rows(R64, 2e-4, [3.0, 2.2, 1.6, 1.4]),
        run_rows(R64, 4e-4, [3.0, 1.9, 1.8, 1.7]), run_rows(R64, 8e-4, [3.0, 1.8, 6.5, math.nan]),
        run_rows(R64, 16e-4, [3.0, math.nan, math.nan, math.nan]),
        run_rows(R64, 32e-4, [3.0, 7.0, 0.5, 0.5]))
    arm = find_arm(sweep, R64)
    assert arm.curves.tolist() == [[3.0, 1.8, 1.6, 1.4]]
    assert (arm.best.lr, arm.best.nll, arm.best.edge) == ([2e-4], [1.4], [False])
    assert verdicts.arm_cells(arm, None)[1] == "2.0e-04 of 6 rates, 3 of 6 runs diverged"


@pytest.mark.parametrize(("nll", "lr", "lowest", "edge"), [
    ([1.5, 1.2, 1.1, 1.3, 1.9], 4, 1.1, False), ([1.0, 1.2, 1.1, 1.3, 1.9], 1, 1.0, True),
    ([1.5, 1.2, 1.1, 1.05, 1.0], 16, 1.0, True), ([1.5, 1.1, 1.1, 1.3, 1.9], 2, 1.1, False),
    ([1.5, 1.2, 1.1, 1.0, math.inf], 8, 1.0, False),
    ([math.inf, 1.2, 1.3, 1.4, 1.5], 2, 1.2, False), ([math.inf] * 5, math.nan, math.inf, True)])
def test_best_rate_its_ties_and_its_edges(nll, lr, lowest, edge):
    """Of two equal ones the smaller. A rate next to one that diverged is not at the edge, because
    both sides of the U are known."""
    best = rates.find_best_rate([2.0 ** i for i in range(5)], nll)
    assert (best.nll, best.edge) == (lowest, edge)
    assert best.lr == pytest.approx(lr, rel=0, abs=0, nan_ok=True)


def test_the_parabola_goes_through_log_rate():
    lrs = (5e-5, 1e-4, 2e-4, 7e-4, 9e-4)            # not evenly spaced
    for lowest in (1.5e-4, 2e-4, 3.1e-4):
        nll = [1 + 0.3 * math.log10(lr / lowest) ** 2 for lr in lrs]
        best = rates.find_best_rate(lrs, nll)
        assert best.lr == 2e-4
        assert best.vertex == pytest.approx(lowest, rel=1e-9)


def test_the_parabola_is_that_of_a_least_squares_fit_and_its_minimum_lies_between_midpoints():
    generator = np.random.default_rng(0)
    for _ in range(200):
        x = np.sort(generator.uniform(-12, -5, 3))
        y = 1 + generator.uniform(0.01, 1, 3) * [1, 0, 1]
        a, b, _ = np.polyfit(x - x[1], y, 2)
        rate, lowest = rates.parabola_minimum(np.exp(x), y)
        minimum = math.log(rate)
        assert minimum == pytest.approx(x[1] - b / (2 * a), rel=1e-6)
        assert lowest == pytest.approx(np.polyval([a, b, y[1]], minimum - x[1]), abs=1e-9)
        assert (x[0] + x[1]) / 2 <= minimum <= (x[1] + x[2]) / 2


@pytest.mark.parametrize("nll", [
    [1.0, 1.0, 1.0], [2.0, 2.0, 2.0 + 1e-15], [1.0 + 2e-16, 1.0, 1.0], [3.0 + 1e-7, 3.0, 3.0],
    [1.0, 1.0, math.inf], [math.inf, 1.0, 1.5]])
def test_without_a_curvature_above_rounding_the_best_is_the_middle_rate(nll):
    """Three equal NLLs have a curvature of rounding noise, and its vertex could lie anywhere."""
    assert rates.parabola_minimum([1, 2, 4], nll) == (2, nll[1])
    assert rates.parabola_minimum([1e-4, 3e-4, 1e-3], nll) == (3e-4, nll[1])


def test_a_curvature_above_rounding_counts():
    rate, lowest = rates.parabola_minimum([1, 2, 4], [1.000001, 1.0, 1.000001])
    assert (rate, lowest) == pytest.approx((2, 1.0))
    rate, lowest = rates.parabola_minimum([1, 2, 4], [1.000001, 1.0, 1.0])
    assert rate == pytest.approx(8 ** 0.5) and 1 - lowest == pytest.approx(1e-6 / 8)
    with pytest.raises(AssertionError, match="not the lowest"):
        rates.parabola_minimum([1, 2, 4], [1.0, 1.2, 1.5])


def two_exponentials(x, p, q, w=0.05):
    """What the NLL lies above its minimum at x = 0: rates.fit_errors."""
    return w * ((np.exp(p * x) - 1) / p + (np.exp(-q * x) - 1) / q)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(("p", "q"), [
    (1.4, 0.8), (2.4, 0.9), (1.3, 1.1), (1.8, 0.7), (1.4, 1.6)])
def test_the_best_rate_and_nll_lie_within_the_errors_of_the_fit(factor, p, q):
    """Of U's like nano's, wherever the best rate lies between two of the grid.

    p - q is 0.6, 1.5, 0.2, 1.1 and -0.2. The last leans to the other side, and costs 0.0001 nats.
    """
    for shift in np.linspace(-0.5, 0.5, 21):
        x = math.log(factor) * (np.arange(-3, 4) + shift)
        best = rates.find_best_rate(list(np.exp(x)), 1 + two_exponentials(x, p, q))
        assert best.error == pytest.approx(math.log(factor) ** 2 / 3)
        assert abs(math.log(best.vertex)) < best.error
        assert best.nll - best.dip <= 1 + 1e-4 and 1 <= best.nll


def test_the_errors_of_a_fit_by_hand():
    """Where the parabola turns to the left, its minimum is the lower one: through 1.1, 1, 1.3 in
    steps of 1 it has curvature 0.4 and slope 0.1 in the middle, and so dips by
    0.1^2 / (2 * 0.4) = 0.0125. Else it is the cubic's, in steps of h
    1 + 0.2 u^2 - 2 / 3 * 0.2 h u (1 - u^2). Next to a diverged run the dip is an eighth of 0.3, and
    the rate may be half a step off.
    """
    error = math.log(2) ** 2 / 3
    assert rates.fit_errors([1, 2, 4], [1.1, 1.0, 1.3]) == pytest.approx((error, 0.0125))
    u, h = np.linspace(0, 1, 1000), math.log(2)
    cubic = 1 + 0.2 * u ** 2 - 2 / 3 * 0.2 * h * u * (1 - u ** 2)
    assert rates.fit_errors([1, 2, 4], [1.2, 1.0, 1.2])[1] == pytest.approx(1 - cubic.min(), 1e-3)
    for nll in ([1.3, 1.0, math.inf], [math.inf, 1.0, 1.3]):
        half = math.log(2) / 2
        assert rates.fit_errors([1, 2, 4], nll) == pytest.approx((error + half, 0.3 / 8))
    assert rates.fit_errors([1, 2, 8], [1.3, 1.0, 1.1])[0] == pytest.approx(math.log(4) ** 2 / 3)


def test_differences_are_taken_within_a_seed():
    """In seed 43 full fine-tuning is worse by 0.5, and so is LoRA: their gap does not show that."""
    shift = (0.0, 0.5)
    sweep = sweep_of(
        *make_grid(FULL, (1e-5, 2e-5, 4e-5), 2e-5, 1.0, (42, 43), shift=shift),
        *make_grid(R64, (1e-4, 2e-4, 4e-4), 2e-4, 1.1, (43, 42), shift=shift[::-1]))
    full, r64 = sweep.full_arm(), find_arm(sweep, R64)
    assert r64.best.nll - full.best.nll == pytest.approx([0.1, 0.1])
    assert r64.best.vertex / full.best.vertex == pytest.approx([10, 10])
    assert verdicts.arm_cells(r64, full)[1:] == [
        "2.0e-04 of 3 rates", "2.0e-04", "1.3500 ± 0.5000", "+0.1000 ± 0.0000", "10"]


def test_the_gain_is_that_of_full_fine_tuning_even_if_lora_gains_more():
    full = make_grid(FULL, (1e-5,), 1e-5, 1.0)
    assert sweep_of(*full).full_gain() == 2.0
    assert sweep_of(*make_grid(R1, (1e-4,), 1e-4, 1.5)).full_gain() == 1.5
    better = sweep_of(*full, *make_grid(R1, (1e-4,), 1e-4, 0.5))
    assert better.full_gain() == 2.0


def test_tokens_are_those_of_a_run_that_was_not_stopped():
    """A run that diverged repeats its last count. By its name it comes first."""
    stopped = run_rows(FULL, 1.0, [3.0, 9.0, math.nan, math.nan], run="a")
    sound = run_rows(FULL, 1e-5, [3.0, 2.0, 1.5, 1.0], run="b")
    for i, (one, other) in enumerate(zip(stopped, sound)):
        one["tokens"], other["tokens"] = 100 * min(i, 1), 100 * i
    assert find_arm(sweep_of(stopped, sound), FULL).tokens.tolist() == [0, 100, 200, 300]


# ----- settings that the columns do not show ------------------------------------------------------

def write_settings(folder, run, settings, name=""):
    write_json(folder / (name or f"{run}.json"), {"run": run, "settings": settings})


def test_runs_that_differ_in_their_settings_alone_are_two_arms(tmp_path):
    """As sweep.py leaves them: all columns alike, and a .json each."""
    for schedule in ("constant", "cosine"):
        rows = make_grid(R64, LORA_LR, 2e-4, 1.0)
        for i, run in enumerate(rows):
            name = f"{schedule}{i}"
            write_csv(tmp_path / schedule, *rows)
            write_rows(tmp_path / f"{name}.csv", [row | {"run": name} for row in run])
            write_settings(tmp_path, name, other_settings(schedule=schedule, rank=64))
    sweeps, = arms.select_sweeps(arms.read_runs(tmp_path))
    assert [(str(arm), arm.n_runs, arm.variant) for arm in sweeps.usual.arms] == [
        ("r = 64, schedule = constant", 5, 0), ("r = 64, schedule = cosine", 5, 1)]
    assert [str(arm) for arm in sweeps.usual.lora_arms()] == ["r = 64, schedule = constant"]


def test_the_log_of_a_run_of_train_py_has_its_settings_in_run_json(tmp_path):
    """Also one that was made before --dropout: what is missing is at its default."""
    rows = [row | {"run": "a"} for row in run_rows(R64, 1e-4, [3, 2, 1, 1])]
    write_rows(tmp_path / "log.csv", rows)
    settings = dataclasses.asdict(Config(schedule="linear", device="cpu", dtype="float32"))
    del settings["dropout"]
    write_settings(tmp_path, "a", settings | {"of a later edition": 1}, "run.json")
    run, = arms.read_runs(tmp_path)
    assert run[-1]["settings"] == other_settings(schedule="linear")
    write_settings(tmp_path, "another", settings, "run.json")
    assert arms.read_runs(tmp_path)[0][0]["settings"] is None


def test_a_file_with_the_rows_of_another_run_is_named(tmp_path):
    """A sweep's file has the name of its run, and settings next to it."""
    folder = write_csv(tmp_path, *make_grid(FULL, FULL_LR, 2e-5, 1.0))
    one, other = sorted(folder.glob("*.csv"))[:2]
    other.write_text(one.read_text())
    other.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match=f"{other.name} holds rows of the run .*; delete it"):
        arms.read_runs(folder)


@pytest.mark.parametrize("content", [
    {"run": "a"}, {"run": "a", "settings": []}, {"run": "a", "settings": {"seed": [1]}},
    {"run": "a", "settings": {"optimizer": 3}}])
def test_damaged_settings_are_named(tmp_path, content):
    write_rows(tmp_path / "a.csv",
               [row | {"run": "a"} for row in run_rows(R64, 1e-4, [3, 2, 1, 1])])
    write_json(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=r"a\.json: settings"):
        arms.read_runs(tmp_path)


def test_a_name_has_what_differs_and_nothing_else():
    """weight_decay is 0.1 everywhere. nf4 and options have no value to show where they are off."""
    def arm_of(method, **changes):
        settings = other_settings(weight_decay=0.1, **changes)
        columns = R64._replace(method=method)
        if method in ("full", "bitfit"):        # a cell is empty where a method has no such setting
            columns = columns._replace(rank="", alpha="")
        if method == "full":
            columns = columns._replace(targets="")
        return run_rows(columns, 1e-4, [3, 2, 1, 1], settings=settings)

    runs = [arm_of("full"), arm_of("bitfit"), arm_of("dora"), arm_of("dora", nf4=True),
            arm_of("mora", options="form=sharing,n=2"), arm_of("lora", dropout=0.1),
            arm_of("lora", schedule="cosine"), arm_of("lora", eval_samples=7)]
    assert [str(arm) for arm in sweep_of(*runs).arms] == [
        "full, schedule = constant", "bitfit, schedule = constant",
        "dora, r = 64, schedule = constant",
        "dora, r = 64, nf4, schedule = constant",
        "mora, r = 64, form = sharing, n = 2, schedule = constant",
        "r = 64, dropout = 0.1, schedule = constant", "r = 64, schedule = cosine",
        "r = 64, schedule = constant"]


def test_of_settings_that_nobody_wrote_down_one_line_says_so():
    """If those that are known differ, the run cannot be put to one of them; else it is one arm."""
    known = [run_rows(R64, lr, [3, 2, 1, 1], settings=other_settings()) for lr in (1e-4, 2e-4)]
    unknown = run_rows(R64, 4e-4, [3, 2, 1, 1], run="old")
    arm, = sweep_of(*known, unknown).arms
    assert (str(arm), arm.lrs) == ("r = 64", [1e-4, 2e-4, 4e-4])
    cosine = run_rows(R64, 1e-4, [3, 2, 1, 1], settings=other_settings(schedule="cosine"))
    with pytest.raises(UserError) as refused:
        sweep_of(*known, unknown, cosine)
    assert str(refused.value) == (
        "the runs differ in schedule, and no file old.json says which of them run old had; the "
        "sweep's own command writes it, or move the run's file into a folder of its own")


def test_twins_are_refused_where_no_file_tells_them_apart():
    one = run_rows(R64, 1e-4, [3, 2, 1, 1], run="a")
    settings = other_settings()
    with pytest.raises(UserError) as refused:
        sweep_of(one, run_rows(R64, 1e-4, [3, 2, 1, 1], run="b", settings=settings))
    assert str(refused.value) == (
        "runs a and b are alike in every column but differ in other settings (--eval_samples, "
        "--dtype ...), and no .json file says in which; put their files into different folders")
    more = other_settings(eval_samples=9)
    with pytest.raises(UserError) as refused:
        sweep_of(*(run_rows(R64, 1e-4, [3, 2, 1, 1], run=run, settings=of_run)
                   for run, of_run in (("a", settings), ("b", more))))
    assert str(refused.value) == ("runs a and b are alike in every column but differ in "
                                  "eval_samples; put their files into different folders")


@pytest.mark.parametrize(("method", "ignored"), [
    ("bitfit", {"rank": 8, "alpha": 8.0}), ("adapter", {"targets": "mlp", "alpha": 8.0})])
def test_old_rows_have_no_settings_that_their_method_ignores(method, ignored):
    """The first edition wrote BitFit's rank; new rows have none. All of them are one arm.

    The run at 2e-4 was made again, because its name had another rank. LoRA keeps its rank.
    """
    key = ArmKey(method, "all-linear", 64, 64.0, 16)
    runs = make_grid(key, (1e-4, 2e-4), 2e-4, 1.0, **ignored,
                     settings=other_settings(method=method, **ignored))
    runs += make_grid(key, (2e-4, 4e-4), 2e-4, 1.0, **dict.fromkeys(ignored, ""),
                      settings=other_settings(method=method))
    runs += make_grid(R64, LORA_LR, 2e-4, 1.0, settings=other_settings())
    arm, lora = sweep_of(*runs).arms
    assert {getattr(arm, name) for name in ignored} == {""} and lora.rank == 64
    assert arm.lrs == [1e-4, 2e-4, 4e-4] and arm.n_runs == 3 and arm.counts.all()
    old, = sweep_of(*runs[:2]).arms             # also in a folder with nothing to compare them with
    assert {getattr(old, name) for name in ignored} == {""}


def test_the_settings_that_a_method_ignores_are_those_of_its_file():
    assert arms.IGNORED == {name: found.ignores for name in RELATIVES
                            if (found := find_method(name)).ignores}


def test_names_in_a_table_have_the_place_and_the_batch_where_they_differ():
    mlp, small = R64._replace(targets="mlp"), R64._replace(batch=8)
    sweep = sweep_of(*(run for key in (FULL, R64, mlp, small)
                       for run in make_grid(key, LORA_LR, 2e-4, 1.0)))
    full, r64, mlp, small = (find_arm(sweep, key) for key in (FULL, R64, mlp, small))
    assert list(arms.name_arms([full, r64]).values()) == ["full", "r = 64"]
    assert list(arms.name_arms([full, r64, mlp]).values()) == [
        "full", "all layers, r = 64", "mlp, r = 64"]
    assert list(arms.name_arms([full, r64, small]).values()) == [
        "full, batch 16", "r = 64, batch 16", "r = 64, batch 8"]


def test_like_is_compared_with_like():
    """Most arms have cosine, so claims are about it. An arm with dropout is compared with the full
    fine-tuning of its schedule, which has no dropout, and dora with the LoRA of its schedule."""
    cosine, constant = other_settings(schedule="cosine"), other_settings()
    dropped = other_settings(schedule="cosine", dropout=0.1)
    r8 = ArmKey("lora", "all-linear", 8, 8, 16)
    runs = []
    for arm, settings, lrs in (
            (R64, cosine, LORA_LR), (r8, cosine, LORA_LR), (r8, dropped, LORA_LR),
            (ArmKey("lora", "all-linear", 4, 4, 16), cosine, LORA_LR),
            (R64, constant, LORA_LR[:3]), (R64._replace(method="dora"), constant, LORA_LR[:3]),
            (FULL, cosine, FULL_LR), (FULL, constant, FULL_LR)):
        runs += make_grid(arm, lrs, lrs[1], 1.0, settings=settings)
    sweep = sweep_of(*runs)
    arm_of = {str(arm): arm for arm in sweep.arms}
    assert {name: arm.variant for name, arm in arm_of.items()} == {
        "r = 64, schedule = cosine": 0, "r = 8, schedule = cosine": 0,
        "r = 4, schedule = cosine": 0,
        "r = 64, schedule = constant": 1, "dora, r = 64, schedule = constant": 1,
        "r = 8, dropout = 0.1, schedule = cosine": 2,
        "full, schedule = cosine": 0, "full, schedule = constant": 1}
    assert [str(arm) for arm in sweep.lora_arms()] == [
        "r = 4, schedule = cosine", "r = 8, schedule = cosine", "r = 64, schedule = cosine"]
    assert str(sweep.full_arm()) == "full, schedule = cosine"
    dropped, dora = arm_of["r = 8, dropout = 0.1, schedule = cosine"], sweep.method_arms()[0]
    assert str(sweep.full_arm(like=dropped)) == "full, schedule = cosine"
    assert str(sweep.full_arm(like=dora)) == "full, schedule = constant"
    assert str(sweep.lora_of_size(dora)) == "r = 64, schedule = constant"
    assert [str(sweep.usual_twin(arm)) for arm in sweep.twins()] == [
        "None", "full, schedule = cosine", "None", "r = 8, schedule = cosine", "None",
        "r = 64, schedule = cosine"]
    rows = verdicts.settings_table(sweep).splitlines()[-3:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "full, schedule = constant", "r = 8, dropout = 0.1, schedule = cosine",
        "r = 64, schedule = constant"]


def test_settings_are_numbered_by_how_many_arms_have_them():
    """Full fine-tuning has no dropout: it has the number of the most common adapters. --options
    belong to a method, and make no number."""
    once, twice = (("dropout", 0.1), ("options", None)), (("dropout", 0.2), ("options", None))
    of_full, mora = (("dropout", None), ("options", None)), (("dropout", 0.2), ("options", "n=1"))
    assert arms.number_variants([(("full",), of_full), (("lora", 8), once), (("lora", 8), once),
                                 (("lora", 8), twice), (("lora", 4), twice), (("mora",), mora)]
                                ) == [0, 1, 1, 0, 0, 0]
    default, other = (("grad_clip", 1.0),), (("grad_clip", 0.5),)
    assert arms.number_variants([(("lora", 8), other), (("lora", 8), other),
                                 (("lora", 8), default)]) == [1, 1, 0]
    assert arms.name_values((("weight_decay", 0.0), ("nf4", False), ("options", "n=1,m=2"))) == [
        "weight_decay = 0", "n = 1", "m = 2"]


def test_claims_compare_no_two_settings_of_one_rank():
    """r = 8 under two schedules used to be a high rank and a low one."""
    runs = full_grid(settings=other_settings(method="full"))
    for schedule, floor in (("constant", 1.0), ("cosine", 1.3)):
        runs += make_grid(ArmKey("lora", "all-linear", 8, 8, 16), LORA_LR, 2e-4, floor, SEEDS,
                          settings=other_settings(schedule=schedule))
    sweeps = sweeps_of(*runs)
    claims = [claim.quantity for claim in verdicts.list_claims(sweeps)]
    assert claims == ["rate of r = 8, schedule = constant / rate of full, schedule = constant"]
    row = verdicts.settings_table(sweeps.usual).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "r = 8, schedule = cosine", "1k", "r = 8, schedule = constant", "1k",
        "0.15 (0.149 to 0.151)", "*worse*", ""]


def test_a_run_whose_rate_changes_is_not_cut():
    """Row 30 of a cosine run of 60 steps is not the result of one of 30. Its last step counts."""
    for settings, ends in ((other_settings(), [16, 8]), (other_settings(schedule="linear"), [16]),
                           (other_settings(warmup_ratio=0.1), [16]), (None, [16, 8])):
        runs = []
        for batch, steps in ((16, STEPS), (8, (0, 30, 60)), (32, STEPS)):
            for key, lrs in ((FULL, FULL_LR), (R64, LORA_LR)):
                runs += make_grid(key._replace(batch=batch), lrs, lrs[2], 1.0, steps=steps,
                                  **({"settings": settings} if settings else {}))
        pairs = sweeps_of(*runs).equal_steps.pairs_by_batch()
        assert sorted(pairs) == sorted([*ends, 32])
