"""What single limits do not say: combinations of parameters that no run can mean."""

from __future__ import annotations

from collections.abc import Sequence

from computemesh.kernels.simulation.catalog import Model, Shape, box_edge, relaxation_time
from computemesh.kernels.simulation.sweep import Axis, Problem

MIN_RELAXATION = 0.51
MIN_CYLINDER = 4.0


def contradictions(model: Model, shape: Shape, axes: Sequence[Axis]) -> list[Problem]:
    """(field, text) of each, at the worst corner of a sweep."""
    low = {p.name: min(axis.ends) for p, axis in zip(model.parameters, axes, strict=True)}
    high = {p.name: max(axis.ends) for p, axis in zip(model.parameters, axes, strict=True)}
    if model.system == "lennard_jones":
        edge = box_edge(high["density"], shape)
        if 2 * high["cutoff"] > edge:
            text = f"cutoff must be at most half the box's edge, {edge / 2:.4g}, not {high['cutoff']:g}"
            return [("cutoff", f"{text}: raise cells ({shape['cells']}) or lower density ({high['density']:g})")]
    if model.system == "lattice_boltzmann":
        across = low["diameter"] * shape["height"]
        if across < MIN_CYLINDER:
            text = f"diameter {low['diameter']:g} of height {shape['height']} is a cylinder of {across:.3g} cells"
            return [("diameter", f"{text}; it needs {MIN_CYLINDER:g}")]
        tau = relaxation_time(high["reynolds"], low["inflow"], low["diameter"], shape)
        if tau < MIN_RELAXATION:
            most = 3 * low["inflow"] * across / (MIN_RELAXATION - 0.5)
            text = f"reynolds must be at most {most:.4g} at inflow {low['inflow']:g} and diameter {across:.3g} cells"
            text += f", not {high['reynolds']:g}: the relaxation time would be {tau:.4g}, below {MIN_RELAXATION}"
            return [("reynolds", f"{text}, and the flow unstable; raise height, diameter or inflow")]
    return []
