"""What connected workers offer to tasks of type `function`, as the market is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from computemesh.v1 import common_pb2, market_pb2

MAX_OFFERS = 1024
MAX_BYTES = 8 << 20
MESSAGE_BYTES = 1 << 20


def messages(capabilities: Iterable[common_pb2.Capabilities]) -> Iterator[market_pb2.DispatchRequest]:
    """All that is offered, the same of several workers once; the first message replaces what was said before. Of more
    than the market takes, the first: put the workers first that have done something."""
    total: Counter[bytes] = Counter()
    size = 0
    for one in capabilities:
        for function in one.functions:
            raw = function.SerializeToString(deterministic=True)
            if raw not in total:
                size += len(raw)
                if len(total) == MAX_OFFERS or size > MAX_BYTES:
                    break
            total[raw] += 1
    batch, size, adds = list[market_pb2.FunctionOffer](), 0, False
    for raw, workers in total.items():
        if batch and size + len(raw) > MESSAGE_BYTES:
            yield _message(batch, adds)
            batch, size, adds = [], 0, True
        batch.append(market_pb2.FunctionOffer(function=common_pb2.FunctionSpec.FromString(raw), workers=workers))
        size += len(raw)
    if batch or not adds:
        yield _message(batch, adds)


def _message(batch: list[market_pb2.FunctionOffer], adds: bool) -> market_pb2.DispatchRequest:
    return market_pb2.DispatchRequest(functions=market_pb2.FunctionOffers(functions=batch, adds=adds))
