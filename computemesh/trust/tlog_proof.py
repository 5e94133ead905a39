"""Proofs of one log entry as text, c2sp.org/tlog-proof@v1 (docs/PROTOCOL.md section 10).

The entry itself travels as the proof's `extra` data, so that a file needs nothing beside it but the log's key.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from computemesh.trust import merkle
from computemesh.trust.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    NoteVerifier,
    decode_base64,
    open_checkpoint,
)
from computemesh.trust.errors import InvalidProof

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PATH = 63
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class TlogProof:
    """The entry stands at `index` of the tree in the checkpoint `note`; `path` leads there from the leaf upwards.

    `entry` is the leaf's data, unhashed.
    """

    index: int
    path: tuple[bytes, ...]
    note: str
    entry: bytes

    def text(self) -> str:
        """The proof as a `.tlog-proof` file."""
        lines = [HEADER, f"extra {_encode(self.entry)}", f"index {self.index}", *map(_encode, self.path)]
        return "\n".join(lines) + f"\n\n{self.note}"

    @classmethod
    def parse(cls, text: str) -> TlogProof:
        """Reads a proof that carries its entry. Raises InvalidProof naming the line."""
        if len(text) > 2 * MAX_NOTE_BYTES:
            raise InvalidProof(f"proof is longer than {2 * MAX_NOTE_BYTES} characters")
        head, blank, note = text.partition("\n\n")
        lines = head.split("\n")
        if lines[0] != HEADER:
            raise InvalidProof(f"proof does not begin with {HEADER}")
        if not blank:
            raise InvalidProof("proof has no checkpoint after an empty line")
        if len(lines) < 3 or not lines[1].startswith("extra "):
            raise InvalidProof("proof has no line `extra`, which carries the entry")
        index = _INDEX.fullmatch(lines[2])
        if index is None:
            raise InvalidProof("proof's third line is not `index` and a plain decimal")
        if len(lines) > 3 + MAX_PATH:
            raise InvalidProof(f"proof has more than {MAX_PATH} hashes")
        path = tuple(_hash(line, f"proof hash {at}") for at, line in enumerate(lines[3:]))
        return cls(int(index[1]), path, note, decode_base64(lines[1][6:], "proof extra"))

    def verify(self, verifier: NoteVerifier, origin: str) -> Checkpoint:
        """The checkpoint of `origin` whose tree holds the entry at `index`. Raises InvalidProof."""
        point = open_checkpoint(self.note, verifier, origin)
        root = merkle.root_from_path(merkle.leaf_hash(self.entry), self.index, point.size, self.path)
        if root != point.root:
            raise InvalidProof(f"entry {self.index} is not in the tree of {point.size} of {origin}")
        return point


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _hash(line: str, what: str) -> bytes:
    raw = decode_base64(line, what)
    if len(raw) != merkle.HASH_BYTES:
        raise InvalidProof(f"{what} has {len(raw)} bytes, not {merkle.HASH_BYTES}")
    return raw
