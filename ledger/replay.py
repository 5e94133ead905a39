"""Start-up: the log folded again, which must reproduce every header, and the tables compared with what it gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from operator import add

from google.protobuf.message import DecodeError

from computemesh.service.store import Connection
from computemesh.trust import identity, statement
from computemesh.trust.amount import MAX_UNITS, Shares
from computemesh.trust.checkpoint import NoteSigner, sign_note
from computemesh.trust.errors import InvalidState, MeshError
from computemesh.v1 import ledger_pb2 as pb
from ledger import store, wire
from ledger.archive import Archive
from ledger.block import Chain, SealedBlock
from ledger.config import Config
from ledger.core import put_away
from ledger.evidence import Assign, Examined, examine
from ledger.state import OPEN_PHASES, PLACES, Account, Effects, Escrow, Phase, Rules, State, Touched


class Corrupt(InvalidState):
    """The stored ledger contradicts itself; serving it would be lying."""

    reason = "LEDGER_CORRUPT"


def new_state(config: Config) -> State:
    """The state before the first transaction. Raises InvalidArgument on a bad key, address or share."""
    shares = Shares(config.burn_percent, config.worker_percent, config.validator_percent, config.treasury_percent)
    return State(
        config.chain_id, bytes.fromhex(config.authority_key), identity.decode_address(config.treasury_address), shares,
        rules_of(config))


def rules_of(config: Config) -> Rules:
    """The chain's rules: those settings of the same names."""
    return Rules(**{one.name: getattr(config, one.name) for one in fields(Rules)})


def identity_of(config: Config, signer: NoteSigner) -> dict[str, str]:
    """What the first start fixes for good: another value would make another ledger of the same log."""
    shares = (config.burn_percent, config.worker_percent, config.validator_percent, config.treasury_percent)
    return {
        "chain_id": config.chain_id, "authority_key": config.authority_key.lower(),
        "treasury_address": config.treasury_address, "shares": "/".join(map(str, shares)), "vkey": signer.vkey,
        "rules": "/".join(f"{one.name}={getattr(config, one.name)}" for one in fields(Rules)),
    }  # fmt: skip


def check_identity(connection: Connection, expected: dict[str, str]) -> None:
    """Raises Corrupt naming the first setting that is not the one the ledger was made with."""
    stored = store.read_meta(connection)
    for name, value in expected.items():
        if stored.get(name) != value:
            raise Corrupt(
                f"{name} is {value!r}, but this data directory holds a ledger made with {stored.get(name)!r}; "
                f"it cannot be changed after the first start")


def account_row(address: bytes, account: Account) -> store.Row:
    """The account as its table has it."""
    earned, spent = min(account.earned, MAX_UNITS), min(account.spent, MAX_UNITS)
    return (address, account.balance, account.held, earned, spent, account.highest_nonce.to_bytes(8, "big"),
            account.pending, account.results)  # fmt: skip


def escrow_row(escrow: Escrow) -> store.Row:
    """The escrow as its table has it."""
    return (
        escrow.no, escrow.task_id, escrow.customer, int(escrow.phase), escrow.reward, escrow.settled, escrow.refunded,
        escrow.deadline_ms, escrow.jobs, escrow.jobs_settled, escrow.epoch, escrow.orchestrator, escrow.open_tx,
        escrow.assign_tx, escrow.royalty_bps, escrow.market_key, escrow.opened_ms, escrow.publisher,
        escrow.terms.pack(), escrow.royalty_to, b"" if escrow.phase in OPEN_PHASES else bytes(escrow.seen))  # fmt: skip


def ended_escrow(row: store.Row | None) -> Escrow | None:
    """The escrow of a row of one that ended; None for no row."""
    if row is None:
        return None
    (no, task_id, customer, phase, reward, settled, refunded, deadline_ms, jobs, jobs_settled, epoch, orchestrator,
     open_tx, assign_tx, royalty_bps, market_key, opened_ms, publisher, terms, royalty_to, seen) = row  # fmt: skip
    assert phase not in OPEN_PHASES, task_id.hex()
    return Escrow(
        no, task_id, customer, market_key, reward, deadline_ms, open_tx, Phase(phase), settled, refunded, jobs,
        jobs_settled, epoch, orchestrator, assign_tx, opened_ms, publisher, statement.Terms.unpack(terms), royalty_to,
        royalty_bps, seen=bytearray(seen))  # fmt: skip


