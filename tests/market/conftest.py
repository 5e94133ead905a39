from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from market_bench import CHAIN, Bench
from toy_ledger import ToyLedger, serve


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = ToyLedger(CHAIN)
    server, port = await serve(ledger)
    bench = Bench(tmp_path / "market", ledger, f"127.0.0.1:{port}")
    ledger.balances[bench.alice.address] = 100_000_000
    ledger.balances[bench.bob.address] = 3_200_000
    await bench.start()
    yield bench
    await bench.stop()
    await server.stop(0)
