"""What workers offer to tasks of type `function`, and inputs that are refused before any money moves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pydantic import BaseModel, Field

from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import common_pb2
from computemesh.v1 import market_pb2 as pb
from computemesh.workloads import Call, Given
from market import functions
from market.functions import Functions
from market.inputs import fault
from tests.market.market_bench import ALICE, Bench, Orchestrator, struct
from tests.market.test_market_refusals import refused


class Passage(BaseModel):
    text: str = Field(min_length=1, max_length=20)
    copies: int = Field(default=1, ge=1, le=3)


SCHEMA = json.dumps(Passage.model_json_schema())
ANYTHING = json.dumps({"type": "object"})
NOTHING = json.dumps({"not": {}})
Offering = Callable[..., Awaitable[Orchestrator]]


def offer(name: str, schema: str = SCHEMA, workers: int = 1) -> pb.FunctionOffer:
    spec = common_pb2.FunctionSpec(name=name, input_schema=schema, output_schema="{}", timeout_ms=5000)
    return pb.FunctionOffer(function=spec, workers=workers)


async def listed(bench: Bench, **values: object) -> pb.ListFunctionsResponse:
    return await bench.stub.ListFunctions(pb.ListFunctionsRequest(**values), metadata=ALICE, timeout=10)


@pytest.fixture
def lease_ms() -> int:
    return 30_000


@pytest.fixture
async def offering(bench: Bench) -> AsyncIterator[Offering]:
    """`await offering(...)`: an orchestrator, alive to the test's end, whose workers offer these; the market knows."""
    beating = []

    async def offers(*given: pb.FunctionOffer, name: str = "one") -> Orchestrator:
        one = bench.orchestrator(name)
        await one.dial()
        beating.append(asyncio.create_task(one.beat()))
        await one.write(functions=pb.FunctionOffers(functions=given))
        while not {it.function.name for it in given} <= {it.function.name for it in (await listed(bench)).functions}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return one

    yield offers
    for task in beating:
        task.cancel()


def function(**values: object) -> dict[str, object]:
    return {"challenge_type": "function", "payload": struct(function_name="measure", **values)}


@pytest.mark.parametrize(("payload", "field", "text"), [
    ({"data": {"text": 5}}, "payload.data.text", "5 is not of type 'string'"),
    ({"data": {}}, "payload.data", "'text' is a required property"),
    ({"data": {"text": "x" * 21}}, "payload.data.text", "is too long"),
    ({"data": {"text": "x", "copies": 4}}, "payload.data.copies", "4 is greater than the maximum of 3"),
    ({"data": {"text": "x", "copies": 1.5}}, "payload.data.copies", "1.5 is not of type 'integer'"),
    ({"items": [{"text": "x"}, {"text": ""}]}, "payload.items[1].text", "'' should be non-empty"),
])  # fmt: skip
async def test_an_input_that_does_not_suit_the_schema_is_refused_before_escrow(
    bench: Bench, offering: Offering, payload: dict, field: str, text: str
) -> None:
    await offering(offer("measure"))
    error = await refused(bench.create(**function(**payload)))
    assert (error.status, error.reason) == ("INVALID_ARGUMENT", "FUNCTION_INPUT")
    assert [name for name, _ in error.violations] == [field]
    assert text in error.message
    quote = pb.QuoteTaskRequest(**function(**payload))
    assert (await refused(bench.stub.QuoteTask(quote, metadata=ALICE, timeout=10))).message == error.message
    assert not bench.ledger.escrows


async def test_what_suits_is_quoted_and_goes_on_to_its_escrow(bench: Bench, offering: Offering) -> None:
    await offering(offer("measure"))
    request = pb.QuoteTaskRequest(**function(data={"text": "x", "copies": 3}))
    assert (await bench.stub.QuoteTask(request, metadata=ALICE, timeout=10)).jobs == 1
    error = await refused(bench.create(**function(data={"text": "x"})))
    assert error.reason == "NO_ARTIFACT_STORE"  # the next thing that is looked at; this market has none


