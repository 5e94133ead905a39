"""Several answers to a job from different owners, and jobs that go only where they pay enough."""

from __future__ import annotations

from orchestrator import asks
from orchestrator import events as e
from orchestrator.model import Ask, Job
from tests.orchestrator.scene import Scene, key, task, task_id


def join(scene: Scene, number: int, owner: str = "", credits: int = 4, ask: Ask | None = None) -> None:
    scene.do(e.WorkerJoined(number, key(number), frozenset(), 0, owner, ask or Ask()))
    scene.do(e.CreditsGranted(number, credits))


def wanting(responses: int, jobs: int = 1) -> object:
    made = task(1, jobs=jobs)
    made.responses = responses
    return made


def answer(scene: Scene, number: int) -> None:
    """The worker answers all it holds, the audit passes, the ledger takes it."""
    scene.finish(number)


def test_each_answer_is_of_another_owner_and_no_more_are_asked_for_than_wanted() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(wanting(2), b"", ()))
    join(scene, 1, "ann")
    answer(scene, 1)
    assert scene.outcomes[task_id(1)].completed, "the market is told with the first answer"
    assert scene.core.state.tasks[task_id(1)].states[0] == Job.QUEUED
    join(scene, 2, "ann")
    assert scene.held(2) == [], "the same owner's other machine"
    join(scene, 3, "bob")
    (lease,) = scene.held(3)
    assert lease.attempt != 0
    answer(scene, 3)
    join(scene, 4, "eve")
    assert scene.held(4) == []
    assert scene.core.state.tasks[task_id(1)].states[0] == Job.SETTLED


def test_once_the_customer_has_picked_the_other_attempts_are_called_back() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(wanting(3), b"", ()))
    join(scene, 1, "ann")
    answer(scene, 1)
    join(scene, 2, "bob")
    (lease,) = scene.held(2)
    scene.do(e.OutcomeAcked([task_id(1)]))
    assert scene.revoked == {lease.id}
    assert task_id(1) not in scene.core.state.tasks


def test_an_answer_the_ledger_no_longer_wants_changes_nothing_of_the_job() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(wanting(3), b"", ()))
    join(scene, 1, "ann")
    answer(scene, 1)
    join(scene, 2, "bob")
    scene.commit(2, scene.held(2))
    scene.judge()
    scene.settle({0: "DUPLICATE_RESULT"})
    held = scene.core.state.tasks[task_id(1)]
    assert (held.states[0], held.settled, held.settling) == (Job.SETTLED, 1, 0)


def test_a_job_goes_only_to_workers_whose_ask_it_meets() -> None:
    scene = Scene()
    poor = task(1, jobs=2)
    poor.job_units, poor.operations = 5, 10**12
    scene.do(e.TaskLeased(poor, b"", ()))
    join(scene, 1, ask=Ask(6))
    assert scene.held(1) == []
    join(scene, 2, ask=Ask(6, {"noop": 5}))
    assert len(scene.held(2)) == 2
    rich = task(2, jobs=1)
    rich.job_units, rich.operations = 6, 10**12
    scene.do(e.TaskLeased(rich, b"", ()))
    assert len(scene.held(1)) + len(scene.held(2)) == 3


def test_the_market_hears_the_lowest_and_the_middle_ask_and_the_pace_of_accepted_jobs() -> None:
    scene = Scene()
    for number, units in ((1, 9), (2, 1), (3, 4)):
        join(scene, number, credits=0, ask=Ask(100, {"noop": units}))
    work = task(1, jobs=1)
    work.operations, work.job_units = 5_000, 1
    scene.do(e.TaskLeased(work, b"", ()))
    scene.do(e.CreditsGranted(2, 1))
    scene.now += 250
    scene.finish(2)
    (row,) = (one for one in asks.summary(scene.core.state).asks if one.challenge_type == "noop")
    assert (row.workers, row.lowest_units, row.median_units, row.operations_per_s) == (3, 1, 4, 20_000)
