"""Executors on the devices of a Ray cluster. Needs the `ray` extra: imported only where a worker is told to use it.

A lane is an actor that reserves one device. Beside itself it starts the executor of any other worker and passes its
messages on, so that only the way there differs: Ray chooses the device and the node, restricts the actor, and with it
the executor, to that device, and tells when either is gone. The executor ends with its actor, the actor with the agent.

Files are not sent: the worker's folder, with compile cache, artifacts and unit bytes, has to be one that every node
sees. An actor on a node that does not is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import structlog
from ray.exceptions import RayError, RayTaskError

from computemesh.service.child import Child, ChildFailed
from computemesh.service.outbox import Outbox
from computemesh.trust.errors import InvalidArgument, Unavailable
from computemesh.workloads.function import FILES_VARIABLE
from worker.config import WorkerConfig
from worker.devices import MAX_DEVICES, shared_gpu
from worker.process import Place

RESERVE_TIMEOUT_S = 60.0
START_TIMEOUT_S = 180.0
"""Longer than the executor's own, which knows better why it does not start."""
RESOURCES = {"cpu": "CPU", "cuda": "GPU", "gpu": "GPU"}
log = structlog.get_logger("worker.ray")


class Relay:
    """On a node: starts an executor there and passes messages on."""

    async def start(self, settings: dict[str, Any], environment: dict[str, str], files: Sequence[str]) -> Any:
        """As `Child.start`. Also fails where this node does not see `files`."""
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        if unseen := _unseen(files):
            raise ChildFailed(f"Ray node {node} does not see {unseen}: it has to be in a folder that all nodes share")
        self._child = Child("worker.executor", settings, environment)
        return {**await self._child.start(), "node": node}

    async def receive(self) -> Any:
        return await self._child.receive()

    async def send(self, messages: list[object]) -> None:
        for message in messages:
            self._child.send(message)


RELAY: Any = ray.remote(max_restarts=0, max_task_retries=0)(Relay)


class RayPlace:
    """`Child` for an executor on some node of the cluster. After `end` it starts again on whichever node has room."""

    pid = None  # of a process on another machine

    def __init__(
        self, device: str, actor: Any, settings: dict[str, Any], environment: dict[str, str], files: Sequence[str]
    ) -> None:
        """`actor` is a Relay that has its device already. `files` are what every node has to see."""
        self._device, self._actor = device, actor
        self._start = settings, environment, files
        self._outbox: Outbox[object] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def start(self) -> Any:
        """As `Child.start`. Also fails where no device is free."""
        if self._actor is None:
            self._actor = next(iter(await reserve(self._device, 1)), None)
        if self._actor is None:
            raise ChildFailed(f"no {self._device} of the Ray cluster is free")
        try:
            description = await asyncio.wait_for(self._actor.start.remote(*self._start), START_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            await self.end()
            raise ChildFailed(_cause(error)) from error
        self._outbox = Outbox(partial(_deliver, self._actor), lambda messages: [list(messages)])
        self._writing = asyncio.create_task(self._outbox.run())
        return description

    async def receive(self) -> Any:
        """As `Child.receive`: EOFError once executor, actor or node is gone."""
        try:
            return await self._actor.receive.remote()
        except RayError as error:
            log.warning("Ray lost an executor", cause=_cause(error))
            raise EOFError from error

    def send(self, message: object) -> None:
        """As `Child.send`. One call at a time: an actor need not begin calls in their order."""
        if self._outbox is not None:
            self._outbox.push(message)

    async def end(self) -> None:
        """End actor and executor and give the device back to the cluster."""
        if self._writing is not None:
            self._writing.cancel()
        self._outbox = self._writing = None
        actor, self._actor = self._actor, None
        if actor is not None:
            await asyncio.to_thread(ray.kill, actor)


def _unseen(files: Sequence[str]) -> str:
    return next((path for path in files if not os.path.exists(path)), "")


async def _deliver(actor: Any, messages: list[object]) -> None:
    with contextlib.suppress(RayError):  # `receive` tells
        await actor.send.remote(messages)


def _cause(error: Exception) -> str:
    """Ray's texts hold the remote stack, too; what was raised there says enough."""
    if isinstance(error, TimeoutError):
        return f"the Ray actor did not start an executor within {START_TIMEOUT_S:.0f} s"
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{'' if isinstance(cause, ChildFailed) else f'{type(cause).__name__}: '}{cause}"[:1024]


async def places(
    config: WorkerConfig, environment: Mapping[str, str], scratch: Path, settings: Callable[[int], dict[str, Any]]
) -> list[Place]:
    """One for each device of the cluster that is free: its GPUs, or its CPUs where it has none. `settings` of a lane.

    Raises Unavailable where there is no cluster or no free device, InvalidArgument for a platform it has not.
    """
    await asyncio.to_thread(_connect, config.ray_address)
    device, count = _devices(config.platform)
    actors = await reserve(device, min(count, MAX_DEVICES))
    log.info("devices reserved", device=device, cluster=count, most=MAX_DEVICES, reserved=len(actors))
    if not actors:
        raise Unavailable(f"engine: none of the {count} {device}s of the Ray cluster is free")
    own = {
        "JAX_PLATFORMS": config.platform or ("cuda" if device == "GPU" else "cpu"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),  # the agent's: they are part of the env_class
        **(shared_gpu() if device == "GPU" else {}), **environment,
    }  # fmt: skip
    functions = environment.get(FILES_VARIABLE)
    files = [_mark(scratch), *(functions.split(os.pathsep) if functions else ())]
    return [RayPlace(device, actor, settings(lane), own, files) for lane, actor in enumerate(actors)]


def _mark(folder: Path) -> str:
    """A file that no node has by chance, in a folder of that name on a disk of its own."""
    path = folder / f"seen-by-all-{uuid4().hex}"
    path.touch()
    return str(path)


def _connect(address: str) -> None:
    # Never in the main thread: there Ray takes SIGTERM, which is the agent's sign to drain.
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        first = str(error).partition("\n")[0]
        raise Unavailable(f"ray_address: no Ray cluster at {address!r}, or none with a node here: {first}") from None


def _devices(platform: str) -> tuple[str, int]:
    """What a lane reserves, and how many the cluster has of it."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    device = RESOURCES.get(platform) or ("GPU" if have.get("GPU", 0) >= 1 else "CPU")
    count = int(have.get(device, 0))
    if not count or platform not in ("", *RESOURCES):
        problem = f"the Ray cluster has {count} {device}s" if platform in RESOURCES else "must be cpu or cuda with Ray"
        raise InvalidArgument(f"platform: {platform!r}: {problem}", violations=[("platform", problem)])
    return device, count


async def reserve(device: str, count: int) -> list[Any]:
    """Relays with a device each, as many of `count` as the cluster has free within the time limit."""
    needs = {"num_gpus": 1, "num_cpus": 0} if device == "GPU" else {"num_cpus": 1}
    actors = {asyncio.ensure_future(actor.__ray_ready__.remote()): actor
              for actor in (RELAY.options(**needs).remote() for _ in range(count))}  # fmt: skip
    done, _ = await asyncio.wait(actors, timeout=RESERVE_TIMEOUT_S)
    ready = []
    for waiting, actor in actors.items():
        if waiting in done and waiting.exception() is None:
            ready.append(actor)
        else:
            waiting.cancel()
            await asyncio.to_thread(ray.kill, actor)
    return ready
