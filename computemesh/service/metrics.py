"""What services count, and the HTTP port where Prometheus reads it (text format of its exposition standard).

One process, one registry. Counters move once per call, batch or commit, never per job. Labels come from code, never
from callers: a stranger cannot make a series.
"""

from __future__ import annotations

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from computemesh.trust.errors import InvalidArgument

log = structlog.get_logger("computemesh.metrics")

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

RPCS = Counter("computemesh_rpcs", "Calls served, by method and status code.", ["method", "code"])
RPC_SECONDS = Histogram("computemesh_rpc_seconds", "Time a unary call took.", ["method"], buckets=_SECONDS)
STREAMS = Gauge("computemesh_streams", "Streaming calls open now.", ["method"])
FLOODS = Counter("computemesh_floods", "Connections ended because they sent much and nothing came of it.")
COMMIT_OPERATIONS = Histogram("computemesh_commit_operations", "Operations that shared one commit.", buckets=_SIZES)
COMMIT_SECONDS = Histogram(
    "computemesh_commit_seconds", "Time to write one group and make it durable.", buckets=_SECONDS)
ARTIFACT_BYTES = Counter("computemesh_artifact_bytes", "Bytes of artifacts moved: in, out.", ["direction"])
ARTIFACT_BYTES_IN, ARTIFACT_BYTES_OUT = ARTIFACT_BYTES.labels("in"), ARTIFACT_BYTES.labels("out")


def serve(listen: str) -> None:
    """Serves GET /metrics on HOST:PORT in a thread of its own until the process ends; nothing where `listen` is empty.

    Raises InvalidArgument naming `metrics_listen` where it cannot.
    """
    if not listen:
        return
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host or "127.0.0.1")
    except (OSError, ValueError, OverflowError) as error:
        problem = f"cannot serve metrics on {listen!r} (HOST:PORT): {error}"
        raise InvalidArgument(f"metrics_listen: {problem}", violations=[("metrics_listen", problem)]) from None
    log.info("metrics", url=f"http://{host or '127.0.0.1'}:{server.server_port}/metrics")
