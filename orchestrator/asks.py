"""What the connected workers ask and how fast they were, as the market's quotes need it. PURE over the state."""

from __future__ import annotations

from computemesh import workloads
from computemesh.v1 import market_pb2
from orchestrator.state import State


def summary(state: State) -> market_pb2.AskBatch:
    """One row for every task type that some worker takes."""
    rows = []
    for name in workloads.names():
        takers = [worker for worker in state.workers.values() if not worker.types or name in worker.types]
        if not takers:
            continue
        units = sorted(worker.ask.of.get(name, worker.ask.general) for worker in takers)
        operations, took_ms = state.rates.get(name, (0, 0))
        rows.append(market_pb2.TypeAsk(
            challenge_type=name, workers=len(takers), lowest_units=units[0], median_units=units[len(units) // 2],
            operations_per_s=1000 * operations // took_ms if took_ms else 0))  # fmt: skip
    return market_pb2.AskBatch(asks=rows)
