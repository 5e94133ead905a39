"""A scene as a person thinks of it, and as arrays that a device walks through. Lengths are in scene units, colours
linear Rec. 709, y is up (glTF 2.0 section 3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from computemesh.kernels.rendering import bvh

MIN_BUCKET = 64


class Material(NamedTuple):
    """Parameters of glTF's metallic-roughness model. `emission` is radiance; `texture` multiplies `base_color`,
    its number in `Scene.textures`, -1 = none; `specular` is KHR_materials_specular's factor."""

    base_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    metallic: float = 0.0
    roughness: float = 1.0
    specular: float = 1.0
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    texture: int = -1
    two_sided: bool = False


@dataclass(frozen=True)
class Mesh:
    """Triangles: positions and normals (n, 3 corners, 3) float32, uvs (n, 3, 2) float32 with v downwards,
    materials (n,) int32; tints (n, 3) float32 multiply the base colour."""

    positions: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    materials: np.ndarray
    tints: np.ndarray


@dataclass(frozen=True)
class Camera:
    """`fov_degrees` is the vertical field of view, `aperture` the lens diameter (0 = pinhole)."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    fov_degrees: float = 40.0
    aperture: float = 0.0
    focus_distance: float = 0.0  # 0 = the target's distance


@dataclass(frozen=True)
class Sky:
    """Radiance from below, from the horizon and from above."""

    ground: tuple[float, float, float] = (0.0, 0.0, 0.0)
    horizon: tuple[float, float, float] = (0.0, 0.0, 0.0)
    zenith: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """`textures` are (height, width, 3) uint8 in sRGB."""

    mesh: Mesh
    materials: list[Material]
    camera: Camera
    sky: Sky = Sky()
    textures: list[np.ndarray] = field(default_factory=list)


class PackedScene(NamedTuple):
    """A scene on a device, float32 but where said; lengths are padded to powers of two (`_bucket`).

    rows      (6, r, 12)  `bvh.build`; `used` () int32 of the r count
    shading   (n, 32)     normals 9, unused 9, uvs 6, unit normal 3, material 1, light density per area 1, unused 3
    tints     (n, 4)      base colour multiplier 3
    materials (m, 16)     base colour 3, metallic, roughness, specular, emission 3, texture's first texel, width and
                          height, two-sided
    texels    (t,) uint32 three 10-bit square roots of linear channels
    lights    (l, 16)     corner 0, edge 1, edge 2, emission, threshold, alias, density per area, two-sided;
                          `light_count` () int32 of the l count
    sky       (9,)        ground, horizon, zenith
    epsilon   ()          how far a ray starts from its surface
    """

    rows: np.ndarray
    used: np.ndarray
    shading: np.ndarray
    tints: np.ndarray
    materials: np.ndarray
    texels: np.ndarray
    lights: np.ndarray
    light_count: np.ndarray
    sky: np.ndarray
    epsilon: np.ndarray


class View(NamedTuple):
    """One frame's camera and sampling: vectors (3,) float32, scalars float32, `tiles_across` and `samples`
    int32, `key` (4,) uint32. half_width and half_height are of the picture plane at distance 1."""

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    half_width: np.ndarray
    half_height: np.ndarray
    width: np.ndarray
    height: np.ndarray
    lens_radius: np.ndarray
    focus_distance: np.ndarray
    tiles_across: np.ndarray
    samples: np.ndarray
    key: np.ndarray
    indirect_limit: np.ndarray


def look(
    camera: Camera, width: int, height: int, tile: int, samples: int, key: bytes, indirect_limit: float = math.inf
) -> View:
    """A view through `camera`; `key` is 16 bytes of the seed and the frame.

    Raises ValueError where position and target coincide or `up` is along the line between them.
    """
    position, target, up = (np.array(v, np.float64) for v in (camera.position, camera.target, camera.up))
    distance = float(np.linalg.norm(target - position))
    if distance == 0:
        raise ValueError("camera position and target are the same point")
    forward = (target - position) / distance
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6 * max(1e-30, float(np.linalg.norm(up))):
        raise ValueError("camera up is parallel to the line of sight")
    right /= np.linalg.norm(right)
    half_height = math.tan(math.radians(camera.fov_degrees) / 2)
    scalars = (half_height * width / height, half_height, width, height, camera.aperture / 2)
    half_w, half_h, w, h, lens = (np.float32(v) for v in scalars)
    return View(
        position.astype(np.float32),
        right.astype(np.float32),
        np.cross(right, forward).astype(np.float32),
        forward.astype(np.float32),
        *(half_w, half_h, w, h, lens),  # type: ignore[arg-type]
        np.float32(camera.focus_distance or distance),  # type: ignore[arg-type]
        np.int32(-(-width // tile)),  # type: ignore[arg-type]
        np.int32(samples),  # type: ignore[arg-type]
        np.frombuffer(key, "<u4").astype(np.uint32),
        np.float32(indirect_limit),  # type: ignore[arg-type]
    )


def orbit(camera: Camera, degrees: float) -> Camera:
    """The camera turned about the axis through its target along `up` (Rodrigues' formula)."""
    if degrees == 0:
        return camera
    axis = np.array(camera.up, np.float64)
    axis /= np.linalg.norm(axis)
    arm = np.array(camera.position, np.float64) - camera.target
    angle = math.radians(degrees)
    turned = arm * math.cos(angle) + np.cross(axis, arm) * math.sin(angle)
    turned += axis * (axis @ arm) * (1 - math.cos(angle))
    x, y, z = (float(v) for v in turned + camera.target)
    return Camera((x, y, z), camera.target, camera.up, camera.fov_degrees, camera.aperture, camera.focus_distance)


def _bucket(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Zero-padded along `axis` to a power of two of at least 64, so that scenes share compiled programs."""
    length = array.shape[axis]
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, max(MIN_BUCKET, 1 << (length - 1).bit_length()) - length)
    return np.pad(array, padding)


def pack(scene: Scene) -> PackedScene:
    """The arrays of a scene with at least one triangle. About 50 us per triangle, most of it the hierarchy."""
    mesh = scene.mesh
    edge1, edge2 = mesh.positions[:, 1] - mesh.positions[:, 0], mesh.positions[:, 2] - mesh.positions[:, 0]
    normal = np.cross(edge1.astype(np.float64), edge2.astype(np.float64))
    double_area = np.linalg.norm(normal, axis=1)
    normal /= np.maximum(double_area, 1e-300)[:, None]
    lights, density = _pack_lights(scene, edge1, edge2, double_area / 2)
    texels, places = _pack_textures(scene.textures)
    count = len(mesh.positions)
    shading = np.zeros((count, 32), np.float32)
    shading[:, 0:9], shading[:, 18:24] = mesh.normals.reshape(count, 9), mesh.uvs.reshape(count, 6)
    shading[:, 24:27], shading[:, 27], shading[:, 28] = normal, mesh.materials, density
    rows = bvh.build(mesh.positions)
    corners = mesh.positions.reshape(-1, 3)
    extent = max(float(np.ptp(corners, axis=0).max()), float(np.abs(corners).max()))
    materials = np.array(
        [[*m.base_color, m.metallic, m.roughness, m.specular, *m.emission, *places[m.texture + 1], m.two_sided, 0, 0, 0]
         for m in scene.materials], np.float32,
    )  # fmt: skip
    return PackedScene(
        _bucket(rows, axis=1),
        np.int32(rows.shape[1]),  # type: ignore[arg-type]
        _bucket(shading),
        _bucket(np.pad(mesh.tints, ((0, 0), (0, 1)))),
        _bucket(materials),
        _bucket(texels),
        _bucket(lights),
        np.int32(np.count_nonzero(density)),  # type: ignore[arg-type]
        np.array([scene.sky.ground, scene.sky.horizon, scene.sky.zenith], np.float32).reshape(9),
        np.float32(2e-5 * extent),  # type: ignore[arg-type]
    )


def _pack_lights(scene: Scene, edge1: np.ndarray, edge2: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the emitting triangles, and each triangle's density per area of being chosen (n,).

    Chosen in proportion to area and luminance, by Walker's alias method (M. Vose 1991).
    """
    emission = np.array([m.emission for m in scene.materials], np.float64)[scene.mesh.materials]
    power = area * (emission @ [0.2126, 0.7152, 0.0722])
    chosen = np.flatnonzero(power)
    density = np.zeros(len(area))
    if not len(chosen):
        return np.zeros((1, 16), np.float32), density.astype(np.float32)
    probability = power[chosen] / power[chosen].sum()
    density[chosen] = probability / area[chosen]
    threshold, alias = _alias_table(probability)
    rows = np.zeros((len(chosen), 16), np.float32)
    rows[:, 0:3], rows[:, 3:6], rows[:, 6:9] = scene.mesh.positions[chosen, 0], edge1[chosen], edge2[chosen]
    rows[:, 9:12], rows[:, 12], rows[:, 13] = emission[chosen], threshold, alias
    rows[:, 14] = density[chosen]
    rows[:, 15] = np.array([m.two_sided for m in scene.materials])[scene.mesh.materials[chosen]]
    return rows, density.astype(np.float32)


def _alias_table(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = probability * len(probability)
    threshold, alias = np.ones(len(scaled)), np.arange(len(scaled))
    small = [i for i, p in enumerate(scaled) if p < 1]
    large = [i for i, p in enumerate(scaled) if p >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        threshold[low], alias[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return threshold, alias


def _pack_textures(textures: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """All texels after a white one, and (first, width, height) of 'no texture' and of each texture."""
    values = np.arange(256) / 255  # IEC 61966-2-1
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    table = np.round(np.sqrt(linear) * 1023).astype(np.uint32)
    pieces, places, first = [np.array([2**30 - 1], np.uint32)], [(0, 1, 1)], 1
    for texture in textures:
        red, green, blue = (table[texture[..., i]] for i in range(3))
        pieces.append((red | green << 10 | blue << 20).reshape(-1))
        places.append((first, texture.shape[1], texture.shape[0]))
        first += texture.shape[0] * texture.shape[1]
    return np.concatenate(pieces), places
