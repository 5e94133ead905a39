from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _compiled_once(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All workers of a run share one compile cache: XLA would need seconds for the same programs in every test."""
    shared = tmp_path_factory.getbasetemp() / "compile-cache"
    shared.mkdir(exist_ok=True)
    (tmp_path / "compile-cache").symlink_to(shared)
