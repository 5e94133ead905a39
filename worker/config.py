"""Settings of one worker agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from computemesh.service.exposure import Exposure

DEFAULT_DATA_DIR = str(Path.home() / ".computemesh" / "worker")


@dataclass(frozen=True)
class WorkerConfig(Exposure):
    """What a worker is told. Only `orchestrator` has no useful default: HOST:PORT, or several separated by
    commas, of which the worker takes one at random and goes on to the next when it is lost or stops.

    `data_dir` holds `worker.key` (made at the first start), `nonce` and the compile cache; one agent per
    folder. `control_listen` is HOST:PORT of WorkerService, empty = none. `challenge_types` empty = every type
    installed. `platform` is what JAX calls it (cpu, cuda, tpu), empty = JAX's choice. `credits` is a fixed
    number of jobs held at a time, 0 = adapted to how long jobs take. `price_units_per_teraop` in base units.
    `functions` are Python files with exposed functions (`computemesh.expose`); without any the worker takes no
    `function` jobs.
    """

    orchestrator: str
    data_dir: str = DEFAULT_DATA_DIR
    control_listen: str = ""
    display_name: str = ""
    challenge_types: tuple[str, ...] = ()
    platform: str = ""
    # Where executors run: "local" on this machine's devices, "ray" on those of a Ray cluster.
    engine: str = "local"
    # HOST:PORT of that cluster, "auto" = the one that has a node on this machine.
    ray_address: str = "auto"
    credits: int = 0
    # Account of whoever owns this machine, `cpc1...`; empty: the worker's own.
    owner: str = ""
    # TYPE=UNITS: lowest price for jobs of a task type, base units per 10^12 operations, where it differs.
    asks: tuple[str, ...] = ()
    price_units_per_teraop: int = 0
    functions: tuple[str, ...] = ()
    drain_timeout_ms: int = 30_000
    # HOST:PORT where Prometheus reads /metrics over HTTP; empty: nowhere.
    metrics_listen: str = ""
    # OTLP collector (gRPC, HOST:PORT or URL) that gets traces; empty: $OTEL_EXPORTER_OTLP_ENDPOINT, else none.
    traces: str = ""
