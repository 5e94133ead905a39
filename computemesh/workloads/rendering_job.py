"""What a rendering task asks, and how its jobs' params are laid out (see `rendering`)."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from computemesh.trust.audit import Layout
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import Estimate, JobSpec
from computemesh.workloads.payload import Payload, Text, Whole, read, refuse

TILE = 16
UNIT_BYTES = TILE * TILE * 3 * 4
TILES_PER_JOB = 512
MAX_SIDE, MAX_SAMPLES, MAX_FRAMES = 8192, 65_536, 1000
MAX_PIXELS = 2**25
MAX_FLOPS = 10**17
FLOPS_PER_UNIT = 10**6  # one CPC buys 10**12 operations
FLOPS_PER_SAMPLE = 9 * (2 * 64 * 60 + 600)
"""At most 9 segments, each with a shadow ray; 64 rows of the hierarchy per ray at 60 operations, 600 for a vertex."""
BUILT_IN = ("cornell", "spheres")
SCENE_BYTES = 2**29  # the largest file's hierarchy, shading and textures
VERSION = 1
PARAMS = struct.Struct(">BBBB32s12d3d2d4IQI32s")
_FIELDS = ("position", "target", "up", "fov_degrees", "aperture", "focus_distance", "environment")


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:
        raise ValueError("not a number of magnitude up to 10^9")
    return float(value)


Number = Annotated[float, BeforeValidator(_number)]
Triple = tuple[Number, Number, Number]
_ENV = "[red, green, blue], each 0 to 10,000: radiance from everywhere"
_Light = Annotated[Number, Field(ge=0, le=10_000)]


class CameraPayload(Payload):
    """What is not given is the scene's own camera's."""

    position: Triple | None = None
    target: Triple | None = None
    up: Triple | None = None
    fov_degrees: Number | None = Field(default=None, ge=1, le=170)
    aperture: Number | None = Field(default=None, ge=0)
    focus_distance: Number | None = Field(default=None, gt=0)


class Params(Payload):
    scene: str = Field(
        pattern=f"^({'|'.join(BUILT_IN)}|[0-9a-f]{{64}})$",
        description=f"a built-in scene ({', '.join(BUILT_IN)}) or a .glb artifact's SHA-256, 64 hexadecimal digits",
    )
    camera: CameraPayload = Field(
        default=CameraPayload(),
        description="an object of position, target, up ([x, y, z]), fov_degrees (1 to 170, vertical), aperture (lens "
        "diameter, >= 0) and focus_distance (> 0), all optional",
    )
    environment: tuple[_Light, _Light, _Light] | None = Field(default=None, description=_ENV)
    width: Whole = Field(ge=16, le=MAX_SIDE, description="a whole number from 16 to 8,192")
    height: Whole = Field(ge=16, le=MAX_SIDE, description="a whole number from 16 to 8,192")
    samples_per_pixel: Whole = Field(default=32, ge=1, le=MAX_SAMPLES, description="a whole number from 1 to 65,536")
    frames: Whole = Field(default=1, ge=1, le=MAX_FRAMES, description="a whole number from 1 to 1,000")
    orbit_degrees: Number = Field(
        default=360.0, ge=-3600, le=3600, description="a number from -3,600 to 3,600: how far the camera turns"
    )
    indirect_limit: Number = Field(
        default=3.0,
        ge=0,
        le=1e9,
        description="a number from 0 to 10^9: most radiance one sample may bring indirectly; 0 = any",
    )
    exposure: Number = Field(
        default=0.0, ge=-20, le=20, description="a number from -20 to 20: stops by which the pictures are brightened"
    )
    seed: Text | None = Field(default=None, min_length=1, max_length=128, description="text of 1 to 128 characters")


@dataclass(frozen=True, slots=True)
class Job:
    """A job's params, read. `scene` is a built-in name, or empty with `digest`; `given` maps what the payload set."""

    scene: str
    digest: bytes
    given: dict[str, Any]
    orbit_degrees: float
    indirect_limit: float
    width: int
    height: int
    samples: int
    frames: int
    first: int
    count: int
    seed: bytes


