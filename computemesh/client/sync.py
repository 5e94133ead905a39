"""The blocking client: `AsyncClient` on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from computemesh.client.aio import AsyncClient
from computemesh.client.artifacts import ArtifactInfo
from computemesh.client.blocking import Loop, Result, TaskHandle
from computemesh.client.mapping import Mapped
from computemesh.client.model import Account, Block, Function, Model, Page, Quote, Task, TaskEvent
from computemesh.client.orders import Deadline
from computemesh.client.profile import Profile
from computemesh.client.programs import Program
from computemesh.client.rpc import Interceptors, no_interceptors
from computemesh.trust.errors import InvalidState
from computemesh.trust.identity import PrivateKey
from computemesh.trust.receipt import Check, Receipt
from computemesh.v1 import ledger_pb2, market_pb2, orchestrator_pb2


class Client:
    """A customer of a market, and a reader of its ledger. Arguments and methods are those of `AsyncClient`.

    Use it as a context manager, or `close()` it. It may be shared by threads.
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
        self._async = AsyncClient(
            profile, market=market, ledger=ledger, api_key=api_key, key=key, timeout=timeout, retry_for=retry_for,
            interceptors=interceptors,
        )  # fmt: skip
        self._loop = Loop()
        self.profile = self._async.profile
        self.key = self._async.key

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        try:
            self._loop.run(self._async.close())
        except InvalidState:
            return
        self._loop.close()

    def __repr__(self) -> str:
        return repr(self._async).removeprefix("Async")

    def submit(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str | None = None,
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
        max_cost: str | None = None,
    ) -> TaskHandle:
        """Publish a task and hold its reward; see `AsyncClient.submit`."""
        handle = self._loop.run(
            self._async.submit(challenge_type, payload, reward, deadline, priority, request_id, max_cost)
        )
        return TaskHandle(handle, self._loop)

    def attach(self, task_id: str) -> TaskHandle:
        """The future of a task submitted before, by this process or another. Raises TaskNotFound, Unauthorized."""
        return TaskHandle(self._loop.run(self._async.attach(task_id)), self._loop)

    def run(
        self,
        challenge_type: str,
        payload: Mapping[str, Any] | None = None,
        reward: str | None = None,
        deadline: Deadline = None,
        priority: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
        max_cost: str | None = None,
    ) -> Result:
        """`submit`, then wait until the task has ended (`timeout` in seconds). Look at its `status`; what reads the
        result raises TaskFailed unless it completed."""
        return self.submit(challenge_type, payload, reward, deadline, priority, request_id, max_cost).wait(timeout)

    def map(
        self, function: Mapped, inputs: Iterable[Any], *, reward: str | None = None, max_cost: str | None = None,
        timeout: float | None = None, progress: bool | None = None, **payload: Any,
    ) -> builtins.list[Any]:  # fmt: skip
        """A function's value for each input, in order, as one task; see `AsyncClient.map`."""
        return self._loop.run(self._async.map(
            function, inputs, reward=reward, max_cost=max_cost, timeout=timeout, progress=progress, **payload))

    def program(
        self, function: Callable[..., Any] | str, input_shapes: str, *, exact: bool = False, **options: Any
    ) -> Program:
        """Export a JAX function (or "FILE.py:NAME") and store it; see `client.programs.push` for the options."""
        return self._loop.run(self._async.program(function, input_shapes, exact=exact, **options))

    def get(self, task_id: str) -> Task:
        """A task of yours. Raises TaskNotFound, Unauthorized."""
        return self._loop.run(self._async.get(task_id))

    def list(self, status: str | None = None, challenge_type: str = "", page_size: int = 0) -> Iterator[Task]:
        """Your tasks, newest first, page by page as you iterate."""
        return self._loop.iterate(self._async.list(status, challenge_type, page_size))

    def page(
        self, status: str | None = None, challenge_type: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page:
        """One page of `list`, with the number of all tasks that match."""
        return self._loop.run(self._async.page(status, challenge_type, page_size, page_token))

    def watch(self, task_id: str, cursor: int = 0, timeout: float | None = None) -> Iterator[TaskEvent]:
        """Every event of a task after `cursor` up to the terminal one; see `AsyncClient.watch`."""
        return self._loop.iterate(self._async.watch(task_id, cursor, timeout))

    def cancel(self, task_id: str) -> Task:
        """End a task; what is unspent comes back. Raises InvalidState where it has ended in another way."""
        return self._loop.run(self._async.cancel(task_id))

    def quote(self, challenge_type: str, payload: Mapping[str, Any] | None = None) -> Quote:
        """What a task would cost, without creating it. Raises InvalidArgument."""
        return self._loop.run(self._async.quote(challenge_type, payload))

    def market_info(self) -> market_pb2.GetMarketResponse:
        """Chain id, keys and task types of the market."""
        return self._loop.run(self._async.market_info())

    def put_artifact(self, source: Path | str | bytes, **options: Any) -> ArtifactInfo:
        """Store a file, a folder or bytes for tasks to read; see `AsyncArtifacts.put` for the options."""
        return self._loop.run(self._async.put_artifact(source, **options))

    def get_artifact(self, digest: str, to: Path | str, **options: Any) -> Path:
        """Write an artifact to a file, or a folder; see `AsyncArtifacts.get` for the options."""
        return self._loop.run(self._async.get_artifact(digest, to, **options))

    def read_artifact(self, digest: str, max_bytes: int = 64 << 20) -> bytes:
        """An artifact's bytes. Raises NotFound, InvalidArgument where there are more than `max_bytes`."""
        return self._loop.run(self._async.artifacts.read(digest, max_bytes))

    def stat_artifact(self, digest: str) -> ArtifactInfo:
        """What the store knows of an artifact. Raises NotFound."""
        return self._loop.run(self._async.artifacts.stat(digest))

    def list_artifacts(self, page_size: int = 0) -> Iterator[ArtifactInfo]:
        """Your artifacts, the last put first, page by page as you iterate."""
        return self._loop.iterate(self._async.artifacts.list(page_size))

    def delete_artifact(self, digest: str) -> None:
        """End your reference to an artifact. Raises NotFound."""
        self._loop.run(self._async.artifacts.delete(digest))

    def download(self, task_id: str, to: Path | str, **options: Any) -> builtins.list[Path]:
        """Write a completed task's files into the folder `to`; their paths. Raises InvalidState where it has none."""
        return self._loop.run(self._async.download(task_id, to, **options))

    def register_model(self, model_id: str, artifact: str) -> Model:
        """Let payloads say `model_id` for an artifact (its digest). Raises NotFound, Unauthorized."""
        return self._loop.run(self._async.register_model(model_id, artifact))

    def models(self) -> Iterator[Model]:
        """Every registered name, page by page as you iterate."""
        return self._loop.iterate(self._async.models())

    def functions(self) -> Iterator[Function]:
        """Every function that connected workers offer, page by page as you iterate."""
        return self._loop.iterate(self._async.functions())

    def account(self, address: str | None = None) -> Account:
        """An account of the ledger; without an address your own. Raises InvalidArgument."""
        return self._loop.run(self._async.account(address))

    def own_address(self) -> str:
        """The account orders are paid from. Raises Unauthenticated where it is not known."""
        return self._loop.run(self._async.own_address())

    def block(self, height: int, full: bool = False) -> Block:
        """A sealed block; `full` also lists its transaction ids and results. Raises NotFound."""
        return self._loop.run(self._async.block(height, full))

    def receipt(self, task_id: str) -> Receipt:
        """Everything a third party needs to believe a completed task. Raises InvalidState before completion."""
        return self._loop.run(self._async.receipt(task_id))

    def verify(self, receipt: Receipt) -> builtins.list[Check]:
        """Each step of a receipt's verification, against the log key the profile pins."""
        return self._loop.run(self._async.verify(receipt))

    def ledger_info(self) -> ledger_pb2.GetLedgerResponse:
        """Chain id, keys and shares of the ledger."""
        return self._loop.run(self._async.ledger_info())

    def submit_transactions(
        self, transactions: Iterable[ledger_pb2.Transaction], sealed: bool = False
    ) -> builtins.list[ledger_pb2.Outcome]:
        """Apply signed transactions; see `AsyncClient.submit_transactions`."""
        return self._loop.run(self._async.submit_transactions(transactions, sealed))

    def ledger(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """Any unary call of `LedgerService`, by name, with its request message."""
        return self._loop.run(self._async.ledger(method, request, timeout))

    def orchestrator(
        self, method: str, request: Any, address: str | None = None, as_key: PrivateKey | None = None
    ) -> Any:
        """Any unary call of `OrchestratorService`, by name; `as_key` signs a token for it."""
        return self._loop.run(self._async.orchestrator(method, request, address, as_key))

    def worker(self, method: str, request: Any, address: str) -> Any:
        """Any unary call of `WorkerService`, by name, at a worker's control HOST:PORT."""
        return self._loop.run(self._async.worker(method, request, address))

    def jobs(self, task: Task) -> builtins.list[orchestrator_pb2.JobState]:
        """How each job of a task is, from the orchestrator that has it; none while it waits for one."""
        return self._loop.run(self._async.jobs(task))

    def transcript(self, task_id: str, job: int, address: str) -> orchestrator_pb2.AuditTranscript:
        """How a job's result was audited, from the orchestrator at `address`. Raises NotFound."""
        return self._loop.run(self._async.transcript(task_id, job, address))
