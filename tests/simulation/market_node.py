"""The market: the real core, its real tables, and a shell that obeys the engine's law."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from computemesh.service.migrations import migrate
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, ledger_pb2, market_pb2
from market import store
from market.core import Core
from market.dispatch import DispatchStream, _assemble
from market.ledger_client import transaction
from market.states import (
    TERMINAL,
    Answer,
    Cancel,
    Connect,
    Create,
    Disconnect,
    Effects,
    EscrowRead,
    Event,
    Inspect,
    LedgerAnswered,
    Restore,
    Send,
    SendClose,
    Spec,
    Status,
    Submit,
    Tick,
)
from tests.simulation.laws import Laws
from tests.simulation.ledger_node import CHAIN
from tests.simulation.world import Node, Stream, World

KEY = PrivateKey.from_bytes(bytes([3]) * 32)
LEASE_MS = 6_000
HEARTBEAT_MS = 1_000


class MarketNode(Node):
    """Customers' calls, orchestrators' streams, the ledger's answers."""

    def __init__(self, world: World, laws: Laws) -> None:
        super().__init__(world, "market")
        self._laws = laws
        self.table = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.table, store.STEPS)
        self._numbers = 0
        self._statuses: dict[bytes, Status] = {}

    def boot(self) -> None:
        """Reloads every live task."""
        self.core = Core(LEASE_MS)
        self._links: dict[int, Stream] = {}
        self._waiting: list[Submit] = []
        self._sending, self._in_flight = False, 0
        self._ending: set[bytes] = set()
        self.do(Restore(tuple(store.live_tasks(self.table))))
        self.every(100, lambda: self.do(Tick()))

    # ---- the engine

    def do(self, event: Event, then: Callable[[], None] = lambda: None) -> None:
        """Steps the core; persists, then performs, in the order of events."""
        effects = self.core.step(event, self.clock())
        if not effects.persist and not self._in_flight:
            self._perform(effects)
            then()
            return
        self._in_flight += 1
        self._ending.update(one.task_id for one in effects.release)

        def finish() -> None:
            self._in_flight -= 1
            self._ending.difference_update(one.task_id for one in effects.release)
            self._perform(effects)
            then()

        self.disk.submit(partial(self._write, effects), finish)

    def _write(self, effects: Effects) -> None:
        store.record(self.table, effects.persist)
        for row in effects.persist:
            task_id = row.spec.task_id if hasattr(row, "spec") else row.task_id
            self._statuses[task_id] = row.state.status

    def _perform(self, effects: Effects) -> None:
        for item in effects.send:
            link = self._links.get(item.connection)
            if link is not None:
                self._send(link, item)
        for call in effects.ledger:
            if isinstance(call, Inspect):
                self.ask("ledger", "escrow", call, self._read)
            else:
                self._waiting.append(call)
                self._submit()

    def _send(self, link: Stream, item: Send) -> None:
        if isinstance(item, SendClose):
            link.end(self)
        else:
            for message in _assemble([item]):
                link.send(self, message)

    # ---- the ledger

    def _read(self, escrow: EscrowRead) -> None:
        self.do(escrow)

    def _submit(self) -> None:
        if self._sending or not self._waiting:
            return
        self._sending, batch, self._waiting = True, self._waiting, []

        def answered(outcomes: list[ledger_pb2.Outcome]) -> None:
            self._sending = False
            self.do(LedgerAnswered(tuple(
                Answer(call.task_id, call.intent.tx_id, outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED, outcome.reason)
                for call, outcome in zip(batch, outcomes, strict=True))))  # fmt: skip
            self._submit()

        self.ask("ledger", "submit", [transaction(KEY, CHAIN, call) for call in batch], answered)

    # ---- customers

    def create(self, spec: Spec, answer: Callable[[Any], None]) -> None:
        """Opens the escrow and takes the task on; repeated until it is answered."""
        if self.status(spec.task_id) is not None:
            answer("ACCEPTED")
            return
        opening = ledger_pb2.Transaction(
            id=spec.request_id, public_key=spec.customer_key, signature=spec.order_signature,
            open=ledger_pb2.EscrowOpen(order=spec.order))  # fmt: skip

        def accepted() -> None:
            self._laws.accepted.add(spec.task_id)
            answer("ACCEPTED")

        def opened(outcomes: list[ledger_pb2.Outcome]) -> None:
            if outcomes[0].kind != ledger_pb2.OUTCOME_KIND_APPLIED:
                answer(outcomes[0].reason)
            elif self.status(spec.task_id) is not None:
                answer("ACCEPTED")
            else:
                self.do(Create(spec), accepted)

        self.ask("ledger", "submit", [opening], opened)

    def cancel(self, task_id: bytes, answer: Callable[[Any], None]) -> None:
        """Asks for an end."""
        self.do(Cancel(task_id), lambda: answer("ASKED"))

    # ---- orchestrators

    def dialled(self, link: Stream) -> None:
        """A new Dispatch stream: the orchestrator is greeted."""
        self._numbers += 1
        number = self._numbers
        link.heard[1] = partial(self._hello, link, number)
        greeting = common_pb2.Greeting(nonce=number.to_bytes(32, "big"), public_key=KEY.public, chain_id=CHAIN)
        link.send(self, market_pb2.DispatchResponse(greeting=greeting))

    def _hello(self, link: Stream, number: int, request: market_pb2.DispatchRequest) -> None:
        hello = request.hello
        info = market_pb2.OrchestratorInfo.FromString(hello.capabilities)
        shim: Any = SimpleNamespace(_engine=self, _number=number, _functions=None)

        def gone() -> None:
            self._links.pop(number, None)
            self.do(Disconnect(number))

        link.heard[1] = partial(DispatchStream._take, shim)
        link.gone[1] = gone
        self._links[number] = link
        self.asks: dict[int, Any] = {}
        held = tuple((bytes(item.task_id), item.epoch) for item in info.held)
        ended = store.ended_among(self.table, [task_id for task_id, _ in held])
        welcome = market_pb2.DispatchWelcome(heartbeat_interval_ms=HEARTBEAT_MS, lease_ms=LEASE_MS)
        link.send(self, market_pb2.DispatchResponse(welcome=welcome))
        self.do(Connect(number, hello.public_key, info.address, held, tuple(ended)))

    # ---- for the laws

    def status(self, task_id: bytes) -> Status | None:
        """What a customer would read: only what is durable."""
        return self._statuses.get(task_id)

    def ending(self, task_id: bytes) -> bool:
        """Whether its end is on the way to the disk."""
        return task_id in self._ending

    def all_ended(self) -> bool:
        """Whether nothing is live."""
        return all(status in TERMINAL for status in self._statuses.values())
