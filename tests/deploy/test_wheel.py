"""An installed mesh has what its edge serves."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_wheel_has_the_page_and_the_openapi_document(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    archive = subprocess.run(["tar", "--null", "-T", "-", "-cf", "-"], cwd=ROOT, input=files.encode(),
                             capture_output=True, check=True).stdout  # fmt: skip
    copy.mkdir()
    subprocess.run(["tar", "-xf", "-"], cwd=copy, input=archive, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, copy]
    subprocess.run(command, check=True, timeout=170)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for path in sorted(one for one in (ROOT / "dashboard").rglob("*") if one.is_file()):
            assert wheel.read(str(path.relative_to(ROOT))) == path.read_bytes()
        assert wheel.read("edge/openapi.json") == (ROOT / "docs" / "openapi.json").read_bytes()
