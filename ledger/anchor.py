"""The anchor: the last signed checkpoint, kept outside the database and changed by compare-and-swap only.

A database restored from an old copy is sound in itself, and going on from it would sign a second history. So every
checkpoint is written here before anybody sees it (after its blocks are durable: a crash in between leaves the database
ahead, which the next start makes good), and a ledger behind its anchor does not start.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from computemesh.service.crashpoints import crash_point
from computemesh.service.store import Connection
from computemesh.trust import paths
from computemesh.trust.checkpoint import NoteSigner, NoteVerifier, open_checkpoint
from computemesh.trust.errors import InvalidArgument, InvalidProof, InvalidState, Unavailable
from ledger import store

NAME = "checkpoint"
SCHEMES = ("file", "memory", "s3", "s3a", "gs", "az", "adl", "abfs", "abfss", "azure")
log = structlog.get_logger("ledger.anchor")


class RolledBack(InvalidState):
    """The database lacks blocks whose checkpoint was signed."""

    reason = "LEDGER_ROLLED_BACK"


class Forked(InvalidState):
    """The anchor holds a checkpoint of another history, or another process moves it."""

    reason = "LEDGER_FORKED"


class _Store(Protocol):
    def read(self) -> tuple[bytes | None, Any]:
        """(what is there, its tag). Raises Unavailable."""

    def swap(self, tag: Any, data: bytes) -> Any | None:
        """Replaces what has this tag (None: nothing is there); the new tag, or None where it is not that any more."""


class _Folder:
    """A file in a folder: written beside, flushed, renamed, under a lock. Its tag is its content."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def read(self) -> tuple[bytes | None, Any]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None, None
        return data, data

    def swap(self, tag: Any, data: bytes) -> Any | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self.read()[1] != tag:
                return None
            beside = self._path.with_suffix(".new")
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                crash_point("ledger.anchor.written")
                os.fsync(file.fileno())
            crash_point("ledger.anchor.synced")
            beside.replace(self._path)
            crash_point("ledger.anchor.renamed")
            os.fsync(folder)
        finally:
            os.close(folder)
        return data


class _Bucket:
    """An object in S3, Google Cloud Storage or Azure, by conditional put. Its tag is its ETag or version."""

    def __init__(self, url: str) -> None:
        self._store: Any = from_url(url)

    def read(self) -> tuple[bytes | None, Any]:
        try:
            found = obstore.get(self._store, NAME)
            return bytes(found.bytes()), _tag(found.meta)
        except FileNotFoundError:
            return None, None

    def swap(self, tag: Any, data: bytes) -> Any | None:
        try:
            return _tag(obstore.put(self._store, NAME, data, mode=tag or "create", use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return None


def _tag(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


class Anchor:
    """The last signed checkpoint at `url` (`file:///folder`, `s3://bucket/prefix`, ...). One thread at a time."""

    def __init__(self, url: str) -> None:
        """Reads what is there. Raises InvalidArgument naming `anchor` for a wrong URL, Unavailable."""
        self.url = url
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise _refused(f"{url!r} is not a URL of a store: {', '.join(f'{name}://' for name in SCHEMES)}")
        try:
            self._store: _Store = _Folder(Path(unquote(parts.path))) if parts.scheme == "file" else _Bucket(url)
        except (BaseError, ValueError, OSError) as error:
            raise _refused(f"cannot open {url!r}: {str(error)[:200]}") from None
        self.note = self._read()

    def _read(self) -> str | None:
        try:
            data, self._tag = self._store.read()
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise InvalidState(f"what {self.url} holds is not a checkpoint", reason="LEDGER_FORKED") from None
        except (BaseError, OSError) as error:
            raise self._unavailable("read", error) from None

    def advance(self, note: str) -> None:
        """Replaces the checkpoint, durably. Raises Forked where it is not the one we left, Unavailable."""
        try:
            tag = self._store.swap(self._tag, note.encode())
        except (BaseError, OSError) as error:
            raise self._unavailable("write", error) from None
        if tag is None and self._read() != note:  # ours where an answer was lost on the way
            raise Forked(f"another process moved the last signed checkpoint in {self.url}: two ledgers sign one log")
        self.note, self._tag = note, tag or self._tag

    def _unavailable(self, verb: str, error: Exception) -> Unavailable:
        return Unavailable(f"cannot {verb} the last signed checkpoint in {self.url}: {str(error)[:300]}")


def _refused(problem: str) -> InvalidArgument:
    return InvalidArgument(f"anchor: {problem}", violations=[("anchor", problem)], reason="INVALID_CONFIGURATION")


def reconcile(anchor: Anchor, connection: Connection, signer: NoteSigner) -> None:
    """Compares anchor and database at start and brings the anchor up to the newest block.

    Raises RolledBack where the database is behind, Forked where it is of another history.
    """
    newest = store.newest_block(connection)
    assert newest is not None  # block 0 is made before
    size, note = newest[0] + 1, newest[3]
    if anchor.note is None:
        if size > 1:
            log.warning("no last signed checkpoint is kept; trusting the database", anchor=anchor.url, blocks=size)
    else:
        _compare(anchor, connection, signer, size)
    if anchor.note != note:
        anchor.advance(note)


def problems(anchor: Anchor, connection: Connection, signer: NoteSigner) -> list[str]:
    """Why a start would be refused; changes nothing."""
    newest = store.newest_block(connection)
    if anchor.note is None or newest is None:
        return []
    try:
        _compare(anchor, connection, signer, newest[0] + 1)
    except (RolledBack, Forked) as error:
        return [f"{error.reason}: {error}"]
    return []


def _compare(anchor: Anchor, connection: Connection, signer: NoteSigner, size: int) -> None:
    assert anchor.note is not None
    try:
        point = open_checkpoint(anchor.note, NoteVerifier(signer.vkey), signer.name)
    except InvalidProof as error:
        raise Forked(
            f"{anchor.url} holds something else than this ledger's last signed checkpoint: {error}. It may be another "
            f"ledger's; give each its own (setting `anchor`)") from None
    if point.size > size:
        raise RolledBack(
            f"the database ends with block {size - 1}, but this ledger has signed a checkpoint of {point.size} blocks "
            f"(it is in {anchor.url}): the database was restored from an older copy, and going on from it would sign a "
            f"second history. Put back a copy with at least {point.size} blocks. If there is none, these blocks are "
            f"lost: begin a new ledger with another chain_id, data_dir and anchor (docs/verify-it-yourself.md)")
    if paths.root(lambda level, position: store.node(connection, level, position), point.size) != point.root:
        raise Forked(
            f"the database's first {point.size} blocks are not those of the last signed checkpoint in {anchor.url}: it "
            f"is of another history. Put back the database that signed this checkpoint")
