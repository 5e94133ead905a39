"""`program`: a customer's own function, exported by `jax.export` and run where nothing else can be harmed.

The artifact `program` is the container that `mesh program push` writes (`sandbox/arrays.py`): StableHLO of static
shapes, no Python. `inputs` is an .npz with arg0 .. argN. Without `map` the task is one item, and the program's outputs
are the result. With `map` the program is the function of *one item*: an array with one leading axis more than the
program's argument, of length `items`, gives each item its row; other arrays go whole to every item. Items are split
over jobs.

A unit is an item: its outputs one after the other, row-major, little-endian. The same compiled function runs each item
by itself, on the worker and in a check, so bytes are equal within one env_class.

A check recomputes the challenged items on the auditor's CPU, so it costs k / items_per_job of the compute, and as much
as the compute itself where a job is one item: such audits become replicas. `exact` programs are integer-only
(verified, with what depends on an order left open refused) and compared byte by byte. Others are compared within
`tolerance`: |x - y| <= tolerance * (|y| + rms(y)) for each float x of an output array with recomputed y, rms over its
finite values; infinities and NaNs at the same places, integers and bools equal. The tolerance is what the customer
concedes: 1e-2 lets bfloat16 matrix products through, 1e-3 lets TF32 and float16 through, 1e-5 neither
(tests/workloads/test_program.py measures it).

The fixed layout of params:

    u8 version = 1 | u8 flags (1 map, 2 exact) | u32 first item | u32 items of the job | u32 items of the task
    u32 timeout_s | u64 memory_bytes | f64 tolerance | 32 program | 32 inputs | u8 outputs
    per output: u8 dtype (its place in `DTYPES`) | u8 rank | u32 extents
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from pydantic import Field

from computemesh.kernels.closeness import close
from computemesh.sandbox.arrays import DTYPES, FORMAT, INTEGERS, MAX_RANK, ArrayType, parse_type
from computemesh.sandbox.frames import Kind
from computemesh.sandbox.process import Child, JobFailed, Keeper, Limits
from computemesh.trust.audit import Layout
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads.contract import (
    Artifact,
    Claim,
    Context,
    Estimate,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
    equal_slices,
)
from computemesh.workloads.payload import Payload, Text, Whole, read, refuse, shown

MAX_ITEMS = 1_000_000
MAX_JOBS = 100_000
MAX_OUTPUTS = 16
MAX_ITEM_BYTES = 256 * 2**20
MAX_JOB_BYTES = 256 * 2**20
MAX_MEMORY_BYTES = 2**40
DEFAULT_JOBS = 8
SAMPLE_SIZE = 8
# Time is what a program is paid by: its operations cannot be counted (a compiler counts a loop's body once). A second
# is priced as 10**12 operations, one CPC.
UNITS_PER_SECOND, FLOPS_PER_SECOND = 10**6, 10**12
# What the host side of a child may use beyond the program's memory: the compiler, and a GPU's driver.
HOST_BYTES = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}

HEAD = struct.Struct(">BBIIIIQd32s32sB")
VERSION, MAP, EXACT = 1, 1, 2
_EXTENT = struct.Struct(">I")
_HEX = r"^[0-9a-f]{64}$"
_KEEPER = Keeper()


class Params(Payload):
    program: Text = Field(pattern=_HEX, description="the SHA-256 of a program artifact, or a registered name")
    inputs: Text = Field(pattern=_HEX, description="the SHA-256 of an .npz artifact with arg0 .. argN")
    outputs: tuple[Text, ...] = Field(
        min_length=1, max_length=MAX_OUTPUTS,
        description=f"a list of 1 to {MAX_OUTPUTS} array types that `mesh program push` prints, as {FORMAT}",
    )  # fmt: skip
    map: bool = Field(default=False, description="true or false")
    items: Whole = Field(default=1, ge=1, le=MAX_ITEMS, description="a whole number from 1 to 1,000,000")
    items_per_job: Whole | None = Field(default=None, ge=1, le=MAX_ITEMS, description="a whole number up to 1,000,000")
    exact: bool = Field(default=False, description="true or false")
    tolerance: float | None = Field(default=None, gt=0, le=0.1, description="a number above 0, at most 0.1")
    timeout_s: Whole = Field(default=60, ge=1, le=3600, description="whole seconds per job from 1 to 3,600")
    memory_bytes: Whole = Field(
        default=2**30, ge=2**20, le=MAX_MEMORY_BYTES, description="bytes from 1,048,576 (1 MiB) to 2^40 (1 TiB)"
    )


class Job(NamedTuple):
    """A job's params, read: `items` of the task's `total`, from `first` on."""

    flags: int
    first: int
    items: int
    total: int
    timeout_s: int
    memory_bytes: int
    tolerance: float
    program: bytes
    inputs: bytes
    outputs: tuple[ArrayType, ...]

    @property
    def item_bytes(self) -> int:
        return sum(kind.bytes for kind in self.outputs)

    def pack(self) -> bytes:
        head = HEAD.pack(VERSION, *self[:9], len(self.outputs))
        return head + b"".join(
            bytes([DTYPES.index(kind.dtype), len(kind.shape)]) + b"".join(map(_EXTENT.pack, kind.shape))
            for kind in self.outputs
        )


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload. Raises InvalidArgument per bad field."""
    params = read(Params, "program", payload)
    if found := _problems(params):
        raise refuse(*found)
    return params


