"""The outermost interceptor: who may not call is refused; malformed bytes, broken rules and exceptions become clear
statuses.

Without it grpc.aio sends the text of any uncaught exception to the caller.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from computemesh.service import metrics, tracing
from computemesh.service.access import Gate
from computemesh.service.errors import abort
from computemesh.service.pressure import Pressure
from computemesh.service.validation import validate
from computemesh.trust.errors import Internal, InvalidArgument, MeshError

log = structlog.get_logger("computemesh.service")


class Malformed:
    """Stands for a request whose bytes could not be parsed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def error(self, method: str) -> InvalidArgument:
        """The error the caller sees."""
        return InvalidArgument(
            f"the {self.size} bytes received are not a valid request message of {method}",
            reason="MALFORMED_MESSAGE")


def _tolerant(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if parse is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Malformed(len(data))

    return deserialize


async def _translate(context: grpc.aio.ServicerContext, method: str, error: BaseException) -> None:
    if isinstance(error, MeshError):
        await abort(context, error)
    if isinstance(error, grpc.aio.InternalError):
        raise error  # the caller hung up while we wrote: grpc.aio knows, and there is nobody to tell
    incident = uuid.uuid4().hex[:12]
    log.error("unexpected exception", method=method, incident=incident, exc_info=error)
    await abort(context, Internal(
        f"internal error, incident {incident}; the service's log has the cause", metadata={"incident": incident}))


async def _checked(requests: AsyncIterator[Any], method: str) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Malformed):
            raise request.error(method)
        yield request


# grpc.aio keeps the number of a code where it was given the enumeration's member.
_CODES: dict[Any, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}


@contextmanager
def _counted(method: str, streams: bool, context: grpc.aio.ServicerContext) -> Iterator[None]:
    """Counts the call inside, and how long or how many at once."""
    began = time.perf_counter()
    open_now = metrics.STREAMS.labels(method) if streams else None
    if open_now is not None:
        open_now.inc()
    code = "OK"
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        code = "CANCELLED"
        raise
    except grpc.aio.AbortError:
        code = _CODES.get(context.code(), "UNKNOWN")
        raise
    finally:
        metrics.RPCS.labels(method, code).inc()
        if open_now is not None:
            open_now.dec()
        else:
            metrics.RPC_SECONDS.labels(method).observe(time.perf_counter() - began)


def _wrap(
    behaviour: Callable[..., Any], method: str, streams_in: bool, streams_out: bool, gate: Gate
) -> Callable[..., Any]:
    streams = streams_in or streams_out

    def admit(request: Any, context: grpc.aio.ServicerContext) -> Any:
        gate.admit(method, context)
        if streams_in:
            return _checked(request, method)
        if isinstance(request, Malformed):
            raise request.error(method)
        validate(request)
        return request

    if inspect.isasyncgenfunction(behaviour):
        async def generate(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with _counted(method, streams, context):
                try:
                    with gate.slot(method, streams):
                        async for response in behaviour(admit(request, context), context):
                            yield response
                except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
                    raise
                except Exception as error:
                    await _translate(context, method, error)
        return generate

    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        with _counted(method, streams, context):
            try:
                with gate.slot(method, streams):
                    if streams:
                        return await behaviour(admit(request, context), context)
                    with tracing.serving(method, context.invocation_metadata()):
                        return await behaviour(admit(request, context), context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                await _translate(context, method, error)
    return call


def _refusing(refusal: MeshError) -> grpc.RpcMethodHandler:
    """Answers whatever kind of call with an error, before its request is read."""
    async def refuse(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await abort(context, refusal)
    return grpc.stream_stream_rpc_method_handler(refuse)


_HANDLERS = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


def _is_ours(method: str) -> bool:
    return method.startswith("/computemesh.")


class Boundary(grpc.aio.ServerInterceptor):
    """Refuses unary calls that `pressure` says would wait too long. Asks `gate` whether a call is admitted; maps
    MeshError to its status, anything else to INTERNAL with an incident number that the log explains; checks unary
    requests against the contract's rules. Stream messages are checked by who reads them."""

    def __init__(self, gate: Gate, pressure: Pressure) -> None:
        self._gate, self._pressure = gate, pressure
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        self._pressure.begins()
        method = str(handler_call_details.method)
        handler = self._handlers.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            handler = self._handlers[method] = self._bounded(handler, method)
        # Streams are few and last; a service that is asked whether it is well still says so.
        if _is_ours(method) and not handler.request_streaming and not handler.response_streaming:
            try:
                self._pressure.admit()
            except MeshError as refusal:
                return _refusing(refusal)
        return handler

    def _bounded(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        if not _is_ours(method):
            return handler
        make, name = _HANDLERS[(handler.request_streaming, handler.response_streaming)]
        return make(
            _wrap(getattr(handler, name), method, handler.request_streaming, handler.response_streaming,
                  self._gate),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer)
