"""CreateTask: the money first, then the task (DESIGN section 3)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from computemesh.service import tracing, transactions
from computemesh.service.artifacts import Artifacts
from computemesh.service.crashpoints import crash_point
from computemesh.trust import envelope, identity, statement
from computemesh.trust.amount import format_cpc
from computemesh.trust.errors import (
    InsufficientFunds,
    InvalidArgument,
    MeshError,
    NotFound,
    Unauthorized,
    Unavailable,
)
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, market_pb2
from market import orders, royalties, store
from market.callers import Caller
from market.engine import Engine
from market.functions import Functions
from market.models import Models
from market.quota import Quota
from market.states import Cancel, Create, Spec, State

DOUBT_S = 2.0
log = structlog.get_logger("market.creation")


class Creation:
    """Makes tasks of requests, each at most once."""

    def __init__(
        self, engine: Engine, chain: str, key: PrivateKey, models: Models, functions: Functions,
        artifacts: Artifacts | None, quota: Quota,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._models, self._functions, self._artifacts = models, functions, artifacts
        self.quota = quota
        self._chain = chain
        self._key = key
        # Two calls with one request id go one after the other, so that the second finds the first's task.
        self._doubts: set[asyncio.Task[None]] = set()
        self._locks: dict[tuple[bytes, bytes], tuple[asyncio.Lock, int]] = {}

    async def create(self, request: market_pb2.CreateTaskRequest, caller: Caller) -> tuple[Spec, State]:
        """The task of this request, new or not. Raises what the contract lists."""
        draft = await self.draft(request, caller)
        request_id = draft.request_id or uuid.uuid4().bytes
        async with self.alone(caller.public_key, request_id):
            return await self._create(draft, caller, request_id)

    async def draft(self, request: market_pb2.CreateTaskRequest, caller: Caller) -> orders.Draft:
        """The request, checked. Raises InvalidArgument, Unauthorized."""
        names = orders.names_in(request.challenge_type, request.payload)
        digests = await self._models.digests(names)
        draft = orders.read(request, digests)
        orders.check_signer(request, caller)
        return await royalties.with_model(self._engine.ledger, draft, digests)

    async def recover(self) -> None:
        """At start: finishes what a crash interrupted between the ledger and here."""
        for spec, keep in await self._engine.group.read(store.drafts):
            self.settle_later(spec, keep, 0.0)

    async def close(self) -> None:
        """Stops asking; the drafts stay for the next start."""
        for task in list(self._doubts):
            task.cancel()
        await asyncio.gather(*self._doubts, return_exceptions=True)
        await self._functions.close()

    @asynccontextmanager
    async def alone(self, customer_key: bytes, request_id: bytes) -> AsyncIterator[None]:
        """Nobody else is at work on this customer's request id meanwhile."""
        name = (customer_key, request_id)
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)

    def settle_later(self, spec: Spec, keep: bool, delay_s: float) -> None:
        """The ledger did not answer: finds out in the background whether it holds the money, and acts on that."""
        task = asyncio.create_task(self._settle_doubt(spec, keep, delay_s))
        self._doubts.add(task)
        task.add_done_callback(self._doubts.discard)

    async def _settle_doubt(self, spec: Spec, keep: bool, delay_s: float) -> None:
        """Asks the ledger whether it holds a draft's money, until it says so or not."""
        while True:
            await asyncio.sleep(delay_s)
            async with self.alone(spec.customer_key, spec.request_id):
                try:
                    held = await self._engine.ledger.has_escrow(spec.task_id)
                except MeshError as error:
                    log.warning("order in doubt", task=spec.task_id.hex(), error=error.message)
                    delay_s = DOUBT_S
                    continue
                written = await self._engine.group.read(lambda c: store.task(c, spec.task_id))
                if not held or written is not None:
                    await self._engine.group.commit(lambda c: store.drop_draft(c, spec.task_id))
                    if written is None:
                        await self.let_go(spec.task_id)
                    return
                await self._engine.do(Create(spec))
                if not keep:
                    await self._engine.do(Cancel(spec.task_id))
                log.info("order in doubt was held", task=spec.task_id.hex(), kept=keep)
                return

    async def known(self, draft: orders.Draft, caller: Caller) -> tuple[Spec, State] | None:
        """The task an earlier request of this id made. Raises Conflict where that asked for something else."""
        if not draft.request_id:
            return None
        request_id = draft.request_id
        found = await self._engine.group.read(lambda c: store.task_of_request(c, caller.public_key, request_id))
        if found is not None and not orders.same_order(draft, found[0]):
            raise orders.conflict(request_id, found[0].task_id)
        return found

    async def order(self, draft: orders.Draft, caller: Caller, request_id: bytes) -> Spec:
        """What is ordered, signed. Raises InvalidArgument for the deadline, Unauthorized for the signature, and where
        nobody can do it."""
        if draft.call is not None:
            await self._functions.check(draft.call)
        now_ms = self._engine.clock()
        deadline_s = draft.deadline_s or now_ms // 1000 + orders.DEFAULT_DEADLINE_S
        orders.check_deadline(deadline_s, now_ms)
        order = orders.order_of(draft, caller, self._key.public, request_id, deadline_s)
        signature = self._signed(draft, caller, order)
        return Spec(
            task_id=order.task_id(self._chain), request_id=request_id, customer_key=caller.public_key,
            customer=caller.address, challenge_type=draft.challenge_type, payload=draft.payload,
            reward_units=draft.reward_units, deadline_ms=order.deadline_ms, priority=draft.priority, jobs=draft.jobs,
            created_ms=now_ms, order=order.pack(), order_signature=signature, references=draft.references,
            traceparent=tracing.current(), labels=draft.wish.labels())

    async def _create(self, draft: orders.Draft, caller: Caller, request_id: bytes) -> tuple[Spec, State]:
        found = await self.known(draft, caller)
        if found is not None:
            return found
        with self.quota.place(caller.address):
            return await self._open(draft, caller, request_id)

    async def _open(self, draft: orders.Draft, caller: Caller, request_id: bytes) -> tuple[Spec, State]:
        engine = self._engine
        spec = await self.order(draft, caller, request_id)
        crash_point("market.order.signed")
        await self.hold(draft, spec.task_id)
        # Noted first: a crash while the ledger takes the money must leave a trace of what it is for.
        keep = bool(draft.request_id)
        await engine.group.commit(lambda c: store.put_draft(c, spec, keep))
        crash_point("market.order.noted")
        try:
            outcome = await engine.ledger.open(spec.order, spec.order_signature)
            if outcome.kind != ledger_pb2.OUTCOME_KIND_APPLIED:
                engine.group.submit(lambda c: store.drop_draft(c, spec.task_id))
                try:
                    spec = await self._opened_before(draft, caller, outcome, spec)
                except MeshError:
                    await self.let_go(spec.task_id)
                    raise
                await self.hold(draft, spec.task_id)
        except Unavailable:
            self.settle_later(spec, keep, DOUBT_S)
            raise
        return await self.publish(spec)

    async def publish(self, spec: Spec) -> tuple[Spec, State]:
        """The task, now that its money is held."""
        crash_point("market.order.held")
        await self._engine.do(Create(spec))
        crash_point("market.order.made")
        found = await self._engine.group.read(lambda c: store.task(c, spec.task_id))
        assert found is not None
        return found

    async def hold(self, draft: orders.Draft, task_id: bytes) -> None:
        """Keep what the task reads until it ends; before its money is held. Raises InvalidArgument, Unavailable."""
        if not draft.inputs and not draft.leaves:
            return
        if self._artifacts is None:
            raise Unavailable(f"this market has no artifact store, which {draft.challenge_type} tasks need",
                              reason="NO_ARTIFACT_STORE")  # fmt: skip
        try:
            await self._artifacts.hold_for_task(task_id.hex(), list(draft.inputs))
        except NotFound as error:
            await self.let_go(task_id)
            raise InvalidArgument(f"payload: {error.message}; store it with `mesh artifact put`",
                                  violations=[("payload", error.message)], reason=error.reason) from None  # fmt: skip

    async def let_go(self, task_id: bytes) -> None:
        """Keep what the task reads no longer."""
        if self._artifacts is not None:
            await self._artifacts.release_task(task_id.hex())

    def _signed(self, draft: orders.Draft, caller: Caller, order: statement.Order) -> bytes:
        if not draft.order_signature:
            assert caller.account is not None
            return envelope.sign(caller.account, "order", self._chain, order.pack())
        if not envelope.verify(order.customer_key, "order", self._chain, order.pack(), draft.order_signature):
            raise Unauthorized(
                "order_signature: it is not customer_key's over this order; sign the bytes of docs/PROTOCOL.md "
                f"section 4 with market_key {self._key.public.hex()} and chain {self._chain!r}",
                reason="INVALID_SIGNATURE")
        return draft.order_signature

    async def _opened_before(
        self, draft: orders.Draft, caller: Caller, outcome: ledger_pb2.Outcome, spec: Spec
    ) -> Spec:
        """The task of the order the ledger holds under this request id, if it is this one: then a crash kept the task
        from being written, and the deadline that the request leaves open was another second. Raises the refusal
        otherwise."""
        order = statement.Order.unpack(spec.order)
        if outcome.reason == "ID_CONFLICT" and draft.request_id:
            held = await self._engine.ledger.opened(order.request_id)
            if held is not None:
                previous = statement.Order.unpack(held[0])
                if orders.adoptable(draft, previous, order):
                    return replace(spec, task_id=previous.task_id(self._chain), order=held[0], order_signature=held[1],
                                   deadline_ms=previous.deadline_ms)
        raise await self.refusal(spec, outcome)

    async def refusal(self, spec: Spec, outcome: ledger_pb2.Outcome) -> MeshError:
        """Why the ledger does not hold an order's money."""
        reason = outcome.reason
        if reason == "INSUFFICIENT_FUNDS":
            payer = statement.Order.unpack(spec.order).terms.payer
            account = spec.customer if payer == statement.NO_ADDRESS else identity.encode_address(payer)
            balance = await self._engine.ledger.balance_units(account)
            return InsufficientFunds(
                f"reward {format_cpc(spec.reward_units)} CPC, but account {account} holds {format_cpc(balance)} CPC",
                metadata={"account": account, "reward_units": str(spec.reward_units), "balance_units": str(balance)})
        if reason == "ID_CONFLICT":
            return orders.conflict(spec.request_id)
        return transactions.refusal("the order", outcome)
