"""Configuration of the ledger service."""

from __future__ import annotations

from dataclasses import dataclass

from computemesh.service.config import number
from computemesh.service.database import Database
from computemesh.service.exposure import Exposure


@dataclass(frozen=True)
class Config(Exposure, Database):
    """`authority_key` is the hexadecimal public key that may mint; `log_key_file` holds an Ed25519 seed in hexadecimal.
    `anchor` is the URL of the store of the last signed checkpoint, a folder or a bucket that no restored `data_dir`
    takes with it (`file:///folder`, `s3://bucket/prefix`, ...); empty: a folder beside `data_dir`.

    Authority, treasury, chain id, shares and rules (`Rules` in state.py says what they are) belong to the chain: they
    are fixed by its first start. Intervals and limits may change at any restart.
    """

    listen: str
    data_dir: str
    chain_id: str
    authority_key: str
    treasury_address: str
    log_key_file: str
    anchor: str = ""
    block_interval_ms: int = number(50)
    block_max_results: int = number(4096)
    burn_percent: int = 60
    worker_percent: int = 25
    validator_percent: int = 10
    treasury_percent: int = 5
    dispute_window_blocks: int = 2
    vote_blocks: int = 200
    unbonding_blocks: int = 1000
    cooldown_blocks: int = 1000
    dispute_bond_units: int = 1_000_000
    validator_stake_units: int = 10_000_000
    slash_percent: int = 50
    winner_percent: int = 50
    voters_percent: int = 25
    vote_cap_percent: int = 40
    quorum: int = 3
    retract_wait_ms: int = 0
    # HOST:PORT where Prometheus reads /metrics over HTTP; empty: nowhere.
    metrics_listen: str = ""
    # OTLP collector (gRPC, HOST:PORT or URL) that gets traces; empty: $OTEL_EXPORTER_OTLP_ENDPOINT, else none.
    traces: str = ""
