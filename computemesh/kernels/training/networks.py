"""Forward passes and losses of `architectures.Model`, differentiable. Imports JAX.

Everything is a product, a sum or an elementwise function: no gather whose gradient is a scatter, no library
convolution, because on GPUs those add in an order of their own and a segment would not repeat bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from computemesh.kernels.training.architectures import Model

Tensors = Mapping[str, Array]


def _dense(tensors: Tensors, x: Array) -> Array:
    depth = sum(name.startswith("layers.") and name.endswith(".weight") for name in tensors)
    for i in range(depth):
        x = x @ tensors[f"layers.{i}.weight"].T + tensors[f"layers.{i}.bias"]
        x = jax.nn.relu(x) if i + 1 < depth else x
    return x


def _cnn(model: Model, tensors: Tensors, x: Array) -> Array:
    """x (batch, height, width, channels); zero padding, kernel index = (3 * row + column) * channels + channel."""
    for i, _ in enumerate(model.listed):
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [padded[:, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
        x = jnp.concatenate(patches, -1) @ tensors[f"convolutions.{i}.weight"].T + tensors[f"convolutions.{i}.bias"]
        x = jnp.pad(jax.nn.relu(x), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(x.shape[0], (height + 1) // 2, 2, (width + 1) // 2, 2, -1).mean((2, 4))
    return _dense(tensors, x.reshape(x.shape[0], -1))


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * weight


def _rotation(model: Model, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (length, 1, head) float32 of the rotary embedding (Su et al. 2021), halves side by side."""
    head = model.named["hidden"] // model.named["heads"]
    frequencies = model.theta ** (-np.arange(0, head, 2) / head)
    angles = np.arange(length)[:, None] * np.concatenate([frequencies, frequencies])[None, :]
    return np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]


def _rotate(x: Array, cos: np.ndarray, sin: np.ndarray) -> Array:
    first, second = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-second, first], -1) * sin


def _llama(model: Model, tensors: Tensors, tokens: Array) -> Array:
    """tokens (batch, time) int32 -> logits (batch, time, vocabulary); `modeling_llama.py` of transformers."""
    at = model.named
    batch, time = tokens.shape
    heads, groups, head = at["heads"], at["key_value_heads"], at["hidden"] // at["heads"]
    cos, sin = _rotation(model, time)
    causal = np.tril(np.ones((time, time), bool))
    table = tensors["model.embed_tokens.weight"]
    x = jax.nn.one_hot(tokens, at["vocabulary"], dtype=table.dtype) @ table
    for i in range(at["layers"]):
        layer = {key.split(f"layers.{i}.", 1)[1]: t for key, t in tensors.items() if f".layers.{i}." in key}
        inner = _rms_norm(x, layer["input_layernorm.weight"], model.epsilon)
        projected = (inner @ layer[f"self_attn.{name}_proj.weight"].T for name in ("q", "k", "v"))
        q, k, v = (rows.reshape(batch, time, -1, head) for rows in projected)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        q = q.reshape(batch, time, groups, heads // groups, head)
        scores = jnp.einsum("btgrh,bsgh->bgrts", q, k) / math.sqrt(head)
        mixed = jnp.einsum("bgrts,bsgh->btgrh", jax.nn.softmax(jnp.where(causal, scores, -1e30), -1), v)
        x = x + mixed.reshape(batch, time, -1) @ layer["self_attn.o_proj.weight"].T
        inner = _rms_norm(x, layer["post_attention_layernorm.weight"], model.epsilon)
        gate = jax.nn.silu(inner @ layer["mlp.gate_proj.weight"].T) * (inner @ layer["mlp.up_proj.weight"].T)
        x = x + gate @ layer["mlp.down_proj.weight"].T
    return _rms_norm(x, tensors["model.norm.weight"], model.epsilon) @ tensors.get("lm_head.weight", table).T


def forward(model: Model, tensors: Tensors, x: Array) -> Array:
    """x (batch, *model.row), tokens as int32, else float32 -> (batch, outputs) or (batch, context, vocabulary)."""
    if model.reads_text:
        return _llama(model, tensors, x)
    return _cnn(model, tensors, x) if model.name == "cnn" else _dense(tensors, x)


def loss(model: Model, tensors: Tensors, x: Array, y: Array) -> Array:
    """Mean cross-entropy in nats where y are classes (int32); mean squared error where y is float32."""
    found = forward(model, tensors, x)
    if y.dtype == jnp.float32:
        return jnp.mean((found - y.reshape(found.shape)) ** 2)
    chosen = jax.nn.one_hot(y, found.shape[-1], dtype=found.dtype)
    return -jnp.mean(jnp.sum(chosen * jax.nn.log_softmax(found), -1))
