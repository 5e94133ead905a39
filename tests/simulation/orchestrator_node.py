"""An orchestrator: the real core, its real tables and its translation of both streams, in a shell that obeys the
runtime's law: what binds leaves once it is durable."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from computemesh.service.migrations import migrate
from computemesh.trust import envelope, statement
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, ledger_pb2, market_pb2
from computemesh.v1 import orchestrator_pb2 as pb
from orchestrator import assembly, audit, dispatch, session, settlement, store, wire
from orchestrator import events as e
from orchestrator.core import Core
from orchestrator.runtime import _task_root
from orchestrator.state import Limits
from tests.simulation.laws import Laws
from tests.simulation.ledger_node import CHAIN
from tests.simulation.world import Node, Stream, World

LIMITS = Limits(worker_lease_ms=5_000, job_lease_ms=8_000, opening_timeout_ms=3_000)
CREDITS = 3


class _Dispatch(dispatch.Dispatch):
    """The dispatch client with its coroutines driven by the simulation."""

    def _leases(self, response: market_pb2.DispatchResponse) -> None:
        node: Any = self._runtime
        for lease in response.leases.leases:
            if node.core.state.tasks.get(lease.task_id) is None and lease.epoch > 1:
                self._reading[lease.task_id] = lease.epoch
                node.ask("ledger", "results", lease.task_id, partial(self._known, lease))
            else:
                self._take_lease(lease, [])

    def _known(self, lease: market_pb2.TaskLease, settled: list[tuple[int, bytes]]) -> None:
        if self._reading.pop(lease.task_id, None) == lease.epoch:
            self._take_lease(lease, settled)
        else:
            self.freed(1)


_RECEIVE = {**dispatch._TAKE, "leases": _Dispatch._leases}


class OrchestratorNode(Node):
    """Stands for `Runtime` towards the real dispatch client and the real readers of workers' messages."""

    def __init__(self, world: World, laws: Laws, number: int) -> None:
        super().__init__(world, f"orchestrator{number}")
        self._laws = laws
        self.key = PrivateKey.from_bytes(bytes([10 + number]) * 32)
        self.config: Any = SimpleNamespace(chain_id=CHAIN, market="market", task_credits=CREDITS)
        self.outputs: Any = SimpleNamespace(preview=lambda task_id: None, admit=self._admit)
        self.telemetry: Any = SimpleNamespace(leased=lambda task: None, ended=lambda task_id, how: None)
        self.table = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.table, store.STEPS)
        self.early = False
        """A defect for tests: settles before that is durable."""

    @staticmethod
    def _admit(task: Any) -> None:
        """Every other task is audited by challenge, the others by doing their jobs again."""
        if task.id[0] & 1:
            task.exact_whole = False

    # ---- life

    def boot(self) -> None:
        """Restores what was durable, then serves."""
        boot, next_batch = store.start(self.table)
        self.core = Core(boot, LIMITS, next_batch)
        self.sessions: dict[int, Stream] = {}
        self._numbers, self._settling, self.stopping = 0, False, False
        self._next: e.Submit | None = None
        self.dispatch = _Dispatch(self, self.name)  # type: ignore[arg-type]
        self._market: Stream | None = None
        pending, outcomes = assembly.restore(self.core, self.table, self.clock())
        for task in self.core.state.tasks.values():
            self._admit(task)
        self._laws.restarted(self.name, {row[0] for row in self.table.execute("SELECT tx_id FROM settles")})
        for row in outcomes:
            self.dispatch.outcome(row)
        for work in self.core.replay:
            self._do(work)
        for tx_id, body in pending:
            self._send_settle(tx_id, body)
        self.every(200, self._tick)
        self.every(500, lambda: self.ask("ledger", "head", None, lambda found: self.apply(e.BlockSealed(found))))
        self._dial()

    def _tick(self) -> None:
        self.apply(e.Tick())
        self.disk.flush()
        if self.dispatch.progress.is_set() and self._market is not None and self.dispatch._outbox is not None:
            self.dispatch.progress.clear()
            self.dispatch._push_progress(self.dispatch._outbox)

    # ---- the runtime

    def apply(self, event: e.Event) -> None:
        """Steps the core; what binds waits until it is durable."""
        out = self.core.step(event, self.clock())
        send = out.send
        if out.persist:
            write = partial(store.write, self.table, out.persist)
            binding = [effect for effect in send if e.binding(effect)]
            if binding:
                self.disk.submit(write, partial(self._deliver, binding))
                send = [effect for effect in send if not e.binding(effect)]
            else:
                self.disk.defer(write)
        self._deliver(send)
        for work in out.work:
            self._do(work)
        if out.freed:
            self.dispatch.freed(out.freed)
        self._settle()
        if self.core.state.progress:
            self.dispatch.progress.set()

    def _deliver(self, effects: list[e.Send]) -> None:
        for effect in effects:
            if isinstance(effect, e.DrawSeed):
                self.apply(e.SeedDrawn(effect.batch, self.world.random.randbytes(32)))
            elif isinstance(effect, e.SaveOutcome):
                self.dispatch.outcome(effect)
            elif (link := self.sessions.get(effect.session)) is None:
                continue
            elif isinstance(effect, e.CloseStream):
                link.end(self)
            else:
                for message in wire.assemble([effect], LIMITS.job_lease_ms):
                    read = pb.WorkResponse.FromString(message) if isinstance(message, bytes) else message
                    link.send(self, read)

    def _do(self, work: e.Work) -> None:
        if isinstance(work, e.Submit):
            self._next = work
        elif isinstance(work, e.Recompute):
            rows = [(lease.task.challenge_type, lease.spec, lease.result_hash, lease.task.k) for _, lease in work.rows]
            positions = [position for position, _ in work.rows]
            found = audit.recompute(rows)
            self.later(2, lambda: self.apply(e.Judged(work.batch, positions, *found, k=work.rows[0][1].task.k)))
        elif isinstance(work, e.CheckOpening):
            self.later(3, partial(self._check, work))
        elif isinstance(work, e.ComputeRoot):
            self._root(work)
        elif isinstance(work, e.FetchResult):
            self.ask("ledger", "result", (work.task_id, work.job), partial(self._fetched, work))

    def _check(self, work: e.CheckOpening) -> None:
        lease, batch, at = work.lease, work.batch, work.position
        accepted, proof, _ = audit.judge_opening(
            lease.task.challenge_type, lease.spec, batch.leaves[at], batch.seed, lease.k, lease.result_hash,
            work.openings or b"")  # fmt: skip
        self.apply(e.Judged(batch, [at], [accepted], [proof], [work.openings or b""], lease.k))

    def _root(self, work: e.ComputeRoot) -> None:
        if work.task_id not in self.core.state.tasks:
            return

        def known(height: int) -> None:
            if height:
                self.apply(e.Rooted(work.task_id, _task_root(work.results), height))
            else:
                self.later(200, partial(self._root, work))

        if work.height:
            known(work.height)
        elif work.tx_id:
            self.ask("ledger", "height", work.tx_id, known)
        else:
            last = (work.task_id, len(work.results) // 32 - 1)
            self.ask("ledger", "result", last, lambda found: known(found[1]))

    def _fetched(self, work: e.FetchResult, found: tuple[bytes, int]) -> None:
        if found[0]:
            self.apply(e.ResultKnown(work.task_id, work.job, *found))
        elif work.task_id in self.core.state.tasks:
            self.later(1000, partial(self._do, work))

    # ---- settlement

    def _settle(self) -> None:
        if self._settling or not self.core.state.unsettled:
            return
        self._settling = True
        tx_id = self.world.random.randbytes(16)
        self.apply(e.SettleStarted(tx_id, settlement.MAX_RESULTS, settlement.MAX_BYTES))
        work, self._next = self._next, None
        if work is None:
            self._settling = False
            return
        body = settlement.build(self.key, CHAIN, work.tx_id, work.parts)
        leases = (part.batch.leases[at] for part in work.parts for at in part.positions)
        tasks = list({lease.task.id: None for lease in leases if lease is not None})
        if self.early:
            self._send_settle(tx_id, body)
        self.disk.submit(partial(store.save_settle, self.table, tx_id, body, tasks),
                         lambda: None if self.early else self._send_settle(tx_id, body))  # fmt: skip

    def _send_settle(self, tx_id: bytes, body: bytes) -> None:
        transaction = ledger_pb2.Transaction.FromString(body)
        results = sum(len(batch.proof_hashes) // 32 for batch in transaction.settle.batches)

        def answered(outcomes: list[ledger_pb2.Outcome]) -> None:
            self._settling = False
            self.apply(e.SettleAnswered(tx_id, *settlement.read_answer(outcomes[0], results)))

        self.ask("ledger", "submit", [transaction], answered)
        self._laws.sent.setdefault(self.name, set()).add(tx_id)

    # ---- the market

    def _dial(self) -> None:
        market = self.world.nodes["market"]
        if not market.up:
            self.later(300, self._dial)
            return
        link = self._market = Stream(self.world, self, market)
        link.heard[0], link.gone[0] = partial(self._from_market, link), self._hung_up
        self.world.at(self.world.now + self.world.latency(), partial(self._arrive, link))

    def _arrive(self, link: Stream) -> None:
        if link.ends[1].up and link.open[1]:
            link.ends[1].dialled(link)  # type: ignore[attr-defined]

    def _hung_up(self) -> None:
        self._market, self.dispatch._outbox = None, None
        self.later(self.world.random.randint(100, 800), self._dial)

    def _from_market(self, link: Stream, response: market_pb2.DispatchResponse) -> None:
        kind = response.WhichOneof("message") or ""
        if kind == "greeting":
            link.send(self, market_pb2.DispatchRequest(hello=self.dispatch._hello(response.greeting)))
        elif kind == "welcome":
            outbox: Any = SimpleNamespace(push=partial(link.send, self))
            self.dispatch._begin(outbox)
            self._beat(link, response.welcome.heartbeat_interval_ms)
        else:
            _RECEIVE[kind](self.dispatch, response)

    def _beat(self, link: Stream, interval_ms: int) -> None:
        if self._market is link:
            self.later(interval_ms, partial(self._beat, link, interval_ms))
            link.send(self, market_pb2.DispatchRequest(heartbeat=market_pb2.DispatchHeartbeat()))

    # ---- workers

    def dialled(self, link: Stream) -> None:
        """A new Work stream: the worker is greeted."""
        self._numbers += 1
        nonce = (self.life << 32 | self._numbers).to_bytes(32, "big")
        link.heard[1] = partial(self._hello, link, self._numbers, nonce)
        greeting = common_pb2.Greeting(nonce=nonce, public_key=self.key.public, chain_id=CHAIN)
        link.send(self, pb.WorkResponse(greeting=greeting))

    def _hello(self, link: Stream, number: int, nonce: bytes, request: pb.WorkRequest) -> None:
        hello = request.hello
        body = statement.hello_body(nonce, self.key.public, hello.public_key, hello.capabilities)
        assert envelope.verify(hello.public_key, "hello", CHAIN, body, hello.signature)
        shim: Any = SimpleNamespace(number=number, key=hello.public_key, runtime=self, utilisation=[])
        self.sessions[number] = link

        def gone() -> None:
            self.sessions.pop(number, None)
            self.apply(e.WorkerLeft(number))

        link.heard[1], link.gone[1] = partial(self._from_worker, link, shim), gone
        link.send(self, pb.WorkResponse(welcome=pb.Welcome(
            heartbeat_interval_ms=1_000, lease_ms=LIMITS.worker_lease_ms,
            opening_timeout_ms=LIMITS.opening_timeout_ms)))  # fmt: skip
        self.apply(e.WorkerJoined(number, hello.public_key, frozenset({"noop"}), 0))

    def _from_worker(self, link: Stream, shim: Any, request: pb.WorkRequest) -> None:
        take: Callable[[Any, pb.WorkRequest], bool | None] = session._TAKE[request.WhichOneof("message") or ""]
        try:
            if take(shim, request):
                link.end(self)
        except MeshError as error:
            self.world.note(f"{self.name} ends a worker's stream: {error}")
            link.end(self)
