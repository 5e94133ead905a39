"""`rendering`: pictures and turntable animations by path tracing (computemesh/kernels/rendering).

A task's tiles of 16x16 pixels are numbered frame after frame, row-major in a frame. A job is a run of at least 512
of them (all, where the task has fewer), so that checking 8 is at most 8/512 = 1.6 % of making them; its unit is a
tile: 16x16x3 float32, row-major, little-endian, linear Rec. 709 radiance, 3,072 bytes. Its output is its tiles.

The auditor renders the challenged tiles again, at full samples, with the same compiled function. On one kind of
device they have the same bits (a test holds that). Elsewhere rounding differs, and a path whose ray passes an edge
on the other side becomes another path; so `agrees` asks how many pixels differ, not by how much. See it for what
that concedes.

    task seed = tagged("computemesh.v1/rendering/seed", UTF-8 seed), or without a seed
                tagged("computemesh.v1/rendering/task", task id)
    key of frame f = first 16 bytes of tagged("computemesh.v1/rendering/frame", task seed || u32 f)
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from blake3 import blake3

from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads.contract import (
    Artifact,
    Claim,
    Context,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
    equal_slices,
)
from computemesh.workloads.rendering_job import (
    TILE,
    UNIT_BYTES,
    Job,
    Params,
    inputs,
    job_inputs,
    jobs,
    layout,
    make_jobs,
    parse,
    price,
    read_job,
    tiles_of,
)

if TYPE_CHECKING:
    from computemesh.kernels.rendering.scene import Camera, PackedScene, Scene, View

SAMPLE_SIZE = 8
PIXEL_TOLERANCE = 1e-4
MAX_PIXELS_OFF = 25
_U32 = struct.Struct(">I")


def output_bytes(spec: JobSpec) -> int:
    return read_job(spec).count * UNIT_BYTES


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    return equal_slices(spec, output, read_job(spec).count, UNIT_BYTES)


def _seed(spec: JobSpec, job: Job) -> bytes:
    # The task's own id, not the worker: a job that moves to another worker gives the same picture.
    return job.seed or tagged("computemesh.v1/rendering/task", spec.task_id)


def load_scene(spec: JobSpec, job: Job) -> Scene:
    """The job's scene. Raises InvalidArgument on `payload.scene` where the file is not one that is rendered."""
    from computemesh.kernels.rendering import gltf, shapes

    if job.scene:
        return shapes.BUILT_IN[job.scene]()
    if spec.files is None:
        raise InvalidArgument("a rendering job of a .glb scene needs its files")
    try:
        return gltf.load(spec.files.artifact(job.digest))
    except gltf.BadScene as error:
        raise InvalidArgument(f"scene: {error}", violations=[("payload.scene", str(error))]) from None


class _Stage(NamedTuple):
    """A scene ready to be rendered: its arrays on a device, and its own camera."""

    packed: PackedScene
    camera: Camera


_SCENES: dict[tuple[str, bytes, Any], _Stage] = {}
_KEPT_SCENES = 2


def _stage(spec: JobSpec, job: Job, device: Any) -> _Stage:
    """The job's scene on the device; the last two are kept, as jobs and audits of one task come together."""
    import jax

    from computemesh.kernels.rendering.scene import pack

    key = (job.scene, job.digest, device)
    if (found := _SCENES.get(key)) is None:
        scene = load_scene(spec, job)
        while len(_SCENES) >= _KEPT_SCENES:
            _SCENES.pop(next(iter(_SCENES)), None)
        found = _SCENES[key] = _Stage(jax.device_put(pack(scene), device), scene.camera)
    if "environment" in job.given:
        sky = np.tile(np.array(job.given["environment"], np.float32), 3)
        return found._replace(packed=found.packed._replace(sky=sky))
    return found


