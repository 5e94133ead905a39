"""A real ledger over real SQLite, in process on a free port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from computemesh.service.server import dial
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.config import Config
from ledger.startup import Running
from tests.databases import location
from tests.ledger import parties


def make_config(folder: Path, **changes: Any) -> Config:
    """A configuration with its log key file in `folder`."""
    seed = folder / "log.key"
    seed.write_text(parties.LOG_SEED.hex())
    settings: dict[str, Any] = {
        "listen": "127.0.0.1:0", "data_dir": str(folder / "data"), "chain_id": parties.CHAIN,
        "authority_key": parties.AUTHORITY.public.hex(), "treasury_address": parties.TREASURY.address,
        "log_key_file": str(seed), "block_interval_ms": 10,
        **location(folder),
    }  # fmt: skip
    return Config(**(settings | changes))


@contextlib.asynccontextmanager
async def serving(config: Config, **options: Any) -> AsyncIterator[Any]:
    """A ledger's stub while it serves."""
    running = Running(config, **options)
    await running.start()
    await running.server.start()
    channel: grpc.aio.Channel = dial(f"127.0.0.1:{running.port}")
    try:
        yield LedgerServiceStub(channel)
    finally:
        await channel.close()
        await running.drain()
        await running.server.stop(0)
        running.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
async def ledger(config: Config) -> AsyncIterator[Any]:
    async with serving(config) as stub:
        yield stub


@pytest.fixture
def submit(ledger: Any) -> Callable[..., Any]:
    async def send(*transactions: pb.Transaction, wait: int = pb.WAIT_ACCEPTED) -> list[pb.Outcome]:
        request = pb.SubmitTransactionsRequest(transactions=transactions, wait=pb.Wait.ValueType(wait))
        return list((await ledger.SubmitTransactions(request)).outcomes)

    return send
