"""Checks a mesh ledger's proofs with sigstore (PyPI) and nothing of the mesh.

python verify.py proof VKEY ORIGIN FILE.tlog-proof
python verify.py -        the same, one JSON array of arguments a line on stdin
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import SignedCheckpoint, verify_checkpoint
from sigstore._internal.trust import Keyring, RekorKeyring
from sigstore.models import TransparencyLogEntry
from sigstore_models.common import v1 as common
from sigstore_models.rekor import v1 as rekor

ED25519 = bytes.fromhex("302a300506032b6570032100")  # DER before the 32 bytes of a public key


def proof(vkey: str, origin: str, file: str) -> None:
    """Raises whatever sigstore does, or ValueError."""
    _, key_hash, key = vkey.split("+", 2)
    raw = base64.b64decode(key, validate=True)
    if len(raw) != 33 or raw[0] != 1:
        raise ValueError("not an Ed25519 verifier key")
    public = common.PublicKey(
        raw_bytes=base64.b64encode(ED25519 + raw[1:]), key_details=common.PublicKeyDetails.PKIX_ED25519)
    head, _, note = Path(file).read_text("utf-8").partition("\n\n")
    form, extra, index, *hashes = head.split("\n")
    if form != "c2sp.org/tlog-proof@v1" or not extra.startswith("extra ") or not index.startswith("index "):
        raise ValueError("not a tlog-proof with its entry")
    point = SignedCheckpoint.from_text(note).checkpoint
    if point.origin != origin:
        raise ValueError(f"checkpoint is of {point.origin}, not of {origin}")
    entry = TransparencyLogEntry(rekor.TransparencyLogEntry(
        log_index=index[6:], log_id=common.LogId(key_id=base64.b64encode(bytes.fromhex(key_hash))),
        kind_version=rekor.KindVersion(kind="computemesh", version="1"), canonicalized_body=extra[6:].encode(),
        inclusion_proof=rekor.InclusionProof(
            log_index=index[6:], root_hash=base64.b64encode(bytes.fromhex(point.log_hash)),
            tree_size=str(point.log_size), hashes=[line.encode() for line in hashes],
            checkpoint=rekor.Checkpoint(envelope=note))))  # fmt: skip
    verify_checkpoint(RekorKeyring(Keyring([public])), entry)
    verify_merkle_inclusion(entry)


def check(words: list[str]) -> int:
    """Prints the verdict; 0 where the proof holds."""
    try:
        if len(words) != 4 or words[0] != "proof":
            raise ValueError("usage: verify.py proof VKEY ORIGIN FILE")
        proof(*words[1:])
    except Exception as error:  # what sigstore raises is its own
        print("refused:", " ".join(str(error).split())[:300], flush=True)
        return 1
    print("ok", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        for line in sys.stdin:
            check(json.loads(line))
    else:
        sys.exit(check(sys.argv[1:]))
