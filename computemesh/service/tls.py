"""TLS of servers and of those who dial them, from PEM files.

A server reads its files again at the first handshake after they changed: a certificate is replaced by writing files,
and open connections go on with the old one.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from computemesh.trust.errors import InvalidArgument

log = structlog.get_logger("computemesh.tls")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a client believes, and as whom it comes. An empty `ca_file` is no TLS at all; `cert_file` and `key_file` are
    its own certificate, for servers that ask for one. The files are read when a channel is made."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for plain connections. Raises InvalidArgument naming the file that cannot be used."""
        if not self.ca_file:
            if self.cert_file:
                raise _bad("tls_ca_file", "is empty, and tls_cert_file is given: name the CA of the servers")
            return None
        certificate = key = None
        if self.cert_file or self.key_file:
            certificate, key = _pair(self.cert_file, self.key_file)
        try:
            return grpc.ssl_channel_credentials(_authority("tls_ca_file", self.ca_file), key, certificate)
        except ValueError as error:
            raise _bad("tls_ca_file", f"{self.ca_file!r} cannot be used: {error}") from None


PLAIN = Trust()


class Rotating:
    """A server's certificate, key and CA of its clients ("" for no client certificates), as its files say now."""

    def __init__(self, cert_file: str, key_file: str, client_ca_file: str = "") -> None:
        """Raises InvalidArgument naming the file that cannot be used."""
        self._cert_file, self._key_file, self._client_ca_file = cert_file, key_file, client_ca_file
        self._seen = self._stamp()
        self._first = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._first, self._changed, require_client_authentication=bool(self._client_ca_file))

    def _load(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = _pair(self._cert_file, self._key_file)
        authority = _authority("tls_client_ca_file", self._client_ca_file) if self._client_ca_file else None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for name in (self._cert_file, self._key_file, self._client_ca_file):
            try:
                status = Path(name).stat() if name else None
            except OSError:
                status = None
            found.append((status.st_ino, status.st_mtime_ns, status.st_size) if status else (0, 0, 0))
        return tuple(found)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by the transport before a handshake, in a thread of its own: None keeps what it has. Files that do not
        go together are half of a change, and are read again at the next handshake after the other half."""
        now = self._stamp()
        if now == self._seen:
            return None
        self._seen = now
        try:
            loaded = self._load()
        except InvalidArgument as error:
            log.warning("certificate is not used", error=error.message)
            return None
        log.info("certificate replaced", file=self._cert_file)
        return loaded


def server_credentials(cert_file: str, key_file: str, client_ca_file: str) -> grpc.ServerCredentials | None:
    """None where no file is named: the port is plain. Raises InvalidArgument."""
    if not (cert_file or key_file):
        if client_ca_file:
            raise _bad("tls_client_ca_file", "asks clients for certificates, and the service has none: name "
                       "tls_cert_file and tls_key_file")  # fmt: skip
        return None
    return Rotating(cert_file, key_file, client_ca_file).credentials()


def _pair(cert_file: str, key_file: str) -> tuple[bytes, bytes]:
    """(certificate chain, private key), which go together."""
    if not (cert_file and key_file):
        raise _bad("tls_key_file" if cert_file else "tls_cert_file", "is empty: a certificate and its key go together")
    certificate, key = _read("tls_cert_file", cert_file), _read("tls_key_file", key_file)
    try:
        # A password would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise _bad("tls_cert_file", f"{cert_file!r} and the key {key_file!r} do not go together: {why}") from None
    return certificate, key


def _authority(field: str, path: str) -> bytes:
    data = _read(field, path)
    try:
        ssl.create_default_context(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise _bad(field, f"{path!r} holds no certificate in PEM: {why}") from None
    return data


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _bad(field, f"{path!r} cannot be read: {error.strerror}") from None


def _bad(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {problem}", violations=[(field, problem)], reason="INVALID_TLS")
