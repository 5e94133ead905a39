"""Pools: their names are kept here, what they own and whether they are active is the ledger's."""

from __future__ import annotations

import base64
import binascii
from functools import partial

from computemesh.trust.amount import format_cpc
from computemesh.v1 import market_pb2 as pb
from market import feed
from market.engine import Engine
from market.refusals import refuse

DEFAULT_PAGE = 50


class Pools:
    """Pools that were opened through this market."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def page(self, request: pb.ListPoolsRequest) -> pb.ListPoolsResponse:
        """Raises InvalidArgument, Unavailable."""
        try:
            after = base64.urlsafe_b64decode(request.page_token).decode()
        except (binascii.Error, ValueError):
            raise refuse("page_token", f"{request.page_token[:80]!r} is not a token of this market") from None
        size = request.page_size or DEFAULT_PAGE
        rows = await self._engine.group.read(
            partial(feed.pools_after, name=after, category=request.category, limit=size + 1))
        following = base64.urlsafe_b64encode(rows[size - 1].name.encode()).decode() if len(rows) > size else ""
        return pb.ListPoolsResponse(pools=[await self._shown(row) for row in rows[:size]], next_page_token=following)

    async def _shown(self, row: feed.PoolRow) -> pb.Pool:
        found = await self._engine.ledger.pool(row.name)
        return pb.Pool(
            name=row.name, category=row.category, owner=found.owner, active=found.active, address=found.address,
            balance=format_cpc(found.balance_units), opened_ms=row.opened_ms)  # fmt: skip
