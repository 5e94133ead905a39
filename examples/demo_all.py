"""One task of every type through a whole mesh on this machine, and what each leaves: `make demo-all`.

Starts ledger, market, orchestrator and two CPU workers (the second serves `examples/functions/`), publishes the tasks,
writes each task's files and its receipt into a folder of its own, verifies the receipt from that file, and looks at
the answer. Exit status 1 unless every task completed, was verified and says what it should.

    python -m examples.demo_all --output demo
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from examples.demo_tasks import CHAINS, Demo, Step, Wrong, need

FUNCTIONS = sorted(Path(__file__).parent.glob("functions/*.py"))


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    seconds: float = 0.0
    jobs: int = 0
    workers: frozenset[bytes] = frozenset()
    files: int = 0
    verified: bool = False
    note: str = ""
    problem: str = ""


def run_step(demo: Demo, step: Step) -> Row:
    """Publish, wait, fetch, verify, look. What goes wrong is in the row."""
    row, folder = Row(step.name), demo.output / step.name
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        payload = step.payload(demo)
        price = Decimal(demo.client.quote(step.challenge_type, payload).price)
        task = demo.client.run(step.challenge_type, payload, str(max(price, Decimal(10))), timeout=demo.limit_s)
        row = replace(row, seconds=(task.ended_ms - task.created_ms) / 1000, jobs=task.jobs_total)
        need(task.status == "completed", f"the task is {task.status}: {task.status_detail}")
        if task.artifacts:
            row = replace(row, files=len(demo.client.download(task.task_id, folder)))
        row = replace(row, workers=save_receipt(demo, task.task_id, folder / "receipt.json"), verified=True)
        return replace(row, note=step.look(demo, folder))
    except Exception as error:  # every task's row is shown, whatever happened to another
        if isinstance(error, Wrong):
            return replace(row, problem=str(error))
        (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        return replace(row, problem=f"{type(error).__name__}: {error}")


def save_receipt(demo: Demo, task_id: str, path: Path) -> frozenset[bytes]:
    """Write a task's receipt and verify what was written; keys of the workers that signed. Raises Wrong."""
    from computemesh.trust.receipt import Receipt, accepted
    from computemesh.trust.statement import Commitment

    path.write_text(demo.client.receipt(task_id).to_json(), "utf-8")
    receipt = Receipt.from_json(path.read_bytes())
    checks = demo.client.verify(receipt)
    bad = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    need(accepted(checks), f"the receipt does not hold: {'; '.join(bad[:3])}")
    return frozenset(Commitment.unpack(job.commitment).worker_key for job in receipt.jobs)


def run_chain(demo: Demo, chain: Sequence[Step]) -> list[Row]:
    rows: list[Row] = []
    for step in chain:
        if rows and rows[-1].problem:
            rows.append(Row(step.name, problem=f"needs {rows[-1].name}, which failed"))
        else:
            rows.append(run_step(demo, step))
        mark = "FAILED  " + rows[-1].problem if rows[-1].problem else "ok"
        print(f"  {rows[-1].name:<22} {rows[-1].seconds:6.1f} s  {mark}", flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'task':<22} {'time s':>6} {'jobs':>5} {'workers':>7} {'files':>5}  receipt   what it shows"]
    for row in rows:
        receipt = "verified" if row.verified else "NO"
        text = f"FAILED: {row.problem}" if row.problem else row.note
        numbers = f"{row.seconds:6.1f} {row.jobs:5} {len(row.workers):7} {row.files:5}"
        lines.append(f"{row.name:<22} {numbers}  {receipt:<8}  {text}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for answers and receipts (demo)")
    parser.add_argument("--only", default="", help="names of tasks, with commas; what they need comes along")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds to wait for a task at most (900)")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports JAX: this process prepares inputs with it
    wanted = set(filter(None, arguments.only.split(",")))
    chains = [chain for chain in CHAINS if not wanted or wanted & {step.name for step in chain}]
    if not chains:
        parser.error(f"--only names none of {', '.join(step.name for chain in CHAINS for step in chain)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="computemesh-demo-") as folder:
        rows, workers = run_all(Path(folder), chains, arguments.output.absolute(), arguments.limit)
    failed = sum(bool(row.problem) for row in rows)
    print(f"\n{table(rows)}\n\n{len(rows) - failed} of {len(rows)} tasks completed, verified and right; "
          f"{workers} workers, {time.monotonic() - begin:.0f} s. Answers and receipts: {arguments.output}")  # fmt: skip
    return 1 if failed or workers < 2 else 0


def run_all(data: Path, chains: Sequence[Sequence[Step]], output: Path, limit_s: float) -> tuple[list[Row], int]:
    """(rows, how many workers worked). The mesh's logs stay in the output folder."""
    from computemesh.cli.cluster import Cluster
    from computemesh.client import Client

    functions = [str(path) for path in FUNCTIONS]
    settings: dict[str, dict[str, Any]] = {"worker": {"platform": "cpu"}, "worker-2": {"functions": functions}}
    output.mkdir(parents=True, exist_ok=True)
    (data / "inputs").mkdir()
    try:
        with Cluster(data / "mesh", 2, port_base=0, overrides=settings, notice=print) as cluster:
            print(f"a mesh of {', '.join(cluster.names)} is up; {sum(map(len, chains))} tasks", flush=True)
            pool = ThreadPoolExecutor(len(chains))
            try:
                with Client(cluster.profile) as client:  # closing it ends the threads' waits
                    demo = Demo(client, output, data / "inputs", limit_s)
                    rows = [row for found in pool.map(lambda chain: run_chain(demo, chain), chains) for row in found]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        if (data / "mesh" / "logs").is_dir():
            shutil.copytree(data / "mesh" / "logs", output / "logs", dirs_exist_ok=True)
    return rows, len(set().union(*(row.workers for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
