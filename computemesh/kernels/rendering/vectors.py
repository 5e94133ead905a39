"""Three-component vectors of many lanes: structure of arrays, so that every operation is one over lanes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Vec(NamedTuple):
    """x, y, z, each (lanes,) float32 or a scalar. A pytree. `*` is by component."""

    x: Array
    y: Array
    z: Array

    def __add__(self, other: Vec) -> Vec:  # type: ignore[override]
        return Vec(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: Vec) -> Vec:
        return Vec(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, other: Vec | Array | float) -> Vec:  # type: ignore[override]
        if isinstance(other, Vec):
            return Vec(self.x * other.x, self.y * other.y, self.z * other.z)
        return Vec(self.x * other, self.y * other, self.z * other)

    def __neg__(self) -> Vec:
        return Vec(-self.x, -self.y, -self.z)


def vec(row: Array, at: int = 0) -> Vec:
    """Entries at, at + 1, at + 2 of the last axis."""
    return Vec(row[..., at], row[..., at + 1], row[..., at + 2])


def take(table: Array, index: Array) -> Array:
    """Rows of a table; the caller keeps indices inside."""
    return table.at[index].get(mode="promise_in_bounds")


def dot(a: Vec, b: Vec) -> Array:
    return a.x * b.x + a.y * b.y + a.z * b.z


def cross(a: Vec, b: Vec) -> Vec:
    return Vec(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x)


def normalize(a: Vec) -> Vec:
    """a / |a|; a zero vector stays zero."""
    return a * (1 / jnp.sqrt(jnp.maximum(dot(a, a), 1e-30)))


def where(condition: Array, a: Vec, b: Vec) -> Vec:
    return Vec(jnp.where(condition, a.x, b.x), jnp.where(condition, a.y, b.y), jnp.where(condition, a.z, b.z))


def mix(a: Vec, b: Vec, t: Array) -> Vec:
    """a at t = 0, b at t = 1."""
    return a + (b - a) * t


def largest(a: Vec) -> Array:
    return jnp.maximum(a.x, jnp.maximum(a.y, a.z))


def luminance(a: Vec) -> Array:
    """Relative luminance of linear Rec. 709 colour (ITU-R BT.709)."""
    return 0.2126 * a.x + 0.7152 * a.y + 0.0722 * a.z


def frame(n: Vec) -> tuple[Vec, Vec]:
    """Two unit vectors that make a right-handed frame with the unit vector n (Duff et al., JCGT 6:1, 2017)."""
    sign = jnp.where(n.z >= 0, 1.0, -1.0)
    a = -1 / (sign + n.z)
    b = n.x * n.y * a
    return Vec(1 + sign * n.x * n.x * a, sign * b, -sign * n.x), Vec(b, sign + n.y * n.y * a, -n.y)


def along(n: Vec, local: Vec) -> Vec:
    """A vector given in the frame of n (z along n) in world coordinates."""
    tangent, bitangent = frame(n)
    return tangent * local.x + bitangent * local.y + n * local.z
