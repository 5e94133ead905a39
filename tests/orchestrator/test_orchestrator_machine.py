"""Any order of events keeps the books: hypothesis plays workers, market, auditors and ledger against the core."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator import events as e
from orchestrator.model import Job
from tests.orchestrator.scene import Scene, key, task, task_id

pick = st.integers(0, 10**6)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(
            max_attempts=10**6, replica_percent=20, job_lease_ms=5_000, worker_lease_ms=9_000, opening_timeout_ms=900)
        self.tasks = self.sessions = 0
        self.shape: dict[int, tuple[int, bool]] = {}
        self.epochs: dict[int, int] = {}
        self.granted: dict[int, int] = {}
        self.attempts: set[tuple[bytes, int, int, int]] = set()
        self.leases: set[int] = set()
        self.paid: set[tuple[bytes, int]] = set()
        self.committed: set[int] = set()
        self.in_flight: list[bytes] = []

    def _session(self, n: int) -> int | None:
        live = sorted(self.scene.core.state.workers)
        return live[n % len(live)] if live else None

    @rule(jobs=st.integers(1, 6), priority=st.integers(0, 9), customer=st.sampled_from("ab"), whole=st.booleans())
    def lease(self, jobs: int, priority: int, customer: str, whole: bool) -> None:
        self.tasks += 1
        self.shape[self.tasks], self.epochs[self.tasks] = (jobs, whole), 1
        made = task(self.tasks, jobs, priority=priority, customer=customer, exact_whole=whole)
        made.replicates = not whole and bool(priority % 2)
        self.scene.do(e.TaskLeased(made))

    @rule(n=pick)
    def lease_anew_or_revoke(self, n: int) -> None:
        if self.tasks:
            number = n % self.tasks + 1
            held = self.scene.core.state.tasks.get(task_id(number))
            if held is None:
                before = self.shape[number]
                settled = [(job, bytes(32)) for name, job in sorted(self.paid) if name == task_id(number)]
                if len(settled) < before[0]:
                    self.epochs[number] += 1
                    fresh = task(number, before[0], exact_whole=before[1], epoch=self.epochs[number])
                    self.scene.do(e.TaskLeased(fresh, settled=settled))
            elif n % 2:
                self.scene.do(e.TaskRevoked(held.id, held.epoch))
            else:
                self.epochs[number] += 1
                self.scene.do(e.TaskLeased(task(number, len(held.states), epoch=self.epochs[number])))

    @rule(who=st.integers(1, 4), credits=st.integers(1, 8))
    def join(self, who: int, credits: int) -> None:
        self.sessions += 1
        self.scene.do(e.WorkerJoined(self.sessions, key(who), frozenset(), 0))
        self.granted[self.sessions] = credits
        self.scene.do(e.CreditsGranted(self.sessions, credits))

    @rule(n=pick, credits=st.integers(1, 8))
    def grant(self, n: int, credits: int) -> None:
        if (session := self._session(n)) is not None:
            self.granted[session] += credits
            self.scene.do(e.CreditsGranted(session, credits))

    @rule(n=pick)
    def leave(self, n: int) -> None:
        if (session := self._session(n)) is not None:
            self.scene.do(e.WorkerLeft(session))

    @rule(n=pick, most=st.integers(1, 8), stale=st.booleans())
    def commit(self, n: int, most: int, stale: bool) -> None:
        session = self._session(n)
        if session is None:
            return
        leases = self.scene.held(session)[:most]
        owner = self.scene.core.state.workers[session].key
        if stale:
            known = {lease.id for lease in leases} | self.committed
            leases += [old for old in self.scene.given.get(session, []) if old.id not in known][:2]
        if leases:
            self.committed |= {lease.id for lease in leases}
            self.scene.commit(session, leases, owner=owner, says=b"a lie" if owner == key(4) else b"")

    @rule(n=pick, poison=st.booleans())
    def nack(self, n: int, poison: bool) -> None:
        session = self._session(n)
        if session is not None and (held := self.scene.held(session)):
            self.scene.do(e.Nacked(session, [(held[0].id, e.POISON if poison else e.RETRYABLE, "X")]))

    @rule(n=pick)
    def open(self, n: int) -> None:
        session = self._session(n)
        if session is not None:
            asked = list(self.scene.core.state.workers[session].challenged)[: n % 4]
            self.scene.do(e.Opened(session, [(lease, b"") for lease in asked]))

    @rule(accepted=st.booleans())
    def audit(self, accepted: bool) -> None:
        self.scene.judge(accepted)

    @rule()
    def send(self) -> None:
        if tx_id := self.scene.start_settle():
            self.in_flight.append(tx_id)

    @rule(n=pick, refusals=st.sets(st.integers(0, 4), max_size=2), again=st.booleans(),
          reason=st.sampled_from(["NONCE_REPLAYED", "EXPIRED_EPOCH", "UNFUNDED_TASK"]))  # fmt: skip
    def answer(self, n: int, refusals: set[int], again: bool, reason: str) -> None:
        if not self.in_flight:
            return
        tx_id = self.in_flight.pop(n % len(self.in_flight))
        refused = dict.fromkeys(refusals, reason)
        at = 0
        for part in self.scene.core.state.in_flight[tx_id]:
            for position in part.positions:
                row = part.batch.leases[position]
                assert row is not None
                if at not in refused and (row.task.id, row.index) in self.paid:
                    # Possible only where the market took the task away and leased it again meanwhile.
                    assert row.task.ended or row.epoch < self.epochs_by_id()[row.task.id]
                    refused[at] = "DUPLICATE_RESULT"
                elif at not in refused:
                    self.paid.add((row.task.id, row.index))
                at += 1
        self.scene.do(e.SettleAnswered(tx_id, refused, 7))
        if again:
            self.scene.do(e.SettleAnswered(tx_id, {}, 7))

    def epochs_by_id(self) -> dict[bytes, int]:
        return {task_id(number): epoch for number, epoch in self.epochs.items()}

    @rule(ms=st.integers(1, 12_000))
    def pass_time(self, ms: int) -> None:
        self.scene.tick(ms)

    @invariant()
    def credits_are_never_exceeded(self) -> None:
        for session, leases in self.scene.given.items():
            assert len(leases) <= self.granted[session]

    @invariant()
    def attempts_and_leases_are_new(self) -> None:
        for leases in self.scene.given.values():
            for lease in leases:
                if lease.id not in self.leases:
                    self.leases.add(lease.id)
                    name = (lease.task.id, lease.index, lease.epoch, lease.attempt)
                    assert name not in self.attempts
                    self.attempts.add(name)

    @invariant()
    def every_job_is_in_exactly_one_place(self) -> None:
        state = self.scene.core.state
        delayed = {(id(row[3]), row[2]) for row in state.delayed}
        for held in state.tasks.values():
            if held.ended:
                continue
            running = {
                lease.index for worker in state.workers.values() for lease in worker.leases.values()
                if lease.task is held
            }  # fmt: skip
            assert held.running == len(running)
            for index, code in enumerate(held.states):
                waits = index >= held.cursor or index in held.returned or (id(held), index) in delayed
                assert (code == Job.RUNNING) == (index in running)
                assert (code == Job.QUEUED) == (waits and code != Job.SETTLED)
            assert held.settled == bytes(held.states).count(Job.SETTLED)
            assert held.settling == bytes(held.states).count(Job.SETTLING)
            assert len(held.returned) == len(set(held.returned))

    @invariant()
    def outcomes_are_true(self) -> None:
        for name, row in self.scene.outcomes.items():
            if row.completed:
                assert row.settled == len(row.states)
                assert set(row.states) == {Job.SETTLED}
                assert all((name, index) in self.paid for index in range(row.settled))


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
