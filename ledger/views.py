"""The contract's messages from table rows, and page tokens."""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256

from computemesh.trust import acts, envelope, identity, merkle, statement
from computemesh.trust.amount import format_cpc
from computemesh.trust.checkpoint import Checkpoint
from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import ledger_pb2 as pb
from ledger.state import Phase
from ledger.store import Row
from ledger.writer import Verdict

DEFAULT_PAGE = 100
ENTRIES = 256

_STATUS = {
    Phase.FUNDED: (pb.ESCROW_STATUS_OPEN, pb.REFUND_CAUSE_UNSPECIFIED),
    Phase.ASSIGNED: (pb.ESCROW_STATUS_OPEN, pb.REFUND_CAUSE_UNSPECIFIED),
    Phase.SETTLED: (pb.ESCROW_STATUS_SETTLED, pb.REFUND_CAUSE_UNSPECIFIED),
    Phase.CANCELLED: (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_CANCELLED),
    Phase.FAILED: (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_FAILED),
    Phase.EXPIRED: (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_EXPIRED),
}


def page_token(kind: str, key: bytes) -> str:
    """An opaque token that continues the listing `kind` after `key`."""
    return base64.urlsafe_b64encode(sha256(kind.encode() + key).digest()[:6] + key).rstrip(b"=").decode()


def read_token(token: str, kind: str, size: int) -> bytes | None:
    """The key in a token of the same listing; None for no token. Raises InvalidArgument."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 6 + size or page_token(kind, raw[6:]) != token:
        problem = f"{token[:40]!r} is not a token of this listing: send next_page_token back as it came"
        raise InvalidArgument(f"page_token: {problem}", violations=[("page_token", problem)])
    return raw[6:]


def account(address: bytes, row: Row | None, staked: int) -> pb.Account:
    """An account's row, or the account that was never used; `staked` units are at stake or unbonding."""
    _, balance, held, earned, spent, nonce, pending, results = row or (address, 0, 0, 0, 0, b"", 0, 0)
    return pb.Account(
        address=identity.encode_address(address), balance_units=balance, escrow_units=held, balance=format_cpc(balance),
        earned_units=earned, spent_units=spent, highest_nonce=int.from_bytes(nonce, "big"), pending_units=pending,
        staked_units=staked, results=results)


def outcome(verdict: Verdict, height: int | None) -> pb.Outcome:
    """What became of a transaction; `height` is None until sealed."""
    kind = pb.OUTCOME_KIND_APPLIED if verdict.number else pb.OUTCOME_KIND_REFUSED
    return pb.Outcome(
        kind=kind, reason=verdict.reason or "", message=verdict.message, block_height=height or 0,
        refusals=[pb.ResultRefusal(position=one.position, reason=one.reason) for one in verdict.refusals])


def block(row: Row) -> pb.Block:
    """A row of (height, last_tx, header, burned, minted)."""
    height, _, packed, burned, minted = row
    header = statement.Header.unpack(packed)
    return pb.Block(
        height=height, hash=merkle.leaf_hash(packed).hex(), previous_hash=header.previous.hex(),
        time_ms=header.time_ms, tx_root=header.tx_root.hex(), compute_root=header.compute_root.hex(),
        state_root=header.state_root.hex(), tx_count=header.tx_count, result_count=header.result_count, header=packed,
        burned_units=burned, minted_units=minted)


def checkpoint(note: str) -> pb.Checkpoint:
    """A signed note and what it says."""
    parsed = Checkpoint.parse(note.partition("\n\n")[0] + "\n")
    return pb.Checkpoint(note=note, origin=parsed.origin, size=parsed.size, root=parsed.root)


def _signed_in_a_batch(view: pb.Escrow, opened: pb.Transaction, task_id: bytes, chain: str) -> None:
    """The order of an escrow that an `orders` act opened, and its path to the root that was signed."""
    packed = acts.Orders.unpack(opened.act.body).orders
    at = next(at for at, one in enumerate(packed) if envelope.digest("order", chain, one) == task_id)
    view.order = packed[at]
    view.orders_id = opened.id
    view.orders_count, view.orders_position = len(packed), at
    view.orders_path.extend(merkle.Tree([merkle.leaf_hash(one) for one in packed]).path(at))


def escrow(row: Row, opened: pb.Transaction, assigned: pb.Transaction | None, chain: str) -> pb.Escrow:
    """An escrow's row with the transactions that opened and last assigned it."""
    (_, task_id, customer, phase, reward, settled, refunded, deadline_ms, jobs, jobs_settled, epoch, orchestrator,
     *_) = row  # fmt: skip
    status, cause = _STATUS[Phase(phase)]
    view = pb.Escrow(
        task_id=task_id.hex(), customer=identity.encode_address(customer), status=status, refund_cause=cause,
        reward_units=reward, settled_units=settled, refunded_units=refunded, deadline_ms=deadline_ms, jobs=jobs,
        jobs_settled=jobs_settled, epoch=epoch, orchestrator_key=orchestrator.hex(),
        order=opened.open.order, order_signature=opened.signature)
    if opened.WhichOneof("body") == "act":
        _signed_in_a_batch(view, opened, task_id, chain)
    if assigned is not None:
        view.assignment = assigned.assign.assignment
        view.assignment_id = assigned.id
        view.assignment_signature = assigned.signature
    return view