def _problems(params: Params) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    try:
        types = outputs_of(params)
    except ValueError as error:
        return [("outputs", f"outputs: {error}")]
    size = sum(kind.bytes for kind in types)
    if not 0 < size <= MAX_ITEM_BYTES:
        found.append(("outputs", f"outputs of one item have {size:,} bytes; must be 1 to {MAX_ITEM_BYTES:,}"))
    if not params.map and params.items != 1:
        found.append(("items", f"items must be 1 without map, not {params.items:,}"))
    if params.exact and params.tolerance is not None:
        found.append(("tolerance", "tolerance must be left out of an exact task, whose results are equal byte by byte"))
    if not params.exact and params.tolerance is None:
        found.append(("tolerance", "tolerance is missing; it must be a number above 0, at most 0.1, or exact true"))
    if params.exact and (floats := [kind.text for kind in types if kind.dtype not in INTEGERS]):
        found.append(("exact", f"exact needs integer or bool outputs, and there is {shown(floats[0])}"))
    per_job = items_per_job(params)
    if (held := per_job * size) > MAX_JOB_BYTES and per_job > 1:
        found.append(("items_per_job", f"items_per_job * output bytes is {held:,}; a job may leave {MAX_JOB_BYTES:,}"))
    if (count := jobs(params)) > MAX_JOBS:
        found.append(("items_per_job", f"items / items_per_job are {count:,} jobs; a task has at most {MAX_JOBS:,}"))
    return found


def outputs_of(params: Params) -> tuple[ArrayType, ...]:
    """The types of one item's outputs. Raises ValueError."""
    return tuple(map(parse_type, params.outputs))


