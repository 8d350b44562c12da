"""The rule, the claims and the table from CSV files made by hand, with known answers."""
import importlib.util
import math

import numpy as np
import pytest
from conftest import REPO
from csv_runs import (FULL, FULL_LR, LONGER, LORA_LR, R1, R64, SEEDS, SHIFT, STEPS, ArmKey,
                      find_arm, full_grid, leaving_runs, make_grid, placement_grids, run_rows,
                      sweep_of, sweeps_of)

import arms
import verdicts
from plumbing.records import write_rows
from verdicts import Claim, Noise, judge_claim, student_t

RESULTS = REPO / "results"
spec = importlib.util.spec_from_file_location("rule", RESULTS / "rule.py")
rule = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rule)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch, tmp_path):
    """No noise from results/, unless a test puts rows there."""
    monkeypatch.setattr(verdicts, "RESULTS", tmp_path)
    verdicts.known_sweeps.cache_clear()
    yield
    verdicts.known_sweeps.cache_clear()


# ----- the rule -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("df", "t"), [
    (1, 6.3138), (2, 2.9200), (3, 2.3534), (4, 2.1318), (9, 1.8331), (20, 1.7247), (100, 1.6602)])
def test_the_quantiles_of_student_s_t(df, t):
    """Those of every table."""
    assert student_t(df) == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize(("values", "interval", "word"), [
    ([0.10, 0.12, 0.11], (0, math.inf), "supported"),
    ([-0.10, -0.12, -0.11], (0, math.inf), "contradicted"),
    ([0.10, 0.28, 0.19], (0, math.inf), "supported"),           # 0.19 less 1.69 * 0.09 = 0.152
    ([0.05, 0.23, 0.14], (0, math.inf), "undecided"),           # 0.14 less the same
    ([0.10, 0.12], (0, math.inf), "supported"),                 # 0.11 less 4.46 * 0.0141 = 0.063
    ([0.10, 0.16], (0, math.inf), "undecided"),                 # 0.13 less 4.46 * 0.0424 = 0.189
    ([0.0, 0.0], (0, math.inf), "undecided"), ([-0.1, 0.1], (0, math.inf), "undecided"),
    ([8, 9, 10], (5, 20), "supported"), ([30, 31, 32], (5, 20), "contradicted"),
    ([18, 19, 20], (5, 20), "undecided"), ([1, 1.2], (5, 20), "contradicted"),
    ([-5, -6], (-math.inf, 0.02), "supported"), ([0.1], (0, math.inf), "undecided"),
    ([], (0, math.inf), "undecided"), ([math.nan, 1.0], (0, 9), "undecided")])
def test_the_rule(values, interval, word):
    assert judge_claim(Claim("", "", values, interval)).word == word


def test_the_interval_and_what_it_is_made_of():
    """Three values with mean 2 and deviation 1: 2 -+ 2.92 / sqrt(3) = 0.314 to 3.686."""
    claim = Claim("", "", [1, 2, 3], (0, math.inf))
    assert judge_claim(claim)[1:3] == pytest.approx((0.3141, 3.6859), abs=1e-4)
    claim = claim._replace(below=0.5, above=0.25)
    verdict = judge_claim(claim)
    assert (verdict.low, verdict.high) == pytest.approx((-0.1859, 3.9359), abs=1e-4)
    assert verdict.word == "undecided"
    assert verdict.why == "about 4 seeds would decide, if mean and deviation stay as they are"


def test_ratios_are_judged_by_their_logarithm():
    """8 and 8.5 around 8.25, deviation 0.354, t = 6.31: 6.67 to 9.83, or by ratio 6.81 to 9.99."""
    claim = Claim("", "", [8, 8.5], (6.7, 20))
    assert judge_claim(claim._replace(ratio=True)).word == "supported"
    assert judge_claim(claim).word == "undecided"
    assert judge_claim(claim._replace(ratio=True)).low == pytest.approx(6.810, abs=2e-3)


