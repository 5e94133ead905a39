"""One Work stream to an orchestrator: opens it, reads it, writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

import grpc
import structlog

from computemesh.service.crashpoints import crash_point
from computemesh.service.errors import from_rpc_error
from computemesh.service.outbox import Outbox
from computemesh.service.server import dial
from computemesh.service.tls import PLAIN, Trust
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from worker.events import Dialled, Event, Received, StreamEnded

GREETING_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
MAX_CAUSE = 300
WorkCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.WorkRequest, pb.WorkResponse]"
log = structlog.get_logger("worker.session")


class Session:
    """`post(session, event)` is told Dialled first, StreamEnded last, and every message in between."""

    def __init__(self, address: str, post: Callable[[Session, Event], None], trust: Trust = PLAIN) -> None:
        self._address, self._post, self._trust = address, post, trust
        self._closing = asyncio.Event()
        self._outbox: Outbox[pb.WorkRequest] | None = None
        self.cause = ""
        self.superseded = False  # the orchestrator ended it because the same key dialled again

    async def run(self) -> None:
        """Hold the stream until it ends for any reason; the reason is in `cause`. Never raises RpcError."""
        channel = dial(self._address, self._trust)
        try:
            call = OrchestratorServiceStub(channel).Work()  # type: ignore[no-untyped-call]
            self._outbox = Outbox(call.write)
            crash_point("worker.stream.opened")
            self._post(self, Dialled())
            try:
                await self._hold(call)
            finally:
                call.cancel()
                self._post(self, StreamEnded())
        finally:
            await channel.close(None)

    async def _hold(self, call: WorkCall) -> None:
        assert self._outbox is not None
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait((reader, writer, closing), return_when=asyncio.FIRST_COMPLETED)
            if self._closing.is_set():
                # What was queued before (the goodbye, the last nacks) still leaves, and the other side hangs up.
                self._outbox.close()
                await asyncio.wait((writer,), timeout=CLOSE_TIMEOUT_S)
                await asyncio.wait((reader,), timeout=CLOSE_TIMEOUT_S)
        finally:
            for task in (reader, writer, closing):
                task.cancel()
            await asyncio.gather(reader, writer, closing, return_exceptions=True)

    async def _read(self, call: WorkCall) -> None:
        try:
            greeted = False
            messages = call.__aiter__()
            while True:
                # Only the greeting has a time limit here: an accepted connection whose other end never speaks
                # would look like a working one. Later silence is what keepalive is for.
                message = await asyncio.wait_for(anext(messages), None if greeted else GREETING_TIMEOUT_S)
                greeted = True
                crash_point("worker.message.arrived")
                self._post(self, Received(message))
        except StopAsyncIteration:
            self.cause = self.cause or "the orchestrator closed the stream"
        except TimeoutError:
            self.cause = f"no greeting within {GREETING_TIMEOUT_S:.0f} s"
        except grpc.RpcError as error:
            reason = from_rpc_error(error)
            self.superseded = reason.reason == "SUPERSEDED"
            self.cause = self.cause or f"{reason.reason}: {reason.message}"[:MAX_CAUSE]

    async def _write(self, call: WorkCall) -> None:
        assert self._outbox is not None
        try:
            await self._outbox.run()
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            await asyncio.Event().wait()  # the reader learns the status and ends the session

    def send(self, messages: Iterable[pb.WorkRequest]) -> None:
        """Queue messages; they leave in order."""
        if self._outbox is not None:
            for message in messages:
                self._outbox.push(message)

    def close(self, cause: str) -> None:
        """End the stream once everything queued has left."""
        self.cause = self.cause or cause
        self._closing.set()
