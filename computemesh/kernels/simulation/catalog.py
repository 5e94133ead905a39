"""The systems that can be simulated: their parameters with limits, state sizes and costs. No JAX.

A *model* is a system together with the variant its payload chooses (`ode` with `equation: lorenz`). Its number
is what stands in a job's params and never changes. A state is one array of `width` numbers of `dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Shape = dict[str, int]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A real number of a model, which a sweep may vary: default and inclusive limits, unit and meaning."""

    name: str
    default: float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Extent:
    """A whole number that decides an array's shape or the method, the same for all members."""

    name: str
    default: int
    low: int
    high: int
    multiple_of: int = 1
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One system in one variant.

    `width(shape)`: numbers of a state. `fields`: into how many equal parts the metric divides a state, each judged
    by its own largest value. `flops(shape)`: operations per step and member. `lanes(shape)`: members computed
    together at most, a power of two. `longest_segment`: steps between two committed states at most; what keeps
    rounding from growing beyond a metric in chaotic systems. 0: nothing chains, a member is one unit.
    """

    number: int
    system: str
    variant: str
    parameters: tuple[Parameter, ...]
    extents: tuple[Extent, ...]
    dtype: str
    width: Callable[[Shape], int]
    fields: int
    flops: Callable[[Shape], int]
    lanes: Callable[[Shape], int]
    longest_segment: int
    meaning: str
    variables: tuple[str, ...] = field(default=())

    @property
    def itemsize(self) -> int:
        return int(self.dtype[-1])

    @property
    def precision(self) -> str:
        """What it computes in; the sums of Monte Carlo are wider than their paths."""
        return "<f4" if self.longest_segment == 0 else self.dtype

    def column(self, name: str) -> int:
        """Where a parameter stands in a member's parameter vector."""
        return [parameter.name for parameter in self.parameters].index(name)


def _power_of_two(bound: float, most: int) -> int:
    return 1 << max(0, min(most, int(bound)).bit_length() - 1) if bound >= 1 else 1


# --- particles: pairs cost, so lanes shrink as members grow ---------------------------------------------------
_BODY_EXTENTS = (
    Extent("bodies", 64, 2, 1024, meaning="number of bodies"),
    Extent("order", 2, 2, 4, 2, "2 = leapfrog, 4 = Yoshida"),
)
_GIVEN_EXTENTS = (_BODY_EXTENTS[1],)
_SOFTENING = Parameter("softening", 0.0, 0.0, 10.0, "Plummer softening length")
_SPREAD = Parameter("spread", 0.0, 0.0, 1.0, "standard deviation of the start's random displacement")
BODIES = {"plummer": 0, "figure_eight": 3, "solar_system": 9}


def _bodies(variant: str) -> Callable[[Shape], int]:
    return lambda shape: BODIES[variant] or shape["bodies"]


def _nbody(number: int, variant: str, dt: float, extra: tuple[Parameter, ...], extents: tuple[Extent, ...],
           meaning: str) -> Model:  # fmt: skip
    count = _bodies(variant)
    return Model(
        number, "nbody", variant,
        (Parameter("dt", dt, 1e-7, 1.0, "time step"), Parameter("gravity", 4 * math.pi**2 if
         variant == "solar_system" else 1.0, 0.0, 1e4, "gravitational constant"), *extra),
        extents, "<f8", lambda shape: 7 * count(shape), 7,
        lambda shape: (3 if shape["order"] == 4 else 1) * (30 * count(shape) ** 2 + 30 * count(shape)),
        lambda shape: _power_of_two(2**17 / count(shape) ** 2, 64), 256, meaning,
        ("x", "y", "z", "vx", "vy", "vz", "m"),
    )  # fmt: skip


def _particles(shape: Shape) -> int:
    return 4 * shape["cells"] ** 3


LENNARD_JONES = Model(
    8, "lennard_jones", "",
    (
        Parameter("dt", 0.002, 1e-6, 0.01, "time step, in sqrt(m sigma^2 / epsilon)"),
        Parameter("density", 0.8442, 0.01, 1.3, "particles per sigma^3"),
        Parameter("temperature", 1.44, 0.0, 20.0, "of the start, in epsilon / k_B"),
        Parameter("cutoff", 2.5, 1.0, 6.0, "of the potential, in sigma; force and energy are shifted to 0 there"),
    ),
    (Extent("cells", 3, 3, 7, 1, "face-centred cubic cells along an edge: 4 * cells^3 particles"),),
    "<f8", lambda shape: 6 * _particles(shape), 6, lambda shape: 45 * _particles(shape) ** 2,
    lambda shape: _power_of_two(2**17 / _particles(shape) ** 2, 16), 128,
    "molecular dynamics in a periodic box, reduced units", ("x", "y", "z", "vx", "vy", "vz"),
)  # fmt: skip

