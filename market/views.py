"""Tasks and their events as messages of the contract."""

from __future__ import annotations

import json
from collections.abc import Iterable

from google.protobuf import struct_pb2

from computemesh.trust import identity, statement
from computemesh.trust.amount import format_cpc
from computemesh.v1 import market_pb2
from market.states import TERMINAL, Changed, Lease, Phase, Spec, State


def task(spec: Spec, state: State) -> market_pb2.Task:
    """The task as its customer sees it."""
    held = state.phase in (Phase.LEASED, Phase.CLOSING, Phase.ENDED)
    ended = state.status in TERMINAL
    shown = market_pb2.Task(
        task_id=spec.task_id.hex(),
        challenge_type=spec.challenge_type,
        payload=struct_pb2.Struct.FromString(spec.payload),
        reward=format_cpc(spec.reward_units),
        deadline=spec.deadline_ms // 1000,
        priority=spec.priority,
        status=market_pb2.TaskStatus.ValueType(int(state.status)),
        customer=spec.customer,
        created_ms=spec.created_ms,
        updated_ms=state.updated_ms,
        ended_ms=state.ended_ms,
        jobs_total=spec.jobs,
        jobs_settled=state.jobs_settled,
        jobs_running=state.jobs_running,
        status_detail=state.detail if ended else "",
        result_hash=state.result_hash.hex(),
        block_height=state.block_height,
        order=spec.order,
        order_signature=spec.order_signature,
        orchestrator_key=state.orchestrator_key.hex() if held else "",
        orchestrator_address=state.orchestrator_address if held else "",
        refunded=format_cpc(state.refunded_units),
        references=references(spec),
    )
    _show_terms(shown, spec)
    if state.files:
        shown.MergeFromString(state.files)
    return shown


def _show_terms(shown: market_pb2.Task, spec: Spec) -> None:
    """Fills in what the order asks for beyond the plain case."""
    asked = terms(spec)
    shown.delivery = delivery(asked)
    if asked == statement.PLAIN:
        return
    labels = json.loads(spec.labels)
    shown.responses, shown.confirm_window_s = asked.responses, asked.confirm_window_s
    shown.pool, shown.model = labels.get("pool", ""), labels.get("model", "")
    if asked.payer != statement.NO_ADDRESS:
        shown.payer = identity.encode_address(asked.payer)


def terms(spec: Spec) -> statement.Terms:
    """What the order asks for beyond the plain case."""
    plain = len(spec.order) == statement.ORDER_SIZE
    return statement.PLAIN if plain else statement.Order.unpack(spec.order).terms


def delivery(asked: statement.Terms) -> market_pb2.Delivery.ValueType:
    """The contract counts from 1, the order from 0."""
    return market_pb2.Delivery.ValueType(asked.delivery + 1)


def references(spec: Spec) -> dict[str, str]:
    """Digest of each registered name the payload uses."""
    found: dict[str, str] = json.loads(spec.references)
    return found


def files(
    artifacts: Iterable[market_pb2.TaskArtifact] = (), preview: market_pb2.TaskArtifact | None = None
) -> bytes:
    """What of a task its files are, for `State.files`."""
    return market_pb2.Task(artifacts=artifacts, preview=preview).SerializeToString()


def event(spec: Spec, change: Changed) -> market_pb2.WatchTaskResponse:
    """One event with the task as it was right after it."""
    assert change.kind is not None
    return market_pb2.WatchTaskResponse(
        cursor=change.state.cursor, kind=market_pb2.TaskEventKind.ValueType(int(change.kind)),
        time_ms=change.state.updated_ms, task=task(spec, change.state))


def lease(item: Lease) -> market_pb2.TaskLease:
    """The task as its orchestrator gets it."""
    spec, asked = item.spec, terms(item.spec)
    return market_pb2.TaskLease(
        task_id=spec.task_id, epoch=item.epoch, challenge_type=spec.challenge_type,
        payload=struct_pb2.Struct.FromString(spec.payload), reward_units=spec.reward_units,
        deadline_ms=spec.deadline_ms, priority=spec.priority, customer=spec.customer, jobs=spec.jobs,
        created_ms=spec.created_ms, references=references(spec), delivery=delivery(asked), responses=asked.responses,
        memory_bytes=json.loads(spec.labels).get("memory_bytes", 0), traceparent=spec.traceparent)


def partial(task: market_pb2.Task, cursor: int, now_ms: int, text: str) -> market_pb2.WatchTaskResponse:
    """A running job's text so far, between the events that are kept."""
    return market_pb2.WatchTaskResponse(
        cursor=cursor, kind=market_pb2.TASK_EVENT_KIND_PROGRESS, time_ms=now_ms, task=task, partial=text)
