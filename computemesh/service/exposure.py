"""How a service is exposed to those who reach its port: what every service's configuration has in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Limits are per caller: an account where the call says one, else a network address."""

    # Reflection and channelz tell everybody about the service and its connections.
    introspection: bool = False
    # Calls a second on average, 0: no limit; and how many at once after a quiet time.
    calls_per_s: float = 0.0
    calls_burst: int = 100


DEFAULT = Exposure()
