"""Counter-based Gumbel noise in integers: the same bits on every device, any token's noise computable alone.

Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives uniform words; a logarithm
by table makes them standard Gumbel variables g = -ln(-ln(1 - v)), v = (word | 1) / 2^32, as int32 in units of 2^-16:

    prompt key      = threefry(seed key, (prompt, 2^32 - 1))
    word of token i = threefry(prompt key, (i mod h, position))[i div h],   h = half the vocabulary, rounded up

Tables hold 257 correctly rounded values (`decimal`), interpolated linearly; |error| < 10^-4.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32

FRACTION = 16
_LN2 = 11629080  # ln 2 in units of 2^-24
_WORD_LN = 32 * _LN2


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """ln(1 + i/256), and ln(-ln(1 - v) / v) at v = i/512, i = 0..256, in units of 2^-24."""
    with localcontext() as context:
        context.prec = 40
        one, scale = Decimal(1), Decimal(2**24)
        logs = [(one + Decimal(i) / 256).ln() * scale for i in range(257)]
        ratios = [(-(one - v).ln() / v).ln() * scale for v in (Decimal(i) / 512 for i in range(1, 257))]
        rounded = [[int(x.to_integral_value()) for x in table] for table in (logs, [Decimal(0), *ratios])]
    return np.array(rounded[0], np.int32), np.array(rounded[1], np.int32)


def _interpolate(table: np.ndarray, at: Array, bits: int) -> Array:
    """table (257,) int32 at `at` / 2^bits, at uint32 < 2^(bits + 8); differences stay below 2^17."""
    index = (at >> bits).astype(jnp.int32)
    # One gather of value and slope: two are twice the time, and this runs for every token of the vocabulary.
    pairs = jnp.asarray(np.stack([table[:-1], np.diff(table)], axis=1))[index]
    fraction = ((at & np.uint32((1 << bits) - 1)) >> (bits - 14)).astype(jnp.int32)
    return pairs[..., 0] + ((pairs[..., 1] * fraction) >> 14)


def _log(word: Array) -> Array:
    """ln of a uint32 >= 1 in units of 2^-24, int32."""
    zeros = lax.clz(word)
    mantissa = word << zeros
    top = np.uint32(2**31)
    return (31 - zeros.astype(jnp.int32)) * _LN2 + _interpolate(_tables()[0], mantissa & ~top, 23)


def gumbel_of(words: Array) -> Array:
    """Uniform uint32 words to standard Gumbel variables, int32 in units of 2^-16."""
    word = words | np.uint32(1)
    # Where v < 1/2, -ln(1 - v) = v * ratio(v): no precision is lost in the tail that wins. Above, it is at least ln 2.
    low = _WORD_LN - _log(word) - _interpolate(_tables()[1], jnp.minimum(word, np.uint32(2**31 - 1)), 23)
    exponential = _WORD_LN - _log(np.uint32(0) - word)
    high = 24 * _LN2 - _log(jnp.maximum(exponential, 1).astype(jnp.uint32))
    return (jnp.where(word < np.uint32(2**31), low, high) + 128) >> 8


def _threefry(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """key (2,) uint32, counters of one shape (n,) -> two words each, (n,) uint32."""
    out = threefry_2x32(key, jnp.concatenate([first, second]))
    return out[: first.shape[0]], out[first.shape[0] :]


def gumbel(key: Array, prompts: Array, positions: Array, vocabulary: int) -> Array:
    """Noise rows: key (2,), prompts (n,), positions (n,), all uint32 -> (n, vocabulary) int32, units of 2^-16."""
    half = (vocabulary + 1) // 2

    def row(prompt: Array, position: Array) -> Array:
        of_prompt = jnp.concatenate(_threefry(key, prompt[None], jnp.full((1,), 2**32 - 1, jnp.uint32)))
        index = jnp.arange(half, dtype=jnp.uint32)
        return jnp.concatenate(_threefry(of_prompt, index, jnp.broadcast_to(position, (half,))))[:vocabulary]

    return gumbel_of(jax.vmap(row)(prompts, positions))
