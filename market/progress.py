"""A task's counts as its orchestrator reports them: several changes share one record."""

from __future__ import annotations

from dataclasses import replace

from market.book import Book, Task
from market.kinds import EventKind, FeedKind
from market.states import Phase, ProgressRow

PROGRESS_MS = 200
"""A task's counts are recorded at most this often; what comes between shares one event."""


class Counts:
    """Takes reports in, and records them in `book`."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._unrecorded: dict[bytes, None] = {}

    def take(self, task: Task, row: ProgressRow) -> None:
        """Notes a report; it is recorded at once, or with the next ones."""
        jobs = task.spec.jobs
        task.progress = replace(row, **{
            name: min(getattr(row, name), jobs)
            for name in ("jobs_settled", "jobs_running", "jobs_submitted", "jobs_verified")})  # fmt: skip
        if self._book.now_ms - task.progress_ms >= PROGRESS_MS:
            self.record(task)
        else:
            self._unrecorded[row.task_id] = None

    def forget(self, task: Task) -> None:
        """The task ended: its last report no longer matters."""
        self._unrecorded.pop(task.spec.task_id, None)

    def record_due(self) -> None:
        """Records what has waited long enough."""
        for task_id in list(self._unrecorded):
            task = self._book.tasks[task_id]
            if self._book.now_ms - task.progress_ms >= PROGRESS_MS:
                self.record(task)

    def record(self, task: Task) -> None:
        """Records the last report, if it says anything new."""
        row, state = task.progress, task.state
        task.progress = None
        self.forget(task)
        if row is None or state.phase is not Phase.LEASED:
            return
        settled = max(state.jobs_settled, row.jobs_settled)
        files = row.files or state.files
        reached = (row.jobs_submitted, row.jobs_verified, settled)
        feed = tuple(
            (kind, now) for kind, before, now in zip(
                (FeedKind.TASK_SUBMITTED, FeedKind.TASK_VERIFIED, FeedKind.TASK_SETTLED), task.reached, reached,
                strict=True) if now > before)  # fmt: skip
        changed = (settled, row.jobs_running, files) != (state.jobs_settled, state.jobs_running, state.files)
        if not changed and not feed:
            return
        task.reached = tuple(map(max, task.reached, reached))  # type: ignore[assignment]
        task.progress_ms = self._book.now_ms
        self._book.change(
            task, EventKind.PROGRESS if changed else None, feed, jobs_settled=settled, jobs_running=row.jobs_running,
            block_height=max(state.block_height, row.block_height), files=files)  # fmt: skip
