"""The contract's messages of stakes, disputes, pools, models and beacons, from the table `records`."""

from __future__ import annotations

from collections.abc import Callable

from computemesh.service.store import Connection
from computemesh.trust import acts, identity, statement
from computemesh.trust.errors import NotFound
from computemesh.trust.reputation import reputation
from computemesh.v1 import ledger_pb2 as pb
from ledger import store, views
from ledger.records import Answers, Beacon, Dispute, Kind, Model, Pool, Stake, Status

_ADDRESS_SIZE, _ID_SIZE = 20, 16


class Economy:
    """Reads records through one connection, and so only what is durable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _height(self) -> int:
        """Of the open block."""
        newest = store.newest_block(self._connection)
        return 0 if newest is None else int(newest[0]) + 1

    def _body(self, kind: Kind, key: bytes, problem: str, reason: str) -> bytes:
        body = store.record(self._connection, kind, key)
        if body is None:
            raise NotFound(problem, reason=reason)
        return body

    def stake(self, address: bytes) -> pb.Stake:
        """An account's stake and standing; zeros where it never staked."""
        body = store.record(self._connection, Kind.STAKE, address)
        return self._stake(address, Stake() if body is None else Stake.unpack(body))

    def _stake(self, address: bytes, found: Stake) -> pb.Stake:
        account = store.account(self._connection, address)
        results = account[7] if account else 0
        standing = reputation(results, found.lost, found.cooldown_height, self._height())
        return pb.Stake(
            address=identity.encode_address(address), units=found.units, unbonding_units=found.leaving,
            unbonded_height=max((height for height, _ in found.unbonding), default=0),
            cooldown_height=found.cooldown_height, disputes_won=found.won, disputes_lost=found.lost,
            slashed_units=found.slashed, results=results, reputation=standing.score,
            reputation_reasons=standing.reasons)

    def stakes(self, request: pb.ListStakesRequest) -> pb.ListStakesResponse:
        """Raises InvalidArgument on a foreign page token."""
        size = request.page_size or views.DEFAULT_PAGE
        after = views.read_token(request.page_token, "stakes", _ADDRESS_SIZE) or b""
        rows = store.records_after(self._connection, Kind.STAKE, after, size + 1)
        token = views.page_token("stakes", rows[size - 1][0]) if len(rows) > size else ""
        return pb.ListStakesResponse(
            stakes=[self._stake(key, Stake.unpack(body)) for key, body in rows[:size]], next_page_token=token,
            total=store.records_count(self._connection, Kind.STAKE))

    def dispute(self, contest: str) -> pb.Dispute:
        """Raises NotFound."""
        key = bytes.fromhex(contest)
        return self._dispute(key, Dispute.unpack(self._body(
            Kind.DISPUTE, key, f"id: there is no contest {contest}", "DISPUTE_NOT_FOUND")))

    def disputes(self, request: pb.ListDisputesRequest) -> pb.ListDisputesResponse:
        """Raises InvalidArgument on a foreign page token."""
        size = request.page_size or views.DEFAULT_PAGE
        after = views.read_token(request.page_token, "disputes", _ID_SIZE) or b""
        found: list[pb.Dispute] = []
        while len(found) <= size:
            rows = store.records_after(self._connection, Kind.DISPUTE, after, size + 1)
            for key, body in rows:
                dispute = Dispute.unpack(body)
                if dispute.status is Status.OPEN or not request.open_only:
                    found.append(self._dispute(key, dispute))
            if len(rows) <= size:
                break
            after = rows[-1][0]
        token = views.page_token("disputes", bytes.fromhex(found[size - 1].id)) if len(found) > size else ""
        return pb.ListDisputesResponse(disputes=found[:size], next_page_token=token)

    def _dispute(self, key: bytes, found: Dispute) -> pb.Dispute:
        result = statement.Result.unpack(found.result)
        status = pb.DisputeStatus.ValueType(found.status)
        if found.status is Status.OPEN and found.judged and self._height() > found.vote_height:
            status = pb.DISPUTE_STATUS_REVEALING
        return pb.Dispute(
            id=key.hex(), task_id=result.task_id.hex(), job=result.job,
            contestant=identity.encode_address(found.contestant), accused=identity.encode_address(found.accused),
            orchestrator_key=found.orchestrator.hex(), accusation=not found.parts.total, judged=found.judged,
            status=status, vote_height=found.vote_height,
            reveal_height=found.reveal_height, bond_units=found.bond, reward_units=found.parts.total,
            slashed_units=found.slashed, result=found.result, detail=_detail(found),
            votes=[pb.DisputeVote(address=identity.encode_address(who), weight_units=vote.weight,
                                  revealed=bool(vote.verdict), valid=vote.verdict == acts.VERDICT_VALID)
                   for who, vote in sorted(found.votes.items())])  # fmt: skip

    def responses(self, task_id: bytes, result: Callable[[int], pb.Result]) -> list[pb.JobResponses]:
        """What the customer of a MANUAL task may pick from; `result` reads the one at a place."""
        found: list[pb.JobResponses] = []
        after = task_id
        while rows := store.records_after(self._connection, Kind.ANSWERS, after, views.DEFAULT_PAGE):
            for key, body in rows:
                if not key.startswith(task_id):
                    return found
                answers = Answers.unpack(body)
                found.append(pb.JobResponses(
                    job=int.from_bytes(key[32:], "big"), due_ms=answers.due_ms,
                    worker_keys=[row.worker.hex() for row in answers.rows],
                    result_hashes=[result(row.place).result_hash for row in answers.rows]))
            after = rows[-1][0]
        return found

    def pool(self, name: str) -> pb.GetPoolResponse:
        """Raises NotFound."""
        key = acts.name_hash(name)
        found = Pool.unpack(self._body(Kind.POOL, key, f"name: no pool {name!r} was opened", "POOL_NOT_FOUND"))
        address = acts.pool_address(key)
        account = store.account(self._connection, address)
        return pb.GetPoolResponse(
            name=name, owner=identity.encode_address(found.owner), active=bool(found.terms.active),
            address=identity.encode_address(address), balance_units=account[1] if account else 0,
            category_hash=found.terms.category.hex())

    def model(self, model_id: str) -> pb.GetModelTermsResponse:
        """Raises NotFound."""
        found = Model.unpack(self._body(
            Kind.MODEL, acts.name_hash(model_id), f"model_id: no terms of {model_id!r} are registered",
            "MODEL_NOT_FOUND"))
        terms = found.terms
        return pb.GetModelTermsResponse(
            model_id=model_id, owner=identity.encode_address(found.owner), active=bool(terms.active),
            artifact=terms.artifact.hex(), version=terms.version, royalty_bps=terms.royalty_bps,
            price_per=terms.price_per, price_units=terms.price_units, memory_bytes=terms.memory_bytes)

    def beacon(self, orchestrator_key: str, epoch: int) -> pb.GetBeaconResponse:
        """Raises NotFound."""
        _, key = Beacon.key(bytes.fromhex(orchestrator_key), epoch)
        found = Beacon.unpack(self._body(
            Kind.BEACON, key, f"epoch: {orchestrator_key} sealed none for epoch {epoch}", "BEACON_NOT_FOUND"))
        return pb.GetBeaconResponse(sealed=found.sealed, secret=found.secret if any(found.secret) else b"")


def _detail(found: Dispute) -> str:
    """Why it stands so, for people."""
    cast = [vote for vote in found.votes.values() if vote.verdict]
    if not found.judged:
        return "the worker may appeal" if found.status is Status.OPEN else "the worker did not appeal in time"
    if found.status is Status.OPEN:
        return f"{len(found.votes)} sealed votes, {len(cast)} revealed"
    against = sum(vote.weight for vote in cast if vote.verdict == acts.VERDICT_INVALID)
    total = sum(vote.weight for vote in cast)
    said = f"{len(cast)} of {len(found.votes)} voters revealed; {against} of {total} units say the result is wrong"
    if found.status is Status.REJECTED and not found.slashed:
        return f"{said}; too few voters to judge: the bond went back"
    return said
