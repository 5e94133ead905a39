"""`mesh pool`: named pools of money that pay for their owner's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.acting import AmountArgument, KeyOption, acting
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.client import Client

app = typer.Typer(help="Pools of money by category, which pay for their owner's tasks.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pool.", show_default=False)]
CategoryOption = Annotated[str, typer.Option(help="What its tasks are about, e.g. rendering.")]


@app.command("open")
def open_(
    name: NameArgument, category: CategoryOption = "general", key: KeyOption = None, profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Open a pool; it is yours. Fund it, then publish with `mesh task submit --pool NAME`."""
    _switch(name, category, True, profile, key)


@app.command()
def activate(
    name: NameArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Let the pool pay for tasks again."""
    _switch(name, None, True, profile, key)


@app.command()
def deactivate(
    name: NameArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Let the pool pay for no new tasks; what is published goes on, refunds come back to it."""
    _switch(name, None, False, profile, key)


def _switch(name: str, category: str | None, active: bool, profile: Path | None, key: Path | None) -> None:
    from computemesh.trust import acts
    from computemesh.trust.errors import NotFound

    with acting(profile, key) as client:
        if category is None:
            known = {pool.name: pool.category for pool in _pools(client, "")}
            if name not in known:
                raise NotFound(f"no pool {name!r} was opened in this market", reason="POOL_NOT_FOUND")
            category = known[name]
        act = acts.Pool(acts.name_hash(name), acts.name_hash(category), int(active))
        client.declare(act, name, category)
        _show(client, name)


@app.command()
def fund(
    name: NameArgument, amount: AmountArgument, key: KeyOption = None, profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Move money of yours into a pool. Only its owner gets it out again."""
    from computemesh.trust.amount import parse_cpc

    with acting(profile, key) as client:
        client.transfer(_pool(client, name).address, parse_cpc(amount, "amount"))
        _show(client, name)


@app.command()
def withdraw(
    name: NameArgument, amount: AmountArgument,
    to: Annotated[str, typer.Option(help="Address, or a name from the profile; yours if absent.")] = "",
    key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Move money out of a pool of yours."""
    from computemesh.trust import acts, identity
    from computemesh.trust.amount import parse_cpc

    with acting(profile, key) as client:
        address = client.profile.address_of(to) if to else client.own_address()
        units = parse_cpc(amount, "amount")
        client.declare(acts.Withdraw(acts.name_hash(name), identity.decode_address(address), units))
        _show(client, name)


@app.command("list")
def list_(
    category: Annotated[str, typer.Option(help="Only this category.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pools this market knows."""
    from computemesh.client.model import plain

    with connect(profile) as client:
        found = _pools(client, category)
    rows = [
        (one.name, one.category, "active" if one.active else "deactivated", one.balance, one.owner) for one in found]
    output.emit({"pools": [plain(one) for one in found]},
                output.table(("POOL", "CATEGORY", "STATE", "CPC", "OWNER"), rows) if rows else "no pools")


def _pools(client: Client, category: str) -> list[Any]:
    from computemesh.v1 import market_pb2

    found: list[Any] = []
    token = ""
    while True:
        page = client.market("ListPools", market_pb2.ListPoolsRequest(
            category=category, page_size=1000, page_token=token))  # fmt: skip
        found += page.pools
        token = page.next_page_token
        if not token:
            return found


def _pool(client: Client, name: str) -> Any:
    from computemesh.v1 import ledger_pb2

    return client.ledger("GetPool", ledger_pb2.GetPoolRequest(name=name))


def _show(client: Client, name: str) -> None:
    from computemesh.client.model import plain
    from computemesh.trust.amount import format_cpc

    found = _pool(client, name)
    output.emit({**plain(found), "name": name}, output.pairs({
        "pool": f"{name}, {'active' if found.active else 'deactivated'}",
        "owner": found.owner,
        "balance": f"{format_cpc(found.balance_units)} CPC",
        "address": found.address,
    }))  # fmt: skip
