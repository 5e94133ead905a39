"""WatchEvents: the feed as signed messages, resumable by cursor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from computemesh.trust import event
from computemesh.trust.errors import Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import market_pb2 as pb
from market import feed
from market.engine import Engine
from market.refusals import refuse

_AT_ONCE = 500


class Events:
    """The market's feed, signed with its key."""

    def __init__(self, engine: Engine, key: PrivateKey, chain: str) -> None:
        self._engine, self._key, self._chain = engine, key, chain

    async def watch(self, cursor: int, wanted: pb.EventFilter, only_past: bool) -> AsyncIterator[pb.Event]:
        """Every event after `cursor` that matches, then, unless `only_past`, new ones until the market stops. Raises
        InvalidArgument, Unavailable."""
        newest = await self._engine.group.read(feed.last_cursor)
        if cursor > newest:
            raise refuse("cursor", f"{cursor} is beyond the last event, {newest}")
        while True:
            bell = self._engine.feed.next
            rows, cursor = await self.read(cursor, wanted, _AT_ONCE)
            for row in rows:
                yield self.message(row)
            if len(rows) == _AT_ONCE:
                continue
            if only_past:
                return
            if self._engine.stopping:
                raise Unavailable(f"the market is stopping; resume with cursor {cursor}", retry_after_ms=1000,
                                  metadata={"cursor": str(cursor)})  # fmt: skip
            await bell.wait()

    async def read(self, cursor: int, wanted: pb.EventFilter, limit: int) -> tuple[list[feed.Row], int]:
        """Rows after `cursor` that match, and the cursor up to which was looked. Raises InvalidArgument."""
        try:
            task_id = bytes.fromhex(wanted.task_id)
        except ValueError:
            raise refuse("filter.task_id", f"{wanted.task_id!r} is not hexadecimal") from None
        return await self._engine.group.read(partial(
            feed.after, cursor=cursor, limit=limit, kinds=list(wanted.kinds), task_id=task_id,
            customer=wanted.customer, pool=wanted.pool))  # fmt: skip

    def message(self, row: feed.Row) -> pb.Event:
        """An event as it is told."""
        task_id = row.task_id.hex()
        packed = event.body(row.cursor, row.kind, row.time_ms, task_id, row.customer, row.pool, row.challenge_type,
                            row.jobs, row.detail)  # fmt: skip
        return pb.Event(
            cursor=row.cursor, kind=pb.EventKind.ValueType(row.kind), time_ms=row.time_ms, task_id=task_id,
            customer=row.customer, pool=row.pool, challenge_type=row.challenge_type, jobs=row.jobs, detail=row.detail,
            signature=event.sign(self._key, self._chain, packed))  # fmt: skip
