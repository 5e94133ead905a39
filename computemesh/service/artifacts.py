"""The artifact service, for any server to mount: who calls is that server's business, the store is shared."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from computemesh.service import metrics, spliced
from computemesh.service.auth import required_bearer, verify_token
from computemesh.service.blobs import CHUNK_BYTES, Blob, BlobStore, Declaration, Owner, missing
from computemesh.service.objects import Objects
from computemesh.service.quota import Quota
from computemesh.service.retention import HOUR_MS, Label, Reference, Retention, described
from computemesh.service.validation import validate
from computemesh.trust.errors import InvalidArgument, NotFound, ResourceExhausted, Unauthorized
from computemesh.trust.folder import MEDIA_TYPE
from computemesh.trust.identity import address_of
from computemesh.v1 import artifact_pb2 as pb
from computemesh.v1 import artifact_pb2_grpc

SERVICE = "computemesh.v1.ArtifactService"
MAX_BYTES = 16 << 30
TTL_MS = 7 * 24 * HOUR_MS
QUOTA_BYTES = 64 << 30
COLLECT_EVERY_S = 3600.0
# Each upload holds up to three parts of 8 MiB.
MAX_UPLOADS = 32
# A sender that is silent for this long has lost its connection, or its mind.
SILENCE_S = 60.0
DEFAULT_PAGE = 50
log = structlog.get_logger("computemesh.artifacts")

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

Identify = Callable[["Context"], Owner]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Artifacts:
    """An artifact store as a service uses it: bytes, references and their removal."""

    def __init__(
        self, url: str, max_bytes: int = MAX_BYTES, ttl_ms: int = TTL_MS, quota_bytes: int = QUOTA_BYTES
    ) -> None:
        """Opens the store at `url` (`computemesh.service.objects`). Sizes in bytes, `ttl_ms` is how long a put holds,
        `quota_bytes` how much one owner may hold or be uploading. Raises InvalidArgument."""
        self.store = BlobStore(Objects(url), max_bytes)
        self.retention = Retention(self.store)
        self.ttl_ms = ttl_ms
        self.quota = Quota(self.store, self.retention, quota_bytes)

    async def put(self, data: bytes, owner: Owner, name: str = "", media_type: str = "") -> str:
        """Stores bytes that are in memory; the digest. An account's put expires, a task's is kept until `release`."""
        digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        declared = Declaration(digest, len(data), media_type, name)
        if not await self.keep(declared, owner):
            upload = await self.store.upload(declared, owner, now_ms())
            try:
                for at in range(upload.stored, len(data), CHUNK_BYTES):
                    await upload.write(data[at : at + CHUNK_BYTES])
                await upload.finish()
            finally:
                await upload.give_up()
            await self.hold(declared, owner)
        return declared.digest

    async def read(self, digest: str, max_bytes: int) -> bytes:
        """An artifact's bytes, checked. Raises NotFound, InvalidArgument where there are more than `max_bytes`."""
        blob = await self.store.get(digest)
        if blob.size > max_bytes:
            problem = f"artifact {digest} has {blob.size:,} bytes, at most {max_bytes:,} are read"
            raise InvalidArgument(problem, violations=[("digest", problem)], reason="ARTIFACT_TOO_LARGE")
        data = b"".join([bytes(piece) async for piece in self.store.read(blob)])
        if (await asyncio.to_thread(hashlib.sha256, data)).hexdigest() != digest:
            log.error("artifact is damaged", digest=digest, version=blob.version)
            raise missing(digest)
        return data

    async def keep(self, declared: Declaration, owner: Owner) -> pb.Artifact | None:
        """Holds bytes that are here already; None where they have to be sent."""
        if await self._sound(declared) is None:
            return None
        expires_ms, label = await self.hold(declared, owner)
        blob = await self._sound(declared)
        return _message(declared.digest, blob.size, described(blob, label), expires_ms) if blob is not None else None

    async def _sound(self, declared: Declaration) -> Blob | None:
        blob = await self.store.find(declared.digest, to_keep=True, as_folder=declared.media_type == MEDIA_TYPE)
        if blob is not None and blob.size != declared.size:
            problem = f"{declared.size:,} bytes were declared, the artifact of this digest has {blob.size:,}"
            raise InvalidArgument(f"size: {problem}", violations=[("size", problem)], reason="WRONG_LENGTH")
        return blob

    async def hold(self, declared: Declaration, owner: Owner) -> tuple[int, Label]:
        """Makes or renews the reference of a put: (Unix ms of its end, 0 for a task's; what it is called)."""
        expires_ms = 0 if owner.kind == "task" else now_ms() + self.ttl_ms
        label = Label(declared.name, declared.media_type, now_ms())
        return await self.retention.hold(declared.digest, declared.size, owner, expires_ms, label)

    async def hold_for_task(self, task_id: str, digests: Sequence[str]) -> None:
        """Keeps what a task reads or leaves until `release_task`. Raises NotFound for what is not here."""
        await self.retention.hold_for_task(task_id, digests)

    async def release_task(self, task_id: str, keep_ms: int = 0, outputs: Sequence[str] = ()) -> None:
        """Ends a task's references; `outputs` stay for `keep_ms` more."""
        owner = Owner("task", task_id)
        known = {one.digest: one for one in await self.retention.held(owner)} if keep_ms else {}
        labels = {digest: await self.retention.label(known[digest]) for digest in outputs if digest in known}
        await self.retention.release(owner)
        for digest, label in labels.items():
            await self.retention.hold(digest, known[digest].size, owner, now_ms() + keep_ms, label)

    async def run(self, every_s: float = COLLECT_EVERY_S) -> None:
        """Collects now and then, until cancelled. One process of those that share a store does it."""
        while True:
            try:
                done = await self.retention.collect(now_ms())
                log.info("artifacts collected", removed=done.removed, removed_bytes=done.removed_bytes,
                         doomed=done.doomed, references=done.references, uploads=done.uploads)  # fmt: skip
            except Exception as error:  # storage that is away now may be back in an hour; the service serves on
                log.error("artifacts were not collected", exc_info=error)
            await asyncio.sleep(every_s)


