"""The agent's side of an executor: starts it, gives it work, and starts it again when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from computemesh.service.child import LOST, ChildFailed
from computemesh.service.crashpoints import crash_point
from worker.events import Event, Finished, LaneDown, LaneUp
from worker.lanes import Run

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
KIND = ("platform", "kind", "jaxlib_version")
log = structlog.get_logger("worker.executor")


class DeviceUnavailable(Exception):
    """The executor could not open its device; the text is JAX's."""


class Place(Protocol):
    """Where an executor runs: `computemesh.service.child.Child`, which says what these do, or one elsewhere."""

    @property
    def pid(self) -> int | None: ...
    async def start(self) -> Any: ...
    async def receive(self) -> Any: ...
    def send(self, message: object) -> None: ...
    async def end(self) -> int | None: ...


class ExecutorProcess:
    """Keeps one executor running for lane `lane` and posts what happens as core events."""

    def __init__(self, lane: int, place: Place, post: Callable[[Event], None]) -> None:
        self._lane, self._place, self._post = lane, place, post
        self.description: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """The process id of the executor that is up, None while there is none."""
        return self._place.pid

    async def start(self) -> None:
        """Start the process and wait until its device is open. Raises DeviceUnavailable, also where it is of another
        kind than before: the orchestrator was told that kind, and float results are compared within it."""
        try:
            found = await self._place.start()
        except ChildFailed as error:
            raise DeviceUnavailable(str(error)) from error
        if self.description and any(found[key] != self.description[key] for key in KIND):
            await self._place.end()
            kind = ", ".join(str(found[key]) for key in KIND)
            raise DeviceUnavailable(f"another kind of device than at the start ({kind}): restart the worker to take it")
        self.description = found
        log.info("executor up", lane=self._lane, pid=self._place.pid, **found)
        self._post(LaneUp(self._lane))

    async def keep(self) -> None:
        """Serve until cancelled: read outcomes, and start the executor again whenever it is gone."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                try:
                    while True:
                        kind, found = await self._place.receive()
                        pause_s = FIRST_PAUSE_S
                        crash_point("worker.result.arrived")
                        self._post(Finished([found]) if kind == "done" else found)
                except LOST:
                    pass
                code = await self._place.end()
                log.warning("executor died", lane=self._lane, status=code)
                self._post(LaneDown(self._lane))
                pause_s = await self._start_again(pause_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the executor, whatever it does."""
        await self._place.end()

    async def _start_again(self, pause_s: float) -> float:
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            try:
                await self.start()
                return pause_s
            except (DeviceUnavailable, OSError) as error:
                log.error("executor does not start", lane=self._lane, cause=str(error), retry_s=pause_s)

    def run(self, run: Run) -> None:
        """Give the executor a group. Lost where it has just died: LaneDown accounts for that group."""
        self._place.send(("run", run.group_id, run.challenge_type, run.rows))

    def cancel(self, group_id: int) -> None:
        """Tell the executor that a group's results are not wanted."""
        self._place.send(("cancel", group_id))
