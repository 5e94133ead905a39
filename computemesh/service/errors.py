"""One translation between domain errors and gRPC statuses, both ways.

The wire form is google.rpc.Status in the `grpc-status-details-bin` trailer, with ErrorInfo (reason, domain, metadata),
BadRequest field violations and RetryInfo, as in https://google.aip.dev/193.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from computemesh.trust.errors import MeshError, from_reason

DOMAIN = "computemesh.v1"
DETAILS_TRAILER = "grpc-status-details-bin"
# What grpc.aio says, as INTERNAL, where a connection broke while a message was on its way.
BROKEN = "Internal error from Core"


def to_status(error: MeshError) -> status_pb2.Status:
    """The google.rpc.Status that says all of `error`."""
    details: list[any_pb2.Any] = []

    def add(message: Any) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.violations:
        add(error_details_pb2.BadRequest(field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in error.violations]))
    if error.retry_after_ms is not None:
        seconds, ms = divmod(error.retry_after_ms, 1000)
        add(error_details_pb2.RetryInfo(
            retry_delay=duration_pb2.Duration(seconds=seconds, nanos=ms * 1_000_000)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.status), message=error.message, details=details)


async def abort(context: grpc.aio.ServicerContext, error: MeshError) -> NoReturn:
    """Ends the call with `error`. Never returns."""
    status = to_status(error)
    await context.abort(
        grpc.StatusCode[error.status], error.message,
        trailing_metadata=((DETAILS_TRAILER, status.SerializeToString()),))
    raise AssertionError("abort returned")


def _trailer(error: grpc.RpcError) -> bytes | None:
    metadata = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in metadata or ():
        if key == DETAILS_TRAILER:
            return value if isinstance(value, bytes) else value.encode("latin-1")
    return None


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """The domain error a failed call stands for; statuses without details (the transport's own) keep their text."""
    code: grpc.StatusCode = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    message = (error.details() if hasattr(error, "details") else "") or str(error)
    reason, metadata, violations, retry = "", {}, [], None
    raw = _trailer(error)
    if message == BROKEN and raw is None:
        code = grpc.StatusCode.UNAVAILABLE
    for packed in status_pb2.Status.FromString(raw).details if raw else ():
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(packed.value)
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(packed.value)
            violations = [(v.field, v.description) for v in bad.field_violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
            retry = delay.seconds * 1000 + delay.nanos // 1_000_000
    return from_reason(code.name, reason or code.name, message, violations, metadata, retry)
