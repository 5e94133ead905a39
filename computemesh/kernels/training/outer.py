"""The outer step of DiLoCo (Douillard et al. 2023, arXiv:2311.08105): many workers' deltas to one step.

Only additions, multiplications, divisions, square roots and comparisons of single numbers, in a fixed order, in
float64: IEEE 754 fixes their bits, so every machine folds the same outputs to the same weights.

A delta is what a shard's local steps changed. One that passed its audit may still be poisoned (k of n segments were
looked at), so no single one may decide: deltas that are not finite are left out, each is scaled down to the median
of their norms (norm clipping; Sun et al. 2019), and from three deltas on the mean is trimmed coordinate by coordinate
by a quarter, at least by one, on either side (Yin et al. 2018), which withstands as many liars. Of two, one can still
undo what the other did, never outweigh it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TRIMMED_FROM = 3


def tree_sum(values: np.ndarray) -> float:
    """The sum of a float64 vector by halving, so that the order of additions is no library's choice."""
    size = 1 << max(len(values) - 1, 0).bit_length()
    now = np.zeros(size, np.float64)
    now[: len(values)] = values
    while len(now) > 1:
        now = now[: len(now) // 2] + now[len(now) // 2 :]
    return float(now[0])


def aggregate(deltas: Sequence[np.ndarray]) -> np.ndarray | None:
    """One delta (P,) float64 of a round's deltas (P,) float64; None where none of them is finite."""
    finite = [delta for delta in deltas if np.isfinite(delta).all()]
    if not finite:
        return None
    norms = [float(np.sqrt(tree_sum(delta * delta))) for delta in finite]
    limit = sorted(norms)[(len(norms) - 1) // 2]
    clipped = np.stack([d * (limit / n) if n > limit else d for d, n in zip(finite, norms, strict=True)])
    cut = max(len(finite) // 4, 1) if len(finite) >= TRIMMED_FROM else 0
    if cut:
        clipped = np.sort(clipped, axis=0)[cut : len(finite) - cut]
    total = np.zeros_like(clipped[0])
    for row in clipped:
        total = total + row
    return np.asarray(total / len(clipped))


def step(
    weights: np.ndarray, momentum: np.ndarray, ends: Sequence[np.ndarray], rate: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """(weights, momentum) of the next round, both (P,) float32, from a round's start and its shards' end weights.

    Nesterov's momentum as DiLoCo uses it: m = decay m + d; w = w + rate (d + decay m), d the aggregated delta.
    """
    start = weights.astype(np.float64)
    with np.errstate(all="ignore"):  # a poisoned end may overflow; it is left out
        delta = aggregate([end.astype(np.float64) - start for end in ends])
    if delta is None:
        return weights, momentum
    moved = decay * momentum.astype(np.float64) + delta
    now = start + rate * (delta + decay * moved)
    with np.errstate(all="ignore"):
        found = now.astype(np.float32), moved.astype(np.float32)
    return found if all(np.isfinite(part).all() for part in found) else (weights, momentum)
