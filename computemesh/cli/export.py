"""`mesh ledger tiles` and `mesh ledger relay`: what a ledger leaves for others, as files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect
from computemesh.cli.trusted import trusted

FOLLOW_S = 1.0


def tiles(
    folder: Annotated[Path, typer.Option("--output", help="Folder that a web server serves.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new blocks until Ctrl-C.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the log and its blocks' trees as static files (C2SP tlog-tiles), each checked; again: only what is new."""
    from computemesh.client.mirror import Mirror

    with connect(profile) as client:
        vkey, chain, _ = trusted(client)
        mirror = Mirror(client.ledger, folder, vkey, chain)
        while True:
            with output.progress_bar() as bar:
                shown = bar.add_task("blocks", total=None)
                before, now = mirror.update(lambda done, total: bar.update(shown, completed=done, total=total))
            if not follow:
                break
            if now > before:
                output.say(f"{now} blocks")
            time.sleep(FOLLOW_S)
    output.emit({"folder": str(folder), "origin": f"{chain}/blocks", "blocks": now, "new": now - before},
                f"{folder} is the prefix of {chain}/blocks: {now} blocks, {now - before} of them new")  # fmt: skip
