"""A validator: judges contested results on its own machine and votes on them (docs/PROTOCOL.md section 9).

Nothing the orchestrator says is believed: the job follows from the order the customer signed, and is done again as far
as its task type allows. A vote is sealed first and opened when all have voted; what opens it is on disk before that.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from computemesh import workloads
from computemesh.client import replay
from computemesh.client.sync import Client
from computemesh.service import transactions
from computemesh.trust import acts, audit, identity, statement
from computemesh.trust.acts import VERDICT_INVALID, VERDICT_VALID
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, orchestrator_pb2
from computemesh.workloads import outputs, references

MOST_UNITS = 4096
"""Units of an output that are checked at most; of a larger one as many, chosen by chance."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and what it rests on."""

    verdict: int
    detail: str


class Wrong(Exception):
    """The worker committed to something that is not the job's result, and here is what shows it."""


class NoEvidence(MeshError):
    """What was shown decides nothing: it is not what the worker committed to, or not what the customer ordered."""

    status, reason = "FAILED_PRECONDITION", "NO_EVIDENCE"


def judge(client: Client, dispute: ledger_pb2.Dispute) -> Judgement:
    """Whether the contested result is right. Raises MeshError where that cannot be found out: no vote then, since a
    worker must not lose its stake for what an orchestrator or a market holds back."""
    with tempfile.TemporaryDirectory(prefix="mesh-validator-") as folder:
        try:
            return Judgement(VERDICT_VALID, _judge(client, dispute, Path(folder)))
        except Wrong as error:
            return Judgement(VERDICT_INVALID, str(error))


def _judge(client: Client, dispute: ledger_pb2.Dispute, folder: Path) -> str:
    result = statement.Result.unpack(dispute.result)
    task = client.get(dispute.task_id)
    escrow = client.ledger("GetEscrow", ledger_pb2.GetEscrowRequest(task_id=dispute.task_id)).escrow
    order = statement.Order.unpack(escrow.order)
    workload = workloads.get(task.challenge_type)
    if order.payload_digest != payload_digest(task.payload) \
            or order.challenge_type_hash != statement.challenge_type_hash(task.challenge_type):
        raise NoEvidence(f"the market shows another payload for task {dispute.task_id[:12]}.. than was ordered")
    params = workload.parse(references.resolve(workload, task.payload, task.references))
    job = workload.split(params, result.task_id)[result.job]
    address = task.orchestrator_address or client.profile.orchestrator
    transcript = client.transcript(dispute.task_id, dispute.job, address)
    files = replay.Fetched(client, folder).of(transcript)
    bound = workloads.bind(job, transcript.binding) if transcript.binding else job
    return examine(workload, replace(bound, files=files, env_class=transcript.env_class), result, transcript, files)


def examine(
    workload: workloads.Workload[Any], spec: workloads.JobSpec, result: statement.Result,
    transcript: orchestrator_pb2.AuditTranscript, files: replay.Fetched,
) -> str:  # fmt: skip
    """What was done again, where it holds; `spec` is the job as the order implies it, bound to its worker. Raises Wrong
    where it does not hold, MeshError where the evidence decides nothing."""
    layout = workload.layout(spec)
    shown = statement.Commitment.unpack(transcript.commitment)
    if (shown.worker_key, shown.result_hash) != (result.worker_key, result.result_hash) \
            and (transcript.binding or not workload.exact):
        raise NoEvidence("the orchestrator shows the audit of another worker's answer")
    if workload.exact:
        digests = workload.recompute([spec])[0]
        if audit.JobTree(layout, digests).result_hash != result.result_hash:
            raise Wrong(f"all {layout.count} units, done again, lead to another result")
        return f"all {layout.count} units done again"
    if workload.output_units is None or not transcript.output:
        return _examine_openings(workload, spec, result, transcript)
    output = files.artifact(transcript.output).read_bytes()
    listed = files.artifact(transcript.unit_digests).read_bytes() if transcript.unit_digests else b""
    outputs.bound(workload, spec, result.result_hash, outputs.Shown(output, listed))
    chosen = sorted(secrets.SystemRandom().sample(range(layout.count), min(layout.count, MOST_UNITS)))
    units = workload.output_units(spec, output, chosen)
    _check(workload, spec, [workloads.Claim(at, unit) for at, unit in zip(chosen, units, strict=True)])
    return f"{len(chosen)} of {layout.count} units of the output checked"


