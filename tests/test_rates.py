"""Which rates a sweep tries next, on losses that are looked up instead of trained."""
import math

import pytest

from rates import MOST_STEPS, best_tried, extend_grid, plan_rates

GRID = [1.0, 3.0, 10.0]


def search(losses, grid=GRID, **how):
    """Run all that is planned until nothing is missing. losses: for each seed, rate -> NLL."""
    tried = [{} for _ in losses]
    while True:
        plans = plan_rates(grid, tried, **how)
        missing = [(s, lr) for s, lrs in enumerate(plans) for lr in lrs if lr not in tried[s]]
        if not missing:
            return tried
        for s, lr in missing:
            tried[s][lr] = losses[s](lr)


def parabola(best):
    """NLL with its minimum at the rate `best`; diverged from 100 times that on."""
    return lambda lr: math.inf if lr > 100 * best else math.log(lr / best) ** 2


def test_a_grid_goes_on_in_its_own_steps():
    assert extend_grid(GRID)[MOST_STEPS - 3:-MOST_STEPS + 3] == [
        0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]
    assert extend_grid([1e-5, 2e-5])[MOST_STEPS - 1:MOST_STEPS + 3] == [5e-6, 1e-5, 2e-5, 4e-5]
    # the tutorial's: the factors 2, 2, 2.5, 2 go on with 2.5 above and with 2 below
    assert extend_grid([5e-6, 1e-5, 2e-5, 5e-5, 1e-4])[MOST_STEPS - 1] == 2.5e-6
    assert extend_grid([5e-6, 1e-5, 2e-5, 5e-5, 1e-4])[-MOST_STEPS] == 2.5e-4
    assert extend_grid([3.0])[MOST_STEPS - 1:MOST_STEPS + 2] == [1.5, 3, 6]
    assert all(len(extend_grid(grid)) >= len(grid) + 2 * MOST_STEPS for grid in (GRID, [1.0]))


@pytest.mark.parametrize(("best", "rates"), [
    (3, [1, 3, 10]),                            # a U: nothing to add
    (12, [1, 3, 10, 30]),                       # at the upper end: one more is worse
    (30, [1, 3, 10, 30, 100]),
    (0.2, [0.1, 0.3, 1, 3, 10]),
    (3e5, [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6])])        # ten more
def test_bracket_extends_until_the_best_has_worse_neighbours(best, rates):
    tried, = search([parabola(best)], bracket=True)
    assert sorted(tried) == rates


def test_a_rate_that_diverged_is_a_worse_neighbour():
    losses = {1.0: 3.0, 3.0: 2.0, 10.0: 1.0, 30.0: math.inf}
    tried, = search([losses.get], bracket=True)
    assert tried == losses
    # where all of the grid diverged, lower rates are tried
    tried, = search([parabola(1e-3)], bracket=True)
    assert sorted(tried)[:3] == [3e-4, 1e-3, 3e-3]


def test_of_equal_rates_the_lowest_counts():
    assert best_tried({3.0: 1.0, 1.0: 1.0, 10.0: 2.0}) == 1.0
    assert best_tried({1.0: math.nan, 3.0: math.inf, 10.0: 5.0}) == 10.0
    # 1 and 3 are equal, so 1 is the best, and a rate below it is tried
    tried, = search([{0.3: 2.0, 1.0: 1.0, 3.0: 1.0, 10.0: 5.0}.get], bracket=True)
    assert sorted(tried) == [0.3, 1, 3, 10]


@pytest.mark.parametrize("sign", [1, -1])
def test_an_arm_without_a_best_rate_ends_at_the_limit(sign):
    tried, = search([lambda lr: sign * lr], bracket=True)
    assert len(tried) == len(GRID) + MOST_STEPS


def test_a_failed_run_extends_nothing():
    tried, = search([lambda lr: math.nan if lr == 1 else lr], bracket=True)
    assert set(tried) == set(GRID)
    tried = search([lambda lr: math.nan if lr == 1 else lr, parabola(3)], near_best=True)
    assert tried[1] == {}


def test_without_bracket_a_grid_is_a_grid():
    tried = search([parabola(100), parabola(0.01)])
    assert [sorted(nll) for nll in tried] == [GRID, GRID]


def test_further_seeds_start_near_the_first_ones_best():
    """The second is like the first, the third's best lies elsewhere."""
    first, second, third = search([parabola(10), parabola(11), parabola(0.3)], bracket=True,
                                  near_best=True)
    assert sorted(first) == [1, 3, 10, 30]
    assert sorted(second) == [3, 10, 30]
    assert sorted(third) == [0.1, 0.3, 1, 3, 10, 30]
    assert [best_tried(nll) for nll in (first, second, third)] == [10, 10, 0.3]


def test_further_seeds_wait_for_the_first():
    plans = plan_rates(GRID, [{1.0: 3.0, 3.0: 2.0, 10.0: 1.0}, {}], bracket=True, near_best=True)
    assert plans == [[1, 3, 10, 30], []]
    assert plan_rates(GRID, [{}, {}], bracket=True) == [GRID, GRID]
