"""Laws of the core, each on the smallest scene that shows it."""

from __future__ import annotations

import pytest

from orchestrator import events as e
from orchestrator.judging import BrokenRule
from orchestrator.model import TRANSITIONS, Job
from tests.orchestrator.scene import Scene, key, task, task_id


def leased(scene: Scene, number: int = 1, jobs: int = 4, **values: object) -> None:
    scene.do(e.TaskLeased(task(number, jobs, **values)))


def test_a_task_goes_from_lease_to_outcome_with_every_job_settled_once() -> None:
    scene = Scene()
    leased(scene, jobs=5)
    scene.worker(1, credits=8)
    scene.finish(1)
    assert scene.outcomes[task_id(1)].completed
    assert scene.outcomes[task_id(1)].height == 3
    assert list(scene.verdicts.values()) == [e.SETTLED] * 5
    scene.do(e.OutcomeAcked([task_id(1)]))
    assert not scene.core.state.tasks
    assert scene.freed == 1


def test_settled_and_failed_jobs_move_no_more() -> None:
    assert not [move for move in TRANSITIONS if move[0] in (Job.SETTLED, Job.FAILED)]


def test_expired_lease_returns_the_job_to_the_queue() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**6)
    leased(scene, jobs=1)
    scene.worker(1, credits=1)
    (old,) = scene.held(1)
    scene.tick(999)
    assert scene.held(1) == [old]
    scene.tick(1)
    assert scene.revoked == {old.id}
    assert scene.states(1) == [Job.QUEUED]
    scene.worker(2, credits=1)
    (new,) = scene.held(2)
    assert (new.index, new.attempt) == (0, old.attempt + 1)


def test_heartbeats_that_name_a_lease_renew_it_and_only_it() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**6)
    leased(scene, jobs=2)
    scene.worker(1, credits=2)
    one, two = scene.held(1)
    scene.now += 900
    scene.do(e.Alive(1, [one.id]))
    scene.tick(200)
    assert scene.held(1) == [one]
    assert scene.revoked == {two.id}


def test_silence_ends_the_stream_and_all_leases() -> None:
    scene = Scene(worker_lease_ms=1_000)
    leased(scene, jobs=3)
    scene.worker(1, credits=3)
    scene.tick(1_001)
    assert scene.closed == {1: "SILENT"}
    assert scene.states(1) == [Job.QUEUED] * 3
    assert scene.core.state.records[key(1)].late == 3


def test_stale_commitment_never_settles() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**6)
    leased(scene, jobs=1)
    scene.worker(1, credits=1)
    late = scene.held(1)
    scene.tick(1_000)
    scene.worker(2, credits=1)
    scene.commit(1, late)
    assert scene.verdicts == {late[0].id: e.STALE}
    assert not scene.audits
    scene.finish(2)
    assert scene.core.state.records[key(1)].settled == 0
    assert scene.core.state.records[key(2)].settled == 1


def test_commitments_under_leases_of_an_older_stream_are_stale() -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=2)
    old = scene.held(1)
    scene.do(e.WorkerLeft(1))
    scene.do(e.WorkerJoined(2, key(1), frozenset(), 0))
    scene.commit(2, old, owner=key(1))
    assert set(scene.verdicts.values()) == {e.STALE}


@pytest.mark.parametrize(
    "change", [{"index": 1}, {"epoch": 9}, {"attempt": 77}], ids=["job", "epoch", "attempt"]
)
def test_commitment_that_contradicts_its_lease_ends_the_stream_and_changes_nothing(change: dict[str, int]) -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=1)
    (lease,) = scene.held(1)
    before = {name: getattr(lease, name) for name in change}
    for name, value in change.items():
        setattr(lease, name, value)
    event = scene.commitments(1, [lease])
    for name, value in before.items():
        setattr(lease, name, value)
    with pytest.raises(BrokenRule):
        scene.do(event)
    assert scene.held(1) == [lease]
    assert scene.states(1)[0] == Job.RUNNING


def test_commitment_by_another_key_is_refused() -> None:
    scene = Scene()
    leased(scene)
    scene.worker(1, credits=1)
    with pytest.raises(BrokenRule, match="not the key of this stream"):
        scene.commit(1, scene.held(1), owner=key(2))


