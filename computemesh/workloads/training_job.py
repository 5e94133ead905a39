"""How a training task is cut into jobs, and the fixed layout of a job's params.

    u8 version = 1 | u8 architecture | u8 optimizer | u8 flags (1: starts from a model folder)
    u32 round | u32 shard | u32 rounds | u32 workers | u32 segments | u32 steps per segment | u32 batch size
    f64 learning rate | f64 weight decay | f64 outer learning rate | f64 outer momentum
    32 seed | 32 dataset | 32 model | 8 * u32 sizes of the architecture | 128 frozen | 128 fresh

`frozen` and `fresh` are bit sets over the architecture's tensors in canonical order, lowest bit of byte 0 first.
"""

from __future__ import annotations

import fnmatch
import math
import struct
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field, Strict
from pydantic_core import PydanticSerializationError

from computemesh.kernels.training.architectures import (
    ARCHITECTURES,
    MAX_TENSORS,
    NUMBERS,
    SIZES,
    Model,
    pack_sizes,
    read_model,
    unpack_model,
)
from computemesh.trust.audit import Layout
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import MAX_JOB_STATE_BYTES, MAX_STATE_BYTES, JobSpec
from computemesh.workloads.payload import Payload, Text, Whole, refuse, shown

SAMPLE_SIZE = 8
SEGMENTS = 240
"""Segments a job is cut into where it has the steps: a sample of 8 is then 3.3 % of its work."""
MAX_EXAMPLES, MAX_EPOCHS, MAX_BATCH, MAX_ROUNDS, MAX_WORKERS = 2**24, 10_000, 65_536, 1000, 256
MAX_WEIGHTS = 2**23  # frozen ones included
MAX_TASK_STATE_BYTES = 2**31  # all jobs' outputs, which assembling holds
MAX_STEPS = 2**24  # of one shard in all: an optimizer's count is exact in float32
MAX_BATCH_BYTES = 2**28  # one segment's inputs
MAX_FLOPS = 10**17

OPTIMIZERS = {"sgd": (0, 0), "momentum": (1, 0), "adam": (2, 1), "adamw": (2, 1)}
"""Per optimizer: vectors of its state as long as the weights, and further numbers."""
OPTIMIZER_NAMES = tuple(OPTIMIZERS)

VERSION = 1
HEAD = struct.Struct(">4B7I4d32s32s32s")
SIZES_BYTES, SET_BYTES = 4 * SIZES, MAX_TENSORS // 8
PARAMS_BYTES = HEAD.size + SIZES_BYTES + 2 * SET_BYTES

PATTERNS = "a list of at most 64 patterns of tensor names such as model.layers.0.*"
Outer = Annotated[float, Strict()] | None
Digest = Field(pattern="^[0-9a-f]{64}$", description="an artifact's SHA-256, 64 hexadecimal characters")


class Params(Payload):
    model_architecture: str | dict[str, Any] = Field(
        description=f"one of {', '.join(ARCHITECTURES)}, or an object of such a name and its sizes"
    )
    model_id: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="a model folder in the store")
    dataset: str = Digest
    epochs: Whole = Field(default=1, ge=1, le=MAX_EPOCHS, description="a whole number from 1 to 10,000")
    examples: Whole = Field(default=4096, ge=1, le=MAX_EXAMPLES, description="a whole number from 1 to 16,777,216")
    batch_size: Whole = Field(default=32, ge=1, le=MAX_BATCH, description="a whole number from 1 to 65,536")
    learning_rate: float = Field(default=1e-3, strict=True, gt=0, le=100, description="a number above 0, at most 100")
    optimizer: str = Field(default="adamw", description=f"one of {', '.join(OPTIMIZERS)}")
    weight_decay: float = Field(default=0.01, strict=True, ge=0, le=1, description="a number from 0 to 1")
    seed: Text = Field(default="0", min_length=1, max_length=128, description="text of 1 to 128 characters")
    rounds: Whole = Field(default=1, ge=1, le=MAX_ROUNDS, description="a whole number from 1 to 1,000")
    workers: Whole = Field(default=1, ge=1, le=MAX_WORKERS, description="a whole number from 1 to 256")
    outer_learning_rate: Outer = Field(default=None, gt=0, le=2, description="a number above 0, at most 2")
    outer_momentum: Outer = Field(default=None, ge=0, lt=1, description="a number from 0 to below 1")
    frozen: list[str] = Field(default_factory=list, max_length=64, description=PATTERNS)
    fresh: list[str] = Field(default_factory=list, max_length=64, description=PATTERNS)


