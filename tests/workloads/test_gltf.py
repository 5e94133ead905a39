"""glTF files: what is read is what the file means, and what cannot be is refused before it costs."""

import io
import random
import resource
from contextlib import suppress

import numpy as np
import pytest
import trimesh
from PIL import Image

from computemesh.kernels.rendering import gltf
from tests.workloads.scenes import glb, triangle


def load(tmp_path, data):
    path = tmp_path / "scene.glb"
    path.write_bytes(data)
    return gltf.load(path)


def areas(mesh):
    edges = mesh.positions[:, 1:] - mesh.positions[:, :1]
    return np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2


def test_geometry_is_what_another_library_wrote(tmp_path):
    scene = trimesh.Scene()
    turned = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3], [1, 0, 0])
    scene.add_geometry(trimesh.creation.box((1, 2, 3)), transform=turned)
    scene.add_geometry(trimesh.creation.icosphere(2), transform=trimesh.transformations.translation_matrix([3, 0, 0]))
    mesh = load(tmp_path, scene.export(file_type="glb")).mesh
    assert len(mesh.positions) == sum(len(part.faces) for part in scene.geometry.values())
    assert areas(mesh).sum() == pytest.approx(scene.area, rel=1e-5)
    corners = mesh.positions.reshape(-1, 3)
    np.testing.assert_allclose([corners.min(0), corners.max(0)], scene.bounds, atol=1e-5)


def test_materials_and_textures_are_what_another_library_wrote(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (4, 8, 3), np.uint8)
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(
        uv=np.random.default_rng(2).random((len(box.vertices), 2)),
        material=trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(pixels),
            metallicFactor=0.3,
            roughnessFactor=0.4,
            emissiveFactor=[1, 0.5, 0],
        ),
    )
    scene = load(tmp_path, trimesh.Scene(box).export(file_type="glb"))
    material = scene.materials[int(scene.mesh.materials[0])]
    assert (material.metallic, material.roughness, material.emission) == (0.3, 0.4, (1.0, 0.5, 0.0))
    np.testing.assert_array_equal(scene.textures[material.texture], pixels)
    expected = box.visual.uv[box.faces]
    np.testing.assert_allclose(scene.mesh.uvs, np.stack([expected[..., 0], 1 - expected[..., 1]], -1), atol=1e-6)


def test_strips_fans_strides_quantised_coordinates_and_mirrors_are_read(tmp_path):
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], "<f4")
    for mode, order in ((5, [0, 1, 2, 3]), (6, [0, 1, 3, 2])):
        document, _ = triangle(meshes__0__primitives__0__mode=mode, accessors__0__count=4, accessors__1__count=4)
        document["bufferViews"] = [{"buffer": 0, "byteLength": 64, "byteStride": 16},
                                   {"buffer": 0, "byteOffset": 64, "byteLength": 8}]  # fmt: skip
        document["buffers"][0]["byteLength"] = 72
        padded = np.pad(square, ((0, 0), (0, 1))).tobytes()
        mesh = load(tmp_path, glb(document, padded + np.array(order, "<u2").tobytes())).mesh
        assert areas(mesh).tolist() == [0.5, 0.5]
        assert (mesh.normals[..., 2] == 1).all()
    document, _ = triangle(accessors__0__componentType=5122, accessors__0__normalized=True, nodes__0__scale=[-2, 2, 2],
                           bufferViews__0__byteStride=8, extensionsRequired=["KHR_mesh_quantization"])  # fmt: skip
    shorts = np.array([[0, 0, 0, 0], [32767, 0, 0, 0], [0, 32767, 0, 0]], "<i2").tobytes()
    mesh = load(tmp_path, glb(document, shorts.ljust(36, b"\0") + np.array([0, 1, 2], "<u2").tobytes())).mesh
    assert sorted(map(tuple, mesh.positions[0].tolist())) == [(-2, 0, 0), (0, 0, 0), (0, 2, 0)]
    assert mesh.normals[0, 0].tolist() == [0, 0, 1]  # mirrored, and still facing the same side


def test_a_camera_looks_down_its_nodes_minus_z(tmp_path):
    document, binary = triangle(nodes__0__children=[1])
    document["nodes"].append({"camera": 0, "translation": [0.2, 0.2, 5], "rotation": [0, 0, 1, 0]})
    document["cameras"] = [{"type": "perspective", "perspective": {"yfov": 0.5, "znear": 0.1}}]
    camera = load(tmp_path, glb(document, binary)).camera
    assert camera.position == (0.2, 0.2, 5)
    assert camera.target[:2] == (0.2, 0.2)
    assert camera.target[2] < 5
    assert camera.up == (0, -1, 0)
    assert camera.fov_degrees == pytest.approx(28.6479, abs=1e-3)


NAN = np.array([[0, 0, 0], [np.nan, 0, 0], [0, 1, 0]], "<f4").tobytes() + np.array([0, 1, 2], "<u2").tobytes()
HUGE_PNG = io.BytesIO()
Image.new("1", (9000, 9000)).save(HUGE_PNG, "PNG")


