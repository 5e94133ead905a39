"""The worker's commitment nonces: none is ever used twice, whatever the moment of a crash."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from computemesh.service.crashpoints import crash_point
from computemesh.trust.errors import InvalidState

FIRST = 1


class NonceFile:
    """The lowest nonce that was never handed out for use, durable in `folder/nonce`.

    The file holds the end of a reservation, so a restart skips what was reserved and unused and repeats
    nothing. The folder is locked while this is open: two agents on one key would sign the same nonce twice, and
    the ledger would refuse one of the two results.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InvalidState where another agent has the folder, or the file is not a nonce."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._path = folder, folder / "nonce"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InvalidState(f"data_dir {folder} is in use by another worker") from None
        try:
            self.next = self._load()
        except InvalidState:
            os.close(self._lock)
            raise

    def _load(self) -> int:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return FIRST
        # Starting over at 1 would have every result refused as replayed; a person must decide.
        if not text.strip().isascii() or not text.strip().isdigit():
            raise InvalidState(f"{self._path} holds {text[:40]!r}, which is not a nonce")
        return int(text)

    def reserve(self, end: int) -> None:
        """Make `end` durable as the first nonce that is still free. Blocks for one fsync or two."""
        if end < self.next:
            raise InvalidState(f"nonces up to {self.next} are reserved already; {end} would go back")
        crash_point("worker.nonce.begins")
        fresh = self._folder / "nonce.new"
        with open(fresh, "w") as file:
            file.write(f"{end}\n")
            file.flush()
            crash_point("worker.nonce.written")
            os.fsync(file.fileno())
        crash_point("worker.nonce.synced")
        os.replace(fresh, self._path)
        crash_point("worker.nonce.renamed")
        # Without this the rename itself can be lost in a power cut, and with it the reservation.
        directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.next = end

    def close(self) -> None:
        """Let another agent have the folder."""
        os.close(self._lock)

    def __enter__(self) -> NonceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
