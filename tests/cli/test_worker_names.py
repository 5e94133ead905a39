"""Names that workers choose are shown as text, whatever is in them."""

from __future__ import annotations

import pytest

from computemesh.cli import worker
from computemesh.cli.worker import NAME_SHOWN


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("worker-1", "worker-1"),
        ("Grüße 東京", "Grüße 東京"),
        ("\x1b[2Jhi", "\\x1b[2Jhi"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("a\u202eb\u2028c\x9b", "a\\u202eb\\u2028c\\x9b"),
        ("", ""),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(name: str, shown: str) -> None:
    assert worker.shown(name) == shown


def test_a_long_name_is_cut() -> None:
    assert worker.shown("x" * 32) == "x" * 32
    for name in ("x" * 33, "\x1b" * 64):
        assert len(worker.shown(name)) == NAME_SHOWN
        assert worker.shown(name).isprintable()
