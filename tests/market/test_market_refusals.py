"""What the market says to bad input: every refusal names field, value and limit."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from computemesh.service.auth import make_token
from computemesh.service.errors import from_rpc_error
from computemesh.trust import envelope, statement
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import market_pb2 as pb
from tests.market.market_bench import ALICE, BOB, CHAIN, Bench, bearer, create_request, struct

NOW = int(time.time())


async def refused(call: object) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    print(error.status, error.reason, "|", error.message, "|", error.violations)
    return error


@pytest.mark.parametrize(("values", "field", "text"), [
    ({"payload": struct(jobs=0)}, "payload.jobs", "jobs must be a whole number from 1 to 1,000,000, not 0"),
    ({"payload": struct(jobs=-1)}, "payload.jobs", "not -1"),
    ({"payload": struct(jobs=1e9)}, "payload.jobs", "not 1000000000"),
    ({"payload": struct(jobs="abc")}, "payload.jobs", "not 'abc'"),
    ({"payload": struct(jbos=4)}, "payload.jbos", "did you mean jobs?"),
    ({"reward": "-1"}, "reward", "reward '-1' must not be negative"),
    ({"reward": "1e400"}, "reward", "reward '1e400' must be plain decimal digits"),
    ({"reward": "0.0000000001"}, "reward", "has 10 decimals, at most 6 are allowed"),
    ({"reward": ""}, "reward", "must be plain decimal digits"),
    ({"reward": "0.000003"}, "reward", "is too little for 4 jobs: at least 0.000004 CPC"),
    ({"deadline": NOW - 100}, "deadline", "is in the past by"),
    ({"deadline": -5}, "deadline", "deadline -5 is negative"),
    ({"deadline": (NOW + 60) * 1000}, "deadline", "it looks like milliseconds, in seconds it is 1"),
    ({"deadline": NOW + 400 * 86400}, "deadline", "is more than 366 days ahead: at most"),
    ({"challenge_type": "mining"}, "challenge_type", "'mining' is not a task type; known are: "),
    ({"challenge_type": ""}, "challenge_type", "challenge_type"),
    ({"priority": 10}, "priority", "got '10'"),
    ({"request_id": "zzz"}, "request_id", "'zzz' is not a UUID such as"),
    ({"payload": struct(jobs=1, pad="x" * 300_000)}, "payload", "at most 262144 are allowed"),
    ({"order_signature": b"s" * 64}, "customer_key", "is missing: a signed order needs"),
    ({"customer_key": "02" * 33, "order_signature": b"s" * 3}, "order_signature", "has 3 bytes, a signature has 64"),
    ({"customer_key": "zz", "order_signature": b"s" * 64}, "customer_key", "is not a compressed secp256k1"),
])
async def test_a_bad_order_is_refused_naming_what_is_wrong(bench: Bench, values: dict, field: str, text: str) -> None:
    error = await refused(bench.create(**values))
    assert error.status == "INVALID_ARGUMENT"
    assert field in [name for name, _ in error.violations]
    assert text in error.message
    assert not bench.ledger.escrows


@pytest.mark.parametrize(("size", "text"), [
    (0, "matrix_size"), (-1, "not -1"), (1e9, "not 1000000000"), ("abc", "not 'abc'")])
async def test_a_bad_matrix_size_is_refused(bench: Bench, size: object, text: str) -> None:
    error = await refused(bench.create(challenge_type="synthetic", payload=struct(matrix_size=size, iterations=1)))
    assert "payload.matrix_size" in dict(error.violations)
    assert text in error.message


@pytest.mark.parametrize(("metadata", "reason"), [
    ((), "MISSING_CREDENTIALS"), (bearer("wrong"), "UNKNOWN_API_KEY"), (bearer("cm1.abc"), "INVALID_TOKEN"),
    (bearer(make_token(PrivateKey(b"\1" * 32), CHAIN, 1)), "TOKEN_EXPIRED"),
    (bearer(make_token(PrivateKey(b"\1" * 32), "another chain", 2**50)), "INVALID_TOKEN")])
async def test_a_caller_without_valid_credentials_is_told_why(bench: Bench, metadata: tuple, reason: str) -> None:
    error = await refused(bench.create(metadata=metadata))
    assert (error.status, error.reason) == ("UNAUTHENTICATED", reason)


async def test_a_task_of_another_customer_is_not_shown_watched_or_cancelled(bench: Bench) -> None:
    task_id = (await bench.create()).task_id
    stub = bench.stub
    for call in (stub.GetTask(pb.GetTaskRequest(task_id=task_id), metadata=BOB),
                 stub.CancelTask(pb.CancelTaskRequest(task_id=task_id), metadata=BOB),
                 bench.watch(task_id, metadata=BOB)):
        error = await refused(call)
        assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNAUTHORIZED")
    error = await refused(bench.get("00" * 32))
    assert (error.status, error.reason) == ("NOT_FOUND", "TASK_NOT_FOUND")
    error = await refused(bench.get("nonsense"))
    assert error.status == "INVALID_ARGUMENT"


async def test_a_reward_beyond_the_balance_is_refused_with_both_amounts(bench: Bench) -> None:
    error = await refused(bench.create(metadata=BOB, reward="10.0"))
    assert error.message == f"reward 10.0 CPC, but account {bench.bob.address} holds 3.2 CPC"
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")


async def test_an_unreachable_ledger_is_said_with_a_time_to_retry_and_nothing_is_kept(bench: Bench) -> None:
    bench.ledger.down = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.create()
    error = from_rpc_error(caught.value)
    assert (error.status, error.reason, error.retry_after_ms) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE", 1000)
    trailers = dict(caught.value.trailing_metadata())
    details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    assert any(item.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for item in details)
    bench.ledger.down = False
    assert (await bench.stub.ListTasks(pb.ListTasksRequest(), metadata=ALICE)).total == 0
    assert not bench.ledger.escrows


async def test_garbage_bytes_and_a_message_too_large_are_refused(bench: Bench) -> None:
    raw = bench._channel.unary_unary("/computemesh.v1.MarketService/CreateTask")
    error = await refused(raw(b"\xff\xff\xff garbage", metadata=ALICE))
    assert (error.status, error.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    error = await refused(raw(b"\x0a" + b"\x00" * (5 * 1024 * 1024), metadata=ALICE))
    assert error.status == "RESOURCE_EXHAUSTED"


# ---------------------------------------------------------------- signed orders


def signed(bench: Bench, key: PrivateKey, market_key: bytes | None = None, **values: object) -> pb.CreateTaskRequest:
    request = create_request(request_id=str(uuid.uuid4()), deadline=NOW + 600, customer_key=key.public.hex(), **values)
    order = statement.Order(
        uuid.UUID(request.request_id).bytes, key.public, market_key or bench.key.public,
        statement.challenge_type_hash("noop"), payload_digest({"jobs": 4}), 1_000_000, request.deadline * 1000, 0)
    request.order_signature = envelope.sign(key, "order", CHAIN, order.pack())
    return request


async def test_a_customer_signs_its_own_order(bench: Bench) -> None:
    key = PrivateKey(b"\7" * 32)
    bench.ledger.balances[key.address] = 2_000_000
    token = bearer(make_token(key, CHAIN, 2**50))
    request = signed(bench, key)
    task = (await bench.stub.CreateTask(request, metadata=token)).task
    assert task.customer == key.address
    order = statement.Order.unpack(task.order)
    assert order.task_id(CHAIN).hex() == task.task_id
    assert envelope.verify(key.public, "order", CHAIN, task.order, task.order_signature)
    assert (await bench.stub.CreateTask(request, metadata=token)).task.task_id == task.task_id
    assert bench.ledger.balances[key.address] == 1_000_000


async def test_an_order_signed_wrongly_or_by_another_is_refused(bench: Bench) -> None:
    key = PrivateKey(b"\7" * 32)
    token = bearer(make_token(key, CHAIN, 2**50))
    wrong = signed(bench, key, market_key=b"\2" + bytes(31) + b"\1")
    error = await refused(bench.stub.CreateTask(wrong, metadata=token))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "INVALID_SIGNATURE")
    error = await refused(bench.stub.CreateTask(signed(bench, key), metadata=ALICE))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNAUTHORIZED")
    error = await refused(bench.create(metadata=token))
    assert error.message.startswith("order_signature is missing: with a token of your own key you sign")


# ---------------------------------------------------------------- repetition


async def test_the_same_request_is_the_same_task_and_other_content_is_a_conflict(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    task = await bench.create(request_id=request_id)
    again = await bench.create(request_id=request_id)
    assert again.task_id == task.task_id
    for other in ({"reward": "2.0"}, {"payload": struct(jobs=5)}, {"priority": 3}, {"deadline": NOW + 999}):
        error = await refused(bench.create(request_id=request_id, **other))
        assert (error.status, error.reason) == ("ALREADY_EXISTS", "ID_CONFLICT")
        assert task.task_id in error.message
    assert bench.ledger.balances[bench.alice.address] == 99_000_000


async def test_a_request_id_of_another_customer_is_a_conflict(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    await bench.create(request_id=request_id)
    error = await refused(bench.create(metadata=BOB, request_id=request_id))
    assert (error.status, error.reason) == ("ALREADY_EXISTS", "ID_CONFLICT")


# ---------------------------------------------------------------- Dispatch


async def test_a_hello_that_is_not_signed_by_its_key_is_refused(bench: Bench) -> None:
    error = await refused(bench.orchestrator().dial(signature=b"\1" * 64))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "INVALID_SIGNATURE")


async def test_a_message_before_hello_is_refused(bench: Bench) -> None:
    one = bench.orchestrator()
    one.call = bench.stub.Dispatch()
    await one.read()
    await one.ready()
    error = await refused(one.read())
    assert error.message == "the first message on Dispatch must be hello"


async def test_an_orchestrator_the_market_does_not_admit_is_refused(tmp_path, bench: Bench) -> None:
    closed = Bench(tmp_path / "closed", bench.ledger, bench.config.ledger, orchestrator_keys=("02" * 33,))
    await closed.start()
    error = await refused(closed.orchestrator().dial())
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNKNOWN_ORCHESTRATOR")
    await closed.stop()


async def test_a_stream_message_that_breaks_the_contract_ends_the_stream_naming_the_field(bench: Bench) -> None:
    one = bench.orchestrator()
    await one.dial()
    await one.write(progress=pb.ProgressBatch(progress=[pb.TaskProgress(task_id=b"short")]))
    error = await refused(one.read())
    assert error.status == "INVALID_ARGUMENT"
    assert "progress.progress[0].task_id" in dict(error.violations)


async def test_a_second_stream_of_a_key_supersedes_the_first(bench: Bench) -> None:
    one, again = bench.orchestrator(), bench.orchestrator()
    await one.dial()
    await again.dial()
    error = await refused(one.read())
    assert (error.status, error.reason) == ("ABORTED", "SUPERSEDED")


async def test_a_quota_refuses_before_money_is_held_and_says_when_to_return(tmp_path: Path, bench: Bench) -> None:
    few = Bench(tmp_path / "few", bench.ledger, bench.config.ledger, open_tasks=2, tasks_per_s=0.001, tasks_burst=3)
    await few.start()
    again = str(uuid.uuid4())
    first = await few.create(request_id=again)
    await few.create()
    escrows = len(bench.ledger.escrows)
    full = await refused(few.create())
    assert (full.status, full.reason, full.retry_after_ms) == ("RESOURCE_EXHAUSTED", "TOO_MANY_TASKS", 1000)
    assert (await few.create(request_id=again)).task_id == first.task_id  # no new one, whatever the quota
    await few.create(metadata=BOB)
    await few.stub.CancelTask(pb.CancelTaskRequest(task_id=first.task_id), metadata=ALICE, timeout=10)
    third = await few.create()
    await few.stub.CancelTask(pb.CancelTaskRequest(task_id=third.task_id), metadata=ALICE, timeout=10)
    often = await refused(few.create())
    assert (often.status, often.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert 990_000 < (often.retry_after_ms or 0) <= 1_000_000
    assert len(bench.ledger.escrows) == escrows + 2
    await few.restart()
    await few.create()
    assert (await refused(few.create())).reason == "TOO_MANY_TASKS"  # tasks of before the restart count
    await few.stop()
