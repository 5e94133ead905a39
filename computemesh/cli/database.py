"""`mesh db`: the version of a service's tables, forward and back."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption


def db(
    service: Annotated[str, typer.Argument(help="ledger, market or orchestrator; it must be stopped.")],
    config: Annotated[Path, typer.Option("--config", help="The service's configuration (TOML).")],
    to: Annotated[
        int | None, typer.Option("--to", help="Bring the tables to this version, forward or back.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which version a stopped service's tables have, or bring them to another, e.g. for an older program."""
    from computemesh.cli.plan import SERVICES
    from computemesh.service import config as configuration
    from computemesh.service import database
    from computemesh.service.migrations import migrate, version
    from computemesh.trust.errors import InvalidArgument

    if service not in SERVICES:
        raise typer.BadParameter(f"{service!r} is none of {', '.join(SERVICES)}", param_hint="SERVICE")
    store = importlib.import_module(f"{service}.store")
    settings = configuration.load(importlib.import_module(f"{service}.config").Config, config, service)
    path = Path(settings.data_dir) / store.FILE
    if not settings.database and not path.exists():
        raise InvalidArgument(f"there is no {path}: the {service} was never started with {config}",
                              reason="NO_TABLES")  # fmt: skip
    connection = database.connect(settings, path, wait=False)
    try:
        before = version(connection) if to is None else migrate(connection, store.STEPS, to)
    finally:
        connection.close()
    now = before if to is None else to
    newest = len(store.STEPS)
    said = f"have version {now}; this program's newest is {newest}" if to is None else f"went from {before} to {now}"
    document = {"service": service, "version": now, "before": before, "newest": newest}
    output.emit(document, None if as_json else f"the {service}'s tables {said}")
