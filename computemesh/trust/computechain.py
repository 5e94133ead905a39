"""The legacy view: ComputeChain's `compute_poc_root`, reproduced bit for bit for relaying to that L1.

Never trust this root. It hashes leaves and nodes alike and duplicates the last node of an odd level, so
different lists share a root (CVE-2012-2459: [a, b, c] and [a, b, c, c]), and its leaves are JSON, which has
many encodings of one value. Everything this project believes goes through `merkle`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from computemesh.trust.errors import InvalidArgument

FIELDS = ("task_id", "worker_address", "result_hash", "proof", "nonce", "signature")


def poc_leaf(compute_result: Mapping[str, Any]) -> bytes:
    """SHA-256 of a ComputeResult as compact raw-UTF-8 JSON in field order, 32 bytes.

    Raises InvalidArgument naming a field that is missing or that JSON cannot hold.
    """
    missing = [name for name in FIELDS if name not in compute_result]
    if missing:
        raise InvalidArgument(f"{missing[0]} is missing", violations=[(missing[0], "is required")])
    ordered = {name: compute_result[name] for name in FIELDS}
    try:
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return sha256(text.encode()).digest()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the compute result is not JSON: {error}") from None


def poc_root(leaves: Sequence[bytes]) -> str:
    """The legacy root as lower-case hex; "" for no leaves, the leaf itself for one."""
    level = list(leaves)
    if not level:
        return ""
    while len(level) > 1:
        if len(level) & 1:
            level.append(level[-1])
        level = [sha256(level[i] + level[i + 1]).digest() for i in range(0, len(level), 2)]
    return level[0].hex()
