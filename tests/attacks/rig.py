"""Honest calls beside an attack, and beside the same computation without one."""

from __future__ import annotations

import itertools
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import psutil

from computemesh.cli.cluster import Cluster
from computemesh.service.errors import from_rpc_error
from tests.attacks.frames import ATTACKS, block

ROOT = Path(__file__).resolve().parents[2]
CALL_S = 30.0
# Every public port, and a call that anybody may make there.
PORTS = {
    "market": "/computemesh.v1.MarketService/GetMarket", "ledger": "/computemesh.v1.LedgerService/GetSupply",
    "orchestrator": "/computemesh.v1.OrchestratorService/ListWorkers",
    "worker-1": "/computemesh.v1.WorkerService/Describe",
    "edge": "/computemesh.v1.MarketService/GetMarket",
}  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """What one client got done beside others: calls answered per second of `seconds`, the longest one's seconds."""

    calls: int
    seconds: float
    longest_s: float
    pieces: int
    connections: int
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.calls / self.seconds


def answered(call: Callable[..., bytes]) -> None:
    """Calls until there is an answer, as late as a refusal says. Raises what else the call raises."""
    while True:
        try:
            call(b"", timeout=CALL_S)
            return
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if refusal.retry_after_ms is None:
                raise
            time.sleep(refusal.retry_after_ms / 1000)


def beside(address: str, path: str, others: Sequence[Sequence[str]]) -> Beside:
    """Calls one after the other for as long as the `others` (arguments of tests.attacks.attacker) run."""
    started = [subprocess.Popen([sys.executable, "-m", "tests.attacks.attacker", *one], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE) for one in others]  # fmt: skip
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(path)
        answered(call)
        for one in started:
            assert one.stdout is not None
            one.stdout.readline()
        began, calls, longest = time.monotonic(), 0, 0.0
        running = True
        while running:  # and once more where they were done before the first answer came
            running, sent = any(one.poll() is None for one in started), time.monotonic()
            answered(call)
            calls, longest = calls + 1, max(longest, time.monotonic() - sent)
        seconds = time.monotonic() - began
    rows = [one.communicate()[0].split() for one in started]
    assert all(one.returncode == 0 for one in started), "an attacker failed"
    return Beside(calls, seconds, longest, sum(int(row[0]) for row in rows), sum(int(row[2]) for row in rows),
                  sum(float(row[1]) for row in rows))  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """An attack on a port next to its control. `grown`: bytes by which the port's process was larger after it."""

    port: str
    attack: str
    attacked: tuple[Beside, ...]
    control: tuple[Beside, ...]
    grown: int

    @property
    def ratio(self) -> float:
        """Honest calls during the attack over those during the control, rounds together."""
        return _rate(self.attacked) / _rate(self.control)

    def row(self) -> str:
        """As docs/reliability.md has it."""
        pieces, dialled = sum(one.pieces for one in self.attacked), sum(one.connections for one in self.attacked)
        longest = max(one.longest_s for one in self.attacked)
        cells = [
            self.port, self.attack, f"{pieces:,} on {dialled:,} connections", f"{_rate(self.attacked):,.0f}",
            f"{_rate(self.control):,.0f}", f"{self.ratio:.0%}", f"{longest * 1000:,.0f} ms",
            f"{self.grown / 2**20:.0f} MiB",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def _rate(rounds: Sequence[Beside]) -> float:
    return sum(one.calls for one in rounds) / sum(one.seconds for one in rounds)


def strangers(count: int) -> Iterator[list[str]]:
    """`count` addresses at a time that nobody has called from before (each of 127.0.0.0/8 is this machine's)."""
    numbers = itertools.count(1 << 8)
    while True:
        yield [str(IPv4Address((127 << 24) + next(numbers))) for _ in range(count)]


ONE_STRANGER = strangers(1)


def compare(
    cluster: Cluster, port: str, attack: str, attackers: int = 2, seconds: float = 1.0, rounds: int = 1,
    addresses: Iterator[list[str]] | None = None,
) -> Compared:
    """Attack and control in turn; the control computes as much as the attackers did and connects to nothing. In each
    round the attackers call from the next of `addresses`: by default all from one, that is new."""
    address, path = cluster.address(port), PORTS[port]
    process = psutil.Process(cluster.pids[port])
    before = _resident(process)
    attacked, control = [], []
    for _ in range(rounds):
        own = next(addresses or ONE_STRANGER)
        attacked.append(beside(address, path, [(attack, address, path, str(seconds), *own)] * attackers))
        share = min(attacked[-1].cpu_s / attackers / seconds, 1.0)
        control.append(beside(address, path, [("burn", str(share), str(seconds))] * attackers))
    return Compared(port, attack, tuple(attacked), tuple(control), _resident(process) - before)


def _resident(process: psutil.Process) -> int:
    """With its children: the edge's port is Envoy's."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def connects(port: int, own: str, within_s: float = 1.0) -> bool:
    """Whether a connection from an address is made in time."""
    try:
        socket.create_connection(("127.0.0.1", port), within_s, (own, 0)).close()
    except TimeoutError:
        return False
    return True


def flood(
    port: int, path: str, own: str, seconds: float, pieces: int = 1 << 30, name: str = "rapid reset",
    secure: ssl.SSLContext | None = None,
) -> int:
    """Connections that an attacker made who dials again after so many `pieces`, until it is turned away."""
    attack, headers, until, dialled = ATTACKS[name], block(path), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 1.0, (own, 0))
        except TimeoutError:
            return dialled
        dialled += 1
        with closing(connection), suppress(OSError):
            connection.settimeout(5)
            with secure.wrap_socket(connection) if secure else connection as channel:
                for part in attack.stream(headers, pieces):
                    channel.sendall(part)
    raise TimeoutError(f"still there after {seconds} s and {dialled} connections")
