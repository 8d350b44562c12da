"""The best learning rate: where it lies among the rates that were tried.

Every comparison of this project is made at each side's own best rate. verdicts.py judges it, and
sweep.py decides with it what to run next.
"""
import math
from typing import NamedTuple

import numpy as np

DIVERGED = 2.0      # a run has diverged when its test NLL exceeds this many times the base's
ROUNDING = 1e-7     # relative rounding error of float32, in which the NLLs were computed
LEAN = 2            # how much steeper a U is to the right of the best rate, at most: see fit_errors


def diverged(rows: list[dict]) -> bool:
    """Whether the test NLL of a run became nan, or exceeded DIVERGED times that of its first row.

    A run does not come back from there, so sweep.py stops it.
    """
    limit = DIVERGED * rows[0]["test_nll"]
    return any(not row["test_nll"] <= limit for row in rows)    # nan is not <= anything


def lora_rate_multiple(steps: float) -> int:
    """LoRA's best rate over that of full fine-tuning, according to Schulman et al. (2025).

    It is 10, and 15 in runs of less than about 100 steps.
    """
    return 15 if steps < 100 else 10


def rate_at_rank(rank: float, known_rank: float, lr: float) -> float:
    """The best rate at `rank`, if `lr` is the best at `known_rank` and alpha = r in both.

        lr (known_rank / rank)^(2/3)

    It was fitted to nano: 5.2e-3, 1.6e-3 and 2.9e-4 are best at r = 1, 8 and 64 there
    (results/findings_nano.md). From the last the formula says 4.6e-3 and 1.2e-3 for the others.
    """
    return lr * (known_rank / rank) ** (2 / 3)


# DoRA's best rate was 0.6 and 0.7 times LoRA's on two models (results/methods.md)
LIKE_LORA = ("lora", "dora")


def starting_rate(c, method: str, steps: int, alpha: float = 32) -> float:
    """5e-5 (2000 / C)^p for full fine-tuning, a multiple of it for LoRA (tinker-cookbook, get_lr).

    c: the ModelConfig. p = 0.781 for Llama and 0.0775 for Qwen; found with alpha = 32, where one
    rate serves all ranks fairly well. With alpha = r the best rate falls as the rank grows
    (`rate_at_rank`), and at r = 32 the two are one. So the rate is (32 / alpha)^(2/3) times that.
    For r = 64 on SmolLM2-135M this says 1.2e-3, and 9e-4 was measured; for r = 8 there 5.0e-3, and
    1.6e-3 was; for r = 1 on nano 9e-3, and 5e-3 was. For an alpha that is neither r nor 32 nothing
    was measured.
    """
    p = 0.781 if c.hf["model_type"] == "llama" else 0.0775
    full = 5e-5 * (2000 / c.hidden_size) ** p
    return full if method == "full" else rate_at_rank(alpha, 32, lora_rate_multiple(steps) * full)


class Best(NamedTuple):
    """The best learning rate. Of one seed: seven numbers. Of S seeds: seven vectors, (S,) each."""
    lr: float           # of the lowest NLL at the last step, the smaller of two; or nan
    nll: float
    edge: bool          # whether that is the first or the last rate of the grid
    vertex: float       # the rate at the minimum of a parabola; at an edge, lr
    error: float        # how far the best rate may be from it, in ln(rate); at an edge, nan
    dip: float          # how far the NLL of the best rate may lie below nll; at an edge, nan
    step: float         # from the best rate to the next, in ln(rate): the larger; at an edge, nan


def find_best_rate(lrs: list[float], nll) -> Best:
    """The best of one seed. nll: (R,) at the last step."""
    nan = math.nan
    if len(lrs) == 0:                           # the seed is missing
        return Best(nan, nan, False, nan, nan, nan, nan)
    i = int(np.argmin(nll))
    if math.isinf(nll[i]):                      # all diverged
        return Best(nan, math.inf, True, nan, nan, nan, nan)
    if i in (0, len(lrs) - 1):
        return Best(lrs[i], nll[i], True, lrs[i], nan, nan, nan)
    lrs, nll = lrs[i - 1:i + 2], nll[i - 1:i + 2]
    step = max(math.log(lrs[1] / lrs[0]), math.log(lrs[2] / lrs[1]))
    vertex, _ = parabola_minimum(lrs, nll)
    return Best(lrs[1], nll[1], False, vertex, *fit_errors(lrs, nll), step)


def fit_errors(lrs, nll) -> tuple[float, float]:
    """-> (error, dip), see Best: what three rates leave open, whatever the number of seeds.

    A U is no parabola. Nano's look like two exponentials,

        NLL = m + w ((exp(p x) - 1) / p + (exp(-q x) - 1) / q)          x = ln(rate / best rate)

    A U leans if p > q: to the right of the best rate it is steeper. Its third derivative there is
    p - q times its second. p - q is taken to be 0 to 2 (LEAN). Nano's grids have four rates near
    the best one, too few to measure it: for r = 64, anything from 1 to 3 fits to 0.003 nats.

    A parabola through three rates, steps of h = ln(factor) apart, mistakes this lean for a slope.
    Its minimum lies (p - q) h^2 / 6 too far to the left. With p - q = 2 that is h^2 / 3: 0.16 for
    rates a factor of two apart, 0.40 for a factor of three. Two arms that lean alike are off alike,
    so the ratio of their best rates is off by at most one such error, not by two.

    How low can the true minimum be? Draw two curves through the three points, one without lean (the
    parabola) and one with the most: the cubic that is the parabola with curvature c plus
    LEAN c / 3 (x - x0) (x - x1) (x - x2). `dip` is how far the lower of the two goes below the
    lowest point.

    Where a neighbour diverged, the best rate is taken to be within half a step towards it. A
    parabola whose minimum lies there dips by an eighth of what the NLL rises on the other side.
    """
    x0, x1, x2 = np.log(lrs)
    y0, y1, y2 = nll
    h = max(x1 - x0, x2 - x1)
    error = LEAN * h ** 2 / 6
    if not math.isfinite(max(y0, y2)):
        return error + h / 2, (min(y0, y2) - y1) / 8
    curvature = ((y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)) / (x2 - x0)
    x = np.linspace(x1, x2, 101)            # to the left of x1 the cubic is above the parabola
    slope = (y1 - y0) / (x1 - x0)
    cubic = (y0 + slope * (x - x0) + curvature * (x - x0) * (x - x1)
             + LEAN * curvature / 3 * (x - x0) * (x - x1) * (x - x2))
    return error, y1 - min(cubic.min(), parabola_minimum(lrs, nll)[1])


