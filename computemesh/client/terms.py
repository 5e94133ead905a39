"""What a customer may ask for beyond the plain case: delivery, who pays, the pool and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from computemesh.trust import acts, identity
from computemesh.trust.errors import InvalidArgument
from computemesh.trust.statement import NO_ADDRESS, ZERO_HASH, Terms
from computemesh.v1 import market_pb2

DELIVERIES = ("verified", "manual", "first_response")
DEFAULT_CONFIRM_WINDOW_S = 3600


@dataclass(frozen=True, slots=True)
class OrderTerms:
    """`delivery` is "verified", "manual" (you confirm one of up to `responses` answers; silence for `confirm_window_s`
    seconds after the first confirms that one) or "first_response" (the first answer, unaudited). `payer` is an account
    that delegated your key, `pool` a pool of yours that pays, `model` a registered model."""

    delivery: str = "verified"
    responses: int = 1
    confirm_window_s: int = 0
    payer: str = ""
    pool: str = ""
    model: str = ""

    def statement(self) -> Terms:
        """As the order has them. Raises InvalidArgument naming the field."""
        if self.delivery not in DELIVERIES:
            raise _refuse("delivery", f"{self.delivery!r} is not one of {', '.join(DELIVERIES)}")
        if self.payer and self.pool:
            raise _refuse("pool", "and payer cannot both pay: name one")
        payer = acts.pool_address(acts.name_hash(self.pool)) if self.pool else NO_ADDRESS
        if self.payer:
            payer = identity.decode_address(self.payer)
        window = self.confirm_window_s or (DEFAULT_CONFIRM_WINDOW_S if self.delivery == "manual" else 0)
        model = acts.name_hash(self.model) if self.model else ZERO_HASH
        terms = Terms(DELIVERIES.index(self.delivery), self.responses, window, payer, model)
        problem = terms.problem()
        if problem:
            raise _refuse(*problem)
        return terms

    def fill(self, request: market_pb2.CreateTaskRequest) -> None:
        """Puts them into a request. Raises InvalidArgument."""
        terms = self.statement()
        if self == PLAIN:
            return
        request.delivery = market_pb2.Delivery.ValueType(terms.delivery + 1)
        request.responses, request.confirm_window_s = terms.responses, terms.confirm_window_s
        request.payer, request.pool, request.model = self.payer, self.pool, self.model

    def may_gain_model(self, ordered: Terms) -> bool:
        """Whether `ordered` is this wish, plus the model whose name the payload uses: a market that signs adds it."""
        return not self.model and replace(ordered, model=ZERO_HASH) == self.statement()


PLAIN = OrderTerms()


def _refuse(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])
