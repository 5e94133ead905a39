"""Checks of single ledger answers: a proof that a result is in its block and the block in the log."""

from __future__ import annotations

from collections.abc import Callable

from computemesh.trust import statement
from computemesh.trust.checkpoint import NoteVerifier, block_checkpoint, log_origin
from computemesh.trust.errors import InvalidProof, MeshError
from computemesh.trust.receipt import Check
from computemesh.trust.tlog_proof import TlogProof
from computemesh.v1 import ledger_pb2


def tlog_proofs(reply: ledger_pb2.GetInclusionProofResponse) -> tuple[TlogProof, TlogProof]:
    """(the result in its block, the block in the log). Raises InvalidProof where the header is none."""
    proven = reply.result
    height = statement.Header.unpack(proven.header).height
    return (
        TlogProof(proven.leaf_index, tuple(proven.compute_path), reply.block_checkpoint.note, proven.result),
        TlogProof(height, tuple(proven.header_path), reply.checkpoint.note, proven.header))  # fmt: skip


def check_inclusion(reply: ledger_pb2.GetInclusionProofResponse, vkey: str, chain: str) -> list[Check]:
    """Result in block, block in log, both signed by the log's key: each with what was compared. Never raises."""
    return [_step("block", lambda: _block(reply, vkey, chain)), _step("log", lambda: _log(reply, vkey, chain)),
            _step("checkpoint", lambda: _same(reply, vkey, chain))]  # fmt: skip


def _step(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except MeshError as error:
        return Check(name, False, str(error))


def _block(reply: ledger_pb2.GetInclusionProofResponse, vkey: str, chain: str) -> str:
    in_block, _ = tlog_proofs(reply)
    return read_entry(in_block, vkey, chain)


def _log(reply: ledger_pb2.GetInclusionProofResponse, vkey: str, chain: str) -> str:
    _, in_log = tlog_proofs(reply)
    return read_entry(in_log, vkey, chain)


def _same(reply: ledger_pb2.GetInclusionProofResponse, vkey: str, chain: str) -> str:
    """The two proofs are of one block: the tree that was signed for it is the one its header names."""
    header = statement.Header.unpack(reply.result.header)
    signed = tlog_proofs(reply)[0].verify(NoteVerifier(vkey), block_checkpoint(chain, header).origin)
    if signed != block_checkpoint(chain, header):
        raise InvalidProof(f"block {header.height} has another root or size in the log than in its own checkpoint")
    return f"{log_origin(chain)} at {reply.checkpoint.size} blocks and {signed.origin}, signed by {vkey.split('+')[0]}"


def read_entry(proof: TlogProof, vkey: str, chain: str) -> str:
    """What a proof of a header or of a result says, once it holds. Raises InvalidProof."""
    verifier, log = NoteVerifier(vkey), log_origin(chain)
    if len(proof.entry) == statement.HEADER_SIZE:
        header = statement.Header.unpack(proof.entry)
        point = proof.verify(verifier, log)
        if header.chain_hash != statement.chain_hash(chain) or header.height != proof.index:
            raise InvalidProof(f"the header says block {header.height}, the log has it at {proof.index}")
        return f"block {header.height} is one of the log's {point.size}"
    result = statement.Result.unpack(proof.entry)
    origin = proof.note.partition("\n")[0]
    height = origin.removeprefix(f"{log}/")
    if origin == height or not (height.isascii() and height.isdecimal()):
        raise InvalidProof(f"a result is proven by the checkpoint of a block, {log}/HEIGHT, not of {origin[:80]!r}")
    point = proof.verify(verifier, origin)
    task = f"result of job {result.job} of task {result.task_id.hex()[:16]}.."
    return f"{task} is {proof.index} of {point.size} in block {height}"
