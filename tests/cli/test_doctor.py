"""`mesh doctor` tells broken setups apart, and says of each what to do."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from computemesh.cli import doctor, plan
from computemesh.cli.cluster import Cluster
from computemesh.trust.checkpoint import NoteSigner
from computemesh.trust.identity import PrivateKey

Mesh = Callable[..., CompletedProcess[str]]


@pytest.fixture
def examine(mesh: Mesh, cluster: Cluster) -> Callable[..., dict[str, dict[str, str]]]:
    """The findings by name, of the cluster's profile with some fields changed; and that the exit status fits."""

    def run(**changes: Any) -> dict[str, dict[str, str]]:
        found = cluster.profile
        values = {name: getattr(found, name) for name in ("market", "ledger", "orchestrator", "chain_id", "ledger_vkey",
                                                          "api_key")}  # fmt: skip
        plan.write_toml(Path("changed.toml"), {**values, **changes}, 0o600)
        result = mesh("doctor", "--no-jax", "--json", profile="changed.toml")
        document = json.loads(result.stdout)
        findings = {finding["name"]: finding for finding in document["findings"]}
        failed = any(finding["state"] == "FAIL" for finding in findings.values())
        assert (document["ok"], result.returncode) == (not failed, int(failed))
        assert all(finding["step"] for finding in findings.values() if finding["state"] in ("FAIL", "warn")), findings
        return findings

    return run


def bad(findings: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, finding in findings.items() if finding["state"] == "FAIL"}


def test_a_good_setup_has_nothing_to_mend(examine: Any, mesh: Mesh, cluster: Cluster) -> None:
    assert bad(examine()) == set()
    text = mesh("doctor", "--no-jax", profile=cluster.profile.path)
    assert (text.returncode, text.stdout.splitlines()[-1]) == (0, "nothing is wrong")


def test_a_service_that_is_down_is_not_one_that_is_exchanged_for_another(examine: Any, cluster: Cluster) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = examine(market=f"127.0.0.1:{unused.getsockname()[1]}")
    assert bad(down) == {"market"}
    assert "nothing listens there" in down["market"]["detail"]
    assert "mesh up" in down["market"]["step"]
    assert down["clock"]["state"] == down["account"]["state"] == "skip"
    exchanged = examine(ledger=cluster.profile.market)
    assert bad(exchanged) == {"ledger"}
    assert "not LedgerService" in exchanged["ledger"]["detail"]


def test_a_wrong_host_name_an_unknown_account_and_another_log_are_each_named(examine: Any, cluster: Cluster) -> None:
    host = examine(orchestrator="nowhere.invalid:7103")
    assert (bad(host), "host name" in host["orchestrator"]["step"]) == ({"orchestrator"}, True)
    account = examine(api_key="mesh_of_somebody_else")
    assert (bad(account), "does not know who you are" in account["account"]["detail"]) == ({"account"}, True)
    other = NoteSigner(cluster.profile.ledger_vkey.split("+")[0], b"\x03" * 32).vkey
    log = examine(ledger_vkey=other)
    assert (bad(log), "do not accept its receipts" in log["log key"]["step"]) == ({"log key"}, True)
    assert examine(ledger_vkey="")["log key"]["state"] == "warn"
    assert examine(market="127.0.0.1")["market"]["detail"] == "127.0.0.1: is not HOST:PORT"