def supply_row(state: State) -> store.Row:
    """The totals as their table has them."""
    return (state.minted, state.escrowed, state.burned, state.maturing, state.staked, int(state.paused))


def transaction_row(examined: Examined, effects: Effects, body: bytes, first_leaf: int) -> store.Row:
    """An applied transaction as its table has it."""
    refusals = wire.pack_refusals(effects.refusals)
    return (effects.number, examined.transaction.id, examined.digest, body, refusals, first_leaf)


def assignment_row(state: State, examined: Examined, number: int) -> store.Row | None:
    """The row of a transaction that has just assigned an escrow; None for anything else, a repeat included."""
    body = examined.transaction.body
    if not isinstance(body, Assign):
        return None
    escrow = state.escrows[body.assignment.task_id]
    return (escrow.no, escrow.epoch, number) if escrow.assign_tx == number else None


def block_row(sealed: SealedBlock, signer: NoteSigner) -> store.Row:
    """A sealed block as its table has it, with its signed checkpoint (Ed25519 is deterministic)."""
    note = sign_note(sealed.checkpoint.body(), signer)
    return (
        sealed.height, sealed.last_tx, sealed.header, sealed.leaves, note, sealed.burned, sealed.minted)


class Replay:
    """Folds the log of `connection` into `chain`. `thorough` also looks up every single result."""

    def __init__(self, connection: Connection, config: Config, signer: NoteSigner, thorough: bool) -> None:
        self.chain = Chain(new_state(config))
        self.last_seq = -1
        self._connection, self._signer, self._thorough = connection, signer, thorough
        self._transactions = store.transaction_rows(connection)
        self._blocks = store.block_rows(connection)
        self._assignments: set[store.Row] = set()
        self._results, self._nodes = [0, 0, 0, 0], 0
        # Ended escrows as of this point of the replay: the ledger's own table has them as of the end.
        self._escrows = sqlite3.connect("", isolation_level=None)
        self._escrows.execute(store.ESCROWS)
        self._archive = Archive(self.chain, lambda task_id: ended_escrow(store.escrow(self._escrows, task_id)))

    def run(self) -> Iterator[str]:
        """Yields what differs between log, headers and tables; nothing for a sound ledger.

        A difference in the log ends the replay: nothing after it means anything.
        """
        damaged = store.damaged_pages(self._connection)
        if damaged:
            yield self._at(f"the database is damaged: {'; '.join(damaged)}")
            return
        for seq, time_ms, seal, tx_count in store.log_rows(self._connection):
            if seq != self.last_seq + 1 or time_ms < self.chain.state.time_ms:
                yield self._at(f"group {seq} does not follow group {self.last_seq}")
                return
            self.last_seq = seq
            self.chain.advance(time_ms)
            for _ in range(tx_count):
                problem = self._transaction()
                if problem:
                    yield self._at(problem)
                    return
            touched = self.chain.collect()
            problem = self._new_results(touched)
            if not problem and seal:
                sealed = self.chain.seal()
                touched.update(sealed.touched)
                problem = self._block(sealed) or self._new_results(sealed.touched)
            self._keep(touched)
            if problem:
                yield self._at(problem)
                return
        if next(self._transactions, None) is not None or next(self._blocks, None) is not None:
            yield self._at("transactions or blocks go on after the end of the log")
        yield from self._tables()

    def _at(self, problem: str) -> str:
        return f"block {self.chain.height}: {problem}"

    def _transaction(self) -> str:
        row = next(self._transactions, None)
        if row is None:
            return "the log names more transactions than are stored"
        number, _, _, body, _, _ = row
        try:
            examined = examine(self.chain.state.chain, wire.transaction(pb.Transaction.FromString(body)))
        except (DecodeError, MeshError) as error:
            return f"transaction {number} cannot be read: {error}"
        first_leaf = self.chain.results
        effects = self.chain.apply(examined)
        if not effects.number:
            return f"transaction {number} is refused: {effects.reason}, {effects.message}"
        if transaction_row(examined, effects, body, first_leaf) != row:
            return f"transaction {number} gives another outcome than the stored one"
        assignment = assignment_row(self.chain.state, examined, number)
        if assignment:
            self._assignments.add(assignment)
        return ""

    def _keep(self, touched: Touched) -> None:
        escrows = [self.chain.state.escrows[task_id] for task_id in touched.escrows]
        rows = [escrow_row(escrow) for escrow in escrows if escrow.phase not in OPEN_PHASES]
        self._escrows.executemany(store.PUT_ESCROW, rows)
        self._archive.written(touched.escrows)
        self._archive.durable()
        self._archive.put_away()

    def _new_results(self, touched: Touched) -> str:
        for escrow, jobs, places in touched.results:
            found = (len(jobs), escrow * len(jobs), sum(jobs), sum(places))
            self._results = list(map(add, self._results, found))
            # A numpy integer, as columns give them, is a blob to SQLite.
            for job, place in zip(map(int, jobs), places, strict=True) if self._thorough else ():
                if store.place(self._connection, escrow, job) != place:
                    return (f"transaction {place // PLACES}: the table `places` has job {job} of escrow {escrow} "
                            "elsewhere")  # fmt: skip
        return ""

    def _block(self, sealed: SealedBlock) -> str:
        row = next(self._blocks, None)
        if row is None:
            return f"block {sealed.height}: is missing"
        if row[0] != sealed.height:
            return f"block {sealed.height}: stored as block {row[0]}"
        if row[2] != sealed.header:
            difference = _header_difference(row[2], sealed.header)
            return f"block {sealed.height}: the replay gives another header: {difference}"
        if row != block_row(sealed, self._signer):
            return f"block {sealed.height}: its leaves, checkpoint or sums are not those of the replay"
        for level, position, value in sealed.nodes:
            self._nodes += 1
            try:
                if store.node(self._connection, level, position) == value:
                    continue
            except KeyError:
                pass
            return f"block {sealed.height}: node ({level}, {position}) of the log tree differs"
        return ""

    def _tables(self) -> Iterator[str]:
        connection, state = self._connection, self.chain.state
        accounts, after = 0, b""
        while page := store.accounts_after(connection, after, 1000):
            for row in page:
                found = state.accounts.get(row[0])
                if found is None or account_row(row[0], found) != row:
                    yield f"table accounts: {row[0].hex()} differs"
            accounts, after = accounts + len(page), page[-1][0]
        for row in store.escrow_rows(connection):
            escrow = state.escrows.get(row[1])
            if escrow is None or escrow_row(escrow) != row:
                yield f"table escrows: task {row[1].hex()} differs"
            elif escrow.phase not in OPEN_PHASES:
                put_away(state, row[1])
        if set(store.assignment_rows(connection)) != self._assignments:
            yield "table assignments: differs"
        if store.supply(connection) != supply_row(state):
            yield "table supply: differs"
        records = [(*key, found.pack()) for key, found in sorted(state.records.items())]
        if list(store.record_rows(connection)) != records:
            yield "table records: differs"
        sums = store.result_sums(connection)
        if list(sums) != self._results:
            yield f"table places: {sums[0]} results, the replay gives {self._results[0]}, or others"
        sizes = {"accounts": len(state.accounts), "escrows": state.opened, "nodes": self._nodes}
        for table, size in sizes.items():
            if store.count(connection, table) != size:
                yield f"table {table}: {store.count(connection, table)} rows, the replay gives {size}"
        held = state.escrowed + state.maturing + state.staked + state.burned
        if accounts and sum(account.balance for account in state.accounts.values()) + held != state.minted:
            yield "supply: accounts, escrow, maturing, stake and burned do not sum to what was minted"


def _header_difference(stored: bytes, replayed: bytes) -> str:
    try:
        old, new = statement.Header.unpack(stored), statement.Header.unpack(replayed)
    except MeshError as error:
        return str(error)
    names = ("chain_hash", "height", "previous", "time_ms", "tx_root", "compute_root", "state_root", "tx_count",
             "result_count")  # fmt: skip
    return ", ".join(name for name in names if getattr(old, name) != getattr(new, name)) + " differ"


def replay(connection: Connection, config: Config, signer: NoteSigner) -> Replay:
    """Folds the stored log. Raises Corrupt, naming the block, where anything differs."""
    folded = Replay(connection, config, signer, thorough=False)
    for problem in folded.run():
        raise Corrupt(f"the stored ledger is corrupt and is not served: {problem}")
    return folded
