"""Disputes: a settled result is contested, validators vote sealed and then open, the loser's stake pays. PURE.

The money of a contested job waits until the decision. A tie goes to the accused; without a quorum nobody has judged, so
the result stands and the bond goes back. An orchestrator accuses a worker of a commitment that failed its audit: unless
the worker appeals while the window is open, that counts as judged.
"""

from __future__ import annotations

import heapq

from computemesh.trust import acts, identity, merkle, statement
from computemesh.trust.amount import job_reward
from ledger import money
from ledger.money import Book, post
from ledger.records import Bucket, Dispute, Parts, Stake, Status, Vote
from ledger.settling import parts_of
from ledger.staking import put_up, require_stake, slash, stake_of
from ledger.state import Due, Escrow, Reason, Refused, State


def contest(state: State, tx_id: bytes, signer: bytes, act: acts.Contest) -> None:
    """Holds the bond and the job's reward until validators have voted. Raises Refused."""
    result = statement.Result.unpack(act.result)
    escrow = _evidence(state, act, result)
    bucket = state.records.get(Bucket.key(act.height))
    if not isinstance(bucket, Bucket):
        raise Refused(Reason.NOT_CONTESTABLE, f"height: the dispute window of block {act.height} is over")
    if (result.task_id, result.job) in state.contested:
        raise Refused(Reason.NOT_CONTESTABLE, f"result: job {result.job} of this task was contested before")
    contestant, bond = identity.address_bytes(signer), state.rules.dispute_bond_units
    require_stake(state, contestant, bond, "bond")
    stake_of(state, contestant).units -= bond
    units = job_reward(escrow.reward, result.job, escrow.jobs)
    parts = parts_of(units, state.shares, escrow.royalty_bps)
    accused, validator = identity.address_bytes(result.worker_key), identity.address_bytes(act.orchestrator_key)
    _take_back(state, act.height, bucket, money.payees(parts, accused, escrow.royalty_to, validator, state.treasury),
               parts.burn)  # fmt: skip
    vote_height = state.height + state.rules.vote_blocks
    dispute = Dispute(
        contestant, accused, act.orchestrator_key, act.result, state.height, vote_height,
        vote_height + state.rules.vote_blocks, bond, parts)  # fmt: skip
    state.put(Dispute.key(tx_id), dispute)
    state.contested[result.task_id, result.job] = tx_id
    heapq.heappush(state.due, (dispute.reveal_height, Due.DECIDE, tx_id))


def _evidence(state: State, act: acts.Contest, result: statement.Result) -> Escrow:
    """The escrow of a result that is proven to stand in a block of the window. Raises Refused."""
    root = state.roots.get(act.height)
    if root is None:
        raise Refused(
            Reason.NOT_CONTESTABLE,
            f"height: {act.height} is not a sealed block whose window of {state.rules.dispute_window_blocks} blocks is "
            f"open; the next block is {state.height}")
    leaf = merkle.leaf_hash(act.result)
    path = [act.path[at : at + 32] for at in range(0, len(act.path), 32)]
    if not merkle.verify_inclusion(leaf, act.leaf_index, root[1], path, root[0]):
        raise Refused(Reason.INVALID_EVIDENCE, f"path: does not lead from the result to block {act.height}'s root")
    opened = statement.authorisation(act.orchestrator_key, act.commitment_root, act.position)
    if opened != result.authorisation:
        raise Refused(
            Reason.INVALID_EVIDENCE, "orchestrator_key, commitment_root, position: not those of the authorisation")
    escrow = state.escrows.get(result.task_id)
    if escrow is None or not escrow.has(result.job) or escrow.terms.delivery == statement.DELIVERY_MANUAL:
        raise Refused(Reason.NOT_CONTESTABLE, "result: its customer picks among responses, or it was never paid")
    return escrow


