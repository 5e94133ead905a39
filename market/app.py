"""Puts a market together: store, core, ledger, streams."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog

from computemesh import workloads
from computemesh.service import access, retention
from computemesh.service import artifacts as artifact_service
from computemesh.service.artifacts import Artifacts
from computemesh.service.blobs import Owner
from computemesh.service.crashpoints import crash_point
from computemesh.service.database import open_store
from computemesh.service.server import build_server, dial, serve
from computemesh.service.store import GroupCommit
from computemesh.trust.errors import InvalidArgument, MeshError, Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, market_pb2, market_pb2_grpc
from market import store
from market.callers import Callers
from market.config import Config
from market.core import Core
from market.creation import Creation
from market.dispatch import DispatchStream
from market.engine import Engine, now_ms
from market.ledger_client import LedgerClient
from market.service import MarketService
from market.states import TERMINAL, Drain, Release
from market.webhooks import Webhooks

NAME = "computemesh.v1.MarketService"
DRAIN_S = 0.5
log = structlog.get_logger("market")


@dataclass
class Market:
    """A market that is built but does not serve yet."""

    server: grpc.aio.Server
    port: int
    engine: Engine
    creation: Creation
    webhooks: Webhooks
    ledger: LedgerClient
    channel: grpc.aio.Channel
    artifacts: Artifacts | None

    async def run(self, stop: asyncio.Event) -> None:
        """Reloads, serves until `stop`, drains."""
        await self.engine.restore()
        crash_point("market.start.restored")
        await self.creation.recover()
        crash_point("market.start.recovered")
        if isinstance(self.engine.released, Releases):
            await self.engine.released.sweep(self.engine.group)
        background = [asyncio.create_task(part) for part in (
            self.ledger.run(), self.engine.tick(), self.webhooks.run())]
        if self.artifacts is not None:
            background.append(asyncio.create_task(self.artifacts.run()))
        for task in background:
            task.add_done_callback(lambda _: stop.set())  # they end only with an error, and then so does the market
        log.info("market serves", port=self.port, ledger=self.ledger.address)
        try:
            await serve(self.server, stop, before_stop=self._drain)
        finally:
            for task in background:
                task.cancel()
            results = await asyncio.gather(*background, return_exceptions=True)
            await self.creation.close()
            await self.ledger.close()
            await self.channel.close(None)
            self.engine.group.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _drain(self) -> None:
        """Tells orchestrators and watchers: `server.stop` would tell open streams nothing."""
        await self.engine.do(Drain())
        self.engine.stop_watchers()
        streams = [item for item in self.engine.connections.values() if isinstance(item, DispatchStream)]
        notice = common_pb2.DrainNotice(cause="shutting down", until_ms=now_ms() + int(DRAIN_S * 1000))
        for stream in streams:
            stream.send(market_pb2.DispatchResponse(drain=notice))
        await asyncio.sleep(DRAIN_S if streams else 0)
        for stream in streams:
            stream.end(Unavailable("the market is stopping; dial again", retry_after_ms=1000))


class Releases:
    """Lets go of what ended tasks read and left; their files stay as long as a customer's own put would."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._running: set[asyncio.Task[None]] = set()

    def __call__(self, item: Release) -> None:
        task_type = workloads.get(item.challenge_type)
        if task_type.inputs is None and task_type.output_bytes is None:
            return
        task = asyncio.create_task(self._release(item))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def sweep(self, group: GroupCommit) -> None:
        """At start: lets go of what a crash kept of tasks that ended."""
        found = await self._artifacts.store.objects.list("refs/task")
        references = (retention.read(one.path, one.modified_ms) for one in found)
        for task_id in {one.owner.id for one in references if one.expires_ms == retention.FOREVER}:
            known = await group.read(partial(store.task, task_id=bytes.fromhex(task_id)))
            if known is not None and known[1].status in TERMINAL:
                await self._release(Release(known[0].task_id, known[0].challenge_type, known[1].files))

    async def _release(self, item: Release) -> None:
        files = [row.digest for row in market_pb2.Task.FromString(item.files).artifacts]
        try:
            await self._artifacts.release_task(item.task_id.hex(), self._artifacts.ttl_ms, files)
            crash_point("market.files.released")
            # Which output was which job's (orchestrator/files.py) matters to nobody any more.
            objects = self._artifacts.store.objects
            await objects.delete([one.path for one in await objects.list(f"outputs/{item.task_id.hex()}")])
        except MeshError as error:  # the references stay, and with them some bytes
            log.error("a task's artifacts were not released", task=item.task_id.hex(), error=error.message)


def read_key(path: str) -> PrivateKey:
    """The key in a file of 64 hexadecimal characters. Raises InvalidArgument."""
    try:
        return PrivateKey.from_bytes(bytes.fromhex(Path(path).read_text("ascii").strip()))
    except (OSError, ValueError) as error:
        problem = f"cannot read a key (64 hexadecimal characters) from {path}: {error}"
        raise InvalidArgument(f"key_file: {problem}", violations=[("key_file", problem)]) from None


def build(config: Config) -> Market:
    """Every part of the market, in the running event loop. Raises InvalidArgument for what is wrong with `config`."""
    key = read_key(config.key_file)
    callers = Callers(config.chain_id, key.secret, config.api_keys)
    group = GroupCommit(open_store(config, Path(config.data_dir) / store.FILE, store.STEPS))
    channel = dial(config.ledger, config.trust)
    ledger = LedgerClient(channel, config.ledger, config.chain_id, key)
    engine = Engine(Core(config.lease_ms), group, ledger)
    artifacts = None
    if config.artifacts:
        artifacts = Artifacts(
            config.artifacts, config.artifact_max_bytes, config.artifact_ttl_ms, config.artifact_quota_bytes
        )
        engine.released = Releases(artifacts)
    service = MarketService(config, key, callers, engine, artifacts)

    def register(server: grpc.aio.Server) -> None:
        market_pb2_grpc.add_MarketServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        if artifacts is not None:
            artifact_service.mount(
                server, artifacts, lambda context: Owner("account", callers.identify(context, now_ms()).address))

    def identify(context: grpc.aio.ServicerContext[Any, Any]) -> access.Caller:
        caller = callers.identify(context, now_ms())
        return access.Caller(caller.address, frozenset({access.Role.CUSTOMER}), caller.read_only)

    names = [NAME, *([artifact_service.SERVICE] if artifacts is not None else [])]
    server, port = build_server(config.listen, register, names, identify=identify, exposure=config)
    return Market(server, port, engine, service.creation, service.webhooks, ledger, channel, artifacts)
