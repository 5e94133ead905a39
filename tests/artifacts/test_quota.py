"""How much one owner may keep: decided before the bytes come, with the figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from computemesh.service.artifacts import Artifacts
from computemesh.service.blobs import PART_BYTES
from computemesh.service.quota import MEASURED_FOR_S
from computemesh.service.server import dial
from computemesh.trust.errors import ResourceExhausted
from computemesh.v1 import artifact_pb2 as pb
from computemesh.v1 import artifact_pb2_grpc
from tests.worker.scripted import until

from .conftest import LIMIT, As
from .test_transfer import ALICE, MIB, by_hand, declare, files

QUOTA = 10 * MIB


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    """As the usual one, with ten MiB for everybody."""
    return Artifacts((tmp_path / "store").as_uri(), LIMIT, quota_bytes=QUOTA)


async def test_what_does_not_fit_is_refused_with_the_figures_before_a_byte_of_it_comes(
    address: str, caller: As, store: Artifacts
) -> None:
    alice = caller()
    await alice.put(os.urandom(6 * MIB))
    before = files(store, "data")
    refused = await by_hand(address, [declare(b"x", size=5 * MIB)])
    assert isinstance(refused, ResourceExhausted)
    assert (refused.reason, refused.retry_after_ms) == ("QUOTA_EXCEEDED", None)
    assert "you have 6,291,456 of 10,485,760 bytes in the store, and the artifact has 5,242,880" in refused.message
    assert refused.metadata == {"used": str(6 * MIB), "size": str(5 * MIB), "limit": str(QUOTA)}
    assert files(store, "data") == before
    await alice.put(os.urandom(4 * MIB))


async def test_each_owner_has_a_quota_of_its_own_and_the_same_bytes_count_for_both(caller: As) -> None:
    data = os.urandom(8 * MIB)
    for name in ("alice", "bob"):
        await caller(name).put(data)
        with pytest.raises(ResourceExhausted, match="8,388,608 of"):
            await caller(name).put(os.urandom(3 * MIB))


async def test_putting_again_what_one_holds_costs_nothing_and_deleting_it_makes_room(caller: As) -> None:
    alice, data = caller(), os.urandom(9 * MIB)
    digest = (await alice.put(data)).digest
    assert (await alice.put(data)).digest == digest
    with pytest.raises(ResourceExhausted):
        await alice.put(os.urandom(2 * MIB))
    await alice.delete(digest)
    await alice.put(os.urandom(10 * MIB))


async def test_what_expired_or_is_kept_for_a_task_does_not_count(caller: As, store: Artifacts) -> None:
    alice, data = caller(), os.urandom(9 * MIB)
    store.ttl_ms = -1
    digest = (await alice.put(data)).digest
    store.ttl_ms = 60_000
    await store.retention.hold_for_task("7" * 64, [digest])
    await alice.put(os.urandom(10 * MIB))


async def test_uploads_at_once_and_what_broken_ones_left_count(address: str, caller: As, store: Artifacts) -> None:
    data = os.urandom(9 * MIB)
    channel = dial(address)
    call = artifact_pb2_grpc.ArtifactServiceStub(channel).UploadArtifact(metadata=ALICE)
    await call.write(declare(data))
    assert (await call.read()).offset == 0
    refused = await by_hand(address, [declare(b"x", size=2 * MIB)])
    assert isinstance(refused, ResourceExhausted)
    assert refused.metadata["used"] == str(9 * MIB)
    for at in range(0, PART_BYTES, MIB):
        await call.write(pb.UploadArtifactRequest(chunk=data[at : at + MIB]))
    await until(lambda: sum(path.stat().st_size for path in files(store, "data")) == PART_BYTES)
    call.cancel()
    await until(lambda: not store.store._active)
    with pytest.raises(ResourceExhausted, match="8,388,608 of"):
        await caller().put(os.urandom(3 * MIB))
    await caller().put(data)
    await channel.close(None)


async def test_many_small_puts_list_what_the_owner_holds_once(caller: As, store: Artifacts, monkeypatch) -> None:
    asked = []
    real = store.retention.held

    async def held(owner: Any, digest: str = "") -> Any:
        asked.append(owner)
        return await real(owner, digest)

    monkeypatch.setattr(store.retention, "held", held)
    alice = caller()
    for number in range(20):
        await alice.put(b"%d" % number)
    assert len(asked) == 1
    moment = store.quota._bounds[asked[0]]
    store.quota._bounds[asked[0]] = moment[0], moment[1] - MEASURED_FOR_S
    await alice.put(b"another server may have stored something meanwhile")
    assert len(asked) == 2
