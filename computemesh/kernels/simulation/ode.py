"""Ordinary differential equations through diffrax: Tsitouras 5(4) with a constant step, for one member.

The step is constant because an adaptive one is a yes or no at each step, which rounding flips: two honest devices
would then differ by the solver's tolerance instead of by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
from jax import Array, lax

Field = Callable[[Array, Array, Array], tuple[Array, ...]]

# (t, y, constants in the catalog's order) -> dy/dt
EQUATIONS: dict[str, Field] = {
    "lorenz": lambda t, y, c: (c[0] * (y[1] - y[0]), y[0] * (c[1] - y[2]) - y[1], y[0] * y[1] - c[2] * y[2]),
    "rossler": lambda t, y, c: (-y[1] - y[2], y[0] + c[0] * y[1], c[1] + y[2] * (y[0] - c[2])),
    "van_der_pol": lambda t, y, c: (y[1], c[0] * (1 - y[0] * y[0]) * y[1] - y[0]),
    "lotka_volterra": lambda t, y, c: (c[0] * y[0] - c[1] * y[0] * y[1], c[3] * y[0] * y[1] - c[2] * y[1]),
    "sir": lambda t, y, c: (-c[0] * y[0] * y[1], c[0] * y[0] * y[1] - c[1] * y[1], c[1] * y[1]),
    "duffing": lambda t, y, c: (
        y[1], c[3] * jnp.cos(c[4] * t) - c[2] * y[1] - c[0] * y[0] - c[1] * y[0] * y[0] * y[0],
    ),
    "fitzhugh_nagumo": lambda t, y, c: (
        y[0] - y[0] * y[0] * y[0] / 3 - y[1] + c[3], (y[0] + c[0] - c[1] * y[1]) / c[2],
    ),
    "brusselator": lambda t, y, c: (
        c[0] + y[0] * y[0] * y[1] - (c[1] + 1) * y[0], c[1] * y[0] - y[0] * y[0] * y[1],
    ),
}  # fmt: skip


def integrate(equation: str, state: Array, dt: Array, constants: Array, first: Array, steps: Array) -> Array:
    """state (n,) at time `first * dt` -> the state `steps` later. `first` is a whole number as a float."""
    solver, field = diffrax.Tsit5(), EQUATIONS[equation]

    def slope(t: Any, y: Any, args: Any) -> Array:
        return jnp.stack(field(t, y, args))

    term = diffrax.ODETerm(slope)
    begin = solver.init(term, first * dt, (first + 1) * dt, state, constants)

    def step(i: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        y, memory = carry
        t = (first + i) * dt
        y, _, _, memory, _ = solver.step(term, t, t + dt, y, constants, memory, made_jump=False)
        return y, memory

    found: Array = lax.fori_loop(0, steps, step, (state, begin))[0]
    return found
