"""The shell around the core: makes what it decides durable, then sends it; computes audits off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from computemesh.service.artifacts import Artifacts
from computemesh.service.crashpoints import crash_point
from computemesh.service.errors import from_rpc_error
from computemesh.service.store import GroupCommit
from computemesh.trust import merkle
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, ledger_pb2, ledger_pb2_grpc
from computemesh.v1 import orchestrator_pb2 as pb
from orchestrator import audit, store
from orchestrator import events as e
from orchestrator.config import Config
from orchestrator.core import Core
from orchestrator.session import Session, StreamEnded
from orchestrator.state import Limits
from orchestrator.telemetry import Telemetry

if TYPE_CHECKING:
    from orchestrator.accusations import Accusations
    from orchestrator.beacons import Beacons
    from orchestrator.dispatch import Dispatch
    from orchestrator.outputs import Outputs
    from orchestrator.rewards import ReplicaRewards
    from orchestrator.standing import Standing
    from orchestrator.submitter import Submitter

TICK_S = 0.2
ROOT_IN_LOOP = 4096
CALL_TIMEOUT_S = 10.0
log = structlog.get_logger("orchestrator")


_AHEAD_NS = time.time_ns() - time.monotonic_ns()


def now_ms() -> int:
    """Unix milliseconds by the clock as it was when the process began. It never jumps: leases, pauses and bars that
    were noted while the machine's clock was ahead would hold until it is there again."""
    return (_AHEAD_NS + time.monotonic_ns()) // 1_000_000


def limits(config: Config) -> Limits:
    """The part of the configuration the core decides by."""
    return Limits(
        worker_lease_ms=config.worker_lease_ms, job_lease_ms=config.job_lease_ms, job_limit_ms=config.job_limit_ms,
        opening_timeout_ms=config.opening_timeout_ms, upload_bytes_per_s=config.upload_bytes_per_s,
        aging_ms=config.aging_ms, wrong_streak=config.wrong_streak,
        wrong_cooldown_ms=config.wrong_cooldown_ms, max_attempts=config.max_attempts,
        replica_percent=config.replica_percent,
    )  # fmt: skip


