"""Products are exact at the edges of int8, on the device and in the verifier."""

import jax
import numpy as np
import pytest
from blake3 import blake3

from computemesh.kernels import blake3 as kernel
from computemesh.kernels import matmul
from computemesh.workloads import synthetic


def exact(left, right):
    return left.astype(np.int64) @ right.astype(np.int64).T


@pytest.mark.parametrize("inner", [32, 1024, 16_384, 131_040])
@pytest.mark.parametrize(("a", "b"), [(-128, -128), (-128, 127), (127, 127)])
def test_int8_extremes_are_exact_up_to_the_longest_sum(inner, a, b):
    left, right = np.full((32, inner), a, np.int8), np.full((32, inner), b, np.int8)
    left[3, ::2], right[5, ::3] = 127, -1
    found = np.asarray(jax.jit(matmul.exact_matmul)(left, right))
    assert found.dtype == np.int32
    assert np.array_equal(found, exact(left, right))
    assert np.array_equal(synthetic.multiply_tile(left.astype(np.float32), right.astype(np.float32)), found)


@pytest.mark.parametrize("inner", [96, 1056, 4096])
def test_random_products_equal_int64(inner):
    left, right = np.random.default_rng(inner).integers(-128, 128, (2, 32, inner), dtype=np.int8)
    found = np.asarray(jax.jit(matmul.exact_matmul)(left, right))
    assert np.array_equal(found, exact(left, right))
    assert np.array_equal(synthetic.multiply_tile(left.astype(np.float32), right.astype(np.float32)), found)


def test_a_sum_that_could_overflow_is_refused():
    wide = np.zeros((1, matmul.MAX_INNER + 1), np.int8)
    with pytest.raises(ValueError, match="could overflow"):
        matmul.exact_matmul(wide, wide)
    assert (matmul.MAX_INNER + 1) * 128 * 128 == 2**31
    assert synthetic.MAX_SIZE <= matmul.MAX_INNER


def test_only_signed_int8_is_multiplied():
    signed, unsigned = np.zeros((1, 4), np.int8), np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match="int8"):
        matmul.exact_matmul(signed, unsigned)


@pytest.mark.parametrize("size", [32, 96, 544, 2048, 4096, 16_288, 16_384])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_bands_cover_the_matrix_and_waste_less_than_a_tile_each(size, platform):
    band = matmul.band_rows(size, platform)
    bands = -(-size // band)
    assert band % matmul.TILE == 0
    assert size <= bands * band < size + bands * matmul.TILE
    assert band * size <= max(matmul.TILE * size, matmul.BAND_ENTRIES.get(platform, matmul.DEFAULT_BAND_ENTRIES))


@pytest.mark.parametrize("band", [32, 96, 160])
def test_digests_do_not_depend_on_the_bands(band):
    size, key = 160, bytes(range(32))
    found = kernel.digest_bytes(matmul.product_digests(kernel.key_words(key), size=size, band=band))
    left, right = (
        np.frombuffer(blake3(label, key=key).digest(size * size), np.int8).reshape(size, size)
        for label in (synthetic.LEFT, synthetic.RIGHT)
    )
    product = exact(left, right).astype("<i4")
    tiles = (product[r : r + 32, c : c + 32] for r in range(0, size, 32) for c in range(0, size, 32))
    assert found == b"".join(blake3(tile.tobytes()).digest() for tile in tiles)


def test_a_size_is_compiled_once():
    for seed in range(3):
        matmul.product_digests(kernel.key_words(bytes([seed]) * 32), size=64, band=64)
        if seed == 0:
            compiled = matmul.product_digests._cache_size()
    assert matmul.product_digests._cache_size() == compiled
