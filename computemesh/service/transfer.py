"""Bytes to and from an artifact service: resumed where a connection broke, checked by their digest.

Whoever has files to move uses this: the SDK, the command line, workers. Memory does not depend on size.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc

from computemesh.service import spliced
from computemesh.service.blobs import CHUNK_BYTES, WINDOW_BYTES
from computemesh.service.blocks import Blocks
from computemesh.service.errors import from_rpc_error
from computemesh.service.sinks import BLOCK_BYTES, BytesSink, FileSink
from computemesh.trust.errors import (
    DigestMismatch,
    InvalidArgument,
    InvalidProof,
    MeshError,
    ResourceExhausted,
    Unavailable,
)
from computemesh.v1 import artifact_pb2 as pb
from computemesh.v1 import artifact_pb2_grpc

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]
RETRY_FOR_S = 30.0
SILENCE_S = 60.0
Metadata = tuple[tuple[str, str], ...]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """What a store knows of an artifact. `digest` is SHA-256, 64 hexadecimal characters; `size` bytes; times Unix ms,
    `expires_ms` is when the caller's reference ends, 0 where it has none."""

    digest: str
    size: int
    name: str = ""
    media_type: str = ""
    created_ms: int = 0
    expires_ms: int = 0

    @classmethod
    def of(cls, message: pb.Artifact) -> ArtifactInfo:
        """From the wire."""
        return cls(message.digest, message.size, message.name, message.media_type, message.created_ms,
                   message.expires_ms)  # fmt: skip


def _silent(done: int, total: int) -> None:
    return None


def file_digest(path: Path) -> tuple[str, int]:
    """(SHA-256, bytes) of a file; blocks, outside of the interpreter's lock. Raises InvalidArgument."""
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None


