"""`make sim-market`: a fleet in which a part of the workers cheats, against the real ledger fold and the real sampling.

Every worker starts with the same stake. In each round the orchestrator gives every job to a worker; what comes back is
committed and signed, challenged with units that `trust.audit.sample` draws, and settled or accused on the ledger
(`ledger.block.Chain`). A cheat computes only a part of its units, or none; computing a job costs its worker
`COST` of what an honest job pays. Everything follows from the seed.

Profit is what became of a cheat's money: rewards, less what it lost of its stake, less what it computed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from computemesh.trust import acts, audit, envelope, identity, merkle, statement
from computemesh.trust.amount import CPC, Shares, format_cpc
from computemesh.trust.digest import payload_digest
from computemesh.trust.identity import PrivateKey
from computemesh.trust.reputation import reputation
from ledger.block import Chain
from ledger.evidence import (
    Assign,
    Batch,
    Body,
    Deposit,
    Open,
    Refund,
    Settle,
    Transaction,
    examine,
)
from ledger.records import Stake
from ledger.state import Effects, Rules, State
from orchestrator.state import UNANSWERED_LIMIT, sample_size

CHAIN = "sim-market"
UNITS = 256
"""Units of a job."""
FULL_SAMPLE = 32
REWARD = CPC
"""Of one job; a quarter of it is the worker's."""
COST = 0.8
"""Of the worker's share: what computing a job honestly costs it."""
STAKE = 50 * CPC
"""What everybody has at stake in the beginning, 200 jobs' pay."""
LEAST_STAKE = 10 * CPC
"""A worker with less gets no jobs."""
RULES = Rules(dispute_window_blocks=2, vote_blocks=2, unbonding_blocks=50, cooldown_blocks=200, slash_percent=50)


def key(number: int) -> PrivateKey:
    """The key of a party."""
    return PrivateKey.from_bytes((number + 1).to_bytes(32, "big"))


AUTHORITY, MARKET, ORCHESTRATOR, CUSTOMER, TREASURY = (key(number) for number in range(5))


@dataclass
class Worker:
    """One worker: what it does is `share(worker, random)`, the share of units it gets wrong, or None for no opening."""

    key: PrivateKey
    strategy: str
    share: Callable[[Worker, random.Random], float | None]
    jobs: int = 0
    lies: int = 0
    caught: int = 0
    unanswered: int = 0
    spent: float = 0.0
    nonce: int = 0

    @property
    def address(self) -> bytes:
        """20 bytes."""
        return identity.address_bytes(self.key.public)


def _honest(worker: Worker, rng: random.Random) -> float | None:
    return 0.0


def _trusted_first(worker: Worker, rng: random.Random) -> float | None:
    return 0.0 if worker.jobs < 300 else 0.1


STRATEGIES: dict[str, Callable[[Worker, random.Random], float | None]] = {
    "random garbage": lambda worker, rng: 1.0,
    "skips 1 % of units": lambda worker, rng: 0.01,
    "skips 5 % of units": lambda worker, rng: 0.05,
    "skips 20 % of units": lambda worker, rng: 0.2,
    "builds trust, then skips 10 %": _trusted_first,
    # The seeds are bound to the worker, so another's units are all wrong; so is every unit of a cheaper precision
    # (docs/task-types.md: bfloat16, float16 and TF32 are refused in every unit).
    "copies another's commitment": lambda worker, rng: 1.0,
    "computes in a lower precision": lambda worker, rng: 1.0,
    "commits, then vanishes": lambda worker, rng: None,
    "many owners, each skips 5 %": lambda worker, rng: 0.05,
}
SAVES = {"computes in a lower precision": 0.5}
"""Share of the cost that a strategy saves where it is not its share of wrong units."""


