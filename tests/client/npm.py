"""A Node example with its packages, in a build folder that is kept between runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def installed(name: str) -> Path:
    """The folder of examples/`name`, ready to run. Skips where npm is not installed."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    source, build = ROOT / "examples" / name, ROOT / "build" / f"{name}-example"
    build.mkdir(parents=True, exist_ok=True)
    manifest = build / "package.json"
    fresh = manifest.exists() and manifest.read_bytes() == (source / "package.json").read_bytes()
    if not fresh or not (build / "node_modules").exists():
        shutil.copy(source / "package.json", manifest)
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        subprocess.run(install, cwd=build, check=True, timeout=150)
    for path in source.glob("*.js"):
        shutil.copy(path, build / path.name)
    return build
