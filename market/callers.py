"""Who calls: a key that signed its own token, or an API key whose account the market holds."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from computemesh.service import auth
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, Unauthenticated
from computemesh.trust.identity import PrivateKey, address_of


@dataclass(frozen=True, slots=True)
class Caller:
    """A known customer. `account` is there for API keys: the market signs their orders with it. One that is
    `read_only` changes nothing."""

    public_key: bytes
    address: str
    account: PrivateKey | None = None
    read_only: bool = False


def account_of(market_secret: bytes, name: str) -> PrivateKey:
    """The account key of the API key called `name`: only this market can derive it."""
    return PrivateKey(tagged("computemesh.v1/api-account", market_secret + hashlib.sha256(name.encode()).digest()))


class Callers:
    """Everybody this market knows. `api_keys` are "NAME:SHA256HEX". Raises InvalidArgument on another form."""

    def __init__(self, chain: str, market_secret: bytes, api_keys: Iterable[str]) -> None:
        self._chain = chain
        self._accounts: dict[bytes, Caller] = {}
        for entry in api_keys:
            name, _, digest = entry.partition(":")
            if not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                problem = f"{entry[:80]!r} must be NAME:SHA256HEX (64 lower-case hexadecimal characters)"
                raise InvalidArgument(f"api_keys: {problem}", violations=[("api_keys", problem)])
            account = account_of(market_secret, name)
            self._accounts[bytes.fromhex(digest)] = Caller(account.public, account.address, account)

    def identify(self, context: grpc.aio.ServicerContext[Any, Any], now_ms: int) -> Caller:
        """The caller by its `authorization` metadata. Raises Unauthenticated saying how to authenticate."""
        token = auth.bearer(context)
        if token is None:
            raise Unauthenticated(
                "no credentials: send metadata `authorization: Bearer <API key>`, or a cm1. token signed by your own "
                "key", reason="MISSING_CREDENTIALS")
        if token.startswith(auth.PREFIXES):
            read = auth.read_token(token, self._chain, now_ms)
            return Caller(read.key, address_of(read.key), read_only=read.read_only)
        digest = hashlib.sha256(token.encode()).digest()
        for known, caller in self._accounts.items():
            if hmac.compare_digest(known, digest):
                return caller
        raise Unauthenticated(
            "authorization: this API key is unknown to the market; check it for typing errors or ask the operator",
            reason="UNKNOWN_API_KEY")
