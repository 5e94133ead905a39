"""What was tried and what broke, as a table and as JSON."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.laws import LAWS, Violation
from tests.faults.points import Missed


@dataclass
class Row:
    """One fault: how often it was made, and what broke. `missed` runs did not come to it and show nothing."""

    name: str
    runs: int = 0
    missed: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


class Table:
    """Rows in the order in which they were first tried."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.untried: list[str] = []

    def run(self, name: str, seed: int, work: Callable[[], dict[str, float] | None]) -> bool:
        """One run; whether the mesh is sound after it."""
        row = self.rows.setdefault(name, Row(name))
        notes = len(row.notes)
        row.runs += 1
        began, sound = time.monotonic(), True
        try:
            for figure, value in (work() or {}).items():
                before = row.figures.get(figure, 0.0)
                row.figures[figure] = max(before, value) if figure.endswith("_s") else before + value
        except Missed as missed:
            row.missed += 1
            row.notes.append(f"seed {seed}: {missed}")
        except Violation as violation:
            row.broken[violation.law] += 1
            row.notes.append(f"seed {seed}: {violation.law}: {violation.text}")
            sound = False
        except Exception:  # nobody promised an answer in this case, so nothing was kept
            row.broken["L"] += 1
            row.notes.append(f"seed {seed}: {traceback.format_exc(limit=-4)}")
            sound = False
        row.seconds += time.monotonic() - began
        print(f"{name}, seed {seed}: {time.monotonic() - began:.1f} s", *row.notes[notes:], file=sys.stderr, flush=True)
        return sound

    def failed(self) -> bool:
        """Whether a law broke or a fault was not made."""
        return any(row.broken or row.missed for row in self.rows.values())

    def show(self) -> None:
        """Prints it."""
        print(f"{'fault':52}{'runs':>6}" + "".join(f"{law:>5}" for law in LAWS) + f"{'missed':>8}{'s/run':>8}")
        for row in self.rows.values():
            broken = "".join(f"{row.broken[law]:>5}" for law in LAWS)
            figures = ", ".join(f"{name} {value:g}" for name, value in row.figures.items())
            print(f"{row.name:52}{row.runs:>6}{broken}{row.missed:>8}{row.seconds / max(row.runs, 1):>8.1f}  {figures}")
        for kind in self.untried:
            print(f"{kind}: not tried, which takes the superuser's rights")
        for row in self.rows.values():
            for note in row.notes:
                print(f"{row.name}: {note}")

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        total: Counter[str] = Counter()
        for row in self.rows.values():
            total.update(row.broken)
        return {
            "untried": self.untried, "runs": sum(row.runs for row in self.rows.values()),
            "missed": sum(row.missed for row in self.rows.values()),
            "violations": {law: total[law] for law in LAWS},
            "rows": {row.name: {"runs": row.runs, "missed": row.missed, "violations": dict(row.broken),
                                "seconds": round(row.seconds, 1), **row.figures} for row in self.rows.values()},
        }  # fmt: skip
