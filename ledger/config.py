"""Configuration of the ledger service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`authority_key` is the hexadecimal public key that may mint; `log_key_file` holds an Ed25519 seed in hexadecimal.

    Authority, treasury, chain id and shares belong to the chain: they are fixed by its first start. Intervals and
    limits may change at any restart.
    """

    listen: str
    data_dir: str
    chain_id: str
    authority_key: str
    treasury_address: str
    log_key_file: str
    block_interval_ms: int = 50
    block_max_results: int = 4096
    burn_percent: int = 60
    worker_percent: int = 25
    validator_percent: int = 10
    treasury_percent: int = 5
