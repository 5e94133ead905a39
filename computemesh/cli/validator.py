"""`mesh validator`: judge contested results with your own machine and stake."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.acting import acting
from computemesh.cli.options import JsonOption, ProfileOption

app = typer.Typer(help="Judge contested results and vote on them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A group although it has one command yet."""


@app.command()
def run(
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Key file of the validator, with stake.")],
    data: Annotated[Path, typer.Option(help="Folder for votes that are to be opened.")] = Path(
        "~/.computemesh/validator"),
    once: Annotated[bool, typer.Option("--once", help="Look at every open dispute once, then end.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Watch for disputes, do the contested jobs again, vote and open the votes, until Ctrl-C."""
    from computemesh.client.validator import Validator

    said: list[str] = []

    def say(text: str) -> None:
        output.say(text)
        if once:
            said.append(text)

    with acting(profile, key) as client:
        assert client.key is not None
        validator = Validator(client, client.key, data.expanduser(), say)
        output.say(f"validator {client.key.address} judges disputes of {client.ledger_info().chain_id}")
        while True:
            validator.turn()
            if once:
                return output.emit({"validator": client.key.address, "said": said})
            time.sleep(0.5)
