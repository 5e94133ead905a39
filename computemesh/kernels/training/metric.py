"""Whether a segment's end from another kind of device is the one recomputed here: measured against rounding itself.

The auditor runs the segment twice, the second time from weights moved by one rounding each (`moved`). What that
changes in the *update* (end - start), relative to the update's norm, is the reach of a rounding in this segment:
large where a gradient is the small rest of large terms, and then other devices' honest roundings reach as far.
Allowed is `FACTOR` times (reach + one rounding per square root of steps), at most `CEILING`; weights and each of the
optimizer's vectors are judged on their own, by the Euclidean norm, and the segment's loss by its own size.

What it concedes: per segment an error of that share of the update's norm, in any direction, so over a job at most
the same share of the way its weights went. The table in docs/task-types.md shows what honest devices use of it and
what TF32, float16 and bfloat16 would need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDING = float(np.finfo(np.float32).eps)
FACTOR = 64.0
CEILING = 1e-2


def moved(weights: np.ndarray) -> np.ndarray:
    """weights (P,) float32, each one rounding up or down in turn."""
    signs = np.where(np.arange(len(weights)) % 2, 1 - ROUNDING, 1 + ROUNDING).astype(np.float32)
    return weights * signs


def usage(
    steps: int,
    start: Sequence[np.ndarray],
    claimed: Sequence[np.ndarray],
    mine: Sequence[np.ndarray],
    start_moved: Sequence[np.ndarray],
    mine_moved: Sequence[np.ndarray],
) -> float:
    """The share of its allowance that a claimed end uses; above 1 is wrong.

    Each argument is the state's vectors in order, float32: where the segment starts, its end as claimed and as
    recomputed, and start and end of the run that was moved by one rounding. Where a recomputed number is not finite
    the claimed one must not be.
    """
    worst = 0.0
    for parts in zip(start, claimed, mine, start_moved, mine_moved, strict=True):
        begun, theirs, own, begun_moved, other = (part.astype(np.float64) for part in parts)
        finite = np.isfinite(own)
        if (np.isfinite(theirs) != finite).any():
            return float("inf")
        with np.errstate(all="ignore"):
            update, error = np.where(finite, own - begun, 0), np.where(finite, theirs - own, 0)
            carried = np.where(finite, (other - begun_moved) - (own - begun), 0)
            size = max(float(np.linalg.norm(update)), 1e-300)
            reach = float(np.nan_to_num(np.linalg.norm(carried) / size, nan=np.inf))
        allowed = min(FACTOR * (reach + ROUNDING * (1 + steps) ** 0.5), CEILING)
        worst = max(worst, float(np.linalg.norm(error)) / size / allowed)
    return worst
