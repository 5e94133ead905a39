"""Steps of Gray-Scott reaction-diffusion and of a D2Q9 lattice Boltzmann flow for one member, float32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from computemesh.kernels.simulation.starts import VELOCITIES, WEIGHTS

OPPOSITE = np.array([0, 3, 4, 1, 2, 7, 8, 5, 6])


def gray_scott(
    state: Array, dt: Array, feed: Array, kill: Array, diffusion_u: Array, diffusion_v: Array, steps: Array
) -> Array:
    """state (2, H, W): u and v -> the state `steps` explicit Euler steps later (Pearson, Science 261, 1993).

    Diffusion is the five-point Laplacian on a torus: what one cell loses another gains.
    """

    def laplacian(grid: Array) -> Array:
        around = jnp.roll(grid, 1, 0) + jnp.roll(grid, -1, 0) + jnp.roll(grid, 1, 1) + jnp.roll(grid, -1, 1)
        return around - 4 * grid

    def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = carry
        reaction = u * v * v
        return (
            u + dt * (diffusion_u * laplacian(u) - reaction + feed * (1 - u)),
            v + dt * (diffusion_v * laplacian(v) + reaction - (feed + kill) * v),
        )

    return jnp.stack(lax.fori_loop(0, steps, step, (state[0], state[1])))


def _equilibrium(excess: Array, ux: Array, uy: Array) -> list[Array]:
    """Equilibrium populations less those at rest at density 1; `excess` is the density minus 1."""
    square, found = 1.5 * (ux * ux + uy * uy), []
    for weight, (x, y) in zip(WEIGHTS.tolist(), VELOCITIES.tolist(), strict=True):
        along = x * ux + y * uy
        found.append(weight * (excess + (1 + excess) * (3 * along + 4.5 * along * along - square)))
    return found


def cylinder(height: int, width: int, diameter: Array) -> Array:
    """(H, W) bool: inside the cylinder, a quarter of the width from the inflow and half a cell off the axis."""
    rows, columns = np.mgrid[:height, :width]
    across, along = rows - (height / 2 - 0.5), columns - width / 4
    return jnp.asarray(across**2 + along**2, diameter.dtype) < (diameter / 2) ** 2


def lattice_boltzmann(state: Array, tau: Array, inflow: Array, diameter: Array, steps: Array) -> Array:
    """state (9, H, W): h_i = f_i - w_i after streaming -> the state `steps` later (BGK; Qian et al. 1992).

    The box is periodic. The cylinder bounces back; the first column takes the inflow's velocity and keeps its own
    density, which ends the wake before it comes round and leaves the mass of the whole as it was, to rounding.
    """
    height, width = state.shape[1:]
    solid = cylinder(height, width, diameter)
    edge = jnp.asarray(np.arange(width) == 0)[None, :]

    def step(_: Array, h: Array) -> Array:
        excess = h[0] + h[1] + h[2] + h[3] + h[4] + h[5] + h[6] + h[7] + h[8]
        ux = (h[1] - h[3] + h[5] - h[6] - h[7] + h[8]) / (1 + excess)
        uy = (h[2] - h[4] + h[5] + h[6] - h[7] - h[8]) / (1 + excess)
        rest = _equilibrium(excess, ux, uy)
        entering = _equilibrium(excess, jnp.broadcast_to(inflow, excess.shape), jnp.zeros_like(excess))
        after = []
        for i in range(9):
            collided = jnp.where(edge, entering[i], h[i] - (h[i] - rest[i]) / tau)
            collided = jnp.where(solid, h[OPPOSITE[i]], collided)
            x, y = VELOCITIES[i].tolist()
            after.append(jnp.roll(collided, (y, x), (0, 1)))
        return jnp.stack(after)

    found: Array = lax.fori_loop(0, steps, step, state)
    return found
