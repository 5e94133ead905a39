"""Functions of workers' operators, seen by customers through orchestrator and market while the worker is connected."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import common_pb2
from tests.orchestrator.scripted import ScriptedWorker

SCHEMA = {"properties": {"text": {"type": "string", "maxLength": 5}}, "required": ["text"]}
SPEC = common_pb2.FunctionSpec(name="measure", input_schema=json.dumps(SCHEMA), output_schema="{}", timeout_ms=7000)


def names(client: Client, wanted: set[str]) -> None:
    """Waits until exactly these are offered."""
    deadline = time.monotonic() + 30
    while {one.name for one in client.functions()} != wanted:
        assert time.monotonic() < deadline, list(client.functions())
        time.sleep(0.05)


async def test_a_function_can_be_ordered_with_fitting_input_while_a_worker_offers_it(
    cluster: Cluster, client: Client, mesh
) -> None:
    def order(name: str, data: object) -> str:
        with pytest.raises(InvalidArgument) as refused:
            client.submit("function", {"function_name": name, "data": data}, reward="1.0")
        return str(refused.value)

    worker = ScriptedWorker(cluster.profile.orchestrator, cluster.profile.chain_id, types=("function",))
    async with worker:
        await worker.join(functions=[SPEC])
        await asyncio.to_thread(names, client, {"measure"})
        assert "5 is not of type 'string'" in await asyncio.to_thread(order, "measure", {"text": 5})
        assert "near it are measure" in await asyncio.to_thread(order, "measures", {"text": "x"})
        found = mesh("function", "list", profile=str(cluster.data / "profile.toml"))
        assert "measure" in found.stdout
        assert "7 s" in found.stdout
        assert "text: string" in found.stdout
        handle = await asyncio.to_thread(client.submit, "function", {"function_name": "measure", "data": {"text": "x"}},
                                         "60.0")  # fmt: skip
        await asyncio.to_thread(client.cancel, handle.task.task_id)
    await asyncio.to_thread(names, client, set())
    assert "offered by no connected worker" in await asyncio.to_thread(order, "measure", {"text": "x"})
