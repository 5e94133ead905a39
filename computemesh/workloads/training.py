"""`training`: a model trained by several workers who do not trust each other, in rounds (DiLoCo, arXiv:2311.08105).

Job r * workers + s is shard s of round r and needs every job of round r - 1. It first folds their outputs into the
round's weights (`kernels/training/outer.py`: clipped, trimmed, Nesterov's momentum; every shard computes the same
bits, so nobody is the aggregator), then takes its local steps. When a worker dies only its job is done again: what
rounds before left is verified and stays.

A job is a chain of `segments + 1` units, one per segment of the tree. Unit 0 is the outer step, exact on any machine.
Unit t is what segment t of local steps does to (weights, optimizer state, losses, cursor). Its digest is that of the
end state; its opening is `start || end`, for t = 1 `outer || end`, for t = 0 the outer state. The start is bound: with
one unit per segment the previous root is the leaf of the state before, so it must hash to that. The check runs one
segment from there with the function and the shapes the worker ran: equal bytes within one env_class, else
`kernels/training/metric.py` judges. A sample of 8 of 240 segments is 3.3 % of the work.

The output is `outer || end state`, units 0 and the last (the last round's first shard adds what a checkpoint takes
over from the model folder, under unit 0). Whoever holds it and the outputs before recomputes the outer step of every
job, not only of challenged ones.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

from computemesh.kernels.training import architectures, checkpoint, metric
from computemesh.kernels.training.base import MAX_TOKENIZER_BYTES, read_appendix
from computemesh.trust.audit import Layout
from computemesh.trust.errors import InvalidProof
from computemesh.trust.merkle import leaf_hash
from computemesh.workloads.contract import (
    Artifact,
    Claim,
    Context,
    Estimate,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
)
from computemesh.workloads.payload import read
from computemesh.workloads.training_job import SAMPLE_SIZE, Job, Params, flops, read_job, whole
from computemesh.workloads.training_run import Run, State, fold, read_outer, read_state, split_weights

FLOPS_PER_UNIT = 10**6  # one CPC buys 10**12 operations
MAX_APPENDIX_FILES = 2**22 + MAX_TOKENIZER_BYTES + 8


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload; docs/task-types.md has the fields. Raises InvalidArgument per bad field."""
    params = read(Params, "training", payload)
    whole(params)
    return params


