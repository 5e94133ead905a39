"""Records as small HTML tables, for notebooks (`_repr_html_`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

BAR_PX = 160
_CELL = 'style="text-align:left;padding:2px 12px 2px 0"'


def pairs(title: str, values: Mapping[str, Any]) -> str:
    """A two-column table under a title; everything is escaped."""
    rows = "".join(f"<tr><th {_CELL}>{escape(name)}</th><td {_CELL}>{escape(str(value))}</td></tr>"
                   for name, value in values.items())  # fmt: skip
    return f"<div><strong>{escape(title)}</strong><table>{rows}</table></div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a head; everything is escaped."""
    head = "".join(f"<th {_CELL}>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bar(done: int, total: int) -> str:
    """How much is done, as a bar that screen readers read."""
    return f'<progress value="{done:d}" max="{max(total, 1):d}" style="width:{BAR_PX}px"></progress>'
