"""What a market is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from computemesh.service.artifacts import MAX_BYTES, QUOTA_BYTES, TTL_MS
from computemesh.service.config import number
from computemesh.service.database import Database
from computemesh.service.exposure import Exposure


@dataclass(frozen=True)
class Config(Exposure, Database):
    """One market. Times in milliseconds.

    `api_keys` are "NAME:SHA256HEX" of the API keys it accepts; `orchestrator_keys` the public keys (hexadecimal) it
    admits to Dispatch, empty for any.
    """

    data_dir: str
    chain_id: str
    key_file: str
    ledger: str
    listen: str = "127.0.0.1:7102"
    api_keys: tuple[str, ...] = ()
    orchestrator_keys: tuple[str, ...] = ()
    # URL of the artifact store: file:///folder, s3://bucket/prefix, gs://, az://; empty: this market serves none.
    artifacts: str = ""
    # Largest artifact taken, bytes.
    artifact_max_bytes: int = number(MAX_BYTES)
    # How long a put keeps an artifact for who put it.
    artifact_ttl_ms: int = TTL_MS
    # Most bytes one customer may keep in the store at once.
    artifact_quota_bytes: int = QUOTA_BYTES
    # Networks webhooks may reach although they are private or loopback, e.g. "10.0.0.0/8"; others of these never.
    webhook_networks: tuple[str, ...] = ()
    # Tasks a second that one customer may create, 0: no limit; how many at once after a quiet time; and how many it may
    # have that have not ended, 0: no limit. Judged before any money is held.
    tasks_per_s: float = 0.0
    tasks_burst: int = 100
    open_tasks: int = 0
    lease_ms: int = number(15_000)
    heartbeat_interval_ms: int = number(3_000)
    # HOST:PORT where Prometheus reads /metrics over HTTP; empty: nowhere.
    metrics_listen: str = ""
    # OTLP collector (gRPC, HOST:PORT or URL) that gets traces; empty: $OTEL_EXPORTER_OTLP_ENDPOINT, else none.
    traces: str = ""
