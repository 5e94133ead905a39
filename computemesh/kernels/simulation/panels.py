"""What a plot shows of each system, drawn on a matplotlib figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from computemesh.kernels.simulation.catalog import box_edge
from computemesh.kernels.simulation.invariants import energies
from computemesh.kernels.simulation.run import Run, inside_cylinder, vorticity

Numbers = dict[str, np.ndarray]
MAX_LINES = 12
MAX_TILES = 16


def draw(figure: Any, run: Run, numbers: Numbers) -> None:
    """Fill the figure."""
    {
        "nbody": _orbits, "lennard_jones": _liquid, "reaction_diffusion": _tiles, "lattice_boltzmann": _tiles,
        "ode": _phases, "option_pricing": _prices,
    }[run.model.system](figure, run, numbers)  # fmt: skip


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.05, 0.9, count))


def _orbits(figure: Any, run: Run, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    history = run.history(0)
    count = history.shape[2]
    for body, colour in zip(range(count), _colours(count), strict=True):
        left.plot(history[:, 0, body], history[:, 1, body], color=colour, lw=0.8, alpha=0.55)
    left.scatter(history[-1, 0], history[-1, 1], c=_colours(count), s=14, zorder=3, edgecolors="white", linewidths=0.3)
    reach = np.nanpercentile(np.abs(history[:, :2]), 95 if count > 16 else 100) * 1.3 or 1.0
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="x", ylabel="y",
             title=f"paths of {count} bodies" + (f" ({run.label(0)})" if run.label(0) else ""))  # fmt: skip
    _energy_errors(right, run, numbers)


def _energy_errors(axes: Any, run: Run, numbers: Numbers) -> None:
    errors = numbers.get("relative_energy_error")
    if errors is None:
        axes.text(0.5, 0.5, "energies of so many pairs are left out", ha="center", transform=axes.transAxes)
        return
    chosen = run.spread(MAX_LINES)
    for member, colour in zip(chosen, _colours(len(chosen)), strict=True):
        later = np.abs(errors[member][-run.frames :]).clip(1e-16)
        axes.plot(run.times(member)[-run.frames :], later, color=colour, lw=1.1, label=run.label(member))
    axes.set(yscale="log", xlabel="time", ylabel="|E(t) - E(0)| / |E(0)|", title="relative energy error")
    axes.grid(alpha=0.25)
    if len(chosen) > 1 and run.swept:
        axes.legend(fontsize=7)


def _liquid(figure: Any, run: Run, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    history = run.history(0)
    count = history.shape[2]
    kinetic, potential = energies(run.model, run.named(0), history.reshape(len(history), -1))
    times = run.times(0)
    for values, name, colour in (
        (kinetic, "kinetic", "tab:red"), (potential, "potential", "tab:blue"), (kinetic + potential, "total", "black"),
    ):  # fmt: skip
        left.plot(times, values / count, color=colour, lw=1.4, label=name)
    total = (kinetic + potential) / count
    title = f"energy per particle; total within {np.abs(total - total[0]).max():.2g} of its start"
    left.set(xlabel="time", ylabel="epsilon", title=title)
    left.legend()
    left.grid(alpha=0.25)
    chosen = run.spread(6)
    for member, colour in zip(chosen, _colours(len(chosen)), strict=True):
        right.plot(*pair_correlation(run, member), color=colour, lw=1.4, label=run.label(member) or None)
    right.axhline(1, color="grey", lw=0.8, ls=":")
    right.set(xlabel="distance / sigma", ylabel="g(r)", title="pair correlation, second half of the run")
    right.grid(alpha=0.25)
    if len(chosen) > 1:
        right.legend(fontsize=8)


def pair_correlation(run: Run, member: int) -> tuple[np.ndarray, np.ndarray]:
    """(distances, g(r)) over the later half of a Lennard-Jones member's frames."""
    history = run.history(member)
    later = history[(len(history) + 1) // 2 :]
    count = history.shape[2]
    edge = box_edge(run.named(member)["density"], run.shape)
    edges = np.linspace(0, edge / 2, 81)
    upper, counts = np.triu_indices(count, 1), np.zeros(80)
    for frame in later[:: max(1, len(later) // 20)]:
        apart = frame[:3, upper[0]] - frame[:3, upper[1]]
        apart -= edge * np.round(apart / edge)
        counts += np.histogram(np.sqrt((apart**2).sum(0)), edges)[0]
    frames = len(later[:: max(1, len(later) // 20)])
    shells = 4 / 3 * math.pi * np.diff(edges**3) * count / edge**3
    found: np.ndarray = 2 * counts / (frames * count * shells)
    middle: np.ndarray = (edges[1:] + edges[:-1]) / 2
    return middle, found


def field_of(run: Run, member: int, state: np.ndarray) -> np.ndarray:
    """The one grid (H, W) that a picture of a field's state (fields, H, W) shows: v, or vorticity with the cylinder
    as NaN, over inflow / diameter.
    """
    if run.model.system == "reaction_diffusion":
        v: np.ndarray = state[1].astype(np.float64)
        return v
    unit = run.column("inflow")[member] / (run.column("diameter")[member] * run.shape["height"])
    solid = inside_cylinder(run, member)
    found: np.ndarray = np.where(solid, np.nan, vorticity(state, solid) / unit)
    found[:, [0, 1, -1]] = 0  # the step in velocity where the inflow is set is no vortex
    return found


def _tiles(figure: Any, run: Run, numbers: Numbers) -> None:
    if run.model.system == "reaction_diffusion":
        chosen = run.spread(MAX_TILES)
        parts, line = figure.subfigures(1, 2, width_ratios=[1.05, 1])
        columns = math.ceil(math.sqrt(len(chosen)))
        style, label = {"cmap": "magma", "vmin": 0, "vmax": 0.4}, "v"
    else:
        chosen = run.spread(4)
        parts, line = figure.subfigures(2, 1, height_ratios=[2.3, 1])
        columns = 1 if len(chosen) == 1 else 2
        style, label = {"cmap": "RdBu_r", "vmin": -4, "vmax": 4}, "vorticity * diameter / inflow"
    axes = parts.subplots(-(-len(chosen) // columns), columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    shown = None
    for place, member in zip(axes.flat, chosen, strict=False):
        grid = np.ma.masked_invalid(field_of(run, member, run.states[-1, member].reshape(run.state_shape)))
        shown = place.imshow(grid, origin="lower", interpolation="bilinear", **style)
        if run.model.system == "lattice_boltzmann":
            place.contourf(np.ma.getmaskarray(grid), levels=[0.5, 1.5], colors=["0.3"])
        place.set_title(run.label(member), fontsize=7 if len(chosen) > 6 else 9)
    parts.colorbar(shown, ax=axes, shrink=0.8, label=label)
    _budget(line.subplots(), run, numbers, chosen)


def _budget(axes: Any, run: Run, numbers: Numbers, chosen: list[int]) -> None:
    gray_scott = run.model.system == "reaction_diffusion"
    for member, colour in zip(chosen, _colours(len(chosen)), strict=True):
        if gray_scott:
            values, name = numbers["mean_u_v"][:, member, 1], "mean of v"
        else:
            values, name = np.abs(numbers["mass"][:, member] - 1).clip(1e-12), "relative mass error"
        axes.plot(run.times(member)[-run.frames :], values, color=colour, lw=1.3, label=run.label(member))
    axes.set(xlabel="time" if gray_scott else "step", ylabel=name, yscale="linear" if gray_scott else "log")
    axes.grid(alpha=0.25)
    if len(chosen) > 1:
        axes.legend(fontsize=6 if len(chosen) > 6 else 8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _phases(figure: Any, run: Run, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    chosen = run.spread(MAX_LINES)
    across = (0, 2) if run.model.variant == "lorenz" else (0, 1)
    names = run.model.variables
    for member, colour in zip(chosen, _colours(len(chosen)), strict=True):
        history = run.history(member)
        left.plot(history[:, across[0]], history[:, across[1]], color=colour, lw=0.8, alpha=0.85)
        left.plot(*history[-1, list(across)], "o", color=colour, ms=4)
    left.set(xlabel=names[across[0]], ylabel=names[across[1]], title=f"phase space, {len(chosen)} members")
    left.grid(alpha=0.25)
    if len(run.swept) == 1 and len(np.unique(run.column(run.swept[0]))) >= 24:
        late = run.states[run.frames // 2 :, :, across[1]]
        at = np.broadcast_to(run.column(run.swept[0]), late.shape)
        right.plot(at.ravel(), late.ravel(), ",", color="black", alpha=0.5)
        right.set(xlabel=run.swept[0], ylabel=names[across[1]], title="values in the second half of the run")
        return
    times = run.times(0)[-run.frames :]
    if len(run.members) > 1 and not run.swept:
        for i, name in enumerate(names):
            mean, deviation = numbers["mean"][:, i], numbers["standard_deviation"][:, i]
            (line,) = right.plot(times, mean, lw=1.4, label=f"{name}: mean, one deviation")
            right.fill_between(times, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2)
    else:
        for member, colour in zip(chosen, _colours(len(chosen)), strict=True):
            for i, style in zip(range(len(names)), ("-", "--", ":"), strict=False):
                label = f"{names[i]} {run.label(member)}" if i == 0 or len(chosen) == 1 else None
                right.plot(run.times(member), run.history(member)[:, i], style, color=colour, lw=1.1, label=label)
    right.set(xlabel="time", title=", ".join(names) + " over time")
    right.grid(alpha=0.25)
    right.legend(fontsize=7)


def _prices(figure: Any, run: Run, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    price, error, exact = numbers["price"], numbers["standard_error"], numbers["black_scholes"]
    known = bool(np.isfinite(exact).all())
    if len(price) == 1:
        _convergence(left, right, run, float(price[0]), float(exact[0]))
        return
    name = run.swept[0]
    at = run.column(name)[numbers["member"]] if len(run.swept) == 1 else np.arange(len(price))
    left.errorbar(at, price, 1.96 * error, fmt="o", ms=4, capsize=3, label="Monte Carlo, 95 % interval")
    if known:
        left.plot(at, exact, "k-", lw=1, label="Black-Scholes", zorder=0)
        right.plot(at, (price - exact) / error.clip(1e-300), "o", ms=4)
        right.axhspan(-1.96, 1.96, color="tab:blue", alpha=0.1, label="95 %")
        right.set(ylim=(-4.5, 4.5), ylabel="(price - Black-Scholes) / standard error", title="deviation")
        right.legend()
    else:
        right.plot(at, error, "o-", ms=4)
        right.set(ylabel="standard error", title="standard error", ylim=(0, None))
    xlabel = name if len(run.swept) == 1 else f"point of {', '.join(run.swept)}"
    left.set(ylabel="price", title=run.model.meaning)
    left.legend()
    for axes in (left, right):
        axes.set(xlabel=xlabel)
        axes.grid(alpha=0.25)


def _convergence(left: Any, right: Any, run: Run, price: float, exact: float) -> None:
    sums = run.states[0].cumsum(0)
    pairs = np.arange(1, len(sums) + 1) * run.shape["paths"] / 2
    first = run.named(0)
    scale = first["spot"] * math.exp(-first["rate"] * first["maturity"])
    mean = sums[:, 0] / pairs
    error = scale * np.sqrt((sums[:, 1] / pairs - mean**2).clip(0) / (pairs - 1))
    left.plot(2 * pairs, scale * mean, lw=1.3, label=f"Monte Carlo: {price:.5g} +- {1.96 * error[-1]:.2g}")
    left.fill_between(2 * pairs, scale * mean - 1.96 * error, scale * mean + 1.96 * error, alpha=0.2)
    if math.isfinite(exact):
        left.axhline(exact, color="black", lw=1, label=f"Black-Scholes: {exact:.5g}")
    left.set(xscale="log", xlabel="paths", ylabel="price", title=f"{run.model.meaning}: convergence, 95 % interval")
    each = scale * run.states[0][:, 0] / (run.shape["paths"] / 2)
    right.hist(each, min(60, max(5, len(each) // 8)), color="tab:blue", alpha=0.7)
    right.axvline(price, color="black", lw=1)
    right.set(xlabel=f"price from one member's {run.shape['paths']:,} paths", ylabel="members", title="members")
    left.legend()
    left.grid(alpha=0.25)
