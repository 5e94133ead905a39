"""Models with terms on the ledger: which one a task uses, what it costs at least, what it needs of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from computemesh.trust import acts
from computemesh.trust.amount import format_cpc
from computemesh.trust.errors import InvalidState, NotFound
from computemesh.v1 import ledger_pb2
from market.orders import Draft
from market.refusals import refuse


class Terms(Protocol):
    """Where a model's terms are asked for."""

    async def model_terms(self, name: str) -> ledger_pb2.GetModelTermsResponse | None: ...


async def with_model(ledger: Terms, draft: Draft, digests: Mapping[str, str]) -> Draft:
    """The draft with the terms of its model: the one the request names, else one with terms that the payload names.

    Raises NotFound / UNKNOWN_MODEL, InvalidState / MODEL_INACTIVE, InvalidArgument where the reward is below its price
    or a signed order does not name the model its payload uses. All before any money is held.
    """
    wished = draft.wish.model
    named = [wished] if wished else sorted(digests)
    for name in named:
        terms = await ledger.model_terms(name)
        if terms is None and wished:
            raise NotFound(f"model {name!r}: no model of this name has terms on the ledger", reason="UNKNOWN_MODEL")
        if terms is None:
            continue
        if not terms.active:
            raise InvalidState(f"model {name!r} was deactivated by its owner, {terms.owner}", reason="MODEL_INACTIVE")
        if not wished and draft.order_signature:
            raise refuse("model", f"is missing: the payload uses {name!r}, whose owner has terms; an order names it")
        _check_price(name, draft, terms)
        return replace(draft, wish=draft.wish.with_model(name, terms.memory_bytes))
    return draft


def _check_price(name: str, draft: Draft, terms: ledger_pb2.GetModelTermsResponse) -> None:
    units = {acts.PRICE_FIXED: 1, acts.PRICE_PER_TOKEN: draft.tokens, acts.PRICE_PER_BYTE: len(draft.payload)}
    count = units.get(terms.price_per, 1)
    least = terms.price_units * count
    if draft.reward_units < least:
        per = {acts.PRICE_PER_TOKEN: f" for {count} tokens", acts.PRICE_PER_BYTE: f" for {count} bytes"}
        raise refuse("reward", f"{format_cpc(draft.reward_units)} CPC is below what model {name!r} asks: "
                               f"{format_cpc(least)} CPC{per.get(terms.price_per, '')}")  # fmt: skip
