"""Bearer tokens that a key signs for itself (docs/PROTOCOL.md section 4)."""

from __future__ import annotations

import base64
import binascii
import struct

import grpc

from computemesh.trust import envelope
from computemesh.trust.errors import Unauthenticated
from computemesh.trust.identity import PrivateKey

PREFIX = "cm1."
_BODY = struct.Struct(">33sQ")


def make_token(key: PrivateKey, chain: str, expires_ms: int) -> str:
    """A token for `key`'s account on `chain`, valid until `expires_ms` (Unix ms)."""
    body = _BODY.pack(key.public, expires_ms)
    raw = body + envelope.sign(key, "token", chain, body)
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def verify_token(token: str, chain: str, now_ms: int) -> bytes:
    """The 33-byte key that signed `token`. Raises Unauthenticated."""
    text = token.removeprefix(PREFIX)
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if not token.startswith(PREFIX) or len(raw) != _BODY.size + 64:
        raise Unauthenticated("authorization: not a token of this mesh (cm1....)", reason="INVALID_TOKEN")
    key, expires_ms = _BODY.unpack_from(raw)
    if expires_ms <= now_ms:
        raise Unauthenticated(
            f"authorization: the token expired {(now_ms - expires_ms) // 1000} s ago", reason="TOKEN_EXPIRED")
    if not envelope.verify(key, "token", chain, raw[: _BODY.size], raw[_BODY.size :]):
        raise Unauthenticated(
            f"authorization: the token is not signed by its key for chain {chain!r}", reason="INVALID_TOKEN")
    return bytes(key)


def bearer(context: grpc.aio.ServicerContext) -> str | None:
    """The token of `authorization: Bearer <token>`, or None."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return None
