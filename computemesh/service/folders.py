"""Folders to and from an artifact service: every file an artifact, the manifest another (`trust.folder`)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from computemesh.service.transfer import ArtifactInfo, Progress, Transfer, file_digest
from computemesh.trust import folder
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.folder import Entry

FILES_AT_ONCE = 4
T = TypeVar("T")


def _silent(done: int, total: int) -> None:
    return None


class _Sum:
    """Progress of several transfers as one."""

    def __init__(self, total: int, report: Progress) -> None:
        self._total, self._report = total, report
        self._done: dict[str, int] = {}
        self._sum = 0

    def of(self, path: str) -> Progress:
        def report(done: int, _: int) -> None:
            self._sum += done - self._done.get(path, 0)
            self._done[path] = done
            self._report(self._sum, self._total)

        return report


def survey(path: Path) -> dict[str, Path]:
    """The files below a folder by relative path. Links to files are followed. Raises InvalidArgument naming what is
    neither file nor folder, and for more than 10,000 files."""
    found: dict[str, Path] = {}
    for base, folders, names in os.walk(path, onerror=_unreadable):
        folders.sort()
        for name in sorted(names):
            file = Path(base, name)
            if not file.is_file():
                raise InvalidArgument(f"{file} is not a regular file: folders of files only", reason="INVALID_FOLDER")
            found[file.relative_to(path).as_posix()] = file
            if len(found) > folder.MAX_FILES:
                raise InvalidArgument(f"{path} has more than {folder.MAX_FILES:,} files", reason="INVALID_FOLDER")
        for name in folders:
            if Path(base, name).is_symlink():
                raise InvalidArgument(f"{Path(base, name)} links to a folder, which is not followed",
                                      reason="INVALID_FOLDER")  # fmt: skip
    return found


def _unreadable(error: OSError) -> None:
    raise InvalidArgument(f"cannot read {error.filename}: {error.strerror}")


async def put_folder(
    transfer: Transfer, path: Path, *, name: str | None = None, progress: Progress = _silent
) -> ArtifactInfo:
    """Stores every file of a folder that the store has not, then the manifest, whose digest is the folder's.

    Raises InvalidArgument as `survey` and `trust.folder.encode` do, and as `Transfer.put`.
    """
    files = await asyncio.to_thread(survey, path)
    folder.encode({relative: Entry(bytes(32), 0) for relative in files})  # bad paths are refused before bytes move
    total = sum(file.stat().st_size for file in files.values())
    shared, slots = _Sum(total, progress), asyncio.Semaphore(FILES_AT_ONCE)

    async def one(relative: str, file: Path) -> tuple[str, Entry]:
        async with slots:
            stored = await transfer.put(file, name=relative[-256:], progress=shared.of(relative))
        return relative, Entry(bytes.fromhex(stored.digest), stored.size)

    entries = await _all([one(relative, file) for relative, file in files.items()])
    manifest = folder.encode(dict(entries))
    shown = path.name if name is None else name
    return await transfer.put(manifest, name=shown, media_type=folder.MEDIA_TYPE)


async def manifest_of(transfer: Transfer, digest: str) -> dict[str, Entry]:
    """The files of a folder artifact. Raises NotFound, InvalidArgument where it is no manifest."""
    return folder.parse(await transfer.read(digest, folder.MAX_MANIFEST_BYTES))


async def get_folder(
    transfer: Transfer, digest: str, to: Path, *, max_bytes: int | None = None, progress: Progress = _silent
) -> Path:
    """Writes a folder artifact to `to`, which must not exist and appears only when it is whole.

    What an interrupted call left in `.NAME.DIGEST.parts` beside it is continued. Raises InvalidArgument where `to`
    exists or the files have more than `max_bytes` together, and as `Transfer.get`.
    """
    if await asyncio.to_thread(os.path.lexists, to):
        raise InvalidArgument(f"{to} exists already", violations=[("to", f"{to} exists")], reason="TARGET_EXISTS")
    manifest = await manifest_of(transfer, digest)
    total = sum(entry.size for entry in manifest.values())
    if max_bytes is not None and total > max_bytes:
        raise InvalidArgument(f"folder {digest} has {total:,} bytes, at most {max_bytes:,} are wanted",
                              reason="ARTIFACT_TOO_LARGE")  # fmt: skip
    parts = to.with_name(f".{to.name[:100]}.{digest[:16]}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    shared, slots = _Sum(total, progress), asyncio.Semaphore(FILES_AT_ONCE)

    async def one(relative: str, entry: Entry) -> None:
        async with slots:
            file = parts / relative
            if file.is_file() and await asyncio.to_thread(file_digest, file) == (entry.digest.hex(), entry.size):
                shared.of(relative)(entry.size, entry.size)
                return
            await transfer.get(entry.digest.hex(), file, max_bytes=entry.size, progress=shared.of(relative))
            if file.stat().st_size != entry.size:
                raise InvalidProof(f"folder {digest}: {relative!r} has {file.stat().st_size:,} bytes, the manifest "
                                   f"says {entry.size:,}")  # fmt: skip

    await _all([one(relative, entry) for relative, entry in manifest.items()])
    os.replace(parts, to)
    return to


async def _all(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order; the first failure ends the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def link_folder(manifest: folder.Manifest, source: Path, to: Path) -> None:
    """Makes the folder `to` of hard links to `source`/DIGEST. A folder of another try is replaced. Blocks."""
    parts = to.with_name(f".{to.name}.parts")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    for relative, entry in manifest.items():
        file = parts / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(source / entry.digest.hex(), file)  # refuses what is there: names that a file system takes for equal
    shutil.rmtree(to, ignore_errors=True)
    os.replace(parts, to)
