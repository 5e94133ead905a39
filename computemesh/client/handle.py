"""A submitted task in its customer's hand."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from computemesh.client.model import Task, TaskEvent
from computemesh.trust.receipt import Receipt

if TYPE_CHECKING:
    from computemesh.client.aio import AsyncClient


class AsyncTaskHandle:
    """A submitted task. `task` is what was last heard of it."""

    def __init__(self, client: AsyncClient, task: Task) -> None:
        self._client = client
        self._cursor = 0
        self.task = task

    @property
    def task_id(self) -> str:
        """The digest of the order, 64 hexadecimal characters."""
        return self.task.task_id

    async def watch(self, timeout: float | None = None) -> AsyncIterator[TaskEvent]:
        """Events not seen yet, up to the terminal one."""
        async for event in self._client.watch(self.task_id, self._cursor, timeout):
            self._cursor, self.task = event.cursor, event.task
            yield event
        if not self.task.ended:  # its end was seen by another watch of this handle
            await self.refresh()

    async def wait(self, timeout: float | None = None) -> Task:
        """The task once it has ended. Raises DeadlineExceeded after `timeout` seconds."""
        if not self.task.ended:
            async for _ in self.watch(timeout):
                pass
        return self.task

    async def refresh(self) -> Task:
        """Ask the market how the task is now."""
        self.task = await self._client.get(self.task_id)
        return self.task

    async def cancel(self) -> Task:
        """End the task; see `AsyncClient.cancel`."""
        self.task = await self._client.cancel(self.task_id)
        return self.task

    async def receipt(self) -> Receipt:
        """The completed task's receipt; see `AsyncClient.receipt`."""
        return await self._client.receipt(self.task_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task!r})"
