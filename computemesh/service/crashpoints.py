"""Named places where a process can be made to die, to try what its crash leaves behind (`tests/faults`).

    COMPUTEMESH_CRASH=NAME:N   SIGKILL when the process comes to NAME for the N-th time
    COMPUTEMESH_CRASH=/FILE    NAME:N is read from FILE, where it exists, at start and at every SIGUSR1

Unset, a place costs a comparison. Places stand where messages, batches and transactions pass, not single jobs.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "COMPUTEMESH_CRASH"
LEDGER, MARKET, ORCHESTRATOR, WORKER = "ledger", "market", "orchestrator", "worker"
STORES = (LEDGER, MARKET, ORCHESTRATOR)
ARTIFACTS = (MARKET, ORCHESTRATOR)

POINTS: dict[str, tuple[str, ...]] = {
    # Shared: every service's database, and the artifact store of those that have one.
    "store.opened": STORES,
    "commit.begun": STORES,
    "commit.written": STORES,
    "commit.durable": STORES,
    "object.written": ARTIFACTS,
    "object.durable": ARTIFACTS,
    "upload.stored": ARTIFACTS,
    "upload.kept": ARTIFACTS,
    "ledger.submission.received": (LEDGER,),
    "ledger.submission.queued": (LEDGER,),
    "ledger.submission.answered": (LEDGER,),
    "ledger.fold.begins": (LEDGER,),
    "ledger.fold.done": (LEDGER,),
    "ledger.block.sealed": (LEDGER,),
    "ledger.block.durable": (LEDGER,),
    "ledger.anchor.begins": (LEDGER,),
    "ledger.anchor.written": (LEDGER,),
    "ledger.anchor.synced": (LEDGER,),
    "ledger.anchor.renamed": (LEDGER,),
    "ledger.anchor.done": (LEDGER,),
    "ledger.start.replayed": (LEDGER,),
    "ledger.start.anchored": (LEDGER,),
    "market.order.signed": (MARKET,),
    "market.order.noted": (MARKET,),
    "market.order.held": (MARKET,),
    "market.order.made": (MARKET,),
    "market.step.decided": (MARKET,),
    "market.step.durable": (MARKET,),
    "market.step.performed": (MARKET,),
    "market.transactions.leave": (MARKET,),
    "market.transactions.answered": (MARKET,),
    "market.escrow.read": (MARKET,),
    "market.orchestrator.connected": (MARKET,),
    "market.leases.leave": (MARKET,),
    "market.outcomes.arrived": (MARKET,),
    "market.acks.leave": (MARKET,),
    "market.revokes.leave": (MARKET,),
    "market.cancel.asked": (MARKET,),
    "market.cancel.done": (MARKET,),
    "market.files.released": (MARKET,),
    "market.start.restored": (MARKET,),
    "market.start.recovered": (MARKET,),
    "orchestrator.step.decided": (ORCHESTRATOR,),
    "orchestrator.step.durable": (ORCHESTRATOR,),
    "orchestrator.seed.due": (ORCHESTRATOR,),
    "orchestrator.seed.drawn": (ORCHESTRATOR,),
    "orchestrator.leases.arrived": (ORCHESTRATOR,),
    "orchestrator.lease.taken": (ORCHESTRATOR,),
    "orchestrator.jobs.leave": (ORCHESTRATOR,),
    "orchestrator.commitments.arrived": (ORCHESTRATOR,),
    "orchestrator.commitments.taken": (ORCHESTRATOR,),
    "orchestrator.openings.arrived": (ORCHESTRATOR,),
    "orchestrator.audit.judged": (ORCHESTRATOR,),
    "orchestrator.verdicts.leave": (ORCHESTRATOR,),
    "orchestrator.settlement.built": (ORCHESTRATOR,),
    "orchestrator.settlement.leaves": (ORCHESTRATOR,),
    "orchestrator.settlement.answered": (ORCHESTRATOR,),
    "orchestrator.output.kept": (ORCHESTRATOR,),
    "orchestrator.task.rooted": (ORCHESTRATOR,),
    "orchestrator.outcome.leaves": (ORCHESTRATOR,),
    "orchestrator.outcome.acknowledged": (ORCHESTRATOR,),
    "orchestrator.revokes.arrived": (ORCHESTRATOR,),
    "orchestrator.market.welcomed": (ORCHESTRATOR,),
    "orchestrator.worker.joined": (ORCHESTRATOR,),
    "orchestrator.start.restored": (ORCHESTRATOR,),
    "worker.nonce.begins": (WORKER,),
    "worker.nonce.written": (WORKER,),
    "worker.nonce.synced": (WORKER,),
    "worker.nonce.renamed": (WORKER,),
    "worker.step.decided": (WORKER,),
    "worker.step.durable": (WORKER,),
    "worker.step.sent": (WORKER,),
    "worker.message.arrived": (WORKER,),
    "worker.result.arrived": (WORKER,),
    "worker.inputs.fetched": (WORKER,),
    "worker.output.stored": (WORKER,),
    "worker.units.opened": (WORKER,),
    "worker.stream.opened": (WORKER,),
    "worker.start.opened": (WORKER,),
}
"""Every place and the services that come by it."""

_armed: str | None = None
_left = 0


def crash_point(name: str) -> None:
    """The process ends here, if it was told to."""
    if _armed is not None:
        _reach(name)


def _reach(name: str) -> None:
    global _left
    if name == _armed:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(text: str) -> None:
    """NAME:N, or nothing. Raises ValueError."""
    global _armed, _left
    name, _, times = text.strip().partition(":")
    if name and name not in POINTS:
        raise ValueError(f"{VARIABLE} names {name!r}, which is no crash point")
    _armed, _left = name or None, int(times or 1)


def _read(path: Path) -> None:
    arm(path.read_text("utf-8") if path.exists() else "")


def _begin(setting: str) -> None:
    if setting.startswith("/"):
        _read(Path(setting))
        signal.signal(signal.SIGUSR1, lambda *_: _read(Path(setting)))
    else:
        arm(setting)


_begin(os.environ.get(VARIABLE, ""))
