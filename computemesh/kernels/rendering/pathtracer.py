"""Unidirectional path tracing with next-event estimation and multiple importance sampling.

The unit of work is a 16x16 tile, rendered at all its samples. One program of one shape renders any tiles: their
numbers, how many they are and the samples are its arguments, and no lane reads another's values. So a tile has the
same bits alone and among others, as long as device kind, jaxlib and flags are the same. All random numbers are
functions of (seed, frame, pixel, sample, bounce, purpose).

A lane renders a pixel's samples, or every n-th of them, one after the other, and begins the next as soon as a path
ends, so that short paths do not wait for long ones. Each turn traces the path's next segment together with the
shadow ray of the vertex before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from computemesh.kernels.rendering.scene import PackedScene, View
from computemesh.kernels.rendering.surface import Surface, evaluate, sample, surface
from computemesh.kernels.rendering.trace import Hits, Rays, trace
from computemesh.kernels.rendering.vectors import (
    Vec,
    along,
    cross,
    dot,
    frame,
    largest,
    luminance,
    mix,
    normalize,
    take,
    vec,
    where,
)

TILE = 16
MAX_BOUNCES = 8
"""Scattering events of a path; it may reach a light after the last."""
ROULETTE_FROM = 3
FAR = 1e30
CAMERA, LIGHT, SCATTER = 0, 1, 2
traces = 0
"""Times `render_tiles` has been traced in this process: a repeated shape must not add to it."""


class Schedule(NamedTuple):
    """How a kind of device walks through the work; part of what makes its bits.

    `rounds` of `group` tiles per call, each pixel by `substreams` lanes, `steps` rows of the hierarchy between two
    looks at whether all lanes are done.
    """

    rounds: int
    group: int
    substreams: int
    steps: int

    @property
    def tiles(self) -> int:
        """Most tiles of one call."""
        return self.rounds * self.group


SCHEDULES = {"cpu": Schedule(8, 1, 1, 1)}
"""A CPU's lanes must fit its cache: with 1, 2, 4 and 8 substreams a Cornell box took 2.2, 2.6, 3.2 and 3.7 s."""
DEFAULT_SCHEDULE = Schedule(1, 64, 4, 8)
"""Devices that need many lanes: 64 tiles are 65,536 paths at once."""


class Pixels(NamedTuple):
    """Each lane's pixel: float32 coordinates, int32 number, samples to render (0 in a slot without a tile)."""

    x: Array
    y: Array
    number: Array
    samples: Array


class Path(NamedTuple):
    """State of the lanes. `shadow` is the ray whose `gain` counts if nothing stops it; reach < 0 = none."""

    index: Array  # of the sample, int32; >= samples when done
    bounce: Array
    origin: Vec
    direction: Vec
    throughput: Vec
    density: Array  # of the direction, per solid angle; negative where no light was sampled for it
    shadow: Rays
    gain: Vec
    total: Vec


class Vertex(NamedTuple):
    """What a path meets: shading normal on the viewer's side, geometric normal likewise, emission towards it."""

    position: Vec
    normal: Vec
    facing: Vec
    material: Surface
    emission: Vec
    light_density: Array  # per area, of choosing this point as a light; 0 where it is none


def random4(key: Array, pixel: Array, index: Array, bounce: Array, purpose: int) -> tuple[Array, Array, Array, Array]:
    """Four uniform numbers in [0, 1): pcg4d of M. Jarzynski and M. Olano (JCGT 9:3, 2020), counter-based.

    key (4,) uint32 of seed and frame; pixel, sample and bounce (lanes,).
    """
    x = pixel.astype(jnp.uint32) ^ key[0]
    y = index.astype(jnp.uint32) ^ key[1]
    z = (bounce.astype(jnp.uint32) * 4 + jnp.uint32(purpose)) ^ key[2]
    w = jnp.broadcast_to(key[3], x.shape)
    x, y, z, w = (v * jnp.uint32(1664525) + jnp.uint32(1013904223) for v in (x, y, z, w))
    for last in (False, True):
        x = x + y * w
        y = y + z * x
        z = z + x * y
        w = w + y * z
        if not last:
            x, y, z, w = (v ^ (v >> 16) for v in (x, y, z, w))
    return tuple((v >> 8).astype(jnp.float32) * jnp.float32(2**-24) for v in (x, y, z, w))  # type: ignore[return-value]


