from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.market.market_bench import CHAIN, Bench
from tests.market.real_ledger import RealLedger
from tests.market.toy_ledger import ToyLedger, serve


@pytest.fixture
def lease_ms() -> int:
    """How long an orchestrator may be silent; a module whose orchestrators live to the end gives them longer."""
    return 1000


@pytest.fixture
async def bench(tmp_path: Path, lease_ms: int) -> AsyncIterator[Bench]:
    ledger = ToyLedger(CHAIN)
    server, port = await serve(ledger)
    bench = Bench(tmp_path / "market", ledger, f"127.0.0.1:{port}", lease_ms=lease_ms)
    ledger.balances[bench.alice.address] = 100_000_000
    ledger.balances[bench.bob.address] = 3_200_000
    await bench.start()
    yield bench
    await bench.stop()
    await server.stop(0)


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[Bench, RealLedger]]:
    """A market in process in front of the real ledger, which is another process."""
    ledger = RealLedger(tmp_path / "ledger", CHAIN)
    await ledger.start()
    bench = Bench(tmp_path / "market", None, ledger.address)
    await ledger.deposit(bench.alice.address, 100_000_000)
    await bench.start()
    try:
        yield bench, ledger
        await bench.stop()
    finally:
        await ledger.kill()
