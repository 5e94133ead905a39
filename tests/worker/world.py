"""A core with a simulated orchestrator and simulated executors; no time passes but the test's."""

from __future__ import annotations

import random
from collections import deque

from computemesh.trust.audit import JobTree, Layout
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Commitment, commitment_root, leaves, verify_commitments
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import Greeting
from tests.worker.scripted import CHAIN
from worker.answers import GroupDone
from worker.core import Core
from worker.events import (
    Dialled,
    Effects,
    Event,
    Finished,
    LaneDown,
    LaneUp,
    Received,
    StreamEnded,
)
from worker.lanes import Run

KEY = PrivateKey.from_bytes(bytes([1]) * 32)
PEER = PrivateKey.from_bytes(bytes([2]) * 32)
UNITS = 40


def digests_of(job_index: int) -> bytes:
    return random.Random(job_index).randbytes(32 * UNITS)


class World:
    """A core, an orchestrator's ledger of what it gave and got, and executors that do what they are told."""

    def __init__(self, lanes: int = 1, credits: int = 0, reserved: int = 1) -> None:
        self.core = Core(KEY, b"caps", {"noop", "slow"}, {"noop"}, lanes, reserved, credits)
        self.now_ms = 1_000_000
        self.running: list[deque[Run]] = [deque() for _ in range(lanes)]
        self.cancelled: list[tuple[int, int]] = []
        self.durable = reserved
        self.nonces: list[int] = []
        self.notes: list[str] = []
        self.closed: str | None = None
        self.next_lease = 1
        self._fresh_stream()

    def _fresh_stream(self) -> None:
        self.given: set[int] = set()
        self.committed: dict[int, Commitment] = {}
        self.leaves: dict[int, bytes] = {}
        self.nacked: dict[int, pb.Nack] = {}
        self.granted = 0
        self.sent: list[pb.WorkRequest] = []

    def do(self, event: Event) -> Effects:
        if isinstance(event, StreamEnded):
            self._fresh_stream()
        effects = self.core.step(event, self.now_ms)
        if effects.persist is not None:
            self.durable = effects.persist
        for request in effects.send:
            self._receive(request)
        for run in effects.run:
            self.running[run.lane].append(run)
        self.cancelled += effects.cancel
        self.notes += [name for _, name, _ in effects.notes]
        self.closed = effects.close or self.closed
        return effects

    def _receive(self, request: pb.WorkRequest) -> None:
        self.sent.append(request)
        what = request.WhichOneof("message")
        if what == "ready":
            self.granted += request.ready.credits
        elif what == "nacks":
            for nack in request.nacks.nacks:
                assert nack.lease_id in self.given
                assert nack.lease_id not in self.nacked
                assert nack.lease_id not in self.committed
                self.nacked[nack.lease_id] = nack
        elif what == "commitments":
            self._commitments(request.commitments)

    def _commitments(self, batch: pb.CommitmentBatch) -> None:
        count = len(batch.lease_ids)
        root = commitment_root(batch.commitments)
        assert verify_commitments(KEY.public, CHAIN, count, root, batch.signature)
        hashes = leaves(batch.commitments, 118)
        for at, lease in enumerate(batch.lease_ids):
            assert lease in self.given
            assert lease not in self.nacked
            assert lease not in self.committed
            commitment = Commitment.unpack(batch.commitments[at * 118 : at * 118 + 118])
            assert commitment.nonce < self.durable, "sent before its reservation was durable"
            self.nonces.append(commitment.nonce)
            self.committed[lease], self.leaves[lease] = commitment, hashes[at]

    def get(self, **message: object) -> Effects:
        return self.do(Received(pb.WorkResponse(**message)))

    def join(self) -> None:
        for lane in range(len(self.running)):
            self.do(LaneUp(lane))
        self.dial()

    def dial(self) -> None:
        self.do(Dialled())
        self.get(greeting=Greeting(nonce=bytes(32), public_key=PEER.public, chain_id=CHAIN))
        self.get(welcome=pb.Welcome(heartbeat_interval_ms=1000, lease_ms=5000))

    def give(self, count: int, kind: str = "noop", first_index: int | None = None) -> list[int]:
        given = range(self.next_lease, self.next_lease + count)
        self.next_lease += count
        self.given |= set(given)
        self.granted -= count
        jobs = [
            pb.Job(lease_id=lease, task_id=bytes([9]) * 32, challenge_type=kind, lease_ms=5000,
                   index=lease if first_index is None else first_index + at)
            for at, lease in enumerate(given)
        ]  # fmt: skip
        self.get(jobs=pb.JobBatch(jobs=jobs))
        return list(given)

    def outcome(self, lane: int, fail: bool = False, wall_us: int = 1000) -> GroupDone | None:
        if not self.running[lane]:
            return None
        run = self.running[lane].popleft()
        size = len(run.rows)
        failures = {at: (int(pb.NACK_KIND_POISON), "EXECUTION_ERROR", "x") for at in range(size)} if fail else {}
        digests = [digests_of(row[1]) for row in run.rows]
        hashes = [JobTree(Layout(1, UNITS), each).result_hash for each in digests]
        return GroupDone(
            lane, run.group_id, failures, [1] * size, wall_us, hashes, [(1, UNITS)] * size, digests, [None] * size
        )

    def finish(self, lane: int = 0, fail: bool = False, wall_us: int = 1000) -> bool:
        done = self.outcome(lane, fail, wall_us)
        if done is not None:
            self.do(Finished([done]))
        return done is not None

    def kill(self, lane: int = 0) -> None:
        self.running[lane].clear()
        self.do(LaneDown(lane))

    def settle(self, leases: list[int], kind: int = pb.VERDICT_KIND_SETTLED) -> None:
        self.get(verdicts=pb.VerdictBatch(verdicts=[pb.Verdict(lease_ids=leases, kind=kind)]))

    def check(self) -> None:
        held = set(self.core.lanes.held)
        assert held | set(self.committed) | set(self.nacked) == self.given
        assert not held & (set(self.committed) | set(self.nacked))
        assert self.core.credits == max(self.granted, 0)
        assert len(self.nonces) == len(set(self.nonces))
