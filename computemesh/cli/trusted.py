"""Whose signature on a checkpoint this user believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from computemesh.client import Client


def trusted(client: Client) -> tuple[str, str, bool]:
    """The log's key and chain: pinned by the profile, else as the ledger says; and whether they were pinned."""
    pinned = client.profile
    if pinned.ledger_vkey and pinned.chain_id:
        return pinned.ledger_vkey, pinned.chain_id, True
    info = client.ledger_info()
    return pinned.ledger_vkey or info.vkey, pinned.chain_id or info.chain_id, bool(pinned.ledger_vkey)