@pytest.mark.parametrize(("values", "below", "why"), [
    ([0.1], 0, "one seed shows no noise; run two or more"),
    ([], 0, "there is no number for it"),
    # 2 -+ 2.92 * 2 / sqrt(3), and with 5 seeds 2 -+ 2.13 * 2 / sqrt(5) = 0.09
    ([0, 2, 4], 0, "about 5 seeds would decide, if mean and deviation stay as they are"),
    ([0, 2, 4], 2.5, "more seeds cannot decide; rates closer together could"),
    ([-1, 0.1, 1.2], 0, "more than 50 seeds would be needed; rates closer together could")])
def test_an_undecided_claim_says_what_would_decide(values, below, why):
    claim = Claim("", "", values, (0, math.inf), below=below, finer="rates closer together could")
    assert judge_claim(claim)[0::3] == ("undecided", why)


def test_fewer_than_three_seeds_are_judged_by_known_noise():
    """0.05 less 1.7247 * 0.02 is above 0, and so is 0.03 less that / sqrt(2), but 0.03 is not."""
    claim = Claim("", "", [0.05], (0, math.inf), known=Noise(0.02, 20))
    verdict = judge_claim(claim)
    assert verdict.word == "supported" and verdict.low == pytest.approx(0.0155, abs=1e-4)
    assert verdict.why == "noise from results/: 0.02, 20 degrees of freedom"
    why = judge_claim(claim._replace(values=[0.03])).why
    assert why.endswith("about 2 seeds would decide, if mean and deviation stay as they are")
    # their own deviation of 0.0141 with t = 6.31 would not do
    assert judge_claim(claim._replace(values=[0.02, 0.04])).word == "supported"
    assert judge_claim(claim._replace(values=[0.02, 0.04], known=None)).word == "undecided"
    # three seeds speak for themselves: 0.03 less 1.69 * 0.001, and less 1.69 * 0.02
    assert judge_claim(claim._replace(values=[0.029, 0.03, 0.031])).why == ""
    assert judge_claim(claim._replace(values=[0.01, 0.03, 0.05])).word == "undecided"


def test_known_noise_is_that_of_all_pairs_of_arms(tmp_path):
    """Three arms with NLLs that differ by seed. The mean over pairs of the variance of their
    difference, by hand: differences of (0, 0.01, 0.02), (0, 0, 0.02) and (0, -0.01, 0)."""
    noise = {FULL: (0.0, 0.0, 0.0), R1: (0.0, 0.01, 0.02), R64: (0.0, 0.0, 0.02)}
    runs = []
    for key, more in noise.items():
        runs += make_grid(key, LORA_LR, 2e-4, 1.0, SEEDS, shift=np.add(more, (0.0, 0.5, 0.2)))
    differences = [(0, 0.01, 0.02), (0, 0, 0.02), (0, -0.01, 0)]
    expected = np.mean([np.var(d, ddof=1) for d in differences])
    known = verdicts.pool_noise([sweep_of(*runs)], lambda arm: arm.best.nll)
    assert 2 * known.sd ** 2 == pytest.approx(expected) and known.df == 4
    assert verdicts.pool_noise([sweep_of(*make_grid(R1, LORA_LR, 2e-4, 1.0, SEEDS))],
                               lambda arm: arm.best.nll) is None


