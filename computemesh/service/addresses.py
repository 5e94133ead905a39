"""HOST:PORT of a service, or of its replicas with commas between: one of them serves, the others refuse connections."""

from __future__ import annotations

import socket

from computemesh.trust.errors import InvalidArgument


def host_port(address: str) -> tuple[str, int] | None:
    """The two parts of HOST:PORT, port 0 to 65535; None: it is not that."""
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and port.isdecimal() and int(port) < 65536 else None


def listed(addresses: str) -> list[str]:
    """Each HOST:PORT. Raises InvalidArgument that names what is none."""
    found = [one.strip() for one in addresses.split(",")]
    for one in found:
        parts = host_port(one)
        if parts is None or not parts[1]:
            raise InvalidArgument(f"{one!r} is not HOST:PORT, e.g. 10.0.0.5:7103", reason="INVALID_ADDRESS")
    return found


def target(addresses: str) -> tuple[str, list[tuple[str, str]]]:
    """What gRPC dials, with the options it needs. Of several it takes the first that answers, and looks for another
    when that is lost (`pick_first`); names are looked up now, and TLS expects the first one's from each.

    Raises InvalidArgument where a name of several has no IPv4 address.
    """
    if "," not in addresses:
        return addresses, []
    found = listed(addresses)
    numeric = []
    for one in found:
        host, _, port = one.rpartition(":")
        try:
            known = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raise InvalidArgument(f"{one} has no IPv4 address: {error}", reason="INVALID_ADDRESS") from None
        numeric += [f"{at[0]}:{at[1]}" for *_, at in known]
    name = found[0].rpartition(":")[0]
    return "ipv4:" + ",".join(numeric), [("grpc.default_authority", found[0]), ("grpc.ssl_target_name_override", name)]
