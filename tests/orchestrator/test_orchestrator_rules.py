"""Laws against workers that make trouble for free: keys without a record, leases held for ever, drains nobody saw."""

from __future__ import annotations

from orchestrator import events as e
from orchestrator.model import Job
from tests.orchestrator.scene import Scene, key, task, task_id


def leased(scene: Scene, number: int = 1, jobs: int = 1, **values: object) -> None:
    scene.do(e.TaskLeased(task(number, jobs, **values)))


def proven(scene: Scene, session: int) -> int:
    """A worker that settled a task of its own, numbered 100 and up."""
    leased(scene, 100 + session)
    scene.worker(session, credits=1)
    scene.finish(session)
    assert scene.core.state.records[key(session)].settled == 1
    return session


def poison(scene: Scene, session: int) -> None:
    (lease,) = scene.held(session)
    scene.do(e.Nacked(session, [(lease.id, e.POISON, "EXECUTION_ERROR")]))


# ---- poison
def test_workers_without_a_settled_result_never_fail_a_job_while_a_proven_worker_is_there() -> None:
    scene = Scene(worker_lease_ms=10**9, max_attempts=4)
    proven(scene, 1)
    leased(scene)
    for number in range(2, 12):
        scene.worker(number, credits=2)
        scene.tick(20_000)
        poison(scene, number)
        scene.tick(60_000)
        assert not scene.held(number), "barred from the job"
        scene.do(e.WorkerLeft(number))
    assert task_id(1) not in scene.outcomes
    scene.do(e.CreditsGranted(1, 1))
    scene.finish(1)
    assert scene.outcomes[task_id(1)].completed


def test_workers_with_settled_results_still_fail_a_poisonous_job() -> None:
    scene = Scene(worker_lease_ms=10**9)
    for number in (1, 2, 3):
        proven(scene, number)
    leased(scene)
    for number in (1, 2, 3):
        assert task_id(1) not in scene.outcomes
        scene.do(e.CreditsGranted(number, 1))
        scene.tick(20_000)
        poison(scene, number)
    assert "failed 3 times on 3 workers" in scene.outcomes[task_id(1)].detail


def test_what_unproven_workers_said_before_one_had_a_record_counts_no_more() -> None:
    scene = Scene(worker_lease_ms=10**9)
    leased(scene)
    for number in (2, 3):
        scene.worker(number, credits=1)
        scene.tick(20_000)
        poison(scene, number)
    scene.do(e.TaskLeased(task(9, 1, priority=9)))
    scene.worker(1, credits=1)
    scene.finish(1)
    scene.do(e.CreditsGranted(1, 1))
    scene.tick(20_000)
    poison(scene, 1)
    assert task_id(1) not in scene.outcomes


def test_a_proven_worker_that_left_is_waited_for_and_forgotten_after_a_while() -> None:
    scene = Scene(worker_lease_ms=10**9)
    proven(scene, 1)
    scene.do(e.WorkerLeft(1))
    leased(scene)
    for number in (2, 3, 4):
        scene.worker(number, credits=2)
        scene.tick(20_000)
        poison(scene, number)
    assert task_id(1) not in scene.outcomes
    for _ in range(3):
        scene.tick(700_000)
        if scene.outcomes.get(task_id(1)):
            break
        for session in (2, 3, 4):
            if scene.held(session):
                poison(scene, session)
    assert not scene.outcomes[task_id(1)].completed


