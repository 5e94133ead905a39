"""The agent's side of an executor: starts it, gives it work, and starts it again when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from computemesh.service.child import LOST, Child, ChildFailed
from computemesh.service.crashpoints import crash_point
from worker.events import Event, Finished, LaneDown, LaneUp
from worker.lanes import Run

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
log = structlog.get_logger("worker.executor")


class DeviceUnavailable(Exception):
    """The executor could not open its device; the text is JAX's."""


class ExecutorProcess:
    """Keeps one executor running for lane `lane` and posts what happens as core events."""

    def __init__(
        self, lane: int, environment: Mapping[str, str], cache_dir: str, post: Callable[[Event], None],
        scratch_dir: str | None = None,
    ) -> None:  # fmt: skip
        self._lane, self._post = lane, post
        settings = {"lane": lane, "cache_dir": cache_dir, "scratch_dir": scratch_dir}
        self._child = Child("worker.executor", settings, environment)
        self.description: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """The process id of the executor that is up, None while there is none."""
        return self._child.pid

    async def start(self) -> None:
        """Start the process and wait until its device is open. Raises DeviceUnavailable."""
        try:
            self.description = await self._child.start()
        except ChildFailed as error:
            raise DeviceUnavailable(str(error)) from error
        log.info("executor up", lane=self._lane, pid=self._child.pid, **self.description)
        self._post(LaneUp(self._lane))

    async def keep(self) -> None:
        """Serve until cancelled: read outcomes, and start the executor again whenever it is gone."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                try:
                    while True:
                        kind, found = await self._child.receive()
                        pause_s = FIRST_PAUSE_S
                        crash_point("worker.result.arrived")
                        self._post(Finished([found]) if kind == "done" else found)
                except LOST:
                    pass
                code = await self._child.end()
                log.warning("executor died", lane=self._lane, status=code)
                self._post(LaneDown(self._lane))
                pause_s = await self._start_again(pause_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the executor, whatever it does."""
        await self._child.end()

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
        self._child.send(("run", run.group_id, run.challenge_type, run.rows))

    def cancel(self, group_id: int) -> None:
        """Tell the executor that a group's results are not wanted."""
        self._child.send(("cancel", group_id))