def test_three_distinct_poison_nacks_fail_the_job_and_its_task() -> None:
    scene = Scene(worker_lease_ms=10**9)
    leased(scene, jobs=1)
    for number in (1, 2, 3):
        scene.worker(number, credits=1)
        scene.tick(20_000)
        (lease,) = scene.held(number)
        assert not scene.outcomes
        scene.do(e.Nacked(number, [(lease.id, e.POISON, "EXECUTION_ERROR")]))
        scene.do(e.WorkerLeft(number))
    assert not scene.outcomes[task_id(1)].completed
    assert "EXECUTION_ERROR" in scene.outcomes[task_id(1)].detail


def test_where_workers_are_few_the_same_one_is_asked_again_after_a_pause_and_five_times_fail_the_job() -> None:
    scene = Scene(worker_lease_ms=10**9)
    leased(scene, jobs=1)
    scene.worker(1, credits=9)
    for _ in range(5):
        assert not scene.outcomes
        (lease,) = scene.held(1)
        scene.do(e.Nacked(1, [(lease.id, e.POISON, "EXECUTION_ERROR: no such model")]))
        scene.tick(4_000)
        assert not scene.held(1), "too early"
        scene.tick(60_000)
    assert "failed 5 times on 1 workers: EXECUTION_ERROR: no such model" in scene.outcomes[task_id(1)].detail


def test_retryable_nack_prefers_another_worker_waits_and_blames_nobody() -> None:
    scene = Scene(worker_lease_ms=10**9)
    leased(scene, jobs=1)
    scene.worker(1, credits=5)
    scene.do(e.Nacked(1, [(scene.held(1)[0].id, e.RETRYABLE, "OUT_OF_MEMORY")]))
    scene.worker(2, credits=5)
    assert not scene.held(1)
    assert not scene.held(2), "back-off"
    scene.tick(300)
    assert not scene.held(1)
    assert scene.held(2)
    record = scene.core.state.records[key(1)]
    assert (record.wrong, record.late) == (0, 0)


def test_wrong_result_goes_to_another_worker_only_and_is_unpaid() -> None:
    scene = Scene()
    leased(scene, jobs=1)
    scene.worker(1, credits=4)
    (lease,) = scene.held(1)
    scene.commit(1, [lease])
    scene.judge(accepted=False)
    assert (scene.verdicts, scene.accused) == ({lease.id: e.WRONG}, [(key(1), 0, bytes(32))])
    scene.tick(300)
    assert not scene.held(1)
    assert scene.start_settle() == b""
    scene.worker(2, credits=1)
    scene.finish(2)
    assert scene.outcomes[task_id(1)].completed


def test_three_wrong_results_in_a_row_cost_the_worker_its_work_for_the_cooldown() -> None:
    scene = Scene(wrong_cooldown_ms=5_000, worker_lease_ms=10**9)
    leased(scene, jobs=10)
    scene.worker(1, credits=3)
    scene.commit(1, scene.held(1))
    scene.judge(accepted=False)
    scene.do(e.CreditsGranted(1, 3))
    scene.tick(4_900)
    assert not scene.held(1)
    scene.tick(200)
    assert scene.held(1)


def test_credits_are_never_exceeded_and_drained_workers_get_nothing() -> None:
    scene = Scene()
    leased(scene, jobs=1_000)
    scene.worker(1, credits=300)
    scene.worker(2, credits=1)
    assert len(scene.held(1)) == 300
    assert len(scene.held(2)) == 1
    scene.do(e.WorkerDrained(2))
    scene.do(e.CreditsGranted(2, 5))
    assert len(scene.held(2)) == 1


def test_a_worker_drained_on_request_gets_nothing_when_it_dials_again_until_it_is_resumed() -> None:
    scene = Scene()
    scene.worker(1)
    scene.do(e.WorkerDrained(1, held=True))
    scene.do(e.WorkerLeft(1))
    leased(scene, jobs=10)
    scene.do(e.WorkerJoined(2, key(1), frozenset(), 0))
    scene.do(e.CreditsGranted(2, 3))
    assert not scene.held(2)
    scene.do(e.WorkerResumed(key(1)))
    assert len(scene.held(2)) == 3