def signed_by(chain: str, admits: Callable[[bytes], bool], kind: str = "account") -> Identify:
    """Callers are owners of this kind whose key signed their bearer token, where `admits` says yes to the key (33
    bytes)."""

    def identify(context: Context) -> Owner:
        key = verify_token(required_bearer(context), chain, now_ms())
        if not admits(key):
            raise Unauthorized(f"{address_of(key)} is not known here: workers join first, customers ask the market")
        return Owner(kind, address_of(key))

    return identify


def mount(server: grpc.aio.Server, artifacts: Artifacts, identify: Identify) -> None:
    """Adds ArtifactService to a server that has not started. `identify` says whose call it is, or raises
    Unauthenticated."""
    service = ArtifactService(artifacts, identify)
    upload = grpc.stream_stream_rpc_method_handler(
        service.UploadArtifact, _upload_request, pb.UploadArtifactResponse.SerializeToString)
    download = grpc.unary_stream_rpc_method_handler(
        service.DownloadArtifact, pb.DownloadArtifactRequest.FromString, spliced.serialize)
    spliced.add(
        server, partial(artifact_pb2_grpc.add_ArtifactServiceServicer_to_server, service), SERVICE,
        UploadArtifact=upload, DownloadArtifact=download)  # fmt: skip


UploadRequest = pb.UploadArtifactRequest | memoryview
"""A chunk comes as the bytes it is, without the message around it."""


def _upload_request(data: bytes) -> UploadRequest:
    chunk = spliced.take_bytes_field(2, data)
    return pb.UploadArtifactRequest.FromString(data) if chunk is None else chunk


class ArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    """Every RPC of the contract; what each may answer stands there."""

    def __init__(self, artifacts: Artifacts, identify: Identify) -> None:
        self._artifacts = artifacts
        self._identify = identify
        self._uploads = 0

    async def UploadArtifact(self, requests: AsyncIterator[UploadRequest], context: Context) -> None:
        owner = self._identify(context)
        declared = await _declaration(requests)
        self._artifacts.store.admit(declared)
        if self._uploads >= MAX_UPLOADS:
            raise ResourceExhausted(f"{self._uploads} uploads are running, at most {MAX_UPLOADS} are taken at once",
                                    retry_after_ms=1000, reason="TOO_MANY_UPLOADS")  # fmt: skip
        self._uploads += 1
        try:
            async with self._artifacts.quota.room(declared, owner):
                last = await self._artifacts.keep(declared, owner)
                if last is None:
                    last = await self._receive(declared, owner, requests, context)
            await context.write(pb.UploadArtifactResponse(offset=declared.size, artifact=last))
        finally:
            self._uploads -= 1

    async def _receive(
        self, declared: Declaration, owner: Owner, requests: AsyncIterator[UploadRequest], context: Context
    ) -> pb.Artifact:
        upload = await self._artifacts.store.upload(declared, owner, now_ms())
        try:
            await context.write(pb.UploadArtifactResponse(offset=upload.stored))
            async for chunk in _chunks(requests):
                metrics.ARTIFACT_BYTES_IN.inc(len(chunk))
                if await upload.write(chunk):
                    await context.write(pb.UploadArtifactResponse(offset=upload.stored))
            blob = await upload.finish()
        finally:
            # Also when the call was cancelled: what came is kept, to be continued.
            await asyncio.shield(asyncio.ensure_future(upload.give_up()))
        expires_ms, label = await self._artifacts.hold(declared, owner)
        return _message(declared.digest, blob.size, described(blob, label), expires_ms)

    async def DownloadArtifact(self, request: pb.DownloadArtifactRequest, context: Context) -> None:
        self._identify(context)
        store = self._artifacts.store
        blob = await store.get(request.digest)
        if not blob.size:
            await context.write(pb.DownloadArtifactResponse())
        size = pb.DownloadArtifactResponse(size=blob.size).SerializeToString()
        async for piece in store.read(blob, request.offset, request.length):
            metrics.ARTIFACT_BYTES_OUT.inc(len(piece))
            for at in range(0, len(piece), CHUNK_BYTES):
                await context.write(spliced.bytes_field(2, piece[at : at + CHUNK_BYTES], size))

    async def StatArtifact(self, request: pb.StatArtifactRequest, context: Context) -> pb.StatArtifactResponse:
        return pb.StatArtifactResponse(artifact=await self._own(request.digest, self._identify(context)))

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Context) -> pb.ListArtifactsResponse:
        held = await self._artifacts.retention.held(self._identify(context))
        after = _read_token(request.page_token)
        rest = [one for one in held if after is None or (-one.held_ms, one.digest) > after]
        page = rest[: request.page_size or DEFAULT_PAGE]
        labels = await asyncio.gather(*(self._artifacts.retention.label(one) for one in page))
        return pb.ListArtifactsResponse(
            artifacts=[_message(one.digest, one.size, label, one.expires_ms)
                       for one, label in zip(page, labels, strict=True)],
            total=len(held), next_page_token=_token(page[-1]) if len(page) < len(rest) else "",
        )  # fmt: skip

    async def DeleteArtifact(self, request: pb.DeleteArtifactRequest, context: Context) -> pb.DeleteArtifactResponse:
        if not await self._artifacts.retention.release(self._identify(context), request.digest):
            raise NotFound(f"you hold no artifact {request.digest}", reason="ARTIFACT_NOT_FOUND")
        return pb.DeleteArtifactResponse()

    async def _own(self, digest: str, owner: Owner) -> pb.Artifact:
        """What is known of an artifact, in the words of its reader."""
        blob = await self._artifacts.store.get(digest)
        held = await self._artifacts.retention.held(owner, digest)
        label = await self._artifacts.retention.label(held[0]) if held else None
        return _message(digest, blob.size, described(blob, label), held[0].expires_ms if held else 0)


async def _declaration(requests: AsyncIterator[UploadRequest]) -> Declaration:
    first = await _next(requests)
    if first is None or isinstance(first, memoryview) or first.WhichOneof("message") != "declaration":
        problem = "the first message of an upload declares the artifact"
        raise InvalidArgument(f"declaration: {problem}", violations=[("declaration", problem)])
    validate(first.declaration)
    told = first.declaration
    return Declaration(told.digest, told.size, told.media_type, told.name)


async def _chunks(requests: AsyncIterator[UploadRequest]) -> AsyncIterator[bytes | memoryview]:
    while (request := await _next(requests)) is not None:
        chunk = request if isinstance(request, memoryview) else request.chunk
        if not 0 < len(chunk) <= CHUNK_BYTES:
            problem = f"{len(chunk):,} bytes, must be 1..{CHUNK_BYTES:,}"
            raise InvalidArgument(f"chunk: {problem}", violations=[("chunk", problem)])
        yield chunk


async def _next(requests: AsyncIterator[UploadRequest]) -> UploadRequest | None:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await anext(requests, None)
    except TimeoutError:
        problem = f"nothing came for {SILENCE_S:g} s; continue the upload with another call"
        raise InvalidArgument(f"chunk: {problem}", reason="UPLOAD_STALLED") from None


def _message(digest: str, size: int, label: Label, expires_ms: int) -> pb.Artifact:
    return pb.Artifact(digest=digest, size=size, name=label.name, media_type=label.media_type,
                       created_ms=label.created_ms, expires_ms=expires_ms)  # fmt: skip


def _token(last: Reference) -> str:
    return base64.urlsafe_b64encode(f"{last.held_ms} {last.digest}".encode()).decode()


def _read_token(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    try:
        held_ms, digest = base64.urlsafe_b64decode(token).decode("ascii").split(" ")
        return -int(held_ms), digest
    except (binascii.Error, ValueError):
        problem = f"{token[:80]!r} is not one this list gave out"
        raise InvalidArgument(f"page_token: {problem}", violations=[("page_token", problem)]) from None