def test_one_seed_is_judged_by_the_noise_that_results_show(tmp_path):
    """Of the same model and data. The noise of a share of the gain is a share of the gain, too."""
    runs = [*make_grid(FULL, FULL_LR, 2e-5, 1.0), *make_grid(R64, LORA_LR, 2e-4, 1.2),
            *make_grid(R1, LORA_LR, 2e-4, 1.3)]
    quantity = "r = 1 above full, share of the gain"
    assert judged_claims(*runs)[quantity] == (
        "undecided", "one seed shows no noise; run two or more")
    shifts = {FULL: (0.0, 0.01, 0.0), R1: (0.0, 0.0, 0.01), R64: (0.01, 0.0, 0.0)}
    known = [run for key, shift in shifts.items()
             for run in make_grid(key, LORA_LR, 2e-4, 1.0, SEEDS, shift=shift, model="/some/nano")]
    (tmp_path / "findings_here").mkdir()
    write_rows(tmp_path / "findings_here" / "rows.csv", [row for run in known for row in run])
    verdicts.known_sweeps.cache_clear()
    noise = verdicts.find_noise(sweep_of(*runs))["nll"]
    claim, = (claim for claim in verdicts.list_claims(sweeps_of(*runs))
              if claim.quantity == quantity)
    assert claim.known == pytest.approx((noise.sd * 2 ** 0.5 / 2.0, 4))
    word, why = judged_claims(*runs)[quantity]
    assert word == "supported" and why.startswith("noise from results/")


@pytest.mark.parametrize(("changes", "known"), [
    ({}, True), ({"model": "/some/nano"}, True), ({"start": 3.0002}, True),
    ({"data": "gsm8k"}, False), ({"model": "llama"}, False),
    ({"start": 3.001}, False),                      # other test samples
    ({"steps": (0, 10, 20)}, False), ({"steps": (0, 10, 20, 40)}, False)])
def test_noise_is_known_of_runs_like_those_of_results_alone(tmp_path, changes, known):
    """The same model, data, length and test samples: noise depends on each of them."""
    shifts = {FULL: (0.0, 0.01, 0.0), R1: (0.0, 0.0, 0.01)}
    rows = [row for key, shift in shifts.items()
            for run in make_grid(key, LORA_LR, 2e-4, 1.0, SEEDS, shift=shift) for row in run]
    (tmp_path / "findings_here").mkdir()
    write_rows(tmp_path / "findings_here" / "rows.csv", rows)
    others = {name: value for name, value in changes.items() if name != "start"}
    runs = [[run[0] | {"test_nll": changes.get("start", 3.0)}, *run[1:]]
            for run in make_grid(R1, LORA_LR, 2e-4, 1.0, **others)]
    assert set(verdicts.find_noise(sweep_of(*runs))) == ({"nll", "rate"} if known else set())


# ----- its errors ---------------------------------------------------------------------------------

@pytest.mark.parametrize("n_seeds", rule.SEEDS)
def test_the_rule_is_wrong_in_five_percent_of_cases(n_seeds):
    """At the boundary of a claim, without a grid of rates: no more and, as t is exact, no less.

    20,000 cases, whose own error is 0.15 %.
    """
    assert rule.chance_of_verdict(0, n_seeds) == pytest.approx(0.05, abs=0.005)
    assert rule.chance_of_verdict(0, n_seeds, heavy_tails=True) < 0.055


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 10])
@pytest.mark.parametrize("case", ["gap, near_best", "gap, half a step off",
                                  "ratio, rates 1.5 apart", "ratio, unlike U's"])
def test_from_rows_to_verdicts_at_most_five_percent_are_wrong(case, n_seeds):
    """With a grid of rates, U's and noise like nano's, and claims exactly at the boundary.

    400 cases, whose own error is 1 %.
    """
    which, how = rule.CASES[case]
    assert rule.verdict_rates(n_seeds, **how, trials=400)[which] <= 0.05


def test_what_is_simulated_is_like_what_was_measured():
    """The U's, against runs of nano's first seed; and the noise, against what results/ knows."""
    usual = arms.select_sweeps(arms.read_runs(RESULTS / "findings_nano"))[0].usual
    names = {str(arm): arm for arm in usual.arms if arm.batch == usual.batch}
    for name, shape in rule.UPS.items():
        arm = names[name]
        nll, lrs = arm.nll[0, arm.was_run[0], -1], np.array(arm.own_rates(0))
        near, best = nll < nll.min() + 0.7, np.log(arm.best.vertex[0])
        errors = []
        for x0 in np.linspace(best - 0.4, best + 0.4, 161):
            rest = nll[near] - rule.true_nll(np.log(lrs)[near] - x0, shape)
            errors.append(np.ptp(rest) / 2)
        assert min(errors) < 1.2 * rule.RUN, name
    rng = np.random.default_rng(0)
    simulated = [rule.draw_noise(rng, rule.KNOWN) for _ in range(50)]
    for name, quantity in verdicts.QUANTITIES.items():
        measured = verdicts.pool_noise([usual], quantity).sd
        assert np.mean([noise[name].sd for noise in simulated]) == pytest.approx(measured, rel=0.25)


