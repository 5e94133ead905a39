"""The same store on S3 (moto's server, real HTTP) and in memory; a local folder under many writers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.service.artifacts import Artifacts, now_ms
from computemesh.service.blobs import PART_BYTES, Declaration, Owner
from computemesh.service.objects import Objects
from computemesh.service.retention import HOUR_MS
from computemesh.trust.errors import DigestMismatch, InvalidArgument, NotFound, Unavailable

ALICE = Owner("account", "alice")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket on a server of its own."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="artifacts")
        yield f"s3://artifacts/{os.urandom(8).hex()}"  # what the server holds outlives a test
    server.stop()


@pytest.mark.parametrize("kind", ["s3", "memory"])
async def test_a_store_elsewhere_does_all_that_a_folder_does(kind: str, request: pytest.FixtureRequest) -> None:
    store = Artifacts(request.getfixturevalue("s3") if kind == "s3" else "memory:///")
    for size in (0, 1, PART_BYTES + 1):
        data = os.urandom(size)
        digest = await store.put(data, ALICE, f"{size} bytes")
        assert await store.read(digest, size) == data
    big = os.urandom(PART_BYTES * 2 + 3)
    declared = Declaration(digest_of(big), len(big))
    first = await store.store.upload(declared, ALICE, now_ms())
    await first.write(big[: PART_BYTES + 5])
    await first.give_up()
    second = await store.store.upload(declared, ALICE, now_ms())
    assert second.stored == PART_BYTES + 5
    await second.write(big[second.stored :])
    blob = await second.finish()
    pieces = [bytes(piece) async for piece in store.store.read(blob, PART_BYTES - 2, 10)]
    assert b"".join(pieces) == big[PART_BYTES - 2 : PART_BYTES + 8]
    wrong = await store.store.upload(Declaration(digest_of(b"right"), 5), ALICE, now_ms())
    await wrong.write(b"wrong")
    with pytest.raises(DigestMismatch):
        await wrong.finish()
    assert len(await store.retention.held(ALICE)) == 3
    assert await store.retention.release(ALICE) == 3
    for _ in range(2):
        await store.retention.collect(now_ms() + 2 * HOUR_MS)
    assert await store.store.objects.list("") == []


async def test_two_services_share_a_bucket(s3: str) -> None:
    market, orchestrator = Artifacts(s3), Artifacts(s3)
    digest = await market.put(b"input", ALICE)
    await orchestrator.hold_for_task("ab" * 32, [digest])
    await market.retention.release(ALICE)
    for _ in range(2):
        await market.retention.collect(now_ms() + 2 * HOUR_MS)
    assert await orchestrator.read(digest, 10) == b"input"


@pytest.mark.parametrize("url", ["", "artifacts", "ftp://host/x", "http://host/x", "s3://"])
def test_what_is_no_store_is_named(url: str) -> None:
    with pytest.raises(InvalidArgument, match="artifacts: "):
        Objects(url)


async def test_a_folder_that_comes_and_goes_under_many_writers(tmp_path: Path) -> None:
    objects = Objects(tmp_path.as_uri())

    async def churn(number: int) -> None:
        for turn in range(20):
            path = f"refs/shared/{turn % 3}/{number}"
            await objects.put(path, b"%d" % turn)
            assert await objects.get(path, 100) == b"%d" % turn
            await objects.list("refs")
            await objects.delete([path, "refs/shared/none"])

    await asyncio.gather(*(churn(number) for number in range(12)))
    assert await objects.list("") == []
    with pytest.raises(NotFound):
        await objects.get("refs/shared/0/0", 100)


async def test_a_store_that_fails_says_so_without_its_paths(tmp_path: Path) -> None:
    objects = Objects((tmp_path / "store").as_uri())
    (tmp_path / "store" / "refs").write_bytes(b"a file where a folder should be")
    with pytest.raises(Unavailable) as failed:
        await objects.put("refs/a/b", b"x")
    assert str(tmp_path) not in failed.value.message


def digest_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
