"""How long calls wait in the transport before the service sees them, and which are refused for it.

gRPC begins one call after the other and queues the rest: under load a call waits there for most of its time, and no
count of calls being answered knows. The transport's own counters (channelz,
https://github.com/grpc/proposal/blob/master/A14-channelz.md) do: calls that arrived, less those that ended, less those
that the service has begun, wait. By Little's law (https://doi.org/10.1287/opre.9.3.383) they wait for their number over
the rate at which calls end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpc_channelz.v1 import channelz, channelz_pb2

from computemesh.service.limits import overloaded

SAMPLE_S = 0.05
SHARE = 0.02
"""Of a core that looking may take. The transport goes over all connections to answer (20 us for each), and nothing else
runs meanwhile: it is asked less often the more there are."""
DEAR_S, SELDOM_S = 0.05, 60.0
"""Where an answer takes longer than the first, nobody is refused, and it is asked again after the second."""
WINDOW = 4
"""Samples that are looked at together: what does not wait in each of them is a burst, and was served meanwhile."""
LEAST = 16
"""So many may wait, however long: a rate of a few calls says nothing."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Of a server, since it began."""

    started: int
    ended: int


def newest_server() -> int:
    """The number in channelz of the server that was made last in this process."""
    found, after = 0, 0
    while True:
        page = channelz.ChannelzServicer.GetServers(channelz_pb2.GetServersRequest(start_server_id=after), None)
        found = max((server.ref.server_id for server in page.server), default=found)
        if page.end:
            return found
        after = found + 1


def counters(server: int) -> Calls:
    """What channelz has counted of a server."""
    asked = channelz_pb2.GetServerRequest(server_id=server)
    data = channelz.ChannelzServicer.GetServer(asked, None).server.data
    return Calls(data.calls_started, data.calls_succeeded + data.calls_failed)


class Pressure:
    """Refuses as many new calls as would wait for longer than `most_ms`; 0: none. `read` gives the transport's count.

    `sample` is called every SAMPLE_S or less often; what arrives between two samples is judged by the older one.
    """

    def __init__(
        self, most_ms: int = 0, read: Callable[[], Calls] = lambda: Calls(0, 0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_ms, self._read, self._clock = most_ms, read, clock
        self._begun, self._excess = 0, 0
        self._news, self._still, self._lost = False, 0, 0
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=WINDOW)  # (when, calls ended, calls waiting)

    def begins(self) -> None:
        """The service begins with a call. It lasts as long as the task that this is called in: until its answer has
        left."""
        task = asyncio.current_task()
        assert task is not None
        self._begun += 1
        self._news = True
        task.add_done_callback(self._over)

    def _over(self, _: asyncio.Task[Any]) -> None:
        self._begun -= 1

    def sample(self) -> None:
        """Looks at the queue again."""
        calls, now = self._read(), self._clock()
        self._seen.append((now, calls.ended, self._waiting(calls)))
        since, ended, _ = self._seen[0]
        per_s = (calls.ended - ended) / max(now - since, SAMPLE_S)
        standing = min(waiting for _, _, waiting in self._seen) if len(self._seen) == WINDOW else 0
        self._excess = standing - max(LEAST, round(per_s * self._most_ms / 1000))

    def _waiting(self, calls: Calls) -> int:
        """Calls in the transport's queue. Those that it refuses itself are counted as begun and never as ended: what
        waits while nothing is begun is lost to the count, not waiting."""
        waiting = calls.started - calls.ended - self._begun
        self._still = 0 if self._news else self._still + 1
        self._news = False
        self._lost = waiting if self._still >= WINDOW else min(self._lost, max(waiting, 0))
        return waiting - self._lost

    async def run(self) -> None:
        """Looks for ever; returns at once where nothing is refused."""
        while self._most_ms:
            began = time.thread_time()
            self.sample()
            took_s = time.thread_time() - began
            if took_s > DEAR_S:
                self._excess = 0
            await asyncio.sleep(SELDOM_S if took_s > DEAR_S else max(SAMPLE_S, took_s / SHARE))

    def admit(self) -> None:
        """One call more. Raises ResourceExhausted / OVERLOADED."""
        if self._excess > 0:
            self._excess -= 1
            raise overloaded(f"calls would wait for more than {self._most_ms} ms here")
