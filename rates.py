"""The best learning rate: where it lies among the rates that were tried.

Every comparison of this project is made at each side's own best rate. verdicts.py judges it, and
sweep.py decides with it what to run next.
"""
import math
from typing import NamedTuple

import numpy as np

DIVERGED = 2.0      # a run has diverged when its test NLL exceeds this many times the base's
ROUNDING = 1e-7     # relative rounding error of float32, in which the NLLs were computed


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


class Best(NamedTuple):
    """The best learning rate. Of one seed: four numbers. Of S seeds: four vectors, (S,) each."""
    lr: float           # of the lowest NLL at the last step, the smaller of two; or nan
    nll: float
    edge: bool          # whether that is the first or the last rate of the grid
    vertex: float       # the rate at the minimum of a parabola; at an edge, lr


def find_best_rate(lrs: list[float], nll) -> Best:
    """The best of one seed. nll: (R,) at the last step."""
    i = int(np.argmin(nll))
    if not math.isfinite(nll[i]):
        all_diverged = math.isinf(nll[i])       # else nan: the seed is missing
        return Best(math.nan, nll[i], all_diverged, math.nan)
    if i in (0, len(lrs) - 1):
        return Best(lrs[i], nll[i], True, lrs[i])
    around = slice(i - 1, i + 2)
    return Best(lrs[i], nll[i], False, parabola_minimum(lrs[around], nll[around]))


def parabola_minimum(lrs, nll) -> float:
    """The rate at the lowest point of the parabola through three points (x = log rate, y = NLL).

    The grid is coarse: 1e-4, 3e-4, 1e-3. If the NLL rises less to the left of the best rate than to
    the right, the true best lies a little to the left. Newton's divided differences are

        d1 = (y1 - y0) / (x1 - x0)      slope between the first two points
        d2 = (y2 - y1) / (x2 - x1)      slope between the last two
        c = (d2 - d1) / (x2 - x0)       curvature

    and the parabola y0 + d1 (x - x0) + c (x - x0) (x - x1) has slope 0 at

        x = (x0 + x1) / 2 - d1 / (2 c)

    The middle point must be the lowest, so that d1 <= 0 <= d2. Then x lies between the midpoints of
    the two intervals. The answer is the middle rate if a neighbour diverged, or if all three NLLs
    are equal up to rounding: then the curvature is noise.
    """
    x0, x1, x2 = np.log(lrs)
    y0, y1, y2 = nll
    assert not (y0 < y1 or y2 < y1), f"the middle one of {nll} is not the lowest"
    highest = max(y0, y2)
    if not math.isfinite(highest) or highest - y1 <= ROUNDING * abs(y1):
        return lrs[1]
    d1 = (y1 - y0) / (x1 - x0)
    d2 = (y2 - y1) / (x2 - x1)
    c = (d2 - d1) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - d1 / (2 * c))
