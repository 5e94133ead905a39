"""What is stored is proved at start, found by fsck, and survives kill -9."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from computemesh.service.server import dial
from computemesh.trust.errors import InvalidArgument, MeshError
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger import startup
from ledger.columns import FEW
from ledger.config import Config
from ledger.replay import Corrupt
from ledger.startup import Running
from tests.ledger import conftest, parties
from tests.ledger.conftest import serving
from tests.ledger.parties import CUSTOMER, OTHER

# Always in SQLite: these tests damage, copy and lock its file.
make_config = functools.partial(conftest.make_config, database="")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


ROOT = Path(__file__).resolve().parents[2]
FLIPS = 60


async def some_history(config: Config, rounds: int = 3, jobs: int = 4) -> None:
    """Several sealed blocks with money, an escrow and results of all but one of its jobs."""
    async with serving(config) as stub:
        for _ in range(rounds):
            order = parties.order(1000, time.time_ns() // 1_000_000 + 3_600_000)
            task = parties.task_id(order)
            done = [parties.commitment(task, job, _next()) for job in range(jobs - 1)]
            settle = parties.settle([parties.batch(done)])
            reply = await stub.SubmitTransactions(pb.SubmitTransactionsRequest(
                transactions=[parties.deposit(CUSTOMER, 1000), parties.open_(order), parties.assign(task, jobs),
                              settle],
                wait=pb.WAIT_SEALED))
            assert all(one.kind == pb.OUTCOME_KIND_APPLIED for one in reply.outcomes), reply


_nonce = 0


def _next() -> int:
    global _nonce
    _nonce += 1
    return _nonce


def change(config: Config, statement: str) -> None:
    """Damage the stored ledger; a statement that leaves the rows as they were is refused."""
    connection = sqlite3.connect(startup.database_path(config))
    before = list(connection.iterdump())
    with connection:
        connection.execute(statement)
    assert list(connection.iterdump()) != before
    connection.close()


async def test_restart_replays_to_the_same_chain_and_goes_on(config: Config) -> None:
    await some_history(config)
    async with serving(config) as stub:
        before = (await stub.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint
    await some_history(config, rounds=1)
    async with serving(config) as stub:
        after = (await stub.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint
        sizes = pb.GetConsistencyProofRequest(old_size=before.size, new_size=after.size)
        proof = await stub.GetConsistencyProof(sizes)
    assert proof.old_root == before.root
    assert (proof.new_size, proof.new_root) == (after.size, after.root)
    assert startup.fsck(config) == []


LOG_DAMAGE = (
    "UPDATE transactions SET body = CAST(substr(body, 1, length(body) - 1) || x'7f' AS BLOB) WHERE no = 6",
    "UPDATE transactions SET digest = zeroblob(32) WHERE no = 2",
    "UPDATE blocks SET header = CAST(substr(header, 1, 184) || x'7f' AS BLOB) WHERE height = 2",
    "UPDATE blocks SET note = (SELECT note FROM blocks WHERE height = 1) WHERE height = 2",
    "UPDATE blocks SET note = substr(note, 1, length(note) - 9) || 'AAAAAAA=' || char(10) WHERE height = 2",
    "UPDATE log SET time_ms = time_ms + 1 WHERE seq = (SELECT max(seq) FROM log WHERE seal = 1)",
    "DELETE FROM transactions WHERE no = (SELECT max(no) FROM transactions)",
    "DELETE FROM log WHERE seq = 1",
    "UPDATE nodes SET hash = zeroblob(32) WHERE level = 1 AND position = 0",
)
# The lowest byte of where job 2's result stands.
MOVED = ("UPDATE places SET places = CAST(substr(places, 1, 23) || x'7f' || substr(places, 25) AS BLOB) "
         "WHERE escrow = 1")  # fmt: skip
TABLE_DAMAGE = (
    "UPDATE accounts SET balance = balance + 1 WHERE address = (SELECT min(address) FROM accounts)",
    "UPDATE escrows SET phase = 5 WHERE no = 2",
    "UPDATE places SET places = zeroblob(2048) WHERE escrow = 1",
    MOVED,
    "UPDATE supply SET burned = burned - 1",
    "UPDATE assignments SET tx = tx + 1 WHERE escrow = 1",
)


@pytest.mark.parametrize("statement", LOG_DAMAGE + TABLE_DAMAGE)
async def test_a_changed_row_is_found_at_start_and_by_fsck(config: Config, statement: str) -> None:
    await some_history(config)
    change(config, statement)
    assert startup.fsck(config)
    with pytest.raises(Corrupt, match=r"block \d|table "):
        Running(config)


async def test_fsck_finds_nothing_wrong_with_results_that_were_settled_by_columns(config: Config) -> None:
    await some_history(config, jobs=4 * FEW)
    assert startup.fsck(config) == []


async def test_fsck_names_the_result_that_is_elsewhere(config: Config) -> None:
    await some_history(config)
    change(config, MOVED)
    assert "table `places`" in startup.fsck(config)[0]


QUESTIONS = (
    ("GetSupply", pb.GetSupplyRequest()), ("ListAccounts", pb.ListAccountsRequest(page_size=100)),
    ("GetCheckpoint", pb.GetCheckpointRequest()), ("ListBlocks", pb.ListBlocksRequest(page_size=100)),
    *(("GetBlock", pb.GetBlockRequest(height=height, full=True)) for height in range(4)),
)  # fmt: skip


async def answers(config: Config) -> list[Any]:
    async with serving(config) as stub:
        found = [await getattr(stub, method)(request) for method, request in QUESTIONS]
        tasks = sorted({result.task_id for block in found[4:] for result in block.results})
        for task in tasks:
            found += [await stub.GetEscrow(pb.GetEscrowRequest(task_id=task)),
                      await stub.ListResults(pb.ListResultsRequest(task_id=task, with_proofs=True)),
                      await stub.GetResult(pb.GetResultRequest(task_id=task, job=1))]  # fmt: skip
        return found


async def test_a_flipped_bit_of_the_database_is_found_at_start_or_changes_no_answer(config: Config) -> None:
    await some_history(config)
    async with serving(config) as stub:
        async for _ in stub.WatchBlocks(pb.WatchBlocksRequest()):
            if not (await stub.GetSupply(pb.GetSupplyRequest())).maturing_units:
                break
    truth, path = await answers(config), startup.database_path(config)
    sound, random, refused = path.read_bytes(), Random(0), 0
    for _ in range(FLIPS):
        at, bit = random.randrange(len(sound)), 1 << random.randrange(8)
        path.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
        try:
            assert await answers(config) == truth, f"byte {at}, bit {bit}"
        except MeshError:
            refused += 1
    assert FLIPS // 10 < refused < FLIPS


async def test_a_chains_settings_cannot_change_after_its_first_start(config: Config, tmp_path: Path) -> None:
    await some_history(config, rounds=1)
    for changes in ({"authority_key": OTHER.public.hex()}, {"burn_percent": 55, "worker_percent": 30},
                    {"treasury_address": OTHER.address}):  # fmt: skip
        with pytest.raises(Corrupt, match="cannot be changed"):
            Running(make_config(tmp_path, **changes))


async def test_two_ledgers_never_share_a_folder(config: Config) -> None:
    async with serving(config):
        with pytest.raises(InvalidArgument, match="in use"):
            Running(config)


def spawn(config_file: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ledger", "--config", str(config_file)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line).get("event") == "serving":
            return process, json.loads(line)["port"]
    raise AssertionError(f"the ledger did not start: rc {process.wait()}")


async def test_kill_9_loses_no_acknowledged_transaction(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config_file = tmp_path / "ledger.toml"
    config_file.write_text("".join(
        f"{name} = {json.dumps(value)}\n" for name, value in vars(config).items() if name != "shares"))
    acknowledged: list[bytes] = []
    for round_ in range(3):
        process, port = await asyncio.to_thread(spawn, config_file)
        drain = asyncio.create_task(asyncio.to_thread(process.stderr.read))  # type: ignore[union-attr]
        try:
            async with dial(f"127.0.0.1:{port}") as channel:
                stub = LedgerServiceStub(channel)
                for tx_id in acknowledged:
                    reply = await stub.GetTransaction(pb.GetTransactionRequest(id=tx_id.hex()))
                    assert reply.outcome.kind == pb.OUTCOME_KIND_APPLIED
                asyncio.get_running_loop().call_later(0.2 + 0.1 * round_, os.kill, process.pid, signal.SIGKILL)
                await asyncio.gather(*(_deposit_until_gone(stub, acknowledged) for _ in range(8)))
        finally:
            process.kill()
            process.wait()
            await drain
    assert len(acknowledged) > 20
    async with serving(config) as stub:
        supply = await stub.GetSupply(pb.GetSupplyRequest())
        assert supply.minted_units == supply.accounts_units >= 7 * len(acknowledged)
    assert startup.fsck(config) == []


async def _deposit_until_gone(stub: Any, acknowledged: list[bytes]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _deposit_for_ever(stub, acknowledged)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def _deposit_for_ever(stub: Any, acknowledged: list[bytes]) -> None:
    while True:
        message = parties.deposit(CUSTOMER, 7, tx_id=os.urandom(16))
        reply = await stub.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=[message]))
        assert reply.outcomes[0].kind == pb.OUTCOME_KIND_APPLIED
        acknowledged.append(message.id)
