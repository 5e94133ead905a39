"""Kinds of events: what a task's customer is told, and what everybody may hear of."""

from __future__ import annotations

from enum import IntEnum


class EventKind(IntEnum):
    """What a customer watching the task is told; the numbers are those of `TaskEventKind` in the contract."""

    CREATED = 1
    LEASED = 2
    STARTED = 3
    PROGRESS = 4
    ENDED = 5
    RELEASED = 6


class FeedKind(IntEnum):
    """What everybody may hear of; the numbers are those of `EventKind` in the contract."""

    TASKS_ADDED = 1
    TASK_CLAIMED = 2
    TASK_SUBMITTED = 3
    TASK_VERIFIED = 4
    TASK_SETTLED = 5
    TASK_RELEASED = 6
    TASK_ENDED = 7
    POOL_OPENED = 8
    POOL_ACTIVATED = 9
    POOL_DEACTIVATED = 10
    MODEL_CHANGED = 11


FEED_OF: dict[EventKind, FeedKind] = {
    EventKind.CREATED: FeedKind.TASKS_ADDED,
    EventKind.LEASED: FeedKind.TASK_CLAIMED,
    EventKind.ENDED: FeedKind.TASK_ENDED,
    EventKind.RELEASED: FeedKind.TASK_RELEASED,
}
