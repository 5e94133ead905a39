"""`mesh artifact`: files and folders that tasks read and leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.client import Client
    from computemesh.service.transfer import ArtifactInfo, Progress

app = typer.Typer(help="Store files and folders for tasks, and fetch what tasks left.", no_args_is_help=True)
DIGEST_HELP = "SHA-256 of the artifact, 64 hexadecimal characters; of your own the first few are enough."
DIGEST_LENGTH = 64
FEWEST = 6


@contextmanager
def bytes_bar(what: str) -> Iterator[Progress]:
    """A bar of bytes on stderr while the body runs."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(), console=output.stderr_console(), disable=output.OUTPUT.quiet,
        transient=True,
    ) as bars:  # fmt: skip
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _digest(client: Client, text: str) -> str:
    """A whole digest as it is, a beginning if one of the caller's artifacts has it. Raises BadParameter."""
    lower = text.lower()
    if set(lower) - set("0123456789abcdef") or not FEWEST <= len(lower) <= DIGEST_LENGTH:
        raise typer.BadParameter(f"{text!r} is not {FEWEST} to {DIGEST_LENGTH} hexadecimal characters",
                                 param_hint="DIGEST")  # fmt: skip
    if len(lower) == DIGEST_LENGTH:
        return lower
    found = [one.digest for one in client.list_artifacts() if one.digest.startswith(lower)]
    if len(found) != 1:
        raise typer.BadParameter(f"{len(found)} of your artifacts begin with {text!r}", param_hint="DIGEST")
    return found[0]


@app.command()
def put(
    path: Annotated[Path, typer.Argument(help="File or folder.", exists=True, show_default=False)],
    name: Annotated[str | None, typer.Option("--name", help="What to call it; its own name if absent.")] = None,
    media_type: Annotated[str, typer.Option("--media-type", help="E.g. model/gltf-binary; for a file.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a file or folder and print its digest. Repeat it after an interruption: it continues."""
    with connect(profile) as client, bytes_bar(path.name) as progress:
        stored = client.put_artifact(path, name=name, media_type=media_type, progress=progress)
    output.say(f"{stored.name}: {stored.size:,} bytes, kept until {_until(stored)}")
    output.emit(stored, stored.digest)


@app.command()
def get(
    digest: Annotated[str, typer.Argument(help=DIGEST_HELP, show_default=False)],
    to: Annotated[
        Path | None, typer.Option("-o", "--output", help="File or folder to write; its name if absent.")
    ] = None,
    as_file: Annotated[bool, typer.Option("--manifest", help="A folder's manifest instead of its files.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch an artifact; its bytes are checked against the digest."""
    with connect(profile) as client:
        known = client.stat_artifact(_digest(client, digest))
        # A name from elsewhere is never a path.
        target = to if to is not None else Path(Path(known.name).name or known.digest)
        if (target.is_dir() or target.exists()) and not (force and target.is_file()):
            hint = "name another with --output" + (", or --force" if target.is_file() else "")
            raise typer.BadParameter(f"{target} exists: {hint}", param_hint="--output")
        with bytes_bar(target.name) as progress:
            written = client.get_artifact(known.digest, target, as_file=as_file, progress=progress)
    output.emit({**output.plain(known), "path": str(written)}, str(written))


@app.command(name="ls")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most this many.")] = 100,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Your artifacts, the last put first."""
    found: list[ArtifactInfo] = []
    with connect(profile) as client:
        for one in client.list_artifacts():
            found.append(one)
            if len(found) == limit:
                break
    rows = [(one.digest[:16], f"{one.size:,}", _until(one), one.media_type, one.name) for one in found]
    output.emit({"artifacts": found}, output.table(("DIGEST", "BYTES", "KEPT UNTIL", "MEDIA TYPE", "NAME"), rows))


@app.command()
def rm(
    digests: Annotated[list[str], typer.Argument(metavar="DIGEST...", help=DIGEST_HELP, show_default=False)],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop keeping artifacts. The bytes go when nobody else, and no task, refers to them."""
    with connect(profile) as client:
        whole = [_digest(client, text) for text in digests]
        for digest in whole:
            client.delete_artifact(digest)
    output.emit({"deleted": whole}, "\n".join(whole))


def _until(stored: ArtifactInfo) -> str:
    if not stored.expires_ms:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.expires_ms / 1000))
