"""Blocks: what was accepted since the last seal, put under three roots and linked to its predecessor. PURE.

Writer and replay drive the same `Chain`, so a replay is the ordinary path with the times and seals of the log.
Layouts are docs/PROTOCOL.md section 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256

from computemesh.trust import merkle, statement
from computemesh.trust.amount import MAX_UNITS
from computemesh.trust.checkpoint import Checkpoint, log_origin
from ledger import core
from ledger.evidence import Examined
from ledger.records import leaf
from ledger.state import WINDOW, Account, Effects, Escrow, State, Touched, Window

_ACCOUNT = struct.Struct(">B20sQQQQQQ")
_ESCROW = struct.Struct(">B32sBQQIII33s32s")
_WORKER = struct.Struct(f">B33sQ{WINDOW // 8}s")
_SUPPLY = struct.Struct(">BQQQQQB")


def account_record(address: bytes, account: Account) -> bytes:
    """u8 1 | 20 address | u64 balance | held | earned | spent | pending | results; those two sums stop at 2^63 - 1."""
    earned, spent = min(account.earned, MAX_UNITS), min(account.spent, MAX_UNITS)
    return _ACCOUNT.pack(1, address, account.balance, account.held, earned, spent, account.pending, account.results)


def escrow_record(escrow: Escrow) -> bytes:
    """u8 2 | 32 task_id | u8 phase | u64 settled | u64 refunded | u32 jobs | u32 jobs settled | u32 epoch
    | 33 orchestrator (zeros until assigned) | 32 SHA-256 of the settled jobs' bits, least significant first."""
    return _ESCROW.pack(
        2, escrow.task_id, escrow.phase, escrow.settled, escrow.refunded, escrow.jobs, escrow.jobs_settled,
        escrow.epoch, escrow.orchestrator, sha256(escrow.seen).digest())  # fmt: skip


def worker_record(key: bytes, window: Window) -> bytes:
    """u8 3 | 33 key | u64 highest nonce | 512 bytes, an integer whose bit i says that highest - 1 - i was seen."""
    return _WORKER.pack(3, key, window.highest, window.below.to_bytes(WINDOW // 8, "big"))


def supply_record(state: State) -> bytes:
    """u8 4 | u64 minted | burned | escrowed | maturing | staked | u8 paused: in every block."""
    return _SUPPLY.pack(4, state.minted, state.burned, state.escrowed, state.maturing, state.staked, state.paused)


def touched_root(state: State, touched: Touched) -> bytes:
    """The root over the touched records in the order of kind and key; the supply's, kind 4, is always among them."""
    records = [account_record(key, state.accounts[key]) for key in sorted(touched.accounts)]
    records += [escrow_record(state.escrows[key]) for key in sorted(touched.escrows)]
    records += [worker_record(key, state.workers[key]) for key in sorted(touched.workers)]
    records.append(supply_record(state))
    records += [leaf(key, state.records.get(key)) for key in sorted(touched.records)]
    return merkle.root([merkle.leaf_hash(record) for record in records])


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A block and what it added to the log tree. `last_tx` is the number of the last transaction up to here.

    `leaves` are the result leaf hashes in order, joined, `nodes` the log tree's new perfect nodes (level, index, hash),
    `touched` is what changed because the block closed.
    """

    height: int
    header: bytes
    leaves: bytes
    nodes: tuple[tuple[int, int, bytes], ...]
    checkpoint: Checkpoint
    last_tx: int
    burned: int
    minted: int
    touched: Touched


def appended_nodes(tree: merkle.CompactRange, leaf: bytes) -> list[tuple[int, int, bytes]]:
    """The perfect nodes that appending `leaf` completes, lowest first; does not change `tree`."""
    size, index, level, node = tree.size, tree.size, 0, leaf
    nodes = [(0, index, leaf)]
    hashes = list(tree.hashes)
    while size & 1:
        node, size, index, level = merkle.node_hash(hashes.pop(), node), size >> 1, index >> 1, level + 1
        nodes.append((level, index, node))
    return nodes


class Chain:
    """The fold with its open block: advance the time, apply transactions, seal."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.tree = merkle.CompactRange()
        self.previous = statement.ZERO_HASH
        self.state_root = statement.ZERO_HASH
        self._chain_hash = statement.chain_hash(state.chain)
        self._origin = log_origin(state.chain)
        self._begin()

    def _begin(self) -> None:
        self._transactions: list[bytes] = []
        self._leaves = bytearray()
        self._touched = Touched()
        self._burned, self._minted = self.state.burned, self.state.minted

    @property
    def height(self) -> int:
        """Height of the block that is open; as many are sealed."""
        return self.tree.size

    @property
    def results(self) -> int:
        """Results in the open block."""
        return len(self._leaves) // 32

    @property
    def dirty(self) -> bool:
        """Whether anything happened since the last seal, or waits for blocks to come."""
        return bool(self._transactions or self._touched.accounts or self.state.due)

    def advance(self, time_ms: int) -> int:
        """Moves block time forward; returns how many escrows expired. Their touch counts as something that happened."""
        return core.advance(self.state, time_ms)

    def apply(self, examined: Examined) -> Effects:
        """Applies one transaction to the open block."""
        effects = core.apply(self.state, examined)
        if effects.number:
            self._transactions.append(merkle.leaf_hash(examined.digest + examined.transaction.signature))
            self._leaves += effects.leaves
        return effects

    def collect(self) -> Touched:
        """What changed since the last call: what a projection has to write. To be called before `dirty`."""
        touched = self.state.take_touched()
        self._touched.update(touched)
        return touched

    def seal(self) -> SealedBlock:
        """Ends the open block and begins the next."""
        state, leaves, results = self.state, bytes(self._leaves), self.results
        compute_root = merkle.root(leaves)
        core.close_block(state, compute_root, results)
        touched = self.collect()
        self.state_root = statement.state_root(self.state_root, touched_root(state, self._touched))
        header = statement.Header(
            self._chain_hash, self.height, self.previous, state.time_ms, merkle.root(self._transactions),
            compute_root, self.state_root, len(self._transactions), results).pack()  # fmt: skip
        self.previous = merkle.leaf_hash(header)
        height, nodes = self.height, appended_nodes(self.tree, self.previous)
        self.tree.append(self.previous)
        sealed = SealedBlock(
            height, header, leaves, tuple(nodes), Checkpoint(self._origin, self.tree.size, self.tree.root),
            state.next_tx - 1, state.burned - self._burned, state.minted - self._minted, touched)  # fmt: skip
        self._begin()
        return sealed
