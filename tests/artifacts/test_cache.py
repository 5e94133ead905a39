"""The cache of a worker: what a job reads is there, what was used longest ago goes first."""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path

import pytest

from computemesh.service import folders
from computemesh.service.artifact_cache import ArtifactCache
from computemesh.trust.errors import InvalidState, NotFound, ResourceExhausted
from computemesh.workloads.contract import Files

from .conftest import As

KIB = 1024


def held(cache: ArtifactCache) -> set[str]:
    return {path.name for path in (cache.files.root / "files").iterdir()}


async def test_artifacts_and_folders_are_local_while_they_are_used(caller: As, tmp_path: Path) -> None:
    alice = caller()
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "w").write_bytes(b"weights")
    file, whole = await alice.put(b"data"), await folders.put_folder(alice, tmp_path / "model")
    cache = ArtifactCache(tmp_path / "cache")
    artifact, model = bytes.fromhex(file.digest), bytes.fromhex(whole.digest)
    with pytest.raises(NotFound, match="was not fetched"):
        cache.artifact(artifact)
    async with cache.use(alice, [artifact], [model]) as local:
        there: Files = pickle.loads(pickle.dumps(local))  # as the executor's process gets it
        assert there.artifact(artifact).read_bytes() == b"data"
        assert (there.folder(model) / "sub" / "w").read_bytes() == b"weights"
        with pytest.raises(NotFound):
            there.result(3)
    assert (cache.folder(model) / "sub" / "w").read_bytes() == b"weights"
    cache.close()


async def test_the_cache_stays_within_its_bound_and_forgets_the_oldest(caller: As, tmp_path: Path) -> None:
    alice = caller()
    digests = [(await alice.put(os.urandom(10 * KIB))).digest for _ in range(5)]
    cache = ArtifactCache(tmp_path / "cache", 30 * KIB)
    for at, digest in enumerate([*digests[:3], digests[0], *digests[3:]]):
        async with cache.use(alice, [bytes.fromhex(digest)]):
            assert sum(path.stat().st_size for path in (tmp_path / "cache" / "files").iterdir()) <= 30 * KIB
        os.utime(tmp_path / "cache" / "files" / digest, (1000 + at, 1000 + at))
    assert held(cache) == {digests[0], digests[3], digests[4]}
    cache.close()


async def test_what_is_in_use_is_never_removed(caller: As, tmp_path: Path) -> None:
    alice = caller()
    one, two, huge = [bytes.fromhex((await alice.put(os.urandom(size))).digest) for size in (10_000, 11_000, 30_000)]
    cache = ArtifactCache(tmp_path / "cache", 20_000)
    async with cache.use(alice, [one]):
        with pytest.raises(ResourceExhausted, match="in use") as full:
            async with cache.use(alice, [two]):
                pass
        assert full.value.retry_after_ms
        assert cache.artifact(one).exists()
    async with cache.use(alice, [two]):
        assert held(cache) == {two.hex()}
    with pytest.raises(ResourceExhausted, match="do not fit the artifact cache of 20,000"):
        async with cache.use(alice, [huge]):
            pass
    cache.close()


async def test_a_folder_whose_file_was_removed_is_made_again(caller: As, tmp_path: Path) -> None:
    alice = caller()
    source = tmp_path / "model"
    source.mkdir()
    for name in "ab":
        (source / name).write_bytes(os.urandom(8_000))
    model = bytes.fromhex((await folders.put_folder(alice, source)).digest)
    other = bytes.fromhex((await alice.put(os.urandom(15_000))).digest)
    cache = ArtifactCache(tmp_path / "cache", 20_000)
    for _ in range(2):
        async with cache.use(alice, folders=[model]) as local:
            assert (local.folder(model) / "a").read_bytes() == (source / "a").read_bytes()
        async with cache.use(alice, [other]) as local:
            with pytest.raises(NotFound):
                local.folder(model)
    cache.close()


async def test_one_fetch_serves_all_who_ask_at_once(caller: As, tmp_path: Path) -> None:
    alice = caller()
    digest = bytes.fromhex((await alice.put(os.urandom(500_000))).digest)
    cache = ArtifactCache(tmp_path / "cache")
    fetched = 0
    get = alice.get

    async def counting(*args: object, **named: object) -> Path:
        nonlocal fetched
        fetched += 1
        return await get(*args, **named)  # type: ignore[arg-type]

    alice.get = counting  # type: ignore[method-assign]

    async def one() -> None:
        async with cache.use(alice, [digest]) as local:
            assert local.artifact(digest).stat().st_size == 500_000

    await asyncio.gather(*(one() for _ in range(8)))
    assert fetched == 1
    cache.close()


async def test_a_restart_keeps_what_was_fetched(caller: As, tmp_path: Path) -> None:
    alice = caller()
    digest = bytes.fromhex((await alice.put(b"kept")).digest)
    cache = ArtifactCache(tmp_path / "cache")
    async with cache.use(alice, [digest]):
        pass
    with pytest.raises(InvalidState, match="another process uses"):
        ArtifactCache(tmp_path / "cache")
    cache.close()
    again = ArtifactCache(tmp_path / "cache")
    assert again.artifact(digest).read_bytes() == b"kept"
    again.close()