# ---- leases
def beat(scene: Scene, session: int, ms: int, step: int = 500) -> None:
    """`ms` pass while the worker names all it holds in heartbeats."""
    for _ in range(ms // step):
        scene.do(e.Alive(session, [lease.id for lease in scene.held(session)]))
        scene.tick(step)


def test_heartbeats_alone_hold_a_job_no_longer_than_the_limit() -> None:
    scene = Scene(job_lease_ms=1_000, job_limit_ms=10_000, worker_lease_ms=10**9)
    leased(scene)
    scene.worker(1, credits=9)
    (lease,) = scene.held(1)
    beat(scene, 1, 10_000)
    assert scene.held(1) == [lease]
    beat(scene, 1, 1_000)
    assert scene.revoked == {lease.id}
    assert scene.core.state.records[key(1)].late == 1
    beat(scene, 1, 9_000)
    assert not scene.held(1), "avoided for as long as it held the job"
    scene.worker(2, credits=1)
    scene.finish(2)
    assert scene.outcomes[task_id(1)].completed


def test_jobs_of_known_length_are_taken_from_a_hung_worker_after_ten_times_their_mean() -> None:
    scene = Scene(job_lease_ms=1_000, job_limit_ms=10**6, worker_lease_ms=10**9)
    leased(scene, jobs=4)
    for session in (1, 2, 3):
        scene.worker(session, credits=1)
    scene.now += 300
    for session in (1, 2, 3):
        scene.finish(session)
    scene.worker(4, credits=1)
    beat(scene, 4, 3_000)
    assert scene.held(4)
    beat(scene, 4, 1_000)
    assert not scene.held(4)


def test_nonsense_committed_at_once_does_not_cut_the_time_of_honest_workers() -> None:
    scene = Scene(job_lease_ms=1_000, job_limit_ms=100_000, worker_lease_ms=10**9)
    leased(scene, jobs=4)
    scene.worker(1, credits=3)
    scene.commit(1, scene.held(1))
    scene.judge(accepted=False)
    scene.worker(2, credits=1)
    beat(scene, 2, 50_000)
    assert len(scene.held(2)) == 1


def test_three_leases_that_ran_out_in_a_row_cost_the_worker_its_work_for_the_cooldown() -> None:
    scene = Scene(job_lease_ms=1_000, job_limit_ms=2_000, wrong_cooldown_ms=50_000, worker_lease_ms=10**9)
    leased(scene, jobs=10)
    scene.worker(1, credits=4)
    assert len(scene.held(1)) == 4
    beat(scene, 1, 3_500)
    assert not scene.held(1)
    scene.do(e.CreditsGranted(1, 4))
    scene.tick(45_000)
    assert not scene.held(1)
    scene.tick(5_000)
    assert scene.held(1)
    assert Job.RUNNING in scene.states(1)


def test_what_silent_workers_sat_on_goes_to_one_that_answers_however_many_of_them_there_are() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**9)
    proven(scene, 1)
    for number in range(2, 202):
        scene.worker(number, credits=5)
    leased(scene, jobs=20)
    assert sum(len(scene.held(number)) for number in range(2, 202)) == 20
    scene.tick(1_000)
    assert scene.states(1) == [Job.QUEUED] * 20
    scene.do(e.CreditsGranted(1, 20))
    scene.finish(1)
    assert scene.outcomes[task_id(1)].completed


def test_what_workers_that_left_in_silence_held_goes_to_one_that_answers() -> None:
    scene = Scene(worker_lease_ms=1_000)
    scene.worker(2, credits=1)
    leased(scene)
    proven(scene, 1)
    scene.now += 900
    scene.do(e.Alive(1, []))
    scene.worker(3, credits=1)
    scene.tick(200)
    assert scene.closed == {2: "SILENT"}
    assert not scene.held(3)
    scene.do(e.CreditsGranted(1, 1))
    assert scene.held(1)


def test_a_job_waits_no_longer_for_one_that_answers_than_it_was_held() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**9)
    proven(scene, 1)
    scene.worker(2, credits=1)
    leased(scene)
    scene.worker(3, credits=1)
    scene.tick(1_000)
    assert not scene.held(3)
    scene.tick(1_000)
    assert scene.held(3)


def test_a_job_that_none_who_answers_could_do_is_reserved_for_nobody() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**9)
    leased(scene, 101, challenge_type="simulation")
    scene.worker(1, credits=1, types=("simulation",))
    scene.finish(1)
    scene.worker(2, credits=1)
    leased(scene)
    scene.worker(3, credits=1)
    scene.tick(1_000)
    assert scene.held(3)


def test_a_worker_that_let_a_lease_end_comes_after_those_that_did_not() -> None:
    scene = Scene(job_lease_ms=1_000, worker_lease_ms=10**9)
    scene.worker(1, credits=2)
    leased(scene)
    scene.tick(1_000)
    scene.do(e.TaskRevoked(task_id(1), 1))
    for number in (2, 3):
        scene.worker(number, credits=1)
    leased(scene, 2, jobs=2)
    assert [len(scene.held(number)) for number in (1, 2, 3)] == [0, 1, 1]


# ---- drains
def test_a_worker_drained_by_its_owner_gets_no_jobs_until_a_heartbeat_takes_that_back() -> None:
    scene = Scene()
    scene.worker(1, credits=2)
    scene.do(e.Alive(1, [], draining=True))
    scene.do(e.CreditsGranted(1, 2))
    leased(scene)
    scene.tick(100)
    assert scene.core.state.workers[1].draining
    assert not scene.held(1)
    scene.do(e.Alive(1, []))
    assert not scene.core.state.workers[1].draining
    assert len(scene.held(1)) == 1


def test_owner_and_orchestrator_do_not_take_back_each_others_drain() -> None:
    scene = Scene()
    leased(scene)
    scene.do(e.WorkerJoined(1, key(1), frozenset(), 0))
    scene.do(e.Alive(1, [], draining=True))
    scene.do(e.WorkerDrained(1, held=True))
    scene.do(e.CreditsGranted(1, 1))
    scene.do(e.Alive(1, []))
    assert scene.core.state.workers[1].draining, "drained on request still"
    scene.do(e.Alive(1, [], draining=True))
    scene.do(e.WorkerResumed(key(1)))
    assert scene.core.state.workers[1].draining, "its owner's wish still"
    scene.do(e.Alive(1, []))
    assert scene.held(1)
