"""The agent: ties core, executors, stream and control together. Imports no JAX."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable
from pathlib import Path

import structlog

from computemesh import workloads
from computemesh.service.addresses import listed
from computemesh.service.crashpoints import crash_point
from computemesh.service.pauses import shorten_pauses
from computemesh.trust.errors import InvalidArgument, Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.v1.common_pb2 import Capabilities
from computemesh.v1.worker_pb2 import WorkerAgentStatus, WorkerDescription
from worker import engine
from worker.capabilities import capabilities, env_class
from worker.config import WorkerConfig
from worker.core import Core
from worker.events import (
    Challenged,
    Dialled,
    Effects,
    Event,
    Finished,
    Opened,
    Pause,
    Received,
    Resume,
    State,
    StreamEnded,
    Tick,
)
from worker.files import Files
from worker.functions import offer
from worker.nonce import NonceFile
from worker.process import DeviceUnavailable, ExecutorProcess
from worker.service import ControlServer
from worker.session import Session
from worker.telemetry import Telemetry

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SUPERSEDED_PAUSE_S = 60.0
# A stream that lived this long ended by accident, and the next dial is due at once; one that ends as soon as it
# is joined must not be redialled ten times a second.
SOUND_STREAM_S = 5.0
TICK_S = 0.1
log = structlog.get_logger("worker")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def load_key(folder: Path) -> PrivateKey:
    """The worker's key from `folder/worker.key` (64 hex characters), made there at the first start."""
    path = folder / "worker.key"
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        key = PrivateKey.generate()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key.secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        return key
    try:
        return PrivateKey.from_bytes(bytes.fromhex(text))
    except (ValueError, InvalidArgument):
        raise InvalidArgument(f"{path} is not a private key of 64 hex characters") from None