class Market:
    """The ledger and the orchestrator's rules, without network and clock."""

    def __init__(self, workers: list[Worker], seed: int) -> None:
        self.rng = random.Random(seed)
        treasury = identity.address_bytes(TREASURY.public)
        self.chain = Chain(State(CHAIN, AUTHORITY.public, treasury, Shares(), RULES))
        self.chain.advance(1)
        self.workers = workers
        self._ids = iter(range(1, 2**40))
        self.drawn = self.units = 0
        for worker in workers:
            self._staked(worker.key, STAKE)
        self._staked(ORCHESTRATOR, 1000 * CPC)

    def _apply(self, transaction: Transaction) -> Effects:
        return self.chain.apply(examine(CHAIN, transaction))

    def _do(self, transaction: Transaction) -> None:
        effects = self._apply(transaction)
        if not effects.number:
            raise AssertionError(f"{effects.reason}: {effects.message}")

    def _id(self) -> bytes:
        return next(self._ids).to_bytes(16, "big")

    def _act(self, act: acts.Act, signer: PrivateKey) -> Transaction:
        tx_id = self._id()
        return Transaction(tx_id, signer.public, signer.sign(acts.digest(act, CHAIN, tx_id)), act)

    def _signed(self, kind: str, packed: bytes, body: Body, signer: PrivateKey) -> Transaction:
        tx_id = self._id()
        signature = signer.sign(statement.transaction_digest(kind, CHAIN, tx_id, packed))
        return Transaction(tx_id, signer.public, signature, body)

    def _deposit(self, who: PrivateKey, units: int) -> None:
        to = identity.address_bytes(who.public)
        self._do(self._signed("deposit", statement.deposit_body(to, units), Deposit(to, units), AUTHORITY))

    def _staked(self, who: PrivateKey, units: int) -> None:
        self._deposit(who, units)
        self._do(self._act(acts.Stake(units), who))

    def stake(self, worker: Worker) -> Stake:
        """What is left of a worker's stake."""
        found = self.chain.state.records.get(Stake.key(worker.address))
        assert isinstance(found, Stake)
        return found

    def sample_of(self, worker: Worker) -> int:
        """k, as its reputation makes it."""
        account, stake = self.chain.state.accounts.get(worker.address), self.stake(worker)
        results = account.results if account else 0
        return sample_size(FULL_SAMPLE, reputation(results, stake.lost, stake.cooldown_height, self.chain.height).score)

    def round(self) -> None:
        """A task with a job for every worker that has the stake to get one."""
        able = [worker for worker in self.workers if self.stake(worker).units >= LEAST_STAKE]
        if not able:
            return
        reward = REWARD * len(able)
        self._deposit(CUSTOMER, reward)
        order = statement.Order(
            self._id(), CUSTOMER.public, MARKET.public, statement.challenge_type_hash("synthetic"), payload_digest({}),
            reward, 2**40)  # fmt: skip
        task_id = order.task_id(CHAIN)
        self._do(Transaction(order.request_id, CUSTOMER.public, envelope.sign(CUSTOMER, "order", CHAIN, order.pack()),
                             Open(order, order.pack())))  # fmt: skip
        assignment = statement.Assignment(task_id, ORCHESTRATOR.public, 1, len(able))
        packed = assignment.pack()
        self._do(self._signed("assign", packed, Assign(assignment, packed), MARKET))
        for job, worker in enumerate(able):
            self._job(worker, task_id, job)
        if self.chain.state.escrows[task_id].jobs_settled < len(able):
            cause = statement.CAUSE_FAILED
            self._do(self._signed("refund", statement.refund_body(task_id, cause), Refund(task_id, cause), MARKET))
        self.chain.seal()

    def _job(self, worker: Worker, task_id: bytes, job: int) -> None:
        """Computed, committed, challenged, and settled or accused."""
        wrong = worker.share(worker, self.rng)
        worker.jobs += 1
        worker.nonce += 1
        lie = wrong is None or wrong > 0
        worker.lies += lie
        done = 0.0 if wrong is None else 1 - SAVES.get(worker.strategy, wrong)
        worker.spent += COST * done * REWARD / 4
        commitment = statement.Commitment(
            task_id, job, 1, 1, worker.key.public, self.rng.randbytes(32), worker.nonce).pack()
        signature = statement.sign_commitments(worker.key, CHAIN, commitment)
        k, bad = self.sample_of(worker), set()
        if wrong:
            bad = set(self.rng.sample(range(UNITS), max(round(wrong * UNITS), 1)))
        drawn = audit.sample(self.rng.randbytes(32), merkle.leaf_hash(commitment), UNITS, k)
        self.drawn, self.units = self.drawn + len(drawn), self.units + UNITS
        if wrong is None:
            worker.unanswered += 1
            worker.caught += 1
            if worker.unanswered % UNANSWERED_LIMIT == 0:  # a crash is no lie; three in a row are
                self._accuse(commitment, signature)
        elif bad.intersection(drawn):
            worker.caught += 1
            self._accuse(commitment, signature)
        else:
            self._settle(worker, commitment, signature)

    def _accuse(self, commitment: bytes, signature: bytes) -> None:
        leaf = merkle.leaf_hash(commitment)
        self._do(self._act(acts.Accuse(commitment, leaf, 0, 1, signature, bytes(32), b""), ORCHESTRATOR))

    def _settle(self, worker: Worker, commitment: bytes, signature: bytes) -> None:
        batch = Batch(worker.key.public, signature, commitment, bytes(32))
        leaves = [merkle.leaf_hash(one) for one in batch.statements(ORCHESTRATOR.public)]
        self._do(self._signed(
            "settle", statement.settle_body(len(leaves), merkle.root(leaves)), Settle((batch,)), ORCHESTRATOR))

    def finish(self) -> None:
        """Closes every window, so that what was earned and lost is final."""
        for _ in range(RULES.dispute_window_blocks + 1):
            self.chain.seal()
        state = self.chain.state
        held = state.escrowed + state.maturing + state.staked + state.burned
        if sum(account.balance for account in state.accounts.values()) + held != state.minted:
            raise AssertionError("supply is not conserved")

    def profit(self, worker: Worker) -> float:
        """Base units: rewards, less stake lost, less computing."""
        account, stake = self.chain.state.accounts[worker.address], self.stake(worker)
        return account.balance + stake.units + stake.leaving - STAKE - worker.spent


