"""An OTLP collector: the real gRPC service, which keeps what it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._guard = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, context):
        found = []
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                found += [_span(service, span) for span in scope.spans]
        with self._guard:
            self._spans += found
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str = "") -> list[Span]:
        with self._guard:
            return [span for span in self._spans if trace_id in ("", span.trace_id)]

    def wait(self, trace_id: str, until: Callable[[list[Span]], bool], timeout_s: float = 60) -> list[Span]:
        """The trace's spans once `until` says they are there."""
        end = time.monotonic() + timeout_s
        while not until(found := self.spans(trace_id)):
            assert time.monotonic() < end, f"only {sorted((s.service, s.name) for s in found)} arrived"
            time.sleep(0.05)
        return found

    def stop(self) -> None:
        self._server.stop(None)


def _span(service: str, span: Any) -> Span:
    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    return Span(
        service.removeprefix("computemesh-"), span.name, span.trace_id.hex(), span.span_id.hex(),
        span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano, attributes,
        tuple(link.trace_id.hex() for link in span.links))
