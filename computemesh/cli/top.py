"""`mesh top`: the mesh as it is now, once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.client import Client
    from computemesh.client.model import Task

WINDOW_MS = 10_000
"""Throughput is the mean over so long."""
BLOCKS = 300
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. `results_per_s` is over the last ten seconds of blocks; `tasks` are the caller's, `queued_jobs` those
    of them that no worker holds."""

    time_ms: int
    block_height: int
    results_per_s: float
    queued_jobs: int
    running_jobs: int
    tasks: tuple[Task, ...]
    workers: tuple[Any, ...]
    blocks: tuple[Any, ...]


def top(
    once: Annotated[bool, typer.Option("--once", help="Look once and print it.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.2)] = 1.0,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Workers, queue, throughput and blocks, live; Ctrl-C leaves. --once and --json print one look."""
    import sys

    with connect(profile) as client:
        if once or as_json or not sys.stdout.isatty():
            snapshot = look(client)
            output.emit(_document(snapshot), _text(snapshot))
            return
        from rich.live import Live

        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(_screen(look(client)), refresh=True)
                time.sleep(interval)


def look(client: Client) -> Snapshot:
    """Ask the services once. Raises Unavailable where one does not answer."""
    from computemesh.v1 import ledger_pb2, orchestrator_pb2

    info = client.ledger_info()
    blocks = client.ledger("ListBlocks", ledger_pb2.ListBlocksRequest(page_size=BLOCKS)).blocks
    workers = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest(page_size=100)).workers
    tasks = [task for status in ("in_progress", "pending") for task in client.page(status, page_size=SHOWN).tasks]
    now_ms = time.time_ns() // 1_000_000
    recent = sum(block.result_count for block in blocks if now_ms - block.time_ms <= WINDOW_MS)
    waiting = sum(task.jobs_total - task.jobs_settled - task.jobs_running for task in tasks)
    return Snapshot(
        time_ms=now_ms, block_height=info.block_height, results_per_s=recent * 1000 / WINDOW_MS, queued_jobs=waiting,
        running_jobs=sum(worker.jobs_running for worker in workers), tasks=tuple(tasks), workers=tuple(workers),
        blocks=tuple(block for block in blocks if block.tx_count)[:SHOWN] or tuple(blocks[:SHOWN]),
    )  # fmt: skip


def _document(snapshot: Snapshot) -> dict[str, Any]:
    from computemesh.client.model import plain

    messages = {name: [plain(one) for one in getattr(snapshot, name)] for name in ("workers", "blocks")}
    return {**output.plain({name: getattr(snapshot, name) for name in
                            ("time_ms", "block_height", "results_per_s", "queued_jobs", "running_jobs", "tasks")}),
            **messages}  # fmt: skip


def _head(snapshot: Snapshot) -> str:
    return (f"block {snapshot.block_height}   {snapshot.results_per_s:.1f} results/s   "
            f"your queue: {snapshot.queued_jobs} jobs wait   {snapshot.running_jobs} run")  # fmt: skip


def _tables(snapshot: Snapshot) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    from computemesh.cli.worker import devices, shown, status

    workers = [
        (shown(one.capabilities.display_name) or "-", status(one.status), devices(one.capabilities),
         "/".join(f"{share:.0%}" for share in one.utilisation) or "-", one.jobs_running, one.jobs_settled,
         one.jobs_wrong + one.jobs_late)
        for one in snapshot.workers
    ]  # fmt: skip
    tasks = [(one.task_id[:12], one.challenge_type, one.status, f"{one.jobs_settled}/{one.jobs_total}",
              one.jobs_running, one.reward) for one in snapshot.tasks]  # fmt: skip
    blocks = [(one.height, time.strftime("%H:%M:%S", time.localtime(one.time_ms / 1000)), one.tx_count,
               one.result_count, one.compute_root[:16]) for one in snapshot.blocks]  # fmt: skip
    return [
        (("WORKER", "STATUS", "DEVICES", "BUSY", "RUNNING", "SETTLED", "FAILED"), workers),
        (("TASK", "TYPE", "STATUS", "JOBS", "RUNNING", "CPC"), tasks),
        (("BLOCK", "TIME", "TRANSACTIONS", "RESULTS", "COMPUTE ROOT"), blocks),
    ]


def _text(snapshot: Snapshot) -> str:
    parts = [output.table(columns, rows) for columns, rows in _tables(snapshot)]
    return "\n\n".join([_head(snapshot), *parts])


def _screen(snapshot: Snapshot) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(_head(snapshot), style="bold")]
    for columns, rows in _tables(snapshot):
        table = Table(*columns, box=None, header_style="dim", pad_edge=False)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        parts += ["", table]
    return Group(*parts)
