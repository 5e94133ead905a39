"""Artifacts on the disk of who works with them: fetched once, checked, and bounded by what was used last.

    DIR/files/DIGEST       an artifact's bytes; its modification time is when it was last used
    DIR/folders/DIGEST/    a folder artifact: hard links to its files
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from computemesh.service.folders import link_folder
from computemesh.service.transfer import Transfer
from computemesh.trust import folder
from computemesh.trust.errors import InvalidState, NotFound, ResourceExhausted
from computemesh.trust.folder import Entry

DEFAULT_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """`workloads.contract.Files` over a cache folder; it can be sent to another process. Nothing is fetched: what a
    job reads is there before it runs. `results` are the outputs of other jobs of the task."""

    root: Path
    results: dict[int, bytes] = field(default_factory=dict)

    def artifact(self, digest: bytes) -> Path:
        """A local file with the artifact of that SHA-256. Raises NotFound."""
        return self._there(self.root / "files" / digest.hex(), digest)

    def folder(self, digest: bytes) -> Path:
        """A local folder with the files of a folder artifact. Raises NotFound."""
        return self._there(self.root / "folders" / digest.hex(), digest)

    def result(self, job: int) -> bytes:
        """The output of another job. Raises NotFound."""
        if job not in self.results:
            raise NotFound(f"the output of job {job} is not at hand", reason="RESULT_NOT_FOUND")
        return self.results[job]

    def _there(self, path: Path, digest: bytes) -> Path:
        if not path.exists():
            raise NotFound(f"artifact {digest.hex()} was not fetched", reason="ARTIFACT_NOT_FOUND")
        return path


class ArtifactCache:
    """At most `max_bytes` in `root`, of one process. What is in use is never removed."""

    def __init__(self, root: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        """Takes over the folder. Raises InvalidState where another process has it."""
        self._files, self._folders = root / "files", root / "folders"
        self._files.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise InvalidState(f"another process uses the artifact cache {root}", reason="CACHE_IN_USE") from None
        shutil.rmtree(self._folders, ignore_errors=True)  # links only, made again when asked for
        self._folders.mkdir()
        self.files = LocalFiles(root)
        self.max_bytes = max_bytes
        self._linked: dict[str, frozenset[str]] = {}
        self._pins: Counter[str] = Counter()
        self._fetching: dict[str, asyncio.Lock] = {}
        self._tidying = asyncio.Lock()

    def close(self) -> None:
        """Lets another process use the folder."""
        os.close(self._lock)

    def artifact(self, digest: bytes) -> Path:
        """As `LocalFiles.artifact`."""
        return self.files.artifact(digest)

    def folder(self, digest: bytes) -> Path:
        """As `LocalFiles.folder`."""
        return self.files.folder(digest)

    @contextlib.asynccontextmanager
    async def use(
        self, transfer: Transfer, artifacts: Iterable[bytes] = (), folders: Iterable[bytes] = ()
    ) -> AsyncIterator[LocalFiles]:
        """Fetches what is missing and keeps it while the body runs.

        Raises NotFound, InvalidProof, Unavailable as `Transfer.get`, InvalidArgument where a folder is none, and
        ResourceExhausted where all that is in use does not fit.
        """
        pinned: list[str] = []

        def pin(digest: bytes) -> str:
            name = digest.hex()
            self._pins[name] += 1
            pinned.append(name)
            return name

        try:
            for digest in artifacts:
                await self._fetch(transfer, pin(digest), None)
            for digest in folders:
                name = pin(digest)
                await self._fetch(transfer, name, folder.MAX_MANIFEST_BYTES)
                manifest = folder.parse(await asyncio.to_thread((self._files / name).read_bytes))
                entries = {entry.digest: entry for entry in manifest.values()}
                self._admit(sum(entry.size for entry in entries.values()))
                for entry in entries.values():
                    await self._fetch(transfer, pin(entry.digest), entry.size)
                await self._link(name, manifest)
            yield self.files
        finally:
            self._pins.subtract(pinned)
            self._pins += Counter()  # drops what nobody uses
            await self.evict()

    def _admit(self, size: int) -> None:
        if size > self.max_bytes:
            raise ResourceExhausted(f"{size:,} bytes do not fit the artifact cache of {self.max_bytes:,}",
                                    reason="CACHE_TOO_SMALL")  # fmt: skip

    async def _fetch(self, transfer: Transfer, name: str, most: int | None) -> None:
        async with self._fetching.setdefault(name, asyncio.Lock()):
            path = self._files / name
            try:
                os.utime(path)
                return
            except FileNotFoundError:
                pass
            size = (await transfer.stat(name)).size
            self._admit(size)
            await self.evict(size)
            await transfer.get(name, path, max_bytes=self.max_bytes if most is None else most)
        if not self._fetching[name].locked():
            self._fetching.pop(name, None)

    async def _link(self, name: str, manifest: dict[str, Entry]) -> None:
        async with self._tidying:
            if name in self._linked:
                return
            await asyncio.to_thread(link_folder, manifest, self._files, self._folders / name)
            self._linked[name] = frozenset(entry.digest.hex() for entry in manifest.values())

    async def evict(self, room: int = 0) -> None:
        """Removes what was used longest ago until `room` more bytes fit.

        Raises ResourceExhausted where they do not, because what is in use does not leave enough.
        """
        async with self._tidying:
            total = await asyncio.to_thread(self._evict, self.max_bytes - room)
        if room and total + room > self.max_bytes:
            raise ResourceExhausted(f"{room:,} bytes do not fit the artifact cache: {total:,} of {self.max_bytes:,} "
                                    "are in use", reason="CACHE_IN_USE", retry_after_ms=1000)  # fmt: skip

    def _evict(self, limit: int) -> int:
        """Bytes that stay."""
        found = []
        for entry in os.scandir(self._files):
            with contextlib.suppress(FileNotFoundError):  # a transfer just gave a file its name
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.name))
        total = sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            digest = name[1:65] if name.startswith(".") else name  # what a broken transfer left goes too
            if total > limit and not self._pins[digest]:
                self._drop(name)
                total -= size
        return total

    def _drop(self, name: str) -> None:
        for linked in [key for key, files in self._linked.items() if name in files or name == key]:
            shutil.rmtree(self._folders / linked, ignore_errors=True)
            del self._linked[linked]
        with contextlib.suppress(FileNotFoundError):
            (self._files / name).unlink()
