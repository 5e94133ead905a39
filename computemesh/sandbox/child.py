"""The child's side: its link to the parent and the limits it puts on itself before it touches anything foreign."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import socket
import threading
from typing import Any

from computemesh.sandbox.frames import HEAD, Kind, document, send

IDLE_LIMIT_S = 60.0  # longer than the parent keeps it in use, so that a request never meets a child that leaves
MAX_FILE_BYTES = 256 * 2**20  # compilers write temporary files
MAX_TEXT = 900


class Refused(Exception):
    """The work cannot be done: (reason, text) for the parent. `again`: another machine may do it."""

    def __init__(self, reason: str, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.reason, self.again = reason, again


class Link:
    """The socket to the parent. A thread reads it, so that the child ends in the middle of anything when the parent
    is gone."""

    def __init__(self, fd: int, idle_s: float | None = IDLE_LIMIT_S) -> None:
        self._idle_s = idle_s
        self._socket = socket.socket(fileno=fd)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, kind: Kind, data: bytes | memoryview = b"") -> None:
        try:
            send(self._socket, kind, data)
        except OSError:
            os._exit(0)

    def phase(self, name: str) -> None:
        self.send(Kind.PHASE, name.encode())

    def document(self, value: Any) -> None:
        self.send(Kind.DOCUMENT, document(value))

    def fail(self, error: Refused) -> None:
        text = str(error)[:MAX_TEXT]
        self.send(Kind.FAILED, document({"reason": error.reason, "text": text, "again": error.again}))

    def request(self) -> dict[str, Any]:
        """The next request; ends the process where none comes in `idle_s`."""
        try:
            return dict(self._inbox.get(timeout=self._idle_s))
        except queue.Empty:
            os._exit(0)

    def _read(self) -> None:
        stream = self._socket.makefile("rb")
        with contextlib.suppress(Exception):
            while len(head := stream.read(HEAD.size)) == HEAD.size:
                _, length = HEAD.unpack(head)
                self._inbox.put(json.loads(stream.read(length)))
        os._exit(0)


def mapped_bytes() -> int:
    """Bytes of address space this process has mapped."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def limit_memory(total_bytes: int) -> None:
    """Let this process map that many bytes in all."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = total_bytes if hard == resource.RLIM_INFINITY else min(total_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def limit_processor(seconds: float) -> None:
    """Let this process use `seconds` of processor time more: what ends it where the parent died and it hangs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def confine() -> None:
    """No core dumps, no large files, and no new privileges by setuid programs. For good."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        _libc().prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def leave_network() -> None:
    """Move to a network namespace without interfaces, where the system lets a user do that. Before any thread."""
    with contextlib.suppress(OSError, AttributeError):
        _libc().unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
