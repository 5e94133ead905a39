"""The float32 arithmetic of the class `fast`. Same operations, by name, as `integer`.

All products in full float32 (`precision="highest"`): a GPU's TF32 would spend most of the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import erf

EXACT = False
HIGHEST = lax.Precision.HIGHEST


class Matrix(NamedTuple):
    """A linear map: weight (in, out), which CPUs read twice as fast in small batches, and bias (out,), or None."""

    weight: Array
    bias: Array | None


class Tied(NamedTuple):
    """A linear map whose weight (out, in) is a table that rows are also looked up in."""

    weight: Array


def matrix(weight: np.ndarray, bias: np.ndarray | None = None) -> Matrix:
    """From weight (out, in)."""
    return Matrix(jnp.asarray(np.ascontiguousarray(weight.T)), None if bias is None else jnp.asarray(bias))


def tied(table: np.ndarray) -> tuple[Array, Tied]:
    """A table (rows, n) for look-up, and as a linear map to its rows; one array."""
    array = jnp.asarray(table)
    return array, Tied(array)


def vector(values: np.ndarray) -> Array:
    return jnp.asarray(values)


def constant(value: float) -> float:
    return value


def rotation(inverse_frequencies: list[str], positions: int, scale: float = 1.0) -> tuple[Array, Array]:
    """cos and sin of position * frequency, (positions, frequencies); frequencies as decimal texts."""
    angles = np.arange(positions)[:, None] * np.array([float(f) for f in inverse_frequencies])
    return jnp.asarray(np.cos(angles) * scale, jnp.float32), jnp.asarray(np.sin(angles) * scale, jnp.float32)


def stacked(layers: list[Any]) -> list[Any]:
    """The layers' weights as `over_layers` takes them."""
    return layers


def zipped(layers: list[Any], others: list[Any]) -> list[Any]:
    """Layers, each with what else belongs to it."""
    return list(zip(layers, others, strict=True))


def over_layers(block: Callable[..., Any], x: Array, layers: list[Any], kept: list[Any] | None) -> tuple[Array, Any]:
    """x, _ = block(x, layer, kept[layer]) layer after layer -> x and what each block kept.

    Unrolled: a loop over stacked weights would copy every float32 matrix once per token.
    """
    new = []
    for i, layer in enumerate(layers):
        x, one = block(x, layer, None if kept is None else kept[i])
        new.append(one)
    return x, new


def linear(x: Array, m: Matrix | Tied) -> Array:
    """x (..., in) -> (..., out)."""
    if isinstance(m, Tied):
        return lax.dot_general(x, m.weight, (((x.ndim - 1,), (1,)), ((), ())), precision=HIGHEST)
    y = lax.dot_general(x, m.weight, (((x.ndim - 1,), (0,)), ((), ())), precision=HIGHEST)
    return y if m.bias is None else y + m.bias


def add(a: Array, b: Array) -> Array:
    return a + b


def multiply(a: Array, b: Array) -> Array:
    return a * b


def scaled(x: Array, factor: float) -> Array:
    """x times a constant of `constant`."""
    return x * factor


def layer_norm(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + epsilon) * gain + bias


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * gain


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + erf(x * np.float32(0.5**0.5)))


def gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def silu(x: Array) -> Array:
    return jax.nn.silu(x)


def relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def tanh(x: Array) -> Array:
    return jnp.tanh(x)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding (Su et al. 2021) in the half-split form: x (..., heads, d), cos and sin (..., d/2)."""
    a, b = jnp.split(x, 2, -1)
    c, s = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([a * c - b * s, b * c + a * s], -1)


def pack(x: Array) -> Array:
    """Keys or values as the cache holds them."""
    return x


def attend(q: Array, keys: Array, values: Array, mask: Array, scale: float, bias: Array | None = None) -> Array:
    """Softmax attention: q (b, t, h, d), packed keys and values (b, s, g, d) with g dividing h, mask (b, t, s) true
    where seen, bias (h, t, s) -> (b, t, h * d).
    """
    b, t, h, d = q.shape
    g = keys.shape[2]
    scores = jnp.einsum("btgnd,bsgd->bgnts", q.reshape(b, t, g, h // g, d), keys, precision=HIGHEST) * scale
    if bias is not None:
        scores = scores + bias.reshape(1, g, h // g, *bias.shape[1:])
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
    mixed = jnp.einsum("bgnts,bsgd->btgnd", weights, values, precision=HIGHEST)
    total = jnp.moveaxis(jnp.sum(weights, -1), 3, 1)
    return (mixed / total[..., None]).reshape(b, t, h * d)


def mean_rows(x: Array, mask: Array) -> Array:
    """Mean over the true rows: x (b, t, d), mask (b, t) -> (b, d)."""
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask[..., None], x, 0), 1) / count


def unit_length(x: Array) -> Array:
    """Rows of Euclidean length 1."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def probabilities(x: Array) -> Array:
    """Softmax over the last axis, float32."""
    return jax.nn.softmax(x, -1)


def log_probability(logits: Array, chosen: Array) -> Array:
    """ln softmax(logits)[chosen]: (..., v), (...) -> (...) float32."""
    picked = jnp.take_along_axis(logits, chosen[..., None], -1)[..., 0]
    return picked - jax.nn.logsumexp(logits, -1)


def perturbed(logits: Array, noise: Array, temperature: Array) -> Array:
    """logits + temperature * noise; noise int32 and temperature int32 in units of 2^-16."""
    return logits + noise.astype(jnp.float32) * (temperature.astype(jnp.float32) * np.float32(2.0**-32))


def outputs(x: Array) -> Array:
    """Activations as float32."""
    return x
