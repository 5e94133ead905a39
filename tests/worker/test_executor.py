"""The executor's own rules, without a device: what a failure means, what is kept for openings."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.worker import groups
from computemesh import workloads
from computemesh.trust.audit import JobTree, Layout
from computemesh.v1.orchestrator_pb2 import NACK_KIND_POISON, NACK_KIND_RETRYABLE
from computemesh.workloads import Context, JobSpec, Outcome
from worker.devices import environments, visible_gpus
from worker.executor import Cancelled, Executor, failure_of, smaller_batch

ROWS = [(bytes(32), index, bytes([index]), b"") for index in range(4)]


def executor(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> Executor:
    workload = replace(workloads.get("noop"), **functions)
    monkeypatch.setattr(workloads, "get", lambda name: workload)
    link: Any = SimpleNamespace(cancelled=set(), inbox=queue.SimpleQueue())
    return Executor(0, link, None)


def test_no_memory_is_nobodys_fault_and_everything_else_is_the_jobs() -> None:
    class XlaRuntimeError(RuntimeError):
        pass

    assert failure_of(XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes"))[:2] == (
        NACK_KIND_RETRYABLE,
        "OUT_OF_MEMORY",
    )
    assert failure_of(MemoryError())[:2] == (NACK_KIND_RETRYABLE, "OUT_OF_MEMORY")
    assert failure_of(ValueError("x" * 5000))[:2] == (NACK_KIND_POISON, "EXECUTION_ERROR")
    assert len(failure_of(ValueError("x" * 5000))[2]) <= 1024
    assert failure_of(Cancelled())[1] == "REVOKED"


def test_a_job_out_of_memory_says_what_may_fit_and_the_same_executor_serves_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(spec: JobSpec, context: Context) -> Outcome:
        import jax.numpy as jnp

        rows = 2**48 if spec.index == 0 else 32
        return Outcome(bytes(jnp.full((rows,), spec.index, "uint8").tolist()))

    one = executor(monkeypatch, execute=run, execute_batch=None, batch=lambda spec: ("a batch_size", 64))
    one._memory_bytes = 2**46
    ((kind, reason, text),) = one.run(7, "noop", ROWS[:1]).failures.values()
    assert (kind, reason) == (NACK_KIND_RETRYABLE, "OUT_OF_MEMORY")
    asked = "asked for 281,474,976,710,656 bytes at once of a device with 70,368,744,177,664 bytes"
    assert text.startswith(f"{asked}; a batch_size of 64 was too much, 16 may fit: ")
    done = one.run(8, "noop", ROWS[1:2])
    assert (done.failures, done.digests) == ({}, [b"\1" * 32])


@pytest.mark.parametrize(
    ("text", "memory", "batch", "hint"),
    [
        ("Unable to allocate 8.00 GiB for an array", 2**30, ("a batch_size", 32),
         "asked for 8,589,934,592 bytes at once of a device with 1,073,741,824 bytes; a batch_size of 32 was too much"),
        ("allocating 99 bytes.", 2**30, ("a batch_size", 32), "too much, 16 may fit"),
        ("Unable to allocate 8.00 GiB", 2**30, ("a batch_size", 32), "of 32 was too much, 4 may fit"),
        ("allocating 99 bytes.", 0, ("a batch_size", 32), "asked for 99 bytes at once of a device with unknown memory"),
        ("allocating 4096 bytes.", 8, ("a batch_size", 32), "and not even 1 may fit"),
        ("", 2**30, ("a batch_size", 1), "asked for more at once of a device with 1,073,741,824 bytes: "),
        ("x" * 5000, 2**30, None, "asked for more at once"),
    ],
)  # fmt: skip
def test_the_hint_fits_the_device_and_never_the_batch_that_failed(
    text: str, memory: int, batch: tuple[str, int] | None, hint: str
) -> None:
    said = smaller_batch(text, memory, batch)
    assert hint in said
    assert len(said) <= 1024


@pytest.mark.parametrize(
    ("name", "payload", "batch"),
    [
        ("inference", {"model_id": "ab" * 32, "prompts": ["one", "two"], "max_tokens": 4, "model_parameters": 10},
         ("a batch of items", 1)),
        ("training", {"model_architecture": {"name": "mlp", "inputs": 1}, "dataset": "00" * 32, "batch_size": 24},
         ("a batch_size", 24)),
    ],
)  # fmt: skip
def test_types_with_a_batch_name_it(name: str, payload: dict[str, object], batch: tuple[str, int]) -> None:
    task = workloads.get(name)
    assert task.batch is not None
    assert task.batch(task.split(task.parse(payload), bytes(32))[0]) == batch


def test_one_bad_job_does_not_take_its_group_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(specs: list[JobSpec], context: Context) -> list[Outcome]:
        if any(spec.index == 2 for spec in specs):
            raise ValueError("two")
        return [Outcome(bytes([spec.index]) * 32) for spec in specs]

    done = executor(monkeypatch, execute_batch=run).run(7, "noop", ROWS)
    assert list(done.failures) == [2]
    assert done.failures[2] == (NACK_KIND_POISON, "EXECUTION_ERROR", "ValueError: two")
    assert [digests[:1] for digests in done.digests] == [b"\0", b"\1", b"", b"\3"]
    assert len(done.result_hashes) == len(done.layouts) == len(done.compute_us) == 4


def test_a_result_of_the_wrong_size_fails_its_own_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(specs: list[JobSpec], context: Context) -> list[Outcome]:
        return [Outcome(bytes(31 if spec.index == 1 else 32)) for spec in specs]

    done = executor(monkeypatch, execute_batch=run).run(7, "noop", ROWS)
    assert list(done.failures) == [1]
    assert "31 bytes" in done.failures[1][2]


def test_a_cancelled_group_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    one = executor(monkeypatch)
    one._link.cancelled.add(7)
    assert {reason for _, reason, _ in one.run(7, "noop", ROWS).failures.values()} == {"REVOKED"}


def test_units_that_are_not_exact_leave_with_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = bytes(range(96))

    def run(spec: JobSpec, context: Context) -> Outcome:
        return Outcome(digests, lambda unit: bytes([unit]) * 5)

    one = executor(monkeypatch, execute=run, execute_batch=None, layout=lambda spec: Layout(1, 3))
    done = one.run(7, "noop", ROWS[:1])
    assert done.units == [[b"\0" * 5, b"\1" * 5, b"\2" * 5]]
    assert done.result_hashes == [JobTree(Layout(1, 3), digests).result_hash]


def test_each_gpu_gets_a_process_that_sees_only_it() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0, 3"}) == ["0", "3"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert environments("cpu") == [{"JAX_PLATFORMS": "cpu"}]


def test_two_workers_can_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    places = environments("")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1"]
    assert all(place["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for place in places)


async def test_a_repeated_shape_is_compiled_once_and_from_a_warm_cache_never(tmp_path: Path) -> None:
    first, *others = await groups(tmp_path, size=96, jobs=4)
    assert first.compiled > 0
    assert [group.compiled for group in others] == [0, 0, 0]
    again = await groups(tmp_path, size=96, jobs=2)
    assert [group.compiled for group in again] == [0, 0]
    assert again[0].digests == first.digests
