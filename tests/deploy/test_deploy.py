"""What deploy/ describes is well-formed, and every service accepts the configuration it is given there.

No container engine runs here: files are held against the schemas of those who read them (the Compose specification,
the Kubernetes API, systemd, Prometheus) and against our own loader.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from computemesh.service import config
from tests.service.test_config import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "docker-compose.yml"
MESH = DEPLOY / "mesh.toml"
# What belongs to one mesh alone and is in no file.
OWN = {"ledger": {"AUTHORITY_KEY": "02" * 33, "TREASURY_ADDRESS": "cpc1"}}
PORTS = {"ledger": 7101, "market": 7102, "orchestrator": 7103}


def load(service: str, variables: dict[str, str]) -> Any:
    prefix = f"COMPUTEMESH_{service.upper()}_"
    own = {prefix + name: value for name, value in OWN.get(service, {}).items()}
    return config.load(CONFIGS[service], MESH, service, {**own, **variables})


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "mesh.yaml").read_text()))


def containers() -> dict[str, dict[str, Any]]:
    pods = [one["spec"]["template"]["spec"] for one in objects() if one["kind"] in ("StatefulSet", "DaemonSet")]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


@pytest.mark.parametrize("service", CONFIGS)
def test_each_service_takes_its_table_of_the_one_file(service: str) -> None:
    loaded = load(service, {})
    assert loaded.metrics_listen == "0.0.0.0:9100"
    if service in PORTS:
        assert loaded.listen == f"0.0.0.0:{PORTS[service]}"


def test_compose_is_of_the_specification_and_configures_every_service() -> None:
    # As Compose reads it: variables first, then YAML.
    text = re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda found: found[2] if found[1] == "-" else "x", COMPOSE.read_text())
    read = yaml.safe_load(text)
    PyCompose.from_yaml(yaml.safe_dump(read)).validate()
    for right, wrong in (("image: prom", "imagee: prom"), ("read_only: true", "read_only: maybe")):
        with pytest.raises(ValueError, match=wrong.split(":")[0]):
            PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text.replace(right, wrong)))).validate()
    services = read["services"]
    for name, port in PORTS.items():
        assert services[name]["ports"] == [f"{port}:{port}"]
    for name in CONFIGS:
        assert services[name]["command"] == [name, "--config", "/config/mesh.toml"]
        given = dict(services[name].get("environment", {}))
        load(name, given)
        mounted = {mount.rsplit(":", 2 if mount.endswith(":ro") else 1)[1] for mount in services[name]["volumes"]}
        for field in ("data_dir", "key_file", "log_key_file"):
            path = getattr(load(name, given), field, None)
            assert path is None or any(path == at or path.startswith(f"{at}/") for at in mounted), f"{name}: {path}"


def test_the_image_has_every_package() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r'^include = \[(.*)\]', (ROOT / "pyproject.toml").read_text(), re.M)
    assert packages is not None
    assert copied >= {name.strip('"*') for name in packages[1].split(", ")}


def test_kubernetes_takes_the_manifests() -> None:
    found = objects()
    version = kubernetes_validate.latest_version()
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)
    broken = next(one for one in found if one["kind"] == "DaemonSet")
    broken["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        kubernetes_validate.validate(broken, version, strict=True)


def test_kubernetes_runs_every_service_with_the_one_file() -> None:
    (given,) = [one["data"]["mesh.toml"] for one in objects() if one["kind"] == "ConfigMap"]
    assert given == MESH.read_text(), "deploy/kubernetes/mesh.yaml has another mesh.toml than deploy/mesh.toml"
    running = containers()
    assert set(running) == set(CONFIGS)
    for name, container in running.items():
        assert container["args"] == [name, "--config", "/config/mesh.toml"]
        assert any(port["containerPort"] == 9100 for port in container["ports"])
        load(name, {one["name"]: one.get("value", "") for one in container.get("env", ())})
    (worker,) = [one["spec"]["template"]["spec"] for one in objects() if one["kind"] == "DaemonSet"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("service", CONFIGS)
def test_systemd_takes_the_unit_and_the_service_its_variables(service: str, tmp_path: Path) -> None:
    unit = DEPLOY / "systemd" / f"computemesh-{service}.service"
    text = unit.read_text()
    load(service, dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.M)))
    assert f"-m {service} --config" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name  # with an interpreter that is here
    copy.write_text(text.replace("/opt/computemesh/.venv/bin/python", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, unit.name in done.stderr) == (0, False), done.stderr


def test_prometheus_takes_its_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    path = DEPLOY / "prometheus" / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, timeout=60, check=True)
    jobs = {job["job_name"] for job in yaml.safe_load(path.read_text())["scrape_configs"]}
    assert jobs == set(CONFIGS)