# ----- the claims ---------------------------------------------------------------------------------

def judged_claims(*runs):
    """{quantity: (verdict, why)} of the claims that hand-made runs allow."""
    judged = {claim.quantity: judge_claim(claim)
              for claim in verdicts.list_claims(sweeps_of(*runs))}
    return {quantity: (verdict.word, verdict.why) for quantity, verdict in judged.items()}


@pytest.mark.parametrize(("floor", "shift", "high", "low"), [
    (1.01, SHIFT, "supported", "contradicted"),         # 0.01 of a gain of 2.0: well within 2 %
    (1.20, SHIFT, "contradicted", "supported"),
    (1.03, (0.0, 0.05, 0.01), "undecided", "undecided")])
def test_claims_on_rank(floor, shift, high, low):
    judged = judged_claims(*full_grid(),
                           *make_grid(R64, LORA_LR, 2e-4, floor, SEEDS, shift=shift),
                           *make_grid(R1, LORA_LR, 2e-4, floor, SEEDS, shift=shift))
    assert judged["r = 64 above full, share of the gain"][0] == high
    assert judged["r = 1 above full, share of the gain"][0] == low


@pytest.mark.parametrize(("best", "last", "word"), [
    (2.5e-4, 30, "supported"), (1.4e-4, 30, "undecided"), (9e-5, 30, "contradicted"),
    (8e-4, 30, "undecided"), (2e-4, 100, "supported"), (1.4e-4, 100, "supported"),
    (9e-5, 100, "undecided")])
def test_claim_on_the_ratio_of_rates(best, last, word):
    """It must be about 15 in runs of less than 100 steps, else 10.

    Full fine-tuning is best at 2e-5. LoRA's best differs by 0, 10 and 20 % over the seeds, which
    is 0.09 in ln(ratio), so that the mean is known to within 0.15, and the grid adds 0.16: a factor
    of 1.37. With 2.5e-4 the ratio is 13.7 and so 10 to 18.8. 8e-4 is the edge of the grid.
    """
    lora = []
    for i, seed in enumerate(SEEDS):
        lora += make_grid(R64, LORA_LR, best * (1 + i / 10), 1.0, (seed,), (0, last))
    judged = judged_claims(*full_grid(steps=(0, last)), *lora)
    found, why = judged["rate of r = 64 / rate of full"]
    assert found == word
    assert ("bracket" in why) == (best == 8e-4)


@pytest.mark.parametrize(("small_gap", "large_gap", "word", "word_of_samples"), [
    (0.0, 0.1, "supported", "supported"), (0.1, 0.0, "contradicted", "undecided"),
    (0.05, 0.0505, "undecided", "supported")])
