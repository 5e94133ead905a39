"""What a worker's reputation changes: how many units are challenged, and who gets its turn first."""

from __future__ import annotations

from orchestrator import events as e
from orchestrator.state import LEAST_SAMPLE, sample_size
from tests.orchestrator.scene import Scene, key, task


def test_reputation_lowers_the_sample_and_never_below_eight() -> None:
    for k in (1, 4, 8, 9, 32, 1000):
        sizes = [sample_size(k, reputation) for reputation in range(1001)]
        assert sizes[0] == k
        assert sizes == sorted(sizes, reverse=True)
        assert min(sizes) == min(k, LEAST_SAMPLE)


def test_the_challenge_asks_for_as_many_units_as_the_worker_had_coming_when_it_got_the_job() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, jobs=2, exact_whole=False, k=32), b"", ()))
    scene.do(e.StandingKnown(key(1), 500, ("half way",)))
    scene.worker(1, credits=2)
    leases = scene.held(1)
    scene.do(e.StandingKnown(key(1), 1000, ()))
    scene.commit(1, leases)
    assert [k for _, k in scene.challenges.values()] == [20, 20]


def test_the_better_reputation_gets_the_turn_and_the_rest_get_what_is_left() -> None:
    scene = Scene()
    for number, reputation in ((1, 0), (2, 900), (3, 100)):
        scene.worker(number, credits=1)
        scene.do(e.StandingKnown(key(number), reputation, ()))
    scene.do(e.TaskLeased(task(1, jobs=2), b"", ()))
    assert [len(scene.held(number)) for number in (1, 2, 3)] == [0, 1, 1]
    scene.do(e.TaskLeased(task(2, jobs=1), b"", ()))
    assert len(scene.held(1)) == 1