# --- fields: float32, a state is its grids --------------------------------------------------------------------


def _cells(shape: Shape) -> int:
    return shape["width"] * shape["height"]


def _field_lanes(shape: Shape) -> int:
    return _power_of_two(2**17 / _cells(shape), 8)


REACTION_DIFFUSION = Model(
    16, "reaction_diffusion", "",
    (
        Parameter("dt", 1.0, 1e-3, 1.0, "time step"),
        Parameter("feed", 0.0367, 0.0, 0.2, "feed rate F"),
        Parameter("kill", 0.0649, 0.0, 0.2, "kill rate k"),
        Parameter("diffusion_u", 0.16, 0.0, 0.2, "of u, in cells^2 per time"),
        Parameter("diffusion_v", 0.08, 0.0, 0.2, "of v, in cells^2 per time"),
    ),
    (
        Extent("width", 128, 16, 1024, 8, "cells"), Extent("height", 128, 16, 1024, 8, "cells"),
        Extent("patches", 12, 1, 256, 1, "squares of v at the start"),
    ),
    "<f4", lambda shape: 2 * _cells(shape), 2, lambda shape: 30 * _cells(shape), _field_lanes, 256,
    "Gray-Scott on a periodic grid", ("u", "v"),
)  # fmt: skip
LATTICE_BOLTZMANN = Model(
    17, "lattice_boltzmann", "",
    (
        Parameter("reynolds", 100.0, 1.0, 1000.0, "Reynolds number of inflow and diameter"),
        Parameter("inflow", 0.1, 0.01, 0.15, "speed at the left edge, in cells per step"),
        Parameter("diameter", 0.2, 0.05, 0.5, "of the cylinder, as a share of the height"),
    ),
    (Extent("width", 128, 32, 400, 8, "cells"), Extent("height", 48, 16, 200, 8, "cells")),
    "<f4", lambda shape: 9 * _cells(shape), 9, lambda shape: 250 * _cells(shape), _field_lanes, 256,
    "flow past a cylinder, D2Q9 BGK", ("h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"),
)  # fmt: skip

# --- ordinary differential equations --------------------------------------------------------------------------
ODE_STAGES = 7


def _ode(number: int, variant: str, variables: str, dt: float, start: tuple[float, ...],
         constants: dict[str, tuple[float, float, float]], operations: int, meaning: str) -> Model:  # fmt: skip
    names = tuple(variables)
    parameters = (
        Parameter("dt", dt, 1e-6, 0.1, "time step"),
        *(Parameter(name, *limits, "constant of the equation") for name, limits in constants.items()),
        *(Parameter(f"{name.lower()}0", at, -1e3, 1e3, f"{name} at time 0")
          for name, at in zip(names, start, strict=True)),
        _SPREAD,
    )  # fmt: skip
    return Model(
        number, "ode", variant, parameters, (), "<f8", lambda _: len(names), 1,
        lambda _: ODE_STAGES * (operations + 14 * len(names)), lambda _: 256, 512, meaning, names,
    )  # fmt: skip


_OPTION_PARAMETERS = (
    Parameter("spot", 100.0, 1e-3, 1e6, "price of the asset now"),
    Parameter("strike", 100.0, 1e-3, 1e6, "price agreed on"),
    Parameter("rate", 0.05, -0.5, 1.0, "risk-free rate per year, continuous"),
    Parameter("volatility", 0.2, 0.0, 3.0, "per square root of a year"),
    Parameter("maturity", 1.0, 1e-3, 50.0, "years"),
    Parameter("dividend", 0.0, -0.5, 1.0, "yield per year, continuous"),
)


def _option(number: int, variant: str, meaning: str) -> Model:
    return Model(
        number, "option_pricing", variant, _OPTION_PARAMETERS,
        (Extent("paths", 1024, 256, 65536, 256, "simulated paths per ensemble member"),),
        "<f8", lambda _: 4, 4, lambda shape: 120 * shape["paths"],
        lambda shape: _power_of_two(2**16 / shape["paths"], 16), 0, meaning,
        ("payoff", "payoff squared", "terminal", "terminal squared"),
    )  # fmt: skip


