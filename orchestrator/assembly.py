"""Puts the orchestrator together: database and restart, core, streams, server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import structlog

from computemesh.service import access
from computemesh.service import artifacts as artifact_service
from computemesh.service import server as servers
from computemesh.service.artifacts import Artifacts
from computemesh.service.crashpoints import crash_point
from computemesh.service.database import open_store
from computemesh.service.store import Connection, GroupCommit
from computemesh.trust import merkle
from computemesh.trust.errors import InvalidArgument, MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, ledger_pb2_grpc, market_pb2
from orchestrator import events as e
from orchestrator import service, settlement, store
from orchestrator.accusations import Accusations
from orchestrator.audits import Audits
from orchestrator.beacons import Beacons
from orchestrator.config import Config
from orchestrator.core import Core
from orchestrator.dispatch import Dispatch, read_lease
from orchestrator.files import WORKER, TaskFiles
from orchestrator.model import Task
from orchestrator.outputs import Outputs
from orchestrator.rewards import ReplicaRewards
from orchestrator.runtime import Runtime, limits, now_ms
from orchestrator.standing import Standing
from orchestrator.submitter import Submitter

# A worker opens one stream and a few unary calls on its connection.
STREAMS_PER_CONNECTION = 4
log = structlog.get_logger("orchestrator")


def read_key(path: str) -> PrivateKey:
    """The key in a file of 64 hexadecimal characters. Raises InvalidArgument."""
    try:
        return PrivateKey.from_bytes(bytes.fromhex(Path(path).read_text().strip()))
    except OSError as error:
        raise InvalidArgument(f"key_file: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidArgument(f"key_file: {path} must hold 64 hexadecimal characters") from None


def restore(
    core: Core, connection: Connection, now: int
) -> tuple[list[tuple[bytes, bytes]], list[e.SaveOutcome]]:
    """Feed the core what was durable at `now`, Unix ms: (settle transactions without an answer, outcomes without an
    acknowledgement).

    Attempts that were committed but not accepted are void: their jobs are queued again, and nobody is blamed.
    """
    outcomes: list[e.SaveOutcome] = []
    for task_id, epoch, raw, status, completed, detail, root, height, artifacts in store.open_tasks(connection):
        try:
            task = read_lease(market_pb2.TaskLease.FromString(raw))
        except MeshError as error:
            task = Task(task_id, epoch, "", ())
            detail = detail or str(error)
        if status == store.DECIDED:
            task.outcome, task.ended = ("COMPLETED" if completed else "FAILED"), True
            task.detail, task.root, task.height, task.artifacts = detail, root, height, artifacts
        task.epoch = epoch
        outputs = store.outputs_of(connection, task_id) if task.leaves else ()
        core.step(e.TaskLeased(task, raw, store.results_of(connection, task_id), outputs), now)
    pending = []
    for tx_id, body, answered, refused, height in store.open_settles(connection):
        parts = settlement.read_parts(ledger_pb2.Transaction.FromString(body), core.state.tasks)
        core.step(e.SettleRestored(tx_id, parts), now)
        if not answered:
            pending.append((tx_id, body))
            continue
        core.replay.extend(core.step(e.SettleAnswered(tx_id, refused, height, replay=True), now).work)
    for task in core.state.tasks.values():
        if task.outcome in ("COMPLETED", "FAILED"):
            outcomes.append(e.SaveOutcome(task.id, task.epoch, task.outcome == "COMPLETED", task.detail, task.root,
                                          task.height, task.settled, b"", task.artifacts))
    return pending, outcomes


def register(runtime: Runtime, server: grpc.aio.Server) -> None:
    """Everything this orchestrator serves."""
    service.register(runtime, server)
    if runtime.artifacts is not None:
        admitted = artifact_service.signed_by(
            runtime.config.chain_id, lambda key: key in runtime.core.state.records or key == runtime.key.public, WORKER
        )
        artifact_service.mount(server, runtime.artifacts, admitted)


def roles(runtime: Runtime, key: bytes) -> frozenset[access.Role]:
    """What a key is to this orchestrator."""
    if key == runtime.key.public:
        return frozenset({access.Role.ORCHESTRATOR, access.Role.OPERATOR})
    return frozenset({access.Role.WORKER} if key in runtime.core.state.records else ())


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises MeshError where the configuration cannot work."""
    key = read_key(config.key_file)
    data_dir = Path(config.data_dir)
    connection = open_store(config, data_dir / store.FILE, store.STEPS)
    boot, next_batch = store.start(connection)
    core = Core(boot, limits(config), next_batch)
    pending, outcomes = restore(core, connection, now_ms())
    crash_point("orchestrator.start.restored")
    log.info("started", boot=boot, address=key.address, tasks=len(core.state.tasks), unanswered=len(pending))
    group = GroupCommit(connection)
    merkle.prepare()
    channel = servers.dial(config.ledger, config.trust)
    runtime = Runtime(config, key, core, group, ledger_pb2_grpc.LedgerServiceStub(channel))  # type: ignore[no-untyped-call]
    if config.artifacts:
        runtime.artifacts = Artifacts(
            config.artifacts, config.artifact_max_bytes, config.artifact_ttl_ms, config.artifact_quota_bytes
        )
    files = None if runtime.artifacts is None else TaskFiles(runtime.artifacts, data_dir / "cache", config.cache_bytes)
    runtime.outputs = Outputs(runtime, Audits(config.audit_processes, data_dir / "compile-cache"), files)
    names = [service.SERVICE, *([artifact_service.SERVICE] if runtime.artifacts is not None else [])]
    server, port = servers.build_server(
        config.listen, lambda it: register(runtime, it), names,
        identify=access.by_key(config.chain_id, lambda caller: roles(runtime, caller), now_ms), exposure=config,
        max_concurrent_streams=STREAMS_PER_CONNECTION,
    )  # fmt: skip
    runtime.submitter, runtime.standing = Submitter(runtime), Standing(runtime)
    runtime.beacons = Beacons(runtime, config.beacon_epoch_ms)
    runtime.accusations = Accusations(runtime)
    runtime.rewards = ReplicaRewards(runtime)
    advertised = config.advertise or f"{config.listen.rsplit(':', 1)[0]}:{port}"
    runtime.dispatch = Dispatch(runtime, advertised)
    for row in outcomes:
        runtime.dispatch.outcome(row)
    for work in core.replay:
        runtime.do(work)
    for tx_id, body in pending:
        runtime.spawn(runtime.submitter.send(tx_id, body))
    for part in (runtime.submitter.run(), runtime.submitter.follow_blocks(), runtime.dispatch.run(), runtime.ticks(),
                 runtime.outputs.run(), runtime.standing.run(), runtime.beacons.run(),
                 runtime.accusations.run(), runtime.rewards.run()):
        runtime.spawn(part)
    stop = asyncio.Event()
    servers.stop_on_signals(stop)
    log.info("serving", port=port, advertise=advertised)
    try:
        await servers.serve(server, stop, before_stop=runtime.shut_down)
    finally:
        await runtime.close()
        await channel.close(None)
