"""A process that a service starts for what must not run in its own: device code, audits, anything that may hang or die.

A fresh interpreter by exec, never fork: JAX and grpc both have threads, and a forked copy of them hangs. It is started
as `python -m MODULE FD SETTINGS` with one end of a socket pair and its settings as JSON. Frames are a u32 length and a
pickle; both ends are this program, on one machine, so pickle is safe and quick.

The child lives exactly as long as its socket: its parent may be killed at any moment, in the middle of a long job too.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from typing import Any

LENGTH = struct.Struct(">I")
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 1.0
LOST = (EOFError, OSError, pickle.UnpicklingError)
"""What `Child.receive` raises once the child is gone."""


def frame(message: object) -> bytes:
    """A message as it goes over the socket."""
    data = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(data)) + data


class ChildFailed(Exception):
    """The child could not begin its work; the text is its own."""


class Link:
    """The child's end of the socket. A thread reads it all the time, so that a cancel or the parent's death is seen
    while the child computes, and the parent's writes never wait for that to end. `cancelled` holds what the messages
    ("cancel", number) named; all others go to `inbox`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    def inherited(cls, fd: int) -> Link:
        """The link over an inherited descriptor. Ctrl-C and a service manager's SIGTERM reach the whole process group;
        the parent decides when its child ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return cls(socket.socket(fileno=fd))

    def send(self, message: object) -> None:
        """Blocks until the message is written; ends the process where nobody reads any more."""
        try:
            self._sock.sendall(frame(message))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        stream = self._sock.makefile("rb")
        try:
            while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                message = pickle.loads(stream.read(LENGTH.unpack(head)[0]))
                if message[0] == "cancel":
                    self.cancelled.add(message[1])
                else:
                    self.inbox.put(message)
        except (OSError, EOFError, pickle.UnpicklingError):
            pass
        os._exit(0)  # the parent is gone: stop in the middle of whatever runs


class Child:
    """The parent's end: starts the process, talks to it, ends it. It can be started again after `end`."""

    def __init__(self, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._module, self._settings, self._environment = module, dict(settings), dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the child that is up, None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> Any:
        """Start the process and return what its first message, ("ready", ...), says. Raises ChildFailed where it says
        ("failed", text) or nothing."""
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, str(theirs.fileno()), json.dumps(self._settings),
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
            what, payload = await asyncio.wait_for(self.receive(), START_TIMEOUT_S)
        except (*LOST, TimeoutError) as error:
            code = await self.end()
            raise ChildFailed(f"{self._module} ended with status {code} before it was ready") from error
        if what != "ready":
            await self.end()
            raise ChildFailed(payload)
        return payload

    async def receive(self) -> Any:
        """The child's next message. Raises what `LOST` lists once the child is gone."""
        assert self._reader is not None
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return pickle.loads(await self._reader.readexactly(length))

    def send(self, message: object) -> None:
        """Queue a message. Lost where the child has just died: `receive` tells."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def end(self) -> int | None:
        """End the child, whatever it does; its exit status, None where there is none."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        if process is None:
            return None
        # It ends by itself when the socket closes; this is for one that was stopped or hangs in a driver.
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
            except TimeoutError:
                process.kill()
        return await process.wait()
