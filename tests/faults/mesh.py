"""A mesh of real processes that can be made to die at a named place, and work for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.config import load
from computemesh.service.crashpoints import VARIABLE
from computemesh.service.transactions import uuid7
from computemesh.trust.errors import InvalidState, MeshError, Unavailable
from ledger import startup
from ledger.config import Config as LedgerConfig
from tests.faults.laws import Laws, require

FUNCTIONS = Path(__file__).parents[2] / "examples" / "functions" / "text_service.py"
# Short leases, so that what a dead process held is soon given to another.
IMPATIENT: dict[str, dict[str, Any]] = {
    "orchestrator": {
        "worker_lease_ms": 3000, "heartbeat_interval_ms": 500, "job_lease_ms": 6000, "wrong_streak": 1000,
        "max_attempts": 1000,
    },
    "market": {"lease_ms": 4000, "heartbeat_interval_ms": 500},
    "worker": {"functions": [str(FUNCTIONS)]},
}  # fmt: skip
WORDS = ("nobody", "has", "to", "trust", "the", "seller.", "verifiable", "computation")
PATIENCE_S = 90.0
START_S = 300.0
DEADLINE_S = 6 * 3600


class Mesh:
    """One cluster that serves many runs."""

    def __init__(self, folder: Path, workers: int = 2, overrides: dict[str, dict[str, Any]] | None = None,
                 environment: dict[str, dict[str, str]] | None = None, port_base: int = 0) -> None:
        names = ["ledger", "market", "orchestrator", *(f"worker-{number}" for number in range(1, workers + 1))]
        self._orders = {name: folder / "crash" / name for name in names}
        variables = {name: {VARIABLE: str(path)} | (environment or {}).get(name, {})
                     for name, path in self._orders.items()}  # fmt: skip
        settings = {name: {**IMPATIENT.get(name, {}), **(overrides or {}).get(name, {})}
                    for name in {*IMPATIENT, *(overrides or {})}}  # fmt: skip
        (folder / "crash").mkdir(parents=True)
        self.cluster = Cluster(folder / "data", workers, port_base=port_base, overrides=settings, environment=variables,
                               start_timeout_s=START_S)  # fmt: skip

    def __enter__(self) -> Mesh:
        self.cluster.start()
        try:
            self.client = Client(self.cluster.profile, timeout=PATIENCE_S, retry_for=PATIENCE_S)
            self.client_at_once = Client(self.cluster.profile, timeout=PATIENCE_S, retry_for=0.0)
            self.laws = Laws(self.client)
            self._threads = ThreadPoolExecutor(8)
        except BaseException:
            self.cluster.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()
        self.client_at_once.close()
        self.cluster.stop()

    # ---- dying

    def arm(self, name: str, point: str, times: int) -> None:
        """The process, if it runs, dies when it comes to `point` for the n-th time from now on."""
        self._orders[name].write_text(f"{point}:{times}")
        if name in self.cluster.pids:
            os.kill(self.cluster.pids[name], signal.SIGUSR1)

    def disarm(self, name: str) -> None:
        """The next start is an ordinary one."""
        self._orders[name].unlink(missing_ok=True)

    def dead(self, name: str) -> bool:
        """Whether the process has ended."""
        return name not in self.cluster.pids

    def revive(self, name: str) -> None:
        """Start what died, in order."""
        self.disarm(name)
        if self.dead(name):
            self.cluster.start_process(name)

    # ---- work

    def beside(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Does something in a thread of its own."""
        return self._threads.submit(work, *arguments)

    def submit(self, challenge_type: str, payload: dict[str, Any], reward: str = "2.0") -> str:
        """A task, asked for under one request id until it is acknowledged; its id."""
        request_id, until = uuid7().hex(), time.monotonic() + PATIENCE_S
        deadline = int(time.time()) + DEADLINE_S
        while True:
            try:
                handle = self.client.submit(challenge_type, payload, reward, deadline, request_id=request_id)
                break
            except MeshError as error:
                # While the orchestrator or the workers are away nobody offers the function.
                passes = isinstance(error, Unavailable) or error.reason == "FUNCTION_UNKNOWN"
                if not passes or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        self.laws.open.add(handle.task_id)
        return handle.task_id

    def upload(self, data: bytes) -> None:
        """An artifact that the market acknowledged."""
        self.laws.artifacts[self.client.put_artifact(data).digest] = len(data)

    def readability(self, texts: list[str]) -> str:
        """A task whose jobs read and leave artifacts; its id."""
        lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        digest = self.client.put_artifact(lines).digest
        return self.submit("function", {"function_name": "readability", "inputs": digest, "count": len(texts),
                                        "items_per_job": 2}, "60.0")  # fmt: skip

    def cancelled(self, payload: dict[str, Any], after_s: float) -> None:
        """A task that is cancelled a moment after it was made; it may be over by then."""
        task_id = self.submit("synthetic", payload)
        time.sleep(after_s)
        with contextlib.suppress(InvalidState):
            self.client.cancel(task_id)

    def load(self, random: Random) -> list[Future[Any]]:
        """A little of everything, at once."""
        seed = str(random.random())
        texts = [" ".join(random.choices(WORDS, k=random.randint(3, 60))) for _ in range(random.randint(1, 5))]
        return [
            self.beside(self.submit, "noop", {"jobs": random.randint(1, 400)}),
            self.beside(self.submit, "synthetic", {
                "matrix_size": 64, "iterations": 1, "jobs": random.randint(1, 6), "seed": seed}),
            self.beside(self.readability, texts),
            self.beside(self.cancelled, {"matrix_size": 256, "iterations": 2, "jobs": 60, "seed": seed},
                        random.uniform(0.0, 0.3)),
            self.beside(self.upload, random.randbytes(random.choice((1, 5000, 9_000_000)))),
        ]  # fmt: skip

    # ---- after

    def fsck(self) -> None:
        """R: the ledger's own replay of its log makes the same headers and tables."""
        problems = startup.fsck(load(LedgerConfig, str(self.cluster.plan.nodes["ledger"].config), "ledger"))
        require(not problems, "R", "; ".join(problems[:3]))

