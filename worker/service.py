"""WorkerService: the owner's control of one agent."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import grpc

from computemesh.service.server import build_server, set_serving
from computemesh.trust.errors import InvalidState
from computemesh.v1 import worker_pb2 as pb
from computemesh.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Controlled(Protocol):
    """What of an agent its owner may ask for."""

    def describe(self) -> pb.WorkerDescription: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


class WorkerControl(WorkerServiceServicer):
    """Describe, Drain and Resume."""

    def __init__(self, agent: Controlled) -> None:
        self._agent = agent

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(worker=self._agent.describe())

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        await self._agent.pause()
        return pb.DrainResponse(worker=self._agent.describe())

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        await self._agent.resume()
        worker = self._agent.describe()
        if worker.status == pb.WORKER_AGENT_STATUS_STOPPING:
            raise InvalidState("the worker is stopping and takes no more jobs")
        return pb.ResumeResponse(worker=worker)


class ControlServer:
    """WorkerService on an address of its own."""

    def __init__(self, agent: Controlled, listen: str) -> None:
        def register(server: grpc.aio.Server) -> None:
            add_WorkerServiceServicer_to_server(WorkerControl(agent), server)  # type: ignore[no-untyped-call]

        self._server, self.port = build_server(listen, register, ["computemesh.v1.WorkerService"])

    async def start(self) -> None:
        await self._server.start()
        await set_serving(self._server, True)

    async def stop(self) -> None:
        await set_serving(self._server, False)
        await self._server.stop(1.0)