@dataclass(frozen=True)
class Row:
    """What came of one strategy at one share of cheats."""

    strategy: str
    cheats_percent: int
    lies: int
    caught: int
    profit: float
    honest_profit: float
    honest_slashed: int
    audit_percent: float


def play(strategy: str, percent: int, fleet: int, rounds: int, seed: int) -> Row:
    """One fleet over so many rounds."""
    cheats = max(fleet * percent // 100, 1) * (4 if strategy.startswith("many owners") else 1)
    people = [
        Worker(key(100 + at), strategy if at < cheats else "honest", STRATEGIES[strategy] if at < cheats else _honest)
        for at in range(max(fleet, cheats + 1))
    ]
    market = Market(people, seed)
    for _ in range(rounds):
        market.round()
    market.finish()
    bad = [worker for worker in people if worker.strategy != "honest"]
    good = [worker for worker in people if worker.strategy == "honest"]
    return Row(
        strategy, percent, sum(worker.lies for worker in bad), sum(worker.caught for worker in bad),
        sum(market.profit(worker) for worker in bad) / len(bad), sum(map(market.profit, good)) / len(good),
        sum(market.stake(worker).slashed > 0 for worker in good), 100 * market.drawn / market.units)  # fmt: skip


def rows(fleet: int, rounds: int, seed: int, percents: tuple[int, ...] = (5, 10, 20, 40)) -> Iterator[Row]:
    """Every strategy at every share."""
    for strategy in STRATEGIES:
        for percent in percents:
            yield play(strategy, percent, fleet, rounds, seed)


def main() -> None:
    """Prints the table, and the same as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.fleet} workers, {options.rounds} jobs each at most, {UNITS} units a job, k {FULL_SAMPLE} down to "
          f"8 by reputation; stake {format_cpc(STAKE)} CPC, a job pays {REWARD / 4 / CPC} CPC, costs {COST:.0%} of it")
    print(f"{'strategy':<32}{'cheats':>7}{'lies':>7}{'caught':>8}{'profit of a cheat':>19}{'of an honest':>14}"
          f"{'honest slashed':>16}{'units audited':>15}")
    found = []
    for row in rows(options.fleet, options.rounds, options.seed):
        print(f"{row.strategy:<32}{row.cheats_percent:>6}%{row.lies:>7}{row.caught / max(row.lies, 1):>8.0%}"
              f"{row.profit / CPC:>15.2f} CPC{row.honest_profit / CPC:>10.2f} CPC{row.honest_slashed:>16}"
              f"{row.audit_percent:>14.1f}%")
        found.append(row)
    worst = max(found, key=lambda row: row.profit)
    print(json.dumps({
        "rows": len(found), "largest_profit_of_a_cheat_cpc": round(worst.profit / CPC, 3), "of": worst.strategy,
        "honest_slashed": sum(row.honest_slashed for row in found)}))


if __name__ == "__main__":
    main()