class Agent:
    """One worker: its core, its executors, its stream. `start` first, then `run`."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self._orchestrators = listed(config.orchestrator)
        random.shuffle(self._orchestrators)
        engine.check(config.engine)
        self._folder = Path(config.data_dir)
        self._scratch = self._folder.absolute() / "units"
        self.key = load_key(self._folder)
        self._types = list(config.challenge_types or workloads.names())
        for name in self._types:
            workloads.get(name)
        if not config.functions and "function" in self._types:
            self._types.remove("function")
        self._inbox: asyncio.Queue[tuple[Session | None, Event]] = asyncio.Queue()
        self._session: Session | None = None
        self._turn = asyncio.Lock()
        self._beside: set[asyncio.Task[None]] = set()
        self._files: Files | None = None
        self.executors: list[ExecutorProcess] = []
        self._nonces: NonceFile | None = None
        self.capabilities = Capabilities()
        self.core: Core | None = None
        self.reconnects = 0
        self._telemetry = Telemetry()

    async def start(self) -> None:
        """Open the devices. Raises DeviceUnavailable, and InvalidState where another agent has the folder."""
        self._nonces = NonceFile(self._folder)
        # What an agent that died left of unit bytes: their challenges are void.
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(exist_ok=True)
        extra, functions = await asyncio.to_thread(offer, self.config.functions)
        self.executors = await engine.executors(
            self.config, extra, self._scratch, lambda event: self._inbox.put_nowait((None, event))
        )
        await engine.start(self.executors, self.config.engine)
        crash_point("worker.start.opened")
        described = [executor.description for executor in self.executors]
        self.capabilities = capabilities(self.config, self._types, functions, described)
        batchable = [name for name in self._types if workloads.get(name).execute_batch is not None]
        self.core = core = Core(
            self.key, self.capabilities.SerializeToString(), self._types, batchable, len(self.executors),
            self._nonces.next, self.config.credits, [env_class(d) for d in described],
        )  # fmt: skip
        self._files = Files(self._folder / "artifacts", lambda: self.orchestrator, self.key, lambda: core.chain,
                            self.config.trust)  # fmt: skip

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain and return; at the latest `drain_timeout_ms` after it."""
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(executor.keep()) for executor in self.executors]
            background += [tasks.create_task(self._tick()), tasks.create_task(self._dial())]
            background.append(tasks.create_task(self._stop_after(stop)))
            try:
                await self._decide()
            finally:
                for task in background:
                    task.cancel()

    async def close(self) -> None:
        """End what still runs and release the data folder."""
        await asyncio.gather(*(executor.close() for executor in self.executors))
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        if self._files is not None:
            await self._files.close()
        if self._nonces is not None:
            self._nonces.close()

    # ---- the loop around the core

    async def _decide(self) -> None:
        assert self.core is not None
        while not (self.core.stopping and self.core.state is State.CLOSED and self._session is None):
            events = [await self._inbox.get()]
            while not self._inbox.empty():
                events.append(self._inbox.get_nowait())
            # All results that are ready share one signature: the more there is to do, the cheaper each gets.
            finished = [done for _, event in events if isinstance(event, Finished) for done in event.groups]
            for done in finished:
                self._telemetry.finished(self.core, done)
            if finished:
                await self._take(Finished(finished))
            for session, event in events:
                if not isinstance(event, Finished):
                    await self._step(session, event)

    async def _step(self, session: Session | None, event: Event) -> None:
        assert self.core is not None
        if isinstance(event, Dialled):
            self._session = session
        if session is not self._session and session is not None:
            return
        if session is not None and self.core.state is State.CLOSED and isinstance(event, Received):
            return  # said goodbye already
        await self._take(event)
        if isinstance(event, StreamEnded):
            self._session = None

    async def _take(self, event: Event) -> None:
        assert self.core is not None
        async with self._turn:  # one event's messages leave before the next event's
            await self._apply(self.core.step(event, now_ms()))

    async def _apply(self, effects: Effects) -> None:
        crash_point("worker.step.decided")
        if effects.persist is not None:
            # Before anything is sent; in a thread, so that a slow disk does not stop heartbeats being read.
            assert self._nonces is not None
            await asyncio.to_thread(self._nonces.reserve, effects.persist)
            crash_point("worker.step.durable")
        if self._session is not None:
            self._session.send(effects.send)
            crash_point("worker.step.sent")
        for run in effects.run:
            self.executors[run.lane].run(run)
        for lane, group_id in effects.cancel:
            self.executors[lane].cancel(group_id)
        assert self._files is not None
        for job in effects.fetch:
            self._do_beside(self._files.fetch(job))
        for storing in effects.store:
            self._do_beside(self._files.store(storing))
        for challenged in effects.open:
            self._do_beside(self._open(challenged))
        for level, event, fields in effects.notes:
            if event == "joined":
                fields = {**fields, **self._introduction()}
            getattr(log, level)(event, **fields)
        if effects.close is not None and self._session is not None:
            self._session.close(effects.close)

    def _do_beside(self, work: Awaitable[Event]) -> None:
        """Do something that takes a while; the core hears of its end."""

        async def run() -> None:
            self._inbox.put_nowait((None, await work))

        task = asyncio.create_task(run())
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _open(self, challenged: Challenged) -> Event:
        answer = challenged.answer
        if answer.spooled_bytes:
            assert self._files is not None
            return await self._files.open(challenged, self._scratch)
        openings = await asyncio.to_thread(answer.open, challenged.seed, challenged.k)
        crash_point("worker.units.opened")
        return Opened(challenged.lease_id, answer, openings)

    def _introduction(self) -> dict[str, object]:
        devices = [f"{device.kind} ({device.platform})" for device in self.capabilities.devices]
        return {
            "orchestrator": self.orchestrator, "address": self.key.address, "devices": devices,
            "challenge_types": self._types,
        }  # fmt: skip

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._inbox.put_nowait((None, Tick()))
            if self.core is not None:
                self._telemetry.sample(self.core)
            if self._files is not None and self.core is not None:
                await self._files.let_go(self.core.lanes.held)

    async def _stop_after(self, stop: asyncio.Event) -> None:
        await stop.wait()
        log.info("draining", timeout_ms=self.config.drain_timeout_ms)
        deadline_ms = now_ms() + self.config.drain_timeout_ms
        self._inbox.put_nowait((None, Pause(leave=True, deadline_ms=deadline_ms)))

    async def _dial(self) -> None:
        """Hold a stream, for ever: exponential backoff with full jitter between tries."""
        pause_s = FIRST_PAUSE_S
        assert self.core is not None
        while True:
            began = time.monotonic()
            session = Session(self.orchestrator, lambda s, event: self._inbox.put_nowait((s, event)),
                              self.config.trust)  # fmt: skip
            await session.run()
            if self.core.stopping:
                return
            if time.monotonic() - began >= SOUND_STREAM_S:
                pause_s = FIRST_PAUSE_S
            wait_s = random.uniform(0, pause_s)
            if session.superseded:
                # Two agents on one key sign the same nonces, and would throw each other out all day.
                wait_s = SUPERSEDED_PAUSE_S
                log.error("another worker uses this key", address=self.key.address, data_dir=str(self._folder))
            log.warning("disconnected", orchestrator=self.orchestrator, cause=session.cause,
                        redial_s=round(wait_s, 2))  # fmt: skip
            self.reconnects += 1
            self._orchestrators.append(self._orchestrators.pop(0))
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    # ---- the owner's wishes

    async def pause(self) -> None:
        """Take no new jobs. Returns once the core knows it."""
        await self._wish(Pause())

    async def resume(self) -> None:
        """Take jobs again. Returns once the core knows it; without effect while the agent is stopping."""
        await self._wish(Resume())

    async def _wish(self, event: Event) -> None:
        if self.core is None:
            raise Unavailable("the worker is starting: its devices are not open yet", retry_after_ms=1000)
        await self._take(event)

    @property
    def orchestrator(self) -> str:
        """HOST:PORT of the one that the worker works for or dials next."""
        return self._orchestrators[0]

    @property
    def chain(self) -> str:
        """The chain that the orchestrator named, empty text before it did."""
        return "" if self.core is None else self.core.chain

    def describe(self) -> WorkerDescription:
        """What WorkerService tells the owner."""
        description = WorkerDescription(
            public_key=self.key.public.hex(),
            address=self.key.address,
            orchestrator=self.orchestrator,
            status=self._status(),
            capabilities=self.capabilities,
            reconnects=self.reconnects,
        )
        if self.core is not None:
            counts = self.core.counts
            description.jobs_held = len(self.core.lanes.held)
            description.jobs_done = counts.done
            description.jobs_settled = counts.settled
            description.jobs_refused = counts.refused
            description.next_nonce = self.core.next_nonce
        return description

    def _status(self) -> WorkerAgentStatus.ValueType:
        if self.core is None:
            return WorkerAgentStatus.WORKER_AGENT_STATUS_STARTING
        if self.core.stopping:
            return WorkerAgentStatus.WORKER_AGENT_STATUS_STOPPING
        if self.core.paused or self.core.state is State.DRAINING:
            return WorkerAgentStatus.WORKER_AGENT_STATUS_DRAINING
        if self.core.state is State.READY:
            return WorkerAgentStatus.WORKER_AGENT_STATUS_CONNECTED
        return WorkerAgentStatus.WORKER_AGENT_STATUS_DISCONNECTED


def stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second ends the process at once, executors with it."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


async def run(config: WorkerConfig, stop: asyncio.Event | None = None) -> None:
    """Be a worker until `stop` is set, then drain. Without `stop`, SIGTERM and SIGINT do it.

    Raises InvalidArgument (bad key file, unknown task type, control address in use), InvalidState (another agent
    has `data_dir`, damaged nonce file) and Unavailable (no device).
    """
    stop = stop or stop_event()
    agent = Agent(config)
    control = None
    if config.control_listen:
        control = ControlServer(agent, config.control_listen, config, Path(config.data_dir))
    if control is not None:
        await control.start()
    try:
        starting = asyncio.create_task(agent.start())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        shorten_pauses()
        await agent.run(stop)
        log.info("left", done=agent.describe().jobs_done, settled=agent.describe().jobs_settled)
    except DeviceUnavailable as error:
        raise Unavailable(f"no device: {error}") from None
    finally:
        if control is not None:
            await control.stop()
        await agent.close()
