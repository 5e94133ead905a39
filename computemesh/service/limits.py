"""How often one caller may do something: a token bucket each (RFC 2697 without colours). How much is done at once."""

from __future__ import annotations

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from computemesh.trust.errors import ResourceExhausted

MAX_CALLERS = 10_000
# Whoever is refused comes back after about this long: often enough to take up what is free, seldom enough that refusing
# costs a small part of what serving does.
COME_BACK_MS = 1000


def overloaded(why: str) -> ResourceExhausted:
    """The refusal of a call for load. It says when to try again: a time drawn by chance, so that those refused together
    do not return together."""
    wait_ms = round(COME_BACK_MS * random.uniform(0.5, 1.5))
    return ResourceExhausted(f"{why}: try again in {wait_ms} ms", reason="OVERLOADED", retry_after_ms=wait_ms)


class Rates:
    """`per_s` per caller on average and `burst` at once; `per_s` 0 is no limit. `what` is what messages call it.

    The `MAX_CALLERS` seen last are remembered: more addresses than that cost no more memory.
    """

    def __init__(
        self, per_s: float = 0.0, burst: int = 0, what: str = "calls", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._what, self._clock = per_s, max(burst, 1), what, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when counted)

    def take(self, caller: str) -> None:
        """Takes one. Raises ResourceExhausted / RATE_LIMITED saying when there is the next."""
        if not self._per_s:
            return
        now = self._clock()
        tokens, since = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._per_s)
        taken = tokens >= 1
        self._buckets[caller] = (tokens - 1 if taken else tokens, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not taken:
            wait_ms = math.ceil((1 - tokens) / self._per_s * 1000)
            raise ResourceExhausted(
                f"more than {self._per_s:g} {self._what} a second, and {self._burst} at once: try again in "
                f"{wait_ms} ms", reason="RATE_LIMITED", retry_after_ms=wait_ms)  # fmt: skip


class Slots:
    """At most `at_once` calls or streams, as `what` says, run at a time, 0: any number."""

    def __init__(self, at_once: int = 0, what: str = "calls are being answered") -> None:
        self._at_once, self._what, self._running = at_once, what, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Holds a slot while the body runs. Raises ResourceExhausted / OVERLOADED."""
        if self._at_once and self._running >= self._at_once:
            raise overloaded(f"{self._running} {self._what}, as many as are taken at once")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
