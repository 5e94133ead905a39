"""Certificates on real ports: who is believed, who is not, and replacing one while calls run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from computemesh.cli.certificates import Authority
from computemesh.service.exposure import Exposure
from computemesh.service.server import build_server, dial, set_serving
from computemesh.service.tls import PLAIN, Trust
from computemesh.trust.errors import InvalidArgument

LOCAL = ("127.0.0.1", "localhost")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


def exposed(authority: Authority, **values: str) -> Exposure:
    certificate, key = map(str, authority.certificate("server", LOCAL))
    return Exposure(**{"tls_cert_file": certificate, "tls_key_file": key, **values})


@asynccontextmanager
async def serving(exposure: Exposure) -> AsyncIterator[str]:
    server, port = build_server("127.0.0.1:0", lambda it: None, [], exposure=exposure)
    await server.start()
    await set_serving(server, True)
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def check(address: str, trust: Trust) -> None:
    """One call on a connection of its own. Raises RpcError where there is none."""
    async with dial(address, trust, own_connection=True) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


async def refused(address: str, trust: Trust) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(address, trust)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_only_who_believes_the_servers_authority_gets_through(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    async with serving(exposed(authority)) as address:
        await check(address, Trust(str(authority.ca_file)))
        await refused(address, Trust(str(other.ca_file)))
        await refused(address, PLAIN)
    elsewhere, key = map(str, authority.certificate("elsewhere", ("10.9.8.7",)))
    async with serving(Exposure(tls_cert_file=elsewhere, tls_key_file=key)) as address:
        await refused(address, Trust(str(authority.ca_file)))  # a good certificate, of another host


async def test_where_certificates_are_asked_for_strangers_do_not_get_through(
    authority: Authority, tmp_path: Path
) -> None:
    ca, other = str(authority.ca_file), Authority(tmp_path / "other")
    async with serving(exposed(authority, tls_client_ca_file=ca)) as address:
        await check(address, Trust(ca, *map(str, authority.certificate("client", ()))))
        await refused(address, Trust(ca))
        await refused(address, Trust(ca, *map(str, other.certificate("client", ()))))


def serial(address: str, authority: Authority) -> bytes:
    """The certificate shown at HOST:PORT, DER."""
    host, _, port = address.partition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), ca_certs=str(authority.ca_file)))


def half_a_change(authority: Authority, exposure: Exposure) -> None:
    """Another certificate beside the key of before."""
    key = Path(exposure.tls_key_file).read_bytes()
    authority.issue("server", LOCAL)
    Path(exposure.tls_key_file).write_bytes(key)


async def test_a_certificate_is_replaced_under_load_and_no_call_fails(authority: Authority) -> None:
    trust = Trust(str(authority.ca_file))
    exposure, done, calls = exposed(authority), asyncio.Event(), [0, 0]

    async def fresh_connections() -> None:
        while not done.is_set():
            await check(address, trust)
            calls[0] += 1

    async def one_connection() -> None:
        async with dial(address, trust, own_connection=True) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not done.is_set():
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                calls[1] += 1

    async with serving(exposure) as address:
        seen = {await asyncio.to_thread(serial, address, authority)}
        async with asyncio.TaskGroup() as load:
            load.create_task(fresh_connections())
            load.create_task(one_connection())
            for _ in range(3):
                before = calls[0]
                authority.issue("server", LOCAL)
                while calls[0] < before + 5:  # noqa: ASYNC110 (calls are what is waited for)
                    await asyncio.sleep(0.01)
                seen.add(await asyncio.to_thread(serial, address, authority))
            done.set()
        half_a_change(authority, exposure)
        seen.add(await asyncio.to_thread(serial, address, authority))
    assert len(seen) == 4
    assert min(calls) > 10


def test_certificates_are_kept_while_they_are_good_and_renewed_before_they_end(authority: Authority) -> None:
    at, _ = authority.certificate("one", LOCAL)
    first = at.read_bytes()
    again = Authority(authority.folder)
    assert again.certificate("one", ("localhost",))[0].read_bytes() == first
    moved = again.certificate("one", (*LOCAL, "mesh.example"))[0].read_bytes()
    assert moved != first
    authority.issue("one", ["localhost"], timedelta(days=30))
    ending = at.read_bytes()
    assert again.certificate("one", ("localhost",))[0].read_bytes() != ending
    assert (authority.folder / "ca.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("values", "field", "text"), [
    ({"tls_key_file": ""}, "tls_key_file", "go together"),
    ({"tls_cert_file": ""}, "tls_cert_file", "go together"),
    ({"tls_cert_file": "/nowhere.pem"}, "tls_cert_file", "cannot be read"),
    ({"tls_key_file": "CA_KEY"}, "tls_cert_file", "do not go together"),
    ({"tls_client_ca_file": "CA_KEY"}, "tls_client_ca_file", "holds no certificate in PEM"),
    ({"tls_cert_file": "", "tls_key_file": "", "tls_client_ca_file": "x"}, "tls_client_ca_file", "asks clients")])
async def test_what_cannot_be_used_is_named(authority: Authority, values: dict, field: str, text: str) -> None:
    values = {name: str(authority.folder / "ca.key") if value == "CA_KEY" else value for name, value in values.items()}
    with pytest.raises(InvalidArgument, match=text) as refusal:
        build_server("127.0.0.1:0", lambda it: None, [], exposure=exposed(authority, **values))
    assert refusal.value.violations[0][0] == field


@pytest.mark.parametrize("ca", ["/nowhere.pem", __file__])
async def test_a_client_names_the_authority_that_it_cannot_use(ca: str) -> None:
    with pytest.raises(InvalidArgument, match="tls_ca_file"):
        dial("127.0.0.1:1", Trust(ca))
