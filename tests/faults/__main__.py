"""`python -m tests.faults --seeds 20`: faults against a mesh of real processes; a table, and one JSON object last.

Exit status 1 where a law was broken, or a fault was not made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.faults import points
from tests.faults.mesh import Mesh
from tests.faults.table import Table

RUNS_PER_MESH = 200


def crash_points(table: Table, seeds: range, only: str, keep: Path) -> None:
    """Every row's seeds one after another; a mesh that broke a law is replaced, and so is one that has grown."""
    left = [(service, point, seed) for service, point in points.ROWS if only in f"{service} at {point}"
            for seed in seeds]  # fmt: skip
    meshes = 0
    while left:
        meshes += 1
        with Mesh(keep / f"mesh-{meshes}") as mesh:
            for _ in range(RUNS_PER_MESH):
                if not left:
                    break
                service, point, seed = left.pop(0)
                name = f"{service} at {point}"
                sound = table.run(name, seed, lambda: points.crash(mesh, service, point, seed))  # noqa: B023
                print(f"{name} seed {seed}: {'sound' if sound else 'BROKEN'}", file=sys.stderr, flush=True)
                if not sound:
                    break
            else:
                sound = True
            if sound:
                table.run("ledger fsck", meshes, mesh.fsck)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each fault (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--folder", type=Path, help="keep the meshes' folders here")
    chosen = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="mesh-faults-") as scratch:
        seeds = range(chosen.first, chosen.first + chosen.seeds)
        crash_points(table, seeds, chosen.only, chosen.folder or Path(scratch))
    table.show()
    print(json.dumps(table.as_json()))
    return table.failed()


if __name__ == "__main__":
    sys.exit(main())
