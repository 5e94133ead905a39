"""Any order of events: customers, orchestrators that lie, a ledger that answers late or twice, kills at any point."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from market import states as s
from market.core import Core

LEASE_MS = 1000


def spec(number: int, customer: str, deadline_ms: int, priority: int) -> s.Spec:
    return s.Spec(
        task_id=number.to_bytes(32, "big"), request_id=number.to_bytes(16, "big"), customer_key=bytes(33),
        customer=customer, challenge_type="noop", payload=b"", reward_units=100, deadline_ms=deadline_ms,
        priority=priority, jobs=3, created_ms=number, order=bytes(164), order_signature=bytes(64))


class Market(RuleBasedStateMachine):
    """The core between customers, orchestrators, a ledger that may answer late, and restarts at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core(LEASE_MS)
        self.now = 0
        self.count = 0
        self.connections = 0
        self.durable: dict[bytes, tuple[s.Spec, s.State]] = {}
        self.escrow: dict[bytes, list] = {}  # status, cause, epoch, settled
        self.calls: list[s.LedgerCall] = []
        self.seen_tx: dict[bytes, bool] = {}
        self.open: dict[int, bytes] = {}
        self.leases: dict[bytes, tuple[bytes, int]] = {}  # task -> key, epoch: the newest that was sent
        self.epochs: dict[bytes, int] = {}
        self.passed_over: Counter[str] = Counter()

    def do(self, event: s.Event) -> None:
        effects = self.core.step(event, self.now)
        for record in effects.persist:
            if isinstance(record, s.Created):
                self.durable[record.spec.task_id] = (record.spec, record.state)
                continue
            spec_, old = self.durable[record.task_id]
            assert old.status not in s.TERMINAL, "a terminal task changed"
            assert record.state.cursor == old.cursor + (record.kind is not None)
            assert record.state.jobs_settled >= old.jobs_settled
            assert record.state.epoch >= old.epoch
            if record.state.phase is s.Phase.ASSIGNING and old.phase is not s.Phase.ASSIGNING:
                self.fair(spec_)
            self.durable[record.task_id] = (spec_, record.state)
        for item in effects.send:
            assert item.connection in self.open
            if isinstance(item, s.SendLease):
                task_id, epoch = item.lease.spec.task_id, item.lease.epoch
                key = self.open[item.connection]
                before = self.leases.get(task_id)
                assert before is None or epoch > before[1] or (key, epoch) == before, "two live leases"
                assert self.escrow[task_id][2] >= epoch, "leased before the ledger knew"
                self.leases[task_id] = (key, epoch)
            elif isinstance(item, s.SendClose):
                del self.open[item.connection]
        self.calls += effects.ledger

    def fair(self, chosen: s.Spec) -> None:
        """No customer with a waiting task is passed over more than twice by each other customer."""
        for other in {sp.customer for sp, state in self.durable.values() if state.phase is s.Phase.QUEUED}:
            self.passed_over[other] += other != chosen.customer
            assert self.passed_over[other] <= 4, f"{other} starves"
        self.passed_over[chosen.customer] = 0
        for customer in "abc":
            if not any(sp.customer == customer and state.phase is s.Phase.QUEUED and sp is not chosen
                       for sp, state in self.durable.values()):
                self.passed_over[customer] = 0

    @rule(customer=st.sampled_from("abc"), priority=st.integers(0, 9), life=st.integers(1, 8000))
    def create(self, customer: str, priority: int, life: int) -> None:
        self.count += 1
        made = spec(self.count, customer, self.now + life, priority)
        self.escrow[made.task_id] = [s.EscrowStatus.OPEN, s.Cause.NONE, 0, 0]
        self.do(s.Create(made))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.durable:
            self.do(s.Cancel(data.draw(st.sampled_from(sorted(self.durable)))))

    @rule(key=st.sampled_from([b"o" * 33, b"p" * 33]), credits=st.integers(0, 3), honest=st.booleans())
    def connect(self, key: bytes, credits: int, honest: bool) -> None:
        self.connections += 1
        held = [(t, e) for t, (k, e) in self.leases.items() if k == key] if honest else []
        ended = [(t, self.durable[t][1].status) for t, _ in held if self.durable[t][1].status in s.TERMINAL]
        self.open[self.connections] = key
        self.do(s.Connect(self.connections, key, "a:1", tuple(held), tuple(ended)))
        self.do(s.Ready(self.connections, credits))

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        if self.open:
            connection = data.draw(st.sampled_from(sorted(self.open)))
            del self.open[connection]
            self.do(s.Disconnect(connection))

    @rule(data=st.data(), credits=st.integers(0, 3))
    def speak(self, data: st.DataObject, credits: int) -> None:
        if self.open:
            self.do(s.Ready(data.draw(st.sampled_from(sorted(self.open))), credits))

    @rule(data=st.data(), settled=st.integers(0, 3), what=st.sampled_from(["progress", "completed", "failed"]))
    def report(self, data: st.DataObject, settled: int, what: str) -> None:
        """An orchestrator reports on any task under any epoch it once had; claims need not be true."""
        if not self.open or not self.leases:
            return
        connection = data.draw(st.sampled_from(sorted(self.open)))
        task_id = data.draw(st.sampled_from(sorted(self.leases)))
        _, epoch = self.leases[task_id]
        if what == "progress":
            self.do(s.Progress(connection, (s.ProgressRow(task_id, epoch, settled, 1, 1),)))
        else:
            row = s.OutcomeRow(task_id, epoch, what == "completed", "x", b"r" * 32, 1, 3)
            self.do(s.Outcomes(connection, (row,)))

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """The ledger has every job of a task settled."""
        candidates = [t for t in self.leases if self.escrow[t][0] is s.EscrowStatus.OPEN]
        if candidates:
            self.escrow[data.draw(st.sampled_from(sorted(candidates)))][0::3] = [s.EscrowStatus.SETTLED, 3]

    @rule(data=st.data(), lost=st.booleans())
    def ledger(self, data: st.DataObject, lost: bool) -> None:
        """The ledger handles one outstanding call; its answer may be lost, then the call comes again."""
        if not self.calls:
            return
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        escrow = self.escrow[call.task_id]
        if isinstance(call, s.Inspect):
            root = b"q" * 32 if call.with_root and escrow[0] is s.EscrowStatus.SETTLED else b""
            self.do(s.EscrowRead(call.task_id, escrow[0], escrow[1], 0, escrow[3], escrow[2], root, 1))
            return
        applied = self.seen_tx.get(call.intent.tx_id)
        if applied is None:
            applied = escrow[0] is s.EscrowStatus.OPEN
            if applied and call.intent.kind is s.IntentKind.REFUND:
                escrow[:2] = [s.EscrowStatus.REFUNDED, call.intent.cause]
            elif applied:
                applied = call.epoch > escrow[2]
                escrow[2] = max(escrow[2], call.epoch)
            self.seen_tx[call.intent.tx_id] = applied
        if lost:
            self.calls.append(call)
        else:
            self.do(s.LedgerAnswered((s.Answer(call.task_id, call.intent.tx_id, applied, "R"),)))

    @rule(ms=st.integers(1, 700))
    def time(self, ms: int) -> None:
        self.now += ms
        for task_id, escrow in self.escrow.items():
            if escrow[0] is s.EscrowStatus.OPEN and self.now >= self.durable[task_id][0].deadline_ms:
                escrow[:2] = [s.EscrowStatus.REFUNDED, s.Cause.EXPIRED]
        self.do(s.Tick())

    @rule()
    def restart(self) -> None:
        self.core = Core(LEASE_MS)
        self.calls.clear()
        self.open.clear()
        self.passed_over.clear()
        self.do(s.Restore(tuple(t for t in self.durable.values() if t[1].status not in s.TERMINAL)))

    @invariant()
    def every_task_is_live_or_terminal(self) -> None:
        for task_id, (_, state) in self.durable.items():
            live = self.core.book.tasks.get(task_id)
            assert (live is None) == (state.status in s.TERMINAL)
            assert live is None or live.state == state
            assert (state.phase is s.Phase.ENDED) == (state.status in s.TERMINAL)
            assert (task_id in self.core.book.queue) == (state.phase is s.Phase.QUEUED)

    @invariant()
    def a_terminal_status_is_what_the_ledger_says(self) -> None:
        by_cause = {s.Cause.CANCELLED: s.Status.CANCELLED, s.Cause.FAILED: s.Status.FAILED,
                    s.Cause.EXPIRED: s.Status.EXPIRED}
        for task_id, (_, state) in self.durable.items():
            if state.status in s.TERMINAL:
                status, cause = self.escrow[task_id][:2]
                assert state.status == (s.Status.COMPLETED if status is s.EscrowStatus.SETTLED else by_cause[cause])
                assert bool(state.result_hash) == (state.status is s.Status.COMPLETED)

    def teardown(self) -> None:
        """When the ledger answers and time passes, every task ends: nothing dangles."""
        for _ in range(40):
            self.now += 2000
            for task_id, escrow in self.escrow.items():
                if escrow[0] is s.EscrowStatus.OPEN and self.now >= self.durable[task_id][0].deadline_ms:
                    escrow[:2] = [s.EscrowStatus.REFUNDED, s.Cause.EXPIRED]
            self.do(s.Tick())
            while self.calls:
                call = self.calls.pop()
                escrow = self.escrow[call.task_id]
                if isinstance(call, s.Submit):
                    applied = self.seen_tx.get(call.intent.tx_id, False)
                    self.do(s.LedgerAnswered((s.Answer(call.task_id, call.intent.tx_id, applied, "R"),)))
                else:
                    root = b"q" * 32 if call.with_root and escrow[0] is s.EscrowStatus.SETTLED else b""
                    self.do(s.EscrowRead(call.task_id, escrow[0], escrow[1], 0, escrow[3], escrow[2], root, 1))
        assert all(state.status in s.TERMINAL for _, state in self.durable.values())


TestMarket = Market.TestCase
TestMarket.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
