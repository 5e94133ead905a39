"""The invariants L P S R C T, held against what the services' public interfaces say."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Any

from computemesh.client import Client
from computemesh.client.model import TERMINAL, Task
from computemesh.trust import merkle, statement
from computemesh.trust.checkpoint import NoteVerifier, log_origin, open_checkpoint
from computemesh.trust.errors import MeshError, NotFound
from computemesh.trust.receipt import accepted
from computemesh.v1 import ledger_pb2 as pb
from tests.money import conserved

LAWS = "LPSRCT"
ESCROW_OF = {
    "completed": (pb.ESCROW_STATUS_SETTLED, pb.REFUND_CAUSE_UNSPECIFIED),
    "cancelled": (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_CANCELLED),
    "failed": (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_FAILED),
    "expired": (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_EXPIRED),
}
LOOK_EVERY_S = 0.03
PAGE = 1000


class Violation(AssertionError):
    """A law is broken."""

    def __init__(self, law: str, text: str) -> None:
        super().__init__(law, text)
        self.law, self.text = law, text


def require(holds: object, law: str, text: str) -> None:
    """Raises Violation unless it holds."""
    if not holds:
        raise Violation(law, text)


class Laws:
    """What the mesh has acknowledged so far. A run adds to it while faults happen, and checks all of it after."""

    def __init__(self, client: Client, seed: int = 0) -> None:
        self._client, self._random = client, Random(seed)
        profile = client.profile
        self._origin, self._verifier = log_origin(profile.chain_id), NoteVerifier(profile.ledger_vkey)
        self._minted = self._supply().minted_units
        self.open: set[str] = set()
        """Tasks whose creation was acknowledged and that are not known to have ended."""
        self.ended: dict[str, str] = {}
        self._results: dict[tuple[str, int], str] = {}
        self._settled: Counter[str] = Counter()
        self._points: set[tuple[int, bytes]] = set()
        self.artifacts: dict[str, int] = {}
        """Acknowledged uploads: SHA-256 and bytes."""
        self._leaves: list[bytes] = []
        self._paid: dict[str, set[int]] = {}

    # ---- while faults happen

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what the ledger says of tasks, results and checkpoints, whenever it says anything."""
        stop, broken = threading.Event(), list[Violation]()

        def watch() -> None:
            with Client(self._client.profile, timeout=2.0, retry_for=0.0) as client:
                while not stop.wait(LOOK_EVERY_S):
                    try:
                        self._look(client)
                    except Violation as violation:
                        broken.append(violation)
                        return
                    except MeshError:
                        continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
        if broken:
            raise broken[0]

    def _look(self, client: Client) -> None:
        note = client.ledger("GetCheckpoint", pb.GetCheckpointRequest()).checkpoint.note
        point = open_checkpoint(note, self._verifier, self._origin)
        require(point.size >= max((size for size, _ in set(self._points)), default=0), "C",
                f"a checkpoint of {point.size} blocks comes after a longer one")  # fmt: skip
        self._points.add((point.size, point.root))
        for task_id in list(self.open):
            escrow = client.ledger("GetEscrow", pb.GetEscrowRequest(task_id=task_id)).escrow
            require(escrow.jobs_settled >= self._settled[task_id], "C",
                    f"{task_id[:8]} had {self._settled[task_id]} settled jobs and has {escrow.jobs_settled}")
            self._settled[task_id] = escrow.jobs_settled
            with contextlib.suppress(NotFound):  # not settled yet
                job = self._random.randrange(max(escrow.jobs, 1))
                found = client.ledger("GetResult", pb.GetResultRequest(task_id=task_id, job=job)).result.result_hash
                require(self._results.setdefault((task_id, job), found) == found, "C",
                        f"job {job} of {task_id[:8]} has another result than before")

    # ---- after

    def check(self, timeout_s: float = 60.0) -> None:
        """All of them, once every task of the run has had `timeout_s` to end. Raises Violation."""
        fresh = self._end(timeout_s)
        self._follow_the_log()
        self._money()
        for task in fresh:
            self._as_the_ledger_says(task)
        self._still_there()

    def _end(self, timeout_s: float) -> list[Task]:
        """L: everything accepted ends."""
        fresh: list[Task] = []
        # Looks are counted instead of seconds, so that a machine that stands still does not break the law.
        for _ in range(round(timeout_s / LOOK_EVERY_S)):
            for task_id in list(self.open):
                task = self._task(task_id)
                if task.status in TERMINAL:
                    self.open.discard(task_id)
                    self.ended[task_id] = task.status
                    fresh.append(task)
            if not self.open:
                return fresh
            time.sleep(LOOK_EVERY_S)
        raise Violation("L", f"after {timeout_s:.0f} s these have not ended: {sorted(self.open)}")

    def _task(self, task_id: str) -> Task:
        try:
            return self._client.get(task_id)
        except NotFound:
            raise Violation("C", f"task {task_id} was acknowledged and is gone") from None

    def _supply(self) -> pb.GetSupplyResponse:
        found: pb.GetSupplyResponse = self._client.ledger("GetSupply", pb.GetSupplyRequest())
        return found

    def _money(self) -> None:
        """S, with nobody at work: nothing waits for a dispute window, and the accounts add up."""
        until = time.monotonic() + 20
        while True:
            supply = self._supply()
            require(conserved(supply) and supply.minted_units == self._minted, "S", f"{supply}, minted {self._minted}")
            if not supply.maturing_units:
                break
            require(time.monotonic() < until, "L", f"rewards never mature: {supply}")
            time.sleep(0.02)
        accounts = self._client.ledger("ListAccounts", pb.ListAccountsRequest(page_size=PAGE))
        total = sum(one.balance_units for one in accounts.accounts)
        require(total == supply.accounts_units, "S", f"accounts hold {total}, the supply says {supply.accounts_units}")
        require(not supply.escrowed_units, "S", f"every task has ended and {supply.escrowed_units} are in escrow")

    def _follow_the_log(self) -> None:
        """R: the headers that are new link to those before, hold the results they name, and make every checkpoint that
        was seen. P: no job is in two results."""
        seen = set(self._points)  # a watcher may see longer ones meanwhile
        note = self._client.ledger("GetCheckpoint", pb.GetCheckpointRequest()).checkpoint.note
        point = open_checkpoint(note, self._verifier, self._origin)
        require(point.size >= len(self._leaves), "C", f"the log has {point.size} blocks, {len(self._leaves)} were read")
        while len(self._leaves) < point.size:
            page = self._client.ledger("ListEntries", pb.ListEntriesRequest(start=len(self._leaves), count=256)).entries
            for packed in page[: point.size - len(self._leaves)]:
                header = statement.Header.unpack(packed)
                require(header.height == len(self._leaves), "R", f"header {header.height} stands elsewhere")
                previous = self._leaves[-1] if self._leaves else bytes(32)
                require(header.previous == previous, "R", f"block {header.height} does not link to its predecessor")
                self._leaves.append(header.block_hash)
                if header.result_count:
                    self._read_results(header)
        for size, root in {*seen, (point.size, point.root)}:
            require(merkle.root(self._leaves[:size]) == root, "R", f"the first {size} blocks are not what was signed")
        self._points -= seen
        self._points.add((point.size, point.root))

    def _read_results(self, header: statement.Header) -> None:
        packed: list[bytes] = []
        while len(packed) < header.result_count:
            request = pb.ListEntriesRequest(block_height=header.height, start=len(packed), count=256)
            packed += self._client.ledger("ListEntries", request).entries
        root = merkle.root([merkle.leaf_hash(one) for one in packed])
        require(root == header.compute_root, "R", f"the results of block {header.height} are not those it names")
        for one in packed:
            result = statement.Result.unpack(one)
            jobs = self._paid.setdefault(result.task_id.hex(), set())
            require(result.job not in jobs, "P", f"job {result.job} of {result.task_id.hex()} is settled twice")
            jobs.add(result.job)

    def _as_the_ledger_says(self, task: Task) -> None:
        """P and T: a task ended as its escrow did, each job was settled once and paid once, and nothing is left."""
        name = f"{task.task_id[:8]} ({task.challenge_type})"
        try:
            escrow = self._client.ledger("GetEscrow", pb.GetEscrowRequest(task_id=task.task_id)).escrow
        except NotFound:
            raise Violation("C", f"{name} was made when its money was held, and there is no escrow") from None
        ended = (escrow.status, escrow.refund_cause)
        require(ended == ESCROW_OF[task.status], "T", f"{name} is {task.status}, its escrow {ended}")
        spent = escrow.settled_units + escrow.refunded_units
        require(escrow.reward_units == spent, "S", f"{name} keeps {escrow.reward_units - spent} units")
        settled = self._paid.get(task.task_id, set())
        counted = escrow.jobs_settled
        require(len(settled) == counted, "P", f"{name} has {len(settled)} results, its escrow counts {counted}")
        if task.status == "completed":
            require(settled == set(range(task.jobs_total)), "P", f"{name} completed with {len(settled)} jobs")
            for file in task.artifacts:
                self.artifacts[file.digest] = file.size

    def _still_there(self, most: int = 40) -> None:
        """C and T, of what was acknowledged lately and of some of what was earlier."""
        for (task_id, job), result_hash in self._results.items():
            request = pb.GetResultRequest(task_id=task_id, job=job)
            found = self._client.ledger("GetResult", request).result.result_hash
            require(found == result_hash, "C", f"job {job} of {task_id[:8]} has another result than was told")
        self._results.clear()
        earlier = list(self.ended.items())
        for task_id, status in {*earlier[-5:], *self._random.sample(earlier, min(most, len(earlier)))}:
            now = self._task(task_id).status
            require(now == status, "T", f"{task_id[:8]} was {status} and is {now}")
        for digest, size in self.artifacts.items():
            try:
                data = self._client.read_artifact(digest)
            except NotFound:
                raise Violation("C", f"artifact {digest} of {size} bytes was acknowledged and is gone") from None
            require(sha256(data).hexdigest() == digest, "C", f"artifact {digest} is served damaged")
        self.artifacts.clear()

    def receipt(self, task_id: str) -> None:
        """R: a third party accepts what the mesh says of a completed task."""
        checks = self._client.verify(self._client.receipt(task_id))
        require(accepted(checks), "R", f"{task_id[:8]}: {[check for check in checks if not check.ok]}")

    def remembered(self, most: int = 30) -> Remembered:
        """What the ledger answers now, with nobody at work."""
        asked: list[tuple[str, Any]] = [
            ("GetSupply", pb.GetSupplyRequest()), ("ListAccounts", pb.ListAccountsRequest(page_size=PAGE)),
            ("GetCheckpoint", pb.GetCheckpointRequest()),
        ]  # fmt: skip
        for task_id in self._random.sample(sorted(self._paid), min(most, len(self._paid))):
            asked.append(("GetEscrow", pb.GetEscrowRequest(task_id=task_id)))
            for job in sorted(self._paid[task_id])[:most]:
                asked.append(("GetResult", pb.GetResultRequest(task_id=task_id, job=job)))
        return Remembered([(method, request, self._client.ledger(method, request)) for method, request in asked])


@dataclass(frozen=True)
class Remembered:
    """Questions and their answers."""

    answers: list[tuple[str, Any, Any]]

    def still_served(self, client: Client) -> None:
        """Each question has the same answer, or none: nothing else is ever served."""
        for method, request, answer in self.answers:
            with contextlib.suppress(MeshError):
                found = client.ledger(method, request)
                require(found == answer, "C", f"{method} {request} is answered otherwise than before")
