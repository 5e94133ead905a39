"""The page about the Work stream against the code."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.model import TRANSITIONS, Cause, Job


def test_the_documents_diagram_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "work-stream.md").read_text()
    drawn = {
        (Job[start], Cause[cause]): Job[end]
        for start, end, cause in re.findall(r"^    ([A-Z]+) --> ([A-Z]+): ([A-Z]+)$", page, re.MULTILINE)
    }
    assert drawn == TRANSITIONS
