"""Keys, signatures and addresses (docs/PROTOCOL.md section 3).

ECDSA over secp256k1 through libsecp256k1: RFC 6979 nonces, 64-byte `r || s` signatures, low S only.
Addresses are BIP 173 bech32 without a witness version.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import bech32
import coincurve
from coincurve import ecdsa
from Crypto.Hash import RIPEMD160

from computemesh.trust.errors import InvalidArgument

HRP = "cpc"
ADDRESS_BYTES = 20
ADDRESS_CHARS = len(HRP) + 1 + 32 + 6
PUBLIC_KEY_BYTES = 33
SIGNATURE_BYTES = 64

# coincurve types neither its cffi library nor these helpers; they are what its own verify is made of, without
# the detour over DER.
_ecdsa: Any = ecdsa
_lib = _ecdsa.lib
_context = _ecdsa.GLOBAL_CONTEXT.ctx
_parse_signature = _ecdsa.deserialize_compact


class PrivateKey:
    """A secp256k1 private key with its 33-byte public key and its address."""

    __slots__ = ("_key", "address", "public")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 bytes, 1 <= value < group order; else InvalidArgument."""
        if len(secret) != 32:
            raise InvalidArgument(f"a private key has 32 bytes, not {len(secret)}")
        try:
            self._key = coincurve.PrivateKey(secret)
        except ValueError:
            raise InvalidArgument("the private key is outside the secp256k1 group order") from None
        self.public: bytes = self._key.public_key.format(compressed=True)
        self.address: str = address_of(self.public)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key from the operating system's randomness: for set-up, never inside a core."""
        return cls(coincurve.PrivateKey().secret)

    @classmethod
    def from_bytes(cls, secret: bytes) -> PrivateKey:
        """The key of a 32-byte secret. Raises InvalidArgument."""
        return cls(secret)

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for storing the key."""
        return self._key.secret

    def sign(self, digest: bytes) -> bytes:
        """The deterministic (RFC 6979) low-S signature of a 32-byte digest: 64 bytes `r || s`."""
        if len(digest) != 32:
            raise InvalidArgument(f"a digest has 32 bytes, not {len(digest)}")
        # The recoverable form is the compact form plus one byte, and skips a round trip over DER.
        return self._key.sign_recoverable(digest, hasher=None)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"PrivateKey({self.address})"  # never the secret: this text reaches logs


@lru_cache(maxsize=16384)
def _parse_key(public: bytes) -> Any:
    try:
        return coincurve.PublicKey(public).public_key
    except ValueError:
        return None


def verify(public: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is `public`'s (33 bytes) over `digest` (32 bytes).

    False for any malformed input, and for a high S: libsecp256k1 accepts the lower of the two valid S only,
    so that a third party cannot turn one valid signature into another.
    """
    if len(public) != PUBLIC_KEY_BYTES or len(digest) != 32 or len(signature) != SIGNATURE_BYTES:
        return False
    key = _parse_key(bytes(public))
    if key is None:
        return False
    try:
        parsed = _parse_signature(bytes(signature))
    except ValueError:
        return False
    return bool(_lib.secp256k1_ecdsa_verify(_context, parsed, bytes(digest), key))


def valid_public_key(public: bytes) -> bool:
    """Whether these are the 33 bytes of a compressed point on the curve."""
    return len(public) == PUBLIC_KEY_BYTES and _parse_key(bytes(public)) is not None


@lru_cache(maxsize=16384)
def address_bytes(public: bytes) -> bytes:
    """RIPEMD-160(SHA-256(key)), 20 bytes: the address as layouts carry it."""
    if len(public) != PUBLIC_KEY_BYTES:
        raise InvalidArgument(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public)}")
    return RIPEMD160.new(hashlib.sha256(public).digest()).digest()


def address_of(public: bytes) -> str:
    """The `cpc1...` address of a 33-byte public key."""
    return encode_address(address_bytes(bytes(public)))


@lru_cache(maxsize=16384)
def encode_address(raw: bytes) -> str:
    """bech32("cpc", raw) of the 20 address bytes (BIP 173). Raises InvalidArgument on another length."""
    if len(raw) != ADDRESS_BYTES:
        raise InvalidArgument(f"an address has {ADDRESS_BYTES} bytes, not {len(raw)}")
    words = bech32.convertbits(raw, 8, 5)
    assert words is not None  # every value is a byte
    return bech32.bech32_encode(HRP, words)


def decode_address(address: str) -> bytes:
    """The 20 bytes of a `cpc1...` address. Raises InvalidArgument saying what is wrong with it."""
    problem = _address_problem(address)
    if problem is not None:
        raise InvalidArgument(f"address {problem}", violations=[("address", problem)])
    _, words = bech32.bech32_decode(address)
    raw = None if words is None else bech32.convertbits(words, 5, 8, False)
    if raw is None or len(raw) != ADDRESS_BYTES:
        problem = "has a wrong checksum" if words is None else "has non-zero padding bits"
        raise InvalidArgument(f"address {problem}", violations=[("address", problem)])
    return bytes(raw)


def _address_problem(address: str) -> str | None:
    if not isinstance(address, str):
        return "must be text"
    if not address.lower().startswith(HRP + "1"):
        return f"must start with {HRP}1"
    if len(address) != ADDRESS_CHARS:
        return f"must have {ADDRESS_CHARS} characters, not {len(address)}"
    if address not in (address.lower(), address.upper()):
        return "mixes upper and lower case"
    bad = [c for c in address[len(HRP) + 1 :].lower() if c not in bech32.CHARSET]
    if bad:
        return f"has the character {bad[0]!r}, which bech32 does not use"
    return None
