"""`mesh function`: what workers' operators offer to tasks of type `function`."""

from __future__ import annotations

import json

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

app = typer.Typer(help="See the functions that workers offer.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """See the functions that workers offer."""


@app.command("list")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Every function that connected workers offer, with what it takes and gives (--json: the whole schemas)."""
    with connect(profile) as client:
        found = list(client.functions())
    rows = [
        (one.name, str(one.workers), f"{one.timeout_ms / 1000:g} s", _fields(one.input_schema),
         _fields(one.output_schema)) for one in found
    ]  # fmt: skip
    output.emit({"functions": found}, output.table(("NAME", "WORKERS", "LIMIT", "TAKES", "GIVES"), rows))


def _fields(schema: str) -> str:
    try:
        properties = json.loads(schema).get("properties", {})
        return ", ".join(f"{name}: {part.get('type', '...')}" for name, part in properties.items())[:80] or "-"
    except (ValueError, AttributeError):
        return "?"
