"""Result statements by the thousand: the same bytes as `statement.Result`, without an object for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from computemesh.trust import merkle
from computemesh.trust.digest import tag_prefix
from computemesh.trust.statement import COMMITMENT_SIZE, RESULT_SIZE

_AUTHORISATION = tag_prefix("computemesh.v1/authorisation")


def result_statements(
    orchestrator_key: bytes, root: bytes, commitments: bytes, positions: Sequence[int], proofs: bytes
) -> bytes:
    """The packed results that these packed commitments become, joined; `root` and `positions` are those of the batch
    the worker signed, `proofs` the transcripts' digests, 32 bytes each, joined.

    The same as `Result(...).pack()` of each, spliced from the commitments.
    """
    assert (len(orchestrator_key), len(root), len(proofs)) == (33, 32, 32 * len(positions))
    places = np.array(positions, ">u4").tobytes()
    authorised = merkle.hash_each(places, 4, _AUTHORISATION + orchestrator_key + root)
    rows = np.empty((len(positions), RESULT_SIZE), np.uint8)
    committed = np.frombuffer(commitments, np.uint8).reshape(-1, COMMITMENT_SIZE)
    rows[:, :37] = committed[:, :37]  # version, task id, job
    rows[:, 37:102] = committed[:, 45:110]  # worker key, result hash
    rows[:, 102:134] = np.frombuffer(proofs, np.uint8).reshape(-1, 32)
    rows[:, 134:142] = committed[:, 110:]  # nonce
    rows[:, 142:] = np.frombuffer(authorised, np.uint8).reshape(-1, 32)
    return rows.tobytes()


def result_leaves(
    orchestrator_key: bytes, root: bytes, commitments: bytes, positions: Sequence[int], proofs: bytes
) -> bytes:
    """Leaf hashes of those results, joined."""
    statements = result_statements(orchestrator_key, root, commitments, positions, proofs)
    return merkle.leaf_hashes(statements, RESULT_SIZE)
