"""Where the tables of services under test are: SQLite, or a PostgreSQL server that the tests start themselves.

COMPUTEMESH_TEST_DATABASE=postgresql puts those of every service that a test starts into that server, a schema each.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from computemesh.service.database import Database, open_store
from computemesh.service.migrations import Step
from computemesh.service.store import Connection

URL = "COMPUTEMESH_DATABASE"
POSTGRES = os.environ.get("COMPUTEMESH_TEST_DATABASE", "") == "postgresql"


def location(folder: Path) -> dict[str, str]:
    """What a service's configuration says of its tables: the same for the same folder."""
    if not POSTGRES:
        return {}
    return {"database": os.environ[URL], "database_schema": "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:20]}


def opened(path: Path, steps: Sequence[Step]) -> Connection:
    """A store as a service opens it."""
    return open_store(Database(**location(path)), path, steps)


class Server:
    """A PostgreSQL server of its own, as Debian packages it; superusers run it as its user."""

    def __init__(self) -> None:
        self._binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._data = str(self._folder / "data")
        subprocess.run([*self._as, str(self._binaries / "initdb"), "-D", self._data, "-A", "trust", "-U", "mesh",
                        "--no-sync", "--no-locale", "-E", "UTF8"], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        self.url = f"postgresql://mesh@127.0.0.1:{self.port}/postgres"

    def start(self, *settings: str) -> Server:
        """Returns once it takes connections; `settings` are NAME=VALUE."""
        words = [word for setting in settings for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._binaries / "postgres"), "-D", self._data, "-p", str(self.port), "-k", "",
                 "-h", "127.0.0.1", *words], stdout=log, stderr=log)  # fmt: skip
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
                return self
            except psycopg.OperationalError:
                assert time.monotonic() < until, (self._folder / "log").read_text()
                time.sleep(0.1)

    def stop(self, crash: bool = False) -> None:
        """Ends every session and the server; with `crash` as a power loss would."""
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        self._process.wait()

    def remove(self) -> None:
        """Its data too."""
        self.stop()
        shutil.rmtree(self._folder)