def with_image(data):
    document, binary = triangle(meshes__0__primitives__0__material=0, buffers__0__byteLength=42 + len(data))
    document["bufferViews"].append({"buffer": 0, "byteOffset": 42, "byteLength": len(data)})
    document |= {"images": [{"bufferView": 2, "mimeType": "image/png"}], "textures": [{"source": 0}],
                 "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]}  # fmt: skip
    return glb(document, binary + data)


def edited(**changes):
    return glb(*triangle(**changes))


def repeated():
    """10,000 nodes that each show a mesh of one triangle and 100,000 vertices."""
    document, binary = triangle(
        nodes=[{"mesh": 0}] * 10_000, scenes__0__nodes=list(range(10_000)), accessors__0__count=100_000,
        bufferViews__0__byteOffset=44, bufferViews__0__byteLength=1_200_000, buffers__0__byteLength=1_200_044,
    )  # fmt: skip
    return glb(document, binary.ljust(44, b"\0") + bytes(1_200_000))


GOOD = edited()
HOSTILE = {
    "billion vertices": (edited(accessors__0__count=10**9), "1,000,000,000 vertices"),
    "million vertices": (edited(accessors__0__count=10**6), "declares 1,000,000 elements of 12 bytes"),
    "billion indices": (edited(accessors__1__count=3 * 10**9), "1,000,000,000 triangles"),
    "no view": (edited(accessors__0__bufferView=None), "must be VEC3 of a known"),
    "sparse": (edited(accessors__0__sparse={"count": 1}), "not sparse"),
    "zero stride": (edited(bufferViews__0__byteStride=4), "every 4"),
    "negative offset": (edited(bufferViews__0__byteOffset=-4), "covers bytes -4"),
    "view beyond": (edited(bufferViews__0__byteLength=10**9), "the file holds 44"),
    "buffer beyond": (edited(buffers__0__byteLength=10**9), "buffer 0 declares 1,000,000,000"),
    "external buffer": (edited(buffers__0__uri="file:///etc/passwd"), "buffer 0 is outside the file"),
    "external image": (edited(images=[{"uri": "http://example.com/a.png"}]), "image 0 is outside the file"),
    "index outside": (glb(triangle()[0], triangle()[1][:-2] + b"\x07\0"), "index 7 is outside the 3 vertices"),
    "nan": (glb(triangle()[0], NAN), "(POSITION): element 1 is not finite"),
    "infinite node": (edited(nodes__0__scale=[1e30] * 3), "10^12"),
    "nan node": (edited(nodes__0__translation=[float("nan")] * 3), "3 finite numbers"),
    "cycle": (edited(nodes__0__children=[0]), "node 0 is reached twice"),
    "no such mesh": (edited(nodes__0__mesh=3), "mesh 3 is not one of 1"),
    "no such accessor": (edited(meshes__0__primitives__0__indices=-1), "-1 is not one of 2"),
    "no attributes": (edited(meshes__0__primitives__0__attributes=None), "not glTF"),
    "draco": (edited(extensionsRequired=["KHR_draco_mesh_compression"]), "requires the extension"),
    "repeated mesh": (repeated(), "repeated meshes counted again"),
    "many nodes": (edited(nodes=[{}] * 70_000), "has 70,011 objects; at most 16,384"),
    "deep json": (glb(0)[:20] + b"", "declares"),
    "huge image": (with_image(HUGE_PNG.getvalue()), "9,000 x 9,000"),
    "no image": (with_image(b"GIF89a" + bytes(100)), "no PNG or JPEG"),
    "flat": (edited(accessors__1__count=2), "no triangles"),
    "truncated": (GOOD[:-10], f"declares {len(GOOD):,} bytes, the file has {len(GOOD) - 10:,}"),
    "chunk beyond": (GOOD[:12] + (10**9).to_bytes(4, "little") + GOOD[16:], "declares 1,000,000,000 bytes"),
    "version 1": (glb(*triangle(), version=1), "version 1"),
    "not a glb": (b"<html>" * 10, "not a .glb"),
    "empty": (b"", "not a .glb"),
    "a list": (glb([]), "not glTF"),
    "nested": (glb({"asset": {"version": "2.0"}, "extras": None}).replace(b"null", b"[[[["), "not glTF"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_what_is_wrong_before_anything_is_allocated(tmp_path, name):
    data, text = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(gltf.BadScene) as refused:
        load(tmp_path, data)
    assert text in str(refused.value)
    assert len(str(refused.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_any_spoilt_byte_is_read_or_refused_and_nothing_else(tmp_path):
    rng = random.Random(4)
    good = with_image(HUGE_PNG.getvalue()[:200])
    for _ in range(400):
        data = bytearray(rng.choice([GOOD, good]))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice([0, 255, 0x2D, 0x39, 0x5B, rng.randrange(256)])
        with suppress(gltf.BadScene):
            load(tmp_path, bytes(data))


def test_what_a_file_means_does_not_change_unseen(tmp_path):
    """Workers and auditors must make the same arrays: a library's update that changes them shows here."""
    from blake3 import blake3

    mesh = load(tmp_path, GOOD).mesh
    assert (
        blake3(mesh.positions.tobytes() + mesh.normals.tobytes() + mesh.uvs.tobytes()).hexdigest()[:16]
        == "8be1b084a3fa37c7"
    )
