"""Contests: what shows the ledger which settled result is meant."""

from __future__ import annotations

from computemesh.trust import acts, merkle, statement
from computemesh.v1 import ledger_pb2


def contest_of(proven: ledger_pb2.ProvenResult) -> acts.Contest:
    """The contest of a result that the ledger proved (GetInclusionProof)."""
    leaf = merkle.leaf_hash(proven.commitment)
    root = merkle.root_from_path(
        leaf, proven.commitment_position, proven.commitment_count, list(proven.commitment_path))
    return acts.Contest(
        proven.result, proven.orchestrator_key, root, proven.commitment_position,
        statement.Header.unpack(proven.header).height, proven.leaf_index, b"".join(proven.compute_path))
