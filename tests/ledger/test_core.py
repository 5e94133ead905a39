"""Laws of the fold: no gRPC, no disk."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.trust import identity, merkle, paths, statement
from computemesh.trust.amount import MAX_UNITS, Shares
from computemesh.v1 import ledger_pb2 as pb
from ledger import block, wire
from ledger.block import Chain
from ledger.evidence import Batch, examine
from ledger.state import TRANSITIONS, WINDOW, Effects, Event, Phase, Reason, State, Window
from tests.ledger import parties
from tests.ledger.parties import CUSTOMER, MARKET, ORCHESTRATOR, OTHER, TREASURY, WORKER

NOW, DEADLINE = 1_000, 5_000


def new_chain(shares: Shares | None = None) -> Chain:
    treasury = identity.address_bytes(TREASURY.public)
    chain = Chain(State(parties.CHAIN, parties.AUTHORITY.public, treasury, shares or Shares()))
    chain.advance(NOW)
    return chain


def run(chain: Chain, *messages: pb.Transaction) -> list[Effects]:
    return [chain.apply(examine(parties.CHAIN, wire.transaction(message))) for message in messages]


def reason(chain: Chain, message: pb.Transaction) -> Reason | None:
    return run(chain, message)[0].reason


def balance(chain: Chain, key: identity.PrivateKey) -> int:
    account = chain.state.accounts.get(identity.address_bytes(key.public))
    return account.balance if account else 0


def conserved(state: State) -> bool:
    held = sum(account.held for account in state.accounts.values())
    balances = [account.balance for account in state.accounts.values()]
    return min(balances, default=0) >= 0 and held == state.escrowed and (
        sum(balances) + state.escrowed + state.maturing + state.staked + state.burned == state.minted)


def mature(chain: Chain) -> Chain:
    """Closes the dispute windows of everything settled so far."""
    for _ in range(chain.state.rules.dispute_window_blocks + 1):
        chain.seal()
    return chain


def funded(chain: Chain, reward: int = 1000, jobs: int = 4, market: identity.PrivateKey = MARKET) -> bytes:
    order = parties.order(reward, DEADLINE, market=market)
    task = parties.task_id(order)
    effects = run(
        chain, parties.deposit(CUSTOMER, reward), parties.open_(order), parties.assign(task, jobs, market=market))
    assert all(one.number for one in effects), effects
    return task


def settle_one(task: bytes, job: int, nonce: int, **options: object) -> pb.Transaction:
    return parties.settle([parties.batch([parties.commitment(task, job, nonce, **options)])])  # type: ignore[arg-type]


def test_every_phase_meets_every_event_and_closed_phases_stay_closed() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase in Phase for event in Event}
    for (phase, _), following in TRANSITIONS.items():
        if phase >= Phase.SETTLED and isinstance(following, Phase):
            assert following is phase


@pytest.mark.parametrize(("reward", "jobs"), [(10_000_000, 3), (1, 1), (7, 3), (999_999_999_999, 7), (19, 1), (3, 5)])
def test_reward_is_split_60_25_10_5_and_remainders_burn(reward: int, jobs: int) -> None:
    chain = new_chain()
    task = funded(chain, reward, jobs)
    run(chain, parties.settle([parties.batch([parties.commitment(task, job, job + 1) for job in range(jobs)])]))
    assert balance(chain, WORKER) == chain.state.burned == 0  # the dispute window is open
    mature(chain)
    parts = [reward * (job + 1) // jobs - reward * job // jobs for job in range(jobs)]
    assert balance(chain, WORKER) == sum(part * 25 // 100 for part in parts)
    assert balance(chain, ORCHESTRATOR) == sum(part * 10 // 100 for part in parts)
    assert balance(chain, TREASURY) == sum(part * 5 // 100 for part in parts)
    assert chain.state.burned == reward - sum(balance(chain, key) for key in (WORKER, ORCHESTRATOR, TREASURY))
    assert chain.state.escrows[task].phase is Phase.SETTLED
    assert conserved(chain.state)


def test_transactions_are_refused_with_their_reason() -> None:
    chain = new_chain()
    order = parties.order(500, DEADLINE)
    task = parties.task_id(order)
    bad = parties.deposit(CUSTOMER, 5)
    bad.deposit.amount_units = 6
    assert reason(chain, bad) is Reason.INVALID_SIGNATURE
    assert reason(chain, parties.deposit(CUSTOMER, 5, signer=OTHER)) is Reason.UNAUTHORIZED
    assert reason(chain, parties.open_(order)) is Reason.INSUFFICIENT_FUNDS
    assert reason(chain, parties.assign(task, 1)) is Reason.UNKNOWN_TASK
    assert reason(chain, parties.refund(task)) is Reason.UNKNOWN_TASK
    run(chain, parties.deposit(CUSTOMER, 1_000))
    assert reason(chain, parties.transfer(OTHER, CUSTOMER, 1)) is Reason.INSUFFICIENT_FUNDS
    assert reason(chain, parties.deposit(OTHER, MAX_UNITS)) is Reason.SUPPLY_EXCEEDED
    assert reason(chain, parties.open_(parties.order(5, NOW))) is Reason.TASK_EXPIRED
    assert reason(chain, parties.open_(parties.order(0, DEADLINE))) is Reason.INVALID_ORDER
    assert reason(chain, parties.open_(order)) is None
    assert reason(chain, parties.open_(order)) is Reason.DUPLICATE_TASK
    assert reason(chain, parties.assign(task, 1, market=OTHER)) is Reason.UNAUTHORIZED
    assert reason(chain, parties.assign(task, 2**21)) is Reason.INVALID_ASSIGNMENT
    assert reason(chain, parties.assign(task, 4, epoch=3)) is None
    assert reason(chain, parties.assign(task, 4, epoch=3)) is None  # an exact repeat
    assert reason(chain, parties.assign(task, 5, epoch=3)) is Reason.EXPIRED_EPOCH
    assert reason(chain, settle_one(task, 0, 1, epoch=3)) is None
    assert reason(chain, parties.assign(task, 5, epoch=4)) is Reason.INVALID_ASSIGNMENT
    assert reason(chain, parties.refund(task, market=OTHER)) is Reason.UNAUTHORIZED
    assert reason(chain, parties.refund(task)) is None
    assert reason(chain, parties.refund(task)) is Reason.ESCROW_CLOSED
    assert balance(chain, CUSTOMER) == 1_000 - 125
    assert conserved(chain.state)


def test_results_are_refused_each_with_its_own_reason() -> None:
    chain = new_chain()
    task, other = funded(chain), parties.order(100, DEADLINE)
    run(chain, parties.deposit(CUSTOMER, 100), parties.open_(other))
    foreign = parties.commitment(task, 0, 1, worker=OTHER)
    assert reason(chain, parties.settle([parties.batch([foreign])])) is Reason.WRONG_ADDRESS
    forged = parties.batch([parties.commitment(task, 0, 1)])
    forged.worker_signature = forged.worker_signature[:-1] + bytes([forged.worker_signature[-1] ^ 1])
    assert reason(chain, parties.settle([forged])) is Reason.INVALID_SIGNATURE
    stranger = parties.batch([parties.commitment(task, 0, 1), parties.commitment(task, 1, 2)], settled=[0])
    stranger.commitments = parties.commitment(task, 2, 3)
    assert reason(chain, parties.settle([stranger])) is Reason.INVALID_SIGNATURE
    assert reason(chain, settle_one(bytes(32), 0, 1)) is Reason.UNKNOWN_TASK
    assert reason(chain, settle_one(parties.task_id(other), 0, 1)) is Reason.UNFUNDED_TASK
    assert reason(chain, settle_one(task, 4, 1)) is Reason.INVALID_RESULT
    assert reason(chain, settle_one(task, 0, 1, epoch=0)) is Reason.EXPIRED_EPOCH
    assert reason(chain, settle_one(task, 0, 1, epoch=2)) is Reason.UNAUTHORIZED
    unassigned = parties.settle([parties.batch([parties.commitment(task, 0, 1)])], orchestrator=OTHER)
    assert reason(chain, unassigned) is Reason.UNAUTHORIZED
    assert reason(chain, settle_one(task, 0, 1)) is None
    assert reason(chain, settle_one(task, 0, 1)) is Reason.DUPLICATE_RESULT
    assert reason(chain, settle_one(task, 1, 1)) is Reason.NONCE_REPLAYED
    mixed = run(chain, parties.settle([parties.batch([parties.commitment(task, job, job + 1) for job in range(4)])]))[0]
    assert mixed.number
    assert [(one.position, one.reason) for one in mixed.refusals] == [(0, Reason.DUPLICATE_RESULT)]
    late = funded(chain)
    chain.advance(DEADLINE)
    assert reason(chain, settle_one(late, 0, 9)) is Reason.TASK_EXPIRED
    assert reason(chain, settle_one(task, 0, 9)) is Reason.DUPLICATE_RESULT
    assert conserved(chain.state)


def test_refunded_task_pays_nothing_and_keeps_what_was_settled() -> None:
    chain = new_chain()
    task = funded(chain, 1000, 4)
    run(chain, settle_one(task, 0, 1), parties.refund(task, statement.CAUSE_FAILED))
    assert reason(chain, settle_one(task, 1, 2)) is Reason.UNFUNDED_TASK
    assert reason(chain, settle_one(task, 0, 1)) is Reason.DUPLICATE_RESULT
    assert balance(chain, CUSTOMER) == 750


def test_deadline_refunds_with_nobody_asking_and_time_never_goes_back() -> None:
    chain = new_chain()
    task = funded(chain, 1000, 4)
    run(chain, settle_one(task, 0, 1))
    assert chain.advance(DEADLINE - 1) == 0
    assert chain.advance(DEADLINE) == 1
    assert chain.advance(0) == 0
    assert chain.state.time_ms == DEADLINE
    assert chain.state.escrows[task].phase is Phase.EXPIRED
    assert balance(chain, CUSTOMER) == 750
    assert conserved(chain.state)


@given(st.lists(st.integers(0, 3 * WINDOW) | st.integers(2**64 - 5, 2**64 - 1), max_size=60))
@settings(max_examples=60, deadline=None)
def test_nonce_window_agrees_with_a_set(nonces: list[int]) -> None:
    window, used, highest = Window(), {0}, 0
    for nonce in nonces:
        expected = nonce in used or nonce < highest - WINDOW
        assert window.seen(nonce) is expected
        if not expected:
            window.take(nonce)
            used.add(nonce)
            highest = max(highest, nonce)
    assert window.highest == highest
    assert window.below < 2**WINDOW


def test_spliced_results_are_the_statements_bytes() -> None:
    task = bytes(range(32))
    rows = [parties.commitment(task, job, job + 1) for job in range(5)]
    message = parties.batch(rows, settled=[1, 3, 4])
    batch = Batch(
        message.worker_key, message.worker_signature, message.commitments, message.proof_hashes,
        tuple(message.positions), message.leaf_hashes)
    root = merkle.root(batch.signed_leaves)
    for at, spliced in zip((1, 3, 4), batch.statements(ORCHESTRATOR.public), strict=True):
        result = statement.Result.unpack(spliced)
        commitment = statement.Commitment.unpack(rows[at])
        assert (result.task_id, result.job, result.worker_key, result.result_hash, result.nonce) == (
            commitment.task_id, commitment.job, commitment.worker_key, commitment.result_hash, commitment.nonce)
        assert result.authorisation == statement.authorisation(ORCHESTRATOR.public, root, at)


def test_stored_nodes_prove_what_a_whole_tree_proves() -> None:
    tree, nodes, leaves = merkle.CompactRange(), {}, []
    for size in range(1, 70):
        leaf = merkle.leaf_hash(size.to_bytes(2, "big"))
        nodes.update({(level, index): value for level, index, value in block.appended_nodes(tree, leaf)})
        tree.append(leaf)
        leaves.append(leaf)
        whole = merkle.Tree(leaves)
        assert paths.root(lambda level, index: nodes[level, index], size) == whole.root
        for old in range(1, size + 1):
            path = paths.consistency(lambda level, index: nodes[level, index], old, size)
            assert merkle.verify_consistency(old, size, merkle.root(leaves[:old]), whole.root, path)
        for index in range(size):
            assert paths.inclusion(lambda level, at: nodes[level, at], index, size) == whole.path(index)


def _story() -> Iterable[pb.Transaction]:
    """A fixed mixture of everything, refused ones included."""
    first, second = parties.order(1003, DEADLINE), parties.order(77, NOW + 2)
    a, b = parties.task_id(first), parties.task_id(second)
    yield parties.deposit(CUSTOMER, 5000)
    yield parties.transfer(CUSTOMER, OTHER, 11)
    yield parties.open_(first)
    yield parties.open_(second)
    yield parties.assign(a, 3)
    yield parties.assign(b, 2)
    yield settle_one(a, 2, 5)
    yield settle_one(a, 2, 6)
    yield parties.settle([parties.batch([parties.commitment(a, 0, 7), parties.commitment(b, 0, 8)])])
    yield parties.refund(b)
    yield settle_one(a, 1, 9)


def test_batch_boundaries_change_headers_but_no_balance() -> None:
    messages = list(_story())
    states = []
    for every in (1, 3, 100):
        chain = new_chain()
        for at, message in enumerate(messages):
            run(chain, message)
            if at % every == every - 1:
                chain.collect()
                chain.seal()
        states.append(mature(chain).state)
    assert all(state.accounts == states[0].accounts and state.escrows == states[0].escrows for state in states)
    assert all((s.minted, s.burned, s.escrowed, s.workers) == (
        states[0].minted, states[0].burned, states[0].escrowed, states[0].workers) for s in states)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("deposit", "transfer", "open", "assign", "settle", "refund", "time")),
              st.integers(0, 5), st.integers(1, 400)), max_size=40)  # fmt: skip


@given(OPERATIONS)
@settings(max_examples=40, deadline=None)
def test_supply_is_conserved_after_every_step(operations: list[tuple[str, int, int]]) -> None:
    chain, tasks, nonce = new_chain(), [bytes(32)], 0
    for kind, which, size in operations:
        task, nonce = tasks[which % len(tasks)], nonce + 1
        if kind == "deposit":
            run(chain, parties.deposit(CUSTOMER, size))
        elif kind == "transfer":
            run(chain, parties.transfer((CUSTOMER, WORKER)[which % 2], OTHER, size))
        elif kind == "open":
            order = parties.order(size, chain.state.time_ms + 50 * which + 1)
            run(chain, parties.open_(order))
            tasks.append(parties.task_id(order))
        elif kind == "assign":
            run(chain, parties.assign(task, size % 7 + 1, epoch=which))
        elif kind == "settle":
            rows = [parties.commitment(task, job, nonce * 10 + job, epoch=which) for job in range(size % 5 + 1)]
            run(chain, parties.settle([parties.batch(rows)]))
        elif kind == "refund":
            run(chain, parties.refund(task, which % 2 + 1))
        else:
            chain.advance(chain.state.time_ms + size)
        assert conserved(chain.state)
        for escrow in chain.state.escrows.values():
            assert escrow.jobs_settled == sum(byte.bit_count() for byte in escrow.seen) <= max(escrow.jobs, 0)
            assert escrow.settled + escrow.refunded <= escrow.reward
