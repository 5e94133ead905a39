"""Bytes up and down through a real server and a store on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from computemesh.service import blobs, spliced, transfer
from computemesh.service.artifacts import Artifacts
from computemesh.service.blobs import PART_BYTES, Declaration, Owner
from computemesh.service.errors import from_rpc_error
from computemesh.service.server import dial
from computemesh.trust.errors import DigestMismatch, InvalidArgument, MeshError, NotFound, ResourceExhausted
from computemesh.v1 import artifact_pb2 as pb
from computemesh.v1 import artifact_pb2_grpc

from .conftest import LIMIT, As

MIB = 1 << 20
ALICE = (("authorization", "Bearer alice"),)


def declare(data: bytes, **changed: Any) -> pb.UploadArtifactRequest:
    values = {"digest": hashlib.sha256(data).hexdigest(), "size": len(data), **changed}
    return pb.UploadArtifactRequest(declaration=pb.ArtifactDeclaration(**values))


def files(store: Artifacts, below: str) -> list[Path]:
    root = store.store.objects.root
    assert root is not None
    return [path for path in (root / below).rglob("*") if path.is_file()]


async def by_hand(
    address: str, messages: list[pb.UploadArtifactRequest]
) -> list[pb.UploadArtifactResponse] | MeshError:
    """The answers to an upload, or how it was refused."""
    channel = dial(address)
    try:
        call = artifact_pb2_grpc.ArtifactServiceStub(channel).UploadArtifact(iter(messages), metadata=ALICE)
        return [answer async for answer in call]
    except grpc.RpcError as error:
        return from_rpc_error(error)
    finally:
        await channel.close(None)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 37 * MIB])
async def test_what_goes_in_comes_out(caller: As, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    alice = caller()
    seen: list[tuple[int, int]] = []
    stored = await alice.put(tmp_path / "in", media_type="model/gltf-binary", progress=lambda *at: seen.append(at))
    assert (stored.digest, stored.size) == (hashlib.sha256(data).hexdigest(), size)
    assert (stored.name, stored.media_type, seen[-1]) == ("in", "model/gltf-binary", (size, size))
    assert await alice.read(stored.digest, size) == data
    assert (await alice.get(stored.digest, tmp_path / "new" / "out")).read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert await alice.stat(stored.digest) == stored


async def test_a_range_is_a_range(caller: As, address: str) -> None:
    data = os.urandom(2 * PART_BYTES + 12345)
    digest = (await caller().put(data)).digest
    channel = dial(address)
    stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
    for offset, length in [(0, 1), (PART_BYTES - 3, 7), (PART_BYTES, PART_BYTES), (len(data) - 1, 1), (5, 0)]:
        request = pb.DownloadArtifactRequest(digest=digest, offset=offset, length=length)
        got = b"".join([answer.chunk async for answer in stub.DownloadArtifact(request, metadata=ALICE)])
        assert got == data[offset : offset + length if length else None]
    with pytest.raises(grpc.RpcError) as refused:
        async for _ in stub.DownloadArtifact(
            pb.DownloadArtifactRequest(digest=digest, offset=len(data), length=1), metadata=ALICE):
            pass
    assert f"beyond the artifact's {len(data)} bytes" in from_rpc_error(refused.value).message
    await channel.close(None)


async def test_an_interrupted_upload_sends_only_the_rest(caller: As, address: str, store: Artifacts) -> None:
    data = os.urandom(30 * MIB)
    channel = dial(address)
    call = artifact_pb2_grpc.ArtifactServiceStub(channel).UploadArtifact(metadata=ALICE)
    await call.write(declare(data))
    assert (await call.read()).offset == 0
    for at in range(0, 19 * MIB, MIB):
        await call.write(pb.UploadArtifactRequest(chunk=data[at : at + MIB]))
    while (await call.read()).offset < PART_BYTES:
        pass
    call.cancel()
    seen: list[int] = []
    stored = await caller().put(data, progress=lambda done, _: seen.append(done))
    assert seen[0] >= PART_BYTES, "the parts that were stored were asked for again"
    assert await caller().read(stored.digest, len(data)) == data
    assert files(store, "uploads") == []
    await channel.close(None)


async def test_an_upload_survives_its_server(tmp_path: Path, store: Artifacts) -> None:
    data = os.urandom(20 * MIB)
    declared = Declaration(hashlib.sha256(data).hexdigest(), len(data))
    first = await store.store.upload(declared, Owner("account", "alice"), 0)
    for at in range(0, 18 * MIB, MIB):
        await first.write(data[at : at + MIB])
    await first._settled()  # what a killed process had made durable: two parts, the rest is lost
    second = await Artifacts((tmp_path / "store").as_uri()).store.upload(declared, Owner("account", "alice"), 0)
    assert second.stored == 2 * PART_BYTES
    for at in range(second.stored, len(data), MIB):
        await second.write(data[at : at + MIB])
    await second.finish()
    assert await store.read(declared.digest, LIMIT) == data


async def test_an_interrupted_download_fetches_only_the_rest(caller: As, tmp_path: Path) -> None:
    data = os.urandom(9 * MIB)
    alice = caller()
    digest = (await alice.put(data)).digest
    (tmp_path / f".out.{digest[:16]}.part").write_bytes(data[: 5 * MIB])
    seen: list[int] = []
    await alice.get(digest, tmp_path / "out", progress=lambda done, _: seen.append(done))
    assert seen[0] == 6 * MIB
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("left", [b"wrong" * 1000, bytes(10 * MIB)])
async def test_a_wrong_beginning_is_fetched_again(caller: As, tmp_path: Path, left: bytes) -> None:
    data = os.urandom(9 * MIB)
    digest = (await caller().put(data)).digest
    (tmp_path / f".out.{digest[:16]}.part").write_bytes(left)
    assert (await caller().get(digest, tmp_path / "out")).read_bytes() == data


async def test_a_download_from_a_damaged_store_is_noticed(caller: As, store: Artifacts, tmp_path: Path) -> None:
    digest = (await caller().put(os.urandom(3 * MIB))).digest
    (part,) = files(store, "data")
    damaged = bytearray(part.read_bytes())
    damaged[2 * MIB] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(DigestMismatch, match="the bytes received have SHA-256"):
        await caller().get(digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotFound):
        await store.read(digest, LIMIT)


async def test_other_bytes_than_declared_are_refused_and_forgotten(address: str, store: Artifacts) -> None:
    data = os.urandom(2 * MIB)
    messages = [declare(data), *(pb.UploadArtifactRequest(chunk=bytes(MIB)) for _ in range(2))]
    refused = await by_hand(address, messages)
    assert isinstance(refused, DigestMismatch)
    assert (refused.reason, refused.violations[0][0]) == ("DIGEST_MISMATCH", "digest")
    assert [files(store, name) for name in ("blobs", "data", "uploads", "refs")] == [[], [], [], []]


@pytest.mark.parametrize(("chunks", "text"), [([MIB, MIB], "at least 2,097,152 came"), ([1000], "1,000 came")])
async def test_another_length_than_declared_is_refused(address: str, chunks: list[int], text: str) -> None:
    data = bytes(MIB + 1)
    refused = await by_hand(address, [declare(data), *(pb.UploadArtifactRequest(chunk=data[:n]) for n in chunks)])
    assert isinstance(refused, MeshError)
    assert refused.reason == "WRONG_LENGTH"
    assert refused.message == f"size: 1,048,577 bytes were declared, {text}"


@pytest.mark.parametrize(("messages", "text"), [
    ([pb.UploadArtifactRequest(chunk=b"x")], "declaration: the first message of an upload declares the artifact"),
    ([], "declaration: the first message of an upload declares the artifact"),
    ([declare(b"x", digest="ABC")], "digest: "),
    ([declare(b"x", media_type="no type")], "media_type: "),
    ([declare(b"x"), pb.UploadArtifactRequest()], "chunk: 0 bytes, must be 1..1,048,576"),
    ([declare(bytes(2 * MIB)), pb.UploadArtifactRequest(chunk=bytes(MIB + 1))], "chunk: 1,048,577 bytes, must be 1.."),
    ([declare(b"x"), declare(b"x")], "chunk: 0 bytes"),
])  # fmt: skip
async def test_malformed_uploads_are_named(address: str, messages: list[Any], text: str) -> None:
    refused = await by_hand(address, messages)
    assert isinstance(refused, InvalidArgument)
    assert refused.message.startswith(text)


async def test_what_is_too_large_is_refused_before_it_is_sent(caller: As, address: str, tmp_path: Path) -> None:
    refused = await by_hand(address, [declare(b"", size=LIMIT + 1)])
    assert isinstance(refused, InvalidArgument)
    assert refused.message == f"size: {LIMIT + 1:,} bytes, at most {LIMIT:,} are taken"
    assert refused.reason == "ARTIFACT_TOO_LARGE"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LIMIT + 1)
    seen: list[int] = []
    with pytest.raises(InvalidArgument, match="at most"):
        await caller().put(tmp_path / "large", progress=lambda done, _: seen.append(done))
    assert seen == []


async def test_a_full_disk_is_said_before_bytes_come(
    caller: As, store: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.store.objects, "free_bytes", lambda: blobs.RESERVE_BYTES + 10)
    with pytest.raises(ResourceExhausted, match="the store has 10 bytes left, the artifact has 11"):
        await caller().put(b"hello world")


async def test_a_download_over_the_readers_limit_stops(caller: As, tmp_path: Path) -> None:
    digest = (await caller().put(bytes(MIB))).digest
    with pytest.raises(InvalidArgument, match="has 1,048,576 bytes, at most 10 are wanted"):
        await caller().get(digest, tmp_path / "out", max_bytes=10)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("names", [("alice", "bob"), ("alice", "alice")])
async def test_two_uploads_of_the_same_bytes_at_once(caller: As, names: tuple[str, str]) -> None:
    data = os.urandom(25 * MIB)
    stored = await asyncio.gather(*(caller(name).put(data) for name in names))
    assert {one.digest for one in stored} == {hashlib.sha256(data).hexdigest()}
    assert await caller("carol").read(stored[0].digest, LIMIT) == data


async def test_what_the_store_has_is_not_sent_again(caller: As, store: Artifacts) -> None:
    data = os.urandom(5 * MIB)
    await caller("alice").put(data, name="hers")
    before = files(store, "data")
    seen: list[int] = []
    again = await caller("bob").put(data, name="his", progress=lambda done, _: seen.append(done))
    assert (seen, again.name) == ([len(data)], "his")
    assert files(store, "data") == before
    assert (await caller("alice").stat(again.digest)).name == "hers"


async def test_a_file_that_shrinks_while_it_is_sent(
    caller: As, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(10 * MIB))
    real = transfer.file_digest

    def shrinks(source: Path) -> tuple[str, int]:
        found = real(source)
        path.write_bytes(bytes(5 * MIB))
        return found

    monkeypatch.setattr(transfer, "file_digest", shrinks)
    with pytest.raises(InvalidArgument, match="became shorter while it was sent"):
        await caller().put(path)


async def test_a_silent_upload_is_ended(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from computemesh.service import artifacts

    monkeypatch.setattr(artifacts, "SILENCE_S", 0.2)

    async def silent() -> AsyncIterator[pb.UploadArtifactRequest]:
        yield declare(b"x")
        await asyncio.sleep(30)

    channel = dial(address)
    call = artifact_pb2_grpc.ArtifactServiceStub(channel).UploadArtifact(silent(), metadata=ALICE)
    with pytest.raises(grpc.RpcError) as refused:
        [answer async for answer in call]
    assert from_rpc_error(refused.value).reason == "UPLOAD_STALLED"
    await channel.close(None)


async def test_memory_does_not_grow_with_the_artifact(tmp_path: Path, caller: As, store: Artifacts) -> None:
    store.store.max_bytes = 1 << 30
    path = tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(16 * MIB))
    process, most = psutil.Process(), 0
    before = process.memory_info().rss

    def watch(_: int, __: int) -> None:
        nonlocal most
        most = max(most, process.memory_info().rss - before)

    stored = await caller().put(path, progress=watch)
    await caller().get(stored.digest, tmp_path / "out", progress=watch)
    # Client and server together; each holds a window of 32 MiB and some copies of it.
    assert most < 200 * MIB, f"grew by {most / MIB:.0f} MiB"


async def test_lists_are_own_and_paged(caller: As) -> None:
    alice = caller()
    for number in range(5):
        await alice.put(b"%d" % number, name=f"n{number}")
        await asyncio.sleep(0.002)
    await caller("bob").put(b"bob's")
    names, token, pages = [], "", 0
    while True:
        page, token, total = await alice.page(2, token)
        names += [one.name for one in page]
        pages += 1
        if not token:
            break
    assert (names, pages, total) == (["n4", "n3", "n2", "n1", "n0"], 3, 5)
    with pytest.raises(InvalidArgument, match="page_token"):
        await alice.page(2, "nonsense")


async def test_nobody_calls_without_a_name(address: str) -> None:
    channel = dial(address)
    stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
    digest = "0" * 64
    for method, request in [
        ("StatArtifact", pb.StatArtifactRequest(digest=digest)), ("ListArtifacts", pb.ListArtifactsRequest()),
        ("DeleteArtifact", pb.DeleteArtifactRequest(digest=digest)),
    ]:  # fmt: skip
        with pytest.raises(grpc.RpcError) as refused:
            await getattr(stub, method)(request)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await channel.close(None)


async def test_an_unknown_digest_is_named(caller: As, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(NotFound, match=f"artifact {'ab' * 32} is not here"):
        await caller().get("ab" * 32, tmp_path / "out")
    assert time.monotonic() - began < 2.0, "what cannot succeed is not repeated"


def test_spliced_chunks_are_what_the_generated_classes_read_and_write() -> None:
    for size in (0, 1, 127, 128, 16_384, 1 << 20):
        data = bytes(size)
        up = spliced.bytes_field(2, data)
        assert pb.UploadArtifactRequest.FromString(up).chunk == data
        assert spliced.take_bytes_field(2, up) == data
        before = pb.DownloadArtifactResponse(size=300 + size).SerializeToString()
        down = spliced.bytes_field(2, memoryview(data), before)
        assert pb.DownloadArtifactResponse.FromString(down) == pb.DownloadArtifactResponse(size=300 + size, chunk=data)
        assert transfer._downloaded(down) == (300 + size, data)
    other = pb.DownloadArtifactResponse(size=5).SerializeToString()
    assert transfer._downloaded(other) == (5, b"")
    for broken in (b"", b"\x12", b"\x12\x05abc", b"\x12\x80", b"\x12" + b"\xff" * 12, up + b"\x12\x00", b"\x0a\x00"):
        assert spliced.take_bytes_field(2, broken) is None
