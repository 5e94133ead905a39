"""What the blocking client hands out: futures and results whose methods wait."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from computemesh.client.handles import AsyncResult, AsyncTaskHandle
from computemesh.client.model import Task, TaskEvent
from computemesh.trust.errors import InvalidState
from computemesh.trust.receipt import Check, Receipt

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

T = TypeVar("T")


class Loop:
    """An event loop in a daemon thread, and the bridge to it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="computemesh-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise InvalidState("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while waiting must end the call too
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        async def one() -> tuple[T] | None:
            try:
                return (await anext(source),)
            except StopAsyncIteration:
                return None

        try:
            while (item := self.run(one())) is not None:
                yield item[0]
        finally:
            close = getattr(source, "aclose", None)
            if close is not None and not self._loop.is_closed():
                self.run(close())

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Result(Task):
    """A task that has ended, and what it left; see `AsyncResult`."""

    __slots__ = ("_async", "_loop")
    _async: AsyncResult
    _loop: Loop

    @classmethod
    def blocking(cls, result: AsyncResult, loop: Loop) -> Result:
        """The result whose methods wait."""
        made = cls(**{name: getattr(result, name) for name in Task.__dataclass_fields__})
        object.__setattr__(made, "_async", result)
        object.__setattr__(made, "_loop", loop)
        return made

    def read(self, name: str) -> bytes:
        """A file's bytes, held against its digest. Raises NotFound where the task left no file of that name."""
        return self._loop.run(self._async.read(name))

    def image(self, name: str | None = None) -> Image.Image:
        """A picture, as PIL's Image; with several frames it is at the first (`seek`)."""
        return self._loop.run(self._async.image(name))

    def text(self, name: str | None = None) -> str:
        """A text file; of an inference task the generated texts, separated by line breaks."""
        return self._loop.run(self._async.text(name))

    def json(self, name: str | None = None) -> Any:
        """A JSON file's value; of JSON Lines a list of values."""
        return self._loop.run(self._async.json(name))

    def arrays(self, name: str | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of an .npz file by name, or that of an .npy file as "array"."""
        return self._loop.run(self._async.arrays(name))

    def download(self, to: Path | str, **options: Any) -> builtins.list[Path]:
        """Write every file into the folder `to`; see `AsyncClient.download`."""
        return self._loop.run(self._async.download(to, **options))

    def receipt(self) -> Receipt:
        """What a third party needs to believe the result; see `AsyncClient.receipt`."""
        return self._loop.run(self._async.receipt())

    def verify(self, vkey: str | None = None) -> builtins.list[Check]:
        """The steps of the receipt's verification, all of which hold: else InvalidProof names those that do not.

        `vkey` is the log key to trust, else the profile's. Raises InvalidState where neither is known.
        """
        return self._loop.run(self._async.verify(vkey))


class TaskHandle:
    """A submitted task, as a future; see `AsyncTaskHandle`. `task` is what was last heard of it."""

    def __init__(self, handle: AsyncTaskHandle, loop: Loop) -> None:
        self._async, self._loop = handle, loop

    @property
    def task(self) -> Task:
        """What was last heard of the task."""
        return self._async.task

    @property
    def task_id(self) -> str:
        """The digest of the order, 64 hexadecimal characters."""
        return self._async.task_id

    def watch(self, timeout: float | None = None) -> Iterator[TaskEvent]:
        """Events not seen yet, up to the terminal one."""
        return self._loop.iterate(self._async.watch(timeout))

    def wait(self, timeout: float | None = None) -> Result:
        """The task once it has ended, however it did. Raises DeadlineExceeded after `timeout` seconds."""
        return Result.blocking(self._loop.run(self._async.wait(timeout)), self._loop)

    def result(self, timeout: float | None = None) -> Result:
        """The completed task. Raises TaskFailed where it ended otherwise, DeadlineExceeded after `timeout` seconds."""
        return Result.blocking(self._loop.run(self._async.result(timeout)), self._loop)

    def done(self) -> bool:
        """Whether the task had ended when it was last heard of (`refresh` asks)."""
        return self._async.done()

    def refresh(self) -> Task:
        """Ask the market how the task is now."""
        return self._loop.run(self._async.refresh())

    def cancel(self) -> Task:
        """End the task; see `AsyncClient.cancel`."""
        return self._loop.run(self._async.cancel())

    def receipt(self) -> Receipt:
        """The completed task's receipt; see `AsyncClient.receipt`."""
        return self._loop.run(self._async.receipt())

    def __repr__(self) -> str:
        return repr(self._async).removeprefix("Async")

    def _repr_html_(self) -> str:
        return self.task._repr_html_()
