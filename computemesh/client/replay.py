"""Judging a task's audits again, on anybody's machine (docs/PROTOCOL.md section 6).

The orchestrator publishes each audit's transcript; nothing in it is believed. The commitment must be the receipt's,
the job must be the one the order implies, the challenged units must follow from seed and commitment, each is
recomputed here, and the transcript's digest must be the `proof_hash` the ledger sealed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from computemesh import workloads
from computemesh.client.sync import Client
from computemesh.trust import audit, identity, merkle, statement
from computemesh.trust.errors import InvalidProof, MeshError, NotFound
from computemesh.trust.receipt import Check, JobEvidence, Receipt
from computemesh.v1 import orchestrator_pb2
from computemesh.workloads import openings, outputs, references

LEAST_SAMPLE = 8
"""No auditor may challenge fewer units, however good a worker's name (DESIGN section 6)."""


def replay(client: Client, receipt: Receipt, progress: Callable[[], None] = lambda: None) -> list[Check]:
    """One check per job, named `jobs[i].replay`. Raises MeshError where the market cannot be reached."""
    workload = workloads.get(receipt.challenge_type)
    with tempfile.TemporaryDirectory(prefix="mesh-replay-") as folder:
        return _replay(client, receipt, workload, Fetched(client, Path(folder)), progress)


def _replay(
    client: Client, receipt: Receipt, workload: workloads.Workload[Any], files: Fetched, progress: Callable[[], None]
) -> list[Check]:
    task_id = statement.Order.unpack(receipt.order).task_id(receipt.chain)
    task = client.get(task_id.hex())
    address = task.orchestrator_address or client.profile.orchestrator
    payload = references.resolve(workload, receipt.payload, task.references)
    jobs = workload.split(workload.parse(payload), task_id)
    checks = []
    bindings = Bindings(client, receipt)
    for position, job in enumerate(receipt.jobs):
        number = statement.Result.unpack(job.result).job
        try:
            transcript = client.transcript(task_id.hex(), number, address)
            expected = replace(jobs[number], files=files.of(transcript), env_class=transcript.env_class)
            uploaded = files.openings(workload, expected, transcript)
            detail = judge(receipt.chain, workload, expected, job, transcript, uploaded)
            if uploaded is not None:
                uploaded.unlink()  # they are large, and nobody else's
            detail += files.judge_output(workload, expected, job, transcript)
            detail += bindings.check(job, transcript.binding)
            checks.append(Check(f"jobs[{position}].replay", True, detail))
        except (MeshError, IndexError, ValueError) as error:
            checks.append(Check(f"jobs[{position}].replay", False, str(error)))
        progress()
    return checks