def tiles_of(width: int, height: int) -> int:
    """Tiles of one frame."""
    return -(-width // TILE) * -(-height // TILE)


def _flops(params: Params) -> int:
    tiles = tiles_of(params.width, params.height) * params.frames
    return tiles * TILE * TILE * params.samples_per_pixel * FLOPS_PER_SAMPLE


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload {scene, width, height, samples_per_pixel = 32, frames = 1, orbit_degrees = 360, camera?,
    indirect_limit = 3, exposure = 0, environment?, seed?}; with several frames the camera turns about its target,
    in all by `orbit_degrees`. `exposure` changes the files that people look at, not the data.

    Raises InvalidArgument per bad field, and where the whole is more than a task may ask.
    """
    params = read(Params, "rendering", payload)
    camera = params.camera
    if camera.position is not None and camera.position == camera.target:
        raise refuse(("camera", f"camera position and target are both {list(camera.position)}; they must differ"))
    if camera.up == (0.0, 0.0, 0.0):
        raise refuse(("camera", "camera up must not be [0, 0, 0]"))
    if (pixels := params.width * params.height * params.frames) > MAX_PIXELS:
        text = f"width * height * frames is {pixels:,}; a task has at most {MAX_PIXELS:,} pixels"
        raise refuse(("frames" if params.frames > 1 else "width", text))
    if (flops := _flops(params)) > MAX_FLOPS:
        text = f"width * height * samples_per_pixel * frames takes {flops:.3g} operations; a task may ask for 1e+17"
        raise refuse(("samples_per_pixel", text))
    return params


def price(params: Params) -> Estimate:
    flops = _flops(params)
    return Estimate(flops, -(-flops // FLOPS_PER_UNIT))


def jobs(params: Params) -> int:
    return max(1, tiles_of(params.width, params.height) * params.frames // TILES_PER_JOB)


def inputs(params: Params) -> list[bytes]:
    return [] if params.scene in BUILT_IN else [bytes.fromhex(params.scene)]


def job_inputs(spec: JobSpec) -> list[bytes]:
    job = read_job(spec)
    return [] if job.scene else [job.digest]


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """The jobs of a range: job j of n has the tiles from j * T // n to (j + 1) * T // n."""
    total, parts, camera = tiles_of(params.width, params.height) * params.frames, jobs(params), params.camera
    built_in = params.scene in BUILT_IN
    given = [getattr(camera, name) for name in _FIELDS[:-1]] + [params.environment]
    present = sum(1 << i for i, value in enumerate(given) if value is not None)
    floats: list[float] = []
    for value, width in zip(given, (3, 3, 3, 1, 1, 1, 3), strict=True):
        floats += (0.0,) * width if value is None else value if isinstance(value, tuple) else (value,)
    scene = BUILT_IN.index(params.scene) + 1 if built_in else 0
    digest = bytes(32) if built_in else bytes.fromhex(params.scene)
    bound = params.seed is None
    seed = bytes(32) if params.seed is None else tagged("computemesh.v1/rendering/seed", params.seed.encode())
    extra = (params.orbit_degrees, params.indirect_limit)
    sizes = (params.width, params.height, params.samples_per_pixel, params.frames)

    def wire(index: int) -> bytes:
        first, last = index * total // parts, (index + 1) * total // parts
        return PARAMS.pack(VERSION, bound, scene, present, digest, *floats, *extra, *sizes, first, last - first, seed)

    memory = 2**27 if built_in else SCENE_BYTES
    return [JobSpec(task_id, index, wire(index), device_memory_bytes=memory) for index in which]


def bad_params(text: str) -> InvalidArgument:
    """The error of params that are not this type's layout."""
    return InvalidArgument(f"params of a rendering job: {text}", violations=[("params", text)])


def read_job(spec: JobSpec) -> Job:
    """Params as they came from the network. Raises InvalidArgument where they are not this type's layout."""
    if len(spec.params) != PARAMS.size:
        raise bad_params(f"{len(spec.params)} bytes, not {PARAMS.size}")
    version, bound, scene, present, digest, *rest = PARAMS.unpack(spec.params)
    floats, (orbit, limit, width, height, samples, frames, first, count, seed) = rest[:15], rest[15:]
    if version != VERSION or bound > 1 or scene > len(BUILT_IN) or present >= 1 << len(_FIELDS):
        raise bad_params(f"version {version}, flags {bound}, scene {scene}, fields {present}")
    if not all(math.isfinite(v) and abs(v) <= 1e9 for v in (*floats, orbit, limit)) or limit < 0:
        raise bad_params("a number that is not finite, beyond 10^9 or a negative limit")
    if not (16 <= width <= MAX_SIDE and 16 <= height <= MAX_SIDE and 1 <= samples <= MAX_SAMPLES):
        raise bad_params(f"width {width}, height {height}, samples {samples}")
    total = tiles_of(width, height) * frames
    if not 1 <= frames <= MAX_FRAMES or not 1 <= count <= 2 * TILES_PER_JOB or first + count > total:
        raise bad_params(f"tiles {first} to {first + count} of {total} in {frames} frames")
    values = [tuple(floats[0:3]), tuple(floats[3:6]), tuple(floats[6:9]), *floats[9:12], tuple(floats[12:15])]
    given = {name: value for i, (name, value) in enumerate(zip(_FIELDS, values, strict=True)) if present >> i & 1}
    if not 0 < given.get("fov_degrees", 1) < 179 or given.get("aperture", 0) < 0:
        raise bad_params(f"fov_degrees {given.get('fov_degrees')}, aperture {given.get('aperture')}")
    name = BUILT_IN[scene - 1] if scene else ""
    return Job(name, digest, given, orbit, limit, width, height, samples, frames, first, count, b"" if bound else seed)


def layout(spec: JobSpec) -> Layout:
    return Layout(1, read_job(spec).count)
