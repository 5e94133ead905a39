"""What a request asks for beyond the plain case: delivery, who pays, the pool and the model. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from computemesh.trust import acts, identity
from computemesh.trust.errors import InvalidArgument
from computemesh.trust.statement import DELIVERY_FIRST_RESPONSE, DELIVERY_MANUAL, DELIVERY_VERIFIED, PLAIN, Terms
from computemesh.v1 import market_pb2 as pb
from market.refusals import refuse

DEFAULT_CONFIRM_WINDOW_S = 3600
_DELIVERIES = {
    pb.DELIVERY_UNSPECIFIED: DELIVERY_VERIFIED, pb.DELIVERY_VERIFIED: DELIVERY_VERIFIED,
    pb.DELIVERY_MANUAL: DELIVERY_MANUAL, pb.DELIVERY_FIRST_RESPONSE: DELIVERY_FIRST_RESPONSE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """The order's `terms`, and what people call the pool and the model that these name by hash. `memory_bytes` is what
    the model needs on a worker."""

    terms: Terms = PLAIN
    pool: str = ""
    model: str = ""
    memory_bytes: int = 0

    def labels(self) -> str:
        """As `Spec.labels` keeps it."""
        return json.dumps({"pool": self.pool, "model": self.model, "memory_bytes": self.memory_bytes})

    def with_model(self, model: str, memory_bytes: int) -> Wish:
        """The same wish for this registered model."""
        return replace(self, model=model, memory_bytes=memory_bytes,
                       terms=replace(self.terms, model=acts.name_hash(model)))  # fmt: skip


NOTHING = Wish()


def read(request: pb.CreateTaskRequest) -> Wish:
    """What the request's fields ask for. Raises InvalidArgument naming the field."""
    delivery = _DELIVERIES[request.delivery]
    manual = delivery == DELIVERY_MANUAL
    if not manual:
        for name in ("responses", "confirm_window_s"):
            value = getattr(request, name)
            if value and not (name == "responses" and value == 1):
                raise refuse(name, f"is {value}, which only goes with delivery MANUAL")
    values = Terms(
        delivery, max(request.responses, 1), (request.confirm_window_s or DEFAULT_CONFIRM_WINDOW_S) if manual else 0)
    if request.payer and request.pool:
        raise refuse("pool", "and payer cannot both pay: name one")
    if request.payer:
        values = replace(values, payer=_address(request.payer))
    if request.pool:
        values = replace(values, payer=acts.pool_address(acts.name_hash(request.pool)))
    if request.model:
        values = replace(values, model=acts.name_hash(request.model))
    problem = values.problem()
    if problem:
        raise refuse(*problem)
    return NOTHING if values == PLAIN else Wish(values, request.pool, request.model)


def _address(text: str) -> bytes:
    try:
        return identity.decode_address(text)
    except InvalidArgument as error:
        raise refuse("payer", f"{text[:80]!r} is not an address cpc1...: {error.message}") from None
