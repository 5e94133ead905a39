"""What jobs read and leave, between this machine's disk and the orchestrator's artifact service."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path

import grpc

from computemesh.service.artifact_cache import ArtifactCache
from computemesh.service.auth import make_token
from computemesh.service.crashpoints import crash_point
from computemesh.service.job_files import JobFiles
from computemesh.service.server import dial
from computemesh.service.tls import PLAIN, Trust
from computemesh.service.transfer import Metadata, Transfer
from computemesh.trust import folder
from computemesh.trust.audit import INLINE_BYTES
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import orchestrator_pb2 as pb
from worker.events import Challenged, Fetched, Opened, Stored, Storing

TOKEN_LIFE_MS = 3_600_000
MAX_KINDS = 4096


class Files:
    """One agent's artifacts. `orchestrator` says where the stream goes: nobody else knows the worker. `chain` is asked
    for when a token is signed: the orchestrator names it on the stream."""

    def __init__(
        self, root: Path, orchestrator: Callable[[], str], key: PrivateKey, chain: Callable[[], str],
        trust: Trust = PLAIN,
    ) -> None:  # fmt: skip
        """Raises InvalidState where another process has the cache folder."""
        self._cache = ArtifactCache(root)
        self._orchestrator, self._key, self._chain, self._trust = orchestrator, key, chain, trust
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._used: dict[int, tuple[pb.Job, contextlib.AsyncExitStack]] = {}
        self._folders: dict[bytes, bool] = {}

    async def fetch(self, job: pb.Job) -> Fetched:
        """Bring what a job reads here, and keep it until `let_go`."""
        stack = contextlib.AsyncExitStack()
        try:
            transfer = self._transfer()
            needed = [item.output for item in job.needs]
            folders = [digest for digest in job.inputs if await self._is_folder(transfer, digest)]
            use = self._cache.use(transfer, [*job.inputs, *needed], folders)
            local = await stack.enter_async_context(use)
        except (MeshError, OSError) as error:
            await stack.aclose()
            return Fetched(job, failure=(pb.NACK_KIND_RETRYABLE, "INPUT_UNAVAILABLE", str(error)))
        except BaseException:
            await stack.aclose()
            raise
        self._used[job.lease_id] = (job, stack)
        crash_point("worker.inputs.fetched")
        return Fetched(job, JobFiles(local, {item.job: item.output for item in job.needs}))

    async def let_go(self, held: Mapping[int, pb.Job] | Container[int]) -> None:
        """Files of jobs that are not held any more may go when room is needed."""
        for lease in [lease for lease in self._used if lease not in held]:
            _, stack = self._used.pop(lease)
            await stack.aclose()

    async def store(self, storing: Storing) -> Stored:
        """Store a job's output, and its unit digests where it has several units."""
        done, at = storing.done, storing.at
        try:
            transfer = self._transfer()
            name = f"job-{storing.job.index}"
            several = len(done.digests[at]) > 32
            output, listed = await asyncio.gather(
                transfer.put(done.outputs[at], name=name),
                transfer.put(done.digests[at], name=f"{name}-units") if several else _nothing(),
            )
        except (MeshError, OSError) as error:
            return Stored(storing, failure=(pb.NACK_KIND_RETRYABLE, "OUTPUT_NOT_STORED", str(error)))
        crash_point("worker.output.stored")
        return Stored(storing, bytes.fromhex(output.digest), bytes.fromhex(listed.digest) if listed else b"")

    async def open(self, challenged: Challenged, scratch: Path) -> Opened:
        """Open units that are on disk: into a message where they fit one, else stored as an artifact."""
        answer, lease = challenged.answer, challenged.lease_id
        try:
            with tempfile.NamedTemporaryFile(dir=scratch, prefix="openings-") as file:
                pieces = answer.opened(challenged.seed, challenged.k)
                await asyncio.to_thread(file.writelines, pieces)
                if file.tell() <= INLINE_BYTES:
                    file.seek(0)
                    return Opened(lease, answer, file.read())
                file.flush()
                stored = await self._transfer().put(Path(file.name), name=f"job-{answer.index}-openings")
        except (MeshError, OSError) as error:
            return Opened(lease, answer, b"", failure=str(error))
        return Opened(lease, answer, b"", bytes.fromhex(stored.digest))

    async def close(self) -> None:
        """Release the cache folder and the connection."""
        await self.let_go(())
        self._cache.close()
        for channel in self._channels.values():
            await channel.close(None)

    def _transfer(self) -> Transfer:
        # A channel of its own: bytes would crowd out heartbeats.
        address = self._orchestrator()
        if address not in self._channels:
            self._channels[address] = dial(address, self._trust)
        return Transfer(self._channels[address], self._metadata)

    async def _metadata(self) -> Metadata:
        token = make_token(self._key, self._chain(), time.time_ns() // 1_000_000 + TOKEN_LIFE_MS)
        return (("authorization", f"Bearer {token}"),)

    async def _is_folder(self, transfer: Transfer, digest: bytes) -> bool:
        known = self._folders.get(digest)
        if known is None:
            known = (await transfer.stat(digest.hex())).media_type == folder.MEDIA_TYPE
            if len(self._folders) >= MAX_KINDS:
                self._folders.clear()
            self._folders[digest] = known
        return known


async def _nothing() -> None:
    return None
