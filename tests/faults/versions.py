"""A rolling upgrade: processes of an earlier build are replaced one after another under load, then put back.

The earlier build is what `git archive` gives of `EARLIER` (or $COMPUTEMESH_EARLIER): the first whose tables are still
today's. Each process follows a link of its own to the code that it starts with.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from random import Random

from tests.faults.mesh import PATIENCE_S, Mesh

EARLIER = os.environ.get("COMPUTEMESH_EARLIER", "3027cbc")
ROOT = Path(__file__).parents[2]
NAMES = ("ledger", "market", "orchestrator", "worker-1", "worker-2")


def environment(folder: Path) -> dict[str, dict[str, str]]:
    """Variables for processes that all start with the earlier build."""
    earlier = folder / "earlier"
    earlier.mkdir(parents=True)
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", EARLIER], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(earlier, filter="data")
    for name in NAMES:
        follow(folder, name, earlier)
    variables = {name: {"PYTHONPATH": str(folder / name), "PYTHONSAFEPATH": "1"} for name in NAMES}
    seen = subprocess.run([sys.executable, "-c", "import ledger; print(ledger.__file__)"], check=True, text=True,
                          capture_output=True, env={**os.environ, **variables["ledger"]}).stdout  # fmt: skip
    assert Path(seen.strip()).is_relative_to(folder), f"processes would run {seen}"
    return variables


def follow(folder: Path, name: str, code: Path) -> None:
    """The process starts with `code` from now on."""
    beside = folder / f"{name}.new"
    beside.symlink_to(code)
    beside.rename(folder / name)


def roll(mesh: Mesh, folder: Path, seed: int) -> None:
    """In an order that the seed says, forward and then back; what is under way goes on, and more is asked for."""
    random = Random(f"versions {seed}")
    with mesh.laws.watching():
        for code in (ROOT, folder / "earlier"):
            for name in random.sample(NAMES, len(NAMES)):
                work = mesh.load(random)
                mesh.cluster.stop_process(name)
                follow(folder, name, code)
                mesh.cluster.start_process(name)
                work += mesh.load(random)
                for one in work:
                    one.result(PATIENCE_S)
    mesh.laws.check()
