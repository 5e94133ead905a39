"""A known defect for the ledger's process: it answers before COMMIT. Python imports this module at its start."""

from __future__ import annotations

import sys
import time
from typing import Any

if "ledger" in sys.argv or "ledger" in sys.orig_argv:
    from computemesh.service import store

    def run_group(self: Any, work: Any) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        values = [operation(self._connection) for operation, _, _, _ in work]
        for (_, _, loop, future), value in zip(work, values, strict=True):
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(store._resolve, [(future, value)])
        time.sleep(0.05)
        store.crash_point("commit.written")
        self._connection.execute("COMMIT")

    store.GroupCommit._run_group = run_group  # type: ignore[method-assign]
