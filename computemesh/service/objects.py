"""An object store by URL: a local folder, S3, Google Cloud Storage or Azure, through obstore.

Only what every one of them has in the same form is used: put, get, list by prefix, delete. An object that was written
is never changed, so nothing needs conditional writes or locks, and any number of processes may share a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from computemesh.service.crashpoints import crash_point
from computemesh.trust.errors import InvalidArgument, NotFound, Unavailable

SCHEMES = ("file", "memory", "s3", "s3a", "gs", "az", "adl", "abfs", "abfss", "azure")
log = structlog.get_logger("computemesh.objects")


@dataclass(frozen=True, slots=True)
class Object:
    """One listed object: path, bytes, Unix ms of its writing."""

    path: str
    size: int
    modified_ms: int


class Objects:
    """Named immutable byte strings. Every method raises Unavailable where the store does not answer."""

    def __init__(self, url: str) -> None:
        """Opens the store at `url`, e.g. `file:///srv/artifacts` or `s3://bucket/prefix` (credentials and endpoint as
        the provider's tools read them from the environment). Raises InvalidArgument.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            problem = f"{url!r} is not a URL of an artifact store: {', '.join(f'{name}://' for name in SCHEMES)}"
            raise InvalidArgument(f"artifacts: {problem}", violations=[("artifacts", problem)])
        self.root: Path | None = None
        try:
            if parts.scheme == "file":
                self.root = Path(unquote(parts.path))
                self._store: Any = LocalStore(prefix=self.root, mkdir=True, automatic_cleanup=True)
            else:
                self._store = from_url(url)
        except (BaseError, ValueError, OSError) as error:
            problem = f"cannot open {url!r}: {str(error)[:200]}"
            raise InvalidArgument(f"artifacts: {problem}", violations=[("artifacts", problem)]) from None

    async def put(self, path: str, data: Any) -> None:
        """Writes an object (a buffer or a list of them); it is durable when this returns."""
        try:
            await obstore.put_async(self._store, path, data, use_multipart=False)
            crash_point("object.written")
            if self.root is not None:
                await asyncio.to_thread(_flush, self.root, self.root / path)
            crash_point("object.durable")
        except (BaseError, OSError) as error:
            raise self._failed("write", path, error) from None

    async def get(self, path: str, limit: int) -> bytes:
        """The whole object. Raises NotFound, and InvalidArgument where it has more than `limit` bytes."""
        try:
            found = await obstore.get_async(self._store, path)
            if found.meta["size"] > limit:
                raise InvalidArgument(f"{path} has {found.meta['size']:,} bytes, at most {limit:,} are read")
            return bytes(memoryview(await found.bytes_async()))
        except FileNotFoundError:
            raise NotFound(f"{path} is not there") from None
        except (BaseError, OSError) as error:
            raise self._failed("read", path, error) from None

    async def range(self, path: str, start: int, length: int) -> memoryview:
        """`length` bytes from `start` on. Raises NotFound."""
        try:
            return memoryview(await obstore.get_range_async(self._store, path, start=start, length=length))
        except FileNotFoundError:
            raise NotFound(f"{path} is not there") from None
        except (BaseError, OSError) as error:
            raise self._failed("read", path, error) from None

    async def list(self, prefix: str) -> list[Object]:
        """Every object below `prefix` (whole path segments), in path order."""
        found: list[Object] = []
        try:
            async for batch in obstore.list(self._store, prefix=prefix):
                found += [
                    Object(str(one["path"]), one["size"], int(one["last_modified"].timestamp() * 1000))
                    for one in batch
                ]
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise self._failed("list", prefix, error) from None
        return sorted(found, key=lambda one: one.path)

    async def delete(self, paths: Sequence[str]) -> None:
        """Removes objects; those that are gone already are fine."""
        for path in paths:
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise self._failed("delete", path, error) from None

    def free_bytes(self) -> int | None:
        """What a local folder's disk can still take; None for a store that does not say."""
        return shutil.disk_usage(self.root).free if self.root is not None else None

    async def sweep(self, older_than_ms: int) -> None:
        """Removes what a process that died left half written in a local folder (listings do not show it)."""
        if self.root is not None:
            await asyncio.to_thread(_sweep, self.root, older_than_ms / 1000)

    def _failed(self, verb: str, path: str, error: Exception) -> Unavailable:
        log.error("artifact store failed", operation=verb, path=path, error=str(error)[:500])
        return Unavailable("the artifact store does not answer; the service's log has the cause", retry_after_ms=1000)


def _flush(root: Path, path: Path) -> None:
    """Makes a file durable, its name too: an fsync of the file, then of the folders that may be new."""
    for target in (path, *path.parents):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if target == root:
            return


def _sweep(root: Path, before_s: float) -> None:
    # obstore stages a write as NAME#N beside NAME.
    for path in root.rglob("*#*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < before_s:
                path.unlink()
