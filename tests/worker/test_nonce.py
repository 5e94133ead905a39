"""Nonces on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from computemesh.trust.errors import InvalidState
from worker.nonce import FIRST, NonceFile


def test_a_restart_begins_where_the_reservation_ended(tmp_path: Path) -> None:
    with NonceFile(tmp_path) as nonces:
        assert nonces.next == FIRST
        nonces.reserve(1025)
    with NonceFile(tmp_path) as nonces:
        assert nonces.next == 1025


def test_a_reservation_never_goes_back(tmp_path: Path) -> None:
    with NonceFile(tmp_path) as nonces:
        nonces.reserve(1025)
        with pytest.raises(InvalidState, match="1025"):
            nonces.reserve(5)


def test_a_crash_before_the_rename_leaves_the_old_reservation(tmp_path: Path) -> None:
    with NonceFile(tmp_path) as nonces:
        nonces.reserve(1025)
    (tmp_path / "nonce.new").write_text("9")
    with NonceFile(tmp_path) as nonces:
        assert nonces.next == 1025


def test_a_folder_belongs_to_one_agent(tmp_path: Path) -> None:
    with NonceFile(tmp_path), pytest.raises(InvalidState, match="in use by another worker"):
        NonceFile(tmp_path)
    NonceFile(tmp_path).close()


@pytest.mark.parametrize("text", ["", "abc", "-5", "1.5", "\u0661"])
def test_a_damaged_file_stops_the_worker_instead_of_starting_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "nonce").write_text(text)
    with pytest.raises(InvalidState, match="is not a nonce"):
        NonceFile(tmp_path)
