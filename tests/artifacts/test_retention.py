"""What is referred to stays, what is not goes, whatever runs at the same time."""

from __future__ import annotations

import hashlib
import os

import pytest

from computemesh.service.artifacts import Artifacts, now_ms
from computemesh.service.blobs import PART_BYTES, Declaration, Owner
from computemesh.service.retention import HOUR_MS, Collected
from computemesh.trust import folder
from computemesh.trust.errors import InvalidArgument, NotFound
from computemesh.trust.folder import Entry

ALICE, BOB = Owner("account", "alice"), Owner("account", "bob")
LIMIT = 1 << 26
LATER = 30 * 24 * HOUR_MS


def everything(store: Artifacts) -> list[str]:
    root = store.store.objects.root
    assert root is not None
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


async def collect(store: Artifacts, after_ms: int = LATER, times: int = 1) -> Collected:
    """The last of several collections at a later time; each one's grace period has passed for what is there now."""
    done = Collected()
    for _ in range(times):
        done = await store.retention.collect(now_ms() + after_ms)
    return done


async def test_what_expired_is_removed_without_a_trace(store: Artifacts) -> None:
    digest = await store.put(os.urandom(PART_BYTES + 5), ALICE)
    first = await collect(store)
    assert (first.references, first.doomed, first.removed) == (1, 1, 0)
    assert len(await store.read(digest, LIMIT)) == PART_BYTES + 5, "whoever reads it now may finish"
    assert (await collect(store)).removed_bytes == PART_BYTES + 5
    assert everything(store) == []
    with pytest.raises(NotFound):
        await store.read(digest, LIMIT)


async def test_a_live_reference_keeps_whoever_holds_it(store: Artifacts) -> None:
    digest = await store.put(b"shared", ALICE)
    await store.put(b"shared", BOB)
    await store.retention.release(ALICE, digest)
    await collect(store, HOUR_MS * 2, times=2)
    assert await store.read(digest, LIMIT) == b"shared"
    await store.retention.release(BOB, digest)
    await collect(store, HOUR_MS * 2, times=2)
    assert everything(store) == []


async def test_a_task_keeps_its_files_until_it_is_released(store: Artifacts) -> None:
    task = "ab" * 32
    read, left = await store.put(b"input", ALICE), await store.put(b"output", Owner("task", task))
    await store.hold_for_task(task, [read])
    await collect(store, times=3)
    assert [await store.read(one, LIMIT) for one in (read, left)] == [b"input", b"output"]
    await store.release_task(task, keep_ms=2 * LATER, outputs=[left])
    await collect(store, times=2)
    assert await store.read(left, LIMIT) == b"output"
    with pytest.raises(NotFound):
        await store.read(read, LIMIT)
    await collect(store, 3 * LATER, times=2)
    assert everything(store) == []


async def test_a_task_cannot_hold_what_is_not_here_or_on_its_way_out(store: Artifacts) -> None:
    with pytest.raises(NotFound):
        await store.hold_for_task("ab" * 32, ["cd" * 32])
    digest = await store.put(b"going", ALICE)
    await collect(store)
    with pytest.raises(NotFound, match="put it again"):
        await store.hold_for_task("ab" * 32, [digest])
    assert await store.retention.held(Owner("task", "ab" * 32)) == []


async def test_a_put_during_removal_is_kept(store: Artifacts) -> None:
    digest = await store.put(b"again", ALICE)
    await collect(store)  # doomed: the second collection may run at any moment from here on
    assert await store.put(b"again", BOB) == digest
    assert len([name for name in everything(store) if name.startswith("data/")]) == 2, "it was stored once more"
    done = await collect(store, 2 * HOUR_MS)
    assert done.removed == 1
    assert await store.read(digest, LIMIT) == b"again"
    assert len([name for name in everything(store) if name.startswith("data/")]) == 1


async def test_a_reference_that_came_while_it_was_doomed_saves_it(store: Artifacts) -> None:
    digest = await store.put(b"x", ALICE)
    await collect(store)
    await store.retention.hold(digest, 1, BOB, now_ms() + 2 * LATER)
    assert (await collect(store)).saved == 1
    assert await store.store.find(digest, to_keep=True) is not None


async def test_what_was_just_written_is_never_doomed(store: Artifacts) -> None:
    upload = await store.store.upload(Declaration(hashlib.sha256(b"n").hexdigest(), 1), ALICE, now_ms())
    await upload.write(b"n")
    await upload.finish()  # no reference yet: its owner's comes in a moment
    assert await store.retention.collect(now_ms()) == Collected()


