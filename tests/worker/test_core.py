"""Laws of the worker's core, with a simulated orchestrator and simulated executors; no time passes but the test's."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import CHAIN

from computemesh.trust import envelope
from computemesh.trust.audit import JobTree, Layout, fold_opening, parse_openings, sample
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Commitment, commitment_root, hello_body, leaves, verify_commitments
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import DrainNotice, Greeting
from worker.answers import GroupDone
from worker.core import LANES_LOST_AFTER_MS, NONCES_AHEAD, Core
from worker.events import (
    TRANSITIONS,
    Dialled,
    Effects,
    Event,
    Finished,
    LaneDown,
    LaneUp,
    Pause,
    Received,
    Resume,
    State,
    StreamEnded,
    Tick,
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


# ---- the table


def test_every_state_survives_the_end_of_its_stream() -> None:
    assert all(TRANSITIONS[state, "ended"] is State.CLOSED for state in State)


def test_only_ready_and_draining_take_work() -> None:
    assert {state for state, what in TRANSITIONS if what == "jobs"} == {State.READY, State.DRAINING}


@pytest.mark.parametrize("what", ["greeting", "welcome", "jobs", "challenges", "verdicts", "revokes"])
@pytest.mark.parametrize("state", [State.CLOSED, State.GREETING, State.JOINING, State.READY])
def test_a_message_out_of_place_closes_the_stream_and_raises_nothing(state: State, what: str) -> None:
    world = World()
    world.core.state = state
    message = pb.WorkResponse()
    getattr(message, what).SetInParent()
    effects = world.core.step(Received(message), 0)
    assert (effects.close is None) == ((state, what) in TRANSITIONS) or what == "greeting"


def test_the_hello_is_signed_over_the_greeting_and_the_capabilities() -> None:
    world = World()
    world.join()
    hello = world.sent[0].hello
    body = hello_body(bytes(32), PEER.public, KEY.public, b"caps")
    assert hello.capabilities == b"caps"
    assert envelope.verify(KEY.public, "hello", CHAIN, body, hello.signature)


# ---- jobs end once


KINDS = [*3 * ["give", "finish"], "slow", "fail", "kill", "up", "revoke", "settle", "end", "tick", "pause"]
KINDS += ["resume", "drain"]
OPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 1),
        st.integers(1, 40),
    ),
    max_size=60,
)


@given(OPS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_job_ends_in_one_commitment_or_nack_and_credits_are_conserved(ops: list[tuple[str, int, int]]) -> None:
    world = World(lanes=2)
    world.join()
    for op, lane, size in ops:
        world.now_ms += 37
        if world.core.state is State.CLOSED:
            world.do(StreamEnded())
            world.closed = None
            world.dial()
        _perform(world, op, lane, size)
        world.check()
    for lane in (0, 1):
        world.do(LaneUp(lane))
    while world.finish(0) or world.finish(1):
        world.check()
    assert not world.core.lanes.held


def _perform(world: World, op: str, lane: int, size: int) -> None:
    if op in ("give", "slow"):
        count = min(size, world.core.credits)
        if count:
            world.give(count, "noop" if op == "give" else "slow")
    elif op in ("finish", "fail"):
        world.finish(lane, fail=op == "fail", wall_us=size * 100)
    elif op == "kill":
        world.kill(lane)
    elif op == "up":
        world.do(LaneUp(lane))
    elif op == "revoke":
        world.get(revokes=pb.RevokeBatch(lease_ids=sorted(world.given)[-size:]))
    elif op == "settle":
        world.settle(sorted(world.committed)[:size])
    elif op == "drain":
        world.get(drain=DrainNotice(until_ms=world.now_ms + 100))
    else:
        world.do({"end": StreamEnded, "tick": Tick, "pause": Pause, "resume": Resume}[op]())


def test_results_of_a_lost_stream_are_not_committed_on_the_next() -> None:
    world = World(credits=8)
    world.join()
    world.give(2, "slow")
    world.do(StreamEnded())
    assert world.cancelled == [(0, 1), (0, 2)]
    world.dial()
    assert world.finish()
    assert world.finish()
    assert not world.committed
    assert world.core.credits == 8


def test_jobs_beyond_the_credits_are_refused_and_the_stream_goes_on() -> None:
    world = World(credits=2)
    world.join()
    leases = world.give(3, "slow")
    assert [nack.reason for nack in world.nacked.values()] == ["NO_CREDIT"]
    assert set(world.core.lanes.held) == set(leases[:2])


def test_a_lease_given_twice_closes_the_stream() -> None:
    world = World(credits=4)
    world.join()
    world.give(1, "slow")
    world.next_lease = 1
    world.give(1, "slow")
    assert world.closed == "lease 1 was given twice"


def test_an_unknown_task_type_is_refused_for_another_worker_to_try() -> None:
    world = World(credits=4)
    world.join()
    (lease,) = world.give(1, "rendering")
    assert world.nacked[lease].reason == "UNSUPPORTED"
    assert world.nacked[lease].kind == pb.NACK_KIND_RETRYABLE


def test_a_revoked_job_leaves_the_queue_and_stops_if_it_runs() -> None:
    world = World(credits=4)
    world.join()
    leases = world.give(4, "slow")
    world.get(revokes=pb.RevokeBatch(lease_ids=[leases[0], leases[3]]))
    assert world.cancelled == [(0, 1)]
    assert {world.nacked[lease].reason for lease in (leases[0], leases[3])} == {"REVOKED"}
    while world.finish():
        pass
    assert sorted(world.committed) == leases[1:3]


# ---- executors that die


def test_the_job_an_executor_died_on_is_handed_back_and_the_waiting_one_runs_next() -> None:
    world = World(credits=4)
    world.join()
    first, second = world.give(2, "slow")
    world.kill()
    assert world.nacked[first].kind == pb.NACK_KIND_RETRYABLE
    world.do(LaneUp(0))
    world.finish()
    assert second in world.committed


def test_a_job_that_killed_twice_is_poison_and_its_neighbours_are_not() -> None:
    world = World(credits=64)
    world.join()
    world.give(8, first_index=0)
    world.kill()
    assert {nack.kind for nack in world.nacked.values()} == {pb.NACK_KIND_RETRYABLE}
    world.do(LaneUp(0))
    again = world.give(8, first_index=0)  # the same jobs: each runs alone now
    world.finish()
    world.kill()
    assert world.nacked[again[1]].kind == pb.NACK_KIND_POISON
    world.do(LaneUp(0))
    while world.finish():
        pass
    assert sorted(world.committed) == [again[0], *again[2:]]


def test_without_an_executor_jobs_go_back_after_ten_seconds_and_none_are_asked_for() -> None:
    world = World(credits=4)
    world.join()
    world.give(4, "slow")
    world.kill()
    assert len(world.nacked) == 1
    world.now_ms += LANES_LOST_AFTER_MS
    world.do(Tick())
    assert len(world.nacked) == 4
    assert world.core.credits == 0
    world.do(LaneUp(0))
    assert world.core.credits == 4


# ---- nonces


def test_nonces_are_dense_and_a_restart_skips_at_most_1024_and_repeats_none() -> None:
    world = World(credits=64)
    world.join()
    for _ in range(50):
        world.give(world.core.credits)
        while world.finish():
            pass
        world.settle(sorted(world.committed))
    assert world.nonces == list(range(1, len(world.nonces) + 1))
    after = World(reserved=world.durable)
    assert max(world.nonces) < after.core.next_nonce <= max(world.nonces) + 1 + NONCES_AHEAD


def test_an_answer_without_verdict_holds_back_credits_before_its_nonce_leaves_the_window() -> None:
    world = World(credits=1024)
    world.join()
    stuck: int | None = None
    for _ in range(20):
        if not world.core.credits:
            break
        world.give(world.core.credits)
        while world.finish(wall_us=10):
            pass
        stuck = stuck or min(world.committed)
        world.settle([lease for lease in world.committed if lease != stuck])
    assert max(world.nonces) - min(world.nonces) < 4096 - 1
    assert world.core.credits == 0
    assert stuck is not None
    world.settle([stuck])
    assert world.core.credits == 1024


# ---- challenges and verdicts


def test_openings_lead_to_the_committed_root_in_the_order_of_the_sample() -> None:
    world = World(credits=8)
    world.join()
    lease = world.give(1)[0]
    world.finish()
    seed, k = bytes([5]) * 32, 7
    world.get(challenges=pb.ChallengeBatch(challenges=[pb.Challenge(lease_id=lease, seed=seed, k=k)]))
    answer = world.sent[-1].openings.openings[0]
    opened = parse_openings(answer.openings)
    assert [each.index for each in opened] == sample(seed, world.leaves[lease], UNITS, k)
    digests, layout = digests_of(world.committed[lease].job), Layout(1, UNITS)
    for each in opened:
        digest = digests[each.index * 32 : each.index * 32 + 32]
        assert fold_opening(layout, each, digest) == world.committed[lease].result_hash


def test_all_challenges_of_a_message_are_answered_in_one() -> None:
    world = World(credits=8)
    world.join()
    leases = world.give(8)
    world.finish()
    challenges = [pb.Challenge(lease_id=lease, seed=bytes(32), k=3) for lease in leases]
    effects = world.get(challenges=pb.ChallengeBatch(challenges=challenges))
    (openings,) = [m.openings for m in effects.send if m.HasField("openings")]
    assert [each.lease_id for each in openings.openings] == leases


def test_a_verdict_of_wrong_is_logged_with_its_lease_and_task() -> None:
    world = World(credits=8)
    world.join()
    lease = world.give(1)[0]
    world.finish()
    verdict = pb.Verdict(lease_ids=[lease], kind=pb.VERDICT_KIND_WRONG)
    effects = world.get(verdicts=pb.VerdictBatch(verdicts=[verdict]))
    level, _, fields = effects.notes[0]
    assert level == "warning"
    assert fields["lease"] == lease
    assert fields["task"] == "09" * 32
    assert (world.core.counts.refused, world.core.counts.settled) == (1, 0)


def test_nothing_is_kept_once_the_verdict_is_in() -> None:
    world = World(credits=8)
    world.join()
    leases = world.give(8)
    world.finish()
    assert world.core.answers.retained_bytes == 8 * 32 * UNITS
    world.settle(leases)
    assert (len(world.core.answers), world.core.answers.retained_bytes) == (0, 0)


# ---- leaving, pausing, heartbeats


def test_a_leaving_worker_finishes_answers_and_only_then_says_goodbye() -> None:
    world = World(credits=2)
    world.join()
    leases = world.give(2, "slow")
    world.do(Pause(leave=True, deadline_ms=world.now_ms + 1000))
    world.finish()
    world.finish()
    assert world.closed is None, "the audit is still to come"
    world.settle(leases)
    assert world.closed == "drained"
    assert world.sent[-1].goodbye.cause == "drained"


def test_a_leaving_worker_hands_back_what_it_cannot_finish_in_time() -> None:
    world = World(credits=3)
    world.join()
    world.give(3, "slow")
    world.do(Pause(leave=True, deadline_ms=world.now_ms + 1000))
    world.now_ms += 1000
    world.do(Tick())
    assert {(nack.reason, nack.kind) for nack in world.nacked.values()} == {("DRAINING", pb.NACK_KIND_RETRYABLE)}
    assert [m.WhichOneof("message") for m in world.sent[-2:]] == ["nacks", "goodbye"]
    assert world.core.state is State.CLOSED


def test_a_paused_worker_stays_connected_takes_nothing_and_resumes() -> None:
    world = World(credits=2)
    world.join()
    world.do(Pause())
    lease = world.give(1)[0]
    assert world.nacked[lease].reason == "DRAINING"
    assert world.closed is None
    world.do(StreamEnded())
    world.dial()
    assert world.core.credits == 0, "the owner's wish outlives a stream"
    world.do(Resume())
    assert world.core.credits == 2


def test_after_an_orchestrator_drained_the_next_stream_works_again() -> None:
    world = World(credits=2)
    world.join()
    world.get(drain=DrainNotice(cause="update", until_ms=world.now_ms + 1000))
    assert world.closed == "drained"
    world.do(StreamEnded())
    world.dial()
    assert world.core.state is State.READY
    assert world.core.credits == 2


def test_heartbeats_name_what_is_held_and_how_busy_the_device_was() -> None:
    world = World(credits=2)
    world.join()
    leases = world.give(2, "slow")
    world.now_ms += 500
    world.finish()
    world.finish()
    world.now_ms += 499
    assert not world.do(Tick()).send
    world.now_ms += 1
    leases = world.give(2, "slow")
    (beat,) = [m.heartbeat for m in world.do(Tick()).send]
    assert list(beat.running_lease_ids) == leases
    assert beat.utilisation[0] == pytest.approx(0.5)
