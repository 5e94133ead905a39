"""The list of crash points and the places in the code are the same; an armed process dies at its place."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from computemesh.service.crashpoints import POINTS, VARIABLE

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("computemesh", "ledger", "market", "orchestrator", "worker", "edge")
COMES_BY = "from computemesh.service.crashpoints import crash_point; [crash_point('commit.begun') for _ in range(3)]"


def places() -> list[tuple[str, str]]:
    """(room, name) of every call in the sources."""
    found = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point":
                    assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno} has no plain name"
                    found.append((room, str(node.args[0].value)))
    return found


def test_every_crash_point_is_listed_and_stands_in_one_place() -> None:
    assert Counter(name for _, name in places()) == Counter(POINTS.keys())
    assert len(POINTS) >= 45


def test_a_crash_point_of_one_service_stands_in_its_room() -> None:
    for room, name in places():
        assert room == "computemesh" or POINTS[name] == (room,), name
        assert room != "computemesh" or len(POINTS[name]) > 1, name


@pytest.mark.parametrize(("setting", "dies"), [("commit.begun:3", True), ("commit.begun", True),
                                               ("commit.begun:4", False), ("commit.durable:1", False), ("", False)])
def test_an_armed_process_dies_when_it_comes_by_for_the_nth_time(setting: str, dies: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", COMES_BY], env={VARIABLE: setting}, cwd=ROOT, check=False)
    assert ended.returncode == (-signal.SIGKILL if dies else 0)


def test_an_unknown_crash_point_is_refused_at_start() -> None:
    ended = subprocess.run([sys.executable, "-c", COMES_BY], env={VARIABLE: "commit.nowhere:1"}, cwd=ROOT, check=False,
                           capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 1
    assert "commit.nowhere" in ended.stderr
