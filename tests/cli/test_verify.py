"""`mesh verify` of a file: nobody is told "verified" without a log key that they trust."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trust.test_receipt import GOOD, LOG

Mesh = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def receipt(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(GOOD.to_json())


def test_without_a_log_key_a_receipt_is_not_verified(mesh: Mesh) -> None:
    unknown = mesh("verify", "r.json")
    assert unknown.returncode == 1
    assert "consistent, but not verified: give the log's key with --vkey" in unknown.stdout
    assert mesh("verify", "r.json", "--allow-unknown-log").returncode == 0
    known = mesh("verify", "r.json", "--vkey", LOG.vkey)
    assert (known.returncode, known.stdout.splitlines()[-1]) == (0, "verified")


def test_an_empty_log_key_is_a_usage_error(mesh: Mesh) -> None:
    for empty in ("", " "):
        assert mesh("verify", "r.json", "--vkey", empty).returncode == 2


def test_a_profile_that_is_named_must_exist(mesh: Mesh) -> None:
    for result in (
        mesh("--profile", "/typo.toml", "verify", "r.json"),
        mesh("verify", "r.json", "--profile", "/typo.toml"),
        mesh("verify", "r.json", profile="/typo.toml"),
    ):
        assert result.returncode == 1
        assert "PROFILE_NOT_FOUND" in result.stderr
        assert "/typo.toml" in result.stderr


def test_a_profile_without_a_log_key_verifies_nothing(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text('market = "127.0.0.1:1"\n')
    assert mesh("verify", "r.json", profile="bare.toml").returncode == 1
    (tmp_path / "pinned.toml").write_text(f'ledger_vkey = "{LOG.vkey}"\n')
    assert mesh("verify", "r.json", profile="pinned.toml").returncode == 0
