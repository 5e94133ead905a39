"""The local cluster: what it leaves behind, what it refuses, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest

from computemesh import InvalidArgument, InvalidState
from computemesh.cli.cluster import Cluster
from computemesh.cli.plan import prepare
from computemesh.client import Client

ROOT = Path(__file__).resolve().parents[2]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: object, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_keys_and_profile_are_private_and_stay_the_same(tmp_path: Path) -> None:
    first, second = prepare(tmp_path, 2, 0), prepare(tmp_path, 2)
    assert (first.first_run, second.first_run) == (True, False)
    assert {name: key.secret for name, key in first.keys.items()} == {k: v.secret for k, v in second.keys.items()}
    assert [node.address for node in first.nodes.values()] == [node.address for node in second.nodes.values()]
    for path in [*tmp_path.glob("keys/*"), *tmp_path.glob("worker-*/worker.key")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_edited_configuration_is_kept_and_addresses_follow_the_port_base(tmp_path: Path) -> None:
    prepare(tmp_path, 1, 7301)
    path = tmp_path / "market.toml"
    path.write_text(path.read_text() + "lease_ms = 1234\n")
    plan = prepare(tmp_path, 1, 7401)
    assert "lease_ms = 1234" in path.read_text()
    assert "127.0.0.1:7402" in path.read_text()
    assert plan.nodes["worker-1"].address == "127.0.0.1:7411"


def test_a_taken_port_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    prepare(tmp_path, 1, 0)
    cluster = Cluster(tmp_path, 1)
    address = prepare(tmp_path, 1).nodes["market"].address
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(address.split(":")[1])))
        other.listen()
        with pytest.raises(InvalidState, match=rf"{address} \(market\).*--port-base") as caught:
            cluster.start()
    assert caught.value.reason == "PORT_TAKEN"
    assert cluster.pids == {}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("host", ["nope.invalid", "192.0.2.1", "x" * 70, "."])
def test_a_host_that_is_not_this_machine_is_said_and_nothing_is_stored(tmp_path: Path, host: str) -> None:
    prepare(tmp_path, 1, 0)
    before = contents(tmp_path)
    with pytest.raises(InvalidArgument, match="is it an address of this machine") as caught:
        Cluster(tmp_path, 1, host=host).start()
    assert caught.value.reason == "CANNOT_LISTEN"
    assert contents(tmp_path) == before


def test_a_taken_port_leaves_the_stored_configuration(tmp_path: Path) -> None:
    prepare(tmp_path, 1, 0)
    before = contents(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InvalidState):
            Cluster(tmp_path, 1, port_base=other.getsockname()[1]).start()
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    (tmp_path / "full" / "keys").mkdir(parents=True)
    (tmp_path / "full" / "keys" / "authority.key").mkdir()
    for folder in (tmp_path / "afile", tmp_path / "afile" / "below", Path("/proc/foo"), tmp_path / "full"):
        with pytest.raises(InvalidArgument, match=str(folder)) as caught:
            Cluster(folder, 1, port_base=0).start()
        assert caught.value.reason == "DATA_UNUSABLE"


@pytest.mark.parametrize("text", [b"\xff\xfe = 1", b"listen = 5\n", b"listen = 'x:y'\n"])
def test_a_configuration_nobody_can_read_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "market.toml").write_bytes(text)
    with pytest.raises(InvalidArgument, match=r"market\.toml"):
        Cluster(tmp_path, 1).start()


def test_local_workers_drain_before_they_would_be_killed(tmp_path: Path) -> None:
    prepare(tmp_path, 1, 0)
    stored = tomllib.loads((tmp_path / "worker-1" / "worker.toml").read_text())
    assert stored["drain_timeout_ms"] / 1000 < Cluster(tmp_path, 1).stop_timeout_s - 2


def test_one_folder_has_one_cluster(cluster: Cluster) -> None:
    with pytest.raises(InvalidState, match="in use by another cluster"):
        Cluster(cluster.data, 2).start()


def test_the_first_funds_are_given_once(cluster: Cluster) -> None:
    from computemesh.cli.funding import fund

    with Client(cluster.profile) as client:
        before = client.account(cluster.plan.keys["customer"].address)
        fund(cluster.plan, cluster.profile)
        after = client.account(cluster.plan.keys["customer"].address)
    assert before.balance_units == after.balance_units


def test_a_killed_service_comes_back_and_unknown_names_are_refused(cluster: Cluster) -> None:
    old = cluster.pids["orchestrator"]
    assert cluster.kill("orchestrator") == old
    assert "orchestrator" not in cluster.pids
    with pytest.raises(InvalidState, match="does not run"):
        cluster.kill("orchestrator")
    assert cluster.start_process("orchestrator") != old
    with pytest.raises(InvalidState, match="runs already"):
        cluster.start_process("orchestrator")
    with pytest.raises(InvalidState, match="not part of the cluster"):
        cluster.start_process("market-9")
    for name in ("worker-1", "worker-2"):
        cluster.wait_healthy(name)


SCRIPT = """
import sys, time
from computemesh.cli.cluster import Cluster
cluster = Cluster(sys.argv[1], workers=1, port_base=0, supervise=True, notice=lambda text: print(text, flush=True))
cluster.start()
print("pids", *cluster.pids.values(), flush=True)
time.sleep(600)
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    owner = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()[1:]]
    assert len(pids) == 4
    return owner, pids


def test_nothing_outlives_a_cluster_that_was_killed(tmp_path: Path) -> None:
    owner, pids = started(tmp_path)
    everything = {child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)} | set(pids)
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()
    assert wait_until(lambda: all(map(gone, everything)), 25), [pid for pid in everything if not gone(pid)]


def test_a_child_that_dies_is_restarted_with_a_notice(tmp_path: Path) -> None:
    owner, pids = started(tmp_path)
    try:
        os.kill(pids[2], signal.SIGKILL)
        assert owner.stdout is not None
        assert "orchestrator was killed by signal 9; it starts again in 0.5 s" in owner.stdout.readline()
        me = psutil.Process(owner.pid)
        assert wait_until(lambda: sum("orchestrator" in " ".join(c.cmdline()) for c in me.children()) == 1)
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    assert wait_until(lambda: all(map(gone, pids)), 25)
