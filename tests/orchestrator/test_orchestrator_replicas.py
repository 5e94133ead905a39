"""Jobs that workers of different owners answer: who is drawn, who wins, who is paid."""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path

from orchestrator import events as e
from orchestrator import replicas, store
from orchestrator.held import Answer, Replication, SaveReplication
from orchestrator.model import Ask, Job
from tests.databases import opened
from tests.orchestrator.scene import Scene, key, task, task_id

SEED = bytes([7]) * 32


def scene_of(jobs: int = 1, percent: int = 100, **limits: int) -> Scene:
    scene = Scene(replica_percent=percent, **limits)
    made = task(1, jobs=jobs, exact_whole=False, opens=False, k=8)
    made.replicates, made.function, made.job_units = True, "measure", 1000
    scene.do(e.TaskLeased(made))
    return scene


def join(scene: Scene, number: int, owner: str, function: str = "measure") -> None:
    scene.do(e.WorkerJoined(number, key(number), frozenset(), 0, owner, Ask(), frozenset({function})))


def ready(scene: Scene, *numbers: int) -> None:
    for number in numbers:
        scene.do(e.CreditsGranted(number, 4))


def answer(scene: Scene, number: int, says: bytes) -> int:
    """The worker's one job is answered and passes its form check; its lease."""
    (lease,) = scene.held(number)
    scene.commit(number, [lease], says=says)
    scene.judge()
    return lease.id


def kinds(scene: Scene) -> dict[bytes, int]:
    """What was kept of each worker's answer."""
    return {row.batch.key: row.kind for row in scene.persisted if isinstance(row, SaveReplication)}


def owed(scene: Scene) -> list[tuple[bytes, int]]:
    rows = [row for row in scene.persisted if isinstance(row, SaveReplication) and row.tx_id]
    return [(row.batch.key, row.reward_units) for row in rows]


def paid_by_the_ledger(scene: Scene) -> list[bytes]:
    return [part.batch.key for work in scene.submitted for part in work.parts]


def state(scene: Scene) -> Job:
    return scene.states(1)[0]


def two_answers(first: bytes, second: bytes, *others: str) -> Scene:
    scene = scene_of()
    for number, owner in enumerate(("ann", "bob", *others), 1):
        join(scene, number, owner)
    ready(scene, 1)
    answer(scene, 1, first)
    ready(scene, 2)
    answer(scene, 2, second)
    return scene


def test_the_first_answer_waits_for_another_owners_and_is_settled_when_both_are_the_same() -> None:
    scene = scene_of()
    join(scene, 1, "ann")
    join(scene, 2, "ann")
    join(scene, 3, "bob")
    ready(scene, 1)
    first = answer(scene, 1, b"a")
    assert not scene.core.state.unsettled
    ready(scene, 2)
    assert scene.held(2) == [], "the same owner's other machine"
    ready(scene, 3)
    second = answer(scene, 3, b"a")
    scene.settle()
    assert paid_by_the_ledger(scene) == [key(1)]
    assert (scene.verdicts[first], scene.verdicts[second]) == (e.SETTLED, e.SETTLED)
    assert owed(scene) == [(key(3), 1000)]
    assert kinds(scene) == {key(1): Replication.AGREED, key(3): Replication.REPLICA}
    assert scene.outcomes[task_id(1)].completed


def test_the_first_of_two_against_one_is_settled_the_liar_gets_nothing_and_the_job_no_more() -> None:
    scene = two_answers(b"x", b"a", "eve")
    ready(scene, 3)
    answer(scene, 3, b"a")
    scene.settle()
    assert paid_by_the_ledger(scene) == [key(2)]
    assert owed(scene) == [(key(3), 1000)]
    assert scene.core.state.record(key(1)).wrong == 1
    assert kinds(scene) == {key(1): Replication.OUTVOTED, key(2): Replication.AGREED, key(3): Replication.REPLICA}
    assert scene.accused == []
    assert e.WRONG in scene.verdicts.values()


def test_a_lying_replica_is_outvoted_by_a_third_owner() -> None:
    scene = two_answers(b"a", b"x", "eve")
    ready(scene, 3)
    answer(scene, 3, b"a")
    scene.settle()
    assert paid_by_the_ledger(scene) == [key(1)]
    assert kinds(scene)[key(2)] == Replication.OUTVOTED


def test_three_different_answers_pay_nobody_and_others_get_the_job() -> None:
    scene = two_answers(b"a", b"b", "eve", "zoe")
    ready(scene, 3)
    answer(scene, 3, b"c")
    scene.settle()
    assert paid_by_the_ledger(scene) == []
    assert owed(scene) == []
    assert set(kinds(scene).values()) == {Replication.NO_MAJORITY}
    assert [scene.core.state.record(key(n)).wrong for n in (1, 2, 3)] == [0, 0, 0]
    assert all(not scene.held(n) for n in (1, 2, 3))
    ready(scene, 4)
    assert len(scene.held(4)) == 1


