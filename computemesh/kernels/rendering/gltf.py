"""glTF 2.0 binary files (.glb) as scenes. Section numbers are those of the Khronos glTF 2.0 specification.

Files come from strangers: every count, offset and length is compared with the bytes that are there, or with a limit,
before anything of that size is made. pygltflib reads the JSON into the schema's types; all bytes are read here.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pygltflib import GLTF2

from computemesh.kernels.rendering.scene import Camera, Material, Mesh, Scene, Sky

MAX_FILE_BYTES = 2**28
MAX_JSON_BYTES = 2**22
MAX_OBJECTS = 2**14
"""JSON objects: pygltflib takes a quarter of a millisecond for each."""
MAX_TRIANGLES = 2**18
MAX_VERTICES = 2**20
MAX_TEXELS = 2**23
SUPPORTED = ("KHR_materials_emissive_strength", "KHR_materials_specular", "KHR_mesh_quantization")
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}  # section 3.6.2.2
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
TRIANGLES, STRIP, FAN = 4, 5, 6
UNLIT_SKY = Sky((0.25, 0.24, 0.22), (0.85, 0.88, 0.92), (0.45, 0.6, 0.9))
"""Light for files that bring none: glTF has no environment in its core."""


class BadScene(ValueError):
    """A scene that is not rendered; the text names the part, its value and the limit."""


def load(path: Path) -> Scene:
    """The default scene of a .glb file.

    Rendered: triangles, strips and fans, node transforms, metallic-roughness factors, base colour textures (PNG,
    JPEG, inside the file), vertex colours (one mean per triangle), emission, the first perspective camera. Not
    rendered, silently, as the specification allows for what is optional: points and lines, skins, morph targets,
    animations, other textures, alpha (everything is opaque). Raises BadScene.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadScene(f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    text, binary = _chunks(path.read_bytes())
    try:
        if (objects := _objects(json.loads(text))) <= MAX_OBJECTS:
            document = GLTF2.from_json(text.decode(), infer_missing=True)
    except Exception as error:  # whatever a reader of a foreign schema raises, the file is at fault
        raise BadScene(f"the JSON chunk is not glTF: {type(error).__name__}: {str(error)[:200]}") from None
    if objects > MAX_OBJECTS:
        raise BadScene(f"the JSON chunk has {objects:,} objects; at most {MAX_OBJECTS:,}")
    try:
        return _File(document, binary).scene()
    except (AttributeError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise BadScene(f"the JSON chunk is not glTF: {type(error).__name__}: {str(error)[:200]}") from None


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """The JSON and the binary chunk (section 4.4)."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise BadScene(f"not a .glb file: {len(data):,} bytes that begin with {data[:4]!r}, not b'glTF'")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise BadScene(f"glTF version {version}; only version 2 is read")
    if length != len(data):
        raise BadScene(f"the header declares {length:,} bytes, the file has {len(data):,}")
    found: list[tuple[bytes, bytes]] = []
    at = 12
    while at < length and len(found) < 2:
        if at + 8 > length:
            raise BadScene(f"the file ends inside the header of chunk {len(found)}")
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise BadScene(f"chunk {len(found)} declares {size:,} bytes, {length - at - 8:,} are left")
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    if found[0][0] != b"JSON" or len(found[0][1]) > MAX_JSON_BYTES:
        raise BadScene(f"chunk 0 must be JSON of at most {MAX_JSON_BYTES:,} bytes")
    return found[0][1], found[1][1] if len(found) == 2 and found[1][0] == b"BIN\0" else b""


def _objects(value: object) -> int:
    """How many objects a decoded JSON value holds, itself included."""
    count, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            count += 1
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return count


def _at(items: list[Any] | None, index: object, what: str) -> Any:
    if not isinstance(index, int) or not 0 <= index < len(items or []):
        raise BadScene(f"{what} {index!r} is not one of {len(items or [])}")
    return (items or [])[index]


class _File:
    """One document with its bytes."""

    def __init__(self, document: GLTF2, binary: bytes) -> None:
        self.document, self.binary = document, binary
        unknown = [name for name in document.extensionsRequired or [] if name not in SUPPORTED]
        if unknown:
            raise BadScene(f"requires the extension {str(unknown[0])[:60]!r}; supported are {', '.join(SUPPORTED)}")
        for number, buffer in enumerate(document.buffers):
            if buffer.uri is not None or number > 0:
                raise BadScene(f"buffer {number} is outside the file; a scene is one .glb with all its data")
            if not 0 <= (buffer.byteLength or 0) <= len(binary):
                raise BadScene(f"buffer 0 declares {buffer.byteLength:,} bytes, the file holds {len(binary):,}")
        for number, image in enumerate(document.images):
            if image.uri is not None:
                raise BadScene(f"image {number} is outside the file; a scene is one .glb with all its data")

    def view(self, index: object) -> tuple[int, int, int | None]:
        """Offset, length and stride of a buffer view inside the binary chunk."""
        view = _at(self.document.bufferViews, index, "bufferView")
        offset, length = view.byteOffset or 0, view.byteLength or 0
        if view.buffer != 0 or offset < 0 or length < 0 or offset + length > len(self.binary):
            raise BadScene(
                f"bufferView {index} covers bytes {offset:,} to {offset + length:,} of buffer {view.buffer}; "
                f"the file holds {len(self.binary):,}"
            )
        return offset, length, view.byteStride

    def accessor(self, index: object, kinds: tuple[str, ...], what: str) -> np.ndarray:
        """An accessor's elements, (count, width): float32 in their meaning (normalized integers divided), or, for
        `SCALAR`, integers as they are. Sizes are checked on the declared numbers, before any array exists."""
        a = _at(self.document.accessors, index, f"{what}: accessor")
        if a.type not in kinds or a.componentType not in COMPONENTS or a.sparse or a.bufferView is None:
            raise BadScene(
                f"accessor {index} ({what}) must be {' or '.join(kinds)} of a known component type in a bufferView, "
                f"not sparse; it is {str(a.type)[:20]!r} of {a.componentType}"
            )
        dtype, width = np.dtype(COMPONENTS[a.componentType]), WIDTHS[a.type]
        offset, length, stride = self.view(a.bufferView)
        element = dtype.itemsize * width
        step, start, count = element if stride is None else stride, a.byteOffset or 0, a.count or 0
        if count < 1 or start < 0 or not element <= step <= 252 or start + (count - 1) * step + element > length:
            raise BadScene(
                f"accessor {index} ({what}) declares {count:,} elements of {element} bytes every {step} from byte "
                f"{start:,}; its bufferView has {length:,} bytes"
            )
        raw = np.ndarray((count, width), dtype, self.binary, offset + start, (step, dtype.itemsize))
        if a.type == "SCALAR":
            return raw.copy()
        scale = np.iinfo(dtype).max if a.normalized and dtype.kind != "f" else 1
        values = np.maximum(raw.astype(np.float32) / np.float32(scale), -1 if scale > 1 else -np.inf)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise BadScene(f"accessor {index} ({what}): element {row} is not finite")
        return values.astype(np.float32)

    def scene(self) -> Scene:
        pieces: list[Mesh] = []
        camera: Camera | None = None
        total = points = 0
        for node, matrix in self._walk():
            if node.mesh is not None:
                for primitive in _at(self.document.meshes, node.mesh, "mesh").primitives:
                    if primitive.mode in (TRIANGLES, STRIP, FAN, None):
                        triangles, vertices = self._declared(primitive)
                        total, points = total + triangles, points + vertices
                        if total > MAX_TRIANGLES or points > MAX_VERTICES:
                            raise BadScene(
                                f"declares {total:,} triangles of {points:,} vertices or more, repeated meshes counted "
                                f"again; at most {MAX_TRIANGLES:,} of {MAX_VERTICES:,}"
                            )
                        pieces.append(self._primitive(primitive, matrix))
            if node.camera is not None and camera is None:
                camera = self._camera(node.camera, matrix)
        if not sum(len(piece.positions) for piece in pieces):
            raise BadScene("no triangles with an area")
        mesh = Mesh(*(np.concatenate([getattr(p, name) for p in pieces]) for name in Mesh.__dataclass_fields__))
        textures, number_of = self._textures()
        materials = [self._material(m, number_of) for m in self.document.materials] + [Material(metallic=1.0)]
        lit = any(any(m.emission) for m in materials)
        return Scene(mesh, materials, self._aimed(camera, mesh), Sky() if lit else UNLIT_SKY, textures)

    def _walk(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Nodes of the default scene with their world matrices (4, 4); the graph must be a forest (3.5.2)."""
        document, seen = self.document, set()
        if document.scenes:
            roots = _at(document.scenes, document.scene or 0, "scene").nodes or []
        else:
            inner = {child for node in document.nodes for child in node.children or []}
            roots = [i for i in range(len(document.nodes)) if i not in inner]
        waiting = [(index, np.eye(4)) for index in reversed(roots)]
        while waiting:
            index, parent = waiting.pop()
            node = _at(document.nodes, index, "node")
            if index in seen:
                raise BadScene(f"node {index} is reached twice; nodes must form trees")
            seen.add(index)
            matrix = parent @ _local_matrix(node, index)
            yield node, matrix
            waiting.extend((child, matrix) for child in reversed(node.children or []))

    def _declared(self, primitive: Any) -> tuple[int, int]:
        """Triangles and vertices by the accessors' counts; at least one, so that empty ones do not come free."""
        position = primitive.attributes.POSITION
        source = position if primitive.indices is None else primitive.indices
        vertices, corners = (_at(self.document.accessors, i, "accessor").count or 0 for i in (position, source))
        return max(1, corners // 3 if primitive.mode in (TRIANGLES, None) else corners - 2), vertices

    def _primitive(self, primitive: Any, matrix: np.ndarray) -> Mesh:
        attributes = primitive.attributes
        points = self.accessor(attributes.POSITION, ("VEC3",), "POSITION").astype(np.float64)
        faces = self._faces(primitive, len(points))
        with np.errstate(over="ignore", invalid="ignore"):
            world = (points @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
        if not np.abs(world).max() < 1e12:
            raise BadScene("a transformed vertex is further than 10^12 from the origin")
        if np.linalg.det(matrix[:3, :3]) < 0:
            faces = faces[:, ::-1]  # a mirroring turns faces inside out (3.7.4)
        cross = np.cross(*(world[faces[:, i]].astype(np.float64) - world[faces[:, 0]] for i in (1, 2)))
        area = np.linalg.norm(cross, axis=1)
        faces, flat = faces[area > 0], (cross[area > 0] / area[area > 0, None])[:, None].repeat(3, axis=1)
        normals = flat
        if attributes.NORMAL is not None:
            given = self._vertex_data(attributes.NORMAL, ("VEC3",), "NORMAL", len(points))[faces]
            turned = given @ np.linalg.pinv(matrix[:3, :3])  # row vectors: the inverse transpose, transposed
            length = np.linalg.norm(turned, axis=-1, keepdims=True)
            normals = np.where(length > 0, turned / np.where(length > 0, length, 1), flat)
        material = len(self.document.materials) if primitive.material is None else primitive.material
        if material != len(self.document.materials):
            _at(self.document.materials, material, "material")
        uvs, tints = self._coordinates(primitive, len(points), faces), np.ones((len(faces), 3), np.float32)
        if attributes.COLOR_0 is not None:
            colours = self._vertex_data(attributes.COLOR_0, ("VEC3", "VEC4"), "COLOR_0", len(points))
            tints = np.clip(colours[faces, :3].mean(axis=1), 0, 1)
        number = np.full(len(faces), material, np.int32)
        return Mesh(world[faces], normals.astype(np.float32), uvs, number, tints.astype(np.float32))

    def _vertex_data(self, index: object, kinds: tuple[str, ...], what: str, count: int) -> np.ndarray:
        values = self.accessor(index, kinds, what)
        if len(values) != count:
            raise BadScene(f"{what} has {len(values):,} elements, POSITION {count:,}")
        return values

    def _coordinates(self, primitive: Any, count: int, faces: np.ndarray) -> np.ndarray:
        """Texture coordinates (n, 3, 2) of the set that the base colour texture uses; zeros where there is none."""
        index = None
        if primitive.material is not None:
            pbr = self.document.materials[primitive.material].pbrMetallicRoughness
            texture = pbr.baseColorTexture if pbr else None
            index = texture and getattr(primitive.attributes, f"TEXCOORD_{texture.texCoord or 0}", None)
        if index is None:
            return np.zeros((len(faces), 3, 2), np.float32)
        return self._vertex_data(index, ("VEC2",), "TEXCOORD", count)[faces]

    def _faces(self, primitive: Any, vertices: int) -> np.ndarray:
        """Corner numbers (n, 3) of a primitive's triangles (section 3.7.2.1)."""
        if primitive.indices is None:
            flat = np.arange(vertices)
        else:
            raw = self.accessor(primitive.indices, ("SCALAR",), "indices")
            if raw.dtype.kind != "u":
                raise BadScene(f"accessor {primitive.indices} (indices) has signed or float components")
            flat = raw.reshape(-1).astype(np.int64)
            if flat.max() >= vertices:
                raise BadScene(f"index {flat.max():,} is outside the {vertices:,} vertices of its primitive")
        if primitive.mode == STRIP:
            faces = np.stack([flat[:-2], flat[1:-1], flat[2:]], axis=1)
            faces[1::2] = faces[1::2, [1, 0, 2]]
            return faces
        if primitive.mode == FAN:
            return np.stack([np.broadcast_to(flat[0], len(flat) - 2), flat[1:-1], flat[2:]], axis=1)
        return flat[: len(flat) // 3 * 3].reshape(-1, 3)

    def _textures(self) -> tuple[list[np.ndarray], dict[int, int]]:
        """Decoded images, and which of them each glTF texture shows that is some material's base colour."""
        images: dict[int, int] = {}
        shown: dict[int, int] = {}
        decoded: list[np.ndarray] = []
        texels = 0
        for material in self.document.materials:
            pbr = material.pbrMetallicRoughness
            if pbr is None or pbr.baseColorTexture is None:
                continue
            index = pbr.baseColorTexture.index
            source = _at(self.document.textures, index, "texture").source
            if source not in images:
                picture = self._image(source, MAX_TEXELS - texels)
                texels += picture.shape[0] * picture.shape[1]
                images[source] = len(decoded)
                decoded.append(picture)
            shown[index] = images[source]
        return decoded, shown

    def _image(self, index: object, most: int) -> np.ndarray:
        from PIL import Image

        offset, length, _ = self.view(_at(self.document.images, index, "image").bufferView)
        try:
            picture = Image.open(io.BytesIO(self.binary[offset : offset + length]), formats=("PNG", "JPEG"))
            if picture.width * picture.height <= most:
                return np.asarray(picture.convert("RGB"))
        except Exception as error:  # decoders raise many kinds; the file is at fault
            raise BadScene(f"image {index} is no PNG or JPEG: {type(error).__name__}: {str(error)[:100]}") from None
        raise BadScene(
            f"image {index} is {picture.width:,} x {picture.height:,}; all textures together have at most "
            f"{MAX_TEXELS:,} texels"
        )

    def _material(self, material: Any, shown: dict[int, int]) -> Material:
        pbr, extensions = material.pbrMetallicRoughness, material.extensions or {}
        strength = (extensions.get("KHR_materials_emissive_strength") or {}).get("emissiveStrength", 1.0)
        specular = (extensions.get("KHR_materials_specular") or {}).get("specularFactor", 1.0)
        base = (pbr.baseColorFactor if pbr else None) or [1.0] * 4
        metallic = 1.0 if pbr is None or pbr.metallicFactor is None else pbr.metallicFactor
        roughness = 1.0 if pbr is None or pbr.roughnessFactor is None else pbr.roughnessFactor
        emission = material.emissiveFactor or [0.0] * 3
        texture = pbr.baseColorTexture if pbr else None
        numbers = _numbers([*base[:3], metallic, roughness, specular, *emission[:3], strength], 10, "material factors")
        red, green, blue, metallic, roughness, specular = (min(max(v, 0.0), 1.0) for v in numbers[:6])
        shine = [max(v, 0.0) * max(numbers[9], 0.0) for v in numbers[6:9]]
        if max(shine) > 1e8:
            raise BadScene(f"emission {max(shine):.3g} exceeds 1e+08")
        return Material(
            (red, green, blue), metallic, roughness, specular, (shine[0], shine[1], shine[2]),
            -1 if texture is None else shown[texture.index], bool(material.doubleSided),
        )  # fmt: skip

    def _camera(self, index: object, matrix: np.ndarray) -> Camera | None:
        camera = _at(self.document.cameras, index, "camera")
        if camera.perspective is None or camera.perspective.yfov is None:
            return None
        fov = math.degrees(_numbers([camera.perspective.yfov], 1, "camera yfov")[0])
        if not 0 < fov < 179:
            raise BadScene(f"camera {index} has a vertical field of view of {fov:.3g} degrees, not 0 to 179")
        position, forward, up = matrix[:3, 3], -matrix[:3, 2], matrix[:3, 1]
        return Camera(_point(position), _point(position + forward), _point(up), fov)

    def _aimed(self, camera: Camera | None, mesh: Mesh) -> Camera:
        """The file's camera with the scene's depth as its target's distance; without one, a view of it all."""
        low, high = mesh.positions.min(axis=(0, 1)).astype(float), mesh.positions.max(axis=(0, 1)).astype(float)
        centre, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-9)
        if camera is None:
            position = centre + np.array([0.45, 0.35, 1.0]) * radius * 2.6
            return Camera(_point(position), _point(centre), fov_degrees=40.0)
        position = np.array(camera.position)
        forward = np.array(camera.target) - position
        length = float(np.linalg.norm(forward))
        if not length > 0 or not np.linalg.norm(np.cross(forward, camera.up)) > 0:
            raise BadScene("the camera's transform has no direction")
        distance = max(float((centre - position) @ forward) / length, 0.1 * radius)
        return Camera(camera.position, _point(position + forward / length * distance), camera.up, camera.fov_degrees)


def _point(v: np.ndarray) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])


def _numbers(values: object, count: int, what: str) -> list[float]:
    """Finite numbers, or BadScene."""
    if isinstance(values, list) and len(values) == count and all(isinstance(v, int | float) for v in values):
        try:
            found = [float(v) for v in values]
        except OverflowError:
            found = [math.inf]
        if all(map(math.isfinite, found)):
            return found
    raise BadScene(f"{what}: {str(values)[:80]} must be {count} finite numbers")


def _local_matrix(node: Any, index: int) -> np.ndarray:
    """A node's own transform (section 3.5.3): a column-major matrix, or translation * rotation * scale."""
    if node.matrix is not None:
        return np.array(_numbers(node.matrix, 16, f"matrix of node {index}")).reshape(4, 4).T
    t = _numbers(node.translation or [0, 0, 0], 3, f"translation of node {index}")
    x, y, z, w = _numbers(node.rotation or [0, 0, 0, 1], 4, f"rotation of node {index}")
    scale = _numbers(node.scale or [1, 1, 1], 3, f"scale of node {index}")
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(
        [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    ) * scale  # fmt: skip
    matrix[:3, 3] = t
    return matrix
