"""What answers at an address: nothing, another program, TLS, or the service that should be there."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from computemesh.service.tls import Trust

SERVING, NOT_SERVING, OTHER_SERVICE = "serving", "not serving", "another service"
NO_ADDRESS, NO_HOST, REFUSED, SILENT, TLS, NOT_GRPC = "no address", "no host", "refused", "silent", "tls", "not grpc"
NO_TLS, UNTRUSTED, ASKS_CERTIFICATE = "no tls", "untrusted", "asks certificate"


@dataclass(frozen=True, slots=True)
class Answer:
    """`state` is one of the words above; `detail` for people."""

    state: str
    detail: str = ""


def probe(address: str, service: str, trust: Trust, timeout_s: float = 3.0) -> Answer:
    """Look at HOST:PORT step by step: name, connection, TLS, gRPC health of `service` (its full name). Raises
    InvalidArgument where the files of `trust` cannot be used."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return Answer(NO_ADDRESS, "is not HOST:PORT" if address else "the profile names no address")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        return Answer(NO_HOST, str(getattr(error, "strerror", "") or error))
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except ConnectionRefusedError:
        return Answer(REFUSED, "nothing listens there")
    except OSError as error:
        return Answer(SILENT, "no answer in time" if isinstance(error, TimeoutError) else str(error.strerror))
    answer = _health(address, service, timeout_s, trust)
    if answer.state != NOT_GRPC:
        return answer
    version = _tls(host, int(port), timeout_s)
    if not trust.ca_file:
        return Answer(TLS, f"speaks {version}") if version else answer
    if not version:
        return Answer(NO_TLS, "does not speak TLS")
    if problem := _distrusted(host, int(port), timeout_s, trust):
        return Answer(UNTRUSTED, problem)
    return Answer(ASKS_CERTIFICATE, "asks for another certificate of ours" if trust.cert_file else
                  "asks for a certificate of ours")  # fmt: skip


def _tls(host: str, port: int, timeout_s: float) -> str:
    """The version of TLS spoken there, empty text for none. Whose certificate it is does not matter here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(plain) as wrapped:
            return wrapped.version() or "TLS"
    except OSError:
        return ""


def _distrusted(host: str, port: int, timeout_s: float, trust: Trust) -> str:
    """What is wrong with the certificate shown there, empty text for nothing."""
    context = ssl.create_default_context(cafile=trust.ca_file)
    name = host.strip("[]")
    try:
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(
            plain, server_hostname=name
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"shows a certificate that {trust.ca_file} does not answer for: {error.verify_message}"
    except OSError:
        return ""


def _health(address: str, service: str, timeout_s: float, trust: Trust) -> Answer:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from computemesh.cli.health import open_channel

    options = [("grpc.use_local_subchannel_pool", 1)]  # a shared one would remember an earlier refusal
    request = health_pb2.HealthCheckRequest(service=service)
    with open_channel(address, trust, options) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.NOT_FOUND:
                return Answer(OTHER_SERVICE, f"a mesh service, but not {service.rpartition('.')[2]}")
            return Answer(NOT_GRPC, "what listens there does not answer gRPC")
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        return Answer(NOT_SERVING, "up, but not serving: starting or stopping")
    return Answer(SERVING, "serving")