def accuse(state: State, tx_id: bytes, signer: bytes, act: acts.Accuse) -> None:
    """Holds the orchestrator's bond; without an appeal the worker is slashed when the window closes. Raises Refused."""
    row = statement.Commitment.unpack(act.commitment)
    escrow = state.escrows.get(row.task_id)
    if escrow is None or (signer, row.task_epoch) != (escrow.orchestrator, escrow.epoch):
        raise Refused(Reason.UNAUTHORIZED, "public_key: not the orchestrator the task was assigned to in this epoch")
    leaf = merkle.leaf_hash(act.commitment)
    path = [act.path[at : at + 32] for at in range(0, len(act.path), 32)]
    if not merkle.verify_inclusion(leaf, act.position, act.count, path, act.root):
        raise Refused(Reason.INVALID_EVIDENCE, "path: does not lead from the commitment to the root")
    if not statement.verify_commitments(row.worker_key, state.chain, act.count, act.root, act.worker_signature):
        raise Refused(Reason.INVALID_EVIDENCE, "worker_signature: not the worker's over this batch")
    window = state.workers.get(row.worker_key)
    if window is not None and window.seen(row.nonce):
        raise Refused(Reason.NOT_CONTESTABLE, "commitment: was settled, or its nonce was used for another")
    if leaf in state.accused:
        raise Refused(Reason.NOT_CONTESTABLE, "commitment: was accused before")
    accuser, bond = identity.address_bytes(signer), state.rules.dispute_bond_units
    require_stake(state, accuser, bond, "bond")
    stake_of(state, accuser).units -= bond
    result = statement.Result(
        row.task_id, row.job, row.worker_key, row.result_hash, act.transcript, row.nonce,
        statement.authorisation(signer, act.root, act.position)).pack()  # fmt: skip
    closes = state.height + state.rules.dispute_window_blocks
    state.put(Dispute.key(tx_id), Dispute(
        accuser, identity.address_bytes(row.worker_key), signer, result, state.height, closes, closes, bond, Parts(),
        judged=False))  # fmt: skip
    state.accused.add(leaf)
    heapq.heappush(state.due, (closes, Due.DECIDE, tx_id))


def appeal(state: State, signer: bytes, act: acts.Appeal) -> None:
    """The accused has validators decide. Raises Refused."""
    dispute = _open_dispute(state, act.accusation)
    if identity.address_bytes(signer) != dispute.accused:
        raise Refused(Reason.UNAUTHORIZED, "public_key: only the accused may appeal")
    if dispute.judged:
        raise Refused(Reason.DUPLICATE_VOTE, "accusation: validators judge it already")
    dispute.judged = True
    dispute.vote_height = state.height + state.rules.vote_blocks
    dispute.reveal_height = dispute.vote_height + state.rules.vote_blocks
    heapq.heappush(state.due, (dispute.reveal_height, Due.DECIDE, act.accusation))
    state.touched.records.add(Dispute.key(act.accusation))


def _take_back(state: State, height: int, bucket: Bucket, payees: list[tuple[bytes, int]], burn: int) -> None:
    """The job's share leaves the bucket; it stays among what is maturing, but no clock frees it."""
    bucket.burn -= burn
    for address, units in payees:
        bucket.add(address, -units)
        state.account(address).pending -= units
    state.touched.records.add(Bucket.key(height))


def _open_dispute(state: State, contest_id: bytes) -> Dispute:
    found = state.records.get(Dispute.key(contest_id))
    if not isinstance(found, Dispute):
        raise Refused(Reason.UNKNOWN_DISPUTE, f"contest: there is no contest {contest_id.hex()}")
    if found.status is not Status.OPEN:
        raise Refused(Reason.VOTING_CLOSED, f"contest: {contest_id.hex()} was decided")
    return found


def vote(state: State, signer: bytes, act: acts.Vote) -> None:
    """A validator's sealed verdict. Raises Refused."""
    dispute, voter = _open_dispute(state, act.contest), identity.address_bytes(signer)
    if not dispute.judged or state.height > dispute.vote_height:
        raise Refused(Reason.VOTING_CLOSED, f"contest: votes are taken up to block {dispute.vote_height}, on an "
                                            "accusation once its worker appealed")
    if voter in (dispute.contestant, dispute.accused, identity.address_bytes(dispute.orchestrator)):
        raise Refused(Reason.INELIGIBLE_VOTER, "public_key: a party of the dispute has no vote")
    if voter in dispute.votes:
        raise Refused(Reason.DUPLICATE_VOTE, "public_key: voted already")
    found = state.records.get(Stake.key(voter))
    counts = found.before(dispute.height) if isinstance(found, Stake) else 0
    least = state.rules.validator_stake_units
    if counts < least:
        raise Refused(
            Reason.INELIGIBLE_VOTER,
            f"public_key: {counts} units at stake since before the contest, a validator needs {least}")
    dispute.votes[voter] = Vote(act.sealed, counts)
    state.touched.records.add(Dispute.key(act.contest))


