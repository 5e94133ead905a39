"""BLAKE3 on the device, many messages at once. Section numbers are those of the BLAKE3 paper
(https://github.com/BLAKE3-team/BLAKE3-specs/blob/master/blake3.pdf).

Words are uint32, little-endian as in memory. Arrays put the word first and the *lane* (one independent
message, chunk or output block) last, so that every operation is a vector operation over lanes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19],
    np.uint32,
)
PERMUTATION = np.array([2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8])  # table 2
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED_HASH = 1, 2, 4, 8, 16  # table 3
ROUNDS = 7
BLOCK_BYTES, BLOCK_WORDS, BLOCKS_PER_CHUNK = 64, 16, 16
CHUNK_WORDS = BLOCK_WORDS * BLOCKS_PER_CHUNK


def _schedule() -> list[np.ndarray]:
    order = [np.arange(16)]
    while len(order) < ROUNDS:
        order.append(order[-1][PERMUTATION])
    return order


SCHEDULE = _schedule()


def _rotate_right(x: Array, bits: int) -> Array:
    return (x >> bits) | (x << (32 - bits))


def _mix(a: Array, b: Array, c: Array, d: Array, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """The function G of section 2.2 on four columns (or diagonals) together: each argument is (4, lanes)."""
    a = a + b + x
    d = _rotate_right(d ^ a, 16)
    c = c + d
    b = _rotate_right(b ^ c, 12)
    a = a + b + y
    d = _rotate_right(d ^ a, 8)
    c = c + d
    b = _rotate_right(b ^ c, 7)
    return a, b, c, d


def _roll(rows: Array, by: int) -> Array:
    return jnp.concatenate([rows[by:], rows[:by]])


def _round(state: Array, message: Array) -> Array:
    a, b, c, d = state[0:4], state[4:8], state[8:12], state[12:16]
    a, b, c, d = _mix(a, b, c, d, message[0:8:2], message[1:8:2])
    b, c, d = _roll(b, 1), _roll(c, 2), _roll(d, 3)  # diagonals become columns
    a, b, c, d = _mix(a, b, c, d, message[8:16:2], message[9:16:2])
    return jnp.concatenate([a, _roll(b, 3), _roll(c, 2), _roll(d, 1)])


def compress(chaining: Array, block: Array, counter: Array, block_bytes: int, flags: Array | int) -> Array:
    """The compression function of section 2.2, with its full 16-word output.

    chaining (8, lanes) uint32; block (16, lanes) uint32; counter () or (lanes,) uint32, its upper half being 0
    (a message of 4 TiB is not hashed here); flags () uint32. Returns (16, lanes) uint32: words 0..7 are the
    next chaining value, all 16 one block of extended output.
    """
    lanes = chaining.shape[-1]

    def row(word: Array | int) -> Array:
        return jnp.broadcast_to(jnp.asarray(word, jnp.uint32), (1, lanes))

    constants = jnp.broadcast_to(jnp.asarray(IV[:4])[:, None], (4, lanes))
    state = jnp.concatenate([chaining, constants, row(counter), row(0), row(block_bytes), row(flags)])
    for order in SCHEDULE:
        # One fusion per round: XLA's CPU backend re-derives shared operands inside a fusion, so that several
        # rounds fused into one take time exponential in their number to compile.
        state = lax.optimization_barrier(_round(state, block[order]))  # type: ignore[no-untyped-call]
    return jnp.concatenate([state[:8] ^ state[8:], state[8:] ^ chaining])


def _chunk_values(blocks: Array, chunk_index: Array, only: bool) -> Array:
    """Chaining values of whole chunks (section 2.4): blocks (16 steps, 16 words, lanes) -> (8, lanes).

    chunk_index (lanes,) uint32. `only`: the message is this one chunk, so its last block is the root.
    """
    flags = np.zeros(BLOCKS_PER_CHUNK, np.uint32)
    flags[0] |= CHUNK_START
    flags[-1] |= CHUNK_END | (ROOT if only else 0)
    start = jnp.broadcast_to(jnp.asarray(IV)[:, None], (8, blocks.shape[-1]))

    def step(chaining: Array, this: tuple[Array, Array]) -> tuple[Array, None]:
        block, flag = this
        return compress(chaining, block, chunk_index, BLOCK_BYTES, flag)[:8], None

    # A scan, because sixteen unrolled compressions do not compile in bearable time.
    return lax.scan(step, start, (blocks, jnp.asarray(flags)))[0]


def _join_chunks(values: Array) -> Array:
    """The tree of section 2.5 over chunk values (8, chunks, messages) -> root (8, messages).

    The left subtree holds the largest power of two of chunks below all, which is the same as joining pairs and
    letting a last one without a partner move up.
    """
    key = jnp.asarray(IV)[:, None]
    while (chunks := values.shape[1]) > 1:
        messages = values.shape[2]
        pairs = chunks // 2
        left, right = values[:, 0 : 2 * pairs : 2], values[:, 1 : 2 * pairs : 2]
        block = jnp.concatenate([left, right]).reshape(16, pairs * messages)
        flags = PARENT | (ROOT if chunks == 2 else 0)
        chaining = jnp.broadcast_to(key, (8, pairs * messages))
        joined = compress(chaining, block, jnp.uint32(0), BLOCK_BYTES, flags)[:8].reshape(8, pairs, messages)
        values = jnp.concatenate([joined, values[:, 2 * pairs :]], axis=1)
    return values[:, 0]


def digests_of_blocks(blocks: Array) -> Array:
    """BLAKE3 of messages of whole chunks.

    blocks (16 steps, 16 words, chunks, messages) uint32: word w of block s of chunk c of message m at
    [s, w, c, m]. Returns (8, messages) uint32, whose little-endian bytes are the digests.
    """
    chunks, messages = blocks.shape[2:]
    index = jnp.repeat(jnp.arange(chunks, dtype=jnp.uint32), messages)
    values = _chunk_values(blocks.reshape(16, 16, chunks * messages), index, chunks == 1)
    return _join_chunks(values.reshape(8, chunks, messages))


def digests(words: Array) -> Array:
    """BLAKE3 of each row: words (messages, 256 * chunks) uint32 -> (messages, 8) uint32."""
    messages, length = words.shape
    if length == 0 or length % CHUNK_WORDS:
        raise ValueError(f"a message has a multiple of {CHUNK_WORDS} words, not {length}")
    blocks = words.reshape(messages, length // CHUNK_WORDS, BLOCKS_PER_CHUNK, BLOCK_WORDS)
    return digests_of_blocks(blocks.transpose(2, 3, 1, 0)).T


def tile_digests(band: Array, tile: int = 32) -> Array:
    """BLAKE3 of each tile of a band of rows, each tile's entries row-major and little-endian.

    band (rows, columns) int32, both multiples of `tile`; a tile row must divide a chunk's 1,024 bytes into
    whole 64-byte blocks and a tile be whole chunks (tile 16, 32, 64 or 128). Returns
    (rows / tile, columns / tile, 8) uint32.
    """
    rows, columns = band.shape
    if tile not in (16, 32, 64, 128) or rows % tile or columns % tile:
        raise ValueError(f"a band of {rows} x {columns} is not made of tiles of {tile}")
    down, across = rows // tile, columns // tile
    chunks, lines, pieces = tile * tile // CHUNK_WORDS, CHUNK_WORDS // tile, tile // BLOCK_WORDS
    words = lax.bitcast_convert_type(band, jnp.uint32)
    split = words.reshape(down, chunks, lines, across, pieces, BLOCK_WORDS)
    blocks = split.transpose(2, 4, 5, 1, 0, 3).reshape(16, 16, chunks, down * across)
    return digests_of_blocks(blocks).T.reshape(down, across, 8)


def keyed_stream(key: Array, label: int, first_block: Array | int, blocks: int) -> Array:
    """Part of the extended output (section 2.6) of keyed BLAKE3 of the message `u32 label`, little-endian.

    key (8,) uint32; first_block () uint32. Returns (64 * blocks,) int8, the bytes
    `blake3(pack("<I", label), key=key).digest(64 * blocks, seek=64 * first_block)`. The message is one block, so
    output block t is one compression with counter t: all are made in parallel, and any part alone. The stream
    is used below 2**38 bytes, where the counter's upper half is zero.
    """
    counter = jnp.uint32(first_block) + jnp.arange(blocks, dtype=jnp.uint32)
    message = jnp.zeros((16, blocks), jnp.uint32).at[0].set(label)
    chaining = jnp.broadcast_to(key[:, None], (8, blocks))
    out = compress(chaining, message, counter, 4, CHUNK_START | CHUNK_END | ROOT | KEYED_HASH)
    return lax.bitcast_convert_type(out.T, jnp.int8).reshape(BLOCK_BYTES * blocks)


def key_words(key: bytes) -> np.ndarray:
    """A 32-byte key as the (8,) uint32 words that `keyed_stream` takes."""
    if len(key) != 32:
        raise ValueError(f"a BLAKE3 key has 32 bytes, not {len(key)}")
    return np.frombuffer(key, "<u4").astype(np.uint32)


def digest_bytes(words: jax.Array | np.ndarray) -> bytes:
    """Digests (..., 8) uint32 as bytes, 32 each, in order."""
    return np.asarray(words).astype("<u4", copy=False).tobytes()
