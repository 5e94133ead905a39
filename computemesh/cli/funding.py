"""Money and a profile for a local cluster: the authority's key is in its folder, so it can mint."""

from __future__ import annotations

import hashlib
import os
import uuid

from computemesh.cli.plan import CHAIN_ID, Plan, write_toml
from computemesh.client.profile import TLS_FILES, Profile
from computemesh.service.transactions import uuid7
from computemesh.trust import identity, statement
from computemesh.trust.amount import CPC
from computemesh.trust.checkpoint import NoteSigner
from computemesh.trust.errors import InvalidState, from_reason
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2

FIRST_FUNDS_UNITS = 1_000_000 * CPC

PROFILE_COMMENT = """How clients reach this cluster (docs/quickstart.md). It holds an API key: keep it private.
Choose it with --profile, $COMPUTEMESH_PROFILE, or by working in the folder above this one."""


def deposit(
    authority: PrivateKey, chain: str, to: str, units: int, tx_id: bytes | None = None
) -> ledger_pb2.Transaction:
    """A deposit of base units signed by the authority; `tx_id` makes a repeat the same deposit."""
    made = uuid7() if tx_id is None else tx_id
    body = statement.deposit_body(identity.decode_address(to), units)
    return ledger_pb2.Transaction(
        id=made,
        public_key=authority.public,
        signature=authority.sign(statement.transaction_digest("deposit", chain, made, body)),
        deposit=ledger_pb2.Deposit(to=to, amount_units=units),
    )


def check_outcome(outcome: ledger_pb2.Outcome) -> ledger_pb2.Outcome:
    """The outcome itself where it was applied. Raises the error its reason stands for."""
    if outcome.kind != ledger_pb2.OUTCOME_KIND_APPLIED:
        raise from_reason("FAILED_PRECONDITION", outcome.reason, outcome.message or outcome.reason)
    return outcome


def _first_deposit_id(address: str) -> bytes:
    """The same for every start of one folder, so that funds are given once; formed as a UUIDv7 of time 0."""
    raw = bytearray(6) + hashlib.sha256(f"first deposit {address}".encode()).digest()[:10]
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(raw)).bytes


def fund(plan: Plan, profile: Profile) -> None:
    """Give the customer and the API key's account their first 1,000,000 CPC each; once, however often called."""
    from computemesh.client import Client

    accounts = (plan.keys["customer"].address, plan.api_account.address)
    deposits = [
        deposit(plan.keys["authority"], CHAIN_ID, address, FIRST_FUNDS_UNITS, _first_deposit_id(address))
        for address in accounts
    ]
    with Client(profile=profile) as client:
        for outcome in client.submit_transactions(deposits):
            check_outcome(outcome)


def _tls(plan: Plan) -> dict[str, str]:
    """The fields of a profile for the cluster's certificates, none without TLS."""
    files = (plan.trust.ca_file, plan.trust.cert_file, plan.trust.key_file)
    return {name: file for name, file in zip(TLS_FILES, files, strict=True) if file}


def write_profile(plan: Plan, timeout_s: float = 10.0) -> Profile:
    """Write `profile.toml`, pinning the log's key after checking that the ledger's is ours. Returns the profile."""
    from computemesh.client import Client

    path = plan.data / "profile.toml"
    ledger, market = plan.reach("ledger"), plan.reach("market")
    bare = Profile(market=market, ledger=ledger, chain_id=CHAIN_ID, **_tls(plan))
    with Client(profile=bare, timeout=timeout_s) as client:
        vkey = client.ledger_info().vkey
    seed = bytes.fromhex((plan.data / "keys" / "log.key").read_text().strip())
    if NoteSigner(vkey.partition("+")[0], seed).vkey != vkey:
        own = plan.data / "keys" / "log.key"
        raise InvalidState(f"the ledger at {ledger} signs its checkpoints with another key than {own}")
    values = {
        "chain_id": CHAIN_ID,
        "market": market,
        "ledger": ledger,
        "orchestrator": plan.reach("orchestrator"),
        "ledger_vkey": vkey,
        "api_key": plan.api_key,
        "key_file": "keys/customer.key",
        "authority_key_file": "keys/authority.key",
        "operator_key_file": "keys/orchestrator.key",
        **{name: os.path.relpath(file, plan.data) for name, file in _tls(plan).items()},
        "addresses": {name: address for address, name in plan.names.items()},
        "workers": {name: node.address for name, node in plan.nodes.items() if name.startswith("worker")},
    }
    write_toml(path, values, 0o600, PROFILE_COMMENT)
    return Profile.load(path)
