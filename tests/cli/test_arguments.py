"""How words on the command line become values."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import typer

from computemesh.cli.options import parse_deadline, parse_payload, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1024", 1024), ("2.5", 2.5), ("-1", -1), ("1e3", 1000.0), ("true", True), ("null", None), ('"7"', "7"),
        ("[1, 2]", [1, 2]), ('{"a": 1}', {"a": 1}), ("abc", "abc"), ("", ""), ("a=b", "a=b"), ("NaN", "NaN"),
        ("Infinity", "Infinity"), ("007", "007"),
    ],
)  # fmt: skip
def test_a_value_is_its_json_literal_or_else_text(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_words_go_on_top_of_the_payload_option(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"a": 1, "b": 2}')
    assert parse_payload(["b=3", "c=x=y"], f"@{tmp_path}/p.json") == {"a": 1, "b": 3, "c": "x=y"}
    assert parse_payload([], '{"a": 1}') == {"a": 1}
    assert parse_payload([], None) == {}


@pytest.mark.parametrize(
    ("words", "payload", "says"),
    [
        (["abc"], None, "'abc' is not key=value"), (["=1"], None, "is not key=value"), ([], "{", "is not JSON"),
        ([], "[1]", "is not a JSON object"), ([], "@/nowhere.json", "cannot read /nowhere.json"),
    ],
)  # fmt: skip
def test_a_malformed_payload_is_a_usage_error(words: list[str], payload: str | None, says: str) -> None:
    with pytest.raises(typer.BadParameter, match=says):
        parse_payload(words, payload)


def test_a_deadline_is_seconds_a_duration_or_a_time() -> None:
    assert parse_deadline(None) is None
    assert parse_deadline("1893456000") == 1893456000
    assert parse_deadline("-5") == -5
    assert parse_deadline("2030-01-01T00:00:00+00:00") == 1893456000
    for text, seconds in (("+90s", 90), ("+30m", 1800), ("+2h", 7200), ("+1d", 86400)):
        assert abs((parse_deadline(text) or 0) - time.time() - seconds) < 3
    with pytest.raises(typer.BadParameter, match="neither Unix seconds"):
        parse_deadline("tomorrow")
