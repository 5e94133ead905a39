"""The parent's side: starts a child, gives it one request at a time, and kills it at the first limit it crosses.

A child has an environment without secrets, an empty working directory, its own session and no descriptor but its
socket. What it sends is bounded before it is read. `ask` ends with DONE or raises `JobFailed`, whose reason starts with
the child's `label`, and then the child is dead. A child with `own` code, the operator's, has the same limits, but
keeps environment, folder and log, and lives on after a failure that it reported itself.

`computemesh.service.child` is for children that run this project's code: it unpickles what they say.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from computemesh.sandbox.frames import HEAD, MAX_DOCUMENT_BYTES, Kind, document, send
from computemesh.trust.errors import MeshError

START_LIMIT_S = 120.0
OWN_START_LIMIT_S = 900.0  # an operator's init() may load a model
WATCH_S = 0.05
SEND_LIMIT_S = 10.0  # a child that does not take a request hangs
KEEP_IDLE_S = 30.0
MAX_TEXT = 900
# What an interpreter needs to find its libraries and its device. Keys, tokens and proxies are not among them.
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "XLA_")
PAGE = os.sysconf("SC_PAGE_SIZE")


class JobFailed(MeshError):
    """A job that cannot be done, whoever tries: not a fault of the worker. `reason` says which limit or rule.

    Where another worker may succeed, `retry_after_ms` is set.
    """

    status = "FAILED_PRECONDITION"
    reason = "JOB_FAILED"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request: seconds of wall time, bytes of memory beyond what the fresh child has (0 = unlimited), bytes
    of all outputs."""

    seconds: float
    memory_bytes: int
    output_bytes: int


def _nothing() -> None:
    return None


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: this process's without anything secret, and `extra`."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    paths = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)
    return {**kept, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "4", **extra}


