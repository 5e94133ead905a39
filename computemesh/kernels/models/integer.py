"""The integer arithmetic of the class `exact`. Same operations, by name, as `floating`.

Activations are int32 in units of 2^-16. A product's left side is quantized row by row to int8 (x ~ q * m * 2^e / 128,
m of 15 bits), weights are int8 with one multiplier per output row, sums are int32; everything else is int32 and int64
with stated bounds. Each row depends on itself alone, so results do not depend on batch, padding, device, or on
whether keys come from a cache. Functions are tables (`integer_tables`). Needs 64-bit types (`jax.enable_x64`).

Bounds, in bits: int8 sums over at most 2^14 terms have 28, weight multipliers 18, row multipliers 15: 61 in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from computemesh.kernels.models.folder import bad
from computemesh.kernels.models.integer_tables import (
    FUNCTIONS,
    ROTATION_BITS,
    function_table,
    log_table,
    power_table,
    rotation_table,
)

EXACT = True
ONE = 1 << 16
MAX_INNER = 2**14
LIMIT = 2**30  # activations saturate here, at +-16,384
LOG2_E = 94548  # log2(e) in units of 2^-16
LN2 = 11629080  # ln 2 in units of 2^-24


class Matrix(NamedTuple):
    """weight (out, in) int8, multiplier (out,) int32, shift () int32: a row's real factor is multiplier / 2^shift."""

    weight: Array
    multiplier: Array
    shift: Array
    bias: Array | None


class Packed(NamedTuple):
    """Rows quantized to int8: values (..., n), mantissa and exponent (...)."""

    values: Array
    mantissa: Array
    exponent: Array


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(np.asarray(values, np.float64) * ONE), -LIMIT, LIMIT).astype(np.int32)


def matrix(weight: np.ndarray, bias: np.ndarray | None = None) -> Matrix:
    """Quantize a float32 matrix; division and rounding of IEEE 754, so equal everywhere. Raises InvalidArgument."""
    if weight.shape[1] > MAX_INNER:
        raise bad(f"a matrix sums over {weight.shape[1]:,} inputs; precision 'exact' takes at most {MAX_INNER:,}")
    largest = np.abs(weight).max(1).astype(np.float64)
    scale = np.where(largest > 0, largest, 1.0) / 127
    exponent = int(np.frexp(scale.max())[1])
    shift = 18 - exponent
    if not 12 < shift < 50:
        raise bad(f"a matrix has entries up to {largest.max():.3g}: too large or too small for precision 'exact'")
    quantized = np.rint(weight / scale[:, None]).astype(np.int8)
    multiplier = np.minimum(np.rint(np.ldexp(scale, shift)), 2**18 - 1).astype(np.int32)
    fixed_bias = None if bias is None else jnp.asarray(_fixed(bias))
    return Matrix(jnp.asarray(quantized), jnp.asarray(multiplier), jnp.int32(shift), fixed_bias)


def tied(table: np.ndarray) -> tuple[Array, Matrix]:
    return vector(table), matrix(table)


def vector(values: np.ndarray) -> Array:
    return jnp.asarray(_fixed(values))


def constant(value: float) -> int:
    return round(value * 2**20)


def rotation(inverse_frequencies: list[str], positions: int, scale: float = 1.0) -> tuple[Array, Array]:
    if scale != 1.0:
        raise bad("scaled rotary embeddings are not known to precision 'exact'")
    cos, sin = rotation_table(inverse_frequencies, positions)
    return jnp.asarray(cos), jnp.asarray(sin)


