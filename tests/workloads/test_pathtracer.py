"""The path tracer against closed forms, quadrature, brute force and another renderer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from computemesh.kernels.rendering import bvh, pathtracer, scene, shapes, surface, trace
from computemesh.kernels.rendering.scene import Camera, Material, Scene, Sky
from computemesh.kernels.rendering.vectors import Vec

KEY = bytes(range(16))
FURNACE = Sky((1, 1, 1), (1, 1, 1), (1, 1, 1))


def render(made, width=32, height=32, samples=16, camera=None, limit=math.inf, key=KEY):
    """The picture (height, width, 3)."""
    view = scene.look(camera or made.camera, width, height, 16, samples, key, limit)
    across, down = -(-width // 16), -(-height // 16)
    packed, numbers = scene.pack(made), range(across * down)
    tiles = np.concatenate([pathtracer.render(packed, view, numbers[i : i + 8], "cpu") for i in numbers[::8]])
    return tiles.reshape(down, across, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(down * 16, across * 16, 3)


def test_rays_hit_what_trying_every_triangle_finds():
    rng = np.random.default_rng(5)
    for count in (1, 2, 3, 4, 60):
        corners = rng.random((count, 1, 3)) + rng.standard_normal((count, 3, 3)) * 0.4
        corners = corners.astype(np.float32)
        origin, direction = rng.standard_normal((2, 500, 1, 3))
        direction[:6, 0] = np.concatenate([np.eye(3), -np.eye(3)])  # along the axes: divisions by zero
        edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        p = np.cross(direction, edge2)
        determinant = (p * edge1).sum(-1)
        s = origin - corners[:, 0]
        u, q = (s * p).sum(-1) / determinant, np.cross(s, edge1)
        v, t = (direction * q).sum(-1) / determinant, (edge2 * q).sum(-1) / determinant
        t = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, np.inf)
        expected = np.where(np.isinf(t.min(1)), -1, t.argmin(1))
        rows = bvh.build(corners)
        starts, ways = (Vec(*jnp.asarray(v[:, 0].T, jnp.float32)) for v in (origin, direction))
        rays = trace.Rays(starts, ways, jnp.full(500, 1e30), jnp.zeros(500, bool))
        hits = jax.jit(trace.trace)(jnp.asarray(rows), jnp.int32(rows.shape[1]), rays)
        assert (np.asarray(hits.triangle) != expected).sum() <= 1  # an edge, seen in another precision
        shadows = jax.jit(trace.trace)(
            jnp.asarray(rows), jnp.int32(rows.shape[1]), rays._replace(any_hit=rays.reach > 0)
        )
        assert ((np.asarray(shadows.triangle) >= 0) == (np.asarray(hits.triangle) >= 0)).all()


def test_a_hierarchy_of_coincident_triangles_ends():
    rows = bvh.build(np.zeros((1000, 3, 3), np.float32))
    assert sorted(rows[0][rows[0][:, 7] >= 0][:, 7]) == list(range(1000))


def gltf_brdf(out, into, base, metallic, roughness, specular):
    """Appendix B of the glTF 2.0 specification in plain numpy; directions (n, 3) with z the normal."""
    half = out + into
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    alpha, cosine = roughness**2, (out * half).sum(-1)
    d = alpha**2 / (np.pi * ((half[:, 2] ** 2) * (alpha**2 - 1) + 1) ** 2)
    lengths = [np.sqrt(alpha**2 + (1 - alpha**2) * w[..., 2] ** 2) for w in (out, into)]
    v = 0.5 / (into[:, 2] * lengths[0] + out[..., 2] * lengths[1])
    f0 = 0.04 * specular * (1 - metallic) + base * metallic
    f90 = specular * (1 - metallic) + metallic
    f = f0 + (f90 - f0) * (1 - cosine) ** 5
    return (1 - f) * base * (1 - metallic) / np.pi + f * v * d


@pytest.mark.parametrize(
    ("metallic", "roughness", "specular"), [(0, 1, 0), (0, 0.5, 1), (1, 0.3, 1), (0.5, 0.8, 1), (1, 1, 1)]
)
def test_scattering_is_gltfs_and_sampling_follows_its_density(metallic, roughness, specular):
    rng, n, base = np.random.default_rng(6), 400_000, 0.6
    z, angle = rng.random(n), rng.random(n) * 2 * np.pi
    into = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], -1)
    out = np.array([0.6, 0.0, 0.8])
    lanes = Vec(*(jnp.full(n, v, jnp.float32) for v in out))
    grey, one = Vec(*(jnp.full(n, base, jnp.float32),) * 3), jnp.ones(n, jnp.float32)
    made = surface.surface(grey, one * metallic, one * roughness, one * specular)
    value, density = surface.evaluate(made, lanes, Vec(*jnp.asarray(into.T, jnp.float32)))
    expected = gltf_brdf(out, into, base, metallic, roughness, specular) * z
    np.testing.assert_allclose(value.x, expected, rtol=2e-3, atol=1e-5)
    albedo = expected.mean() * 2 * np.pi
    # The rest of the density's whole is what the specular lobe sends below the surface.
    assert 0.5 < float(density.mean()) * 2 * math.pi < 1.02
    u = jnp.asarray(rng.random((3, n)), jnp.float32)
    chosen = surface.sample(made, lanes, *u)
    value, density = surface.evaluate(made, lanes, chosen)
    weights = np.where(density > 0, value.x / np.maximum(density, 1e-20), 0)
    assert weights.mean() == pytest.approx(albedo, rel=0.02)
    inside = np.asarray(chosen.z) > 0.5  # the sampled share of a cap is the density's integral over it
    assert inside.mean() == pytest.approx(float(surface.evaluate(made, lanes, Vec(*jnp.asarray(into.T, jnp.float32)))[1]
                                                [z > 0.5].sum()) / n * 2 * math.pi, abs=0.02)  # fmt: skip


def test_white_furnace_a_diffuse_ball_shows_its_albedo_and_no_edge():
    albedo = (0.25, 0.5, 1.0)
    ball = shapes.sphere((0, 0, 0), 1, 1)
    edges = ball.positions[:, 1:] - ball.positions[:, :1]
    ball = ball._replace(normals=np.cross(edges[:, 0], edges[:, 1])[:, None].repeat(3, 1))
    made = Scene(shapes.mesh_of([(ball, 0)]), [Material(albedo, specular=0.0)], Camera((0, 0, 3), (0, 0, 0)), FURNACE)
    np.testing.assert_allclose(render(made)[14:18, 14:18].mean((0, 1)), albedo, rtol=1e-4)
    white = Scene(made.mesh, [Material(specular=0.0)], made.camera, FURNACE)
    np.testing.assert_allclose(render(white), 1, atol=1e-4)


def test_white_furnace_in_a_closed_glowing_box_light_is_the_geometric_series():
    """L = E * (1 + a + ... + a^8), through next-event estimation, its weights, many bounces and roulette."""
    inside = shapes.box(np.eye(3, 4))
    inside = shapes.Shape(inside.positions[:, ::-1], -inside.normals, inside.uvs)
    glow, albedo = (1.0, 0.5, 0.25), 0.5
    made = Scene(shapes.mesh_of([(inside, 0)]), [Material((albedo,) * 3, specular=0.0, emission=glow)],
                 Camera((0.2, 0.1, 0.3), (0, 0, -1), fov_degrees=90))  # fmt: skip
    series = sum(albedo**i for i in range(pathtracer.MAX_BOUNCES + 1))
    picture = render(made, samples=128)
    np.testing.assert_allclose(picture.mean((0, 1)), np.array(glow) * series, rtol=0.01)


def test_a_lamp_lights_a_floor_as_the_form_factor_says():
    """A small lamp of radiance E and area A at height h: irradiance E * A / h^2 below, reflected by a / pi."""
    side, height, glow, albedo = 0.05, 2.0, 400.0, 0.8
    floor = shapes.quad((-5, 0, 5), (10, 0, 0), (0, 0, -10))
    lamp = shapes.quad((-side / 2, height, -side / 2), (side, 0, 0), (0, 0, side))
    made = Scene(shapes.mesh_of([(floor, 0), (lamp, 1)]),
                 [Material((albedo,) * 3, specular=0.0), Material((0, 0, 0), specular=0.0, emission=(glow,) * 3)],
                 Camera((0.5, 1, 0), (0, 0, 0), fov_degrees=1))  # fmt: skip
    expected = glow * side**2 / height**2 * albedo / math.pi
    np.testing.assert_allclose(render(made, 16, 16, 64).mean((0, 1)), expected, rtol=0.01)
    turned = Scene(made.mesh, made.materials, Camera((0.5, 1, 0), (0, 0, 0), fov_degrees=1))
    turned.mesh.positions[2:] = turned.mesh.positions[2:, ::-1]  # facing up: only its back is seen
    assert render(turned, 16, 16, 64).max() == 0


def test_a_point_is_seen_where_the_pinhole_puts_it():
    camera = Camera((1, 2, 5), (0, 0.5, 0), fov_degrees=50)
    point, width, height = np.array([-0.8, 1.1, -0.4]), 48, 32
    lamp = shapes.sphere(tuple(point), 0.25, 2)
    made = Scene(shapes.mesh_of([(lamp, 0)]), [Material(emission=(1, 1, 1))], camera)
    picture = render(made, width, height, 32)[..., 0]
    forward = np.array([-1, -1.5, -5]) / np.linalg.norm([1, 1.5, 5])
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    offset = (point - camera.position) / ((point - camera.position) @ forward) / math.tan(math.radians(25))
    x = (offset @ right * height / width + 1) / 2 * width
    y = (1 - offset @ np.cross(right, forward)) / 2 * height
    seen = (np.indices(picture.shape) + 0.5) * picture
    assert seen.sum((1, 2)) / picture.sum() == pytest.approx([y, x], abs=0.1)


def test_a_lens_is_sharp_at_its_focus_and_a_disc_of_known_size_elsewhere():
    lamp = shapes.quad((-0.01, -0.01, 0), (0.02, 0, 0), (0, 0.02, 0))
    made = Scene(
        shapes.mesh_of([(lamp, 0)]), [Material(emission=(1, 1, 1), two_sided=True)], Camera((0, 0, 4), (0, 0, 0))
    )
    spread = {}
    for focus in (4.0, 2.0):
        camera = Camera((0, 0, 4), (0, 0, 0), fov_degrees=20, aperture=0.2, focus_distance=focus)
        picture = render(made, 48, 48, 64, camera)[..., 0]
        at = np.indices(picture.shape) + 0.5 - 24
        spread[focus] = math.sqrt((at**2 * picture).sum() / picture.sum())
    # In the plane in focus the lens' disc is scaled by |1 - focus / distance| = 1/2; its rms radius is r / sqrt(2).
    pixels = 0.1 * 0.5 / 2 / math.tan(math.radians(10)) * 24
    assert spread[2.0] == pytest.approx(pixels / math.sqrt(2), rel=0.1)
    assert spread[4.0] < 0.8


def test_a_texture_lies_the_right_way_up():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0], colours[0, 1], colours[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # red left, green right, on top
    wall = shapes.quad((-1, 1, 0), (0, -2, 0), (2, 0, 0))  # uv (0, 0) is the corner above on the left
    wall = wall._replace(uvs=wall.uvs[..., ::-1])
    made = Scene(
        shapes.mesh_of([(wall, 0)]),
        [Material(specular=0.0, texture=0)],
        Camera((0, 0, 3), (0, 0, 0)),
        FURNACE,
        [colours],
    )
    picture = render(made)
    np.testing.assert_allclose(picture[8, 8], (1, 0, 0), atol=0.05)
    np.testing.assert_allclose(picture[8, 23], (0, 1, 0), atol=0.05)
    np.testing.assert_allclose(picture[23, 8], (0, 0, 1), atol=0.05)
    np.testing.assert_allclose(picture[23, 23], (0, 0, 0), atol=0.05)


def test_a_tile_has_the_same_bits_alone_and_among_others_and_nothing_is_compiled_again():
    made = scene.pack(shapes.cornell())
    view = scene.look(shapes.cornell().camera, 64, 64, 16, 6, KEY, math.inf)
    whole = np.concatenate([pathtracer.render(made, view, range(i, i + 8), "cpu") for i in (0, 8)])
    before = pathtracer.traces
    for numbers in ([5], [9, 5, 14], [15, 14, 13, 12, 11, 10, 9, 8]):
        assert pathtracer.render(made, view, numbers, "cpu").tobytes() == whole[numbers].tobytes()
    other = scene.look(Camera((0.1, 0, 3.9), (0, 0, 0)), 128, 32, 16, 3, KEY[::-1], 1.0)
    pathtracer.render(made, other, [0], "cpu")
    assert pathtracer.traces == before


@pytest.mark.long
def test_with_the_schedule_of_wide_devices_a_tile_is_also_its_own():
    schedule = pathtracer.Schedule(2, 4, 2, 2)
    made = jax.device_put(scene.pack(shapes.cornell()))
    view = scene.look(shapes.cornell().camera, 64, 64, 16, 5, KEY, math.inf)

    def tiles(*numbers):
        filled = np.array([*numbers, *[-1] * (8 - len(numbers))], np.int32)
        return np.asarray(
            pathtracer.render_tiles(made, view, filled, np.int32(-(-len(numbers) // 4)), schedule=schedule)
        )

    whole = tiles(*range(4, 12))
    assert tiles(7)[0].tobytes() == whole[3].tobytes()
    assert tiles(1, 2, 3, 11, 7, 9)[3:6].tobytes() == whole[[7, 3, 5]].tobytes()
    narrow = pathtracer.render(made, view, range(4, 12), "cpu")
    np.testing.assert_allclose(whole, narrow, rtol=1e-3, atol=1e-5)


def mitsuba_cornell(size, samples):
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    box = mitsuba.cornell_box()
    box["sensor"]["film"] |= {"width": size, "height": size, "rfilter": {"type": "box"}}
    box["integrator"] = {"type": "path", "max_depth": pathtracer.MAX_BOUNCES + 1, "rr_depth": 1000}
    return np.array(mitsuba.render(mitsuba.load_dict(box), spp=samples))


def test_the_cornell_box_is_mitsubas():
    """Mitsuba's own geometry, sampling and arithmetic; mean of blocks of 4x4 pixels within their noise."""
    size = 32
    theirs = mitsuba_cornell(size, 256)
    ours = render(shapes.cornell(), size, size, 256)
    np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), rtol=0.01)
    blocks = [p.reshape(8, 4, 8, 4, 3).mean((1, 3)) for p in (ours, theirs)]
    np.testing.assert_allclose(*blocks, rtol=0.1, atol=0.01)
    error = np.abs(blocks[0] - blocks[1]) / (blocks[1] + 0.01)
    assert np.median(error) < 0.015