class Fetched:
    """`workloads.contract.Files` of the jobs being replayed: what they read is fetched when asked for, once."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._outputs: dict[int, bytes] = {}

    def of(self, transcript: orchestrator_pb2.AuditTranscript) -> Fetched:
        """For this job. What other jobs left is as the transcript says."""
        self._outputs = {item.job: item.output for item in transcript.needs}
        return self

    def artifact(self, digest: bytes) -> Path:
        """Raises NotFound."""
        path = self._folder / digest.hex()
        return path if path.exists() else self._client.get_artifact(digest.hex(), path, as_file=True)

    def folder(self, digest: bytes) -> Path:
        """Raises NotFound."""
        path = self._folder / f"{digest.hex()}.d"
        return path if path.exists() else self._client.get_artifact(digest.hex(), path)

    def openings(
        self, workload: workloads.Workload[Any], spec: workloads.JobSpec, transcript: orchestrator_pb2.AuditTranscript
    ) -> Path | None:
        """The file of openings that did not fit a message, None where they did. Raises InvalidProof on one larger than
        any answer, and where it is no longer stored: then nothing can be judged again."""
        digest = transcript.openings_artifact
        if not digest:
            return None
        most = openings.limit(workload, spec, transcript.k)
        try:
            size = self._client.stat_artifact(digest.hex()).size
            _need(0 < size <= most, f"the openings have {size:,} bytes, an answer at most {most:,}")
            return self.artifact(digest)
        except NotFound:
            raise InvalidProof(f"the openings, artifact {digest.hex()}, are no longer stored") from None

    def result(self, job: int) -> bytes:
        """Raises NotFound."""
        if job not in self._outputs:
            raise NotFound(f"the output of job {job} is not in the transcript", reason="RESULT_NOT_FOUND")
        return self.artifact(self._outputs[job]).read_bytes()

    def judge_output(
        self, workload: workloads.Workload[Any], spec: workloads.JobSpec, job: JobEvidence,
        transcript: orchestrator_pb2.AuditTranscript,
    ) -> str:  # fmt: skip
        """Words for the report. Raises InvalidProof where the output is not what was committed."""
        if workload.output_bytes is None:
            return ""
        try:
            output = self.artifact(transcript.output).read_bytes()
            listed = self.artifact(transcript.unit_digests).read_bytes() if transcript.unit_digests else b""
        except NotFound:
            return ", output no longer stored"
        outputs.bound(workload, spec, statement.Result.unpack(job.result).result_hash, outputs.Shown(output, listed))
        return f", output of {len(output):,} bytes leads to the result"


class Bindings:
    """Which seeds a worker may have been given: one per block between the task's order and its last result.

    A seed from elsewhere could have been chosen, and its answer worked out ahead or copied.
    """

    SPARE = 64
    """Blocks before the order that count too: the newest block may be old, and the orchestrator a little behind."""

    def __init__(self, client: Client, receipt: Receipt) -> None:
        self._client, self._receipt = client, receipt
        self._hashes: list[bytes] | None = None

    def check(self, job: JobEvidence, binding: bytes) -> str:
        """Words for the report. Raises InvalidProof where the seed is of no such block."""
        if not binding:
            return ""
        if self._hashes is None:
            self._hashes = self._blocks()
        worker = identity.address_of(statement.Result.unpack(job.result).worker_key)
        known = any(workloads.worker_seed(block, worker) == binding for block in self._hashes)
        _need(known, "the worker's seed is not bound to a block of the task's time")
        return ", seed bound to block and worker"

    def _blocks(self) -> list[bytes]:
        headers = [statement.Header.unpack(job.header) for job in self._receipt.jobs]
        task_id = statement.Order.unpack(self._receipt.order).task_id(self._receipt.chain)
        since_ms = self._client.get(task_id.hex()).created_ms
        hashes: list[bytes] = []
        spare = self.SPARE
        for height in range(max(header.height for header in headers), -1, -1):
            block = self._client.block(height)
            hashes.append(bytes.fromhex(block.hash))
            spare -= block.time_ms < since_ms
            if not spare:
                break
        return hashes


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidProof(problem)


def judge(
    chain: str,
    workload: workloads.Workload[Any],
    expected: workloads.JobSpec,
    job: JobEvidence,
    transcript: orchestrator_pb2.AuditTranscript,
    uploaded: Path | None = None,
) -> str:
    """What was recomputed, where the audit holds. Raises InvalidProof saying what does not.

    `expected` is the job as the order implies it; `job` its evidence from the receipt; `uploaded` the file of the
    transcript's `openings_artifact`, where it names one.
    """
    result = statement.Result.unpack(job.result)
    _need(transcript.commitment == job.commitment, "the audit was of another commitment")
    _check_signature(chain, result.worker_key, transcript)
    _need(transcript.challenge_type == workload.name, "the audit was of another task type")
    _need(transcript.params == expected.params, "the audited job is not the one the order implies")
    spec = workloads.bind(expected, transcript.binding) if transcript.binding else expected
    layout = workload.layout(spec)
    _need(transcript.units == layout.count, f"the audit was of {transcript.units} units, the job has {layout.count}")
    _need(transcript.k >= min(LEAST_SAMPLE, layout.count), f"only {transcript.k} units were challenged")
    if transcript.seed:
        done = _judge_openings(workload, spec, layout, result.result_hash, transcript, uploaded)
    else:
        _need(not transcript.openings and uploaded is None, "openings without a challenge")
        digests = workload.recompute([spec])[0]
        _need(audit.JobTree(layout, digests).result_hash == result.result_hash, "the recomputed result is another")
        done = f"all {layout.count} units recomputed"
    opened = transcript.openings_artifact if uploaded else sha256(transcript.openings).digest()
    digest = audit.transcript_of(
        result.result_hash, transcript.seed or None, transcript.k, transcript.units, opened, True
    )
    _need(digest == transcript.digest == result.proof_hash, "the transcript is not the one the ledger sealed")
    return done


def _check_signature(chain: str, worker_key: bytes, transcript: orchestrator_pb2.AuditTranscript) -> None:
    leaf = merkle.leaf_hash(transcript.commitment)
    root = merkle.root_from_path(leaf, transcript.position, transcript.count, list(transcript.commitment_path))
    signed = statement.verify_commitments(worker_key, chain, transcript.count, root, transcript.worker_signature)
    _need(signed, "the worker did not sign the audited commitment")


def _judge_openings(
    workload: workloads.Workload[Any],
    spec: workloads.JobSpec,
    layout: audit.Layout,
    result_hash: bytes,
    transcript: orchestrator_pb2.AuditTranscript,
    uploaded: Path | None,
) -> str:
    leaf = merkle.leaf_hash(transcript.commitment)
    units = audit.sample(transcript.seed, leaf, layout.count, transcript.k)
    openings.prove(workload, spec, layout, units, result_hash, uploaded or transcript.openings)
    return f"{len(units)} of {layout.count} units recomputed"
