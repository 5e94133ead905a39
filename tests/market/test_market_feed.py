"""Pools, opportunities and the feed: one resumable stream of signed events, and webhooks that lose nothing."""

from __future__ import annotations

import asyncio
import http.server
import ipaddress
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from computemesh.trust import acts, event
from computemesh.trust.amount import format_cpc
from computemesh.trust.identity import decode_address
from computemesh.v1 import market_pb2 as pb
from market import posting
from market.kinds import FeedKind
from tests.market.market_bench import ALICE, BOB, CHAIN, Bench, struct
from tests.market.real_ledger import RealLedger
from tests.market.test_market_delivery import act, leased
from tests.market.test_market_refusals import refused
from tests.market.toy_ledger import ToyLedger, serve

Real = tuple[Bench, RealLedger]


def pool(name: str, active: int = 1, category: str = "render") -> acts.Pool:
    return acts.Pool(acts.name_hash(name), acts.name_hash(category), active)


async def read(bench: Bench, count: int, cursor: int = 0, **wanted: object) -> list[pb.Event]:
    call = bench.stub.WatchEvents(
        pb.WatchEventsRequest(cursor=cursor, filter=pb.EventFilter(**wanted)), metadata=ALICE, timeout=10)
    found = []
    async for message in call:
        found.append(message.event)
        if len(found) == count:
            break
    call.cancel()
    return found


def names(events: list[pb.Event]) -> list[str]:
    return [pb.EventKind.Name(one.kind).removeprefix("EVENT_KIND_") for one in events]


def test_the_numbers_of_the_feed_are_those_of_the_contract() -> None:
    assert {f"EVENT_KIND_{kind.name}": int(kind) for kind in FeedKind} == {
        name: number for name, number in pb.EventKind.items() if number}


# ---------------------------------------------------------------- pools


async def test_a_pool_pays_for_its_owners_tasks_while_it_is_active(real: Real) -> None:
    bench, ledger = real
    await act(bench, pool("frames"), name="frames", category="render")
    await ledger.deposit(bench.bob.address, 1_000_000)
    shown = (await bench.stub.ListPools(pb.ListPoolsRequest(category="render"), metadata=BOB)).pools
    assert [(one.name, one.owner, one.active, one.balance) for one in shown] == [
        ("frames", bench.alice.address, True, "0.0")]
    await ledger.deposit(shown[0].address, 5_000_000)
    task = await bench.create(pool="frames", reward="2.0")
    assert (task.pool, task.payer) == ("frames", shown[0].address)
    assert await ledger.balance(bench.alice.address) == 100_000_000
    error = await refused(bench.create(BOB, pool="frames"))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNAUTHORIZED")
    error = await refused(act(bench, pool("frames"), name="fames", category="render"))
    assert error.violations[0][0] == "name"
    await act(bench, pool("frames", active=0), name="frames", category="render")
    error = await refused(bench.create(pool="frames"))
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "POOL_INACTIVE")
    await act(bench, acts.Withdraw(acts.name_hash("frames"), decode_address(bench.bob.address), 3_000_000))
    assert await ledger.balance(bench.bob.address) == 4_000_000
    found = await read(bench, 3, pool="frames")
    assert names(found) == ["POOL_OPENED", "TASKS_ADDED", "POOL_DEACTIVATED"]


async def test_opportunities_are_live_tasks_the_best_paid_job_first(bench: Bench) -> None:
    poor = await bench.create(payload=struct(jobs=10), reward="1.0")
    rich = await bench.create(payload=struct(jobs=2), reward="1.0", priority=3)
    request = pb.ListOpportunitiesRequest(limit=1)
    found = await bench.stub.ListOpportunities(request, metadata=BOB)
    assert (found.total, [one.task_id for one in found.opportunities]) == (2, [rich.task_id])
    assert (found.opportunities[0].reward_per_job, found.opportunities[0].jobs_left) == ("0.5", 2)
    await bench.stub.CancelTask(pb.CancelTaskRequest(task_id=rich.task_id), metadata=ALICE)
    found = await bench.stub.ListOpportunities(pb.ListOpportunitiesRequest(), metadata=BOB)
    assert [one.task_id for one in found.opportunities] == [poor.task_id]
    none = await bench.stub.ListOpportunities(pb.ListOpportunitiesRequest(challenge_types=["rendering"]), metadata=BOB)
    assert none.total == 0


# ---------------------------------------------------------------- feed


async def test_a_tasks_life_is_told_in_order_signed_and_from_any_cursor(bench: Bench) -> None:
    task = await bench.create()
    one, lease = await leased(bench)
    await one.write(progress=pb.ProgressBatch(progress=[pb.TaskProgress(
        task_id=lease.task_id, epoch=lease.epoch, jobs_running=1, jobs_settled=1, jobs_submitted=3, jobs_verified=2)]))
    bench.ledger.settle(task.task_id, 4)
    told = await read(bench, 5)
    await one.outcome(lease)
    told += await read(bench, 2, told[-1].cursor)
    assert names(told) == ["TASKS_ADDED", "TASK_CLAIMED", "TASK_SUBMITTED", "TASK_VERIFIED", "TASK_SETTLED",
                           "TASK_SETTLED", "TASK_ENDED"]
    assert [one.jobs for one in told] == [4, 0, 3, 2, 1, 4, 4]
    assert told[-1].detail == "COMPLETED"
    assert [one.cursor for one in told] == list(range(1, 8))
    for each in told:
        packed = event.body(each.cursor, each.kind, each.time_ms, each.task_id, each.customer, each.pool,
                            each.challenge_type, each.jobs, each.detail)
        assert event.verify(bench.key.public, CHAIN, packed, each.signature)
    await bench.restart()
    assert await read(bench, 7) == told
    assert names(await read(bench, 1, 3, kinds=[pb.EVENT_KIND_TASK_ENDED])) == ["TASK_ENDED"]
    error = await refused(read(bench, 1, 99))
    assert "99 is beyond the last event, 7" in error.message
    nothing = asyncio.create_task(read(bench, 1, 0, customer=bench.bob.address))
    await bench.create()
    assert names(await read(bench, 1, 7)) == ["TASKS_ADDED"]
    await bench.create(BOB)
    assert (await nothing)[0].cursor == 9


