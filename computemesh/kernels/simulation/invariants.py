"""What every state of a run keeps however coarse the customer's step is: the free look at all of an output, and the
energies that a report shows.

Energy is not judged here: a symplectic scheme keeps it only as well as the step allows, and an honest worker must
not pay for a customer's close encounter. Momentum, masses and sums are kept by the arithmetic itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from computemesh.kernels.simulation.catalog import Model, Shape

ROUNDING = {"<f8": 1e-7, "<f4": 2e-3}


def conserves(model: Model) -> bool:
    """Whether `broken` looks at anything of this model."""
    return model.system not in ("ode", "reaction_diffusion") or model.variant == "sir"


def broken(model: Model, shape: Shape, begin: np.ndarray, states: np.ndarray) -> str:
    """What a member's shown `states` (frames, width) break, begun at `begin` (width,); empty where nothing.

    Values that are not finite are let pass: a run may blow up, and that too must be computed.
    """
    with np.errstate(all="ignore"):
        if not np.isfinite(states).all():
            return ""
        if model.system in ("nbody", "lennard_jones"):
            return _momentum(model, begin, states)
        if model.system == "lattice_boltzmann":
            drift = np.abs(states.sum(1, dtype=np.float64) - begin.sum(dtype=np.float64)).max()
            cells = shape["width"] * shape["height"]
            return f"mass changes by {drift:.3g} of {cells}" if drift > ROUNDING["<f4"] * cells else ""
        if model.variant == "sir":
            drift = np.abs(states.sum(1) - begin.sum()).max()
            return f"S + I + R changes by {drift:.3g}" if drift > 1e-7 * max(1.0, np.abs(begin).sum()) else ""
        if model.system == "option_pricing":
            half, sums = shape["paths"] / 2, states[:, ::2]
            if (sums < 0).any() or (states[:, 1::2] * half * (1 + 1e-5) < sums**2).any():
                return "a mean of squares is less than the square of the mean"
    return ""


def _momentum(model: Model, begin: np.ndarray, states: np.ndarray) -> str:
    fields = states.reshape(len(states), model.fields, -1)
    mass = fields[:, 6] if model.fields == 7 else np.ones_like(fields[:, 0])
    if model.fields == 7 and (mass != begin.reshape(7, -1)[6]).any():
        return "a mass changes"
    start = (mass[0] * begin.reshape(model.fields, -1)[3:6]).sum(1)
    carried = mass[:, None] * fields[:, 3:6]
    drift = np.abs(carried.sum(2) - start).max(1) / np.abs(carried).sum((1, 2)).clip(1e-300)
    return f"momentum changes by {drift.max():.3g} of what moves" if drift.max() > ROUNDING[model.dtype] else ""


def energies(
    model: Model, values: Mapping[str, float], states: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(kinetic, potential) of states (frames, width) of an N-body or Lennard-Jones run, each (frames,)."""
    fields = states.reshape(len(states), model.fields, -1)
    mass = fields[0, 6] if model.fields == 7 else np.ones(fields.shape[2])
    kinetic = 0.5 * (mass * (fields[:, 3:6] ** 2).sum(1)).sum(1)
    upper = np.triu_indices(fields.shape[2], 1)
    potential = np.empty(len(states))
    for at, place in enumerate(fields[:, :3]):
        apart = place[:, upper[0]] - place[:, upper[1]]
        if model.system == "nbody":
            distance = np.sqrt((apart**2).sum(0) + values["softening"] ** 2)
            potential[at] = -values["gravity"] * (mass[upper[0]] * mass[upper[1]] / distance).sum()
            continue
        edge, cutoff = (fields.shape[2] / values["density"]) ** (1 / 3), values["cutoff"]
        apart -= edge * np.round(apart / edge)
        distance = np.sqrt((apart**2).sum(0))
        distance = distance[distance < cutoff]
        at_cutoff = 4 * (cutoff**-12 - cutoff**-6)
        slope = 24 * (2 * cutoff**-13 - cutoff**-7)
        potential[at] = (4 * (distance**-12 - distance**-6) - at_cutoff + (distance - cutoff) * slope).sum()
    return kinetic, potential
