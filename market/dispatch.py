"""One orchestrator's Dispatch stream: messages become events of the core, its sends become messages.

docs/PROTOCOL.md section 4 has the hello. Everything queued while a write is under way leaves in the next batch.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from computemesh.service.crashpoints import crash_point
from computemesh.service.outbox import Outbox
from computemesh.service.validation import validate
from computemesh.trust import envelope, statement
from computemesh.trust.errors import DeadlineExceeded, InvalidArgument, MeshError, Unauthorized
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, market_pb2
from market import store, views
from market.config import Config
from market.engine import Engine
from market.functions import Functions
from market.states import (
    Connect,
    Disconnect,
    Heartbeat,
    OutcomeRow,
    Outcomes,
    Progress,
    ProgressRow,
    Ready,
    Send,
    SendAck,
    SendClose,
    SendLease,
    SendRevoke,
    Takes,
)

HELLO_TIMEOUT_S = 10.0
MAX_BATCH_BYTES = 1024 * 1024
log = structlog.get_logger("market.dispatch")
_numbers = itertools.count(1)

Request = market_pb2.DispatchRequest
Response = market_pb2.DispatchResponse
Item = Send | Response


class StreamEnded(MeshError):
    """The market ended the stream; the orchestrator dials again."""

    status = "ABORTED"
    reason = "STREAM_ENDED"


class DispatchStream:
    """From greeting to goodbye."""

    def __init__(
        self, config: Config, key: PrivateKey, engine: Engine, functions: Functions,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:  # fmt: skip
        self._config = config
        self._key = key
        self._engine = engine
        self._functions = functions
        self._context = context
        self._number = next(_numbers)
        self._outbox: Outbox[Item] = Outbox(context.write, _assemble)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, item: Item) -> None:
        """Queues a message; `SendClose` ends the stream."""
        if isinstance(item, SendClose):
            self.end(StreamEnded(item.message, reason=item.reason))
        else:
            self._outbox.push(item)

    def end(self, error: MeshError) -> None:
        """Ends the stream with `error`."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def serve(self, requests: AsyncIterator[Request]) -> None:
        """Runs the stream until either side ends it."""
        key, info = await self._handshake(requests)
        self._engine.connections[self._number] = self
        reader = asyncio.create_task(self._read(requests, key, info))
        writer = asyncio.create_task(self._outbox.run())
        parts = {reader, writer, self._ended}
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._engine.connections.pop(self._number, None)
            self._functions.drop(self._number)
            self._engine.asks.pop(self._number, None)
            self._engine.do(Disconnect(self._number))
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        log.info("orchestrator disconnected", key=key.hex(), connection=self._number)
        for part in done:
            part.result()

    async def _handshake(self, requests: AsyncIterator[Request]) -> tuple[bytes, market_pb2.OrchestratorInfo]:
        nonce = secrets.token_bytes(32)
        await self._context.write(Response(greeting=common_pb2.Greeting(
            nonce=nonce, public_key=self._key.public, chain_id=self._config.chain_id)))
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceeded(f"no hello within {HELLO_TIMEOUT_S:.0f} s") from None
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidArgument("the first message on Dispatch must be hello")
        validate(first)
        hello = first.hello
        body = statement.hello_body(nonce, self._key.public, hello.public_key, hello.capabilities)
        if not envelope.verify(hello.public_key, "hello", self._config.chain_id, body, hello.signature):
            raise Unauthorized(
                f"hello.signature is not that of {hello.public_key.hex()} over this stream's greeting",
                reason="INVALID_SIGNATURE")
        admitted = self._config.orchestrator_keys
        if admitted and hello.public_key.hex() not in admitted:
            raise Unauthorized(
                f"this market does not admit the orchestrator key {hello.public_key.hex()}",
                reason="UNKNOWN_ORCHESTRATOR")
        try:
            info = market_pb2.OrchestratorInfo.FromString(hello.capabilities)
        except DecodeError:
            raise InvalidArgument("hello.capabilities is not a serialised OrchestratorInfo") from None
        validate(info)
        return bytes(hello.public_key), info

    async def _read(
        self, requests: AsyncIterator[Request], key: bytes, info: market_pb2.OrchestratorInfo
    ) -> None:
        held = tuple((bytes(item.task_id), item.epoch) for item in info.held)
        ended = await self._engine.group.read(lambda c: store.ended_among(c, [task_id for task_id, _ in held]))
        self._outbox.push(Response(welcome=market_pb2.DispatchWelcome(
            heartbeat_interval_ms=self._config.heartbeat_interval_ms, lease_ms=self._config.lease_ms)))
        log.info("orchestrator connected", key=key.hex(), connection=self._number, held=len(held))
        self._engine.do(Connect(self._number, key, info.address, held, tuple(ended)))
        crash_point("market.orchestrator.connected")
        async for request in requests:
            validate(request)
            if not self._take(request):
                return

    def _take(self, request: Request) -> bool:
        """Hands one message to the core; False after a goodbye."""
        kind = request.WhichOneof("message")
        if kind == "ready":
            self._engine.do(Ready(self._number, request.ready.credits))
        elif kind == "heartbeat":
            self._engine.do(Heartbeat(self._number))
        elif kind == "progress":
            self._engine.do(Progress(self._number, tuple(
                ProgressRow(bytes(row.task_id), row.epoch, row.jobs_settled, row.jobs_running, row.block_height,
                            views.files(preview=row.preview) if row.HasField("preview") else b"", row.jobs_submitted,
                            row.jobs_verified)
                for row in request.progress.progress)))
            for row in request.progress.progress:
                if row.partial:
                    self._engine.show(self._number, bytes(row.task_id), row.epoch, row.partial)
        elif kind == "outcomes":
            crash_point("market.outcomes.arrived")
            self._engine.do(Outcomes(self._number, tuple(map(_outcome, request.outcomes.outcomes))))
        elif kind == "functions":
            self._functions.report(self._number, request.functions)
        elif kind == "asks":
            self._engine.asks[self._number] = list(request.asks.asks)
            self._engine.do(Takes(self._number, frozenset(one.challenge_type for one in request.asks.asks)))
        elif kind == "goodbye":
            return False
        else:
            raise InvalidArgument(f"a Dispatch stream cannot carry {kind or 'an empty message'} here")
        return True


