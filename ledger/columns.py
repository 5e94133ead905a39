"""Commitments of one task as columns: whether all of them may be settled, and what that changes, without an object for
each.

This only ever says yes where `settling`, going result by result, would refuse none. PURE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from computemesh.trust.statement import COMMITMENT_SIZE
from ledger.state import WINDOW, WINDOW_MASK, Escrow, Window

FEW = 16
"""Results up to which going one by one costs less."""

_TASK, _WORKER = slice(1, 33), slice(45, 78)
_NUMBERS = np.dtype({
    "names": ["job", "epoch", "nonce"], "formats": [">u4", ">u4", ">u8"], "offsets": [33, 37, 110],
    "itemsize": COMMITMENT_SIZE})  # fmt: skip


def runs(commitments: bytes) -> list[tuple[int, int]]:
    """[first, last + 1) of neighbours that are of one task; few commitments are one run, of whatever tasks."""
    count = len(commitments) // COMMITMENT_SIZE
    if count <= FEW:
        return [(0, count)]
    tasks = np.frombuffer(commitments, np.uint8).reshape(count, COMMITMENT_SIZE)[:, _TASK]
    if tasks.tobytes() == commitments[_TASK] * count:
        return [(0, count)]
    edges = (np.flatnonzero((tasks[1:] != tasks[:-1]).any(axis=1)) + 1).tolist()
    return list(zip([0, *edges], [*edges, count], strict=True))


@dataclass(frozen=True, slots=True)
class Run:
    """Commitments that all agree in task, worker and epoch, with jobs that are all different and nonces that ascend."""

    jobs: NDArray[np.int64]
    nonces: NDArray[np.uint64]
    epoch: int

    @classmethod
    def read(cls, commitments: bytes, worker_key: bytes) -> Run | None:
        """The run that these commitments of one task are, if they are by `worker_key`; else None."""
        packed = np.frombuffer(commitments, np.uint8).reshape(-1, COMMITMENT_SIZE)
        if packed[:, _WORKER].tobytes() != worker_key * len(packed):
            return None
        rows = np.frombuffer(commitments, _NUMBERS)
        jobs, nonces, epochs = rows["job"].astype(np.int64), rows["nonce"].astype(np.uint64), rows["epoch"]
        if (epochs != epochs[0]).any() or (nonces[1:] <= nonces[:-1]).any():
            return None
        if (jobs[1:] <= jobs[:-1]).any() and len(np.unique(jobs)) != len(jobs):
            return None
        return cls(jobs, nonces, int(epochs[0]))

    def new_in(self, escrow: Escrow) -> bool:
        """Whether all its jobs are the task's, and none is settled."""
        if int(self.jobs.max()) >= escrow.jobs:
            return False
        seen = np.frombuffer(escrow.seen, np.uint8)
        inside = self.jobs[self.jobs < 8 * len(seen)]
        return not (seen[inside >> 3] >> (inside & 7) & 1).any()

    def mark(self, escrow: Escrow) -> None:
        """Notes that its jobs are settled."""
        missing = (int(self.jobs.max()) >> 3) + 1 - len(escrow.seen)
        if missing > 0:
            escrow.seen.extend(bytes(missing))
        bits: Any = np.left_shift(1, self.jobs & 7).astype(np.uint8)
        np.bitwise_or.at(np.frombuffer(escrow.seen, np.uint8), self.jobs >> 3, bits)

    def one_unit_more(self, escrow: Escrow) -> int:
        """How many of its jobs are worth reward // jobs + 1; the others are worth reward // jobs (`job_reward`)."""
        rest = escrow.reward % escrow.jobs  # below 2^20, as the jobs are: products stay below 2^40
        return int((rest * (self.jobs + 1) // escrow.jobs - rest * self.jobs // escrow.jobs).sum())

    def unseen(self, window: Window) -> bool:
        """Whether `window` would take all nonces."""
        ages = np.uint64(window.highest) - self.nonces[: self._behind(window)]
        if not len(ages):
            return True
        return bool(ages[-1] > 0 and ages[0] <= WINDOW) and not window.below & _mask(ages.astype(np.int64) - 1)

    def take(self, window: Window) -> None:
        """Marks nonces that are all unseen: `Window.take` of each in order."""
        behind, last = self._behind(window), int(self.nonces[-1])
        if behind:
            window.below |= _mask((np.uint64(window.highest) - self.nonces[:behind]).astype(np.int64) - 1)
        if behind < len(self.nonces):
            ahead = last - window.highest
            below = (window.below << ahead | 1 << (ahead - 1)) & WINDOW_MASK if ahead <= WINDOW else 0
            window.below = below | _mask((self.nonces[-1] - self.nonces[behind:-1]).astype(np.int64) - 1)
            window.highest = last

    def _behind(self, window: Window) -> int:
        """How many nonces are not above the highest so far: the first ones, as they ascend."""
        return int(np.searchsorted(self.nonces, np.uint64(window.highest), side="right"))


def _mask(bits: NDArray[np.int64]) -> int:
    """The integer with these bits, those outside the window left out."""
    marked = np.zeros(WINDOW, np.uint8)
    marked[bits[(bits >= 0) & (bits < WINDOW)]] = 1
    return int.from_bytes(np.packbits(marked, bitorder="little").tobytes(), "little")
