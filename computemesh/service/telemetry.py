"""What a service tells about itself: logs, metrics, traces.

Logs are one JSON object a line on stderr, one line a batch, with the trace where there is one. They name tasks,
addresses and counts, never keys, tokens or payloads.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from computemesh.service import metrics, tracing


def configure(service: str) -> None:
    """JSON lines with time, level, service and event. COMPUTEMESH_LOG_LEVEL sets the level (default INFO)."""
    name = os.environ.get("COMPUTEMESH_LOG_LEVEL", "INFO").upper()
    level = logging.getLevelNamesMapping().get(name, logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tracing.add_trace_id,
            # Without the values of local variables: keys, tokens and payloads are among them.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def start(service: str, metrics_listen: str, traces: str) -> None:
    """Metrics on HOST:PORT and spans to an OTLP collector, each unless it is empty. Raises InvalidArgument."""
    metrics.serve(metrics_listen)
    tracing.configure(service, traces)
