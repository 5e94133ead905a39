"""`mesh profile`: the meshes this user knows, and which one commands go to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, find_profile, note

if TYPE_CHECKING:
    from computemesh.client.profile import Profile

app = typer.Typer(help="Name meshes, and choose the one that commands go to.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a profile.", show_default=False)]
MAX_TOKEN_MINUTES = 366 * 24 * 60
SECRETS = ("api_key",)
COMMENT = "A mesh and who you are there (docs/quickstart.md). It may hold an API key: keep it private."


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Profiles you have named, and the one in effect here."""
    from computemesh.client.profile import home, in_use
    from computemesh.trust.errors import MeshError

    effective = _effective()
    used = in_use()
    found: list[dict[str, Any]] = []
    for path in sorted((home() / "profiles").glob("*.toml")):
        row = {"name": path.stem, "file": str(path), "in_use": path.stem == used,
               "in_effect": effective is not None and effective.path == str(path)}  # fmt: skip
        try:
            found.append({**row, "market": _load(path).market, "problem": ""})
        except MeshError as error:
            found.append({**row, "market": "", "problem": error.message})
    rows = [("*" if row["in_effect"] else "", row["name"], row["market"] or row["problem"], row["file"])
            for row in found]  # fmt: skip
    here = effective.path if effective else "none; `mesh up` makes one, or `mesh profile set NAME market=HOST:PORT`"
    text = output.table(("", "NAME", "MARKET", "FILE"), rows) + "\n" if rows else ""
    output.emit({"profiles": found, "in_use": used, "in_effect": effective.path if effective else ""},
                f"{text}in effect here: {here}")  # fmt: skip


def _effective() -> Profile | None:
    from computemesh.trust.errors import MeshError

    try:
        return find_profile(None)
    except MeshError:
        return None


def _load(path: Path) -> Profile:
    from computemesh.client.profile import Profile

    return Profile.load(path)


@app.command()
def use(name: NameArgument, as_json: JsonOption = False) -> None:
    """Let commands go to this mesh where nothing nearer says otherwise."""
    from computemesh.cli.plan import write_text
    from computemesh.client.profile import home, named

    chosen = _load(named(name))
    write_text(home() / "current", f"{name}\n", 0o600)
    effective = _effective()
    other = "" if effective is None or effective.path == chosen.path else (
        f"\nhere {effective.path} goes first; choose {name} with --profile {name}")
    output.emit({"in_use": name, "file": chosen.path, "in_effect": effective.path if effective else ""},
                f"{name} is in use ({chosen.market}){other}")  # fmt: skip


@app.command("set")
def set_(
    name: NameArgument,
    values: Annotated[
        list[str], typer.Argument(metavar="FIELD=VALUE...", show_default=False,
                                  help="E.g. market=HOST:PORT; VALUE may be @FILE, empty removes.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a profile, or change fields of one."""
    from computemesh.cli.plan import read_toml, write_toml
    from computemesh.client.profile import named

    path = named(name)
    stored = read_toml(path)
    for item in values:
        field, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r} is not FIELD=VALUE, e.g. market=127.0.0.1:7102",
                                     param_hint="FIELD=VALUE")  # fmt: skip
        _set(stored, field, _value(field, text))
    write_toml(path, stored, 0o600, COMMENT)
    shown = {field: "..." if field in SECRETS else value for field, value in stored.items()}
    output.emit({"name": name, "file": str(path), "values": shown}, f"{path}\n{output.pairs(shown)}")


def _set(stored: dict[str, Any], field: str, value: str) -> None:
    """Change one field (`addresses.NAME` for an entry of a table). Raises InvalidArgument naming the known ones."""
    from dataclasses import fields

    from computemesh.client.profile import TABLES, Profile
    from computemesh.trust.errors import InvalidArgument

    known = [one.name for one in fields(Profile) if one.name != "path"]
    table, dot, entry = field.partition(".")
    if table not in known or bool(dot and entry) != (table in TABLES):
        shown = [f"{one}.NAME" if one in TABLES else one for one in known]
        problem = f"{field[:40]!r} is not a field of a profile; known are {', '.join(shown)}"
        raise InvalidArgument(problem, violations=[(field[:40], problem)])
    into = stored.setdefault(table, {}) if table in TABLES else stored
    into[entry or field] = value
    if not value:
        del into[entry or field]


def _value(field: str, text: str) -> str:
    """What a field is set to: the text, or a file's; key files become absolute, because the profile lies elsewhere."""
    from computemesh.client.profile import KEY_FILES, TLS_FILES

    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot read {text[1:]}: {error}", param_hint=field) from None
    return os.path.abspath(os.path.expanduser(text)) if text and field in (*KEY_FILES, *TLS_FILES) else text


@app.command()
def token(
    operator: Annotated[bool, typer.Option("--operator", help="Signed by the operator's key instead.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Good for calls that change nothing only; signed by "
                                                                "your key.")] = False,
    minutes: Annotated[int, typer.Option(help="How long it is good for.", min=1, max=MAX_TOKEN_MINUTES)] = 10,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Print what other clients send as `authorization: Bearer ...`: the API key, or a signed token that expires."""
    from computemesh.client.profile import read_key
    from computemesh.service.auth import ALL, READ_ONLY, make_token
    from computemesh.trust.errors import Unauthenticated
    from computemesh.trust.identity import address_of

    found = find_profile(profile)
    key_file = found.operator_key_file if operator and found.operator_key_file else found.key_file
    key = read_key(key_file) if key_file else None
    if found.api_key and not operator and not read_only:
        text = found.api_key
    elif key is None:
        raise Unauthenticated(f"the profile {found.path} has neither an api_key nor a key_file")
    else:
        expires_ms = time.time_ns() // 1_000_000 + minutes * 60_000
        text = make_token(key, found.chain_id, expires_ms, READ_ONLY if read_only else ALL)
        note(found, "token", key_file, scope="read-only" if read_only else "all", expires_ms=expires_ms)
        if found.api_key and read_only:
            output.say(f"it speaks for the key {address_of(key.public)}, not for the account of the profile's API key")
    output.emit({"token": text}, text)
