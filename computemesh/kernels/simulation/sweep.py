"""Parameter sweeps: each parameter is a value, a list or evenly spaced; their product are the points.

An axis in a job's params is `u8 kind | u16 count | values`: kind 0 lists `count` float64, kind 1 gives first and last.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from computemesh.kernels.simulation.catalog import Extent, Model, Parameter, Shape

MAX_LISTED = 256
MAX_COUNT = 65_535
_HEAD = struct.Struct(">BH")
_NUMBER = struct.Struct(">d")
Problem = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Axis:
    """The values one parameter takes: `ends` are all of them, or the first and last of `count` even ones."""

    ends: tuple[float, ...]
    count: int
    even: bool = False

    def values(self) -> np.ndarray:
        """(count,) float64."""
        if not self.even:
            return np.array(self.ends)
        first, last = self.ends
        return first + (last - first) * np.arange(self.count) / max(self.count - 1, 1)

    def pack(self) -> bytes:
        return _HEAD.pack(self.even, self.count) + b"".join(_NUMBER.pack(value) for value in self.ends)


def unpack_axes(data: bytes, model: Model) -> list[Axis]:
    """The axes of all of a model's parameters. Raises ValueError on bytes `Axis.pack` would not have written."""
    axes, at = [], 0
    for parameter in model.parameters:
        if at + _HEAD.size > len(data):
            raise ValueError("the axes end early")
        even, count = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        held = 2 if even else count
        if even > 1 or count < 1 or (not even and count > MAX_LISTED) or at + 8 * held > len(data):
            raise ValueError(f"axis {parameter.name} of kind {even} and count {count}")
        ends = struct.unpack_from(f">{held}d", data, at)
        at += 8 * held
        if not all(parameter.low <= end <= parameter.high for end in ends):
            raise ValueError(f"axis {parameter.name} leaves {parameter.low}..{parameter.high}")
        axes.append(Axis(ends, count, bool(even)))
    if at != len(data):
        raise ValueError("bytes after the axes")
    return axes


def points(axes: Sequence[Axis]) -> int:
    return math.prod(axis.count for axis in axes)


def member_values(axes: Sequence[Axis], ensemble: int, first: int, count: int) -> np.ndarray:
    """(count, P) float64: the parameters of members first .. first + count - 1.

    Member m is replicate m % ensemble of point m // ensemble; the last parameter varies fastest.
    """
    point = np.arange(first, first + count) // ensemble
    found = np.empty((count, len(axes)))
    for column in range(len(axes) - 1, -1, -1):
        point, at = np.divmod(point, axes[column].count)
        found[:, column] = axes[column].values()[at]
    return found


def read_parameters(model: Model, given: Mapping[str, object]) -> tuple[list[Axis], Shape, list[Problem]]:
    """(an axis per parameter, the extents, what is wrong): `given` are the payload's parameters less the variant."""
    problems: list[Problem] = []
    axes = [_axis(p, given[p.name], problems) if p.name in given else Axis((p.default,), 1) for p in model.parameters]
    shape = {e.name: _extent(e, given[e.name], problems) if e.name in given else e.default for e in model.extents}
    return axes, shape, problems


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= 1e300 else None  # False for NaN and infinity, too


def _show(value: object) -> str:
    return repr(value)[:60] if not isinstance(value, int) or abs(value) < 2**63 else "a number beyond 2^63"


def _extent(extent: Extent, value: object, problems: list[Problem]) -> int:
    number = _number(value)
    if number is not None and extent.low <= number <= extent.high and number % extent.multiple_of == 0:
        return int(number)
    step = f" in steps of {extent.multiple_of}" if extent.multiple_of > 1 else ""
    text = f"a whole number from {extent.low:,} to {extent.high:,}{step} ({extent.meaning})"
    problems.append((extent.name, f"{extent.name} must be {text}, not {_show(value)}; it cannot be swept"))
    return extent.default


def _axis(parameter: Parameter, value: object, problems: list[Problem]) -> Axis:
    name = parameter.name

    def wrong(field: str, item: object, rule: str) -> Axis:
        problems.append((f"{name}{field}", f"{name}{field} must be {rule}, not {_show(item)}"))
        return Axis((parameter.default,), 1)

    limits = f"from {parameter.low:g} to {parameter.high:g} ({parameter.meaning})"
    if isinstance(value, list | tuple):
        if not 1 <= len(value) <= MAX_LISTED:
            text = f"{name} must list 1 to {MAX_LISTED} values, not {len(value)}: "
            problems.append((name, text + 'an object {"from", "to", "count"} gives more'))
            return Axis((parameter.default,), 1)
        numbers = [_number(item) for item in value]
        for at, number in enumerate(numbers):
            if number is None or not parameter.low <= number <= parameter.high:
                return wrong(f"[{at}]", value[at], f"a number {limits}")
        return Axis(tuple(number for number in numbers if number is not None), len(numbers))
    if isinstance(value, Mapping):
        if set(value) != {"from", "to", "count"}:
            return wrong("", sorted(map(str, value)), 'a number, a list of numbers or {"from", "to", "count"}')
        ends, count = [_number(value["from"]), _number(value["to"])], _number(value["count"])
        for field, end in zip(("from", "to"), ends, strict=True):
            if end is None or not parameter.low <= end <= parameter.high:
                return wrong(f".{field}", value[field], f"a number {limits}")
        if count is None or count % 1 or not 2 <= count <= MAX_COUNT:
            return wrong(".count", value["count"], f"a whole number from 2 to {MAX_COUNT:,}")
        return Axis(tuple(end for end in ends if end is not None), int(count), even=True)
    number = _number(value)
    if number is None or not parameter.low <= number <= parameter.high:
        return wrong("", value, f'a number, a list of numbers or {{"from", "to", "count"}}, each {limits}')
    return Axis((number,), 1)
