"""The vocabulary of the worker's core: states of a stream, events that come in, effects that go out. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from computemesh.v1 import orchestrator_pb2 as pb
from worker.answers import Answer, GroupDone
from worker.lanes import Run


class State(Enum):
    """Where the stream stands."""

    CLOSED = "closed"
    GREETING = "greeting"
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"


_S = State
TRANSITIONS: dict[tuple[State, str], State] = {
    (_S.CLOSED, "dialled"): _S.GREETING,
    (_S.GREETING, "greeting"): _S.JOINING,
    (_S.JOINING, "welcome"): _S.READY,
    # Work arrives in DRAINING too: it was under way when the drain began, and is nacked.
    **{(s, what): s for s in (_S.READY, _S.DRAINING) for what in ("jobs", "challenges", "verdicts", "revokes")},
    # An orchestrator that shuts down says so whenever it happens to be dialled.
    **{(s, "drain"): _S.DRAINING for s in (_S.GREETING, _S.JOINING, _S.READY, _S.DRAINING)},
    (_S.READY, "pause"): _S.DRAINING,
    (_S.DRAINING, "resume"): _S.READY,
    (_S.DRAINING, "left"): _S.CLOSED,
    **{(s, "ended"): _S.CLOSED for s in State},
}


class Dialled:
    """A stream was opened; the orchestrator speaks first."""


class StreamEnded:
    """The stream is gone, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Received:
    message: pb.WorkResponse


@dataclass(frozen=True, slots=True)
class Finished:
    """Groups that executors are through with: all that were ready at this moment."""

    groups: list[GroupDone]


@dataclass(frozen=True, slots=True)
class Partial:
    """What the text of a group's only job has come to."""

    group_id: int
    text: str


@dataclass(frozen=True, slots=True)
class LaneUp:
    lane: int


@dataclass(frozen=True, slots=True)
class LaneDown:
    lane: int


@dataclass(frozen=True, slots=True)
class Challenged:
    """A challenge of an answer so large that it is opened outside the core: `answer.open(seed, k)`."""

    lease_id: int
    answer: Answer
    seed: bytes
    k: int


@dataclass(frozen=True, slots=True)
class Storing:
    """A finished job whose output must be stored before it is committed: position `at` of `done`."""

    job: pb.Job
    done: GroupDone
    at: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The openings of a `Challenged`, or the artifact (SHA-256) they are stored as because they do not fit a message;
    `failure` says why there are none."""

    lease_id: int
    answer: Answer
    openings: bytes
    artifact: bytes = b""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a job reads is here (`files`), or `failure` says why it cannot be: (nack kind, reason, text)."""

    job: pb.Job
    files: Any = None
    failure: tuple[int, str, str] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The artifacts of a `Storing` are durable (SHA-256 of output and unit digests), or `failure` says why not."""

    storing: Storing
    output: bytes = b""
    unit_digests: bytes = b""
    failure: tuple[int, str, str] | None = None


class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner wants no new jobs. With `leave`: finish by `deadline_ms` (Unix ms), say goodbye, close."""

    leave: bool = False
    deadline_ms: int = 0


class Resume:
    """The owner wants jobs again."""


Event = (
    Dialled | StreamEnded | Received | Finished | Partial | LaneUp | LaneDown | Opened | Fetched | Stored | Tick | Pause
    | Resume
)  # fmt: skip


@dataclass(slots=True)
class Counts:
    """Since the agent started."""

    done: int = 0
    settled: int = 0
    refused: int = 0
    nacked: int = 0


class ProtocolViolation(Exception):
    """The orchestrator sent what it may not send now; the stream is not usable any more."""


@dataclass(slots=True)
class Effects:
    """What to do, in this order: persist, send, run groups, stop groups, fetch files, store outputs, open answers,
    close the stream.

    `persist` is the nonce up to which a reservation must be durable. `notes` are (level, event, fields) to log.
    `close` is the cause, None = stay.
    """

    persist: int | None = None
    send: list[pb.WorkRequest] = field(default_factory=list)
    run: list[Run] = field(default_factory=list)
    cancel: list[tuple[int, int]] = field(default_factory=list)
    fetch: list[pb.Job] = field(default_factory=list)
    store: list[Storing] = field(default_factory=list)
    open: list[Challenged] = field(default_factory=list)
    close: str | None = None
    notes: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