class Transfer:
    """Calls of one artifact service on a channel. `metadata` makes the credentials of each call.

    `retry_for` is how many seconds without any progress a transfer is repeated while the service cannot be reached,
    `meaning` words the transport's errors.
    Give it a connection of its own (`dial(..., own_connection=True)`) where heartbeats share the process.
    """

    def __init__(
        self, channel: grpc.aio.Channel, metadata: Callable[[], Awaitable[Metadata]], retry_for: float = RETRY_FOR_S,
        meaning: Callable[[grpc.RpcError], MeshError] = from_rpc_error,
    ) -> None:  # fmt: skip
        self._stub: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)  # type: ignore[no-untyped-call]
        self._upload: Any = channel.stream_stream(
            "/computemesh.v1.ArtifactService/UploadArtifact", spliced.serialize, pb.UploadArtifactResponse.FromString)
        self._download: Any = channel.unary_stream(
            "/computemesh.v1.ArtifactService/DownloadArtifact", pb.DownloadArtifactRequest.SerializeToString,
            _downloaded)  # fmt: skip
        self._metadata = metadata
        self._retry_for = retry_for
        self._meaning = meaning

    # --- up --------------------------------------------------------------------------------------------------------

    async def put(
        self, source: Path | bytes, *, name: str | None = None, media_type: str = "", progress: Progress = _silent
    ) -> ArtifactInfo:
        """Stores a file or bytes and holds them for the caller. Sends nothing the store has, and after a broken
        connection, of this call or an earlier one, only the rest.

        `name` defaults to the file's; `progress(done, total)` counts bytes. Raises InvalidArgument (over the store's
        limit, the file changed meanwhile), ResourceExhausted, Unauthenticated, Unavailable.
        """
        if isinstance(source, bytes):
            digest = (await asyncio.to_thread(hashlib.sha256, source)).hexdigest()
            size = len(source)
        else:
            digest, size = await asyncio.to_thread(file_digest, source)
        shown = name if name is not None else "" if isinstance(source, bytes) else source.name
        declared = pb.ArtifactDeclaration(digest=digest, size=size, media_type=media_type, name=shown[:256])
        retry = _Retry(self._retry_for)
        while True:
            failure: MeshError
            try:
                return await self._put_once(source, declared, retry, progress)
            except grpc.RpcError as error:
                failure = self._meaning(error)
            except Unavailable as error:
                failure = error
            if not await retry.wait(failure):
                raise failure

    async def _put_once(
        self, source: Path | bytes, declared: pb.ArtifactDeclaration, retry: _Retry, progress: Progress
    ) -> ArtifactInfo:
        call = self._upload(metadata=await self._metadata())
        sender: asyncio.Task[None] | None = None
        window = _Window()
        try:
            # When a write fails the call is over, and the read says why.
            with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
                await call.write(pb.UploadArtifactRequest(declaration=declared))
            while (answer := await call.read()) is not END:
                retry.moved(answer.offset)
                progress(answer.offset, declared.size)
                if answer.HasField("artifact"):
                    return ArtifactInfo.of(answer.artifact)
                window.grant(answer.offset + WINDOW_BYTES)
                if sender is None:
                    sender = asyncio.create_task(_send(call, source, answer.offset, declared.size, window))
            raise Unavailable("the artifact service ended the upload without an answer")
        finally:
            if sender is not None:
                sender.cancel()
                results = await asyncio.gather(sender, return_exceptions=True)
                if isinstance(results[0], MeshError):
                    raise results[0]
            call.cancel()

    # --- down ------------------------------------------------------------------------------------------------------

    async def get(
        self, digest: str, to: Path, *, max_bytes: int | None = None, progress: Progress = _silent
    ) -> Path:
        """Writes an artifact to the file `to`, which appears only when it is whole and has its digest.

        What an interrupted call left in `.NAME.DIGEST.part` beside it is continued. Raises NotFound, DigestMismatch
        (the store sent other bytes), InvalidArgument (more than `max_bytes`, or `to` cannot be written), Unavailable.
        """
        part = to.with_name(f".{to.name[:100]}.{digest[:16]}.part")
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            sink = await asyncio.to_thread(FileSink.open, part)
        except OSError as error:
            raise InvalidArgument(f"cannot write {part}: {error.strerror}") from None
        try:
            await self._fetch(digest, sink, max_bytes, progress)
            try:
                await asyncio.to_thread(sink.move, to)
            except OSError as error:
                raise InvalidArgument(f"cannot write {to}: {error.strerror}") from None
        finally:
            sink.close()
        return to

    async def read(self, digest: str, max_bytes: int) -> bytes:
        """An artifact's bytes, at most `max_bytes`. Raises as `get`."""
        sink = BytesSink()
        await self._fetch(digest, sink, max_bytes, _silent)
        return b"".join(sink.chunks)

    async def _fetch(
        self, digest: str, sink: FileSink | BytesSink, max_bytes: int | None, progress: Progress
    ) -> None:
        retry = _Retry(self._retry_for)
        begun = sink.size > 0  # by somebody else: if it turns out wrong, the whole is fetched
        while True:
            failure: MeshError
            try:
                await self._fetch_once(digest, sink, max_bytes, retry, progress)
                found = sink.digest()
                if found == digest:
                    return
                text = f"artifact {digest}: the bytes received have SHA-256 {found}"
                failure = DigestMismatch(text, violations=[("digest", text)])
                sink.restart()
            except grpc.RpcError as error:
                failure = self._meaning(error)
            except Unavailable as error:
                failure = error
            if begun and isinstance(failure, InvalidArgument):
                begun = False
                sink.restart()
            elif not await retry.wait(failure):
                raise failure

    async def _fetch_once(
        self, digest: str, sink: FileSink | BytesSink, max_bytes: int | None, retry: _Retry, progress: Progress
    ) -> None:
        request = pb.DownloadArtifactRequest(digest=digest, offset=sink.size)
        call = self._download(request, metadata=await self._metadata())
        writing: asyncio.Task[None] | None = None
        blocks: Blocks | None = None
        received, total = sink.size, -1
        try:
            while (answer := await call.read()) is not END:
                total, chunk = answer
                received += len(chunk)
                if max_bytes is not None and total > max_bytes:
                    problem = f"artifact {digest} has {total:,} bytes, at most {max_bytes:,} are wanted"
                    raise InvalidArgument(problem, reason="ARTIFACT_TOO_LARGE")
                if received > total:
                    raise InvalidProof(f"artifact {digest}: more bytes came than its {total:,}")
                blocks = blocks or Blocks(min(BLOCK_BYTES + CHUNK_BYTES, total - sink.size))
                blocks.add(chunk)
                if blocks.filled >= BLOCK_BYTES:
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(asyncio.to_thread(sink.write, blocks.take()))
                retry.moved(received)
                progress(received, total)
            if received != total and total >= 0:
                raise Unavailable(f"artifact {digest}: {received:,} of {total:,} bytes came")
        finally:
            call.cancel()
            if writing is not None:
                await writing
            if blocks is not None and blocks.filled:
                await asyncio.to_thread(sink.write, blocks.take())

    # --- about -----------------------------------------------------------------------------------------------------

    async def stat(self, digest: str) -> ArtifactInfo:
        """What the store knows of a digest. Raises NotFound."""
        return ArtifactInfo.of((await self._call("StatArtifact", pb.StatArtifactRequest(digest=digest))).artifact)

    async def page(self, page_size: int = 0, page_token: str = "") -> tuple[list[ArtifactInfo], str, int]:
        """(The caller's artifacts, the last put first; token of the next page or ""; how many there are in all)."""
        request = pb.ListArtifactsRequest(page_size=page_size, page_token=page_token)
        answer = await self._call("ListArtifacts", request)
        return [ArtifactInfo.of(one) for one in answer.artifacts], answer.next_page_token, answer.total

    async def delete(self, digest: str) -> None:
        """Ends the caller's reference. Raises NotFound where it has none."""
        await self._call("DeleteArtifact", pb.DeleteArtifactRequest(digest=digest))

    async def _call(self, method: str, request: Any) -> Any:
        retry = _Retry(min(self._retry_for, 10.0))
        while True:
            try:
                return await getattr(self._stub, method)(request, metadata=await self._metadata(), timeout=15.0)
            except grpc.RpcError as error:
                failure = self._meaning(error)
            if not await retry.wait(failure):
                raise failure


