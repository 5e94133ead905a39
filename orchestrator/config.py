"""Configuration of the orchestrator; every time is in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from computemesh.service.artifacts import MAX_BYTES, QUOTA_BYTES, TTL_MS
from computemesh.service.config import number
from computemesh.service.database import Database
from computemesh.service.exposure import Exposure
from computemesh.service.retention import HOUR_MS


@dataclass(frozen=True)
class Config(Exposure, Database):
    """Addresses are HOST:PORT. `advertise` is where workers and receipts find this orchestrator (empty: `listen`)."""

    data_dir: str
    key_file: str
    listen: str = "127.0.0.1:7103"
    advertise: str = ""
    chain_id: str = "computemesh-local"
    market: str = "127.0.0.1:7102"
    ledger: str = "127.0.0.1:7101"
    # URL of the artifact store, the market's own: file:///folder, s3://bucket/prefix, gs://, az://; empty: none.
    artifacts: str = ""
    # Largest artifact taken from a worker, bytes.
    artifact_max_bytes: int = number(MAX_BYTES)
    # How long a worker's put keeps an artifact that is not judged: one of an attempt that came to nothing.
    artifact_ttl_ms: int = 24 * HOUR_MS
    # Most bytes a worker may keep in the store at once; what was judged does not count.
    artifact_quota_bytes: int = QUOTA_BYTES
    # How long `mesh verify --replay` finds the outputs of an accepted result, and openings that were too large for a
    # message.
    evidence_ttl_ms: int = TTL_MS
    openings_ttl_ms: int = 24 * HOUR_MS
    # Silence of a worker for this long ends its leases.
    worker_lease_ms: int = number(15_000)
    heartbeat_interval_ms: int = number(3_000)
    # A job that no heartbeat named for this long is given to another worker.
    job_lease_ms: int = number(60_000)
    # Heartbeats renew a job's lease no longer than this; once three jobs of its task were accepted, no longer than ten
    # times their mean (at least job_lease_ms), if that is less.
    job_limit_ms: int = number(900_000)
    # Time a challenge may stay unanswered; openings too large for a message may take so much longer as uploading their
    # bytes takes at this rate.
    opening_timeout_ms: int = number(10_000)
    upload_bytes_per_s: int = number(4 << 20)
    # Audits of so long draw from one secret, sealed on the ledger before and revealed two such spans later.
    beacon_epoch_ms: int = number(600_000)
    audit_threads: int = number(2)
    # Processes that judge what may need JAX and put task files together; time for one audit, and for one assembly.
    audit_processes: int = 1
    audit_timeout_ms: int = number(120_000)
    assembly_timeout_ms: int = number(600_000)
    # A running task's preview is made at most this often.
    preview_interval_ms: int = 3_000
    # Most disk for artifacts that audits read.
    cache_bytes: int = 16 << 30
    # Tasks held at once.
    task_credits: int = number(64)
    # A lower priority that was not served for this long counts as one priority higher, and so on.
    aging_ms: int = number(5_000)
    # After this many wrong results or expired leases in a row a worker is given nothing for the cooldown.
    wrong_streak: int = number(3)
    wrong_cooldown_ms: int = 600_000
    # A job that failed this often, whoever tried it, fails its task.
    max_attempts: int = number(32)
    # Of jobs whose results nobody can check cheaply, so many percent (never below 5) are given to a worker of a second
    # owner, too; of workers without reputation five times as many.
    replica_percent: int = number(5, least=0, most=100)
    # Time running jobs have to finish when the orchestrator is told to stop.
    drain_ms: int = 3_000
    # HOST:PORT where Prometheus reads /metrics over HTTP; empty: nowhere.
    metrics_listen: str = ""
    # OTLP collector (gRPC, HOST:PORT or URL) that gets traces; empty: $OTEL_EXPORTER_OTLP_ENDPOINT, else none.
    traces: str = ""
