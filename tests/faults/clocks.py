"""A service's clock jumps by an hour and, a moment later, back (libfaketime; the monotonic clock goes on)."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from tests.faults.mesh import PATIENCE_S, Mesh

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
NAMES = ("ledger", "market", "orchestrator", "worker-1")


def environment(folder: Path) -> dict[str, dict[str, str]]:
    """Variables for processes whose clocks follow files in `folder`."""
    folder.mkdir(parents=True)
    for name in NAMES:
        set_clock(folder, name, 0)
    return {name: {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(folder / name),
                   "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"} for name in NAMES}  # fmt: skip


def set_clock(folder: Path, name: str, ahead_s: int) -> None:
    """The process's clock is so far ahead of the machine's, a second from now."""
    beside = folder / f"{name}.new"
    beside.write_text(f"{ahead_s:+d}s\n")
    beside.rename(folder / name)


def jump(mesh: Mesh, folder: Path, seed: int, name: str, ahead_s: int) -> None:
    """Work goes on while the clock is wrong and after it is right again; nothing is lost for the difference."""
    random = Random(f"{name} {ahead_s} {seed}")
    with mesh.laws.watching():
        work = mesh.load(random)
        set_clock(folder, name, ahead_s)
        for _ in range(4):
            time.sleep(1.0)
            work += mesh.load(random)
        set_clock(folder, name, 0)
        time.sleep(1.0)
        work += mesh.load(random)
        for one in work:
            one.result(PATIENCE_S)
    mesh.laws.check()