def _downloaded(data: bytes) -> tuple[int, memoryview]:
    """(Size of the whole, chunk) of a DownloadArtifactResponse."""
    if data[:1] == b"\x08":  # the size comes first
        size, at = spliced.take_varint(data, 1)
        chunk = spliced.take_bytes_field(2, data, at)
        if chunk is not None:
            return size, chunk
    message = pb.DownloadArtifactResponse.FromString(data)
    return message.size, memoryview(message.chunk)


class _Window:
    """How far a sender may go, in bytes from the artifact's start."""

    def __init__(self) -> None:
        self._limit = 0
        self._grown = asyncio.Event()

    def grant(self, limit: int) -> None:
        self._limit = max(self._limit, limit)
        self._grown.set()

    async def reach(self, offset: int) -> None:
        while offset > self._limit:
            self._grown.clear()
            await self._grown.wait()


async def _send(call: Any, source: Path | bytes, offset: int, size: int, window: _Window) -> None:
    """Sends a source from `offset` on, reading one block ahead. Cancels the call where the file cannot be read."""
    try:
        with contextlib.ExitStack() as stack:
            file = None if isinstance(source, bytes) else stack.enter_context(source.open("rb", buffering=0))
            ahead = asyncio.ensure_future(_block(source, file, offset, size))
            while offset < size:
                block = await ahead
                if not block:
                    raise InvalidArgument(f"{source!s:.200} became shorter while it was sent", reason="FILE_CHANGED")
                if offset + len(block) < size:
                    ahead = asyncio.ensure_future(_block(source, file, offset + len(block), size))
                for at in range(0, len(block), CHUNK_BYTES):
                    chunk = block[at : at + CHUNK_BYTES]
                    await window.reach(offset + len(chunk))
                    await call.write(spliced.bytes_field(2, chunk))
                    offset += len(chunk)
            await call.done_writing()
    except (asyncio.InvalidStateError, grpc.RpcError):
        return  # the call is over; whoever reads it learns why
    except OSError as error:
        call.cancel()
        raise InvalidArgument(f"cannot read {source!s:.200}: {error.strerror}") from None
    except MeshError:
        call.cancel()
        raise


async def _block(source: Path | bytes, file: IO[bytes] | None, offset: int, size: int) -> memoryview:
    length = min(BLOCK_BYTES, size - offset)
    if file is None:
        return memoryview(source)[offset : offset + length]  # type: ignore[arg-type]
    return memoryview(await asyncio.to_thread(os.pread, file.fileno(), length, offset))


class _Retry:
    """Whether and when to try again: as long as something moved within `budget_s`."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._furthest = -1
        self._pause_s = 0.1
        self._until = time.monotonic() + budget_s

    def moved(self, offset: int) -> None:
        if offset > self._furthest:
            self._furthest, self._pause_s = offset, 0.1
            self._until = time.monotonic() + self._budget_s

    async def wait(self, error: MeshError) -> bool:
        """Pauses (doubling, with jitter) before the next try; False where another try makes no sense."""
        passing = isinstance(error, Unavailable) or error.reason in ("SUPERSEDED", "UPLOAD_STALLED")
        passing = passing or (isinstance(error, ResourceExhausted) and error.retry_after_ms is not None)
        pause = max(self._pause_s * random.uniform(0.5, 1.0), (error.retry_after_ms or 0) / 1000)
        self._pause_s = min(self._pause_s * 2, 2.0)
        if not passing or time.monotonic() + pause > self._until:
            return False
        await asyncio.sleep(pause)
        return True
