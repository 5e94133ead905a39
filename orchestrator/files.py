"""Artifacts as the orchestrator and its audits read them: from the store itself, through a cache on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from computemesh.service.artifact_cache import ArtifactCache
from computemesh.service.artifacts import Artifacts, now_ms
from computemesh.service.blobs import Owner
from computemesh.service.job_files import JobFiles
from computemesh.service.transfer import ArtifactInfo, file_digest
from computemesh.trust import folder
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.identity import address_of
from computemesh.workloads.contract import Artifact

WORKER = "worker"
"""The kind of owner that workers' uploads have: a key that is a customer's too keeps the two apart."""


def noted(task_id: bytes) -> str:
    """Where the store says which output belongs to which job; removed with the task's references."""
    return f"outputs/{task_id.hex()}"


class FromStore:
    """What `ArtifactCache` asks of a Transfer, answered by the store without a server in between."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._store = artifacts.store

    async def stat(self, digest: str) -> ArtifactInfo:
        """Raises NotFound."""
        blob = await self._store.get(digest)
        return ArtifactInfo(digest, blob.size, blob.name, blob.media_type, blob.created_ms)

    async def get(self, digest: str, to: Path, *, max_bytes: int | None = None) -> Path:
        """Raises NotFound, InvalidArgument (too large), InvalidProof (damaged)."""
        blob = await self._store.get(digest)
        if max_bytes is not None and blob.size > max_bytes:
            raise InvalidArgument(f"artifact {digest} has {blob.size:,} bytes, at most {max_bytes:,} are read")
        part = to.with_name(f".{to.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                async for piece in self._store.read(blob):
                    file.write(piece)
            if file_digest(part)[0] != digest:
                raise InvalidProof(f"artifact {digest} is damaged in the store", reason="DIGEST_MISMATCH")
            os.replace(part, to)
        finally:
            part.unlink(missing_ok=True)
        return to


class TaskFiles:
    """Inputs and outputs of tasks in the store, and on this machine's disk while somebody works with them."""

    def __init__(self, artifacts: Artifacts, folder_path: Path, max_bytes: int) -> None:
        """Raises InvalidState where another process has the cache folder."""
        self.artifacts = artifacts
        self._cache = ArtifactCache(folder_path, max_bytes)
        self._transfer: Any = FromStore(artifacts)

    @contextlib.asynccontextmanager
    async def use(
        self, inputs: Iterable[bytes] = (), outputs: dict[int, bytes] | None = None, more: Iterable[bytes] = ()
    ) -> AsyncIterator[JobFiles]:
        """Files of a job, here while the body runs: its inputs, the outputs of other jobs by index, and `more`.
        Raises NotFound, ResourceExhausted, Unavailable."""
        inputs, needed = list(inputs), outputs or {}
        folders = []
        for digest in inputs:
            if (await self._transfer.stat(digest.hex())).media_type == folder.MEDIA_TYPE:
                folders.append(digest)
        async with self._cache.use(self._transfer, [*inputs, *needed.values(), *more], folders) as local:
            yield JobFiles(local, needed)

    async def size(self, digest: bytes) -> int:
        """Bytes of an artifact. Raises NotFound."""
        return (await self.artifacts.store.get(digest.hex())).size

    async def keep_output(self, task_id: bytes, job: int, result_hash: bytes, output: bytes) -> None:
        """Keep a verified output until the market lets go of the task, and note whose it is, for whoever has the task
        after us. Raises NotFound."""
        await self.artifacts.hold_for_task(task_id.hex(), [output.hex()])
        place = f"{noted(task_id)}/{job}-{result_hash.hex()}-{output.hex()}"
        await self.artifacts.store.objects.put(place, b"{}")

    async def keep_evidence(self, task_id: bytes, digest: bytes, ttl_ms: int) -> None:
        """Keep what a result was judged by for so long. Raises NotFound."""
        store, retention = self.artifacts.store, self.artifacts.retention
        owner = Owner("audit", task_id.hex())
        await retention.hold(digest.hex(), (await store.get(digest.hex())).size, owner, now_ms() + ttl_ms)

    async def discard(self, worker: bytes, digest: bytes) -> None:
        """End a worker's reference to something it uploaded."""
        await self.artifacts.retention.release(Owner(WORKER, address_of(worker)), digest.hex())

    async def kept_outputs(self, task_id: bytes) -> list[tuple[int, bytes, bytes]]:
        """(job, result hash, SHA-256 of the output) of a task's verified jobs, whichever orchestrator verified them."""
        names = [one.path.rpartition("/")[2] for one in await self.artifacts.store.objects.list(noted(task_id))]
        rows = [name.split("-") for name in names]
        return [(int(job), bytes.fromhex(result_hash), bytes.fromhex(output)) for job, result_hash, output in rows]

    async def put(self, task_id: bytes, artifact: Artifact) -> bytes:
        """Store one of a task's files; its SHA-256."""
        owner = Owner("task", task_id.hex())
        return bytes.fromhex(await self.artifacts.put(artifact.data, owner, artifact.name, artifact.media_type))

    async def drop(self, task_id: bytes, digest: bytes) -> None:
        """End a task's reference to one artifact."""
        await self.artifacts.retention.release(Owner("task", task_id.hex()), digest.hex())

    def close(self) -> None:
        """Let another process use the cache folder."""
        self._cache.close()
