"""The choice of where executors run, without Ray; tests/e2e/test_ray.py has a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import worker
from computemesh.cli.main import app
from computemesh.trust.errors import InvalidArgument, InvalidState
from worker.agent import run
from worker.config import WorkerConfig
from worker.events import Event, LaneUp
from worker.process import DeviceUnavailable, ExecutorProcess

CPU = {"platform": "cpu", "kind": "cpu", "jaxlib_version": "0.10.2", "memory_bytes": 1}


def config(folder: Path, **values: Any) -> WorkerConfig:
    return WorkerConfig("127.0.0.1:1", str(folder), **values)


async def test_an_engine_that_is_not_installed_is_told_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "worker.ray_cluster", raising=False)
    monkeypatch.delattr(worker, "ray_cluster", raising=False)
    with pytest.raises(InvalidState, match=r"engine: 'ray' needs Ray, .* pip install 'computemesh\[ray\]'"):
        await run(config(tmp_path, engine="ray"), asyncio.Event())


async def test_an_unknown_engine_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="engine: 'dask' must be local or ray"):
        await run(config(tmp_path, engine="dask"), asyncio.Event())


def test_join_writes_the_engine_for_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execv", lambda path, arguments: None)
    join = ["worker", "join", "127.0.0.1:1", "--data", str(tmp_path)]
    for options, expected in (([], ("local", "auto")), (["--engine", "ray", "--ray-address", "10.0.0.9:6379"],
                                                        ("ray", "10.0.0.9:6379"))):  # fmt: skip
        assert CliRunner().invoke(app, [*join, *options]).exit_code == 0
        written = tomllib.loads((tmp_path / "worker.toml").read_text())
        assert (written["engine"], written["ray_address"]) == expected
    assert CliRunner().invoke(app, [*join, "--engine", "dask"]).exit_code == 2


class Elsewhere:
    """A place that has another device at each start, and never says anything."""

    pid = None

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices, self.running = list(devices), False

    async def start(self) -> dict[str, Any]:
        self.running = True
        return self.devices.pop(0)

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    def send(self, message: object) -> None: ...

    async def end(self) -> None:
        self.running = False


async def test_a_lane_begun_again_elsewhere_keeps_the_kind_of_device_that_was_advertised() -> None:
    events: list[Event] = []
    place = Elsewhere(CPU, {**CPU, "platform": "gpu", "kind": "H100"}, {**CPU, "memory_bytes": 2})
    executor = ExecutorProcess(3, place, events.append)
    await executor.start()
    with pytest.raises(DeviceUnavailable, match=r"gpu, H100, 0\.10\.2"):
        await executor.start()
    assert not place.running, "a device it may not use is given back"
    await executor.start()
    assert [type(event) for event in events] == [LaneUp, LaneUp]
