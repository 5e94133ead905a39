"""Schemathesis reads the OpenAPI document from the edge and tries to break what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.edge.conftest import ROOT

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ENDLESS = ("WatchBlocks", "WatchEvents")
LONG_CASES = 2000
PROGRAM = Path(sys.executable).with_name("schemathesis")


def judged(url: str, folder: Path, phases: str, examples: int) -> int:
    """How many cases passed; every other outcome fails with Schemathesis' own report."""
    done = subprocess.run(
        [str(PROGRAM), "run", f"{url}/openapi.json", "--checks", CHECKS,
         *(option for name in ENDLESS for option in ("--exclude-operation-id", name)), "--phases", phases,
         "--max-examples", str(examples), "--warnings", "off", "--request-timeout", "60",
         "--suppress-health-check", "all", "--no-color"],
        capture_output=True, text=True, cwd=folder, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[:12000] + done.stderr[-2000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout[-2000:]
    assert counts[1] == counts[2]
    return int(counts[1])


def test_no_fault_and_no_undocumented_answer(url: str, tmp_path: Path) -> None:
    assert judged(url, tmp_path, "fuzzing", 2) >= 44


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_fault_and_no_undocumented_answer_in_two_thousand_cases(url: str, tmp_path: Path) -> None:
    cases = judged(url, tmp_path, "coverage,fuzzing", 50)
    print(f"{cases} cases, no fault and no undocumented answer")
    assert cases >= LONG_CASES


def test_the_edge_serves_the_document_of_the_contracts(url: str) -> None:
    served = requests.get(f"{url}/openapi.json", timeout=60)
    assert served.headers["content-type"] == "application/json"
    assert served.content == (ROOT / "docs" / "openapi.json").read_bytes()
