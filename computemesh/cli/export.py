"""`mesh ledger tiles` and `mesh ledger relay`: what a ledger leaves for others, as files."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect, find_profile, save
from computemesh.cli.trusted import trusted

if TYPE_CHECKING:
    from rich.progress import Progress

    from computemesh.client import Client
    from computemesh.trust.relay import Relay

FOLLOW_S = 1.0


def tiles(
    folder: Annotated[Path, typer.Option("--output", help="Folder that a web server serves.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new blocks until Ctrl-C.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the log and its blocks' trees as static files (C2SP tlog-tiles), each checked; again: only what is new."""
    from computemesh.client.mirror import Mirror

    with connect(profile) as client:
        vkey, chain, _ = trusted(client)
        mirror = Mirror(client.ledger, folder, vkey, chain)
        while True:
            with output.progress_bar() as bar:
                bar.add_task("blocks", total=None)
                before, now = mirror.update(partial(_show, bar))
            if not follow:
                break
            if now > before:
                output.say(f"{now} blocks")
            time.sleep(FOLLOW_S)
    output.emit({"folder": str(folder), "origin": f"{chain}/blocks", "blocks": now, "new": now - before},
                f"{folder} is the prefix of {chain}/blocks: {now} blocks, {now - before} of them new")  # fmt: skip


def _show(bar: Progress, done: int, total: int) -> None:
    bar.update(bar.task_ids[0], completed=done, total=total)


def relay(
    height: Annotated[int | None, typer.Argument(help="Height of the block.", min=0, max=2**63 - 1)] = None,
    out: Annotated[Path | None, typer.Option("--output", help="File to write; else stdout.")] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="A worker's key file: signs that worker's transactions.")
    ] = None,
    nonce: Annotated[
        list[str] | None,
        typer.Option("--nonce", metavar="ADDRESS=N", help="The worker's next nonce on ComputeChain; else 0."),
    ] = None,
    gas_price: Annotated[int, typer.Option("--gas-price", help="In ComputeChain's base units.", min=1)] = 1000,
    check: Annotated[Path | None, typer.Option("--check", help="Judge a file instead of writing one.")] = None,
    vkey: Annotated[str | None, typer.Option("--vkey", help="With --check: the log's key, else the profile's.")] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A block's results as ComputeChain SUBMIT_RESULT transactions (a bridge, never trusted here), or with --check the
    judgement of such a file, offline. Exit status 1 unless it holds."""
    if (height is None) == (check is None):
        raise typer.BadParameter("give either a height, or a file with --check", param_hint="HEIGHT")
    if check is not None:
        return _check_relay(check, vkey or find_profile(profile).ledger_vkey)
    assert height is not None
    with connect(profile) as client:
        text = _relay_of(client, height, key or [], nonce or [], gas_price).to_json()
    if out is None:
        typer.echo(text, nl=False)
        return None
    save(out, text, "--output")
    output.emit({"file": str(out), "height": height}, f"{out}: block {height}; judge it with: mesh ledger relay "
                f"--check {out}")  # fmt: skip
    return None


def _relay_of(client: Client, height: int, keys: list[Path], nonces: list[str], gas_price: int) -> Relay:
    from computemesh.client.profile import read_key
    from computemesh.trust import relay as bridge
    from computemesh.trust.computechain import FIELDS
    from computemesh.trust.errors import NotFound
    from computemesh.v1 import ledger_pb2 as pb

    block = client.ledger("GetBlock", pb.GetBlockRequest(height=height, full=True))
    if not block.results:
        raise NotFound(f"block {height} has no results: there is nothing to relay", reason="RESULT_NOT_FOUND")
    first = block.results[0]
    proof = client.ledger("GetInclusionProof", pb.GetInclusionProofRequest(task_id=first.task_id, job=first.job))
    packed: list[bytes] = []
    while len(packed) < len(block.results):
        packed += client.ledger("ListEntries", pb.ListEntriesRequest(block_height=height, start=len(packed))).entries
    results = [
        (one, {name: getattr(result, name) for name in FIELDS})
        for one, result in zip(packed, block.results, strict=True)
    ]
    return bridge.build(
        client.ledger_info().chain_id, proof.result.header, proof.result.header_path, proof.checkpoint.note, results,
        keys=[read_key(path) for path in keys], nonces=dict(map(_nonce, nonces)), gas_price=gas_price)  # fmt: skip


def _nonce(text: str) -> tuple[str, int]:
    from computemesh.trust import identity

    address, _, number = text.partition("=")
    identity.decode_address(address)
    if not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise typer.BadParameter(f"{text[:80]!r} is not ADDRESS=N", param_hint="--nonce")
    return address, int(number)


def _check_relay(path: Path, vkey: str) -> None:
    from computemesh.cli.verify import report
    from computemesh.trust import relay as bridge
    from computemesh.trust.errors import InvalidArgument
    from computemesh.trust.receipt import accepted

    if not vkey:
        raise InvalidArgument("the log's key is not known: give it with --vkey, or a profile that pins it")
    try:
        found = bridge.Relay.from_json(path.read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}", param_hint="--check") from None
    checks = bridge.check(found, vkey)
    ok = accepted(checks)
    document: dict[str, Any] = {"ok": ok, "legacy_poc_root": found.legacy_root, "checks": checks}
    end = "holds; the legacy root is a view and proves nothing" if ok else "NOT to be imported"
    output.emit(document, f"{report(checks)}\n{end}")
    if not ok:
        raise typer.Exit(1)
