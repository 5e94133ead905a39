"""`mesh task`: publish, look, watch, cancel, price."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output, terms
from computemesh.cli.artifact import bytes_bar
from computemesh.cli.options import (
    JsonOption,
    ProfileOption,
    connect,
    parse_deadline,
    parse_payload,
    save,
    statuses,
    types,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from computemesh.client import Client
    from computemesh.client.model import Task, TaskEvent, TaskFile

app = typer.Typer(help="Publish tasks and follow them.", no_args_is_help=True)
for _command in (terms.confirm, terms.answers, terms.retract):
    app.command()(_command)


def _whole_id(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise typer.BadParameter(
            f"{shown!r} has {len(text)} characters; a task id is 64 hexadecimal characters (`mesh task list`)"
        )
    return text


TaskId = Annotated[
    str,
    typer.Argument(metavar="TASK", help="Task id, 64 hexadecimal characters.", show_default=False, callback=_whole_id),
]
TypeArgument = Annotated[
    str,
    typer.Argument(metavar="TYPE", help="Task type, e.g. synthetic.", show_default=False, autocompletion=types),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Payload fields; values: JSON literals, else text.", show_default=False),
]
PayloadOption = Annotated[
    str | None, typer.Option("--payload", metavar="JSON|@FILE", help="Payload as a JSON object, or a file with one.")
]


@app.command()
def submit(
    challenge_type: TypeArgument = "",
    words: Words = None,
    payload: PayloadOption = None,
    batch: terms.BatchOption = None,
    delivery: terms.DeliveryOption = "verified",
    responses: terms.ResponsesOption = 1,
    confirm_window: terms.WindowOption = "",
    payer: terms.PayerOption = "",
    pool: terms.PoolOption = "",
    model: terms.ModelOption = "",
    reward: Annotated[
        str | None,
        typer.Option(help="Decimal CPC, held until each job is settled; 10.0, with --max-cost the quoted price."),
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", help="Decimal CPC: refuse, and hold nothing, if it costs more.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="Unix seconds, +30m (s, m, h, d from now), or ISO 8601; one hour if absent.")
    ] = None,
    priority: Annotated[int, typer.Option(help="0..9, 9 first.")] = 0,
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id",
            help="UUID of your own: the same one is the same task. With it --deadline must be absent or absolute.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the task has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(help="With --wait: seconds to wait at most.")] = None,
    download_to: Annotated[
        Path | None, typer.Option("--download", metavar="DIR", help="Wait, then write the task's files there.")
    ] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a task: mesh task submit synthetic matrix_size=1024 --reward 10.0 --wait"""
    if batch is not None:
        return terms.submit_batch(batch, profile)
    if not challenge_type:
        raise typer.BadParameter("is missing, e.g. `mesh task submit synthetic matrix_size=1024`", param_hint="TYPE")
    chosen = terms.chosen(delivery, responses, confirm_window, payer, pool, model)
    wait = wait or download_to is not None
    values = parse_payload(words or [], payload)
    until = parse_deadline(deadline)
    with connect(profile) as client:
        handle = client.submit(challenge_type, values, reward, until, priority, request_id, max_cost, **chosen)
        created = handle.task
        with _naming(created.task_id, lambda: handle.task.ended):
            if wait:
                output.say(f"task {created.task_id}: {created.reward} CPC held")
                follow(created, handle.watch(timeout))
            if download_to is not None and handle.task.artifacts:
                fetch(client, handle.task, download_to)
        return _finish(handle.task, ended=wait)


@contextlib.contextmanager
def _naming(task_id: str, ended: Callable[[], bool]) -> Iterator[None]:
    """What breaks off in here names the task whole, and says that it goes on unless it has `ended`."""
    from computemesh.trust.errors import DeadlineExceeded, MeshError, Unavailable

    named = {"task_id": task_id}
    try:
        yield
    except KeyboardInterrupt:
        state = "has ended" if ended() else f"goes on; follow it with: mesh task watch {task_id}"
        raise output.interrupted(f"task {task_id} {state}", named) from None
    except MeshError as error:
        error.metadata.update(named)
        if isinstance(error, DeadlineExceeded | Unavailable) and not ended():
            error.message += f"; the task goes on, follow it with: mesh task watch {task_id}"
        raise


