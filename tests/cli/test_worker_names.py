"""Names that workers choose are shown as text, whatever is in them."""

from __future__ import annotations

import pytest

from computemesh.cli.worker import NAME_SHOWN, _shown


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
    assert _shown(name) == shown


def test_a_long_name_is_cut() -> None:
    assert _shown("x" * 32) == "x" * 32
    for name in ("x" * 33, "\x1b" * 64):
        assert len(_shown(name)) == NAME_SHOWN
        assert _shown(name).isprintable()
