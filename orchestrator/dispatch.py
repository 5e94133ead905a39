"""The stream to the market: credits, progress and outcomes up; leased tasks, acknowledgements and revocations down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.json_format import MessageToDict

from computemesh import workloads
from computemesh.service import tracing
from computemesh.service.crashpoints import crash_point
from computemesh.service.errors import from_rpc_error
from computemesh.service.outbox import Outbox
from computemesh.service.server import dial
from computemesh.trust import envelope, statement
from computemesh.trust.errors import InvalidArgument, MeshError
from computemesh.v1 import common_pb2, market_pb2, market_pb2_grpc
from computemesh.workloads import openings, references
from orchestrator import asks, audit, offers
from orchestrator import events as e
from orchestrator.model import Job, Task
from orchestrator.runtime import Runtime

PROGRESS_EVERY_S = 0.2
ASKS_EVERY_S = 3.0
FIRST_WAIT_S, LAST_WAIT_S = 0.1, 5.0
MAX_ROWS = 4096
_VERIFIED = (market_pb2.DELIVERY_UNSPECIFIED, market_pb2.DELIVERY_VERIFIED)
log = structlog.get_logger("orchestrator.dispatch")


def read_lease(lease: market_pb2.TaskLease) -> Task:
    """A leased task, ready for the core. Raises InvalidArgument where it cannot be split into the jobs it is said to
    have."""
    workload = workloads.get(lease.challenge_type)
    payload = references.resolve(workload, MessageToDict(lease.payload), lease.references)
    params = workload.parse(payload)
    jobs = workload.split(params, lease.task_id)
    if len(jobs) != lease.jobs:
        raise InvalidArgument(f"jobs: the lease says {lease.jobs}, the payload makes {len(jobs)}")
    first = jobs[0]
    if (workload.output_bytes is None) != (workload.output_digests is None):
        raise InvalidArgument(f"challenge_type: {workload.name} leaves outputs that nobody can hold against anything")
    task = Task(
        lease.task_id, lease.epoch, lease.challenge_type, jobs, customer=lease.customer,
        priority=min(lease.priority, 9), deadline_ms=lease.deadline_ms or 2**62, created_ms=lease.created_ms,
        memory=max(first.device_memory_bytes, jobs[len(jobs) - 1].device_memory_bytes),
        cost=1000.0 + workload.price(params).flops / len(jobs), exact_whole=audit.whole(workload, first),
        k=workload.sample_size, binds=workload.binds(first),
        leaves=workload.output_bytes is not None, opens=workload.output_units is None, inputs=workload.job_inputs,
        apart=audit.apart(workload), payload=payload, traceparent=lease.traceparent,
        opening_bytes=lambda spec: openings.limit(workload, spec, workload.sample_size),
    )  # fmt: skip
    task.memory = max(task.memory, lease.memory_bytes)
    task.responses = max(lease.responses, 1)
    task.job_units, task.operations = lease.reward_units // len(jobs), workload.price(params).flops // len(jobs)
    task.replicates = workload.replicates and lease.delivery in _VERIFIED
    task.function = workload.call(params).function if workload.call is not None else ""
    if lease.delivery == market_pb2.DELIVERY_FIRST_RESPONSE:
        task.k, task.exact_whole = 0, False  # accepted unaudited, by the customer's order
    return task


class Dispatch:
    """Dials the market for ever; holds outcomes until the market acknowledged them."""

    def __init__(self, runtime: Runtime, address: str) -> None:
        self._runtime, self._address = runtime, address
        self.progress = asyncio.Event()
        self.offers = asyncio.Event()  # workers with functions came or went
        self._outcomes: dict[bytes, e.SaveOutcome] = {}
        self._outbox: Outbox[market_pb2.DispatchRequest] | None = None
        # Task ids whose lease is being read (their settled jobs asked for) and those revoked meanwhile.
        self._reading: dict[bytes, int] = {}

    # ---- told by the core --------------------------------------------------------------------------------------------
    def outcome(self, row: e.SaveOutcome) -> None:
        """Tell the market how a task ended, now and at every new stream until it acknowledges."""
        self._outcomes[row.task_id] = row
        crash_point("orchestrator.outcome.leaves")
        if self._outbox is not None:
            self._outbox.push(_outcomes([row]))

    def freed(self, tasks: int) -> None:
        """Tasks were let go: the market may lease as many others."""
        if self._outbox is not None and not self._runtime.stopping:
            ready = market_pb2.DispatchReady(credits=tasks)
            self._outbox.push(market_pb2.DispatchRequest(ready=ready))

    # ---- the stream --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Hold a stream to the market, redialled with jitter whenever it ends."""
        wait = FIRST_WAIT_S
        while not self._runtime.stopping:
            try:
                async with dial(self._runtime.config.market, self._runtime.config.trust) as channel:
                    if await self._hold(market_pb2_grpc.MarketServiceStub(channel)):  # type: ignore[no-untyped-call]
                        wait = FIRST_WAIT_S
                log.info("the market ended the stream")
            except grpc.RpcError as error:
                log.warning("the market cannot be reached", market=self._runtime.config.market,
                            error=str(from_rpc_error(error))[:200])
            except MeshError as error:
                log.error("the market's stream is not usable", error=str(error))
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, LAST_WAIT_S)

    async def _hold(self, stub: Any) -> bool:
        call = stub.Dispatch()
        outbox: Outbox[market_pb2.DispatchRequest] = Outbox(call.write)
        beside: list[asyncio.Task[None]] = []
        welcomed = False
        try:
            async for response in call:
                kind = response.WhichOneof("message")
                if kind == "greeting":
                    await call.write(market_pb2.DispatchRequest(hello=self._hello(response.greeting)))
                elif kind == "welcome":
                    welcomed = True
                    outbox.push(self._asks())  # before credits: the market leases by it
                    self._begin(outbox)
                    interval = max(response.welcome.heartbeat_interval_ms, 100) / 1000
                    beside = [
                        asyncio.create_task(outbox.run()),
                        asyncio.create_task(_beat(outbox, interval)),
                        asyncio.create_task(self._report(outbox)),
                        asyncio.create_task(self._offer(outbox)),
                        asyncio.create_task(self._ask(outbox)),
                    ]
                elif kind in _TAKE:
                    _TAKE[kind](self, response)
        finally:
            self._outbox = None
            for task in beside:
                task.cancel()
            call.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return welcomed

    async def _ask(self, outbox: Outbox[market_pb2.DispatchRequest]) -> None:
        """What workers ask, every few seconds."""
        while True:
            await asyncio.sleep(ASKS_EVERY_S)
            outbox.push(self._asks())

    def _asks(self) -> market_pb2.DispatchRequest:
        return market_pb2.DispatchRequest(asks=asks.summary(self._runtime.core.state))

    def _hello(self, greeting: common_pb2.Greeting) -> common_pb2.Hello:
        runtime = self._runtime
        if greeting.chain_id != runtime.config.chain_id:
            raise InvalidArgument(f"chain_id: the market is of {greeting.chain_id!r}, not {runtime.config.chain_id!r}")
        held = [market_pb2.HeldTask(task_id=t.id, epoch=t.epoch) for t in runtime.core.state.tasks.values()]
        info = market_pb2.OrchestratorInfo(address=self._address, held=held).SerializeToString()
        body = statement.hello_body(greeting.nonce, greeting.public_key, runtime.key.public, info)
        signature = envelope.sign(runtime.key, "hello", runtime.config.chain_id, body)
        return common_pb2.Hello(public_key=runtime.key.public, capabilities=info, signature=signature)

    def _begin(self, outbox: Outbox[market_pb2.DispatchRequest]) -> None:
        state = self._runtime.core.state
        credits = self._runtime.config.task_credits - len(state.tasks)
        log.info("market connected", market=self._runtime.config.market, held=len(state.tasks), credits=credits)
        rows = list(self._outcomes.values())
        for at in range(0, len(rows), MAX_ROWS):
            outbox.push(_outcomes(rows[at : at + MAX_ROWS]))
        if credits > 0 and not self._runtime.stopping:
            outbox.push(market_pb2.DispatchRequest(ready=market_pb2.DispatchReady(credits=credits)))
        state.progress.update(state.tasks)
        self.progress.set()
        self._outbox = outbox
        crash_point("orchestrator.market.welcomed")

    async def _report(self, outbox: Outbox[market_pb2.DispatchRequest]) -> None:
        """Progress of tasks that changed, at most every 200 ms."""
        while True:
            await self.progress.wait()
            self.progress.clear()
            self._push_progress(outbox)
            await asyncio.sleep(PROGRESS_EVERY_S)

    def _push_progress(self, outbox: Outbox[market_pb2.DispatchRequest]) -> None:
        tasks = [task for task in self._runtime.core.take_progress() if not task.ended]
        rows = [
            market_pb2.TaskProgress(
                task_id=task.id, epoch=task.epoch, jobs_settled=task.settled, jobs_running=max(task.running, 0),
                jobs_submitted=task.settled + task.settling + task.states.count(Job.AUDITING),
                jobs_verified=task.settled + task.settling, block_height=task.height,
                preview=self._runtime.outputs.preview(task.id), partial=task.partial,
            )
            for task in tasks
        ]  # fmt: skip
        for task in tasks:
            task.partial = ""
        for at in range(0, len(rows), MAX_ROWS):
            batch = market_pb2.ProgressBatch(progress=rows[at : at + MAX_ROWS])
            outbox.push(market_pb2.DispatchRequest(progress=batch))

    async def _offer(self, outbox: Outbox[market_pb2.DispatchRequest]) -> None:
        """What workers offer: now, and when it changed, at most every 200 ms."""
        self.offers.set()
        while True:
            await self.offers.wait()
            self.offers.clear()
            records = self._runtime.core.state.records
            sessions = sorted(self._runtime.sessions.values(), key=lambda one: -records[one.key].settled)
            for message in offers.messages(session.capabilities for session in sessions):
                outbox.push(message)
            await asyncio.sleep(PROGRESS_EVERY_S)

    # ---- told by the market ------------------------------------------------------------------------------------------
    def _leases(self, response: market_pb2.DispatchResponse) -> None:
        crash_point("orchestrator.leases.arrived")
        for lease in response.leases.leases:
            held = self._runtime.core.state.tasks.get(lease.task_id)
            if held is None and lease.epoch > 1:
                # Somebody else may have settled some of its jobs; the ledger knows.
                self._reading[lease.task_id] = lease.epoch
                self._runtime.spawn(self._lease_of_another(lease))
            else:
                self._take_lease(lease, [])

    async def _lease_of_another(self, lease: market_pb2.TaskLease) -> None:
        settled = await self._runtime.submitter.settled_before(lease.task_id)
        try:
            outputs = await self._runtime.outputs.known(read_lease(lease), settled)
        except MeshError as error:
            if self._reading.pop(lease.task_id, None) == lease.epoch:
                self._refuse(lease, error)
            return
        if self._reading.pop(lease.task_id, None) == lease.epoch:
            self._take_lease(lease, settled, outputs)
        else:
            self.freed(1)

    def _refuse(self, lease: market_pb2.TaskLease, error: MeshError) -> None:
        log.error("a leased task cannot be done here", task=lease.task_id.hex(), error=str(error))
        raw = lease.SerializeToString()
        self._runtime.apply(e.TaskUnusable(lease.task_id, lease.epoch, str(error)[:1000], raw))

    def _take_lease(
        self, lease: market_pb2.TaskLease, settled: list[tuple[int, bytes]],
        outputs: Sequence[tuple[int, bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        try:
            task = read_lease(lease)
            self._runtime.outputs.admit(task)
        except MeshError as error:
            self._refuse(lease, error)
            return
        log.info("task leased", task=task.id.hex(), epoch=task.epoch, type=task.challenge_type, jobs=len(task.jobs),
                 settled=len(settled), **tracing.named(task.traceparent))
        if task.id not in self._runtime.core.state.tasks:
            self._runtime.telemetry.leased(task)
        self._runtime.apply(e.TaskLeased(task, lease.SerializeToString(), settled, outputs))
        crash_point("orchestrator.lease.taken")

    def _acks(self, response: market_pb2.DispatchResponse) -> None:
        crash_point("orchestrator.outcome.acknowledged")
        for task_id in response.acks.task_ids:
            self._outcomes.pop(task_id, None)
        self._runtime.apply(e.OutcomeAcked(list(response.acks.task_ids)))

    def _revokes(self, response: market_pb2.DispatchResponse) -> None:
        crash_point("orchestrator.revokes.arrived")
        for revoke in response.revokes.revokes:
            log.info("task revoked", task=revoke.task_id.hex(), status=market_pb2.TaskStatus.Name(revoke.status))
            self._reading.pop(revoke.task_id, None)
            self._outcomes.pop(revoke.task_id, None)
            self._runtime.telemetry.ended(revoke.task_id, "revoked")
            self._runtime.apply(e.TaskRevoked(revoke.task_id, revoke.epoch))

    def _drain(self, response: market_pb2.DispatchResponse) -> None:
        log.info("the market drains", cause=response.drain.cause)


_TAKE: dict[str, Callable[[Dispatch, market_pb2.DispatchResponse], None]] = {
    "leases": Dispatch._leases,
    "acks": Dispatch._acks,
    "revokes": Dispatch._revokes,
    "drain": Dispatch._drain,
}


async def _beat(outbox: Outbox[market_pb2.DispatchRequest], interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        outbox.push(market_pb2.DispatchRequest(heartbeat=market_pb2.DispatchHeartbeat()))


def _outcomes(rows: list[e.SaveOutcome]) -> market_pb2.DispatchRequest:
    return market_pb2.DispatchRequest(outcomes=market_pb2.OutcomeBatch(outcomes=[
        market_pb2.TaskOutcome(
            task_id=row.task_id, epoch=row.epoch,
            status=market_pb2.TASK_STATUS_COMPLETED if row.completed else market_pb2.TASK_STATUS_FAILED,
            detail=row.detail[:1024], result_hash=row.root, block_height=row.height, jobs_settled=row.settled,
            artifacts=market_pb2.TaskOutcome.FromString(row.artifacts).artifacts if row.artifacts else (),
        )
        for row in rows
    ]))  # fmt: skip