def test_claim_on_batch_size(small_gap, large_gap, word, word_of_samples):
    """After equal steps and after equal samples, and of two ranks the higher counts."""
    runs = []
    for batch, gap in ((8, small_gap), (16, 0.0), (32, large_gap)):
        full, lora = FULL._replace(batch=batch), R64._replace(batch=batch)
        shift = SHIFT if batch == 8 else (0.001, 0.0, 0.002)
        runs += make_grid(full, FULL_LR, 2e-5, 1.0, SEEDS)
        runs += make_grid(lora, LORA_LR, 2e-4, 1.0 + gap, SEEDS, shift=shift)
        runs += make_grid(R1._replace(batch=batch), (2e-4,), 2e-4, 1.5)
    judged = judged_claims(*runs)
    assert judged["r = 64 above full at batch 32, less that at 8, after 30 steps"][0] == word
    # batch 8 has seen 240 samples at most, batch 32 has seen 320 at its first evaluation
    judged = judge_claim(*verdicts.claim_batch_sizes(sweeps_of(*runs).equal_samples, {}))
    assert judged.word == word_of_samples
    pairs = sweep_of(*runs).pairs_by_batch()
    assert list(pairs) == [8, 16, 32]
    lora, full = pairs[16]
    assert (str(lora), str(full), lora.batch, full.batch) == ("r = 64", "full", 16, 16)
    assert full.lrs == list(FULL_LR)
    assert lora.lrs == list(LORA_LR) and lora.nll.shape == (3, 5, 4)
    assert lora.curves[:, -1] == pytest.approx([1.001, 1.0, 1.002])


@pytest.mark.parametrize(("attention", "mlp", "words"), [
    (1.2, 1.0, ("supported", "supported", "supported")),
    (1.0, 1.2, ("contradicted", "undecided", "contradicted"))])
def test_claims_on_placement(attention, mlp, words):
    """At equal rank, and with as many parameters: attention r = 80, MLP r = 48, all r = 30."""
    judged = judged_claims(*full_grid(), *placement_grids(attention, mlp))
    for ranks in ((64, 64, 64), (80, 48, 30)):
        one, two, three = (f"attention, r = {ranks[0]}", f"mlp, r = {ranks[1]}",
                           f"all layers, r = {ranks[2]}")
        quantities = (f"{one} above {two}", f"{one} above {three}",
                      f"{two} above {three}, share of the gain")
        assert tuple(judged[quantity][0] for quantity in quantities) == words


@pytest.mark.parametrize(("trainable", "matched"), [(1090, ["attention", "mlp"]), (1120, [])])
def test_matched_places_differ_by_less_than_a_tenth(trainable, matched):
    attention, mlp = ArmKey("lora", "attention", 80, 80, 16), ArmKey("lora", "mlp", 48, 48, 16)
    sweep = sweep_of(*make_grid(attention, (1e-4,), 1e-4, 1.0),
                     *make_grid(mlp, (1e-4,), 1e-4, 1.0, trainable=trainable))
    assert list(sweep.matched_places()) == matched


@pytest.mark.parametrize(("low_best", "high_best", "word"), [
    (2e-4, 2.2e-4, "supported"), (1e-4, 3.9e-4, "contradicted")])
def test_claim_on_alpha(low_best, high_best, word):
    """It is about the alpha that most arms have: 32, not 16. r = 32 has alpha 32 and alpha = r."""
    runs = full_grid()
    for rank, alpha, best in ((8, 32, low_best), (128, 32, high_best), (32, 32, 2e-4),
                              (8, 16, 8e-4)):
        arm = ArmKey("lora", "all-linear", rank, alpha, 16)
        runs += make_grid(arm, LORA_LR, best, 1.0, SEEDS)
    judged = judged_claims(*runs)
    assert judged["rate of r = 128, alpha = 32 / rate of r = 8, alpha = 32"][0] == word


@pytest.mark.parametrize(("low", "high", "word"), [
    (100, 300, "supported"), (200, 100, "contradicted"), (100, 100, "undecided"),
    (100, 120, "undecided")])
def test_claim_on_capacity_and_the_step_at_which_a_rank_leaves(low, high, word):
    """The evaluations are 20 steps apart, so leaving 20 steps later is no difference."""
    runs = [*full_grid(), *make_grid(R64, LORA_LR, 2e-4, 1.0, SEEDS)]
    for seed in SEEDS:
        runs += leaving_runs(FULL, 300, seed, best=2e-5)
        runs += leaving_runs(R1, low, seed) + leaving_runs(R64, high, seed)
    judged = judged_claims(*runs)
    assert judged["step at which r = 64 leaves it, less that of r = 1"][0] == word
    sweep, long, *_ = sweeps_of(*runs)
    assert tuple(sweep.steps) == STEPS and tuple(long.steps) == LONGER
    # 2 % of 2 nats above at low + 6, which the next evaluation sees
    assert long.leaving_steps(find_arm(long, R1)).tolist() == [low + 20] * 3
    assert long.leaving_steps(find_arm(long, R64)).tolist() == [min(high + 20, 300)] * 3


