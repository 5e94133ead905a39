"""The sentences of docs/architecture.md about imports and sizes, held against the real files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("market", "orchestrator", "worker", "ledger")
PURE = {"asyncio", "grpc", "jax", "sqlite3", "socket", "time", "random", "secrets", "os", "threading", "structlog"}
# What a room may import of the project's own.
SHELL = {"computemesh.service", "computemesh.trust", "computemesh.v1"}
MAY = {
    "computemesh.trust": {"computemesh.trust"},
    "computemesh.kernels": {"computemesh.kernels", "computemesh.trust"},
    "computemesh.sandbox": {"computemesh.sandbox", "computemesh.trust"},
    "computemesh.workloads": {
        "computemesh.workloads", "computemesh.kernels", "computemesh.sandbox", "computemesh.trust",
    },
    "computemesh.service": SHELL,
    "computemesh.client": {"computemesh.client", "computemesh.workloads", "computemesh.sandbox", *SHELL},
    "market": {"market", "computemesh.workloads", *SHELL},
    "orchestrator": {"orchestrator", "computemesh.workloads", *SHELL},
    "worker": {"worker", "computemesh.workloads", *SHELL},
    "ledger": {"ledger", *SHELL},
    "edge": {"edge", *SHELL},
}
OWN = ("computemesh", "edge", *SERVICES)


def sources(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room.replace(".", "/")).rglob("*.py") if "_pb2" not in p.name)


def imports(path: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    for node in (tree.body if top_only else ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", MAY)
def test_imports_point_one_way(room: str) -> None:
    files = sources(room)
    assert files, f"{room} has no source"
    for path in files:
        for name in imports(path):
            if name.split(".")[0] in OWN and name != "computemesh.__version__":
                assert any(name == may or name.startswith(may + ".") for may in MAY[room]), f"{path}: imports {name}"


@pytest.mark.parametrize("room", ["computemesh.trust", *(f"{s}.core" for s in SERVICES)])
def test_what_decides_has_no_clock_no_chance_and_no_io(room: str) -> None:
    path = ROOT / (room.replace(".", "/") + ".py")
    for source in [path] if path.exists() else sources(room):
        outside = {name.split(".")[0] for name in imports(source)} & PURE
        assert not outside, f"{source}: imports {outside}"


@pytest.mark.parametrize("module", ["computemesh", "computemesh.workloads", "computemesh.cli.main", "market.service",
                                    "orchestrator.service", "worker.session", "ledger.service"])
def test_importing_does_not_import_jax(module: str) -> None:
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("service", SERVICES)
def test_a_main_only_puts_parts_together(service: str) -> None:
    assert len((ROOT / service / "__main__.py").read_text("utf-8").splitlines()) <= 40


def test_modules_and_functions_stay_small() -> None:
    for path in [p for room in (*OWN, "bench", "tests") for p in sources(room)]:
        text = path.read_text("utf-8")
        assert text.count("\n") <= 430, f"{path} has {text.count(chr(10))} lines: what is it really two of?"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_names_say_what_things_are() -> None:
    vague = re.compile(r"\b(?:class \w*(?:Manager|Handler|Helper)\b|def \w*helper\w*)")
    for room in ("computemesh", *SERVICES):
        for path in sources(room):
            assert path.stem not in {"utils", "util", "helpers", "common", "manager"}, path
            match = vague.search(path.read_text("utf-8"))
            assert match is None, f"{path}: {match and match.group(0)}"
