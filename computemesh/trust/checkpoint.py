"""C2SP signed notes and tlog checkpoints (docs/PROTOCOL.md section 7).

Formats: c2sp.org/signed-note and c2sp.org/tlog-checkpoint, the ones Go's golang.org/x/mod/sumdb/note and
sigstore read. Ed25519 only (signature type 0x01).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from computemesh.trust.errors import InvalidArgument, InvalidProof

if TYPE_CHECKING:
    from computemesh.trust.statement import Header

ED25519 = b"\x01"
MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100
_DASH = "\u2014 "  # em dash, space
_SIZE = re.compile(r"0|[1-9][0-9]{0,19}")
_KEY_HASH = re.compile(r"[0-9a-f]{8}")


def log_origin(chain: str) -> str:
    """The origin of the log over a chain's block headers, which is also the name of its key."""
    return f"{chain}/blocks"


def block_origin(chain: str, height: int) -> str:
    """The origin of the tree over one block's results; the log's key signs for it."""
    return f"{chain}/blocks/{height}"


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of standard base64 in its one canonical encoding. Raises InvalidProof naming `what`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidProof(f"{what} is not base64") from None
    # One encoding per value: b64decode ignores stray bits before the padding.
    if base64.b64encode(raw).decode() != text:
        raise InvalidProof(f"{what} is not canonical base64")
    return raw


def _valid_name(name: str) -> bool:
    # "\ud800" to "\udfff" are lone surrogates, which have no UTF-8.
    return bool(name) and not any(
        c == "+" or c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in name
    )


def key_hash(name: str, public: bytes) -> bytes:
    """The 4-byte key id: SHA-256(name || 0x0A || 0x01 || public)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log's operator asserts: the tree of `size` leaves of log `origin` has this 32-byte root."""

    origin: str
    size: int
    root: bytes
    extension: tuple[str, ...] = ()

    def body(self) -> str:
        """The note text: origin, size and base64 root on a line each, then any extension lines."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extension)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text. Raises InvalidProof naming the line."""
        if not text.endswith("\n"):
            raise InvalidProof("checkpoint does not end with a newline")
        lines = text[:-1].split("\n")
        if len(lines) < 3:
            raise InvalidProof("checkpoint has fewer than three lines")
        origin, size, root, *extension = lines
        if not origin:
            raise InvalidProof("checkpoint origin is empty")
        if not _SIZE.fullmatch(size) or int(size) >= 2**64:
            raise InvalidProof("checkpoint size is not a plain 64-bit decimal")
        raw = decode_base64(root, "checkpoint root")
        if len(raw) != 32:
            raise InvalidProof(f"checkpoint root has {len(raw)} bytes, not 32")
        if "" in extension:
            raise InvalidProof("checkpoint has an empty extension line")
        return cls(origin, int(size), raw, tuple(extension))


class NoteVerifier:
    """A named Ed25519 public key from its `vkey`: `name+keyhash+base64(0x01 || public)`."""

    __slots__ = ("_key", "key_hash", "name", "vkey")

    def __init__(self, vkey: str) -> None:
        """Raises InvalidProof where the text is no Ed25519 verifier key or its key hash is wrong."""
        name, _, rest = vkey.partition("+")
        hash_text, _, encoded = rest.partition("+")
        if not _valid_name(name) or not _KEY_HASH.fullmatch(hash_text):
            raise InvalidProof("vkey is not name+keyhash+key")
        raw = decode_base64(encoded, "vkey")
        if raw[:1] != ED25519 or len(raw) != 33:
            raise InvalidProof("vkey is not an Ed25519 key")
        self.key_hash = key_hash(name, raw[1:])
        if self.key_hash.hex() != hash_text:
            raise InvalidProof("vkey's key hash does not match its key")
        self.name = name
        self.vkey = vkey
        self._key = Ed25519PublicKey.from_public_bytes(raw[1:])

    def verify(self, text: str, signature: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over the note text."""
        try:
            self._key.verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class NoteSigner:
    """A named Ed25519 key made of a 32-byte seed."""

    __slots__ = ("_key", "key_hash", "name", "vkey")

    def __init__(self, name: str, seed: bytes) -> None:
        """`name` has no spaces and no `+`; else, or with a seed of another length, InvalidArgument."""
        if not _valid_name(name):
            raise InvalidArgument("a note key's name must be non-empty, without spaces and '+'")
        if len(seed) != 32:
            raise InvalidArgument(f"an Ed25519 seed has 32 bytes, not {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        self.name = name
        self.key_hash = key_hash(name, public)
        self.vkey = f"{name}+{self.key_hash.hex()}+{base64.b64encode(ED25519 + public).decode()}"

    def sign(self, text: str) -> bytes:
        """The 64-byte Ed25519 signature of a note text."""
        return self._key.sign(text.encode())


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise InvalidProof("note text does not end with a newline")
    if any(c < " " and c != "\n" for c in text):
        raise InvalidProof("note has a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidProof("note is not valid Unicode") from None


def sign_note(text: str, signer: NoteSigner) -> str:
    """The signed note: text, a blank line, one signature line. Raises InvalidProof on text no note may
    hold.
    """
    _check_text(text)
    signature = base64.b64encode(signer.key_hash + signer.sign(text)).decode()
    return f"{text}\n{_DASH}{signer.name} {signature}\n"


def open_note(note: str, verifiers: Iterable[NoteVerifier]) -> str:
    """The text of a note that at least one of `verifiers` signed.

    Signatures of unknown keys are skipped, as the specification asks; a known key's wrong signature refuses
    the note. Raises InvalidProof.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise InvalidProof(f"note is longer than {MAX_NOTE_BYTES}")
    head, blank, tail = note.rpartition("\n\n")
    text = head + "\n"
    if not blank or not tail.endswith("\n"):
        raise InvalidProof("note has no signature block")
    _check_text(text)
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise InvalidProof(f"note has more than {MAX_SIGNATURES} signatures")
    known = {(verifier.name, verifier.key_hash): verifier for verifier in verifiers}
    verified = False
    for line in lines:
        name, signature = _signature_line(line)
        verifier = known.get((name, signature[:4]))
        if verifier is None:
            continue
        if not verifier.verify(text, signature[4:]):
            raise InvalidProof(f"note signature of {name} is wrong")
        verified = True
    if not verified:
        raise InvalidProof("note has no signature of a trusted key")
    return text


def _signature_line(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not _valid_name(name):
        raise InvalidProof("note has a malformed signature line")
    signature = decode_base64(encoded, "note signature")
    if len(signature) < 5:
        raise InvalidProof("note signature is too short")
    return name, signature


def block_checkpoint(chain: str, header: Header) -> Checkpoint:
    """What the ledger signs for one block: the tree over its results, as its header has it."""
    return Checkpoint(block_origin(chain, header.height), header.result_count, header.compute_root)


def open_checkpoint(note: str, verifier: NoteVerifier, origin: str) -> Checkpoint:
    """The checkpoint in a note of this key and this origin. Raises InvalidProof."""
    point = Checkpoint.parse(open_note(note, [verifier]))
    if point.origin != origin:
        raise InvalidProof(f"the checkpoint is of {point.origin!r}, not of {origin!r}")
    return point
