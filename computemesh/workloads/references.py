"""Registered names in payloads: found by the market, replaced by digests wherever the payload is read.

The order keeps what the customer signed; `resolve` makes of it what `Workload.parse` takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from computemesh.workloads.contract import Workload

DIGEST = re.compile(r"[0-9a-f]{64}")


def names(workload: Workload[Any], payload: Mapping[str, object]) -> list[tuple[str, str]]:
    """(field, text) of everything in the payload's reference fields that is not a digest already."""
    found = []
    for field in workload.references:
        value = payload.get(field)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item and not DIGEST.fullmatch(item):
                found.append((field, item))
    return found


def resolve(
    workload: Workload[Any], payload: Mapping[str, object], digests: Mapping[str, str]
) -> Mapping[str, object]:
    """The payload with registered names replaced by their digests (64 hexadecimal characters); others stay."""
    if not digests:
        return payload
    found = dict(payload)
    for field in workload.references:
        value = found.get(field)
        if isinstance(value, str):
            found[field] = digests.get(value, value)
        elif isinstance(value, list):
            found[field] = [digests.get(item, item) if isinstance(item, str) else item for item in value]
    return found
