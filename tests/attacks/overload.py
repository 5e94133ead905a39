"""`make overload`: a market under normal load, then with ten times as many clients. Prints both, one JSON object last;
exit status 1 where admitted calls became more than twice as slow, or anybody was refused without hearing when to come
back.

A client calls as fast as it is answered; refused, it comes back when it was told to. Latencies are those of the try
that was admitted. Clients are spread over processes, or their own loop would be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from computemesh.cli.cluster import Cluster
from computemesh.service.errors import from_rpc_error
from computemesh.service.server import dial
from computemesh.v1 import market_pb2
from tests.attacks.rig import ROOT

TIMES = 10
SLOWER, GROWN_BYTES = 2.0, 128 << 20
PROCESSES = 2
PER_CONNECTION = 8
MARKET = "/computemesh.v1.MarketService/"
REFUSED = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


@dataclass
class Load:
    """What clients met. `untold`: refusals without a time to come back at."""

    latencies_ms: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    untold: int = 0

    def percentile(self, share: float) -> float:
        """Of the latencies of admitted calls, ms."""
        return sorted(self.latencies_ms)[min(int(len(self.latencies_ms) * share), len(self.latencies_ms) - 1)]


def _requests() -> list[tuple[str, bytes]]:
    """Reads, prices and orders of nothing we could pay: what a page and its customers ask for."""
    order = market_pb2.CreateTaskRequest(challenge_type="noop", reward="1000000000")
    order.payload.update({"jobs": 3})
    quote = market_pb2.QuoteTaskRequest(challenge_type="synthetic")
    quote.payload.update({"matrix_size": 256})
    return [("ListTasks", market_pb2.ListTasksRequest(limit=20).SerializeToString()),
            ("GetCaller", b""), ("QuoteTask", quote.SerializeToString()), ("CreateTask", order.SerializeToString())]


async def _client(channel: grpc.aio.Channel, metadata: Any, until: float, load: Load) -> None:
    requests = _requests()
    while time.monotonic() < until:
        method, request = random.choice(requests)
        began = time.monotonic()
        try:
            await channel.unary_unary(MARKET + method)(request, metadata=metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            meant = from_rpc_error(error)
            load.codes[error.code().name] += 1
            if error.code().name in REFUSED:
                load.untold += meant.retry_after_ms is None
                await asyncio.sleep((meant.retry_after_ms or 1000) / 1000)
                continue
        else:
            load.codes["OK"] += 1
        load.latencies_ms.append((time.monotonic() - began) * 1000)


async def clients(address: str, api_key: str, count: int, seconds: float) -> Load:
    """So many clients for so long."""
    load, metadata = Load(), (("authorization", f"Bearer {api_key}"),)
    channels = [dial(address, own_connection=True) for _ in range(-(-count // PER_CONNECTION))]
    until = time.monotonic() + seconds
    await asyncio.gather(*(_client(channels[at // PER_CONNECTION], metadata, until, load) for at in range(count)))
    await asyncio.gather(*(channel.close(None) for channel in channels))
    return load


def measure(cluster: Cluster, count: int, seconds: float) -> Load:
    """The same from several processes, together."""
    command = [sys.executable, "-m", "tests.attacks.overload", "--join", cluster.address("market"),
               cluster.plan.api_key, str(count // PROCESSES), str(seconds)]  # fmt: skip
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    whole = Load()
    for one in started:
        part = json.loads(one.communicate()[0])
        whole.latencies_ms += part["latencies_ms"]
        whole.codes.update(part["codes"])
        whole.untold += part["untold"]
    return whole


def told(name: str, load: Load, seconds: float) -> dict[str, Any]:
    row = {"admitted_per_s": round(len(load.latencies_ms) / seconds),
           "p50_ms": round(statistics.median(load.latencies_ms), 1),
           "p99_ms": round(load.percentile(0.99), 1), "codes": dict(load.codes), "untold": load.untold}  # fmt: skip
    print(f"{name}: {json.dumps(row)}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.overload", description=__doc__)
    parser.add_argument("--clients", type=int, default=48, help="under normal load")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--join", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.join:
        address, api_key, count, seconds = arguments.join
        print(json.dumps(vars(asyncio.run(clients(address, api_key, int(count), float(seconds))))))
        return 0
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), workers=0, port_base=0) as cluster:
        market = psutil.Process(cluster.pids["market"])
        normal = measure(cluster, arguments.clients, arguments.seconds)
        before = market.memory_info().rss
        over = measure(cluster, arguments.clients * TIMES, arguments.seconds)
        grown = market.memory_info().rss - before
    found = {"clients": arguments.clients, "normal": told("normal", normal, arguments.seconds),
             "ten times": told(f"{TIMES} times", over, arguments.seconds), "grown_bytes": grown,
             "slower": round(over.percentile(0.99) / normal.percentile(0.99), 2)}  # fmt: skip
    print(json.dumps(found))
    sound = found["slower"] <= SLOWER and not over.untold and grown < GROWN_BYTES
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
