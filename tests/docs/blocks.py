"""The code in a document: its shell commands and its Python blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COMMAND = re.compile(r"^(?:[A-Z_]+=\S*\s+)*(?:\.venv/bin/)?(?:mesh|make|cd|node|python|cp)\b|^[A-Z]+=\$\(mesh")


class Code(NamedTuple):
    """A piece of code and where it stands; `kind` is "shell" or "python"."""

    file: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def blocks(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line, language, lines) of each fenced or indented block; an indented one has no language."""
    found: list[str] = []
    began, language, fenced, before = 0, "", False, ""
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), ""], 1):
        if line.startswith("```"):
            if found:
                yield began, language if fenced else "", found
                found = []
            fenced, began, language = not fenced, number + 1, line[3:].strip()
        elif fenced or (line.startswith("    ") and (found or not before.strip())):
            began = began if found or fenced else number
            found.append(line if fenced else line[4:])
        elif found and not line.strip():
            found.append("")
        elif found:
            yield began, "", found
            found = []
        before = line
    if found:
        yield began, "", found


def code(path: Path, name: str) -> Iterator[Code]:
    """Commands, one by one, and Python blocks, whole."""
    for began, language, lines in blocks(path):
        first = next((line for line in lines if line.strip()), "")
        if language == "python" or (not language and re.match(r"(from|import|with Client|async) ?", first)):
            yield Code(name, began, "python", "\n".join(lines))
        elif language in ("", "sh", "bash", "shell"):
            yield from commands(name, began, lines)


def commands(name: str, began: int, lines: list[str]) -> Iterator[Code]:
    """Lines that are commands; one with an open quote or a backslash at its end goes on."""
    at = 0
    while at < len(lines):
        line, first = lines[at], at
        if COMMAND.match(line):
            while (line.partition("  # ")[0].count("'") % 2 or line.endswith("\\")) and at + 1 < len(lines):
                at += 1
                line += "\n" + lines[at]
            yield Code(name, began + first, "shell", line)
        at += 1
