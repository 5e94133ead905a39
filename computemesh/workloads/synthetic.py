"""`synthetic`: chains of exact int8 matrix products, the mesh's yardstick.

A job is one chain of `iterations` products C = A @ B. Segment t of its result are the 32x32 int32 tiles of the
t-th product, numbered row-major; a unit is a tile, row-major little-endian, 4,096 bytes. A segment's key makes A
row after row and B column after column, so that any of them is one seek away (docs/decisions/0002):

    A[i, :] = bytes i*n .. i*n+n-1 of blake3(0x00000000, key).digest(n*n)     as int8
    B[:, j] = bytes j*n .. j*n+n-1 of blake3(0x01000000, key).digest(n*n)     as int8

    task seed  = tagged("computemesh.v1/synthetic/seed", UTF-8 seed), or without a seed the assignment's binding
                 SHA-256(block hash || worker address)
    job key    = tagged("computemesh.v1/synthetic/job", task seed || u32 job)               with a seed
                 tagged("computemesh.v1/synthetic/bound", binding || task id || u32 job)    without
    key of segment 0 = job key
    key of segment t = tagged("computemesh.v1/synthetic/next", job key || u32 t || root of segment t - 1)

So a product is not known before the one it follows is finished, and any tile is checked alone from the root of
the segment before: 32 rows, 32 columns, 32 * 32 * n multiplications.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from pydantic import Field

from computemesh.trust.audit import Layout
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import (
    Artifact,
    Claim,
    Context,
    Estimate,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
    segment_root,
)
from computemesh.workloads.payload import Payload, Text, Whole, read, refuse

TILE = 32
MAX_SIZE = 16_384
MAX_ITERATIONS = 10_000
MAX_JOBS = 100_000
MAX_UNITS_PER_JOB = 2**22  # 128 MiB of digests, held by worker and kept until the audit is over
MAX_FLOPS = 10**17
FLOPS_PER_UNIT = 10**6  # one CPC buys 10**12 operations
SAMPLE_SIZE = 32
PIECE = 1024  # 1024 * 128 * 128 = 2**24: the longest sum of int8 products that float32 holds exactly

PARAMS = struct.Struct(">BBII32s")
VERSION = 1
_U32 = struct.Struct(">I")
LEFT, RIGHT = (struct.pack("<I", label) for label in (0, 1))  # little-endian, as BLAKE3's words are

# Exact int32 needs K * 128 * 128 < 2**31 (GPUs saturate where CPUs wrap); the limit on the size is well below.
assert MAX_SIZE * 128 * 128 < 2**31


class Params(Payload):
    seed: Text | None = Field(default=None, min_length=1, max_length=128, description="text of 1 to 128 characters")
    matrix_size: Whole = Field(ge=TILE, le=MAX_SIZE, multiple_of=TILE, description="a multiple of 32 from 32 to 16,384")
    iterations: Whole = Field(default=1, ge=1, le=MAX_ITERATIONS, description="a whole number from 1 to 10,000")
    jobs: Whole = Field(default=1, ge=1, le=MAX_JOBS, description="a whole number from 1 to 100,000")


class Job(NamedTuple):
    """A job's params, read: the product's size, the chain's length, segment 0's key (empty: from the binding)."""

    size: int
    iterations: int
    key: bytes

    @property
    def layout(self) -> Layout:
        return Layout(self.iterations, (self.size // TILE) ** 2)


def _flops(params: Params) -> int:
    return 2 * params.matrix_size**3 * params.iterations * params.jobs


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload {seed?, matrix_size, iterations = 1, jobs = 1}.

    Raises InvalidArgument per bad field, and where the whole is more than a job can hold or a task may ask.
    """
    params = read(Params, "synthetic", payload)
    units = params.iterations * (params.matrix_size // TILE) ** 2
    if units > MAX_UNITS_PER_JOB:
        most = MAX_UNITS_PER_JOB // (params.matrix_size // TILE) ** 2
        text = f"iterations must be at most {most:,} at matrix_size {params.matrix_size:,}, not {params.iterations:,}"
        raise refuse(("iterations", f"{text} (a job has at most {MAX_UNITS_PER_JOB:,} tiles of 32x32)"))
    if (flops := _flops(params)) > MAX_FLOPS:
        text = f"2 * matrix_size^3 * iterations * jobs is {flops:.3g} operations; a task may ask for {MAX_FLOPS:.0e}"
        raise refuse(("jobs", f"{text}: lower jobs, iterations or matrix_size, or publish several tasks"))
    return params


def price(params: Params) -> Estimate:
    flops = _flops(params)
    return Estimate(flops, -(-flops // FLOPS_PER_UNIT))


def jobs(params: Params) -> int:
    return params.jobs


def device_memory_bytes(size: int) -> int:
    """Peak on a device: B and a copy (int8), one band of the product with its shuffles, the digests."""
    band = min(size * size, 2**24)
    return 2 * size * size + 24 * band + 64 * (size // TILE) ** 2


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """The jobs of a range. With a seed they are the same for everybody, without one `bind` completes them."""
    size, memory = params.matrix_size, device_memory_bytes(params.matrix_size)
    bound = params.seed is None
    head = b"" if params.seed is None else tagged("computemesh.v1/synthetic/seed", params.seed.encode())

    def wire(index: int) -> bytes:
        key = bytes(32) if bound else tagged("computemesh.v1/synthetic/job", head + _U32.pack(index))
        return PARAMS.pack(VERSION, bound, size, params.iterations, key)

    return [JobSpec(task_id, index, wire(index), device_memory_bytes=memory) for index in which]


@cache
def _units(size: int) -> int:
    return (size // TILE) ** 2


def read_job(spec: JobSpec) -> Job:
    """Params as they came from the network. Raises InvalidArgument where they are not this type's layout."""
    if len(spec.params) != PARAMS.size:
        raise _bad_params(f"{len(spec.params)} bytes, not {PARAMS.size}")
    version, bound, size, iterations, key = PARAMS.unpack(spec.params)
    if version != VERSION or bound > 1:
        raise _bad_params(f"version {version}, flags {bound}")
    if not TILE <= size <= MAX_SIZE or size % TILE or not 1 <= iterations <= MAX_ITERATIONS:
        raise _bad_params(f"matrix_size {size}, iterations {iterations}")
    if iterations * _units(size) > MAX_UNITS_PER_JOB:
        raise _bad_params(f"more than {MAX_UNITS_PER_JOB} tiles")
    return Job(size, iterations, b"" if bound else key)


def job_key(spec: JobSpec, job: Job) -> bytes:
    """The key of segment 0. Raises InvalidArgument where the job has no seed and is not bound to a worker."""
    if job.key:
        return job.key
    if len(spec.binding) != 32:
        raise _bad_params("a job without a seed needs the assignment's binding of 32 bytes")
    return tagged("computemesh.v1/synthetic/bound", spec.binding + spec.task_id + _U32.pack(spec.index))


def _bad_params(text: str) -> InvalidArgument:
    return InvalidArgument(f"params of a synthetic job: {text}", violations=[("params", text)])


def segment_key(first: bytes, segment: int, previous_root: bytes | None) -> bytes:
    """The 32-byte key of a segment, `first` being segment 0's.

    Raises InvalidArgument unless exactly segment 0 has no previous root.
    """
    if (segment == 0) != (previous_root is None):
        raise InvalidArgument(f"segment {segment} has {'no' if segment else 'a'} previous root")
    if previous_root is None:
        return first
    return tagged("computemesh.v1/synthetic/next", first + _U32.pack(segment) + previous_root)


def layout(spec: JobSpec) -> Layout:
    return read_job(spec).layout


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Run the chain on the device; only tile digests leave it. Compiled once per matrix size and process."""
    import jax

    from computemesh.kernels import blake3 as device_blake3
    from computemesh.kernels import matmul

    job = read_job(spec)
    first = job_key(spec, job)
    device = context.device if context.device is not None else jax.devices()[0]
    band = matmul.band_rows(job.size, device.platform)
    done: list[bytes] = []
    previous: bytes | None = None
    with jax.default_device(device):
        for segment in range(job.iterations):
            key = device_blake3.key_words(segment_key(first, segment, previous))
            found = matmul.product_digests(key, size=job.size, band=band)
            done.append(device_blake3.digest_bytes(found))
            context.progress((segment + 1) / job.iterations)
            if segment + 1 < job.iterations:
                previous = segment_root(job.layout, done[-1])
    return Outcome(b"".join(done))


def generate_band(key: bytes, label: bytes, position: int, size: int) -> np.ndarray:
    """Band `position`: 32 rows of A (label LEFT) or 32 columns of B (RIGHT), (32, size) int8."""
    length = TILE * size
    raw = blake3(label, key=key).digest(length=length, seek=position * length)
    return np.frombuffer(raw, np.int8).reshape(TILE, size)


def multiply_tile(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """rows (32, n) @ columns (32, n).T as (32, 32) int32, both holding int8 values in float32; exact.

    Every partial sum of at most 1,024 products is an integer of magnitude <= 2**24, which float32 holds exactly
    in whatever order BLAS adds; the pieces are added as integers. Half the time of float64, which would be
    exact in one piece.
    """
    total = np.zeros((TILE, TILE), np.int32)
    for at in range(0, rows.shape[1], PIECE):
        total += (rows[:, at : at + PIECE] @ columns[:, at : at + PIECE].T).astype(np.int32)
    return total


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """The digest of each claimed tile, recomputed in numpy; tiles in a line share its 32 rows or columns.

    Raises InvalidProof on an index outside the job, InvalidArgument on a wrong or missing previous root.
    """
    job = read_job(spec)
    first = job_key(spec, job)
    shape, across = job.layout, job.size // TILE
    columns: dict[tuple[bytes, int], np.ndarray] = {}
    # Kept as bytes and widened into two buffers that stay in cache: fresh float bands cost twice the time.
    left, right = np.empty((2, TILE, job.size), np.float32)
    in_left: tuple[bytes, int] | None = None
    found: dict[int, bytes] = {}
    for claim in sorted(claims, key=lambda claim: claim.index):
        segment = shape.segment_of(claim.index)
        key = segment_key(first, segment, claim.previous_root)
        down, across_at = divmod(claim.index % shape.units, across)
        if in_left != (key, down):
            in_left = (key, down)
            np.copyto(left, generate_band(key, LEFT, down, job.size))
        if (column := columns.get((key, across_at))) is None:
            column = columns[key, across_at] = generate_band(key, RIGHT, across_at, job.size)
        np.copyto(right, column)
        tile = multiply_tile(left, right).astype("<i4", copy=False)
        found[claim.index] = blake3(tile.tobytes()).digest()
    return [found[claim.index] for claim in claims]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """A JSON document with the question and every job's result hash, in job order."""
    document = {
        "challenge_type": "synthetic",
        **params.model_dump(exclude_none=True),
        "result_hashes": [result.result_hash.hex() for result in results],
    }
    return [Artifact("results.json", "application/json", json.dumps(document, separators=(",", ":")).encode())]


TASK = Workload(
    name="synthetic",
    exact=True,
    sample_size=SAMPLE_SIZE,
    parse=parse,
    price=price,
    jobs=jobs,
    make_jobs=make_jobs,
    layout=layout,
    execute=execute,
    check=check,
    assemble=assemble,
    check_batch=check_batch,
    binds=lambda spec: not read_job(spec).key,
)
