"""`mesh model`: names for artifacts, which payloads may use instead of digests."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

app = typer.Typer(help="Name artifacts, e.g. the folder of a model.", no_args_is_help=True)


@app.command()
def register(
    model_id: Annotated[str, typer.Argument(metavar="NAME", help="E.g. minilm.", show_default=False)],
    digest: Annotated[str, typer.Argument(help="Artifact, 64 hexadecimal characters.", show_default=False)],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let payloads say NAME for an artifact; a name of your own moves to another artifact."""
    with connect(profile) as client:
        model = client.register_model(model_id, digest)
    output.emit(model, f"{model.model_id} is {model.artifact}")


@app.command("ls")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Every registered name."""
    with connect(profile) as client:
        found = list(client.models())
    rows = [(one.model_id, one.artifact, one.owner, _since(one.registered_ms)) for one in found]
    output.emit({"models": found}, output.table(("NAME", "ARTIFACT", "OWNER", "SINCE"), rows))


def _since(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ms / 1000))
