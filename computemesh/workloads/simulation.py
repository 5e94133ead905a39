"""`simulation`: ensembles, parameter sweeps and long runs of the systems in `kernels/simulation/catalog.py`.

A task has points (the product of its swept parameters) times `ensemble` members. Members are split over jobs; a
job's members run side by side in lanes, and time is cut into segments. A unit is the state of one member after one
segment: unit s * members + i of `Layout(segments, members)`, its bytes the state's numbers, little-endian.

Its opening is `state || previous state || path`: the path leads from the previous state's digest to the root of the
segment before, which the tree binds; in segment 0 it is the state alone, because a start follows from the params, or
from a file that they name. So the check runs one segment of one member, in lanes shared with the other challenged
units, by the very function the worker ran: bytes are equal within one env_class, whatever the system. Elsewhere
`agrees` judges. In a chaotic system rounding grows as exp(lambda t), so trajectories of two devices part for good;
segments from a committed start are short (`Model.longest_segment`) and stay comparable. What chains is nonetheless one
history: a cheat who spoils one state spoils all that follow at the price of one bad unit, found with probability k/n.

The output is the states of every `repeat`-th segment, [frame][member][width], so it shows `frames` per member.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from blake3 import blake3

from computemesh.kernels.simulation import invariants, starts
from computemesh.kernels.simulation.sweep import member_values
from computemesh.trust.audit import DIGEST_BYTES, PADDING_LEAF, Layout
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.merkle import Tree, leaf_hash, root_from_path
from computemesh.workloads.contract import (
    Artifact,
    Claim,
    Context,
    Estimate,
    Files,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
    equal_slices,
)
from computemesh.workloads.payload import read
from computemesh.workloads.simulation_job import SAMPLE_SIZE, Job, Params, plan, read_job

MEMORY_BYTES = 2**27
FLOPS_PER_UNIT = 10**6  # one CPC buys 10**12 operations


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload {system, parameters, start?, steps, ensemble = 1, seed = "0", frames?, jobs?}.

    A parameter is a number, a list of numbers, or {"from", "to", "count"}. Raises InvalidArgument per bad field.
    """
    params = read(Params, "simulation", payload)
    plan(params)
    return params


