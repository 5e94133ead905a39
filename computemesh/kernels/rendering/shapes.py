"""Shapes as triangles, and the scenes that need no file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from computemesh.kernels.rendering.scene import Camera, Material, Mesh, Scene, Sky

Point = tuple[float, float, float]


class Shape(NamedTuple):
    """Triangles (n, 3, 3), their corner normals (n, 3, 3) and uvs (n, 3, 2)."""

    positions: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray


def quad(corner: Point, edge1: Point, edge2: Point, repeat: float = 1.0) -> Shape:
    """The parallelogram at `corner`; its normal is edge1 x edge2; the texture repeats `repeat` times."""
    a, u, v = (np.array(p, np.float64) for p in (corner, edge1, edge2))
    points = np.array([a, a + u, a + u + v, a + v])
    normal = np.cross(u, v)
    at = np.array([[0, 1, 2], [0, 2, 3]])
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * repeat
    return Shape(points[at], np.broadcast_to(normal / np.linalg.norm(normal), (2, 3, 3)), uvs[at])


def box(transform: np.ndarray) -> Shape:
    """The cube [-1, 1]^3 under an affine transform (3, 4), normals outwards."""
    sides = [
        quad((s, -s, -1), (0, 2 * s, 0), (0, 0, 2)) if axis == 0
        else quad((-1, s, -s), (0, 0, 2 * s), (2, 0, 0)) if axis == 1
        else quad((-s, -1, s), (2 * s, 0, 0), (0, 2, 0))
        for axis in range(3) for s in (1.0, -1.0)
    ]  # fmt: skip
    whole = join(sides)
    positions = whole.positions @ transform[:, :3].T + transform[:, 3]
    normals = whole.normals @ np.linalg.inv(transform[:, :3])
    return Shape(positions, normals / np.linalg.norm(normals, axis=-1, keepdims=True), whole.uvs)


def sphere(centre: Point, radius: float, subdivisions: int = 4) -> Shape:
    """An icosahedron subdivided: 20 * 4**subdivisions triangles, with the sphere's own normals."""
    unit = _unit_sphere(subdivisions)
    longitude = np.arctan2(unit[..., 2], unit[..., 0]) / (2 * np.pi) + 0.5
    uvs = np.stack([longitude, np.arccos(np.clip(unit[..., 1], -1, 1)) / np.pi], axis=-1)
    return Shape(unit * radius + np.array(centre), unit, uvs)


@cache
def _unit_sphere(subdivisions: int) -> np.ndarray:
    g = (1 + 5**0.5) / 2
    points = np.array(
        [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g],
         [0, -1, -g], [0, 1, -g], [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]]
    )  # fmt: skip
    faces = np.array(
        [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4],
         [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8],
         [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]]
    )  # fmt: skip
    triangles = points[faces] / np.linalg.norm(points[0])
    for _ in range(subdivisions):
        a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        ab, bc, ca = (_unit(p + q) for p, q in ((a, b), (b, c), (c, a)))
        parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        triangles = np.stack([np.stack(part, axis=1) for part in parts], axis=1).reshape(-1, 3, 3)
    return triangles


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def join(shapes: list[Shape]) -> Shape:
    return Shape(*(np.concatenate(parts) for parts in zip(*shapes, strict=True)))


def mesh_of(parts: list[tuple[Shape, int]]) -> Mesh:
    """One mesh from shapes and their materials' numbers."""
    whole = join([shape for shape, _ in parts])
    materials = np.repeat([number for _, number in parts], [len(shape.positions) for shape, _ in parts])
    return Mesh(
        whole.positions.astype(np.float32),
        whole.normals.astype(np.float32),
        whole.uvs.astype(np.float32),
        materials.astype(np.int32),
        np.ones((len(materials), 3), np.float32),
    )


