"""How often one caller may do something: a token bucket each (RFC 2697 without colours)."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from computemesh.trust.errors import ResourceExhausted

MAX_CALLERS = 10_000


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
