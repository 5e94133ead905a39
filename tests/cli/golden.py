"""Golden files: what the command prints, kept in tests/cli/golden. `make golden` writes them anew."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("golden")
RENEW = "RENEW_GOLDEN"


def compare(name: str, text: str) -> None:
    """Hold a text against its golden file, or write that where the variable asks for it."""
    path = FOLDER / name
    if os.environ.get(RENEW):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.exists(), f"{path} is missing: `make golden` writes it, then read what it says"
    assert text == path.read_text("utf-8"), f"{path} says otherwise: `make golden` writes it anew"


FREE = ("payload", "references", "metadata", "request", "values")
"""Objects whose names are the customer's own."""
OPTIONAL = {"capabilities"}
"""Absent of workers that have gone."""
FILE_OR_NULL = {"preview": "file or null"}


def shape(value: Any, name: str = "") -> Any:
    """What a JSON document consists of: names and types, of a list those of its items, which must be alike."""
    if name in FILE_OR_NULL:
        assert value is None or set(value) == {"name", "media_type", "digest", "size"}
        return FILE_OR_NULL[name]
    if isinstance(value, dict):
        return "object" if name in FREE else {key: shape(item, key) for key, item in value.items()}
    if isinstance(value, list):
        kinds = [shape(item) for item in value]
        merged = functools.reduce(merge, kinds) if kinds else None
        return [] if merged is None else [merged]
    return "null" if value is None else {bool: "boolean", int: "integer", float: "number", str: "string"}[type(value)]


def merge(one: Any, other: Any) -> Any:
    """The shape of which both are examples: an empty list says nothing of its items. Raises AssertionError."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = one.keys() & other.keys()
        assert one.keys() ^ other.keys() <= OPTIONAL, f"{sorted(one)} and {sorted(other)} are different documents"
        return {key: merge(one[key], other[key]) if key in both else value for key, value in {**other, **one}.items()}
    if isinstance(one, list) and isinstance(other, list):
        return [merge(one[0], other[0])] if one and other else one or other
    assert one == other, f"{one!r} and {other!r} are different types"
    return one


def compare_shape(name: str, document: Any) -> None:
    """Hold a document's shape against its golden file; a list that is empty in one of them says nothing."""
    found, path = shape(document), FOLDER / name
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if os.environ.get(RENEW):
            with contextlib.suppress(AssertionError):
                found = merge(found, kept)
        else:
            try:
                merge(found, kept)
            except AssertionError as error:
                raise AssertionError(f"{path} says otherwise: {error}; `make golden` writes it anew") from None
            return
    compare(name, json.dumps(found, indent=2) + "\n")
