"""`noop`: jobs that cost nothing, to measure and test everything around them.

A job's params are `bytes` pseudo-random bytes; its one unit is their SHA-256 (32 bytes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from blake3 import blake3
from pydantic import Field

from computemesh.trust import merkle
from computemesh.trust.audit import Layout
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import (
    MAX_PARAMS_BYTES,
    Artifact,
    Claim,
    Context,
    Estimate,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
)
from computemesh.workloads.payload import Payload, Whole, read

UNITS_PER_JOB = 10
_ONE_UNIT = Layout(1, 1)


class Params(Payload):
    jobs: Whole = Field(ge=1, le=1_000_000, description="a whole number from 1 to 1,000,000")
    bytes: Whole = Field(default=200, ge=0, le=MAX_PARAMS_BYTES, description="a whole number from 0 to 4,096")


def parse(payload: Mapping[str, object]) -> Params:
    return read(Params, "noop", payload)


def price(params: Params) -> Estimate:
    return Estimate(flops=0, upper_bound_units=UNITS_PER_JOB * params.jobs)


def jobs(params: Params) -> int:
    return params.jobs


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """Job i's params are bytes [i*size, (i+1)*size) of BLAKE3's extended output for the task id.

    That output can be entered anywhere (BLAKE3 section 2.6), so a run of jobs is one call.
    """
    size = params.bytes
    if not which:
        return []
    if which.step != 1:
        return [job for i in which for job in make_jobs(params, task_id, range(i, i + 1))]
    stream = blake3(task_id).digest(length=size * len(which), seek=size * which.start)
    return [
        JobSpec(task_id, index, stream[at : at + size])
        for index, at in zip(which, range(0, size * len(which), size) if size else [0] * len(which), strict=True)
    ]


def layout(spec: JobSpec) -> Layout:
    if len(spec.params) > MAX_PARAMS_BYTES:
        raise InvalidArgument(
            f"params of a noop job have at most {MAX_PARAMS_BYTES} bytes, not {len(spec.params)}",
            violations=[("params", "too long")],
        )
    return _ONE_UNIT


def _digest(spec: JobSpec) -> bytes:
    return blake3(sha256(spec.params).digest()).digest()


def _digests(specs: Sequence[JobSpec]) -> list[bytes]:
    size = len(specs[0].params)
    if not size or any(len(spec.params) != size for spec in specs):
        return [_digest(spec) for spec in specs]
    units = merkle.hash_each(b"".join([spec.params for spec in specs]), size)
    return [blake3(unit).digest() for unit in merkle.split(units)]


def execute(spec: JobSpec, context: Context) -> Outcome:
    return Outcome(_digest(spec))


def execute_batch(specs: Sequence[JobSpec], context: Context) -> list[Outcome]:
    return [Outcome(digest) for digest in _digests(specs)]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes:
    return _digest(spec)


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    digest = _digest(spec)
    return [digest for _ in claims]


def recompute_batch(specs: Sequence[JobSpec]) -> list[bytes]:
    return _digests(specs)


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """The result hashes, 32 bytes each, in job order."""
    return [Artifact("results.bin", "application/octet-stream", b"".join(result.result_hash for result in results))]


TASK = Workload(
    name="noop",
    exact=True,
    sample_size=32,
    parse=parse,
    price=price,
    jobs=jobs,
    make_jobs=make_jobs,
    layout=layout,
    execute=execute,
    check=check,
    assemble=assemble,
    execute_batch=execute_batch,
    check_batch=check_batch,
    recompute_batch=recompute_batch,
)
