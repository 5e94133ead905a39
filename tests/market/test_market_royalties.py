"""Tasks that use a registered model: what is refused before any money moves, and who gets the royalty."""

from __future__ import annotations

from computemesh.trust import acts
from computemesh.v1 import market_pb2 as pb
from tests.market.market_bench import BOB, Bench
from tests.market.real_ledger import RealLedger
from tests.market.test_market_delivery import act, leased
from tests.market.test_market_refusals import refused

Real = tuple[Bench, RealLedger]
MEMORY = 3 << 30


def terms(price_per: int = acts.PRICE_FIXED, price: int = 500_000, royalty: int = 1000, active: int = 1) -> acts.Model:
    return acts.Model(acts.name_hash("tiny"), bytes(32), 3, royalty, price_per, price, MEMORY, active)


async def test_an_unknown_or_deactivated_model_and_a_low_reward_are_refused_before_money_is_held(real: Real) -> None:
    bench, ledger = real
    error = await refused(bench.create(model="tiny"))
    assert (error.status, error.reason) == ("NOT_FOUND", "UNKNOWN_MODEL")
    assert error.message == "model 'tiny': no model of this name has terms on the ledger"
    await act(bench, terms(active=0), BOB)
    error = await refused(bench.create(model="tiny"))
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "MODEL_INACTIVE")
    await act(bench, terms(), BOB)
    error = await refused(bench.create(model="tiny", reward="0.4"))
    assert error.violations[0][0] == "reward"
    assert error.message == "reward 0.4 CPC is below what model 'tiny' asks: 0.5 CPC"
    await act(bench, terms(acts.PRICE_PER_BYTE, 100_000), BOB)
    error = await refused(bench.create(model="tiny", reward="0.4"))
    assert "1.9 CPC for 19 bytes" in error.message
    assert await ledger.balance(bench.alice.address) == 100_000_000


async def test_only_its_owner_changes_a_models_terms(real: Real) -> None:
    bench, _ = real
    await act(bench, terms(), BOB)
    error = await refused(act(bench, terms(royalty=0)))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNAUTHORIZED")
    assert f"the model belongs to {bench.bob.address}" in error.message


async def test_the_owner_gets_its_royalty_out_of_the_workers_share_and_the_worker_has_the_memory(real: Real) -> None:
    bench, ledger = real
    await act(bench, terms(royalty=2000), BOB)
    task = await bench.create(model="tiny", reward="10.0")
    assert task.model == "tiny"
    one, lease = await leased(bench)
    assert lease.memory_bytes == MEMORY
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(4))
    await one.outcome(lease)
    await bench.reach(task.task_id, pb.TASK_STATUS_COMPLETED)
    assert await ledger.conserved()
    assert await ledger.balance(bench.bob.address) == 500_000  # a fifth of the worker's quarter
