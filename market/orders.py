"""Reads a CreateTaskRequest into what will be ordered, and says what is wrong with it. No I/O."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format, struct_pb2

from computemesh import workloads
from computemesh.trust import statement
from computemesh.trust.amount import format_cpc, parse_cpc
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import Conflict, InvalidArgument, Unauthorized
from computemesh.trust.identity import valid_public_key
from computemesh.v1 import market_pb2
from computemesh.workloads import references
from market.callers import Caller
from market.states import Spec

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_JOBS = 1_000_000
MAX_DEADLINE_S = 366 * 24 * 3600
DEFAULT_DEADLINE_S = 3600


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked request. `deadline_s` is 0 where the customer left it open, `request_id` empty likewise. `references`
    is JSON, names to digests; `inputs` are the artifacts its jobs read; `leaves` says whether they leave any; `call` is
    the function of a worker's operator that it calls."""

    challenge_type: str
    payload: bytes
    payload_digest: bytes
    reward_units: int
    deadline_s: int
    priority: int
    jobs: int
    request_id: bytes
    order_signature: bytes
    references: str = "{}"
    inputs: tuple[str, ...] = ()
    leaves: bool = False
    call: workloads.Call | None = None


def refuse(field: str, problem: str) -> InvalidArgument:
    """An InvalidArgument on one field."""
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])


