"""Laws of the worker's core: nonces, openings, verdicts, leaving and heartbeats."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.trust.audit import Layout, fold_opening, parse_openings, sample
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import DrainNotice
from tests.worker.world import UNITS, World, digests_of
from worker import spool
from worker.answers import Answer, Answers
from worker.core import NONCES_AHEAD
from worker.events import (
    Opened,
    Pause,
    Resume,
    State,
    StreamEnded,
    Tick,
)

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


def test_a_large_answer_is_opened_beside_the_stream_and_dropped_if_the_stream_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.core.QUICK_UNITS", UNITS - 1)
    world = World(credits=8)
    world.join()
    lease = world.give(1)[0]
    world.finish()
    challenge = pb.Challenge(lease_id=lease, seed=bytes(32), k=3)
    (asked,) = world.get(challenges=pb.ChallengeBatch(challenges=[challenge])).open
    opened = Opened(lease, asked.answer, asked.answer.open(asked.seed, asked.k))
    assert world.do(opened).send[0].openings.openings[0].lease_id == lease
    world.do(StreamEnded())
    world.dial()
    world.next_lease = lease
    world.give(1)
    world.finish()
    assert not world.do(opened).send


@pytest.mark.parametrize(("seed", "k"), [(bytes(31), 1), (b"", 1)])
def test_a_malformed_challenge_closes_the_stream_and_says_what_is_wrong(seed: bytes, k: int) -> None:
    world = World(credits=8)
    world.join()
    lease = world.give(1)[0]
    world.finish()
    challenge = pb.Challenge(lease_id=lease, seed=seed, k=k)
    world.get(challenges=pb.ChallengeBatch(challenges=[challenge]))
    assert world.closed is not None
    assert f"seed of {len(seed)} bytes" in world.closed


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


# ---- units on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for unit bytes."""
    (tmp_path / "units").mkdir()
    return tmp_path / "units"


def test_units_that_would_fill_memory_are_on_disk_until_their_last_owner_lets_go(folder: Path) -> None:
    made = spool.collect((bytes([i]) * 300_000 for i in range(10)), str(folder))
    assert isinstance(made, spool.Spooled)
    held = pickle.loads(pickle.dumps(made))  # as it comes from the executor
    assert [held[i] for i in (0, 9, 4)] == [bytes([i]) * 300_000 for i in (0, 9, 4)]
    assert (held.size, held.memory_bytes) == (3_000_000, 80)
    assert [path.stat().st_size for path in folder.iterdir()] == [3_000_000]
    del held
    assert list(folder.iterdir()) == []


def test_few_units_stay_in_memory(folder: Path) -> None:
    assert spool.collect([b"a", b"b"], str(folder)) == [b"a", b"b"]
    assert list(folder.iterdir()) == []


def test_what_an_executor_was_writing_when_it_died_goes_when_the_next_one_begins(folder: Path) -> None:
    def dies() -> Iterator[bytes]:
        yield bytes(2_000_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool.collect(dies(), str(folder))
    assert list(folder.iterdir()) == []
    (folder / f"x{spool.UNFINISHED}").write_bytes(b"half")
    spool.begin(str(folder))
    assert list(folder.iterdir()) == []


def test_a_spooled_answer_opens_beside_the_stream_as_it_would_have_in_memory(folder: Path) -> None:
    units = [random.Random(i).randbytes(400_000) for i in range(UNITS)]
    rows = (bytes(32), 0, 1, bytes(32), (1, UNITS), digests_of(0))
    kept, spooled = Answer(*rows, units), Answer(*rows, pickle.loads(pickle.dumps(spool.collect(units, str(folder)))))
    assert kept.retained_bytes == len(digests_of(0)) + 400_000 * UNITS
    assert spooled.retained_bytes == len(digests_of(0)) + 8 * UNITS
    assert (kept.spooled_bytes, spooled.spooled_bytes) == (0, 400_000 * UNITS)
    assert spooled.open(bytes(32), 3) == kept.open(bytes(32), 3)


def test_what_an_answer_retains_is_counted_once() -> None:
    class Counted(list[bytes]):
        asked = 0

        def __iter__(self) -> Iterator[bytes]:
            Counted.asked += 1
            return super().__iter__()

    answers = Answers()
    answers.keep(1, Answer(bytes(32), 0, 1, bytes(32), (1, 2), bytes(64), Counted([b"one", b"two"])))
    assert answers.retained_bytes == 70
    assert answers.settle(1) is not None
    assert (answers.retained_bytes, Counted.asked) == (0, 1)