def _camera_ray(view: View, pixels: Pixels, index: Array) -> tuple[Vec, Vec]:
    """A ray through a uniform point of the pixel and, where there is a lens, of its disc."""
    jitter_x, jitter_y, u1, u2 = random4(view.key, pixels.number, index, jnp.zeros_like(index), CAMERA)
    across = ((pixels.x + jitter_x) / view.width * 2 - 1) * view.half_width
    down = (1 - (pixels.y + jitter_y) / view.height * 2) * view.half_height
    right, up, forward, position = (vec(row) for row in (view.right, view.up, view.forward, view.position))
    target = (right * across + up * down + forward) * view.focus_distance
    radius, angle = view.lens_radius * jnp.sqrt(u1), 2 * math.pi * u2
    offset = right * (radius * jnp.cos(angle)) + up * (radius * jnp.sin(angle))
    return position + offset, normalize(target - offset)


def _sky(scene: PackedScene, direction: Vec) -> Vec:
    """Radiance from outside: ground, horizon and zenith colours blended by height."""
    ground, horizon, zenith = (vec(scene.sky, 3 * i) for i in range(3))
    height = jnp.clip(direction.y, 0, 1)
    above = mix(horizon, zenith, height * (2 - height))
    return mix(above, ground, jnp.clip(-4 * direction.y, 0, 1))


def _texel(scene: PackedScene, at: Array) -> Vec:
    """Linear colour from 10 bits per channel of its square root."""
    word = take(scene.texels, at)
    channels = ((word >> shift & 1023).astype(jnp.float32) * jnp.float32(1 / 1023) for shift in (0, 10, 20))
    return Vec(*(c * c for c in channels))


def _texture(scene: PackedScene, material: Array, u: Array, v: Array) -> Vec:
    """Bilinear, repeating; the texture's first texel, width and height stand in the material's row."""
    first, width, height = (material[:, i].astype(jnp.int32) for i in (9, 10, 11))
    x = (u - jnp.floor(u)) * width - 0.5
    y = (v - jnp.floor(v)) * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    columns = [(left.astype(jnp.int32) + i) % width for i in (0, 1)]
    rows = [first + (top.astype(jnp.int32) + i) % height * width for i in (0, 1)]
    upper, lower = (mix(_texel(scene, r + columns[0]), _texel(scene, r + columns[1]), x - left) for r in rows)
    return mix(upper, lower, y - top)


def _vertex(scene: PackedScene, path: Path, hits: Hits) -> Vertex:
    triangle = jnp.maximum(hits.triangle, 0)
    row = take(scene.shading, triangle)
    weights = (1 - hits.u - hits.v, hits.u, hits.v)

    def interpolate(at: int) -> Vec:
        return vec(row, at) * weights[0] + vec(row, at + 3) * weights[1] + vec(row, at + 6) * weights[2]

    back = -path.direction
    geometric = vec(row, 24)
    front = dot(geometric, back) > 0
    facing = where(front, geometric, -geometric)
    smooth = normalize(interpolate(0))
    smooth = where(dot(smooth, facing) > 0, smooth, -smooth)
    # A smooth normal that looks away from the viewer would make the surface black: take the flat one there.
    normal = where(dot(smooth, back) > 1e-3, smooth, facing)
    u = row[:, 18] * weights[0] + row[:, 20] * weights[1] + row[:, 22] * weights[2]
    v = row[:, 19] * weights[0] + row[:, 21] * weights[1] + row[:, 23] * weights[2]
    material = take(scene.materials, row[:, 27].astype(jnp.int32))
    base = vec(material, 0) * _texture(scene, material, u, v) * vec(take(scene.tints, triangle))
    shines = front | (material[:, 12] > 0)
    return Vertex(
        path.origin + path.direction * hits.distance,
        normal,
        facing,
        surface(base, material[:, 3], material[:, 4], material[:, 5]),
        vec(material, 6) * shines.astype(jnp.float32),
        row[:, 28],
    )


def _limited(gain: Vec, bounce: Array, limit: Array) -> Vec:
    """Indirect light of one sample, at most `limit` in its largest channel: without it single paths leave white
    dots that thousands of samples would not average away."""
    scale = jnp.where(bounce > 0, jnp.minimum(1, limit / jnp.maximum(largest(gain), 1e-9)), 1.0)
    return gain * scale


def _power(a: Array, b: Array) -> Array:
    """Power heuristic (E. Veach, 1997, section 9.2.4)."""
    ratio = b / jnp.maximum(a, 1e-20)
    return 1 / (1 + ratio * ratio)


