"""Messages of the Work stream as bytes. Jobs are spliced from constant pieces instead of built as objects.

The tests read every message back with the generated classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from computemesh.service.crashpoints import crash_point
from computemesh.service.spliced import varint
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.workloads.contract import JobSpec
from orchestrator import events as e
from orchestrator.model import Lease, Task

MAX_BATCH_JOBS = 512
MAX_BATCH_BYTES = 256 * 1024


_SMALL = [varint(number) for number in range(16384)]


def _varint(number: int) -> bytes:
    return _SMALL[number] if number < 16384 else varint(number)


# Lease ids are large and close together: two low groups from a table, the rest cached.
_LOW = [bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(16384)]
_high = lru_cache(maxsize=1024)(varint)


def _lease_id(number: int) -> bytes:
    return _LOW[number & 16383] + _high(number >> 14) if number >= 16384 else _SMALL[number]


@lru_cache(maxsize=1024)
def _pieces(task_id: bytes, epoch: int, challenge_type: str, traceparent: str) -> tuple[bytes, bytes, bytes]:
    name, trace = challenge_type.encode(), traceparent.encode()
    return (
        b"\x12\x20" + task_id + b"\x18",
        b"\x20" + varint(epoch) + b"\x28",
        b"\x32" + varint(len(name)) + name + (b"\x62" + varint(len(trace)) + trace if trace else b"") + b"\x3a",
    )


def job(lease: Lease, tail: bytes) -> bytes:
    """One `Job`, with its tag and length as an item of `JobBatch.jobs`; `tail` is its last field.

    Fields that are zero or empty are written all the same: readers may not tell, and nothing has to be asked.
    """
    task, spec = lease.task, lease.spec
    head, epoch, name = _pieces(task.id, lease.epoch, task.challenge_type, task.traceparent)
    params = spec.params
    body = b"".join((
        b"\x08", _lease_id(lease.id), head, _varint(lease.index), epoch, _varint(lease.attempt), name,
        _varint(len(params)), params, b"\x42\x20" + spec.binding if spec.binding else b"", tail,
    ))  # fmt: skip
    if task.inputs is not None or spec.needs:
        body += _files(task, spec)
    return b"\x0a" + _varint(len(body)) + body


def _files(task: Task, spec: JobSpec) -> bytes:
    """Fields 10 and 11 of a `Job`: what it reads."""
    needs = [pb.NeededResult(job=needed, output=task.output(needed)) for needed in spec.needs]
    inputs = task.inputs(spec) if task.inputs is not None else ()
    return pb.Job(inputs=inputs, needs=needs).SerializeToString()


def job_batches(leases: Iterable[Lease], lease_ms: int) -> Iterator[bytes]:
    """`WorkResponse{jobs}` messages of at most `MAX_BATCH_JOBS` and, but for a single larger job, `MAX_BATCH_BYTES`."""
    pieces: list[bytes] = []
    size, tail = 0, b"\x48" + varint(lease_ms)
    for lease in leases:
        piece = job(lease, tail)
        if pieces and (len(pieces) == MAX_BATCH_JOBS or size + len(piece) > MAX_BATCH_BYTES):
            yield b"\x1a" + varint(size) + b"".join(pieces)
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece)
    if pieces:
        yield b"\x1a" + varint(size) + b"".join(pieces)


def assemble(items: Sequence[object], lease_ms: int) -> Iterator[object]:
    """Everything queued for one worker as few messages: jobs spliced, verdicts of a kind joined.

    Jobs come first, so that a revocation queued behind its job also arrives behind it.
    """
    leases: list[Lease] = []
    verdicts: dict[tuple[int, str], list[int]] = {}
    rest: list[pb.WorkResponse] = []
    for item in items:
        if isinstance(item, e.SendJobs):
            leases += item.leases
        elif isinstance(item, e.SendVerdicts):
            verdicts.setdefault((item.kind, item.reason), []).extend(item.lease_ids)
        elif isinstance(item, e.SendChallenges):
            batch = pb.ChallengeBatch(
                challenges=[pb.Challenge(lease_id=lease_id, seed=item.seed, k=k) for lease_id, k in item.leases]
            )
            rest.append(pb.WorkResponse(challenges=batch))
        elif isinstance(item, e.SendRevokes):
            rest.append(pb.WorkResponse(revokes=pb.RevokeBatch(lease_ids=item.lease_ids)))
        elif isinstance(item, pb.WorkResponse):
            rest.append(item)
        else:
            raise TypeError(f"{type(item).__name__} is not sent to workers")
    if leases:
        crash_point("orchestrator.jobs.leave")
    yield from job_batches(leases, lease_ms)
    yield from rest
    if verdicts:
        crash_point("orchestrator.verdicts.leave")
        yield pb.WorkResponse(
            verdicts=pb.VerdictBatch(
                verdicts=[
                    pb.Verdict(lease_ids=ids, kind=kind, reason=reason)  # type: ignore[arg-type]
                    for (kind, reason), ids in verdicts.items()
                ]
            )
        )
