"""What a report reads: the shown states of all members there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from computemesh.kernels.simulation import starts
from computemesh.kernels.simulation.catalog import Model, Shape


@dataclass(frozen=True, slots=True)
class Run:
    """`values` (M, P) float64 parameters, `members` (M,) their numbers, `states` (F, M, width), `steps` (F,) done."""

    model: Model
    shape: Shape
    values: np.ndarray
    members: np.ndarray
    states: np.ndarray
    steps: np.ndarray
    ensemble: int
    seed: bytes
    begun: bool = True
    """Whether the state at time 0 follows from the params; one from a file is not at hand here."""

    @property
    def frames(self) -> int:
        return len(self.states)

    @property
    def moments(self) -> int:
        """Frames of a `history`."""
        return self.frames + self.begun

    def column(self, name: str) -> np.ndarray:
        """(M,): a parameter of every member."""
        found: np.ndarray = self.values[:, self.model.column(name)]
        return found

    def named(self, member: int) -> dict[str, float]:
        names = (parameter.name for parameter in self.model.parameters)
        return dict(zip(names, self.values[member].tolist(), strict=True))

    def start(self, member: int) -> np.ndarray:
        """(width,): the state at time 0."""
        replicate = int(self.members[member]) % self.ensemble
        return starts.start(self.model, self.shape, self.named(member), self.seed, replicate)

    def history(self, member: int) -> np.ndarray:
        """(F + 1, *state): a member from time 0, in the shape of its state; (F, *state) where it was not `begun`."""
        first = [self.start(member)[None]] if self.begun else []
        states = np.concatenate([*first, self.states[:, member]])
        return states.reshape(len(states), *self.state_shape)

    @property
    def state_shape(self) -> tuple[int, ...]:
        if "width" in self.shape:
            return (self.model.fields, self.shape["height"], self.shape["width"])
        if self.model.fields in (6, 7):
            return (self.model.fields, self.model.width(self.shape) // self.model.fields)
        return (self.model.width(self.shape),)

    def times(self, member: int) -> np.ndarray:
        """As many as `history` has frames: their times, in the model's unit."""
        steps = np.concatenate([[0] if self.begun else [], self.steps])
        names = [parameter.name for parameter in self.model.parameters]
        return steps * (self.column("dt")[member] if "dt" in names else 1.0)

    @property
    def swept(self) -> list[str]:
        """The parameters that differ between members."""
        names = [parameter.name for parameter in self.model.parameters]
        return [name for name, column in zip(names, self.values.T, strict=True) if len(np.unique(column)) > 1]

    def label(self, member: int) -> str:
        """What tells a member from the others."""
        parts = [f"{name} {self.column(name)[member]:.4g}" for name in self.swept]
        if self.ensemble > 1:
            parts.append(f"#{int(self.members[member]) % self.ensemble}")
        return ", ".join(parts)

    @property
    def title(self) -> str:
        name = " ".join(filter(None, (self.model.system.replace("_", " "), self.model.variant.replace("_", " "))))
        members = "1 member" if len(self.members) == 1 else f"{len(self.members):,} members"
        return f"{name}: {members}, {int(self.steps[-1]):,} steps"

    def spread(self, most: int) -> list[int]:
        """At most `most` members, evenly from all."""
        evenly = np.linspace(0, len(self.members) - 1, min(most, len(self.members)))
        return [int(member) for member in np.unique(evenly.round())]


def vorticity(state: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """(H, W): curl of the velocity of a D2Q9 state (9, H, W), which is 0 in the solid (H, W); in speed per cell."""
    h = state.astype(np.float64)
    density = np.where(solid, np.inf, 1 + h.sum(0))
    ux = (h[1] - h[3] + h[5] - h[6] - h[7] + h[8]) / density
    uy = (h[2] - h[4] + h[5] + h[6] - h[7] - h[8]) / density
    curl: np.ndarray = (np.roll(uy, -1, 1) - np.roll(uy, 1, 1) - np.roll(ux, -1, 0) + np.roll(ux, 1, 0)) / 2
    return curl


def inside_cylinder(run: Run, member: int) -> np.ndarray:
    """(H, W) bool, as `fields.cylinder`."""
    height, width = run.shape["height"], run.shape["width"]
    rows, columns = np.mgrid[:height, :width]
    radius = run.column("diameter")[member] * height / 2
    found: np.ndarray = (rows - (height / 2 - 0.5)) ** 2 + (columns - width / 4) ** 2 < radius**2
    return found
