"""The whole economy under random histories: what must hold after every step, whatever the steps are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from computemesh.trust import acts, identity, merkle, statement
from computemesh.trust.amount import Shares
from computemesh.v1 import ledger_pb2 as pb
from ledger import evidence, wire
from ledger.block import Chain
from ledger.records import Bucket, Dispute, Stake, Status
from ledger.state import OPEN_PHASES, Phase, State
from tests.ledger import parties
from tests.ledger.economy import CONTESTANT, RULES, SALT, VALIDATORS, World, act, address
from tests.ledger.parties import AUTHORITY, CUSTOMER, MARKET, ORCHESTRATOR, OTHER, TREASURY, WORKER

PEOPLE = (CUSTOMER, WORKER, OTHER, CONTESTANT, *VALIDATORS)
WORKERS = (WORKER, OTHER)
MODEL, POOL = acts.name_hash("model"), acts.name_hash("pool")
TERMS = (
    statement.PLAIN, statement.PLAIN, statement.Terms(statement.DELIVERY_MANUAL, 2, 1),
    statement.Terms(statement.DELIVERY_FIRST_RESPONSE), statement.Terms(model=MODEL),
    statement.Terms(payer=acts.pool_address(POOL)), statement.Terms(payer=address(OTHER)),
)  # fmt: skip
SMALL = replace(RULES, validator_stake_units=50, dispute_bond_units=10, vote_blocks=1, unbonding_blocks=6)
MODEL_ON = acts.Model(MODEL, b"a" * 32, 1, 1_500, acts.PRICE_FIXED, 20, 0, 1)
MODEL_OFF, POOL_ON, POOL_OFF = replace(MODEL_ON, active=0), acts.Pool(POOL, bytes(32), 1), acts.Pool(POOL, bytes(32), 0)
DEPUTY = acts.Delegate(CUSTOMER.public, acts.MAY_PUBLISH, 2**40)
CONTESTANTS = (CONTESTANT, CONTESTANT, WORKER, VALIDATORS[0])
KINDS = (
    *["publish"] * 6, *["settle"] * 10, *["contest"] * 4, *["judge"] * 3, "accuse", *["confirm"] * 2, *["seal"] * 4,
    "wait", "wait", "deposit", "transfer", "assign", "refund", "retract", "stake", "unstake", "declare", "pause",
)  # fmt: skip
STEPS = 50


class Pick:
    """Details of a step, all from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def below(self, limit: int) -> int:
        """0..limit - 1."""
        return self._random.randrange(limit)

    def of(self, values: Sequence[Any]) -> Any:
        """One of them."""
        return self._random.choice(values)


def digest(state: State) -> str:
    """Everything the fold knows, what counts as touched included."""
    return sha256(repr(state).encode()).hexdigest()


