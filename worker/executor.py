"""The process that owns one device: jobs in, unit digests and outputs out. The only part of the worker that imports
JAX. `computemesh.service.child` starts it and says how it is talked to.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from contextlib import suppress
from typing import Any

from computemesh import workloads
from computemesh.service.child import Link
from computemesh.service.job_files import JobFiles
from computemesh.service.pauses import shorten_pauses
from computemesh.trust.audit import JobTree
from computemesh.trust.errors import MeshError
from computemesh.trust.merkle import leaf_hash
from computemesh.v1.orchestrator_pb2 import NACK_KIND_POISON, NACK_KIND_RETRYABLE
from computemesh.workloads import Context, JobSpec, Outcome, Workload
from worker import spool
from worker.answers import GroupDone
from worker.events import Partial
from worker.lanes import Row

MAX_TEXT = 1024
MAX_PARTIAL = 4096
PARTIAL_EVERY_S = 0.25
Failure = tuple[int, str, str]
# "Out of memory allocating 99 bytes" (XLA), "Unable to allocate 7.28 TiB" (numpy).
ALLOCATION = re.compile(r"allocat\w* ([\d.]*\d) ?(bytes|[KMGTP]iB)")
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


class Cancelled(Exception):
    """Nobody wants this group's results any more."""


def open_device(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Import JAX, take the device, and say what it is. Raises what JAX raises where there is none."""
    import jax
    from jaxlib import version as jaxlib_version

    cache = settings["cache_dir"]
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # type: ignore[no-untyped-call]
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # type: ignore[no-untyped-call]
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # type: ignore[no-untyped-call]
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit", 0) if device.platform != "cpu" else 0
    if device.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device, {
        "kind": device.device_kind,
        "platform": device.platform,
        "memory_bytes": int(memory),
        "jaxlib_version": jaxlib_version.__version__,
    }


class Compilations:
    """Counts what XLA compiles in this process. A program that comes from the cache on disk does not count."""

    EVENT = "/jax/core/compile/backend_compile_duration"
    FROM_CACHE = "/jax/compilation_cache/cache_hits"

    def __init__(self) -> None:
        from jax import monitoring

        self.count = 0
        # JAX times reading the cache as a compilation, too, and says beside it that it was none.
        monitoring.register_event_duration_secs_listener(self._compiled)
        monitoring.register_event_listener(self._cached)

    def _compiled(self, event: str, duration: float, **fields: Any) -> None:
        self.count += event == self.EVENT

    def _cached(self, event: str, **fields: Any) -> None:
        self.count -= event == self.FROM_CACHE


def failure_of(error: BaseException) -> Failure:
    """What a job's exception means to the orchestrator: (nack kind, reason, text)."""
    text = f"{type(error).__name__}: {error}"[:MAX_TEXT]
    if isinstance(error, Cancelled):
        return NACK_KIND_RETRYABLE, "REVOKED", ""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return NACK_KIND_RETRYABLE, "DISK_FULL", text
    # XLA's allocator has no exception class of its own; jaxlib puts the status name into the text.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return NACK_KIND_RETRYABLE, "OUT_OF_MEMORY", text
    if isinstance(error, MeshError):  # says itself what is wrong, and whether another worker may succeed
        kind = NACK_KIND_POISON if error.retry_after_ms is None else NACK_KIND_RETRYABLE
        return kind, error.reason, error.message[:MAX_TEXT]
    return NACK_KIND_POISON, "EXECUTION_ERROR", text


def smaller_batch(text: str, memory_bytes: int, batch: tuple[str, int] | None) -> str:
    """What to ask less of after running out of memory, ahead of the allocator's `text`; at most MAX_TEXT characters.

    `memory_bytes` is what the device has, 0 = unknown; `batch` is what `Workload.batch` says. Memory is taken to grow
    with the batch, and at least half of the batch to be too much: the failed allocation is not all that the job holds.
    """
    found = ALLOCATION.search(text)
    asked = int(float(found[1]) * 1024 ** UNITS.index(found[2])) if found else 0
    has = f"{memory_bytes:,} bytes" if memory_bytes else "unknown memory"
    hint = f"asked for {f'{asked:,} bytes' if asked else 'more'} at once of a device with {has}"
    if batch is not None and batch[1] > 1:
        name, size = batch
        fits = min(size // 2, size * memory_bytes // asked) if asked and memory_bytes else size // 2
        hint += f"; {name} of {size:,} was too much, " + (f"{fits:,} may fit" if fits else "and not even 1 may fit")
    return f"{hint}: {text}"[:MAX_TEXT]


class Executor:
    """Runs groups of jobs of one task type on one device."""

    def __init__(self, lane: int, link: Link, device: Any, scratch: str | None = None, memory_bytes: int = 0) -> None:
        """`scratch` is a folder for what does not fit memory; None = the system's for temporary files. `memory_bytes`
        is what the device has, 0 = unknown."""
        self._memory_bytes = memory_bytes
        self._lane, self._link, self._device, self._scratch = lane, link, device, scratch

    def run(self, group_id: int, challenge_type: str, rows: list[Row]) -> GroupDone:
        """All jobs of a group; where the group fails as a whole each runs alone, so that only the bad ones do."""
        started = time.perf_counter_ns()
        done = GroupDone(self._lane, group_id, {}, [], 0, [], [], [], [])
        specs = [
            JobSpec(task_id=row[0], index=row[1], params=row[2], binding=row[3]) if len(row) == 4 else _reading(*row)
            for row in rows
        ]
        try:
            workload = workloads.get(challenge_type)
            outcomes = self._execute(workload, specs, group_id)
        except Exception as error:
            if len(specs) > 1 and not isinstance(error, Cancelled):
                for spec in specs:
                    self._one(done, challenge_type, spec, group_id)
            else:
                for spec in specs:
                    self._failed(done, challenge_type, spec, error)
        else:
            each_us = (time.perf_counter_ns() - started) // 1000 // max(len(specs), 1)
            for spec, outcome in zip(specs, outcomes, strict=True):
                try:
                    _add(done, workload, spec, outcome, each_us, self._scratch)
                except Exception as error:
                    self._failed(done, challenge_type, spec, error)
        done.wall_us = (time.perf_counter_ns() - started) // 1000
        return done

    def _one(self, done: GroupDone, challenge_type: str, spec: JobSpec, group_id: int) -> None:
        started = time.perf_counter_ns()
        try:
            workload = workloads.get(challenge_type)
            outcome = self._execute(workload, [spec], group_id)[0]
            _add(done, workload, spec, outcome, (time.perf_counter_ns() - started) // 1000, self._scratch)
        except Exception as error:
            self._failed(done, challenge_type, spec, error)

    def _failed(self, done: GroupDone, challenge_type: str, spec: JobSpec, error: Exception) -> None:
        kind, reason, text = failure_of(error)
        if reason == "OUT_OF_MEMORY":
            batch = None
            with suppress(MeshError):  # params that are not the type's say nothing of a batch
                workload = workloads.get(challenge_type)
                batch = workload.batch(spec) if workload.batch else None
            text = smaller_batch(text, self._memory_bytes, batch)
        done.failures[len(done.compute_us)] = kind, reason, text
        done.result_hashes.append(b"")
        done.layouts.append((1, 1))
        done.digests.append(b"")
        done.units.append(None)
        done.compute_us.append(0)

    def _execute(self, workload: Workload[Any], specs: list[JobSpec], group_id: int) -> list[Outcome]:
        def progress(_fraction: float) -> None:
            if group_id in self._link.cancelled:
                raise Cancelled

        shown_s = 0.0

        def partial(text: str) -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s >= PARTIAL_EVERY_S:
                shown_s = time.monotonic()
                self._link.send(("partial", Partial(group_id, text.encode()[:MAX_PARTIAL].decode(errors="ignore"))))

        progress(0.0)
        context = Context(self._device, self._scratch, progress, partial if len(specs) == 1 else None)
        if len(specs) == 1 and workload.execute_batch is None:
            return [workload.execute(specs[0], context)]
        return workload.execute_all(specs, context)


def _reading(task_id: bytes, index: int, params: bytes, binding: bytes, files: JobFiles) -> JobSpec:
    """A job that reads files; what it needs are the jobs whose outputs came with it."""
    return JobSpec(task_id, index, params, needs=tuple(files.outputs), binding=binding, files=files)


def _add(
    done: GroupDone, workload: Workload[Any], spec: JobSpec, outcome: Outcome, compute_us: int, scratch: str | None
) -> None:
    layout = workload.layout(spec)
    if layout.leaves == 1 and len(outcome.digests) == 32:
        root = leaf_hash(outcome.digests)
    else:
        root = JobTree(layout, outcome.digests).result_hash
    # Bytes for openings leave with the result: after that this process may die without failing an audit.
    asked = outcome.units is not None and workload.output_units is None
    units = spool.collect(map(outcome.units, range(layout.count)), scratch) if asked and outcome.units else None
    if workload.output_bytes is not None:
        done.outputs[len(done.compute_us)] = outcome.output
    done.result_hashes.append(root)
    done.layouts.append((layout.segments, layout.units))
    done.digests.append(outcome.digests)
    done.units.append(units)
    done.compute_us.append(min(compute_us, 2**32 - 1))


def main(fd: int, settings: dict[str, Any]) -> None:
    """Serve the agent at the other end of socket `fd` until it closes."""
    link = Link.inherited(fd)
    try:
        device, description = open_device(settings)
    except Exception as error:
        link.send(("failed", f"{type(error).__name__}: {error}"[:MAX_TEXT]))
        raise SystemExit(1) from error
    compilations = Compilations()
    link.send(("ready", description))
    scratch = settings["scratch_dir"]
    if scratch is not None:
        spool.begin(scratch)
    executor = Executor(settings["lane"], link, device, scratch, description["memory_bytes"])
    ended_ns = 0
    shorten_pauses()
    while True:
        waits = not link.inbox.empty()
        _, group_id, challenge_type, rows = link.inbox.get()
        before, began_ns = compilations.count, time.perf_counter_ns()
        done = executor.run(group_id, challenge_type, rows)
        done.compiled = compilations.count - before
        done.gap_us = (began_ns - ended_ns) // 1000 if waits else 0
        ended_ns = time.perf_counter_ns()
        link.cancelled.discard(group_id)
        link.send(("done", done))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
