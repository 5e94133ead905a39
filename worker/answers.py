"""Finished jobs on their way out: packed commitments, and what their challenges will ask for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from computemesh.trust.audit import DIGEST_BYTES, JobTree, Layout, opening_pieces, sample
from computemesh.trust.errors import InvalidArgument
from computemesh.trust.statement import COMMITMENT, COMMITMENT_SIZE, VERSION, leaves
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.orchestrator_pb2 import Job
from worker.spool import Spooled

MAX_OPENING_BYTES = 1024 * 1024
RETAINED_BYTES = 256 * 1024 * 1024
SPOOLED_BYTES = 16 << 30
# The ledger refuses a nonce more than 4,096 below the highest it saw (PROTOCOL section 4). Whatever is committed to and
# not settled, or still to be committed to, stays within that: a slow audit stops the worker, it never voids a job. It
# is also what bounds the rate, some 8,000 jobs of two workers in the time from commitment to verdict.
NONCE_SPAN = 4095


Units = list[bytes] | Spooled | None
"""A job's unit bytes, in memory or on disk; None where no challenge asks for any."""


@dataclass(slots=True)
class GroupDone:
    """What an executor says of one group, as columns in the group's order.

    A failed job has an entry (nack kind, reason, detail) in `failures` by position, and empty columns.
    `result_hashes` are 32 bytes each, `layouts` (segments, units), `digests` the 32-byte unit digests of each
    job joined, `units` the canonical unit bytes where a challenge may ask for them, else None. `outputs` are those of
    jobs that leave one, by position. Times are microseconds: `wall_us` is the whole group's, `gap_us` the device's wait
    before it (0 where none was queued). `compiled` counts the programs that XLA compiled for it.
    """

    lane: int
    group_id: int
    failures: dict[int, tuple[int, str, str]]
    compute_us: list[int]
    wall_us: int
    result_hashes: list[bytes]
    layouts: list[tuple[int, int]]
    digests: list[bytes]
    units: list[Units]
    outputs: dict[int, bytes] = field(default_factory=dict)
    gap_us: int = 0
    compiled: int = 0

    def hand_over(self, at: int) -> tuple[tuple[int, int], bytes, Units]:
        """Layout, digests and units of one job. The units are not kept here: those on disk go with their last owner."""
        units, self.units[at] = self.units[at], None
        return self.layouts[at], self.digests[at], units


@dataclass(slots=True)
class Answer:
    """A committed result whose verdict is still to come.

    Digests are kept instead of the tree: a 4096 x 4096 product has 16,384 tiles, half a megabyte of digests and
    some four of Python objects as a tree, which is needed once at most.
    """

    task_id: bytes
    index: int
    nonce: int
    leaf: bytes
    layout: tuple[int, int]
    digests: bytes
    units: Units
    retained_bytes: int = field(init=False)
    """What keeping it takes of memory."""

    def __post_init__(self) -> None:
        units = self.units
        self.retained_bytes = len(self.digests) + (
            units.memory_bytes if isinstance(units, Spooled) else sum(map(len, units or ()))
        )

    @property
    def spooled_bytes(self) -> int:
        """What keeping it takes of the disk."""
        return self.units.size if isinstance(self.units, Spooled) else 0

    @property
    def count(self) -> int:
        """Units of the job."""
        return self.layout[0] * self.layout[1]

    def opened(self, seed: bytes, k: int) -> Iterator[bytes]:
        """The canonical openings of the units that seed and `k` ask for (PROTOCOL section 6), piece by piece: of units
        on disk one is in memory at a time."""
        layout = Layout(*self.layout)
        tree = JobTree(layout, self.digests)
        for unit in sample(seed, self.leaf, layout.count, k):
            yield from opening_pieces(tree.open(unit, b"" if self.units is None else self.units[unit]))

    def open(self, seed: bytes, k: int) -> bytes:
        """`opened`, joined."""
        return b"".join(self.opened(seed, k))


class Answers:
    """The commitments without a verdict, oldest first."""

    def __init__(self) -> None:
        self._by_lease: dict[int, Answer] = {}
        self.retained_bytes = self.spooled_bytes = 0

    def __len__(self) -> int:
        return len(self._by_lease)

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_lease)

    def __contains__(self, lease: int) -> bool:
        return lease in self._by_lease

    def get(self, lease: int) -> Answer | None:
        return self._by_lease.get(lease)

    def keep(self, lease: int, answer: Answer) -> None:
        self._by_lease[lease] = answer
        self.retained_bytes += answer.retained_bytes
        self.spooled_bytes += answer.spooled_bytes

    def settle(self, lease: int) -> Answer | None:
        """The verdict has come: forget the answer and return it; None where there is none."""
        answer = self._by_lease.pop(lease, None)
        if answer is not None:
            self.retained_bytes -= answer.retained_bytes
            self.spooled_bytes -= answer.spooled_bytes
        return answer

    def clear(self) -> None:
        self._by_lease.clear()
        self.retained_bytes = self.spooled_bytes = 0

    def room(self, next_nonce: int) -> int:
        """How many jobs may be taken on before the oldest answer is in danger of leaving the nonce window."""
        if self.retained_bytes > RETAINED_BYTES or self.spooled_bytes > SPOOLED_BYTES:
            return 0
        oldest = next(iter(self._by_lease.values()), None)
        return NONCE_SPAN if oldest is None else max(NONCE_SPAN - (next_nonce - oldest.nonce), 0)


def pack(worker_key: bytes, jobs: Sequence[Job], result_hashes: Sequence[bytes], first_nonce: int) -> bytes:
    """The commitments of a batch, 118 bytes each, with nonces from `first_nonce` upwards."""
    if any(len(result_hash) != DIGEST_BYTES for result_hash in result_hashes):
        raise InvalidArgument(f"a result hash has {DIGEST_BYTES} bytes")
    row = COMMITMENT.pack
    return b"".join(
        row(VERSION, job.task_id, job.index, job.task_epoch, job.attempt, worker_key, result_hash, nonce)
        for nonce, (job, result_hash) in enumerate(zip(jobs, result_hashes, strict=True), first_nonce)
    )


def leaf_hashes(batch: bytes) -> list[bytes]:
    """The tree leaf of each packed commitment: a challenge's sample is drawn from it."""
    return leaves(batch, COMMITMENT_SIZE)


def opening_batches(opened: Sequence[pb.JobOpening]) -> Iterator[pb.WorkRequest]:
    """Messages are cut at 1 MiB, below gRPC's limit of 4."""
    part: list[pb.JobOpening] = []
    size = 0
    for opening in opened:
        if part and size + len(opening.openings) > MAX_OPENING_BYTES:
            yield pb.WorkRequest(openings=pb.OpeningBatch(openings=part))
            part, size = [], 0
        part.append(opening)
        size += len(opening.openings)
    if part:
        yield pb.WorkRequest(openings=pb.OpeningBatch(openings=part))