def parabola_minimum(lrs, nll) -> tuple[float, float]:
    """The lowest point (rate, NLL) of the parabola through three points (x = log rate, y = NLL).

    The grid is coarse: 1e-4, 3e-4, 1e-3. If the NLL rises less to the left of the best rate than to
    the right, the true best lies a little to the left. Newton's divided differences are

        d1 = (y1 - y0) / (x1 - x0)      slope between the first two points
        d2 = (y2 - y1) / (x2 - x1)      slope between the last two
        c = (d2 - d1) / (x2 - x0)       curvature

    and the parabola y0 + d1 (x - x0) + c (x - x0) (x - x1) has slope 0 at

        x = (x0 + x1) / 2 - d1 / (2 c)

    The middle point must be the lowest, so that d1 <= 0 <= d2. Then x lies between the midpoints of
    the two intervals. The answer is the middle point if a neighbour diverged, or if all three NLLs
    are equal up to rounding: then the curvature is noise.
    """
    x0, x1, x2 = np.log(lrs)
    y0, y1, y2 = nll
    assert not (y0 < y1 or y2 < y1), f"the middle one of {nll} is not the lowest"
    highest = max(y0, y2)
    if not math.isfinite(highest) or highest - y1 <= ROUNDING * abs(y1):
        return lrs[1], y1
    d1 = (y1 - y0) / (x1 - x0)
    d2 = (y2 - y1) / (x2 - x1)
    c = (d2 - d1) / (x2 - x0)
    x = (x0 + x1) / 2 - d1 / (2 * c)
    return math.exp(x), y0 + d1 * (x - x0) + c * (x - x0) * (x - x1)


# ----- which rates to try next --------------------------------------------------------------------
# A best rate is known when the rates next to it were tried as well and are worse. So a grid is
# extended by its own step, at the end where its best rate lies, until that is so. Further seeds
# need no whole grid: they try the first seed's best rate and the two next to it, and go on where
# their own best is at an end of these. What to run next follows from the results alone. So a sweep
# can be stopped at any time, and processes that share a folder need not talk to each other.

MOST_STEPS = 12     # beyond either end of a grid: a factor of 4,096 in steps of two


def extend_grid(grid: list[float]) -> list[float]:
    """`grid` with MOST_STEPS further rates at either end: 1, 3, 10 -> ... 0.3, 1, 3, 10, 30 ...

    A grid often has two factors in turn, here 3 and 3.33. So the factor beyond an end is not that
    of the last step, but of the one before. A grid of two rates has one factor; a single rate is
    doubled and halved.
    """
    lrs = list(grid) if len(grid) > 1 else [grid[0], 2 * grid[0]]
    for _ in range(MOST_STEPS):
        low, high = lrs[:3], lrs[-3:]
        below = low[0] * low[-2] / low[-1]
        above = high[-1] * high[1] / high[0]
        lrs = [float(f"{below:.3g}"), *lrs, float(f"{above:.3g}")]
    return lrs


def best_tried(nll: dict[float, float]) -> float:
    """The rate with the lowest NLL of {rate: NLL}; of several the lowest. nan is a failed run."""
    return min(sorted(nll), key=lambda lr: math.inf if math.isnan(nll[lr]) else nll[lr])


def rates_around_best(nll: dict[float, float], ladder: list[float]) -> list[float]:
    """The best rate tried and the two next to it on the ladder."""
    i = ladder.index(best_tried(nll))
    return ladder[max(0, i - 1):i + 2]


def all_tried(lrs, nll: dict[float, float]) -> bool:
    """Whether each rate has a result. A failed run, nan, is none."""
    return all(not math.isnan(nll.get(lr, math.nan)) for lr in lrs)


def plan_rates(grid: list[float], tried: list[dict[float, float]], bracket=False, near_best=False
               ) -> list[list[float]]:
    """The rates that each of S seeds needs, tried or not, as far as the results tell by now.

    grid: ascending. tried: for each seed {rate: NLL at the last step}, inf if the run diverged, nan
    if it failed; it holds only rates that were planned. bracket: extend the grid until the best
    rate lies between two worse ones. near_best: seeds after the first try only rates near the best.

    Grid 1, 3, 10 and one seed with NLLs of 5, 4, 3: the best is at the end, so 30 is planned. If it
    gives 3.5, nothing more is, and with near_best the next seed gets 3, 10, 30.
    """
    ladder = extend_grid(grid)
    plans = []
    for nll in tried:
        wanted = set(grid)
        if near_best and plans:
            first_is_done = all_tried(plans[0], tried[0])
            wanted = set(rates_around_best(tried[0], ladder)) if first_is_done else set()
        if bracket and wanted and all_tried(wanted, nll):
            wanted.update(rates_around_best(nll, ladder))
        plans.append(sorted(wanted.union(nll)))
    return plans
