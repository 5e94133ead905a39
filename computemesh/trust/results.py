"""Result statements by the thousand: the same bytes as `statement.Result`, without an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from computemesh.trust.digest import tagged_state
from computemesh.trust.statement import COMMITMENT_SIZE


def result_leaves(
    orchestrator_key: bytes, root: bytes, commitments: bytes, positions: Sequence[int], proofs: Sequence[bytes]
) -> list[bytes]:
    """Leaf hashes of the results that these packed commitments become; `root` and `positions` are those of the batch
    the worker signed, `proofs` the transcripts' digests, 32 bytes each.

    The same as `merkle.leaf_hash(Result(...).pack())`, spliced from the commitments: this runs once per result.
    """
    bound = tagged_state("computemesh.v1/authorisation")
    assert (len(orchestrator_key), len(root)) == (33, 32)
    bound.update(orchestrator_key + root)
    copy, found = bound.copy, []
    starts = range(0, len(commitments), COMMITMENT_SIZE)
    for at, position, proof in zip(starts, positions, proofs, strict=True):
        authorised = copy()
        authorised.update(position.to_bytes(4, "big"))
        found.append(sha256(b"".join((
            b"\x00", commitments[at : at + 37],  # version, task id, job
            commitments[at + 45 : at + 110],  # worker key, result hash
            proof, commitments[at + 110 : at + 118],  # nonce
            authorised.digest(),
        ))).digest())  # fmt: skip
    return found
