"""From a configuration to a running writer: open, check, replay; or make block 0."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import structlog

from computemesh.service.crashpoints import crash_point
from computemesh.service.database import open_reader, open_store
from computemesh.service.server import build_server, serve, stop_on_signals
from computemesh.service.store import Connection, GroupCommit
from computemesh.trust import identity, merkle
from computemesh.trust.checkpoint import NoteSigner, log_origin
from computemesh.trust.errors import InvalidArgument
from computemesh.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from ledger import anchor, replay, store
from ledger.block import Chain
from ledger.config import Config
from ledger.service import LedgerService
from ledger.writer import Writer

log = structlog.get_logger("ledger")


def database_path(config: Config) -> Path:
    """Where the ledger's only file is, if it is not in PostgreSQL."""
    return Path(config.data_dir) / store.FILE


def anchor_url(config: Config) -> str:
    """Where the last signed checkpoint is kept."""
    beside = Path(config.data_dir).absolute()
    return config.anchor or beside.with_name(f"{beside.name}-anchor").as_uri()


def check(config: Config) -> None:
    """Raises InvalidArgument naming the setting that cannot be right."""
    def refuse(name: str, problem: str) -> InvalidArgument:
        return InvalidArgument(f"{name}: {problem}", violations=[(name, problem)], reason="INVALID_CONFIGURATION")

    try:
        key = bytes.fromhex(config.authority_key)
    except ValueError:
        key = b""
    if not identity.valid_public_key(key):
        raise refuse("authority_key", f"{config.authority_key!r} is not a compressed public key, 66 hex characters")
    if not config.chain_id or any(c.isspace() or c in "+/" for c in config.chain_id):
        raise refuse("chain_id", f"{config.chain_id!r} must be non-empty, without spaces, '+' and '/'")
    if not 1 <= config.block_interval_ms <= 60_000:
        raise refuse("block_interval_ms", f"{config.block_interval_ms} must be 1..60000")
    if not 1 <= config.block_max_results <= 2**20:
        raise refuse("block_max_results", f"{config.block_max_results} must be 1..{2**20}")
    window = config.dispute_window_blocks + 2 * config.vote_blocks
    if config.unbonding_blocks <= window:
        raise refuse("unbonding_blocks", f"{config.unbonding_blocks} must be more than {window}, the dispute window "
                                         "and its votes: stake must not leave before it can be slashed")
    for name in ("slash_percent", "winner_percent", "voters_percent", "vote_cap_percent"):
        if not 0 <= getattr(config, name) <= 100:
            raise refuse(name, f"{getattr(config, name)} must be 0..100")
    if config.winner_percent + config.voters_percent > 100:
        raise refuse("voters_percent", f"{config.voters_percent} and winner_percent {config.winner_percent} exceed 100")
    for name in ("dispute_window_blocks", "vote_blocks", "quorum", "dispute_bond_units", "validator_stake_units"):
        if not 0 <= getattr(config, name) < 2**31 * (10**6 if name.endswith("units") else 1):
            raise refuse(name, f"{getattr(config, name)} is out of range")
    replay.new_state(config)  # address and shares name themselves


def load_signer(config: Config) -> NoteSigner:
    """The log's signing key. Raises InvalidArgument naming `log_key_file`."""
    try:
        seed = bytes.fromhex(Path(config.log_key_file).read_text("ascii").strip())
    except (OSError, ValueError) as error:
        problem = f"{config.log_key_file} cannot be read as an Ed25519 seed of 64 hex characters: {error}"
        refusal = InvalidArgument(
            f"log_key_file: {problem}", violations=[("log_key_file", problem)], reason="INVALID_CONFIGURATION")
        raise refusal from None
    return NoteSigner(log_origin(config.chain_id), seed)


def _found(connection: Connection, config: Config, signer: NoteSigner, now_ms: int) -> tuple[Chain, int]:
    """Makes block 0 durable."""
    chain = Chain(replay.new_state(config))
    chain.advance(now_ms)
    chain.collect()
    sealed = chain.seal()
    rows = store.Rows(
        log=[(0, now_ms, 1, 0)], blocks=[replay.block_row(sealed, signer)], nodes=list(sealed.nodes),
        supply=[replay.supply_row(chain.state)])  # fmt: skip
    connection.execute("BEGIN IMMEDIATE")
    store.write_meta(connection, replay.identity_of(config, signer))
    store.write(connection, rows)
    connection.execute("COMMIT")
    return chain, 0


