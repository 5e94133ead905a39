"""`mesh task submit`: the options beyond the plain case, and batches from a file; confirming and retracting."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect, parse_deadline

if TYPE_CHECKING:
    from computemesh.client import Client

DeliveryOption = Annotated[str, typer.Option(help="verified, manual (you confirm an answer) or first-response.")]
ResponsesOption = Annotated[int, typer.Option(help="With manual: answers per job to pick from.", min=1, max=8)]
WindowOption = Annotated[
    str, typer.Option("--confirm-window", help="With manual: silence this long (30s, 1h) picks the first answer.")
]
PayerOption = Annotated[str, typer.Option(help="Account that pays: it delegated your key.")]
PoolOption = Annotated[str, typer.Option(help="Pool of yours that pays.")]
ModelOption = Annotated[str, typer.Option(help="Registered model the task uses.")]
BatchOption = Annotated[
    Path | None,
    typer.Option("--batch", metavar="FILE.jsonl", exists=True, dir_okay=False,
                 help="Publish every line, a JSON object of these options, under one signature."),
]  # fmt: skip
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str, option: str) -> int:
    """Seconds of a span such as 30s, 10m, 1h, 2d; 0 of nothing. Raises BadParameter."""
    found = _SPAN.fullmatch(text)
    if not text:
        return 0
    if not found:
        raise typer.BadParameter(f"{text[:40]!r} is not a span such as 30s, 10m, 1h or 2d", param_hint=option)
    return int(found[1]) * _SECONDS[found[2]]


def chosen(delivery: str, responses: int, window: str, payer: str, pool: str, model: str) -> dict[str, Any]:
    """The options as `Client.submit` takes them."""
    return {
        "delivery": delivery.replace("-", "_"), "responses": responses,
        "confirm_window_s": seconds(window, "--confirm-window"), "payer": payer, "pool": pool, "model": model,
    }  # fmt: skip


def submit_batch(file: Path, profile: Path | None) -> None:
    """Publish the tasks of a file; one line of output for each. Exit status 1 where any could not be created."""
    items = list(_lines(file))
    with connect(profile) as client:
        results = client.submit_many(items)
    rows = [(at, one.task.task_id if one.task else "-", str(one.error) if one.error else one.task and one.task.status)
            for at, one in enumerate(results, 1)]  # fmt: skip
    document = {"results": [
        {"task": one.task, "reason": one.error.reason if one.error else None,
         "message": str(one.error) if one.error else None} for one in results]}  # fmt: skip
    output.emit(document, output.table(("LINE", "TASK", "STATUS"), rows))
    if any(one.error for one in results):
        raise typer.Exit(1)


def _lines(file: Path) -> Any:
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise typer.BadParameter(f"{file}, line {number}: not JSON: {error}", param_hint="--batch") from None
        if not isinstance(item, dict):
            raise typer.BadParameter(f"{file}, line {number}: not a JSON object", param_hint="--batch")
        if isinstance(item.get("deadline"), str):
            item["deadline"] = parse_deadline(item["deadline"])
        yield item


def responses_to(client: Client, task_id: str) -> dict[int, list[tuple[str, str]]]:
    """(worker key, result hash) of the responses to each job of a MANUAL task, in order of arrival."""
    from computemesh.v1 import ledger_pb2

    escrow = client.ledger("GetEscrow", ledger_pb2.GetEscrowRequest(task_id=task_id)).escrow
    return {row.job: list(zip(row.worker_keys, row.result_hashes, strict=True)) for row in escrow.responses}


def confirm(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="Task id, 64 hexadecimal characters.")],
    job: Annotated[int | None, typer.Option(help="Only this job; else every job with answers.", min=0)] = None,
    worker: Annotated[str, typer.Option(help="Worker whose answer is taken (address or key); else the first.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Confirm answers of a task published with --delivery manual: the worker you pick is paid."""
    from computemesh.trust import acts, identity
    from computemesh.trust.errors import TaskNotClaimed

    confirmed = []
    with connect(profile) as client:
        client.get(task_id)
        waiting = responses_to(client, task_id)
        for index in [job] if job is not None else sorted(waiting):
            rows = waiting.get(index, [])
            names = [(key, identity.address_of(bytes.fromhex(key))) for key, _ in rows]
            picked = [key for key, address in names if not worker or worker in (key, address)]
            if not picked:
                whose = f"of {worker} " if worker else ""
                raise TaskNotClaimed(f"job {index} of task {task_id[:12]}.. has no answer {whose}to confirm")
            client.declare(acts.Confirm(bytes.fromhex(task_id), index, bytes.fromhex(picked[0])))
            confirmed.append({"job": index, "worker": identity.address_of(bytes.fromhex(picked[0]))})
    if not confirmed:
        raise TaskNotClaimed(f"task {task_id[:12]}.. has no answers that wait for you")
    lines = [f"job {row['job']}: answer of {row['worker']} confirmed" for row in confirmed]
    output.emit({"task_id": task_id, "confirmed": confirmed}, "\n".join(lines))


def answers(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="Task id, 64 hexadecimal characters.")],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answers of a manual task that wait for your confirmation."""
    from computemesh.trust import identity

    with connect(profile) as client:
        found = responses_to(client, task_id)
    rows = [(index, identity.address_of(bytes.fromhex(key)), result)
            for index, given in sorted(found.items()) for key, result in given]  # fmt: skip
    output.emit(
        {"answers": [{"job": job, "worker": worker, "result_hash": result} for job, worker, result in rows]},
        output.table(("JOB", "WORKER", "RESULT"), rows) if rows else "no answers wait for a confirmation")


def retract(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="Task id, 64 hexadecimal characters.")],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back a task that nobody works on yet: all its money comes back. `mesh task cancel` ends a running one."""
    from computemesh.trust import acts

    with connect(profile) as client:
        client.get(task_id)
        client.declare(acts.Retract(bytes.fromhex(task_id)))
        for event in client.watch(task_id, timeout=15.0):
            task = event.task
    output.emit(task, f"task {task_id} is {task.status}; {task.refunded} CPC came back")
