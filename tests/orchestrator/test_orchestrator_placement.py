"""Laws of placement: order, fairness, cost."""

from __future__ import annotations

import time

from orchestrator import events as e
from orchestrator.placement import Queue
from tests.orchestrator.scene import Scene, task, task_id


def take(queue: Queue, jobs: int, now_ms: int = 0) -> list[tuple[str, int]]:
    """Serve one job at a time; (customer, created) of each."""
    served = []
    for _ in range(jobs):
        found = next(queue.choose(frozenset(), 0, now_ms), None)
        if found is None:
            break
        found.cursor += 1
        queue.served(found, 1, now_ms)
        queue.add(found, now_ms)
        served.append((found.customer, found.created_ms))
    return served


def test_priority_then_deadline_then_age() -> None:
    queue = Queue(aging_ms=10**9)
    for number, (priority, deadline) in enumerate([(0, 50), (5, 90), (5, 80), (9, 99), (5, 80)]):
        queue.add(task(number, jobs=1, priority=priority, deadline_ms=deadline), 0)
    assert [created for _, created in take(queue, 9)] == [3, 2, 4, 1, 0]


def test_customers_of_a_priority_share_whatever_number_of_tasks_they_have() -> None:
    queue = Queue(aging_ms=10**9)
    for number in range(50):
        queue.add(task(number, jobs=10, customer="many"), 0)
    queue.add(task(99, jobs=100, customer="one"), 0)
    served = [customer for customer, _ in take(queue, 100)]
    assert 45 <= served.count("one") <= 55


def test_shares_are_of_work_not_of_jobs() -> None:
    queue = Queue(aging_ms=10**9)
    queue.add(task(1, jobs=1000, customer="heavy", cost=9.0), 0)
    queue.add(task(2, jobs=1000, customer="light", cost=1.0), 0)
    served = [customer for customer, _ in take(queue, 200)]
    assert 170 <= served.count("light") <= 190


def test_no_customer_starves_under_a_flood_of_higher_priority() -> None:
    queue = Queue(aging_ms=100)
    queue.add(task(1, jobs=1, customer="poor", priority=0), 0)
    for number in range(2, 400):
        queue.add(task(number, jobs=1, customer="rich", priority=9), 0)
    served, now = [], 0
    while ("poor", 1) not in served:
        now += 10
        served += take(queue, 1, now)
        assert now <= 1_100, "the low priority must have had its turn"


def test_who_returns_is_not_repaid_for_being_away() -> None:
    queue = Queue(aging_ms=10**9)
    queue.add(task(1, jobs=1000, customer="busy"), 0)
    take(queue, 500)
    queue.add(task(2, jobs=1000, customer="late"), 0)
    served = [customer for customer, _ in take(queue, 100)]
    assert served.count("late") <= 55


def test_choosing_does_not_slow_down_with_the_number_of_tasks() -> None:
    def cost(tasks: int) -> float:
        queue = Queue(aging_ms=10**9)
        for number in range(tasks):
            queue.add(task(number, jobs=2, customer=f"c{number % 100}"), 0)
        start = time.perf_counter()
        take(queue, 500)
        return time.perf_counter() - start

    cost(500)
    assert cost(20_000) < 8 * min(cost(500) for _ in range(3)) + 0.05


def test_a_million_jobs_cost_nothing_until_they_are_given_out() -> None:
    scene = Scene()
    start = time.process_time()
    scene.do(e.TaskLeased(task(1, jobs=1_000_000)))
    scene.worker(1, credits=10)
    assert time.process_time() - start < 0.5
    assert len(scene.held(1)) == 10
    assert scene.core.state.tasks[task_id(1)].cursor == 10


def test_idle_workers_that_fit_nothing_make_no_step_dearer() -> None:
    def cost(idle: int) -> float:
        scene = Scene()
        for number in range(2, idle + 2):
            scene.worker(number, credits=2, types=("synthetic",))
        scene.worker(1, credits=200, types=("noop",))
        start = time.process_time()
        for number in range(200):
            scene.do(e.TaskLeased(task(number, jobs=1)))
        assert len(scene.held(1)) == 200
        return time.process_time() - start

    cost(10)
    assert cost(5_000) < 5 * min(cost(10) for _ in range(3)) + 0.02


