"""`function`: a call of what a worker's operator exposed (`computemesh.expose`), by name, JSON in and JSON out.

The input is `data`, or a list `items`, or the `count` lines of `inputs`, a JSON Lines artifact. Items given in the
payload are a job each; those of an artifact are split. The worker validates an item against the function's
input model, runs it in a child that is killed at the time limit (the function's own, or the task's where that is
shorter), and validates what it returns. A bad input, an exception, a timeout and a bad result fail the job with that
reason.

A unit is an item's result: canonical JSON (sorted keys, no blanks, UTF-8), at most 1 MiB. What a check verifies is its
form, no more: the auditor has neither code nor schema of the function. Whether the answer is right is known only to who
compares it with another worker's: the orchestrator gives some jobs to workers of two owners (`replicates`), the others
are worth what their operator's name is worth. Receipts say `function`, so nobody can take one for a recomputed result.

The fixed layout of params:

    u8 version = 1 | u8 name length | u32 timeout_s | u32 first line | u32 items | 32 inputs (zeros: given here)
    name | given here: the item's JSON to the end
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blake3 import blake3
from pydantic import Field

from computemesh.sandbox.exposed import MAX_TIMEOUT_S, NAME
from computemesh.sandbox.frames import Kind
from computemesh.sandbox.functions import MAX_RESULT_BYTES, canonical
from computemesh.sandbox.process import Child, JobFailed, Keeper, Limits
from computemesh.trust.audit import Layout
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads.contract import (
    MAX_PARAMS_BYTES,
    Artifact,
    Call,
    Claim,
    Context,
    Estimate,
    Given,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
)
from computemesh.workloads.payload import Payload, Text, Whole, read, refuse

FILES_VARIABLE = "COMPUTEMESH_FUNCTIONS"
MAX_ITEMS = 100_000
MAX_ITEMS_PER_JOB = 256
MAX_LINE_BYTES = 2**20
SAMPLE_SIZE = 8
UNITS_PER_SECOND, FLOPS_PER_SECOND = 10**6, 10**12  # as in `program`: time is what there is to price

HEAD = struct.Struct(">BBIII32s")
VERSION = 1
HERE = bytes(32)
MAX_ITEM_BYTES = MAX_PARAMS_BYTES - HEAD.size - 64
_KEEPER = Keeper()


class Params(Payload):
    function_name: Text = Field(
        pattern=f"^(?:{NAME.pattern})$", description="the name of an exposed function: letters, digits, . _ -"
    )
    data: dict[str, Any] | None = Field(default=None, description="an object, the function's input")
    items: tuple[dict[str, Any], ...] | None = Field(
        default=None, min_length=1, max_length=10_000, description="a list of 1 to 10,000 objects"
    )
    inputs: Text | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="the SHA-256 of an artifact of JSON Lines"
    )
    count: Whole | None = Field(default=None, ge=1, le=MAX_ITEMS, description="how many lines inputs has, 1 to 100,000")
    items_per_job: Whole = Field(
        default=16, ge=1, le=MAX_ITEMS_PER_JOB, description=f"lines per job, 1 to {MAX_ITEMS_PER_JOB}"
    )
    timeout_s: Whole = Field(default=60, ge=1, le=MAX_TIMEOUT_S, description="whole seconds per item from 1 to 3,600")


class Job(NamedTuple):
    """A job's params, read. `given` is the item's JSON where it is not in an artifact."""

    name: str
    timeout_s: int
    first: int
    items: int
    inputs: bytes
    given: bytes

    def pack(self) -> bytes:
        name = self.name.encode()
        head = HEAD.pack(VERSION, len(name), self.timeout_s, self.first, self.items, self.inputs)
        return head + name + self.given


def _whole(value: Any) -> Any:
    """A Struct knows only doubles; 3.0 is the 3 the customer wrote."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value


