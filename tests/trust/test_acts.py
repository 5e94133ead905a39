"""Acts and the terms of an order have one encoding each, and say which field is wrong."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from computemesh.trust import acts, statement
from computemesh.trust.errors import InvalidArgument, InvalidProof
from tests.trust.test_statement import SAMPLES

ORDER = next(sample for sample in SAMPLES if isinstance(sample, statement.Order))
RESULT = next(sample for sample in SAMPLES if isinstance(sample, statement.Result))
COMMITMENT = next(sample for sample in SAMPLES if isinstance(sample, statement.Commitment))
TERMS = statement.Terms(statement.DELIVERY_MANUAL, 3, 60, bytes(range(20)), bytes(range(32)))
EXAMPLES: list[acts.Act] = [
    acts.Stake(1), acts.Unstake(2**63 - 1), acts.Contest(RESULT.pack(), b"\x02" * 33, b"r" * 32, 3, 9, 1, b"p" * 64),
    acts.Accuse(COMMITMENT.pack(), b"r" * 32, 3, 9, b"s" * 64, b"t" * 32, b"p" * 64), acts.Appeal(b"i" * 16),
    acts.Vote(b"i" * 16, b"s" * 32), acts.Reveal(b"i" * 16, acts.VERDICT_INVALID, b"s" * 32),
    acts.Confirm(b"t" * 32, 7, b"\x03" * 33), acts.Retract(b"t" * 32), acts.Delegate(b"\x02" * 33, 1, 2**40),
    acts.Model(b"m" * 32, b"a" * 32, 2, 500, acts.PRICE_PER_TOKEN, 10, 2**33, 1), acts.Pool(b"p" * 32, b"c" * 32, 1),
    acts.Withdraw(b"p" * 32, b"a" * 20, 5), acts.Pause(1), acts.Beacon(4, b"s" * 32), acts.BeaconReveal(4, b"s" * 32),
    acts.Orders((ORDER.pack(), replace(ORDER, terms=TERMS).pack())),
]  # fmt: skip


def test_every_kind_has_an_example() -> None:
    assert [type(act) for act in EXAMPLES] == list(acts.ACTS.values())


@pytest.mark.parametrize("act", EXAMPLES, ids=lambda act: act.KIND)
def test_an_act_round_trips_in_its_one_length(act: acts.Act) -> None:
    body = act.pack()
    assert acts.unpack(act.KIND, body) == act
    for bad in (b"", body[:-1], body + b"\x00"):
        with pytest.raises(InvalidProof, match=act.KIND):
            acts.unpack(act.KIND, bad)


@pytest.mark.parametrize("act", EXAMPLES, ids=lambda act: act.KIND)
def test_no_field_of_an_act_is_padded_cut_or_wrapped(act: acts.Act) -> None:
    for field in fields(act):  # type: ignore[arg-type]
        value = getattr(act, field.name)
        wrong = value[:-1] if isinstance(value, bytes) else 2**64 if isinstance(value, int) else (b"\x01",)
        with pytest.raises((InvalidArgument, InvalidProof)):
            replace(act, **{field.name: wrong}).pack()  # type: ignore[type-var]


@pytest.mark.parametrize("act", [
    acts.Stake(0), acts.Unstake(2**63), acts.Reveal(b"i" * 16, 0, b"s" * 32), acts.Delegate(b"\x02" * 33, 2, 0),
    acts.Model(b"m" * 32, b"a" * 32, 1, 10_001, 0, 0, 0, 1), acts.Model(b"m" * 32, b"a" * 32, 1, 0, 3, 0, 0, 1),
    acts.Pool(b"p" * 32, b"c" * 32, 2), acts.Pause(2), acts.Withdraw(b"p" * 32, b"a" * 20, 0), acts.Orders(()),
], ids=lambda act: act.KIND)  # fmt: skip
def test_values_that_can_never_be_right_are_refused_by_field(act: acts.Act) -> None:
    with pytest.raises(InvalidProof, match=rf"{act.KIND}\.\w+ is "):
        act.pack()


def test_an_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(InvalidProof, match="stake, unstake"):
        acts.unpack("stakes", bytes(8))


def test_signed_digests_differ_by_kind_chain_and_id() -> None:
    one, other = acts.Stake(5), acts.Unstake(5)
    assert one.pack() == other.pack()
    digests = {acts.digest(act, chain, tx_id) for act in (one, other) for chain in "ab" for tx_id in (b"1" * 16,
               b"2" * 16)}  # fmt: skip
    assert len(digests) == 8


def test_plain_terms_are_version_1_and_others_version_2() -> None:
    packed = replace(ORDER, terms=TERMS).pack()
    assert (ORDER.pack()[0], len(ORDER.pack())) == (1, 164)
    assert (packed[0], len(packed)) == (2, 222)
    assert statement.Order.unpack(packed).terms == TERMS
    with pytest.raises(InvalidProof, match="which version 1 says"):
        statement.Order.unpack(b"\x02" + ORDER.pack()[1:] + statement.ORDER_TERMS.pack(0, 1, 0, bytes(20), bytes(32)))
    with pytest.raises(InvalidProof, match="222"):
        statement.Order.unpack(b"\x02" + ORDER.pack()[1:])


@pytest.mark.parametrize(("terms", "field"), [
    (statement.Terms(delivery=3), "delivery"), (statement.Terms(responses=2), "responses"),
    (statement.Terms(statement.DELIVERY_MANUAL, 9, 60), "responses"),
    (statement.Terms(statement.DELIVERY_MANUAL, 0, 60), "responses"),
    (statement.Terms(statement.DELIVERY_MANUAL, 1, 0), "confirm_window_s"),
    (statement.Terms(confirm_window_s=5), "confirm_window_s"), (statement.Terms(payer=b"x"), "payer"),
])  # fmt: skip
def test_terms_out_of_range_are_refused_by_field(terms: statement.Terms, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        replace(ORDER, terms=terms).pack()
