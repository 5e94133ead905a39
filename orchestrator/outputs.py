"""What jobs leave: held against their commitments, put together as the task's files, shown while the task runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import structlog

from computemesh import workloads
from computemesh.service.crashpoints import crash_point
from computemesh.trust import audit as proofs
from computemesh.trust.errors import InvalidState, MeshError, NotFound
from computemesh.v1 import market_pb2
from computemesh.workloads import openings
from computemesh.workloads.contract import Artifact, JobSpec
from orchestrator import audit
from orchestrator import events as e
from orchestrator.audits import ASSEMBLY, AUDIT, PREVIEW, Audits
from orchestrator.files import TaskFiles
from orchestrator.model import Task

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

ASSEMBLY_TRIES = 3
MAX_ARTIFACTS = 256
PREVIEW_LIMIT_S = 60.0
LOOK_EVERY_S = 0.5
log = structlog.get_logger("orchestrator.outputs")


@dataclass(slots=True)
class Preview:
    """What a running task shows: the last file, and of how many settled jobs it was made when."""

    message: market_pb2.TaskArtifact
    settled: int = 0
    made_s: float = 0.0


class Outputs:
    """The shell's part in outputs; what it finds goes to the core as events."""

    def __init__(self, runtime: Runtime, audits: Audits, files: TaskFiles | None) -> None:
        """`files` None: there is no artifact store, so no task with files can be taken."""
        self._runtime, self.audits, self._store = runtime, audits, files
        self._previews: dict[bytes, Preview] = {}

    @property
    def _files(self) -> TaskFiles:
        if self._store is None:
            raise InvalidState("this orchestrator has no artifact store", reason="NO_ARTIFACT_STORE")
        return self._store

    def admit(self, task: Task) -> None:
        """Raises InvalidState for a task whose files could not be read or kept here."""
        if task.leaves or task.inputs is not None:
            _ = self._files

    # ---- audits ------------------------------------------------------------------------------------------------------
    async def judge(self, work: e.CheckOpening) -> None:
        """Judge one commitment in an audit process. What is wrong is the worker's, what breaks is nobody's."""
        lease, batch, position = work.lease, work.batch, work.position
        try:
            accepted, proof, problem, inline = await self._found(work)
            if accepted:
                await self._keep(work)
                crash_point("orchestrator.output.kept")
        except (MeshError, OSError) as error:
            log.error("audit could not be made", task=lease.task.id.hex(), job=lease.index, error=str(error)[:300])
            self._runtime.apply(e.AuditBroke(batch, [position]))
            return
        finally:
            await self.discard(batch.key, [*batch.uploads(position), work.uploaded])
        if not accepted:
            log.warning("audit failed", task=lease.task.id.hex(), job=lease.index, worker=batch.key.hex(), why=problem)
        self._runtime.apply(
            e.Judged(batch, [position], [accepted], [proof], [inline], lease.k, [work.uploaded])
        )

    async def _keep(self, work: e.CheckOpening) -> None:
        """What an accepted result is judged by stays: its output for the task, the rest for whoever replays it."""
        output, listed = work.batch.uploads(work.position)
        lease, config = work.lease, self._runtime.config
        if output:
            await self._files.keep_output(lease.task.id, lease.index, lease.result_hash, output)
        evidence = [(output, config.evidence_ttl_ms), (listed, config.evidence_ttl_ms)]
        for digest, ttl_ms in (*evidence, (work.uploaded, config.openings_ttl_ms)):
            if digest:
                await self._files.keep_evidence(lease.task.id, digest, ttl_ms)

    async def discard(self, key: bytes, uploaded: Sequence[bytes]) -> None:
        """End a worker's references to what it uploaded and is judged. Where that fails they expire by themselves."""
        try:
            for digest in filter(None, uploaded):
                await self._files.discard(key, digest)
        except MeshError as error:
            log.warning("uploads were not discarded", worker=key.hex(), error=str(error)[:300])

    async def _found(self, work: e.CheckOpening) -> audit.Found:
        lease, batch = work.lease, work.batch
        task, spec = lease.task, lease.spec
        output, listed = batch.uploads(work.position)
        problem = await self._unreadable(work, output, listed)
        if problem:
            count = workloads.get(task.challenge_type).layout(spec).count
            inline = work.openings or b""
            digest = work.uploaded or sha256(inline).digest()
            proof = proofs.transcript_of(lease.result_hash, batch.seed, lease.k, count, digest, False)
            return False, proof, problem, inline
        inputs = task.inputs(spec) if task.inputs is not None else ()
        if self._store is None:
            return await self._ask(work, spec, b"", b"")
        needed = {index: task.output(index) for index in spec.needs}
        uploaded = [digest for digest in (output, listed, work.uploaded) if digest]
        async with self._files.use(inputs, needed, uploaded) as files:
            return await self._ask(work, replace(spec, files=files), output, listed)

    async def _ask(self, work: e.CheckOpening, spec: JobSpec, output: bytes, listed: bytes) -> audit.Found:
        task, batch = work.lease.task, work.batch
        arguments = (
            task.challenge_type, replace(spec, env_class=batch.env_class), batch.leaves[work.position], batch.seed,
            work.lease.k, work.lease.result_hash, work.openings, output, listed, work.uploaded,
        )  # fmt: skip
        found: audit.Found = await self.audits.ask(
            AUDIT, "judge", arguments, self._runtime.config.audit_timeout_ms / 1000)
        return found

    async def _unreadable(self, work: e.CheckOpening, output: bytes, listed: bytes) -> str:
        """Why an upload is not even read; empty where nothing is wrong with it."""
        spec, workload = work.lease.spec, workloads.get(work.lease.task.challenge_type)
        limits = list[tuple[bytes, int, str]]()
        if output:
            assert workload.output_bytes is not None
            units = proofs.DIGEST_BYTES * workload.layout(spec).count
            limits = [(output, workload.output_bytes(spec), "output"), (listed, units, "list of unit digests")]
        limits.append((work.uploaded, openings.limit(workload, spec, work.lease.k), "answer to the challenge"))
        for digest, limit, what in limits:
            if not digest:
                continue
            try:
                size = await self._files.size(digest)
            except NotFound:
                return f"the {what} is not in the artifact store"
            if size > limit:
                return f"the {what} has {size:,} bytes, at most {limit:,} are taken"
            if not size:
                return f"the {what} is empty"
        return ""

    async def known(self, task: Task, settled: list[tuple[int, bytes]]) -> list[tuple[int, bytes, bytes]]:
        """(job, result hash, output) of jobs that another orchestrator verified. Raises NotFound where a job needs the
        output of a settled one and nobody has it."""
        if not task.leaves:
            return []
        found = await self._files.kept_outputs(task.id)
        have = {row[:2] for row in found}
        needed = {index for spec in task.jobs[:] for index in spec.needs}
        for row in settled:
            if row not in have and row[0] in needed:
                raise NotFound(f"job {row[0]} is settled, but its output, which others need, is lost")
        return found

    # ---- the task's files --------------------------------------------------------------------------------------------
    async def assemble(self, task: Task) -> tuple[bytes, str]:
        """(files as `TaskOutcome.artifacts` in a TaskOutcome, what went wrong) of a task whose jobs are all settled."""
        if not task.leaves:
            return b"", ""
        outputs = {index: task.output(index) for index in range(len(task.states))}
        unknown = [index for index, digest in outputs.items() if not digest]
        if unknown:
            return b"", f"the outputs of {len(unknown)} jobs are not known here, the first is job {unknown[0]}"
        problem = ""
        for _ in range(ASSEMBLY_TRIES):
            try:
                rows = await self._assembled(task, outputs)
                return market_pb2.TaskOutcome(artifacts=rows).SerializeToString(), ""
            except (MeshError, OSError) as error:
                problem = f"the task's files could not be put together: {error}"[:1000]
                log.error("assembly failed", task=task.id.hex(), error=str(error)[:300])
                await asyncio.sleep(1.0)
        return b"", problem

    async def _assembled(self, task: Task, outputs: dict[int, bytes]) -> list[market_pb2.TaskArtifact]:
        limit_s = self._runtime.config.assembly_timeout_ms / 1000
        async with self._files.use((), outputs) as files:
            arguments = (task.challenge_type, task.payload, bytes(task.results), files)
            made: list[Artifact] = await self.audits.ask(ASSEMBLY, "assemble", arguments, limit_s)
        if len(made) > MAX_ARTIFACTS:
            raise MeshError(f"{len(made)} files, at most {MAX_ARTIFACTS} are kept")
        return [await self._stored(task, artifact) for artifact in made]

    async def _stored(self, task: Task, artifact: Artifact) -> market_pb2.TaskArtifact:
        digest = await self._files.put(task.id, artifact)
        return market_pb2.TaskArtifact(
            name=artifact.name, media_type=artifact.media_type, digest=digest.hex(), size=len(artifact.data)
        )

    # ---- previews ----------------------------------------------------------------------------------------------------
    def preview(self, task_id: bytes) -> market_pb2.TaskArtifact | None:
        """The last thing a task has to show."""
        shown = self._previews.get(task_id)
        return shown.message if shown is not None and shown.message.digest else None

    async def run(self) -> None:
        """Make previews of running tasks, for ever; only when no audit waits."""
        interval_s = self._runtime.config.preview_interval_ms / 1000
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            tasks = self._runtime.core.state.tasks
            for task_id in [task_id for task_id in self._previews if task_id not in tasks]:
                del self._previews[task_id]
            for task in list(tasks.values()):
                if not task.leaves or task.outcome or task.ended or not task.settled or self.audits.busy:
                    continue
                shown = self._previews.setdefault(task.id, Preview(market_pb2.TaskArtifact()))
                if task.settled > shown.settled and time.monotonic() - shown.made_s >= interval_s:
                    await self._make_preview(task, shown)

    async def _make_preview(self, task: Task, shown: Preview) -> None:
        shown.settled, shown.made_s = task.settled, time.monotonic()
        if workloads.get(task.challenge_type).preview is None:
            return
        outputs = {index: digest for index in range(len(task.states)) if (digest := task.output(index))}
        try:
            async with self._files.use((), outputs) as files:
                arguments = (task.challenge_type, task.payload, files)
                made: Artifact | None = await self.audits.ask(PREVIEW, "preview", arguments, PREVIEW_LIMIT_S)
            if made is None or task.ended:
                return
            before, shown.message = shown.message.digest, await self._stored(task, made)
            if before and before != shown.message.digest:
                await self._files.drop(task.id, bytes.fromhex(before))
        except (MeshError, OSError) as error:
            log.warning("no preview", task=task.id.hex(), error=str(error)[:300])
            return
        self._runtime.core.state.progress.add(task.id)
        self._runtime.dispatch.progress.set()

    async def close(self) -> None:
        """End the audit processes and release the cache."""
        await self.audits.close()
        if self._store is not None:
            self._store.close()

