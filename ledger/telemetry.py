"""What the ledger tells of itself: blocks, results, supply, and the span in which a traced submission got its block."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from computemesh.service import tracing
from ledger.store import Row, Rows

MAX_TRACED = 4096

_BLOCKS = Counter("computemesh_blocks", "Blocks sealed.")
_HEIGHT = Gauge("computemesh_block_height", "Height of the newest durable block.")
_TRANSACTIONS = Counter("computemesh_transactions", "Transactions applied.")
_RESULTS = Counter("computemesh_results", "Results settled.")
_QUEUED = Gauge("computemesh_ledger_queue_bytes", "Bytes of submissions that wait to be applied.")
_SUPPLY = Gauge("computemesh_supply_units", "Base units (1 CPC = 10^6) by where they are.", ["where"])
_WHERE = [_SUPPLY.labels(where) for where in ("minted", "escrowed", "burned", "maturing", "staked")]


class Telemetry:
    """One writer's, told once per commit."""

    def __init__(self, supply: Row) -> None:
        """`supply`: the totals as the ledger starts with them, as their table has them."""
        _show(supply)
        # (last transaction number, traceparent, Unix ns) of traced submissions whose block is not sealed yet.
        self._open: list[tuple[int, str, int]] = []

    def durable(self, rows: Rows, queued_bytes: int) -> None:
        """A group was committed."""
        _TRANSACTIONS.inc(len(rows.transactions))
        _RESULTS.inc(sum(len(jobs) for _, jobs, _ in rows.results))
        _QUEUED.set(queued_bytes)
        if rows.supply:
            _show(rows.supply[-1])
        if rows.blocks:
            _BLOCKS.inc(len(rows.blocks))
            _HEIGHT.set(rows.blocks[-1][0])

    def traced(self, traceparent: str, last: int) -> None:
        """A submission whose newest applied transaction is `last` belongs to this trace; 0: none was applied."""
        if traceparent and last and len(self._open) < MAX_TRACED:
            self._open.append((last, traceparent, time.time_ns()))

    def sealed(self, blocks: Sequence[Row]) -> None:
        """These blocks, (height, last transaction, ..), are durable: each traced submission in them gets its span."""
        for height, last, *_ in blocks if self._open else ():
            for _, traceparent, began_ns in [one for one in self._open if one[0] <= last]:
                tracing.record("block", [traceparent], began_ns, {"height": height, "last_transaction": last})
            self._open = [one for one in self._open if one[0] > last]


def _show(supply: Row) -> None:
    for gauge, units in zip(_WHERE, supply, strict=False):  # the row goes on with what is no amount
        gauge.set(units)
