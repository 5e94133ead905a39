"""Who wants which artifact kept until when, and the removal of what nobody wants.

A reference is an object of its own, `refs/KIND/ID/DIGEST/EXPIRES-SIZE`; its name says all that a collection needs, its
body what a list shows. Removal takes two collections at least `grace_ms` apart. The first one marks (`.doomed`) what
has no reference; from then on a new reference does not rely on those bytes and they are uploaded again, as another
version. The second removes what is marked and still has none. So no lock is needed between the services that write
and the one that collects, and nothing that was promised is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from computemesh.service.blobs import DOOMED, FOLDER, Blob, BlobStore, Owner
from computemesh.trust import folder
from computemesh.trust.errors import MeshError, NotFound

FOREVER = 0
HOUR_MS = 3_600_000
_BODY_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Reference:
    """`expires_ms` is Unix ms, 0 until it is released; `held_ms` when it was made or renewed."""

    digest: str
    owner: Owner
    expires_ms: int
    size: int
    held_ms: int
    path: str


@dataclass(frozen=True, slots=True)
class Label:
    """What an owner calls an artifact."""

    name: str = ""
    media_type: str = ""
    created_ms: int = 0


@dataclass(slots=True)
class Collected:
    """What a collection did: versions marked, saved by a new reference and removed; references and uploads expired."""

    doomed: int = 0
    saved: int = 0
    removed: int = 0
    removed_bytes: int = 0
    references: int = 0
    uploads: int = 0


@dataclass(slots=True)
class _Version:
    modified_ms: int = 0
    doomed_ms: int | None = None
    complete: bool = False


@dataclass(slots=True)
class _Digest:
    versions: dict[str, _Version] = field(default_factory=dict)


class Retention:
    """The references of a store."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._objects = store.objects

    async def hold(
        self, digest: str, size: int, owner: Owner, expires_ms: int, label: Label | None = None
    ) -> tuple[int, Label]:
        """Keeps a digest for `owner` until `expires_ms` (0: until released). A longer hold there was is not shortened,
        and a name there was is not emptied. Returns until when and under what it is held.

        Make the reference first and then look whether the bytes are here (`BlobStore.find(to_keep=True)`): the other
        way round they may go in between.
        """
        place = f"refs/{owner.kind}/{owner.id}/{digest}"
        before = await self._objects.list(place)
        longest = max((_expiry(read(one.path, 0).expires_ms) for one in before), default=0)
        if before and longest > _expiry(expires_ms):
            expires_ms = FOREVER if longest == _expiry(FOREVER) else int(longest)
        told = label or Label()
        if before and not (told.name and told.media_type):
            old = await self.label(read(before[0].path, 0))
            told = Label(told.name or old.name, told.media_type or old.media_type, told.created_ms)
        body = {"name": told.name, "media_type": told.media_type, "created_ms": told.created_ms}
        path = f"{place}/{expires_ms:x}-{size:x}"
        await self._objects.put(path, json.dumps(body).encode())
        await self._objects.delete([one.path for one in before if one.path != path])
        return expires_ms, told

    async def hold_for_task(self, task_id: str, digests: Iterable[str]) -> None:
        """A task holds what it reads and leaves, until `release`. Raises NotFound for what is not here."""
        owner = Owner("task", task_id)
        for digest in digests:
            known = await self._store.get(digest)
            await self.hold(digest, known.size, owner, FOREVER, Label(known.name, known.media_type, known.created_ms))
            if await self._store.find(digest, to_keep=True) is None:
                await self.release(owner, digest)
                raise NotFound(f"artifact {digest} is about to be removed: put it again", reason="ARTIFACT_NOT_FOUND")

    async def release(self, owner: Owner, digest: str = "") -> int:
        """Ends the owner's reference to a digest, or all of its references; how many there were."""
        found = await self._objects.list(f"refs/{owner.kind}/{owner.id}" + (f"/{digest}" if digest else ""))
        await self._objects.delete([one.path for one in found])
        return len(found)

    async def held(self, owner: Owner, digest: str = "") -> list[Reference]:
        """The owner's references, the last made first."""
        found = await self._objects.list(f"refs/{owner.kind}/{owner.id}" + (f"/{digest}" if digest else ""))
        rows = [read(one.path, one.modified_ms) for one in found]
        return sorted(rows, key=lambda one: (-one.held_ms, one.digest))

    async def label(self, reference: Reference) -> Label:
        """What the owner called it; nothing where the reference ended meanwhile."""
        try:
            return Label(**json.loads(await self._objects.get(reference.path, _BODY_BYTES)))
        except NotFound:
            return Label()

    async def collect(self, now_ms: int, grace_ms: int = HOUR_MS, upload_ttl_ms: int = 24 * HOUR_MS) -> Collected:
        """Marks what nobody refers to, removes what was marked `grace_ms` ago, and forgets uploads nobody continued.

        One process should do it; two at once only waste work. `grace_ms` must be longer than any upload's pauses.
        """
        done = Collected()
        # Data first: what is written while we look is then never taken for something left over.
        data: dict[str, list[tuple[str, int, int]]] = {}
        for one in await self._objects.list("data"):
            data.setdefault(one.path.split("/")[1], []).append((one.path, one.size, one.modified_ms))
        known = await self._uploads(data, now_ms - upload_ttl_ms, done)
        digests = await self._versions()
        live = await self._live(digests, now_ms, done)
        for digest, found in digests.items():
            known |= set(found.versions)
            await self._judge(digest, found, digest in live, data, now_ms - grace_ms, done)
        for version, parts in data.items():
            if version not in known and max(modified for _, _, modified in parts) < now_ms - grace_ms:
                await self._remove(parts, done)
        await self._objects.sweep(now_ms - grace_ms)
        return done

    async def _uploads(self, data: dict[str, list[tuple[str, int, int]]], before_ms: int, done: Collected) -> set[str]:
        """Versions that are being uploaded, without those that expired."""
        alive = set()
        for marker in await self._objects.list("uploads"):
            version = marker.path.rpartition("/")[2]
            if max([marker.modified_ms, *(modified for _, _, modified in data.get(version, ()))]) >= before_ms:
                alive.add(version)
            else:
                await self._objects.delete([marker.path])
                done.uploads += 1
        return alive

    async def _versions(self) -> dict[str, _Digest]:
        found: dict[str, _Digest] = {}
        for one in await self._objects.list("blobs"):
            _, digest, name = one.path.split("/")
            version = found.setdefault(digest, _Digest()).versions.setdefault(name.removesuffix(DOOMED), _Version())
            if name.endswith(DOOMED):
                version.doomed_ms = one.modified_ms
            else:
                version.modified_ms, version.complete = one.modified_ms, True
        return found

    async def _live(self, digests: dict[str, _Digest], now_ms: int, done: Collected) -> set[str]:
        """Digests that a reference names, or a folder that one names."""
        live = set()
        for one in await self._objects.list("refs"):
            reference = read(one.path, one.modified_ms)
            if _expiry(reference.expires_ms) > now_ms:
                live.add(reference.digest)
            else:
                await self._objects.delete([one.path])
                done.references += 1
        for digest in [one for one in live if one in digests]:
            for version in digests[digest].versions:
                if version.endswith(FOLDER):
                    live |= await self._files(digest)
                    break
        return live

    async def _files(self, digest: str) -> set[str]:
        blob = await self._store.find(digest, as_folder=True)
        if blob is None:
            return set()
        data = b"".join([bytes(piece) async for piece in self._store.read(blob)])
        try:
            manifest = await asyncio.to_thread(folder.parse, data)
        except MeshError:  # damaged on disk: it names nothing any more
            return set()
        return {entry.digest.hex() for entry in manifest.values()}

    async def _judge(
        self, digest: str, found: _Digest, live: bool, data: dict[str, list[tuple[str, int, int]]], before_ms: int,
        done: Collected,
    ) -> None:  # fmt: skip
        # Of several sound versions the first in order serves: a folder's, since only that is followed.
        sound = sorted((name for name, one in found.versions.items() if one.complete and one.doomed_ms is None),
                       key=lambda name: (not name.endswith(FOLDER), name))  # fmt: skip
        for name, version in found.versions.items():
            mark = f"blobs/{digest}/{name}{DOOMED}"
            wanted = live and (name in sound[:1] or not sound)
            if version.doomed_ms is None:
                if not wanted and version.modified_ms < before_ms:
                    await self._objects.put(mark, b"{}")
                    done.doomed += 1
            elif wanted and version.complete:
                await self._objects.delete([mark])
                sound.append(name)
                done.saved += 1
            elif version.doomed_ms < before_ms:
                # The index goes first, so that nobody finds what is being removed.
                await self._objects.delete([f"blobs/{digest}/{name}", mark])
                await self._remove(data.pop(name, []), done)

    async def _remove(self, parts: list[tuple[str, int, int]], done: Collected) -> None:
        await self._objects.delete([path for path, _, _ in parts])
        done.removed += 1
        done.removed_bytes += sum(size for _, size, _ in parts)


def read(path: str, modified_ms: int) -> Reference:
    """The reference an object's path stands for."""
    _, kind, owner, digest, rest = path.split("/")
    expires, _, size = rest.partition("-")
    return Reference(digest, Owner(kind, owner), int(expires, 16), int(size, 16), modified_ms, path)


def _expiry(expires_ms: int) -> float:
    return expires_ms or float("inf")


def described(blob: Blob, label: Label | None) -> Label:
    """What to call a blob: as its reader does, else as its first owner did."""
    told = label or Label()
    return Label(told.name or blob.name, told.media_type or blob.media_type, blob.created_ms)
