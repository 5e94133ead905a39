"""A submitted task as a future, and what it becomes: a result with its files, receipt and verification at hand."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from computemesh.client import results
from computemesh.client.model import Task, TaskEvent, TaskFile
from computemesh.trust.errors import InvalidProof, InvalidState
from computemesh.trust.receipt import Check, Receipt, accepted, verify

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from computemesh.client.aio import AsyncClient


class AsyncResult(Task):
    """A task that has ended, and what it left. Methods that read raise TaskFailed unless it completed.

    `name` chooses a file; without it the first one of a fitting media type is taken.
    """

    __slots__ = ("_client",)
    _client: AsyncClient

    @classmethod
    def from_task(cls, client: AsyncClient, task: Task) -> AsyncResult:
        """The task with the client it came from."""
        made = cls(**{name: getattr(task, name) for name in Task.__dataclass_fields__})
        object.__setattr__(made, "_client", client)
        return made

    async def read(self, name: str) -> bytes:
        """A file's bytes, held against its digest. Raises NotFound where the task left no file of that name."""
        return await self._read(results.named(self, name))

    async def image(self, name: str | None = None) -> Image.Image:
        """A picture, as PIL's Image; with several frames it is at the first (`seek`)."""
        return results.image_of(await self._read(results.pick(self, name, results.IMAGES)))

    async def text(self, name: str | None = None) -> str:
        """A text file; of an inference task the generated texts, separated by line breaks."""
        file = results.pick(self, name, results.TEXTS)
        return results.text_of(await self._read(file), generated=name is None and self.challenge_type == "inference")

    async def json(self, name: str | None = None) -> Any:
        """A JSON file's value; of JSON Lines a list of values."""
        file = results.pick(self, name, results.JSON)
        return results.json_of(await self._read(file), file.media_type)

    async def arrays(self, name: str | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of an .npz file by name, or that of an .npy file as "array"."""
        return results.arrays_of(await self._read(results.pick(self, name, results.ARRAYS)))

    async def download(self, to: Path | str, **options: Any) -> builtins.list[Path]:
        """Write every file into the folder `to`; see `AsyncClient.download`."""
        results.completed(self)
        return await results.download(self._client.artifacts, self, Path(to), **options)

    async def receipt(self) -> Receipt:
        """What a third party needs to believe the result; see `AsyncClient.receipt`."""
        results.completed(self)
        return await self._client.receipt(self.task_id)

    async def verify(self, vkey: str | None = None) -> builtins.list[Check]:
        """The steps of the receipt's verification, all of which hold: else InvalidProof names those that do not.

        `vkey` is the log key to trust, else the profile's. Raises InvalidState where neither is known.
        """
        trusted = vkey or self._client.profile.ledger_vkey
        if not trusted:
            raise InvalidState("whose log the receipt should be in is not known: name ledger_vkey in the profile")
        checks = verify(await self.receipt(), trusted)
        if not accepted(checks):
            bad = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
            raise InvalidProof(f"the receipt of task {self.task_id[:12]}.. does not hold: {'; '.join(bad[:3])}")
        return checks

    async def _read(self, file: TaskFile) -> bytes:
        return await self._client.artifacts.read(file.digest, max(file.size, 1))


class AsyncTaskHandle:
    """A submitted task, as a future. `task` is what was last heard of it.

    It is nothing but the task's id: another process gets an equal one with `client.attach(task_id)`.
    """

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

    async def wait(self, timeout: float | None = None) -> AsyncResult:
        """The task once it has ended, however it did. Raises DeadlineExceeded after `timeout` seconds; without one it
        waits for as long as the task's own deadline allows."""
        if not self.task.ended:
            async for _ in self.watch(timeout):
                pass
        return AsyncResult.from_task(self._client, self.task)

    async def result(self, timeout: float | None = None) -> AsyncResult:
        """The completed task, as `concurrent.futures.Future.result`: raises TaskFailed where it ended otherwise."""
        result = await self.wait(timeout)
        results.completed(result)
        return result

    def done(self) -> bool:
        """Whether the task had ended when it was last heard of (`refresh` asks)."""
        return self.task.ended

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

    def _repr_html_(self) -> str:
        return self.task._repr_html_()
