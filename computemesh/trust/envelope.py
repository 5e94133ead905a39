"""What is signed: a digest bound to one kind of statement and to one chain (docs/PROTOCOL.md section 1)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

from computemesh.trust import identity

if TYPE_CHECKING:
    from hashlib import _Hash


@lru_cache(maxsize=256)
def _state(domain: str, chain: str) -> _Hash:
    tag = hashlib.sha256(f"computemesh.v1/{domain}".encode()).digest()
    return hashlib.sha256(tag + tag + hashlib.sha256(chain.encode()).digest())


def digest(domain: str, chain: str, body: bytes) -> bytes:
    """tagged("computemesh.v1/" || domain, SHA-256(chain) || body), 32 bytes.

    `domain` names the kind of statement and `chain` the chain id, so that a signature is valid for nothing
    else and nowhere else.
    """
    state = _state(domain, chain).copy()
    state.update(body)
    return state.digest()


def sign(key: identity.PrivateKey, domain: str, chain: str, body: bytes) -> bytes:
    """The 64-byte signature of `body` as a statement of kind `domain` on `chain`."""
    return key.sign(digest(domain, chain, body))


def verify(public_key: bytes, domain: str, chain: str, body: bytes, signature: bytes) -> bool:
    """Whether `signature` is `public_key`'s over exactly this statement. Malformed keys and signatures:
    False.
    """
    return identity.verify(public_key, digest(domain, chain, body), signature)
