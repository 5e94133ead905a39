"""POST to an address somebody else chose: only where the operator allows, and to the very address that was checked."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from market.refusals import refuse

TIMEOUT_S = 10.0
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks of a configuration. Raises InvalidArgument."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise refuse("webhook_networks", str(error)) from None


def read_url(url: str) -> SplitResult:
    """The parts of an http(s) URL. Raises InvalidArgument."""
    if not (url.isascii() and url.isprintable()):
        raise refuse("url", f"{url[:200]!r} has characters that a URL has not: write them as %XX")
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError as error:
        raise refuse("url", f"{url[:200]!r} cannot be read: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_fits:
        raise refuse("url", f"{url[:200]!r} is not an http or https URL")
    if parts.username or parts.password:
        raise refuse("url", "carries a user name or password: an event's signature shows who sent it")
    return parts


def allowed(address: Address, also: Sequence[Network]) -> bool:
    """Whether the market posts there: to public addresses, and those of networks that the operator named."""
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global or any(address in network for network in also)


def resolve(parts: SplitResult, also: Sequence[Network]) -> tuple[str, int]:
    """An address and port of the URL's host. Blocking. Raises InvalidArgument where the host has no allowed address."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a host's name"
        raise refuse("url", f"host {host[:200]!r} cannot be resolved: {why}") from None
    for row in found:
        address = str(row[4][0])
        if allowed(ipaddress.ip_address(address.partition("%")[0]), also):
            return address, port
    raise refuse("url", f"host {host!r} leads to no address this market posts to: private, loopback and reserved ones "
                        "only where the operator allows them (webhook_networks)")  # fmt: skip


def post(url: str, body: bytes, also: Sequence[Network]) -> int:
    """Posts JSON; the HTTP status. Blocking. A name is resolved once and the address checked then is the one connected
    to, so that it cannot lead elsewhere in between; redirects are not followed. Raises InvalidArgument, OSError."""
    parts = read_url(url)
    address, port = resolve(parts, also)
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=TIMEOUT_S)
    sock: socket.socket = socket.create_connection((address, port), TIMEOUT_S)
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        connection.sock = sock
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    finally:
        sock.close()