@pytest.mark.parametrize(("at", "leaves"), [(112, 120), (116, 140)])
def test_a_rank_leaves_where_it_is_two_percent_of_the_gain_behind(at, leaves):
    """At step 120 it is (120 - at) / 150 behind: 0.053 or 0.027, where 2 % of 2 nats are 0.04."""
    sweep = sweep_of(*leaving_runs(FULL, 300), *leaving_runs(R1, at))
    assert sweep.leaving_steps(find_arm(sweep, R1)).tolist() == [leaves]


def test_claims_that_cannot_be_asked():
    """Nobody can say whether a single rank is high, and there is no share of no gain."""
    r64 = make_grid(R64, LORA_LR, 2e-4, 1.0, SEEDS, shift=SHIFT)
    alone = judged_claims(*full_grid(), *r64)
    assert list(alone) == ["rate of r = 64 / rate of full"]
    runs = [*make_grid(R1, LORA_LR, 2e-4, 1.0, SEEDS), *r64]
    for lr in FULL_LR:
        worse = [3.0, 3.2, 3.2, 3.2 + abs(math.log(lr / 2e-5))]
        runs += [run_rows(FULL, lr, worse, seed) for seed in SEEDS]
    judged = judged_claims(*runs)
    assert judged["r = 64 above full, share of the gain"] == (
        "undecided", "there is no number for it")


def test_arms_at_the_edge_are_named_in_each_of_their_claims():
    """Full fine-tuning at batch 16 and LoRA at batch 32 have their best rate at the edge.

    So do the long runs, because without the first of three rates the best is the lowest one.
    """
    runs = [*make_grid(FULL, FULL_LR, 8e-5, 1.0, SEEDS),
            *make_grid(FULL._replace(batch=32), FULL_LR, 2e-5, 1.0, SEEDS),
            *make_grid(R64._replace(batch=32), LORA_LR[:4], 5e-5, 1.1, SEEDS)]
    for arm in (R1, R64):
        runs += make_grid(arm, LORA_LR, 2e-4, 1.0, SEEDS)
    for seed in SEEDS:
        for arm, at in ((R1, 100), (R64, 300), (FULL, 300)):
            runs += leaving_runs(arm, at, seed)[1:]
    edges = {quantity: why.partition("the best rate is bracketed in 0 of 3 seeds: run ")[2]
             for quantity, (_, why) in judged_claims(*runs).items()}
    assert edges == {
        "r = 1 above full, share of the gain": "full at 0.00016",
        "r = 64 above full, share of the gain": "full at 0.00016",
        "rate of r = 1 / rate of full": "full at 0.00016",
        "rate of r = 64 / rate of full": "full at 0.00016",
        "r = 64 above full at batch 32, less that at 16, after 30 steps":
            "r = 64, batch 32 at 2.5e-05; full, batch 16 at 0.00016",
        "r = 64 above full at batch 32, less that at 16, after 320 samples":
            "r = 64, batch 32 at 2.5e-05; full, batch 16 at 0.00016",
        "step at which r = 64 leaves it, less that of r = 1":
            "r = 1 at 0.0001; r = 64 at 0.0001; full at 0.0001"}


