"""OpenTelemetry traces: one trace id from the client's call to the block.

The context is W3C Trace Context's `traceparent` (https://www.w3.org/TR/trace-context/): in gRPC metadata between
calls, in the task's lease and in its jobs between streams. Off unless an OTLP endpoint is configured; then nothing here
costs more than a comparison. Work done for many tasks at once is one span in the first task's trace; each other trace
gets a span of the same times with a link to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from computemesh.trust.errors import InvalidArgument

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORT_TIMEOUT_S = 2
MAX_LINKED = 64
Attributes = Mapping[str, str | int | float | bool]
P = ParamSpec("P")
R = TypeVar("R")
_FORMAT = TraceContextTextMapPropagator()


def configure(service: str, endpoint: str = "") -> None:
    """Sends spans by OTLP over gRPC to `endpoint` (HOST:PORT or a URL), else to $OTEL_EXPORTER_OTLP_ENDPOINT, else
    nowhere. Call it once, before anything is dialled. Raises InvalidArgument."""
    endpoint = endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
    if not endpoint:
        return
    if any(c.isspace() for c in endpoint) or ":" not in endpoint:
        problem = f"{endpoint!r} is not HOST:PORT or a URL of an OTLP collector (gRPC)"
        raise InvalidArgument(f"traces: {problem}", violations=[("traces", problem)])
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(
        endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=EXPORT_TIMEOUT_S)
    provider = TracerProvider(resource=Resource.create({"service.name": f"computemesh-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def on() -> bool:
    """Whether spans go anywhere."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _tracer() -> trace.Tracer:
    return trace.get_tracer("computemesh")


def _context(traceparent: str) -> Context:
    return _FORMAT.extract({"traceparent": traceparent})


def _written(context: Context | None = None) -> str:
    carrier: dict[str, str] = {}
    _FORMAT.inject(carrier, context)
    return carrier.get("traceparent", "")


def current() -> str:
    """The `traceparent` of the span this code runs in; empty where there is none."""
    return _written() if on() else ""


def trace_id(traceparent: str) -> str:
    """The trace's id, 32 hexadecimal characters, for logs; empty where there is none."""
    return traceparent[3:35]


def named(traceparent: str) -> dict[str, str]:
    """`trace_id` for a log line; nothing where there is none."""
    return {"trace_id": trace_id(traceparent)} if traceparent else {}


class Opened:
    """A span that outlives the call that began it; `traceparent` is what goes on from it."""

    def __init__(self, name: str, parent: str, attributes: Attributes) -> None:
        self._span = _tracer().start_span(name, _context(parent), attributes=attributes)
        self.traceparent = _written(trace.set_span_in_context(self._span))

    def end(self, attributes: Attributes) -> None:
        """Ends it now."""
        self._span.set_attributes(attributes)
        self._span.end()


def begin(name: str, parent: str, attributes: Attributes) -> Opened | None:
    """A span under `parent`; None where tracing is off or there is no trace to belong to."""
    return Opened(name, parent, attributes) if parent and on() else None


def rooted(
    name: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """A span around each call of an async function: the root of a trace, unless the caller has one already."""
    def wrap(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with _tracer().start_as_current_span(name):
                return await function(*args, **kwargs)
        return call
    return wrap


def _distinct(parents: Iterable[str]) -> list[str]:
    """One context per trace, in order."""
    found: dict[str, str] = {}
    for parent in parents:
        if parent:
            found.setdefault(trace_id(parent), parent)
    return list(found.values())[:MAX_LINKED]


@contextmanager
def shared(name: str, parents: Iterable[str], attributes: Attributes) -> Iterator[None]:
    """A span around work for the tasks of `parents`; calls made inside belong to the first one's trace."""
    among = _distinct(parents) if on() else []
    if not among:
        yield
        return
    began_ns = time.time_ns()
    links = [trace.Link(trace.get_current_span(_context(other)).get_span_context()) for other in among[1:]]
    with _tracer().start_as_current_span(name, _context(among[0]), attributes=attributes, links=links) as span:
        try:
            yield
        finally:
            _beside(name, among[1:], began_ns, attributes, span)


def record(name: str, parents: Iterable[str], began_ns: int, attributes: Attributes) -> None:
    """A span of work for the tasks of `parents` that is over now; Unix ns."""
    among = _distinct(parents) if on() else []
    if among:
        span = _tracer().start_span(name, _context(among[0]), attributes=attributes, start_time=began_ns)
        span.end()
        _beside(name, among[1:], began_ns, attributes, span)


def _beside(name: str, parents: list[str], began_ns: int, attributes: Attributes, done: trace.Span) -> None:
    link = [trace.Link(done.get_span_context())]
    for parent in parents:
        _tracer().start_span(name, _context(parent), attributes=attributes, start_time=began_ns, links=link).end()


@contextmanager
def serving(method: str, metadata: Any) -> Iterator[None]:
    """The server's span of a call that came with a `traceparent`; an exception inside marks it failed."""
    parent = next((value for key, value in metadata or () if key == "traceparent"), "") if on() else ""
    if not parent:
        yield
        return
    with _tracer().start_as_current_span(
            method.lstrip("/"), _context(parent), trace.SpanKind.SERVER, {"rpc.system.name": "grpc"}):
        yield


class Calls(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Gives unary calls made inside a span one of their own, and tells the server which."""

    async def intercept_unary_unary(
        self, continuation: Callable[..., Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        if not trace.get_current_span().get_span_context().is_valid:
            return await continuation(client_call_details, request)
        method = client_call_details.method
        name = (method.decode() if isinstance(method, bytes) else method).lstrip("/")
        with _tracer().start_as_current_span(
                name, kind=trace.SpanKind.CLIENT, attributes={"rpc.system.name": "grpc"}) as span:
            metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), ("traceparent", _written()))
            call = await continuation(client_call_details._replace(metadata=metadata), request)
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                span.set_status(trace.StatusCode.ERROR, code.name)
            return call


def interceptors() -> list[grpc.aio.ClientInterceptor]:
    """What a channel needs so that its calls carry the trace; nothing where tracing is off."""
    return [Calls()] if on() else []


def add_trace_id(logger: Any, name: str, event: dict[str, Any]) -> dict[str, Any]:
    """structlog processor: the trace this line belongs to, unless the line says so itself."""
    if "trace_id" not in event and (found := trace_id(current())):
        event["trace_id"] = found
    return event
