"""Escrows that ended leave memory once their table has them, and come back when somebody asks for one.

So memory grows with the open tasks and not with all there ever were. Who holds the fold says when rows are written and
when they are durable; PURE but for `load`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ledger import core
from ledger.block import Chain
from ledger.state import OPEN_PHASES, Escrow


class Archive:
    """Over the fold of one chain. `load` reads an ended escrow that was put away, None where there is none."""

    def __init__(self, chain: Chain, load: Callable[[bytes], Escrow | None]) -> None:
        self._chain = chain
        self._writes = self._durable = 0
        # (number of the write, height of the open block then, task), and each task's newest write.
        self._ended: deque[tuple[int, int, bytes]] = deque()
        self._newest: dict[bytes, int] = {}
        chain.state.escrows.archived = self._loaded
        self._load = load
        self._enter(list(chain.state.escrows))

    def written(self, touched: Iterable[bytes]) -> None:
        """The rows of these escrows, as they stand, are on their way to the table."""
        self._writes += 1
        self._enter(touched)

    def durable(self) -> None:
        """One more of the writes can be read back, in order."""
        self._durable += 1

    def put_away(self) -> None:
        """Lets go of what ended. Not while the fold is in the middle of a group.

        The blocks in which a dispute may ask for it pass before: that is cheaper than to read it back, no more.
        """
        state, ended = self._chain.state, self._ended
        while ended and ended[0][0] <= self._durable and ended[0][1] + state.rules.dispute_window_blocks < state.height:
            write, _, task_id = ended.popleft()
            if self._newest.get(task_id) == write:
                del self._newest[task_id]
                core.put_away(state, task_id)

    def _loaded(self, task_id: bytes) -> Escrow | None:
        found = self._load(task_id)
        if found is not None:
            self._note(task_id)
        return found

    def _enter(self, task_ids: Iterable[bytes]) -> None:
        escrows = self._chain.state.escrows
        for task_id in task_ids:
            if escrows[task_id].phase not in OPEN_PHASES:
                self._note(task_id)

    def _note(self, task_id: bytes) -> None:
        self._ended.append((self._writes, self._chain.state.height, task_id))
        self._newest[task_id] = self._writes
