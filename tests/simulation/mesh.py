"""One run: a mesh, its customers, and a schedule of faults made from the seed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import structlog
from google.protobuf import struct_pb2

from computemesh.trust import envelope, statement
from computemesh.trust.digest import payload_digest
from computemesh.trust.identity import PrivateKey
from market.states import Spec
from tests.simulation.laws import Laws, Violation
from tests.simulation.ledger_node import CHAIN, LedgerNode, deposit
from tests.simulation.market_node import KEY as MARKET_KEY
from tests.simulation.market_node import MarketNode
from tests.simulation.orchestrator_node import OrchestratorNode
from tests.simulation.worker_node import WorkerNode
from tests.simulation.world import START_MS, Node, World

CUSTOMER = PrivateKey.from_bytes(bytes([4]) * 32)
FAULTS_MS = 25_000
GRACE_MS = 200_000
TASKS, ORCHESTRATORS, WORKERS, FAULTS = 4, 2, 3, 12
SERVICES = ("ledger", "market", "orchestrator0", "orchestrator1")
NODES = (*SERVICES, "worker0", "worker1", "worker2")
PAIRS = (("market", "ledger"), ("orchestrator0", "ledger"), ("orchestrator1", "ledger"), ("orchestrator0", "market"),
         ("orchestrator1", "market"), ("worker0", "orchestrator0"), ("worker1", "orchestrator1"),
         ("worker2", "orchestrator0"), ("customer", "market"))  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """`kind` at `at_ms` after the start, for `for_ms`; what `where` and `amount` mean depends on the kind."""

    kind: str
    at_ms: int
    for_ms: int
    where: tuple[str, ...]
    amount: int

    def __str__(self) -> str:
        return f"{self.at_ms / 1000:7.3f} s {self.kind} {'-'.join(self.where)} {self.amount} for {self.for_ms} ms"


def schedule(seed: int) -> list[Fault]:
    """The faults of a seed, in order of time."""
    random, found = Random(f"faults {seed}"), []
    for _ in range(random.randint(3, FAULTS)):
        kind = random.choice(("crash", "crash", "crash", "loss", "delay", "twice", "cut", "break", "clock"))
        at_ms, for_ms = random.randrange(FAULTS_MS), random.choice((300, 1_000, 4_000, 9_000))
        where: tuple[str, ...] = ()
        amount = 0
        if kind == "crash":
            where, amount = (random.choice(NODES),), random.randint(1, 24)
        elif kind == "cut":
            one, two = random.choice(PAIRS)
            where = random.choice(((one, two), (two, one)))
            for_ms = random.choice((1_000, 4_000, 14_000))  # the last is longer than any lease
        elif kind == "break":
            where = random.choice(PAIRS)
        elif kind == "clock":
            where, amount = (random.choice(SERVICES),), random.randint(-60_000, 60_000)
        elif kind == "delay":
            amount = random.choice((50, 400, 2_000))
        else:
            amount = random.choice((5, 20, 50))
        found.append(Fault(kind, at_ms, for_ms, where, amount))
    return sorted(found, key=lambda fault: fault.at_ms)


class _Customer(Node):
    """Orders tasks and sometimes cancels one."""

    def boot(self) -> None:
        """Nothing of its own."""


class Mesh:
    """Everything of one run."""

    def __init__(self, seed: int, faults: list[Fault]) -> None:
        self.seed, self.faults = seed, faults
        self.world = world = World(seed)
        self.laws = laws = Laws(self)
        self.ledger, self.market = LedgerNode(world, laws), MarketNode(world, laws)
        self.orchestrators = [OrchestratorNode(world, laws, number) for number in range(ORCHESTRATORS)]
        names = [node.name for node in self.orchestrators]
        self.workers = [WorkerNode(world, laws, number, names) for number in range(WORKERS)]
        self.customer = _Customer(world, "customer")
        self.ordered = 0

    def run(self) -> None:
        """Raises Violation."""
        world = self.world
        for node in list(world.nodes.values()):
            node.start()
        world.after_step = self.laws.check
        self.customer.ask("ledger", "submit", [deposit(CUSTOMER, 10**9, bytes(15) + b"\x01")], self._funded)
        for fault in self.faults:
            world.at(START_MS + fault.at_ms, partial(self._strike, fault))
        world.run(START_MS + FAULTS_MS + 10_000)
        world.mend()
        world.note("all mended")
        world.run(world.now + GRACE_MS, lambda: self.ordered == 0 and self.market.all_ended())
        self.laws.at_the_end()
        self._replay()

    def _replay(self) -> None:
        """R once more, from the first block."""
        if self.ledger.up:
            self.ledger.boot()

    # ---- customers

    def _funded(self, _: object) -> None:
        random = Random(f"orders {self.seed}")
        self.ordered = TASKS
        for number in range(TASKS):
            at_ms, jobs = random.randrange(FAULTS_MS - 5_000), random.choice((1, 2, 5, 16))
            life_ms = random.choice((20_000, 60_000, 90_000))
            cancel_ms = random.choice((0, 0, 0, 500, 3_000, 8_000))
            self.world.at(START_MS + at_ms, partial(self._order, number, jobs, life_ms, cancel_ms))

    def _order(self, number: int, jobs: int, life_ms: int, cancel_ms: int) -> None:
        spec = order(number, jobs, self.world.now, life_ms)

        def accepted(_: object) -> None:
            self.ordered -= 1

        self.customer.ask("market", "create", spec, accepted)
        if cancel_ms:
            self.customer.later(
                cancel_ms, lambda: self.customer.ask("market", "cancel", spec.task_id, lambda _: None))

    # ---- faults

    def _strike(self, fault: Fault) -> None:
        world, end = self.world, self.world.now + fault.for_ms
        world.note(f"fault: {fault}")
        if fault.kind == "crash":
            node = world.nodes[fault.where[0]]
            node.fuse, node.down_ms = fault.amount, fault.for_ms
        elif fault.kind == "clock":
            world.met["clock jumps"] += 1
            world.nodes[fault.where[0]].skew_ms = fault.amount
        elif fault.kind == "break":
            one, two = fault.where
            for stream in list(world.nodes[one].streams):
                if two in (stream.ends[0].name, stream.ends[1].name):
                    world.met["broken"] += 1
                    stream.cut_off()
        elif fault.kind == "cut":
            world.met["one-way partitions"] += 1
            world.cut[fault.where[0], fault.where[1]] += 1
            world.at(end, partial(self._heal, fault.where))
        else:
            self._window(fault, end)

    def _window(self, fault: Fault, end: int) -> None:
        world = self.world
        if fault.kind == "delay":
            world.met["delays"] += 1
            world.slow_ms = fault.amount
            world.at(end, lambda: setattr(world, "slow_ms", 1))
        else:
            name = "loss" if fault.kind == "loss" else "twice"
            setattr(world, name, fault.amount / 100)
            world.at(end, lambda: setattr(world, name, 0.0))

    def _heal(self, where: tuple[str, ...]) -> None:
        one, two = where
        if self.world.cut[one, two]:
            self.world.cut[one, two] -= 1


def order(number: int, jobs: int, now_ms: int, life_ms: int) -> Spec:
    """A signed order for a noop task."""
    payload = struct_pb2.Struct()
    payload.update({"jobs": jobs, "bytes": 8})
    digest = payload_digest({"jobs": float(jobs), "bytes": 8.0})
    request_id = (number + 2).to_bytes(16, "big")
    wanted = statement.Order(
        request_id, CUSTOMER.public, MARKET_KEY.public, statement.challenge_type_hash("noop"), digest, 1000 * jobs,
        now_ms + life_ms)  # fmt: skip
    packed = wanted.pack()
    return Spec(
        wanted.task_id(CHAIN), request_id, CUSTOMER.public, CUSTOMER.address, "noop",
        payload.SerializeToString(deterministic=True), 1000 * jobs, now_ms + life_ms, 0, jobs, now_ms, packed,
        envelope.sign(CUSTOMER, "order", CHAIN, packed), labels=json.dumps({}))  # fmt: skip


@dataclass
class Outcome:
    """What one run showed."""

    seed: int
    violation: Violation | None
    met: Counter[str]
    steps: int
    statuses: Counter[str]
    head: str
    """Hash of the last block: runs of a seed agree on it, and so on all that was settled, when and in what order."""
    transcript: list[str] = field(repr=False, default_factory=list)


Defect = Callable[[Mesh], None]


def simulate(seed: int, faults: list[Fault] | None = None, defect: Defect = lambda mesh: None) -> Outcome:
    """Runs a seed, or what is left of its faults. `defect` breaks a mesh before it starts."""
    mesh = Mesh(seed, schedule(seed) if faults is None else faults)
    defect(mesh)
    violation = None
    try:
        mesh.run()
    except Violation as found:
        violation = found
        mesh.world.note(f"VIOLATION {found}")
    statuses = Counter(status.name for status in mesh.laws.ended.values())
    return Outcome(seed, violation, mesh.world.met, mesh.world.steps, statuses,
                   mesh.ledger.stored.chain.previous.hex(), mesh.world.transcript)  # fmt: skip


def brief(seed: int) -> Outcome:
    """`simulate`, with a transcript only where a law is broken."""
    outcome = simulate(seed)
    if outcome.violation is None:
        outcome.transcript.clear()
    return outcome


def quiet() -> None:
    """The translations log; ten thousand runs of that are of no use."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def shrink(seed: int, defect: Defect = lambda mesh: None) -> tuple[list[Fault], Outcome]:
    """The faults of a failing seed without those that it fails without, and how it fails then."""
    faults, failing = schedule(seed), simulate(seed, None, defect)
    assert failing.violation is not None, f"seed {seed} does not fail"
    for fault in list(faults):
        fewer = [one for one in faults if one is not fault]
        found = simulate(seed, fewer, defect)
        if found.violation is not None and found.violation.law == failing.violation.law:
            faults, failing = fewer, found
    return faults, failing
