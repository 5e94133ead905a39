"""The agent's side of an executor: starts it, talks to it, and starts it again when it dies.

A fresh interpreter by exec, never fork: JAX and grpc both have threads, and a forked copy of them hangs.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from worker.events import Event, Finished, LaneDown, LaneUp
from worker.executor import LENGTH, frame
from worker.lanes import Run

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
START_TIMEOUT_S = 120.0
log = structlog.get_logger("worker.executor")


class DeviceUnavailable(Exception):
    """The executor could not open its device; the text is JAX's."""


class ExecutorProcess:
    """Keeps one executor running for lane `lane` and posts what happens as core events."""

    def __init__(
        self, lane: int, environment: Mapping[str, str], cache_dir: str, post: Callable[[Event], None]
    ) -> None:
        self._lane, self._environment, self._cache_dir, self._post = lane, environment, cache_dir, post
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self.description: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """The process id of the executor that is up, None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process and wait until its device is open. Raises DeviceUnavailable."""
        ours, theirs = socket.socketpair()
        settings = {"lane": self._lane, "cache_dir": self._cache_dir}
        paths = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker.executor", str(theirs.fileno()), json.dumps(settings),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, **self._environment, "PYTHONPATH": paths},
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            what, payload = await asyncio.wait_for(self._receive(), START_TIMEOUT_S)
        except (EOFError, OSError, TimeoutError) as error:
            code = await self._end()
            raise DeviceUnavailable(f"the executor ended with status {code} before it was ready") from error
        if what != "ready":
            await self._end()
            raise DeviceUnavailable(payload)
        self.description = payload
        log.info("executor up", lane=self._lane, pid=self._process.pid, **payload)
        self._post(LaneUp(self._lane))

    async def keep(self) -> None:
        """Serve until cancelled: read outcomes, and start the executor again whenever it is gone."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                try:
                    while True:
                        _, done = await self._receive()
                        pause_s = FIRST_PAUSE_S
                        self._post(Finished([done]))
                except (EOFError, OSError, pickle.UnpicklingError):
                    pass
                code = await self._end()
                log.warning("executor died", lane=self._lane, status=code)
                self._post(LaneDown(self._lane))
                pause_s = await self._start_again(pause_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the executor, whatever it does."""
        await self._end()

    async def _start_again(self, pause_s: float) -> float:
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            try:
                await self.start()
                return pause_s
            except (DeviceUnavailable, OSError) as error:
                log.error("executor does not start", lane=self._lane, cause=str(error), retry_s=pause_s)

    async def _receive(self) -> tuple[str, Any]:
        assert self._reader is not None
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        what, payload = pickle.loads(await self._reader.readexactly(length))
        return what, payload

    async def _end(self) -> int | None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        if process is None:
            return None
        # It ends by itself when the socket closes; this is for one that was stopped or hangs in a driver.
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), 1.0)
            except TimeoutError:
                process.kill()
        return await process.wait()

    def run(self, run: Run) -> None:
        """Give the executor a group. Lost where it has just died: LaneDown accounts for that group."""
        self._write(("run", run.group_id, run.challenge_type, run.rows))

    def cancel(self, group_id: int) -> None:
        """Tell the executor that a group's results are not wanted."""
        self._write(("cancel", group_id))

    def _write(self, message: object) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))
