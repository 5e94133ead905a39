"""Bounding volume hierarchies of triangles, built in numpy, laid out to be walked without a stack.

The tree is binned by the surface area heuristic (I. Wald, "On fast construction of SAH-based bounding volume
hierarchies", 2007), all nodes of a level at once. It is then written out in depth-first order, each box followed
by what it holds and linked to what comes after all that, so that a ray needs no stack: on a hit it goes to the
next row, on a miss along the link. As the order decides how early the nearest hit is found, it is written out six
times, once per main direction of a ray, the nearer child first (T. Hachisuka, "Implementing a photorealistic
rendering system using GLSL", 2015: multiple-threaded BVH).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAF_TRIANGLES = 3
BINS = 16
ROW_FLOATS = 12
"""A row is float32: low xyz, link, high xyz, -1, four unused for a box; corner 0, link, edge 1, triangle number,
edge 2, one unused for a triangle. Links and numbers stay below 2**24, which float32 holds exactly."""
DIRECTIONS = 6
"""Orders a hierarchy is written in: 2 * axis + (1 for rays towards the negative side)."""


class _Level(NamedTuple):
    """Nodes of one depth: boxes (n, 3) each, their triangles [first, first + count) in the final order, and
    `child`, the index of the first of two children in the next level, -1 in a leaf."""

    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    count: np.ndarray
    child: np.ndarray


def build(triangles: np.ndarray) -> np.ndarray:
    """Rows of the hierarchy over `triangles` (n, 3 corners, 3) float32, n >= 1: (6, rows, 12) float32.

    Every order holds the same rows. Deterministic: no chance, no threads, stable sorts.
    """
    low, high = triangles.min(axis=1), triangles.max(axis=1)
    levels, order = _split_levels(low, high)
    sizes = _subtree_rows(levels)
    rows = np.zeros((DIRECTIONS, int(sizes[0][0]), ROW_FLOATS), np.float32)
    for direction in range(DIRECTIONS):
        _write_order(rows[direction], levels, sizes, triangles, order, direction)
    return rows


def _split_levels(low: np.ndarray, high: np.ndarray) -> tuple[list[_Level], np.ndarray]:
    """The tree's levels, root first, and the order of triangles that its leaves refer to."""
    order = np.arange(len(low))
    first, count = np.array([0]), np.array([len(low)])
    levels: list[_Level] = []
    centre = (low + high) * np.float32(0.5)
    while len(first):
        members = _members(first, count)
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        box_low = np.minimum.reduceat(low[order[members]], starts)
        box_high = np.maximum.reduceat(high[order[members]], starts)
        split = count > LEAF_TRIANGLES
        child = np.where(split, 2 * (np.cumsum(split) - 1), -1)
        levels.append(_Level(box_low, box_high, first, count, child))
        first, count = first[split], count[split]
        if len(first):
            members = _members(first, count)
            node = np.repeat(np.arange(len(first)), count)
            inside = order[members]
            right = _choose_sides(low[inside], high[inside], centre[inside], node, count)
            order[members] = inside[np.argsort(2 * node + right, kind="stable")]
            on_left = np.bincount(node, weights=~right, minlength=len(first)).astype(np.int64)
            first = np.stack([first, first + on_left], axis=1).reshape(-1)
            count = np.stack([on_left, count - on_left], axis=1).reshape(-1)
    return levels, order


