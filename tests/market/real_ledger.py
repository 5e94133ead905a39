"""The ledger as a process of its own, `python -m ledger`, and a faucet for it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from computemesh.service.server import dial
from computemesh.trust import merkle, statement
from computemesh.trust.identity import PrivateKey, decode_address
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1 import ledger_pb2_grpc
from tests import databases, money

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(module: str, config: Path) -> subprocess.Popen[bytes]:
    log = (config.parent / f"{config.stem}.log").open("ab")
    return subprocess.Popen([sys.executable, "-m", module, "--config", str(config)], cwd=ROOT, stderr=log, stdout=log)


class RealLedger:
    """Starts, kills and restarts one ledger; mints with its authority key."""

    def __init__(self, folder: Path, chain: str) -> None:
        self.chain = chain
        self.authority = PrivateKey.from_bytes(hashlib.sha256(b"authority").digest())
        self.port = free_port()
        folder.mkdir(parents=True)
        (folder / "log.key").write_text(hashlib.sha256(b"log").hexdigest())
        treasury = PrivateKey.from_bytes(hashlib.sha256(b"treasury").digest()).address
        self._config = folder / "ledger.toml"
        self._config.write_text(
            f'listen = "127.0.0.1:{self.port}"\ndata_dir = "{folder}"\nchain_id = "{chain}"\n'
            f'authority_key = "{self.authority.public.hex()}"\ntreasury_address = "{treasury}"\n'
            f'log_key_file = "{folder / "log.key"}"\n'
            + "".join(f'{name} = "{value}"\n' for name, value in databases.location(folder).items()))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = spawn("ledger", self._config)
        self._channel = dial(self.address)
        self.stub = ledger_pb2_grpc.LedgerServiceStub(self._channel)
        async with asyncio.timeout(20):
            await self.stub.GetLedger(pb.GetLedgerRequest(), wait_for_ready=True)

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        await self._channel.close()

    async def submit(self, transaction: pb.Transaction) -> pb.Outcome:
        request = pb.SubmitTransactionsRequest(transactions=[transaction])
        return (await self.stub.SubmitTransactions(request, timeout=10)).outcomes[0]

    async def deposit(self, to: str, units: int) -> None:
        tx_id = _uuid7()
        body = statement.deposit_body(decode_address(to), units)
        signature = self.authority.sign(statement.transaction_digest("deposit", self.chain, tx_id, body))
        outcome = await self.submit(pb.Transaction(
            id=tx_id, public_key=self.authority.public, signature=signature,
            deposit=pb.Deposit(to=to, amount_units=units)))
        assert outcome.kind == pb.OUTCOME_KIND_APPLIED, outcome

    async def settle(
        self, orchestrator: PrivateKey, task_id: bytes, epoch: int, jobs: range, worker: PrivateKey | None = None,
        answer: int = 0,
    ) -> pb.Outcome:
        """Settles some jobs of a task with one worker's signed batch, as an orchestrator does."""
        worker = worker or PrivateKey.from_bytes(hashlib.sha256(b"worker" + task_id).digest())
        rows = [statement.Commitment(task_id, job, epoch, 1, worker.public, bytes([(job + answer) % 251]) * 32, job + 1)
                for job in jobs]
        batch = b"".join(row.pack() for row in rows)
        root = statement.commitment_root(batch)
        leaves = [
            merkle.leaf_hash(statement.Result(
                task_id, row.job, worker.public, row.result_hash, bytes(32), row.nonce,
                statement.authorisation(orchestrator.public, root, at)).pack())
            for at, row in enumerate(rows)]
        tx_id = _uuid7()
        body = statement.settle_body(len(rows), merkle.root(leaves))
        return await self.submit(pb.Transaction(
            id=tx_id, public_key=orchestrator.public,
            signature=orchestrator.sign(statement.transaction_digest("settle", self.chain, tx_id, body)),
            settle=pb.Settle(batches=[pb.ResultBatch(
                worker_key=worker.public, worker_signature=statement.sign_commitments(worker, self.chain, batch),
                commitments=batch, proof_hashes=bytes(32) * len(rows))])))

    async def escrow(self, task_id: str) -> pb.Escrow:
        return (await self.stub.GetEscrow(pb.GetEscrowRequest(task_id=task_id), timeout=10)).escrow

    async def balance(self, address: str) -> int:
        return (await self.stub.GetAccount(pb.GetAccountRequest(address=address), timeout=10)).account.balance_units

    async def conserved(self) -> bool:
        """Whether the supply's parts sum to what was minted, once every reward is free."""
        while True:
            supply = await self.stub.GetSupply(pb.GetSupplyRequest(), timeout=10)
            if not money.conserved(supply) or not supply.maturing_units:
                return money.conserved(supply)
            await asyncio.sleep(0.02)


def _uuid7() -> bytes:
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6], raw[8] = raw[6] & 0x0F | 0x70, raw[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(raw)).bytes
