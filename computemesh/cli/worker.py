"""`mesh worker`: sell this machine's time, and look after workers."""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.following import printable
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.client import Client

app = typer.Typer(help="Join as a worker; list and drain workers.", no_args_is_help=True)
DEFAULT_CONTROL_PORT = 7111
NAME_SHOWN = 32
"""Characters of a name in lists: others choose it, and a long one would push the columns off the screen."""


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@app.command()
def join(
    orchestrator: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="The orchestrator to work for.", show_default=False)
    ],
    data: Annotated[
        Path, typer.Option(help="Folder of this worker: its key (where its pay goes) and nonce.")
    ] = Path("~/.computemesh/worker"),
    name: Annotated[str, typer.Option(help="Name shown in lists.")] = "",
    types: Annotated[str, typer.Option(help="Task types to take, separated by commas; all if empty.")] = "",
    platform: Annotated[str, typer.Option(help="JAX platform: cpu, cuda, tpu; JAX's choice if empty.")] = "",
    engine: Annotated[
        Engine, typer.Option(help="Work on this machine's devices, or on those of a Ray cluster.")
    ] = Engine.local,
    ray_address: Annotated[str, typer.Option(help="HOST:PORT of the Ray cluster; auto: this machine's.")] = "auto",
    functions: Annotated[
        list[Path] | None,
        typer.Option("--functions", help="Python file with exposed functions; repeat for several.", exists=True,
                     dir_okay=False),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", help="CA of the orchestrator's certificate (PEM): dial it with TLS.", exists=True,
                     dir_okay=False),
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option("--cert-file", help="Certificate to show an orchestrator that asks for one (PEM).",
                                  exists=True, dir_okay=False),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Key of that certificate (PEM).", exists=True, dir_okay=False),
    ] = None,
    control: Annotated[
        str, typer.Option(help="HOST:PORT of the worker's own control service; a free loopback port if empty.")
    ] = "",
) -> None:
    """Work for an orchestrator until Ctrl-C, which finishes what is held first."""
    import socket

    from computemesh.cli.plan import worker_key, write_toml
    from computemesh.service.addresses import listed

    listed(orchestrator)
    folder = data.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    key = worker_key(folder)
    control = control or free_control()
    called = name or socket.gethostname()[:64]
    path = folder / "worker.toml"
    tls = {"tls_ca_file": ca_file, "tls_cert_file": cert_file, "tls_key_file": key_file}
    write_toml(path, {
        "orchestrator": orchestrator, "data_dir": str(folder), "control_listen": control,
        "display_name": called, "platform": platform, "engine": engine.value, "ray_address": ray_address,
        "functions": [str(path.absolute()) for path in functions or []],
        **{name: str(file.absolute()) for name, file in tls.items() if file},
        "challenge_types": [one.strip() for one in types.split(",") if one.strip()],
    })  # fmt: skip
    output.say(f"{shown(called)} works for {orchestrator}; pay goes to {key.address} (key in {folder}); "
               f"control on {control}")  # fmt: skip
    os.execv(sys.executable, [sys.executable, "-m", "worker", "--config", str(path)])


def free_control() -> str:
    """HOST:PORT for a control service: the usual port, or another where something listens on it."""
    from computemesh.cli.plan import HOST, free_ports, taken

    usual = f"{HOST}:{DEFAULT_CONTROL_PORT}"
    return f"{HOST}:{free_ports(1)[0]}" if taken(usual) else usual


