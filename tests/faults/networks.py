"""Packets between two services are dropped by the kernel: all of them, or every second.

Each pair talks over a loopback address of its own, so that one rule parts it. The rules live in the network namespace
that `tests.faults` runs in.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from random import Random

from tests.faults.laws import require
from tests.faults.mesh import PATIENCE_S, Mesh

PORT = 7101
LEDGER, MARKET, ORCHESTRATOR = (f"127.0.1.{{}}:{port}" for port in (PORT, PORT + 1, PORT + 2))
# The pair's address is that of the one that is dialled.
PAIRS = {
    "market and ledger": "127.0.1.1", "orchestrator and ledger": "127.0.1.2", "orchestrator and market": "127.0.1.3",
    "workers and orchestrator": "127.0.1.4",
}  # fmt: skip
APART = {
    "ledger": {"listen": f"0.0.0.0:{PORT}"},
    "market": {"listen": f"0.0.0.0:{PORT + 1}", "ledger": LEDGER.format(1)},
    "orchestrator": {"listen": f"0.0.0.0:{PORT + 2}", "ledger": LEDGER.format(2), "market": MARKET.format(3)},
    "worker": {"orchestrator": ORCHESTRATOR.format(4)},
}
ALL, HALF = "", "numgen random mod 2 0"
PROGRESS_S = 60.0


def prepare() -> None:
    """Brings up loopback and a chain for the rules, in a namespace that has nothing."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for command in ("add table ip faults", "add chain ip faults input { type filter hook input priority 0 ; }"):
        subprocess.run(["nft", command], check=True)


@contextlib.contextmanager
def dropped(pair: str, which: str) -> Iterator[None]:
    """Of the packets between a pair `which` are lost, both ways."""
    address = PAIRS[pair]
    for end in ("saddr", "daddr"):
        subprocess.run(["nft", f"add rule ip faults input ip {end} {address} {which} drop"], check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "flush chain ip faults input"], check=True)


def part(mesh: Mesh, seed: int, pair: str, seconds: float, which: str = ALL) -> dict[str, float]:
    """Work begins, the pair is parted for so long, and within a minute of its healing a new task is done."""
    random = Random(f"{pair} {seconds} {seed}")
    with mesh.laws.watching():
        work = mesh.load(random)
        time.sleep(random.uniform(0.0, 0.5))
        with dropped(pair, which):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                work += mesh.load(random)
                time.sleep(min(max(seconds / 4, 0.5), max(until - time.monotonic(), 0.0)))
        healed = time.monotonic()
        fresh = mesh.submit("noop", {"jobs": 1})
        while not mesh.client.get(fresh).ended:
            time.sleep(0.02)
        took = time.monotonic() - healed
        for one in work:
            one.result(PATIENCE_S)
    mesh.laws.check()
    require(took <= PROGRESS_S, "L", f"{took:.0f} s after the network healed a new task was not done")
    return {"progress_s": round(took, 1)}
