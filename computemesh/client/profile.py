"""Where a client finds its market and who it is there: a small TOML file.

Looked for in this order: the one given, $COMPUTEMESH_PROFILE, ./data/profile.toml (what `mesh up` writes), the one in
use (`mesh profile use NAME`), and ~/.config/computemesh/profile.toml. Given is a file, or the name of one in
~/.config/computemesh/profiles.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from computemesh.service.tls import Trust
from computemesh.trust.errors import InvalidArgument, NotFound
from computemesh.trust.identity import PrivateKey

VARIABLE = "COMPUTEMESH_PROFILE"
LOCAL = Path("data/profile.toml")
TABLES = ("addresses", "workers")
TLS_FILES = ("tls_ca_file", "tls_cert_file", "tls_key_file")
KEY_FILES = ("key_file", "authority_key_file", "operator_key_file")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def home() -> Path:
    """The folder with the profiles of this user."""
    return Path("~/.config/computemesh").expanduser()


def named(name: str) -> Path:
    """The file of a profile's name. Raises InvalidArgument where it cannot be one."""
    if not _NAME.fullmatch(name):
        problem = f"{name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'"
        raise InvalidArgument(f"the profile's name {problem}", violations=[("name", problem)])
    return home() / "profiles" / f"{name}.toml"


def in_use() -> str:
    """The name that `mesh profile use` chose; empty text where none is."""
    try:
        return (home() / "current").read_text("utf-8").strip()
    except OSError:
        return ""


def locate(given: Path | str) -> Path:
    """The file that a name or path stands for: a name only where no such file lies here."""
    path = Path(given)
    return named(str(given)) if _NAME.fullmatch(str(given)) and not path.is_file() else path


@dataclass(frozen=True, slots=True)
class Profile:
    """Addresses are HOST:PORT; empty text means unknown. Key files hold 64 hexadecimal characters.

    `ledger_vkey` pins the log's checkpoint key: what receipts are judged by. `api_key` or the key in `key_file` says
    who calls; with both, the API key does. `authority_key_file` lets a local profile mint, `operator_key_file`
    (the orchestrator's key) drain workers. Services are dialled with TLS where `tls_ca_file` names the CA that signed
    their certificates (PEM); `tls_cert_file` and `tls_key_file` are shown to those that ask. `addresses` names
    accounts, `workers` gives the control ports of local workers.
    """

    market: str = ""
    ledger: str = ""
    orchestrator: str = ""
    chain_id: str = ""
    ledger_vkey: str = ""
    api_key: str = field(default="", repr=False)
    key_file: str = ""
    authority_key_file: str = ""
    operator_key_file: str = ""
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    workers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile; its key files are relative to its folder. Raises NotFound, InvalidArgument."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"there is no profile at {path}", reason="PROFILE_NOT_FOUND") from None
        except OSError as error:
            raise InvalidArgument(f"the profile {path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the profile {path} is not TOML: {error}") from None
        known = {one.name: one.type for one in fields(cls) if one.name != "path"}
        for name, value in raw.items():
            if name not in known:
                raise InvalidArgument(f"the profile {path} has the unknown field {name!r}; known: {', '.join(known)}")
            if not isinstance(value, dict if name in TABLES else str):
                raise InvalidArgument(f"{name} in the profile {path} has the wrong type")
        for name in (*KEY_FILES, *TLS_FILES):
            if raw.get(name):
                raw[name] = str(path.parent / Path(raw[name]).expanduser())
        return cls(**raw, path=str(path))

    @classmethod
    def discover(cls, path: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Profile:
        """The profile at `path` (or of that name), else the first that exists. Raises NotFound that says what to do."""
        if path is not None:
            return cls.load(locate(path))
        if environ.get(VARIABLE):
            return cls.load(locate(environ[VARIABLE]))
        if LOCAL.exists():
            return cls.load(LOCAL)
        if used := in_use():
            return cls.load(named(used))
        last = home() / "profile.toml"
        if last.exists():
            return cls.load(last)
        raise NotFound(
            f"no profile found (looked at ${VARIABLE}, {LOCAL}, `mesh profile use`, {last}): "
            "start a local mesh with `mesh up`, or name a profile with --profile",
            reason="PROFILE_NOT_FOUND",
        )

    def key(self) -> PrivateKey | None:
        """The customer's key, None where the profile names none. Raises InvalidArgument."""
        return read_key(self.key_file) if self.key_file else None

    @property
    def trust(self) -> Trust:
        """How the services are dialled."""
        return Trust(self.tls_ca_file, self.tls_cert_file, self.tls_key_file)

    def name_of(self, address: str) -> str:
        """What this profile calls an account; empty text for a stranger."""
        return next((name for name, known in self.addresses.items() if known == address), "")

    def address_of(self, name: str) -> str:
        """The address called `name` here, else the text itself."""
        return self.addresses.get(name, name)


def read_key(path: Path | str) -> PrivateKey:
    """The key in a file of 64 hexadecimal characters. Raises InvalidArgument naming the file, never its content."""
    try:
        return PrivateKey.from_bytes(bytes.fromhex(Path(path).read_text().strip()))
    except OSError as error:
        raise InvalidArgument(f"the key file {path} cannot be read: {error.strerror}") from None
    except (ValueError, InvalidArgument):
        raise InvalidArgument(f"the key file {path} does not hold a key (64 hexadecimal characters)") from None