def reveal(state: State, signer: bytes, act: acts.Reveal) -> None:
    """Opens a sealed vote. Raises Refused."""
    dispute, voter = _open_dispute(state, act.contest), identity.address_bytes(signer)
    if not dispute.vote_height < state.height <= dispute.reveal_height:
        raise Refused(
            Reason.VOTING_CLOSED,
            f"contest: votes are opened in blocks {dispute.vote_height + 1} to {dispute.reveal_height}, this is "
            f"{state.height}")
    cast = dispute.votes.get(voter)
    if cast is None:
        raise Refused(Reason.INELIGIBLE_VOTER, "public_key: sent no sealed vote")
    if cast.verdict:
        raise Refused(Reason.DUPLICATE_VOTE, "public_key: revealed already")
    if acts.sealed_vote(act.contest, signer, act.verdict, act.salt) != cast.sealed:
        raise Refused(Reason.WRONG_REVEAL, "verdict, salt: not what was sealed")
    cast.verdict = act.verdict
    state.touched.records.add(Dispute.key(act.contest))


def decide(state: State, contest_id: bytes) -> None:
    """The time to reveal is over: the verdict with more weight, the accused on a tie."""
    dispute = state.records[Dispute.key(contest_id)]
    assert isinstance(dispute, Dispute)
    if dispute.status is not Status.OPEN or dispute.reveal_height > state.height:
        return  # an appeal gave it another time
    state.touched.records.add(Dispute.key(contest_id))
    if not dispute.judged:
        _uphold(state, dispute)
        return
    cast = [one for one in dispute.votes.values() if one.verdict]
    cap = max(sum(one.stake for one in cast) * state.rules.vote_cap_percent // 100, 1)
    for one in cast:
        one.weight = min(one.stake, cap)
    against = sum(one.weight for one in cast if one.verdict == acts.VERDICT_INVALID)
    judged = len(cast) >= state.rules.quorum
    if judged and 2 * against > sum(one.weight for one in cast):
        _uphold(state, dispute)
    else:
        _reject(state, dispute, judged)


def _uphold(state: State, dispute: Dispute) -> None:
    """The result was wrong: its reward goes back to the customer, the worker's stake pays."""
    dispute.status = Status.UPHELD
    result = statement.Result.unpack(dispute.result)
    escrow, units = state.escrows[result.task_id], dispute.parts.total
    post(state, ((Book.MATURING, -units), (escrow.customer, units)))
    escrow.settled -= units
    escrow.refunded += units
    state.account(escrow.customer).spent -= units
    state.touched.escrows.add(result.task_id)
    accused = state.account(dispute.accused)
    accused.results = max(accused.results - bool(units), 0)
    taken = dispute.slashed = slash(state, dispute.accused, state.rules.slash_percent)
    loser, winner = stake_of(state, dispute.accused), stake_of(state, dispute.contestant)
    loser.lost += 1
    loser.cooldown_height = state.height + state.rules.cooldown_blocks
    winner.won += 1
    put_up(state, dispute.contestant, dispute.bond)
    _share_out(state, dispute, taken, dispute.contestant, acts.VERDICT_INVALID)


def _reject(state: State, dispute: Dispute, judged: bool) -> None:
    """The result stands: its reward is free, and where validators judged the bond pays."""
    dispute.status = Status.REJECTED
    parts, result = dispute.parts, statement.Result.unpack(dispute.result)
    owner = state.escrows[result.task_id].royalty_to
    validator = identity.address_bytes(dispute.orchestrator)
    paid = money.payees(parts, dispute.accused, owner, validator, state.treasury)
    post(state, ((Book.MATURING, -parts.total), (Book.BURNED, parts.burn), *paid))
    for address, units in paid:
        state.account(address).earned += units
    if not judged:
        put_up(state, dispute.contestant, dispute.bond)
        return
    loser = stake_of(state, dispute.contestant)
    loser.lost += 1
    loser.slashed += dispute.bond
    loser.cooldown_height = state.height + state.rules.cooldown_blocks
    stake_of(state, dispute.accused).won += 1
    dispute.slashed = dispute.bond
    _share_out(state, dispute, dispute.bond, dispute.accused, acts.VERDICT_VALID)


def _share_out(state: State, dispute: Dispute, taken: int, winner: bytes, verdict: int) -> None:
    """What the loser lost: the winner's costs, the validators who were right, and the rest burns."""
    to_winner = taken * state.rules.winner_percent // 100
    right = sorted((who, one.weight) for who, one in dispute.votes.items() if one.verdict == verdict)
    total, pot = sum(weight for _, weight in right), taken * state.rules.voters_percent // 100
    fees = [(who, pot * weight // total) for who, weight in right if total]
    burned = taken - to_winner - sum(units for _, units in fees)
    post(state, ((Book.STAKED, -taken), (winner, to_winner), *fees, (Book.BURNED, burned)))


