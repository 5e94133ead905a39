"""A worker: the real core and the real executor, with its nonce file on a simulated disk."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from computemesh.trust import statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2
from computemesh.v1 import orchestrator_pb2 as pb
from tests.simulation.laws import Laws
from tests.simulation.world import Node, Stream, World
from worker import nonce
from worker.core import Core
from worker.events import Dialled, Effects, Event, Finished, LaneUp, Received, StreamEnded, Tick
from worker.executor import Executor
from worker.lanes import Run


class WorkerNode(Node):
    """Dials one of the orchestrators, another after each end."""

    def __init__(self, world: World, laws: Laws, number: int, orchestrators: list[str]) -> None:
        super().__init__(world, f"worker{number}")
        self._laws, self._orchestrators, self._number = laws, orchestrators, number
        self.key = PrivateKey.from_bytes(bytes([20 + number]) * 32)
        self.reserved = nonce.FIRST
        device = common_pb2.Device(kind="simulated", platform="cpu")
        self._offer = common_pb2.Capabilities(devices=[device], challenge_types=["noop"]).SerializeToString()

    def boot(self) -> None:
        """An executor, and a first dial."""
        self.core = Core(self.key, self._offer, {"noop"}, {"noop"}, 1, self.reserved, credits=4)
        self._executor = Executor(0, SimpleNamespace(cancelled=set()), None)  # type: ignore[arg-type]
        self._link: Stream | None = None
        self._leases: dict[int, tuple[bytes, int]] = {}
        self._held: list[Effects] = []
        self._syncing = 0
        self.do(LaneUp(0))
        self.every(500, lambda: self.do(Tick()))
        self._dial()

    def do(self, event: Event) -> None:
        """Steps the core; a reservation is durable before anything is sent."""
        effects = self.core.step(event, self.clock())
        if effects.persist is None and not self._syncing:
            self._perform(self._link, effects)
            return
        self._syncing += 1
        link, end = self._link, effects.persist

        def keep() -> None:
            if end is not None:
                self.reserved = max(self.reserved, end)

        def done() -> None:
            self._syncing -= 1
            self._perform(link, effects)

        self.disk.submit(keep, done)

    def _perform(self, link: Stream | None, effects: Effects) -> None:
        for request in effects.send:
            if request.WhichOneof("message") == "commitments":
                for row in statement.iter_commitments(request.commitments.commitments):
                    self._laws.committed(self.key.public, row[7], repr(row).encode())
            if link is not None:
                link.send(self, request)
        for run in effects.run:
            slow = self.world.random.random() < 0.2
            self.later(self.world.random.randint(*((1_000, 6_000) if slow else (5, 400))), partial(self._run, run))
        if effects.close is not None and link is not None:
            self.world.note(f"{self.name} ends its stream: {effects.close}")
            link.end(self)

    def _run(self, run: Run) -> None:
        done = self._executor.run(run.group_id, run.challenge_type, run.rows)
        done.wall_us, done.compute_us = 1000, [1000] * len(done.compute_us)
        self.do(Finished([done]))

    def _dial(self) -> None:
        number = self._number if self.world.random.random() < 0.7 else self.world.random.randrange(99)
        target = self.world.nodes[self._orchestrators[number % len(self._orchestrators)]]
        if not target.up:
            self.later(300, self._dial)
            return
        link = self._link = Stream(self.world, self, target)
        link.heard[0], link.gone[0] = self._heard, self._hung_up
        self._leases.clear()
        self.do(Dialled())
        self.world.at(self.world.now + self.world.latency(), partial(self._arrive, link))

    @staticmethod
    def _arrive(link: Stream) -> None:
        server: Any = link.ends[1]
        if server.up and server.life == link.lives[1] and link.open[1]:
            server.dialled(link)

    def _hung_up(self) -> None:
        self._link = None
        self.do(StreamEnded())
        self.later(self.world.random.randint(100, 800), self._dial)

    def _heard(self, response: pb.WorkResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "jobs":
            self._leases.update((job.lease_id, (job.task_id, job.index)) for job in response.jobs.jobs)
        elif kind == "verdicts":
            for verdict in response.verdicts.verdicts:
                if verdict.kind == pb.VERDICT_KIND_SETTLED:
                    for lease in verdict.lease_ids:
                        self._laws.told(*self._leases[lease])
        self.do(Received(response))
