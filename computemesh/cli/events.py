"""`mesh events` and `mesh webhook`: what happens in the market, as a stream or posted to a URL."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

webhooks = typer.Typer(help="Have events posted to a URL, signed, until they are taken.", no_args_is_help=True)
KindOption = Annotated[
    list[str] | None, typer.Option("--kind", help="Only this kind, e.g. task-ended; repeat for several.")
]
TaskOption = Annotated[str, typer.Option("--task", help="Only of this task.")]
CustomerOption = Annotated[str, typer.Option(help="Only of this customer (address, or a name from the profile).")]
PoolOption = Annotated[str, typer.Option(help="Only of this pool.")]


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones as they happen.")] = False,
    cursor: Annotated[int, typer.Option(help="Only events after this cursor.", min=0, max=2**63 - 1)] = 0,
    kind: KindOption = None,
    task: TaskOption = "",
    customer: CustomerOption = "",
    pool: PoolOption = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened in the market; with --follow also what happens, one line (or JSON line) each, until Ctrl-C."""
    from computemesh.client.model import plain

    found: list[Any] = []
    with connect(profile) as client:
        wanted = _filter(kind, task, client.profile.address_of(customer), pool)
        for event in client.events(cursor, wanted, follow=follow):
            if not as_json:
                sys.stdout.write(_line(event) + "\n")
            elif follow:
                sys.stdout.write(json.dumps(plain(event)) + "\n")
            else:
                found.append(plain(event))
            sys.stdout.flush()
    if as_json and not follow:
        output.emit({"events": found})


def _filter(kinds: list[str] | None, task: str, customer: str, pool: str) -> Any:
    from computemesh.v1 import market_pb2

    numbers = []
    for word in kinds or []:
        name = f"EVENT_KIND_{word.upper().replace('-', '_')}"
        if name not in market_pb2.EventKind.keys():  # noqa: SIM118 (an enum wrapper is no mapping)
            known = ", ".join(_word(number) for number in market_pb2.EventKind.values()[1:])
            raise typer.BadParameter(f"{word!r} is not a kind; known are {known}", param_hint="--kind")
        numbers.append(market_pb2.EventKind.Value(name))
    return market_pb2.EventFilter(kinds=numbers, task_id=task, customer=customer, pool=pool)


def _word(number: int) -> str:
    from computemesh.client.model import enum_word
    from computemesh.v1 import market_pb2

    return enum_word(market_pb2.EventKind, number, "EVENT_KIND_").replace("_", "-")


def _line(event: Any) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_ms / 1000))
    about = f"{event.challenge_type} {event.task_id} {event.jobs} jobs" if event.task_id else event.customer
    rest = " ".join(text for text in (event.detail.lower(), event.pool and f"pool {event.pool}") if text)
    return f"{when}  {event.cursor:>6}  {_word(event.kind):<17} {about} {rest}".rstrip()


@webhooks.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="http or https.", show_default=False)],
    cursor: Annotated[int, typer.Option(help="Begin after this event; 0 replays all.", min=0, max=2**63 - 1)] = 0,
    kind: KindOption = None,
    task: TaskOption = "",
    customer: CustomerOption = "",
    pool: PoolOption = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have events posted to URL as {"events": [...]}, in order, again until it answers 2xx."""
    from computemesh.client.model import plain
    from computemesh.v1 import market_pb2

    with connect(profile) as client:
        wanted = _filter(kind, task, client.profile.address_of(customer), pool)
        request = market_pb2.AddWebhookRequest(url=url, filter=wanted, cursor=cursor)
        hook = client.market("AddWebhook", request).webhook
    output.emit(plain(hook), f"webhook {hook.id} posts to {hook.url}")


@webhooks.command("list")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Your webhooks, and how far each got."""
    from computemesh.client.model import plain
    from computemesh.v1 import market_pb2

    with connect(profile) as client:
        found = client.market("ListWebhooks", market_pb2.ListWebhooksRequest()).webhooks
    rows = [(one.id, one.url, one.cursor, one.failures, one.problem or "-") for one in found]
    output.emit({"webhooks": [plain(one) for one in found]},
                output.table(("WEBHOOK", "URL", "CURSOR", "FAILURES", "PROBLEM"), rows) if rows else "no webhooks")


@webhooks.command()
def remove(
    hook: Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id.", show_default=False)],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Post no more to a webhook."""
    from computemesh.v1 import market_pb2

    with connect(profile) as client:
        client.market("RemoveWebhook", market_pb2.RemoveWebhookRequest(id=hook))
    output.emit({"removed": hook}, f"webhook {hook} is removed")
