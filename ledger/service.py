"""The gRPC face of the ledger: messages in, writer or tables asked, messages out."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc

from computemesh.service.crashpoints import crash_point
from computemesh.service.store import Connection
from computemesh.trust import identity, merkle, paths, statement
from computemesh.trust.amount import Shares
from computemesh.trust.checkpoint import NoteSigner, block_checkpoint, sign_note
from computemesh.trust.errors import InvalidArgument, NotFound
from computemesh.v1 import ledger_pb2 as pb
from computemesh.v1 import ledger_pb2_grpc
from ledger import economy, store, views, wire
from ledger.config import Config
from ledger.evidence import examine
from ledger.proven import Library
from ledger.state import PLACES
from ledger.writer import Verdict, Writer

Context = grpc.aio.ServicerContext[Any, Any]
_WATCH_PAGE = 100
_RULES = ("dispute_window_blocks", "vote_blocks", "unbonding_blocks", "dispute_bond_units", "validator_stake_units",
          "slash_percent", "retract_wait_ms")  # fmt: skip
# Last job of a page, and the size of the log that all pages' proofs lead to (0: the listing has no proofs).
_RESULTS_KEY = struct.Struct(">IQ")


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """Every read goes to the tables, and so shows only what is durable."""

    def __init__(self, config: Config, writer: Writer, reader: Connection, signer: NoteSigner) -> None:
        self._config, self._writer, self._reader, self._signer = config, writer, reader, signer
        self._economy = economy.Economy(reader)
        self._library = Library(reader, Shares(
            config.burn_percent, config.worker_percent, config.validator_percent, config.treasury_percent))  # fmt: skip

    async def SubmitTransactions(
        self, request: pb.SubmitTransactionsRequest, context: Context
    ) -> pb.SubmitTransactionsResponse:
        """Shape first, for the whole request; then signatures; then one place in line."""
        crash_point("ledger.submission.received")
        size = request.ByteSize()
        self._writer.admit(size)
        parsed = [wire.transaction(one, f"transactions[{at}]") for at, one in enumerate(request.transactions)]
        examined, bodies = [], []
        for transaction, message in zip(parsed, request.transactions, strict=True):
            examined.append(examine(self._config.chain_id, transaction))
            bodies.append(message.SerializeToString())
            await asyncio.sleep(0)  # a full message takes tens of ms: others may speak between two transactions
        sealed = request.wait == pb.WAIT_SEALED
        crash_point("ledger.submission.queued")
        verdicts = await self._writer.submit(examined, bodies, size, sealed)
        response = pb.SubmitTransactionsResponse(
            outcomes=[views.outcome(verdict, self._height_of(verdict.number)) for verdict in verdicts])
        if sealed:
            response.checkpoint.CopyFrom(self._checkpoint())
        crash_point("ledger.submission.answered")
        return response

    def _height_of(self, number: int) -> int | None:
        return store.height_of(self._reader, number) if 0 < number <= self._writer.sealed_tx else None

    def _checkpoint(self, size: int = 0) -> pb.Checkpoint:
        """The signed checkpoint of the log's first `size` blocks; 0: the newest. None that is not anchored."""
        anchored = self._writer.anchored
        note = store.note(self._reader, min(size or anchored, anchored) - 1)
        assert note is not None  # block 0 is made before anything is served
        return views.checkpoint(note)

    def _block_checkpoint(self, header: bytes) -> pb.Checkpoint:
        """That of a block's results; Ed25519 is deterministic, so nothing of it is stored."""
        point = block_checkpoint(self._config.chain_id, statement.Header.unpack(header))
        return views.checkpoint(sign_note(point.body(), self._signer))

    async def GetLedger(self, request: pb.GetLedgerRequest, context: Context) -> pb.GetLedgerResponse:
        """Which ledger this is."""
        config, newest = self._config, store.newest_block(self._reader)
        assert newest is not None
        return pb.GetLedgerResponse(
            chain_id=config.chain_id, vkey=self._signer.vkey, authority_key=config.authority_key.lower(),
            treasury_address=config.treasury_address, burn_percent=config.burn_percent,
            worker_percent=config.worker_percent, validator_percent=config.validator_percent,
            treasury_percent=config.treasury_percent, block_height=newest[0],
            block_hash=merkle.leaf_hash(newest[2]).hex(), paused=bool(store.supply(self._reader)[5]),
            **{name: getattr(config, name) for name in _RULES})

    async def GetTransaction(self, request: pb.GetTransactionRequest, context: Context) -> pb.GetTransactionResponse:
        """An applied transaction; refused ones are not kept."""
        row = store.transaction_by_id(self._reader, bytes.fromhex(request.id))
        if row is None:
            raise NotFound(f"id: no transaction {request.id} was applied", reason="TRANSACTION_NOT_FOUND")
        number, _, body, refusals = row
        verdict = Verdict(number, refusals=wire.unpack_refusals(refusals))
        return pb.GetTransactionResponse(
            transaction=pb.Transaction.FromString(body),
            outcome=views.outcome(verdict, store.height_of(self._reader, number)))

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> pb.GetAccountResponse:
        """Balance and sums of an address."""
        address = identity.decode_address(request.address)
        return pb.GetAccountResponse(account=self._account(address, store.account(self._reader, address)))

    def _account(self, address: bytes, row: store.Row | None) -> pb.Account:
        stake = self._economy.stake(address)
        return views.account(address, row, stake.units + stake.unbonding_units)

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Context) -> pb.ListAccountsResponse:
        """In address order."""
        size = request.page_size or views.DEFAULT_PAGE
        after = views.read_token(request.page_token, "accounts", 20) or b""
        rows = store.accounts_after(self._reader, after, size + 1)
        token = views.page_token("accounts", rows[size - 1][0]) if len(rows) > size else ""
        return pb.ListAccountsResponse(
            accounts=[self._account(row[0], row) for row in rows[:size]], next_page_token=token,
            total=store.count(self._reader, "accounts"))

    async def GetSupply(self, request: pb.GetSupplyRequest, context: Context) -> pb.GetSupplyResponse:
        """Where every minted unit is."""
        minted, accounts, escrowed, burned, maturing, staked = store.balances(self._reader)
        return pb.GetSupplyResponse(
            minted_units=minted, accounts_units=accounts, escrowed_units=escrowed, burned_units=burned,
            maturing_units=maturing, staked_units=staked)

    def _escrow(self, task_id: str) -> store.Row:
        row = store.escrow(self._reader, bytes.fromhex(task_id))
        if row is None:
            raise NotFound(f"task_id: no escrow was opened for {task_id}", reason="ESCROW_NOT_FOUND")
        return row

    async def GetEscrow(self, request: pb.GetEscrowRequest, context: Context) -> pb.GetEscrowResponse:
        """A task's money, with the signed order and the newest assignment."""
        row = self._escrow(request.task_id)
        opened, assigned = row[12], row[13]
        escrow = views.escrow(
            row, self._library.message(opened), self._library.message(assigned) if assigned else None,
            self._config.chain_id)
        escrow.responses.extend(self._economy.responses(row[1], self._library.result))
        return pb.GetEscrowResponse(escrow=escrow)

    async def GetStake(self, request: pb.GetStakeRequest, context: Context) -> pb.GetStakeResponse:
        """Stake and standing of an address."""
        return pb.GetStakeResponse(stake=self._economy.stake(identity.decode_address(request.address)))

    async def ListStakes(self, request: pb.ListStakesRequest, context: Context) -> pb.ListStakesResponse:
        """In address order."""
        return self._economy.stakes(request)

    async def GetDispute(self, request: pb.GetDisputeRequest, context: Context) -> pb.GetDisputeResponse:
        """One contest and its votes."""
        return pb.GetDisputeResponse(dispute=self._economy.dispute(request.id))

    async def ListDisputes(self, request: pb.ListDisputesRequest, context: Context) -> pb.ListDisputesResponse:
        """In the order of their ids."""
        return self._economy.disputes(request)

    async def GetPool(self, request: pb.GetPoolRequest, context: Context) -> pb.GetPoolResponse:
        """A pool and its balance."""
        return self._economy.pool(request.name)

    async def GetModelTerms(self, request: pb.GetModelTermsRequest, context: Context) -> pb.GetModelTermsResponse:
        """A model's terms."""
        return self._economy.model(request.model_id)

    async def GetBeacon(self, request: pb.GetBeaconRequest, context: Context) -> pb.GetBeaconResponse:
        """An epoch's sealed secret."""
        return self._economy.beacon(request.orchestrator_key, request.epoch)

    def _block(self, height: int, below: int = 2**63) -> store.Row:
        row = store.block(self._reader, height) if height < below else None
        if row is None:
            raise NotFound(
                f"height: no block {height} yet, the newest is {self._newest_height()}", reason="BLOCK_NOT_FOUND")
        return row

    def _newest_height(self) -> int:
        newest = store.newest_block(self._reader)
        return -1 if newest is None else int(newest[0])

    async def GetBlock(self, request: pb.GetBlockRequest, context: Context) -> pb.GetBlockResponse:
        """A block's header, and if asked what is in it."""
        row = self._block(request.height)
        response = pb.GetBlockResponse(block=views.block(row))
        if request.full:
            first, last = self._library.numbers(row[0])
            ids = store.transaction_ids(self._reader, first, last)
            response.transaction_ids.extend(tx_id.hex() for _, tx_id in ids)
            for at, result in enumerate(self._library.block_results(first, last)):
                response.results.append(result)
                if at % 256 == 255:
                    await asyncio.sleep(0)
        return response

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Context) -> pb.ListBlocksResponse:
        """Newest first."""
        size = request.page_size or views.DEFAULT_PAGE
        key = views.read_token(request.page_token, "blocks", 8)
        below = 2**63 - 1 if key is None else min(int.from_bytes(key, "big"), 2**63 - 1)
        rows = store.blocks_down(self._reader, below, size + 1)
        token = views.page_token("blocks", rows[size - 1][0].to_bytes(8, "big")) if len(rows) > size else ""
        return pb.ListBlocksResponse(
            blocks=[views.block(row) for row in rows[:size]], next_page_token=token, total=self._newest_height() + 1)

    async def GetComputeRoot(self, request: pb.GetComputeRootRequest, context: Context) -> pb.GetComputeRootResponse:
        """The root that counts, and the legacy one."""
        row = self._block(request.height)
        header = statement.Header.unpack(row[2])
        return pb.GetComputeRootResponse(
            height=row[0], compute_root=header.compute_root.hex(), result_count=header.result_count,
            legacy_poc_root=self._library.legacy_root(*self._library.numbers(row[0])))

    def _place(self, task_id: str, job: int) -> int:
        row = store.escrow(self._reader, bytes.fromhex(task_id))
        place = None if row is None else store.place(self._reader, row[0], job)
        if place is None:
            raise NotFound(f"job: no result of job {job} of task {task_id} is settled", reason="RESULT_NOT_FOUND")
        return place

    async def GetResult(self, request: pb.GetResultRequest, context: Context) -> pb.GetResultResponse:
        """One settled result."""
        return pb.GetResultResponse(result=self._library.result(self._place(request.task_id, request.job)))

    async def ListResults(self, request: pb.ListResultsRequest, context: Context) -> pb.ListResultsResponse:
        """A task's settled results in job order; with proofs it waits for their blocks."""
        escrow = self._escrow(request.task_id)
        size, kind = request.page_size or views.DEFAULT_PAGE, f"results/{request.task_id}"
        key = views.read_token(request.page_token, kind, _RESULTS_KEY.size)
        after, log_size = (-1, 0) if key is None else _RESULTS_KEY.unpack(key)
        rows = store.places_after(self._reader, escrow[0], after, size + 1)
        response = pb.ListResultsResponse(total=escrow[9])
        places = [place for _, place in rows[:size]]
        if request.with_proofs:
            await self._until_sealed(max(places, default=0) // PLACES)
            response.checkpoint.CopyFrom(self._checkpoint(log_size))
        if len(rows) > size:
            next_key = _RESULTS_KEY.pack(rows[size - 1][0], response.checkpoint.size)
            response.next_page_token = views.page_token(kind, next_key)
        for at, place in enumerate(places):
            response.results.append(self._library.result(place, escrow))
            if request.with_proofs:
                response.proven.append(self._library.proven(place, response.checkpoint.size))
            if at % 64 == 63:
                await asyncio.sleep(0)
        return response

    async def _until_sealed(self, number: int) -> None:
        while self._writer.sealed_tx < number:
            await self._writer.news.wait()

    async def GetInclusionProof(
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        """Waits until the result's block is sealed."""
        place = self._place(request.task_id, request.job)
        await self._until_sealed(place // PLACES)
        checkpoint = self._checkpoint()
        proven = self._library.proven(place, checkpoint.size)
        return pb.GetInclusionProofResponse(
            result=proven, checkpoint=checkpoint, block_checkpoint=self._block_checkpoint(proven.header))

    async def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        """Between any two sizes of the log."""
        size = self._newest_height() + 1
        old, new = request.old_size, request.new_size or size
        if not 1 <= old <= new <= size:
            problem = f"{old} and new_size {new}: sizes must satisfy 1 <= old_size <= new_size <= {size}"
            raise InvalidArgument(f"old_size: {problem}", violations=[("old_size", problem)])
        node = self._library.node
        return pb.GetConsistencyProofResponse(
            old_size=old, new_size=new, old_root=paths.root(node, old), new_root=paths.root(node, new),
            path=paths.consistency(node, old, new))

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> pb.GetCheckpointResponse:
        """The log's newest, or a block's."""
        if not request.HasField("block_height"):
            return pb.GetCheckpointResponse(checkpoint=self._checkpoint())
        row = self._block(request.block_height, self._writer.anchored)
        return pb.GetCheckpointResponse(checkpoint=self._block_checkpoint(row[2]))

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Context) -> pb.ListEntriesResponse:
        """Headers, or a block's result statements."""
        height = request.block_height if request.HasField("block_height") else None
        size = self._writer.anchored
        if height is not None:
            size = statement.Header.unpack(self._block(height)[2]).result_count
        if request.start > size:
            problem = f"{request.start} is beyond the end of the tree of {size} entries"
            raise InvalidArgument(f"start: {problem}", violations=[("start", problem)])
        count = min(request.count or views.ENTRIES, size - request.start)
        return pb.ListEntriesResponse(entries=self._library.entries(height, request.start, count))

    async def WatchBlocks(
        self, request: pb.WatchBlocksRequest, context: Context
    ) -> AsyncIterator[pb.WatchBlocksResponse]:
        """Stored blocks from the table, then each new one; resume with the height after the last one seen."""
        following = self._newest_height() + 1
        if request.from_height > following:
            problem = f"{request.from_height}, the next block will be {following}"
            raise InvalidArgument(f"from_height: {problem}", violations=[("from_height", problem)])
        height = request.from_height
        while not self._writer.closing:
            news = self._writer.news  # taken before reading, so that no block falls in between
            rows = store.blocks_up(self._reader, height, _WATCH_PAGE)
            for row in rows:
                yield pb.WatchBlocksResponse(block=views.block(row))
                height = row[0] + 1
            if len(rows) < _WATCH_PAGE:
                await news.wait()

