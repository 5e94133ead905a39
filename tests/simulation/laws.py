"""The invariants L P S R C T of the design, watched from outside the cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger.block import SealedBlock
from ledger.evidence import Assign, Examined, Settle
from ledger.state import Effects, Phase
from market.states import TERMINAL, Status

if TYPE_CHECKING:
    from tests.simulation.ledger_node import Fold
    from tests.simulation.mesh import Mesh


class Violation(AssertionError):
    """A law is broken."""

    def __init__(self, law: str, text: str) -> None:
        super().__init__(law, text)
        self.law = law

    def __str__(self) -> str:
        return ": ".join(self.args)


def require(holds: object, law: str, text: str) -> None:
    """Raises Violation unless it holds."""
    if not holds:
        raise Violation(law, text)


class Laws:
    """What was promised so far, and whether it is kept."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.accepted: set[bytes] = set()
        """Tasks whose creation was acknowledged."""
        self.answered: set[bytes] = set()
        """Transactions the ledger said were applied."""
        self.sent: dict[str, set[bytes]] = {}
        """Settlements that left each orchestrator."""
        self.ended: dict[bytes, Status] = {}
        self.nonces: dict[tuple[bytes, int], bytes] = {}

    # ---- the ledger

    def applied(self, fold: Fold, examined: Examined, effects: Effects) -> None:
        """P and S, after each transaction of the fold."""
        state = fold.chain.state
        parts = sum(one.balance for one in state.accounts.values())
        parts += state.escrowed + state.maturing + state.staked + state.burned
        require(parts == state.minted, "S", f"{parts} units are somewhere, {state.minted} were minted")
        body, signer = examined.transaction.body, examined.transaction.public_key
        if not effects.number:
            return
        if isinstance(body, Assign):
            fold.assigned[body.assignment.task_id] = (body.assignment.epoch, body.assignment.orchestrator_key)
        if not isinstance(body, Settle):
            return
        refused = {one.position for one in effects.refusals}
        rows = [row for batch in examined.batches for row in batch.rows]
        for row in (row for at, row in enumerate(rows) if at not in refused):
            name = f"job {row[2]} of {row[1].hex()[:8]}"
            require((row[1], row[2]) not in fold.paid, "P", f"{name} is settled twice")
            fold.paid.add((row[1], row[2]))
            require(fold.assigned.get(row[1]) == (row[3], signer), "P",
                    f"{name} is settled in epoch {row[3]}, under a lease that had ended")  # fmt: skip

    def sealed(self, ours: SealedBlock, stored: SealedBlock, previous: bytes) -> None:
        """R: the replay from the log makes the same header, linked to the one before."""
        require(ours.header == stored.header, "R", f"block {ours.height} replays to another header")
        require(previous in ours.header, "R", f"block {ours.height} does not link to its predecessor")

    # ---- after every step

    def check(self) -> None:
        """L, C and T over everything that was promised."""
        market, ledger = self.mesh.market, self.mesh.ledger
        for task_id in self.accepted:
            status = market.status(task_id)
            require(status is not None, "C", f"task {task_id.hex()[:8]} was acknowledged and is gone")
            assert status is not None
            before = self.ended.get(task_id)
            if before is not None:
                require(status == before, "T", f"task {task_id.hex()[:8]} was {before.name}, is {status.name}")
            elif status in TERMINAL:
                self.ended[task_id] = status
                self._as_the_ledger_says(task_id, status)
            elif market.up:
                live = task_id in market.core.book.tasks or market.ending(task_id)
                require(live, "L", f"task {task_id.hex()[:8]} is {status.name} and nobody minds it")
        lost = self.answered - ledger.stored.numbers.keys()
        require(not lost, "C", f"the ledger answered {len(lost)} transactions that it does not have")

    def _as_the_ledger_says(self, task_id: bytes, status: Status) -> None:
        phase = self.mesh.ledger.stored.chain.state.escrows[task_id].phase
        wanted = {Phase.SETTLED: Status.COMPLETED, Phase.CANCELLED: Status.CANCELLED, Phase.FAILED: Status.FAILED,
                  Phase.EXPIRED: Status.EXPIRED}.get(phase)  # fmt: skip
        require(status == wanted, "T", f"task {task_id.hex()[:8]} ended {status.name}, its escrow is {phase.name}")

    def told(self, task_id: bytes, job: int) -> None:
        """C: a worker heard SETTLED."""
        require((task_id, job) in self.mesh.ledger.stored.paid, "C",
                f"a worker was told that job {job} of {task_id.hex()[:8]} is settled, and it is not")  # fmt: skip

    def committed(self, key: bytes, nonce: int, row: bytes) -> None:
        """P: a worker never signs two commitments with one nonce."""
        before = self.nonces.setdefault((key, nonce), row)
        require(before == row, "P", f"nonce {nonce} was used twice")

    def restarted(self, name: str, known: set[bytes]) -> None:
        """C: what an orchestrator sent to be settled it knows after a crash."""
        lost = self.sent.get(name, set()) - known
        require(not lost, "C", f"{name} forgot {len(lost)} settlements that it had sent")

    def at_the_end(self) -> None:
        """L: with all faults mended and time enough, every accepted task is terminal."""
        for task_id in self.accepted:
            status = self.mesh.market.status(task_id)
            task = self.mesh.market.core.book.tasks.get(task_id)
            require(status in TERMINAL, "L", f"task {task_id.hex()[:8]} never ends: {task}")
