"""Openings that do not fit a message: sent as artifacts by a real worker, and by one that means no good."""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest

from computemesh import workloads
from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.client.replay import replay
from computemesh.service.auth import make_token
from computemesh.service.server import dial
from computemesh.service.transfer import Transfer
from computemesh.trust import audit, merkle, statement
from computemesh.trust.receipt import accepted
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.workloads import openings
from orchestrator import events as e
from tests.orchestrator.scripted import ScriptedWorker

# States of 2 MiB: eight openings of two are 32 MiB, of which a message takes less than 4.
GRID = 512
PAYLOAD = {"system": "reaction_diffusion", "steps": 20, "frames": 10, "jobs": 1,
           "parameters": {"width": GRID, "height": GRID}}  # fmt: skip
OVERRIDES = {
    "orchestrator": {
        "opening_timeout_ms": 1500, "upload_bytes_per_s": 40 << 20, "wrong_streak": 1000, "job_lease_ms": 60_000,
    },
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("openings"), workers=1, port_base=0, overrides=OVERRIDES) as running:
        yield running


@pytest.fixture
def customer(big: Cluster) -> Iterator[Client]:
    with Client(big.profile) as connected:
        yield connected


def references(cluster: Cluster, kind: str) -> list[tuple[str, int]]:
    """(owner, bytes) of everything that owners of a kind keep in the store."""
    root = next(cluster.data.rglob("refs")) / kind
    found = [path for path in root.rglob("*-*") if path.is_file()]
    return [(path.parent.parent.name, int(path.name.rpartition("-")[2], 16)) for path in found]


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_a_task_of_large_states_is_audited_paid_replayed_and_tidied_up_after(big: Cluster, customer: Client) -> None:
    task = customer.run("simulation", PAYLOAD, reward="1.0", timeout=150)
    assert (task.status, task.jobs_settled) == ("completed", 1)
    transcript = customer.transcript(task.task_id, 0, big.profile.orchestrator)
    assert transcript.openings == b""
    assert customer.stat_artifact(transcript.openings_artifact.hex()).size > 16 << 20
    receipt = customer.receipt(task.task_id)
    assert accepted(customer.verify(receipt))
    (check,) = replay(customer, receipt)
    assert check.ok, check
    assert check.detail.startswith("8 of 20 units recomputed")
    wait_until(lambda: not references(big, "worker"))
    assert {owner for owner, _ in references(big, "audit")} == {task.task_id}
    assert not [path for path in big.data.glob("worker-*/units/*/*") if path.is_file()]
    data = customer.read_artifact({file.name: file.digest for file in task.artifacts}["results.npz"])
    assert np.load(io.BytesIO(data))["states"].nbytes == 10 * 2 * GRID * GRID * 4


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_model_of_two_million_weights_is_trained_audited_and_replayed(big: Cluster, customer: Client) -> None:
    draw = np.random.default_rng(7)
    rows = io.BytesIO()
    np.savez(rows, x=draw.random((384, 64), np.float32), y=draw.integers(0, 10, 384))
    dataset = customer.put_artifact(rows.getvalue()).digest
    model = {"name": "mlp", "hidden": [2048, 1024]}
    payload = {"model_architecture": model, "dataset": dataset, "examples": 384, "batch_size": 32}
    task = customer.run("training", payload, reward="5.0", timeout=500)
    assert (task.status, task.jobs_settled) == ("completed", 1)
    transcript = customer.transcript(task.task_id, 0, big.profile.orchestrator)
    assert customer.stat_artifact(transcript.openings_artifact.hex()).size > 300 << 20
    (check,) = replay(customer, customer.receipt(task.task_id))
    assert check.ok, check
    wait_until(lambda: not references(big, "worker"))


@lru_cache(maxsize=1)
def computed(params: bytes) -> workloads.contract.Outcome:
    """What the job leaves, computed once: it is the same for every task of this payload."""
    return workloads.get("simulation").execute(workloads.JobSpec(bytes(32), 0, params), workloads.Context())


