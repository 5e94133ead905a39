"""A certificate authority for one cluster folder.

    data/tls/ca.pem, ca.key          the authority; whoever dials this mesh believes ca.pem
    data/tls/NAME.pem, NAME.key      one certificate per process, for servers and for clients
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from computemesh.trust.errors import InvalidArgument

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=397)
RENEWED_BEFORE = timedelta(days=60)
"""Of the end of a certificate: the next start makes another."""
BACKDATED = timedelta(minutes=5)
"""Clocks of machines differ."""


class Authority:
    """The authority in `folder`, made now if there is none."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidArgument where the files cannot be read."""
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        key_file = folder / "ca.key"
        if not self.ca_file.exists():
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._certificate = self._make_authority()
            _write(key_file, _private(self._key), 0o600)
            _write(self.ca_file, self._certificate.public_bytes(serialization.Encoding.PEM), 0o644)
            return
        try:
            self._certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"the authority in {folder} cannot be used: {error}") from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def certificate(self, name: str, hosts: Iterable[str], life: timedelta = LIFE) -> tuple[Path, Path]:
        """(certificate, key) files of `name`, good for `hosts` (names or addresses); kept while they do."""
        at, key_at = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        wanted = sorted(hosts)
        if not self._good(at, wanted) or not key_at.exists():
            self.issue(name, wanted, life)
        return at, key_at

    def issue(self, name: str, hosts: Iterable[str], life: timedelta = LIFE) -> None:
        """A new certificate and key for `name`, in place of what was there."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            _builder(name, self._certificate.subject, key.public_key(), life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write(self.folder / f"{name}.key", _private(key), 0o600)
        _write(self.folder / f"{name}.pem", made.public_bytes(serialization.Encoding.PEM), 0o644)

    def _good(self, at: Path, hosts: Iterable[str]) -> bool:
        try:
            found = x509.load_pem_x509_certificate(at.read_bytes())
            found.verify_directly_issued_by(self._certificate)
            named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:  # whatever is wrong with it, the next one is sound
            return False
        left = found.not_valid_after_utc - datetime.now(UTC)
        return {_general(host) for host in hosts} <= set(named) and left > RENEWED_BEFORE

    def _make_authority(self) -> x509.Certificate:
        name = _name("computemesh local authority")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates, lists
        return (
            _builder("computemesh local authority", name, self._key.public_key(), AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder().subject_name(_name(name)).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATED).not_valid_after(now + life)
    )  # fmt: skip


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())  # fmt: skip


def _write(path: Path, data: bytes, mode: int) -> None:
    from computemesh.cli.plan import write_text

    write_text(path, data.decode("ascii"), mode)
