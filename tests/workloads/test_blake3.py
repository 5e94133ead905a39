"""The device's BLAKE3 is BLAKE3, and its matrices are the verifier's."""

import struct

import jax
import numpy as np
import pytest
from blake3 import blake3

from computemesh.kernels import blake3 as kernel
from computemesh.kernels import matmul
from computemesh.workloads import synthetic

KEY = bytes(range(32))


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 7, 64])
def test_device_digests_equal_the_blake3_package(chunks):
    words = np.random.default_rng(chunks).integers(0, 2**32, (3, 256 * chunks), dtype=np.uint32)
    found = kernel.digest_bytes(jax.jit(kernel.digests)(words))
    assert found == b"".join(blake3(row.astype("<u4").tobytes()).digest() for row in words)


@pytest.mark.parametrize("words", [0, 255, 300])
def test_a_message_of_broken_chunks_is_refused(words):
    with pytest.raises(ValueError, match="multiple of 256 words"):
        kernel.digests(np.zeros((1, words), np.uint32))


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_tile_digests_are_of_row_major_little_endian_tiles(tile):
    rng = np.random.default_rng(tile)
    band = rng.integers(-(2**31), 2**31, (2 * tile, 3 * tile), dtype=np.int32)
    found = np.asarray(jax.jit(kernel.tile_digests, static_argnums=1)(band, tile))
    for down in range(2):
        for across in range(3):
            part = band[down * tile : (down + 1) * tile, across * tile : (across + 1) * tile]
            expected = blake3(part.astype("<i4").tobytes()).digest()
            assert kernel.digest_bytes(found[down, across]) == expected


@pytest.mark.parametrize(("rows", "columns", "tile"), [(33, 32, 32), (32, 40, 32), (32, 32, 8)])
def test_a_band_that_is_not_made_of_tiles_is_refused(rows, columns, tile):
    with pytest.raises(ValueError, match="not made of tiles"):
        kernel.tile_digests(np.zeros((rows, columns), np.int32), tile)


@pytest.mark.parametrize(("label", "first", "blocks"), [(0, 0, 1), (1, 0, 17), (1, 5, 3), (0, 2**31 + 3, 2)])
def test_the_device_stream_is_keyed_extended_output(label, first, blocks):
    stream = jax.jit(kernel.keyed_stream, static_argnums=(1, 3))
    found = np.asarray(stream(kernel.key_words(KEY), label, np.uint32(first), blocks))
    assert found.dtype == np.int8
    expected = blake3(struct.pack("<I", label), key=KEY).digest(length=64 * blocks, seek=64 * first)
    assert found.tobytes() == expected


@pytest.mark.parametrize("size", [32, 96])
def test_any_band_the_verifier_makes_alone_is_that_band_of_the_devices_matrix(size):
    words = kernel.key_words(KEY)
    blocks = size * size // 64
    for label, wire in ((matmul.LEFT, synthetic.LEFT), (matmul.RIGHT, synthetic.RIGHT)):
        whole = np.asarray(kernel.keyed_stream(words, label, 0, blocks)).reshape(size, size)
        for position in range(size // 32):
            band = synthetic.generate_band(KEY, wire, position, size)
            assert np.array_equal(band, whole[32 * position : 32 * position + 32])


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        kernel.key_words(KEY[:31])
