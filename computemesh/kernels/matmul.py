"""Exact int8 products, made and digested in bands so that memory stays near one operand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from computemesh.kernels.blake3 import BLOCK_BYTES, keyed_stream, tile_digests

TILE = 32
MAX_INNER = 2**31 // (128 * 128) - 1
"""Longest inner dimension whose int32 sum cannot overflow: K * 128 * 128 < 2**31."""

LEFT, RIGHT = 0, 1
"""Labels of the generated streams: A by rows, B by columns."""

BAND_ENTRIES = {"cpu": 2**19}
"""Entries of the product held at once. A CPU's band must stay in its cache, other devices want few launches."""
DEFAULT_BAND_ENTRIES = 2**24


def exact_matmul(left: Array, right_columns: Array) -> Array:
    """left (m, K) int8, right_columns (n, K) int8 -> left @ right_columns.T, (m, n) int32, exact.

    Signed int8 only, and K at most `MAX_INNER`: beyond it GPUs saturate where CPUs wrap, so that two honest
    workers would disagree. Raises ValueError. (On CPU this jaxlib's int8 dot takes 0.22 CPU s at 2048 with
    AVX-512 VNNI, float32 in exact pieces of 1,024 takes 0.26: nothing is gained by leaving the integers.)
    """
    if left.dtype != jnp.int8 or right_columns.dtype != jnp.int8:
        raise ValueError(f"operands are int8, not {left.dtype} and {right_columns.dtype}")
    if left.shape[1] > MAX_INNER:
        raise ValueError(f"inner dimension {left.shape[1]} exceeds {MAX_INNER}: int32 could overflow")
    return lax.dot_general(left, right_columns, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def band_rows(size: int, platform: str) -> int:
    """Rows per band for a product of this size: a multiple of the tile, bands as even as they get."""
    target = max(TILE, BAND_ENTRIES.get(platform, DEFAULT_BAND_ENTRIES) // size)
    bands = -(-size // target)
    return -(-size // (bands * TILE)) * TILE


@partial(jax.jit, static_argnames=("size", "band"))
def product_digests(key: Array, *, size: int, band: int) -> Array:
    """Digests of the 32x32 tiles of A @ B, both generated from `key`.

    key (8,) uint32; A is keyed_stream(key, LEFT) row after row, B is keyed_stream(key, RIGHT) column after
    column, `size` int8 entries each; `band` rows, a multiple of the tile, are worked on at once. Returns
    (tiles, 8) uint32, tiles numbered row-major. Neither A nor the product ever exists whole: B does (size**2
    bytes), the rest is one band. Compiled once per (size, band).
    """
    bands = -(-size // band)
    blocks = band * size // BLOCK_BYTES  # whole, since band and size are multiples of 32
    starts = jnp.arange(bands, dtype=jnp.uint32) * blocks

    def generate(label: int, start: Array) -> Array:
        return keyed_stream(key, label, start, blocks).reshape(band, size)

    columns = lax.map(partial(generate, RIGHT), starts).reshape(bands * band, size)[:size]

    def digest_band(start: Array) -> Array:
        return tile_digests(exact_matmul(generate(LEFT, start), columns), TILE)

    # The last band may reach past the matrix; those rows are generated like any and dropped here.
    found: Array = lax.map(digest_band, starts).reshape(-1, size // TILE, 8)
    return found[: size // TILE].reshape(-1, 8)
