"""Rays against a hierarchy of `bvh`, many lanes in step."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from computemesh.kernels.rendering.bvh import DIRECTIONS, ROW_FLOATS
from computemesh.kernels.rendering.vectors import Vec, cross, dot, take, vec


class Rays(NamedTuple):
    """origin, direction (unit or not); `reach` (lanes,): the largest distance of interest, negative = no ray;
    `any_hit` (lanes,) bool: any hit will do, as for shadow rays."""

    origin: Vec
    direction: Vec
    reach: Array
    any_hit: Array


class Hits(NamedTuple):
    """`triangle` (lanes,) int32, -1 = none; `distance` along the ray; barycentric `u`, `v` of corners 1 and 2."""

    triangle: Array
    distance: Array
    u: Array
    v: Array


def _order_of(direction: Vec) -> Array:
    """Which of the six orders suits: 2 * main axis + 1 if towards its negative side; (lanes,) int32."""
    x, y, z = jnp.abs(direction.x), jnp.abs(direction.y), jnp.abs(direction.z)
    axis = jnp.where((x >= y) & (x >= z), 0, jnp.where(y >= z, 1, 2))
    along = jnp.where(axis == 0, direction.x, jnp.where(axis == 1, direction.y, direction.z))
    return (2 * axis + (along < 0)).astype(jnp.int32)


def _reciprocal(x: Array) -> Array:
    """1 / x, a huge number of the right sign where x is 0: slabs then never multiply 0 by infinity."""
    return 1 / jnp.where(jnp.abs(x) < 1e-20, jnp.where(x < 0, -1e-20, 1e-20), x)


def _box(row: Array, origin: Vec, inverse: Vec, nearest: Array) -> Array:
    """Whether rays enter the box before `nearest` (slab test, T. Kay and J. Kajiya 1986).

    The far side is moved out by 4 units in the last place, so that rounding never loses a box (Ize, JCGT 2:2, 2013).
    """
    low, high = (vec(row, 0) - origin) * inverse, (vec(row, 4) - origin) * inverse
    enter = jnp.maximum(jnp.maximum(jnp.minimum(low.x, high.x), jnp.minimum(low.y, high.y)), jnp.minimum(low.z, high.z))
    leave = jnp.minimum(jnp.minimum(jnp.maximum(low.x, high.x), jnp.maximum(low.y, high.y)), jnp.maximum(low.z, high.z))
    return (enter <= leave * 1.0000005) & (leave >= 0) & (enter < nearest)


def _triangle(row: Array, origin: Vec, direction: Vec) -> tuple[Array, Array, Array, Array]:
    """Distance, u, v and validity (T. Moeller and B. Trumbore 1997); both sides count."""
    edge1, edge2 = vec(row, 4), vec(row, 8)
    p = cross(direction, edge2)
    determinant = dot(edge1, p)
    inverse = 1 / jnp.where(determinant == 0, 1.0, determinant)
    s = origin - vec(row, 0)
    u = dot(s, p) * inverse
    q = cross(s, edge1)
    v = dot(direction, q) * inverse
    distance = dot(edge2, q) * inverse
    return distance, u, v, (determinant != 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)


def trace(rows: Array, used: Array, rays: Rays, steps: int = 1) -> Hits:
    """The nearest hit of each ray below `reach`, or the first found where `any_hit`.

    rows (6, n, 12) float32 of `bvh.build`, padded to any n; used () int32, the rows that count. Each lane walks
    its order from row 0; all stop when the last has passed row `used`. `steps` rows are visited between two looks
    at whether all are done: 1 on CPUs, where XLA derives shared values again in every step fused with another (4
    steps took twice the time of 1); more where each look costs a launch.
    """
    flat = rows.reshape(-1, ROW_FLOATS)
    base = _order_of(rays.direction) * (flat.shape[0] // DIRECTIONS)
    inverse = Vec(*map(_reciprocal, rays.direction))
    zero = jnp.zeros_like(rays.reach)
    last = used - 1

    def step(state: tuple[Array, Hits]) -> tuple[Array, Hits]:
        at, best = state
        row = take(flat, base + jnp.minimum(at, last))
        working = at < used
        link, triangle = row[:, 3].astype(jnp.int32), row[:, 7].astype(jnp.int32)
        is_box = triangle < 0
        distance, u, v, valid = _triangle(row, rays.origin, rays.direction)
        found = working & ~is_box & valid & (distance < best.distance)
        entered = is_box & _box(row, rays.origin, inverse, best.distance)
        best = Hits(
            jnp.where(found, triangle, best.triangle),
            jnp.where(found, distance, best.distance),
            jnp.where(found, u, best.u),
            jnp.where(found, v, best.v),
        )
        following = jnp.where(entered, at + 1, link)
        at = jnp.where(found & rays.any_hit, used, jnp.where(working, following, at))
        return at, best

    def visit(state: tuple[Array, Hits]) -> tuple[Array, Hits]:
        for _ in range(steps):
            state = step(state)
        return state

    start = jnp.where(rays.reach > 0, 0, used).astype(jnp.int32)
    none = Hits(jnp.full_like(start, -1), rays.reach, zero, zero)
    return lax.while_loop(lambda state: jnp.any(state[0] < used), visit, (start, none))[1]
