"""Amounts: exact, bounded, and refused with the field, the value and the limit."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust.amount import CPC, MAX_UNITS, Shares, Split, format_cpc, job_reward, parse_cpc, split
from computemesh.trust.errors import InvalidArgument

UNITS = st.integers(0, MAX_UNITS)


@given(UNITS)
def test_formatted_amount_parses_back_to_itself(units: int) -> None:
    text = format_cpc(units)
    assert parse_cpc(text, allow_zero=True) == units
    assert Decimal(text) * CPC == units


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (10_000_000, "10.0"),
        (2_500_000, "2.5"),
        (1, "0.000001"),
        (0, "0.0"),
        (-1_500_000, "-1.5"),
        (MAX_UNITS, "9223372036854.775807"),
    ],
)
def test_format_is_the_shortest_with_one_decimal(units: int, text: str) -> None:
    assert format_cpc(units) == text


@pytest.mark.parametrize(("text", "units"), [("10", 10_000_000), ("0.1", 100_000), ("1.000000", 1_000_000)])
def test_parse_is_exact(text: str, units: int) -> None:
    assert parse_cpc(text) == units


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-5", "negative"),
        ("-0", "negative"),
        ("0", "more than 0"),
        ("0.0", "more than 0"),
        ("1e400", "exponent"),
        ("1E3", "exponent"),
        ("NaN", "digits"),
        ("inf", "digits"),
        ("0x10", "digits"),
        ("+5", "digits"),
        (" 5", "digits"),
        ("5\n", "digits"),
        ("", "digits"),
        (".5", "digits"),
        ("5.", "digits"),
        ("1_000", "digits"),
        ("1,5", "digits"),
        ("007", "digits"),
        ("\u0661\u0662", "digits"),
        ("0.0000000001", "6"),
        ("1.0000000", "6"),
        ("9223372036854.775808", "9223372036854.775807"),
        ("9" * 60, "9223372036854.775807"),
        ("9" * 65, "characters"),
    ],
)
def test_refusal_names_the_field_the_value_and_the_limit(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        parse_cpc(text, "budget")
    ((field, description),) = caught.value.violations
    assert field == "budget"
    assert repr(text[:16])[1:-1] in description
    assert caught.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize("value", [10, 10.5, None, b"10", Decimal(10)])
def test_only_text_is_an_amount(value: str) -> None:
    with pytest.raises(InvalidArgument, match="text"):
        parse_cpc(value)


def test_zero_is_an_amount_where_it_is_allowed() -> None:
    assert parse_cpc("0.0", allow_zero=True) == 0


def test_a_huge_text_costs_nothing_to_refuse() -> None:
    start = time.perf_counter()
    with pytest.raises(InvalidArgument) as caught:
        parse_cpc("9" * 10_000_000)
    assert time.perf_counter() - start < 0.05
    assert len(str(caught.value)) < 200


@st.composite
def any_shares(draw: st.DrawFn) -> Shares:
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=3, max_size=3)))
    return Shares(cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], 100 - cuts[2])


@given(UNITS, any_shares())
def test_split_sums_exactly_and_floors_all_but_the_burn(amount: int, shares: Shares) -> None:
    parts = split(amount, shares)
    assert parts.burn + parts.worker + parts.validator + parts.treasury == amount
    assert parts.worker == amount * shares.worker // 100
    assert parts.validator == amount * shares.validator // 100
    assert parts.treasury == amount * shares.treasury // 100
    assert 0 <= parts.burn - amount * shares.burn // 100 <= 3


def test_default_split_is_60_25_10_5_with_the_remainder_burned() -> None:
    assert split(10_000_000) == Split(6_000_000, 2_500_000, 1_000_000, 500_000)
    assert split(1) == Split(1, 0, 0, 0)
    assert split(99) == Split(62, 24, 9, 4)


@pytest.mark.parametrize("shares", [(60, 25, 10, 6), (101, -1, 0, 0), (0, 0, 0, 0)])
def test_shares_that_do_not_sum_to_100_are_refused(shares: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidArgument):
        Shares(*shares)


@pytest.mark.parametrize("amount", [-1, MAX_UNITS + 1])
def test_amounts_outside_int64_are_refused(amount: int) -> None:
    with pytest.raises(InvalidArgument):
        split(amount)


@given(UNITS, st.integers(1, 500))
def test_job_rewards_sum_to_the_reward_exactly_and_differ_by_at_most_one(reward: int, jobs: int) -> None:
    rewards = [job_reward(reward, index, jobs) for index in range(jobs)]
    assert sum(rewards) == reward
    assert max(rewards) - min(rewards) <= 1


@pytest.mark.parametrize(("index", "jobs"), [(-1, 3), (3, 3), (0, 0)])
def test_a_job_outside_the_task_has_no_reward(index: int, jobs: int) -> None:
    with pytest.raises(InvalidArgument):
        job_reward(100, index, jobs)
