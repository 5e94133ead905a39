"""A chain with stakers, validators and settled results, for the laws of the economy: no gRPC, no disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from computemesh.trust import acts, identity, merkle, statement
from computemesh.trust.amount import Shares
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2 as pb
from ledger import evidence, wire
from ledger.block import Chain
from ledger.records import Dispute, Stake
from ledger.state import Effects, Reason, Rules, State
from tests.ledger import parties
from tests.ledger.parties import CUSTOMER, MARKET, ORCHESTRATOR, TREASURY, WORKER, key

NOW, DEADLINE = 1_000, 10_000_000
RULES = Rules(
    dispute_window_blocks=3, vote_blocks=2, unbonding_blocks=9, cooldown_blocks=20, dispute_bond_units=100,
    validator_stake_units=1_000, quorum=3, retract_wait_ms=50)  # fmt: skip
CONTESTANT, VALIDATORS = key(300), tuple(key(301 + at) for at in range(3))
SALT = b"s" * 32


class World:
    """A chain, driven by signed transactions as the wire has them."""

    def __init__(self, rules: Rules = RULES) -> None:
        treasury = identity.address_bytes(TREASURY.public)
        self.chain = Chain(State(parties.CHAIN, parties.AUTHORITY.public, treasury, Shares(), rules))
        self.chain.advance(NOW)
        self._nonces: dict[bytes, int] = {}

    @property
    def state(self) -> State:
        return self.chain.state

    def run(self, message: pb.Transaction) -> Effects:
        """Applies one transaction."""
        return self.chain.apply(evidence.examine(parties.CHAIN, wire.transaction(message)))

    def do(self, message: pb.Transaction) -> Effects:
        """Applies one that must hold."""
        effects = self.run(message)
        assert effects.number, effects
        return effects

    def reason(self, message: pb.Transaction) -> Reason | None:
        """Why one is refused."""
        return self.run(message).reason

    def seal(self, blocks: int = 1) -> None:
        """Closes so many blocks."""
        for _ in range(blocks):
            self.chain.seal()

    def balance(self, who: PrivateKey) -> int:
        account = self.state.accounts.get(identity.address_bytes(who.public))
        return account.balance if account else 0

    def stake(self, who: PrivateKey) -> Stake:
        found = self.state.records.get(Stake.key(identity.address_bytes(who.public)))
        return found if isinstance(found, Stake) else Stake()

    def fund(self, who: PrivateKey, units: int) -> None:
        self.do(parties.deposit(who, units))

    def staked(self, who: PrivateKey, units: int) -> None:
        """Gives somebody a stake."""
        self.fund(who, units)
        self.do(act(acts.Stake(units), who))

    def task(self, reward: int = 1000, jobs: int = 4, terms: statement.Terms = statement.PLAIN) -> bytes:
        """An assigned task of CUSTOMER's, paid by whoever the terms say."""
        order = replace(parties.order(reward, DEADLINE), terms=terms)
        if terms.payer == statement.NO_ADDRESS:
            self.fund(CUSTOMER, reward)
        self.do(parties.open_(order))
        self.do(parties.assign(parties.task_id(order), jobs))
        return parties.task_id(order)

    def settle(self, task: bytes, jobs: Sequence[int], worker: PrivateKey = WORKER) -> Effects:
        """Settles jobs of a task, whatever comes of it."""
        return self.run(self.settlement(task, jobs, worker))

    def settlement(self, task: bytes, jobs: Sequence[int], worker: PrivateKey = WORKER) -> pb.Transaction:
        """A settlement with new nonces."""
        rows = []
        for job in jobs:
            nonce = self._nonces[worker.public] = self._nonces.get(worker.public, 0) + 1
            rows.append(parties.commitment(task, job, nonce, worker=worker))
        return parties.settle([parties.batch(rows, worker)])

    def evidence(self, transaction: pb.Transaction, which: int = 0) -> acts.Contest:
        """Seals the block; what a contest of result `which` of its only settlement says."""
        columns = transaction.settle.batches[0]
        batch = evidence.Batch(columns.worker_key, columns.worker_signature, columns.commitments, columns.proof_hashes)
        root = merkle.root(batch.signed_leaves)
        results = batch.statements(transaction.public_key)
        tree = merkle.Tree([merkle.leaf_hash(result) for result in results])
        height = self.state.height
        self.seal()
        return acts.Contest(
            results[which], transaction.public_key, root, which, height, which, b"".join(tree.path(which)))

    def contested(self, task: bytes, job: int = 0) -> bytes:
        """Settles a job and contests it; the id of the contest."""
        transaction = self.settlement(task, [job])
        self.do(transaction)
        contest = act(self.evidence(transaction), CONTESTANT)
        self.do(contest)
        return contest.id

    def dispute(self, contest: bytes) -> Dispute:
        found = self.state.records[Dispute.key(contest)]
        assert isinstance(found, Dispute)
        return found

    def judge(
        self, contest: bytes, verdicts: dict[PrivateKey, int], revealing: Sequence[PrivateKey] | None = None
    ) -> None:
        """Votes, reveals, and closes the blocks up to the decision."""
        for voter, verdict in verdicts.items():
            self.do(act(acts.Vote(contest, acts.sealed_vote(contest, voter.public, verdict, SALT)), voter))
        self.seal(self.state.rules.vote_blocks + 1)
        for voter, verdict in verdicts.items():
            if revealing is None or voter in revealing:
                self.do(act(acts.Reveal(contest, verdict, SALT), voter))
        self.seal(self.state.rules.vote_blocks)

    def totals(self) -> tuple[int, int]:
        """(everything there is, what was minted)."""
        state = self.state
        held = state.escrowed + state.maturing + state.staked + state.burned
        return sum(account.balance for account in state.accounts.values()) + held, state.minted


def act(body: acts.Act, signer: PrivateKey, tx_id: bytes | None = None) -> pb.Transaction:
    """An act as a signed transaction."""
    tx_id = tx_id or parties.new_id()
    return pb.Transaction(
        id=tx_id, public_key=signer.public, signature=signer.sign(acts.digest(body, parties.CHAIN, tx_id)),
        act=pb.Act(kind=body.KIND, body=body.pack()))


def address(who: PrivateKey) -> bytes:
    """20 bytes."""
    return identity.address_bytes(who.public)


__all__ = ["CONTESTANT", "CUSTOMER", "MARKET", "ORCHESTRATOR", "VALIDATORS", "WORKER", "World", "act", "address"]
