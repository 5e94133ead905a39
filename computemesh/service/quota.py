"""How much of an artifact store one owner may have: decided when an upload is declared, before its bytes come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from computemesh.service.blobs import BlobStore, Declaration, Owner
from computemesh.service.retention import Retention
from computemesh.trust.errors import ResourceExhausted

MEASURED_FOR_S = 60.0
MAX_OWNERS = 4096


class Quota:
    """At most `limit` bytes per owner: what it holds, what it uploads now, and what broken uploads left.

    The same bytes held by two owners count for both; a second put of what one holds costs nothing. Listing what an
    owner holds takes a while, so it is done when a bound on it (what was measured last and everything since) does not
    do, and now and then because other servers stand before the same store.
    """

    def __init__(self, store: BlobStore, retention: Retention, limit: int) -> None:
        self._store, self._retention, self.limit = store, retention, limit
        self._bounds: dict[Owner, tuple[int, float]] = {}  # (bytes at most, when measured)
        self._coming: Counter[Owner] = Counter()
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def room(self, declared: Declaration, owner: Owner) -> AsyncIterator[None]:
        """Sets the declared bytes aside while the body runs. Raises ResourceExhausted / QUOTA_EXCEEDED."""
        size = declared.size
        async with self._turn:
            bound, measured_s = self._bounds.get(owner, (self.limit, 0.0))
            if bound + size > self.limit or time.monotonic() - measured_s > MEASURED_FOR_S:
                bound, measured_s, has = await self._measure(owner, declared.digest)
                size = 0 if has else size
                if bound + size > self.limit:
                    raise _exceeded(bound, size, self.limit)
            if len(self._bounds) >= MAX_OWNERS:
                self._bounds.clear()
            self._bounds[owner] = bound + size, measured_s
            self._coming[owner] += size
        try:
            yield
        finally:
            self._coming[owner] -= size
            if not self._coming[owner]:
                del self._coming[owner]

    async def _measure(self, owner: Owner, digest: str) -> tuple[int, float, bool]:
        """(bytes the owner has, now, whether it holds `digest` already)."""
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        held = [one for one in await self._retention.held(owner) if not 0 < one.expires_ms <= now_ms]
        used = sum(one.size for one in held) + self._coming[owner]
        used += await self._store.unfinished(owner, digest)
        return used, now_s, any(one.digest == digest for one in held)


def _exceeded(used: int, size: int, limit: int) -> ResourceExhausted:
    text = f"you have {used:,} of {limit:,} bytes in the store, and the artifact has {size:,}"
    figures = {"used": str(used), "size": str(size), "limit": str(limit)}
    return ResourceExhausted(f"{text}: delete some, or wait until they expire", reason="QUOTA_EXCEEDED",
                             metadata=figures)  # fmt: skip