def _outcome(row: market_pb2.TaskOutcome) -> OutcomeRow:
    if row.status not in (market_pb2.TASK_STATUS_COMPLETED, market_pb2.TASK_STATUS_FAILED):
        raise InvalidArgument(
            f"outcomes.status is {row.status}, must be COMPLETED or FAILED",
            violations=[("outcomes.status", "must be COMPLETED or FAILED")])
    return OutcomeRow(
        bytes(row.task_id), row.epoch, row.status == market_pb2.TASK_STATUS_COMPLETED, row.detail,
        bytes(row.result_hash), row.block_height, row.jobs_settled,
        views.files(row.artifacts) if row.artifacts else b"")


def _assemble(items: Sequence[Item]) -> Iterable[Response]:
    """Neighbours of a kind share a message; the order of kinds stays, because a revocation may follow its lease."""
    for kind, group in itertools.groupby(items, type):
        if kind is SendLease:
            crash_point("market.leases.leave")
            yield from _lease_batches(item for item in group if isinstance(item, SendLease))
        elif kind is SendAck:
            crash_point("market.acks.leave")
            yield Response(acks=market_pb2.OutcomeAckBatch(
                task_ids=[item.task_id for item in group if isinstance(item, SendAck)]))
        elif kind is SendRevoke:
            crash_point("market.revokes.leave")
            yield Response(revokes=market_pb2.TaskRevokeBatch(revokes=[
                market_pb2.TaskRevoke(
                    task_id=item.task_id, epoch=item.epoch,
                    status=market_pb2.TaskStatus.ValueType(int(item.status or 0)))
                for item in group if isinstance(item, SendRevoke)]))
        else:
            yield from (item for item in group if isinstance(item, Response))


def _lease_batches(items: Iterable[SendLease]) -> Iterable[Response]:
    batch, size = market_pb2.TaskLeaseBatch(), 0
    for item in items:
        bytes_ = len(item.lease.spec.payload) + 256
        if batch.leases and size + bytes_ > MAX_BATCH_BYTES:
            yield Response(leases=batch)
            batch, size = market_pb2.TaskLeaseBatch(), 0
        batch.leases.append(views.lease(item.lease))
        size += bytes_
    if batch.leases:
        yield Response(leases=batch)
