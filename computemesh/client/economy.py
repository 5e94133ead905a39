"""What a customer does besides publishing one task: batches of tasks, and what its account declares on the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from computemesh.client.connections import Connections
from computemesh.client.model import Task
from computemesh.client.orders import DEFAULT_REWARD, Wish
from computemesh.client.terms import OrderTerms
from computemesh.service import transactions
from computemesh.trust import acts
from computemesh.trust.errors import InvalidArgument, MeshError, from_reason
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, market_pb2

MARKET_KINDS = frozenset({acts.Confirm.KIND, acts.Retract.KIND, acts.Pool.KIND, acts.Model.KIND})
"""Acts the market should hear of: sent through it, also by whoever signs."""

_FIELDS = {"challenge_type", "payload", "reward", "deadline", "priority", "request_id"}


@dataclass(frozen=True, slots=True)
class Created:
    """One item of a batch: its task, or why there is none."""

    task: Task | None
    error: MeshError | None


def wish_of(item: Mapping[str, Any], now_ms: int, signs: bool) -> Wish:
    """The wish of `submit`'s arguments by name. Raises InvalidArgument naming an unknown or wrong field."""
    fields = {name: value for name, value in item.items() if name in _FIELDS}
    known = OrderTerms.__dataclass_fields__
    unknown = sorted(set(item) - _FIELDS - set(known))
    if unknown:
        problem = f"is not a field of a task; known are {', '.join(sorted(_FIELDS | set(known)))}"
        raise InvalidArgument(f"{unknown[0]} {problem}", violations=[(unknown[0], problem)])
    if "challenge_type" not in fields:
        raise InvalidArgument("challenge_type is missing", violations=[("challenge_type", "is missing")])
    terms = OrderTerms(**{name: value for name, value in item.items() if name in known})
    return Wish.of(
        fields["challenge_type"], fields.get("payload") or {}, fields.get("reward", DEFAULT_REWARD),
        fields.get("deadline"), fields.get("priority", 0), fields.get("request_id"), now_ms, signs, terms)


async def submit_many(mesh: Connections, items: Sequence[Mapping[str, Any]]) -> list[Created]:
    """Publishes several tasks under one signature; see `AsyncClient.submit_many`."""
    market = await mesh.market_info()
    key, chain, now_ms = mesh.key, market.chain_id, mesh.now_ms()
    wishes = []
    for at, item in enumerate(items):
        try:
            wishes.append(wish_of(item, now_ms, signs=key is not None))
        except MeshError as error:
            error.message = f"tasks[{at}]: {error.message}"
            raise
    request = market_pb2.CreateTasksRequest()
    if key is None:
        request.tasks.extend(wish.request() for wish in wishes)
    else:
        market_key = bytes.fromhex(market.market_key)
        request.tasks.extend(wish.signed_request(key, market_key, chain) for wish in wishes)
        act = acts.Orders(tuple(wish.order(key.public, market_key).pack() for wish in wishes))
        signed = transactions.signed(key, chain, act.KIND, act.pack())
        request.id, request.signature = signed.id, signed.signature
    reply = await mesh.market("CreateTasks", request)
    return [_created(wish, one, key, chain) for wish, one in zip(wishes, reply.results, strict=True)]


def _created(wish: Wish, one: market_pb2.CreatedTask, key: PrivateKey | None, chain: str) -> Created:
    if not one.HasField("task"):
        return Created(None, from_reason(one.status, one.reason, one.message))
    task = Task.of(one.task)
    wish.check(task, chain, key)
    return Created(task, None)


async def declare(mesh: Connections, kind: str, body: bytes, name: str = "", category: str = "") -> str:
    """Has the account declare something; see `AsyncClient.declare`."""
    request = market_pb2.SubmitActRequest(kind=kind, body=body, name=name, category=category)
    if mesh.key is None:
        return str((await mesh.market("SubmitAct", request)).id)
    signed = transactions.signed(mesh.key, await mesh.chain(), kind, body)
    if kind in MARKET_KINDS:
        request.id, request.signature = signed.id, signed.signature
        await mesh.market("SubmitAct", request)
    else:
        reply = await mesh.ledger("SubmitTransactions", ledger_pb2.SubmitTransactionsRequest(transactions=[signed]))
        transactions.applied(f"the {kind}", reply.outcomes[0])
    return signed.id.hex()