def _examine_openings(
    workload: workloads.Workload[Any], spec: workloads.JobSpec, result: statement.Result,
    transcript: orchestrator_pb2.AuditTranscript,
) -> str:  # fmt: skip
    """Only what the worker opened is known; it counts where it leads to what the worker committed to."""
    layout, claims = workload.layout(spec), []
    for opening in audit.parse_openings(transcript.openings):
        if audit.fold_opening(layout, opening, blake3(opening.unit).digest()) != result.result_hash:
            raise NoEvidence(f"the opened unit {opening.index} is not one the worker committed to")
        previous = audit.verify_previous(layout, opening, result.result_hash)
        claims.append(workloads.Claim(opening.index, opening.unit, previous))
    if not claims:
        raise NoEvidence("the transcript opens no unit")
    _check(workload, spec, claims)
    return f"{len(claims)} of {layout.count} units checked"


def _check(workload: workloads.Workload[Any], spec: workloads.JobSpec, claims: list[workloads.Claim]) -> None:
    for claim, digest in zip(claims, workload.expected_digests(spec, claims), strict=True):
        if digest is None:
            raise Wrong(f"unit {claim.index} is wrong")


class Ballots:
    """Verdicts and salts of votes under way, in a file: written before a vote is sent, or it could not be opened."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "ballots.json"
        self._rows: dict[str, tuple[int, str]] = {}
        if self._path.exists():
            self._rows = {name: (row[0], row[1]) for name, row in json.loads(self._path.read_text("utf-8")).items()}

    def get(self, contest: str) -> tuple[int, bytes] | None:
        """Verdict and salt of a contest that was judged."""
        row = self._rows.get(contest)
        return None if row is None else (row[0], bytes.fromhex(row[1]))

    def put(self, contest: str, verdict: int) -> bytes:
        """Notes a verdict; its new salt."""
        salt = secrets.token_bytes(32)
        self._rows[contest] = (verdict, salt.hex())
        whole = self._path.with_suffix(".new")
        with whole.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self._rows))
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self._path)
        return salt


class Validator:
    """Votes with the stake of `key` on every open dispute. `say` is told what it does."""

    def __init__(self, client: Client, key: PrivateKey, folder: Path, say: Callable[[str], None]) -> None:
        self._client, self._key, self._say = client, key, say
        self._ballots = Ballots(folder)
        self._done: set[tuple[str, int]] = set()

    def turn(self) -> None:
        """Looks at every open dispute once."""
        for dispute in self._open():
            if (dispute.id, dispute.status) in self._done:
                continue
            try:
                if self._act(dispute):
                    self._done.add((dispute.id, dispute.status))
            except MeshError as error:
                self._say(f"dispute {dispute.id}: {error.reason}: {error.message}")

    def _open(self) -> Iterator[ledger_pb2.Dispute]:
        token = ""
        while True:
            page = self._client.ledger("ListDisputes", ledger_pb2.ListDisputesRequest(
                open_only=True, page_size=100, page_token=token))  # fmt: skip
            yield from page.disputes
            token = page.next_page_token
            if not token:
                return

    def _act(self, dispute: ledger_pb2.Dispute) -> bool:
        """Votes, or opens the vote, as it is time for; whether nothing is left to do in this phase."""
        if dispute.accusation and not dispute.judged:
            return False  # nobody has asked for a judgement yet
        contest = bytes.fromhex(dispute.id)
        ballot = self._ballots.get(dispute.id)
        if dispute.status == ledger_pb2.DISPUTE_STATUS_REVEALING:
            if ballot is not None:
                self._send(acts.Reveal(contest, ballot[0], ballot[1]))
                self._say(f"dispute {dispute.id}: vote opened")
            return True
        address = self._key.address
        orchestrator = identity.address_of(bytes.fromhex(dispute.orchestrator_key))
        if address in (dispute.contestant, dispute.accused, orchestrator):
            return True  # a party of the dispute has no vote
        if ballot is None:
            judgement = judge(self._client, dispute)
            word = "valid" if judgement.verdict == VERDICT_VALID else "invalid"
            self._say(f"dispute {dispute.id}, job {dispute.job}: {word}: {judgement.detail}")
            ballot = judgement.verdict, self._ballots.put(dispute.id, judgement.verdict)
        sealed = acts.sealed_vote(contest, self._key.public, ballot[0], ballot[1])
        self._send(acts.Vote(contest, sealed))
        return True

    def _send(self, act: acts.Act) -> None:
        signed = transactions.signed(self._key, self._client.ledger_info().chain_id, act.KIND, act.pack())
        outcome = self._client.submit_transactions([signed])[0]
        if outcome.reason != "DUPLICATE_VOTE":  # sent before, and the answer was lost
            transactions.applied(f"the {act.KIND}", outcome)
