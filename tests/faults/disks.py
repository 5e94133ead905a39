"""Disks that are full, fail or forget a bit, and clocks that are wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from computemesh.trust.errors import DigestMismatch, MeshError, NotFound, ResourceExhausted, Unavailable
from tests.faults.laws import require
from tests.faults.mesh import PATIENCE_S, Mesh
from tests.faults.points import Missed

SMALL = {"ledger": 48, "artifacts": 1300}
"""Folders of a mesh that get a disk of their own, MiB; the artifact store keeps 1 GiB in reserve."""
FIU = {
    "LD_PRELOAD": "/usr/lib/fiu/fiu_run_preload.so /usr/lib/fiu/fiu_posix_preload.so",
    "FIU_CTRL_FIFO": "/tmp/fiu-ctrl",
}
EIO = 5


def mount(data: Path) -> None:
    """Small disks below a mesh's folder, in the mount namespace that `tests.faults` runs in."""
    for name, size in SMALL.items():
        (data / name).mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", data / name], check=True)


def unmount(data: Path) -> None:
    """Takes them away again."""
    for name in SMALL:
        subprocess.run(["umount", "--lazy", data / name], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is left on the folder's disk."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        free = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def failing(mesh: Mesh, name: str, call: str) -> Iterator[None]:
    """A process's calls of this kind give EIO (libfiu's names, e.g. posix/io/sync/fdatasync)."""
    control = ["fiu-ctrl", "-c", f"enable name={call},failinfo={EIO}", str(mesh.cluster.pids[name])]
    subprocess.run(control, check=True, capture_output=True)
    pid = mesh.cluster.pids[name]
    try:
        yield
    finally:
        if mesh.cluster.pids.get(name) == pid:
            subprocess.run(["fiu-ctrl", "-c", f"disable name={call}", str(pid)], check=True, capture_output=True)


def ledger_ends(mesh: Mesh, seed: int, fault: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Where a commit fails nothing is known of the disk: the ledger ends itself, and starts again when it is mended."""
    random = Random(seed)
    with mesh.laws.watching():
        work = mesh.load(random)
        with fault():
            for _ in range(20):
                work += mesh.load(random)
                until = time.monotonic() + 3.0
                while time.monotonic() < until and not mesh.dead("ledger"):
                    time.sleep(0.01)
                if mesh.dead("ledger"):
                    break
            ended = mesh.dead("ledger")
        mesh.revive("ledger")
        for one in work:
            one.result(PATIENCE_S)
    mesh.laws.check()
    if not ended:
        raise Missed("the ledger wrote as if nothing were wrong")


def artifacts_refused(mesh: Mesh, seed: int, fault: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Uploads are refused and say so; tasks whose files cannot be kept wait until the disk is mended."""
    random, refused = Random(seed), 0
    with mesh.laws.watching():
        with fault():
            data = {"text": f"{seed} words"}
            task_id = mesh.submit("function", {"function_name": "readability", "data": data}, "60.0")
            for size in (10, 100_000, 9_000_000):
                try:
                    mesh.client_at_once.put_artifact(random.randbytes(size))
                except (ResourceExhausted, Unavailable):
                    refused += 1
        mesh.upload(random.randbytes(100_000))
    mesh.laws.check()
    require(task_id in mesh.laws.ended, "L", "a task whose files could not be kept never ended")
    if refused != 3:
        raise Missed(f"{refused} of 3 uploads were refused")


# ---- forgotten bits


def flip(path: Path, random: Random) -> None:
    """One bit of a file is another."""
    with path.open("r+b", buffering=0) as file:
        at = random.randrange(path.stat().st_size)
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))
        os.fsync(file.fileno())


def ledger_bit(mesh: Mesh, seed: int, suffix: str) -> dict[str, float]:
    """A bit of the ledger's database or its write-ahead log flips while the ledger is down: it does not start until the
    file is put back; or it was a bit that nothing stands in, everything is as it was, and the ledger goes on."""
    random = Random(seed)
    for one in mesh.load(random):
        one.result(PATIENCE_S)
    mesh.laws.check()
    known = mesh.laws.remembered()
    mesh.cluster.kill("ledger")
    folder = mesh.cluster.data / "ledger"
    kept = {path: path.read_bytes() for path in folder.glob("ledger.sqlite*")}
    path = folder / f"ledger.sqlite{suffix}"
    if not path.exists() or not path.stat().st_size:
        mesh.revive("ledger")
        raise Missed(f"there is no {path.name}")
    flip(path, random)
    try:
        mesh.cluster.start_process("ledger")
    except Unavailable:
        served = False
        for file in folder.glob("ledger.sqlite*"):
            file.unlink()
        for file, data in kept.items():
            file.write_bytes(data)
        mesh.revive("ledger")
    else:
        served = True
        known.still_served(mesh.client)
        mesh.fsck()
    mesh.laws.check()
    return {"refused to start": float(not served)}


def artifact_bit(mesh: Mesh, seed: int) -> None:
    """A bit of a stored artifact flips: whoever reads it is told."""
    random = Random(seed)
    data = random.randbytes(50_000)
    digest = mesh.client.put_artifact(data).digest
    parts = [path for path in (mesh.cluster.data / "artifacts" / "data").rglob("*") if path.is_file()]
    flip(next(path for path in parts if path.read_bytes() == data), random)
    try:
        found = mesh.client.read_artifact(digest)
    except (DigestMismatch, NotFound):
        return
    except MeshError as error:
        require(False, "C", f"a damaged artifact is refused as {error.reason}")
    require(found == data, "C", "a damaged artifact is served as if it were whole")
    raise Missed("the damaged bytes were not read")
