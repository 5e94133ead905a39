"""One writer per stream that sends whatever is queued, with no timer: low latency idle, full batches under load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Items pushed while a write is under way are assembled into the next messages.

    `assemble(items)` turns everything queued into messages, in order; `write(message)` sends one. Backpressure is the
    protocol's credits, not this queue: `write` returns before the peer has read.
    """

    def __init__(
        self,
        write: Callable[[Any], Awaitable[None]],
        assemble: Callable[[Sequence[Item]], Iterable[Any]] = iter,
    ) -> None:
        self._write = write
        self._assemble = assemble
        self._items: list[Item] = []
        self._wake = asyncio.Event()
        self._closed = False

    def push(self, item: Item) -> None:
        """Queues `item`; a closed outbox drops it."""
        if not self._closed:
            self._items.append(item)
            self._wake.set()

    def close(self) -> None:
        """Lets `run` end once everything queued is written."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Writes until closed. Raises what `write` raises: the stream is gone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._items:
                items, self._items = self._items, []
                for message in self._assemble(items):
                    await self._write(message)
            if self._closed:
                return