class Uploader(ScriptedWorker):
    """A worker whose results are right; what it does with its openings is up to the test."""

    async def begin(self) -> tuple[pb.Job, pb.Challenge, bytes]:
        """(job, its challenge, the honest openings): commits to the right result."""
        (job,) = await self.jobs(1)
        outcome = await asyncio.to_thread(computed, job.params)
        layout = workloads.get("simulation").layout(workloads.JobSpec(job.task_id, 0, job.params))
        tree = audit.JobTree(layout, outcome.digests)
        self.nonce += 1
        row = statement.Commitment(job.task_id, job.index, job.task_epoch, job.attempt, self.key.public,
                                   tree.result_hash, self.nonce).pack()  # fmt: skip
        output, listed = [await self.upload(data) for data in (outcome.output, outcome.digests)]
        await self.send(commitments=pb.CommitmentBatch(
            lease_ids=[job.lease_id], commitments=row, outputs=[output], unit_digests=[listed], env_class="scripted",
            signature=statement.sign_commitments(self.key, self.chain, row)))  # fmt: skip
        (challenge,) = (await self.next("challenges", 60)).challenges
        asked = audit.sample(challenge.seed, merkle.leaf_hash(row), layout.count, challenge.k)
        return job, challenge, audit.openings_bytes([tree.open(unit, outcome.units(unit)) for unit in asked])

    async def upload(self, data: bytes) -> bytes:
        async def signed() -> tuple[tuple[str, str], ...]:
            token = make_token(self.key, self.chain, time.time_ns() // 10**6 + 600_000)
            return (("authorization", f"Bearer {token}"),)

        async with dial(self.address) as channel:
            return bytes.fromhex((await Transfer(channel, signed).put(data)).digest)

    async def open(self, challenge: pb.Challenge, artifact: bytes) -> None:
        opening = pb.JobOpening(lease_id=challenge.lease_id, artifact=artifact)
        await self.send(openings=pb.OpeningBatch(openings=[opening]))


async def _missing(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    await worker.open(challenge, os.urandom(32))


async def _of_other_bytes(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    spoilt = bytearray(honest)
    spoilt[1000] ^= 1
    await worker.open(challenge, await worker.upload(bytes(spoilt)))


async def _cut(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    await worker.open(challenge, await worker.upload(honest[: len(honest) // 2 - 1000]))


async def _oversized(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    await worker.open(challenge, await worker.upload(honest + bytes(8 << 20)))


async def _empty(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    await worker.open(challenge, await worker.upload(b""))


async def _late(worker: Uploader, challenge: pb.Challenge, honest: bytes) -> None:
    assert await worker.verdicts(1, 30) == {challenge.lease_id: (e.LATE, "")}
    await worker.open(challenge, await worker.upload(honest))


@pytest.mark.timeout(240)
async def test_openings_that_are_not_what_was_asked_for_earn_nothing_and_leave_nothing(
    big: Cluster, customer: Client
) -> None:
    big.stop_process("worker-1")
    log = big.data / "logs" / "orchestrator.log"
    handle = await asyncio.to_thread(customer.submit, "simulation", PAYLOAD, "1.0")
    tries = {
        _missing: "the answer to the challenge is not in the artifact store",
        _of_other_bytes: "is not what was committed", _cut: "end inside an opening", _empty: "is empty",
        _oversized: "at most .* are taken", _late: "",
    }  # fmt: skip
    for attempt, why in tries.items():
        async with Uploader(big.profile.orchestrator, big.profile.chain_id, types=("simulation",)) as worker:
            await worker.join(credits=1)
            job, challenge, honest = await worker.begin()
            await attempt(worker, challenge, honest)
            if attempt is not _late:
                assert await worker.verdicts(1, 60) == {job.lease_id: (e.WRONG, "")}
                assert re.search(f"{why}.*{worker.key.public.hex()}|{worker.key.public.hex()}.*{why}", log.read_text())
            await asyncio.to_thread(wait_until, lambda: not references(big, "worker"))
    assert handle.task.task_id not in {owner for owner, _ in references(big, "audit")}
    big.start_process("worker-1")
    task = await asyncio.to_thread(handle.wait, 120)
    assert task.status == "completed"


def test_what_an_answer_may_weigh_is_known_before_it_comes() -> None:
    task = workloads.get("simulation")
    (spec,) = task.split(task.parse(PAYLOAD), bytes(32))[:]
    outcome = computed(spec.params)
    largest = max(len(outcome.units(unit)) for unit in range(task.layout(spec).count))
    assert task.unit_bytes is not None
    assert largest == task.unit_bytes(spec)
    assert 8 * largest < openings.limit(task, spec, 8) < 8 * largest + 40_000
