"""The gRPC face: the Work stream and the questions people and auditors ask."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from computemesh import workloads
from computemesh.service import journal, spliced
from computemesh.service.auth import bearer, verify_token
from computemesh.trust import merkle, statement
from computemesh.trust.errors import InvalidArgument, NotFound, TaskNotFound, Unauthenticated, Unauthorized
from computemesh.trust.identity import address_of
from computemesh.v1 import market_pb2, orchestrator_pb2_grpc
from computemesh.v1 import orchestrator_pb2 as pb
from orchestrator import dispatch, store
from orchestrator import events as e
from orchestrator.held import NOT_SETTLED
from orchestrator.model import Job
from orchestrator.runtime import Runtime, now_ms

SERVICE = "computemesh.v1.OrchestratorService"
DEFAULT_PAGE = 50


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Bytes in, core asked, bytes out."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def Work(self, requests: AsyncIterator[pb.WorkRequest], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._runtime.next_session(context).run(requests)

    # ---- workers -----------------------------------------------------------------------------------------------------
    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Any) -> pb.ListWorkersResponse:
        keys = sorted(self._runtime.core.state.records)
        after = _token(request.page_token, "w")
        rest = [key for key in keys if key > after]
        page = rest[: request.page_size or DEFAULT_PAGE]
        return pb.ListWorkersResponse(
            workers=[self._worker(key) for key in page], total=len(keys),
            next_page_token=_page("w", page[-1]) if len(page) < len(rest) else "",
        )  # fmt: skip

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Any) -> pb.GetWorkerResponse:
        return pb.GetWorkerResponse(worker=self._worker(self._find(request.worker)))

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Any) -> pb.DrainWorkerResponse:
        runtime = self._runtime
        key = await self._controlled("drain", request.worker, context)
        session = runtime.sessions.get(runtime.core.state.sessions.get(key, 0))
        if session is not None:
            runtime.drain(session, "drained on request", now_ms() + runtime.config.job_lease_ms, held=True)
        return pb.DrainWorkerResponse(worker=self._worker(key))

    async def ResumeWorker(self, request: pb.ResumeWorkerRequest, context: Any) -> pb.ResumeWorkerResponse:
        key = await self._controlled("resume", request.worker, context)
        self._runtime.apply(e.WorkerResumed(key))
        return pb.ResumeWorkerResponse(worker=self._worker(key))

    async def _controlled(self, act: str, name: str, context: Any) -> bytes:
        """The key of worker `name`, which the caller may drain and resume; and notes that it does."""
        token = bearer(context)
        if token is None:
            raise Unauthenticated("authorization: a token of the worker's key or of the operator's is needed")
        caller = verify_token(token, self._runtime.config.chain_id, now_ms())
        key = self._find(name)
        if caller not in (key, self._runtime.key.public):
            raise Unauthorized(f"{address_of(caller)} may not drain {address_of(key)}: not its key, not the operator's")
        folder = Path(self._runtime.config.data_dir)
        await asyncio.to_thread(journal.record, folder, act, address_of(caller), worker=address_of(key))
        return key

    def _find(self, name: str) -> bytes:
        records = self._runtime.core.state.records
        for key in records:
            if name in (address_of(key), key.hex()):
                return key
        raise NotFound(f"worker {name!r} is not known here", reason="WORKER_NOT_FOUND")

    def _worker(self, key: bytes) -> pb.Worker:
        state = self._runtime.core.state
        record = state.records[key]
        number = state.sessions.get(key, 0)
        worker, session = state.workers.get(number), self._runtime.sessions.get(number)
        answer = pb.Worker(
            public_key=key.hex(), address=address_of(key), status=pb.WORKER_STATUS_GONE, jobs_settled=record.settled,
            jobs_wrong=record.wrong, jobs_late=record.late, last_seen_ms=record.last_seen_ms,
            reputation=record.reputation, reputation_reasons=record.reasons,
        )  # fmt: skip
        if worker is not None and session is not None:
            answer.status = pb.WORKER_STATUS_DRAINING if worker.draining else pb.WORKER_STATUS_READY
            answer.capabilities.CopyFrom(session.capabilities)
            answer.jobs_running = len(worker.leases)
            answer.connected_ms, answer.last_seen_ms = session.connected_ms, worker.last_seen_ms
            answer.utilisation.extend(session.utilisation)
        return answer

    # ---- jobs --------------------------------------------------------------------------------------------------------
    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        token = _token(request.page_token, "j")
        first = int.from_bytes(token, "big")
        jobs, total = await self._jobs(request.task_id, first, request.page_size or DEFAULT_PAGE)
        after = first + len(jobs)
        following = _page("j", after.to_bytes(4, "big")) if after < total else ""
        return pb.ListJobsResponse(jobs=jobs, total=total, next_page_token=following)

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        jobs, total = await self._jobs(request.task_id, request.index, 1)
        if not jobs:
            raise NotFound(f"job {request.index} of task {request.task_id} does not exist: it has {total}",
                           reason="JOB_NOT_FOUND")  # fmt: skip
        return pb.GetJobResponse(job=jobs[0])

    async def _jobs(self, task_hex: str, first: int, most: int) -> tuple[list[pb.JobState], int]:
        task_id = bytes.fromhex(task_hex)
        task = self._runtime.core.state.tasks.get(task_id)
        if task is not None:
            states = bytes(task.states)
        else:
            row = await self._runtime.group.read(partial(store.task_row, task_id=task_id))
            if row is None:
                raise TaskNotFound(f"task {task_hex} is not and was not held by this orchestrator")
            states = row[1]
        page = range(min(first, len(states)), min(first + most, len(states)))
        found = await self._answers(task_id, page) if page else {}
        running = self._holders(task_id) if task is not None else {}
        jobs = []
        for index in page:
            attempts, worker, result_hash = found.get(index, (0, "", ""))
            trouble = task.trouble.get(index) if task is not None else None
            status = states[index]
            settled = status in (Job.SETTLED, Job.SETTLING, Job.AUDITING)
            jobs.append(pb.JobState(
                task_id=task_hex, index=index, status=status,  # type: ignore[arg-type]
                attempts=max(attempts, (trouble.attempts if trouble else 0) + (status not in (Job.QUEUED, Job.FAILED))),
                worker=worker if settled else running.get(index, ""),
                result_hash=result_hash if status in (Job.SETTLED, Job.SETTLING) else "",
                detail=trouble.detail if trouble and status != Job.SETTLED else "",
                output=task.output(index).hex() if task is not None and status == Job.SETTLED else "",
            ))  # fmt: skip
        return jobs, len(states)

    async def _answers(self, task_id: bytes, page: range) -> dict[int, tuple[int, str, str]]:
        """job -> (commitments made, worker of the last that may count as the job's, its result hash)."""
        rows = await self._runtime.group.read(
            partial(store.commitments_of, task_id=task_id, first=page[0], last=page[-1])
        )
        replications = await self._runtime.group.read(partial(store.replications_of, task_id=task_id))
        found: dict[int, tuple[int, str, str]] = {}
        for batch_id, key, commitments, _, _ in rows:
            for position, row in store.jobs_in(commitments, task_id):
                if row[2] in page:
                    tried, *before = found.get(row[2], (0, "", ""))
                    counts = replications.get((batch_id, position)) not in NOT_SETTLED
                    answer = (address_of(key), row[6].hex()) if counts else before
                    found[row[2]] = (tried + 1, answer[0], answer[1])
        return found

    def _holders(self, task_id: bytes) -> dict[int, str]:
        return {
            lease.index: address_of(worker.key)
            for worker in self._runtime.core.state.workers.values()
            for lease in worker.leases.values()
            if lease.task.id == task_id
        }

    # ---- audits ------------------------------------------------------------------------------------------------------
    async def GetAuditTranscript(self, request: pb.GetAuditTranscriptRequest, context: Any) -> pb.GetAuditTranscriptResponse:  # noqa: E501
        task_id = bytes.fromhex(request.task_id)
        found = await self._runtime.group.read(partial(_transcript, task_id=task_id, job=request.job))
        if found is None:
            raise NotFound(f"job {request.job} of task {request.task_id} has no audit here",
                           reason="TRANSCRIPT_NOT_FOUND")  # fmt: skip
        return pb.GetAuditTranscriptResponse(transcript=found)


def _transcript(connection: Any, *, task_id: bytes, job: int) -> pb.AuditTranscript | None:
    """The audit of a job's accepted commitment, or of its newest judged one."""
    rows = store.commitments_of(connection, task_id, job, job)
    replications = store.replications_of(connection, task_id)
    lease_row = store.task_row(connection, task_id)
    if lease_row is None:
        return None
    best: tuple[Any, ...] | None = None
    for batch_id, _, commitments, signature, bindings in reversed(rows):
        for position, row in store.jobs_in(commitments, task_id):
            judgement = store.judgement_of(connection, batch_id, position) if row[2] == job else None
            if judgement is None:
                continue
            replication = replications.get((batch_id, position), 0)
            judgement = (judgement[0] and replication not in NOT_SETTLED, *judgement[1:])
            if best is None or judgement[0]:
                best = (position, commitments, signature, bindings, batch_id, judgement, replication)
        if best is not None and best[5][0]:
            break
    if best is None:
        return None
    position, commitments, signature, bindings, batch_id, judgement, replication = best
    accepted, digest, seed, k, openings, uploaded, epoch = judgement
    leaves = statement.leaves(commitments, statement.COMMITMENT_SIZE)
    task = dispatch.read_lease(market_pb2.TaskLease.FromString(lease_row[0]))
    binding = bindings[32 * position : 32 * position + 32] if task.binds else b""
    spec = workloads.bind(task.jobs[job], binding) if binding else task.jobs[job]
    size = statement.COMMITMENT_SIZE
    output, unit_digests, env_class = store.artifacts_of(connection, batch_id, position)
    needed = dict[int, bytes]()
    if spec.needs:
        needed = {index: found for index, _, found in store.outputs_of(connection, task_id)}
    return pb.AuditTranscript(
        commitment=commitments[position * size : (position + 1) * size], position=position, count=len(leaves),
        commitment_path=merkle.inclusion_path(leaves, position), worker_signature=signature,
        challenge_type=task.challenge_type, params=spec.params, binding=binding, seed=seed, k=k,
        units=workloads.get(task.challenge_type).layout(spec).count, openings=openings,
        verdict=pb.VERDICT_KIND_SETTLED if accepted else pb.VERDICT_KIND_WRONG, digest=digest,
        output=output, unit_digests=unit_digests, env_class=env_class, openings_artifact=uploaded,
        inputs=task.inputs(spec) if task.inputs is not None else (),
        beacon_epoch=epoch, replication=replication,  # type: ignore[arg-type]
        needs=[pb.NeededResult(job=index, output=needed.get(index, b"")) for index in spec.needs],
    )  # fmt: skip


def register(runtime: Runtime, server: grpc.aio.Server) -> None:
    """Add the service; responses of the Work stream may be bytes that were spliced already."""
    service = OrchestratorService(runtime)
    work = grpc.stream_stream_rpc_method_handler(service.Work, pb.WorkRequest.FromString, spliced.serialize)
    spliced.add(
        server, partial(orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, service), SERVICE, Work=work)


def _page(kind: str, after: bytes) -> str:
    return base64.urlsafe_b64encode(kind.encode() + after).decode()


def _token(token: str, kind: str) -> bytes:
    if not token:
        return b""
    try:
        raw = base64.urlsafe_b64decode(token)
    except (binascii.Error, ValueError):
        raw = b""
    if raw[:1] != kind.encode() or (kind == "j" and len(raw) != 5):
        raise InvalidArgument(f"page_token: {token[:80]!r} is not one this list gave out",
                              violations=[("page_token", "unknown")])  # fmt: skip
    return raw[1:]
