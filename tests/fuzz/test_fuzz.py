"""A slice of `make fuzz`: the laws of tests/fuzz/laws.py hold for a few thousand inputs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from computemesh.trust.errors import InvalidArgument
from tests.fuzz import laws
from tests.fuzz.calls import Calls, targets
from tests.fuzz.mesh import Mesh, running
from tests.fuzz.mutation import mutate
from tests.fuzz.parsers import Parser, parsers
from tests.fuzz.streams import Streams

PARSERS = {parser.name: parser for parser in parsers()}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running(tmp_path_factory.mktemp("fuzzed")) as started:
        yield started


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_takes_what_is_right_and_refuses_the_rest_by_a_domain_error(name: str) -> None:
    parser, rng = PARSERS[name], random.Random(name)
    assert all(parser.feed(seed) for seed in parser.seeds), "a valid input is refused"
    for _ in range(100):
        parser.feed(parser.spoiled(rng, rng.choice(parser.seeds)))


def test_no_call_crashes_a_service_tells_of_its_inside_or_changes_the_state_by_a_refusal(mesh: Mesh) -> None:
    report = asyncio.run(Calls(mesh, seed=1).run(1500))
    assert report.inputs >= 1500
    assert report.compared > 5, "how often refusals were held against the state"
    assert report.codes["OK"] > 100, "valid requests are among them"
    assert {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"} < set(report.codes)


@pytest.mark.parametrize("kind", ["work", "upload", "dispatch"])
def test_no_sequence_of_stream_messages_crashes_a_service_or_is_paid(mesh: Mesh, kind: str) -> None:
    report = asyncio.run(Streams(mesh, seed=1).run(200, (kind,)))
    assert report.inputs >= 200
    assert report.codes["INVALID_ARGUMENT"] > 0


def test_every_rpc_that_takes_one_request_is_a_target() -> None:
    assert len({path for _, path in targets()}) > 50


def test_the_laws_catch_what_they_are_for() -> None:
    def crash(data: bytes) -> None:
        raise KeyError("secret")

    def tell(data: bytes) -> None:
        raise InvalidArgument("field: KeyError in /srv/mesh/market/core.py")

    for parse in (crash, tell):
        with pytest.raises(laws.Broken):
            Parser("defective", (b"",), parse).feed(b"")
    with pytest.raises(laws.Broken, match="is packed as"):
        Parser("two encodings", (b"",), bytes, again=lambda found: b"one").feed(b"other")
    assert laws.leaked("task ab is not yours") is None


def test_a_seed_makes_the_same_inputs() -> None:
    first, second = (mutate(random.Random(7), b"a valid input") for _ in range(2))
    assert first == second != b"a valid input"
