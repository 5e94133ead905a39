"""A task's events as one stream that survives dropped connections."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc

from computemesh.client.connections import Connections
from computemesh.client.model import Task, TaskEvent
from computemesh.client.rpc import Pauses, meaning
from computemesh.trust.errors import DeadlineExceeded, MeshError, Unavailable
from computemesh.v1 import market_pb2

STREAM_S = 60.0
"""One watch stream lives at most this long and is then resumed, so that no wedged server holds a caller."""


async def watch(
    mesh: Connections, task_id: str, cursor: int = 0, timeout: float | None = None
) -> AsyncIterator[TaskEvent]:
    """Every event after `cursor` up to the terminal one; see `AsyncClient.watch`."""
    retry_for = mesh.transport.retry_for
    until = None if timeout is None else time.monotonic() + timeout
    pauses = Pauses(retry_for)
    while True:
        left = STREAM_S if until is None else min(STREAM_S, until - time.monotonic())
        if left <= 0:
            raise DeadlineExceeded(
                f"task {task_id[:12]}.. had not ended after {timeout:g} s", metadata={"task_id": task_id}
            )
        failure: MeshError = Unavailable("the market closed the stream")
        call = await mesh.watch_task(task_id, cursor, left)
        silent = True
        try:
            async for event in call:
                silent = False
                cursor, pauses = event.cursor, Pauses(retry_for)
                yield TaskEvent.of(event)
                if event.kind == market_pb2.TASK_EVENT_KIND_ENDED:
                    return
        except grpc.RpcError as error:
            silent = False
            failure = meaning(error, mesh.market_peer)
        finally:
            call.cancel()
        if silent and await _has_ended(mesh, task_id, until):
            return  # a stream that closes with nothing: the caller has seen the task's last event before
        if isinstance(failure, DeadlineExceeded):
            pauses = Pauses(retry_for)  # our own limit on a quiet stream, not a failure
        elif not isinstance(failure, Unavailable) or not await pauses.wait(failure):
            raise failure


async def _has_ended(mesh: Connections, task_id: str, until: float | None) -> bool:
    """Whether a task has ended, asked before `until` (monotonic seconds). Raises DeadlineExceeded, Unavailable."""
    left = None if until is None else min(mesh.transport.timeout, max(until - time.monotonic(), 0.001))
    reply = await mesh.market("GetTask", market_pb2.GetTaskRequest(task_id=task_id), left)
    return Task.of(reply.task).ended
