"""Rules of the economy, one law each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from computemesh.trust import acts, identity, merkle, statement
from computemesh.v1 import ledger_pb2 as pb
from ledger.records import Status
from ledger.state import Phase, Reason
from tests.ledger import parties
from tests.ledger.economy import CONTESTANT, CUSTOMER, RULES, VALIDATORS, WORKER, World, act, address
from tests.ledger.parties import AUTHORITY, MARKET, ORCHESTRATOR, OTHER, TREASURY, key

VALID, INVALID = acts.VERDICT_VALID, acts.VERDICT_INVALID


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def court(world: World) -> World:
    """Everybody who takes part in a dispute has a stake, since before it begins."""
    for who in (CONTESTANT, WORKER, *VALIDATORS):
        world.staked(who, 2_000)
    world.seal()
    return world


# ---- maturing ------------------------------------------------------------------------------------------------------
def test_a_reward_is_free_and_burned_only_once_its_window_closed(world: World) -> None:
    task = world.task(1000, 4)
    world.settle(task, range(4))
    for _ in range(RULES.dispute_window_blocks):
        world.seal()
        assert (world.balance(WORKER), world.state.burned, world.state.maturing) == (0, 0, 1000)
        assert world.state.accounts[address(WORKER)].pending == 248
    world.seal()
    assert [world.balance(who) for who in (WORKER, ORCHESTRATOR, TREASURY)] == [248, 100, 48]
    assert (world.state.burned, world.state.maturing, world.state.accounts[address(WORKER)].pending) == (604, 0, 0)


# ---- stake ---------------------------------------------------------------------------------------------------------
def test_stake_leaves_the_balance_and_comes_back_after_the_unbonding_time(world: World) -> None:
    world.staked(WORKER, 500)
    assert (world.balance(WORKER), world.stake(WORKER).units) == (0, 500)
    assert world.reason(act(acts.Unstake(501), WORKER)) is Reason.INSUFFICIENT_STAKE
    world.do(act(acts.Unstake(200), WORKER))
    world.seal(RULES.unbonding_blocks)
    assert (world.balance(WORKER), world.stake(WORKER).leaving) == (0, 200)
    world.seal()
    assert (world.balance(WORKER), world.stake(WORKER).units, world.stake(WORKER).leaving) == (200, 300, 0)


def test_nobody_stakes_what_it_has_not(world: World) -> None:
    assert world.reason(act(acts.Stake(1), WORKER)) is Reason.INSUFFICIENT_FUNDS


# ---- disputes ------------------------------------------------------------------------------------------------------
def test_a_valid_contest_refunds_the_customer_and_slashes_the_worker(court: World) -> None:
    contest = court.contested(court.task(1000, 1))
    court.do(act(acts.Unstake(500), WORKER))  # does not save it
    court.judge(contest, dict.fromkeys(VALIDATORS, INVALID))
    dispute = court.dispute(contest)
    assert (dispute.status, dispute.slashed) == (Status.UPHELD, 1_000)  # half of stake and unbonding
    assert court.balance(CUSTOMER) == 1000
    assert (court.stake(WORKER).units, court.stake(WORKER).leaving) == (500, 500)
    assert court.balance(CONTESTANT) == 500  # its costs; the bond is back at stake
    assert court.stake(CONTESTANT).units == 2_000
    assert [court.balance(one) for one in VALIDATORS] == [83, 83, 83]
    assert court.state.burned == 1_000 - 500 - 249
    assert court.stake(WORKER).cooldown_height > court.state.height
    assert (court.balance(ORCHESTRATOR), court.state.maturing) == (0, 0)
    assert court.totals()[0] == court.totals()[1]


def test_a_false_contest_costs_its_bond_and_pays_the_accused(court: World) -> None:
    contest = court.contested(court.task(1000, 1))
    assert court.stake(CONTESTANT).units == 2_000 - 100
    court.judge(contest, {VALIDATORS[0]: VALID, VALIDATORS[1]: VALID, VALIDATORS[2]: INVALID})
    assert court.dispute(contest).status is Status.REJECTED
    assert court.balance(WORKER) == 250 + 50
    assert [court.balance(one) for one in VALIDATORS] == [12, 12, 0]
    assert (court.stake(CONTESTANT).units, court.stake(CONTESTANT).lost) == (1_900, 1)
    assert court.state.burned == 600 + 100 - 50 - 24
    assert court.totals()[0] == court.totals()[1]


def test_a_tie_goes_to_the_accused(court: World) -> None:
    fourth = key(310)
    court.staked(fourth, 2_000)
    court.seal()
    contest = court.contested(court.task(1000, 1))
    court.judge(contest, {VALIDATORS[0]: INVALID, VALIDATORS[1]: INVALID, VALIDATORS[2]: VALID, fourth: VALID})
    assert court.dispute(contest).status is Status.REJECTED
    assert court.stake(CONTESTANT).lost == 1


def test_without_a_quorum_the_result_stands_and_nobody_pays(court: World) -> None:
    contest = court.contested(court.task(1000, 1))
    court.judge(contest, dict.fromkeys(VALIDATORS, INVALID), revealing=VALIDATORS[:2])
    assert court.dispute(contest).status is Status.REJECTED
    assert (court.balance(WORKER), court.stake(CONTESTANT).units, court.stake(WORKER).units) == (250, 2_000, 2_000)


def test_a_voters_weight_is_capped_at_its_percent_of_the_votes(court: World) -> None:
    rich = key(311)
    court.staked(rich, 1_000_000)
    court.seal()
    contest = court.contested(court.task(1000, 1))
    court.judge(contest, {rich: VALID} | dict.fromkeys(VALIDATORS, INVALID))
    weights = {who: vote.weight for who, vote in court.dispute(contest).votes.items()}
    assert weights[address(rich)] == (1_000_000 + 6_000) * 40 // 100


def test_stake_acquired_after_the_contest_does_not_count(court: World) -> None:
    late = key(312)
    contest = court.contested(court.task(1000, 1))
    court.staked(late, 5_000)
    vote = acts.Vote(contest, acts.sealed_vote(contest, late.public, INVALID, parties.new_id() * 2))
    assert court.reason(act(vote, late)) is Reason.INELIGIBLE_VOTER


def test_parties_vote_not_and_nobody_twice_and_only_in_time(court: World) -> None:
    contest = court.contested(court.task(1000, 1))
    for who in (CONTESTANT, WORKER, ORCHESTRATOR):
        sealed = acts.sealed_vote(contest, who.public, VALID, b"s" * 32)
        assert court.reason(act(acts.Vote(contest, sealed), who)) is Reason.INELIGIBLE_VOTER
    voter = VALIDATORS[0]
    vote = acts.Vote(contest, acts.sealed_vote(contest, voter.public, VALID, b"s" * 32))
    court.do(act(vote, voter))
    assert court.reason(act(vote, voter)) is Reason.DUPLICATE_VOTE
    assert court.reason(act(acts.Reveal(contest, VALID, b"s" * 32), voter)) is Reason.VOTING_CLOSED
    court.seal(RULES.vote_blocks + 1)
    assert court.reason(act(vote, VALIDATORS[1])) is Reason.VOTING_CLOSED
    assert court.reason(act(acts.Reveal(contest, INVALID, b"s" * 32), voter)) is Reason.WRONG_REVEAL
    court.do(act(acts.Reveal(contest, VALID, b"s" * 32), voter))
    assert court.reason(act(acts.Reveal(contest, VALID, b"s" * 32), voter)) is Reason.DUPLICATE_VOTE
    assert court.reason(act(acts.Reveal(b"?" * 16, VALID, b"s" * 32), voter)) is Reason.UNKNOWN_DISPUTE


def test_a_contest_needs_evidence_stake_and_time(court: World) -> None:
    task = court.task(1000, 2)
    transaction = court.settlement(task, [0, 1])
    court.do(transaction)
    told = court.evidence(transaction)
    assert court.reason(act(told, OTHER)) is Reason.INSUFFICIENT_STAKE
    for wrong in (replace(told, leaf_index=1), replace(told, path=b""), replace(told, commitment_root=bytes(32)),
                  replace(told, position=1), replace(told, orchestrator_key=MARKET.public)):  # fmt: skip
        assert court.reason(act(wrong, CONTESTANT)) is Reason.INVALID_EVIDENCE
    court.do(act(told, CONTESTANT))
    assert court.reason(act(told, CONTESTANT)) is Reason.NOT_CONTESTABLE
    court.seal(RULES.dispute_window_blocks)
    assert court.reason(act(court_result(court, transaction, 1, told.height), CONTESTANT)) is Reason.NOT_CONTESTABLE


def court_result(court: World, transaction: object, which: int, height: int) -> acts.Contest:
    """The evidence of another result of a block that is sealed already."""
    return replace(court.evidence(transaction, which), height=height)  # type: ignore[arg-type]


# ---- accusations ---------------------------------------------------------------------------------------------------
def accusation(task: bytes, nonce: int = 1, worker: identity.PrivateKey = WORKER) -> acts.Accuse:
    """What the orchestrator says of the second of two commitments."""
    rows = [parties.commitment(task, job, nonce + job, worker=worker) for job in range(2)]
    tree = merkle.Tree([merkle.leaf_hash(row) for row in rows])
    return acts.Accuse(rows[1], tree.root, 1, 2, parties.batch(rows, worker).worker_signature, b"t" * 32,
                       b"".join(tree.path(1)))  # fmt: skip


def test_an_accusation_without_an_appeal_costs_the_worker_its_share_of_stake(court: World) -> None:
    court.staked(ORCHESTRATOR, 100)
    task = court.task(1000, 2)
    message = act(accusation(task), ORCHESTRATOR)
    court.do(message)
    court.seal(RULES.dispute_window_blocks + 1)
    assert court.dispute(message.id).status is Status.UPHELD
    assert (court.stake(WORKER).units, court.stake(WORKER).lost) == (1_000, 1)
    assert (court.balance(ORCHESTRATOR), court.stake(ORCHESTRATOR).units) == (500, 100)
    assert court.state.burned == 500
    assert court.totals()[0] == court.totals()[1]


def test_validators_decide_on_an_appeal(court: World) -> None:
    court.staked(ORCHESTRATOR, 100)
    message = act(accusation(court.task(1000, 2)), ORCHESTRATOR)
    court.do(message)
    assert court.reason(act(acts.Vote(message.id, bytes(32)), VALIDATORS[0])) is Reason.VOTING_CLOSED
    assert court.reason(act(acts.Appeal(message.id), OTHER)) is Reason.UNAUTHORIZED
    court.do(act(acts.Appeal(message.id), WORKER))
    assert court.reason(act(acts.Appeal(message.id), WORKER)) is Reason.DUPLICATE_VOTE
    court.judge(message.id, dict.fromkeys(VALIDATORS, VALID))
    assert court.dispute(message.id).status is Status.REJECTED
    assert (court.stake(WORKER).units, court.balance(WORKER), court.stake(ORCHESTRATOR).units) == (2_000, 50, 0)


def test_an_accusation_needs_the_workers_signature_and_the_assignment(court: World) -> None:
    court.staked(ORCHESTRATOR, 1_000)
    task = court.task(1000, 2)
    told = accusation(task)
    assert court.reason(act(told, OTHER)) is Reason.UNAUTHORIZED
    for wrong in (replace(told, worker_signature=bytes(64)), replace(told, position=0), replace(told, count=3)):
        assert court.reason(act(wrong, ORCHESTRATOR)) is Reason.INVALID_EVIDENCE
    court.do(act(told, ORCHESTRATOR))
    assert court.reason(act(told, ORCHESTRATOR)) is Reason.NOT_CONTESTABLE
    court.settle(task, [0])  # takes nonce 1; what is settled cannot be accused
    rows = [parties.commitment(task, 0, 1)]
    again = acts.Accuse(rows[0], merkle.leaf_hash(rows[0]), 0, 1, parties.batch(rows).worker_signature, bytes(32), b"")
    assert court.reason(act(again, ORCHESTRATOR)) is Reason.NOT_CONTESTABLE


# ---- delivery ------------------------------------------------------------------------------------------------------
MANUAL = statement.Terms(statement.DELIVERY_MANUAL, responses=2, confirm_window_s=10)


def test_the_customer_picks_among_responses(world: World) -> None:
    task = world.task(1000, 1, MANUAL)
    world.settle(task, [0], WORKER)
    assert world.settle(task, [0], WORKER).reason is Reason.DUPLICATE_RESULT  # a worker answers once
    world.settle(task, [0], OTHER)
    assert (world.state.escrowed, world.state.escrows[task].jobs_settled) == (1000, 0)
    assert world.settle(task, [0], key(320)).reason is Reason.DUPLICATE_RESULT  # two were asked for
    pick = acts.Confirm(task, 0, OTHER.public)
    assert world.reason(act(pick, WORKER)) is Reason.UNAUTHORIZED
    assert world.reason(act(replace(pick, worker_key=key(320).public), CUSTOMER)) is Reason.INVALID_RESULT
    world.do(act(pick, CUSTOMER))
    assert world.reason(act(pick, CUSTOMER)) is Reason.DUPLICATE_RESULT
    world.seal(RULES.dispute_window_blocks + 1)
    assert (world.balance(OTHER), world.balance(WORKER)) == (250, 0)
    assert world.state.escrows[task].phase is Phase.SETTLED


def test_silence_picks_the_first_response(world: World) -> None:
    task = world.task(1000, 1, MANUAL)
    world.settle(task, [0], OTHER)
    world.settle(task, [0], WORKER)
    world.chain.advance(world.state.time_ms + 9_999)
    assert world.state.escrows[task].phase is Phase.ASSIGNED
    world.chain.advance(world.state.time_ms + 1)
    world.seal(RULES.dispute_window_blocks + 1)
    assert (world.balance(OTHER), world.balance(WORKER)) == (250, 0)


def test_a_cancelled_manual_task_pays_what_was_answered_and_refunds_the_rest(world: World) -> None:
    task = world.task(1000, 4, MANUAL)
    world.settle(task, [2], OTHER)
    world.do(parties.refund(task))
    world.seal(RULES.dispute_window_blocks + 1)
    assert (world.balance(OTHER), world.balance(CUSTOMER)) == (62, 750)
    assert world.totals()[0] == world.totals()[1]


# ---- who pays ------------------------------------------------------------------------------------------------------
def test_a_delegated_key_publishes_but_cannot_withdraw(world: World) -> None:
    owner, deputy = key(330), CUSTOMER
    world.fund(owner, 1000)
    terms = statement.Terms(payer=address(owner))
    order = replace(parties.order(400, 10_000_000), terms=terms)
    assert world.reason(parties.open_(order)) is Reason.UNAUTHORIZED
    world.do(act(acts.Delegate(deputy.public, acts.MAY_PUBLISH, world.state.time_ms + 100), owner))
    world.do(parties.open_(order))
    assert world.balance(owner) == 600
    assert world.reason(parties.transfer(deputy, deputy, 1)) is Reason.INSUFFICIENT_FUNDS
    world.do(parties.refund(parties.task_id(order)))
    assert (world.balance(owner), world.balance(deputy)) == (1000, 0)
    world.chain.advance(world.state.time_ms + 100)
    assert world.reason(parties.open_(replace(parties.order(400, 10_000_000), terms=terms))) is Reason.UNAUTHORIZED


def test_a_pool_pays_for_its_owners_tasks_while_it_is_active(world: World) -> None:
    name = acts.name_hash("frames")
    open_, pool = acts.Pool(name, acts.name_hash("rendering"), 1), acts.pool_address(name)
    world.do(act(open_, CUSTOMER))
    assert world.reason(act(open_, OTHER)) is Reason.UNAUTHORIZED
    world.fund(OTHER, 1000)
    body = statement.transfer_body(pool, 900)
    world.do(pb.Transaction(**parties.signed("transfer", body, OTHER), transfer=pb.Transfer(
        to=identity.encode_address(pool), amount_units=900)))
    terms = statement.Terms(payer=pool)
    task = world.task(400, 1, terms)
    world.do(parties.refund(task))
    assert world.state.accounts[pool].balance == 900
    world.do(act(replace(open_, active=0), CUSTOMER))
    assert world.reason(parties.open_(replace(parties.order(400, 10_000_000), terms=terms))) is Reason.POOL_INACTIVE
    withdraw = acts.Withdraw(name, address(CUSTOMER), 900)
    assert world.reason(act(withdraw, OTHER)) is Reason.UNAUTHORIZED
    assert world.reason(act(replace(withdraw, units=901), CUSTOMER)) is Reason.INSUFFICIENT_FUNDS
    assert world.reason(act(replace(withdraw, pool=bytes(32)), CUSTOMER)) is Reason.UNKNOWN_POOL
    world.do(act(withdraw, CUSTOMER))
    assert world.balance(CUSTOMER) == 900


def test_a_models_owner_gets_its_royalty_out_of_the_workers_share(world: World) -> None:
    owner, name = key(340), acts.name_hash("poet")
    model = acts.Model(name, b"a" * 32, 1, 2_000, acts.PRICE_FIXED, 500, 0, 1)
    terms = statement.Terms(model=name)
    world.fund(CUSTOMER, 2_000)
    assert world.reason(parties.open_(replace(parties.order(500, 10_000_000), terms=terms))) is Reason.UNKNOWN_MODEL
    world.do(act(model, owner))
    assert world.reason(act(model, OTHER)) is Reason.UNAUTHORIZED
    assert world.reason(parties.open_(replace(parties.order(499, 10_000_000), terms=terms))) is Reason.UNDERPRICED
    task = world.task(1000, 1, terms)
    world.do(act(replace(model, active=0), owner))  # what is open keeps its terms
    world.settle(task, [0])
    world.seal(RULES.dispute_window_blocks + 1)
    assert [world.balance(who) for who in (WORKER, owner, ORCHESTRATOR, TREASURY)] == [200, 50, 100, 50]
    assert world.reason(parties.open_(replace(parties.order(500, 10_000_000), terms=terms))) is Reason.MODEL_INACTIVE


# ---- batches, retraction, pause, beacons ---------------------------------------------------------------------------
def test_orders_of_a_batch_are_judged_one_by_one(world: World) -> None:
    world.fund(CUSTOMER, 250)
    orders = [parties.order(100, 10_000_000), parties.order(0, 10_000_000), parties.order(100, 10_000_000),
              parties.order(100, 10_000_000)]  # fmt: skip
    batch = acts.Orders(tuple(order.pack() for order in orders))
    effects = world.do(act(batch, CUSTOMER))
    assert [(one.position, one.reason) for one in effects.refusals] == [
        (1, Reason.INVALID_ORDER), (3, Reason.INSUFFICIENT_FUNDS)]
    assert set(world.state.escrows) == {parties.task_id(orders[0]), parties.task_id(orders[2])}
    again = world.run(act(batch, CUSTOMER))
    assert (again.number, again.reason) == (0, Reason.DUPLICATE_TASK)
    assert world.reason(act(acts.Orders((orders[3].pack(),)), OTHER)) is Reason.UNAUTHORIZED


def test_an_unassigned_task_is_retracted_after_the_wait_and_loses_nothing(world: World) -> None:
    order = parties.order(300, 10_000_000)
    task = parties.task_id(order)
    world.fund(CUSTOMER, 300)
    world.do(parties.open_(order))
    assert world.reason(act(acts.Retract(task), CUSTOMER)) is Reason.TOO_EARLY
    world.chain.advance(world.state.time_ms + RULES.retract_wait_ms)
    assert world.reason(act(acts.Retract(task), OTHER)) is Reason.UNAUTHORIZED
    world.do(act(acts.Retract(task), CUSTOMER))
    assert (world.balance(CUSTOMER), world.state.escrows[task].phase) == (300, Phase.CANCELLED)
    assert world.reason(act(acts.Retract(task), CUSTOMER)) is Reason.ESCROW_CLOSED
    other = world.task(100, 1)
    world.chain.advance(world.state.time_ms + RULES.retract_wait_ms)
    assert world.reason(act(acts.Retract(other), CUSTOMER)) is Reason.TASK_ASSIGNED


def test_seventy_of_a_hundred_jobs_pay_seventy_and_refund_thirty(world: World) -> None:
    task = world.task(100_000, 100)
    world.settle(task, range(70))
    world.do(parties.refund(task, statement.CAUSE_FAILED))
    world.seal(RULES.dispute_window_blocks + 1)
    escrow = world.state.escrows[task]
    assert (escrow.settled, escrow.refunded, world.balance(CUSTOMER)) == (70_000, 30_000, 30_000)
    assert world.balance(WORKER) == 17_500


def test_while_paused_nothing_new_begins_and_what_is_open_is_paid(world: World) -> None:
    task, order = world.task(1000, 1), parties.order(100, 10_000_000)
    world.fund(CUSTOMER, 100)
    assert world.reason(act(acts.Pause(1), OTHER)) is Reason.UNAUTHORIZED
    world.do(act(acts.Pause(1), AUTHORITY))
    assert world.reason(parties.open_(order)) is Reason.PAUSED
    assert world.reason(act(acts.Stake(1), CUSTOMER)) is Reason.PAUSED
    assert world.settle(task, [0]).number
    world.do(act(acts.Pause(0), AUTHORITY))
    world.do(parties.open_(order))


def test_a_beacon_is_sealed_once_and_opens_only_to_what_was_sealed(world: World) -> None:
    secret = b"x" * 32
    world.do(act(acts.Beacon(7, acts.sealed_beacon(ORCHESTRATOR.public, 7, secret)), ORCHESTRATOR))
    assert world.reason(act(acts.Beacon(7, bytes(32)), ORCHESTRATOR)) is Reason.WRONG_BEACON
    assert world.reason(act(acts.BeaconReveal(8, secret), ORCHESTRATOR)) is Reason.WRONG_BEACON
    assert world.reason(act(acts.BeaconReveal(7, bytes(32)), ORCHESTRATOR)) is Reason.WRONG_BEACON
    world.do(act(acts.BeaconReveal(7, secret), ORCHESTRATOR))
