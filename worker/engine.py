"""Where a worker's executors run: on the devices of this machine, or on those of a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from computemesh.service.child import Child
from computemesh.trust.errors import InvalidArgument, InvalidState
from worker.config import WorkerConfig
from worker.devices import environments
from worker.events import Event
from worker.process import ExecutorProcess, Place

ENGINES = ("local", "ray")


def check(engine: str) -> None:
    """Raises InvalidArgument where there is no such engine."""
    if engine not in ENGINES:
        problem = f"{engine[:64]!r} must be {' or '.join(ENGINES)}"
        raise InvalidArgument(f"engine: {problem}", violations=[("engine", problem)])


async def executors(
    config: WorkerConfig, environment: Mapping[str, str], scratch: Path, post: Callable[[Event], None]
) -> list[ExecutorProcess]:
    """One executor for each device, not started yet. `environment` is what they need besides their device's own,
    `scratch` the folder for what does not fit memory.

    Raises InvalidArgument, InvalidState or Unavailable where the engine cannot be had.
    """
    cache = str((Path(config.data_dir) / "compile-cache").absolute())

    def settings(lane: int) -> dict[str, Any]:
        return {"lane": lane, "cache_dir": cache, "scratch_dir": str(scratch / str(lane))}

    places: list[Place] = []
    if config.engine == "ray":
        places += await _ray().places(config, environment, scratch, settings)
    else:
        own = environments(config.platform)
        places += [Child("worker.executor", settings(lane), {**one, **environment}) for lane, one in enumerate(own)]
    return [ExecutorProcess(lane, place, post) for lane, place in enumerate(places)]


async def start(executors: list[ExecutorProcess], engine: str) -> None:
    """Start them all; drops those without a device of their own. Raises DeviceUnavailable."""
    await executors[0].start()
    if engine == "local" and one_is_enough(executors[0].description):
        del executors[1:]
    await asyncio.gather(*(executor.start() for executor in executors[1:]))


def one_is_enough(description: Mapping[str, Any]) -> bool:
    """Whether the first executor took all there is: GPUs may be there, but no JAX plugin for them."""
    return bool(description["platform"] == "cpu")


def _ray() -> ModuleType:
    try:
        from worker import ray_cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        problem = "'ray' needs Ray, which is not installed here: pip install 'computemesh[ray]'"
        raise InvalidState(f"engine: {problem}", reason="ENGINE_NOT_INSTALLED") from None
    return ray_cluster
