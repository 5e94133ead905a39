"""How many jobs to ask for and to run together, from how long jobs take. Pure.

A credit lets the orchestrator send one job of any type, so the right number depends on the jobs: two hundred
no-ops are done in milliseconds, while two products of 4096 x 4096 in one worker's queue keep the second from an
idle neighbour. The aim is `WORK_IN_HAND_US` of work per device: enough to hide the round trip to the
orchestrator (up to about 250 ms), little enough that a task's last jobs spread over all workers.
"""

from __future__ import annotations

WORK_IN_HAND_US = 250_000
GROUP_US = 50_000
# From here on an empty device costs little beside the job itself, and a job in a queue costs a neighbour much.
LONG_JOB_US = 2_000_000
FIRST_DEPTH = 2
# 1,024 no-ops cover 50 ms of round trip at 20,000 jobs/s, and stay well inside the ledger's 4,096 nonces.
MAX_DEPTH = 1024
FIRST_GROUP = 8
MAX_GROUP = 512
NEWEST = 0.3


class Pace:
    """Estimates of the time of a job, and what follows from them. `fixed` > 0 sets the depth once and for all."""

    __slots__ = ("_depth", "_fixed", "_job_us", "_type_us")

    def __init__(self, fixed: int = 0) -> None:
        self._fixed = fixed
        self._depth = FIRST_DEPTH
        self._job_us = 0.0
        self._type_us: dict[str, float] = {}

    def observe(self, challenge_type: str, jobs: int, wall_us: int) -> None:
        """A group of `jobs` jobs took a device `wall_us` microseconds."""
        if jobs < 1:
            return
        each = max(wall_us / jobs, 1.0)
        known = self._type_us.get(challenge_type)
        self._type_us[challenge_type] = each if known is None else known + NEWEST * (each - known)
        self._job_us = each if not self._job_us else self._job_us + NEWEST * (each - self._job_us)
        # Down at once, up by doubling: one short job after a long one says little about the next.
        self._depth = min(self._goal(), max(self._depth * 2, FIRST_DEPTH))

    def _goal(self) -> int:
        waiting = int(WORK_IN_HAND_US / self._job_us)
        if waiting == 0 and self._job_us < LONG_JOB_US:
            waiting = 1
        return min(1 + waiting, MAX_DEPTH)

    def depth(self, lanes: int) -> int:
        """Jobs to hold or have asked for at once, over all `lanes` working devices."""
        if lanes < 1:
            return 0
        return self._fixed or min(self._depth * lanes, MAX_DEPTH)

    def group_size(self, challenge_type: str) -> int:
        """Jobs of one batchable type to run in one call: about 50 ms, so that results do not wait for long."""
        each = self._type_us.get(challenge_type)
        if each is None:
            return FIRST_GROUP
        return max(1, min(int(GROUP_US / each), MAX_GROUP))
