"""Double entry over the fold's state: every posting sums to zero and leaves nothing negative. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from computemesh.trust import acts, identity
from computemesh.trust.amount import MAX_UNITS, format_cpc
from ledger.records import Bucket, Delegation, Parts
from ledger.state import Reason, Refused, State


class Book(Enum):
    """The accounts that are not addresses. What was issued is negative by as much as there is."""

    ISSUED = "issued"
    BURNED = "burned"
    ESCROWED = "escrowed"
    MATURING = "maturing"
    STAKED = "staked"


def post(state: State, entries: Sequence[tuple[bytes | Book, int]]) -> None:
    """Moves money: entries sum to zero and leave nothing negative, or the fold itself is wrong."""
    if sum(change for _, change in entries):
        raise AssertionError(f"entries do not balance: {entries}")
    for where, change in entries:
        if isinstance(where, bytes):
            if change:
                account = state.account(where)
                account.balance += change
                if account.balance < 0:
                    raise AssertionError(f"account {where.hex()} below zero")
        elif where is Book.ISSUED:
            state.minted -= change
        elif where is Book.BURNED:
            state.burned += change
        else:
            total = getattr(state, where.value) + change
            if total < 0:
                raise AssertionError(f"{where.value} below zero")
            setattr(state, where.value, total)


def require_funds(state: State, payer: bytes, units: int, name: str) -> None:
    """Raises Refused where the account's balance is less than `units`."""
    account = state.accounts.get(payer)
    balance = account.balance if account else 0
    if balance < units:
        raise Refused(
            Reason.INSUFFICIENT_FUNDS,
            f"{name}: {format_cpc(units)} CPC, but {identity.encode_address(payer)} has {format_cpc(balance)} CPC")


def deposit(state: State, signer: bytes, to: bytes, units: int) -> None:
    """Mints. Raises Refused: not the authority, or more than the largest supply."""
    if signer != state.authority:
        raise Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} may not mint, only the authority may")
    if state.minted + units > MAX_UNITS:
        raise Refused(
            Reason.SUPPLY_EXCEEDED,
            f"amount_units: {units} and the {state.minted} minted so far exceed the largest supply, {MAX_UNITS}")
    post(state, ((Book.ISSUED, -units), (to, units)))


def transfer(state: State, signer: bytes, to: bytes, units: int) -> None:
    """Pays from the signer's own account. Raises Refused."""
    payer = identity.address_bytes(signer)
    require_funds(state, payer, units, "amount_units")
    post(state, ((payer, -units), (to, units)))


def acts_for(state: State, key: bytes, address: bytes) -> bool:
    """Whether `key` may publish with this account's money: its own key, or one delegated and not expired."""
    if identity.address_bytes(key) == address:
        return True
    found = state.records.get(Delegation.key(address, key))
    return (isinstance(found, Delegation) and bool(found.permissions & acts.MAY_PUBLISH)
            and state.time_ms < found.expires_ms)  # fmt: skip


def reward(state: State, payees: Sequence[tuple[bytes, int]], burn: int) -> None:
    """Moves settled rewards out of escrow: they wait in the open block's bucket until the dispute window closes."""
    post(state, ((Book.ESCROWED, -burn - sum(units for _, units in payees)),
                 (Book.MATURING, burn + sum(units for _, units in payees))))  # fmt: skip
    bucket = state.bucket()
    bucket.burn += burn
    for address, units in payees:
        if units:
            bucket.add(address, units)
            state.account(address).pending += units


def mature(state: State, name: bytes) -> None:
    """The window of a block closed: its rewards are free, and the burn happens."""
    key = (Bucket.KIND, name)
    bucket = state.records.pop(key)
    assert isinstance(bucket, Bucket)
    state.touched.records.add(key)
    total = bucket.burn + sum(bucket.units.values())
    post(state, ((Book.MATURING, -total), (Book.BURNED, bucket.burn), *bucket.units.items()))
    for address, units in bucket.units.items():
        account = state.account(address)
        account.pending -= units
        account.earned += units


def payees(parts: Parts, worker: bytes, owner: bytes, validator: bytes, treasury: bytes) -> list[tuple[bytes, int]]:
    """(address, units) of a reward's parts but the burn; `owner` gets the royalty."""
    found = [(worker, parts.worker), (validator, parts.validator), (treasury, parts.treasury)]
    return [*found, (owner, parts.royalty)] if parts.royalty else found
