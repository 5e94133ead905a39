"""Bearer tokens that a key signs for itself (docs/PROTOCOL.md section 4)."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from functools import lru_cache

import grpc

from computemesh.trust import envelope
from computemesh.trust.errors import Unauthenticated
from computemesh.trust.identity import PrivateKey

PREFIX = "cm1."
SCOPED_PREFIX = "cm2."
PREFIXES = (PREFIX, SCOPED_PREFIX)
ALL, READ_ONLY = 0, 1
"""What a token's bearer may do. A service refuses scopes that it does not know."""

_SIGNATURE = 64
_BODY = struct.Struct(">33sQ")
_SCOPED_BODY = struct.Struct(">33sQB")


@dataclass(frozen=True, slots=True)
class Token:
    """What a good token says: the 33-byte key that signed it, and its scope."""

    key: bytes
    expires_ms: int
    scope: int = ALL

    @property
    def read_only(self) -> bool:
        """Whether it is good for calls that change nothing only."""
        return self.scope == READ_ONLY


def make_token(key: PrivateKey, chain: str, expires_ms: int, scope: int = ALL) -> str:
    """A token for `key`'s account on `chain`, valid until `expires_ms` (Unix ms)."""
    if scope == ALL:
        prefix, domain, body = PREFIX, "token", _BODY.pack(key.public, expires_ms)
    else:
        prefix, domain, body = SCOPED_PREFIX, "scoped-token", _SCOPED_BODY.pack(key.public, expires_ms, scope)
    raw = body + envelope.sign(key, domain, chain, body)
    return prefix + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def read_token(token: str, chain: str, now_ms: int) -> Token:
    """What `token` says. Raises Unauthenticated."""
    read = _signed(token, chain)
    if read.expires_ms <= now_ms:
        raise Unauthenticated(
            f"authorization: the token expired {(now_ms - read.expires_ms) // 1000} s ago", reason="TOKEN_EXPIRED")
    return read


def verify_token(token: str, chain: str, now_ms: int) -> bytes:
    """The 33-byte key that signed `token`. Raises Unauthenticated."""
    return read_token(token, chain, now_ms).key


@lru_cache(maxsize=4096)
def _signed(token: str, chain: str) -> Token:
    """A client sends one token with many calls: its signature is checked once."""
    scoped = token.startswith(SCOPED_PREFIX)
    layout, domain = (_SCOPED_BODY, "scoped-token") if scoped else (_BODY, "token")
    text = token[len(PREFIX) :]
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if not token.startswith(PREFIXES) or len(raw) != layout.size + _SIGNATURE:
        raise Unauthenticated("authorization: not a token of this mesh (cm1.... or cm2....)", reason="INVALID_TOKEN")
    body = raw[: layout.size]
    read = Token(*layout.unpack(body))
    if scoped and read.scope != READ_ONLY:
        raise Unauthenticated(f"authorization: the token has scope {read.scope}, known is {READ_ONLY} (reads only)",
                              reason="INVALID_TOKEN")  # fmt: skip
    if not envelope.verify(read.key, domain, chain, body, raw[layout.size :]):
        raise Unauthenticated(
            f"authorization: the token is not signed by its key for chain {chain!r}", reason="INVALID_TOKEN")
    return read


def required_bearer(context: grpc.aio.ServicerContext) -> str:
    """The token of the call. Raises Unauthenticated where there is none."""
    token = bearer(context)
    if token is None:
        raise Unauthenticated("no credentials: send metadata `authorization: Bearer <token signed by your key>`",
                              reason="MISSING_CREDENTIALS")  # fmt: skip
    return token


def bearer(context: grpc.aio.ServicerContext) -> str | None:
    """The token of `authorization: Bearer <token>`, or None."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return None
