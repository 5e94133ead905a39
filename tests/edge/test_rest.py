"""REST and gRPC-Web as their clients meet them: through the real Envoy, before real services."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from computemesh.cli.cluster import Cluster
from computemesh.v1 import ledger_pb2
from tests.edge.conftest import ROOT, EdgeStarter

NOWHERE = "0" * 64
ORDER = {"challenge_type": "synthetic", "payload": {"matrix_size": 256}, "reward": "1.25"}


def example(name: str, url: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / "rest" / name), *arguments], timeout=120, check=True,
                          capture_output=True, text=True, env={**os.environ, "COMPUTEMESH_URL": url})  # fmt: skip
    return done.stdout


def refused(response: requests.Response, status: int, code: int) -> dict[str, Any]:
    """The google.rpc.Status of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["message"]
    return body


def test_the_examples_publish_a_task_and_find_it_in_the_list(url: str) -> None:
    published = example("publish.py", url).split()
    task_id, ended = published[1], published[4]
    assert ended == "TASK_STATUS_COMPLETED"
    listed = example("list.py", url, "completed")
    assert f"{task_id} TASK_STATUS_COMPLETED 1.5" in listed
    assert int(listed.split()[-1]) >= 1


def test_a_task_has_hex_without_prefix_a_decimal_reward_and_its_own_fields(url: str) -> None:
    made = requests.post(f"{url}/tasks", json=ORDER, timeout=60).json()
    assert len(made["task_id"]) == 64
    assert set(made["task_id"]) <= set("0123456789abcdef")
    assert made["reward"] == "1.25"
    assert requests.get(f"{url}/tasks/{made['task_id']}", timeout=60).json()["payload"] == {"matrix_size": 256}


def test_the_list_filters_pages_and_counts(url: str) -> None:
    for _ in range(2):
        requests.post(f"{url}/tasks", json=ORDER, timeout=60).raise_for_status()
    first = requests.get(f"{url}/tasks?challenge_type=synthetic&limit=1", timeout=60).json()
    second = requests.get(f"{url}/tasks?challenge_type=synthetic&limit=1&offset=1", timeout=60).json()
    assert first["total"] == second["total"] >= 2
    assert first["tasks"][0]["task_id"] != second["tasks"][0]["task_id"]
    for name in ("cancelled", "CANCELLED", "TASK_STATUS_CANCELLED"):
        shown = requests.get(f"{url}/tasks?status={name}", timeout=60).json()
        assert all(one["status"] == "TASK_STATUS_CANCELLED" for one in shown["tasks"])
    refused(requests.get(f"{url}/tasks?status=gone", timeout=60), 400, 3)


def test_a_refusal_is_a_status_with_reason_and_field(url: str) -> None:
    body = refused(requests.post(f"{url}/tasks", json={**ORDER, "reward": "ten"}, timeout=60), 400, 3)
    details = {one["@type"].rpartition(".")[2]: one for one in body["details"]}
    assert details["ErrorInfo"]["domain"] == "computemesh.v1"
    assert details["BadRequest"]["field_violations"][0]["field"] == "reward"
    missing = refused(requests.get(f"{url}/tasks/{NOWHERE}", timeout=60), 404, 5)
    assert missing["details"][0]["reason"] == "TASK_NOT_FOUND"


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), [
    ("GET", "/nowhere", None, 404, 5),
    ("DELETE", "/tasks", None, 404, 5),
    ("GET", "/tasks?colour=red", None, 400, 3),
    ("POST", "/tasks", b'{"challenge_type":', 400, 3),
    ("POST", "/tasks", b'{"challenge_type": "' + b"x" * (1 << 20) + b'"}', 413, 8),
    ("GET", "/app/..%2f..%2fkeys%2fapi.key", None, 400, 3),
    ("GET", "/app/../../keys/api.key", None, 404, 5),
    ("POST", "/computemesh.v1.MarketService/Dispatch", b"", 404, 5),
])  # fmt: skip
def test_what_the_edge_itself_refuses_is_a_status_too(
    cluster: Cluster, method: str, path: str, body: bytes | None, status: int, code: int
) -> None:
    host, _, port = cluster.address("edge").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)  # sends the path as it is
    connection.request(method, path, body)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    assert (answer.status, said["code"]) == (status, code), said


def test_a_stream_is_one_object_a_line_and_ends_with_the_task(url: str) -> None:
    made = requests.post(f"{url}/tasks", json=ORDER, timeout=60).json()
    with requests.get(f"{url}/tasks/{made['task_id']}:watch", stream=True, timeout=120) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        events = [json.loads(line) for line in response.iter_lines() if line]
    cursors = [int(event["cursor"]) for event in events]
    assert cursors == sorted(set(cursors))
    assert events[0]["kind"] == "TASK_EVENT_KIND_CREATED"
    assert events[-1]["task"]["status"] == "TASK_STATUS_COMPLETED"


def test_pages_of_other_origins_and_hosts_get_nothing(url: str) -> None:
    foreign = {"origin": "https://example.org"}
    refused(requests.post(f"{url}/tasks", json=ORDER, headers=foreign, timeout=60), 403, 7)
    refused(requests.get(f"{url}/caller", headers={"host": "rebound.example.org"}, timeout=60), 404, 5)
    assert requests.get(f"{url}/caller", headers={"origin": url}, timeout=60).json()["market_held"] is True


def frames(body: bytes) -> Iterator[tuple[int, bytes]]:
    """gRPC-Web's frames: a flag byte (0x80 for trailers), four bytes of length, the bytes."""
    while body:
        size = int.from_bytes(body[1:5])
        yield body[0], body[5 : 5 + size]
        body = body[5 + size :]


def test_grpc_web_calls_and_streams(url: str) -> None:
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    answer = requests.post(f"{url}/computemesh.v1.LedgerService/GetLedger", data=bytes(5), headers=headers, timeout=60)
    (flag, message), (end, trailers) = frames(answer.content)
    assert (flag, end) == (0, 0x80)
    assert ledger_pb2.GetLedgerResponse.FromString(message).chain_id == "computemesh-local"
    assert b"grpc-status:0" in trailers.replace(b" ", b"")


def test_an_edge_for_others_speaks_tls_wants_credentials_and_names_its_origins(
    start_edge: EdgeStarter, certificate: tuple[Path, Path], cluster: Cluster
) -> None:
    pem, key = certificate
    address = start_edge(tls_certificate=str(pem), tls_key=str(key), cors_origins=("https://page.example.org",))
    ask: dict[str, Any] = {"verify": str(pem), "timeout": 60}
    refused(requests.get(f"https://{address}/tasks", **ask), 401, 16)
    mine = {"authorization": f"Bearer {cluster.plan.api_key}", "origin": "https://page.example.org"}
    answer = requests.get(f"https://{address}/tasks", headers=mine, **ask)
    assert answer.headers["access-control-allow-origin"] == "https://page.example.org"
    assert answer.json()["total"] >= 0
    wanted = {"origin": "https://page.example.org", "access-control-request-method": "POST"}
    preflight = requests.options(f"https://{address}/tasks", headers=wanted, **ask)
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(f"http://{address}/tasks", timeout=60).raise_for_status()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, as PEM files."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, secret = tmp_path / "edge.pem", tmp_path / "edge.key"
    pem.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                         serialization.NoEncryption()))  # fmt: skip
    return pem, secret
