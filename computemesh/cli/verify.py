"""`mesh verify`: is a task's receipt true? Offline from a file; with --replay its audits are judged again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, Root, connect, find_profile

if TYPE_CHECKING:
    from computemesh.client.profile import Profile
    from computemesh.trust.receipt import Check, Receipt
    from computemesh.trust.tlog_proof import TlogProof

_EACH = re.compile(r"(jobs|transactions)\[\d+\]\.?(.*)")
FAILURES_SHOWN = 5
MAX_PROOF_BYTES = 2**20


def verify(
    task: Annotated[
        str, typer.Argument(metavar="TASK|FILE", help="Task id, or the file of a receipt or proof.", show_default=False)
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="Also fetch the audits and judge them again by recomputing their units.")
    ] = False,
    vkey: Annotated[
        str | None, typer.Option("--vkey", help="The log's verifier key you trust; else the one in the profile.")
    ] = None,
    allow_unknown_log: Annotated[
        bool, typer.Option("--allow-unknown-log", help="Accept a consistent receipt though no log key is known.")
    ] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a task's receipt, or a .tlog-proof file, step by step. A file needs no network. Exit status 1 unless all
    holds, and unless the log's key is known."""
    from computemesh.trust.receipt import accepted
    from computemesh.trust.receipt import verify as check_receipt

    if vkey is not None and not vkey.strip():
        raise typer.BadParameter("is empty; give the log's verifier key, NAME+HASH+KEY", param_hint="--vkey")
    proof = _tlog_proof(task)
    if proof is not None:
        return _verify_proof(proof, vkey, profile, replay)
    receipt, found = _load(task, profile)
    trusted = vkey.strip() if vkey else (found.ledger_vkey if found else "") or None
    checks = check_receipt(receipt, trusted)
    if replay:
        checks += _replay(receipt, found or find_profile(profile))
    consistent = accepted(checks)
    ok = consistent and (trusted is not None or allow_unknown_log)
    output.emit(
        {"ok": ok, "consistent": consistent, "task_id": task_id_of(receipt), "jobs": len(receipt.jobs),
         "partial": receipt.partial, "trusted_key": trusted is not None, "checks": checks},
        report(checks) + "\n" + _conclusion(consistent, trusted is not None, allow_unknown_log)
        + (f"; PARTIAL: the task ended with {len(receipt.jobs)} jobs shown here, and it is not complete"
           if receipt.partial else ""),
    )  # fmt: skip
    if not ok:
        raise typer.Exit(1)
    return None


def _tlog_proof(task: str) -> TlogProof | None:
    """The proof in a file that begins as one; None for everything else. Raises InvalidProof."""
    from computemesh.trust.tlog_proof import HEADER, TlogProof

    try:
        with Path(task).open("rb") as file:
            if file.read(len(HEADER)) != HEADER.encode():
                return None
            return TlogProof.parse(HEADER + file.read(MAX_PROOF_BYTES).decode())
    except (OSError, UnicodeDecodeError):
        return None


def _verify_proof(proof: TlogProof, vkey: str | None, path: str | None, replay: bool) -> None:
    from computemesh.client.proofs import read_entry
    from computemesh.trust.checkpoint import log_origin
    from computemesh.trust.errors import InvalidArgument, NotFound

    if replay:
        raise typer.BadParameter("needs a receipt; a .tlog-proof says nothing of audits", param_hint="--replay")
    try:
        found = find_profile(path)
    except NotFound:
        if _named(path):
            raise
        found = None
    key = vkey.strip() if vkey else (found.ledger_vkey if found else "")
    if not key:
        raise InvalidArgument("a .tlog-proof names no key: give the log's with --vkey, or a profile that pins it")
    chain = key.partition("+")[0].removesuffix("/blocks")
    said = read_entry(proof, key, chain)
    output.emit({"ok": True, "origin": proof.note.partition("\n")[0], "index": proof.index, "says": said},
                f"  ok   {said}\nverified: signed by {log_origin(chain)}")  # fmt: skip


def _conclusion(consistent: bool, trusted: bool, allowed: bool) -> str:
    if not consistent:
        return "NOT verified"
    if trusted:
        return "verified"
    if allowed:
        return "consistent; accepted without knowing whose log it is"
    return "consistent, but not verified: give the log's key with --vkey, or --allow-unknown-log to accept"


def _load(task: str, path: str | None) -> tuple[Receipt, Profile | None]:
    """The receipt from a file or from the mesh, and the profile where there is one."""
    from computemesh.trust.errors import InvalidArgument, NotFound
    from computemesh.trust.receipt import Receipt

    if re.fullmatch(r"[0-9a-f]{64}", task):
        with connect(path) as client:
            return client.receipt(task), client.profile
    try:
        receipt = Receipt.from_json(Path(task).read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{task!r} is neither a task id nor a readable receipt file: {error.strerror}") from None
    try:
        return receipt, find_profile(path)
    except NotFound:
        if _named(path):
            raise  # a profile that was asked for may hold the log's key: without it nothing is verified
        return receipt, None


def _named(path: str | None) -> bool:
    """Whether this invocation names its profile, before or after the command or in the environment."""
    from computemesh.client.profile import VARIABLE

    return (path or Root.profile) is not None or bool(os.environ.get(VARIABLE))


def task_id_of(receipt: Receipt) -> str:
    """The id of a receipt's task, from its order."""
    from computemesh.trust import envelope

    return envelope.digest("order", receipt.chain, receipt.order).hex()


def _replay(receipt: Receipt, profile: Profile) -> list[Check]:
    from computemesh.client import Client
    from computemesh.client.replay import replay

    with Client(profile, retry_for=3.0) as client, output.progress_bar() as bar:
        shown = bar.add_task("judging audits again", total=len(receipt.jobs))
        return replay(client, receipt, lambda: bar.advance(shown))


def report(checks: list[Check]) -> str:
    """One line per step; a step that every job has is one line for all jobs, with the first failures below it."""
    lines: list[str] = []
    grouped: dict[str, list[Check]] = {}
    for check in checks:
        each = _EACH.fullmatch(check.name)
        grouped.setdefault(".".join(filter(None, each.groups())) if each else check.name, []).append(check)
    for name, group in grouped.items():
        bad = [check for check in group if not check.ok]
        mark = "FAIL" if bad else "ok"
        counted = f"{len(group) - len(bad)} of {len(group)} {name.partition('.')[0]}"
        detail = group[0].detail if len(group) == 1 else counted
        lines.append(f"  {mark:<4} {name:<22} {detail}")
        if len(group) > 1:
            lines += [f"       {check.name}: {check.detail}" for check in bad[:FAILURES_SHOWN]]
    return "\n".join(lines)
