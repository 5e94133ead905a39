"""The bytes of artifacts, by SHA-256, in an object store that several processes share.

    blobs/DIGEST/VERSION           what is complete: size, name, media type and the parts (JSON)
    blobs/DIGEST/VERSION.doomed    nobody referred to it; the next collection but one removes it (retention.py)
    data/VERSION/OFFSET-STREAM     the parts, at most 8 MiB each
    uploads/DIGEST/KIND/ID/VERSION an upload that is not complete: what its owner declared (JSON)
    refs/KIND/ID/DIGEST/EXPIRES-SIZE   who wants it kept until when (retention.py)

Every object is written once under a name nobody else writes: `VERSION` and `STREAM` are random. Two uploads of one
digest make two versions, of which either serves. A part never changes under a reader, whoever dies when.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from computemesh.service.blocks import Blocks
from computemesh.service.crashpoints import crash_point
from computemesh.service.objects import Object, Objects
from computemesh.trust import folder
from computemesh.trust.errors import DigestMismatch, InvalidArgument, InvalidState, NotFound, ResourceExhausted

CHUNK_BYTES = 1 << 20
PART_BYTES = 8 << 20
# What a sender may be ahead of what is stored; two parts are held: one fills, one is being stored.
WINDOW_BYTES = 4 * PART_BYTES
MAX_INDEX_BYTES = 8 << 20
READ_BYTES = 4 << 20
RESERVE_BYTES = 1 << 30
STALLED_S = 10.0
ENDING_S = 1.0
DOOMED = ".doomed"
# The version's own name says that it is a manifest, so that a collection reads manifests only.
FOLDER = "-folder"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose reference: `kind` is "account", "worker", "task" or "audit", `id` an address or a task id."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an upload says of itself before its bytes. `digest` is 64 hexadecimal characters, `size` in bytes."""

    digest: str
    size: int
    media_type: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive bytes of an artifact: the object's name and length."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """Complete, checked bytes."""

    digest: str
    version: str
    size: int
    media_type: str
    name: str
    created_ms: int
    parts: tuple[Part, ...]


def missing(digest: str) -> NotFound:
    """The error for bytes that are not here."""
    return NotFound(f"artifact {digest} is not here", reason="ARTIFACT_NOT_FOUND")


