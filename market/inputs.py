"""The process that holds inputs against JSON schemas (draft 2020-12). Started by `market.functions`.

Schemas come from strangers: a pattern or a nest of alternatives may take for ever, so this process can be killed. No
reference leads out of the schema.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry

from computemesh.service.child import Link

MAX_TEXT = 400


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    return Draft202012Validator(json.loads(schema), registry=Registry())


def fault(schema: str, items: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(field, what is wrong) of the first of (field, JSON) that does not suit the schema; None where all do, or where
    it is no schema that can be judged by."""
    try:
        validator = _validator(schema)
        for field, text in items:
            error = best_match(validator.iter_errors(json.loads(text)))
            if error is not None:
                return field + error.json_path.removeprefix("$"), error.message[:MAX_TEXT]
    except Exception:
        return None
    return None


def main(fd: int) -> None:
    """Serve the market at the other end of socket `fd` until it closes."""
    link = Link.inherited(fd)
    link.send(("ready", None))
    while True:
        link.send(fault(*link.inbox.get()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
