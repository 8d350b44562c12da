"""CSV -> arms, best of sweep, verdicts, the table. No torch."""

DIVERGED = 2.0          # a run whose test NLL is above this many times that of the base has diverged: it is stopped


def times_full(steps: float) -> int:
    """LoRA's best rate over that of full fine-tuning: 10, and 15 in runs of less than about 100 steps (Schulman et al., 2025)."""
    return 15 if steps < 100 else 10


def diverged(rows: list[dict]) -> bool:
    """Whether a run went where there is no way back: its test NLL is no number, or DIVERGED times what it was at the start."""
    return any(not row["test_nll"] <= DIVERGED * rows[0]["test_nll"] for row in rows)       # nan is not <= anything
