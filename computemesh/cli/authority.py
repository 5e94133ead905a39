"""`mesh authority`: what only the chain's authority may do. `mesh key`: other keys for an account."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import output
from computemesh.cli.acting import KeyOption, acting
from computemesh.cli.options import JsonOption, ProfileOption, find_profile, note
from computemesh.cli.terms import seconds

app = typer.Typer(help="What only the chain's authority may do.", no_args_is_help=True)
keys = typer.Typer(help="Keys that may act for an account.", no_args_is_help=True)


@app.command()
def pause(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Stop new escrows, assignments and stakes. What is open is still paid and refunded."""
    _pause(True, profile)


@app.command()
def resume(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Take a pause back."""
    _pause(False, profile)


def _pause(paused: bool, profile: Path | None) -> None:
    from computemesh.trust import acts
    from computemesh.trust.errors import Unauthorized

    file = find_profile(profile).authority_key_file
    if not file:
        raise Unauthorized("this profile has no authority_key_file: only the authority pauses and resumes")
    with acting(profile, file) as client:
        client.declare(acts.Pause(int(paused)))
        now = client.ledger_info().paused
        note(client.profile, "pause" if paused else "resume", file)
    output.emit({"paused": now}, f"the chain is {'paused' if now else 'running'}")


@keys.command()
def delegate(
    key_hex: Annotated[str, typer.Argument(metavar="KEY", help="Public key, 66 hexadecimal characters.",
                                           show_default=False)],
    expires: Annotated[str, typer.Option(help="How long it may act: 12h, 30d.")] = "30d",
    revoke: Annotated[bool, typer.Option("--revoke", help="Take it back instead.")] = False,
    key: KeyOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let another key publish, confirm and retract with your money. It cannot move the money elsewhere."""
    from computemesh.trust import acts, identity

    try:
        public = bytes.fromhex(key_hex)
    except ValueError:
        public = b""
    if not identity.valid_public_key(public):
        raise typer.BadParameter(f"{key_hex[:80]!r} is not a public key (66 hexadecimal characters)", param_hint="KEY")
    until_ms = 0 if revoke else int(time.time() + seconds(expires, "--expires")) * 1000
    with acting(profile, key) as client:
        client.declare(acts.Delegate(public, 0 if revoke else acts.MAY_PUBLISH, until_ms))
        payer = client.own_address()
    whose = identity.address_of(public)
    text = f"{whose} may publish no more for {payer}" if revoke else \
        f"{whose} may publish with the money of {payer}: mesh task submit ... --payer {payer}"
    output.emit({"key": key_hex, "payer": payer, "expires_ms": until_ms, "revoked": revoke}, text)
