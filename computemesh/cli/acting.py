"""Commands that declare something for an account: the client they stand for, and amounts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli.options import find_profile

if TYPE_CHECKING:
    from computemesh.client import Client

KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Key file of the account that acts; else the profile's own account."),
]
AmountArgument = Annotated[str, typer.Argument(help="Decimal CPC.", show_default=False)]


def acting(profile: Path | None, key: Path | str | None = None) -> Client:
    """A client that acts for the account of a key file, or for the profile's. Raises InvalidArgument."""
    from computemesh.client import Client
    from computemesh.client.profile import read_key

    return Client(find_profile(profile), key=read_key(key) if key else None, retry_for=3.0)


def stake_of(client: Client, address: str) -> Any:
    """What the ledger says of an account's stake."""
    from computemesh.v1 import ledger_pb2

    return client.ledger("GetStake", ledger_pb2.GetStakeRequest(address=address)).stake
