"""What the SDK answers with: immutable records made from the contracts' messages.

Amounts in `_units` are base units (1 CPC = 1,000,000), others decimal CPC text; times are Unix milliseconds, a
deadline Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format, struct_pb2

from computemesh.client import html
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import ledger_pb2, market_pb2

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})


def struct_of(payload: Mapping[str, Any]) -> struct_pb2.Struct:
    """A payload as a Struct. Raises InvalidArgument naming the path of what a Struct cannot hold exactly."""
    payload_digest(payload)  # refuses what would change its value on the way, e.g. integers beyond 2^53
    struct = struct_pb2.Struct()
    json_format.ParseDict(dict(payload), struct)
    return struct


def payload_of(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct's values, whole numbers as int."""
    values: dict[str, Any] = _whole(json_format.MessageToDict(struct))
    return values


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


def enum_word(enum: Any, value: int, prefix: str) -> str:
    """`TASK_STATUS_IN_PROGRESS` as "in_progress"; a number a newer server sent as its digits."""
    try:
        return str(enum.Name(value)).removeprefix(prefix).lower()
    except ValueError:
        return str(value)


def status_number(status: str | None) -> int:
    """The enum number of a status word, 0 for None. Raises InvalidArgument listing the words."""
    if status is None:
        return 0
    words = {name.removeprefix("TASK_STATUS_").lower(): value for name, value in market_pb2.TaskStatus.items() if value}
    if status.lower() not in words:
        problem = f"{status!r} is not a status; known are {', '.join(words)}"
        raise InvalidArgument(f"status {problem}", violations=[("status", problem)])
    return words[status.lower()]


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One file of a task's answer; `digest` is its artifact's SHA-256, 64 hexadecimal characters, `size` bytes."""

    name: str
    media_type: str
    digest: str
    size: int

    @classmethod
    def of(cls, message: market_pb2.TaskArtifact) -> TaskFile:
        """From the wire."""
        return cls(message.name, message.media_type, message.digest, message.size)


@dataclass(frozen=True, slots=True)
class Model:
    """A registered name and the artifact it stands for (SHA-256, 64 hexadecimal characters)."""

    model_id: str
    artifact: str
    owner: str
    registered_ms: int

    @classmethod
    def of(cls, message: market_pb2.Model) -> Model:
        """From the wire."""
        return cls(message.model_id, message.artifact, message.owner, message.registered_ms)


@dataclass(frozen=True, slots=True)
class Function:
    """A function that `workers` connected workers offer alike: JSON schemas of what it takes and gives, and the longest
    one call may take."""

    name: str
    workers: int
    timeout_ms: int
    input_schema: str
    output_schema: str

    @classmethod
    def of(cls, message: market_pb2.FunctionOffer) -> Function:
        """From the wire."""
        spec = message.function
        return cls(spec.name, message.workers, spec.timeout_ms, spec.input_schema, spec.output_schema)


@dataclass(frozen=True, slots=True, repr=False)
class Task:
    """A task as its market last described it. `artifacts` are its files once it has completed, `preview` one to look at
    while it runs, `references` the digest of each registered name in the payload."""

    task_id: str
    challenge_type: str
    payload: dict[str, Any]
    reward: str
    deadline: int
    priority: int
    status: str
    customer: str
    created_ms: int
    updated_ms: int
    ended_ms: int
    jobs_total: int
    jobs_settled: int
    jobs_running: int
    status_detail: str
    result_hash: str
    block_height: int
    refunded: str
    orchestrator_key: str
    orchestrator_address: str
    order: bytes
    order_signature: bytes
    artifacts: tuple[TaskFile, ...] = ()
    preview: TaskFile | None = None
    references: dict[str, str] = field(default_factory=dict)
    delivery: str = "verified"
    responses: int = 1
    confirm_window_s: int = 0
    payer: str = ""
    pool: str = ""
    model: str = ""

    @classmethod
    def of(cls, message: market_pb2.Task) -> Task:
        """From the wire."""
        values = {name: getattr(message, name) for name in cls.__dataclass_fields__}
        values["payload"] = payload_of(message.payload)
        values["artifacts"] = tuple(TaskFile.of(file) for file in message.artifacts)
        values["preview"] = TaskFile.of(message.preview) if message.HasField("preview") else None
        values["references"] = dict(message.references)
        values["delivery"] = enum_word(market_pb2.Delivery, message.delivery, "DELIVERY_")
        values["status"] = enum_word(market_pb2.TaskStatus, message.status, "TASK_STATUS_")
        return cls(**values)

    @property
    def ended(self) -> bool:
        """Whether the status is terminal: completed, failed, cancelled or expired."""
        return self.status in TERMINAL

    def __repr__(self) -> str:
        return (
            f"Task({self.task_id[:12]}.. {self.challenge_type} {self.status}"
            f" {self.jobs_settled}/{self.jobs_total} jobs, {self.reward} CPC)"
        )

    def _repr_html_(self) -> str:
        values = {"task": self.task_id, "status": f"{self.status} {self.status_detail}",
                  "jobs": f"{self.jobs_settled} of {self.jobs_total} settled", "reward": f"{self.reward} CPC",
                  **{f"file {file.name}": f"{file.media_type}, {file.size:,} bytes" for file in self.artifacts}}
        return html.pairs(self.challenge_type, values) + html.bar(self.jobs_settled, self.jobs_total)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of tasks; `total` counts all that match, an empty `next_page_token` ends the list."""

    tasks: tuple[Task, ...]
    next_page_token: str
    total: int

    def _repr_html_(self) -> str:
        rows = [(task.task_id[:12], task.challenge_type, task.status, f"{task.jobs_settled}/{task.jobs_total}",
                 task.reward) for task in self.tasks]  # fmt: skip
        return html.table(("task", "type", "status", "jobs", "CPC"), rows)


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One change of a task. `cursor` resumes the watch after it; `task` is the task right after it. `partial` is the
    text of a single prompt that runs, up to 4,096 bytes from its beginning: unverified, shown to who watches then."""

    cursor: int
    kind: str
    time_ms: int
    task: Task
    partial: str = ""

    @classmethod
    def of(cls, message: market_pb2.WatchTaskResponse) -> TaskEvent:
        """From the wire."""
        kind = enum_word(market_pb2.TaskEventKind, message.kind, "TASK_EVENT_KIND_")
        return cls(message.cursor, kind, message.time_ms, Task.of(message.task), message.partial)


@dataclass(frozen=True, slots=True)
class Quote:
    """What a task would cost: `price` in CPC for `operations` arithmetic operations, split into `jobs`. `workers`
    take such jobs now, the cheapest for `lowest_price`; all together need `estimated_ms`, 0 where that is not known."""

    price: str
    operations: int
    jobs: int
    checked_units_per_job: int
    units_per_job: int
    payload: dict[str, Any]
    workers: int = 0
    lowest_price: str = ""
    estimated_ms: int = 0

    @classmethod
    def of(cls, message: market_pb2.QuoteTaskResponse) -> Quote:
        """From the wire."""
        return cls(
            price=message.price,
            operations=int(message.operations or "0"),
            jobs=message.jobs,
            checked_units_per_job=message.checked_units_per_job,
            units_per_job=message.units_per_job,
            payload=payload_of(message.payload),
            workers=message.workers,
            lowest_price=message.lowest_price,
            estimated_ms=message.estimated_ms,
        )


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the ledger: `balance` is decimal CPC, the rest base units."""

    address: str
    balance: str
    balance_units: int
    escrow_units: int
    earned_units: int
    spent_units: int
    highest_nonce: int

    @classmethod
    def of(cls, message: ledger_pb2.Account) -> Account:
        """From the wire."""
        return cls(**{name: getattr(message, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Block:
    """A sealed block. Hashes are hexadecimal; `transaction_ids` and `results` only where asked for."""

    height: int
    hash: str
    previous_hash: str
    time_ms: int
    tx_root: str
    compute_root: str
    state_root: str
    tx_count: int
    result_count: int
    header: bytes
    burned_units: int
    minted_units: int
    transaction_ids: tuple[str, ...] = ()
    results: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, message: ledger_pb2.Block, ids: Any = (), results: Any = ()) -> Block:
        """From the wire."""
        own = (name for name in cls.__dataclass_fields__ if name not in ("transaction_ids", "results"))
        values = {name: getattr(message, name) for name in own}
        return cls(**values, transaction_ids=tuple(ids), results=tuple(plain(result) for result in results))


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON-ready values under its field names: bytes as hexadecimal, 64-bit integers as integers."""
    out: dict[str, Any] = {}
    for descriptor in message.DESCRIPTOR.fields:
        value = getattr(message, descriptor.name)
        if descriptor.message_type is not None and not descriptor.is_repeated and not message.HasField(descriptor.name):
            continue
        out[descriptor.name] = (
            [_plain_value(descriptor, item) for item in value] if descriptor.is_repeated
            else _plain_value(descriptor, value)
        )  # fmt: skip
    return out


def _plain_value(descriptor: Any, value: Any) -> Any:
    if descriptor.message_type is not None:
        return payload_of(value) if isinstance(value, struct_pb2.Struct) else plain(value)
    if descriptor.enum_type is not None:
        known = descriptor.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value.hex() if isinstance(value, bytes) else value
