"""Steps of N-body gravity and Lennard-Jones molecular dynamics for one member; `engine` adds the lanes.

Sums over pairs are elementwise products and one reduction, no matrix product: what a member gives must not depend
on which lane it is in, and tensor cores must not lower its precision.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

# Yoshida, Phys. Lett. A 150 (1990): three leapfrogs whose errors of third order cancel.
_W1 = 1 / (2 - 2 ** (1 / 3))
YOSHIDA = (_W1, 1 - 2 * _W1, _W1)


def velocity_verlet(
    acceleration: Callable[[Array], Array], place: Array, motion: Array, dt: Array, steps: Array,
    weights: tuple[float, ...],
) -> tuple[Array, Array]:  # fmt: skip
    """`steps` kick-drift-kick steps of size dt, each composed of leapfrogs of `weights[i] * dt`; symplectic.

    One evaluation of the acceleration per leapfrog: a step's last kick is from where the next one's first is.
    """

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        place, motion, pull = carry
        for weight in weights:
            motion = motion + (0.5 * weight * dt) * pull
            place = place + (weight * dt) * motion
            pull = acceleration(place)
            motion = motion + (0.5 * weight * dt) * pull
        return place, motion, pull

    place, motion, _ = lax.fori_loop(0, steps, step, (place, motion, acceleration(place)))
    return place, motion


def nbody(state: Array, gravity: Array, dt: Array, softening: Array, steps: Array, order: int) -> Array:
    """state (7, N): position, velocity, mass -> the state `steps` later. Forces are Plummer-softened gravity."""
    mass, count = state[6], state.shape[1]
    itself = jnp.eye(count, dtype=bool)

    def acceleration(place: Array) -> Array:
        apart = place[:, None, :] - place[:, :, None]  # [axis, i, j]: from i to j
        square = apart[0] ** 2 + apart[1] ** 2 + apart[2] ** 2 + softening**2
        square = jnp.where(itself, 1.0, square)
        pull = jnp.where(itself, 0.0, gravity * mass / (square * jnp.sqrt(square)))
        return jnp.stack([jnp.sum(pull * apart[axis], axis=1) for axis in range(3)])

    weights = YOSHIDA if order == 4 else (1.0,)
    place, motion = velocity_verlet(acceleration, state[:3], state[3:6], dt, steps, weights)
    return jnp.concatenate([place, motion, mass[None]])


def lennard_jones(state: Array, edge: Array, cutoff: Array, dt: Array, steps: Array) -> Array:
    """state (6, N): position, velocity -> the state `steps` later, in reduced units, by minimum images.

    The force is shifted to 0 at the cutoff (Toxvaerd and Dyre 2011), so that energy is conserved across it.
    Positions are not folded back into the box: a particle at its wall would jump by an edge at a rounding error.
    """
    count = state.shape[1]
    itself = jnp.eye(count, dtype=bool)
    at_cutoff = 24 * (2 * cutoff**-13 - cutoff**-7)

    def acceleration(place: Array) -> Array:
        apart = place[:, :, None] - place[:, None, :]  # [axis, i, j]: from j to i
        apart = apart - edge * jnp.round(apart / edge)
        square = apart[0] ** 2 + apart[1] ** 2 + apart[2] ** 2
        near = (square < cutoff**2) & ~itself
        inverse = 1 / jnp.where(near, square, 1.0)
        sixth = inverse**3
        push = jnp.where(near, 24 * inverse * sixth * (2 * sixth - 1) - at_cutoff * jnp.sqrt(inverse), 0.0)
        return jnp.stack([jnp.sum(push * apart[axis], axis=1) for axis in range(3)])

    place, motion = velocity_verlet(acceleration, state[:3], state[3:], dt, steps, (1.0,))
    return jnp.concatenate([place, motion])
