"""When two float arrays are the same result up to rounding."""

from __future__ import annotations

import numpy as np


def close(x: np.ndarray, y: np.ndarray, tolerance: float) -> bool:
    """Whether |x - y| <= tolerance * (|y| + rms(y)) everywhere, rms over the finite values of y.

    x, y: float arrays of one shape, y the trusted one. The root mean square lets entries that cancelled to nearly
    zero carry the rounding of their neighbours. Infinities and NaNs must stand at the same places.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    finite = np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
        return False
    x, y = x[finite], y[finite]
    largest = np.abs(y).max(initial=0.0)
    rms = largest * np.sqrt(np.mean((y / largest) ** 2)) if largest > 0 else 0.0  # squares of 1e200 overflow
    with np.errstate(over="ignore"):
        return bool((np.abs(x - y) <= tolerance * (np.abs(y) + rms)).all())