def test_a_worker_that_becomes_free_gets_what_waits_and_the_others_keep_their_turn() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, jobs=3)))
    scene.worker(1, credits=1)
    scene.worker(2, credits=5)
    assert (len(scene.held(1)), len(scene.held(2))) == (1, 2)
    scene.worker(3, credits=2, types=("noop",))
    scene.do(e.TaskLeased(task(2, jobs=4)))
    assert len(scene.held(2)) + len(scene.held(3)) == 2 + 4


def test_a_worker_that_joined_late_is_served_before_one_that_was_served() -> None:
    scene = Scene()
    for number in (1, 2, 3):
        scene.worker(number, credits=2)
    for number in range(3):
        scene.do(e.TaskLeased(task(number, jobs=1)))
    assert [len(scene.held(session)) for session in (1, 2, 3)] == [1, 1, 1]


def test_returned_jobs_keep_their_parameters_in_whatever_order_they_come_back() -> None:
    scene = Scene()
    held = task(1, jobs=5)
    scene.do(e.TaskLeased(held))
    scene.worker(1, credits=5)
    leases = {lease.index: lease.id for lease in scene.held(1)}
    scene.do(e.Nacked(1, [(leases[index], e.RETRYABLE, "BUSY") for index in (0, 2, 1, 3, 4)]))
    scene.worker(2, credits=5)
    scene.tick(1_000)
    assert sorted(lease.index for lease in scene.held(2)) == [0, 1, 2, 3, 4]
    assert [lease.index for lease in scene.held(2)] != [0, 1, 2, 3, 4]
    assert all(lease.spec == held.jobs[lease.index] for lease in scene.held(2))


def test_a_small_task_is_spread_over_all_workers_with_free_credits() -> None:
    for jobs, workers in ((2, 2), (4, 2), (8, 2), (9, 2), (8, 3), (5, 8)):
        scene = Scene()
        for number in range(1, workers + 1):
            scene.worker(number, credits=100)
        scene.do(e.TaskLeased(task(1, jobs=jobs)))
        held = sorted(len(scene.held(number)) for number in range(1, workers + 1))
        assert sum(held) == jobs
        assert held[-1] - held[0] <= 1, f"{jobs} jobs went to {workers} workers as {held}"


def test_jobs_of_tasks_that_come_one_by_one_go_to_whoever_holds_least() -> None:
    scene = Scene()
    for number in (1, 2, 3):
        scene.worker(number, credits=100)
    for number in range(1, 7):
        scene.do(e.TaskLeased(task(number, jobs=1)))
    assert [len(scene.held(number)) for number in (1, 2, 3)] == [2, 2, 2]


def test_a_worker_that_cannot_take_a_tasks_jobs_holds_none_of_them_back() -> None:
    scene = Scene()
    scene.worker(1, credits=100, types=("other",))
    scene.worker(2, credits=100)
    scene.worker(3, credits=100)
    scene.do(e.TaskLeased(task(1, jobs=6)))
    assert [len(scene.held(number)) for number in (1, 2, 3)] == [0, 3, 3]


def test_under_load_every_worker_still_gets_full_batches() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, jobs=10_000)))
    out = scene.worker(1), scene.worker(2)
    assert out == (1, 2)
    for number in (1, 2):
        sent = scene.do(e.CreditsGranted(number, 512)).send
        assert [len(item.leases) for item in sent] == [512]


def test_jobs_settled_before_by_another_orchestrator_are_not_given_out() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, 4, epoch=2), settled=[(0, bytes(32)), (2, bytes(32))]))
    scene.worker(1, credits=9)
    assert [lease.index for lease in scene.held(1)] == [1, 3]
    scene.finish(1)
    assert scene.outcomes[task_id(1)].completed


def test_what_was_settled_before_is_passed_over_at_once_however_little_a_worker_asks_for() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, 10_000, epoch=2), settled=[(index, bytes(32)) for index in range(9_000)]))
    scene.worker(1, credits=2)
    assert [lease.index for lease in scene.held(1)] == [9_000, 9_001]