class BlobStore:
    """`max_bytes` is the largest artifact taken."""

    def __init__(self, objects: Objects, max_bytes: int) -> None:
        self.objects = objects
        self.max_bytes = max_bytes
        self._active: dict[str, Upload] = {}
        self._known: OrderedDict[tuple[str, str], Blob] = OrderedDict()  # blobs never change

    async def versions(self, digest: str) -> list[tuple[str, bool]]:
        """(version, doomed) of everything complete under a digest, sound ones first."""
        names = {one.path.rpartition("/")[2] for one in await self.objects.list(f"blobs/{digest}")}
        found = [(name, name + DOOMED in names) for name in names if not name.endswith(DOOMED)]
        return sorted(found, key=lambda item: (item[1], item[0]))

    async def find(self, digest: str, *, to_keep: bool = False, as_folder: bool = False) -> Blob | None:
        """The bytes under a digest, if they are here.

        `to_keep`: only what is not about to be removed, because a reference that is made now may come too late for
        it. `as_folder`: only what is known to be a manifest.
        """
        for version, doomed in await self.versions(digest):
            if (doomed and to_keep) or (as_folder and not version.endswith(FOLDER)):
                continue
            try:
                return await self._load(digest, version)
            except NotFound:
                continue
        return None

    async def get(self, digest: str) -> Blob:
        """As `find`. Raises NotFound."""
        blob = await self.find(digest)
        if blob is None:
            raise missing(digest)
        return blob

    async def _load(self, digest: str, version: str) -> Blob:
        known = self._known.get((digest, version))
        if known is None:
            raw = json.loads(await self.objects.get(f"blobs/{digest}/{version}", MAX_INDEX_BYTES))
            parts = tuple(Part(name, size) for name, size in raw["parts"])
            known = Blob(digest, version, raw["size"], raw["media_type"], raw["name"], raw["created_ms"], parts)
            self._known[digest, version] = known
            if len(self._known) > 256:
                self._known.popitem(last=False)
        return known

    async def read(self, blob: Blob, offset: int = 0, length: int = 0) -> AsyncIterator[memoryview]:
        """Bytes from `offset` on (`length` 0: to the end), 4 MiB ahead of the reader. Raises NotFound, InvalidArgument.

        The digest is not checked here: the reader does, which need not trust this store.
        """
        if offset > blob.size or length > blob.size - offset:
            problem = f"{offset} + {length} is beyond the artifact's {blob.size} bytes"
            raise InvalidArgument(f"offset: {problem}", violations=[("offset", problem)])
        pieces = _pieces(blob, offset, offset + length if length else blob.size)
        ahead: asyncio.Task[memoryview] | None = None
        try:
            while ahead is not None or pieces:
                current = ahead or asyncio.ensure_future(self._range(blob, pieces.pop(0)))
                ahead = asyncio.ensure_future(self._range(blob, pieces.pop(0))) if pieces else None
                yield await current
        finally:
            if ahead is not None:
                ahead.cancel()

    async def _range(self, blob: Blob, piece: tuple[str, int, int]) -> memoryview:
        name, start, length = piece
        try:
            return await self.objects.range(f"data/{blob.version}/{name}", start, length)
        except NotFound:
            self._known.pop((blob.digest, blob.version), None)
            raise missing(blob.digest) from None

    async def upload(self, declared: Declaration, owner: Owner, now_ms: int) -> Upload:
        """An upload, continued where an interrupted one of the same owner stopped.

        Raises InvalidArgument where it is larger than the store takes, ResourceExhausted where the disk is full.
        """
        self.admit(declared)
        place = f"uploads/{declared.digest}/{owner.kind}/{owner.id}"
        best: tuple[int, str, list[Part]] = (0, "", [])
        for marker in await self.objects.list(place):
            version = marker.path.rpartition("/")[2]
            if version.endswith(FOLDER) != (declared.media_type == folder.MEDIA_TYPE):
                continue
            other = self._active.get(version)
            if other is not None and not await other.yields():
                continue
            parts = chain(await self.objects.list(f"data/{version}"))
            stored = sum(part.size for part in parts)
            if best[0] < stored <= declared.size:
                best = (stored, version, parts)
        stored, version, parts = best
        version = version or secrets.token_hex(16) + (FOLDER if declared.media_type == folder.MEDIA_TYPE else "")
        upload = Upload(self, declared, version, f"{place}/{version}", parts, now_ms)
        if stored:
            await upload.mark()  # it lives again: the marker's age counts from now
        self._active[version] = upload
        return upload

    def admit(self, declared: Declaration) -> None:
        """Raises InvalidArgument or ResourceExhausted for an upload that will not be taken, before its bytes come."""
        if declared.size > self.max_bytes:
            problem = f"{declared.size:,} bytes, at most {self.max_bytes:,} are taken"
            raise InvalidArgument(f"size: {problem}", violations=[("size", problem)], reason="ARTIFACT_TOO_LARGE",
                                  metadata={"limit": str(self.max_bytes)})  # fmt: skip
        free = self.objects.free_bytes()
        if free is not None and declared.size + RESERVE_BYTES > free:
            raise ResourceExhausted(
                f"the store has {max(free - RESERVE_BYTES, 0):,} bytes left, the artifact has {declared.size:,}",
                reason="STORE_FULL")  # fmt: skip

    async def unfinished(self, owner: Owner, but: str) -> int:
        """Bytes of the owner's uploads that were broken off, without those of digest `but`."""
        total = 0
        for marker in await self.objects.list("uploads"):
            _, digest, kind, name, version = marker.path.split("/")
            if (kind, name) == (owner.kind, owner.id) and digest != but and version not in self._active:
                total += sum(part.size for part in await self.objects.list(f"data/{version}"))
        return total

    def ended(self, version: str) -> None:
        """An upload of this process is over."""
        self._active.pop(version, None)


