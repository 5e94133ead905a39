"""Jobs that need others and jobs that leave outputs: what the core does, and what an auditor believes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from computemesh import workloads
from computemesh.service.artifacts import Artifacts, now_ms
from computemesh.service.blobs import Owner
from computemesh.trust import audit as proofs
from computemesh.trust.audit import JobTree, Layout
from computemesh.trust.errors import InvalidProof, NotFound
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.workloads.contract import Artifact, Claim, JobSpec, Workload, equal_slices
from computemesh.workloads.outputs import Shown
from orchestrator import audit, store, wire
from orchestrator import events as e
from orchestrator.audits import AUDIT, AuditFailed, Audits
from orchestrator.files import WORKER, TaskFiles
from orchestrator.judging import BrokenRule
from orchestrator.model import Job, Lease, Task
from tests.databases import opened
from tests.orchestrator.scene import Scene, task_id

UNITS, SIZE = 16, 8


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def chain(number: int = 1, **values: Any) -> Task:
    """Jobs 0 and 1 are free, job 2 needs both, job 3 needs job 2."""
    needs = {2: (0, 1), 3: (2,)}
    specs = [JobSpec(task_id(number), index, bytes([index]), needs.get(index, ())) for index in range(4)]
    values = {"deadline_ms": 10**9, "exact_whole": False, "leaves": True, **values}
    return Task(task_id(number), 1, "noop", specs, **values)


def deliver(scene: Scene, session: int, lease: Lease) -> None:
    """Commit, open, audit and settle one job; its output is named after it."""
    batch = replace(scene.commitments(session, [lease]), outputs=[digest(f"output {lease.index}")])
    scene.do(batch)
    if lease.id in scene.challenges:
        scene.do(e.Opened(session, [(lease.id, b"")]))
    scene.judge()
    scene.settle()


def held(scene: Scene, session: int) -> set[int]:
    return {lease.index for lease in scene.held(session)}


def test_a_job_waits_until_what_it_needs_is_settled_and_then_names_the_outputs() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(chain()))
    session = scene.worker(1, credits=8)
    assert held(scene, session) == {0, 1}
    first, second = scene.held(session)
    deliver(scene, session, first)
    assert held(scene, session) == {1}
    deliver(scene, session, second)
    assert held(scene, session) == {2}
    (message,) = wire.job_batches(scene.held(session), 1000)
    (job,) = pb.WorkResponse.FromString(message).jobs.jobs
    assert [(item.job, item.output) for item in job.needs] == [(0, digest("output 0")), (1, digest("output 1"))]
    deliver(scene, session, scene.held(session)[0])
    deliver(scene, session, scene.held(session)[0])
    assert scene.outcomes[task_id(1)].completed


def test_a_lost_attempt_does_not_free_the_jobs_that_wait_for_it() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(chain()))
    session = scene.worker(1, credits=2)
    deliver(scene, session, scene.held(session)[0])
    scene.do(e.WorkerLeft(session))
    again = scene.worker(2, credits=8)
    assert held(scene, again) == {1}


def test_a_restart_knows_which_jobs_may_begin_and_what_they_read() -> None:
    scene = Scene()
    task = chain()
    found = [(index, digest(f"hash {index}"), digest(f"output {index}")) for index in (0, 1)]
    scene.do(e.TaskLeased(task, settled=[row[:2] for row in found], outputs=found))
    session = scene.worker(1, credits=8)
    assert held(scene, session) == {2}
    assert [task.output(index) for index in range(4)] == [digest("output 0"), digest("output 1"), b"", b""]


def test_a_commitment_without_the_output_its_job_leaves_breaks_a_rule() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(chain()))
    session = scene.worker(1, credits=1)
    with pytest.raises(BrokenRule, match=r"commitments\.outputs\[0\]"):
        scene.commit(session, scene.held(session))


def test_units_an_output_shows_are_judged_without_asking_the_worker() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(chain(opens=False)))
    session = scene.worker(1, credits=1)
    (lease,) = scene.held(session)
    scene.do(replace(scene.commitments(session, [lease]), outputs=[digest("x")]))
    assert not scene.challenges
    (work,) = scene.audits
    assert isinstance(work, e.CheckOpening)
    assert work.openings is None
    assert scene.states(1)[lease.index] is Job.AUDITING


def challenged(scene: Scene, session: int, **values: Any) -> Lease:
    """Commit one job, with an output and a list of unit digests."""
    scene.do(e.TaskLeased(chain(**values)))
    (lease,) = scene.held(session)
    named = {"outputs": [digest("output")], "unit_digests": [digest("units")]}
    scene.do(replace(scene.commitments(session, [lease]), **named))
    assert lease.id in scene.challenges
    return lease


def test_an_answer_too_large_for_a_message_may_take_as_long_as_its_upload() -> None:
    scene = Scene(opening_timeout_ms=1000, upload_bytes_per_s=1 << 20, worker_lease_ms=10**9)
    lease = challenged(scene, scene.worker(1, credits=1), opening_bytes=lambda spec: 8 << 20)
    scene.tick(8_999)
    assert lease.id not in scene.verdicts
    scene.tick(2)
    assert scene.verdicts[lease.id] == e.LATE


def test_one_late_answer_among_others_that_have_longer_is_late() -> None:
    scene = Scene(opening_timeout_ms=1000, upload_bytes_per_s=1 << 20, worker_lease_ms=10**9)
    session = scene.worker(1, credits=2)
    scene.do(e.TaskLeased(chain(opening_bytes=lambda spec: 0 if spec.index else 8 << 20)))
    slow, quick = scene.held(session)
    for lease in (slow, quick):
        scene.do(replace(scene.commitments(session, [lease]), outputs=[digest("output")]))
    scene.tick(1001)
    assert (slow.id in scene.verdicts, scene.verdicts[quick.id]) == (False, e.LATE)


def test_openings_in_an_artifact_are_judged_by_their_digest_and_those_nobody_waits_for_are_discarded() -> None:
    scene = Scene()
    session = scene.worker(1, credits=1)
    lease = challenged(scene, session)
    scene.do(e.Opened(session, [], [(lease.id, digest("openings"))]))
    scene.do(e.Opened(session, [], [(lease.id, digest("again"))]))
    (work,) = scene.audits
    assert isinstance(work, e.CheckOpening)
    assert (work.openings, work.uploaded) == (b"", digest("openings"))
    assert scene.discarded == [(scene.core.state.workers[session].key, digest("again"))]


def test_what_an_attempt_uploaded_is_discarded_when_nobody_will_judge_it() -> None:
    for ending in (lambda scene, session: scene.do(e.WorkerLeft(session)), lambda scene, session: scene.tick(1001),
                   lambda scene, session: scene.do(e.TaskRevoked(task_id(1), 9))):  # fmt: skip
        scene = Scene(opening_timeout_ms=1000)
        session = scene.worker(1, credits=1)
        key = scene.core.state.workers[session].key
        challenged(scene, session)
        ending(scene, session)
        assert scene.discarded == [(key, digest("output")), (key, digest("units"))]


def test_the_outcome_carries_the_files_and_what_is_wrong_with_them() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(chain()))
    task = scene.core.state.tasks[task_id(1)]
    task.outcome = "ROOTING"
    scene.do(e.Rooted(task.id, bytes(32), 7, b"files", "one is missing"))
    row = scene.outcomes[task.id]
    assert (row.completed, row.artifacts, row.detail, row.height) == (True, b"files", "one is missing", 7)


# ---- what an auditor believes --------------------------------------------------------------------------------------
def unit(index: int) -> bytes:
    return bytes([index]) * SIZE


HONEST = b"".join(unit(index) for index in range(UNITS))
DIGESTS = b"".join(blake3(unit(index)).digest() for index in range(UNITS))


def toy(monkeypatch: pytest.MonkeyPatch, last_only: bool = False, **functions: Any) -> None:
    """A float type whose unit i is the byte i, eight times; its output shows all units, or the last one only."""

    def check(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
        return [blake3(claim.unit).digest() if claim.unit == unit(claim.index) else None for claim in claims]

    def shown(spec: JobSpec, output: bytes) -> Mapping[int, bytes]:
        if not last_only:
            return equal_slices(spec, output, UNITS, SIZE)
        if len(output) != SIZE:
            raise InvalidProof("output of another length")
        return {UNITS - 1: blake3(output).digest()}

    known = replace(
        workloads.get("noop"), exact=False, layout=lambda spec: Layout(1, UNITS), check_batch=check,
        output_bytes=lambda spec: len(HONEST), output_digests=shown, **functions,
    )  # fmt: skip
    monkeypatch.setattr(workloads, "get", lambda name: known)


SPEC = JobSpec(bytes(32), 0, b"")
LEAF, SEED, K = digest("leaf"), digest("seed"), 4


def judge(digests: bytes, output: bytes, listed: bytes = b"", data: bytes | None = b"") -> audit.Found:
    tree = JobTree(Layout(1, UNITS), digests)
    if data == b"":
        asked = proofs.sample(SEED, LEAF, UNITS, K)
        data = proofs.openings_bytes([tree.open(index, unit(index)) for index in asked])
    return audit.judge_output("toy", SPEC, LEAF, SEED, K, tree.result_hash, data, Shown(output, listed))


def test_an_output_of_all_units_is_believed_where_it_leads_to_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch)
    assert judge(DIGESTS, HONEST)[:1] == (True,)
    for position in range(0, len(HONEST), 7):  # any bit anywhere, sampled or not
        changed = bytearray(HONEST)
        changed[position] ^= 1
        assert judge(DIGESTS, bytes(changed))[2] == "the output's units do not lead to the committed result hash"
    assert "bytes, at most" in judge(DIGESTS, HONEST + b"x")[2]
    assert "not 16 * 8" in judge(DIGESTS, HONEST[:-1])[2]


def test_an_output_of_one_unit_is_tied_to_the_root_by_the_list_of_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, last_only=True)
    assert judge(DIGESTS, unit(UNITS - 1), DIGESTS)[:1] == (True,)
    assert judge(DIGESTS, unit(0), DIGESTS)[2] == "unit 15 of the output is not what was committed"
    other = DIGESTS[:-32] + blake3(unit(0)).digest()
    assert judge(DIGESTS, unit(0), other)[2] == "the output's units do not lead to the committed result hash"
    assert "are not the digests of 16 units" in judge(DIGESTS, unit(UNITS - 1))[2]


def test_openings_made_of_the_output_are_those_the_worker_would_have_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def units(spec: JobSpec, output: bytes, indices: Sequence[int]) -> list[bytes]:
        return [output[SIZE * index : SIZE * (index + 1)] for index in indices]

    toy(monkeypatch, output_units=units)
    sent, made = judge(DIGESTS, HONEST), judge(DIGESTS, HONEST, data=None)
    assert sent == made
    assert made[0]
    # Committed and uploaded alike, but wrong: the sample finds it.
    wrong = b"".join(bytes(SIZE) for _ in range(UNITS))
    spoiled = b"".join(blake3(bytes(SIZE)).digest() for _ in range(UNITS))
    assert judge(spoiled, wrong, data=None)[2].endswith("is not what was committed")


# ---- the audit process ---------------------------------------------------------------------------------------------
async def test_an_audit_process_that_hangs_or_dies_is_nobodys_fault_and_the_next_one_serves(tmp_path: Path) -> None:
    audits = Audits(1, tmp_path)
    task: Workload[Any] = workloads.get("noop")
    spec = task.make_jobs(task.parse({"jobs": 1}), bytes(32), range(1))[0]
    tree = JobTree(Layout(1, 1), task.recompute([spec])[0])
    data = proofs.openings_bytes([tree.open(0)])
    good = ("noop", spec, LEAF, SEED, K, tree.result_hash, data, b"", b"")
    try:
        assert (await audits.ask(AUDIT, "judge", good, 60))[0]
        with pytest.raises(AuditFailed, match="took longer"):
            await audits.ask(AUDIT, "judge", ("noop", Read(time.sleep, 60), *good[2:]), 0.3)
        assert (await audits.ask(AUDIT, "judge", good, 60))[0]
        with pytest.raises(AuditFailed, match="not a task type"):
            await audits.ask(AUDIT, "judge", ("nothing", *good[1:]), 60)
        with pytest.raises(AuditFailed, match="ended with"):
            await audits.ask(AUDIT, "judge", ("noop", Read(os._exit, 3), *good[2:]), 60)
        assert (await audits.ask(AUDIT, "judge", good, 60))[0]
    finally:
        await audits.close()


class Read:
    """Has the process that reads it call a function."""

    def __init__(self, function: Callable[[int], object], argument: int) -> None:
        self.called = (function, (argument,))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


# ---- what the next one knows ---------------------------------------------------------------------------------------
async def test_verified_outputs_are_known_to_whoever_has_the_task_next(tmp_path: Path) -> None:
    files = TaskFiles(Artifacts((tmp_path / "store").as_uri()), tmp_path / "cache", 1 << 20)
    output = await files.put(task_id(1), Artifact("job-0", "", b"states"))
    await files.keep_output(task_id(1), 0, digest("hash 0"), output)
    await files.keep_output(task_id(1), 7, digest("hash 7"), output)  # two jobs may leave the same bytes
    files.close()
    other = TaskFiles(Artifacts((tmp_path / "store").as_uri()), tmp_path / "other", 1 << 20)
    rows = [(0, digest("hash 0"), output), (7, digest("hash 7"), output)]
    assert sorted(await other.kept_outputs(task_id(1))) == rows
    async with other.use(outputs={7: output}) as found:
        assert found.result(7) == b"states"
    other.close()


async def test_uploads_that_a_crash_left_go_by_their_references(tmp_path: Path) -> None:
    """Whoever would have discarded them died: what is judged stays as long as it is evidence, the rest expires."""
    files = TaskFiles(Artifacts((tmp_path / "store").as_uri(), ttl_ms=1000), tmp_path / "cache", 1 << 20)
    store, key, now = files.artifacts, PrivateKey.generate(), now_ms()
    worker = Owner(WORKER, key.address)
    judged, lost, done = [bytes.fromhex(await store.put(text, worker)) for text in (b"judged", b"lost", b"done")]
    await files.keep_evidence(task_id(1), judged, 60_000)
    await files.keep_evidence(task_id(2), done, 1000)
    await files.discard(key.public, judged)
    assert {one.digest for one in await store.retention.held(worker)} == {lost.hex(), done.hex()}
    for later in (30_000, 30_001):
        await store.retention.collect(now + later, grace_ms=0)
    assert await files.size(judged) == 6
    for digest in (lost, done):
        with pytest.raises(NotFound):
            await files.size(digest)
    files.close()


def test_a_database_remembers_outputs_verified_here_and_elsewhere(tmp_path: Path) -> None:
    connection = opened(tmp_path / "db", store.STEPS)
    scene = Scene()
    elsewhere = [(0, digest("hash 0"), digest("output 0"))]
    scene.do(e.TaskLeased(chain(), settled=[elsewhere[0][:2]], outputs=elsewhere))
    session = scene.worker(1, credits=1)
    (lease,) = scene.held(session)
    deliver(scene, session, lease)
    store.write(connection, scene.persisted)
    here = (lease.index, lease.result_hash, digest("output 1"))
    assert store.outputs_of(connection, task_id(1)) == [*elsewhere, here]
    connection.close()