def stacked(layers: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


def zipped(layers: Any, others: Any) -> Any:
    return layers, others


def over_layers(block: Callable[..., Any], x: Array, layers: Any, kept: Any) -> tuple[Array, Any]:
    """As `floating.over_layers`, as one loop: these operations compile slowly, and int8 weights are quickly copied."""

    def body(x: Array, of_layer: Any) -> tuple[Array, Any]:
        return block(x, *of_layer)

    return lax.scan(body, x, (layers, kept))


def _wide(x: Array) -> Array:
    return x.astype(jnp.int64)


def _narrow(x: Array) -> Array:
    return jnp.clip(x, -LIMIT, LIMIT).astype(jnp.int32)


def _shifted(x: Array, bits: Array | int) -> Array:
    """x / 2^bits, rounded; int64, bits >= 1."""
    amount = jnp.asarray(bits, jnp.int64)
    return (x + (jnp.int64(1) << (amount - 1))) >> amount


def _bits(x: Array) -> Array:
    """Bits of a non-negative int64."""
    return 64 - lax.clz(x)


def pack(x: Array) -> Packed:
    """Quantize rows: x (..., n) int32. The factor is the row's largest entry, a little rounded up."""
    largest = jnp.maximum(jnp.max(jnp.abs(x), -1), 1)
    exponent = jnp.maximum(32 - lax.clz(largest) - 15, 0)
    mantissa = (largest >> exponent) + 1
    inverse = (jnp.int64(1) << 47) // (_wide(mantissa) << _wide(exponent))
    values = (_wide(x) * inverse[..., None] + (1 << 39)) >> 40
    return Packed(jnp.clip(values, -127, 127).astype(jnp.int8), mantissa, exponent)


def linear(x: Array, m: Matrix) -> Array:
    """x (..., in) -> (..., out)."""
    rows = pack(x)
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    total = lax.dot_general(rows.values, m.weight, dims, preferred_element_type=jnp.int32)
    product = _wide(total) * _wide(m.multiplier) * _wide(rows.mantissa)[..., None]
    y = _shifted(product, jnp.maximum(_wide(m.shift) + 7 - _wide(rows.exponent)[..., None], 1))
    return _narrow(y if m.bias is None else y + m.bias)


def add(a: Array, b: Array) -> Array:
    return _narrow(_wide(a) + b)


def multiply(a: Array, b: Array) -> Array:
    return _narrow(_shifted(_wide(a) * b, 16))


def scaled(x: Array, factor: int) -> Array:
    return _narrow(_shifted(_wide(x) * factor, 20))


def _root(square: Array) -> Array:
    """floor(sqrt(x)) of an int64 below 2^62, bit by bit."""

    def bit(i: Array, found: Array) -> Array:
        tried = found | (jnp.int64(1) << (30 - i))
        return jnp.where(tried * tried <= square, tried, found)

    return lax.fori_loop(jnp.int64(0), jnp.int64(31), bit, jnp.zeros_like(square))


def _normalised(x: Array, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon), x int64 -> int64 in units of 2^-16. Rows are first shifted to 24 bits."""
    shift = jnp.clip(_bits(jnp.max(jnp.abs(x), -1, keepdims=True)) - 24, -12, 40)
    right, left = jnp.maximum(shift, 0), jnp.maximum(-shift, 0)
    rows = (x >> right) << left
    mean = jnp.sum(rows * rows, -1, keepdims=True) // x.shape[-1]
    floor = jnp.int64(round(epsilon * 2**32)) << (2 * left) >> (2 * right)
    root = jnp.maximum(_root(jnp.minimum((mean + floor) << 12, 2**62 - 1)), 1)
    return (rows << 22) // root


def layer_norm(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    wide = _wide(x)
    centred = wide - jnp.sum(wide, -1, keepdims=True) // x.shape[-1]
    return _narrow(_shifted(_normalised(centred, epsilon) * gain, 16) + bias)


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return _narrow(_shifted(_normalised(_wide(x), epsilon) * gain, 16))


def _tabled(x: Array, name: str) -> Array:
    _, end, steps = FUNCTIONS[name]
    values = function_table(name)
    bits = 16 - (steps.bit_length() - 1)
    at = jnp.clip(x, -end * ONE, end * ONE - 1) + end * ONE
    pairs = jnp.asarray(np.stack([values[:-1], np.diff(values)], axis=1))[at >> bits]
    inside = pairs[..., 0] + ((pairs[..., 1] * (at & ((1 << bits) - 1)) + (1 << (bits - 1))) >> bits)
    beyond = jnp.where(x > 0, ONE if name == "tanh" else x, -ONE if name == "tanh" else 0)
    return jnp.where(jnp.abs(x) < end * ONE, inside, beyond).astype(jnp.int32)


def gelu(x: Array) -> Array:
    return _tabled(x, "gelu")


def gelu_tanh(x: Array) -> Array:
    return _tabled(x, "gelu_tanh")


def silu(x: Array) -> Array:
    return _tabled(x, "silu")


def tanh(x: Array) -> Array:
    return _tabled(x, "tanh")


def relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    a, b = jnp.split(_wide(x), 2, -1)
    c, s = _wide(cos)[..., None, :], _wide(sin)[..., None, :]
    turned = jnp.concatenate([a * c - b * s, b * c + a * s], -1)
    return _narrow(_shifted(turned, ROTATION_BITS))


def _power(distance: Array) -> Array:
    """e^-distance in units of 2^-20; distance int64 >= 0 in units of 2^-16."""
    exponent = (distance * LOG2_E) >> 16
    table = power_table()
    pairs = jnp.asarray(np.stack([table[:-1], np.diff(table)], axis=1))[(exponent >> 8) & 255]
    fraction = (exponent & 255).astype(jnp.int32)
    value = pairs[..., 0] + ((pairs[..., 1] * fraction) >> 8)
    return _wide(value) >> jnp.minimum(exponent >> 16, 31)


def _scores(q: Array, keys: Packed, scale: int) -> Array:
    """q (b, t, g, n, d) int32, keys (b, s, g, d) -> (b, g, n, t, s) int64 in units of 2^-16."""
    left = pack(q)
    total = jnp.einsum("btgnd,bsgd->bgnts", left.values, keys.values, preferred_element_type=jnp.int32)
    lm, le = (_wide(jnp.transpose(part, (0, 2, 3, 1)))[..., None] for part in (left.mantissa, left.exponent))
    km, ke = (_wide(jnp.transpose(part, (0, 2, 1)))[:, :, None, None] for part in (keys.mantissa, keys.exponent))
    return _shifted(_shifted(_wide(total) * lm * km, 14) * scale, 36 - le - ke)


def attend(q: Array, keys: Packed, values: Packed, mask: Array, scale: int, bias: Array | None = None) -> Array:
    """As `floating.attend`. Softmax weights times the values' row factors are quantized to 14 bits, two int8 digits."""
    b, t, h, d = q.shape
    g = keys.values.shape[2]
    scores = _scores(q.reshape(b, t, g, h // g, d), keys, scale)
    if bias is not None:
        scores = scores + bias.reshape(1, g, h // g, *bias.shape[1:])
    seen = mask[:, None, None]
    scores = jnp.where(seen, jnp.clip(scores, -LIMIT, LIMIT), -2 * LIMIT)
    power = jnp.where(seen, _power(jnp.max(scores, -1, keepdims=True) - scores), 0)
    total = jnp.maximum(jnp.sum(power, -1), 1)
    factor = _wide(values.mantissa) << _wide(values.exponent)
    weights = power * jnp.transpose(factor, (0, 2, 1))[:, :, None, None]
    largest = jnp.max(weights, -1)
    drop = jnp.maximum(_bits(largest) - 30, 0)
    top = (largest >> drop) + 1
    inverse = (jnp.int64(1) << 46) // top
    digits = jnp.minimum(((weights >> drop[..., None]) * inverse[..., None] + (1 << 31)) >> 32, 2**14 - 1)
    high, low = (digits >> 7).astype(jnp.int8), (digits & 127).astype(jnp.int8)
    summed = [
        jnp.einsum("bgnts,bsgd->bgntd", part, values.values, preferred_element_type=jnp.int32) for part in (high, low)
    ]
    mixed = (_wide(summed[0]) << 7) + summed[1]
    ratio = ((top << drop) << 10) // total
    cut = jnp.maximum(_bits(ratio) - 15, 0)
    out = _shifted(mixed * (ratio >> cut)[..., None], (31 - cut)[..., None])
    return _narrow(jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(b, t, h * d))


def mean_rows(x: Array, mask: Array) -> Array:
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1).astype(jnp.int64)
    return _narrow(jnp.sum(jnp.where(mask[..., None], _wide(x), 0), 1) // count)


def unit_length(x: Array) -> Array:
    """Rows of Euclidean length 1, in units of 2^-24 so that float32 holds them exactly (`outputs` divides by 2^8)."""
    wide = _wide(x)
    shift = jnp.clip(_bits(jnp.max(jnp.abs(wide), -1, keepdims=True)) - 23, -16, 40)
    rows = (wide >> jnp.maximum(shift, 0)) << jnp.maximum(-shift, 0)
    root = jnp.maximum(_root(jnp.sum(rows * rows, -1, keepdims=True)), 1)
    return ((rows << 24) // root).astype(jnp.int32)


def probabilities(x: Array) -> Array:
    """Softmax over the last axis as float32 multiples of 2^-20."""
    power = _power(_wide(jnp.max(x, -1, keepdims=True)) - x)
    share = (power << 20) // jnp.sum(power, -1, keepdims=True)
    return share.astype(jnp.float32) * np.float32(2.0**-20)


def log_probability(logits: Array, chosen: Array) -> Array:
    """ln softmax(logits)[chosen] as float32 multiples of 2^-16, at least -255."""
    largest = _wide(jnp.max(logits, -1))
    total = jnp.sum(_power(largest[..., None] - logits), -1)
    bits = _bits(total)
    mantissa = jnp.where(bits > 32, total >> jnp.maximum(bits - 32, 0), total << jnp.maximum(32 - bits, 0))
    table = log_table()
    pairs = jnp.asarray(np.stack([table[:-1], np.diff(table)], axis=1))[(mantissa >> 23) & 255]
    log = pairs[..., 0] + ((_wide(pairs[..., 1]) * (mantissa & (2**23 - 1))) >> 23) + (bits - 21) * LN2
    picked = jnp.take_along_axis(logits, chosen[..., None], -1)[..., 0]
    found = picked - largest - (log >> 8)
    return jnp.maximum(found, -255 * ONE).astype(jnp.float32) * np.float32(2.0**-16)


def perturbed(logits: Array, noise: Array, temperature: Array) -> Array:
    return _narrow(logits + _shifted(_wide(noise) * temperature, 16))


def outputs(x: Array) -> Array:
    """Results of `unit_length` as float32: exact, being below 2^24 in magnitude."""
    return x.astype(jnp.float32) * np.float32(2.0**-24)