def test_a_seed_at_the_edge_does_not_count_but_the_others_do():
    """Seed 44 of r = 1 was run at two rates, and its gap would be 0.5."""
    runs = full_grid() + make_grid(R1, LORA_LR, 2e-4, 1.3, SEEDS[:2], shift=SHIFT)
    runs += make_grid(R1, LORA_LR[:2], 2e-4, 1.5, SEEDS[2:])
    runs += make_grid(R64, LORA_LR, 2e-4, 1.0, SEEDS)
    claim = {claim.quantity: claim for claim in verdicts.list_claims(sweeps_of(*runs))}[
        "r = 1 above full, share of the gain"]
    assert claim.values == pytest.approx([0.15, 0.151, math.nan], nan_ok=True)
    verdict = judge_claim(claim)
    assert verdict.why == (
        "the best rate is bracketed in 2 of 3 seeds: run r = 1 at 0.0002 in seed 44")
    assert verdict.word == "supported"


def test_a_gap_can_be_smaller_by_the_dip_of_one_arm_and_larger_by_that_of_the_other():
    """Full fine-tuning's best is in the middle of its grid, LoRA's 0.3 of a step to the left."""
    runs = full_grid() + make_grid(R64, LORA_LR, 2e-4 / 2 ** 0.3, 1.2, SEEDS)
    sweep = sweep_of(*runs)
    full, r64 = sweep.full_arm(), find_arm(sweep, R64)
    claim = verdicts.claim_gap("", r64, full, {})
    assert claim.below == pytest.approx(r64.best.dip[0]) and claim.below > 0.0043
    assert claim.above == pytest.approx(full.best.dip[0]) and claim.above < 0.003
    share = verdicts.claim_gap("", r64, full, {}, gain=2.0)
    assert share.below == pytest.approx(claim.below / 2)
    ratio = verdicts.claim_rate("", r64, full, 10, {})
    assert ratio.below == ratio.above == pytest.approx(math.log(2) ** 2 / 3)


def test_the_batches_gap_has_the_dips_and_the_noise_of_four_arms():
    runs = []
    for batch in (8, 16):
        runs += make_grid(FULL._replace(batch=batch), FULL_LR, 2.2e-5, 1.0, SEEDS)
        runs += make_grid(R64._replace(batch=batch), LORA_LR, 1.7e-4, 1.0, SEEDS)
    sweep = sweep_of(*runs)
    claim, = verdicts.claim_batch_sizes(sweep, {"nll": Noise(0.01, 20)})
    dips = [find_arm(sweep, key).best.dip[0] for key in (FULL, R64)]
    assert claim.below == claim.above == pytest.approx(sum(dips))
    assert claim.known == pytest.approx((0.02, 20))


# ----- the table ----------------------------------------------------------------------------------

