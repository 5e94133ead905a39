"""A whole mesh on this machine as child processes: ledger, market, orchestrator and workers.

    with Cluster(tmp_path, workers=2, port_base=0) as cluster:
        client = Client(profile=cluster.profile)
        cluster.kill("market")              # kill -9
        cluster.start_process("market")     # returns once it is healthy again

Nothing outlives it: each child ends when its pipe to this process closes (`computemesh.cli.child`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from computemesh.cli import funding, health
from computemesh.cli.plan import Node, Plan, prepare, taken
from computemesh.client.profile import Profile
from computemesh.trust.errors import InvalidArgument, InvalidState, Unavailable

STOP_ORDER = (("edge",), ("worker",), ("orchestrator",), ("market",), ("ledger",))
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
STEADY_S = 30.0
"""A child alive for this long has recovered: its next restart waits the shortest time again."""

DATABASE = "COMPUTEMESH_DATABASE"

Notice = Callable[[str], None]


def stands_by(name: str) -> bool:
    """Whether a process is a replica that serves only once the one before it is lost."""
    return name.startswith(("ledger-", "market-"))


class Cluster:
    """The processes of one cluster folder.

    `port_base`: None = stored or default ports (7101..), 0 = free ones, else the first port. `host`: where other
    machines reach the services, None = as stored, this machine only at first. `edge_port`: None = no edge (REST and the
    web page), 0 = stored or default port (7104), else its port. `overrides`: config
    values per process name ("worker" means all). `environment`: variables per process name, read at each start of one.
    `supervise`: restart children that die by themselves. `notice`:
    told each thing people should know. `tls`: every port with a certificate of the folder's own authority; a folder
    that has one keeps it. `database`: URL of a PostgreSQL for the services' tables, None = $COMPUTEMESH_DATABASE, empty
    = as stored, SQLite at first. `replicas`: how many of each service there are in it; of ledgers and markets one
    serves and the others stand by. `start_timeout_s`, `stop_timeout_s`: per process.
    """

    def __init__(
        self,
        data: Path | str,
        workers: int = 2,
        *,
        port_base: int | None = None,
        host: str | None = None,
        edge_port: int | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        environment: Mapping[str, Mapping[str, str]] | None = None,
        supervise: bool = False,
        fund: bool = True,
        tls: bool = False,
        database: str | None = None,
        replicas: int = 1,
        notice: Notice = lambda text: None,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 12.0,
    ) -> None:
        self.data = Path(data).absolute()
        self.workers, self.edge = workers, edge_port is not None
        self.notice = notice
        self.start_timeout_s, self.stop_timeout_s = start_timeout_s, stop_timeout_s
        self._port_base, self._host, self._edge_port, self._overrides = port_base, host, edge_port, overrides
        self._environment = environment or {}
        self._supervise, self._fund, self._tls = supervise, fund, tls
        self._database = os.environ.get(DATABASE, "") if database is None else database
        self.replicas = replicas
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._expected: set[str] = set()  # names that should be running; what dies outside it was meant to
        self._guard = threading.RLock()
        self._closing = threading.Event()
        self._monitor: threading.Thread | None = None
        self._lock: IO[str] | None = None
        self._plan: Plan | None = None
        self._profile: Profile | None = None

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Keys, addresses and configuration files. Raises InvalidState before `start`."""
        if self._plan is None:
            raise InvalidState("the cluster has not been started")
        return self._plan

    @property
    def profile(self) -> Profile:
        """What a client needs to reach this cluster. Raises InvalidState before `start`."""
        if self._profile is None:
            raise InvalidState("the cluster has not been started")
        return self._profile

    @property
    def names(self) -> list[str]:
        """ledger, market, orchestrator, worker-1, ..., edge"""
        return list(self.plan.nodes)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return {name: child.pid for name, child in self._children.items() if child.poll() is None}

    @property
    def running(self) -> bool:
        """Whether any child runs or may be restarted."""
        return self._lock is not None or bool(self.pids)

    def address(self, name: str) -> str:
        """HOST:PORT of a process; of a worker its control port."""
        return self.plan.nodes[name].address

    def log(self, name: str) -> Path:
        """The file with everything a process wrote."""
        return self.data / "logs" / f"{name}.log"

    # --- all of it -------------------------------------------------------------------------------------------------

    def start(self, progress: Callable[[str, str], None] = lambda name, state: None) -> Cluster:
        """Prepare the folder, start every process in order and wait until all are healthy.

        `progress(name, state)` hears "starting" and "ready". On failure everything is stopped again. Raises
        InvalidState where a port or the folder is taken, Unavailable where a process does not come up,
        InvalidArgument where the folder cannot be used. A start refused for its addresses changes no configuration.
        """
        with files_named(self.data):
            return self._start(progress)

    def _start(self, progress: Callable[[str, str], None]) -> Cluster:
        self._take_lock()
        try:
            self._plan = prepare(self.data, self.workers, self._port_base, self._overrides, self._host,
                                 _refuse_taken_ports, self._edge_port, self._tls, self._database,
                                 self.replicas)  # fmt: skip
            for name in self.names:
                progress(name, "starting")
                self._spawn(name)
                if not name.startswith("worker") and not stands_by(name):
                    self.wait_healthy(name)
                    progress(name, "ready")
                if name == "ledger":
                    self._profile = funding.write_profile(self.plan)
                    if self._fund:
                        funding.fund(self.plan, self.profile)
            for name in self._worker_names():
                self.wait_healthy(name)
                progress(name, "ready")
        except BaseException:
            self.stop()
            raise
        if self._supervise:
            self._monitor = threading.Thread(target=self._watch_children, name="cluster-monitor", daemon=True)
            self._monitor.start()
        return self

    def stop(self, progress: Callable[[str, str], None] = lambda name, state: None) -> None:
        """Stop everything: workers drain first, the ledger goes last; what does not end in time is killed."""
        self._closing.set()
        if self._monitor is not None:
            self._monitor.join()
            self._monitor = None
        for stage in STOP_ORDER:
            self._stop_together([name for name in self._children if name.split("-")[0] in stage], progress)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._closing.clear()

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Cluster({str(self.data)!r}, running={sorted(self.pids)})"

    # --- one process -----------------------------------------------------------------------------------------------

    def start_process(self, name: str, wait: bool = True) -> int:
        """Start a process that does not run, and wait until it is healthy. Returns its id. Raises Unavailable."""
        self._spawn(name)
        if wait:
            self.wait_healthy(name)
        return self._children[name].pid

    def kill(self, name: str) -> int:
        """kill -9: the process gets no chance to tidy up. Returns the id it had. Raises InvalidState."""
        with self._guard:
            child = self._running(name)
            self._expected.discard(name)
            child.kill()
            child.wait()
            return child.pid

    def stop_process(self, name: str) -> int:
        """SIGTERM, and SIGKILL after `stop_timeout_s`. Returns the exit status. Raises InvalidState."""
        self._running(name)
        self._stop_together([name], lambda name, state: None)
        return self._children[name].wait()

    def restart(self, name: str) -> int:
        """Stop a process in order and start it again. Returns the new id."""
        self.stop_process(name)
        return self.start_process(name)

    def wait_healthy(self, name: str, timeout_s: float | None = None) -> None:
        """Wait until a process serves, a worker until its orchestrator knows it.

        Raises Unavailable, with the end of its log, when it ends or takes longer than `timeout_s`.
        """
        limit = self.start_timeout_s if timeout_s is None else timeout_s
        until = time.monotonic() + limit
        child, node = self._children[name], self.plan.nodes[name]
        while not health.ready(node.module, node.address, 1.0, self.plan.trust):
            if child.poll() is not None:
                raise Unavailable(f"{name} ended with status {child.returncode} while starting{self._tail(name)}")
            if time.monotonic() > until:
                raise Unavailable(f"{name} was not ready after {limit:.0f} s{self._tail(name)}")
            time.sleep(0.05)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _worker_names(self) -> list[str]:
        return [name for name in self.names if name.startswith("worker")]

    def _take_lock(self) -> None:
        if self._children and self.pids:
            raise InvalidState("the cluster runs already")
        self.data.mkdir(parents=True, exist_ok=True)
        lock = open(self.data / ".lock", "a+")  # noqa: SIM115 (held until stop)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise InvalidState(
                f"{self.data} is in use by another cluster (process {owner}); stop it or choose another --data"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        child = self._children.get(name)
        if child is None or child.poll() is not None:
            known = ", ".join(sorted(self.pids)) or "nothing"
            raise InvalidState(f"{name!r} does not run; running: {known}")
        return child

    def _spawn(self, name: str) -> None:
        with self._guard:
            node = self.plan.nodes.get(name)
            if node is None:
                raise InvalidState(f"{name!r} is not part of the cluster: {', '.join(self.names)}")
            old = self._children.get(name)
            if old is not None and old.poll() is None:
                raise InvalidState(f"{name!r} runs already")
            if old is not None:
                _end_group(old)  # e.g. a device process whose agent was killed
            self._children[name] = self._popen(node)
            self._started[name] = time.monotonic()
            self._expected.add(name)

    def _popen(self, node: Node) -> subprocess.Popen[bytes]:
        path = self.log(node.name)
        path.parent.mkdir(exist_ok=True)
        with open(path, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "computemesh.cli.child", node.module, "--config", str(node.config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only us, and we stop them in order
                env={**os.environ, "PYTHONPATH": _search_path(), "PYTHONUNBUFFERED": "1",
                     **self._environment.get(node.name, {})},
            )

    def _stop_together(self, names: list[str], progress: Callable[[str, str], None]) -> None:
        with self._guard:
            for name in names:
                self._expected.discard(name)
                if self._children[name].poll() is None:
                    progress(name, "stopping")
                    self._children[name].send_signal(signal.SIGTERM)
        until = time.monotonic() + self.stop_timeout_s
        for name in names:
            child = self._children[name]
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.notice(f"{name} did not stop within {self.stop_timeout_s:.0f} s and was killed")
                child.kill()
                child.wait()
            _end_group(child)
            progress(name, "stopped")

    def _tail(self, name: str, lines: int = 8) -> str:
        try:
            text = self.log(name).read_text(errors="replace").rstrip().splitlines()[-lines:]
        except OSError:
            text = []
        return "".join(f"\n    {line[:300]}" for line in text) + f"\n  full log: {self.log(name)}"

    def _watch_children(self) -> None:
        due: dict[str, float] = {}
        while not self._closing.wait(0.2):
            now = time.monotonic()
            with self._guard:
                dead = [name for name in self._expected if self._children[name].poll() is not None]
            for name in dead:
                if name not in due:
                    due[name] = now + self._note_death(name, now)
                elif now >= due[name]:
                    del due[name]
                    self._spawn(name)

    def _note_death(self, name: str, now: float) -> float:
        """Say that a child died; how long to wait before its restart, seconds."""
        if now - self._started[name] > STEADY_S:
            self._failures[name] = 0
        failures = self._failures.get(name, 0)
        self._failures[name] = failures + 1
        wait = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
        status = self._children[name].returncode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.notice(f"{name} {how}; it starts again in {wait:g} s (log: {self.log(name)})")
        return wait


@contextlib.contextmanager
def files_named(data: Path) -> Iterator[None]:
    """What the system refuses about files in `data` is an InvalidArgument that names the path."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or data)
        of = "" if where.startswith(str(data)) else f" (for --data {data})"
        raise InvalidArgument(f"cannot use {where}{of}: {error.strerror or error}", reason="DATA_UNUSABLE") from error


def _refuse_taken_ports(addresses: Mapping[str, str]) -> None:
    busy = [f"{address} ({name})" for name, address in addresses.items() if taken(address)]
    if busy:
        raise InvalidState(
            f"another program listens on {', '.join(busy)}; stop it, or choose other ports with --port-base N",
            reason="PORT_TAKEN",
        )


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what a finished child left in its process group, and let go of its pipe."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _search_path() -> str:
    """So that children import the same code wherever the caller's folder is."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