class Upload:
    """One stream of bytes into the store. `stored` is how many of them are durable.

    Parts are hashed in a thread (hashlib releases the interpreter's lock) and stored while the next one is received.
    """

    def __init__(
        self, store: BlobStore, declared: Declaration, version: str, marker: str, parts: list[Part], now_ms: int
    ) -> None:
        self.declared = declared
        self.version = version
        self.stored = sum(part.size for part in parts)
        self._store, self._marker, self._parts, self._now_ms = store, marker, parts, now_ms
        self._marked = bool(parts)
        self._stream = secrets.token_hex(4)
        self._hash = hashlib.sha256()
        self._received = self.stored
        self._blocks = Blocks(min(PART_BYTES + CHUNK_BYTES, declared.size - self.stored))
        self._over = False
        self._ended = asyncio.Event()
        self._moved_s = time.monotonic()
        # The hash of what an earlier stream stored is made again while the new bytes arrive.
        self._storing: asyncio.Task[None] | None = asyncio.create_task(self._rehash()) if parts else None

    async def write(self, chunk: bytes | memoryview) -> bool:
        """Takes the next bytes, True where `stored` may have grown. Raises InvalidArgument beyond the declared size."""
        self._check_own()
        self._moved_s = time.monotonic()
        self._received += len(chunk)
        if self._received > self.declared.size:
            raise self._wrong_length("at least ")
        self._blocks.add(chunk)
        if self._blocks.filled < PART_BYTES:
            return False
        await self._store_part()
        return True

    async def _store_part(self) -> None:
        """Begins to store what is buffered, after what was begun before is done."""
        await self._settled()
        data = self._blocks.take()
        if not data:
            return
        if not self._marked and self._received < self.declared.size:
            await self.mark()
        self._storing = asyncio.create_task(self._put(self._received - len(data), data))

    async def _settled(self) -> None:
        storing, self._storing = self._storing, None
        if storing is not None:
            await storing

    async def _put(self, offset: int, data: memoryview) -> None:
        part = Part(f"{offset:012x}-{self._stream}", len(data))
        put = self._store.objects.put(f"data/{self.version}/{part.name}", data)
        await asyncio.gather(asyncio.to_thread(self._hash.update, data), put)
        self._parts.append(part)
        self.stored += part.size

    async def _rehash(self) -> None:
        for part in self._parts:
            for start in range(0, part.size, READ_BYTES):
                length = min(READ_BYTES, part.size - start)
                data = await self._store.objects.range(f"data/{self.version}/{part.name}", start, length)
                await asyncio.to_thread(self._hash.update, data)

    async def mark(self) -> None:
        """Makes the upload one that can be continued. Whole artifacts of one part never need it."""
        declared = self.declared
        body = {"size": declared.size, "media_type": declared.media_type, "name": declared.name}
        await self._store.objects.put(self._marker, json.dumps(body).encode())
        self._marked = True

    async def finish(self) -> Blob:
        """Checks and keeps the whole. Raises InvalidArgument on a wrong length, InvalidProof on a wrong digest, and
        then forgets the bytes."""
        declared = self.declared
        if self._received != declared.size:
            raise self._wrong_length()
        await self._store_part()
        await self._settled()
        self._check_own()
        try:
            if self._hash.hexdigest() != declared.digest:
                text = f"the {declared.size:,} bytes have SHA-256 {self._hash.hexdigest()}, not {declared.digest}"
                raise DigestMismatch(f"digest: {text}", violations=[("digest", text)])
            if self.version.endswith(FOLDER):
                await self._check_manifest()
        except InvalidArgument:
            await self._discard()
            raise
        body = {
            "size": declared.size, "media_type": declared.media_type, "name": declared.name,
            "created_ms": self._now_ms, "parts": [[part.name, part.size] for part in self._parts],
        }  # fmt: skip
        index = json.dumps(body, separators=(",", ":")).encode()
        crash_point("upload.stored")
        await self._store.objects.put(f"blobs/{declared.digest}/{self.version}", index)
        crash_point("upload.kept")
        if self._marked:
            await self._store.objects.delete([self._marker])
        self._end()
        return Blob(declared.digest, self.version, declared.size, declared.media_type, declared.name, self._now_ms,
                    tuple(self._parts))  # fmt: skip

    async def _check_manifest(self) -> None:
        """A collection follows manifests, so what claims to be one is one."""
        if self.declared.size > folder.MAX_MANIFEST_BYTES:
            problem = f"a manifest has at most {folder.MAX_MANIFEST_BYTES:,} bytes, this has {self.declared.size:,}"
            raise InvalidArgument(f"size: {problem}", violations=[("size", problem)])
        pieces = [await self._store.objects.get(f"data/{self.version}/{part.name}", PART_BYTES) for part in self._parts]
        await asyncio.to_thread(folder.parse, b"".join(pieces))

    async def yields(self) -> bool:
        """Whether another stream may continue this one: it has just ended, or nothing came for a while (a connection
        that broke unnoticed). One that goes on is left alone, so that two at once do not chase each other."""
        if time.monotonic() - self._moved_s > STALLED_S:
            await self.give_up()
        try:
            await asyncio.wait_for(self._ended.wait(), ENDING_S)
        except TimeoutError:
            return False
        return True

    async def give_up(self) -> None:
        """Ends the stream's part in it: what was received is stored, to be continued."""
        if self._over:
            return
        self._over = True
        try:
            await self._store_part()
            await self._settled()
        finally:
            self._end()

    async def _discard(self) -> None:
        paths = [f"data/{self.version}/{part.name}" for part in self._parts]
        await self._store.objects.delete([*([self._marker] if self._marked else []), *paths])
        self._end()

    def _end(self) -> None:
        self._over = True
        self._ended.set()
        self._store.ended(self.version)

    def _check_own(self) -> None:
        if self._over:
            raise InvalidState("this upload was continued by another stream", reason="SUPERSEDED")

    def _wrong_length(self, prefix: str = "") -> InvalidArgument:
        problem = f"{self.declared.size:,} bytes were declared, {prefix}{self._received:,} came"
        return InvalidArgument(f"size: {problem}", violations=[("size", problem)], reason="WRONG_LENGTH")


def chain(objects: list[Object]) -> list[Part]:
    """The parts that follow each other from byte 0 on: streams that were cut may have left overlapping ones."""
    found = sorted((int(name.partition("-")[0], 16), -one.size, name)
                   for one in objects for name in [one.path.rpartition("/")[2]])  # fmt: skip
    parts: list[Part] = []
    at = 0
    for offset, negative, name in found:
        if offset == at and negative:
            parts.append(Part(name, -negative))
            at -= negative
    return parts


def _pieces(blob: Blob, start: int, end: int) -> list[tuple[str, int, int]]:
    """(part, first byte in it, length) of a range, in pieces of at most 4 MiB."""
    pieces = []
    at = 0
    for part in blob.parts:
        low, high = max(start - at, 0), min(end - at, part.size)
        pieces += [(part.name, one, min(READ_BYTES, high - one)) for one in range(low, high, READ_BYTES)]
        at += part.size
    return pieces
