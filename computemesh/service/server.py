"""Start, serve and stop a gRPC service; dial one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from computemesh.service import tracing
from computemesh.service.access import Gate, Identify, nobody
from computemesh.service.addresses import host_port, target
from computemesh.service.doors import Doors
from computemesh.service.exposure import DEFAULT, Exposure
from computemesh.service.floods import Floods, Transport
from computemesh.service.interceptors import Boundary
from computemesh.service.limits import Rates
from computemesh.service.pauses import shorten_pauses
from computemesh.service.pressure import Pressure, counters, newest_server
from computemesh.service.tls import PLAIN, Trust, server_credentials
from computemesh.trust.errors import InvalidArgument

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
FLOOD_BYTES = MAX_MESSAGE_BYTES + 1024 * 1024
log = structlog.get_logger("computemesh.service")

# Keepalive finds dead hosts only with the ping timeout set; wedged processes are found by leases. A ping more often
# than the minimum interval counts as abuse.
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_SERVER = [
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # It refuses streams beyond the limit at random before the client can know that it is at the limit: whoever has more
    # calls than that under way on a connection would lose some (tests/service/test_pressure.py).
    ("grpc.http.overload_protection", 0),
    # Beyond these (the first by chance, the second always) it refuses calls itself, and does not say when to come back.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # Its counters say how many calls wait (computemesh.service.pressure); its events are read by nobody.
    ("grpc.enable_channelz", 1),
    ("grpc.max_channel_trace_event_memory_per_node", 0),
    # Calls begun per read of one connection: one that opens and resets streams without end yields to the others.
    ("grpc.http2.max_requests_per_read", 1),
]
_CLIENT = [
    *_KEEPALIVE,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


def dial(
    address: str, trust: Trust = PLAIN, *, own_connection: bool = False,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """A channel to HOST:PORT, or to the one of several (`computemesh.service.addresses`) that serves, with the options
    every part of the mesh uses.

    Channels of one process to one address share a connection; `own_connection` does not, so that a transfer of
    gigabytes neither delays the heartbeats beside it nor takes their streams. `trust` says whose certificate the
    server has to show. Raises InvalidArgument where its files or the addresses cannot be used.
    """
    at, extra = target(address)
    options = [*_CLIENT, *extra, *([("grpc.use_local_subchannel_pool", 1)] if own_connection else [])]
    seen_by = [*interceptors, *tracing.interceptors()]
    credentials = trust.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(at, options=options, interceptors=seen_by)
    return grpc.aio.secure_channel(at, credentials, options=options, interceptors=seen_by)


def build_server(
    listen: str,
    register: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    *,
    identify: Identify = nobody,
    exposure: Exposure = DEFAULT,
    max_concurrent_streams: int = 16,
) -> tuple[grpc.aio.Server, int]:
    """A server that is not started yet, and its port.

    `listen` is HOST:PORT, port 0 takes a free one. `services` are full names for health and reflection.
    `identify` says who makes a call that the table of access (`computemesh.service.access`) is not open to all for.
    Few concurrent streams per connection keep one rapidly resetting connection from starving the rest. Raises
    InvalidArgument where the address cannot be bound, or a file for TLS cannot be used.
    """
    if host_port(listen) is None:
        raise InvalidArgument(f"listen: is {listen!r}, expected HOST:PORT with a port of at most 65535",
                              violations=[("listen", f"{listen!r} is not HOST:PORT")], reason="INVALID_CONFIGURATION")
    secure = server_credentials(exposure.tls_cert_file, exposure.tls_key_file, exposure.tls_client_ca_file)
    gate = Gate(identify, Rates(exposure.calls_per_s, exposure.calls_burst), exposure.calls_at_once,
                exposure.streams_at_once)
    pressure = Pressure(exposure.calls_wait_ms, lambda: counters(number))
    server = grpc.aio.server(
        interceptors=[Boundary(gate, pressure)],
        options=[*_SERVER, ("grpc.max_concurrent_streams", max_concurrent_streams)])
    number = newest_server()
    server.computemesh_pressure = pressure  # type: ignore[attr-defined]
    register(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.computemesh_health = checks  # type: ignore[attr-defined]
    server.computemesh_services = tuple(services)  # type: ignore[attr-defined]
    if exposure.introspection:
        reflection.enable_server_reflection(
            (*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        channelz.add_channelz_servicer(server)
    try:
        port = server.add_insecure_port(listen) if secure is None else server.add_secure_port(listen, secure)
    except RuntimeError as error:
        raise InvalidArgument(
            f"listen: cannot bind {listen}: is another process using the port?",
            violations=[("listen", f"{listen} cannot be bound")]) from error
    server.computemesh_floods = Floods(  # type: ignore[attr-defined]
        port, Transport(number).progress, Doors(port, exposure.turned_away_s), FLOOD_BYTES)
    return server, port


async def set_serving(server: grpc.aio.Server, serving: bool) -> None:
    """Says so in the health service, for the whole server and each of its services."""
    status = (health_pb2.HealthCheckResponse.SERVING if serving
              else health_pb2.HealthCheckResponse.NOT_SERVING)
    for name in ("", *server.computemesh_services):  # type: ignore[attr-defined]
        await server.computemesh_health.set(name, status)  # type: ignore[attr-defined]


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def begin(server: grpc.aio.Server) -> None:
    """Serves, refuses calls that would wait too long, and ends connections that flood it."""
    await server.start()
    await set_serving(server, True)
    server.computemesh_watching = [asyncio.create_task(one.run()) for one in (  # type: ignore[attr-defined]
        server.computemesh_pressure, server.computemesh_floods)]  # type: ignore[attr-defined]


async def end(
    server: grpc.aio.Server, grace_s: float, before_stop: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Serves no more. `before_stop` runs first (it may send DrainNotices: `server.stop` tells open streams nothing),
    then open calls have `grace_s` seconds."""
    for one in server.computemesh_watching:  # type: ignore[attr-defined]
        one.cancel()
    await set_serving(server, False)
    if before_stop is not None:
        await before_stop()
    await server.stop(grace_s)


async def serve(
    server: grpc.aio.Server,
    stop: asyncio.Event,
    *,
    before_stop: Callable[[], Awaitable[None]] | None = None,
    grace_s: float = 5.0,
) -> None:
    """Serves until `stop` is set, then ends as `end` does."""
    await begin(server)
    shorten_pauses()
    try:
        await stop.wait()
    finally:
        await end(server, grace_s, before_stop)