MODELS: tuple[Model, ...] = (
    _nbody(1, "plummer", 0.002, (Parameter("softening", 0.05, 0.0, 10.0, "Plummer softening length"),),
           _BODY_EXTENTS, "a Plummer sphere of equal masses in virial equilibrium, G M = 1"),
    _nbody(2, "figure_eight", 0.002, (_SOFTENING, _SPREAD), _GIVEN_EXTENTS,
           "three equal masses on the orbit of Chenciner and Montgomery"),
    _nbody(3, "solar_system", 0.0005, (_SOFTENING, _SPREAD), _GIVEN_EXTENTS,
           "Sun and planets on their mean orbits: astronomical units, years, solar masses"),
    LENNARD_JONES, REACTION_DIFFUSION, LATTICE_BOLTZMANN,
    _ode(32, "lorenz", "xyz", 0.01, (1.0, 1.0, 1.0),
         {"sigma": (10.0, 0.0, 100.0), "rho": (28.0, 0.0, 300.0), "beta": (8 / 3, 0.0, 20.0)}, 9, "Lorenz 1963"),
    _ode(33, "rossler", "xyz", 0.02, (1.0, 1.0, 1.0),
         {"a": (0.2, 0.0, 1.0), "b": (0.2, 0.0, 5.0), "c": (5.7, 0.0, 50.0)}, 7, "Roessler 1976"),
    _ode(34, "van_der_pol", "xv", 0.01, (2.0, 0.0), {"mu": (1.0, 0.0, 20.0)}, 6, "the relaxation oscillator"),
    _ode(35, "lotka_volterra", "xy", 0.01, (10.0, 5.0),
         {"alpha": (1.1, 0.0, 10.0), "beta": (0.4, 0.0, 10.0), "gamma": (0.4, 0.0, 10.0), "delta": (0.1, 0.0, 10.0)},
         8, "prey x and predators y"),
    _ode(36, "sir", "SIR", 0.05, (0.99, 0.01, 0.0), {"beta": (0.3, 0.0, 10.0), "gamma": (0.1, 0.0, 10.0)}, 5,
         "an epidemic: susceptible, infected and recovered shares"),
    _ode(37, "duffing", "xv", 0.01, (1.0, 0.0),
         {"alpha": (-1.0, -10.0, 10.0), "beta": (1.0, 0.0, 10.0), "delta": (0.3, 0.0, 10.0),
          "force": (0.5, 0.0, 10.0), "omega": (1.2, 0.0, 20.0)}, 30, "the driven double well"),
    _ode(38, "fitzhugh_nagumo", "vw", 0.05, (-1.0, 1.0),
         {"a": (0.7, -2.0, 2.0), "b": (0.8, -2.0, 2.0), "tau": (12.5, 1.0, 100.0), "current": (0.5, -5.0, 5.0)}, 10,
         "a spiking neuron"),
    _ode(39, "brusselator", "xy", 0.01, (1.0, 1.0), {"a": (1.0, 0.0, 5.0), "b": (3.0, 0.0, 10.0)}, 8,
         "the oscillating chemical reaction"),
    _option(48, "call", "European call"), _option(49, "put", "European put"),
    _option(50, "asian_call", "call on the arithmetic mean over the steps"),
    _option(51, "asian_put", "put on the arithmetic mean over the steps"),
)  # fmt: skip

BY_NUMBER = {model.number: model for model in MODELS}
SYSTEMS = tuple(dict.fromkeys(model.system for model in MODELS))
VARIANT_FIELD = {"nbody": "start", "ode": "equation", "option_pricing": "option"}
"""The entry of `parameters` that chooses a system's variant; its first variant is the default."""


def variants(system: str) -> dict[str, Model]:
    """A system's models by variant; one entry named "" where it has none."""
    return {model.variant: model for model in MODELS if model.system == system}


def box_edge(density: float, shape: Shape) -> float:
    """Edge of a Lennard-Jones box in sigma."""
    return float((_particles(shape) / density) ** (1 / 3))


def relaxation_time(reynolds: float, inflow: float, diameter: float, shape: Shape) -> float:
    """BGK relaxation time in steps: 1/2 + 3 nu, nu = inflow * diameter / reynolds in lattice units."""
    return 0.5 + 3 * inflow * diameter * shape["height"] / reynolds
