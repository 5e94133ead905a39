"""Results, futures and maps of the SDK, against a real cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemesh import (
    AsyncClient,
    Client,
    CostLimit,
    InvalidArgument,
    InvalidProof,
    InvalidState,
    NotFound,
    TaskFailed,
)
from computemesh.cli.cluster import Cluster
from computemesh.client import Result, mapping
from computemesh.client.model import TaskFile
from computemesh.client.results import places, text_of
from computemesh.trust.checkpoint import NoteSigner
from examples.functions import text_service

ROOT = Path(__file__).resolve().parents[2]
ODE = {"system": "ode", "steps": 40, "ensemble": 4, "frames": 2, "parameters": {"equation": "lorenz", "spread": 0.01}}


@pytest.fixture(scope="module")
def simulated(cluster: Cluster) -> Iterator[Result]:
    """A completed task with a picture, arrays and JSON."""
    with Client(cluster.profile) as client:
        yield client.run("simulation", ODE, "1.0", timeout=150)


@pytest.fixture
def functions(cluster: Cluster, mesh_process: Callable[..., subprocess.Popen[str]], client: Client) -> Iterator[None]:
    """A worker that offers examples/functions/text_service.py."""
    from computemesh.v1 import orchestrator_pb2

    file = ROOT / "examples/functions/text_service.py"
    words = ("worker", "join", cluster.profile.orchestrator, "--data", "w", "--functions", str(file))
    process = mesh_process(*words, "--types", "function", "--platform", "cpu")
    until = time.monotonic() + 90
    while not any(
        worker.capabilities.functions
        for worker in client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    yield
    process.terminate()
    process.communicate(timeout=30)


def test_a_result_is_read_as_what_it_is(simulated: Result, tmp_path: Path) -> None:
    assert simulated.status == "completed", simulated.status_detail
    assert simulated.image("plot.png").size[0] > 100
    assert simulated.image().format == "PNG"
    assert simulated.arrays()["states"].shape[0] == 4
    assert simulated.json("summary.json") == simulated.json()
    assert simulated.text("summary.json").startswith("{")
    assert simulated.read("plot.png").startswith(b"\x89PNG")
    assert {path.name for path in simulated.download(tmp_path)} == {file.name for file in simulated.artifacts}
    with pytest.raises(NotFound, match=r"has no file 'x\.png'; its files: .*plot\.png \(image/png\)"):
        simulated.image("x.png")
    assert "plot.png" in simulated._repr_html_()


def test_verify_raises_unless_every_step_holds(simulated: Result, cluster: Cluster) -> None:
    assert all(check.ok for check in simulated.verify())
    other = NoteSigner(cluster.profile.ledger_vkey.split("+")[0], b"\x02" * 32).vkey
    with pytest.raises(InvalidProof, match="does not hold"):
        simulated.verify(other)
    with Client(market=cluster.profile.market, api_key=cluster.profile.api_key) as unpinned, pytest.raises(
        InvalidState, match="ledger_vkey"
    ):
        unpinned.attach(simulated.task_id).result().verify()


def test_another_process_attaches_by_the_task_id(client: Client, cluster: Cluster) -> None:
    handle = client.submit("noop", {"jobs": 1})
    script = (
        "import sys; from computemesh import Client\n"
        "with Client(sys.argv[1]) as client: print(client.attach(sys.argv[2]).result(60).result_hash)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, cluster.profile.path, handle.task_id],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == handle.result(30).result_hash
    assert handle.done()


def test_a_task_that_did_not_complete_raises_with_the_markets_reason(client: Client) -> None:
    handle = client.submit("synthetic", {"matrix_size": 1024, "iterations": 500})
    handle.cancel()
    with pytest.raises(TaskFailed, match="is cancelled") as caught:
        handle.result(30)
    assert caught.value.metadata == {"task_id": handle.task_id, "status": "cancelled"}
    with pytest.raises(TaskFailed):
        handle.wait(30).json()


def test_what_costs_more_than_the_limit_is_refused_before_anything_is_held(client: Client) -> None:
    price = client.quote("noop", {"jobs": 500}).price
    before = client.page(page_size=1).total
    for reward in (None, "3.0"):
        with pytest.raises(CostLimit, match="CPC; nothing was held") as caught:
            client.submit("noop", {"jobs": 500}, reward, max_cost="0.000001")
        assert caught.value.metadata["price"] == (reward or price)
    assert client.page(page_size=1).total == before
    assert client.run("noop", {"jobs": 500}, max_cost="5", timeout=60).reward == price
    with pytest.raises(InvalidArgument, match="max_cost"):
        client.submit("noop", {"jobs": 1}, max_cost="-1")


def test_a_function_is_mapped_over_models_and_answers_with_models(
    client: Client, functions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [text_service.Passage(text=f"Word {'again ' * n}.") for n in range(3)]
    text_service.init()
    expected = [text_service.readability(passage) for passage in passages]
    assert client.map(text_service.readability, passages, timeout=120) == expected
    monkeypatch.setattr(mapping, "MAX_INLINE", 2)  # so many travel as an artifact
    plain = client.map("readability", [passage.model_dump() for passage in passages], timeout=120)
    assert plain == [answer.model_dump() for answer in expected]
    monkeypatch.undo()
    with pytest.raises(InvalidArgument, match=r"inputs\[0\] is a str"):
        client.map("readability", ["text"])
    assert client.map("readability", []) == []


def test_a_program_is_mapped_over_arrays(client: Client) -> None:
    program = client.program(squared, "int32[2]", exact=True)
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    assert [value.tolist() for value in client.map(program, rows, timeout=120)] == (rows**2).tolist()
    with pytest.raises(InvalidArgument, match=r"inputs\[0\] array 0 is float64\[1\], not int32\[2\]"):
        client.map(program, [np.array([1.5])])


def squared(row: Any) -> Any:
    return row * row


def test_an_exposed_function_runs_locally_as_a_worker_would_run_it() -> None:
    from pydantic import ValidationError

    text_service.init()
    answer = text_service.readability.local({"text": "Plain words."})
    assert answer == text_service.readability(text_service.Passage(text="Plain words."))
    with pytest.raises(ValidationError, match="text"):
        text_service.readability.local({"text": ""})


def test_generated_texts_are_the_text_of_each_line() -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    assert text_of(lines, generated=True) == "one\ntwo"
    assert text_of(lines, generated=False) == lines.decode()
    assert text_of(b'{"classes": []}', generated=True) == '{"classes": []}'


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    names = ("../../up", "/etc/passwd", "..\\..\\up", "..", ".", "", "a\0b", "up", "UP")
    files = tuple(TaskFile(name, "", f"{at:064x}", 1) for at, name in enumerate(names))
    chosen = [name for _, name in places(files)]
    assert all((tmp_path / name).resolve().parent == tmp_path.resolve() for name in chosen)
    assert len({name.lower() for name in chosen}) == len(names), "none takes another's place"


async def test_the_async_client_has_the_same_results(cluster: Cluster) -> None:
    async with AsyncClient(cluster.profile) as client:
        result = await client.run("noop", {"jobs": 2}, timeout=60)
        with pytest.raises(NotFound, match="its files: none"):
            await result.text()
        assert all(check.ok for check in await result.verify())
        assert await (await client.attach(result.task_id)).result() == result
