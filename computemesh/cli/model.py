"""`mesh model`: names for artifacts, which payloads may use instead of digests, and the terms of their owners."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.acting import KeyOption, acting
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.client import Client
    from computemesh.v1.ledger_pb2 import GetModelTermsResponse

app = typer.Typer(help="Name artifacts, e.g. a model's folder; say what using them costs.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="E.g. minilm.", show_default=False)]
PER = ("task", "token", "byte")
"""What a price is for; the place is the number in the ledger's act."""


@app.command()
def register(
    model_id: NameArgument,
    digest: Annotated[str, typer.Argument(help="Artifact, 64 hexadecimal characters.", show_default=False)],
    price: Annotated[str, typer.Option(help="Least reward of a task that uses it, decimal CPC.")] = "",
    per: Annotated[str, typer.Option(help="What the price is for: task, token or byte (of payload).")] = "task",
    royalty: Annotated[float, typer.Option(help="Your part of the worker's share, percent.", min=0, max=100)] = 0.0,
    memory: Annotated[int, typer.Option(help="Memory a worker must have, bytes.", min=0)] = 0,
    version: Annotated[int, typer.Option(help="Your version of it.", min=0, max=2**32 - 1)] = 1,
    key: KeyOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let payloads say NAME for an artifact; with a price, royalty or memory also set the terms of its use."""
    from computemesh.trust import acts
    from computemesh.trust.amount import parse_cpc

    if per not in PER:
        raise typer.BadParameter(f"{per!r} is not one of {', '.join(PER)}", param_hint="--per")
    terms = bool(price or royalty or memory)
    with acting(profile, key) as client:
        model = client.register_model(model_id, digest)
        if terms:
            client.declare(acts.Model(
                acts.name_hash(model_id), bytes.fromhex(digest), version, round(royalty * 100), PER.index(per),
                parse_cpc(price, "--price") if price else 0, memory, 1))  # fmt: skip
            return _show(client, model_id)
    return output.emit(model, f"{model.model_id} is {model.artifact}")


@app.command("ls")
@app.command("list")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Every registered name."""
    with connect(profile) as client:
        found = list(client.models())
    rows = [(one.model_id, one.artifact, one.owner, _since(one.registered_ms)) for one in found]
    output.emit({"models": found}, output.table(("NAME", "ARTIFACT", "OWNER", "SINCE"), rows))


@app.command()
def show(model_id: NameArgument, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """A model's terms, as its owner registered them on the ledger."""
    with connect(profile) as client:
        _show(client, model_id)


@app.command()
def activate(
    model_id: NameArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Let tasks use a model again."""
    _switch(model_id, True, profile, key)


@app.command()
def deactivate(
    model_id: NameArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Refuse new tasks that name a model; what is published goes on."""
    _switch(model_id, False, profile, key)


def _switch(model_id: str, active: bool, profile: Path | None, key: Path | None) -> None:
    from computemesh.trust import acts

    with acting(profile, key) as client:
        terms = _terms(client, model_id)
        client.declare(acts.Model(
            acts.name_hash(model_id), bytes.fromhex(terms.artifact), terms.version, terms.royalty_bps, terms.price_per,
            terms.price_units, terms.memory_bytes, int(active)))  # fmt: skip
        _show(client, model_id)


def _terms(client: Client, model_id: str) -> GetModelTermsResponse:
    from computemesh.v1 import ledger_pb2

    found: GetModelTermsResponse = client.ledger(
        "GetModelTerms", ledger_pb2.GetModelTermsRequest(model_id=model_id))
    return found


def _show(client: Client, model_id: str) -> None:
    from computemesh.client.model import plain
    from computemesh.trust.amount import format_cpc

    terms = _terms(client, model_id)
    values: dict[str, Any] = {
        "model": f"{model_id}, version {terms.version}, {'active' if terms.active else 'deactivated'}",
        "artifact": terms.artifact,
        "owner": terms.owner,
        "price": f"{format_cpc(terms.price_units)} CPC per {PER[terms.price_per]}",
        "royalty": f"{terms.royalty_bps / 100:g} % of the worker's share",
        "memory": f"{terms.memory_bytes:,} bytes on a worker",
    }
    output.emit({**plain(terms), "model_id": model_id}, output.pairs(values))


def _since(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ms / 1000))
