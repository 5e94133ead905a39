"""The asynchronous client."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from computemesh.client import mapping, receipts, results
from computemesh.client.artifacts import ArtifactInfo, AsyncArtifacts
from computemesh.client.connections import Connections
from computemesh.client.handles import AsyncResult, AsyncTaskHandle
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
from computemesh.client.orders import DEFAULT_REWARD, Deadline, Wish, price_within
from computemesh.client.profile import Profile
from computemesh.client.programs import Program
from computemesh.client.rpc import Interceptors, no_interceptors
from computemesh.client.watching import watch
from computemesh.service import tracing
from computemesh.trust.errors import Unauthenticated
from computemesh.trust.identity import PrivateKey
from computemesh.trust.receipt import Check, Receipt, verify
from computemesh.v1 import ledger_pb2, market_pb2, orchestrator_pb2

SEAL_S = 30.0


class AsyncClient:
    """A customer of a market, and a reader of its ledger.

    `profile` is a `Profile` or a path to one; without it and without `market` the usual places are searched (see
    `computemesh.client.profile`). `api_key` names an account the market holds; `key` signs orders itself. `timeout` and
    `retry_for` are seconds, per call; `interceptors(address)` see the calls to it. Every method raises
    `computemesh.MeshError` or one of its kinds.
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
        interceptors: Interceptors = no_interceptors,
    ) -> None:
        if isinstance(profile, Profile):
            found = profile
        elif profile is None and market is not None:
            found = Profile()
        else:
            found = Profile.discover(profile)
        self.profile = found
        own = api_key is None and key is None
        self.key = (found.key() if not found.api_key else None) if own else key
        self._mesh = Connections(
            found, market or found.market, ledger or found.ledger, (found.api_key if own else api_key) or "", self.key,
            timeout, retry_for, interceptors)  # fmt: skip

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._mesh.transport.close()

    def __repr__(self) -> str:
        who = self.key.address if self.key else "anonymous" if self._mesh.transport.anonymous else "API key"
        return f"{type(self).__name__}(market={self._mesh.market_address!r}, as={who!r})"

    # --- tasks -----------------------------------------------------------------------------------------------------

    @tracing.rooted("submit")
    async def submit(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str | None = None,
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
        max_cost: str | None = None,
    ) -> AsyncTaskHandle:
        """Publish a task and hold its reward; it exists when this returns.

        `reward` is decimal CPC ("10.0"); `deadline` Unix seconds, a datetime, a timedelta from now, or None for one
        hour; `priority` 0..9, 9 first. `max_cost` (decimal CPC) is the most you would pay: without a `reward` the
        quoted price is held, and what costs more is refused before anything is held (CostLimit). A `request_id` (UUID)
        of your own makes repeating this call the same task: with no deadline (a client that signs needs a UUIDv7 then,
        its time + one hour is the deadline), or with the same absolute one. Raises InvalidArgument,
        InsufficientFunds, Conflict, Unauthenticated.
        """
        if max_cost is not None:
            reward = price_within(max_cost, reward or (await self.quote(challenge_type, payload)).price)
        market = await self._mesh.market_info()
        wish = Wish.of(challenge_type, payload or {}, DEFAULT_REWARD if reward is None else reward, deadline, priority,
                       request_id, self._mesh.now_ms(), self.key is not None)  # fmt: skip
        if self.key is not None:
            request = wish.signed_request(self.key, bytes.fromhex(market.market_key), market.chain_id)
        else:
            request = wish.request()
        reply = await self._mesh.market("CreateTask", request)
        task = Task.of(reply.task)
        wish.check(task, market.chain_id, self.key)
        return AsyncTaskHandle(self, task)

    async def attach(self, task_id: str) -> AsyncTaskHandle:
        """The future of a task submitted before, by this process or another. Raises TaskNotFound, Unauthorized."""
        return AsyncTaskHandle(self, await self.get(task_id))

    async def run(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str | None = None,
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
        max_cost: str | None = None,
    ) -> AsyncResult:
        """`submit`, then wait until the task has ended (`timeout` in seconds). Look at its `status`; what reads the
        result raises TaskFailed unless it completed."""
        handle = await self.submit(challenge_type, payload, reward, deadline, priority, request_id, max_cost)
        return await handle.wait(timeout)

    async def map(
        self, function: mapping.Mapped, inputs: Iterable[Any], *, reward: str | None = None,
        max_cost: str | None = None, timeout: float | None = None, progress: bool | None = None, **payload: Any,
    ) -> builtins.list[Any]:  # fmt: skip
        """A function's value for each input, in order, as one task.

        `function` is the name of a function that workers offer, an `@expose`d one itself (then inputs and values are
        its pydantic models, else dicts), or a `Program` (inputs and values are arrays, or tuples of arrays).
        `reward` is the quoted price if absent, `max_cost` the most you would pay, `payload` more fields of the task
        (`items_per_job`, `timeout_s`). `progress` shows a bar on stderr; if absent, where somebody watches. Raises
        TaskFailed where an input is refused or the function fails.
        """
        return await mapping.run(self, function, [*inputs], reward, max_cost, timeout, progress, payload)

    async def program(
        self, function: Callable[..., Any] | str, input_shapes: str, *, exact: bool = False, **options: Any
    ) -> Program:
        """Export a JAX function (or "FILE.py:NAME") and store it; see `client.programs.push` for the options."""
        return await Program.push(self, function, input_shapes, exact=exact, **options)

    async def get(self, task_id: str) -> Task:
        """A task of yours. Raises TaskNotFound, Unauthorized."""
        return Task.of((await self._mesh.market("GetTask", market_pb2.GetTaskRequest(task_id=task_id))).task)

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
        reply = await self._mesh.market("ListTasks", request)
        return Page(tuple(Task.of(task) for task in reply.tasks), reply.next_page_token, reply.total)

    async def watch(self, task_id: str, cursor: int = 0, timeout: float | None = None) -> AsyncIterator[TaskEvent]:
        """Every event of a task after `cursor`, then new ones as they happen, up to the terminal one.

        A dropped connection is resumed where it broke: nothing is skipped or repeated. With the cursor of the terminal
        event there is none left: the iteration ends at once (asking for the status counts in `timeout`). Raises
        DeadlineExceeded after `timeout` seconds, Unavailable where the market stays away for longer than `retry_for`.
        """
        async for event in watch(self._mesh, task_id, cursor, timeout):
            yield event

    async def cancel(self, task_id: str) -> Task:
        """End a task; what is unspent comes back. Raises InvalidState where it has ended in another way."""
        return Task.of((await self._mesh.market("CancelTask", market_pb2.CancelTaskRequest(task_id=task_id))).task)

    async def quote(self, challenge_type: str, payload: Mapping[str, Any] | None = None) -> Quote:
        """What a task would cost, without creating it. Raises InvalidArgument."""
        request = market_pb2.QuoteTaskRequest(challenge_type=challenge_type, payload=struct_of(payload or {}))
        return Quote.of(await self._mesh.market("QuoteTask", request))

    async def market_info(self) -> market_pb2.GetMarketResponse:
        """Chain id, keys and task types of the market, asked once."""
        return await self._mesh.market_info()

    # --- artifacts -------------------------------------------------------------------------------------------------

    @property
    def artifacts(self) -> AsyncArtifacts:
        """The artifacts of this account: put, get, read, stat, list, delete."""
        mesh = self._mesh
        return AsyncArtifacts(mesh.market_channel, mesh.credentials, mesh.market_peer, mesh.transport.retry_for)

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
        return Model.of((await self._mesh.market("RegisterModel", request)).model)

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
            reply = await self._mesh.market(method, request)
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
        return await self._mesh.ledger(method, request, timeout)

    # --- orchestrator and workers ----------------------------------------------------------------------------------

    async def orchestrator(
        self, method: str, request: Any, address: str | None = None, as_key: PrivateKey | None = None
    ) -> Any:
        """Any unary call of `OrchestratorService`, by name; `address` defaults to the profile's.

        `as_key` signs a token for the call. The API key is never sent: it is a secret between us and the market.
        """
        return await self._mesh.orchestrator(method, request, address, as_key)

    async def jobs(self, task: Task) -> builtins.list[orchestrator_pb2.JobState]:
        """How each job of a task is, from the orchestrator that has it; none while it waits for one."""
        found: builtins.list[orchestrator_pb2.JobState] = []
        token = ""
        while task.orchestrator_address:
            request = orchestrator_pb2.ListJobsRequest(task_id=task.task_id, page_size=1000, page_token=token)
            reply = await self._mesh.orchestrator("ListJobs", request, task.orchestrator_address)
            found += reply.jobs
            token = reply.next_page_token
            if not token:
                break
        return found

    async def transcript(self, task_id: str, job: int, address: str) -> orchestrator_pb2.AuditTranscript:
        """How a job's result was audited, from the orchestrator at `address`. Raises NotFound."""
        request = orchestrator_pb2.GetAuditTranscriptRequest(task_id=task_id, job=job)
        reply: orchestrator_pb2.AuditTranscript = (
            await self._mesh.orchestrator("GetAuditTranscript", request, address)
        ).transcript
        return reply

    async def worker(self, method: str, request: Any, address: str) -> Any:
        """Any unary call of `WorkerService`, by name, at a worker's control HOST:PORT."""
        return await self._mesh.worker(method, request, address)

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
