"""Laws of the SDK, against a market whose answers the tests write."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterator

import pytest

import computemesh
from computemesh import AsyncClient, Client, DeadlineExceeded, InvalidArgument, InvalidProof, TaskNotFound, Unavailable
from computemesh.client.ids import uuid7
from computemesh.client.profile import Profile
from computemesh.service.auth import verify_token
from computemesh.trust.identity import PrivateKey, verify
from tests.client.fake_market import CHAIN, FakeMarket, Running, ended, event

KEY = PrivateKey.from_bytes(b"\x07" * 32)
PAYLOAD = {"matrix_size": 64}


@pytest.fixture
def running() -> Iterator[Running]:
    market = Running()
    yield market
    market.close()


@pytest.fixture
def market(running: Running) -> FakeMarket:
    return running.market


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(market=running.address, api_key="secret", timeout=5, retry_for=3) as connected:
        yield connected


def test_the_public_face_is_the_clients_the_receipt_and_the_error_tree() -> None:
    from computemesh.trust import errors

    found = {name: value for name, value in vars(errors).items() if name[0] != "_" and isinstance(value, type)}
    tree = {name for name, value in found.items() if issubclass(value, Exception)}
    assert set(computemesh.__all__) == tree | {"Client", "AsyncClient", "Receipt", "expose"}
    assert all(getattr(computemesh, name) for name in computemesh.__all__)
    with pytest.raises(AttributeError):
        computemesh.nothing  # noqa: B018


def test_a_lost_answer_is_asked_again_with_the_same_request_id_and_makes_one_task(
    market: FakeMarket, client: Client
) -> None:
    client.market_info()
    market.faults = [Unavailable("restarting"), Unavailable("restarting")]
    handle = client.submit("noop", PAYLOAD)
    asked = market.named("CreateTask")
    assert len(asked) == 3
    assert len({request.SerializeToString() for request in asked}) == 1
    assert uuid.UUID(asked[0].request_id).version == 7
    assert len(market.tasks) == 1
    assert handle.task_id in repr(handle) or handle.task_id[:12] in repr(handle)


def test_what_cannot_succeed_later_is_not_repeated(market: FakeMarket, client: Client) -> None:
    market.faults = [TaskNotFound("no such task")]
    with pytest.raises(TaskNotFound) as caught:
        client.get("ab" * 32)
    assert (caught.value.reason, len(market.named("GetTask"))) == ("TASK_NOT_FOUND", 1)


def test_a_market_that_stays_away_is_an_error_in_time() -> None:
    began = time.monotonic()
    with Client(market="127.0.0.1:1", api_key="k", timeout=5, retry_for=0.5) as client, pytest.raises(Unavailable):
        client.get("ab" * 32)
    assert time.monotonic() - began < 3


def test_a_key_holder_signs_the_order_and_its_token(market: FakeMarket, running: Running) -> None:
    with Client(market=running.address, key=KEY) as client:
        handle = client.submit("noop", PAYLOAD, "2.5", priority=3)
    request = market.named("CreateTask")[0]
    assert request.customer_key == KEY.public.hex()
    assert verify(KEY.public, bytes.fromhex(handle.task_id), request.order_signature)
    token = market.tokens[-1].removeprefix("Bearer ")
    assert verify_token(token, CHAIN, time.time_ns() // 1_000_000) == KEY.public


@pytest.mark.parametrize("change", [{"reward_units": 11_000_000}, {"priority": 9}, {"payload_digest": bytes(32)}])
def test_a_market_that_makes_another_order_of_it_is_found_out(
    market: FakeMarket, client: Client, change: dict[str, object]
) -> None:
    market.change_order = change
    with pytest.raises(InvalidProof, match="not what was ordered"):
        client.submit("noop", PAYLOAD, "10.0")


@pytest.mark.parametrize(
    ("deadline", "in_seconds"),
    [(None, 3600), (datetime.timedelta(minutes=5), 300)],
)
def test_deadlines_are_always_sent_in_unix_seconds(
    market: FakeMarket, client: Client, deadline: object, in_seconds: int
) -> None:
    client.submit("noop", PAYLOAD, deadline=deadline)  # type: ignore[arg-type]
    client.submit("noop", PAYLOAD, deadline=datetime.datetime.fromtimestamp(1893456000))
    client.submit("noop", PAYLOAD, deadline=1893456001)
    first, *others = [request.deadline for request in market.named("CreateTask")]
    assert abs(first - time.time() - in_seconds) < 30
    assert others == [1893456000, 1893456001]


@pytest.mark.parametrize(
    ("deadline", "says"),
    [(0, "deadline 0 must be after now"), (-5, "deadline -5 must"), (1000, "deadline 1000 is in the past by")],
)
def test_a_deadline_that_has_passed_is_refused_before_anything_is_paid(
    market: FakeMarket, client: Client, deadline: int, says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        client.submit("noop", PAYLOAD, deadline=deadline)
    assert caught.value.violations[0][0] == "deadline"
    assert not market.named("CreateTask")


def test_with_a_request_id_and_no_deadline_every_repeat_is_the_same_request(
    market: FakeMarket, client: Client, running: Running
) -> None:
    v7 = uuid.UUID(bytes=uuid7())
    with Client(market=running.address, key=KEY) as signer:
        for one in (client, client, signer, signer):
            one.submit("noop", PAYLOAD, request_id=str(v7))
            market.tasks.clear()
        deadlines = [request.deadline for request in market.named("CreateTask")]
        assert deadlines == [0, 0, (v7.int >> 80) // 1000 + 3600, (v7.int >> 80) // 1000 + 3600]
        with pytest.raises(InvalidArgument, match=r"deadline is missing.*absolute"):
            signer.submit("noop", PAYLOAD, request_id=str(uuid.uuid4()))
        signer.submit("noop", PAYLOAD, deadline=1893456000, request_id=str(uuid.uuid4()))


@pytest.mark.parametrize("api_key", ["schlüssel", "two\nlines"])
def test_an_api_key_no_header_can_carry_is_refused_without_showing_it(api_key: str) -> None:
    with pytest.raises(InvalidArgument, match="api_key must be printable ASCII") as caught:
        Client(Profile(market="127.0.0.1:1", api_key=api_key))
    assert api_key not in caught.value.message


@pytest.mark.parametrize(
    ("payload", "field"),
    [({"a": float("nan")}, "payload.a"), ({"n": 2**60}, "payload.n"), ({"x": {1, 2}}, "payload.x")],
)
def test_what_a_payload_cannot_hold_is_refused_by_name_before_it_is_sent(
    market: FakeMarket, client: Client, payload: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.submit("noop", payload)
    assert caught.value.violations[0][0] == field
    assert not market.named("CreateTask")


@pytest.mark.parametrize("request_id", ["", "not-a-uuid", "12345"])
def test_a_request_id_that_is_no_uuid_is_refused_by_name(client: Client, request_id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.submit("noop", PAYLOAD, request_id=request_id)
    assert caught.value.violations[0][0] == "request_id"


def test_a_dropped_watch_resumes_after_the_last_event_without_gap_or_repeat(
    market: FakeMarket, client: Client
) -> None:
    events = [event(1), event(2), event(3), ended(4)]
    market.watches = [[*events[:2], Unavailable("gone")], [Unavailable("still gone")], [events[2]], events]
    seen = [one.cursor for one in client.watch("ab" * 32)]
    assert seen == [1, 2, 3, 4]
    assert [request.cursor for request in market.named("WatchTask")] == [0, 2, 2, 3]


def test_a_watch_after_the_last_event_of_an_ended_task_ends_at_once(market: FakeMarket, client: Client) -> None:
    market.watches = [[event(1), ended(2)]]
    assert list(client.watch("ab" * 32, cursor=2)) == []
    assert len(market.named("WatchTask")) == 1
    handle = client.submit("noop", PAYLOAD)
    handle._async._cursor = 2
    assert handle.wait(5).status == "completed"


def test_a_watch_has_a_time_limit(market: FakeMarket, client: Client) -> None:
    market.watches = [[event(1), "wait"]]
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"had not ended after 0\.5 s"):
        list(client.watch("ab" * 32, timeout=0.5))
    assert time.monotonic() - began < 3


def test_leaving_a_watch_early_ends_its_stream(market: FakeMarket, client: Client) -> None:
    market.watches = [[event(1), "wait"]]
    for one in client.watch("ab" * 32):
        assert one.kind == "progress"
        break
    assert client.get("ab" * 32).ended


def test_a_watch_gives_up_when_the_market_stays_away(market: FakeMarket, running: Running) -> None:
    market.watches = [[Unavailable("gone")]]
    with Client(market=running.address, api_key="k", retry_for=0.5) as client, pytest.raises(Unavailable):
        list(client.watch("ab" * 32))


def test_list_walks_all_pages_as_it_is_iterated(market: FakeMarket, client: Client) -> None:
    iterator = client.list(status="completed", page_size=3)
    next(iterator)
    assert len(market.named("ListTasks")) == 1
    assert len(list(iterator)) == 6
    assert [request.status for request in market.named("ListTasks")] == [3, 3, 3]
    with pytest.raises(InvalidArgument, match="known are pending, in_progress"):
        list(client.list(status="done"))


def test_a_closed_client_says_so_and_closes_twice(running: Running) -> None:
    client = Client(market=running.address, api_key="k")
    client.close()
    client.close()
    with pytest.raises(computemesh.InvalidState, match="closed"):
        client.get("ab" * 32)


def test_neither_api_key_nor_private_key_shows_in_a_repr() -> None:
    profile = Profile(market="127.0.0.1:1", api_key="very-secret")
    with Client(profile) as client:
        assert "very-secret" not in repr(client) + repr(client.profile)
    with Client(market="127.0.0.1:1", key=KEY) as client:
        assert KEY.address in repr(client)
        assert KEY.secret.hex() not in repr(client)


async def test_the_async_client_does_the_same(running: Running) -> None:
    running.market.watches = [[event(1), ended(2)]]
    async with AsyncClient(market=running.address, api_key="k") as client:
        task = await client.run("noop", PAYLOAD)
        assert task.status == "completed"
        assert [one.task_id async for one in client.list(page_size=5)] == [f"{n:064x}" for n in range(7)]
