"""A core with scripted workers around it: no sockets, no clock but the test's."""

from __future__ import annotations

from hashlib import sha256

from computemesh.trust import merkle
from computemesh.trust.statement import Commitment
from computemesh.workloads import noop
from orchestrator import events as e
from orchestrator.core import Core
from orchestrator.model import Job, Lease, Task
from orchestrator.state import Limits


def key(number: int) -> bytes:
    return b"\x02" + number.to_bytes(32, "big")


def task_id(number: int) -> bytes:
    return sha256(b"task %d" % number).digest()


def task(number: int, jobs: int = 4, **values: object) -> Task:
    values = {"deadline_ms": 10**9, "created_ms": number, **values}
    epoch = values.pop("epoch", 1)
    name = values.pop("challenge_type", "noop")
    which = noop.TASK.split(noop.Params(jobs=jobs, bytes=8), task_id(number))
    return Task(task_id(number), epoch, name, which, **values)  # type: ignore[arg-type]


class Scene:
    """Drives a core and keeps what it sent: leases by session, verdicts by lease, what became durable."""

    def __init__(self, boot: int = 1, **limits: int) -> None:
        self.core = Core(boot, Limits(**limits))
        self.now = 1_000
        self.given: dict[int, list[Lease]] = {}
        self.verdicts: dict[int, int] = {}
        self.challenges: dict[int, tuple[bytes, int]] = {}
        self.revoked: set[int] = set()
        self.closed: dict[int, str] = {}
        self.outcomes: dict[bytes, e.SaveOutcome] = {}
        self.persisted: list[object] = []
        self.accused: list[tuple[bytes, int, bytes]] = []
        self.audits: list[e.Recompute | e.CheckOpening] = []
        self.submitted: list[e.Submit] = []
        self.discarded: list[tuple[bytes, bytes]] = []
        self.freed = 0
        self.settle_results = 4096
        self._transactions = 0

    def do(self, event: e.Event) -> e.Effects:
        out = self.core.step(event, self.now)
        self.persisted += out.persist
        self.freed += out.freed
        for item in out.send:
            if isinstance(item, e.SendJobs):
                self.given.setdefault(item.session, []).extend(item.leases)
            elif isinstance(item, e.SendVerdicts):
                for lease in item.lease_ids:
                    assert lease not in self.verdicts, "one verdict per commitment"
                    self.verdicts[lease] = item.kind
            elif isinstance(item, e.SendChallenges):
                self.challenges |= {lease: (item.seed, k) for lease, k in item.leases}
            elif isinstance(item, e.SendRevokes):
                self.revoked |= set(item.lease_ids)
            elif isinstance(item, e.CloseStream):
                self.closed[item.session] = item.reason
            elif isinstance(item, e.SaveOutcome):
                self.outcomes[item.task_id] = item
            elif isinstance(item, e.DrawSeed):
                self.do(e.SeedDrawn(item.batch, bytes([7]) * 32))
        for work in out.work:
            if isinstance(work, e.Submit):
                self.submitted.append(work)
            elif isinstance(work, e.ComputeRoot):
                self.do(e.Rooted(work.task_id, merkle.root([merkle.leaf_hash(work.results)]), work.height or 1))
            elif isinstance(work, e.Discard):
                self.discarded += [(work.key, digest) for digest in work.uploaded if digest]
            elif isinstance(work, e.Accuse):
                self.accused.append((work.batch.key, work.position, work.transcript))
            elif isinstance(work, e.FetchResult):
                self.do(e.ResultKnown(work.task_id, work.job, bytes([9]) * 32, 5))
            else:
                self.audits.append(work)
        return out

    def worker(self, number: int, credits: int = 0, types: tuple[str, ...] = (), memory: int = 0) -> int:
        self.do(e.WorkerJoined(number, key(number), frozenset(types), memory))
        if credits:
            self.do(e.CreditsGranted(number, credits))
        return number

    def held(self, session: int) -> list[Lease]:
        worker = self.core.state.workers.get(session)
        return list(worker.leases.values()) if worker else []

    def commitments(self, session: int, leases: list[Lease], owner: bytes = b"", says: bytes = b"") -> e.Committed:
        rows = [
            Commitment(
                lease.task.id, lease.index, lease.epoch, lease.attempt, owner or key(session),
                sha256(says + b"%d" % lease.index).digest(), lease.id & 0xFFFF,
            ).pack()
            for lease in leases
        ]  # fmt: skip
        leaves = [merkle.leaf_hash(row) for row in rows]
        return e.Committed(session, [lease.id for lease in leases], b"".join(rows), bytes(64), leaves)

    def commit(self, session: int, leases: list[Lease], owner: bytes = b"", says: bytes = b"") -> e.Effects:
        return self.do(self.commitments(session, leases, owner, says))

    def judge(self, accepted: bool = True) -> None:
        """Finish every audit that was asked for."""
        audits, self.audits = self.audits, []
        for work in audits:
            if isinstance(work, e.Recompute):
                at = [position for position, _ in work.rows]
                self.do(e.Judged(work.batch, at, [accepted] * len(at), [bytes(32)] * len(at)))
            else:
                self.do(e.Judged(work.batch, [work.position], [accepted], [bytes(32)], [work.openings], 32))

    def start_settle(self) -> bytes:
        """Name a transaction; empty where nothing waits."""
        self._transactions += 1
        tx_id = self._transactions.to_bytes(16, "big")
        before = len(self.submitted)
        self.do(e.SettleStarted(tx_id, self.settle_results, 1 << 20))
        return tx_id if len(self.submitted) > before else b""

    def settle(self, refused: dict[int, str] | None = None) -> None:
        """Settle all that is accepted."""
        while tx_id := self.start_settle():
            self.do(e.SettleAnswered(tx_id, refused or {}, 3))

    def finish(self, session: int) -> None:
        """Commit, audit and settle all the worker holds."""
        if self.held(session):
            self.commit(session, self.held(session))
        self.judge()
        self.settle()

    def tick(self, ms: int) -> None:
        self.now += ms
        self.do(e.Tick())

    def states(self, number: int) -> list[Job]:
        return [Job(state) for state in self.core.state.tasks[task_id(number)].states]
