"""Is a process of the cluster ready? Plain blocking calls with short deadlines."""

from __future__ import annotations

import http.client
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from computemesh.service.tls import PLAIN, Trust
from computemesh.v1 import worker_pb2, worker_pb2_grpc


def ready(module: str, address: str, timeout_s: float, trust: Trust = PLAIN) -> bool:
    """Whether the service at HOST:PORT serves; a worker must also be connected to its orchestrator."""
    if module == "edge":
        return _answers(address, timeout_s)
    options = [("grpc.use_local_subchannel_pool", 1)]  # a shared one would remember the refusals before the start
    with open_channel(address, trust, options) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
            if reply.status != health_pb2.HealthCheckResponse.SERVING:
                return False
            if module != "worker":
                return True
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
            worker = stub.Describe(worker_pb2.DescribeRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(worker.worker.status == worker_pb2.WORKER_AGENT_STATUS_CONNECTED)


def open_channel(address: str, trust: Trust, options: list[tuple[str, int]]) -> grpc.Channel:
    """A channel for blocking calls."""
    credentials = trust.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def _answers(address: str, timeout_s: float) -> bool:
    """Whether an HTTP server listens on HOST:PORT; behind TLS it may answer with an alert, and is there."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except http.client.HTTPException:
        return True
    except OSError:
        return False
    finally:
        connection.close()
    return True