class Job(NamedTuple):
    """A job's params, read. `base` is the digest of the model folder training starts from, empty without one."""

    model: Model
    optimizer: str
    round: int
    shard: int
    rounds: int
    workers: int
    segments: int
    steps: int
    batch: int
    rate: float
    decay: float
    outer_rate: float
    outer_momentum: float
    seed: bytes
    dataset: bytes
    base: bytes
    frozen: bytes
    fresh: bytes

    @property
    def layout(self) -> Layout:
        """Segment 0 is the outer step, then come the segments of local steps; one unit each."""
        return Layout(self.segments + 1, 1)

    @property
    def local_steps(self) -> int:
        return self.segments * self.steps

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(name for i, name in enumerate(self.model.shapes()) if not _in(self.frozen, i))

    @property
    def renewed(self) -> frozenset[str]:
        """Tensors that start anew though there is a model folder."""
        return frozenset(name for i, name in enumerate(self.model.shapes()) if _in(self.fresh, i))

    @property
    def weights(self) -> int:
        """P, the trainable numbers."""
        shapes = self.model.shapes()
        return sum(math.prod(shapes[name]) for name in self.trainable)

    @property
    def counts(self) -> int:
        """Numbers the optimizer's state begins with: what it counts."""
        return OPTIMIZERS[self.optimizer][1]

    @property
    def slots(self) -> int:
        """Q, the numbers of the optimizer's state: its counts, then vectors as long as the weights."""
        return OPTIMIZERS[self.optimizer][0] * self.weights + self.counts

    @property
    def state_bytes(self) -> int:
        return 4 * (self.weights + self.slots + self.segments) + 8

    @property
    def outer_bytes(self) -> int:
        alphabet = self.model.named["vocabulary"] if self.model.reads_text and not self.base else 0
        return 4 * (2 * self.weights + alphabet)

    @property
    def carries_base(self) -> bool:
        """Whether the output ends with what the checkpoint takes over from the model folder."""
        return bool(self.base) and self.round == self.rounds - 1 and self.shard == 0

    def pack(self) -> bytes:
        numbers = (self.round, self.shard, self.rounds, self.workers, self.segments, self.steps, self.batch)
        rates = (self.rate, self.decay, self.outer_rate, self.outer_momentum)
        kinds = (NUMBERS.index(self.model.name), OPTIMIZER_NAMES.index(self.optimizer), int(bool(self.base)))
        digests = (self.seed, self.dataset, self.base or bytes(32))
        head = HEAD.pack(VERSION, *kinds, *numbers, *rates, *digests)
        return head + pack_sizes(self.model) + self.frozen + self.fresh