def _to_local(normal: Vec, world: Vec) -> Vec:
    tangent, bitangent = frame(normal)
    return Vec(dot(tangent, world), dot(bitangent, world), dot(normal, world))


def _light(scene: PackedScene, view: View, path: Path, at: Vertex, out: Vec, pixel: Array) -> tuple[Rays, Vec]:
    """The shadow ray to a point chosen on the lights, and what it brings if nothing stands between."""
    u1, u2, u3, u4 = random4(view.key, pixel, path.index, path.bounce, LIGHT)
    last = jnp.maximum(scene.light_count - 1, 0)
    slot = jnp.minimum((u1 * scene.light_count.astype(jnp.float32)).astype(jnp.int32), last)
    chosen = take(scene.lights, slot)
    chosen = take(scene.lights, jnp.where(u2 < chosen[:, 12], slot, chosen[:, 13].astype(jnp.int32)))
    root = jnp.sqrt(u3)
    edge1, edge2 = vec(chosen, 3), vec(chosen, 6)
    point = vec(chosen, 0) + edge1 * (root * (1 - u4)) + edge2 * (root * u4)
    origin = at.position + at.facing * scene.epsilon
    towards = point - origin
    square = jnp.maximum(dot(towards, towards), 1e-20)
    distance = jnp.sqrt(square)
    into = towards * (1 / distance)
    cosine = -dot(normalize(cross(edge1, edge2)), into)
    cosine = jnp.where(chosen[:, 15] > 0, jnp.abs(cosine), cosine)
    value, density = evaluate(at.material, out, _to_local(at.normal, into))
    of_light = chosen[:, 14] * square / jnp.maximum(cosine, 1e-9)
    usable = (scene.light_count > 0) & (cosine > 1e-6) & (dot(at.facing, into) > 0) & (density > 0)
    weight = jnp.where(usable, _power(of_light, density) / of_light, 0.0)
    gain = path.throughput * value * vec(chosen, 9) * weight
    reach = jnp.where(usable & (largest(gain) > 0), distance * 0.9999 - scene.epsilon, -1.0)
    return Rays(origin, into, reach, jnp.ones_like(usable)), _limited(gain, path.bounce, view.indirect_limit)


def _turn(scene: PackedScene, view: View, pixels: Pixels, schedule: Schedule, path: Path) -> Path:
    """One segment of every lane's path, and the shadow ray of its vertex before."""
    active = path.index < pixels.samples
    reach = jnp.where(active, FAR, -1.0)
    main = Rays(path.origin, path.direction, reach, jnp.zeros_like(active))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), main, path.shadow)
    hits = trace(scene.rows, scene.used, both, schedule.steps)
    lanes = active.shape[0]
    shadowed = jax.tree.map(lambda a: a[lanes:], hits)
    hits = jax.tree.map(lambda a: a[:lanes], hits)
    lit = (path.shadow.reach > 0) & (shadowed.triangle < 0)
    zero = jnp.zeros_like(reach)
    black = Vec(zero, zero, zero)
    total = path.total + where(lit, path.gain, black)

    met = active & (hits.triangle >= 0)
    at = _vertex(scene, path, hits)
    cosine = jnp.maximum(jnp.abs(dot(at.facing, path.direction)), 1e-9)
    of_light = at.light_density * hits.distance * hits.distance / cosine
    weight = jnp.where(path.density < 0, 1.0, _power(path.density, of_light))
    found = where(met, at.emission * weight, _sky(scene, path.direction))
    found = _limited(path.throughput * found, path.bounce, view.indirect_limit)
    total = total + where(active, found, black)

    out = _to_local(at.normal, -path.direction)
    open_ended = met & (path.bounce < MAX_BOUNCES)
    shadow, gain = _light(scene, view, path, at, out, pixels.number)
    shadow = shadow._replace(reach=jnp.where(open_ended, shadow.reach, -1.0))
    following = _scatter(scene, view, path, at, out, pixels.number)
    goes_on = open_ended & (largest(following.throughput) > 0)

    index = jnp.where(active & ~goes_on, path.index + schedule.substreams, path.index)
    origin, direction = _camera_ray(view, pixels, index)
    one = jnp.ones_like(reach)
    return Path(
        index,
        jnp.where(goes_on, path.bounce + 1, 0),
        where(goes_on, following.origin, origin),
        where(goes_on, following.direction, direction),
        where(goes_on, following.throughput, Vec(one, one, one)),
        jnp.where(goes_on, following.density, -1.0),
        shadow,
        gain,
        total,
    )


