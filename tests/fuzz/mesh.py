"""The mesh that is fuzzed: real processes, one task done, one that stays open and holds all the money there is."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import artifact_pb2, artifact_pb2_grpc, ledger_pb2, ledger_pb2_grpc, market_pb2, market_pb2_grpc
from tests.fuzz.laws import Broken

SECOND = PrivateKey(b"second orchestrator of the fuzzer"[:32])
"""An orchestrator's key that the market admits."""
STRANGER = PrivateKey(b"key of nobody whom anybody knows"[:32])
PATIENCE_S = 60.0
SERVICES = ("ledger", "market", "orchestrator", "worker-1")
# An exception that nobody expected, in a service's own words.
_TROUBLE = ("unexpected exception", "Traceback (most recent call last)", "Task exception was never retrieved")


class Mesh:
    """A running cluster and what a fuzzer has to know of it."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.secrets = (str(cluster.data), str(Path(__file__).resolve().parents[2]), cluster.plan.api_key)
        self.bearer = (("authorization", f"Bearer {cluster.plan.api_key}"),)
        self.chain = cluster.profile.chain_id
        self._read = dict.fromkeys(SERVICES, 0)
        self._pids = dict(cluster.pids)
        self.resident = {name: self._resident(name) for name in SERVICES}

    def _resident(self, name: str) -> int:
        return int(psutil.Process(self.cluster.pids[name]).memory_info().rss)

    @property
    def grown(self) -> dict[str, int]:
        """By how many bytes each service has grown."""
        return {name: self._resident(name) - before for name, before in self.resident.items()}

    def hold_all_money(self) -> None:
        """Opens a task that no worker does, for all that the customer has: whatever is ordered then is refused."""
        balance = self.client.account().balance_units
        if balance > 10**6:
            reward = f"{balance // 10**6}.{balance % 10**6:06}"
            payload = {"scene": "cornell", "width": 64, "height": 64}
            in_a_year = datetime.timedelta(days=300)
            task = self.client.submit("rendering", payload, reward=reward, deadline=in_a_year)
            self._until(lambda: self._is_assigned(task.task_id), f"task {task.task_id} was not leased")
        # What was earned is paid out blocks later, whatever is called meanwhile.
        self._until(lambda: not self._is_maturing(), "earnings did not mature")

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > until:
                raise Broken(f"{otherwise} within {PATIENCE_S:.0f} s")
            time.sleep(0.05)

    def _is_assigned(self, task_id: str) -> bool:
        return bool(self.client.ledger("GetEscrow", ledger_pb2.GetEscrowRequest(task_id=task_id)).escrow.jobs)

    def _is_maturing(self) -> bool:
        return bool(self.client.ledger("GetSupply", ledger_pb2.GetSupplyRequest()).maturing_units)

    def known(self) -> dict[str, list[Any]]:
        """Names and numbers that exist here, by the contracts' names of fields."""
        keys = self.cluster.plan.keys
        task_ids = [task.task_id for task in self.client.page().tasks]
        public = [key.public.hex() for key in (*keys.values(), STRANGER)]
        return {
            "task_id": task_ids, "challenge_type": ["noop", "synthetic", "rendering", "simulation"],
            "address": [key.address for key in keys.values()], "worker": [keys["worker-1"].address, public[-2]],
            "to": [key.address for key in keys.values()], "public_key": [key.public for key in keys.values()],
            "orchestrator_key": [keys["orchestrator"].public.hex()], "reward": ["1", "0.5", "100000000"],
            "customer_key": public, "name": ["a", "pool"],  # and no URL: an event might be posted to it
        }  # fmt: skip

    def state(self) -> tuple[Any, ...]:
        """What a refusal leaves as it is. Raises Broken where units were lost or made."""
        with contextlib.ExitStack() as stack:
            market, ledger = (stack.enter_context(grpc.insecure_channel(self.cluster.address(name)))
                              for name in ("market", "ledger"))  # fmt: skip
            book, log = market_pb2_grpc.MarketServiceStub(market), ledger_pb2_grpc.LedgerServiceStub(ledger)
            files = artifact_pb2_grpc.ArtifactServiceStub(market)
            how: dict[str, Any] = {"metadata": self.bearer, "timeout": 60}
            supply = log.GetSupply(ledger_pb2.GetSupplyRequest(), timeout=60)
            parts = (supply.accounts_units, supply.escrowed_units, supply.burned_units, supply.maturing_units,
                     supply.staked_units)  # fmt: skip
            if sum(parts) != supply.minted_units:
                raise Broken(f"supply: {parts} are not the {supply.minted_units} units minted")
            tasks = book.ListTasks(market_pb2.ListTasksRequest(limit=1), **how)
            return (
                parts, log.ListAccounts(ledger_pb2.ListAccountsRequest(page_size=1000), timeout=60).SerializeToString(),
                tasks.total, tasks.tasks[0].status, tasks.tasks[0].task_id,
                book.ListModels(market_pb2.ListModelsRequest(page_size=1), **how).SerializeToString(),
                book.ListWebhooks(market_pb2.ListWebhooksRequest(), **how).SerializeToString(),
                book.ListPools(market_pb2.ListPoolsRequest(page_size=1), **how).SerializeToString(),
                files.ListArtifacts(artifact_pb2.ListArtifactsRequest(page_size=1), **how).total,
            )  # fmt: skip

    def check(self, what: str) -> None:
        """Every process is the one it was, and no log tells of an exception that nobody expected. Raises Broken."""
        gone = [name for name, pid in self._pids.items() if self.cluster.pids.get(name) != pid]
        if gone:
            raise Broken(f"{what}: {', '.join(gone)} ended")
        for name in SERVICES:
            with open(self.cluster.log(name), "rb") as log:
                log.seek(self._read[name])
                new = log.read()
            self._read[name] += len(new)
            text = new.decode("utf-8", "replace")
            for trouble in _TROUBLE:
                if trouble in text:
                    at = text.index(trouble)
                    raise Broken(f"{what}: {name} logged: {text[max(0, at - 300) : at + 3000]}")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Mesh]:
    """Starts it. The worker does no-op jobs only, so that the open task stays open."""
    plan: dict[str, dict[str, Any]] = {"market": {"orchestrator_keys": []}, "worker": {"challenge_types": ["noop"]}}
    with Cluster(folder, workers=1, port_base=0, overrides=plan) as cluster, Client(cluster.profile) as client:
        mesh = Mesh(cluster, client)
        client.run("noop", {"jobs": 8, "bytes": 16}, max_cost="1")
        with contextlib.suppress(MeshError):
            client.put_artifact(b"an artifact", name="known")
        mesh.hold_all_money()
        yield mesh