def follow(created: Task, events: Iterable[TaskEvent]) -> None:
    """Show a task's progress until it has ended."""
    from computemesh.cli.following import printable
    from computemesh.client.progress import label

    if created.ended:
        return
    with output.progress_bar() as bar:
        shown = bar.add_task(label(created), total=max(created.jobs_total, 1))
        for event in events:
            task = event.task
            bar.update(shown, description=label(task), completed=task.jobs_settled, total=max(task.jobs_total, 1))
            if event.partial:
                output.say(f"unverified: {printable(event.partial)}")


def fetch(client: Client, task: Task, to: Path) -> list[Path]:
    """Write a task's files into a folder, and say so."""
    with bytes_bar(f"{len(task.artifacts)} files") as progress:
        written = client.download(task.task_id, to, progress=progress)
    for path in written:
        output.say(f"{path}")
    return written


def _finish(task: Task, ended: bool) -> None:
    output.emit(task, describe(task) + ("" if ended else f"\nfollow it with: mesh task watch {task.task_id}"))
    if ended and task.status != "completed":
        raise typer.Exit(1)


def when(ms: int) -> str:
    """Local time of Unix milliseconds, "-" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else "-"


def describe(task: Task) -> str:
    """A task for people."""
    values: dict[str, Any] = {
        "task": task.task_id,
        "status": task.status + (f": {task.status_detail}" if task.status_detail else ""),
        "type": f"{task.challenge_type} {task.payload}",
        "reward": f"{task.reward} CPC" + (f", {task.refunded} given back" if task.refunded not in ("", "0.0") else ""),
        "jobs": f"{task.jobs_settled} of {task.jobs_total} settled, {task.jobs_running} running",
        "customer": task.customer,
        "created": when(task.created_ms),
        "deadline": when(task.deadline * 1000),
    }
    if task.ended_ms:
        values["ended"] = f"{when(task.ended_ms)}, after {(task.ended_ms - task.created_ms) / 1000:.1f} s"
    if task.result_hash:
        values["result"] = f"{task.result_hash} in block {task.block_height}"
    if task.delivery == "manual":
        values["delivery"] = f"manual, {task.responses} answers a job, {task.confirm_window_s} s to confirm one"
    values |= {name: getattr(task, name) for name in ("payer", "pool", "model") if getattr(task, name)}
    for name, digest in task.references.items():
        values[f"name {name}"] = digest
    if task.preview is not None and not task.ended:
        values[f"preview {task.preview.name}"] = _file(task.preview)
    for file in task.artifacts:
        values[f"file {file.name}"] = _file(file)
    return output.pairs(values)


def _file(file: TaskFile) -> str:
    return f"{file.digest}, {file.media_type}, {file.size:,} bytes"


@app.command()
def download(
    task_id: TaskId,
    to: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write the files to.")] = Path(),
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a completed task's files into a folder; their digests are checked."""
    with connect(profile) as client:
        written = fetch(client, client.get(task_id), to)
    output.emit({"task_id": task_id, "files": [str(path) for path in written]}, f"{len(written)} files in {to}")


