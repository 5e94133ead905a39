"""Members side by side in lanes: the one jitted function that runs segments, for whoever runs or checks them.

Its shape (`lanes` states) is part of a job. Each lane has its own start, parameters, time and key, so that units
of different members and segments, drawn by a challenge, share one call of the very function that made them; a
lane's bits do not depend on the others (tests/workloads/test_simulation.py holds that).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from computemesh.kernels.simulation import fields, montecarlo, particles
from computemesh.kernels.simulation.catalog import BODIES, Model, Shape

Step = Callable[[Array, Array, Array, Array, Array], Array]
traces: list[tuple[str, str, int]] = []
"""One entry per compilation of this process: system, variant, lanes."""


def precise() -> AbstractContextManager[Any]:
    """float64 for the caller's block, whatever the process does elsewhere."""
    return jax.enable_x64(True)  # type: ignore[no-any-return]


def _member(model: Model, shape: Shape) -> Step:
    """(state (width,), parameters, first step, key, steps) -> state, for one member."""

    def nbody(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        count = BODIES[model.variant] or shape["bodies"]
        return particles.nbody(state.reshape(7, count), p[1], p[0], p[2], steps, shape["order"])

    def lennard_jones(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        count = 4 * shape["cells"] ** 3
        edge = (count / p[1]) ** (1 / 3)
        return particles.lennard_jones(state.reshape(6, count), edge, p[3], p[0], steps)

    def reaction_diffusion(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        return fields.gray_scott(
            state.reshape(2, shape["height"], shape["width"]), p[0], p[1], p[2], p[3], p[4], steps
        )

    def lattice_boltzmann(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        diameter = p[2] * shape["height"]
        tau = 0.5 + 3 * p[1] * diameter / p[0]
        return fields.lattice_boltzmann(state.reshape(9, shape["height"], shape["width"]), tau, p[1], diameter, steps)

    def ode(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        from computemesh.kernels.simulation.ode import integrate

        return integrate(model.variant, state, p[0], p[1:], first, steps)

    def option_pricing(state: Array, p: Array, first: Array, key: Array, steps: Array) -> Array:
        precision = jnp.float32 if state.dtype == jnp.float64 else state.dtype
        return state + montecarlo.option_sums(model.variant, p, key, steps, shape["paths"], precision)

    return {
        "nbody": nbody, "lennard_jones": lennard_jones, "reaction_diffusion": reaction_diffusion,
        "lattice_boltzmann": lattice_boltzmann, "ode": ode, "option_pricing": option_pricing,
    }[model.system]  # fmt: skip


@cache
def _compiled(model: Model, shape: tuple[tuple[str, int], ...], lanes: int) -> Callable[..., Array]:
    member = _member(model, dict(shape))

    def run(states: Array, parameters: Array, first: Array, keys: Array, steps: Array) -> Array:
        traces.append((model.system, model.variant, lanes))
        parameters = parameters.astype(states.dtype)
        first = first.astype(states.dtype)
        return jax.vmap(lambda s, p, f, k: member(s, p, f, k, steps).reshape(-1))(states, parameters, first, keys)

    return jax.jit(run)


def advance(
    model: Model, shape: Shape, states: np.ndarray, parameters: np.ndarray, first: np.ndarray, keys: np.ndarray,
    steps: int,
) -> Array:  # fmt: skip
    """Run every lane `steps` steps on JAX's default device, within `precise()`.

    states (lanes, width) in the model's dtype, parameters (lanes, P) float64, first (lanes,) float64: the steps done
    before, keys (lanes, 2) uint32 -> (lanes, width). Compiled once per model, shape and number of lanes.
    """
    run = _compiled(model, tuple(sorted(shape.items())), len(states))
    return run(states, parameters, first, keys, np.int32(steps))
