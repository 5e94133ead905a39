"""The last signed checkpoint outside the database: a rolled-back ledger does not start, a killed one does."""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from computemesh.service.server import dial
from computemesh.trust.checkpoint import Checkpoint, NoteSigner, sign_note
from computemesh.trust.errors import InvalidArgument, Unavailable
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger import startup
from ledger.anchor import Anchor, Forked, RolledBack
from ledger.config import Config
from ledger.startup import Running
from tests.artifacts.test_objects import s3  # noqa: F401
from tests.ledger import conftest, parties
from tests.ledger.conftest import serving
from tests.ledger.parties import CUSTOMER

# Always in SQLite: these tests damage, copy and lock its file.
make_config = functools.partial(conftest.make_config, database="")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


ROOT = Path(__file__).resolve().parents[2]
# A ledger that kills itself (SIGKILL) around the write to its anchor: after its Nth block is durable.
CRASHING = """
import os, signal, sys
from ledger import __main__, anchor
when, left = sys.argv[1], [int(sys.argv[2])]
advance = anchor.Anchor.advance
def crashing(self, note):
    left[0] -= 1
    if left[0] == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, note)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
anchor.Anchor.advance = crashing
sys.argv = ["ledger", *sys.argv[3:]]
sys.exit(__main__.main())
"""


def config_file(config: Config, path: Path) -> Path:
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in vars(config).items()))
    return path


