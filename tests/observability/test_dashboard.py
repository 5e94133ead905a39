"""A real Prometheus scrapes every process of a real mesh, and each query of the dashboard returns data."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.cli.plan import free_ports
from computemesh.client import Client
from computemesh.service.access import ACCESS, Proof
from computemesh.service.auth import READ_ONLY, make_token
from computemesh.trust.errors import MeshError

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "computemesh.json").read_text())
SERVICES = {"ledger", "market", "orchestrator", "worker"}


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def shown(cluster: Cluster) -> dict[str, str]:
    """Where each process shows its metrics."""
    return {name: tomllib.loads(node.config.read_text())["metrics_listen"] for name, node in cluster.plan.nodes.items()}


class Prometheus:
    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, expression: str) -> list[dict]:
        """The instant vector of an expression; empty while Prometheus is not up. Raises on what it does not parse."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=10) as response:
                return json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        except OSError:
            return []


@pytest.fixture
def prometheus(watched: Cluster, tmp_path: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    jobs = [{"job_name": name.split("-")[0], "static_configs": [{"targets": [address]}]}
            for name, address in shown(watched).items()]
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": jobs}))  # JSON is YAML
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address={address}"], stdout=log, stderr=log)
    yield Prometheus(address)
    process.kill()
    process.wait()


def test_every_query_of_the_dashboard_returns_data(watched: Cluster, prometheus: Prometheus, tmp_path: Path) -> None:
    lacking = {expression: expression.replace("$__rate_interval", "30s") for expression in queries()}
    assert len(lacking) > 25
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    end = time.monotonic() + 120
    with Client(watched.profile) as client:
        while lacking:
            assert time.monotonic() < end, f"no data for {sorted(lacking)}"
            assert client.run("noop", {"jobs": 50, "bytes": 64}, reward="1.0").status == "completed"
            client.read_artifact(client.put_artifact(file).digest)
            with pytest.raises(MeshError):
                client.get("0" * 64)
            lacking = {name: expression for name, expression in lacking.items() if not numbers(prometheus, expression)}
    assert {row["metric"]["job"] for row in prometheus.ask("up == 1")} == SERVICES
    (jobs,) = prometheus.ask("sum(computemesh_jobs_settled_total)")
    (results,) = prometheus.ask("sum(computemesh_results_total)")
    assert float(jobs["value"][1]) >= 50
    assert float(results["value"][1]) >= 50


def numbers(prometheus: Prometheus, expression: str) -> list[float]:
    """Its values; 0/0 of a quiet stretch is no data."""
    found = [float(row["value"][1]) for row in prometheus.ask(expression)]
    return [value for value in found if value == value]


def test_every_process_says_at_its_start_where_its_metrics_are(watched: Cluster) -> None:
    for name, address in shown(watched).items():
        assert f'"url": "http://{address}/metrics"' in watched.log(name).read_text(), name


def _refused_with(watched: Cluster) -> set[str]:
    """Credentials, none good everywhere, sent to every call of every service; no refusal repeats them."""
    chain, now_ms = watched.profile.chain_id, time.time_ns() // 1_000_000
    key = watched.plan.keys["customer"]
    good, old = make_token(key, chain, now_ms + 600_000), make_token(key, chain, now_ms - 1)
    sent = {good, old, make_token(key, chain, now_ms + 600_000, READ_ONLY), good[:-9] + "canarytok", "wrong-api-canary",
            watched.plan.api_key}  # fmt: skip
    for name in ("market", "orchestrator", "ledger", "worker-1"):
        with grpc.insecure_channel(watched.address(name)) as channel:
            for path, row in ACCESS.items():
                if row.proof is not Proof.BEARER or path.endswith(("WatchEvents", "/Drain", "UploadArtifact")):
                    continue
                for secret in sent:
                    call = channel.unary_unary(path)
                    try:
                        call(b"", metadata=[("authorization", f"Bearer {secret}")], timeout=20)
                    except grpc.RpcError as error:
                        said = f"{error.details()} {error.trailing_metadata()}"
                        assert not [one for one in sent if one in said], path
    return sent


def test_metrics_name_no_caller_and_logs_no_secret(watched: Cluster) -> None:
    """Series come from code alone, or a stranger could make a million of them; and nothing told is a secret."""
    plan = watched.plan
    secrets = {key.secret.hex() for key in plan.keys.values()} | {plan.api_key}
    secrets.add((watched.data / "keys" / "log.key").read_text().strip())
    secrets.add(plan.api_account.secret.hex())
    secrets |= _refused_with(watched)
    with Client(watched.profile) as client, pytest.raises(MeshError):
        client.get("0123456789abcdef" * 4)
    for name, address in shown(watched).items():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            text = response.read().decode()
        assert "computemesh_rpcs_total" in text
        assert "0123456789abcdef" not in text
        log = watched.log(name).read_text()
        for line in log.splitlines():
            json.loads(line)
        assert not [secret for secret in secrets if secret in text or secret in log], name
