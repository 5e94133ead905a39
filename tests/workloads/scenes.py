"""Files for the rendering tests."""

import json
import struct

import numpy as np


def glb(document, binary=b"", **header):
    """A .glb of a JSON document and its binary chunk; `header` overrides version or length."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", header.get("version", 2), header.get("length", 12 + len(chunks))) + chunks


def triangle(**changes):
    """(document, binary) of one triangle with indices; `changes` are made by path, as `accessors__0__count=5`."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4")
    indices = np.array([0, 1, 2], "<u2")
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": 42}],
    }
    for path, value in changes.items():
        *way, last = [int(key) if key.isdigit() else key for key in path.split("__")]
        at = document
        for key in way:
            at = at[key]
        at[last] = value
    return document, positions.tobytes() + indices.tobytes()
