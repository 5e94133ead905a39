"""Orders: what a customer signs, and the check that the task made of one is the task that was meant."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from computemesh.client.ids import request_id_bytes
from computemesh.client.model import Task, struct_of
from computemesh.trust.amount import parse_cpc
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import CostLimit, InvalidArgument, InvalidProof
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Order, challenge_type_hash
from computemesh.v1 import market_pb2

DEFAULT_LIFE_S = 3600
DEFAULT_REWARD = "10.0"
OPEN = 0
"""The deadline of a request that leaves it to the market, as the wire has it."""
Deadline = int | datetime.datetime | datetime.timedelta | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller asked for, with every choice made: the same wish is the same order.

    `deadline` is Unix seconds, or `OPEN` where the market chooses it, and keeps it when the request id comes again.
    """

    challenge_type: str
    payload: Mapping[str, Any]
    reward: str
    deadline: int
    priority: int
    request_id: bytes

    @classmethod
    def of(
        cls, challenge_type: str, payload: Mapping[str, Any], reward: Any, deadline: Deadline, priority: int,
        request_id: str | None, now_ms: int, signs: bool = False,
    ) -> Wish:  # fmt: skip
        """Fill in the deadline (`now_ms` is the market's clock) and the request id. Raises InvalidArgument.

        A deadline that has passed is let through with a request id: this may repeat a task the market knows.
        """
        identity = request_id_bytes(request_id)
        if deadline is None and request_id is not None:
            until = deadline_of(identity) if signs else OPEN
        else:
            until = deadline_seconds(deadline, now_ms)
            now_s = now_ms // 1000
            if until <= 0:
                raise _refuse("deadline", f"{until} must be after now, which is {now_s} (Unix seconds)")
            if until <= now_s and request_id is None:
                raise _refuse("deadline", f"{until} is in the past by {now_s - until} s; now is {now_s} (Unix seconds)")
        return cls(challenge_type, payload, str(reward), until, priority, identity)

    def request(self) -> market_pb2.CreateTaskRequest:
        """The request of an API key's customer. Raises InvalidArgument naming what the wire cannot carry."""
        for name, value, limit in (("deadline", self.deadline, 2**63), ("priority", self.priority, 2**32)):
            if not (-limit if name == "deadline" else 0) <= value < limit:
                raise _refuse(name, f"is {value}, which is out of range")
        return market_pb2.CreateTaskRequest(
            challenge_type=self.challenge_type,
            payload=struct_of(self.payload),
            reward=self.reward,
            deadline=self.deadline,
            priority=self.priority,
            request_id=str(uuid.UUID(bytes=self.request_id)),
        )

    def signed_request(self, key: PrivateKey, market_key: bytes, chain: str) -> market_pb2.CreateTaskRequest:
        """The request of a customer who signs. Raises InvalidArgument naming the field no order can hold."""
        request = self.request()
        order = Order(
            request_id=self.request_id,
            customer_key=key.public,
            market_key=market_key,
            challenge_type_hash=challenge_type_hash(self.challenge_type),
            payload_digest=payload_digest(self.payload),
            reward_units=parse_cpc(self.reward),
            deadline_ms=self._deadline_ms(),
            priority=self.priority,
        )
        request.customer_key = key.public.hex()
        request.order_signature = key.sign(order.task_id(chain))
        return request

    def _deadline_ms(self) -> int:
        if not 0 <= self.deadline * 1000 < 2**63:
            raise _refuse("deadline", f"{self.deadline} is not a time in Unix seconds")
        return self.deadline * 1000

    def check(self, task: Task, chain: str, key: PrivateKey | None) -> None:
        """That the market made of this wish the order that was meant, no other. Raises InvalidProof."""
        order = Order.unpack(task.order)
        meant = (
            order.request_id == self.request_id
            and order.challenge_type_hash == challenge_type_hash(self.challenge_type)
            and order.payload_digest == payload_digest(self.payload)
            and order.reward_units == parse_cpc(self.reward)
            and (self.deadline == OPEN or order.deadline_ms == self._deadline_ms())
            and order.priority == self.priority
            and (key is None or order.customer_key == key.public)
        )
        if not meant or order.task_id(chain).hex() != task.task_id:
            raise InvalidProof(f"the market answered with task {task.task_id}, which is not what was ordered")


def _refuse(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])


def price_within(max_cost: str, price: str) -> str:
    """The price, where it is no more than `max_cost` (both decimal CPC). Raises CostLimit, InvalidArgument."""
    if parse_cpc(price) > parse_cpc(max_cost, "max_cost"):
        raise CostLimit(f"the task costs {price} CPC, the most to be paid is {max_cost} CPC; nothing was held",
                        metadata={"price": price, "max_cost": max_cost})  # fmt: skip
    return price


def deadline_of(request_id: bytes) -> int:
    """The default deadline of an order signed under a caller's request id, the same in every repeat: one hour after
    the time in a UUIDv7, Unix seconds. Raises InvalidArgument for an id without a time."""
    identity = uuid.UUID(bytes=request_id)
    if identity.version != 7:
        raise _refuse(
            "deadline",
            f"is missing: an order signed under request_id {identity} needs an absolute one (Unix seconds, ISO 8601), "
            "the same in every repeat; only a UUIDv7 has a time that a default follows from",
        )
    return int.from_bytes(request_id[:6], "big") // 1000 + DEFAULT_LIFE_S


def deadline_seconds(deadline: Deadline, now_ms: int) -> int:
    """Unix seconds of a deadline: seconds as they are, a time, or a duration from now; None is one hour from now."""
    if deadline is None:
        deadline = datetime.timedelta(seconds=DEFAULT_LIFE_S)
    if isinstance(deadline, datetime.timedelta):
        return now_ms // 1000 + int(deadline.total_seconds())
    if isinstance(deadline, datetime.datetime):
        return int(deadline.timestamp())
    return deadline
