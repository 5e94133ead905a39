"""Signed transactions of the kinds that are one fixed layout, acts and transfers (docs/PROTOCOL.md section 4), and what
the ledger's refusals mean."""

from __future__ import annotations

import secrets
import struct
import time

from computemesh.trust import acts, identity, statement
from computemesh.trust.errors import InvalidProof, MeshError, from_reason
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2

TRANSFER = "transfer"
_TRANSFER = struct.Struct(">20sQ")
_STATUS = {
    "INVALID_SIGNATURE": "PERMISSION_DENIED", "UNAUTHORIZED": "PERMISSION_DENIED", "ID_CONFLICT": "ALREADY_EXISTS",
    "UNKNOWN_TASK": "NOT_FOUND", "UNKNOWN_MODEL": "NOT_FOUND", "UNKNOWN_POOL": "NOT_FOUND",
    "UNKNOWN_DISPUTE": "NOT_FOUND", "INVALID_EVIDENCE": "INVALID_ARGUMENT",
}  # fmt: skip
# What callers of a market know under another name.
_MEANING = {
    "UNKNOWN_TASK": "TASK_NOT_FOUND", "TASK_ASSIGNED": "TASK_ALREADY_CLAIMED", "INVALID_RESULT": "TASK_NOT_CLAIMED",
    "INVALID_EVIDENCE": "INVALID_PROOF",
}  # fmt: skip


def uuid7() -> bytes:
    """A time-ordered id (RFC 9562 section 5.7): 48 bits of Unix milliseconds, version and variant, 74 random bits."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def transfer_body(to: str, units: int) -> bytes:
    """Body of a transfer of base units to an address. Raises InvalidArgument."""
    return statement.transfer_body(identity.decode_address(to), units)


def digest(kind: str, body: bytes, chain: str, tx_id: bytes) -> bytes:
    """What the author of an act or transfer signs. Raises InvalidProof: unknown kind, or a body of another layout."""
    if kind != TRANSFER:
        return acts.digest(acts.unpack(kind, body), chain, tx_id)
    if len(body) != _TRANSFER.size:
        problem = f"has {len(body)} bytes, not {_TRANSFER.size}"
        raise InvalidProof(f"transfer.body {problem}", violations=[("body", problem)])
    return statement.transaction_digest(kind, chain, tx_id, body)


def assembled(kind: str, body: bytes, tx_id: bytes, public_key: bytes, signature: bytes) -> ledger_pb2.Transaction:
    """The transaction as the ledger takes it."""
    made = ledger_pb2.Transaction(id=tx_id, public_key=public_key, signature=signature)
    if kind == TRANSFER:
        to, units = _TRANSFER.unpack(body)
        made.transfer.CopyFrom(ledger_pb2.Transfer(to=identity.encode_address(to), amount_units=units))
    else:
        made.act.CopyFrom(ledger_pb2.Act(kind=kind, body=body))
    return made


def signed(
    key: PrivateKey, chain: str, kind: str, body: bytes, tx_id: bytes | None = None
) -> ledger_pb2.Transaction:
    """An act or transfer signed by `key`; an id of one's own makes a repeat the same transaction."""
    tx_id = tx_id or uuid7()
    return assembled(kind, body, tx_id, key.public, key.sign(digest(kind, body, chain, tx_id)))


def refusal(what: str, outcome: ledger_pb2.Outcome) -> MeshError:
    """The error that a transaction the ledger refused stands for; `what` was refused."""
    reason = outcome.reason
    status = _STATUS.get(reason, "FAILED_PRECONDITION")
    message = f"the ledger refuses {what}: {outcome.message or reason}"
    return from_reason(status, _MEANING.get(reason, reason), message)


def applied(what: str, outcome: ledger_pb2.Outcome) -> ledger_pb2.Outcome:
    """The outcome itself where it was applied. Raises the error its refusal stands for."""
    if outcome.kind != ledger_pb2.OUTCOME_KIND_APPLIED:
        raise refusal(what, outcome)
    return outcome
