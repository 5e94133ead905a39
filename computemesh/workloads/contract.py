"""What a task type is: one frozen record of functions (PROTOCOL section 5).

Everything here is pure and imports no JAX: the market parses and prices, the orchestrator splits and audits,
and only the worker's executor calls `execute`, which imports JAX inside.

Which of a record's functions a caller needs:

    market         references, parse, price, jobs, inputs
    orchestrator   parse, split, layout, expected_digests (some units), recompute (all units), output_digests, assemble
    worker         layout, job_inputs, execute_all
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

from blake3 import blake3

from computemesh.trust.audit import DIGEST_BYTES, PADDING_LEAF, Layout
from computemesh.trust.errors import InvalidProof
from computemesh.trust.merkle import leaf_hash, root

MAX_PARAMS_BYTES = 4096
MAX_STATE_BYTES = 2**26
"""The most bytes of one state that types with chained states (`training`, `simulation`) commit to. An opening holds two
of them, an auditor one opening at a time."""
MAX_JOB_STATE_BYTES = 2**31
"""The most bytes of all states of a job. They lie on its worker's disk until the audit is over, twice where each opens
together with the one before."""

P = TypeVar("P")


class Files(Protocol):
    """The bytes a job reads, wherever it runs: on a worker, at an auditor, on the machine of whoever replays."""

    def artifact(self, digest: bytes) -> Path:
        """A local file with the artifact of that SHA-256. Raises NotFound."""
        ...

    def folder(self, digest: bytes) -> Path:
        """A local folder with the files of a folder artifact (its manifest's digest). Raises NotFound."""
        ...

    def result(self, job: int) -> bytes:
        """The output of another job of the task, one named in `JobSpec.needs`. Raises NotFound."""
        ...


@dataclass(slots=True, unsafe_hash=True)
class JobSpec:
    """One job as a worker gets it and an auditor judges it. Nobody changes one: `replace` makes another. Not `frozen`,
    because that makes each three times as dear to create, once in the orchestrator and once in the worker.

    `params` is the task type's own fixed layout, at most 4,096 bytes, never JSON. `needs` are indices of the
    jobs whose results this one reads. `device_memory_bytes` is the peak the job asks of a device; 0 = little.
    `binding` is `worker_seed(...)` of this assignment, 32 bytes; empty until a worker is chosen (`bind`).
    `files` is set by who runs or judges the job; None where the task type reads no files. `env_class` is set by who
    judges it: where the worker says it ran (device kind/jaxlib/flags); within one class float results are byte-equal.
    """

    task_id: bytes
    index: int
    params: bytes
    needs: tuple[int, ...] = ()
    device_memory_bytes: int = 0
    binding: bytes = b""
    files: Files | None = field(default=None, compare=False, repr=False)
    env_class: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a task costs at most: arithmetic operations, and base units (1 CPC = 10**6)."""

    flops: int
    upper_bound_units: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an execution leaves: `count` digests of 32 bytes, in unit order, padding excluded.

    `units(i)` gives unit i's canonical bytes for an opening; None where the task type is exact, because the
    auditor then makes those bytes itself. `output` is what the customer gets of this job; it is stored as an
    artifact, and its bytes must lead to the committed digests (`Workload.output_digests`).
    """

    digests: bytes
    units: Callable[[int], bytes] | None = None
    output: bytes = b""


@dataclass(frozen=True, slots=True)
class Given:
    """An input as it stands in a payload: the field it is in, and its JSON value."""

    field: str
    value: Any


@dataclass(frozen=True, slots=True)
class Call:
    """What a task asks of a worker's operator: a function by name, and the inputs that are known beforehand."""

    function: str
    items: Sequence[Given] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the task's answer, ready to be stored."""

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class JobResult:
    """A verified job: its result hash (32 bytes) and its output; empty where the type has none."""

    result_hash: bytes
    output: bytes = b""


def _ignore(_fraction: float) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Context:
    """What the executor lends an execution.

    `device` is a jax.Device, None = JAX's default. `progress` is told the done fraction, 0..1, of the call; an
    exception it raises ends the work early (that is how a lost lease stops a long job). `scratch` is a folder on disk
    for what may not fit memory; None = the system's for temporary files. `partial` is shown the text of the only job of
    the call so far; None = nobody looks.
    """

    device: Any = None
    scratch: str | None = None
    progress: Callable[[float], None] = _ignore
    partial: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One challenged unit, as far as the task type must know it.

    `unit` is empty for exact types. `previous_root` is the root of the segment before (32 bytes, already proven
    to be in the same tree: `trust.audit.verify_previous`), None in the first segment.
    """

    index: int
    unit: bytes = b""
    previous_root: bytes | None = None


class JobList(Sequence[JobSpec], Generic[P]):
    """The jobs of a task, made when asked for: a million of them cost nothing until then."""

    __slots__ = ("_make", "_params", "_range", "_task_id")

    def __init__(
        self, make: Callable[[P, bytes, range], list[JobSpec]], params: P, task_id: bytes, which: range
    ) -> None:
        self._make, self._params, self._task_id, self._range = make, params, task_id, which

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, at: int) -> JobSpec: ...
    @overload
    def __getitem__(self, at: slice) -> list[JobSpec]: ...
    def __getitem__(self, at: int | slice) -> JobSpec | list[JobSpec]:
        """One job, or a slice of them made together, which is the cheap way."""
        if isinstance(at, slice):
            return self._make(self._params, self._task_id, self._range[at])
        index = self._range[at]
        return self._make(self._params, self._task_id, range(index, index + 1))[0]


@dataclass(frozen=True, slots=True)
class Workload(Generic[P]):
    """A task type. A module of this package that has one as `TASK` is registered by being there.

    parse(payload)          Params from a Struct's values (numbers may come as floats). Raises
                            `trust.errors.InvalidArgument` naming field, value and limit.
    price(params)           `Estimate`; an upper bound.
    jobs(params)            number of jobs, without making them.
    make_jobs(params, task_id, range)  the jobs of an ascending range; `split` is the usual way to it.
    layout(spec)            `trust.audit.Layout` of the job's units; needs no binding. Raises
                            InvalidArgument on params that are not this type's: they come from the network.
    execute(spec, context)  `Outcome`; imports JAX inside.
    check(spec, index, unit, previous_root)  the digest unit `index` must have, recomputed alone in numpy; the
                            auditor folds it up the path. Types that are not exact judge the opened bytes and
                            return their digest, or None where they are wrong.
    assemble(params, results)  the task's files, from the `JobResult`s in job order.

    Where the task reads files: `references` names the payload fields that hold an artifact's SHA-256 (64
    hexadecimal characters) or a registered name, which the market replaces by the digest before `parse`;
    `inputs(params)` are all artifacts of the task, `job_inputs(spec)` those one job reads.

    Where a job leaves more than digests: `output_bytes(spec)` is the most its output may weigh, and
    `output_digests(spec, output)` the digest of each unit the output shows, by unit index, so that whoever
    holds the output can hold it against the committed root. Raises InvalidProof on an output of wrong length.
    Where an output shows every unit, `output_units(spec, output, indices)` may give the bytes that `units(i)` of the
    Outcome would (empty where the type is exact): then the auditor samples from the output and asks the worker nothing.
    `unit_bytes(spec)` is the most bytes `units(i)` may have, known before anything is computed: only a type that says
    it may open units that do not fit a message.
    `preview(params, outputs)` is a file to look at while the task runs, from the outputs there are so far.

    `call(params)`: the function of a worker's operator that the task calls, for whoever knows what is offered.

    Optional, where doing several at once is cheaper: `execute_batch(specs, context)`, `check_batch(spec,
    claims)`, `recompute_batch(specs)` (every unit's digest of each job, no JAX; exact types).

    `batch(spec)`: what grows the memory a job takes, as (the name a customer knows it by, how many the job has);
    for the hint after a device ran out of memory.

    `exact`: units are integers recomputable bit for bit, so an opening carries no unit bytes.
    `binds(spec)`: the job needs its worker's binding (`bind`) before it can be executed or checked.
    `sample_size`: k, the units challenged per job.
    `replicates`: no check says whether an answer is right, so some jobs are given to a worker of another owner, too,
    and their unit digests must be the same. Only for types that are not exact and compare by `bytes.__eq__`.
    """

    name: str
    exact: bool
    sample_size: int
    parse: Callable[[Mapping[str, object]], P]
    price: Callable[[P], Estimate]
    jobs: Callable[[P], int]
    make_jobs: Callable[[P, bytes, range], list[JobSpec]]
    layout: Callable[[JobSpec], Layout]
    execute: Callable[[JobSpec, Context], Outcome]
    check: Callable[[JobSpec, int, bytes, bytes | None], bytes | None]
    assemble: Callable[[P, Sequence[JobResult]], list[Artifact]]
    binds: Callable[[JobSpec], bool] = lambda _: False
    references: tuple[str, ...] = ()
    inputs: Callable[[P], Sequence[bytes]] | None = None
    job_inputs: Callable[[JobSpec], Sequence[bytes]] | None = None
    output_bytes: Callable[[JobSpec], int] | None = None
    output_digests: Callable[[JobSpec, bytes], Mapping[int, bytes]] | None = None
    output_units: Callable[[JobSpec, bytes, Sequence[int]], list[bytes]] | None = None
    call: Callable[[P], Call] | None = None
    unit_bytes: Callable[[JobSpec], int] | None = None
    preview: Callable[[P, Mapping[int, bytes]], Artifact | None] | None = None
    batch: Callable[[JobSpec], tuple[str, int]] | None = None
    agree: Callable[[bytes, bytes], bool] = bytes.__eq__
    replicates: bool = False
    execute_batch: Callable[[Sequence[JobSpec], Context], list[Outcome]] | None = None
    check_batch: Callable[[JobSpec, Sequence[Claim]], list[bytes | None]] | None = None
    recompute_batch: Callable[[Sequence[JobSpec]], list[bytes]] | None = None

    def split(self, params: P, task_id: bytes) -> JobList[P]:
        """The task's jobs as a lazy sequence; slice it to get many at once."""
        return JobList(self.make_jobs, params, task_id, range(self.jobs(params)))

    def execute_all(self, specs: Sequence[JobSpec], context: Context) -> list[Outcome]:
        """Run jobs that arrived together, in order, batched where the type can."""
        if self.execute_batch is not None:
            return self.execute_batch(specs, context)
        return [self.execute(spec, context) for spec in specs]

    def expected_digests(self, spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
        """The digest each challenged unit must have (None: its bytes are wrong), sharing work where it can."""
        if self.check_batch is not None:
            return self.check_batch(spec, claims)
        return [self.check(spec, claim.index, claim.unit, claim.previous_root) for claim in claims]

    def recompute(self, specs: Sequence[JobSpec]) -> list[bytes]:
        """Every unit digest of each job, as `Outcome.digests` must be, without JAX.

        For exact types with no more units than `sample_size`: the auditor then needs no opening.
        Raises TypeError where the type is not exact.
        """
        if not self.exact:
            raise TypeError(f"{self.name} is not exact: its units cannot be recomputed bit for bit")
        if self.recompute_batch is not None:
            return self.recompute_batch(specs)
        return [self._recompute(spec) for spec in specs]

    def _recompute(self, spec: JobSpec) -> bytes:
        layout = self.layout(spec)
        done, previous = bytearray(), None
        for first in range(0, layout.count, layout.units):
            claims = [Claim(first + i, b"", previous) for i in range(layout.units)]
            digests = b"".join(digest or b"" for digest in self.expected_digests(spec, claims))
            done += digests
            if layout.segments > 1:
                previous = segment_root(layout, digests)
        return bytes(done)


def equal_slices(spec: JobSpec, output: bytes, count: int, size: int) -> dict[int, bytes]:
    """`output_digests` of a type whose output is its `count` units of `size` bytes, one after the other.

    Raises InvalidProof where the length is another.
    """
    if len(output) != count * size:
        text = f"output of job {spec.index} has {len(output):,} bytes, not {count:,} * {size:,}"
        raise InvalidProof(text, violations=[("output", text)])
    return {i: blake3(output[i * size : (i + 1) * size]).digest() for i in range(count)}


def segment_root(layout: Layout, digests: bytes) -> bytes:
    """The root over one segment's unit digests (32 bytes each) and its padding: what the next segment chains
    on, the same as `JobTree.segment_root` of the whole, but known before the rest is computed.
    """
    leaves = [leaf_hash(digests[at : at + DIGEST_BYTES]) for at in range(0, len(digests), DIGEST_BYTES)]
    return root(leaves + [PADDING_LEAF] * (layout.padded - layout.units))


def worker_seed(block_hash: bytes, worker_address: str) -> bytes:
    """The binding of an assignment: SHA-256(latest block hash (32 bytes) || worker address (UTF-8)).

    Bound to the worker, so that nobody can hand in another's answer; bound to a block, so that nobody can work
    ahead. Raises ValueError where the hash is not 32 bytes.
    """
    if len(block_hash) != DIGEST_BYTES:
        raise ValueError(f"a block hash has 32 bytes, not {len(block_hash)}")
    return hashlib.sha256(block_hash + worker_address.encode()).digest()


def bind(spec: JobSpec, binding: bytes) -> JobSpec:
    """The job as assigned to one worker; `binding` is 32 bytes from `worker_seed`."""
    if len(binding) != DIGEST_BYTES:
        raise ValueError(f"a binding has 32 bytes, not {len(binding)}")
    return replace(spec, binding=binding)
