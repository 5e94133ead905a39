"""`make attacks-idle`: streams of the ledger's blocks that are opened and then do nothing, from several processes.

Prints how many the ledger took and how many it refused, what it grew by, and how soon honest calls are answered
meanwhile; one JSON object last. Exit status 1 where it took more than its bound or grew beyond `GROWN_BYTES`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import psutil

from computemesh.cli.cluster import Cluster
from computemesh.service.exposure import DEFAULT
from tests.attacks.frames import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, block, frame
from tests.attacks.rig import PORTS, ROOT, answered

PATH = "/computemesh.v1.LedgerService/WatchBlocks"
PER_CONNECTION = 16
PROCESSES = 4
DIALS_AT_ONCE = 64
GROWN_BYTES = 2 << 30
CALLS = 50


class Idle(asyncio.Protocol):
    """A connection that opens its streams and then only answers pings."""

    def __init__(self, streams: int) -> None:
        self._streams, self._buffer = streams, bytearray()
        self.heard = asyncio.Event()
        self.answers: dict[int, bool] = {}
        """By stream: whether it goes on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        opened = [frame(HEADERS, END_HEADERS, 2 * at + 1, block(PATH)) + frame(DATA, END_STREAM, 2 * at + 1, bytes(5))
                  for at in range(self._streams)]  # fmt: skip
        self._transport.write(PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(opened))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9 + (length := int.from_bytes(self._buffer[:3])):
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            if kind == PING and not flags & ACK:
                self._transport.write(frame(PING, ACK, 0, bytes(self._buffer[9 : 9 + length])))
            elif kind == HEADERS:
                self.answers[stream] = not flags & END_STREAM
                if len(self.answers) == self._streams:
                    self.heard.set()
            del self._buffer[: 9 + length]

    def connection_lost(self, error: Exception | None) -> None:
        self.answers = dict.fromkeys(range(self._streams), False)
        self.heard.set()


async def hold(address: str, streams: int) -> None:
    """Opens so many, says how many were taken and how many were not, and stays until standard input ends."""
    host, _, port = address.rpartition(":")
    slots = asyncio.Semaphore(DIALS_AT_ONCE)

    async def one(count: int) -> Idle:
        async with slots:
            _, idle = await asyncio.get_running_loop().create_connection(lambda: Idle(count), host, int(port))
            await idle.heard.wait()
            return idle

    sizes = [PER_CONNECTION] * (streams // PER_CONNECTION)
    found = await asyncio.gather(*(one(size) for size in sizes))
    taken = sum(sum(idle.answers.values()) for idle in found)
    print(json.dumps({"taken": taken, "refused": sum(sizes) - taken}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def attack(cluster: Cluster, streams: int) -> dict[str, float]:
    """What came of it."""
    address, ledger = cluster.address("ledger"), psutil.Process(cluster.pids["ledger"])
    before, began = ledger.memory_info().rss, time.monotonic()
    command = [sys.executable, "-m", "tests.attacks.idle", "--hold", address, str(streams // PROCESSES)]
    holders = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(PROCESSES)]  # fmt: skip
    rows = [json.loads(holder.stdout.readline()) for holder in holders if holder.stdout is not None]
    opened_s, grown = time.monotonic() - began, ledger.memory_info().rss - before
    waits = []
    with grpc.insecure_channel(address) as channel:
        for _ in range(CALLS):
            sent = time.monotonic()
            answered(channel.unary_unary(PORTS["ledger"]))
            waits.append((time.monotonic() - sent) * 1000)
    for holder in holders:
        holder.communicate()
    taken = sum(row["taken"] for row in rows)
    return {"streams": streams, "taken": taken, "refused": sum(row["refused"] for row in rows),
            "opened_s": round(opened_s, 1), "grown_mib": round(grown / 2**20, 1),
            "kib_each": round(grown / 1024 / max(taken, 1), 1), "call_p50_ms": round(statistics.median(waits), 1),
            "call_longest_ms": round(max(waits), 1)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.idle", description=__doc__)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments.hold:
        asyncio.run(hold(arguments.hold[0], int(arguments.hold[1])))
        return 0
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), workers=0, port_base=0) as cluster:
        found = attack(cluster, arguments.streams)
    print(json.dumps({**found, "limit": DEFAULT.streams_at_once}))
    return int(found["taken"] > DEFAULT.streams_at_once or found["grown_mib"] * 2**20 > GROWN_BYTES)


if __name__ == "__main__":
    sys.exit(main())
