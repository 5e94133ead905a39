"""`mesh audit`: the journals of administrative acts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption

app = typer.Typer(help="Journals of administrative acts: drains, pauses, money made, tokens given out.",
                  no_args_is_help=True)  # fmt: skip


@app.callback()
def _group() -> None:
    pass


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A journal, such as data/audit.jsonl or data/orchestrator/audit.jsonl.",
                                         show_default=False)],
    head: Annotated[str, typer.Option(help="Hash this command printed before: the journal has to contain it.")] = "",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Check that no line of a journal was changed, removed or inserted; its last hash proves the same later."""
    from computemesh.service import journal
    from computemesh.trust.errors import DigestMismatch

    hashes = [found for _, found in journal.read(file)]
    if head and head not in hashes:
        raise DigestMismatch(f"{file} has no line with SHA-256 {head}: its end was cut, or all of it written anew")
    last = hashes[-1] if hashes else journal.START
    output.emit({"file": str(file), "acts": len(hashes), "head": last}, f"{len(hashes)} acts, sound; head {last}")