def test_two_that_differ_wait_for_a_third_only_so_long_and_at_most_max_attempts_times() -> None:
    scene = scene_of(max_attempts=1, job_limit_ms=5_000, worker_lease_ms=10**6)
    join(scene, 1, "ann")
    join(scene, 2, "bob")
    ready(scene, 1)
    answer(scene, 1, b"a")
    ready(scene, 2)
    answer(scene, 2, b"b")
    scene.tick(4_000)
    assert state(scene) == Job.QUEUED
    assert kinds(scene) == {}
    scene.tick(2_000)
    assert set(kinds(scene).values()) == {Replication.NO_MAJORITY}
    assert not scene.outcomes[task_id(1)].completed


def test_where_no_other_owner_offers_the_function_the_answer_settles_alone_and_that_is_kept() -> None:
    scene = scene_of()
    join(scene, 1, "ann")
    join(scene, 2, "bob", function="another")
    join(scene, 3, "ann")
    ready(scene, 1)
    answer(scene, 1, b"a")
    scene.settle()
    assert kinds(scene) == {key(1): Replication.NO_OTHER_OWNER}
    assert paid_by_the_ledger(scene) == [key(1)]


def test_an_answer_whose_replica_cannot_come_any_more_settles_alone() -> None:
    scene = scene_of()
    join(scene, 1, "ann")
    join(scene, 2, "bob")
    scene.do(e.CreditsGranted(1, 1))
    answer(scene, 1, b"a")
    ready(scene, 2)
    scene.do(e.WorkerLeft(2))
    assert state(scene) == Job.QUEUED
    scene.tick(200)
    assert kinds(scene) == {key(1): Replication.NO_OTHER_OWNER}
    scene.settle({0: "NONCE_REPLAYED"})
    ready(scene, 1)
    assert len(scene.held(1)) == 1, "a refused answer is no reason to give the job out twice"
    scene.finish(1)
    assert paid_by_the_ledger(scene) == [key(1), key(1)]
    assert scene.outcomes[task_id(1)].completed


def test_a_task_that_ends_gives_up_the_answers_that_wait() -> None:
    scene = scene_of()
    join(scene, 1, "ann")
    join(scene, 2, "bob")
    ready(scene, 1)
    lease = answer(scene, 1, b"a")
    scene.do(e.TaskRevoked(task_id(1), 1))
    assert scene.verdicts[lease] == e.STALE
    assert not scene.core.busy


def test_a_task_leased_anew_asks_the_same_owner_again() -> None:
    scene = scene_of()
    join(scene, 1, "ann")
    join(scene, 2, "bob")
    ready(scene, 1)
    answer(scene, 1, b"a")
    again = task(1, jobs=1, exact_whole=False, opens=False, epoch=2)
    scene.do(e.TaskLeased(again))
    scene.tick(200)
    assert [lease.epoch for lease in scene.held(1)] == [2]


def test_at_least_five_percent_of_the_best_workers_are_drawn_and_five_times_as_many_strangers() -> None:
    leaves = [sha256(struct.pack(">I", n)).digest() for n in range(20_000)]
    for reputation, percent, expected in ((1000, 0, 0.05), (0, 5, 0.25), (500, 5, 0.15), (1000, 20, 0.2), (0, 20, 1)):
        share = sum(replicas.drawn(SEED, leaf, reputation, percent) for leaf in leaves) / len(leaves)
        assert abs(share - expected) < 0.01, (reputation, percent, share)


def test_the_draw_is_of_seed_and_commitment_alone() -> None:
    leaf = bytes(32)
    again = [replicas.drawn(bytes([n]) * 32, leaf, 500, 5) for n in range(256)]
    assert again == [replicas.drawn(bytes([n]) * 32, leaf, 500, 5) for n in range(256)]
    assert len(set(again)) == 2


def test_a_replica_is_owed_once_however_often_it_is_kept_and_no_more_once_the_ledger_answered(tmp_path: Path) -> None:
    scene = two_answers(b"a", b"a")
    database = opened(tmp_path / "db", store.STEPS)
    rows = [row for row in scene.persisted if isinstance(row, SaveReplication)]
    for _ in range(2):
        store.write(database, rows)
    ((tx_id, worker, units),) = store.rewards_owed(database, most=10)
    assert (len(tx_id), worker, units) == (16, key(2), 1000)
    store.rewards_answered(database, {tx_id: True})
    store.write(database, rows)
    assert store.rewards_owed(database, most=10) == []


def test_every_attempt_has_a_payment_of_its_own() -> None:
    scene = scene_of(jobs=4)
    join(scene, 1, "ann")
    join(scene, 2, "bob")
    for number in (1, 2):
        ready(scene, number)
        scene.commit(number, scene.held(number))
        scene.judge()
    rows = [row for row in scene.persisted if isinstance(row, SaveReplication) and row.tx_id]
    assert len({row.tx_id for row in rows}) == 4
    again = Answer(rows[0].batch, rows[0].position, bytes(32))
    assert replicas.payment_id(again) == rows[0].tx_id
    again.lease.attempt += 1
    assert replicas.payment_id(again) != rows[0].tx_id
