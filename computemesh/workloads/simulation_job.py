"""How a simulation task is cut into jobs, and the fixed layout of a job's params.

    u8 version = 1 | u8 model | u16 lanes | u32 steps | u32 frames | u32 repeat | u32 ensemble | u32 first | u32 count
    32 seed | u32 per extent of the model | an axis per parameter of the model (`kernels/simulation/sweep.py`)

Version 2 has, after the seed, the SHA-256 of the file that all members start from.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import Field

from computemesh.kernels.simulation import starts
from computemesh.kernels.simulation.catalog import BY_NUMBER, SYSTEMS, VARIANT_FIELD, Model, Shape, variants
from computemesh.kernels.simulation.limits import contradictions
from computemesh.kernels.simulation.sweep import Axis, points, read_parameters, unpack_axes
from computemesh.trust.audit import Layout
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import MAX_JOB_STATE_BYTES, MAX_PARAMS_BYTES, JobSpec
from computemesh.workloads.payload import Payload, Text, Whole, refuse, shown

SAMPLE_SIZE = 8
CHECK_CALLS = 80
"""Calls of the segment function a job is cut into, at least, per call that checking its sample takes."""
MAX_STEPS, MAX_MEMBERS, MAX_FRAMES, MAX_JOBS = 10**8, 10**6, 10_000, 10_000
DEFAULT_FRAMES = 50
JOB_STATE_BYTES = 2**27  # a job of about this size at most, where its members can be split further
MAX_RESULT_BYTES = 2**28
MAX_FLOPS = 10**17
JOB_FLOPS = 10**12  # a job of about this size, unless the payload says otherwise

VERSION, FROM_FILE = 1, 2
HEAD = struct.Struct(">BBHIIIIII32s")
EXTENT = struct.Struct(">I")
LISTED = "an object of the system's parameters"


class Params(Payload):
    system: str = Field(description=f"one of {', '.join(SYSTEMS)}")
    parameters: dict[str, Any] = Field(default_factory=dict, description=LISTED)
    start: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="the SHA-256 of an .npz artifact with the state at time 0"
    )
    steps: Whole = Field(ge=1, le=MAX_STEPS, description="a whole number from 1 to 100,000,000")
    ensemble: Whole = Field(default=1, ge=1, le=MAX_MEMBERS, description="a whole number from 1 to 1,000,000")
    seed: Text = Field(default="0", min_length=1, max_length=128, description="text of 1 to 128 characters")
    frames: Whole | None = Field(default=None, ge=1, le=MAX_FRAMES, description="a whole number from 1 to 10,000")
    jobs: Whole | None = Field(default=None, ge=1, le=MAX_JOBS, description="a whole number from 1 to 10,000")


class Job(NamedTuple):
    """A job's params, read. Its members are `first .. first + members - 1` of the task's."""

    model: Model
    shape: Shape
    axes: tuple[Axis, ...]
    seed: bytes
    steps: int
    frames: int
    repeat: int
    lanes: int
    ensemble: int
    first: int
    members: int
    start: bytes = b""

    @property
    def segments(self) -> int:
        return self.frames * self.repeat

    @property
    def layout(self) -> Layout:
        return Layout(self.segments, self.members)

    @property
    def width(self) -> int:
        return self.model.width(self.shape)

    @property
    def state_bytes(self) -> int:
        return self.width * self.model.itemsize

    def bounds(self, segment: int) -> tuple[int, int]:
        """The steps a segment covers: from, to."""
        return segment * self.steps // self.segments, (segment + 1) * self.steps // self.segments

    def pack(self) -> bytes:
        numbers = (self.steps, self.frames, self.repeat, self.ensemble, self.first, self.members)
        head = HEAD.pack(FROM_FILE if self.start else VERSION, self.model.number, self.lanes, *numbers, self.seed)
        extents = b"".join(EXTENT.pack(self.shape[extent.name]) for extent in self.model.extents)
        return head + self.start + extents + b"".join(axis.pack() for axis in self.axes)


class Plan(NamedTuple):
    """A task, cut: `whole` is its job 0 with all members."""

    whole: Job
    members: int
    per_job: int

    @property
    def jobs(self) -> int:
        return -(-self.members // self.per_job)


def _model(params: Params) -> tuple[Model, dict[str, object]]:
    """The model a payload chooses and the parameters left. Raises InvalidArgument on unknown names."""
    found = variants(params.system)
    if not found:
        text = f"system must be one of {', '.join(SYSTEMS)}, not {shown(params.system)}"
        raise refuse(("system", text))
    given = dict(params.parameters)
    variant = ""
    if (chooses := VARIANT_FIELD.get(params.system)) is not None:
        chosen = given.pop(chooses, next(iter(found)))
        if not isinstance(chosen, str) or chosen not in found:
            name = f"parameters.{chooses}"
            raise refuse((name, f"{name} must be one of {', '.join(found)}, not {shown(chosen)}"))
        variant = chosen
    model = found[variant]
    known = [parameter.name for parameter in model.parameters] + [extent.name for extent in model.extents]
    if unknown := [name for name in given if name not in known]:
        title = f"{params.system} {variant}".strip()
        name = shown(unknown[0])
        text = f"parameters: {name} is not a parameter of {title}; they are {', '.join(known)}"
        raise refuse((f"parameters.{unknown[0][:60]}", text))
    return model, given


def plan(params: Params) -> Plan:
    """How a task is cut. Raises InvalidArgument on what the model does not know or a job cannot hold."""
    model, given = _model(params)
    axes, shape, problems = read_parameters(model, given)
    problems += [] if problems else contradictions(model, shape, axes)
    if problems:
        raise refuse(*((f"parameters.{name}", f"parameters.{text}") for name, text in problems[:10]))
    if (members := points(axes) * params.ensemble) > MAX_MEMBERS:
        text = f"{points(axes):,} points of the sweep times ensemble {params.ensemble:,} are {members:,} members"
        raise refuse(("ensemble", f"{text}; a task has at most {MAX_MEMBERS:,}"))
    work = model.flops(shape) * params.steps * members
    if work > MAX_FLOPS:
        text = f"steps * members * operations per step is {work:.3g}; a task may ask for {MAX_FLOPS:.0e}"
        raise refuse(("steps", f"{text}: lower steps, ensemble or the sweep, or publish several tasks"))
    size = model.width(shape) * model.itemsize
    frames = _frames(params, model, members, size)
    held = members * size * max(frames, -(-params.steps // max(model.longest_segment, 1)))
    wanted = params.jobs or max(4, min(MAX_JOBS, max(-(-work // JOB_FLOPS), -(-2 * held // JOB_STATE_BYTES))))
    share = max(1, members // wanted)
    lanes = min(model.lanes(shape), 1 << share.bit_length() - 1)
    per_job = -(-members // min(wanted, members))
    per_job = -(-per_job // lanes) * lanes
    seed = tagged("computemesh.v1/simulation/seed", params.seed.encode())
    job = Job(model, shape, tuple(axes), seed, params.steps, frames, 1, lanes, params.ensemble, 0, members,
              _start(params, model, shape))  # fmt: skip
    job = job._replace(repeat=_repeat(job, min(per_job, members)))
    spread = [axis for parameter, axis in zip(model.parameters, axes, strict=True) if parameter.name == "spread"]
    if params.ensemble > 1 and any(min(axis.ends) == 0 for axis in spread):
        text = f"ensemble {params.ensemble:,} needs parameters.spread above 0: without it all members would be the same"
        raise refuse(("ensemble", text))
    return Plan(job, members, per_job)


def _start(params: Params, model: Model, shape: Shape) -> bytes:
    if params.start is None:
        return b""
    if not starts.arrays(model, shape):
        title = f"{model.system} {model.variant}".strip()
        text = f"start must be absent in {title}: a file is taken by nbody, lennard_jones and reaction_diffusion"
        raise refuse(("start", f"{text}, and where parameters.start names no other beginning"))
    if params.ensemble > 1:
        text = f"ensemble must be 1 with start, not {params.ensemble:,}: all members begin alike"
        raise refuse(("ensemble", f"{text}; sweep a parameter instead"))
    return bytes.fromhex(params.start)


def _frames(params: Params, model: Model, members: int, size: int) -> int:
    if model.longest_segment == 0:
        if (params.frames or 1) > 1:
            raise refuse(("frames", f"frames must be 1 in {model.system}, which keeps sums only, not {params.frames}"))
        return 1
    default = DEFAULT_FRAMES
    if model.system == "ode":  # small states: curves, as far as the result stays small
        default = max(default, min(20 * default, 2**17 // members))
    frames = params.frames or max(1, min(default, params.steps, MAX_RESULT_BYTES // (members * size)))
    if frames > params.steps:
        raise refuse(("frames", f"frames must be at most steps, {params.steps:,}, not {frames:,}"))
    return frames


def _repeat(job: Job, members: int) -> int:
    """Segments per frame: short enough for the metric, and many enough that a sample is a small share of a job."""
    if (size := job.members * job.frames * job.state_bytes) > MAX_RESULT_BYTES:
        text = f"{job.members:,} members * {job.frames:,} frames * {job.state_bytes:,} bytes are {size:,}"
        raise refuse(("frames", f"{text}; a result has at most {MAX_RESULT_BYTES:,}: lower frames or the ensemble"))
    if job.model.longest_segment == 0:
        return 1
    calls = -(-SAMPLE_SIZE // job.lanes) * CHECK_CALLS
    needed = -(-job.steps // job.model.longest_segment)
    wanted = max(needed, -(-calls // -(-members // job.lanes)))
    held = max(1, MAX_JOB_STATE_BYTES // (members * job.state_bytes))
    if max(needed, job.frames) > held:
        text = f"a job holds {held:,} states of its {members:,} members, and these steps and frames ask for "
        text += f"{max(needed, job.frames):,}: one at least every {job.model.longest_segment} steps"
        raise refuse(("steps", f"steps: {text}; lower steps or frames, or raise jobs"))
    repeat = min(-(-wanted // job.frames), job.steps // job.frames, held // job.frames)
    return max(1, repeat, -(-needed // job.frames))


def _bad_params(text: str) -> InvalidArgument:
    return InvalidArgument(f"params of a simulation job: {text}", violations=[("params", text)])


@lru_cache(maxsize=256)
def _read(data: bytes) -> Job:
    if len(data) < HEAD.size:
        raise _bad_params(f"{len(data)} bytes, fewer than {HEAD.size}")
    version, number, lanes, steps, frames, repeat, ensemble, first, count, seed = HEAD.unpack_from(data)
    model = BY_NUMBER.get(number)
    if version not in (VERSION, FROM_FILE) or model is None:
        raise _bad_params(f"version {version}, model {number}")
    cut = HEAD.size + (32 if version == FROM_FILE else 0)
    start, body = data[HEAD.size : cut], data[cut:]
    if len(start) != cut - HEAD.size:
        raise _bad_params("no start")
    held = EXTENT.size * len(model.extents)
    if len(body) < held:
        raise _bad_params("no extents")
    shape = {e.name: value[0] for e, value in zip(model.extents, EXTENT.iter_unpack(body[:held]), strict=True)}
    for extent in model.extents:
        if not extent.low <= shape[extent.name] <= extent.high or shape[extent.name] % extent.multiple_of:
            raise _bad_params(f"{extent.name} {shape[extent.name]}")
    try:
        axes = unpack_axes(body[held:], model)
    except ValueError as error:
        raise _bad_params(str(error)) from None
    if contradictions(model, shape, axes):
        raise _bad_params(contradictions(model, shape, axes)[0][1])
    job = Job(model, shape, tuple(axes), seed, steps, frames, repeat, lanes, ensemble, first, count, start)
    members = points(axes) * ensemble
    if not (1 <= frames * repeat <= steps <= MAX_STEPS and 1 <= count <= members - first and members <= MAX_MEMBERS):
        raise _bad_params(f"steps {steps}, segments {frames} * {repeat}, members {first} + {count} of {members}")
    if start and (not starts.arrays(model, shape) or ensemble > 1):
        raise _bad_params(f"a start for {model.system} {model.variant}, ensemble {ensemble}")
    if not 1 <= lanes <= model.lanes(shape) or lanes & (lanes - 1):
        raise _bad_params(f"{lanes} lanes")
    if job.segments * count * job.state_bytes > MAX_JOB_STATE_BYTES + MAX_RESULT_BYTES:
        raise _bad_params(f"{job.segments} states of {count} members")
    return job


def read_job(spec: JobSpec) -> Job:
    """Params as they came from the network. Raises InvalidArgument where they are not this type's layout."""
    if len(spec.params) > MAX_PARAMS_BYTES:
        raise _bad_params(f"{len(spec.params)} bytes, more than 4,096")
    return _read(spec.params)