def spawn(file: Path, *before: str) -> tuple[subprocess.Popen[str], int, list[str]]:
    """A serving process, its port (0: it ended before it served) and what it wrote."""
    command = [sys.executable, *(before or ("-m", "ledger")), "--config", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("{") and json.loads(line).get("event") == "serving":
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, json.loads(line)["port"], lines
    process.wait()
    return process, 0, lines


async def deposit(stub: Any, tx_id: bytes) -> int:
    """Height of the block that sealed a deposit."""
    reply = await stub.SubmitTransactions(pb.SubmitTransactionsRequest(
        transactions=[parties.deposit(CUSTOMER, 7, tx_id=tx_id)], wait=pb.WAIT_SEALED))  # fmt: skip
    assert reply.checkpoint.size > reply.outcomes[0].block_height
    return int(reply.outcomes[0].block_height)


def kept_size(config: Config) -> int:
    note = Anchor(startup.anchor_url(config)).note
    assert note is not None
    return Checkpoint.parse(note.partition("\n\n")[0] + "\n").size


async def test_a_database_restored_from_an_old_copy_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    data, copy = Path(config.data_dir), tmp_path / "copy"
    for round_ in range(2):
        async with serving(config) as stub:
            height = await deposit(stub, bytes([round_]) * 16)
        if round_ == 0:
            shutil.copytree(data, copy)
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    process, port, lines = await asyncio.to_thread(spawn, config_file(config, tmp_path / "ledger.toml"))
    assert (process.returncode, port) == (1, 0)
    said = lines[-1]
    for part in ("LEDGER_ROLLED_BACK", f"a checkpoint of {height + 1} blocks", "Put back a copy with at least"):
        assert part in said
    assert kept_size(config) == height + 1
    assert "LEDGER_ROLLED_BACK" in startup.fsck(config)[0]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_ledger_killed_around_the_anchors_write_starts_again(tmp_path: Path, when: str, nth: int) -> None:
    """The 1st write is that of block 0, before anything is served; the 2nd that of the deposit's block."""
    config, tx_id = make_config(tmp_path), b"k" * 16
    file = config_file(config, tmp_path / "ledger.toml")
    process, port, _ = await asyncio.to_thread(spawn, file, "-c", CRASHING, when, str(nth))
    if nth == 2:
        async with dial(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await deposit(LedgerServiceStub(channel), tx_id)
    assert process.wait(30) == -signal.SIGKILL
    async with serving(config) as stub:
        assert await deposit(stub, tx_id) == 1  # the first time's answer, where it was durable
    assert kept_size(config) == 2
    assert startup.fsck(config) == []


async def test_of_two_ledgers_that_sign_one_log_the_second_ends(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with serving(config) as stub:
        await deposit(stub, b"1" * 16)
    shutil.copytree(config.data_dir, tmp_path / "copy")
    other = make_config(tmp_path, data_dir=str(tmp_path / "copy"), anchor=startup.anchor_url(config))
    process, port, lines = await asyncio.to_thread(spawn, config_file(other, tmp_path / "other.toml"))
    assert port, lines
    async with serving(config) as stub:
        height = await deposit(stub, b"2" * 16)
        async with dial(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await deposit(LedgerServiceStub(channel), b"3" * 16)
        assert process.wait(30) == 70
        assert kept_size(config) == height + 1
        assert await deposit(stub, b"4" * 16) > height


async def test_nothing_signed_is_seen_before_the_anchor_has_it(config: Config, monkeypatch: Any) -> None:
    """While the anchor does not answer, what is durable is acknowledged, and no checkpoint of it is given out."""
    reachable, advance = threading.Event(), Anchor.advance

    def guarded(self: Anchor, note: str) -> None:
        if not reachable.is_set() and self.note is not None:
            raise Unavailable("no answer")
        advance(self, note)

    monkeypatch.setattr(Anchor, "advance", guarded)
    monkeypatch.setattr("ledger.writer._ANCHOR_RETRY_S", 0.01)
    async with serving(config) as stub:
        accepted = pb.SubmitTransactionsRequest(transactions=[parties.deposit(CUSTOMER, 7)], wait=pb.WAIT_ACCEPTED)
        assert (await stub.SubmitTransactions(accepted)).outcomes[0].kind == pb.OUTCOME_KIND_APPLIED
        sealed = asyncio.ensure_future(stub.SubmitTransactions(pb.SubmitTransactionsRequest(
            transactions=[parties.deposit(CUSTOMER, 7)], wait=pb.WAIT_SEALED)))  # fmt: skip
        while (await stub.GetLedger(pb.GetLedgerRequest())).block_height == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # until it is durable: a header shows, unsigned
        assert (await stub.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint.size == 1
        with pytest.raises(grpc.aio.AioRpcError, match="no block 1 yet"):
            await stub.GetCheckpoint(pb.GetCheckpointRequest(block_height=1))
        assert not sealed.done()
        reachable.set()
        assert (await sealed).checkpoint.size > 1


async def test_another_history_is_refused(config: Config, tmp_path: Path) -> None:
    async with serving(config):
        pass
    other = make_config(tmp_path, data_dir=str(tmp_path / "other"))
    async with serving(other):
        pass  # its block 0 has another time
    with pytest.raises(Forked, match="another history"):
        Running(make_config(tmp_path, anchor=startup.anchor_url(other)))
    strangers = tmp_path / "strangers"
    note = NoteSigner("elsewhere/blocks", bytes(32))
    Anchor(strangers.as_uri()).advance(f"elsewhere/blocks\n1\nAAAA\n\n— {note.name} AAAA\n")
    with pytest.raises(Forked, match="something else"):
        Running(make_config(tmp_path, anchor=strangers.as_uri()))


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_two_that_move_the_anchor_one_is_refused(kind: str, tmp_path: Path, request: Any) -> None:
    url = (tmp_path / "kept").as_uri() if kind == "folder" else request.getfixturevalue("s3")
    one = Anchor(url)
    assert one.note is None
    one.advance("first")
    one.advance("second")
    two = Anchor(url)
    assert two.note == "second"
    two.advance("third")
    with pytest.raises(Forked, match="two ledgers"):
        one.advance("another third")
    assert Anchor(url).note == "third"


def test_a_swap_whose_answer_was_lost_is_no_conflict(tmp_path: Path) -> None:
    url = (tmp_path / "kept").as_uri()
    one, same = Anchor(url), Anchor(url)
    same.advance("first")
    one.advance("first")
    one.advance("second")


@pytest.mark.parametrize("url", ["ftp://host/x", "somewhere", "s3://"])
def test_a_wrong_anchor_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="anchor"):
        Running(make_config(tmp_path, anchor=url))


def test_a_ledger_behind_its_anchor_is_refused_in_process_too(config: Config) -> None:
    """RolledBack names both sizes, whatever started the ledger."""
    running = Running(config)
    running.close()
    signer = startup.load_signer(config)
    ahead = sign_note(Checkpoint(signer.name, 9, bytes(32)).body(), signer)
    Anchor(startup.anchor_url(config)).advance(ahead)
    with pytest.raises(RolledBack, match=r"ends with block 0, but .* checkpoint of 9 blocks"):
        Running(config)
