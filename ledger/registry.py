"""What accounts declare for others: delegated keys, models, pools, audit beacons; and the authority's pause. PURE."""

from __future__ import annotations

from computemesh.trust import acts, identity
from ledger.money import post, require_funds
from ledger.records import Beacon, Delegation, Model, Pool
from ledger.state import Reason, Refused, State


def delegate(state: State, signer: bytes, act: acts.Delegate) -> None:
    """Lets a key publish for the signer's account, or takes that back. Raises Refused."""
    if not identity.valid_public_key(act.key):
        raise Refused(Reason.INVALID_EVIDENCE, f"key: {act.key.hex()} is not a public key")
    state.put(Delegation.key(identity.address_bytes(signer), act.key), Delegation(act.permissions, act.expires_ms))


def _require_owner(state: State, signer: bytes, owner: bytes, what: str) -> None:
    # A delegated key publishes; names and pools stay with the owner's own key.
    if identity.address_bytes(signer) != owner:
        raise Refused(Reason.UNAUTHORIZED, f"public_key: the {what} belongs to {identity.encode_address(owner)}")


def model(state: State, signer: bytes, act: acts.Model) -> None:
    """Registers or changes a model. Raises Refused."""
    key = Model.key(act.model)
    found = state.records.get(key)
    if isinstance(found, Model):
        _require_owner(state, signer, found.owner, "model")
    state.put(key, Model(identity.address_bytes(signer), act))


def pool(state: State, signer: bytes, act: acts.Pool) -> None:
    """Opens, activates or deactivates a pool. Raises Refused."""
    key = Pool.key(act.pool)
    found = state.records.get(key)
    if isinstance(found, Pool):
        _require_owner(state, signer, found.owner, "pool")
    state.put(key, Pool(identity.address_bytes(signer), act))
    state.pools[acts.pool_address(act.pool)] = act.pool


def withdraw(state: State, signer: bytes, act: acts.Withdraw) -> None:
    """Moves a pool's money. Raises Refused."""
    found = state.records.get(Pool.key(act.pool))
    if not isinstance(found, Pool):
        raise Refused(Reason.UNKNOWN_POOL, f"pool: none was opened under {act.pool.hex()}")
    _require_owner(state, signer, found.owner, "pool")
    address = acts.pool_address(act.pool)
    require_funds(state, address, act.units, "units")
    post(state, ((address, -act.units), (act.to, act.units)))


def pause(state: State, signer: bytes, act: acts.Pause) -> None:
    """Stops or lets on new escrows, assignments and stakes. Raises Refused."""
    if signer != state.authority:
        raise Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} is not the authority's")
    state.paused = bool(act.paused)


def beacon(state: State, signer: bytes, act: acts.Beacon) -> None:
    """An orchestrator's sealed secret, once per epoch. Raises Refused."""
    key = Beacon.key(signer, act.epoch)
    if key in state.records:
        raise Refused(Reason.WRONG_BEACON, f"epoch: {act.epoch} is sealed already")
    state.put(key, Beacon(act.sealed))


def beacon_reveal(state: State, signer: bytes, act: acts.BeaconReveal) -> None:
    """Opens an epoch's secret. Raises Refused."""
    key = Beacon.key(signer, act.epoch)
    found = state.records.get(key)
    if not isinstance(found, Beacon):
        raise Refused(Reason.WRONG_BEACON, f"epoch: {act.epoch} was never sealed by this key")
    if acts.sealed_beacon(signer, act.epoch, act.secret) != found.sealed:
        raise Refused(Reason.WRONG_BEACON, "secret: not what was sealed")
    state.put(key, Beacon(found.sealed, act.secret))