def _in(members: bytes, index: int) -> bool:
    return bool(members[index // 8] >> index % 8 & 1)


def _matching(model: Model, field: str, patterns: list[str]) -> bytes:
    """The bit set of tensors that one of the patterns names. Raises InvalidArgument where a pattern names none."""
    members = bytearray(SET_BYTES)
    for pattern in patterns:
        found = [i for i, name in enumerate(model.shapes()) if fnmatch.fnmatchcase(name, pattern[:200])]
        if not found:
            text = f"{field}: {shown(pattern)} matches no tensor; the first are {', '.join(list(model.shapes())[:4])}"
            raise refuse((field, text))
        for i in found:
            members[i // 8] |= 1 << i % 8
    return bytes(members)


@lru_cache(maxsize=64)
def _whole(text: str) -> Job:
    return _cut(Params.model_validate_json(text))


def whole(params: Params) -> Job:
    """Job 0 of a task. Raises InvalidArgument on what a job cannot hold or a task may not ask."""
    try:
        text = params.model_dump_json()
    except PydanticSerializationError:
        problem = "model_architecture: holds text with half of a surrogate pair, which no UTF-8 has"
        raise refuse(("model_architecture", problem)) from None
    return _whole(text)


def _cut(params: Params) -> Job:
    model, problems = read_model(params.model_architecture)
    if model is None:
        raise refuse(*((f"model_architecture.{name}", f"model_architecture: {text}") for name, text in problems[:10]))
    if params.optimizer not in OPTIMIZERS:
        raise refuse(("optimizer", f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {shown(params.optimizer)}"))
    if params.fresh and params.model_id is None:
        raise refuse(("fresh", "fresh names tensors not to take from a model; it needs model_id"))
    frozen, fresh = _matching(model, "frozen", params.frozen), _matching(model, "fresh", params.fresh)
    wanted = -(-params.epochs * params.examples // (params.batch_size * params.workers * params.rounds))
    alone = params.workers == 1
    outer_rate = (1.0 if alone else 0.7) if params.outer_learning_rate is None else params.outer_learning_rate
    momentum = (0.0 if alone else 0.9) if params.outer_momentum is None else params.outer_momentum
    job = Job(
        model, params.optimizer, 0, 0, params.rounds, params.workers, wanted, 1, params.batch_size,
        params.learning_rate, params.weight_decay, outer_rate, momentum,
        tagged("computemesh.v1/training/seed", params.seed.encode()), bytes.fromhex(params.dataset),
        bytes.fromhex(params.model_id or ""), frozen, fresh,
    )  # fmt: skip
    held = max(1, MAX_JOB_STATE_BYTES // (job.state_bytes - 4 * job.segments + 8 * SEGMENTS))
    steps = max(wanted // SEGMENTS, -(-wanted // held), 1)
    job = job._replace(segments=-(-wanted // steps), steps=steps)
    if problem := _problem(job):
        raise refuse(problem)
    return job


def _problem(job: Job) -> tuple[str, str] | None:
    """What a worker or an auditor could not hold, as (field, text)."""
    if not job.trainable:
        return "frozen", "frozen names every tensor: nothing is left to train"
    if job.state_bytes > MAX_STATE_BYTES or job.outer_bytes > MAX_STATE_BYTES:
        text = f"{job.weights:,} trainable weights with {job.optimizer} are a state of {job.state_bytes:,} bytes"
        return "model_architecture", f"{text}; a state has at most {MAX_STATE_BYTES:,}: freeze some of them"
    if (size := job.segments * job.state_bytes) > 2 * MAX_JOB_STATE_BYTES:
        return "params", f"{job.segments} states are {size:,} bytes; at most {2 * MAX_JOB_STATE_BYTES:,} are held"
    total = sum(math.prod(shape) for shape in job.model.shapes().values())
    if total > MAX_WEIGHTS:
        return "model_architecture", f"the model has {total:,} weights; at most {MAX_WEIGHTS:,} are held"
    if job.local_steps * job.rounds > MAX_STEPS:
        return "epochs", f"{job.local_steps * job.rounds:,} steps per worker; at most {MAX_STEPS:,} are taken"
    row = 4 * (math.prod(job.model.row) + (job.model.named["context"] if job.model.reads_text else 1))
    if (size := job.steps * job.batch * row) > MAX_BATCH_BYTES:
        text = f"{job.steps} batches of {job.batch:,} are {size:,} bytes"
        return "batch_size", f"{text}; at most {MAX_BATCH_BYTES:,} are held"
    if (size := job.rounds * job.workers * (job.state_bytes + job.outer_bytes)) > MAX_TASK_STATE_BYTES:
        text = f"rounds {job.rounds:,} * workers {job.workers:,} leave {size:,} bytes of states"
        return "rounds", f"{text}; a task may leave {MAX_TASK_STATE_BYTES:,}"
    if (work := flops(job)) > MAX_FLOPS:
        text = f"{work:.3g} operations; a task may ask for {MAX_FLOPS:.0e}"
        return "epochs", f"{text}: lower epochs, examples or the model"
    return None


def flops(job: Job) -> int:
    """Operations of the whole task."""
    update = 20 * job.weights  # the optimizer's elementwise work per step
    return job.rounds * job.workers * job.local_steps * (job.batch * job.model.flops() + update)


def _bad_params(text: str) -> InvalidArgument:
    return InvalidArgument(f"params of a training job: {text}", violations=[("params", text)])


@lru_cache(maxsize=256)
def _read(data: bytes) -> Job:
    if len(data) != PARAMS_BYTES:
        raise _bad_params(f"{len(data)} bytes, not {PARAMS_BYTES}")
    version, number, optimizer, flags, *rest = HEAD.unpack_from(data)
    counts, rates, (seed, dataset, base) = rest[:7], rest[7:11], rest[11:]
    at = HEAD.size + SIZES_BYTES
    frozen, fresh = data[at : at + SET_BYTES], data[at + SET_BYTES :]
    if version != VERSION or flags > 1 or optimizer >= len(OPTIMIZERS):
        raise _bad_params(f"version {version}, flags {flags}, optimizer {optimizer}")
    limits = (MAX_ROUNDS, MAX_WORKERS, 2 * SEGMENTS, MAX_STEPS, MAX_BATCH)
    if any(not 1 <= value <= limit for value, limit in zip(counts[2:], limits, strict=True)):
        raise _bad_params(f"rounds, workers, segments, steps, batch {counts[2:]}")
    if counts[0] >= counts[2] or counts[1] >= counts[3]:
        raise _bad_params(f"round {counts[0]} of {counts[2]}, shard {counts[1]} of {counts[3]}")
    if not all(0 <= rate <= 100 for rate in rates):
        raise _bad_params("rates outside 0 to 100")
    try:
        model = unpack_model(number, data[HEAD.size : at])
    except ValueError as error:
        raise _bad_params(str(error)) from None
    job = Job(model, OPTIMIZER_NAMES[optimizer], *counts, *rates, seed, dataset, base if flags else b"", frozen, fresh)
    if problem := _problem(job):
        raise _bad_params(problem[1])
    return job


def read_job(spec: JobSpec) -> Job:
    """Params as they came from the network. Raises InvalidArgument where they are not this type's layout."""
    return _read(spec.params)
