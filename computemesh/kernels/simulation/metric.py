"""Whether a state from another kind of device is the one recomputed here: measured against rounding itself.

The auditor runs the segment twice, the second time from a start and parameters moved by one rounding (`SHIFT`). What
that moves the end by is the *reach* of a rounding, which in a chaotic system grows along the segment and in a
dissipative one shrinks. Allowed is `FACTOR` times (reach + one rounding per square root of steps), at most `CEILING`.

What the tolerance concedes: errors of the size of honest rounding, and never a lower precision: float32 in place
of float64 is 2**29 roundings off, bfloat16 in place of float32 2**16, while `FACTOR` is 2**4. Between AVX-512 with
fused multiply-add and SSE4.2 without it honest units used at most 0.1 of the allowance, in all systems (measured
by bench/rows/simulation.py; a GPU was not seen).
"""

from __future__ import annotations

import numpy as np

from computemesh.kernels.simulation.catalog import Model

SHIFT = {"<f8": float(np.finfo("<f8").eps), "<f4": float(np.finfo("<f4").eps)}
FACTOR = 16.0
CEILING = {"<f8": 1e-8, "<f4": 1e-3}


def usage(model: Model, steps: int, claimed: np.ndarray, mine: np.ndarray, moved: np.ndarray) -> float:
    """The share of its allowance that a claimed state uses, all states (width,); above 1 is wrong.

    Each of the model's fields is measured by its own largest magnitude. Where the recomputed state is not finite
    the claimed one must not be, in the same places.
    """
    finite = np.isfinite(mine)
    if (np.isfinite(claimed) != finite).any():
        return float("inf")
    rounding = SHIFT[model.precision]
    worst = 0.0
    parts = (a.astype(np.float64).reshape(model.fields, -1) for a in (claimed, mine, moved, finite))
    for theirs, own, other, counted in zip(*parts, strict=True):
        where = counted > 0
        if not where.any():
            continue
        scale = max(float(np.abs(own[where]).max()), 1e-300)
        with np.errstate(all="ignore"):
            reach = float(np.nan_to_num(np.abs(other[where] - own[where]).max() / scale, nan=np.inf))
        allowed = min(FACTOR * (reach + rounding * (1 + steps) ** 0.5), CEILING[model.precision])
        worst = max(worst, float(np.abs(theirs[where] - own[where]).max()) / scale / allowed)
    return worst


def agrees(model: Model, steps: int, claimed: np.ndarray, mine: np.ndarray, moved: np.ndarray) -> bool:
    """Whether a claimed state passes, see `usage`."""
    return usage(model, steps, claimed, mine, moved) <= 1.0
