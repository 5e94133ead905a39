"""A simulation's files: arrays, a summary and a plot. `animation` draws what moves."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from computemesh.kernels.simulation import animation as animations
from computemesh.kernels.simulation import black_scholes, panels
from computemesh.kernels.simulation.invariants import energies
from computemesh.kernels.simulation.run import Run

MAX_ENERGY_PAIRS = 2 * 10**8


def option_prices(run: Run) -> dict[str, np.ndarray]:
    """Per point of the sweep: price, standard error, 95 % interval, closed form (NaN where there is none)."""
    point = run.members // run.ensemble
    numbers, at = np.unique(point, return_inverse=True)
    sums = np.zeros((len(numbers), 4))
    np.add.at(sums, at, run.states[0])
    pairs = np.bincount(at) * run.shape["paths"] / 2
    first = np.array([np.argmax(at == i) for i in range(len(numbers))])
    scale = run.column("spot")[first] * np.exp(-run.column("rate")[first] * run.column("maturity")[first])
    mean = sums[:, 0] / pairs
    error = np.sqrt((sums[:, 1] / pairs - mean**2).clip(0) / (pairs - 1))
    price, error = scale * mean, scale * error
    exact = np.full(len(numbers), np.nan)
    if run.model.variant in black_scholes.SIGNS:
        exact[:] = [black_scholes.price(run.model.variant, run.named(int(member))) for member in first]
    return {
        "price": price, "standard_error": error, "ci95_low": price - 1.96 * error, "ci95_high": price + 1.96 * error,
        "black_scholes": exact, "member": first,
    }  # fmt: skip


def statistics(run: Run) -> dict[str, np.ndarray]:
    """What the summary and the archive say beyond the states."""
    if run.model.system == "option_pricing":
        return option_prices(run)
    found: dict[str, np.ndarray] = {}
    if run.model.system == "ode":
        found = {"mean": run.states.mean(1), "standard_deviation": run.states.std(1)}
    pairs = run.frames * len(run.members) * run.state_shape[-1] ** 2
    if run.model.fields in (6, 7) and pairs <= MAX_ENERGY_PAIRS:
        total = []
        for member in range(len(run.members)):
            history = run.history(member).reshape(run.moments, -1)
            total.append(sum(energies(run.model, run.named(member), history)))
        found["energy"] = np.array(total)
        scale = np.abs(found["energy"][:, :1]).clip(1e-300)
        found["relative_energy_error"] = (found["energy"] - found["energy"][:, :1]) / scale
    if run.model.system == "lattice_boltzmann":
        found["mass"] = 1 + run.states.reshape(run.frames, len(run.members), -1).sum(2, dtype=np.float64) / (
            run.shape["width"] * run.shape["height"]
        )
    if run.model.system == "reaction_diffusion":
        found["mean_u_v"] = run.states.reshape(run.frames, len(run.members), 2, -1).mean(3, dtype=np.float64)
    return found


def arrays(run: Run) -> bytes:
    """An .npz: `states` (members, frames, *state), `times` (members, frames), `parameters` (members, P) with
    `parameter_names`, `variables`, and the statistics of the system.
    """
    states = run.states.swapaxes(0, 1).reshape(len(run.members), run.frames, *run.state_shape)
    times = np.array([run.times(member)[-run.frames :] for member in range(len(run.members))])
    names = np.array([parameter.name for parameter in run.model.parameters])
    content: dict[str, Any] = {
        "states": states, "times": times, "parameters": run.values, "parameter_names": names,
        "variables": np.array(run.model.variables), "members": run.members, **statistics(run),
    }  # fmt: skip
    out = io.BytesIO()
    np.savez(out, **content)
    return out.getvalue()


def summary(run: Run) -> bytes:
    """JSON: system, sizes, swept parameters, and the statistics in a few numbers."""
    found: dict[str, Any] = {
        "system": run.model.system, "variant": run.model.variant, "description": run.model.meaning,
        "members": len(run.members), "ensemble": run.ensemble, "steps": int(run.steps[-1]), "frames": run.frames,
        "extents": run.shape, "swept": run.swept, "finite": bool(np.isfinite(run.states).all()),
    }  # fmt: skip
    numbers = statistics(run)
    if run.model.system == "option_pricing":
        rows = [{name: _rounded(column[i]) for name, column in numbers.items() if name != "member"}
                for i in range(len(numbers["price"]))]  # fmt: skip
        labels = [{name: float(run.column(name)[member]) for name in run.swept} for member in numbers["member"]]
        found["prices"] = [{**label, **row} for label, row in zip(labels, rows, strict=True)][:1000]
    if (drift := numbers.get("relative_energy_error")) is not None:
        found["largest_relative_energy_error"] = _rounded(np.abs(drift).max())
    if (mass := numbers.get("mass")) is not None:
        found["largest_relative_mass_error"] = _rounded(np.abs(mass - 1).max())
    if run.model.system == "ode":
        found["final_mean"] = [_rounded(value) for value in numbers["mean"][-1]]
        found["final_standard_deviation"] = [_rounded(value) for value in numbers["standard_deviation"][-1]]
    return json.dumps(found, indent=1).encode()


def _rounded(value: float) -> float | None:
    return float(f"{value:.10g}") if np.isfinite(value) else None


def plot(run: Run) -> bytes:
    """A PNG of about 1,500 x 700 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(run.title, fontsize=13)
    numbers = statistics(run)
    with np.errstate(all="ignore"):
        panels.draw(figure, run, numbers)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def animation(run: Run) -> bytes:
    """An animated WebP of all frames."""
    with np.errstate(all="ignore"):
        return animations.draw(run)