def cornell() -> Scene:
    """The Cornell box (C. Goral et al. 1984) in the measures and colours of Mitsuba 3's `cornell_box`."""
    white = Material((0.885809, 0.698859, 0.666422), specular=0.0)
    materials = [
        white,
        white._replace(base_color=(0.105421, 0.37798, 0.076425)),
        white._replace(base_color=(0.570068, 0.0430135, 0.0443706)),
        white._replace(emission=(18.387, 13.9873, 6.75357)),
    ]
    small = np.array([[0.28689146, 0, -0.08771151, 0.335], [0, 0.3, 0, -0.7], [0.08771151, 0, 0.28689146, 0.38]])
    large = np.array([[0.28490976, 0, 0.09394914, -0.33], [0, 0.61, 0, -0.4], [-0.09394914, 0, 0.28490976, -0.28]])
    parts = [
        (quad((-1, -1, 1), (2, 0, 0), (0, 0, -2)), 0),
        (quad((-1, 1, -1), (2, 0, 0), (0, 0, 2)), 0),
        (quad((-1, -1, -1), (2, 0, 0), (0, 2, 0)), 0),
        (quad((1, -1, -1), (0, 0, 2), (0, 2, 0)), 1),
        (quad((-1, -1, 1), (0, 0, -2), (0, 2, 0)), 2),
        (quad((-0.23, 0.99, -0.18), (0.46, 0, 0), (0, 0, 0.38)), 3),
        (box(small), 0),
        (box(large), 0),
    ]
    return Scene(mesh_of(parts), materials, Camera((0, 0, 3.9), (0, 0, 0), fov_degrees=39.3077))


def _checks(dark: int, light: int, squares: int = 8, size: int = 128) -> np.ndarray:
    at = np.arange(size) * squares // size
    return np.where((at[:, None] + at) % 2, dark, light)[..., None].repeat(3, axis=-1).astype(np.uint8)


def spheres() -> Scene:
    """Metals and plastics of several roughnesses on a chequered floor under a sky and a soft lamp."""
    materials = [
        Material(roughness=0.35, texture=0),
        Material((1.0, 0.78, 0.34), metallic=1.0, roughness=0.18),
        Material((0.96, 0.96, 0.97), metallic=1.0, roughness=0.04),
        Material((0.95, 0.64, 0.54), metallic=1.0, roughness=0.4),
        Material((0.72, 0.05, 0.06), roughness=0.12),
        Material((0.05, 0.22, 0.62), roughness=0.5),
        Material((0.08, 0.45, 0.22), roughness=0.25),
        Material((0.9, 0.9, 0.9), emission=(17.0, 15.0, 12.0)),
        Material((0.9, 0.9, 0.9), emission=(3.2, 1.4, 0.35)),
    ]
    balls = [((-2.3, 1, -0.6), 1.0, 1), ((0, 1.25, -1.2), 1.25, 2), ((2.35, 1, -0.5), 1.0, 4),
             ((-0.95, 0.5, 1.0), 0.5, 5), ((0.75, 0.55, 0.95), 0.55, 3), ((2.0, 0.4, 1.5), 0.4, 6),
             ((-2.2, 0.3, 1.45), 0.3, 8)]  # fmt: skip
    parts = [(sphere(centre, radius), number) for centre, radius, number in balls]
    parts.append((quad((-9, 0, 9), (18, 0, 0), (0, 0, -18), repeat=2.25), 0))
    parts.append((quad((-3.5, 6.5, 1), (2, 0, 0), (0, 0, 2.2)), 7))
    sky = Sky((0.08, 0.07, 0.06), (0.62, 0.68, 0.78), (0.12, 0.24, 0.55))
    camera = Camera((0.4, 2.6, 8.2), (0.0, 0.75, 0.0), fov_degrees=36.0, aperture=0.12, focus_distance=7.9)
    return Scene(mesh_of(parts), materials, camera, sky, [_checks(70, 205)])


BUILT_IN: dict[str, Callable[[], Scene]] = {"cornell": cornell, "spheres": spheres}
"""Scenes by the name a payload gives; their order is part of a job's params."""