def parse(payload: Mapping[str, object]) -> Params:
    """Params of {function_name, data | items | inputs and count, items_per_job?, timeout_s?}."""
    params = read(Params, "function", payload)
    given = [name for name in ("data", "items", "inputs") if getattr(params, name) is not None]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise refuse(("data", f"exactly one of data, items and inputs must be given, not {said}"))
    if (params.inputs is None) != (params.count is None):
        raise refuse(("count", "count must be given with inputs, and only there"))
    for at, item in enumerate(_given(params)):
        try:
            size = len(canonical(_whole(item)))
        except (ValueError, RecursionError) as error:
            raise refuse((given[0], f"{given[0]}: item {at} is not JSON: {str(error)[:80]}")) from None
        if size > MAX_ITEM_BYTES:
            text = f"{given[0]}: item {at} has {size:,} bytes as JSON; at most {MAX_ITEM_BYTES:,} fit into a job"
            raise refuse((given[0], f"{text}: put larger ones into an artifact of JSON Lines and name it in inputs"))
    return params


def _given(params: Params) -> tuple[dict[str, Any], ...]:
    return (params.data,) if params.data is not None else params.items or ()


def call(params: Params) -> Call:
    """What the task asks of an operator. Lines of an artifact are not known before it is read."""
    field = "data" if params.data is not None else "items[{}]"
    return Call(params.function_name, [Given(field.format(i), _whole(item)) for i, item in enumerate(_given(params))])


def _total(params: Params) -> int:
    return params.count or len(_given(params))


def price(params: Params) -> Estimate:
    """By the seconds the items may take at most."""
    seconds = _total(params) * params.timeout_s
    return Estimate(FLOPS_PER_SECOND * seconds, UNITS_PER_SECOND * seconds)


