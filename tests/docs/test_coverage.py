"""docs/coverage.md names only what exists: RPCs and routes of the contracts, commands, acts, events, tests; and
docs/reliability.md only tests that do."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from computemesh.trust import acts
from computemesh.v1 import artifact_pb2, ledger_pb2, market_pb2, orchestrator_pb2, worker_pb2
from tests.cli.test_golden import ALL

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "coverage.md").read_text("utf-8")
SYSTEMS = ("ComputeChain Task Market", "ComputeChain Mining", "OpenGPU Tasks", "Arbius Tasks", "Hyra Task Pool")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| feature")]  # fmt: skip
CONTRACTS = [module.DESCRIPTOR for module in (artifact_pb2, ledger_pb2, market_pb2, orchestrator_pb2, worker_pb2)]
RPCS = {f"{service.name}.{method.name}" for file in CONTRACTS for service in file.services_by_name.values()
        for method in service.methods}  # fmt: skip
ROUTES = {(verb.upper(), path) for proto in (ROOT / "proto").rglob("*.proto")
          for verb, path in re.findall(r'(get|post|delete): "(/[^"]*)"', proto.read_text("utf-8"))}  # fmt: skip
ACTS = {each.KIND for each in vars(acts).values() if isinstance(getattr(each, "KIND", None), str)}


@functools.cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def exists(name: str) -> bool:
    """Whether what a row names between backticks as its way is there."""
    words = name.split()
    if words[0] == "mesh":
        return tuple(words[1:]) in ALL
    if words[0] == "act":
        return words[1] in ACTS
    if words[0] in ("GET", "POST", "DELETE"):
        return (words[0], words[1].partition("?")[0]) in ROUTES
    return name in RPCS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_every_feature_has_a_way_and_a_test_that_exist_or_a_reason(row: list[str]) -> None:
    assert len(row) == 3, row
    feature, way, proof = row
    assert feature
    ways = [] if way.startswith("none: ") else re.findall(r"`([^`]+)`", way)
    proofs = re.findall(r"`([^`]+::[^`]+)`", proof)
    assert [name for name in ways if not exists(name)] == []
    for name in proofs:
        file, _, test = name.partition("::")
        assert test in functions_in(file), name
    for cell, names in ((way, ways), (proof, proofs)):
        assert names or (cell.startswith("none: ") and len(cell) > 30), f"neither a name nor a reason: {cell!r}"


def test_each_of_the_five_systems_has_its_table() -> None:
    assert re.findall(r"^## (.+)$", PAGE, re.M) == [*SYSTEMS, "Errors they name"]
    assert len(ROWS) > 60


def test_each_threat_is_made_by_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    threats = page.partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ") and not line.startswith(("| Who", "| ---"))]
    assert len(rows) > 15
    assert [row for row in rows if "::" not in row] == []
    named = [name.split("::") for name in re.findall(r"`([\w/]+\.py::\w+)`", page)]
    assert [name for name in named if name[1] not in functions_in(name[0])] == []
