"""The contracts as the edge sees them: which RPC stands at which route, and the descriptors Envoy translates with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from computemesh.v1 import artifact_pb2, ledger_pb2, market_pb2, orchestrator_pb2

# The service's file, and which upstream serves it. A worker's control port is its owner's alone.
SERVICES: dict[str, tuple[FileDescriptor, str]] = {
    "computemesh.v1.MarketService": (market_pb2.DESCRIPTOR, "market"),
    "computemesh.v1.ArtifactService": (artifact_pb2.DESCRIPTOR, "market"),
    "computemesh.v1.LedgerService": (ledger_pb2.DESCRIPTOR, "ledger"),
    "computemesh.v1.OrchestratorService": (orchestrator_pb2.DESCRIPTOR, "orchestrator"),
}
# Answers that are one field's value alone (edge.envoy cuts them out: Envoy's transcoder has no `response_body`).
ALONE = {"CreateTask": "task", "GetTask": "task", "CancelTask": "task"}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC that the edge offers. `verb` and `path` are its REST route, empty where it has none."""

    service: str
    name: str
    upstream: str
    streams: bool
    verb: str
    path: str
    body: str
    alone: str
    request: str
    response: str


def methods() -> Iterator[Method]:
    """Every RPC a request can carry: unary ones and server streams. Streams from the client have no place in REST and
    gRPC-Web; workers and orchestrators dial the services themselves."""
    for full_name, (file, upstream) in SERVICES.items():
        service = descriptor_pb2.ServiceDescriptorProto()
        file.services_by_name[full_name.rpartition(".")[2]].CopyToProto(service)
        for method in service.method:
            if method.client_streaming:
                continue
            rule = method.options.Extensions[annotations_pb2.http]
            verb = rule.WhichOneof("pattern") or ""
            yield Method(full_name, method.name, upstream, method.server_streaming, verb,
                         _path(rule, verb), rule.body, ALONE.get(method.name, ""),
                         method.input_type.lstrip("."), method.output_type.lstrip("."))  # fmt: skip


def _path(rule: http_pb2.HttpRule, verb: str) -> str:
    return str(getattr(rule, verb)) if verb else ""


def descriptor_set() -> bytes:
    """A FileDescriptorSet of the services, everything they import, and the details that errors carry."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for needed in file.dependencies:
            add(needed)
        files[file.name] = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(files[file.name])

    for file, _ in SERVICES.values():
        add(file)
    add(status_pb2.DESCRIPTOR)
    add(error_details_pb2.DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True)