def items_per_job(params: Params) -> int:
    if params.items_per_job is not None:
        return min(params.items_per_job, params.items)
    size = max(1, sum(kind.bytes for kind in outputs_of(params)))
    return max(1, min(-(-params.items // DEFAULT_JOBS), MAX_JOB_BYTES // size))


def price(params: Params) -> Estimate:
    """By the seconds the task may take at most; never by what a compiler says of its operations."""
    seconds = jobs(params) * params.timeout_s
    return Estimate(FLOPS_PER_SECOND * seconds, UNITS_PER_SECOND * seconds)


def jobs(params: Params) -> int:
    return -(-params.items // items_per_job(params))


def inputs(params: Params) -> list[bytes]:
    return [bytes.fromhex(params.program), bytes.fromhex(params.inputs)]


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """Job i has items i * items_per_job and following."""
    per_job, flags = items_per_job(params), MAP * params.map | EXACT * params.exact
    program, arrays = inputs(params)
    whole = Job(
        flags, 0, 0, params.items, params.timeout_s, params.memory_bytes, params.tolerance or 0.0, program, arrays,
        outputs_of(params),
    )  # fmt: skip

    def wire(index: int) -> bytes:
        first = index * per_job
        return whole._replace(first=first, items=min(per_job, params.items - first)).pack()

    return [JobSpec(task_id, i, wire(i), device_memory_bytes=params.memory_bytes) for i in which]


def _bad_params(text: str) -> InvalidArgument:
    return InvalidArgument(f"params of a program job: {text}", violations=[("params", text)])


def read_job(spec: JobSpec) -> Job:
    """A job's params. Raises InvalidArgument where they are not this type's."""
    return _read(spec.params)


@lru_cache(maxsize=256)
def _read(data: bytes) -> Job:
    if len(data) < HEAD.size:
        raise _bad_params(f"{len(data)} bytes, fewer than {HEAD.size}")
    version, *fields, count = HEAD.unpack_from(data)
    at, types = HEAD.size, []
    for _ in range(count):
        if at + 2 > len(data) or data[at] >= len(DTYPES) or data[at + 1] > MAX_RANK:
            raise _bad_params("an output's type is unknown")
        code, rank = data[at], data[at + 1]
        if (after := at + 2 + rank * _EXTENT.size) > len(data):
            raise _bad_params("an output's extents are cut short")
        types.append(ArrayType(DTYPES[code], struct.unpack(f">{rank}I", data[at + 2 : after])))
        at = after
    job = Job._make([*fields, tuple(types)])
    if version != VERSION or at != len(data) or job.flags & ~(MAP | EXACT) or not 1 <= count <= MAX_OUTPUTS:
        raise _bad_params(f"version {version}, flags {job.flags}, {count} outputs, {len(data) - at} bytes too many")
    if not 0 < job.item_bytes <= MAX_ITEM_BYTES or not 1 <= job.items <= max(1, MAX_JOB_BYTES // job.item_bytes):
        raise _bad_params(f"{job.items:,} items of {job.item_bytes:,} bytes")
    if job.first + job.items > job.total or not 1 <= job.timeout_s <= 3600 or job.memory_bytes > MAX_MEMORY_BYTES:
        raise _bad_params("items, time or memory out of range")
    if bool(job.flags & EXACT) == (0 < job.tolerance <= 0.1):
        raise _bad_params("neither exact nor a tolerance, or both")
    return job


def layout(spec: JobSpec) -> Layout:
    return Layout(1, read_job(spec).items)


def job_inputs(spec: JobSpec) -> list[bytes]:
    job = read_job(spec)
    return [job.program, job.inputs]


def run_child(platform: str) -> Child:
    """A fresh child for one program; `platform` is cpu or cuda."""
    extra = {
        "JAX_PLATFORMS": platform, "JAX_ENABLE_X64": "1", "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    return Child("computemesh.sandbox.programs", "PROGRAM", extra, (platform,))


def request_of(program: Path, timeout_s: int, memory_bytes: int, output_bytes: int) -> dict[str, Any]:
    """A request that only examines and compiles the program (what admission is)."""
    return {
        "program": str(program.absolute()), "inputs": "", "outputs": None, "items": [], "mapped_items": 0,
        "exact": False, "memory_bytes": memory_bytes, "output_bytes": output_bytes,
        "processor_s": timeout_s * (os.cpu_count() or 1) + 30,
    }  # fmt: skip


def run_items(
    spec: JobSpec, which: Sequence[int], platform: str, progress: Callable[[float], None] = lambda _: None
) -> dict[int, bytes]:
    """The unit bytes of these items of the job, by index within it. Raises JobFailed naming limit or rule."""
    job = read_job(spec)
    if spec.files is None:
        raise _bad_params("a program job needs files")
    exact, mapped = bool(job.flags & EXACT), bool(job.flags & MAP)
    request = request_of(spec.files.artifact(job.program), job.timeout_s, job.memory_bytes, job.item_bytes)
    order = sorted(set(which))
    request |= {
        "inputs": str(spec.files.artifact(job.inputs).absolute()), "outputs": [kind.text for kind in job.outputs],
        "mapped_items": job.total if mapped else 0, "exact": exact, "items": _ranges([job.first + i for i in order]),
    }  # fmt: skip
    limits = Limits(job.timeout_s, job.memory_bytes + HOST_BYTES[platform], len(order) * job.item_bytes)
    found: dict[int, bytes] = {}

    def tick() -> None:
        progress(len(found) / len(order))

    with _KEEPER.child((job.program, platform, exact), lambda: run_child(platform)) as child:
        for kind, data in child.ask(request, limits, tick):
            if kind is not Kind.OUTPUT:
                continue
            if len(data) != job.item_bytes or len(found) == len(order):
                raise JobFailed("the program's outputs have another size than declared", reason="PROGRAM_OUTPUT")
            found[order[len(found)]] = data
    if len(found) != len(order):
        raise JobFailed(f"the program made {len(found)} of {len(order)} items", reason="PROGRAM_OUTPUT")
    return found


def _ranges(ascending: Sequence[int]) -> list[list[int]]:
    """[first, after) of each run of neighbours: a million items fit into a request."""
    found: list[list[int]] = []
    for index in ascending:
        if found and found[-1][1] == index:
            found[-1][1] += 1
        else:
            found.append([index, index + 1])
    return found


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Run the job's items in the program's own child process on the context's device."""
    kind = getattr(context.device, "platform", "cpu")
    units = run_items(spec, range(read_job(spec).items), "cuda" if kind in ("gpu", "cuda") else "cpu", context.progress)
    rows = [units[i] for i in range(len(units))]
    return Outcome(b"".join(blake3(row).digest() for row in rows), rows.__getitem__, b"".join(rows))


def agrees(job: Job, claimed: bytes, mine: bytes) -> bool:
    """Whether a claimed item is as good as the recomputed one."""
    if claimed == mine:
        return True
    if job.flags & EXACT or len(claimed) != len(mine):
        return False
    at = 0
    for kind in job.outputs:
        x, y = (np.frombuffer(data[at : at + kind.bytes], kind.dtype) for data in (claimed, mine))
        at += kind.bytes
        if kind.dtype in INTEGERS:
            if not np.array_equal(x, y):
                return False
        elif not close(x, y, job.tolerance):
            return False
    return True


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """Recomputes the claimed items on this machine's CPU, in the program's own child.

    Raises JobFailed where the program itself fails here: that is no verdict on the worker. Raises InvalidProof on an
    index outside of the job.
    """
    job = read_job(spec)
    if outside := [claim.index for claim in claims if not 0 <= claim.index < job.items]:
        text = f"unit {outside[0]} is outside of a job of {job.items:,} items"
        raise InvalidProof(text, violations=[("index", text)])
    if not claims:
        return []
    mine = run_items(spec, [claim.index for claim in claims], "cpu")
    return [blake3(claim.unit).digest() if agrees(job, claim.unit, mine[claim.index]) else None for claim in claims]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def output_bytes(spec: JobSpec) -> int:
    job = read_job(spec)
    return job.items * job.item_bytes


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    job = read_job(spec)
    return equal_slices(spec, output, job.items, job.item_bytes)


def output_units(spec: JobSpec, output: bytes, indices: Sequence[int]) -> list[bytes]:
    """The bytes of these items in an output, which shows all of them."""
    size = read_job(spec).item_bytes
    return [output[i * size : (i + 1) * size] for i in indices]


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """results.npz: out0 .. outN, with map stacked along a leading axis of items."""
    data = b"".join(result.output for result in results)
    types = outputs_of(params)
    rows = np.frombuffer(data, np.uint8).reshape(params.items, sum(kind.bytes for kind in types))
    arrays, at = {}, 0
    for number, kind in enumerate(types):
        column = np.ascontiguousarray(rows[:, at : at + kind.bytes]).view(np.dtype(kind.dtype).newbyteorder("<"))
        arrays[f"out{number}"] = column.reshape((params.items, *kind.shape) if params.map else kind.shape)
        at += kind.bytes
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return [Artifact("results.npz", "application/x-npz", file.getvalue())]


TASK = Workload(
    name="program",
    exact=False,
    sample_size=SAMPLE_SIZE,
    parse=parse,
    price=price,
    jobs=jobs,
    make_jobs=make_jobs,
    layout=layout,
    execute=execute,
    check=check,
    assemble=assemble,
    references=("program", "inputs"),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    output_units=output_units,
    check_batch=check_batch,
)