def recover(
    connection: Connection, config: Config, signer: NoteSigner, now_ms: int
) -> tuple[Chain, int]:
    """(the fold as it stood, sequence number of its last group). Raises Corrupt."""
    if not store.read_meta(connection):
        return _found(connection, config, signer, now_ms)
    replay.check_identity(connection, replay.identity_of(config, signer))
    began = time.monotonic()
    folded = replay.replay(connection, config, signer)
    crash_point("ledger.start.replayed")
    log.info(
        "replayed", blocks=folded.chain.height, transactions=folded.chain.state.next_tx - 1,
        seconds=round(time.monotonic() - began, 3))
    return folded.chain, folded.last_seq


class Running:
    """A ledger that serves. `stop` seals what is open, makes it durable and lets go of the folder."""

    def __init__(self, config: Config, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        """Recovers, without serving yet. Raises InvalidArgument on the configuration, Corrupt on the store."""
        check(config)
        merkle.prepare()
        path, signer = database_path(config), load_signer(config)
        with ExitStack() as opened:
            if not config.database:
                _lock(path, opened)
            try:
                connection = open_store(config, path, store.STEPS)
                opened.callback(connection.close)
                chain, last_seq = recover(connection, config, signer, clock())
                kept = anchor.Anchor(anchor_url(config))
                anchor.reconcile(kept, connection, signer)
            except sqlite3.DatabaseError as error:
                raise replay.Corrupt(f"{path} cannot be read and is not served: {error}") from error
            crash_point("ledger.start.anchored")
            self._reader = open_reader(config, path)
            opened.callback(self._reader.close)
            self._opened = opened.pop_all()
        self._group = GroupCommit(connection)
        self.writer = Writer(
            chain, last_seq, self._group, self._reader, signer, kept, block_interval_ms=config.block_interval_ms,
            block_max_results=config.block_max_results, clock=clock)
        self._service = LedgerService(config, self.writer, self._reader, signer)
        self._config = config

    async def start(self) -> None:
        """Binds and works; `port` and `server` are set. The server itself is started by whoever serves it."""
        self._work = asyncio.create_task(self.writer.run())
        self._work.add_done_callback(_end_on_failure)
        self.server, self.port = build_server(
            self._config.listen, self._register,
            ["computemesh.v1.LedgerService"], exposure=self._config)  # fmt: skip

    def _register(self, server: grpc.aio.Server) -> None:
        add_LedgerServiceServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]

    async def drain(self) -> None:
        """No more submissions; what was accepted is sealed, durable and answered."""
        self.writer.close()
        await self._work

    def close(self) -> None:
        """After the server stopped."""
        self._group.close()
        self._opened.close()


def _end_on_failure(work: asyncio.Task[None]) -> None:
    """A fold that raised has an unknown state: nothing more may be answered from it."""
    if not work.cancelled() and work.exception() is not None:
        log.critical("the writer failed; ending the process", exc_info=work.exception())
        os._exit(70)


def _lock(path: Path, opened: ExitStack) -> None:
    """Two ledgers over one folder would fork the chain; until `opened` is closed. Raises InvalidArgument where another
    has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = opened.enter_context(path.with_suffix(".lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        problem = f"{path.parent} is in use by another ledger process"
        raise InvalidArgument(f"data_dir: {problem}", violations=[("data_dir", problem)]) from None


async def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT."""
    running = Running(config)
    await running.start()
    stop = asyncio.Event()
    stop_on_signals(stop)
    log.info("serving", listen=config.listen, port=running.port, chain=config.chain_id)
    await serve(running.server, stop, before_stop=running.drain)
    running.close()


def fsck(config: Config) -> list[str]:
    """Everything that differs between the log, its headers and the tables. Changes nothing."""
    path = database_path(config)
    if not config.database and not path.exists():
        raise InvalidArgument(f"data_dir: there is no ledger at {path}", violations=[("data_dir", "holds no ledger")])
    signer = load_signer(config)
    connection = open_reader(config, path)
    try:
        replay.check_identity(connection, replay.identity_of(config, signer))
        problems = list(replay.Replay(connection, config, signer, thorough=True).run())
        return problems or anchor.problems(anchor.Anchor(anchor_url(config)), connection, signer)
    except sqlite3.DatabaseError as error:
        return [f"{path} cannot be read: {error}"]
    finally:
        connection.close()
