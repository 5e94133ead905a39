"""Every unary RPC, and every stream that answers one request: requests made from the descriptors and damaged, sent to
running services as a customer, as nobody, and with credentials that are none."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from computemesh.service.access import ACCESS
from computemesh.service.errors import from_rpc_error
from computemesh.service.server import dial
from computemesh.trust.errors import MeshError
from computemesh.v1 import ledger_pb2
from ledger import wire
from ledger.evidence import examine
from tests.fuzz.laws import Broken, judge_status
from tests.fuzz.mesh import STRANGER, Mesh
from tests.fuzz.messages import Maker
from tests.service.test_access import METHODS, MOUNTED
from tests.workloads.test_laws import SMALL

AT_ONCE = 12
CHUNK = 40
ANSWER_S = 30.0
FIRST_S = 0.05
"""How long a stream of answers is listened to, and how many are read."""
MOST_ANSWERS = 3
SUBMIT = "/computemesh.v1.LedgerService/SubmitTransactions"
# What says in each part of its answer whether that part was done.
_PARTLY = {
    SUBMIT: lambda found: any(one.kind == ledger_pb2.OUTCOME_KIND_APPLIED for one in found.outcomes),
    "/computemesh.v1.MarketService/CreateTasks": lambda found: any(one.HasField("task") for one in found.results),
}


@dataclass
class Report:
    """`inputs` sent; `codes` of the answers; `writes` that were done, by call; `compared`: how often nothing may have
    changed, and had not."""

    inputs: int = 0
    compared: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)


def targets() -> list[tuple[str, str]]:
    """(process, path) of each RPC that takes one request."""
    mounted = {**MOUNTED, "worker-1": ("WorkerService",)}
    return [(process, path) for process, services in mounted.items() for path, method in METHODS.items()
            if path.split("/")[1].rpartition(".")[2] in services and not method.client_streaming]  # fmt: skip


class Calls:
    """Fuzzes the calls of a mesh; the seed decides every request, not the order of their answers."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._mesh, self._rng, self.report = mesh, random.Random(seed), Report()
        self._maker = Maker(self._rng, mesh.known(), SMALL)
        self._keys = [STRANGER, *mesh.cluster.plan.keys.values()]

    async def run(self, inputs: int) -> Report:
        """Sends so many. Raises Broken."""
        names = sorted({process for process, _ in targets()})
        channels = {name: dial(self._mesh.cluster.address(name)) for name in names}
        try:
            before = await asyncio.to_thread(self._mesh.state)
            while self.report.inputs < inputs:
                chosen = self._rng.choices(targets(), k=min(CHUNK, inputs - self.report.inputs))
                before = await self._chunk(channels, chosen, before)
        finally:
            for channel in channels.values():
                await channel.close()
        return self.report

    async def _chunk(self, channels: dict[str, Any], chosen: list[tuple[str, str]], before: Any) -> Any:
        """Some calls at once, and the state after them."""
        slots = asyncio.Semaphore(AT_ONCE)
        requests = [self._request(path) for _, path in chosen]

        async def one(process: str, path: str, request: bytes, metadata: Any) -> bool:
            async with slots:
                return await self._call(channels[process], path, request, metadata)

        done = await asyncio.gather(*(one(process, path, *request) for (process, path), request in
                                      zip(chosen, requests, strict=True)))  # fmt: skip
        wrote = any(done)
        self.report.inputs += len(chosen)
        self._mesh.check(f"after {[path for _, path in chosen]}")
        if wrote:
            await asyncio.to_thread(self._mesh.hold_all_money)
        after = await asyncio.to_thread(self._mesh.state)
        if not wrote:
            self.report.compared += 1
            same = [old == new for old, new in zip(before, after, strict=True)]
            if not all(same):
                sent = [(path, request[0][:300]) for (_, path), request in zip(chosen, requests, strict=True)]
                part = same.index(False)
                raise Broken(f"refused calls changed part {part} of the state: {before} became {after}: {sent}")
        return after

    def _request(self, path: str) -> tuple[bytes, Any]:
        """(bytes, metadata)."""
        rng = self._rng
        made = self._maker.message(METHODS[path].input_type)
        if path == SUBMIT:
            self._sign(made)
        caller = rng.random()
        metadata = self._mesh.bearer if caller < 0.9 else (("authorization", f"Bearer {rng.choice(('', 'cm1.x', 'é'))}"
                                                            .encode("ascii", "replace").decode()),)  # fmt: skip
        return self._maker.damaged(made), metadata

    def _sign(self, made: Message) -> None:
        """Half of the transactions get a good signature, or nothing would come past the first check."""
        for one in made.transactions:  # type: ignore[attr-defined]
            if self._rng.random() < 0.5:
                continue
            key = self._rng.choice(self._keys)
            one.id, one.public_key, one.signature = self._rng.randbytes(16), key.public, bytes(64)
            try:
                one.signature = key.sign(examine(self._mesh.chain, wire.transaction(one)).digest)
            except MeshError:
                continue

    async def _call(self, channel: Any, path: str, request: bytes, metadata: Any) -> bool:
        """Whether it wrote anything. Raises Broken."""
        method = METHODS[path]
        streams = method.server_streaming
        call = (channel.unary_stream if streams else channel.unary_unary)(path)(
            request, metadata=metadata, timeout=ANSWER_S)  # fmt: skip
        try:
            answers = await self._listen(call) if streams else [await call]
        except grpc.aio.AioRpcError as error:
            judge_status(error, f"{path} of {request[:3000].hex()}", self._mesh.secrets)
            self.report.codes[error.code().name] += 1
            from_rpc_error(error)
            return False
        finally:
            call.cancel()
        self.report.codes["OK"] += 1
        found = [GetMessageClass(method.output_type).FromString(answer) for answer in answers]
        for one in found:
            self._maker.learn(one)
        if not ACCESS[path].writes or (path in _PARTLY and not any(map(_PARTLY[path], found))):
            return False
        self.report.writes[path.rpartition("/")[2]] += 1
        return not path.startswith("/computemesh.v1.WorkerService/")  # which no book has

    async def _listen(self, call: Any) -> list[bytes]:
        """The first answers of a stream, if they come soon; a stream may go on for ever."""
        answers: list[bytes] = []
        try:
            async with asyncio.timeout(FIRST_S):
                while len(answers) < MOST_ANSWERS and (answer := await call.read()) is not grpc.aio.EOF:
                    answers.append(answer)
        except TimeoutError:
            pass
        return answers