@app.command("list")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Workers the orchestrator knows."""
    from computemesh.client.model import plain
    from computemesh.v1 import orchestrator_pb2

    workers: list[Any] = []
    token = ""
    with connect(profile) as client:
        while True:
            request = orchestrator_pb2.ListWorkersRequest(page_size=1000, page_token=token)
            page = client.orchestrator("ListWorkers", request)
            workers += page.workers
            token = page.next_page_token
            if not token:
                break
    now = time.time() * 1000
    rows = [
        (shown(one.capabilities.display_name) or "-", one.address, status(one.status), devices(one.capabilities),
         one.reputation, one.jobs_running, one.jobs_settled, one.jobs_wrong, one.jobs_late,
         f"{max(0.0, now - one.last_seen_ms) / 1000:.0f} s ago")
        for one in workers
    ]  # fmt: skip
    columns = ("NAME", "ADDRESS", "STATUS", "DEVICES", "REPUTATION", "RUNNING", "SETTLED", "WRONG", "LATE", "SEEN")
    output.emit({"workers": [plain(one) for one in workers], "total": page.total},
                output.table(columns, rows) if rows else "no workers")  # fmt: skip


@app.command()
def show(
    worker: Annotated[str, typer.Argument(help="Address cpc1..., key, or name in the profile.", show_default=False)],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """One worker: what it can do, what it did, and the grounds of its reputation."""
    from computemesh.client.model import plain
    from computemesh.v1 import orchestrator_pb2

    with connect(profile) as client:
        request = orchestrator_pb2.GetWorkerRequest(worker=client.profile.address_of(worker))
        found = client.orchestrator("GetWorker", request).worker
    values = {
        "worker": shown(found.capabilities.display_name) or "-", "address": found.address,
        "status": status(found.status), "devices": devices(found.capabilities),
        "jobs": f"{found.jobs_settled} settled, {found.jobs_running} running, {found.jobs_wrong} wrong, "
                f"{found.jobs_late} late",
        "reputation": f"{found.reputation} of 1000",
    }  # fmt: skip
    reasons = [f"  {reason}" for reason in found.reputation_reasons]
    output.emit(plain(found), "\n".join([output.pairs(values), *reasons]))


@app.command()
def opportunities(
    types: Annotated[str, typer.Option(help="Only these task types, separated by commas.")] = "",
    memory: Annotated[int, typer.Option(help="Only what fits into this memory, bytes.", min=0)] = 0,
    pool: Annotated[str, typer.Option(help="Only this pool's.")] = "",
    limit: Annotated[int, typer.Option(help="Tasks to show at most.", min=1, max=1000)] = 50,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a worker could earn on now, the best paid job first."""
    from computemesh.client.model import plain
    from computemesh.v1 import market_pb2

    wanted = [one.strip() for one in types.split(",") if one.strip()]
    request = market_pb2.ListOpportunitiesRequest(challenge_types=wanted, memory_bytes=memory, pool=pool, limit=limit)
    with connect(profile) as client:
        found = client.market("ListOpportunities", request)
    rows = [
        (one.challenge_type, one.reward_per_job, one.jobs_left, one.priority, one.pool or "-", one.model or "-",
         one.task_id) for one in found.opportunities
    ]  # fmt: skip
    columns = ("TYPE", "CPC A JOB", "JOBS", "PRIORITY", "POOL", "MODEL", "TASK")
    output.emit({**plain(found)}, output.table(columns, rows) if rows else "nothing to do")


def status(number: int) -> str:
    from computemesh.client.model import enum_word
    from computemesh.v1 import orchestrator_pb2

    return enum_word(orchestrator_pb2.WorkerStatus, number, "WORKER_STATUS_")


def shown(name: str) -> str:
    """What a worker calls itself, or its device, as one short piece of a line: whatever could steer a terminal, or
    look like another row, is written as an escape."""
    text = printable(name)
    return text if len(text) <= NAME_SHOWN else text[: NAME_SHOWN - 2] + ".."


def devices(capabilities: Any) -> str:
    kinds = [shown(device.kind) for device in capabilities.devices]
    return ", ".join(f"{kinds.count(kind)}x {kind}" if kinds.count(kind) > 1 else kind for kind in dict.fromkeys(kinds))


@app.command()
def drain(
    worker: Annotated[
        str, typer.Argument(help="Name in the profile, control HOST:PORT, or address.", show_default=False)
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Take jobs again instead.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a worker finish what it holds and take no new jobs."""
    from computemesh.client.model import plain

    with connect(profile) as client:
        control = client.profile.workers.get(worker, worker if ":" in worker else "")
        reply = _by_control(client, control, resume) if control else _by_address(client, worker, resume)
    status = plain(reply)["status"].rsplit("_", 1)[-1].lower()
    output.emit(plain(reply), f"{worker} is {status}")


def _by_control(client: Client, control: str, resume: bool) -> Any:
    from computemesh.v1 import worker_pb2

    request = worker_pb2.ResumeRequest() if resume else worker_pb2.DrainRequest()
    return client.worker("Resume" if resume else "Drain", request, control).worker


def _by_address(client: Client, worker: str, resume: bool) -> Any:
    from computemesh.client.profile import read_key
    from computemesh.v1 import orchestrator_pb2

    profile = client.profile
    operator = read_key(profile.operator_key_file) if profile.operator_key_file else client.key
    name = profile.address_of(worker)
    if resume:
        return client.orchestrator(
            "ResumeWorker", orchestrator_pb2.ResumeWorkerRequest(worker=name), as_key=operator).worker
    return client.orchestrator("DrainWorker", orchestrator_pb2.DrainWorkerRequest(worker=name), as_key=operator).worker
