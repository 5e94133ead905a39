"""Files of tasks in the market: names, what is kept until when, and refusals before any money moves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from computemesh import workloads
from computemesh.service.artifacts import Artifacts
from computemesh.service.blobs import Owner
from computemesh.service.store import GroupCommit
from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import market_pb2
from computemesh.workloads import references
from market import orders, store, views
from market.app import Releases
from market.states import Created, Phase, Spec, State, Status
from market.store import ModelRow
from tests.databases import opened


def naming(monkeypatch: pytest.MonkeyPatch) -> None:
    """noop with two fields that may hold names."""

    def parse(payload: object) -> object:
        assert isinstance(payload, dict)
        if not references.DIGEST.fullmatch(payload.get("model", "")):
            raise InvalidArgument("model must be 64 hexadecimal characters", violations=[("model", "no digest")])
        return noop.parse({"jobs": 1})

    noop = workloads.get("noop")
    known = replace(noop, parse=parse, references=("model", "images"))
    monkeypatch.setattr(workloads, "get", lambda name: known)


def payload(**values: object) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


def test_names_are_found_in_texts_and_lists_and_replaced_for_parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    naming(monkeypatch)
    struct = payload(model="minilm", images=["a", "b", "c" * 64])
    assert orders.names_in("noop", struct) == ["a", "b", "minilm"]
    digests = {"minilm": "1" * 64, "a": "2" * 64}
    draft = orders.read(market_pb2.CreateTaskRequest(challenge_type="noop", payload=struct, reward="1"), digests)
    assert struct_pb2.Struct.FromString(draft.payload) == struct
    values = references.resolve(workloads.get("noop"), {"model": "minilm", "images": ["a", "b"]}, digests)
    assert values == {"model": "1" * 64, "images": ["2" * 64, "b"]}


def test_an_unknown_name_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    naming(monkeypatch)
    request = market_pb2.CreateTaskRequest(challenge_type="noop", payload=payload(model="nobody"), reward="1")
    with pytest.raises(InvalidArgument, match="'nobody' is neither a digest nor a registered name") as caught:
        orders.read(request, {})
    assert caught.value.reason == "UNKNOWN_NAME"


def test_a_name_moves_and_lists_in_order(tmp_path: Path) -> None:
    connection = opened(tmp_path / "db", store.STEPS)
    for name, digit in (("b", "1"), ("a", "2"), ("b", "3")):
        store.put_model(connection, ModelRow(name, digit * 64, "cpc1x", 5))
    assert [row.model_id for row in store.models_after(connection, "", 9)] == ["a", "b"]
    assert store.artifacts_of_models(connection, ["b", "c"]) == {"b": "3" * 64}
    connection.close()


async def test_what_ended_tasks_held_is_let_go_at_the_next_start_but_for_their_files(tmp_path: Path) -> None:
    artifacts = Artifacts((tmp_path / "store").as_uri())
    connection = opened(tmp_path / "db", store.STEPS)
    group = GroupCommit(connection)
    files = {}
    for number, status, phase in ((1, Status.COMPLETED, Phase.ENDED), (2, Status.PENDING, Phase.QUEUED)):
        task_id = bytes([number]) * 32
        owner = Owner("task", task_id.hex())
        kept = await artifacts.put(b"picture %d" % number, owner, "picture.png")
        await artifacts.put(b"output %d" % number, owner)
        files[number] = kept
        spec = Spec(task_id, bytes(16), bytes(33), "cpc1x", "simulation", b"", 1, 2, 0, 1, 0, b"", bytes([number]))
        spec = replace(spec, request_id=bytes([number]) * 16)
        shown = views.files([market_pb2.TaskArtifact(name="picture.png", digest=kept)])
        record = Created(spec, State(status, phase, files=shown))
        await group.commit(partial(store.record, records=[record]))
    await Releases(artifacts).sweep(group)
    ended = await artifacts.retention.held(Owner("task", (bytes([1]) * 32).hex()))
    assert [(one.digest, one.expires_ms > 0) for one in ended] == [(files[1], True)]
    assert len(await artifacts.retention.held(Owner("task", (bytes([2]) * 32).hex()))) == 2
    group.close()
