"""Webhooks: events posted to customers' URLs, in order, again with growing pauses until they are taken."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from http.client import HTTPException

import structlog
from google.protobuf import json_format

from computemesh.trust.errors import InvalidArgument, NotFound, ResourceExhausted
from computemesh.v1 import market_pb2 as pb
from market import feed, posting
from market.callers import Caller
from market.engine import Engine
from market.events import Events
from market.refusals import refuse

MOST = 16
"""Webhooks of one account."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
_AT_ONCE = 100
log = structlog.get_logger("market.webhooks")


class Webhooks:
    """Every webhook has a task of its own; where it is, is in the store after each batch that was taken."""

    def __init__(self, engine: Engine, events: Events, networks: tuple[str, ...]) -> None:
        self._engine, self._events = engine, events
        self._networks = posting.networks(networks)
        self._running: dict[bytes, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serves the webhooks there are, for ever, and prunes the feed."""
        for row in await self._engine.group.read(feed.webhooks):
            self._start(row)
        try:
            while True:
                await self._engine.group.commit(feed.prune)
                await asyncio.sleep(600)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def add(self, request: pb.AddWebhookRequest, caller: Caller) -> pb.AddWebhookResponse:
        """Raises InvalidArgument, ResourceExhausted."""
        parts = posting.read_url(request.url)
        await asyncio.to_thread(posting.resolve, parts, self._networks)
        newest = await self._engine.group.read(feed.last_cursor)
        if request.cursor > newest:
            raise refuse("cursor", f"{request.cursor} is beyond the last event, {newest}")
        wanted = request.filter
        await self._events.read(newest, wanted, 1)  # refuses what no filter may say
        if len([row for row in await self._engine.group.read(feed.webhooks) if row.owner == caller.address]) >= MOST:
            raise ResourceExhausted(f"an account may have {MOST} webhooks; remove one first")
        row = feed.WebhookRow(os.urandom(16), caller.address, request.url, wanted.SerializeToString(), request.cursor,
                              0, "")  # fmt: skip
        await self._engine.group.commit(partial(feed.put_webhook, row=row))
        self._start(row)
        return pb.AddWebhookResponse(webhook=_message(row))

    async def list(self, caller: Caller) -> pb.ListWebhooksResponse:
        """The caller's."""
        rows = await self._engine.group.read(feed.webhooks)
        return pb.ListWebhooksResponse(webhooks=[_message(row) for row in rows if row.owner == caller.address])

    async def remove(self, request: pb.RemoveWebhookRequest, caller: Caller) -> pb.RemoveWebhookResponse:
        """Raises NotFound."""
        hook = bytes.fromhex(request.id)
        if not await self._engine.group.commit(partial(feed.drop_webhook, hook=hook, owner=caller.address)):
            raise NotFound(f"you have no webhook {request.id}", reason="WEBHOOK_NOT_FOUND")
        task = self._running.pop(hook, None)
        if task is not None:
            task.cancel()
        return pb.RemoveWebhookResponse()

    def _start(self, row: feed.WebhookRow) -> None:
        self._running[row.id] = asyncio.create_task(self._serve(row))

    async def _serve(self, row: feed.WebhookRow) -> None:
        """Posts what is new, batch by batch, for ever."""
        wanted = pb.EventFilter.FromString(row.filter)
        while True:
            bell = self._engine.feed.next
            rows, cursor = await self._events.read(row.cursor, wanted, _AT_ONCE)
            if rows:
                row = await self._post(row, rows)
            elif cursor > row.cursor:
                row = row._replace(cursor=cursor)  # nothing of interest up to there; written with what is
            if not rows:
                await bell.wait()

    async def _post(self, row: feed.WebhookRow, rows: list[feed.Row]) -> feed.WebhookRow:
        """One batch: further on if it was taken, else one failure more, after its pause."""
        try:
            status = await asyncio.to_thread(
                posting.post, row.url, _body([self._events.message(one) for one in rows]), self._networks)
            problem = "" if 200 <= status < 300 else f"HTTP status {status}"
        except (OSError, HTTPException, InvalidArgument) as error:
            problem = str(error)[:200]
        if problem:
            log.info("webhook not taken", webhook=row.id.hex(), url=row.url, failures=row.failures, problem=problem)
            row = row._replace(failures=row.failures + 1, problem=problem)
        else:
            row = row._replace(cursor=rows[-1].cursor, failures=0, problem="")
        await self._engine.group.commit(partial(feed.move_webhook, row=row))
        if problem:
            await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(row.failures - 1, 16), LONGEST_PAUSE_S))
        return row


def _body(events: list[pb.Event]) -> bytes:
    """`{"events": [...]}` under the contract's field names; bytes as base64, 64-bit numbers as text."""
    rows = [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in events]
    return json.dumps({"events": rows}).encode()


def _message(row: feed.WebhookRow) -> pb.Webhook:
    return pb.Webhook(
        id=row.id.hex(), url=row.url, filter=pb.EventFilter.FromString(row.filter), cursor=row.cursor,
        failures=row.failures, problem=row.problem)  # fmt: skip
