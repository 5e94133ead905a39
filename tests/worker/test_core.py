"""Laws of the worker's core: every job ends once, credits are conserved, dead executors are accounted for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from computemesh.trust import envelope
from computemesh.trust.statement import hello_body
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import DrainNotice
from tests.worker.scripted import CHAIN
from tests.worker.world import KEY, PEER, World
from worker.core import LANES_LOST_AFTER_MS
from worker.events import (
    TRANSITIONS,
    LaneUp,
    Pause,
    Received,
    Resume,
    State,
    StreamEnded,
    Tick,
)

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


# ---- the owner's drain


def beats(world: World) -> list[bool]:
    return [request.heartbeat.draining for request in world.sent if request.WhichOneof("message") == "heartbeat"]


def test_the_orchestrator_hears_at_once_that_the_owner_drains_and_resumes() -> None:
    world = World(credits=4)
    world.join()
    world.do(Pause())
    assert beats(world) == [True]
    world.now_ms += 1000
    world.do(Tick())
    assert beats(world) == [True, True]
    world.do(Resume())
    assert beats(world) == [True, True, False]


def test_a_worker_drained_while_away_says_so_when_it_joins() -> None:
    world = World(credits=4)
    world.do(LaneUp(0))
    world.do(Pause())
    assert not world.sent
    world.dial()
    assert beats(world) == [True]
    assert not world.granted