class Child:
    """One process running `python -m module FD ARGUMENTS`. `label` begins the reasons of its failures, e.g. PROGRAM."""

    def __init__(
        self, module: str, label: str, extra: Mapping[str, str], arguments: tuple[str, ...] = (), *, own: bool = False
    ) -> None:
        self.label, self._own = label, own
        self._folder = tempfile.mkdtemp(prefix="computemesh-child-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        log = 2 if own else self._errors
        places = environment({"HOME": self._folder, **extra})
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    cwd=None if own else self._folder, start_new_session=True,
                    env={**os.environ, "PYTHONPATH": places["PYTHONPATH"], **extra} if own else places,
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        self._socket = ours
        self.phase = "starting"
        self._busy = False
        self._resident = 0
        self.idle_since = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether the next request may go here."""
        fresh = self._own or time.monotonic() - self.idle_since < KEEP_IDLE_S
        return fresh and not self._busy and self._process.poll() is None

    def start(self) -> None:
        """Wait until the child is ready. Raises JobFailed."""
        limits = Limits(OWN_START_LIMIT_S if self._own else START_LIMIT_S, 0, 0)
        kind, data = self._receive(time.monotonic() + limits.seconds, limits, 0, _nothing)
        if kind is Kind.FAILED:
            self.close()
            raise self._told(data)
        self._resident = self._measure()
        self.phase = "ready"

    def ask(
        self, request: Mapping[str, Any], limits: Limits, progress: Callable[[], None] = _nothing
    ) -> Iterator[tuple[Kind, bytes]]:
        """DOCUMENT and OUTPUT frames of one request, until it is done.

        `progress` is called some 20 times a second, and after each frame; what it raises ends the child.
        Raises JobFailed: <label>_TIMEOUT, _MEMORY, _OUTPUT, _CRASHED, or the child's own reason.
        """
        until = time.monotonic() + limits.seconds
        left = limits.output_bytes
        self.phase, self._busy = "ready", True
        told: JobFailed | None = None
        try:
            self._socket.settimeout(SEND_LIMIT_S)
            send(self._socket, Kind.REQUEST, document(request))
            while True:
                kind, data = self._receive(until, limits, left, progress)
                if kind is Kind.DONE:
                    break
                if kind is Kind.FAILED:
                    told = self._told(data)
                    break
                if kind is Kind.PHASE:
                    self.phase = data[:40].decode("ascii", "replace")
                else:
                    left -= len(data) if kind is Kind.OUTPUT else 0
                    yield kind, data
        except OSError as error:
            raise self._crashed() from error
        except BaseException:  # also a consumer that stops in the middle: the child still works for it
            self.close()
            raise
        self.idle_since, self._busy = time.monotonic(), False
        if told is not None:
            if not self._own:
                self.close()
            raise told

    def _receive(
        self, until: float, limits: Limits, output_left: int, progress: Callable[[], None]
    ) -> tuple[Kind, bytes]:
        number, length = HEAD.unpack(self._read(HEAD.size, until, limits, progress))
        try:
            kind = Kind(number)
        except ValueError:
            raise self._fail("CRASHED", f"sent something else than an answer while {self.phase}") from None
        allowed = output_left if kind is Kind.OUTPUT else MAX_DOCUMENT_BYTES
        if length > allowed:
            raise self._fail("OUTPUT", f"sends {length:,} bytes, where {allowed:,} are allowed")
        data = self._read(length, until, limits, progress)
        progress()
        return kind, data

    def _read(self, length: int, until: float, limits: Limits, progress: Callable[[], None]) -> bytes:
        buffer = bytearray()
        while len(buffer) < length:
            now = time.monotonic()
            if now >= until:
                raise self._fail("TIMEOUT", f"was still {self.phase} after {limits.seconds:g} s, its limit")
            try:
                self._socket.settimeout(min(WATCH_S, until - now))
                part = self._socket.recv(min(length - len(buffer), 1 << 20))
            except TimeoutError:
                progress()
                self._watch(limits)
                continue
            if not part:
                raise self._crashed()
            buffer += part
        return bytes(buffer)

    def _watch(self, limits: Limits) -> None:
        used = self._measure() - self._resident
        if limits.memory_bytes and used > limits.memory_bytes:
            raise self._fail("MEMORY", f"used {used:,} bytes while {self.phase}; its limit is {limits.memory_bytes:,}")

    def _measure(self) -> int:
        """Resident bytes of the child; 0 where the system does not say (no /proc) or it has ended."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def _fail(self, what: str, text: str) -> JobFailed:
        self.close()
        return JobFailed(f"the {self.label.lower()} {text}"[:MAX_TEXT], reason=f"{self.label}_{what}")

    def _told(self, data: bytes) -> JobFailed:
        """The child's own refusal, believed only as a bounded text."""
        try:
            told = json.loads(data)
            reason, text, again = str(told["reason"]), str(told["text"]), bool(told.get("again"))
        except (ValueError, KeyError, TypeError, RecursionError):
            reason, text, again = "CRASHED", "failed without saying why", False
        if not reason.isascii() or not reason.replace("_", "").isalpha() or len(reason) > 40:
            reason = "CRASHED"
        # Whoever reads the word in a message takes it for a full device and tries elsewhere, for ever.
        text = text[:MAX_TEXT].replace("RESOURCE_EXHAUSTED", "out of memory")
        return JobFailed(text, reason=f"{self.label}_{reason.upper()}", retry_after_ms=1000 if again else None)

    def _crashed(self) -> JobFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)  # its socket closes a moment before it is gone
        status = self._process.poll()
        try:
            size = os.fstat(self._errors.fileno()).st_size
            said = os.pread(self._errors.fileno(), 400, max(0, size - 400)).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            said = ""
        if status is not None and status < 0:
            how = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
        else:
            how = "no status" if status is None else f"status {status}"
        last = said.splitlines()[-1] if said else ""
        memory = "bad_alloc" in said or "MemoryError" in said or "Out of memory" in said
        text = f"ended its process ({how}) while {self.phase}" + (f": {last}" if last else "")
        return self._fail("MEMORY" if memory else "CRASHED", text)

    def close(self) -> None:
        """End the child and everything it started; safe to repeat."""
        self._socket.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Keeper:
    """Keeps the child of the last request, so that a program's next job neither starts nor compiles again.

    A child only ever serves one `key`: what a program broke in its process reaches no other program.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[object, Child] | None = None

    @contextlib.contextmanager
    def child(self, key: object, start: Callable[[], Child]) -> Iterator[Child]:
        """A child of `key` for this block, ready. After a block that raises it is kept only if `ask` let it live."""
        with self._lock:
            kept, self._kept = self._kept, None
        child = kept[1] if kept is not None and kept[0] == key and kept[1].usable else None
        if kept is not None and child is None:
            kept[1].close()
        if child is None:
            child = start()
        try:
            if child.phase == "starting":
                child.start()
            yield child
        except JobFailed:
            if not child.usable:
                child.close()
                raise
            self._keep(key, child)
            raise
        except BaseException:
            child.close()
            raise
        self._keep(key, child)

    def _keep(self, key: object, child: Child) -> None:
        with self._lock:
            other, self._kept = self._kept, (key, child)
        if other is not None:
            other[1].close()

    def close(self) -> None:
        """End the child that is kept."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()
