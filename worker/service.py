"""WorkerService: the owner's control of one agent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import grpc

from computemesh.service import access, journal
from computemesh.service.access import Role
from computemesh.service.exposure import DEFAULT, Exposure
from computemesh.service.server import begin, build_server, end
from computemesh.trust.errors import InvalidState
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import worker_pb2 as pb
from computemesh.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Controlled(Protocol):
    """What of an agent its owner may ask for."""

    key: PrivateKey

    @property
    def chain(self) -> str: ...
    def describe(self) -> pb.WorkerDescription: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


class WorkerControl(WorkerServiceServicer):
    """Describe, Drain and Resume."""

    def __init__(self, agent: Controlled, folder: Path | None = None) -> None:
        """`folder` gets the journal of who drained and resumed; None: there is none."""
        self._agent, self._folder = agent, folder

    async def _note(self, act: str, context: Context) -> None:
        if self._folder is not None:
            await asyncio.to_thread(journal.record, self._folder, act, access.host_of(context))

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(worker=self._agent.describe())

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        await self._agent.pause()
        await self._note("drain", context)
        return pb.DrainResponse(worker=self._agent.describe())

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        await self._agent.resume()
        await self._note("resume", context)
        worker = self._agent.describe()
        if worker.status == pb.WORKER_AGENT_STATUS_STOPPING:
            raise InvalidState("the worker is stopping and takes no more jobs")
        return pb.ResumeResponse(worker=worker)


def owner_of(agent: Controlled) -> access.Identify:
    """Who is on the worker's machine runs it; from elsewhere its key has to have signed the call's token."""

    def by_key(context: Context) -> access.Caller:
        known = access.by_key(agent.chain, lambda key: frozenset({Role.WORKER} if key == agent.key.public else ()),
                              lambda: time.time_ns() // 1_000_000)  # fmt: skip
        return known(context)

    def identify(context: Context) -> access.Caller:
        if access.is_local(context):
            return access.Caller("this machine", frozenset({Role.OPERATOR}))
        return by_key(context)

    return identify


class ControlServer:
    """WorkerService on an address of its own."""

    def __init__(
        self, agent: Controlled, listen: str, exposure: Exposure = DEFAULT, folder: Path | None = None
    ) -> None:
        def register(server: grpc.aio.Server) -> None:
            add_WorkerServiceServicer_to_server(WorkerControl(agent, folder), server)  # type: ignore[no-untyped-call]

        self._server, self.port = build_server(listen, register, ["computemesh.v1.WorkerService"],
                                               identify=owner_of(agent), exposure=exposure)  # fmt: skip

    async def start(self) -> None:
        await begin(self._server)

    async def stop(self) -> None:
        await end(self._server, 1.0)
