"""`mesh ledger`: blocks, accounts, proofs, and money on a local mesh."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import export, output
from computemesh.cli.options import JsonOption, ProfileOption, connect, note, save
from computemesh.cli.trusted import trusted

if TYPE_CHECKING:
    from computemesh.client import Client

app = typer.Typer(help="Read the ledger, and check what it says.", no_args_is_help=True)
app.command()(export.tiles)
app.command()(export.relay)
LATEST = "latest"


class ProofFormat(StrEnum):
    """Forms of a proof."""

    JSON = "json"
    TLOG_PROOF = "tlog-proof"


@app.command()
def block(
    height: Annotated[str, typer.Argument(help="Height of the block, or 'latest'.")] = LATEST,
    full: Annotated[bool, typer.Option("--full", help="Also its transactions, results and ComputeChain root.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A sealed block."""
    from computemesh.v1 import ledger_pb2

    if height != LATEST and not height.isdecimal():
        raise typer.BadParameter(f"{height[:40]!r} is neither a height nor 'latest'", param_hint="HEIGHT")
    if height != LATEST and (len(height) > 20 or int(height) >= 2**64):
        raise typer.BadParameter(f"{height[:40]} is beyond any block", param_hint="HEIGHT")
    with connect(profile) as client:
        number = client.ledger_info().block_height if height == LATEST else int(height)
        found = client.block(number, full)
        document: dict[str, Any] = output.plain(found)
        if full:
            roots = client.ledger("GetComputeRoot", ledger_pb2.GetComputeRootRequest(height=number))
            document["legacy_poc_root"] = roots.legacy_poc_root
        else:
            del document["transaction_ids"], document["results"]
    shown = {**document, "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.time_ms / 1000))}
    results = shown.pop("results", ())
    ids = shown.pop("transaction_ids", ())
    del shown["time_ms"], shown["header"]
    lines = [output.pairs(shown), *(f"transaction {one}" for one in ids)]
    lines += [f"result {one['task_id'][:16]}.. job {one['job']} by {one['worker_address']}" for one in results]
    output.emit(document, "\n".join(lines))


@app.command()
def account(
    address: Annotated[
        str | None, typer.Argument(help="Address cpc1..., or a name from the profile; yours if absent.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every account.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """An account's balance."""
    from computemesh.trust.amount import format_cpc

    with connect(profile) as client:
        if all_:
            return _all_accounts(client)
        found = client.account(client.profile.address_of(address) if address else None)
        name = client.profile.name_of(found.address)
    output.emit(found, output.pairs({
        "address": found.address + (f" ({name})" if name else ""),
        "balance": f"{found.balance} CPC",
        "held for tasks": f"{format_cpc(found.escrow_units)} CPC",
        "earned": f"{format_cpc(found.earned_units)} CPC",
        "spent": f"{format_cpc(found.spent_units)} CPC",
    }))  # fmt: skip
    return None


def _all_accounts(client: Client) -> None:
    from computemesh.client.model import plain
    from computemesh.trust.amount import format_cpc
    from computemesh.v1 import ledger_pb2

    found: list[Any] = []
    token = ""
    while True:
        page = client.ledger("ListAccounts", ledger_pb2.ListAccountsRequest(page_size=1000, page_token=token))
        found += page.accounts
        token = page.next_page_token
        if not token:
            break
    rows = [
        (one.address, client.profile.name_of(one.address), one.balance, format_cpc(one.escrow_units)) for one in found
    ]
    output.emit({"accounts": [plain(one) for one in found]}, output.table(("ADDRESS", "NAME", "CPC", "HELD"), rows))


@app.command()
def proof(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="Task id.", show_default=False)],
    job: Annotated[int, typer.Argument(help="Index of the job.", min=0, max=2**32 - 1)] = 0,
    form: Annotated[
        ProofFormat, typer.Option("--format", help="tlog-proof writes two C2SP files that other software checks.")
    ] = ProofFormat.JSON,
    folder: Annotated[Path, typer.Option("--output", help="Folder for the files of tlog-proof.")] = Path("."),
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that a job's result is in its block and the block in the log; checked here. Exit status 1 if not."""
    from computemesh.cli.verify import report
    from computemesh.client.model import plain
    from computemesh.client.proofs import check_inclusion, tlog_proofs
    from computemesh.trust.receipt import accepted
    from computemesh.v1 import ledger_pb2

    with connect(profile) as client:
        reply = client.ledger("GetInclusionProof", ledger_pb2.GetInclusionProofRequest(task_id=task_id, job=job))
        vkey, chain, _ = trusted(client)
    checks = check_inclusion(reply, vkey, chain)
    ok = accepted(checks)
    shown, written = report(checks), list[str]()
    if ok and form is ProofFormat.TLOG_PROOF:
        stem = f"{task_id[:16]}-{job}"
        for what, one in zip(("result", "block"), tlog_proofs(reply), strict=True):
            path = folder / f"{stem}.{what}.tlog-proof"
            save(path, one.text(), "--output")
            written.append(str(path))
        shown += "".join(f"\nwritten: {path}" for path in written)
    document = {"ok": ok, "task_id": task_id, "job": job, "checks": checks, "files": written, **plain(reply)}
    output.emit(document, shown)
    if not ok:
        raise typer.Exit(1)


@app.command()
def checkpoint(
    block: Annotated[
        int | None, typer.Option("--block", help="Of this block's results; else of the log.", min=0, max=2**63 - 1)
    ] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest signed checkpoint, its signature checked. Exit status 1 if it is wrong."""
    from computemesh.trust.checkpoint import NoteVerifier, block_origin, log_origin, open_checkpoint
    from computemesh.v1 import ledger_pb2

    with connect(profile) as client:
        note = client.ledger("GetCheckpoint", ledger_pb2.GetCheckpointRequest(block_height=block)).checkpoint.note
        vkey, chain, pinned = trusted(client)
    origin = log_origin(chain) if block is None else block_origin(chain, block)
    point = open_checkpoint(note, NoteVerifier(vkey), origin)
    whose = "the key this profile pins" if pinned else "the ledger's own key (pin it: ledger_vkey in the profile)"
    output.emit({"origin": point.origin, "size": point.size, "root": point.root, "note": note, "vkey": vkey,
                 "trusted_key": pinned}, f"{note}\nsigned by {whose}: {vkey}")  # fmt: skip


@app.command()
def supply(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Where every minted unit is. Exit status 1 if the parts do not sum to the whole."""
    from computemesh.client.model import plain
    from computemesh.trust.amount import format_cpc
    from computemesh.v1 import ledger_pb2

    with connect(profile) as client:
        found = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
    places = ("accounts", "escrowed", "maturing", "staked", "burned")
    conserved = found.minted_units == sum(getattr(found, f"{name}_units") for name in places)
    parts = {name: f"{format_cpc(getattr(found, f'{name}_units'))} CPC" for name in ("minted", *places)}
    verdict = f"minted = {' + '.join(places)}" if conserved else "the parts do NOT sum to what was minted"
    output.emit({**plain(found), "conserved": conserved}, f"{output.pairs(parts)}\n{verdict}")
    if not conserved:
        raise typer.Exit(1)


@app.command()
def faucet(
    amount: Annotated[str, typer.Argument(help="Decimal CPC.", show_default=False)],
    address: Annotated[
        str | None, typer.Argument(help="Address cpc1..., or a name from the profile; yours if absent.")
    ] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mint money: needs the authority's key, which a local mesh has."""
    from computemesh.cli.funding import check_outcome, deposit
    from computemesh.client.profile import read_key
    from computemesh.trust.amount import parse_cpc
    from computemesh.trust.errors import Unauthorized

    units = parse_cpc(amount, "amount")
    with connect(profile) as client:
        if not client.profile.authority_key_file:
            raise Unauthorized("this profile has no authority_key_file: only the authority mints")
        authority = read_key(client.profile.authority_key_file)
        to = client.profile.address_of(address) if address else client.own_address()
        minted = deposit(authority, client.ledger_info().chain_id, to, units)
        outcome = check_outcome(client.submit_transactions([minted], sealed=True)[0])
        found = client.account(to)
        note(client.profile, "mint", client.profile.authority_key_file, to=to, amount_units=units,
             transaction=minted.id.hex())  # fmt: skip
    output.emit({"transaction_id": minted.id, "block_height": outcome.block_height, "account": found},
                f"{to} now has {found.balance} CPC (block {outcome.block_height})")  # fmt: skip
