"""How a service is exposed to those who reach its port: what every service's configuration has in common."""

from __future__ import annotations

from dataclasses import dataclass

from computemesh.service.config import number
from computemesh.service.tls import Trust


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Limits are per caller: an account where the call says one, else a network address."""

    # PEM files of the port's certificate (with its chain) and key; empty: the port is not encrypted. Read again when
    # they change. Also shown as a client to services that ask.
    tls_cert_file: str = ""
    tls_key_file: str = ""
    # CA of the certificates that callers have to show; empty: none are asked for.
    tls_client_ca_file: str = ""
    # CA of the services that this one dials; empty: they are dialled without TLS.
    tls_ca_file: str = ""
    # Reflection and channelz tell everybody about the service and its connections.
    introspection: bool = False
    # Calls a second on average, 0: no limit; and how many at once after a quiet time.
    calls_per_s: float = 0.0
    calls_burst: int = 100
    # Calls answered at once, of those that write and of those that read, 0: any number.
    calls_at_once: int = 64
    # Streams that are open at once, 0: any number. An idle one takes 30 to 50 KiB.
    streams_at_once: int = 20_000
    # Unary calls that would wait in the transport for longer than this, in milliseconds, are refused; 0: none.
    calls_wait_ms: int = 40
    # So long an address is turned away whose connection sent much of which nothing came, 0: it may connect again at
    # once. Where many callers share an address (a load balancer's) it has to be 0.
    turned_away_s: float = number(60.0, least=0, most=86400)

    @property
    def trust(self) -> Trust:
        """How this service dials others."""
        return Trust(self.tls_ca_file, self.tls_cert_file, self.tls_key_file) if self.tls_ca_file else Trust()


DEFAULT = Exposure()