def test_no_profile_is_said_together_with_the_ports_a_mesh_would_take(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(plan, "PORT_BASE", other.getsockname()[1] - 1)
        result = mesh("doctor", "--no-jax")
    assert result.returncode == 1
    assert "no profile found" in result.stdout
    assert f"another program listens on {other_port(result.stdout)} (market)" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 to mend: profile, ports"


def other_port(text: str) -> str:
    return text.partition("listens on ")[2].split()[0]


@contextmanager
def answering(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A program that listens and talks to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        talk(connection)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_another_program_is_told_from_a_service_behind_tls(examine: Any, tmp_path: Path) -> None:
    def web(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with answering(web) as address:
        found = examine(market=address)
        assert (bad(found), "another program" in found["market"]["step"]) == ({"market"}, True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with answering(lambda connection: context.wrap_socket(connection, server_side=True).close()) as address:
        found = examine(market=address)
        assert (bad(found), found["market"]["detail"]) == ({"market"}, f"{address}: speaks TLSv1.3")


def certificate(folder: Path) -> Path:
    """A self-signed certificate and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256()))  # fmt: skip
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())  # fmt: skip
    path = folder / "certificate.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_clock_that_is_off_and_a_full_disk_are_each_named(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() - 300))
        late = examine()
    assert (bad(late), "behind the market's" in late["clock"]["detail"]) == ({"clock"}, True)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 1 << 20))
        full = examine()
    assert (bad(full), "artifacts are refused" in full["disk"]["detail"]) == ({"disk"}, True)


def test_far_services_without_encryption_are_a_warning() -> None:
    from computemesh.client.profile import Profile

    finding = doctor._encryption(Profile(market="10.0.0.5:7102", ledger="127.0.0.1:7101"))
    assert (finding.state, "10.0.0.5:7102 are not encrypted" in finding.detail) == ("warn", True)


DRIVER = "GPU 0: NVIDIA H100 (UUID: GPU-1)"
CPU, CUDA = (json.dumps({"jax": "0.10.2", "platform": one, "kind": "x", "sum": 6}) for one in ("cpu", "gpu"))


@pytest.mark.parametrize(
    ("driver", "probe", "states", "says"),
    [
        (None, (0, CPU, ""), {"jax": "ok", "gpu": "skip"}, "no NVIDIA driver"),
        ((0, DRIVER), (0, CUDA, ""), {"jax": "ok", "gpu": "ok"}, "GPU 0: NVIDIA H100"),
        ((0, DRIVER), (0, CPU, ""), {"jax": "ok", "gpu": "FAIL"}, "computemesh[cuda12]"),
        ((9, "Failed to initialize NVML: Driver/library version mismatch"), (0, CPU, ""),
         {"jax": "ok", "gpu": "FAIL"}, "version mismatch"),
        (None, (1, "", "x\nImportError: no module 'jaxlib'"), {"jax": "FAIL"}, "no module 'jaxlib'"),
        (None, None, {"jax": "FAIL"}, "another process may hold the device"),
    ],
    ids=["no gpu", "gpu", "jax without cuda", "driver broken", "jax broken", "jax hangs"],
)  # fmt: skip
def test_a_gpu_jax_does_not_see_is_not_a_driver_or_a_jax_that_is_broken(
    driver: tuple[int, str] | None, probe: tuple[int, str, str] | None, states: dict[str, str], says: str
) -> None:
    def run(command: list[str], **options: Any) -> CompletedProcess[str]:
        if command[0] == "nvidia-smi":
            if driver is None:
                raise FileNotFoundError(command[0])
            return CompletedProcess(command, driver[0], driver[1], "")
        if probe is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return CompletedProcess(command, *probe)

    found = list(doctor._jax(run))
    assert {finding.name: finding.state for finding in found} == states
    assert says in " ".join(finding.detail + finding.step for finding in found)


def test_jax_is_really_started(mesh: Mesh, cluster: Cluster) -> None:
    result = mesh("doctor", profile=cluster.profile.path)
    assert "computes on" in result.stdout, result.stdout


def test_a_profile_others_may_read_or_that_says_nobody_is_a_warning(mesh: Mesh, cluster: Cluster) -> None:
    Path("open.toml").write_text(f'market = "{cluster.profile.market}"\napi_key = "{cluster.profile.api_key}"\n')
    Path("open.toml").chmod(0o644)
    assert "chmod 600" in mesh("doctor", "--no-jax", profile="open.toml").stdout
    Path("nobody.toml").write_text(f'market = "{cluster.profile.market}"\n')
    assert "says not who you are" in mesh("doctor", "--no-jax", profile="nobody.toml").stdout
    Path("k").write_text(PrivateKey.generate().secret.hex())
    Path("key.toml").write_text(f'market = "{cluster.profile.market}"\nkey_file = "k"\n')
    assert "as a key" in mesh("doctor", "--no-jax", profile="key.toml").stdout
    Path("k").unlink()
    lost = mesh("doctor", "--no-jax", profile="key.toml")
    assert (lost.returncode, "the key file k cannot be read" in lost.stdout) == (1, True)
