"""Where the money is, as tests of several kinds ask."""

from __future__ import annotations

import time

from computemesh import Client
from computemesh.v1 import ledger_pb2 as pb


def conserved(supply: pb.GetSupplyResponse) -> bool:
    """Whether the parts sum to what was minted."""
    held = supply.escrowed_units + supply.maturing_units + supply.staked_units
    return supply.minted_units == supply.accounts_units + held + supply.burned_units


def matured_supply(client: Client, timeout_s: float = 10.0) -> pb.GetSupplyResponse:
    """The supply once no reward waits for its dispute window any more; conserved all the while."""
    deadline = time.monotonic() + timeout_s
    while True:
        supply = client.ledger("GetSupply", pb.GetSupplyRequest())
        assert conserved(supply), supply
        if not supply.maturing_units:
            return supply
        assert time.monotonic() < deadline, supply
        time.sleep(0.02)
