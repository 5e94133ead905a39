"""Stake: put up, taken back after the unbonding time, and taken away. PURE."""

from __future__ import annotations

import heapq

from computemesh.trust import identity
from computemesh.trust.amount import format_cpc
from ledger.escrows import require_running
from ledger.money import Book, post, require_funds
from ledger.records import Stake
from ledger.state import Due, Reason, Refused, State


def stake_of(state: State, address: bytes) -> Stake:
    """The account's stake, made on first use and noted as touched."""
    key = Stake.key(address)
    found = state.records.get(key)
    stake = found if isinstance(found, Stake) else Stake()
    state.put(key, stake)
    return stake


def units_of(state: State, address: bytes) -> int:
    """Units at stake, without those that unbond."""
    found = state.records.get(Stake.key(address))
    return found.units if isinstance(found, Stake) else 0


def stake(state: State, signer: bytes, units: int) -> None:
    """From the signer's balance to its stake. Raises Refused."""
    require_running(state)
    address = identity.address_bytes(signer)
    require_funds(state, address, units, "units")
    post(state, ((address, -units), (Book.STAKED, units)))
    put_up(state, address, units)


def put_up(state: State, address: bytes, units: int) -> None:
    """`units` that are among the staked already become this account's."""
    found = stake_of(state, address)
    found.units += units
    horizon = state.height - 2 * state.rules.vote_blocks - 1
    # A vote looks back as far as the contest it judges; what is older than any open contest is forgotten.
    found.raises = [entry for entry in found.raises if entry[0] >= horizon] + [(state.height, units)]


def require_stake(state: State, address: bytes, units: int, name: str) -> None:
    """Raises Refused where the account has less at stake."""
    there = units_of(state, address)
    if there < units:
        raise Refused(
            Reason.INSUFFICIENT_STAKE,
            f"{name}: {format_cpc(units)} CPC, but {identity.encode_address(address)} has {format_cpc(there)} CPC at "
            "stake")


def unstake(state: State, signer: bytes, units: int) -> None:
    """Begins to unbond. Raises Refused."""
    address = identity.address_bytes(signer)
    require_stake(state, address, units, "units")
    found = stake_of(state, address)
    found.units -= units
    free_at = state.height + state.rules.unbonding_blocks
    found.unbonding.append((free_at, units))
    heapq.heappush(state.due, (free_at, Due.UNBOND, address))


def unbond(state: State, address: bytes) -> None:
    """What is unbonded by now goes back to the balance."""
    found = stake_of(state, address)
    free = sum(units for at, units in found.unbonding if at <= state.height)
    found.unbonding = [(at, units) for at, units in found.unbonding if at > state.height]
    if free:
        post(state, ((Book.STAKED, -free), (address, free)))


def slash(state: State, address: bytes, percent: int) -> int:
    """Takes `percent` of stake and unbonding together, stake first; returns how much. It stays among the staked."""
    found = stake_of(state, address)
    taken = (found.units + found.leaving) * percent // 100
    from_stake = min(found.units, taken)
    found.units -= from_stake
    rest = taken - from_stake
    kept = []
    for at, units in reversed(found.unbonding):  # the newest first: it would be there longest
        part = min(units, rest)
        rest -= part
        if units > part:
            kept.append((at, units - part))
    found.unbonding = kept[::-1]
    found.slashed += taken
    return taken
