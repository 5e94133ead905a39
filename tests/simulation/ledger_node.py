"""The ledger: the real fold over a simulated log. What readers see is a second fold of what is durable, so every block
is replayed in every run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from computemesh.trust import merkle, statement
from computemesh.trust.amount import Shares
from computemesh.trust.identity import PrivateKey, address_bytes
from computemesh.v1 import ledger_pb2 as pb
from ledger import views, wire
from ledger.block import Chain, SealedBlock
from ledger.evidence import Examined, Settle, examine
from ledger.state import Refusal, State
from ledger.writer import Verdict
from market.states import Cause, EscrowRead, EscrowStatus, Inspect
from tests.simulation.laws import Laws
from tests.simulation.world import Node, World

CHAIN = "simulation"
BLOCK_MS = 500
AUTHORITY, TREASURY = (PrivateKey.from_bytes(bytes([number]) * 32) for number in (1, 2))

Answer = Callable[[Any], None]
Row = tuple[int, tuple[Examined, ...], SealedBlock | None]
"""A group of the log: block time, the transactions it applied, and the block if it ended one."""


class Fold:
    """A chain with what was learned of it on the way."""

    def __init__(self, laws: Laws) -> None:
        self._laws = laws
        self.chain = Chain(State(CHAIN, AUTHORITY.public, address_bytes(TREASURY.public), Shares()))
        self.paid: set[tuple[bytes, int]] = set()
        self.assigned: dict[bytes, tuple[int, bytes]] = {}
        self.numbers: dict[bytes, tuple[int, bytes, tuple[Refusal, ...]]] = {}
        self.heights: dict[bytes, int] = {}
        self.results: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}
        """(transaction id, result hash) of each settled job."""
        self._open: list[bytes] = []

    def apply(self, examined: Examined) -> Verdict:
        """One transaction, known or new."""
        tx_id = examined.transaction.id
        known = self.numbers.get(tx_id)
        if known is not None:
            assert known[1] == examined.digest
            return Verdict(known[0], refusals=known[2])
        effects = self.chain.apply(examined)
        self._laws.applied(self, examined, effects)
        if effects.number:
            self.numbers[tx_id] = (effects.number, examined.digest, effects.refusals)
            self._open.append(tx_id)
            if isinstance(examined.transaction.body, Settle):
                refused = {one.position for one in effects.refusals}
                rows = [row for batch in examined.batches for row in batch.rows]
                self.results.update(
                    ((row[1], row[2]), (tx_id, row[6])) for at, row in enumerate(rows) if at not in refused)
        return Verdict(effects.number, effects.reason, effects.message, effects.refusals)

    def seal(self) -> SealedBlock:
        """Ends the open block."""
        sealed = self.chain.seal()
        self.heights.update(dict.fromkeys(self._open, sealed.height))
        self._open.clear()
        return sealed

    def replay(self, row: Row) -> None:
        """Takes in a group of the log."""
        time_ms, transactions, block = row
        self.chain.advance(time_ms)
        for examined in transactions:
            assert self.apply(examined).number
        if block is not None:
            previous = self.chain.previous
            self.chain.collect()
            self._laws.sealed(self.seal(), block, previous)


class LedgerNode(Node):
    """Answers after its sync; reads see what is durable."""

    def __init__(self, world: World, laws: Laws) -> None:
        super().__init__(world, "ledger")
        self._laws = laws
        self.log: list[Row] = []
        self.stored = Fold(laws)

    def boot(self) -> None:
        """Replays the log."""
        self.fold = Fold(self._laws)
        for row in self.log:
            self.fold.replay(row)
        self.every(BLOCK_MS, self._seal)

    def _keep(self, row: Row) -> None:
        self.log.append(row)
        self.stored.replay(row)

    def _seal(self) -> None:
        chain = self.fold.chain
        expired = chain.advance(self.clock())
        chain.collect()
        if expired or chain.dirty:
            row = (chain.state.time_ms, (), self.fold.seal())
            self.disk.submit(partial(self._keep, row), lambda: None)

    def submit(self, request: list[pb.Transaction], answer: Answer) -> None:
        """Outcomes of transactions, once they are durable."""
        chain = self.fold.chain
        chain.advance(self.clock())
        applied, verdicts = [], []
        for message in request:
            examined = examine(CHAIN, wire.transaction(message))
            new = examined.transaction.id not in self.fold.numbers
            verdicts.append(self.fold.apply(examined))
            if new and verdicts[-1].number:
                applied.append(examined)
        chain.collect()
        row = (chain.state.time_ms, tuple(applied), None)

        def done() -> None:
            self._laws.answered.update(
                message.id for message, verdict in zip(request, verdicts, strict=True) if verdict.number)
            heights = self.stored.heights
            answer([views.outcome(verdict, heights.get(message.id))
                    for message, verdict in zip(request, verdicts, strict=True)])

        self.disk.submit(partial(self._keep, row), done)

    def escrow(self, request: Inspect, answer: Answer) -> None:
        """As the market's client reads it."""
        escrow = self.stored.chain.state.escrows.get(request.task_id)
        if escrow is None:
            answer(EscrowRead(request.task_id, EscrowStatus.MISSING))
            return
        status, cause = views._STATUS[escrow.phase]
        root, height = b"", 0
        if request.with_root and status == pb.ESCROW_STATUS_SETTLED:
            found = [self.result_of(request.task_id, job) for job in range(escrow.jobs)]
            root = merkle.root([merkle.leaf_hash(result_hash) for result_hash, _ in found])
            height = max(at for _, at in found)
        answer(EscrowRead(request.task_id, EscrowStatus(status), Cause(cause), escrow.refunded, escrow.jobs_settled,
                          escrow.epoch, root, height))  # fmt: skip

    def result_of(self, task_id: bytes, job: int) -> tuple[bytes, int]:
        """(result hash, height of its block, 0 while that is open) of a settled job; empty where it is not."""
        tx_id, result_hash = self.stored.results.get((task_id, job), (b"", b""))
        return result_hash, self.stored.heights.get(tx_id, 0)

    def results(self, task_id: bytes, answer: Answer) -> None:
        """(job, result hash) of a task's settled jobs."""
        rows = self.stored.results.items()
        answer(sorted((job, row[1]) for (task, job), row in rows if task == task_id))

    def result(self, request: tuple[bytes, int], answer: Answer) -> None:
        """One job's."""
        answer(self.result_of(*request))

    def height(self, tx_id: bytes, answer: Answer) -> None:
        """Of a transaction's block, 0 while it is open."""
        answer(self.stored.heights.get(tx_id, 0))

    def head(self, _: None, answer: Answer) -> None:
        """Hash of the newest block."""
        answer(self.stored.chain.previous)


def deposit(to: PrivateKey, units: int, tx_id: bytes) -> pb.Transaction:
    """Mints."""
    body = statement.deposit_body(address_bytes(to.public), units)
    signature = AUTHORITY.sign(statement.transaction_digest("deposit", CHAIN, tx_id, body))
    return pb.Transaction(id=tx_id, public_key=AUTHORITY.public, signature=signature,
                          deposit=pb.Deposit(to=to.address, amount_units=units))  # fmt: skip