def test_memory_and_task_types_are_respected() -> None:
    scene = Scene()
    leased(scene, 1, memory=10_000)
    leased(scene, 2, challenge_type="synthetic", memory=10)
    scene.worker(1, credits=9, types=("noop",), memory=9_999)
    scene.worker(2, credits=9, types=("other",), memory=10**9)
    assert not scene.held(1)
    assert not scene.held(2)
    scene.worker(3, credits=9, types=("noop",), memory=10_000)
    assert {lease.task.id for lease in scene.held(3)} == {task_id(1)}
    scene.worker(4, credits=9, memory=10)
    assert {lease.task.id for lease in scene.held(4)} == {task_id(2)}


def test_one_large_worker_leaves_work_for_others() -> None:
    scene = Scene()
    scene.worker(1, credits=1_000)
    scene.worker(2, credits=1_000)
    leased(scene, jobs=200)
    assert min(len(scene.held(1)), len(scene.held(2))) >= 50


def test_challenge_is_sent_only_after_the_batch_is_durable() -> None:
    scene = Scene()
    leased(scene, jobs=1, exact_whole=False, k=32)
    scene.worker(1, credits=1)
    out_persist = len(scene.persisted)
    (lease,) = scene.held(1)
    scene.commit(1, [lease])
    assert isinstance(scene.persisted[out_persist], e.SaveBatch)
    assert scene.challenges == {lease.id: (bytes([7]) * 32, 32)}
    scene.do(e.Opened(1, [(lease.id, b"openings")]))
    scene.do(e.Opened(1, [(lease.id, b"again")]))
    assert len(scene.audits) == 1, "a second opening is not looked at"
    scene.judge()
    scene.settle()
    assert scene.verdicts == {lease.id: e.SETTLED}


def test_late_opening_fails_the_attempt_and_another_worker_goes_first() -> None:
    scene = Scene(opening_timeout_ms=500, worker_lease_ms=10**9)
    leased(scene, jobs=1, exact_whole=False)
    scene.worker(1, credits=9)
    (lease,) = scene.held(1)
    scene.commit(1, [lease])
    scene.tick(500)
    assert scene.verdicts == {lease.id: e.LATE}
    scene.do(e.Opened(1, [(lease.id, b"too late")]))
    assert not scene.audits
    assert not scene.held(1)
    scene.worker(2, credits=1)
    assert scene.held(2)


def test_three_unanswered_challenges_bar_a_worker_from_the_job() -> None:
    scene = Scene(opening_timeout_ms=100, worker_lease_ms=10**9)
    leased(scene, jobs=1, exact_whole=False)
    scene.worker(1, credits=99)
    for _ in range(3):
        scene.tick(1_000)
        scene.commit(1, scene.held(1))
        scene.tick(100)
    scene.tick(100_000)
    assert (scene.held(1), scene.accused) == ([], [(key(1), 0, bytes(32))])  # once or twice is a crash


def test_revoked_task_is_forgotten_and_its_leases_called_back() -> None:
    scene = Scene()
    leased(scene, jobs=3)
    scene.worker(1, credits=2)
    held = scene.held(1)
    scene.do(e.TaskRevoked(task_id(1), 1))
    assert scene.revoked == {lease.id for lease in held}
    assert not scene.core.state.tasks
    assert scene.freed == 1
    scene.commit(1, held)
    assert set(scene.verdicts.values()) == {e.STALE}


def test_revocation_of_an_older_epoch_changes_nothing() -> None:
    scene = Scene()
    leased(scene, epoch=5)
    scene.do(e.TaskRevoked(task_id(1), 4))
    assert task_id(1) in scene.core.state.tasks


