"""A real ledger's history with trees of many sizes, and verifiers that others wrote, each started once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from computemesh.client.mirror import Mirror
from computemesh.client.proofs import tlog_proofs
from computemesh.trust.checkpoint import block_origin, log_origin
from computemesh.trust.tlog_proof import TlogProof
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1.ledger_pb2_grpc import LedgerServiceStub
from tests.ledger import parties
from tests.ledger.conftest import make_config
from tests.ledger.test_anchor import config_file, spawn

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "examples" / "verifiers"
SIZES = sorted({
    *range(1, 34), 47, 48, 49, 63, 64, 65, 80, 95, 96, 97, 111, 127, 128, 129, 145, 160, 191, 192, 193, 209, 223, 224,
    225, 240, *range(250, 260), 273, 288, 300})  # fmt: skip
"""Sizes of trees: 70, with every place where a path or a tile changes its shape."""
HOUR_MS = 3_600_000
Verifier = Callable[..., str]


@dataclass
class History:
    """What a stranger can have of a ledger: its key, its checkpoints as they were, proofs, and the folder of tiles."""

    folder: Path
    vkey: str = ""
    notes: dict[int, str] = field(default_factory=dict)
    """The log's checkpoint at each size."""
    proofs: list[tuple[str, TlogProof]] = field(default_factory=list)
    """(origin, proof): results in their block, and at each size of the log a block in it."""
    paths: dict[int, list[bytes]] = field(default_factory=dict)
    """The ledger's consistency proof from each of the sizes to the newest."""
    grown: dict[int, str] = field(default_factory=dict)
    """What Go said of the folder of tiles when the log had that size."""

    @property
    def tiles(self) -> Path:
        """The prefix that a web server would serve."""
        return self.folder / "tiles"

    def file(self, name: str, text: str) -> str:
        """Path of a new file."""
        path = self.folder / name
        path.write_text(text, "utf-8")
        return str(path)


def block_of(size: int, nonce: int) -> tuple[bytes, list[pb.Transaction]]:
    """(task, transactions) of a block with that many results."""
    order = parties.order(10 * size, time.time_ns() // 1_000_000 + HOUR_MS)
    task = parties.task_id(order)
    results = parties.batch([parties.commitment(task, job, nonce + job) for job in range(size)])
    return task, [
        parties.deposit(parties.CUSTOMER, 10 * size), parties.open_(order), parties.assign(task, size),
        parties.settle([results])]  # fmt: skip


class Growth:
    """Grows a ledger block by block and keeps what a stranger would."""

    def __init__(self, stub: Any, history: History, go: Verifier) -> None:
        self._stub, self._history, self._go = stub, history, go
        self._tasks: list[tuple[bytes, int]] = []
        self._nonce = 1
        history.vkey = stub.GetLedger(pb.GetLedgerRequest()).vkey
        self._mirror = Mirror(lambda method, request: getattr(stub, method)(request), history.tiles, history.vkey,
                              parties.CHAIN)  # fmt: skip

    def run(self) -> None:
        """To as many blocks as the largest size."""
        stub, history = self._stub, self._history
        history.notes[1] = stub.GetCheckpoint(pb.GetCheckpointRequest()).checkpoint.note
        self._note(1)
        for size in range(2, SIZES[-1] + 1):
            checkpoint = stub.SubmitTransactions(
                pb.SubmitTransactionsRequest(transactions=self._block(), wait=pb.WAIT_SEALED)).checkpoint
            assert checkpoint.size == size  # one request, one block
            history.notes[size] = checkpoint.note
            if size in SIZES:
                self._note(size)
        for old in SIZES:
            reply = stub.GetConsistencyProof(pb.GetConsistencyProofRequest(old_size=old, new_size=SIZES[-1]))
            history.paths[old] = list(reply.path)
        for height, (task, count) in enumerate(self._tasks, start=1):
            for job in {count // 3, count - 1}:
                history.proofs.append((block_origin(parties.CHAIN, height), self._proofs(task, job)[0]))

    def _block(self) -> list[pb.Transaction]:
        if len(self._tasks) == len(SIZES):
            return [parties.deposit(parties.CUSTOMER, 1)]
        size = SIZES[len(self._tasks)]
        task, transactions = block_of(size, self._nonce)
        self._nonce += size
        self._tasks.append((task, size))
        return transactions

    def _note(self, size: int) -> None:
        history = self._history
        self._mirror.update()
        log = log_origin(parties.CHAIN)
        history.grown[size] = self._go("tiles", history.vkey, log, str(history.tiles))
        if size == 1:
            header = self._stub.ListEntries(pb.ListEntriesRequest()).entries[0]
            history.proofs.append((log, TlogProof(0, (), history.notes[1], header)))
            return
        task, count = self._tasks[size % len(self._tasks)]
        history.proofs.append((log, self._proofs(task, count - 1)[1]))

    def _proofs(self, task: bytes, job: int) -> tuple[TlogProof, TlogProof]:
        return tlog_proofs(
            self._stub.GetInclusionProof(pb.GetInclusionProofRequest(task_id=task.hex(), job=job)))


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    """golang.org/x/mod's sumdb/note and sumdb/tlog, from Debian."""
    binary = tmp_path_factory.mktemp("go") / "verify"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
    command = shutil.which("go")
    assert command, "needs golang-go and golang-golang-x-mod-dev: `make test` installs deploy/debian-test-packages.txt"
    subprocess.run([command, "build", "-o", str(binary), str(PROGRAMS / "verify.go")], env=environment, check=True)
    with Asking([str(binary), "-"]) as ask:
        yield ask


@pytest.fixture(scope="session")
def npm() -> Iterator[Verifier]:
    """@sigstore/verify."""
    package = ROOT / "build" / "node_modules" / "@sigstore" / "verify"
    assert package.is_dir(), "needs @sigstore/verify: `make test` installs it into build/node_modules"
    with Asking(["node", str(PROGRAMS / "verify.js"), "-"], SIGSTORE_VERIFY=str(package)) as ask:
        yield ask


@pytest.fixture(scope="session")
def pypi() -> Iterator[Verifier]:
    """sigstore."""
    with Asking([sys.executable, str(PROGRAMS / "verify.py"), "-"]) as ask:
        yield ask


class Asking:
    """A verifier's process; `ask(*arguments)` gives its one line of answer."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})

    def __enter__(self) -> Verifier:
        return self._ask

    def _ask(self, *arguments: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == "ok" or answer.startswith("refused: "), answer
        return answer

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory, go: Verifier) -> History:
    """Of a ledger process whose log and blocks took all the sizes."""
    folder = tmp_path_factory.mktemp("history")
    config = make_config(folder, block_interval_ms=1, dispute_window_blocks=0)  # no blocks of its own
    process, port, lines = spawn(config_file(config, folder / "ledger.toml"))
    assert port, lines
    found = History(folder)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            Growth(LedgerServiceStub(channel), found, go).run()
    finally:
        process.terminate()
        process.wait(30)
    return found
