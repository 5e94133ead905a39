"""Connections that send and send and nothing comes of it: streams that are reset as soon as they are open, headers
without end. They are ended, and the address they come from is turned away for a while.

gRPC reads whatever comes and closes no connection for it, nor can a handler: it never sees these streams. But the
kernel counts the bytes of each connection (TCP_INFO), and the transport its messages, either way, and the calls that
ended well (channelz). A message has a largest size: whoever sent more than that without one is of no use to anybody.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
import structlog
from grpc_channelz.v1 import channelz, channelz_pb2

from computemesh.service import metrics
from computemesh.service.doors import Doors, descriptors, plain, received
from computemesh.service.pressure import SHARE

log = structlog.get_logger("computemesh.service")

LOOK_S = 0.1
NOTICED_BYTES = 64 * 1024
"""Connections that sent less since they were seen last are not looked into."""
REMEMBERED_S = 10.0
KNOWN = 50_000

Peer = tuple[str, int]


@dataclass(slots=True)
class Seen:
    """A connection: how many bytes it had received when it was seen last, and when something came of them last."""

    peer: Peer
    received: int = 0
    fruitful: int = 0
    progress: int = 0

    @property
    def fruitless(self) -> int:
        return self.received - self.fruitful


class _Asking:
    """The context of a question to channelz within the process."""

    def set_code(self, code: grpc.StatusCode) -> None:
        raise LookupError(code)


class Transport:
    """What gRPC has counted of a server's connections."""

    def __init__(self, server: int) -> None:
        self._server, self._next = server, 0
        self._numbers: dict[Peer, int] = {}

    def progress(self, peer: Peer) -> int | None:
        """Messages of a connection and calls that ended well; None: there is no such connection."""
        for _ in range(2):
            number = self._numbers.get(peer)
            if number is not None:
                asked = channelz_pb2.GetSocketRequest(socket_id=number)
                with suppress(LookupError):  # it has ended, and its address is another's now
                    data = channelz.ChannelzServicer.GetSocket(asked, _Asking()).socket.data
                    return int(data.messages_received + data.messages_sent + data.streams_succeeded)
                del self._numbers[peer]
            self._read()
        return None

    def _read(self) -> None:
        """The connections that came since."""
        if len(self._numbers) > KNOWN:
            self._numbers.clear()
            self._next = 0
        while True:
            asked = channelz_pb2.GetServerSocketsRequest(server_id=self._server, start_socket_id=self._next)
            page = channelz.ChannelzServicer.GetServerSockets(asked, _Asking())
            for one in page.socket_ref:  # "chttp2 ipv4:192.0.2.1:50000", "chttp2 ipv6:%5B2001:db8::1%5D:50000"
                host, _, port = unquote(one.name).partition(":")[2].rpartition(":")
                with suppress(ValueError):
                    self._numbers[str(plain(host.strip("[]"))), int(port)] = one.socket_id
                self._next = max(self._next, one.socket_id + 1)
            if page.end:
                return


class Floods:
    """Ends the connections to `port` of this process that sent more than `most` bytes since anything came of them,
    which `progress` knows. Where it is twice that together with others of their address that ended lately, `doors`
    turns the address away."""

    def __init__(self, port: int, progress: Callable[[Peer], int | None], doors: Doors, most: int) -> None:
        self._port, self._progress, self._doors, self._most = port, progress, doors, most
        self._seen: dict[int, Seen] = {}  # by file descriptor
        self._left: dict[str, tuple[float, int]] = {}  # by address: since when, bytes of ended connections

    def look(self) -> None:
        """Once at every connection."""
        numbers = descriptors()
        for number in numbers:
            count, seen = received(number), self._seen.get(number)
            if seen is not None and (count is None or count < seen.received):
                self._ended(number)
                seen = None
            if count is not None and count - (seen.received if seen else 0) > NOTICED_BYTES:
                with suppress(OSError):  # gone meanwhile
                    self._judge(number, count)
        for number in self._seen.keys() - set(numbers):
            self._ended(number)
        self._left = {host: (since, left) for host, (since, left) in self._left.items()
                      if time.monotonic() - since < REMEMBERED_S}  # fmt: skip

    def _ended(self, number: int) -> None:
        """The connection is no more; the file descriptor may be another's."""
        seen = self._seen.pop(number)
        if seen.fruitless > NOTICED_BYTES:
            since, left = self._left.get(seen.peer[0], (time.monotonic(), 0))
            self._left[seen.peer[0]] = since, left + seen.fruitless

    def _judge(self, number: int, count: int) -> None:
        with socket.socket(fileno=os.dup(number)) as own:  # ours, so that it is no other's when it is ended
            if own.getsockname()[1] != self._port:
                return
            host, port = own.getpeername()[:2]
            peer = str(plain(host)), port
            progress = self._progress(peer)
            if progress is None:
                return
            if number in self._seen and self._seen[number].peer != peer:
                self._ended(number)
            seen = self._seen.setdefault(number, Seen(peer))
            seen.received = count
            if progress > seen.progress:
                seen.progress, seen.fruitful = progress, count
                return
            again = seen.fruitless + self._left.get(peer[0], (0, 0))[1] > 2 * self._most
            if again or seen.fruitless > self._most:
                own.shutdown(socket.SHUT_RDWR)
                metrics.FLOODS.inc()
                log.warning("connection.flooded", peer=f"{peer[0]} port {peer[1]}", bytes=seen.fruitless,
                            turned_away=again and self._doors.turn_away(peer[0]))  # fmt: skip

    async def run(self) -> None:
        """Looks for ever; returns at once where the kernel does not count as Linux does."""
        while sys.platform == "linux":
            took_s = await asyncio.to_thread(self._timed)
            await asyncio.sleep(max(LOOK_S, took_s / SHARE))

    def _timed(self) -> float:
        began = time.thread_time()
        self.look()
        return time.thread_time() - began
