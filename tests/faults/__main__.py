"""`python -m tests.faults --seeds 20`: faults against a mesh of real processes; a table, and one JSON object last.

Exit status 1 where a law was broken, or a fault was not made. Networks and disks need a network and mount namespace of
their own, which the superuser is given; for others these rows are named as not tried.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.faults import disks, networks, points, systems
from tests.faults.mesh import Mesh
from tests.faults.table import Table

RUNS_PER_MESH = 200
POINTS = "points"
APART = "COMPUTEMESH_FAULTS_APART"
NEED_APART = ("networks", "disks")


def crash_points(table: Table, seeds: range, only: str, folder: Path) -> None:
    """Every row's seeds one after another; a mesh that broke a law is replaced, and so is one that has grown."""
    left = [(service, point, seed) for service, point in points.ROWS if only in f"{service} at {point}"
            for seed in seeds]  # fmt: skip
    meshes = 0
    while left:
        meshes += 1
        with Mesh(folder / f"points-{meshes}") as mesh:
            sound, runs = True, 0
            while sound and left and runs < RUNS_PER_MESH:
                service, point, seed = left.pop(0)
                sound = table.run(f"{service} at {point}", seed, partial(points.crash, mesh, service, point, seed))
                runs += 1
            if sound:
                table.run("ledger fsck", meshes, mesh.fsck)


def below(table: Table, kind: str, seeds: range, only: str, folder: Path) -> None:
    """The faults of one kind, on its mesh."""
    made = systems.KINDS[kind]
    left = [(fault, seed) for fault in made.faults(folder / kind) if only in fault.name
            for seed in seeds[: max(1, len(seeds) // fault.share)]]  # fmt: skip
    meshes = 0
    while left:
        meshes += 1
        place = folder / f"{kind}-{meshes}"
        by_name = {fault.name: fault for fault in made.faults(place)}
        try:
            with made.mesh(place) as mesh:
                sound = True
                while sound and left:
                    fault, seed = left.pop(0)
                    sound = table.run(fault.name, seed, partial(by_name[fault.name].work, mesh, seed))
                if sound:
                    table.run("ledger fsck", meshes, mesh.fsck)
        finally:
            if kind == "disks":
                disks.unmount(place / "data")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[POINTS, *systems.KINDS], metavar="KIND",
                        choices=[POINTS, *systems.KINDS], help=f"{POINTS}, {', '.join(systems.KINDS)} (default all)")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each fault; slow ones get fewer (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--folder", type=Path, help="keep the meshes' folders here")
    chosen = parser.parse_args()
    apart = APART in os.environ
    if not apart and os.getuid() == 0:
        command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execvpe(command[0], command, {**os.environ, APART: "1"})
    if apart:
        networks.prepare()
    table, seeds = Table(), range(chosen.first, chosen.first + chosen.seeds)
    with tempfile.TemporaryDirectory(prefix="mesh-faults-") as scratch:
        folder = chosen.folder or Path(scratch)
        for kind in chosen.kinds:
            if kind == POINTS:
                crash_points(table, seeds, chosen.only, folder)
            elif kind in NEED_APART and not apart:
                table.untried.append(kind)
            else:
                below(table, kind, seeds, chosen.only, folder)
    table.show()
    print(json.dumps(table.as_json()))
    return table.failed()


if __name__ == "__main__":
    sys.exit(main())