class Economy(RuleBasedStateMachine):
    """Random parties do random things. The ledger's own word is never taken for it: sums are made here."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SMALL)
        self.history: list[tuple[str, Any]] = [("time", self.world.state.time_ms)]
        self.headers: list[bytes] = []
        self.tasks: list[bytes] = [bytes(32)]
        self.settlements: list[tuple[pb.Transaction, int]] = []
        self.contests: list[bytes] = [bytes(16)]
        self.ended: dict[bytes, Phase] = {}
        self.reversed: dict[bytes, int] = {}

    # ---- the ways to change anything

    def submit(self, message: pb.Transaction) -> bool:
        """Applies a transaction; a refused one must leave no trace."""
        state = self.world.state
        before = digest(state)
        effects = self.world.run(message)
        if effects.number:
            self.history.append(("tx", message))
            return True
        assert digest(state) == before, f"{effects.reason} changed the state"
        assert effects.reason is not None
        return False

    def close_block(self) -> None:
        state = self.world.state
        deciding = [
            (found, state.records[Stake.key(found.accused)]) for (kind, _), found in state.records.items()
            if kind is Dispute.KIND and isinstance(found, Dispute) and found.status is Status.OPEN
            and found.reveal_height == state.height and Stake.key(found.accused) in state.records]  # fmt: skip
        # What unbonds with this very block is gone before disputes are decided.
        expected = [
            (found, (stake.units + sum(units for at, units in stake.unbonding if at > state.height))
             * SMALL.slash_percent // 100)
            for found, stake in deciding if isinstance(stake, Stake)]  # fmt: skip
        # Whoever is a party of two disputes that end together has its stake changed by the other one, too.
        accused = [who for found, _ in deciding for who in (found.accused, found.contestant)]
        self.headers.append(self.world.chain.seal().header)
        self.history.append(("seal", None))
        for found, taken in expected:
            if found.status is Status.UPHELD and accused.count(found.accused) == 1:
                assert found.slashed == taken

    # ---- what people do

    @initialize(established=st.booleans())
    def begin(self, established: bool) -> None:
        """Half of the histories begin where everybody has money and stake, and model, pool and deputy are known."""
        if not established:
            return
        for who in (*PEOPLE, ORCHESTRATOR):
            self.submit(parties.deposit(who, 5_000))
            self.submit(act(acts.Stake(500), who))
        self.fund_pool(1_000)
        for body, who in ((MODEL_ON, CUSTOMER), (POOL_ON, CUSTOMER), (DEPUTY, OTHER)):
            self.submit(act(body, who))
        self.close_block()

    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
    def step(self, kind: str, seed: int) -> None:
        """One thing of the given kind; `seed` decides its details. One rule, so that no kind is ever switched off."""
        getattr(self, kind)(Pick(seed))

    def deposit(self, pick: Pick) -> None:
        self.submit(parties.deposit(pick.of(PEOPLE), 1 + pick.below(500)))

    def transfer(self, pick: Pick) -> None:
        self.submit(parties.transfer(pick.of(PEOPLE), pick.of(PEOPLE), 1 + pick.below(300)))

    def fund_pool(self, units: int) -> None:
        pool = acts.pool_address(POOL)
        self.submit(pb.Transaction(
            **parties.signed("deposit", statement.deposit_body(pool, units), AUTHORITY),
            deposit=pb.Deposit(to=identity.encode_address(pool), amount_units=units)))

    def publish(self, pick: Pick) -> None:
        terms, reward, ms = pick.of(TERMS), pick.below(400), 1 + pick.below(40_000)
        order = replace(parties.order(reward, self.world.state.time_ms + ms), terms=terms)
        packed = order.pack()
        if self.submit(act(acts.Orders((packed, packed)), CUSTOMER) if pick.below(2) else parties.open_(order)):
            self.tasks.append(parties.task_id(order))
            if pick.below(4):
                self.submit(parties.assign(self.tasks[-1], 1 + pick.below(5)))

    def assign(self, pick: Pick) -> None:
        self.submit(parties.assign(self.task(pick), 1 + pick.below(6), pick.below(4)))

    def task(self, pick: Pick) -> bytes:
        """Mostly one that may be settled, now and then any."""
        escrows = self.world.state.escrows
        ready = [task for task in self.tasks if task in escrows and escrows[task].phase is Phase.ASSIGNED]
        return pick.of(ready if ready and pick.below(5) else self.tasks)

    def settle(self, pick: Pick) -> None:
        task, who = self.task(pick), pick.of(WORKERS)
        escrow = self.world.state.escrows.get(task)
        rows = []
        for _ in range(1 + pick.below(4)):
            nonce = self.world._nonces[who.public] = self.world._nonces.get(who.public, 0) + 1
            epoch = escrow.epoch if escrow else 1
            rows.append(parties.commitment(task, pick.below(escrow.jobs + 1 if escrow else 3), nonce, who, epoch))
        message = parties.settle([parties.batch(rows, who)])
        before, settled = self.parts(), escrow.settled if escrow else 0
        if self.submit(message):
            self.settlements.append((message, self.world.state.height))
            assert escrow is not None
            # Of what was settled 40 % are somebody's and the rest burns, within a unit per share and job.
            burn, paid = (new - old for new, old in zip(self.parts(), before, strict=True))
            units = escrow.settled - settled
            assert burn + paid == units
            assert units * 40 // 100 - 3 * len(rows) <= paid <= units * 40 // 100 + len(rows)

    def parts(self) -> tuple[int, int]:
        """(what will burn, what waits for anybody) of the open block."""
        found = self.world.state.records.get(Bucket.key(self.world.state.height))
        return (found.burn, sum(found.units.values())) if isinstance(found, Bucket) else (0, 0)

    def refund(self, pick: Pick) -> None:
        self.submit(parties.refund(self.task(pick), 1 + pick.below(2), pick.of((MARKET, MARKET, OTHER))))

    def confirm(self, pick: Pick) -> None:
        answered = [(escrow.task_id, job) for escrow in self.world.state.escrows.values() for job in escrow.answered]
        task, job = pick.of(answered) if answered and pick.below(5) else (self.task(pick), pick.below(6))
        self.submit(act(acts.Confirm(task, job, pick.of(WORKERS).public), pick.of((CUSTOMER, CUSTOMER, WORKER))))

    def retract(self, pick: Pick) -> None:
        self.submit(act(acts.Retract(pick.of(self.tasks)), pick.of((CUSTOMER, OTHER))))

    def stake(self, pick: Pick) -> None:
        self.submit(act(acts.Stake(1 + pick.below(300)), pick.of(PEOPLE)))

    def unstake(self, pick: Pick) -> None:
        self.submit(act(acts.Unstake(1 + pick.below(300)), pick.of(PEOPLE)))

    def contest(self, pick: Pick) -> None:
        if not self.settlements:
            return
        message, height = self.settlements[-1 - pick.below(min(len(self.settlements), 3))]
        if height == self.world.state.height:
            self.close_block()
        transaction = act(_evidence(self.world, message, pick.below(4), height), pick.of(CONTESTANTS))
        if self.submit(transaction):
            self.contests.append(transaction.id)

    def accuse(self, pick: Pick) -> None:
        who, nonce = pick.of(WORKERS), 1 + pick.below(2_000)
        task = self.task(pick)
        escrow = self.world.state.escrows.get(task)
        row = parties.commitment(task, pick.below(3), nonce, who, escrow.epoch if escrow else 1)
        leaf = merkle.leaf_hash(row)
        told = acts.Accuse(row, leaf, 0, 1, parties.batch([row], who).worker_signature, bytes(32), b"")
        transaction = act(told, ORCHESTRATOR if pick.below(4) else OTHER)
        if self.submit(transaction):
            if pick.below(2):
                self.submit(act(acts.Appeal(transaction.id), who))
            self.contests.append(transaction.id)

    def judge(self, pick: Pick) -> None:
        """Validators vote on a contest and, mostly, reveal in time and let it be decided."""
        contest = self.contests[-1 - pick.below(min(len(self.contests), 2))]
        verdicts = [(voter, 1 + pick.below(3) // 2 if pick.below(2) else acts.VERDICT_INVALID) for voter in VALIDATORS]
        for voter, verdict in verdicts:
            sealed = acts.sealed_vote(contest, voter.public, verdict, SALT)
            self.submit(act(acts.Vote(contest, sealed), voter))
        for _ in range(SMALL.vote_blocks + 1 if pick.below(5) else 0):
            self.close_block()
        for voter, verdict in verdicts:
            self.submit(act(acts.Reveal(contest, verdict, SALT), voter))
        self.close_block()

    def declare(self, pick: Pick) -> None:
        body, who = pick.of(((MODEL_ON, CUSTOMER), (POOL_ON, CUSTOMER), (DEPUTY, OTHER), (MODEL_OFF, CUSTOMER),
                             (POOL_OFF, CUSTOMER), (acts.Withdraw(POOL, address(OTHER), 7), CUSTOMER)))  # fmt: skip
        self.submit(act(body, who if pick.below(4) else WORKER))

    def pause(self, pick: Pick) -> None:
        on = pick.below(8) == 0
        self.submit(act(acts.Pause(int(on)), AUTHORITY if pick.below(4) else OTHER))

    def wait(self, pick: Pick) -> None:
        time_ms = self.world.state.time_ms + pick.below(2_000)
        self.world.chain.advance(time_ms)
        self.history.append(("time", time_ms))

    def seal(self, pick: Pick) -> None:
        for _ in range(1 + pick.below(4)):
            self.close_block()

    # ---- what must hold

    @invariant()
    def every_unit_is_somewhere_and_nothing_is_negative(self) -> None:
        state = self.world.state
        accounts, records = state.accounts.values(), state.records.values()
        assert sum(one.balance for one in accounts) + state.escrowed + state.maturing + state.staked + state.burned \
            == state.minted  # fmt: skip
        assert all(min(one.balance, one.held, one.pending) >= 0 for one in accounts)
        assert state.escrowed == sum(one.held for one in accounts) == sum(
            one.reward - one.settled - one.refunded for one in state.escrows.values() if one.phase in OPEN_PHASES)
        buckets = [one for one in records if isinstance(one, Bucket)]
        disputes = [one for one in records if isinstance(one, Dispute) and one.status is Status.OPEN]
        stakes = [one for one in records if isinstance(one, Stake)]
        assert all(one.burn >= 0 and min(one.units.values(), default=0) >= 0 for one in buckets)
        assert state.maturing == sum(one.burn + sum(one.units.values()) for one in buckets) + sum(
            one.parts.total for one in disputes)
        assert state.staked == sum(one.units + one.leaving for one in stakes) + sum(one.bond for one in disputes)
        assert all(one.units >= 0 and one.leaving >= 0 for one in stakes)
        for name, one in state.accounts.items():
            assert one.pending == sum(bucket.units.get(name, 0) for bucket in buckets)

    @invariant()
    def an_escrow_ends_once_and_its_money_is_divided(self) -> None:
        for task, escrow in self.world.state.escrows.items():
            assert escrow.jobs_settled == sum(byte.bit_count() for byte in escrow.seen)
            assert escrow.settled + escrow.refunded <= escrow.reward
            if escrow.phase not in OPEN_PHASES:
                assert self.ended.setdefault(task, escrow.phase) is escrow.phase
                assert escrow.settled + escrow.refunded == escrow.reward
                assert not escrow.answered

    def teardown(self) -> None:
        """The log alone, folded again, gives the same headers and the same state."""
        treasury = identity.address_bytes(TREASURY.public)
        chain = Chain(State(parties.CHAIN, AUTHORITY.public, treasury, Shares(), SMALL))
        headers = []
        for kind, what in self.history:
            if kind == "time":
                chain.advance(what)
            elif kind == "seal":
                headers.append(chain.seal().header)
            else:
                assert chain.apply(evidence.examine(parties.CHAIN, wire.transaction(what))).number
        assert headers == self.headers
        assert digest(chain.state) == digest(self.world.state)


def _evidence(world: World, message: pb.Transaction, row: int, height: int) -> acts.Contest:
    """What a contest of a settled result would say, if this was the block's only settlement."""
    columns = message.settle.batches[0]
    batch = evidence.Batch(columns.worker_key, columns.worker_signature, columns.commitments, columns.proof_hashes)
    results = batch.statements(ORCHESTRATOR.public)
    row %= len(results)
    root = world.state.roots.get(height)
    leaves = [merkle.leaf_hash(result) for result in results]
    # Refused rows are no leaves: take the subset that makes the block's root.
    for kept in (leaves, [leaves[row]]):
        if root is not None and merkle.root(kept) == root[0]:
            at = kept.index(leaves[row])
            return acts.Contest(results[row], ORCHESTRATOR.public, merkle.root(batch.signed_leaves), row,
                                height, at, b"".join(merkle.Tree(kept).path(at)))  # fmt: skip
    return acts.Contest(results[row], ORCHESTRATOR.public, bytes(32), row, height, 0, b"")


def _search(examples: int) -> None:
    """Histories that Hypothesis makes up, shrinks and shows."""
    run_state_machine_as_test(Economy, settings=settings(
        max_examples=examples, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck),
        database=None))


def _walk(seed: int) -> None:
    """One history of `STEPS` evenly drawn steps; the seed reproduces it."""
    random, economy = Random(seed), Economy()
    economy.begin(established=bool(seed % 4))
    for _ in range(STEPS):
        economy.step(random.choice(KINDS), random.randrange(2**32))
        economy.every_unit_is_somewhere_and_nothing_is_negative()
        economy.an_escrow_ends_once_and_its_money_is_divided()
    economy.teardown()


def test_the_economy_keeps_its_laws() -> None:
    _search(20)


@pytest.mark.parametrize("seed", range(40))
def test_the_economy_keeps_its_laws_on_a_walk(seed: int) -> None:
    _walk(seed)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_economy_keeps_its_laws_over_a_hundred_thousand_steps() -> None:
    _search(1_000)
    for seed in range(1_000, 2_000):
        _walk(seed)