def _scatter(scene: PackedScene, view: View, path: Path, at: Vertex, out: Vec, pixel: Array) -> Path:
    """The path after its vertex; throughput 0 where it ends (absorbed, below the surface, or by roulette)."""
    u1, u2, lobe, chance = random4(view.key, pixel, path.index, path.bounce, SCATTER)
    into = sample(at.material, out, u1, u2, lobe)
    value, density = evaluate(at.material, out, into)
    direction = normalize(along(at.normal, into))
    usable = (density > 0) & (dot(at.facing, direction) > 0)
    throughput = path.throughput * value * jnp.where(usable, 1 / jnp.maximum(density, 1e-20), 0.0)
    survival = jnp.where(path.bounce >= ROULETTE_FROM, jnp.clip(luminance(throughput), 0.05, 0.95), 1.0)
    throughput = throughput * jnp.where(chance < survival, 1 / survival, 0.0)
    return path._replace(
        origin=at.position + at.facing * scene.epsilon,
        direction=direction,
        throughput=throughput,
        density=density,
    )


def _group(scene: PackedScene, view: View, tiles: Array, schedule: Schedule) -> Array:
    """Mean radiance (group, TILE, TILE, 3) float32 of `tiles` (group,), row-major; -1 = none, black.

    Tiles are numbered row-major over the picture, those at the right and the lower edge reaching past it.
    """
    area = TILE * TILE
    lane = jnp.arange(schedule.substreams * schedule.group * area, dtype=jnp.int32)
    within, tile, substream = lane % area, tiles[lane // area % schedule.group], lane // (area * schedule.group)
    x = tile % view.tiles_across * TILE + within % TILE
    y = tile // view.tiles_across * TILE + within // TILE
    samples = jnp.where(tile >= 0, view.samples, 0)
    pixels = Pixels(x.astype(jnp.float32), y.astype(jnp.float32), y * 65536 + x, samples)
    zero, one = jnp.zeros(lane.shape, jnp.float32), jnp.ones(lane.shape, jnp.float32)
    black, white = Vec(zero, zero, zero), Vec(one, one, one)
    origin, direction = _camera_ray(view, pixels, substream)
    none = Rays(black, white, -one, one > 0)
    start = Path(substream, jnp.zeros_like(lane), origin, direction, white, -one, none, black, black)

    def unfinished(path: Path) -> Array:
        return jnp.any((path.index < samples) | (path.shadow.reach > 0))

    end = lax.while_loop(unfinished, partial(_turn, scene, view, pixels, schedule), start)
    by_tile = jnp.stack(end.total, axis=-1).reshape(schedule.substreams, schedule.group, TILE, TILE, 3)
    return by_tile.sum(axis=0) / view.samples.astype(jnp.float32)


@partial(jax.jit, static_argnames=("schedule",))
def render_tiles(scene: PackedScene, view: View, tiles: Array, count: Array, *, schedule: Schedule) -> Array:
    """Linear Rec. 709 radiance (schedule.tiles, 16, 16, 3) float32 of tiles (schedule.tiles,) int32.

    `count` () int32: rounds of the schedule to do, the tiles of which come first; the rest stays 0. As the number of
    rounds is not known when this is compiled, their body is one computation however many there are.
    """
    global traces
    traces += 1

    def body(i: Array, pictures: Array) -> Array:
        group = lax.dynamic_slice(tiles, (i * schedule.group,), (schedule.group,))
        return lax.dynamic_update_slice(
            pictures, _group(scene, view, group, schedule), (i * schedule.group, *(jnp.zeros_like(i),) * 3)
        )

    pictures: Array = lax.fori_loop(0, count, body, jnp.zeros((schedule.tiles, TILE, TILE, 3), jnp.float32))
    return pictures


def render(scene: PackedScene, view: View, tiles: Sequence[int], platform: str) -> np.ndarray:
    """The tiles of those numbers, (len(tiles), 16, 16, 3) float32; at most `schedule.tiles` of the platform."""
    schedule = SCHEDULES.get(platform, DEFAULT_SCHEDULE)
    numbers = np.full(schedule.tiles, -1, np.int32)
    numbers[: len(tiles)] = tiles
    rounds = np.int32(-(-len(tiles) // schedule.group))
    return np.asarray(render_tiles(scene, view, numbers, rounds, schedule=schedule))[: len(tiles)]