# ---------------------------------------------------------------- webhooks


@contextmanager
def listener(answers: list[int]) -> Iterator[tuple[str, list[dict]]]:
    """A server that answers with these statuses in turn (200 from then on), and what it was posted."""
    posted: list[dict] = []

    class Taker(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers.pop(0) if answers else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?x=1", posted
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A market that may post to loopback."""
    ledger = ToyLedger(CHAIN)
    server, port = await serve(ledger)
    bench = Bench(tmp_path / "market", ledger, f"127.0.0.1:{port}", webhook_networks=("127.0.0.0/8",))
    ledger.balances[bench.alice.address] = 100_000_000
    await bench.start()
    yield bench
    await bench.stop()
    await server.stop(0)


async def at_cursor(bench: Bench, cursor: int) -> None:
    """Until the webhook has got so far."""
    async with asyncio.timeout(20):
        while True:
            (hook,) = (await bench.stub.ListWebhooks(pb.ListWebhooksRequest(), metadata=ALICE)).webhooks
            if hook.cursor == cursor:
                return
            await asyncio.sleep(0.02)


async def test_a_webhook_gets_every_event_in_order_though_it_failed_and_the_market_restarted(
    open_bench: Bench
) -> None:
    bench = open_bench
    await bench.create()
    with listener([503]) as (url, posted):
        hook = (await bench.stub.AddWebhook(pb.AddWebhookRequest(url=url), metadata=ALICE)).webhook
        await at_cursor(bench, 1)
        await bench.restart()
        await bench.create()
        await at_cursor(bench, 2)
        taken = [row["cursor"] for batch in posted[1:] for row in batch["events"]]
        assert taken == ["1", "2"], "each once, after the first was refused"
        shown = (await bench.stub.ListWebhooks(pb.ListWebhooksRequest(), metadata=ALICE)).webhooks
        assert [one.id for one in shown] == [hook.id]
        await bench.stub.RemoveWebhook(pb.RemoveWebhookRequest(id=hook.id), metadata=ALICE)
    error = await refused(bench.stub.RemoveWebhook(pb.RemoveWebhookRequest(id=hook.id), metadata=ALICE))
    assert error.reason == "WEBHOOK_NOT_FOUND"


async def test_a_webhook_cannot_make_the_market_speak_to_its_own_network(bench: Bench) -> None:
    for url, text in (
        ("http://127.0.0.1:80/", "leads to no address this market posts to"),
        ("http://[::1]/", "leads to no address"),
        ("http://169.254.169.254/latest", "leads to no address"),
        ("http://10.1.2.3/", "leads to no address"),
        ("ftp://example.org/", "is not an http or https URL"),
        ("http://u:p@example.org/", "carries a user name or password"),
        ("nothing", "is not an http or https URL"),
    ):
        error = await refused(bench.stub.AddWebhook(pb.AddWebhookRequest(url=url), metadata=ALICE))
        assert error.violations[0][0] == "url"
        assert text in error.message


def test_a_private_address_hidden_in_ipv6_is_still_private() -> None:
    assert not posting.allowed(ipaddress.ip_address("::ffff:127.0.0.1"), ())
    assert posting.allowed(ipaddress.ip_address("8.8.8.8"), ())
    assert posting.allowed(ipaddress.ip_address("10.0.0.1"), posting.networks(["10.0.0.0/8"]))


# ---------------------------------------------------------------- quotes


async def test_a_quote_is_what_the_worker_in_the_middle_asks_and_follows_who_is_connected(bench: Bench) -> None:
    request = pb.QuoteTaskRequest(challenge_type="synthetic", payload=struct(matrix_size=1024))
    listed = await bench.stub.QuoteTask(request, metadata=ALICE)
    assert (listed.workers, listed.lowest_price, listed.estimated_ms) == (0, "", 0)
    one = bench.orchestrator()
    await one.dial()
    await one.write(asks=pb.AskBatch(asks=[pb.TypeAsk(
        challenge_type="synthetic", workers=3, lowest_units=1_000_000, median_units=4_000_000,
        operations_per_s=10**9)]))
    async with asyncio.timeout(5):
        while True:
            quote = await bench.stub.QuoteTask(request, metadata=ALICE)
            if quote.workers:
                break
    operations = int(quote.operations)
    assert (quote.workers, quote.jobs) == (3, 1)
    assert quote.price == format_cpc(-(-operations * 4_000_000 // 10**12))
    assert quote.lowest_price == format_cpc(-(-operations * 1_000_000 // 10**12))
    assert quote.estimated_ms == 1000 * operations // (3 * 10**9)
    one.call.cancel()
    async with asyncio.timeout(5):
        while (await bench.stub.QuoteTask(request, metadata=ALICE)).workers:
            pass
