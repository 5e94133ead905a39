"""How many jobs a worker asks for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.pace import FIRST_DEPTH, MAX_DEPTH, MAX_GROUP, WORK_IN_HAND_US, Pace


def fed(us_per_job: int, jobs: int = 1, times: int = 50, fixed: int = 0) -> Pace:
    pace = Pace(fixed)
    for _ in range(times):
        pace.observe("t", jobs, us_per_job * jobs)
    return pace


def test_an_unknown_load_begins_with_two_jobs() -> None:
    assert Pace().depth(1) == FIRST_DEPTH


def test_short_jobs_are_held_by_the_thousand_and_long_ones_one_at_a_time() -> None:
    assert fed(20).depth(1) == MAX_DEPTH
    assert fed(5_000).depth(1) == 1 + WORK_IN_HAND_US // 5_000
    assert fed(500_000).depth(1) == 2  # one runs, one is ready
    assert fed(5_000_000).depth(1) == 1  # a neighbour may be idle


def test_depth_doubles_at_most_and_falls_at_once() -> None:
    pace = Pace()
    depths = []
    for _ in range(12):
        pace.observe("t", 1, 10)
        depths.append(pace.depth(1))
    assert all(after <= 2 * before for before, after in pairwise(depths))
    assert depths[-1] == MAX_DEPTH
    pace.observe("t", 1, 10_000_000)
    assert pace.depth(1) == 1


def test_a_slow_first_job_that_compiled_is_forgotten_in_a_second_of_work() -> None:
    pace = Pace()
    pace.observe("t", 1, 3_000_000)
    jobs = 0
    while pace.depth(1) < 100:
        pace.observe("t", 1, 1_000)
        jobs += 1
    assert jobs * 1_000 < 1_000_000


def test_depth_is_per_working_device_and_zero_without_one() -> None:
    pace = fed(50_000)
    assert pace.depth(3) == 3 * pace.depth(1)
    assert pace.depth(0) == 0


def test_a_fixed_number_of_credits_stays_what_the_owner_said() -> None:
    assert fed(10, fixed=7).depth(1) == fed(10_000_000, fixed=7).depth(1) == 7


@given(st.lists(st.tuples(st.integers(1, 1024), st.integers(0, 10**8)), max_size=50))
def test_depth_and_group_size_stay_within_their_limits(groups: list[tuple[int, int]]) -> None:
    pace = Pace()
    for jobs, wall_us in groups:
        pace.observe("t", jobs, wall_us)
        assert 1 <= pace.depth(1) <= MAX_DEPTH
        assert 1 <= pace.group_size("t") <= MAX_GROUP
