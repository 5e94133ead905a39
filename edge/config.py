"""What an edge is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from computemesh.service.config import number

MAX_REQUEST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Config:
    """One edge. Addresses are HOST:PORT, those of replicas separated by commas.

    `advertise` is where clients reach it, `listen` what it binds. `data_dir` is where Envoy's configuration is written.
    `page` is the folder of the web page, `openapi` the file of the OpenAPI document; empty: none. It answers to
    `advertise`, `hosts` (names without port) and this machine's own; "*" is any. Requests that a page of another origin
    makes are refused, unless the origin is in `cors_origins`.
    """

    data_dir: str
    market: str
    ledger: str
    orchestrator: str
    listen: str = "127.0.0.1:7104"
    page: str = ""
    openapi: str = ""
    advertise: str = "127.0.0.1:7104"
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    # File of the API key that is sent for requests without credentials: only for an edge that nobody else reaches.
    api_key_file: str = ""
    # PEM files; both or none. Also shown to services that ask.
    tls_certificate: str = ""
    tls_key: str = ""
    # CA of the services before which this edge stands, PEM; empty: they are reached without TLS.
    tls_ca_file: str = ""
    max_connections: int = number(1024)
    # Per connection.
    max_streams: int = number(128)
    # Calls at once to each service; more are answered UNAVAILABLE.
    max_calls: int = number(1024)
    max_request_bytes: int = number(MAX_REQUEST_BYTES)
    threads: int = number(1, most=256)
    # So long an address is turned away whose connections breached HTTP again and again, 0: it may connect again at
    # once. Where many callers share an address (a load balancer's) it has to be 0.
    turned_away_s: float = number(60.0, least=0, most=86400)
