"""CreateTasks: several orders under one signature, each judged alone."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from computemesh.service import transactions
from computemesh.trust.acts import Orders
from computemesh.trust.errors import MeshError, Unauthorized, Unavailable
from computemesh.v1 import ledger_pb2
from computemesh.v1 import market_pb2 as pb
from market import orders, store, views
from market.acts import Acts
from market.callers import Caller
from market.creation import DOUBT_S, Creation
from market.engine import Engine
from market.refusals import refuse
from market.states import Spec, State


@dataclass(slots=True)
class Item:
    """One order on its way: it ends as a task that is `found`, or with an `error`."""

    draft: orders.Draft | None = None
    spec: Spec | None = None
    found: tuple[Spec, State] | None = None
    error: MeshError | None = None

    def message(self) -> pb.CreatedTask:
        """As it is answered."""
        if self.found is not None:
            return pb.CreatedTask(task=views.task(*self.found))
        assert self.error is not None
        return pb.CreatedTask(status=self.error.status, reason=self.error.reason, message=self.error.message)


class Batch:
    """Makes the tasks of a CreateTasks request."""

    def __init__(self, engine: Engine, creation: Creation, acts: Acts) -> None:
        self._engine, self._creation, self._acts = engine, creation, acts

    async def create(self, request: pb.CreateTasksRequest, caller: Caller) -> pb.CreateTasksResponse:
        """Raises InvalidArgument, Unauthorized, Unavailable where no item can be judged."""
        signed = _signed(request, caller)
        items = [await self._item(at, one, caller, signed) for at, one in enumerate(request.tasks)]
        ids = [item.draft.request_id or uuid.uuid4().bytes if item.draft else b"" for item in items]
        named = [one for one in ids if one]
        if len(set(named)) != len(named):
            raise refuse("tasks.request_id", "is the same in two tasks of the batch")
        async with AsyncExitStack() as stack:
            for request_id in sorted(named):  # in one order, or two batches could wait for each other
                await stack.enter_async_context(self._creation.alone(caller.public_key, request_id))
            for item, request_id in zip(items, ids, strict=True):
                await self._order(item, request_id, caller, signed, stack)
            await self._open(items, request, caller, signed)
        return pb.CreateTasksResponse(results=[item.message() for item in items])

    async def _item(self, at: int, request: pb.CreateTaskRequest, caller: Caller, signed: bool) -> Item:
        try:
            return Item(draft=await self._creation.draft(request, caller))
        except MeshError as error:
            error.message = f"tasks[{at}]: {error.message}"
            if signed:  # what was signed cannot be known without this order
                error.violations = [(f"tasks[{at}].{field}", problem) for field, problem in error.violations]
                raise
            return Item(error=error)

    async def _order(
        self, item: Item, request_id: bytes, caller: Caller, signed: bool, stack: AsyncExitStack
    ) -> None:
        """Finds the item's task, or makes its order."""
        if item.draft is None:
            return
        try:
            item.found = await self._creation.known(item.draft, caller)
            if item.found is not None:
                item.spec = item.found[0] if signed else None
                return
            stack.enter_context(self._creation.quota.place(caller.address))
            item.spec = await self._creation.order(item.draft, caller, request_id)
            await self._creation.hold(item.draft, item.spec.task_id)
        except MeshError as error:
            if signed and item.spec is None:
                raise
            item.error = error

    async def _open(self, items: Sequence[Item], request: pb.CreateTasksRequest, caller: Caller, signed: bool) -> None:
        """Has the ledger hold the money of all orders, and makes tasks of those it held."""
        listed = [item for item in items if item.spec is not None and (signed or item.error is None)]
        new = [item for item in listed if item.found is None and item.error is None]
        if not new:
            return
        drafts = [(item.spec, bool(item.draft and item.draft.request_id)) for item in new if item.spec]
        await self._engine.group.commit(lambda c: [store.put_draft(c, spec, keep) for spec, keep in drafts])
        act = Orders(tuple(item.spec.order for item in listed if item.spec))
        try:
            outcome = await self._engine.ledger.apply(
                self._acts.transaction(act.KIND, act.pack(), caller, request.id, request.signature))
        except Unavailable:
            for spec, keep in drafts:
                self._creation.settle_later(spec, keep, DOUBT_S)
            raise
        applied = outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED
        reasons = {row.position: row.reason for row in outcome.refusals}
        for position, item in enumerate(listed):
            if item.found is not None or item.error is not None or item.spec is None:
                continue
            if applied and position not in reasons:
                item.found = await self._creation.publish(item.spec)
                continue
            await self._drop(item, reasons.get(position, ""), outcome)
        if not applied and signed:
            raise transactions.refusal("the batch", outcome)

    async def _drop(self, item: Item, reason: str, outcome: ledger_pb2.Outcome) -> None:
        spec = item.spec
        assert spec is not None
        await self._engine.group.commit(lambda c: store.drop_draft(c, spec.task_id))
        await self._creation.let_go(spec.task_id)
        said = ledger_pb2.Outcome(kind=outcome.kind, reason=reason) if reason else outcome
        item.error = await self._creation.refusal(spec, said)


def _signed(request: pb.CreateTasksRequest, caller: Caller) -> bool:
    """Whether the caller signed the batch itself. Raises InvalidArgument."""
    if bool(request.id) != bool(request.signature):
        raise refuse("signature" if request.id else "id", "is missing: a signed batch has both")
    if not request.id:
        if caller.account is None:
            raise refuse("signature", "is missing: with a token of your own key you sign the batch yourself")
        return False
    for field, size in (("id", 16), ("signature", 64)):
        if len(getattr(request, field)) != size:
            raise refuse(field, f"has {len(getattr(request, field))} bytes, not {size}")
    if any(not one.customer_key for one in request.tasks):
        raise Unauthorized("tasks.customer_key is missing: in a signed batch each order names the key that signs")
    return True