def jobs(params: Params) -> int:
    return -(-_total(params) // (params.items_per_job if params.inputs else 1))


def inputs(params: Params) -> list[bytes]:
    return [bytes.fromhex(params.inputs)] if params.inputs else []


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    given, per_job, total = _given(params), params.items_per_job, _total(params)

    def job(index: int) -> Job:
        if params.inputs is None:
            data = canonical(_whole(given[index]))
            return Job(params.function_name, params.timeout_s, index, 1, HERE, data)
        first = index * per_job
        lines = min(per_job, total - first)
        return Job(params.function_name, params.timeout_s, first, lines, bytes.fromhex(params.inputs), b"")

    return [JobSpec(task_id, index, job(index).pack()) for index in which]


def read_job(spec: JobSpec) -> Job:
    """A job's params. Raises InvalidArgument where they are not this type's."""
    data = spec.params
    if HEAD.size < len(data) <= MAX_PARAMS_BYTES:
        version, length, timeout_s, first, items, digest = HEAD.unpack_from(data)
        name, given = data[HEAD.size : HEAD.size + length], data[HEAD.size + length :]
        fits = (items == 1 and bool(given)) if digest == HERE else not given
        fits = fits and 1 <= items <= MAX_ITEMS_PER_JOB and first < MAX_ITEMS and 1 <= timeout_s <= MAX_TIMEOUT_S
        text = name.decode("ascii", "replace")
        if version == VERSION and fits and NAME.fullmatch(text):
            return Job(text, timeout_s, first, items, digest, given)
    text = f"params of a function job: {len(data)} bytes that are not its layout"
    raise InvalidArgument(text, violations=[("params", text)])


def layout(spec: JobSpec) -> Layout:
    return Layout(1, read_job(spec).items)


def job_inputs(spec: JobSpec) -> list[bytes]:
    job = read_job(spec)
    return [] if job.inputs == HERE else [job.inputs]


def start_child(files: Sequence[str]) -> Child:
    """A process with the functions of these files, `init` done once it is ready."""
    return Child("computemesh.sandbox.functions", "FUNCTION", {}, tuple(files), own=True)


def describe(files: Sequence[str]) -> list[dict[str, Any]]:
    """What the files expose: name, timeout_s, input_schema and output_schema (JSON texts). Runs them, `init` too.

    Raises JobFailed with what loading them raised.
    """
    child = start_child(files)
    try:
        child.start()
        return _describe(child)
    finally:
        child.close()


def _describe(child: Child) -> list[dict[str, Any]]:
    frames = list(child.ask({"describe": True}, Limits(30, 0, 0)))
    return list(json.loads(frames[0][1]))


def _lines(spec: JobSpec, job: Job) -> Iterator[bytes]:
    if job.inputs == HERE:
        yield job.given
        return
    if spec.files is None:
        raise InvalidArgument("a function job of an artifact needs files", violations=[("files", "missing")])
    with spec.files.artifact(job.inputs).open("rb") as file:
        for at in range(job.first + job.items):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line or len(line) > MAX_LINE_BYTES:
                what = f"has more than {MAX_LINE_BYTES:,} bytes" if line else "is missing"
                raise JobFailed(f"line {at:,} of the inputs {what}", reason="FUNCTION_INPUT")
            if at >= job.first:
                yield line.strip()


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Call the function for each item of the job. Raises JobFailed with the reason; FUNCTION_UNKNOWN may be retried
    elsewhere."""
    job = read_job(spec)
    files = [path for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path]
    if not files:
        raise JobFailed("this worker exposes no functions", reason="FUNCTION_UNKNOWN", retry_after_ms=1000)
    results: list[bytes] = []

    def tick() -> None:
        context.progress(len(results) / job.items)

    with _KEEPER.child(tuple(files), lambda: start_child(files)) as child:
        own = {one["name"]: one["timeout_s"] for one in _describe(child)}
        limits = Limits(min(job.timeout_s, own.get(job.name, job.timeout_s)), 0, MAX_RESULT_BYTES)
        for line in _lines(spec, job):
            results.append(_call(child, job.name, line, limits, tick))
    digests = b"".join(blake3(result).digest() for result in results)
    return Outcome(digests, results.__getitem__, b"".join(result + b"\n" for result in results))


def _call(child: Child, name: str, line: bytes, limits: Limits, tick: Callable[[], None]) -> bytes:
    try:
        request = {"name": name, "data": line.decode()}
    except UnicodeDecodeError:
        raise JobFailed("an item is not UTF-8", reason="FUNCTION_INPUT") from None
    return b"".join(data for kind, data in child.ask(request, limits, tick) if kind is Kind.OUTPUT)


def is_result(unit: bytes) -> bool:
    """Whether these bytes have the form of a result: canonical JSON of at most 1 MiB."""
    try:
        return 0 < len(unit) <= MAX_RESULT_BYTES and canonical(json.loads(unit)) == unit
    except (ValueError, RecursionError):
        return False


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """The digest of each unit that has a result's form. It says nothing about the answer."""
    count = read_job(spec).items
    if outside := [claim.index for claim in claims if not 0 <= claim.index < count]:
        text = f"unit {outside[0]} is outside of a job of {count} items"
        raise InvalidProof(text, violations=[("index", text)])
    return [blake3(claim.unit).digest() if is_result(claim.unit) else None for claim in claims]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def output_bytes(spec: JobSpec) -> int:
    return read_job(spec).items * (MAX_RESULT_BYTES + 1)


def _results(spec: JobSpec, output: bytes) -> list[bytes]:
    rows = output.split(b"\n")
    if len(rows) != read_job(spec).items + 1 or rows.pop():
        text = f"output of job {spec.index} is not {read_job(spec).items} lines"
        raise InvalidProof(text, violations=[("output", text)])
    return rows


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    return {index: blake3(row).digest() for index, row in enumerate(_results(spec, output))}


def output_units(spec: JobSpec, output: bytes, indices: Sequence[int]) -> list[bytes]:
    rows = _results(spec, output)
    return [rows[index] for index in indices]


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """result.json of `data`; results.jsonl, a line per item, of the others."""
    data = b"".join(result.output for result in results)
    if params.data is not None:
        return [Artifact("result.json", "application/json", data.rstrip(b"\n"))]
    return [Artifact("results.jsonl", "application/jsonl", data)]


TASK = Workload(
    name="function",
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
    references=("inputs",),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    output_units=output_units,
    call=call,
    replicates=True,
    check_batch=check_batch,
)
