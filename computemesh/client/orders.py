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
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Order, challenge_type_hash
from computemesh.v1 import market_pb2

DEFAULT_LIFE_S = 3600
Deadline = int | datetime.datetime | datetime.timedelta | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller asked for, with every choice made: the same wish is the same order."""

    challenge_type: str
    payload: Mapping[str, Any]
    reward: str
    deadline: int
    priority: int
    request_id: bytes

    @classmethod
    def of(
        cls, challenge_type: str, payload: Mapping[str, Any], reward: Any, deadline: Deadline, priority: int,
        request_id: str | None, now_ms: int,
    ) -> Wish:  # fmt: skip
        """Fill in the deadline (`now_ms` is the market's clock) and the request id. Raises InvalidArgument."""
        return cls(
            challenge_type, payload, str(reward), deadline_seconds(deadline, now_ms), priority,
            request_id_bytes(request_id),
        )  # fmt: skip

    def request(self) -> market_pb2.CreateTaskRequest:
        """The request of an API key's customer. Raises InvalidArgument naming what the wire cannot carry."""
        for name, value, limit in (("deadline", self.deadline, 2**63), ("priority", self.priority, 2**32)):
            if not (-limit if name == "deadline" else 0) <= value < limit:
                problem = f"is {value}, which is out of range"
                raise InvalidArgument(f"{name} {problem}", violations=[(name, problem)])
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
            problem = f"{self.deadline} is not a time in Unix seconds"
            raise InvalidArgument(f"deadline {problem}", violations=[("deadline", problem)])
        return self.deadline * 1000

    def check(self, task: Task, chain: str, key: PrivateKey | None) -> None:
        """That the market made of this wish the order that was meant, no other. Raises InvalidProof."""
        order = Order.unpack(task.order)
        meant = (
            order.request_id == self.request_id
            and order.challenge_type_hash == challenge_type_hash(self.challenge_type)
            and order.payload_digest == payload_digest(self.payload)
            and order.reward_units == parse_cpc(self.reward)
            and order.deadline_ms == self._deadline_ms()
            and order.priority == self.priority
            and (key is None or order.customer_key == key.public)
        )
        if not meant or order.task_id(chain).hex() != task.task_id:
            raise InvalidProof(f"the market answered with task {task.task_id}, which is not what was ordered")


def deadline_seconds(deadline: Deadline, now_ms: int) -> int:
    """Unix seconds of a deadline: seconds as they are, a time, or a duration from now; None is one hour from now."""
    if deadline is None:
        deadline = datetime.timedelta(seconds=DEFAULT_LIFE_S)
    if isinstance(deadline, datetime.timedelta):
        return now_ms // 1000 + int(deadline.total_seconds())
    if isinstance(deadline, datetime.datetime):
        return int(deadline.timestamp())
    return deadline
