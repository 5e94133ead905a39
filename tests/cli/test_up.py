"""`mesh up`: what it exits with, that a second start does not pay again, and its edge."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from computemesh.cli.plan import free_ports, taken

Mesh = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


def test_once_without_a_first_task_is_a_usage_error(mesh: Mesh, tmp_path: Path) -> None:
    assert mesh("up", "--no-demo", "--once").returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_is_one_line(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    for arguments in (("--data", "afile"), ("--data", "/proc/foo"), ("--host", "nope.invalid")):
        result = mesh("up", "--once", *arguments)
        assert result.returncode == 1
        assert arguments[1] in result.stderr
        assert "Traceback" not in result.stderr


def test_interrupted_before_the_first_task_is_status_1(mesh_process: Start, tmp_path: Path) -> None:
    process = mesh_process("up", "--once", "--port-base", "0", "--workers", "1")
    until = time.monotonic() + 60
    while time.monotonic() < until and not (tmp_path / "data" / "logs" / "ledger.log").exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "interrupted before the first task" in said
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_second_start_finds_the_first_and_pays_for_no_other(mesh_process: Start, tmp_path: Path) -> None:
    first = mesh_process("up", "--once", "--no-edge", "--port-base", "0", "--workers", "1")
    _, said = first.communicate(timeout=240)
    assert first.returncode == 0, said
    assert not (tmp_path / "data" / "edge.toml").exists()
    (receipt,) = (tmp_path / "data" / "receipts").iterdir()
    (port,) = free_ports(1)
    second = mesh_process("up", "--workers", "1", "--edge-port", str(port))
    lines: list[str] = []
    assert second.stderr is not None
    for line in second.stderr:
        lines.append(line)
        if "Ctrl-C stops everything" in line:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                assert b"<title>computemesh</title>" in page.read()
            second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    text = "".join(lines)
    assert "accounts, 1 tasks of yours" in text
    assert receipt.name in text
    assert f"look at it: http://127.0.0.1:{port}/" in text
    metrics = tomllib.loads((tmp_path / "data" / "ledger.toml").read_text())["metrics_listen"]
    assert re.search(rf"^  ledger +\S+ +{re.escape(metrics)}$", text, re.MULTILINE)
    assert not taken(f"127.0.0.1:{port}")
    assert "mesh up --demo" in text
    assert len([*receipt.parent.iterdir()]) == 1
