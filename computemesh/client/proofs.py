"""Checks of single ledger answers: an inclusion proof, and a checkpoint that extends one seen before."""

from __future__ import annotations

from computemesh.trust import merkle, statement
from computemesh.trust.checkpoint import NoteVerifier, block_checkpoint, log_origin, open_checkpoint
from computemesh.trust.errors import MeshError
from computemesh.trust.receipt import Check
from computemesh.v1 import ledger_pb2


def check_inclusion(proof: ledger_pb2.GetInclusionProofResponse, vkey: str, chain: str) -> list[Check]:
    """Result in block, block in log, log signed: three steps, each with what was compared. Never raises."""
    proven = proof.result
    checks = []
    try:
        result, header = statement.Result.unpack(proven.result), statement.Header.unpack(proven.header)
    except MeshError as error:
        return [Check("statements", False, str(error))]
    leaf = merkle.leaf_hash(proven.result)
    held = merkle.verify_inclusion(
        leaf, proven.leaf_index, header.result_count, list(proven.compute_path), header.compute_root
    ) and header.chain_hash == statement.chain_hash(chain)
    where = f"result of job {result.job} is {proven.leaf_index} of {header.result_count} in block {header.height}"
    checks.append(Check("block", held, where))
    try:
        point = open_checkpoint(proof.checkpoint.note, NoteVerifier(vkey), log_origin(chain))
    except MeshError as error:
        return [*checks, Check("checkpoint", False, str(error))]
    held = merkle.verify_inclusion(
        header.block_hash, header.height, point.size, list(proven.header_path), point.root
    )
    checks.append(Check("log", held, f"block {header.height} is one of the log's {point.size}"))
    checks.append(Check("checkpoint", True, f"{point.origin} at {point.size} blocks, signed by {vkey.split('+')[0]}"))
    return checks
