"""Faults below the services: processes, networks, disks, clocks, versions. Each kind has a mesh made for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import clocks, disks, networks, processes, versions
from tests.faults.mesh import Mesh

Work = Callable[[Mesh, int], dict[str, float] | None]


class Fault(NamedTuple):
    """A row: what is done with a seed, and how many of the seeds it gets (1 of so many)."""

    name: str
    work: Work
    share: int = 1


class Kind(NamedTuple):
    """Faults that one mesh can bear, and that mesh in a folder."""

    mesh: Callable[[Path], Mesh]
    faults: Callable[[Path], Iterator[Fault]]


def _of_processes(folder: Path) -> Iterator[Fault]:
    yield Fault("worker: SIGSTOP past its lease, then SIGCONT", lambda m, s: processes.strike(m, s, signal.SIGSTOP), 4)
    yield Fault("worker: kill -9", lambda m, s: processes.strike(m, s, signal.SIGKILL), 4)
    yield Fault("worker: kill -9 of its device's process", processes.lose_device, 4)


def _of_networks(folder: Path) -> Iterator[Fault]:
    for pair in networks.PAIRS:
        for seconds, share in ((1, 4), (10, 10), (60, 20)):
            work = partial(networks.part, pair=pair, seconds=seconds)
            yield Fault(f"{pair}: parted for {seconds} s", lambda m, s, work=work: work(m, s), share)  # type: ignore[misc]
        lossy = partial(networks.part, pair=pair, seconds=10, which=networks.HALF)
        yield Fault(f"{pair}: 50 % of packets lost", lambda m, s, work=lossy: work(m, s), 10)  # type: ignore[misc]


def _of_disks(folder: Path) -> Iterator[Fault]:
    data = folder / "data"

    def on(name: str) -> Callable[[], AbstractContextManager[None]]:
        return lambda: disks.full(data / name)

    def calls(name: str, call: str) -> Callable[[Mesh], Callable[[], AbstractContextManager[None]]]:
        return lambda mesh: lambda: disks.failing(mesh, name, call)

    ledger, artifacts = disks.ledger_ends, disks.artifacts_refused
    sync = calls("ledger", "posix/io/sync/fdatasync")
    write = calls("ledger", "posix/io/rw/pwrite")
    keep = calls("market", "posix/io/sync/fsync")
    yield Fault("ledger: disk full", lambda m, s: ledger(m, s, on("ledger")), 4)
    yield Fault("ledger: EIO on sync", lambda m, s: ledger(m, s, sync(m)), 4)
    yield Fault("ledger: EIO on write", lambda m, s: ledger(m, s, write(m)), 4)
    yield Fault("artifacts: disk full", lambda m, s: artifacts(m, s, on("artifacts")), 4)
    yield Fault("artifacts: EIO on sync", lambda m, s: artifacts(m, s, keep(m)), 4)
    yield Fault("ledger: a bit of the database flips", lambda m, s: disks.ledger_bit(m, s, ""))
    yield Fault("ledger: a bit of the write-ahead log flips", lambda m, s: disks.ledger_bit(m, s, "-wal"))
    yield Fault("artifacts: a bit flips", disks.artifact_bit)


def _of_clocks(folder: Path) -> Iterator[Fault]:
    for name in clocks.NAMES:
        for ahead_s in (3600, -3600):
            work = partial(clocks.jump, folder=folder / "clocks", name=name, ahead_s=ahead_s)
            yield Fault(f"{name.partition('-')[0]}: clock {ahead_s // 3600:+d} h and back",
                        lambda m, s, work=work: work(m, seed=s), 4)  # type: ignore[misc]


def _of_versions(folder: Path) -> Iterator[Fault]:
    code = folder / "code"
    yield Fault("all upgraded one after another, and put back", lambda m, s: versions.roll(m, code, s), 4)


def _with_small_disks(folder: Path) -> Mesh:
    disks.mount(folder / "data")
    return Mesh(folder, environment={"ledger": disks.FIU, "market": disks.FIU})


def _with_own_clocks(folder: Path) -> Mesh:
    return Mesh(folder, environment=clocks.environment(folder / "clocks"))


KINDS = {
    "processes": Kind(lambda folder: Mesh(folder, overrides=processes.USUAL), _of_processes),
    "networks": Kind(lambda folder: Mesh(folder, overrides=networks.APART, port_base=networks.PORT), _of_networks),
    "disks": Kind(_with_small_disks, _of_disks),
    "clocks": Kind(_with_own_clocks, _of_clocks),
    "versions": Kind(lambda folder: Mesh(folder, environment=versions.environment(folder / "code")), _of_versions),
}