def payload_of(message: struct_pb2.Struct) -> tuple[bytes, dict[str, Any]]:
    """Deterministic bytes and values of a payload. Raises InvalidArgument."""
    encoded = message.SerializeToString(deterministic=True)
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise refuse("payload", f"has {len(encoded)} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    try:
        return encoded, json_format.MessageToDict(message)
    except (json_format.SerializeToJsonError, ValueError, RecursionError) as error:
        raise refuse("payload", f"cannot be read: {str(error)[:200]}") from None


def names_in(challenge_type: str, payload: struct_pb2.Struct) -> list[str]:
    """Texts in a payload that may be registered names. Raises InvalidArgument."""
    task_type = workloads.get(challenge_type)
    if not task_type.references:
        return []
    return sorted({text for _, text in references.names(task_type, payload_of(payload)[1])})


def parse(task_type: workloads.Workload[Any], values: dict[str, Any], digests: Mapping[str, str]) -> Any:
    """Params of a payload whose registered names are `digests`. Raises InvalidArgument, naming unregistered names where
    they may be the fault."""
    try:
        return task_type.parse(references.resolve(task_type, values, digests))
    except InvalidArgument as error:
        unknown = [(field, text) for field, text in references.names(task_type, values) if text not in digests]
        blamed = {field for field, _ in error.violations}
        found = [(field, text) for field, text in unknown if any(path.split(".")[0] == field for path in blamed)]
        if not found:
            raise
        violations = [(field, f"{text[:128]!r} is neither a digest nor a registered name") for field, text in found]
        raise InvalidArgument(f"{error.message}; {violations[0][0]}: {violations[0][1]}",
                              violations=[*error.violations, *violations], reason="UNKNOWN_NAME") from None  # fmt: skip


def read(request: market_pb2.CreateTaskRequest, digests: Mapping[str, str]) -> Draft:
    """Everything that can be judged without knowing the caller, the time or the ledger; `digests` are those of the
    registered names in it. Raises InvalidArgument."""
    task_type = workloads.get(request.challenge_type)
    reward_units = parse_cpc(request.reward, "reward")
    encoded, values = payload_of(request.payload)
    digest = payload_digest(values)
    params = parse(task_type, values, digests)
    jobs = task_type.jobs(params)
    inputs = task_type.inputs(params) if task_type.inputs is not None else ()
    if jobs > MAX_JOBS:
        raise refuse("payload", f"makes {jobs} jobs, at most {MAX_JOBS} are allowed in one task")
    if reward_units < jobs:
        raise refuse("reward", f"{request.reward!r} is too little for {jobs} jobs: at least {format_cpc(jobs)} CPC, "
                               "0.000001 for each")
    return Draft(
        request.challenge_type, encoded, digest, reward_units, request.deadline, request.priority, jobs,
        _request_id(request.request_id), _signature(request), json.dumps(digests, sort_keys=True),
        tuple(sorted({digest.hex() for digest in inputs})), task_type.output_bytes is not None,
        task_type.call(params) if task_type.call is not None else None)


def _request_id(text: str) -> bytes:
    if not text:
        return b""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise refuse("request_id", f"{text!r} is not a UUID such as 0190b5f0-3a5e-7c3a-9d1f-6f2b8c4e5a71") from None


def _signature(request: market_pb2.CreateTaskRequest) -> bytes:
    if not request.customer_key and not request.order_signature:
        return b""
    if not request.customer_key or not request.order_signature:
        missing = "order_signature" if request.customer_key else "customer_key"
        raise refuse(missing, "is missing: a signed order needs customer_key and order_signature, both")
    if len(request.order_signature) != 64:
        raise refuse("order_signature", f"has {len(request.order_signature)} bytes, a signature has 64")
    try:
        key = bytes.fromhex(request.customer_key)
    except ValueError:
        key = b""
    if not valid_public_key(key):
        raise refuse("customer_key", "is not a compressed secp256k1 public key (66 hexadecimal characters)")
    if not request.deadline:
        raise refuse("deadline", "is missing: a signed order states it, in Unix seconds")
    if not request.request_id:
        raise refuse("request_id", "is missing: a signed order states it")
    return bytes(request.order_signature)


def check_signer(request: market_pb2.CreateTaskRequest, caller: Caller) -> None:
    """Whether this caller can have signed. Raises InvalidArgument, Unauthorized."""
    if request.customer_key:
        if bytes.fromhex(request.customer_key) != caller.public_key:
            raise Unauthorized(
                f"customer_key: the order is of another key than the caller's, whose account is {caller.address}")
    elif caller.account is None:
        raise refuse("order_signature", "is missing: with a token of your own key you sign the order yourself")


def check_deadline(deadline_s: int, now_ms: int) -> None:
    """Raises InvalidArgument for a deadline that passed, or that looks like milliseconds."""
    now_s = now_ms // 1000
    if deadline_s <= now_s:
        if deadline_s < 0:
            raise refuse("deadline", f"{deadline_s} is negative; it is Unix seconds, now is {now_s}")
        raise refuse("deadline", f"{deadline_s} is in the past by {now_s - deadline_s} s; now is {now_s} "
                                 "(Unix seconds)")
    limit = now_s + MAX_DEADLINE_S
    if deadline_s > limit:
        looks = abs(deadline_s // 1000 - now_s) <= MAX_DEADLINE_S
        hint = f"; it looks like milliseconds, in seconds it is {deadline_s // 1000}" if looks else ""
        raise refuse("deadline", f"{deadline_s} is more than 366 days ahead: at most {limit} (Unix seconds){hint}")


def same_order(draft: Draft, spec: Spec) -> bool:
    """Whether the request asks for what was ordered under its request id; what it leaves open matches anything."""
    return (
        draft.challenge_type == spec.challenge_type
        and draft.reward_units == spec.reward_units
        and draft.priority == spec.priority
        and draft.deadline_s in (0, spec.deadline_ms // 1000)
        and draft.payload_digest == statement.Order.unpack(spec.order).payload_digest)


def conflict(request_id: bytes, task_id: bytes | None = None) -> Conflict:
    """The request id was used for another order."""
    of = f" (task {task_id.hex()})" if task_id else ""
    return Conflict(
        f"request_id {uuid.UUID(bytes=request_id)} was used before with other content{of}; "
        "use a new one for a new task",
        metadata={"task_id": task_id.hex()} if task_id else None)


def order_of(draft: Draft, caller: Caller, market_key: bytes, request_id: bytes, deadline_s: int) -> statement.Order:
    """The statement the customer signs."""
    return statement.Order(
        request_id=request_id, customer_key=caller.public_key, market_key=market_key,
        challenge_type_hash=statement.challenge_type_hash(draft.challenge_type), payload_digest=draft.payload_digest,
        reward_units=draft.reward_units, deadline_ms=deadline_s * 1000, priority=draft.priority)


def adoptable(draft: Draft, order: statement.Order, wanted: statement.Order) -> bool:
    """Whether an order the ledger already holds is what this request asks for, but for a deadline it left open."""
    if draft.deadline_s and order.deadline_ms != wanted.deadline_ms:
        return False
    same = ("request_id", "customer_key", "market_key", "challenge_type_hash", "payload_digest", "reward_units",
            "priority")
    return all(getattr(order, name) == getattr(wanted, name) for name in same)