def price(params: Params) -> Estimate:
    work = flops(whole(params))
    return Estimate(work, -(-work // FLOPS_PER_UNIT))


def jobs(params: Params) -> int:
    return params.rounds * params.workers


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """Job r * workers + s is shard s of round r. Results depend on the seed alone."""
    job, shards = whole(params), params.workers
    memory = 8 * job.state_bytes + 4 * job.batch * job.model.flops() // max(job.weights, 1)

    def spec(index: int) -> JobSpec:
        number, shard = divmod(index, shards)
        needs = tuple(range((number - 1) * shards, number * shards)) if number else ()
        packed = job._replace(round=number, shard=shard).pack()
        return JobSpec(task_id, index, packed, needs, device_memory_bytes=memory)

    return [spec(index) for index in which]


def inputs(params: Params) -> list[bytes]:
    return [bytes.fromhex(digest) for digest in (params.dataset, params.model_id) if digest is not None]


def job_inputs(spec: JobSpec) -> list[bytes]:
    job = read_job(spec)
    return [digest for digest in (job.dataset, job.base) if digest]


def layout(spec: JobSpec) -> Layout:
    return read_job(spec).layout


def execute(spec: JobSpec, context: Context) -> Outcome:
    """The outer step, then every segment. States go to an unnamed temporary file, for openings to read.

    Compiled once per model, optimizer and shapes. Raises InvalidArgument on files that cannot be used.
    """
    import jax

    job = read_job(spec)
    run = Run(job, spec.files)
    first = run.outer()
    appendix = run.appendix()
    digests, state = [blake3(first + appendix).digest()], run.start(first)
    kept = tempfile.TemporaryFile(dir=context.scratch)  # noqa: SIM115  the outcome reads it later, and closes it by going
    with jax.default_device(context.device if context.device is not None else jax.devices()[0]):
        for segment in range(1, job.segments + 1):
            state = run.advance(state, segment)
            packed = state.pack()
            digests.append(blake3(packed).digest())
            kept.write(packed)
            context.progress(segment / job.segments)
    kept.flush()
    return Outcome(b"".join(digests), _openings(job, first, appendix, kept), first + packed + appendix)


def _openings(job: Job, first: bytes, appendix: bytes, kept: Any) -> Callable[[int], bytes]:
    def state(segment: int) -> bytes:
        return os.pread(kept.fileno(), job.state_bytes, (segment - 1) * job.state_bytes)

    def unit(index: int) -> bytes:
        if index == 0:
            return first + appendix
        return (first + appendix if index == 1 else state(index - 1)) + state(index)

    return unit


def _opened(run: Run, claim: Claim) -> tuple[State, State] | None:
    """(start, end) of a claimed segment; None where the bytes cannot be it or its start was not committed."""
    job = run.job
    size, begun = job.state_bytes, len(claim.unit) - job.state_bytes
    fits = begun >= job.outer_bytes if claim.index == 1 else begun == size
    if not fits or claim.previous_root != leaf_hash(blake3(claim.unit[:begun]).digest()):
        return None
    start = run.start(claim.unit) if claim.index == 1 else read_state(job, claim.unit[:begun])
    return (start, read_state(job, claim.unit[begun:])) if start.steps == run.steps_before(claim.index) else None


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """Runs each claimed segment from its committed start on the CPU; the outer step is folded again in numpy.

    Raises InvalidProof on an index outside the job.
    """
    job = read_job(spec)
    for claim in claims:
        job.layout.segment_of(claim.index)
    run = Run(job, spec.files)
    return [_outer_digest(run) if claim.index == 0 else _judge(run, claim) for claim in claims]


def _outer_digest(run: Run) -> bytes:
    return blake3(run.outer() + run.appendix()).digest()


def _judge(run: Run, claim: Claim) -> bytes | None:
    import jax

    if (pair := _opened(run, claim)) is None:
        return None
    start, claimed = pair
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        mine = run.advance(start, claim.index)
        good = claimed.pack() == mine.pack()
        if not good and _plausible(run.job, start, claimed, mine, claim.index):  # another env_class, or a lie
            shifted = metric.moved(start.weights)
            other = run.advance(start._replace(weights=shifted), claim.index)
            vectors = [_vectors(run.job, state, claim.index) for state in (start, claimed, mine)]
            moved = [_vectors(run.job, state, claim.index) for state in (start._replace(weights=shifted), other)]
            good = metric.usage(run.job.steps, *vectors, *moved) <= 1.0
    return blake3(claim.unit[-run.job.state_bytes :]).digest() if good else None


def _plausible(job: Job, start: State, claimed: State, mine: State, segment: int) -> bool:
    """Whether what no rounding touches is equal: cursor, earlier and later losses, the optimizer's counts."""
    others = np.arange(len(mine.losses)) != segment - 1
    return (
        claimed.steps == mine.steps
        and claimed.losses[others].tobytes() == start.losses[others].tobytes()
        and claimed.slots[: job.counts].tobytes() == mine.slots[: job.counts].tobytes()
    )


def _vectors(job: Job, state: State, segment: int) -> list[np.ndarray]:
    """What the metric judges apart: weights, each vector of the optimizer, this segment's loss."""
    vectors = [state.slots[at : at + job.weights] for at in range(job.counts, job.slots, job.weights)]
    return [state.weights, *vectors, state.losses[segment - 1 : segment]]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def output_bytes(spec: JobSpec) -> int:
    job = read_job(spec)
    if not job.carries_base:
        return job.outer_bytes + job.state_bytes
    total = sum(int(np.prod(shape)) for shape in job.model.shapes().values())
    return job.outer_bytes + job.state_bytes + 4 * (total - job.weights) + MAX_APPENDIX_FILES


def unit_bytes(spec: JobSpec) -> int:
    """The longest of the units' openings: start and end, or the outer step with what a checkpoint takes over."""
    job = read_job(spec)
    begun = output_bytes(spec) - job.state_bytes
    return max(begun, job.state_bytes) + job.state_bytes


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    """The digests of unit 0 and of the last, both shown in the output.

    Raises InvalidProof on a wrong length, on a cursor that is not the round's end, and, where the files are at
    hand, on an outer state that does not follow from the outputs before: that fold costs no segment.
    """
    job = read_job(spec)
    cut, end = job.outer_bytes, job.outer_bytes + job.state_bytes
    most = output_bytes(spec)
    if len(output) != most and not (job.carries_base and end < len(output) < most):
        raise _refused(spec, f"has {len(output):,} bytes, not {most:,}")
    if read_state(job, output[cut:end]).steps != (job.round + 1) * job.local_steps:
        raise _refused(spec, "does not end where its round ends")
    begun = blake3(output[:cut] + output[end:]).digest()
    if spec.files is not None and begun != _outer_digest(Run(job, spec.files)):
        raise _refused(spec, "does not begin with the outer step of the outputs it needs")
    return {0: begun, job.segments: blake3(output[cut:end]).digest()}


def _refused(spec: JobSpec, text: str) -> InvalidProof:
    text = f"output of job {spec.index} {text}"
    return InvalidProof(text, violations=[("output", text)])


def _points(job: Job, outputs: Mapping[int, bytes]) -> list[checkpoint.Point]:
    found = []
    for index in sorted(outputs):
        number, shard = divmod(index, job.workers)
        losses = read_state(job, outputs[index][job.outer_bytes : job.outer_bytes + job.state_bytes]).losses
        first = number * job.local_steps
        found += [
            checkpoint.Point(number, shard, first + (i + 1) * job.steps, float(loss)) for i, loss in enumerate(losses)
        ]
    return found


def _picture(params: Params, outputs: Mapping[int, bytes]) -> bytes:
    job = whole(params)
    title = f"{job.model.name}, {job.weights:,} weights, {job.optimizer}; rounds of {job.local_steps:,} local steps"
    unit = "loss (nats per token)" if job.model.reads_text else "loss"
    return checkpoint.curve_png(_points(job, outputs), title, unit)


def preview(params: Params, outputs: Mapping[int, bytes]) -> Artifact | None:
    """The loss curve so far."""
    return Artifact("preview.png", "image/png", _picture(params, outputs)) if outputs else None


def model_files(job: Job, outputs: Sequence[bytes]) -> dict[str, bytes]:
    """The files of the trained model's folder, from the outputs of the last round in shard order.

    The last outer step goes where the shards are and not beyond: momentum overshoots, and no round follows to return.
    """
    plain = job._replace(outer_rate=1.0, outer_momentum=0.0)
    vector, _, alphabet = read_outer(job, fold(plain, outputs))
    tensors = split_weights(job, vector)
    config, tokenizer = checkpoint.config(job.model), b""
    if job.base:
        rest = outputs[0][job.outer_bytes + job.state_bytes :]
        frozen, given, tokenizer = read_appendix(job.model, _frozen(job), rest)
        config = {**config, **given, **checkpoint.sizes(job.model)}
    else:
        shapes = job.model.shapes()
        frozen = {name: architectures.initial(job.model, job.seed, name, shapes[name]) for name in _frozen(job)}
        tokenizer = checkpoint.tokenizer(alphabet) if job.model.reads_text else b""
    everything = {name: {**frozen, **tensors}[name] for name in job.model.shapes()}
    files = {"config.json": checkpoint.document(config), "model.safetensors": checkpoint.weights(everything)}
    return files | ({"tokenizer.json": tokenizer} if tokenizer else {})


def _frozen(job: Job) -> list[str]:
    trained = set(job.trainable)
    return [name for name in job.model.shapes() if name not in trained]


MEDIA_TYPES = {".json": "application/json", ".safetensors": "application/octet-stream"}


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """model/ (config.json, model.safetensors, for text tokenizer.json), loss.csv, loss.json and loss.png."""
    job, outputs = whole(params), [result.output for result in results]
    numbered = dict(enumerate(outputs))
    points, about = _points(job, numbered), params.model_dump(exclude_none=True)
    about |= {"trainable_weights": job.weights, "local_steps": job.local_steps * job.rounds}
    files = model_files(job, outputs[-job.workers :])
    found = [Artifact(f"model/{name}", MEDIA_TYPES[os.path.splitext(name)[1]], data) for name, data in files.items()]
    return [
        *found,
        Artifact("loss.csv", "text/csv", checkpoint.curve_csv(points)),
        Artifact("loss.json", "application/json", checkpoint.curve_json(points, about)),
        Artifact("loss.png", "image/png", _picture(params, numbered)),
    ]


TASK = Workload(
    name="training",
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
    references=("model_id", "dataset"),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    unit_bytes=unit_bytes,
    preview=preview,
    check_batch=check_batch,
    batch=lambda spec: ("a batch_size", read_job(spec).batch),
)