def view_of(job: Job, seed: bytes, camera: Camera, frame: int) -> View:
    """The frame's view. Raises InvalidArgument where the payload's camera and the scene's do not fit together."""
    from computemesh.kernels.rendering.scene import look, orbit

    chosen = {name: value for name, value in job.given.items() if name != "environment"}
    if chosen.keys() & {"position", "target"} and "focus_distance" not in chosen:
        chosen["focus_distance"] = 0.0  # the scene's own was measured from another place
    camera = replace(camera, **chosen)
    key = tagged("computemesh.v1/rendering/frame", seed + _U32.pack(frame))[:16]
    try:
        turned = orbit(camera, job.orbit_degrees * frame / job.frames)
        return look(turned, job.width, job.height, TILE, job.samples, key, job.indirect_limit or math.inf)
    except ValueError as error:
        raise InvalidArgument(str(error), violations=[("payload.camera", str(error))]) from None


def _render(spec: JobSpec, tiles: Sequence[int], context: Context) -> Iterator[np.ndarray]:
    """The job's tiles of those indices, in order, in pieces (n, 16, 16, 3) float32; on CPUs one piece per core at
    a time. How they are cut into pieces does not change their bits."""
    import jax

    from computemesh.kernels.rendering import pathtracer

    job = read_job(spec)
    device = context.device if context.device is not None else jax.devices()[0]
    stage, seed = _stage(spec, job, device), _seed(spec, job)
    threads = (os.cpu_count() or 1) if device.platform == "cpu" else 1
    most = pathtracer.SCHEDULES.get(device.platform, pathtracer.DEFAULT_SCHEDULE).tiles
    step = max(1, min(most, -(-len(tiles) // threads)))
    per_frame = tiles_of(job.width, job.height)
    pieces: list[tuple[View, list[int]]] = []
    for frame, group in groupby((job.first + i for i in tiles), lambda tile: tile // per_frame):
        view, numbers = view_of(job, seed, stage.camera, frame), [tile % per_frame for tile in group]
        pieces += [(view, numbers[at : at + step]) for at in range(0, len(numbers), step)]

    def render(piece: tuple[View, list[int]]) -> np.ndarray:
        with jax.default_device(device):
            return pathtracer.render(stage.packed, *piece, device.platform)

    pool = ThreadPoolExecutor(threads, "tiles")
    try:
        yield from pool.map(render, pieces)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Render the job's tiles. Compiled once per device kind and size class of scenes."""
    count, output = read_job(spec).count, bytearray()
    for piece in _render(spec, range(count), context):
        output += piece.astype("<f4", copy=False).tobytes()
        context.progress(len(output) / (count * UNIT_BYTES))
    whole = bytes(output)
    digests = b"".join(output_digests(spec, whole).values())
    return Outcome(digests, lambda i: whole[i * UNIT_BYTES : (i + 1) * UNIT_BYTES], whole)


def agrees(claimed: bytes, reference: bytes) -> bool:
    """Whether two renderings of a tile are one and the same computation on two kinds of device.

    A pixel is off where a channel differs by more than 1e-4 of the reference's largest channel there plus 1 % of the
    tile's mean (kept from 0 by 1e-9); at most 25 of 256 pixels may be off. Honest devices: XLA's CPU backend with
    AVX-512, with SSE4.2 (no fused multiply-add) and with fast-math differ by 3.5e-6 in nine pixels of ten, and had
    at most 5 pixels off in a tile of the built-in scenes at 16 and 64 samples. What a cheat gains inside it: rounding
    the answer to float16 puts half to all pixels of a tile off, materials and normals in float16 or bfloat16 nearly
    all that see a surface, one sample left out of 64 three quarters of them; all are refused. What remains is to
    make up one pixel in ten, and to compute pixels of the plain sky, which cost nothing, in any precision.
    """
    if len(claimed) != UNIT_BYTES or len(reference) != UNIT_BYTES:
        return False
    if claimed == reference:
        return True
    a, b = (np.frombuffer(unit, "<f4").reshape(-1, 3).astype(np.float64) for unit in (claimed, reference))
    if not np.isfinite(a).all() or a.min() < 0:
        return False
    scale = b.max(axis=1) + 0.01 * b.mean() + 1e-9
    off = np.abs(a - b).max(axis=1) > PIXEL_TOLERANCE * scale
    return int(np.count_nonzero(off)) <= MAX_PIXELS_OFF


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """The digest of each claimed tile that `agrees` with the one rendered here, None for the others.

    On JAX's default device. Raises InvalidProof on an index outside the job.
    """
    shape = layout(spec)
    for claim in claims:
        shape.leaf_index(claim.index)
    wanted = sorted({claim.index for claim in claims})
    made: dict[int, bytes] = {}
    for piece in _render(spec, wanted, Context()):
        for tile in piece:
            made[wanted[len(made)]] = tile.astype("<f4", copy=False).tobytes()
    return [blake3(c.unit).digest() if agrees(c.unit, made[c.index]) else None for c in claims]


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def _frames(params: Params, outputs: Mapping[int, bytes]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture (height, width, 3) float32) of each frame of which there is a tile; the rest is NaN.

    Raises InvalidProof on an output that is not its job's tiles.
    """
    per_frame, parts = tiles_of(params.width, params.height), jobs(params)
    total, across = per_frame * params.frames, -(-params.width // TILE)
    first = [j * total // parts for j in range(parts + 1)]
    for job, output in outputs.items():
        if len(output) != (first[job + 1] - first[job]) * UNIT_BYTES:
            text = f"output of job {job} has {len(output):,} bytes, not its tiles'"
            raise InvalidProof(text, violations=[("output", text)])
    for frame in range(params.frames):
        start, stop = frame * per_frame, (frame + 1) * per_frame
        tiles = np.full((per_frame, TILE, TILE, 3), np.nan, np.float32)
        here = [j for j in outputs if first[j] < stop and first[j + 1] > start]
        for j in here:
            low, high = max(start, first[j]), min(stop, first[j + 1])
            part = outputs[j][(low - first[j]) * UNIT_BYTES : (high - first[j]) * UNIT_BYTES]
            tiles[low - start : high - start] = np.frombuffer(part, "<f4").reshape(-1, TILE, TILE, 3)
        if here:
            grid = tiles.reshape(-1, across, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
            yield frame, grid.reshape(-1, across * TILE, 3)[: params.height, : params.width]


def preview(params: Params, outputs: Mapping[int, bytes]) -> Artifact | None:
    """The first frame of which there is anything, with grey where nothing is yet; None before that."""
    from computemesh.kernels.rendering import picture

    for _, frame in _frames(params, outputs):
        shown = np.where(np.isnan(frame), np.float32(0.18), frame * np.float32(2**params.exposure))
        return Artifact("preview.png", "image/png", picture.png(shown))
    return None


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """`picture.png` (tone mapped) and `picture.exr` (linear, all bits); of several frames `animation.webp`, 24 a
    second, the first as `picture.png`, and `frame-0000.exr` and on. Raises InvalidProof on outputs of wrong length.
    """
    from computemesh.kernels.rendering import picture

    frames = [frame for _, frame in _frames(params, {i: result.output for i, result in enumerate(results)})]
    shown = [frame * np.float32(2**params.exposure) for frame in frames]
    files = [Artifact("picture.png", "image/png", picture.png(shown[0]))]
    if len(frames) == 1:
        return [*files, Artifact("picture.exr", "image/x-exr", picture.exr(frames[0]))]
    files.append(Artifact("animation.webp", "image/webp", picture.webp(shown)))
    return files + [Artifact(f"frame-{i:04}.exr", "image/x-exr", picture.exr(frame)) for i, frame in enumerate(frames)]


TASK = Workload(
    name="rendering",
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
    references=("scene",),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    preview=preview,
    agree=agrees,
    check_batch=check_batch,
)
