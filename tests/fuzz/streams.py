"""Sequences of messages on the streams that go both ways: a worker's, an orchestrator's, an uploader's.

Each begins as an honest peer would, mostly, and then says what comes to mind: about leases it holds and leases it does
not, with good signatures and others.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from computemesh.service.server import dial
from computemesh.trust import envelope, statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import artifact_pb2, common_pb2, market_pb2, orchestrator_pb2
from tests.fuzz.calls import Report
from tests.fuzz.laws import Broken, judge_status
from tests.fuzz.mesh import SECOND, Mesh
from tests.fuzz.messages import Maker
from tests.workloads.test_laws import SMALL

AT_ONCE = 24
ROUNDS = 8
"""Rounds of streams before the books are looked at."""
MOST_MESSAGES = 32
HEAR_S = 0.02
"""How long an answer is waited for before the next message, now and then."""
END_S = 20.0
WORKERS = tuple(PrivateKey(hashlib.sha256(b"worker %d of the fuzzer" % number).digest()) for number in range(AT_ONCE))


class Streams:
    """Fuzzes the streams of a mesh. `kinds`: which of `work`, `dispatch`, `upload`."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._mesh, self._rng, self.report = mesh, random.Random(seed), Report()
        self._maker = Maker(self._rng, mesh.known(), SMALL)

    async def run(self, inputs: int, kinds: tuple[str, ...] = ("work", "upload", "dispatch")) -> Report:
        """Sends so many messages, an equal share by each kind of peer. Raises Broken."""
        for number, kind in enumerate(kinds, 1):
            behave: Callable[..., Any] = getattr(self, f"_{kind}")
            while self.report.inputs < inputs * number // len(kinds):
                for _ in range(ROUNDS):
                    await asyncio.gather(*(behave(at) for at in range(AT_ONCE if kind != "dispatch" else 2)))
                await self._settle(kind)
        return self.report

    async def _settle(self, kind: str) -> None:
        """After some streams: nobody was paid for what they said, no unit was lost, and all the money is held again."""
        self._mesh.check(f"after streams of {kind}")
        await asyncio.to_thread(self._mesh.hold_all_money)
        parts = (await asyncio.to_thread(self._mesh.state))[0]
        paid = (parts[2], parts[3])
        self._paid = getattr(self, "_paid", paid)
        if paid != self._paid:
            raise Broken(f"streams of {kind} were paid: burned and maturing were {self._paid}, are {paid}")
        self.report.compared += 1

    # ---- the three peers ---------------------------------------------------------------------------------------------
    async def _work(self, at: int) -> None:
        key, response = WORKERS[at], orchestrator_pb2.WorkResponse
        device = common_pb2.Device(kind="cpu", platform="cpu", memory_bytes=2**34)
        capabilities = common_pb2.Capabilities(devices=[device])
        await self._talk("orchestrator", "/computemesh.v1.OrchestratorService/Work", orchestrator_pb2.WorkRequest,
                         response, lambda peer: self._greet(peer, key, capabilities, {"ready": {"credits": 4}}),
                         lambda made, heard: self._commit(made, heard, key))  # fmt: skip

    async def _dispatch(self, at: int) -> None:
        info = market_pb2.OrchestratorInfo(address="127.0.0.1:9")
        await self._talk("market", "/computemesh.v1.MarketService/Dispatch", market_pb2.DispatchRequest,
                         market_pb2.DispatchResponse,
                         lambda peer: self._greet(peer, SECOND, info, {"ready": {"credits": 2}}))  # fmt: skip

    async def _upload(self, at: int) -> None:
        data = self._rng.randbytes(self._rng.choice((1, 1000, 100_000)))

        async def declare(peer: Peer) -> None:
            digest = hashlib.sha256(data).hexdigest() if self._rng.random() < 0.5 else "0" * 64
            size = len(data) if self._rng.random() < 0.7 else self._rng.choice((0, 1, len(data) + 1, 2**40))
            await peer.send(artifact_pb2.UploadArtifactRequest(declaration={"digest": digest, "size": size}))
            if self._rng.random() < 0.5:
                await peer.send(artifact_pb2.UploadArtifactRequest(chunk=data))

        process = self._rng.choice(("market", "orchestrator"))
        await self._talk(process, "/computemesh.v1.ArtifactService/UploadArtifact", artifact_pb2.UploadArtifactRequest,
                         artifact_pb2.UploadArtifactResponse, declare)  # fmt: skip

    # ---- what they say -----------------------------------------------------------------------------------------------
    async def _talk(
        self, process: str, path: str, request: type[Message], response: type[Message],
        begin: Callable[[Peer], Any], polish: Callable[[Any, list[Any]], None] = lambda made, heard: None,
    ) -> None:  # fmt: skip
        async with dial(self._mesh.cluster.address(process), own_connection=True) as channel:
            call = channel.stream_stream(path)(metadata=self._mesh.bearer, timeout=END_S)
            peer = Peer(call, response, self._maker, self.report)
            try:
                if self._rng.random() < 0.9:
                    await begin(peer)
                for _ in range(self._rng.randrange(MOST_MESSAGES)):
                    made = self._maker.message(request.DESCRIPTOR)
                    polish(made, peer.heard)
                    data = made.SerializeToString()
                    await peer.send_bytes(data if self._rng.random() < 0.92 else self._maker.damaged(made))
                    await peer.listen(HEAR_S if self._rng.random() < 0.2 else 0.0)
                if self._rng.random() < 0.5:
                    await call.done_writing()
                    await peer.listen(HEAR_S)
            except grpc.aio.AioRpcError as error:
                judge_status(error, f"{path} after {peer.said[-4:]}", self._mesh.secrets)
                self.report.codes[error.code().name] += 1
            except asyncio.InvalidStateError:  # the stream ended with a status while we wrote
                code = grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(),
                                            await call.trailing_metadata(), await call.details())  # fmt: skip
                judge_status(code, f"{path} after {peer.said[-4:]}", self._mesh.secrets)
                self.report.codes[code.code().name] += 1
            else:
                self.report.codes["OK"] += 1
            finally:
                call.cancel()
                await peer.close()

    async def _greet(self, peer: Peer, key: PrivateKey, about: Message, then: dict[str, Any]) -> None:
        """A hello with a good signature, and credits."""
        await peer.listen(END_S)
        greeting, about = peer.heard[0].greeting, about.SerializeToString()
        body = statement.hello_body(greeting.nonce, greeting.public_key, key.public, about)
        signature = envelope.sign(key, "hello", self._mesh.chain, body)
        hello = common_pb2.Hello(public_key=key.public, capabilities=about, signature=signature)
        kind = orchestrator_pb2.WorkRequest if key in WORKERS else market_pb2.DispatchRequest
        await peer.send(kind(hello=hello))
        await peer.listen(END_S)
        await peer.send(kind(**then))
        await peer.listen(0.2)

    def _commit(self, made: Any, heard: list[Any], key: PrivateKey) -> None:
        """Half of the commitments are for jobs that were given, and signed."""
        jobs = [job for one in heard for job in one.jobs.jobs]
        if made.WhichOneof("message") != "commitments" or not jobs or self._rng.random() < 0.5:
            return
        chosen = self._rng.sample(jobs, self._rng.randrange(len(jobs)) + 1)
        rows = b"".join(
            statement.Commitment(job.task_id, job.index, job.task_epoch, job.attempt, key.public,
                                 self._rng.randbytes(32), self._rng.randrange(2**32)).pack()
            for job in chosen)  # fmt: skip
        made.Clear()
        made.commitments.lease_ids.extend(job.lease_id for job in chosen)
        made.commitments.commitments = rows
        made.commitments.signature = statement.sign_commitments(key, self._mesh.chain, rows)


class Peer:
    """One side of a stream: what it said, and what it heard."""

    def __init__(self, call: Any, response: type[Message], maker: Maker, report: Report) -> None:
        self._call, self._response, self._maker, self._report = call, response, maker, report
        self.heard: list[Any] = []
        self.said: list[str] = []
        self._reading: asyncio.Task[Any] | None = None

    async def send(self, message: Message) -> None:
        await self.send_bytes(message.SerializeToString())

    async def send_bytes(self, data: bytes) -> None:
        self.said.append(data[:2000].hex())
        self._report.inputs += 1
        await self._call.write(data)

    async def listen(self, within_s: float) -> None:
        """What has come, after the first of it or `within_s`. Raises AioRpcError where the stream ended with one."""
        while True:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._call.read())
            done, _ = await asyncio.wait({self._reading}, timeout=within_s)
            if not done:
                return
            answer, self._reading = self._reading.result(), None
            if answer is grpc.aio.EOF:
                raise asyncio.InvalidStateError("the stream ended")
            self.heard.append(self._response.FromString(answer))
            self._maker.learn(self.heard[-1])
            within_s = 0.0

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
