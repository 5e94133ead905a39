"""`mesh artifact` and the SDK against a real cluster: market for customers, orchestrator for workers, one store."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.auth import make_token
from computemesh.service.server import dial
from computemesh.service.transfer import Transfer
from computemesh.trust.errors import InvalidArgument, NotFound, Unauthenticated, Unauthorized
from computemesh.trust.identity import PrivateKey

Mesh = Callable[..., CompletedProcess[str]]


@pytest.fixture
def here(cluster: Cluster, mesh: Mesh) -> Mesh:
    """`mesh` with the cluster's profile."""
    return lambda *arguments: mesh(*arguments, profile=cluster.profile.path)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def document(result: CompletedProcess[str]) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_put_ls_get_rm(here: Mesh, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "scene.glb").write_bytes(data)
    words = ("artifact", "put", str(tmp_path / "scene.glb"), "--media-type", "model/gltf-binary", "--json")
    stored = document(here(*words))
    assert (stored["digest"], stored["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert stored["expires_ms"] > time.time() * 1000 + 6 * 86_400_000
    rows = document(here("artifact", "ls", "--json"))["artifacts"]
    assert (rows[0]["name"], rows[0]["media_type"]) == ("scene.glb", "model/gltf-binary")
    got = here("artifact", "get", stored["digest"][:12], "-o", str(tmp_path / "copy.glb"))
    assert got.stdout.strip() == str(tmp_path / "copy.glb")
    assert (tmp_path / "copy.glb").read_bytes() == data
    again = here("artifact", "get", stored["digest"], "-o", str(tmp_path / "copy.glb"))
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert here("artifact", "rm", stored["digest"]).returncode == 0
    gone = here("artifact", "rm", stored["digest"])
    assert (gone.returncode, "ARTIFACT_NOT_FOUND" in gone.stderr) == (1, True)


def test_a_folder_comes_back_as_a_folder(here: Mesh, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "deep" / "er").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "deep" / "er" / "weights").write_bytes(os.urandom(100_000))
    (model / "empty").write_bytes(b"")
    stored = document(here("artifact", "put", str(model), "--json"))
    assert stored["name"] == "model"
    target = tmp_path / "back"
    assert here("artifact", "get", stored["digest"], "-o", str(target)).returncode == 0
    assert contents(target) == contents(model)


def test_errors_say_what_to_do(here: Mesh, tmp_path: Path) -> None:
    assert here("artifact", "put", str(tmp_path / "nothing")).returncode == 2
    bad = here("artifact", "get", "xyz")
    assert (bad.returncode, "hexadecimal" in bad.stderr) == (2, True)
    unknown = here("artifact", "get", "0" * 64)
    assert unknown.returncode == 1
    assert f"artifact {'0' * 64} is not here" in unknown.stderr


def test_a_caller_without_credentials_is_refused(cluster: Cluster) -> None:
    with Client(market=cluster.address("market")) as stranger, pytest.raises(Unauthenticated, match="authorization"):
        stranger.put_artifact(b"x")


async def test_a_worker_reads_from_the_orchestrator_what_a_customer_put_in_the_market(
    cluster: Cluster, client: Client
) -> None:
    data = os.urandom(2_500_000)
    digest = client.put_artifact(data, name="input").digest

    def as_key(key: PrivateKey) -> Transfer:
        token = make_token(key, client.profile.chain_id, time.time_ns() // 1_000_000 + 60_000)

        async def metadata() -> tuple[tuple[str, str], ...]:
            return (("authorization", f"Bearer {token}"),)

        return Transfer(channel, metadata)

    channel = dial(cluster.address("orchestrator"))
    try:
        worker = as_key(cluster.plan.keys["worker-1"])
        assert await worker.read(digest, 10**7) == data
        result = await worker.put(b"result of a job")
        with pytest.raises(Unauthorized, match="not known here"):
            await as_key(PrivateKey.generate()).read(digest, 10**7)
        with pytest.raises(NotFound):
            await worker.delete(digest)  # the customer's reference is not the worker's
    finally:
        await channel.close(None)
    assert client.read_artifact(result.digest) == b"result of a job"


def test_what_has_no_end_is_no_artifact(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(InvalidArgument, match="neither a file nor a folder"):
            client.put_artifact(path)
