"""Functions that connected workers offer, as orchestrators report them, and whether a task's input suits one."""

from __future__ import annotations

import asyncio
import base64
import difflib
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import sha256

import structlog

from computemesh.service.child import LOST, Child, ChildFailed
from computemesh.trust.errors import InvalidArgument
from computemesh.v1 import common_pb2, market_pb2
from computemesh.workloads import Call

MAX_OFFERS = 1024
MAX_SCHEMAS = 8
MAX_REMEMBERED = 4096
DEFAULT_PAGE = 50
PAGE_BYTES = 1 << 20
LIMIT_S = 5.0
log = structlog.get_logger("market.functions")

Page = tuple[list[market_pb2.FunctionOffer], str]


class Functions:
    """What is offered now; it goes with the streams that report it. One input is judged at a time.

    Workers may offer one name with different schemas. An input then has to suit one of them: if it had to suit all, any
    worker could keep a name from being used by offering it with a schema that nothing suits.
    """

    def __init__(self) -> None:
        self._reported: dict[int, dict[bytes, int]] = {}  # by stream: FunctionSpec -> workers
        self._child = Child("market.inputs", {}, {})
        self._turn = asyncio.Lock()
        self._hopeless: OrderedDict[str, None] = OrderedDict()

    def report(self, stream: int, message: market_pb2.FunctionOffers) -> None:
        """What an orchestrator's workers offer. Raises InvalidArgument where they are too many."""
        known = self._reported.setdefault(stream, {}) if message.adds else {}
        for one in message.functions:
            known[one.function.SerializeToString(deterministic=True)] = one.workers
        if len(known) > MAX_OFFERS:
            text = f"are {len(known):,} of one orchestrator, at most {MAX_OFFERS:,} are taken"
            raise InvalidArgument(f"functions.functions {text}", violations=[("functions.functions", text)])
        self._reported[stream] = known

    def drop(self, stream: int) -> None:
        """The stream ended, and with it what its orchestrator's workers offer."""
        self._reported.pop(stream, None)

    def offered(self) -> list[market_pb2.FunctionOffer]:
        """Every function by name; of one name what most workers offer comes first."""
        total: Counter[bytes] = Counter()
        for known in self._reported.values():
            total.update(known)
        found = [
            market_pb2.FunctionOffer(function=common_pb2.FunctionSpec.FromString(raw), workers=workers)
            for raw, workers in sorted(total.items())
        ]
        return sorted(found, key=lambda one: (one.function.name, -one.workers))

    def page(self, page_size: int, token: str) -> Page:
        """Offers from a page token on, and the token of the next page. Raises InvalidArgument."""
        found = self.offered()
        try:
            begin = int(base64.urlsafe_b64decode(token)) if token else 0
            if begin < 0:
                raise ValueError
        except ValueError:
            text = f"{token[:80]!r} is not one this list gave out"
            raise InvalidArgument(f"page_token: {text}", violations=[("page_token", text)]) from None
        end, size = begin, 0
        while end < len(found) and end - begin < (page_size or DEFAULT_PAGE) and size < PAGE_BYTES:
            size += found[end].ByteSize()
            end += 1
        return found[begin:end], base64.urlsafe_b64encode(b"%d" % end).decode() if end < len(found) else ""

    async def check(self, call: Call) -> None:
        """Raises InvalidArgument / FUNCTION_UNKNOWN where no connected worker offers the function, FUNCTION_INPUT where
        what the task passes suits none of its schemas."""
        offers = self.offered()
        named = [one.function for one in offers if one.function.name == call.function]
        if not named:
            raise _unknown(call.function, {one.function.name for one in offers})
        schemas = list(dict.fromkeys(one.input_schema for one in named))
        faults = []
        for schema in schemas[:MAX_SCHEMAS] if call.items else ():
            fault = await self._fault(schema, call)
            if fault is None:
                return
            faults.append(fault)
        if faults and len(schemas) <= MAX_SCHEMAS:
            field, text = faults[0]
            more = f" (none of the {len(faults)} schemas it is offered with takes this)" if faults[1:] else ""
            text = f"{text}: not what function {call.function!r} takes{more}"
            raise InvalidArgument(f"payload.{field}: {text}", violations=[(f"payload.{field}", text)],
                                  reason="FUNCTION_INPUT")  # fmt: skip

    async def _fault(self, schema: str, call: Call) -> tuple[str, str] | None:
        """(field, what is wrong) of the first item that does not suit a schema. None also where the schema cannot be
        judged by in time: the worker judges again, and a stranger wrote the schema."""
        name = sha256(schema.encode()).hexdigest()
        async with self._turn:
            if name in self._hopeless:
                return None
            try:
                if self._child.pid is None:
                    await self._child.start()
                self._child.send((schema, [(item.field, json.dumps(item.value)) for item in call.items]))
                return await asyncio.wait_for(self._child.receive(), LIMIT_S)  # type: ignore[no-any-return]
            except (ChildFailed, TimeoutError, *LOST) as error:
                log.warning("a schema cannot be judged by", function=call.function, error=repr(error)[:200])
                await self._child.end()
                self._hopeless[name] = None
                if len(self._hopeless) > MAX_REMEMBERED:
                    self._hopeless.popitem(last=False)
                return None
            except asyncio.CancelledError:
                await self._child.end()  # its answer would be taken for the next one's
                raise

    async def close(self) -> None:
        """End the process that judges."""
        await self._child.end()


def _unknown(name: str, offered: Iterable[str]) -> InvalidArgument:
    near = difflib.get_close_matches(name, offered, 3, 0.5)
    hint = f"; near it are {', '.join(near)}" if near else ""
    text = f"{name[:64]!r} is offered by no connected worker{hint}; `mesh function list` shows what is"
    return InvalidArgument(f"payload.function_name: {text}", violations=[("payload.function_name", text)],
                           reason="FUNCTION_UNKNOWN")  # fmt: skip