def split_row(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_every_arm_and_every_claim():
    sweeps = sweeps_of(
        *full_grid(), *make_grid(R64, LORA_LR, 2e-4, 1.01, SEEDS, shift=SHIFT),
        *make_grid(R1, LORA_LR, 8e-4, 1.3, SEEDS))
    lines = verdicts.verdict_table(sweeps).splitlines()
    assert lines[0] == "## Claims"
    assert "## nano on nano, batch 16, 45 runs, 3 seeds" in lines
    rows = [split_row(line) for line in lines]
    full, r1, r64 = (row for row in rows if row[0] in ("full", "r = 1", "r = 64"))
    assert full == ["full", "1k", "2.0e-05 of 5 rates", "2.0e-05", "1.0000 ± 0.0000", "", ""]
    # at the edge nobody knows how many times it is
    assert r1 == ["r = 1", "1k", "8.0e-04 of 5 rates, at the edge", "-", "1.3000 ± 0.0000",
                  "+0.3000 ± 0.0000", "-"]
    assert r64 == ["r = 64", "1k", "2.0e-04 of 5 rates", "2.0e-04", "1.0110 ± 0.0020",
                   "+0.0110 ± 0.0020", "10"]
    claims = [row for row in rows if len(row) == 5][2:]
    assert [row[3] for row in claims] == [
        "*supported*", "*undecided*", "*undecided*", "*supported*"]
    assert claims[0][2] == "0.0055 (0.00349 to 0.00751)" and claims[1][2] == "-"
    assert claims[3][2] == "10 (8.52 to 11.7)"


@pytest.mark.parametrize(("name", "n_rows"), [("findings_nano", 37), ("findings_smollm2", 5)])
def test_the_tables_in_results_are_what_their_rows_give(name, n_rows):
    """The pages may leave out columns and claims, but no number in their tables may differ."""
    selected = arms.select_sweeps(arms.read_runs(RESULTS / name))
    computed = [split_row(line) for sweeps in selected
                for line in verdicts.verdict_table(sweeps).splitlines()]
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    first_cells = {cells[0] for cells in computed if len(cells) > 1} - {"arm", "claim"}
    rows = [split_row(line) for line in page]
    rows = [cells for cells in rows if len(cells) > 1 and cells[0] in first_cells]
    assert len(rows) == n_rows
    for cells in rows:
        assert any(set(cells) <= set(other) for other in computed), cells


def test_an_end_that_the_grid_leaves_open_can_still_be_inside():
    """Both neighbours of full's best diverged, so nobody knows how far above it r = 1 really is."""
    assert verdicts.compare(0.1, math.inf, 0.02, math.inf) == "supported"
    assert verdicts.compare(0.1, math.inf, -math.inf, 0.02) == "contradicted"
    assert verdicts.compare(-math.inf, 0.01, -math.inf, 0.02) == "supported"
    assert verdicts.compare(-math.inf, 0.1, 0.0, 0.02) == "undecided"


def test_what_the_grid_leaves_open_is_of_the_seeds_that_are_compared():
    """The third seed of r = 64 is at an edge, so full's dip in that seed says nothing."""
    runs = make_grid(FULL, FULL_LR, 2e-5, 1.0, SEEDS[:2])
    runs += make_grid(FULL, FULL_LR, 1.4e-5, 1.0, SEEDS[2:])        # halfway: a larger dip
    runs += make_grid(R64, LORA_LR, 2e-4, 1.0, SEEDS[:2])
    runs += make_grid(R64, LORA_LR, 1.0, 1.0, SEEDS[2:])
    sweep = sweep_of(*runs)
    lora, full = find_arm(sweep, R64), find_arm(sweep, FULL)
    assert lora.counts.tolist() == [True, True, False] and full.counts.all()
    claim = verdicts.claim_gap("", lora, full, {})
    assert full.best.dip[2] > 2 * full.best.dip[0]
    assert claim.above == pytest.approx(full.best.dip[:2].mean())


# ----- methods ------------------------------------------------------------------------------------

@pytest.mark.parametrize("above, spread, word", [
    (0.0, 0.002, "as good"), (0.2, 0.002, "worse"), (-0.2, 0.002, "better"),
    (0.04, 0.05, "undecided")])
def test_a_method_is_compared_with_lora_of_its_size(above, spread, word):
    """Two percent of the gain of 2.0 are 0.04. r = 8 is as large as the method, r = 64 is not."""
    dora = ArmKey("dora", "all-linear", 8, 8, 16)
    shift = (0.0, spread, -spread)
    runs = [*full_grid(), *make_grid(R64, LORA_LR, 2e-4, 0.5, SEEDS, trainable=8000),
            *make_grid(ArmKey("lora", "all-linear", 8, 8, 16), LORA_LR, 2e-4, 1.1, SEEDS,
                       trainable=1000),
            *make_grid(dora, LORA_LR, 2e-4, 1.1 + above, SEEDS, shift=shift, trainable=1100)]
    table = verdicts.verdict_table(sweeps_of(*runs))
    row, = (line for line in table.splitlines() if line.startswith("| dora, r = 8") and "*" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["dora, r = 8", "1k", "r = 8", "1k"] and cells[5] == f"*{word}*"
    assert math.isclose(float(cells[4].split(" ")[0]), above / 2, abs_tol=1e-3)


def test_without_other_methods_there_is_no_table_of_them():
    assert "## Methods" not in verdicts.verdict_table(sweeps_of(*full_grid()))
