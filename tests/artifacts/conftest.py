"""A store on disk, in memory or on S3, behind a real server, and somebody who calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from computemesh.service import artifacts
from computemesh.service.access import Caller, Role
from computemesh.service.artifacts import Artifacts
from computemesh.service.auth import bearer
from computemesh.service.blobs import Owner
from computemesh.service.server import build_server, dial
from computemesh.service.transfer import Transfer
from computemesh.trust.errors import Unauthenticated

LIMIT = 64 << 20
As = Callable[..., Transfer]


def by_name(context: grpc.aio.ServicerContext) -> Owner:
    """Whoever says a name is believed: who calls is the mounting server's business."""
    name = bearer(context)
    if name is None:
        raise Unauthenticated("no credentials")
    return Owner("account", name)


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    """An empty store in a folder; takes at most 64 MiB at once."""
    return Artifacts((tmp_path / "store").as_uri(), LIMIT)


@pytest.fixture
async def address(store: Artifacts) -> AsyncIterator[str]:
    """HOST:PORT of a server in front of the store."""
    server, port = build_server(
        "127.0.0.1:0", lambda it: artifacts.mount(it, store, by_name), [artifacts.SERVICE],
        identify=lambda context: Caller(by_name(context).id, frozenset(Role)), max_concurrent_streams=64)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def caller(address: str) -> AsyncIterator[As]:
    """`caller("alice")` is a Transfer in her name, on a connection of her own."""
    channels: list[grpc.aio.Channel] = []

    def as_name(name: str = "alice", retry_for: float = 5.0) -> Transfer:
        channels.append(dial(address, own_connection=True))

        async def metadata() -> tuple[tuple[str, str], ...]:
            return (("authorization", f"Bearer {name}"),)

        return Transfer(channels[-1], metadata, retry_for)

    yield as_name
    for channel in channels:
        await channel.close(None)
