"""The audit processes: started when first needed, given one piece of work at a time, and started again when they die or
take too long."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import structlog

from computemesh.service.child import LOST, Child, ChildFailed
from computemesh.trust.errors import MeshError

# What customers wait for comes before what they may look at meanwhile.
AUDIT, ASSEMBLY, PREVIEW = 0, 1, 2
STOP = 9
log = structlog.get_logger("orchestrator.audits")

_Item = tuple[int, int, str, tuple[Any, ...], float, "asyncio.Future[Any] | None"]


class AuditFailed(MeshError):
    """The audit process died, took too long, or the task type's own code raised: nobody outside is to blame."""

    status = "INTERNAL"
    reason = "AUDIT_BROKE"


class Audits:
    """`processes` children that run `orchestrator.auditor`; compiled code is kept in `folder`."""

    def __init__(self, processes: int, folder: Path) -> None:
        environment = {
            "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder.absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        }  # fmt: skip
        self._children = [Child("orchestrator.auditor", {"number": at}, environment) for at in range(processes)]
        self._queue: asyncio.PriorityQueue[_Item] = asyncio.PriorityQueue()
        self._order = itertools.count()
        self._loops: list[asyncio.Task[None]] = []

    async def ask(self, priority: int, what: str, arguments: tuple[Any, ...], limit_s: float) -> Any:
        """Have a function of `orchestrator.auditor.WORK` called; at most `limit_s` seconds once its turn has come.
        Raises AuditFailed."""
        if not self._loops:
            self._loops = [asyncio.create_task(self._serve(child)) for child in self._children]
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((priority, next(self._order), what, arguments, limit_s, future))
        return await future

    @property
    def busy(self) -> bool:
        """Whether anything waits for its turn."""
        return not self._queue.empty()

    async def close(self) -> None:
        """End the processes, whatever they do."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.gather(*(child.end() for child in self._children))

    async def _serve(self, child: Child) -> None:
        while True:
            _, _, what, arguments, limit_s, future = await self._queue.get()
            assert future is not None
            if future.cancelled():
                continue
            try:
                found = await self._run(child, what, arguments, limit_s)
            except AuditFailed as error:
                if not future.done():
                    future.set_exception(error)
            except asyncio.CancelledError:
                future.cancel()
                raise
            else:
                if not future.done():
                    future.set_result(found)

    async def _run(self, child: Child, what: str, arguments: tuple[Any, ...], limit_s: float) -> Any:
        try:
            if child.pid is None:
                await child.start()
                log.info("audit process up", pid=child.pid)
            child.send((what, arguments))
            status, found = await asyncio.wait_for(child.receive(), limit_s)
        except (ChildFailed, TimeoutError, *LOST) as error:
            code = await child.end()
            cause = f"took longer than {limit_s:g} s" if isinstance(error, TimeoutError) else f"ended with {code}"
            log.error("audit process lost", work=what, cause=cause, error=str(error)[:200])
            raise AuditFailed(f"the audit process {cause} during {what}") from None
        if status != "done":
            raise AuditFailed(f"{what}: {found}")
        return found
