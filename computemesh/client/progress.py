"""A bar of settled jobs, on a terminal's stderr or in a notebook."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from computemesh.client.handles import AsyncTaskHandle
    from computemesh.client.model import Task


def watched() -> bool:
    """Whether somebody would see a bar: stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def jobs_bar(shown: bool) -> Progress:
    """A bar with count, time and what is left of it; invisible unless `shown`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False), disable=not shown, transient=True,
    )  # fmt: skip


def label(task: Task) -> str:
    """What stands before the bar."""
    return f"{task.challenge_type} {task.task_id[:12]} {task.status}"


async def track(handle: AsyncTaskHandle, timeout: float | None = None, shown: bool | None = None) -> None:
    """Wait until a task has ended, behind a bar (`shown` None: where somebody watches). Raises as `watch`."""
    with jobs_bar(watched() if shown is None else shown) as bar:
        row = bar.add_task(label(handle.task), total=max(handle.task.jobs_total, 1))
        async for event in handle.watch(timeout):
            bar.update(row, description=label(event.task), completed=event.task.jobs_settled)
