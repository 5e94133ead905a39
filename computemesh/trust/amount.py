"""Money as integers of base units (docs/PROTOCOL.md, conventions; DESIGN.md section 7).

1 CPC = 10^6 base units. Decimal text exists at the edges only, and a float never touches an amount.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from computemesh.trust.errors import InvalidArgument

CPC = 1_000_000
"""Base units per CPC."""

MAX_UNITS = 2**63 - 1
"""The largest amount and the largest total supply, in base units: what an int64 holds."""

DECIMALS = 6
# Far above the 20 characters of the largest amount; it bounds the cost of refusing anything longer.
_MAX_CHARS = 64
_SYNTAX = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?")


def parse_cpc(text: str, field: str = "reward", *, allow_zero: bool = False) -> int:
    """Base units of a decimal CPC text such as "10.5", exactly.

    Raises InvalidArgument with a violation of `field` that quotes the value and says the limit: other syntax
    (exponents, signs, blanks, leading zeros), a negative amount, zero unless `allow_zero`, more than 6
    decimals, more than `MAX_UNITS`. The cost is bounded whatever the text's length.
    """
    if not isinstance(text, str):
        raise _refuse(field, repr(text)[:_MAX_CHARS], 'must be a decimal text such as "10.5"')
    if len(text) > _MAX_CHARS:
        raise _refuse(
            field, repr(text[:16])[:-1] + "...'", f"has {len(text)} characters, at most 20 are needed"
        )
    shown = repr(text)
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise _refuse(field, shown, 'must be plain decimal digits such as "10.5", without exponent or sign')
    sign, whole, fraction = match[1], match[2], match[3] or ""
    if sign:
        raise _refuse(field, shown, "must not be negative")
    if len(fraction) > DECIMALS:
        raise _refuse(
            field, shown, f"has {len(fraction)} decimals, at most {DECIMALS} are allowed (0.000001 CPC)"
        )
    units = int(whole) * CPC + int(fraction.ljust(DECIMALS, "0"))
    if units > MAX_UNITS:
        raise _refuse(field, shown, f"must be at most {format_cpc(MAX_UNITS)} CPC")
    if units == 0 and not allow_zero:
        raise _refuse(field, shown, "must be more than 0, at least 0.000001 CPC")
    return units


def _refuse(field: str, shown: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {shown} {problem}", violations=[(field, f"{shown} {problem}")])


def format_cpc(units: int) -> str:
    """The shortest decimal CPC text with at least one decimal: 10_000_000 -> "10.0", 1 -> "0.000001"."""
    sign = "-" if units < 0 else ""
    whole, rest = divmod(abs(units), CPC)
    fraction = f"{rest:06d}".rstrip("0") or "0"
    return f"{sign}{whole}.{fraction}"


@dataclass(frozen=True, slots=True)
class Shares:
    """How a settled reward is divided, in whole percent that sum to 100."""

    burn: int = 60
    worker: int = 25
    validator: int = 10
    treasury: int = 5

    def __post_init__(self) -> None:
        shares = (self.burn, self.worker, self.validator, self.treasury)
        if any(share < 0 for share in shares) or sum(shares) != 100:
            raise InvalidArgument(
                f"shares {shares} must be percents that sum to 100", violations=[("shares", "sum")]
            )


@dataclass(frozen=True, slots=True)
class Split:
    """One amount divided, in base units; the parts sum to the amount exactly."""

    burn: int
    worker: int
    validator: int
    treasury: int


DEFAULT_SHARES = Shares()


def split(amount: int, shares: Shares = DEFAULT_SHARES) -> Split:
    """Divide `amount` base units: every part is floored and the remainder is burned. Raises
    InvalidArgument.
    """
    if not 0 <= amount <= MAX_UNITS:
        raise InvalidArgument(
            f"amount {amount} must be 0..{MAX_UNITS} base units", violations=[("amount", "range")]
        )
    worker = amount * shares.worker // 100
    validator = amount * shares.validator // 100
    treasury = amount * shares.treasury // 100
    return Split(amount - worker - validator - treasury, worker, validator, treasury)


def job_reward(reward: int, index: int, jobs: int) -> int:
    """Base units of job `index` of `jobs`: floor(reward (i+1) / n) - floor(reward i / n), so jobs sum
    exactly.
    """
    if not 0 <= index < jobs:
        raise InvalidArgument(
            f"job {index} is not one of {jobs}", violations=[("job", f"must be below {jobs}")]
        )
    return reward * (index + 1) // jobs - reward * index // jobs
