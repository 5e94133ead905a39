"""How many tasks one customer may create and have at once, judged before any money is held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from computemesh.service.limits import Rates
from computemesh.trust.errors import ResourceExhausted

# A task ends when it ends: nobody knows sooner, and asking once a second costs little.
RETRY_MS = 1000


class Quota:
    """At most `most` tasks of one customer that have not ended (0: any number), and new ones at most as often as
    `rates` allow. `open_of` says how many a customer has."""

    def __init__(self, rates: Rates, most: int, open_of: Callable[[str], int]) -> None:
        self._rates, self._most, self._open_of = rates, most, open_of
        self._coming: Counter[str] = Counter()

    @contextmanager
    def place(self, customer: str) -> Iterator[None]:
        """A place for one more task while the body makes it. Raises ResourceExhausted saying when to try again."""
        count = self._open_of(customer) + self._coming[customer]
        if self._most and count >= self._most:
            raise ResourceExhausted(
                f"you have {count:,} tasks that have not ended, at most {self._most:,} are taken: wait for some to end",
                reason="TOO_MANY_TASKS", retry_after_ms=RETRY_MS,
                metadata={"open": str(count), "limit": str(self._most)})  # fmt: skip
        self._rates.take(customer)
        self._coming[customer] += 1
        try:
            yield
        finally:
            self._coming[customer] -= 1
            if not self._coming[customer]:
                del self._coming[customer]