async def test_of_two_versions_one_is_removed(store: Artifacts) -> None:
    declared = Declaration(hashlib.sha256(b"twin").hexdigest(), 4)
    for owner in (ALICE, BOB):
        upload = await store.store.upload(declared, owner, now_ms())
        await upload.write(b"twin")
        await upload.finish()
        await store.keep(declared, owner)
    await collect(store, 2 * HOUR_MS)
    assert (await collect(store, 2 * HOUR_MS)).removed == 1
    assert await store.read(declared.digest, LIMIT) == b"twin"


async def test_an_upload_nobody_continued_expires(store: Artifacts) -> None:
    data = os.urandom(PART_BYTES * 2)
    declared = Declaration(hashlib.sha256(data).hexdigest(), len(data))
    upload = await store.store.upload(declared, ALICE, now_ms())
    await upload.write(data[: PART_BYTES + 7])
    await upload.give_up()
    assert [name.split("/")[0] for name in everything(store)] == ["data", "uploads"]
    await collect(store, 2 * HOUR_MS, times=2)
    assert (await store.store.upload(declared, ALICE, now_ms())).stored == PART_BYTES + 7, "it was kept for a day"
    assert (await store.store.upload(declared, BOB, now_ms())).stored == 0, "and is nobody else's"
    assert (await collect(store, 25 * HOUR_MS)).uploads == 1
    assert everything(store) == []


async def test_a_folder_keeps_its_files(store: Artifacts) -> None:
    files = {name: await store.put(name.encode(), ALICE) for name in ("a", "b/c")}
    manifest = folder.encode({name: Entry(bytes.fromhex(digest), len(name)) for name, digest in files.items()})
    task = Owner("task", "ab" * 32)
    whole = await store.put(manifest, ALICE, "model", folder.MEDIA_TYPE)
    await store.hold_for_task(task.id, [whole])
    await store.retention.release(ALICE)
    await collect(store, times=3)
    assert [await store.read(digest, LIMIT) for digest in files.values()] == [b"a", b"b/c"]
    await store.release_task(task.id)
    await collect(store, times=2)
    assert everything(store) == []


async def test_a_manifest_stored_as_plain_json_becomes_a_folder_when_put_as_one(store: Artifacts) -> None:
    inside = await store.put(b"f", ALICE)
    manifest = folder.encode({"f": Entry(bytes.fromhex(inside), 1)})
    plain = await store.put(manifest, ALICE, "", "application/json")
    assert await store.put(manifest, BOB, "", folder.MEDIA_TYPE) == plain
    await store.retention.release(ALICE)
    await collect(store, 2 * HOUR_MS, times=3)
    assert await store.read(inside, LIMIT) == b"f"


async def test_what_claims_to_be_a_folder_and_is_not_is_refused(store: Artifacts) -> None:
    with pytest.raises(InvalidArgument, match="is not JSON"):
        await store.put(b"not a manifest", ALICE, "", folder.MEDIA_TYPE)
    assert everything(store) == []


async def test_putting_again_renews_and_never_shortens(store: Artifacts) -> None:
    digest = await store.put(b"x", ALICE, "name", "text/plain")
    await store.retention.hold(digest, 1, ALICE, 0)
    await store.put(b"x", ALICE)
    (held,) = await store.retention.held(ALICE)
    assert held.expires_ms == 0
    label = await store.retention.label(held)
    assert (label.name, label.media_type) == ("name", "text/plain")


async def test_half_written_files_of_a_killed_process_are_swept(store: Artifacts) -> None:
    root = store.store.objects.root
    assert root is not None
    await store.put(b"x", ALICE)
    os.close(os.open(root / "data" / "dead#1", os.O_CREAT))
    os.utime(root / "data" / "dead#1", (0, 0))
    await store.retention.collect(now_ms())
    assert "data/dead#1" not in everything(store)


async def test_damaged_manifests_do_not_stop_a_collection(store: Artifacts) -> None:
    inside = await store.put(b"f", ALICE)
    await store.put(folder.encode({"f": Entry(bytes.fromhex(inside), 1)}), ALICE, "", folder.MEDIA_TYPE)
    root = store.store.objects.root
    assert root is not None
    for part in (root / "data").rglob("*-folder/*"):
        part.write_bytes(b"damaged".ljust(part.stat().st_size))
    assert (await collect(store, 2 * HOUR_MS)).doomed == 0