@app.command()
def get(task_id: TaskId, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Show one task."""
    with connect(profile) as client:
        task = client.get(task_id)
    output.emit(task, describe(task))


@app.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option(help="Only this status, e.g. completed.", autocompletion=statuses)
    ] = None,
    challenge_type: Annotated[str, typer.Option("--type", help="Only this task type.", autocompletion=types)] = "",
    limit: Annotated[int, typer.Option(help="Tasks to show at most.", min=1, max=1000)] = 50,
    page_token: Annotated[str, typer.Option("--page-token", help="Where the page before ended.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List your tasks, newest first."""
    with connect(profile) as client:
        page = client.page(status, challenge_type, limit, page_token)
    rows = [
        (task.task_id, task.challenge_type, task.status, f"{task.jobs_settled}/{task.jobs_total}", task.reward,
         when(task.created_ms))
        for task in page.tasks
    ]  # fmt: skip
    text = output.table(("TASK", "TYPE", "STATUS", "JOBS", "CPC", "CREATED"), rows)
    more = f"; next page: --page-token {page.next_page_token}" if page.next_page_token else ""
    output.emit(page, f"{text}\n{len(rows)} of {page.total} tasks{more}" if rows else "no tasks")


@app.command()
def watch(
    task_id: TaskId,
    cursor: Annotated[int, typer.Option(help="Only events after this cursor.", min=0, max=2**64 - 1)] = 0,
    timeout: Annotated[float | None, typer.Option(help="Seconds to watch at most.")] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a task and its jobs until it has ended. Exit status 1 unless it completed."""
    from computemesh.cli.following import view

    events: list[TaskEvent] = []
    with connect(profile) as client, _naming(task_id, lambda: bool(events) and events[-1].task.ended):
        with view(client) as show:
            for event in client.watch(task_id, cursor, timeout):
                events.append(event)
                show(event)
        task = events[-1].task if events else client.get(task_id)
    if not events and not as_json:
        output.emit(None, f"task {task_id} is {task.status}; it has no events after {cursor}")
    elif sys.stdout.isatty() and not as_json:
        output.emit(None, describe(task))
    if as_json:
        output.emit({"task_id": task_id, "status": task.status, "events": events})
    if task.status != "completed":
        raise typer.Exit(1)


@app.command()
def logs(
    task_id: TaskId,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(help="With --follow: seconds at most.")] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened to a task and each of its jobs, line by line: who had it, what failed and why."""
    from computemesh.cli.following import Line, lines

    found: list[Line] = []
    with connect(profile) as client, _naming(task_id, lambda: False):
        for line in lines(client, task_id, follow_, timeout):
            found.append(line)
            if not as_json:
                output.emit(None, f"{when(line.time_ms)}  {line.source:<10} {line.text}")
        status = client.get(task_id).status
    if as_json:
        output.emit({"task_id": task_id, "status": status, "lines": found})


@app.command()
def cancel(task_id: TaskId, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """End a task; what is unspent comes back to you."""
    with connect(profile) as client:
        task = client.cancel(task_id)
    output.emit(task, describe(task))


@app.command()
def quote(
    challenge_type: TypeArgument,
    words: Words = None,
    payload: PayloadOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a task would cost and how it would be split, without creating it."""
    values = parse_payload(words or [], payload)
    with connect(profile) as client:
        price = client.quote(challenge_type, values)
    output.emit(price, output.pairs({
        "price": f"{price.price} CPC",
        "operations": f"{price.operations:,}",
        "jobs": f"{price.jobs:,}",
        "checked": f"{price.checked_units_per_job} of {price.units_per_job:,} units of each job",
        "workers": f"{price.workers}" + (f", the cheapest for {price.lowest_price} CPC" if price.workers else ""),
        "time": f"about {price.estimated_ms / 1000:.1f} s" if price.estimated_ms else "not known yet",
        "payload": price.payload,
    }))  # fmt: skip


@app.command()
def receipt(
    task_id: TaskId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the receipt to this file.")] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """The receipt of a completed task, or of the settled jobs of one that ended otherwise: JSON that `mesh verify FILE`
    checks offline."""
    with connect(profile) as client:
        found = client.receipt(task_id)
    text = found.to_json()
    if out is None:
        sys.stdout.write(text)
        return
    save(out, text, "--out")
    output.emit({"task_id": task_id, "file": str(out), "jobs": len(found.jobs)},
                f"{out}: {len(found.jobs)} jobs, {len(text):,} bytes; check it with: mesh verify {out}")  # fmt: skip
