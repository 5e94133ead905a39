"""A worker written in another language, from the contracts and the documents alone, is audited and paid."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.sandbox.functions import canonical
from computemesh.trust import audit
from computemesh.trust.identity import address_of
from computemesh.trust.merkle import leaf_hash
from computemesh.trust.statement import Commitment
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.client.npm import ROOT, installed
from tests.money import matured_supply

TEXTS = ["", "one", "Größe 大きい \n zwei  drei", *(f"a word or {n} of them, {'x' * n}" for n in range(97))]


@pytest.fixture(scope="module")
def folder() -> Path:
    return installed("node-worker")


@pytest.fixture
def worker(folder: Path, cluster: Cluster, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The worker's process, joined to the cluster, and its log."""
    log = tmp_path / "worker.log"
    command = ["node", "worker.js", "--orchestrator", cluster.address("orchestrator"), "--data", str(tmp_path / "data")]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, text=True,
                                   env={**os.environ, "COMPUTEMESH_PROTO": str(ROOT / "proto")})  # fmt: skip
    try:
        until(lambda: "joined" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        process.kill()
        process.wait()


def until(happens: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_node_worker_completes_100_jobs_is_audited_and_paid(
    worker: tuple[subprocess.Popen[str], Path], cluster: Cluster, client: Client
) -> None:
    process, log = worker
    payload = {"function_name": "text.statistics", "items": [{"text": text} for text in TEXTS]}
    task = client.run("function", payload, reward="100.0", timeout=150)
    assert (task.status, task.jobs_settled) == ("completed", 100), log.read_text()

    receipt = client.receipt(task.task_id)
    assert all(check.ok for check in client.verify(receipt))
    key = bytes.fromhex(log.read_text().split(" as ")[1].split()[0])
    with grpc.insecure_channel(cluster.address("orchestrator")) as channel:
        stub = OrchestratorServiceStub(channel)
        for job in (0, 50, 99):
            asked = pb.GetAuditTranscriptRequest(task_id=task.task_id, job=job)
            transcript = stub.GetAuditTranscript(asked, timeout=20).transcript
            assert transcript.verdict == pb.VERDICT_KIND_SETTLED
            assert Commitment.unpack(transcript.commitment).worker_key == key
        listed = stub.GetWorker(pb.GetWorkerRequest(worker=key.hex()), timeout=20).worker
    assert (listed.jobs_settled, listed.jobs_wrong, listed.jobs_late) == (100, 0, 0)
    matured_supply(client)
    assert client.account(address_of(key)).earned_units == 25_000_000, "a quarter of 100 CPC is the workers'"

    rows = b"".join(client.read_artifact(one.digest) for one in task.artifacts).splitlines()
    answers = [json.loads(row) for row in rows]
    for text, answer in zip(TEXTS, answers, strict=True):
        words = text.split()
        assert answer["words"] == len(words)
        assert answer["mean_length"] == (statistics.fmean(map(len, words)) if words else 0)

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, log.read_text()
    assert "left, 100 jobs settled" in log.read_text()


def test_a_node_worker_says_why_it_cannot_do_a_job(
    worker: tuple[subprocess.Popen[str], Path], cluster: Cluster, client: Client
) -> None:
    task = client.submit("function", {"function_name": "text.statistics", "data": {"text": "a " * 501}})
    with grpc.insecure_channel(cluster.address("orchestrator")) as channel:
        stub = OrchestratorServiceStub(channel)

        def why() -> str:
            try:
                return stub.GetJob(pb.GetJobRequest(task_id=task.task_id, index=0), timeout=20).job.detail
            except grpc.RpcError:
                return ""  # not leased yet

        until(lambda: "FUNCTION_FAILED: text has 501 words, at most 500 are taken" in why())
    assert client.cancel(task.task_id).status == "cancelled"


def asked(folder: Path, code: str, *values: object) -> list[str]:
    """What JavaScript says: one line per value."""
    text = f"const p = require('./protocol.js'); for (const v of JSON.parse(process.argv[1])) console.log({code})"
    done = subprocess.run(["node", "-e", text, json.dumps(values)], cwd=folder, capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    return done.stdout.removesuffix("\n").split("\n")  # splitlines would also part at U+2028


def test_node_opens_what_a_challenge_asks_for_in_the_same_bytes(folder: Path) -> None:
    units = [bytes([n]) * (n + 1) for n in range(11)]
    digests = [audit_digest(unit) for unit in units]
    cases = [(bytes([n]) * 32, leaf_hash(bytes([n])), count, k) for n, (count, k) in enumerate(
        [(1, 1), (2, 1), (7, 3), (8, 8), (11, 8), (11, 4), (11, 32)])]
    found = asked(
        folder,
        "p.openings(v[4].map((h) => Buffer.from(h, 'hex')), v[5].map((h) => Buffer.from(h, 'hex')),"
        " Buffer.from(v[0], 'hex'), Buffer.from(v[1], 'hex'), v[3]).toString('hex')",
        *([seed.hex(), leaf.hex(), count, k, [u.hex() for u in units[:count]], [d.hex() for d in digests[:count]]]
          for seed, leaf, count, k in cases))
    for (seed, leaf, count, k), opened in zip(cases, found, strict=True):
        tree = audit.JobTree(audit.Layout(1, count), b"".join(digests[:count]))
        wanted = [tree.open(unit, units[unit]) for unit in audit.sample(seed, leaf, count, k)]
        assert bytes.fromhex(opened) == audit.openings_bytes(wanted), (count, k)


def audit_digest(unit: bytes) -> bytes:
    from blake3 import blake3

    return blake3(unit).digest()


def test_node_writes_json_in_the_one_form_that_is_hashed(folder: Path) -> None:
    chance = random.Random(7)
    numbers = [chance.uniform(-1, 1) * 10 ** chance.randint(-320, 300) for _ in range(300)]
    values = [*numbers, 0, -1, 2**53 - 1, 1e-4, 9.9e-5, 1e-7, 5e-324, 1.5e300, 123456.789, {"b": 1, "a": [None, True]},
              {"\U0001f600": 1, "\uffee": 2, "": "\u2028\x7f\x01\n\"\\é"}]
    for value, text in zip(values, asked(folder, "p.canonical(v)", *values), strict=True):
        assert text == canonical(json.loads(text)).decode(), value
        assert json.loads(text) == value
