"""Checks of single ledger answers: an inclusion proof, and a checkpoint that extends one seen before."""

from __future__ import annotations

from computemesh.trust import merkle, statement
from computemesh.trust.checkpoint import Checkpoint, NoteVerifier, open_note
from computemesh.trust.errors import InvalidProof, MeshError
from computemesh.trust.receipt import Check
from computemesh.v1 import ledger_pb2


def open_checkpoint(note: str, vkey: str, chain: str) -> Checkpoint:
    """The checkpoint in a note that the key of `vkey` signed, of `chain`'s log of blocks. Raises InvalidProof."""
    point = Checkpoint.parse(open_note(note, [NoteVerifier(vkey)]))
    if point.origin != f"{chain}/blocks":
        raise InvalidProof(f"the checkpoint is of {point.origin!r}, not of {chain}/blocks")
    return point


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
        point = open_checkpoint(proof.checkpoint.note, vkey, chain)
    except MeshError as error:
        return [*checks, Check("checkpoint", False, str(error))]
    held = merkle.verify_inclusion(
        header.block_hash, header.height, point.size, list(proven.header_path), point.root
    )
    checks.append(Check("log", held, f"block {header.height} is one of the log's {point.size}"))
    checks.append(Check("checkpoint", True, f"{point.origin} at {point.size} blocks, signed by {vkey.split('+')[0]}"))
    return checks
