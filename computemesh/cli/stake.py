"""`mesh stake`: put money at stake, take it back, see what an account stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.acting import AmountArgument, KeyOption, acting, stake_of
from computemesh.cli.options import JsonOption, ProfileOption

if TYPE_CHECKING:
    from computemesh.trust.acts import Act

app = typer.Typer(help="Stake of workers and validators, and the reputation that follows.", no_args_is_help=True)


@app.command()
def add(
    amount: AmountArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Put money of your balance at stake."""
    from computemesh.trust import acts
    from computemesh.trust.amount import parse_cpc

    _change(acts.Stake(parse_cpc(amount, "amount")), profile, key)


@app.command()
def remove(
    amount: AmountArgument, key: KeyOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Begin to take stake back; it is free, and safe from disputes, after the unbonding time."""
    from computemesh.trust import acts
    from computemesh.trust.amount import parse_cpc

    _change(acts.Unstake(parse_cpc(amount, "amount")), profile, key)


def _change(act: Act, profile: Path | None, key: Path | None) -> None:
    from computemesh.client.model import plain

    with acting(profile, key) as client:
        client.declare(act)
        found = stake_of(client, client.own_address())
    output.emit(plain(found), describe(found))


@app.command()
def show(
    address: Annotated[
        str | None, typer.Argument(help="Address cpc1..., or a name from the profile; yours if absent.")
    ] = None,
    key: KeyOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """An account's stake, its disputes, and its reputation with the grounds."""
    from computemesh.client.model import plain

    with acting(profile, key) as client:
        found = stake_of(client, client.profile.address_of(address) if address else client.own_address())
    output.emit(plain(found), describe(found))


def describe(stake: Any) -> str:
    """A stake for people."""
    from computemesh.trust.amount import format_cpc

    values = {
        "account": stake.address,
        "at stake": f"{format_cpc(stake.units)} CPC",
        "results": f"{stake.results} settled",
        "disputes": f"{stake.disputes_won} won, {stake.disputes_lost} lost",
        "reputation": f"{stake.reputation} of 1000",
    }
    if stake.unbonding_units:
        values["unbonding"] = f"{format_cpc(stake.unbonding_units)} CPC, free at block {stake.unbonded_height}"
    if stake.slashed_units:
        values["slashed"] = f"{format_cpc(stake.slashed_units)} CPC"
    return "\n".join([output.pairs(values), *(f"  {reason}" for reason in stake.reputation_reasons)])