async def test_an_unknown_function_is_refused_with_what_is_near_it(bench: Bench, offering: Offering) -> None:
    await offering(offer("measured"), offer("measure-2"), offer("translate"))
    error = await refused(bench.create(**function(data={})))
    assert (error.status, error.reason) == ("INVALID_ARGUMENT", "FUNCTION_UNKNOWN")
    assert [name for name, _ in error.violations] == ["payload.function_name"]
    assert "'measure' is offered by no connected worker; near it are measured, measure-2;" in error.message


async def test_what_is_offered_goes_with_the_stream_that_reported_it(bench: Bench, offering: Offering) -> None:
    one = await offering(offer("measure", workers=2), offer("other"))
    await offering(offer("measure", workers=3), name="two")
    while [it.workers for it in (await listed(bench)).functions] != [5, 1]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await one.write(functions=pb.FunctionOffers(functions=[offer("third")]))
    while [it.function.name for it in (await listed(bench)).functions] != ["measure", "third"]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await one.write(functions=pb.FunctionOffers(functions=[offer("more")], adds=True))
    while [it.function.name for it in (await listed(bench)).functions] != ["measure", "more", "third"]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    one.call.cancel()
    while [it.workers for it in (await listed(bench)).functions] != [3]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_functions_are_listed_in_pages_by_name(bench: Bench, offering: Offering) -> None:
    names = [f"f{number:02}" for number in range(7)]
    await offering(*map(offer, reversed(names)))
    found, token = [], ""
    while True:
        page = await listed(bench, page_size=3, page_token=token)
        assert len(page.functions) <= 3
        found += [it.function.name for it in page.functions]
        token = page.next_page_token
        if not token:
            break
    assert found == names
    error = await refused(listed(bench, page_token="nonsense"))
    assert "page_token" in error.message


# ---- several schemas, and schemas of people who mean no good --------------------------------------------------------
def report(*offers: pb.FunctionOffer) -> Functions:
    known = Functions()
    known.report(1, pb.FunctionOffers(functions=offers))
    return known


def call(**value: object) -> Call:
    return Call("measure", [Given("data", value)])


async def test_an_input_has_to_suit_one_of_the_schemas_a_name_is_offered_with() -> None:
    known = report(offer("measure", NOTHING), offer("measure", SCHEMA, workers=4))
    await known.check(call(text="x"))
    with pytest.raises(InvalidArgument, match=r"5 is not of type 'string'.*none of the 2 schemas"):
        await known.check(call(text=5))
    known.report(2, pb.FunctionOffers(functions=[offer("measure", ANYTHING)]))
    await known.check(call(text=5))
    await known.close()


async def test_a_schema_that_takes_for_ever_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "LIMIT_S", 1.0)
    slow = json.dumps({"properties": {"text": {"pattern": "^(a+)+$"}}})
    known = report(offer("measure", slow), offer("other", SCHEMA))
    await known.check(call(text="a" * 40 + "!"))
    begun = time.monotonic()
    await known.check(call(text="a" * 40 + "!"))  # it is remembered
    assert time.monotonic() - begun < 1.0
    monkeypatch.setattr(functions, "LIMIT_S", 30.0)
    with pytest.raises(InvalidArgument, match="not of type"):
        await known.check(Call("other", [Given("data", {"text": 5})]))
    await known.close()


@pytest.mark.parametrize("schema", [
    "no JSON", "[]", '{"type": 7}', '{"$ref": "http://127.0.0.1:9/schema"}', '{"$ref": "#/nowhere"}', '{"$ref": "#"}',
    '{"pattern": "("}',
])  # fmt: skip
def test_a_schema_that_is_none_refuses_nothing_and_calls_nobody(schema: str) -> None:
    assert fault(schema, [("data", '"text"')]) is None


def test_more_offers_than_are_taken_are_refused_with_both_numbers() -> None:
    known = Functions()
    known.report(1, pb.FunctionOffers(functions=[offer(f"f{number}") for number in range(1024)]))
    with pytest.raises(InvalidArgument, match="1,025 of one orchestrator, at most 1,024"):
        known.report(1, pb.FunctionOffers(functions=[offer("more")], adds=True))