def test_task_leased_anew_restarts_what_ran_and_keeps_what_is_settled() -> None:
    scene = Scene()
    leased(scene, jobs=3)
    scene.worker(1, credits=1)
    scene.finish(1)
    scene.do(e.CreditsGranted(1, 1))
    (running,) = scene.held(1)
    scene.do(e.TaskLeased(task(1, 3, epoch=2)))
    assert running.id in scene.revoked
    assert scene.core.state.tasks[task_id(1)].settled == 1
    scene.worker(2, credits=5)
    assert {lease.epoch for lease in scene.held(2)} == {2}
    scene.finish(2)
    assert scene.outcomes[task_id(1)].epoch == 2


def test_task_past_its_deadline_gets_no_work() -> None:
    scene = Scene()
    leased(scene, deadline_ms=2_000)
    scene.now = 2_000
    scene.worker(1, credits=1)
    assert not scene.held(1)


def test_refused_nonce_gives_the_job_back_and_tells_the_worker() -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=2)
    first, second = scene.held(1)
    scene.commit(1, [first, second])
    scene.judge()
    scene.do(e.SettleAnswered(scene.start_settle(), {1: "NONCE_REPLAYED"}, 3))
    assert scene.verdicts == {first.id: e.SETTLED, second.id: e.REFUSED}
    assert scene.states(1) == [Job.SETTLED, Job.QUEUED]


def test_duplicate_result_counts_with_the_hash_the_ledger_has() -> None:
    scene = Scene()
    leased(scene, jobs=1)
    scene.worker(1, credits=1)
    scene.commit(1, scene.held(1))
    scene.judge()
    scene.do(e.SettleAnswered(scene.start_settle(), {0: "DUPLICATE_RESULT"}, 3))
    assert scene.outcomes[task_id(1)].completed
    assert any(isinstance(row, e.SaveResult) for row in scene.persisted)


@pytest.mark.parametrize("reason", ["UNKNOWN_TASK", "UNFUNDED_TASK"])
def test_task_the_ledger_does_not_pay_is_dropped_and_the_market_told(reason: str) -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=1)
    scene.commit(1, scene.held(1))
    scene.judge()
    scene.do(e.SettleAnswered(scene.start_settle(), {0: reason}, 0))
    assert reason in scene.outcomes[task_id(1)].detail


def test_expired_epoch_means_another_holds_the_task() -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=1)
    scene.commit(1, scene.held(1))
    scene.judge()
    scene.do(e.SettleAnswered(scene.start_settle(), {0: "EXPIRED_EPOCH"}, 0))
    assert not scene.core.state.tasks
    assert not scene.outcomes


def test_attempt_numbers_never_come_back_after_a_restart() -> None:
    seen: set[int] = set()
    for boot in (1, 2, 3):
        scene = Scene(boot=boot, job_lease_ms=10, worker_lease_ms=10**9)
        leased(scene, jobs=1)
        for number in range(1, 6):
            scene.worker(number, credits=1)
            (lease,) = scene.held(number)
            assert lease.attempt not in seen
            seen.add(lease.attempt)
            scene.tick(10)
            scene.do(e.WorkerLeft(number))


def test_a_job_that_kills_every_worker_fails_at_last() -> None:
    scene = Scene(max_attempts=4)
    leased(scene, jobs=1)
    for number in range(1, 5):
        scene.worker(number, credits=1)
        scene.do(e.WorkerLeft(number))
    assert not scene.outcomes[task_id(1)].completed


def test_the_same_key_dialling_again_supersedes_the_older_stream() -> None:
    scene = Scene()
    leased(scene, jobs=2)
    scene.worker(1, credits=2)
    scene.do(e.WorkerJoined(9, key(1), frozenset(), 0))
    assert scene.closed == {1: "SUPERSEDED"}
    assert scene.states(1) == [Job.QUEUED] * 2
    scene.do(e.WorkerLeft(1))
    assert list(scene.core.state.workers) == [9]


def test_unbound_jobs_wait_for_the_first_block() -> None:
    scene = Scene()
    leased(scene, binds=True)
    scene.worker(1, credits=1)
    assert not scene.held(1)
    scene.do(e.BlockSealed(bytes([1]) * 32))
    (lease,) = scene.held(1)
    assert len(lease.spec.binding) == 32
    scene.worker(2, credits=1)
    assert scene.held(2)[0].spec.binding != lease.spec.binding
