"""The asynchronous client."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from computemesh.client import receipts, results
from computemesh.client.artifacts import ArtifactInfo, AsyncArtifacts
from computemesh.client.handle import AsyncTaskHandle
from computemesh.client.model import (
    Account,
    Block,
    Function,
    Model,
    Page,
    Quote,
    Task,
    TaskEvent,
    status_number,
    struct_of,
)
from computemesh.client.orders import Deadline, Wish
from computemesh.client.profile import Profile
from computemesh.client.rpc import Pauses, Transport, meaning, signed_token
from computemesh.service import tracing
from computemesh.trust.errors import DeadlineExceeded, MeshError, Unauthenticated, Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.trust.receipt import Check, Receipt, verify
from computemesh.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    market_pb2,
    market_pb2_grpc,
    orchestrator_pb2,
    orchestrator_pb2_grpc,
    worker_pb2_grpc,
)

STREAM_S = 60.0
"""One watch stream lives at most this long and is then resumed, so that no wedged server holds a caller."""
SEAL_S = 30.0


class AsyncClient:
    """A customer of a market, and a reader of its ledger.

    `profile` is a `Profile` or a path to one; without it and without `market` the usual places are searched (see
    `computemesh.client.profile`). `api_key` names an account the market holds; `key` signs orders itself. `timeout` and
    `retry_for` are seconds, per call. Every method raises `computemesh.MeshError` or one of its kinds.
    """

    def __init__(
        self,
        profile: Profile | Path | str | None = None,
        *,
        market: str | None = None,
        ledger: str | None = None,
        api_key: str | None = None,
        key: PrivateKey | None = None,
        timeout: float = 15.0,
        retry_for: float = 10.0,
    ) -> None:
        if isinstance(profile, Profile):
            found = profile
        elif profile is None and market is not None:
            found = Profile()
        else:
            found = Profile.discover(profile)
        self.profile = found
        self._market_address = market or found.market
        self._ledger_address = ledger or found.ledger
        own = api_key is None and key is None
        self.key = (found.key() if not found.api_key else None) if own else key
        self._transport = Transport((found.api_key if own else api_key) or "", self.key, timeout, retry_for)
        self._known: market_pb2.GetMarketResponse | None = None
        self._clock_offset_ms = 0

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def __repr__(self) -> str:
        who = self.key.address if self.key else "anonymous" if self._transport.anonymous else "API key"
        return f"{type(self).__name__}(market={self._market_address!r}, as={who!r})"

    # --- tasks -----------------------------------------------------------------------------------------------------

    @tracing.rooted("submit")
    async def submit(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str = "10.0",
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
    ) -> AsyncTaskHandle:
        """Publish a task and hold its reward; it exists when this returns.

        `reward` is decimal CPC; `deadline` Unix seconds, a datetime, a timedelta from now, or None for one hour;
        `priority` 0..9, 9 first. A `request_id` (UUID) of your own makes repeating this call the same task: with no
        deadline (a client that signs needs a UUIDv7 then, its time + one hour is the deadline), or with the same
        absolute one. Raises InvalidArgument, InsufficientFunds, Conflict, Unauthenticated.
        """
        market = await self.market_info()
        now_ms = self._now_ms()
        signs = self.key is not None
        wish = Wish.of(challenge_type, payload or {}, reward, deadline, priority, request_id, now_ms, signs)
        if self.key is not None:
            request = wish.signed_request(self.key, bytes.fromhex(market.market_key), market.chain_id)
        else:
            request = wish.request()
        reply = await self._market("CreateTask", request)
        task = Task.of(reply.task)
        wish.check(task, market.chain_id, self.key)
        return AsyncTaskHandle(self, task)

    async def run(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str = "10.0",
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """`submit`, then wait until the task has ended (`timeout` in seconds). Look at its `status`."""
        handle = await self.submit(challenge_type, payload, reward, deadline, priority, request_id)
        return await handle.wait(timeout)

    async def get(self, task_id: str) -> Task:
        """A task of yours. Raises TaskNotFound, Unauthorized."""
        return Task.of((await self._market("GetTask", market_pb2.GetTaskRequest(task_id=task_id))).task)

    async def list(
        self, status: str | None = None, challenge_type: str = "", page_size: int = 0
    ) -> AsyncIterator[Task]:
        """Your tasks, newest first, page by page as you iterate. `status` is a word such as "completed"."""
        token = ""
        while True:
            page = await self.page(status, challenge_type, page_size, token)
            for task in page.tasks:
                yield task
            token = page.next_page_token
            if not token:
                return

    async def page(
        self, status: str | None = None, challenge_type: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page:
        """One page of `list`, with the number of all tasks that match. Raises InvalidArgument on a bad token."""
        request = market_pb2.ListTasksRequest(
            challenge_type=challenge_type, limit=page_size, page_token=page_token
        )
        request.status = status_number(status)  # type: ignore[assignment]
        reply = await self._market("ListTasks", request)
        return Page(tuple(Task.of(task) for task in reply.tasks), reply.next_page_token, reply.total)

    async def watch(self, task_id: str, cursor: int = 0, timeout: float | None = None) -> AsyncIterator[TaskEvent]:
        """Every event of a task after `cursor`, then new ones as they happen, up to the terminal one.

        A dropped connection is resumed where it broke: nothing is skipped or repeated. With the cursor of the terminal
        event there is none left: the iteration ends at once (asking for the status counts in `timeout`). Raises
        DeadlineExceeded after `timeout` seconds, Unavailable where the market stays away for longer than `retry_for`.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pauses = Pauses(self._transport.retry_for)
        while True:
            left = STREAM_S if until is None else min(STREAM_S, until - time.monotonic())
            if left <= 0:
                raise DeadlineExceeded(
                    f"task {task_id[:12]}.. had not ended after {timeout:g} s", metadata={"task_id": task_id}
                )
            failure: MeshError = Unavailable("the market closed the stream")
            call = await self._open_watch(task_id, cursor, left)
            silent = True
            try:
                async for event in call:
                    silent = False
                    cursor, pauses = event.cursor, Pauses(self._transport.retry_for)
                    yield TaskEvent.of(event)
                    if event.kind == market_pb2.TASK_EVENT_KIND_ENDED:
                        return
            except grpc.RpcError as error:
                silent = False
                failure = meaning(error, f"market at {self._market_address}")
            finally:
                call.cancel()
            if silent and await self._has_ended(task_id, until):
                return  # a stream that closes with nothing: the caller has seen the task's last event before
            if isinstance(failure, DeadlineExceeded):
                pauses = Pauses(self._transport.retry_for)  # our own limit on a quiet stream, not a failure
            elif not isinstance(failure, Unavailable) or not await pauses.wait(failure):
                raise failure

    async def cancel(self, task_id: str) -> Task:
        """End a task; what is unspent comes back. Raises InvalidState where it has ended in another way."""
        return Task.of((await self._market("CancelTask", market_pb2.CancelTaskRequest(task_id=task_id))).task)

    async def quote(self, challenge_type: str, payload: Mapping[str, Any] | None = None) -> Quote:
        """What a task would cost, without creating it. Raises InvalidArgument."""
        request = market_pb2.QuoteTaskRequest(challenge_type=challenge_type, payload=struct_of(payload or {}))
        return Quote.of(await self._market("QuoteTask", request))

    async def market_info(self) -> market_pb2.GetMarketResponse:
        """Chain id, keys and task types of the market, asked once."""
        if self._known is None:
            stub = self._transport.stub(market_pb2_grpc.MarketServiceStub, self._market_address, "market")
            peer = f"market at {self._market_address}"
            known = await self._transport.call(stub.GetMarket, market_pb2.GetMarketRequest(), peer=peer)
            self._clock_offset_ms = known.now_ms - time.time_ns() // 1_000_000
            self._known = known
        return self._known

    # --- artifacts -------------------------------------------------------------------------------------------------

    @property
    def artifacts(self) -> AsyncArtifacts:
        """The artifacts of this account: put, get, read, stat, list, delete."""
        return AsyncArtifacts(
            lambda: self._transport.stub(lambda channel: channel, self._market_address, "market"),
            self._credentials, f"market at {self._market_address}", self._transport.retry_for)

    async def put_artifact(self, source: Path | str | bytes, **options: Any) -> ArtifactInfo:
        """Store a file, a folder or bytes for tasks to read; see `AsyncArtifacts.put` for the options."""
        return await self.artifacts.put(source, **options)

    async def get_artifact(self, digest: str, to: Path | str, **options: Any) -> Path:
        """Write an artifact to a file, or a folder; see `AsyncArtifacts.get` for the options."""
        return await self.artifacts.get(digest, to, **options)

    async def download(self, task_id: str, to: Path | str, **options: Any) -> builtins.list[Path]:
        """Write a completed task's files into the folder `to`; their paths. Raises InvalidState where it has none."""
        return await results.download(self.artifacts, await self.get(task_id), Path(to), **options)

    async def register_model(self, model_id: str, artifact: str) -> Model:
        """Let payloads say `model_id` for an artifact (its digest). Raises NotFound, Unauthorized."""
        request = market_pb2.RegisterModelRequest(model_id=model_id, artifact=artifact)
        return Model.of((await self._market("RegisterModel", request)).model)

    async def models(self) -> AsyncIterator[Model]:
        """Every registered name, page by page as you iterate."""
        async for model in self._pages("ListModels", market_pb2.ListModelsRequest(), "models"):
            yield Model.of(model)

    async def functions(self) -> AsyncIterator[Function]:
        """Every function that connected workers offer, page by page as you iterate."""
        async for offer in self._pages("ListFunctions", market_pb2.ListFunctionsRequest(), "functions"):
            yield Function.of(offer)

    async def _pages(self, method: str, request: Any, field: str) -> AsyncIterator[Any]:
        while True:
            reply = await self._market(method, request)
            for item in getattr(reply, field):
                yield item
            request.page_token = reply.next_page_token
            if not request.page_token:
                return

    # --- ledger ----------------------------------------------------------------------------------------------------

    async def account(self, address: str | None = None) -> Account:
        """An account of the ledger; without an address your own. Raises InvalidArgument, Unauthenticated."""
        request = ledger_pb2.GetAccountRequest(address=address or await self.own_address())
        return Account.of((await self.ledger("GetAccount", request)).account)

    async def own_address(self) -> str:
        """The account orders are paid from. Raises Unauthenticated where it is not known."""
        if self.key is not None:
            return self.key.address
        async for task in self.list(page_size=1):
            return task.customer
        for name, address in self.profile.addresses.items():
            if name.startswith("api:"):
                return address
        raise Unauthenticated("which account is yours is known after your first task; until then name an address")

    async def block(self, height: int, full: bool = False) -> Block:
        """A sealed block; `full` also lists its transaction ids and results. Raises NotFound."""
        reply = await self.ledger("GetBlock", ledger_pb2.GetBlockRequest(height=height, full=full))
        return Block.of(reply.block, reply.transaction_ids, reply.results)

    async def receipt(self, task_id: str) -> Receipt:
        """Everything a third party needs to believe a completed task, or the settled jobs of one that ended otherwise.
        Raises InvalidState before the end, and where no job was settled."""
        task = await self.get(task_id)
        receipts.require_settled(task)
        info = await self.ledger_info()
        escrow = (await self.ledger("GetEscrow", ledger_pb2.GetEscrowRequest(task_id=task_id))).escrow
        return receipts.assemble(info.chain_id, info.vkey, task, escrow, *await self._proven(task_id))

    async def verify(self, receipt: Receipt) -> builtins.list[Check]:
        """Each step of a receipt's verification, against the log key the profile pins; see `trust.receipt`."""
        return verify(receipt, self.profile.ledger_vkey or None)

    async def ledger_info(self) -> ledger_pb2.GetLedgerResponse:
        """Chain id, keys and shares of the ledger."""
        reply: ledger_pb2.GetLedgerResponse = await self.ledger("GetLedger", ledger_pb2.GetLedgerRequest())
        return reply

    async def submit_transactions(
        self, transactions: Iterable[ledger_pb2.Transaction], sealed: bool = False
    ) -> builtins.list[ledger_pb2.Outcome]:
        """Apply signed transactions; the outcome of each, in order, when durable or (`sealed`) in a block."""
        wait = ledger_pb2.WAIT_SEALED if sealed else ledger_pb2.WAIT_ACCEPTED
        request = ledger_pb2.SubmitTransactionsRequest(transactions=transactions, wait=wait)
        return [*(await self.ledger("SubmitTransactions", request, SEAL_S)).outcomes]

    async def ledger(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """Any unary call of `LedgerService`, by name, with its request message."""
        if not self._ledger_address:
            self._ledger_address = (await self.market_info()).ledger_address
        stub = self._transport.stub(ledger_pb2_grpc.LedgerServiceStub, self._ledger_address, "ledger")
        peer = f"ledger at {self._ledger_address}"
        return await self._transport.call(getattr(stub, method), request, peer=peer, timeout=timeout)

    # --- orchestrator ----------------------------------------------------------------------------------------------

    async def orchestrator(
        self, method: str, request: Any, address: str | None = None, as_key: PrivateKey | None = None
    ) -> Any:
        """Any unary call of `OrchestratorService`, by name; `address` defaults to the profile's.

        `as_key` signs a token for the call. The API key is never sent: it is a secret between us and the market.
        """
        address = address or self.profile.orchestrator
        stub = self._transport.stub(orchestrator_pb2_grpc.OrchestratorServiceStub, address, "orchestrator")
        peer = f"orchestrator at {address}"
        metadata: tuple[tuple[str, str], ...] = ()
        if as_key is not None:
            metadata = (("authorization", f"Bearer {signed_token(as_key, await self._chain())}"),)
        return await self._transport.call(getattr(stub, method), request, metadata, peer=peer)

    async def transcript(self, task_id: str, job: int, address: str) -> orchestrator_pb2.AuditTranscript:
        """How a job's result was audited, from the orchestrator at `address`. Raises NotFound."""
        request = orchestrator_pb2.GetAuditTranscriptRequest(task_id=task_id, job=job)
        reply: orchestrator_pb2.AuditTranscript = (
            await self.orchestrator("GetAuditTranscript", request, address)
        ).transcript
        return reply

    async def worker(self, method: str, request: Any, address: str) -> Any:
        """Any unary call of `WorkerService`, by name, at a worker's control HOST:PORT."""
        stub = self._transport.stub(worker_pb2_grpc.WorkerServiceStub, address, "worker")
        return await self._transport.call(getattr(stub, method), request, peer=f"worker at {address}")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        """The market's clock: deadlines are judged by it."""
        return time.time_ns() // 1_000_000 + self._clock_offset_ms

    async def _proven(self, task_id: str) -> tuple[builtins.list[ledger_pb2.ProvenResult], str]:
        """All results of a task with their proofs, and the checkpoint these lead to."""
        proven: builtins.list[ledger_pb2.ProvenResult] = []
        token = ""
        while True:
            request = ledger_pb2.ListResultsRequest(task_id=task_id, page_size=1000, page_token=token, with_proofs=True)
            reply = await self.ledger("ListResults", request, SEAL_S)
            proven += reply.proven
            token = reply.next_page_token
            if not token:
                return proven, reply.checkpoint.note

    async def _credentials(self) -> tuple[tuple[str, str], ...]:
        return self._transport.credentials(await self._chain() if self.key else "")

    async def _chain(self) -> str:
        return self.profile.chain_id or (await self.market_info()).chain_id

    async def _has_ended(self, task_id: str, until: float | None) -> bool:
        """Whether a task has ended, asked before `until` (monotonic seconds). Raises DeadlineExceeded, Unavailable."""
        left = None if until is None else min(self._transport.timeout, max(until - time.monotonic(), 0.001))
        reply = await self._market("GetTask", market_pb2.GetTaskRequest(task_id=task_id), left)
        return Task.of(reply.task).ended

    async def _market(self, method: str, request: Any, timeout: float | None = None) -> Any:
        stub = self._transport.stub(market_pb2_grpc.MarketServiceStub, self._market_address, "market")
        peer = f"market at {self._market_address}"
        credentials = await self._credentials()
        return await self._transport.call(getattr(stub, method), request, credentials, peer=peer, timeout=timeout)

    async def _open_watch(self, task_id: str, cursor: int, timeout: float) -> Any:
        stub = self._transport.stub(market_pb2_grpc.MarketServiceStub, self._market_address, "market")
        request = market_pb2.WatchTaskRequest(task_id=task_id, cursor=cursor)
        return stub.WatchTask(request, timeout=timeout, metadata=await self._credentials())
