"""A ledger in memory that keeps the contract as far as the market sees it, to provoke what a real one rarely does."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from computemesh.service.server import build_server
from computemesh.trust import envelope, identity, statement
from computemesh.trust.errors import NotFound, Unavailable
from computemesh.trust.identity import address_of
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1 import ledger_pb2_grpc


class ToyLedger(ledger_pb2_grpc.LedgerServiceServicer):
    """Escrows in a dict. `down` makes every call UNAVAILABLE; `refuse` names
    a reason per kind of transaction."""

    def __init__(self, chain: str) -> None:
        self.chain = chain
        self.balances: dict[str, int] = {}
        self.escrows: dict[str, pb.Escrow] = {}
        self.transactions: dict[bytes, tuple[pb.Transaction, pb.Outcome]] = {}
        self.results: dict[str, list[pb.Result]] = {}
        self.down = False
        self.refuse: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        # Called once with nothing, after a transaction of the named kind was applied and before it is answered.
        self.after: dict[str, Callable[[], None]] = {}

    def _enter(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.down:
            raise Unavailable("the ledger is down")
        now = time.time_ns() // 1_000_000
        for escrow in self.escrows.values():
            if escrow.status == pb.ESCROW_STATUS_OPEN and now >= escrow.deadline_ms:
                self._give_back(escrow, pb.REFUND_CAUSE_EXPIRED)

    def _give_back(self, escrow: pb.Escrow, cause: int) -> None:
        escrow.status = pb.ESCROW_STATUS_REFUNDED
        escrow.refund_cause = cause
        escrow.refunded_units = escrow.reward_units - escrow.settled_units
        self.balances[escrow.customer] += escrow.refunded_units

    def settle(self, task_id: str, jobs: int, height: int = 7) -> None:
        """As if the orchestrator had settled so many further jobs."""
        escrow = self.escrows[task_id]
        for job in range(escrow.jobs_settled, escrow.jobs_settled + jobs):
            self.results.setdefault(task_id, []).append(
                pb.Result(task_id=task_id, job=job, result_hash=bytes([job % 256] * 32).hex(), block_height=height))
        escrow.jobs_settled += jobs
        escrow.settled_units = escrow.reward_units * escrow.jobs_settled // escrow.jobs
        if escrow.jobs_settled == escrow.jobs:
            escrow.status = pb.ESCROW_STATUS_SETTLED

    async def GetLedger(self, request, context):
        self._enter("GetLedger")
        return pb.GetLedgerResponse(chain_id=self.chain, vkey="toy+00000000+AAAA", validator_stake_units=1)

    async def GetStake(self, request, context):
        self._enter("GetStake")
        return pb.GetStakeResponse(stake=pb.Stake(address=request.address))

    async def GetAccount(self, request, context):
        self._enter("GetAccount")
        return pb.GetAccountResponse(account=pb.Account(
            address=request.address, balance_units=self.balances.get(request.address, 0)))

    async def GetTransaction(self, request, context):
        self._enter("GetTransaction")
        found = self.transactions.get(bytes.fromhex(request.id))
        if found is None:
            raise NotFound("no such transaction", reason="TRANSACTION_NOT_FOUND")
        return pb.GetTransactionResponse(transaction=found[0], outcome=found[1])

    async def GetEscrow(self, request, context):
        self._enter("GetEscrow")
        if request.task_id not in self.escrows:
            raise NotFound("no such escrow", reason="ESCROW_NOT_FOUND")
        return pb.GetEscrowResponse(escrow=self.escrows[request.task_id])

    async def ListResults(self, request, context):
        self._enter("ListResults")
        return pb.ListResultsResponse(results=self.results.get(request.task_id, []))

    async def SubmitTransactions(self, request, context):
        self._enter("SubmitTransactions")
        return pb.SubmitTransactionsResponse(outcomes=[self._apply(t) for t in request.transactions])

    def _apply(self, transaction: pb.Transaction) -> pb.Outcome:
        before = self.transactions.get(transaction.id)
        if before is not None:
            same = before[0].SerializeToString(deterministic=True) == transaction.SerializeToString(deterministic=True)
            return before[1] if same else _refused("ID_CONFLICT")
        kind = transaction.WhichOneof("body")
        if kind in self.refuse:
            return _refused(self.refuse[kind])
        outcome = getattr(self, f"_{kind}")(transaction)
        self.transactions[transaction.id] = (transaction, outcome)
        if kind in self.after:
            self.after.pop(kind)()
        return outcome

    def _open(self, transaction: pb.Transaction) -> pb.Outcome:
        order = statement.Order.unpack(transaction.open.order)
        if not envelope.verify(
                order.customer_key, "order", self.chain, transaction.open.order, transaction.signature):
            return _refused("INVALID_SIGNATURE")
        customer = address_of(order.customer_key)
        if self.balances.get(customer, 0) < order.reward_units:
            return _refused("INSUFFICIENT_FUNDS")
        self.balances[customer] -= order.reward_units
        task_id = order.task_id(self.chain).hex()
        self.escrows[task_id] = pb.Escrow(
            task_id=task_id, customer=customer, status=pb.ESCROW_STATUS_OPEN, reward_units=order.reward_units,
            deadline_ms=order.deadline_ms, order=transaction.open.order, order_signature=transaction.signature)
        return pb.Outcome(kind=pb.OUTCOME_KIND_APPLIED)

    def _assign(self, transaction: pb.Transaction) -> pb.Outcome:
        body = transaction.assign.assignment
        assignment = statement.Assignment.unpack(body)
        escrow = self.escrows[assignment.task_id.hex()]
        self._verify(transaction, "assign", body, escrow)
        if escrow.status != pb.ESCROW_STATUS_OPEN:
            return _refused("UNKNOWN_TASK")
        if assignment.epoch <= escrow.epoch:
            return _refused("EXPIRED_EPOCH")
        escrow.epoch, escrow.jobs = assignment.epoch, assignment.jobs
        escrow.orchestrator_key = assignment.orchestrator_key.hex()
        return pb.Outcome(kind=pb.OUTCOME_KIND_APPLIED)

    def _refund(self, transaction: pb.Transaction) -> pb.Outcome:
        escrow = self.escrows[transaction.refund.task_id.hex()]
        body = statement.refund_body(transaction.refund.task_id, transaction.refund.cause)
        self._verify(transaction, "refund", body, escrow)
        if escrow.status != pb.ESCROW_STATUS_OPEN:
            return _refused("UNKNOWN_TASK")
        self._give_back(escrow, transaction.refund.cause)
        return pb.Outcome(kind=pb.OUTCOME_KIND_APPLIED)

    def _verify(self, transaction: pb.Transaction, kind: str, body: bytes, escrow: pb.Escrow) -> None:
        digest = statement.transaction_digest(kind, self.chain, transaction.id, body)
        market_key = statement.Order.unpack(escrow.order).market_key
        assert transaction.public_key == market_key
        assert identity.verify(market_key, digest, transaction.signature)


def _refused(reason: str) -> pb.Outcome:
    return pb.Outcome(kind=pb.OUTCOME_KIND_REFUSED, reason=reason, message=f"refused: {reason}")


async def serve(ledger: ToyLedger, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """The toy on a port of its own."""
    server, port = build_server(
        f"127.0.0.1:{port}", lambda s: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, s), [])
    await server.start()
    return server, port
