"""`mesh dispute`: contest a settled result, follow the vote, vote by hand."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.acting import KeyOption, acting
from computemesh.cli.options import JsonOption, ProfileOption, connect

app = typer.Typer(help="Contest settled results; see and judge disputes.", no_args_is_help=True)
Contest = Annotated[str, typer.Argument(metavar="DISPUTE", help="Its id, 32 hex characters.", show_default=False)]
Verdict = Annotated[str, typer.Argument(help="valid or invalid.", show_default=False)]
SaltOption = Annotated[str, typer.Option(help="64 hexadecimal characters that seal the vote, and open it.")]


@app.command("open")
def open_(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="Task id.", show_default=False)],
    job: Annotated[int, typer.Argument(help="Index of the job.", min=0, max=2**32 - 1)] = 0,
    key: KeyOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that a settled result is wrong, and stake the bond on it, while its dispute window is open."""
    from computemesh.client.contest import contest_of
    from computemesh.v1 import ledger_pb2

    with acting(profile, key) as client:
        asked = ledger_pb2.GetInclusionProofRequest(task_id=task_id, job=job)
        contest = contest_of(client.ledger("GetInclusionProof", asked).result)
        _show(client, client.declare(contest))


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Disputes that are under way."""
    from computemesh.client.model import plain
    from computemesh.v1 import ledger_pb2

    found: list[Any] = []
    token = ""
    with connect(profile) as client:
        while True:
            asked = ledger_pb2.ListDisputesRequest(open_only=not all_, page_size=1000, page_token=token)
            page = client.ledger("ListDisputes", asked)
            found += page.disputes
            token = page.next_page_token
            if not token:
                break
    rows = [
        (one.id, one.task_id[:12] + "..", one.job, _status(one.status), one.accused, len(one.votes)) for one in found]
    output.emit({"disputes": [plain(one) for one in found]},
                output.table(("DISPUTE", "TASK", "JOB", "STATUS", "ACCUSED", "VOTES"), rows) if rows else "no disputes")


@app.command()
def show(dispute: Contest, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """One dispute with its votes."""
    with connect(profile) as client:
        _show(client, dispute)


def _show(client: Any, dispute: str) -> None:
    from computemesh.client.model import plain
    from computemesh.v1 import ledger_pb2

    found = client.ledger("GetDispute", ledger_pb2.GetDisputeRequest(id=dispute)).dispute
    output.emit(plain(found), _describe(found))


def _describe(dispute: Any) -> str:
    from computemesh.trust.amount import format_cpc

    values = {
        "dispute": dispute.id,
        "status": _status(dispute.status) + (f": {dispute.detail}" if dispute.detail else ""),
        "kind": "accusation of a failed audit" if dispute.accusation else "contest of a settled result",
        "result": f"job {dispute.job} of task {dispute.task_id}",
        "accused": dispute.accused,
        "contestant": f"{dispute.contestant}, with {format_cpc(dispute.bond_units)} CPC",
        "reward": f"{format_cpc(dispute.reward_units)} CPC, held until the decision",
        "votes": f"up to block {dispute.vote_height}, opened up to block {dispute.reveal_height}",
    }
    if dispute.slashed_units:
        values["slashed"] = f"{format_cpc(dispute.slashed_units)} CPC"
    lines = [
        f"  {vote.address} " + (("valid" if vote.valid else "invalid") if vote.revealed else "sealed")
        + (f", weight {format_cpc(vote.weight_units)} CPC" if vote.weight_units else "")
        for vote in dispute.votes
    ]  # fmt: skip
    return "\n".join([output.pairs(values), *lines])


def _status(number: int) -> str:
    from computemesh.client.model import enum_word
    from computemesh.v1 import ledger_pb2

    return enum_word(ledger_pb2.DisputeStatus, number, "DISPUTE_STATUS_")


@app.command()
def vote(
    dispute: Contest, verdict: Verdict, salt: SaltOption = "", key: KeyOption = None, profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Send a sealed verdict. `mesh validator run` judges and votes by itself."""
    import secrets

    from computemesh.trust import acts

    secret = _bytes(salt, 32, "--salt") if salt else secrets.token_bytes(32)
    contest = _bytes(dispute, 16, "DISPUTE")
    with acting(profile, key) as client:
        if client.key is None:
            raise typer.BadParameter("is needed: a vote is sealed to the voter's own key", param_hint="--key")
        client.declare(acts.Vote(contest, acts.sealed_vote(contest, client.key.public, _verdict(verdict), secret)))
    output.emit({"dispute": dispute, "verdict": verdict, "salt": secret},
                f"voted, sealed; open it with: mesh dispute reveal {dispute} {verdict} --salt {secret.hex()}")


@app.command()
def reveal(
    dispute: Contest, verdict: Verdict, salt: SaltOption, key: KeyOption = None, profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Open a sealed vote, once all votes are in."""
    from computemesh.trust import acts

    with acting(profile, key) as client:
        client.declare(acts.Reveal(_bytes(dispute, 16, "DISPUTE"), _verdict(verdict), _bytes(salt, 32, "--salt")))
        _show(client, dispute)


@app.command()
def appeal(
    dispute: Contest, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """As the accused worker: have validators judge an orchestrator's accusation instead of accepting it."""
    from computemesh.trust import acts

    with acting(profile, key) as client:
        client.declare(acts.Appeal(_bytes(dispute, 16, "DISPUTE")))
        _show(client, dispute)


def _verdict(word: str) -> int:
    from computemesh.trust import acts

    words = {"valid": acts.VERDICT_VALID, "invalid": acts.VERDICT_INVALID}
    if word not in words:
        raise typer.BadParameter(f"{word[:40]!r} is neither valid nor invalid", param_hint="VERDICT")
    return words[word]


def _bytes(text: str, size: int, name: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != size:
        raise typer.BadParameter(f"{text[:80]!r} is not {2 * size} hexadecimal characters", param_hint=name)
    return found
