"""Options that several commands share, and the client they stand for."""

from __future__ import annotations

import datetime
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output

if TYPE_CHECKING:
    from computemesh.client import Client
    from computemesh.client.profile import Profile
    from computemesh.client.rpc import Interceptors



def _profiles(incomplete: str) -> list[str]:
    from computemesh.client.profile import home

    return sorted(path.stem for path in (home() / "profiles").glob(f"{incomplete}*.toml"))


def types(incomplete: str) -> list[str]:
    """Task types, for completion."""
    from computemesh import workloads

    return [name for name in workloads.names() if name.startswith(incomplete)]


def statuses(incomplete: str) -> list[str]:
    """Words for a task's status, for completion."""
    words = ("pending", "in_progress", "completed", "failed", "cancelled", "expired")
    return [word for word in words if word.startswith(incomplete)]


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME|FILE", autocompletion=_profiles,
        help="Profile; else $COMPUTEMESH_PROFILE, ./data/, the one in use, ~/.config/computemesh/.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.", callback=output.set_json)
]
_DURATION = re.compile(r"\+(\d{1,12})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Root:
    """What the options before the command name said."""

    profile: str | None = None
    found: str = ""
    """The file of the profile that was taken."""
    interceptors: Interceptors | None = None
    """What sees the calls of this invocation (`mesh explain`)."""


def find_profile(path: str | None) -> Profile:
    """The profile of this invocation. Raises NotFound that says what to do."""
    from computemesh.client.profile import Profile

    profile = Profile.discover(path or Root.profile)
    Root.found = profile.path
    return profile


def connect(path: str | None) -> Client:
    """A client for the profile of this invocation; short retries, because somebody waits."""
    from computemesh.client import Client
    from computemesh.client.rpc import no_interceptors

    return Client(find_profile(path), retry_for=3.0, interceptors=Root.interceptors or no_interceptors)


def save(path: Path, text: str, option: str) -> None:
    """Writes a file that `option` names. Raises BadParameter."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror}", param_hint=option) from None


def parse_value(text: str) -> Any:
    """The right side of key=value: a JSON literal where it is one, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text
    except RecursionError:
        raise typer.BadParameter(f"{text[:20]}... is nested too deeply", param_hint="PAYLOAD") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity stay text, which the market refuses by name


def parse_payload(items: list[str], payload: str | None) -> dict[str, Any]:
    """The payload of `key=value` words on top of --payload (JSON, or @FILE). Raises BadParameter."""
    values: dict[str, Any] = {}
    if payload is not None:
        values = _payload_object(payload)
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{item!r} is not key=value, e.g. matrix_size=1024", param_hint="PAYLOAD")
        values[name] = parse_value(text)
    return values


def _payload_object(payload: str) -> dict[str, Any]:
    where = "--payload"
    text = payload
    if payload.startswith("@"):
        where = payload[1:]
        try:
            text = Path(where).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot read {where}: {error}", param_hint="--payload") from None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{where} is not JSON: {error}", param_hint="--payload") from None
    except RecursionError:
        raise typer.BadParameter(f"{where} is nested too deeply", param_hint="--payload") from None
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{where} is not a JSON object", param_hint="--payload")
    return values


def parse_deadline(text: str | None) -> int | None:
    """Unix seconds of a deadline: as a number, `+30m` (s, m, h, d) from now, or ISO 8601. Raises BadParameter."""
    if text is None:
        return None
    duration = _DURATION.fullmatch(text)
    if duration:
        return int(time.time()) + int(duration[1]) * _SECONDS[duration[2]]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text[:40]!r} is neither Unix seconds, nor a duration such as +30m, nor an ISO 8601 time",
            param_hint="--deadline",
        ) from None


def note(profile: Profile, act: str, key_file: str, **about: str | int) -> None:
    """Adds an administrative act done with the key in `key_file` to the journal beside the profile; says where it
    cannot, because the act itself is done."""
    from computemesh.client.profile import read_key
    from computemesh.service import journal

    folder = Path(profile.path).parent
    try:
        journal.record(folder, act, read_key(key_file).address, **about)
    except OSError as error:
        typer.echo(f"not noted in {folder / journal.NAME}: {error.strerror}", err=True)
