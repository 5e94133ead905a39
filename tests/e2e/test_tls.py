"""A mesh of which every port is encrypted: real processes, a real task, and those who do not get through."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from computemesh.cli.certificates import Authority
from computemesh.cli.cluster import Cluster
from computemesh.cli.health import ready
from computemesh.cli.plan import write_toml
from computemesh.client import Client
from computemesh.service.tls import PLAIN, Trust
from computemesh.trust.errors import Unavailable
from tests.conftest import Mesh

ASKING = ("ledger", "market", "orchestrator")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The three services ask whoever dials them for a certificate."""
    data = tmp_path_factory.mktemp("encrypted")
    asks = {name: {"tls_client_ca_file": str(data / "tls" / "ca.pem")} for name in ASKING}
    with Cluster(data, workers=1, port_base=0, edge_port=0, tls=True, overrides=asks) as cluster:
        yield cluster


def test_a_task_completes_where_every_port_is_encrypted(encrypted: Cluster) -> None:
    with Client(encrypted.profile) as client:
        client.run("noop", {"jobs": 3}, max_cost="5").verify()
    context = ssl.create_default_context(cafile=encrypted.plan.trust.ca_file)
    edge = http.client.HTTPSConnection(encrypted.address("edge"), context=context, timeout=20)
    edge.request("GET", "/tasks")
    answer = json.loads(edge.getresponse().read())
    edge.close()
    assert answer["tasks"][0]["status"] == "TASK_STATUS_COMPLETED"


def test_plain_connections_and_other_authorities_are_refused(encrypted: Cluster, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    foreign = tuple(map(str, other.certificate("client", ())))
    ca = encrypted.plan.trust.ca_file
    for name in (*ASKING, "worker-1"):
        module, address = name.split("-")[0], encrypted.address(name)
        assert ready(module, address, 10.0, encrypted.plan.trust)
        assert not ready(module, address, 2.0, PLAIN), name
        assert not ready(module, address, 2.0, Trust(str(other.ca_file))), name
        if name in ASKING:
            assert not ready(module, address, 2.0, Trust(ca)), name
            assert not ready(module, address, 2.0, Trust(ca, *foreign)), name
    stranger = replace(encrypted.profile, tls_ca_file=str(other.ca_file))
    with Client(stranger, timeout=3.0, retry_for=0.0) as client, pytest.raises(Unavailable, match="cannot be reached"):
        client.market_info()


@pytest.mark.parametrize(("changes", "said", "step"), [
    ({"tls_ca_file": ""}, "speaks TLSv1.3", "tls_ca_file=FILE"),
    ({"tls_ca_file": "other"}, "does not answer for", "ask its operator"),
    ({"tls_cert_file": "", "tls_key_file": ""}, "asks for a certificate of ours", "tls_cert_file=FILE"),
    ({"tls_cert_file": "other", "tls_key_file": "other"}, "asks for another certificate", "tls_cert_file=FILE")])
def test_the_doctor_says_what_is_wrong_with_certificates(
    encrypted: Cluster, mesh: Mesh, changes: dict[str, str], said: str, step: str
) -> None:
    other = Authority(Path("other"))
    files = dict(zip(("tls_cert_file", "tls_key_file"), map(str, other.certificate("client", ())), strict=True))
    files["tls_ca_file"] = str(other.ca_file)
    found = encrypted.profile
    names = ("market", "ledger", "api_key", "tls_ca_file", "tls_cert_file", "tls_key_file")
    values = {name: getattr(found, name) for name in names}
    values |= {name: files[name] if value else "" for name, value in changes.items()}
    if not values["tls_ca_file"]:
        values |= {"tls_cert_file": "", "tls_key_file": ""}
    write_toml(Path("changed.toml"), values, 0o600)
    result = mesh("doctor", "--no-jax", "--json", profile="changed.toml")
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert result.returncode == 1
    assert findings["market"]["state"] == "FAIL"
    assert said in findings["market"]["detail"]
    assert step in findings["market"]["step"]


def test_a_good_setup_and_a_missing_file_are_told_apart(encrypted: Cluster, mesh: Mesh) -> None:
    good = mesh("doctor", "--no-jax", profile=encrypted.profile.path)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "nothing is wrong"), good.stdout
    shutil.copy(encrypted.profile.path, "moved.toml")
    moved = mesh("doctor", "--no-jax", profile="moved.toml")
    assert "tls_ca_file" in moved.stdout
    assert moved.returncode == 1
