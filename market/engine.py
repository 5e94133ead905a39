"""Runs the core: every event's records are made durable, then its effects are carried out, in the order of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from computemesh.service.crashpoints import crash_point
from computemesh.service.store import GroupCommit
from computemesh.v1 import market_pb2
from market import store, views
from market.core import Core
from market.kinds import EventKind
from market.ledger_client import LedgerClient
from market.states import (
    Changed,
    Created,
    Effects,
    Event,
    Inspect,
    Release,
    Restore,
    Send,
    Spec,
    Tick,
)
from market.telemetry import Telemetry

TICK_S = 0.1
_LONGEST_QUEUE = 256
log = structlog.get_logger("market.engine")


def now_ms() -> int:
    """The clock, Unix ms."""
    return time.time_ns() // 1_000_000


class Connection(Protocol):
    """A Dispatch stream, as the engine sees it."""

    def send(self, item: Send) -> None: ...


class Published:
    """One durable event; its message is built once, however many watch."""

    __slots__ = ("_message", "change")

    def __init__(self, change: Changed) -> None:
        self.change = change
        self._message: market_pb2.WatchTaskResponse | None = None

    def message(self, spec: Spec) -> market_pb2.WatchTaskResponse:
        """The event as customers get it."""
        if self._message is None:
            self._message = views.event(spec, self.change)
        return self._message


class Bell:
    """Wakes everybody who waits for the feed to grow."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def wake(self) -> None:
        """There is something new."""
        self._next.set()
        self._next = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        """Set once there is something newer than now; take it before looking."""
        return self._next


class Watcher:
    """What one WatchTask call has not yet seen. One that lags reads the store again instead of growing a queue."""

    def __init__(self) -> None:
        self.queue: list[Published] = []
        self.lagging = False
        self.partial = ""  # the newest text of a running job, unverified
        self.wake = asyncio.Event()

    def put(self, item: Published) -> None:
        if len(self.queue) >= _LONGEST_QUEUE:
            self.queue.clear()
            self.lagging = True
        elif not self.lagging:
            self.queue.append(item)
        self.wake.set()


class Engine:
    """The core with its store, its ledger and the streams of its orchestrators."""

    def __init__(self, core: Core, group: GroupCommit, ledger: LedgerClient, clock: Callable[[], int] = now_ms) -> None:
        self.core = core
        self.group = group
        self.ledger = ledger
        self.clock = clock
        self.connections: dict[int, Connection] = {}
        self.watchers: dict[bytes, set[Watcher]] = {}
        self.stopping = False
        # Told of tasks that ended, once that is durable.
        self.released: Callable[[Release], None] = lambda item: None
        self._in_flight = 0
        self.feed = Bell()
        # What the workers of each connected orchestrator ask.
        self.asks: dict[int, list[market_pb2.TypeAsk]] = {}
        self._telemetry = Telemetry()
        ledger.on_event = self.do

    def do(self, event: Event) -> asyncio.Future[None]:
        """Steps the core at once; the future resolves when the records are durable and the effects under way."""
        effects = self.core.step(event, self.clock())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not effects.persist and not self._in_flight:
            self._perform(effects)
            done.set_result(None)
            return done
        # A step without records waits its turn too, or its messages would overtake those of the step before.
        crash_point("market.step.decided")
        self._in_flight += 1
        tells = any(not isinstance(item, Changed) or item.kind or item.feed for item in effects.persist)
        durable = self.group.submit(lambda connection: store.record(connection, effects.persist))

        def finish(_: asyncio.Future[None]) -> None:
            crash_point("market.step.durable")
            self._in_flight -= 1
            self._perform(effects)
            crash_point("market.step.performed")
            if tells:
                self.feed.wake()
            if not done.done():
                done.set_result(None)

        durable.add_done_callback(finish)
        return done

    async def restore(self) -> None:
        """Reloads every live task."""
        tasks = await self.group.read(store.live_tasks)
        await self.do(Restore(tuple(tasks)))
        if tasks:
            log.info("tasks reloaded", count=len(tasks))

    async def tick(self) -> None:
        """Tells the core that time passes, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.do(Tick())
            self._telemetry.sample(self.core.book, len(self.watchers))

    def stop_watchers(self) -> None:
        """Ends all WatchTask calls: their customers resume elsewhere or later."""
        self.stopping = True
        self.feed.wake()
        for watchers in self.watchers.values():
            for watcher in watchers:
                watcher.wake.set()

    def watch(self, task_id: bytes) -> Watcher:
        """A watcher that gets every event made durable from now on."""
        watcher = Watcher()
        self.watchers.setdefault(task_id, set()).add(watcher)
        return watcher

    def unwatch(self, task_id: bytes, watcher: Watcher) -> None:
        """Ends a watch."""
        watchers = self.watchers.get(task_id, set())
        watchers.discard(watcher)
        if not watchers:
            self.watchers.pop(task_id, None)

    def show(self, connection: int, task_id: bytes, epoch: int, partial: str) -> None:
        """Shows those who watch now a running job's text so far, if this orchestrator holds the task."""
        watchers = self.watchers.get(task_id)
        if watchers and self.core.leased(connection, task_id, epoch):
            for watcher in watchers:
                watcher.partial = partial
                watcher.wake.set()

    def _perform(self, effects: Effects) -> None:
        for record in effects.persist:
            if isinstance(record, Created):
                self._publish(Changed(record.spec.task_id, record.state, EventKind.CREATED))
            elif record.kind is not None:
                self._publish(record)
        for item in effects.send:
            connection = self.connections.get(item.connection)
            if connection is not None:
                connection.send(item)
        for ended in effects.release:
            self.released(ended)
        for call in effects.ledger:
            if isinstance(call, Inspect):
                self.ledger.inspect(call)
            else:
                self.ledger.submit(call)

    def _publish(self, change: Changed) -> None:
        self._telemetry.published(change)
        watchers = self.watchers.get(change.task_id)
        if watchers:
            item = Published(change)
            for watcher in watchers:
                watcher.put(item)