class Runtime:
    """One core, its database, its threads; sessions, dispatch client and submitter hang on it."""

    dispatch: Dispatch
    outputs: Outputs
    submitter: Submitter
    standing: Standing
    beacons: Beacons
    accusations: Accusations
    rewards: ReplicaRewards

    def __init__(
        self, config: Config, key: PrivateKey, core: Core, group: GroupCommit, ledger: ledger_pb2_grpc.LedgerServiceStub
    ) -> None:
        self.config, self.key, self.core, self.group, self.ledger = config, key, core, group, ledger
        self.sessions: dict[int, Session] = {}
        self.stopping = False
        self.telemetry = Telemetry()
        self.artifacts: Artifacts | None = None
        self._pool = ThreadPoolExecutor(config.audit_threads, thread_name_prefix="audit")
        self._numbers = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- the loop ----------------------------------------------------------------------------------------------------
    def apply(self, event: e.Event) -> None:
        """Let the core take in an event; persist, then send what binds. Raises what the core raises on broken rules."""
        out = self.core.step(event, now_ms())
        self.telemetry.took(event)
        crash_point("orchestrator.step.decided")
        send = out.send
        if out.persist:
            write = partial(_write, out.persist)
            binding = [effect for effect in send if e.binding(effect)]
            if binding:
                self.group.submit(write).add_done_callback(partial(self._durable, binding))
                send = [effect for effect in send if not e.binding(effect)]
            else:
                self.group.defer(write)
        if send:
            self._deliver(send)
        for work in out.work:
            self.do(work)
        if out.freed:
            self.dispatch.freed(out.freed)
        if self.core.state.unsettled:
            self.submitter.wake.set()
        if self.core.state.progress:
            self.dispatch.progress.set()

    def _durable(self, effects: list[e.Send], group: asyncio.Future[None]) -> None:
        if not group.cancelled():
            crash_point("orchestrator.step.durable")
            self._deliver(effects)

    def do(self, work: e.Work) -> None:
        """Begin what the core wants computed or asked."""
        _WORK[type(work)](self, work)

    async def submit(self, transactions: Sequence[ledger_pb2.Transaction], what: str) -> Sequence[ledger_pb2.Outcome]:
        """What the ledger made of each; nothing where it does not answer: `what` is in the warning then."""
        request = ledger_pb2.SubmitTransactionsRequest(transactions=transactions)
        try:
            return (await self.ledger.SubmitTransactions(request, timeout=CALL_TIMEOUT_S)).outcomes
        except grpc.aio.AioRpcError as error:
            log.warning(f"{what} for the ledger", error=str(from_rpc_error(error))[:200])
            return ()

    def spawn(self, coroutine: Any) -> None:
        """Run something beside the loop; its failure is logged, and it is cancelled at the end."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())

    async def ticks(self) -> None:
        """Tell the core that time passes, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            self.apply(e.Tick())
            self.group.flush()
            self.telemetry.sample(self.core)

    def next_session(self, context: grpc.aio.ServicerContext[Any, Any]) -> Session:
        """A session for a stream that was just opened."""
        self._numbers += 1
        return Session(self, self._numbers, context)

    def drain(self, session: Session, cause: str, until_ms: int, *, held: bool = False) -> None:
        """No more jobs for this worker, and it is told. `held`: none either when it dials again."""
        self.apply(e.WorkerDrained(session.number, held))
        notice = common_pb2.DrainNotice(cause=cause, until_ms=until_ms)
        session.outbox.push(pb.WorkResponse(drain=notice))

    async def shut_down(self) -> None:
        """Tell every worker, let running jobs come in for `drain_ms`, end the streams."""
        self.stopping = True
        until = now_ms() + self.config.drain_ms
        for session in list(self.sessions.values()):
            self.drain(session, "the orchestrator is shutting down", until)
        # Asked in turns, once per shutdown: an event would burden every batch.
        while now_ms() < until and self.core.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for session in list(self.sessions.values()):
            session.end()

    async def close(self) -> None:
        """Stop what runs beside the loop and close the database."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self.outputs.close()
        await asyncio.to_thread(self.group.close)

    # ---- effects -----------------------------------------------------------------------------------------------------
    def _deliver(self, effects: list[e.Send]) -> None:
        for effect in effects:
            self.telemetry.sends(effect)
            if isinstance(effect, e.DrawSeed):
                crash_point("orchestrator.seed.due")
                self.apply(e.SeedDrawn(effect.batch, *self.beacons.draw(effect.batch)))
                crash_point("orchestrator.seed.drawn")
            elif isinstance(effect, e.SaveOutcome):
                self.dispatch.outcome(effect)
            else:
                session = self.sessions.get(effect.session)
                if session is None:
                    continue
                if isinstance(effect, e.CloseStream):
                    session.end(StreamEnded(effect.message, reason=effect.reason))
                else:
                    session.outbox.push(effect)

    def _recompute(self, work: e.Recompute) -> None:
        rows = [(lease.task.challenge_type, lease.spec, lease.result_hash, lease.task.k) for _, lease in work.rows]
        positions = [position for position, _ in work.rows]

        def judged(found: tuple[list[bool], list[bytes]]) -> None:
            k = work.rows[0][1].task.k
            self.apply(e.Judged(work.batch, positions, found[0], found[1], k=k))

        if work.cheap:
            judged(audit.recompute(rows))
        else:
            self._in_pool(partial(audit.recompute, rows), judged, work.batch, positions)

    def _check(self, work: e.CheckOpening) -> None:
        lease, batch, position = work.lease, work.batch, work.position
        if lease.task.apart:
            self.spawn(self.outputs.judge(work))
            return
        openings = work.openings or b""
        judge = partial(
            audit.judge_opening, lease.task.challenge_type, lease.spec, batch.leaves[position], batch.seed,
            lease.k, lease.result_hash, openings,
        )  # fmt: skip

        def judged(found: tuple[bool, bytes, str]) -> None:
            accepted, proof, problem = found
            if not accepted:
                log.warning(
                    "audit failed", task=lease.task.id.hex(), job=lease.index, worker=batch.key.hex(), why=problem
                )
            self.apply(e.Judged(batch, [position], [accepted], [proof], [openings], lease.k))

        self._in_pool(judge, judged, batch, [position])

    def _in_pool(self, compute: Callable[[], Any], then: Callable[[Any], None], batch: Any, at: list[int]) -> None:
        async def run() -> None:
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._pool, compute)
            except Exception:
                log.exception("audit could not be made", batch=batch.id, positions=at[:8])
                self.apply(e.AuditBroke(batch, at))
                return
            crash_point("orchestrator.audit.judged")
            then(found)

        self.spawn(run())

    def _root(self, work: e.ComputeRoot) -> None:
        async def run() -> None:
            if len(work.results) <= 32 * ROOT_IN_LOOP:
                root = _task_root(work.results)
            else:
                root = await asyncio.to_thread(_task_root, work.results)
            height = work.height or await self.submitter.height(work)
            task = self.core.state.tasks.get(work.task_id)
            artifacts, detail = await self.outputs.assemble(task) if task is not None else (b"", "")
            crash_point("orchestrator.task.rooted")
            self.apply(e.Rooted(work.task_id, root, height, artifacts, detail))

        self.spawn(run())

    def _fetch(self, work: e.FetchResult) -> None:
        self.spawn(self.submitter.fetch(work))

    def _discard(self, work: e.Discard) -> None:
        self.spawn(self.outputs.discard(work.key, work.uploaded))

    def _accuse(self, work: e.Accuse) -> None:
        self.accusations.take(work)

    def _pay(self, _work: e.PayReplicas) -> None:
        self.rewards.wake.set()

    def _submit(self, work: e.Submit) -> None:
        self.submitter.take(work)


def _write(records: list[e.Persist], connection: Any) -> None:
    store.write(connection, records)


def _task_root(results: bytes) -> bytes:
    """The task's result hash: RFC 9162 root over the jobs' result hashes in job order."""
    return merkle.root(merkle.leaf_hashes(results, 32))


_WORK: dict[type[Any], Callable[[Runtime, Any], None]] = {
    e.Recompute: Runtime._recompute,
    e.CheckOpening: Runtime._check,
    e.Discard: Runtime._discard,
    e.ComputeRoot: Runtime._root,
    e.FetchResult: Runtime._fetch,
    e.Submit: Runtime._submit,
    e.Accuse: Runtime._accuse,
    e.PayReplicas: Runtime._pay,
}