def _members(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ..., first[0] + count[0] - 1, first[1], ..."""
    shift = np.repeat(first - (np.cumsum(count) - count), count)
    return np.arange(len(shift)) + shift


def _choose_sides(
    low: np.ndarray, high: np.ndarray, centre: np.ndarray, node: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Which triangles go to the right child, bool (n,), of those listed node by node; both children get some."""
    nodes = len(count)
    starts = np.cumsum(count) - count
    least = np.minimum.reduceat(centre, starts)
    extent = np.maximum.reduceat(centre, starts) - least
    scale = np.where(extent > 0, BINS / np.maximum(extent, np.float32(1e-30)), 0)
    bins = np.clip((centre - least[node]) * scale[node], 0, BINS - 1).astype(np.int64)
    cost = np.stack([_split_costs(low, high, node * BINS + bins[:, axis], nodes) for axis in range(3)], axis=1)
    best = cost.reshape(nodes, -1).argmin(axis=1)
    axis, cut = np.divmod(best, BINS - 1)
    right = bins[np.arange(len(node)), axis[node]] > cut[node]
    # Where all centres share one bin (coincident triangles) no cut separates them: halve by number.
    hopeless = np.isinf(cost.reshape(nodes, -1).min(axis=1))
    rank = np.arange(len(node)) - starts[node]
    return np.where(hopeless[node], rank >= (count // 2)[node], right)


def _split_costs(low: np.ndarray, high: np.ndarray, slot: np.ndarray, nodes: int) -> np.ndarray:
    """Area-weighted counts (nodes, BINS - 1) of cutting after each bin, inf where a side is empty.

    `slot` = node * BINS + bin of each triangle.
    """
    slots = nodes * BINS
    count = np.bincount(slot, minlength=slots).reshape(nodes, BINS)
    bounds = np.full((2, 3, slots), np.inf, np.float32)
    for axis in range(3):
        np.minimum.at(bounds[0, axis], slot, low[:, axis])
        np.minimum.at(bounds[1, axis], slot, -high[:, axis])
    bounds = bounds.reshape(2, 3, nodes, BINS)
    left = _areas(np.minimum.accumulate(bounds, axis=-1))[:, :-1]
    right = _areas(np.minimum.accumulate(bounds[..., ::-1], axis=-1)[..., ::-1])[:, 1:]
    on_left = np.cumsum(count, axis=1)[:, :-1]
    on_right = count.sum(axis=1, keepdims=True) - on_left
    # An empty side's area is that of an inverted infinite box: keep it out of the product.
    usable = (on_left > 0) & (on_right > 0)
    cost = np.where(usable, left, 0) * on_left + np.where(usable, right, 0) * on_right
    return np.where(usable, cost, np.inf)


def _areas(bounds: np.ndarray) -> np.ndarray:
    """Half surface areas of boxes given as (2, 3, ...): lows and negated highs; 0 where empty."""
    x, y, z = np.where(np.isinf(bounds[0]), 0, -bounds[1] - bounds[0])
    return x * y + y * z + z * x


def _subtree_rows(levels: list[_Level]) -> list[np.ndarray]:
    """Rows each node's subtree takes: itself, and its triangles or its children's."""
    sizes: list[np.ndarray] = []
    for level in reversed(levels):
        size = 1 + np.where(level.child < 0, level.count, 0)
        inner = level.child >= 0
        if inner.any():
            below = sizes[-1]
            size[inner] += below[level.child[inner]] + below[level.child[inner] + 1]
        sizes.append(size)
    return sizes[::-1]


def _write_order(
    rows: np.ndarray,
    levels: list[_Level],
    sizes: list[np.ndarray],
    triangles: np.ndarray,
    order: np.ndarray,
    direction: int,
) -> None:
    """Fill rows (n, 12) for rays whose main direction is `direction`."""
    axis, sign = direction // 2, 1 - 2 * (direction % 2)
    at = np.array([0])
    for depth, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        rows[at, 0:3], rows[at, 4:7] = level.low, level.high
        rows[at, 3], rows[at, 7] = at + size, -1
        leaf = level.child < 0
        where = _members(at[leaf] + 1, level.count[leaf])
        number = order[_members(level.first[leaf], level.count[leaf])]
        corners = triangles[number]
        rows[where, 0:3], rows[where, 3] = corners[:, 0], where + 1
        rows[where, 4:7], rows[where, 7] = corners[:, 1] - corners[:, 0], number
        rows[where, 8:11] = corners[:, 2] - corners[:, 0]
        if leaf.all():
            return
        below, child = levels[depth + 1], level.child[~leaf]
        middle = sign * (below.low + below.high)[:, axis]
        swap = middle[child] > middle[child + 1]
        near, far = child + swap, child + 1 - swap
        start, at = at[~leaf] + 1, np.zeros(len(below.child), np.int64)
        at[near], at[far] = start, start + sizes[depth + 1][near]