def price(params: Params) -> Estimate:
    whole = plan(params).whole
    flops = whole.model.flops(whole.shape) * whole.steps * whole.members
    return Estimate(flops, -(-flops // FLOPS_PER_UNIT))


def jobs(params: Params) -> int:
    return plan(params).jobs


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """The jobs of a range: members per_job * i and following. Results depend on the seed alone."""
    cut = plan(params)
    whole = cut.whole
    pairs = (whole.width // whole.model.fields) ** 2 if whole.model.system in ("nbody", "lennard_jones") else 0
    paths = whole.shape.get("paths", 0)
    memory = whole.lanes * (24 * whole.state_bytes + 8 * 8 * pairs + 8 * 4 * paths)

    def wire(index: int) -> bytes:
        first = index * cut.per_job
        return whole._replace(first=first, members=min(cut.per_job, cut.members - first)).pack()

    return [JobSpec(task_id, index, wire(index), device_memory_bytes=memory) for index in which]


def inputs(params: Params) -> list[bytes]:
    return [] if params.start is None else [bytes.fromhex(params.start)]


def job_inputs(spec: JobSpec) -> list[bytes]:
    start = read_job(spec).start
    return [start] if start else []


def layout(spec: JobSpec) -> Layout:
    return read_job(spec).layout


class Lanes:
    """Runs any mixture of a job's members and segments; within `engine.precise()`, on the default device."""

    def __init__(self, job: Job, files: Files | None = None) -> None:
        """`files` hold what the job starts from, where it starts from a file. Raises InvalidArgument on a bad one."""
        self.job = job
        self.given: np.ndarray | None = None
        if job.start:
            if files is None:
                raise InvalidArgument("a job that starts from a file needs files", violations=[("start", "missing")])
            self.given = starts.from_file(job.model, job.shape, files.artifact(job.start))
        self.values = member_values(job.axes, job.ensemble, job.first, job.members)

    def start(self, member: int) -> np.ndarray:
        """The state of a member of the job at time 0."""
        job = self.job
        if self.given is not None:
            return self.given
        named = dict(zip((p.name for p in job.model.parameters), self.values[member].tolist(), strict=True))
        return starts.start(job.model, job.shape, named, job.seed, (job.first + member) % job.ensemble)

    def keys(self, members: Sequence[int]) -> np.ndarray:
        """(n, 2) uint32: where the random numbers of a Monte Carlo member come from; 0 where none are drawn."""
        job = self.job
        if job.model.longest_segment:
            return np.zeros((len(members), 2), np.uint32)
        drawn = [starts.draw_key(job.seed, (job.first + member) % job.ensemble)[:8] for member in members]
        return np.frombuffer(b"".join(drawn), ">u4").astype(np.uint32).reshape(-1, 2)

    def run(
        self, states: np.ndarray, members: Sequence[int], segments: Sequence[int], shift: float = 0.0
    ) -> np.ndarray:
        """states (n, width), n <= lanes, each through its own segment; all as long -> (n, width).

        Idle lanes repeat the first. `shift` moves starts and parameters by that part of them, up and down.
        """
        from computemesh.kernels.simulation import engine

        job, n = self.job, len(members)
        full = list(range(n)) + [0] * (job.lanes - n)
        signs = 1.0 + shift * (1 - 2 * (np.arange(states.shape[1]) % 3 % 2))
        keys = self.keys([members[i] for i in full])
        first = np.array([job.bounds(segments[i])[0] for i in full], np.float64)
        begin, end = job.bounds(segments[0])
        moved = (states[full] * signs).astype(job.model.dtype) if shift else states[full]
        values = self.values[[members[i] for i in full]] * (1.0 + shift)
        return np.asarray(engine.advance(job.model, job.shape, moved, values, first, keys, end - begin))[:n]


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Run all segments of all members, `lanes` members at a time. Compiled once per model, shape and lanes."""
    import jax

    from computemesh.kernels.simulation import engine

    job = read_job(spec)
    lanes = Lanes(job, spec.files)
    states = _store((job.segments, job.members, job.width), job.model.dtype, context.scratch)
    with engine.precise(), jax.default_device(context.device if context.device is not None else jax.devices()[0]):
        for at in range(0, job.members, job.lanes):
            members = range(at, min(at + job.lanes, job.members))
            now = np.stack([lanes.start(member) for member in members])
            for segment in range(job.segments):
                now = lanes.run(now, members, [segment] * len(members))
                states[segment, at : at + len(members)] = now
                context.progress((at + len(members) * (segment + 1) / job.segments) / job.members)
    rows = states.reshape(-1, job.width)
    digests = b"".join(blake3(row.data.cast("B")).digest() for row in rows)
    return Outcome(digests, _openings(job, rows, digests), states[job.repeat - 1 :: job.repeat].tobytes())


def _store(shape: tuple[int, ...], dtype: str, folder: str | None) -> np.ndarray:
    """An array for all states of a job: in memory while it is small, else in an unnamed file."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash at some later write
        return np.memmap(file, dtype, "r+", shape=shape)


def _openings(job: Job, rows: np.ndarray, digests: bytes) -> Callable[[int], bytes]:
    shape = job.layout

    @cache
    def tree(segment: int) -> Tree:
        at = DIGEST_BYTES * segment * shape.units
        part = digests[at : at + DIGEST_BYTES * shape.units]
        leaves = [leaf_hash(part[i : i + DIGEST_BYTES]) for i in range(0, len(part), DIGEST_BYTES)]
        return Tree(leaves + [PADDING_LEAF] * (shape.padded - shape.units))

    def unit(index: int) -> bytes:
        segment, member = divmod(index, shape.units)
        state = bytes(rows[index].tobytes())
        if segment == 0:
            return state
        return state + bytes(rows[index - shape.units].tobytes()) + b"".join(tree(segment - 1).path(member))

    return unit


def opened(job: Job, claim: Claim, lanes: Lanes) -> tuple[np.ndarray, np.ndarray] | None:
    """(start, state) of a claim, each (width,); None where its bytes do not fit or its start was not committed."""
    shape, size = job.layout, job.state_bytes
    segment = shape.segment_of(claim.index)
    depth = (shape.padded - 1).bit_length()
    if len(claim.unit) != (size if segment == 0 else 2 * size + DIGEST_BYTES * depth):
        return None
    state = np.frombuffer(claim.unit[:size], job.model.dtype)
    if segment == 0:
        return lanes.start(claim.index), state
    path = claim.unit[2 * size :]
    hashes = [path[i : i + DIGEST_BYTES] for i in range(0, len(path), DIGEST_BYTES)]
    leaf = leaf_hash(blake3(claim.unit[size : 2 * size]).digest())
    try:
        bound = root_from_path(leaf, claim.index % shape.units, shape.padded, hashes) == claim.previous_root
    except InvalidProof:
        return None
    return (np.frombuffer(claim.unit[size : 2 * size], job.model.dtype), state) if bound else None


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """Runs each claimed segment from its committed start, `lanes` at a time on the CPU.

    Raises InvalidProof on an index outside the job.
    """
    job = read_job(spec)
    lanes, found = Lanes(job, spec.files), dict[int, bytes]()
    ready = [(claim, pair) for claim in claims if (pair := opened(job, claim, lanes)) is not None]

    def length(row: tuple[Claim, Any]) -> int:
        begin, end = job.bounds(job.layout.segment_of(row[0].index))
        return end - begin

    for _, rows in groupby(sorted(ready, key=length), key=length):
        same = list(rows)
        for at in range(0, len(same), job.lanes):
            found |= _judge(lanes, same[at : at + job.lanes])
    return [found.get(claim.index) for claim in claims]


def _judge(lanes: Lanes, rows: list[tuple[Claim, tuple[np.ndarray, np.ndarray]]]) -> dict[int, bytes]:
    import jax

    from computemesh.kernels.simulation import engine
    from computemesh.kernels.simulation.metric import SHIFT, agrees

    job, shape = lanes.job, lanes.job.layout
    members = [claim.index % shape.units for claim, _ in rows]
    segments = [shape.segment_of(claim.index) for claim, _ in rows]
    begun, claimed = np.stack([start for _, (start, _) in rows]), [state for _, (_, state) in rows]
    with engine.precise(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        mine = lanes.run(begun, members, segments)
        good = [state.tobytes() == own.tobytes() for state, own in zip(claimed, mine, strict=True)]
        if not all(good):  # another env_class, or a lie: how far does one rounding carry from here?
            moved = lanes.run(begun, members, segments, SHIFT[job.model.precision])
            steps = job.bounds(segments[0])[1] - job.bounds(segments[0])[0]
            judged = zip(good, claimed, mine, moved, strict=True)
            good = [same or agrees(job.model, steps, state, own, other) for same, state, own, other in judged]
    digests = [blake3(claim.unit[: job.state_bytes]).digest() for claim, _ in rows]
    return {claim.index: digest for (claim, _), digest, fine in zip(rows, digests, good, strict=True) if fine}


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def output_bytes(spec: JobSpec) -> int:
    job = read_job(spec)
    return job.frames * job.members * job.state_bytes


def unit_bytes(spec: JobSpec) -> int:
    """A state, the one before it, and its path in the tree of its segment."""
    job = read_job(spec)
    return 2 * job.state_bytes + DIGEST_BYTES * (job.layout.padded - 1).bit_length()


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    """The digests of the states an output shows, after a look at all of them: what every run conserves.

    Raises InvalidProof on a wrong length and on states that break a conservation law (`invariants.broken`); that is
    looked at where the state at time 0 is at hand.
    """
    job = read_job(spec)
    slices = equal_slices(spec, output, job.frames * job.members, job.state_bytes)
    shown_states = np.frombuffer(output, job.model.dtype).reshape(job.frames, job.members, job.width)
    begun = invariants.conserves(job.model) and not (job.start and spec.files is None)
    lanes = Lanes(job, spec.files) if begun else None
    for member in range(job.members) if lanes is not None else ():
        if text := invariants.broken(job.model, job.shape, lanes.start(member), shown_states[:, member]):
            text = f"output of job {spec.index}, member {job.first + member}: {text}"
            raise InvalidProof(text, violations=[("output", text)])
    last = [(frame + 1) * job.repeat - 1 for frame in range(job.frames)]
    return {last[i // job.members] * job.members + i % job.members: digest for i, digest in slices.items()}


def _run(params: Params, outputs: Mapping[int, bytes]) -> Any:
    """The states of the jobs there are, as a report reads them."""
    from computemesh.kernels.simulation.run import Run

    cut = plan(params)
    job, rows = cut.whole, []
    for index in sorted(outputs):
        first = index * cut.per_job
        count = min(cut.per_job, cut.members - first)
        states = np.frombuffer(outputs[index], job.model.dtype).reshape(job.frames, count, job.width)
        rows.append((member_values(job.axes, job.ensemble, first, count), np.arange(first, first + count), states))
    values, members, states = (
        np.concatenate(parts, axis) for parts, axis in zip(zip(*rows, strict=True), (0, 0, 1), strict=True)
    )
    times = np.array([(frame + 1) * job.repeat * job.steps // job.segments for frame in range(job.frames)])
    return Run(job.model, job.shape, values, members, states, times, job.ensemble, job.seed, not job.start)


def preview(params: Params, outputs: Mapping[int, bytes]) -> Artifact | None:
    """The plot of the members there are so far."""
    if not outputs:
        return None
    from computemesh.kernels.simulation import report

    return Artifact("preview.png", "image/png", report.plot(_run(params, outputs)))


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """results.npz (states, times, parameters, statistics), summary.json, plot.png and, where time passes,
    animation.webp.
    """
    from computemesh.kernels.simulation import report

    run = _run(params, {index: result.output for index, result in enumerate(results)})
    found = [
        Artifact("results.npz", "application/x-npz", report.arrays(run)),
        Artifact("summary.json", "application/json", report.summary(run)),
        Artifact("plot.png", "image/png", report.plot(run)),
    ]
    if run.frames > 1:
        found.append(Artifact("animation.webp", "image/webp", report.animation(run)))
    return found


TASK = Workload(
    name="simulation",
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
    check_batch=check_batch,
    references=("start",),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    unit_bytes=unit_bytes,
    preview=preview,
)
