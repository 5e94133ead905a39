"""An account's standing as a worker, from public facts alone: anybody who reads the ledger computes the same.

The rule is docs/PROTOCOL.md section 9, in whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

HALFWAY = 500
"""Settled results at which an account without lost disputes stands at half of `FULL`."""

FULL = 1000


@dataclass(frozen=True, slots=True)
class Reputation:
    """`score` is 0..1000; `reasons` say in a sentence each what made it."""

    score: int
    reasons: tuple[str, ...]


def reputation(results: int, disputes_lost: int, cooldown_height: int, height: int) -> Reputation:
    """What an account with so many settled `results` and lost disputes stands at while block `height` is open.

    floor(1000 results / (results + 500)), halved for every dispute lost, and 0 before `cooldown_height`.
    """
    if height < cooldown_height:
        return Reputation(0, (f"lost a dispute: no credit before block {cooldown_height}",))
    score = FULL * results // (results + HALFWAY)
    reasons = [f"{results} results settled: {score} of {FULL}"]
    if disputes_lost:
        score >>= min(disputes_lost, 10)
        reasons.append(f"{disputes_lost} disputes lost, each halves it: {score}")
    return Reputation(score, tuple(reasons))
