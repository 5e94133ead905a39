"""SubmitAct: what an account declares on the ledger, signed here for API keys, and what the market notes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from computemesh.service import transactions
from computemesh.service.store import Connection
from computemesh.trust import acts
from computemesh.trust.errors import Unauthorized
from computemesh.trust.identity import verify
from computemesh.v1 import ledger_pb2
from computemesh.v1 import market_pb2 as pb
from market import feed
from market.callers import Caller
from market.engine import Engine
from market.kinds import FeedKind
from market.refusals import refuse
from market.states import Look


class Acts:
    """Acts of customers on their way to the ledger."""

    def __init__(self, engine: Engine, chain: str) -> None:
        self._engine, self._chain = engine, chain

    async def submit(self, request: pb.SubmitActRequest, caller: Caller) -> pb.SubmitActResponse:
        """Raises InvalidArgument, Unauthorized, Unavailable, and what the ledger refuses."""
        transaction = self.transaction(request.kind, request.body, caller, request.id, request.signature)
        kept = self._named(request, caller)
        outcome = transactions.applied(f"the {request.kind}", await self._engine.ledger.apply(transaction))
        if kept is not None:
            await self._engine.group.commit(kept)
            self._engine.feed.wake()
        if request.kind in (acts.Confirm.KIND, acts.Retract.KIND):
            await self._engine.do(Look(request.body[:32]))
        return pb.SubmitActResponse(id=transaction.id.hex(), block_height=outcome.block_height)

    def _named(self, request: pb.SubmitActRequest, caller: Caller) -> Callable[[Connection], None] | None:
        """What the market keeps of an act that names a pool or model by hash. Raises InvalidArgument."""
        if request.kind not in (acts.Pool.KIND, acts.Model.KIND):
            return None
        act = acts.unpack(request.kind, request.body)
        name, now_ms = request.name, self._engine.clock()
        if isinstance(act, acts.Model):
            return partial(feed.tell, kind=FeedKind.MODEL_CHANGED, time_ms=now_ms, owner=caller.address, pool="",
                           detail=name) if name else None  # fmt: skip
        assert isinstance(act, acts.Pool)
        for field, text, digest in (("name", name, act.pool), ("category", request.category, act.category)):
            if acts.name_hash(text) != digest:
                raise refuse(field, f"{text!r} is not what the act names by hash")
        row = feed.PoolRow(name, request.category, caller.address, now_ms)

        def keep(connection: Connection) -> None:
            kind = FeedKind.POOL_ACTIVATED if act.active else FeedKind.POOL_DEACTIVATED
            if feed.put_pool(connection, row) and act.active:
                kind = FeedKind.POOL_OPENED
            feed.tell(connection, kind, now_ms, caller.address, name, request.category)

        return keep

    def transaction(
        self, kind: str, body: bytes, caller: Caller, tx_id: bytes, signature: bytes
    ) -> ledger_pb2.Transaction:
        """Signed by the caller; without a `signature` by its account here. Raises InvalidArgument, Unauthorized."""
        if not signature:
            if caller.account is None:
                raise refuse("signature", "is missing: with a token of your own key you sign it yourself")
            return transactions.signed(caller.account, self._chain, kind, body, tx_id)
        if len(tx_id) != 16:
            raise refuse("id", f"has {len(tx_id)} bytes, a transaction id has 16")
        if not verify(caller.public_key, transactions.digest(kind, body, self._chain, tx_id), signature):
            raise Unauthorized(f"signature: it is not that of {caller.address} over this {kind}",
                               reason="INVALID_SIGNATURE")  # fmt: skip
        return transactions.assembled(kind, body, tx_id, caller.public_key, signature)
