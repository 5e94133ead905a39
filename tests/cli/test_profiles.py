"""Named profiles, and what the shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.service.auth import verify_token
from computemesh.trust.identity import PrivateKey

Mesh = Callable[..., CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]


def token(mesh: Mesh, *options: str, profile: str | None = None) -> str:
    """Whose token the profile in effect has."""
    return mesh(*options, "profile", "token", profile=profile).stdout.strip()


def test_a_named_profile_is_set_used_and_goes_behind_what_is_nearer(mesh: Mesh, tmp_path: Path) -> None:
    Path("secret").write_text("mesh_secret\n")
    made = mesh("profile", "set", "lab", "market=127.0.0.1:1", "api_key=@secret", "workers.w1=127.0.0.1:2")
    assert made.returncode == 0, made.stderr
    path = tmp_path / ".config/computemesh/profiles/lab.toml"
    assert 'api_key = "mesh_secret"' in path.read_text()
    assert "mesh_secret" not in made.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    assert token(mesh, "--profile", "lab") == "mesh_secret"
    assert "PROFILE_NOT_FOUND" in mesh("profile", "token").stderr
    assert mesh("profile", "use", "lab").returncode == 0
    assert token(mesh) == "mesh_secret"
    Path("data").mkdir()
    Path("data/profile.toml").write_text('market = "127.0.0.1:9"\napi_key = "nearer"\n')
    assert token(mesh) == "nearer"
    assert "here data/profile.toml goes first" in mesh("profile", "use", "lab").stdout
    assert token(mesh, profile="lab") == "mesh_secret"
    listed = json.loads(mesh("profile", "list", "--json").stdout)
    assert (listed["in_use"], listed["in_effect"]) == ("lab", "data/profile.toml")
    mesh("profile", "set", "lab", "api_key=", "market=127.0.0.1:3")
    assert 'market = "127.0.0.1:3"' in path.read_text()
    assert "api_key" not in path.read_text().partition("\n\n")[0].splitlines()[1:]
    assert "mesh_secret" not in path.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "a/b", "market=x:1"), "must be 1 to 64 letters"), (("set", "lab", "markt=x:1"), "known are market"),
        (("set", "lab", "market"), "is not FIELD=VALUE"), (("set", "lab", "workers=x:1"), "known are market"),
        (("set", "lab", "api_key=@nowhere"), "cannot read nowhere"), (("use", "nobody"), "there is no profile at"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_with_what_it_must_be(mesh: Mesh, words: tuple[str, ...], says: str) -> None:
    result = mesh("profile", *words)
    assert result.returncode in (1, 2)
    assert says in " ".join(result.stderr.split())


def test_a_broken_profile_is_listed_with_its_problem(mesh: Mesh) -> None:
    mesh("profile", "set", "lab", "market=127.0.0.1:1")
    (Path(".config/computemesh/profiles") / "broken.toml").write_text("market = ")
    rows = json.loads(mesh("profile", "list", "--json").stdout)["profiles"]
    assert {row["name"]: bool(row["problem"]) for row in rows} == {"broken": True, "lab": False}


def test_the_token_of_a_key_is_one_that_services_accept(mesh: Mesh, cluster: Cluster) -> None:
    import time

    key = PrivateKey.generate()
    Path("k").write_text(key.secret.hex())
    mesh("profile", "set", "me", "market=127.0.0.1:1", "chain_id=c", "key_file=k")
    token = mesh("profile", "token", "--profile", "me").stdout.strip()
    assert verify_token(token, "c", time.time_ns() // 1_000_000) == key.public
    assert mesh("profile", "token", profile=cluster.profile.path).stdout.strip() == cluster.profile.api_key


def test_bash_completes_commands_types_statuses_and_profiles(mesh: Mesh, tmp_path: Path) -> None:
    mesh("profile", "set", "laboratory", "market=127.0.0.1:1")

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "_MESH_COMPLETE": "complete_bash",
                       "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}  # fmt: skip
        found = subprocess.run([sys.executable, "-m", "computemesh.cli"], capture_output=True, text=True, timeout=60,
                               env=environment, check=False)  # fmt: skip
        return found.stdout.split()

    assert complete("mesh prof") == ["profile"]
    assert complete("mesh task submit rend") == ["rendering"]
    assert complete("mesh task list --status comp") == ["completed"]
    assert complete("mesh --profile lab") == ["laboratory"]
