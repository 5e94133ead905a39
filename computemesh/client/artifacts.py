"""Artifacts for customers: files and folders that tasks read and leave, by the SHA-256 of their bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc

from computemesh.client.rpc import meaning
from computemesh.service import folders
from computemesh.service.transfer import ArtifactInfo, Metadata, Progress, Transfer
from computemesh.trust import folder
from computemesh.trust.errors import InvalidArgument

__all__ = ["ArtifactInfo", "AsyncArtifacts"]


def _silent(done: int, total: int) -> None:
    return None


class AsyncArtifacts:
    """The artifacts of one account, at the service that `connect` leads to and that messages call `peer`."""

    def __init__(
        self, connect: Callable[[], grpc.aio.Channel], metadata: Callable[[], Awaitable[Metadata]], peer: str,
        retry_for: float,
    ) -> None:  # fmt: skip
        self._connect, self._metadata, self._peer, self._retry_for = connect, metadata, peer, retry_for

    @property
    def transfer(self) -> Transfer:
        """The transport below, in the running event loop: a channel belongs to the loop it was made in."""
        return Transfer(self._connect(), self._metadata, self._retry_for, lambda error: meaning(error, self._peer))

    async def put(
        self, source: Path | str | bytes, *, name: str | None = None, media_type: str = "",
        progress: Progress = _silent,
    ) -> ArtifactInfo:  # fmt: skip
        """Stores a file, a folder or bytes, and keeps it for you for a week; putting it again renews that.

        Only what the store has not is sent, and an interrupted put continues where it stopped. Raises InvalidArgument
        (too large, unreadable), ResourceExhausted, Unauthenticated.
        """
        if isinstance(source, bytes):
            return await self.transfer.put(source, name=name, media_type=media_type, progress=progress)
        path = Path(source)
        if await asyncio.to_thread(os.path.isdir, path):
            return await folders.put_folder(self.transfer, path, name=name, progress=progress)
        if await asyncio.to_thread(lambda: path.exists() and not path.is_file()):
            raise InvalidArgument(f"{path} is neither a file nor a folder: a device or a pipe has no end",
                                  violations=[("source", f"{path} is neither a file nor a folder")])
        return await self.transfer.put(path, name=name, media_type=media_type, progress=progress)

    async def get(
        self, digest: str, to: Path | str, *, as_file: bool = False, progress: Progress = _silent
    ) -> Path:
        """Writes an artifact to `to`; a folder artifact becomes a folder, unless `as_file` asks for its manifest.

        Raises NotFound, InvalidArgument (the target exists as a folder, or cannot be written), InvalidProof where the
        bytes have another digest.
        """
        path = Path(to)
        known = await self.stat(digest)
        if known.media_type == folder.MEDIA_TYPE and not as_file:
            return await folders.get_folder(self.transfer, known.digest, path, progress=progress)
        if await asyncio.to_thread(os.path.isdir, path):
            raise InvalidArgument(f"{path} is a folder: name a file", violations=[("to", f"{path} is a folder")])
        return await self.transfer.get(known.digest, path, progress=progress)

    async def read(self, digest: str, max_bytes: int = 64 << 20) -> bytes:
        """An artifact's bytes, at most `max_bytes`. Raises as `get`."""
        return await self.transfer.read(digest, max_bytes)

    async def stat(self, digest: str) -> ArtifactInfo:
        """What the store knows of a digest. Raises NotFound."""
        return await self.transfer.stat(digest)

    async def list(self, page_size: int = 0) -> AsyncIterator[ArtifactInfo]:
        """Your artifacts, the last put first, page by page as you iterate."""
        token = ""
        while True:
            page, token, _ = await self.transfer.page(page_size, token)
            for one in page:
                yield one
            if not token:
                return

    async def delete(self, digest: str) -> None:
        """Ends your reference; the bytes go when nobody else refers to them. Raises NotFound."""
        await self.transfer.delete(digest)
