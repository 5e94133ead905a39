"""The market's gRPC face for customers: requests in, core and store asked, messages out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import struct
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import grpc

from computemesh import workloads
from computemesh.service.artifacts import Artifacts
from computemesh.service.crashpoints import crash_point
from computemesh.service.limits import Rates
from computemesh.trust.errors import InvalidArgument, InvalidState, TaskNotFound, Unauthorized, Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import market_pb2, market_pb2_grpc
from market import opportunities, orders, quotes, store, views
from market.acts import Acts
from market.batch import Batch
from market.callers import Callers
from market.config import Config
from market.creation import Creation
from market.dispatch import DispatchStream
from market.engine import Engine
from market.events import Events
from market.functions import Functions
from market.models import Models
from market.pools import Pools
from market.quota import Quota
from market.refusals import refuse
from market.states import TERMINAL, Cancel, Spec, State, Status
from market.webhooks import Webhooks

DEFAULT_PAGE = 50
CANCEL_TIMEOUT_S = 15.0
_EVENTS_AT_ONCE = 500
_TOKEN = struct.Struct(">q8s")

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class MarketService(market_pb2_grpc.MarketServiceServicer):
    """Every RPC of the contract; what each may answer stands there."""

    def __init__(
        self, config: Config, key: PrivateKey, callers: Callers, engine: Engine, artifacts: Artifacts | None = None
    ) -> None:
        self._config = config
        self._key = key
        self._callers = callers
        self._engine = engine
        self._models = Models(engine, artifacts)
        self._functions = Functions()
        self._acts = Acts(engine, config.chain_id)
        rates = Rates(config.tasks_per_s, config.tasks_burst, "tasks")
        quota = Quota(rates, config.open_tasks, lambda customer: engine.core.book.open[customer])
        self.creation = Creation(engine, config.chain_id, key, self._models, self._functions, artifacts, quota)
        self._batch = Batch(engine, self.creation, self._acts)
        self._pools = Pools(engine)
        self.events = Events(engine, key, config.chain_id)
        self.webhooks = Webhooks(engine, self.events, config.webhook_networks)

    async def GetMarket(self, request: market_pb2.GetMarketRequest, context: Context) -> market_pb2.GetMarketResponse:
        return market_pb2.GetMarketResponse(
            chain_id=self._config.chain_id, market_key=self._key.public.hex(), challenge_types=workloads.names(),
            ledger_address=self._config.ledger, ledger_vkey=await self._engine.ledger.vkey(),
            now_ms=self._engine.clock())

    async def GetCaller(self, request: market_pb2.GetCallerRequest, context: Context) -> market_pb2.GetCallerResponse:
        caller = self._callers.identify(context, self._engine.clock())
        return market_pb2.GetCallerResponse(address=caller.address, market_held=caller.account is not None)

    async def CreateTask(
        self, request: market_pb2.CreateTaskRequest, context: Context
    ) -> market_pb2.CreateTaskResponse:
        caller = self._callers.identify(context, self._engine.clock())
        spec, state = await self.creation.create(request, caller)
        return market_pb2.CreateTaskResponse(task=views.task(spec, state))

    async def CreateTasks(
        self, request: market_pb2.CreateTasksRequest, context: Context
    ) -> market_pb2.CreateTasksResponse:
        return await self._batch.create(request, self._callers.identify(context, self._engine.clock()))

    async def SubmitAct(self, request: market_pb2.SubmitActRequest, context: Context) -> market_pb2.SubmitActResponse:
        return await self._acts.submit(request, self._callers.identify(context, self._engine.clock()))

    async def QuoteTask(self, request: market_pb2.QuoteTaskRequest, context: Context) -> market_pb2.QuoteTaskResponse:
        self._callers.identify(context, self._engine.clock())
        names = orders.names_in(request.challenge_type, request.payload)
        task_type = workloads.get(request.challenge_type)
        _, values = orders.payload_of(request.payload)
        params = orders.parse(task_type, values, await self._models.digests(names))
        if task_type.call is not None:
            await self._functions.check(task_type.call(params))
        return quotes.quote(task_type, params, [one for asks in self._engine.asks.values() for one in asks])

    async def GetTask(self, request: market_pb2.GetTaskRequest, context: Context) -> market_pb2.GetTaskResponse:
        spec, state = await self._own_task(request.task_id, context, judges=True)
        return market_pb2.GetTaskResponse(task=views.task(spec, state))

    async def ListTasks(self, request: market_pb2.ListTasksRequest, context: Context) -> market_pb2.ListTasksResponse:
        caller = self._callers.identify(context, self._engine.clock())
        if request.page_token and request.offset:
            raise refuse("offset", "and page_token cannot both be set; prefer page_token")
        filters = _filters_digest(caller.address, request)
        before = _read_token(request.page_token, filters) if request.page_token else 0
        limit = request.limit or DEFAULT_PAGE
        tasks, total, last = await self._engine.group.read(lambda c: store.list_tasks(
            c, caller.address, request.status, request.challenge_type, before, request.offset, limit))
        token = base64.urlsafe_b64encode(_TOKEN.pack(last, filters)).decode() if last else ""
        return market_pb2.ListTasksResponse(
            tasks=[views.task(*stored) for stored in tasks], next_page_token=token, total=total)

    async def WatchTask(
        self, request: market_pb2.WatchTaskRequest, context: Context
    ) -> AsyncIterator[market_pb2.WatchTaskResponse]:
        spec, state = await self._own_task(request.task_id, context)
        if request.cursor > state.cursor:
            raise refuse("cursor", f"{request.cursor} is beyond the task's last event, {state.cursor}")
        watcher = self._engine.watch(spec.task_id)
        cursor, behind, seen = request.cursor, True, views.task(spec, state)
        try:
            while True:
                if behind:
                    read = partial(store.events_after, task_id=spec.task_id, cursor=cursor, limit=_EVENTS_AT_ONCE)
                    changes = await self._engine.group.read(read)
                    behind = len(changes) == _EVENTS_AT_ONCE
                    events = [views.event(spec, change) for change in changes]
                else:
                    if not (watcher.queue or watcher.lagging or watcher.partial or self._engine.stopping):
                        watcher.wake.clear()
                        await watcher.wake.wait()
                    if self._engine.stopping:
                        raise Unavailable(
                            f"the market is stopping; resume with cursor {cursor}", retry_after_ms=1000,
                            metadata={"cursor": str(cursor)})
                    behind, watcher.lagging = watcher.lagging, False
                    events = [item.message(spec) for item in watcher.queue]
                    watcher.queue.clear()
                for event in events:
                    if event.cursor > cursor:
                        cursor, seen = event.cursor, event.task
                        yield event
                    if int(event.task.status) in TERMINAL:
                        return
                if not events and state.status in TERMINAL:
                    return  # the terminal event itself was seen before
                if watcher.partial and not behind:
                    text, watcher.partial = watcher.partial, ""
                    yield views.partial(seen, cursor, self._engine.clock(), text)
        finally:
            self._engine.unwatch(spec.task_id, watcher)

    async def CancelTask(
        self, request: market_pb2.CancelTaskRequest, context: Context
    ) -> market_pb2.CancelTaskResponse:
        spec, state = await self._own_task(request.task_id, context)
        if state.status not in TERMINAL:
            state = await self._cancel(spec)
            crash_point("market.cancel.done")
        if state.status is not Status.CANCELLED:
            raise InvalidState(
                f"task {request.task_id} cannot be cancelled: it is {state.status.name}",
                metadata={"task_id": request.task_id, "status": state.status.name})
        return market_pb2.CancelTaskResponse(task=views.task(spec, state))

    async def _cancel(self, spec: Spec) -> State:
        """Asks for the end and waits for the ledger's word on it."""
        watcher = self._engine.watch(spec.task_id)
        try:
            crash_point("market.cancel.asked")
            await self._engine.do(Cancel(spec.task_id))
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                while True:
                    found = await self._engine.group.read(lambda c: store.task(c, spec.task_id))
                    assert found is not None
                    if found[1].status in TERMINAL:
                        return found[1]
                    await watcher.wake.wait()
                    watcher.wake.clear()
                    watcher.queue.clear()
        except TimeoutError:
            raise Unavailable(
                f"the cancellation of task {spec.task_id.hex()} is recorded and will be done, but the ledger at "
                f"{self._config.ledger} has not confirmed it yet", retry_after_ms=2000,
                reason="LEDGER_UNAVAILABLE") from None
        finally:
            self._engine.unwatch(spec.task_id, watcher)

    async def RegisterModel(
        self, request: market_pb2.RegisterModelRequest, context: Context
    ) -> market_pb2.RegisterModelResponse:
        return await self._models.register(request, self._callers.identify(context, self._engine.clock()))

    async def GetModel(self, request: market_pb2.GetModelRequest, context: Context) -> market_pb2.GetModelResponse:
        self._callers.identify(context, self._engine.clock())
        return await self._models.get(request)

    async def ListModels(
        self, request: market_pb2.ListModelsRequest, context: Context
    ) -> market_pb2.ListModelsResponse:
        self._callers.identify(context, self._engine.clock())
        return await self._models.page(request)

    async def ListFunctions(
        self, request: market_pb2.ListFunctionsRequest, context: Context
    ) -> market_pb2.ListFunctionsResponse:
        self._callers.identify(context, self._engine.clock())
        found, token = self._functions.page(request.page_size, request.page_token)
        return market_pb2.ListFunctionsResponse(functions=found, next_page_token=token)

    async def ListPools(self, request: market_pb2.ListPoolsRequest, context: Context) -> market_pb2.ListPoolsResponse:
        self._callers.identify(context, self._engine.clock())
        return await self._pools.page(request)

    async def ListOpportunities(
        self, request: market_pb2.ListOpportunitiesRequest, context: Context
    ) -> market_pb2.ListOpportunitiesResponse:
        self._callers.identify(context, self._engine.clock())
        return opportunities.find(self._engine.core.book, request)

    async def WatchEvents(
        self, request: market_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[market_pb2.WatchEventsResponse]:
        self._callers.identify(context, self._engine.clock())
        async for event in self.events.watch(request.cursor, request.filter, request.only_past):
            yield market_pb2.WatchEventsResponse(event=event)

    async def AddWebhook(
        self, request: market_pb2.AddWebhookRequest, context: Context
    ) -> market_pb2.AddWebhookResponse:
        return await self.webhooks.add(request, self._callers.identify(context, self._engine.clock()))

    async def ListWebhooks(
        self, request: market_pb2.ListWebhooksRequest, context: Context
    ) -> market_pb2.ListWebhooksResponse:
        return await self.webhooks.list(self._callers.identify(context, self._engine.clock()))

    async def RemoveWebhook(
        self, request: market_pb2.RemoveWebhookRequest, context: Context
    ) -> market_pb2.RemoveWebhookResponse:
        return await self.webhooks.remove(request, self._callers.identify(context, self._engine.clock()))

    async def Dispatch(
        self, requests: AsyncIterator[market_pb2.DispatchRequest], context: Context
    ) -> None:
        await DispatchStream(self._config, self._key, self._engine, self._functions, context).serve(requests)

    async def _own_task(self, task_id: str, context: Context, judges: bool = False) -> tuple[Spec, State]:
        """The caller's task; with `judges` a validator's too, while it is contested. Raises Unauthenticated,
        TaskNotFound, Unauthorized."""
        caller = self._callers.identify(context, self._engine.clock())
        found = await self._engine.group.read(lambda c: store.task(c, bytes.fromhex(task_id)))
        if found is None:
            raise TaskNotFound(f"no task {task_id} in this market", metadata={"task_id": task_id})
        mine = found[0].customer == caller.address
        if not mine and not (judges and await self._engine.ledger.may_judge(task_id, caller.address)):
            raise Unauthorized(
                f"task {task_id} belongs to another customer than the caller, {caller.address}",
                metadata={"task_id": task_id, "caller": caller.address})
        return found


def _filters_digest(customer: str, request: market_pb2.ListTasksRequest) -> bytes:
    return sha256(f"{customer} {request.status} {request.challenge_type}".encode()).digest()[:8]


def _read_token(token: str, filters: bytes) -> int:
    try:
        before, bound = _TOKEN.unpack(base64.urlsafe_b64decode(token))
    except (binascii.Error, struct.error, ValueError):
        raise refuse("page_token", f"{token[:80]!r} is not a token of this market") from None
    if bound != filters:
        raise refuse("page_token", "belongs to a list with other filters or of another caller")
    if before <= 0:
        raise InvalidArgument("page_token names no place", violations=[("page_token", "names no place")])
    return int(before)
