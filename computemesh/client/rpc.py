"""Calls to services: channels, deadlines, retries and errors, in one place."""

# ruff: noqa: ASYNC109 (a timeout here spans several tries)

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from computemesh.service.auth import make_token
from computemesh.service.errors import from_rpc_error
from computemesh.service.server import dial
from computemesh.service.tls import PLAIN, Trust
from computemesh.trust.errors import DeadlineExceeded, InvalidArgument, MeshError, ResourceExhausted, Unavailable
from computemesh.trust.identity import PrivateKey

TOKEN_LIFE_MS = 600_000
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


Interceptors = Callable[[str], Sequence[grpc.aio.ClientInterceptor]]
"""What sees the calls of the channel to an address, HOST:PORT."""


def no_interceptors(address: str) -> Sequence[grpc.aio.ClientInterceptor]:
    """Nobody."""
    return ()


class Transport:
    """One channel per address, and who calls.

    `timeout`: seconds a unary call may take, retries included. `retry_for`: of these, how long a call is repeated
    while the service cannot be reached. Every unary call of this package is safe to repeat: reads, and writes that
    carry an id made here. `interceptors` see the calls of every channel.
    """

    def __init__(
        self, api_key: str, key: PrivateKey | None, timeout: float, retry_for: float,
        interceptors: Interceptors = no_interceptors, trust: Trust = PLAIN,
    ) -> None:  # fmt: skip
        self._interceptors, self._trust = interceptors, trust
        self.timeout, self.retry_for = timeout, retry_for
        if not (api_key.isascii() and api_key.isprintable()):
            problem = "must be printable ASCII on one line, as it was given out"  # never the key itself
            raise InvalidArgument(f"api_key {problem}", violations=[("api_key", problem)])
        self._api_key, self._key = api_key, key
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._token, self._token_until_ms = "", 0

    def stub(self, make: Callable[[grpc.aio.Channel], Any], address: str, role: str) -> Any:
        """The stub of the service that is `role` at HOST:PORT. Raises InvalidArgument where there is no address."""
        if not address:
            raise InvalidArgument(f"the address of the {role} is not known: name it in the profile")
        if address not in self._channels:
            self._channels[address] = dial(address, self._trust, interceptors=self._interceptors(address))
        return make(self._channels[address])

    @property
    def anonymous(self) -> bool:
        """Whether calls carry neither an API key nor a token."""
        return not self._api_key and self._key is None

    def credentials(self, chain: str) -> tuple[tuple[str, str], ...]:
        """Metadata that tells the market who calls: the API key, or a token our key signs for `chain`."""
        if self._api_key:
            return (("authorization", f"Bearer {self._api_key}"),)
        if self._key is None:
            return ()
        now_ms = time.time_ns() // 1_000_000
        if now_ms > self._token_until_ms - TOKEN_LIFE_MS // 2:
            self._token_until_ms = now_ms + TOKEN_LIFE_MS
            self._token = signed_token(self._key, chain)
        return (("authorization", f"Bearer {self._token}"),)

    async def call(
        self,
        method: Any,
        request: Any,
        metadata: tuple[tuple[str, str], ...] = (),
        *,
        peer: str,
        timeout: float | None = None,
    ) -> Any:
        """Call a unary method of `peer` ("market at HOST:PORT"). Raises the MeshError the service meant."""
        limit = self.timeout if timeout is None else timeout
        began = time.monotonic()
        pauses = Pauses(min(self.retry_for, limit))
        while True:
            left = limit - (time.monotonic() - began)
            try:
                return await method(request, timeout=max(left, 0.001), metadata=metadata)
            except grpc.RpcError as error:
                meant = meaning(error, peer)
            if not _passes(meant) or not await pauses.wait(meant):
                raise meant

    async def close(self) -> None:
        """Close every channel."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))


def signed_token(key: PrivateKey, chain: str) -> str:
    """A bearer token of `key` for `chain`, good for `TOKEN_LIFE_MS`."""
    return make_token(key, chain, time.time_ns() // 1_000_000 + TOKEN_LIFE_MS)


def meaning(error: grpc.RpcError, peer: str) -> MeshError:
    """The error a service meant, or one that says which peer did not answer: the transport's own text does not."""
    meant = from_rpc_error(error)
    cause = meant.message.rpartition("Failed to connect to remote host: ")[2]
    if isinstance(meant, Unavailable) and meant.message.startswith("failed to connect"):
        return Unavailable(f"the {peer} cannot be reached: {cause}")
    sizes = _TOO_LARGE.search(meant.message)
    if sizes:
        return ResourceExhausted(f"the message has {sizes[1]} bytes, the {peer} takes at most {sizes[2]}")
    if meant.message == "Deadline Exceeded":
        return DeadlineExceeded(f"the {peer} did not answer in time")
    return meant


def _passes(error: MeshError) -> bool:
    """Whether the same call may succeed a little later."""
    return isinstance(error, Unavailable) or (isinstance(error, ResourceExhausted) and error.retry_after_ms is not None)


class Pauses:
    """Waits between tries: doubling, with full jitter (so that clients do not return together), for `budget_s`."""

    def __init__(self, budget_s: float) -> None:
        self._until = time.monotonic() + budget_s
        self._next_s = FIRST_PAUSE_S

    async def wait(self, error: MeshError) -> bool:
        """Wait before the next try; False where the time is used up."""
        pause = self._next_s * random.uniform(0.5, 1.0)
        if error.retry_after_ms is not None:
            pause = max(pause, error.retry_after_ms / 1000)
        self._next_s = min(self._next_s * 2, LONGEST_PAUSE_S)
        if time.monotonic() + pause > self._until:
            return False
        await asyncio.sleep(pause)
        return True
