"""One worker's stream: greeting, hello, welcome, then messages both ways until either side ends it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from computemesh.service.crashpoints import crash_point
from computemesh.service.outbox import Outbox
from computemesh.service.validation import validate
from computemesh.trust import envelope, statement
from computemesh.trust.errors import InvalidArgument, MeshError, Unauthorized
from computemesh.trust.identity import address_of
from computemesh.v1 import common_pb2
from computemesh.v1 import orchestrator_pb2 as pb
from orchestrator import audit, wire
from orchestrator import events as e
from orchestrator.config import Config
from orchestrator.model import Ask

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

HELLO_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 1.0
MAX_CREDITS = 65_536
MAX_RUNNING = 65_536
MAX_ITEMS = 4_096
MAX_PARTIAL = 4096  # bytes
# At most one heartbeat in so many milliseconds, as far as leases allow.
HEARTBEAT_SHARE_MS = 1
log = structlog.get_logger("orchestrator.session")


class StreamEnded(MeshError):
    """The orchestrator ended a worker's stream; the worker dials again, unless it was superseded."""

    status = "ABORTED"
    reason = "SUPERSEDED"


class Session:
    """A connected worker as the shell sees it. Everything that decides is in the core."""

    def __init__(self, runtime: Runtime, number: int, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.runtime, self.number, self.context = runtime, number, context
        self.key = b""
        self.capabilities = common_pb2.Capabilities()
        self.utilisation: list[float] = []
        self.connected_ms = int(time.time() * 1000)
        self.outbox: Outbox[object] = Outbox(
            context.write, partial(wire.assemble, lease_ms=runtime.config.job_lease_ms)
        )
        self._ended = asyncio.Event()
        self._error: MeshError | None = None

    def end(self, error: MeshError | None = None) -> None:
        """End the stream from this side, with a status or in order."""
        self._error = self._error or error
        self._ended.set()

    async def run(self, requests: AsyncIterator[pb.WorkRequest]) -> None:
        """Serve the stream to its end. Raises the MeshError that ended it."""
        await self._handshake(requests)
        runtime = self.runtime
        runtime.sessions[self.number] = self
        types, memory = _wants(self.capabilities)
        ask = Ask(self.capabilities.price_units_per_teraop, {
            one.challenge_type: one.price_units_per_teraop for one in self.capabilities.asks})
        runtime.apply(e.WorkerJoined(self.number, self.key, types, memory, self.capabilities.owner, ask,
                                     frozenset(one.name for one in self.capabilities.functions)))
        crash_point("orchestrator.worker.joined")
        self._offers()
        runtime.spawn(runtime.standing.ask(self.key))
        log.info(
            "worker joined", session=self.number, worker=address_of(self.key), name=self.capabilities.display_name,
            types=sorted(types), memory_bytes=memory,
        )  # fmt: skip
        parts = [
            asyncio.create_task(self._read(requests)),
            asyncio.create_task(self._ended.wait()),
            asyncio.create_task(self.outbox.run()),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(parts)
        finally:
            runtime.sessions.pop(self.number, None)
            runtime.apply(e.WorkerLeft(self.number))
            self._offers()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            log.info("worker left", session=self.number, worker=address_of(self.key), error=repr(self._error))
        if self._error is not None:
            raise self._error

    def _offers(self) -> None:
        """What workers offer changed, where this one offers anything."""
        if self.capabilities.functions:
            self.runtime.dispatch.offers.set()

    async def _finish(self, parts: list[asyncio.Task[Any]]) -> None:
        reader, _, writer = parts
        if reader.done() and not reader.cancelled() and isinstance(reader.exception(), MeshError):
            self._error = self._error or reader.exception()  # type: ignore[assignment]
        elif reader.done() and not reader.cancelled() and reader.exception() is not None:
            log.error("reading a stream failed", session=self.number, exc_info=reader.exception())
            raise reader.exception()  # type: ignore[misc]
        if not writer.done():
            self.outbox.close()
            await asyncio.wait([writer], timeout=FLUSH_TIMEOUT_S)

    async def _handshake(self, requests: AsyncIterator[pb.WorkRequest]) -> None:
        runtime, config = self.runtime, self.runtime.config
        nonce = os.urandom(32)
        greeting = common_pb2.Greeting(nonce=nonce, public_key=runtime.key.public, chain_id=config.chain_id)
        await self.context.write(pb.WorkResponse(greeting=greeting))
        try:
            first = await asyncio.wait_for(anext(aiter(requests)), HELLO_TIMEOUT_S)
        except TimeoutError:
            raise StreamEnded(f"no hello within {HELLO_TIMEOUT_S:.0f} s", reason="NO_HELLO") from None
        except StopAsyncIteration:
            raise InvalidArgument("the stream ended before its hello") from None
        if first.WhichOneof("message") != "hello":
            raise _rule("message", f"must be hello first, not {first.WhichOneof('message')}")
        validate(first)
        hello = first.hello
        body = statement.hello_body(nonce, runtime.key.public, hello.public_key, hello.capabilities)
        if not envelope.verify(hello.public_key, "hello", config.chain_id, body, hello.signature):
            raise Unauthorized(
                f"hello.signature is not by {hello.public_key.hex()} for this greeting on chain {config.chain_id!r}",
                reason="INVALID_SIGNATURE",
            )
        try:
            self.capabilities = common_pb2.Capabilities.FromString(hello.capabilities)
        except DecodeError:
            raise _rule("hello.capabilities", "are not a serialised Capabilities message") from None
        validate(self.capabilities)
        self.key = hello.public_key
        await self.context.write(pb.WorkResponse(welcome=pb.Welcome(
            heartbeat_interval_ms=_interval_ms(config, len(runtime.sessions)), lease_ms=config.worker_lease_ms,
            opening_timeout_ms=config.opening_timeout_ms, max_batch_jobs=wire.MAX_BATCH_JOBS,
            max_batch_bytes=wire.MAX_BATCH_BYTES,
        )))  # fmt: skip

    async def _read(self, requests: AsyncIterator[pb.WorkRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            take = _TAKE.get(kind or "")
            if take is None:
                raise _rule("message", f"is {kind or 'none of the known ones'}, which is not allowed here")
            if take(self, request):
                return


def _interval_ms(config: Config, workers: int) -> int:
    """Heartbeats come less often where there are many workers, but three times in the lease they renew."""
    return max(config.heartbeat_interval_ms, min(workers * HEARTBEAT_SHARE_MS, config.worker_lease_ms // 3))


def _rule(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])


def _wants(capabilities: common_pb2.Capabilities) -> tuple[frozenset[str], int]:
    """(task types, empty = all; memory one job may use: the largest device's, 0 = unlimited)."""
    memories = [device.memory_bytes for device in capabilities.devices]
    return frozenset(capabilities.challenge_types), 0 if 0 in memories else max(memories)


def _bounded(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise _rule(field, f"has {count} items, must be at most {limit}")


def _ready(session: Session, request: pb.WorkRequest) -> None:
    credits = request.ready.credits
    worker = session.runtime.core.state.workers.get(session.number)
    held = worker.free if worker is not None else 0
    if not 1 <= credits <= MAX_CREDITS - min(held, MAX_CREDITS - 1):
        raise _rule("ready.credits", f"is {credits} with {held} unused, must be 1..{MAX_CREDITS} together")
    session.runtime.apply(e.CreditsGranted(session.number, credits))


def _commitments(session: Session, request: pb.WorkRequest) -> None:
    crash_point("orchestrator.commitments.arrived")
    batch = request.commitments
    lease_ids = list(batch.lease_ids)
    if len(batch.compute_us) not in (0, len(lease_ids)):
        raise _rule("commitments.compute_us", f"has {len(batch.compute_us)} items, must be 0 or {len(lease_ids)}")
    outputs = _artifacts("outputs", batch.outputs, len(lease_ids))
    unit_digests = _artifacts("unit_digests", batch.unit_digests, len(lease_ids)) if outputs else []
    leaves, root = audit.read_batch(
        session.key, session.runtime.config.chain_id, len(lease_ids), batch.commitments, batch.signature
    )
    session.runtime.apply(e.Committed(
        session.number, lease_ids, batch.commitments, batch.signature, leaves, outputs, unit_digests,
        batch.env_class[:256], root,
    ))  # fmt: skip
    crash_point("orchestrator.commitments.taken")


def _artifacts(field: str, digests: Sequence[bytes], count: int) -> list[bytes]:
    found = list(digests)
    if found and (len(found) != count or any(len(item) not in (0, 32) for item in found)):
        raise _rule(f"commitments.{field}", f"must be {count} items of 0 or 32 bytes, or none")
    return found


def _openings(session: Session, request: pb.WorkRequest) -> None:
    crash_point("orchestrator.openings.arrived")
    openings = request.openings.openings
    _bounded("openings.openings", len(openings), MAX_ITEMS)
    uploaded = [(item.lease_id, item.artifact) for item in openings if item.artifact]
    if any(len(digest) != 32 for _, digest in uploaded):
        raise _rule("openings.openings.artifact", "must have 32 bytes, or none")
    inline = [(item.lease_id, item.openings) for item in openings if not item.artifact]
    session.runtime.apply(e.Opened(session.number, inline, uploaded))


def _why(nack: pb.Nack) -> str:
    """Reason and text: the customer whose job fails reads both."""
    return ": ".join(part for part in (nack.reason, nack.detail[:400]) if part)


def _nacks(session: Session, request: pb.WorkRequest) -> None:
    _bounded("nacks.nacks", len(request.nacks.nacks), MAX_ITEMS)
    validate(request)
    rows = [(nack.lease_id, int(nack.kind), _why(nack)) for nack in request.nacks.nacks]
    if any(kind not in (e.RETRYABLE, e.POISON) for _, kind, _ in rows):
        raise _rule("nacks.nacks.kind", "must be NACK_KIND_RETRYABLE or NACK_KIND_POISON")
    reasons = sorted({nack.reason for nack in request.nacks.nacks})[:4]
    log.info("nacks", session=session.number, count=len(rows), reasons=reasons)
    session.runtime.apply(e.Nacked(session.number, rows))


def _heartbeat(session: Session, request: pb.WorkRequest) -> None:
    beat = request.heartbeat
    _bounded("heartbeat.running_lease_ids", len(beat.running_lease_ids), MAX_RUNNING)
    _bounded("heartbeat.utilisation", len(beat.utilisation), 64)
    session.utilisation = list(beat.utilisation)
    session.runtime.apply(e.Alive(session.number, list(beat.running_lease_ids), beat.draining))


def _partial(session: Session, request: pb.WorkRequest) -> None:
    if (size := len(request.partial.text.encode())) > MAX_PARTIAL:
        raise _rule("partial.text", f"has {size:,} bytes, must have at most {MAX_PARTIAL:,}")
    worker = session.runtime.core.state.workers.get(session.number)
    lease = None if worker is None else worker.leases.get(request.partial.lease_id)
    if lease is not None and len(lease.task.jobs) == 1:
        lease.task.partial = request.partial.text
        session.runtime.core.state.progress.add(lease.task.id)
        session.runtime.dispatch.progress.set()


def _goodbye(session: Session, request: pb.WorkRequest) -> bool:
    validate(request)
    log.info("goodbye", session=session.number, cause=request.goodbye.cause)
    return True


_TAKE: dict[str, Callable[[Session, pb.WorkRequest], bool | None]] = {
    "ready": _ready,
    "commitments": _commitments,
    "openings": _openings,
    "nacks": _nacks,
    "heartbeat": _heartbeat,
    "partial": _partial,
    "goodbye": _goodbye,
}
