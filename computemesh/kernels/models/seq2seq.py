"""T5 (Raffel et al. 2020), the encoder-decoder for translation, over an arithmetic `ops` like `decoder`.

`encode` turns texts into the memory that `hidden` attends to. Attention scores are not scaled, positions are a learned
bias of bucketed distances, shared by all layers of a side; both as in the published checkpoints and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from computemesh.kernels.models.decoder import MAX_LAYERS, Attend, Kept, Read, Weights
from computemesh.kernels.models.folder import ModelFolder, bad

MAX_POSITIONS = 1024


def distance_buckets(buckets: int, furthest: int, size: int) -> np.ndarray:
    """The bucket of each distance 0 .. size - 1: the first half one each, then logarithmic up to `furthest`.

    In whole numbers: floor(n * log(x / e) / log(f / e)) is the largest j with (x / e)^n >= (f / e)^j.
    """
    exact = buckets // 2
    spread = buckets - exact
    steps = [Fraction(furthest, exact) ** j for j in range(spread)]
    found = []
    for distance in range(size):
        if distance < exact:
            found.append(distance)
        else:
            reach = Fraction(min(distance, furthest), exact) ** spread
            found.append(exact + max(j for j, step in enumerate(steps) if reach >= step))
    return np.array(found, np.int32)


class T5:
    """Pre-norm encoder and decoder with RMSNorm and ReLU or gated GELU (T5 1.1) feed-forwards."""

    def __init__(self, folder: ModelFolder) -> None:
        number, config = folder.number, folder.config
        self.width = int(number("d_model"))
        self.head = int(number("d_kv", most=1024))
        self.heads = int(number("num_heads", most=1024))
        self.inner = int(number("d_ff"))
        self.layers = int(number("num_layers", most=MAX_LAYERS))
        self.decoder_layers = int(number("num_decoder_layers", self.layers, most=MAX_LAYERS))
        self.vocabulary = int(number("vocab_size", least=2))
        self.buckets = int(number("relative_attention_num_buckets", 32, least=4, most=1024))
        self.furthest = int(number("relative_attention_max_distance", 128, least=self.buckets, most=2**16))
        self.epsilon = float(number("layer_norm_epsilon", 1e-6, least=0, most=1))
        self.start = int(number("decoder_start_token_id", 0, least=0, most=self.vocabulary - 1))
        kind = config.get("feed_forward_proj", "relu")
        if kind not in ("relu", "gated-gelu"):
            raise bad(f"config.json: feed_forward_proj {str(kind)[:40]!r} is not known; known are relu, gated-gelu")
        if self.buckets % 4:
            raise bad("config.json: relative_attention_num_buckets must be a multiple of 4")
        self.gated = kind == "gated-gelu"
        self.tied = bool(config.get("tie_word_embeddings", True))
        self.context = MAX_POSITIONS
        self.inner_names = ["wi_0", "wi_1"] if self.gated else ["wi"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        w, rows = self.width, self.heads * self.head
        found: dict[str, tuple[int, ...]] = {"shared.weight": (self.vocabulary, w)}
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, w)
        sides = (
            ("encoder", self.layers, ["SelfAttention"]),
            ("decoder", self.decoder_layers, ["SelfAttention", "EncDecAttention"]),
        )
        for side, layers, attentions in sides:
            bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            found |= {f"{side}.final_layer_norm.weight": (w,), bias: (self.buckets, self.heads)}
            for i in range(layers):
                for part, attention in enumerate(attentions):
                    at = f"{side}.block.{i}.layer.{part}."
                    found |= {f"{at}{attention}.{name}.weight": (rows, w) for name in "qkv"}
                    found |= {f"{at}{attention}.o.weight": (w, rows), f"{at}layer_norm.weight": (w,)}
                at = f"{side}.block.{i}.layer.{len(attentions)}."
                found |= {f"{at}DenseReluDense.{name}.weight": (self.inner, w) for name in self.inner_names}
                found |= {f"{at}DenseReluDense.wo.weight": (w, self.inner), f"{at}layer_norm.weight": (w,)}
        return found

    def prepare(self, ops: ModuleType, read: Read) -> Weights:
        def layer(side: str, i: int) -> Weights:
            at = f"{side}.block.{i}.layer."
            last = 2 if side == "decoder" else 1

            def joined(prefix: str, names: Any) -> Any:
                return ops.matrix(np.concatenate([read(f"{prefix}.{name}.weight") for name in names]))

            found = {
                "qkv": joined(f"{at}0.SelfAttention", "qkv"),
                "out": joined(f"{at}0.SelfAttention", "o"),
                "up": joined(f"{at}{last}.DenseReluDense", self.inner_names),
                "down": joined(f"{at}{last}.DenseReluDense", ["wo"]),
                "before": ops.vector(read(f"{at}0.layer_norm.weight")),
                "between": ops.vector(read(f"{at}{last}.layer_norm.weight")),
            }
            if side == "decoder":
                found |= {
                    "query": joined(f"{at}1.EncDecAttention", "q"),
                    "seen": joined(f"{at}1.EncDecAttention", "kv"),
                    "mixed": joined(f"{at}1.EncDecAttention", "o"),
                    "cross": ops.vector(read(f"{at}1.layer_norm.weight")),
                }
            return found

        table = read("shared.weight")
        rows, head = ops.tied(table) if self.tied else (ops.vector(table), ops.matrix(read("lm_head.weight")))
        found = {"table": rows, "head": head}
        for side, layers in (("encoder", self.layers), ("decoder", self.decoder_layers)):
            bias = read(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
            found |= {
                side: ops.stacked([layer(side, i) for i in range(layers)]),
                f"{side}_norm": ops.vector(read(f"{side}.final_layer_norm.weight")),
                f"{side}_bias": ops.vector(bias),
            }
        return found

    def _forward(self, ops: ModuleType, layer: Weights, x: Array) -> Array:
        y = ops.linear(ops.rms_norm(x, layer["between"], self.epsilon), layer["up"])
        if self.gated:
            gate, up = jnp.split(y, 2, -1)
            y = ops.multiply(ops.gelu_tanh(gate), up)
        else:
            y = ops.relu(y)
        return ops.add(x, ops.linear(y, layer["down"]))

    def _split(self, rows: Array, parts: int) -> list[Array]:
        return [p.reshape(*p.shape[:2], self.heads, self.head) for p in jnp.split(rows, parts, -1)]

    def encode(self, ops: ModuleType, w: Weights, tokens: Array, lengths: Array) -> Any:
        """tokens (b, s), lengths (b,) -> memory: packed keys and values by decoder layer, and the mask (b, s)."""
        s = tokens.shape[1]
        mask = jnp.arange(s)[None] < lengths[:, None]
        half = jnp.asarray(distance_buckets(self.buckets // 2, self.furthest, s))
        apart = jnp.arange(s)[None] - jnp.arange(s)[:, None]
        bias = jnp.moveaxis(w["encoder_bias"][half[jnp.abs(apart)] + (apart > 0) * (self.buckets // 2)], -1, 0)
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, s))
        scale = ops.constant(1.0)

        def block(x: Array, layer: Weights, kept: None) -> tuple[Array, None]:
            q, k, v = self._split(ops.linear(ops.rms_norm(x, layer["before"], self.epsilon), layer["qkv"]), 3)
            mixed = ops.attend(q, ops.pack(k), ops.pack(v), seen, scale, bias)
            return self._forward(ops, layer, ops.add(x, ops.linear(mixed, layer["out"]))), kept

        def remember(x: Array, layer: Weights, kept: None) -> tuple[Array, Any]:
            k, v = self._split(ops.linear(x, layer["seen"]), 2)
            return x, (ops.pack(k), ops.pack(v))

        x, _ = ops.over_layers(block, w["table"][tokens], w["encoder"], None)
        _, memory = ops.over_layers(remember, ops.rms_norm(x, w["encoder_norm"], self.epsilon), w["decoder"], None)
        return memory, mask

    def _distance_bias(self, w: Weights, positions: Array) -> Callable[[int], Array]:
        """The decoder's bias for keys 0 .. size - 1, (heads, t, size); positions (t,) are those of every row."""

        def of_size(size: int) -> Array:
            table = jnp.asarray(distance_buckets(self.buckets, self.furthest, size))
            back = jnp.clip(positions[:, None] - jnp.arange(size)[None], 0, size - 1)
            return jnp.moveaxis(w["decoder_bias"][table[back]], -1, 0)

        return of_size

    def hidden(
        self, ops: ModuleType, w: Weights, tokens: Array, positions: Array, attend: Attend, kept: Kept, memory: Any
    ) -> tuple[Array, Kept]:
        """As a decoder's; every row begins with the one start token, so that all rows share their positions."""
        known, mask = memory
        seen = jnp.broadcast_to(mask[:, None], (mask.shape[0], tokens.shape[1], mask.shape[1]))
        scale = ops.constant(1.0)
        bias = self._distance_bias(w, positions[0])

        def block(x: Array, layer_and_memory: Any, kept: Any) -> tuple[Array, Any]:
            layer, (keys, values) = layer_and_memory
            q, k, v = self._split(ops.linear(ops.rms_norm(x, layer["before"], self.epsilon), layer["qkv"]), 3)
            mixed, kept = attend(q, ops.pack(k), ops.pack(v), scale, bias, kept)
            x = ops.add(x, ops.linear(mixed, layer["out"]))
            (q,) = self._split(ops.linear(ops.rms_norm(x, layer["cross"], self.epsilon), layer["query"]), 1)
            x = ops.add(x, ops.linear(ops.attend(q, keys, values, seen, scale), layer["mixed"]))
            return self._forward(ops, layer, x), kept

        x, kept = ops.over_layers(block, w["table"][tokens], ops.zipped(w["decoder"], known), kept)
        return ops.rms_norm(x, w["decoder_norm"], self.epsilon), kept

    def logits(self, ops: ModuleType, w: Weights, hidden: Array) -> Array:
        return ops.linear(ops.scaled(hidden, ops.constant(self.width**-0.5)) if self.tied else hidden, w["head"])
