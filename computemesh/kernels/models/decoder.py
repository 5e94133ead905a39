"""Decoder-only language models: the Llama family (Llama, Mistral, Qwen2) and GPT-2.

Written once over an arithmetic `ops` (`floating` or `integer`). Weight names and the formulas follow the published
checkpoints: Llama (Touvron et al. 2023; `modeling_llama.py` of transformers), GPT-2 (Radford et al. 2019).

A model has `shapes()`, `prepare(ops, read)` and `hidden(...)`, which runs on whole sequences and on one new position
of a cache alike: it asks `attend(q, k, v, scale, bias, kept)` for a layer's attention, and the caller decides where
keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from computemesh.kernels.models.folder import ModelFolder, bad
from computemesh.kernels.models.integer_tables import _pi

MAX_CONTEXT = 4096
MAX_LAYERS = 256
Attend = Callable[[Array, Any, Any, Any, Any, Any], tuple[Array, Any]]
Kept = Any  # keys and values by layer, as `ops.over_layers` gives them
Read = Callable[[str], np.ndarray]
Weights = Any


def _inverse_frequencies(config: Mapping[str, Any], dimension: int) -> list[str]:
    """theta^(-2i/d) as decimal texts, scaled as config.json's rope parameters ask (`linear`, `llama3`)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    numbers = [theta] + [rope.get(k, 1) for k in ("factor", "low_freq_factor", "high_freq_factor")]
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not 1 <= n <= 1e9 for n in numbers):
        raise bad("config.json: rope parameters must be numbers from 1 to 10^9")
    with localcontext() as context:
        context.prec = 50
        found = [Decimal(str(theta)) ** (Decimal(-2 * i) / dimension) for i in range(dimension // 2)]
        if kind == "linear":
            found = [f / Decimal(str(rope["factor"])) for f in found]
        elif kind == "llama3":
            found = [_llama3(f, rope) for f in found]
        elif kind != "default":
            raise bad(f"config.json: rope_type {kind[:40]!r} is not known; known are default, linear, llama3")
        return [str(f) for f in found]


def _llama3(frequency: Decimal, rope: Mapping[str, Any]) -> Decimal:
    """Llama 3.1's scaling: long waves slowed by `factor`, short ones kept, those between blended."""
    factor, low, high = (Decimal(str(rope[k])) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = Decimal(int(rope["original_max_position_embeddings"])) * frequency / (2 * _pi())
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    blend = (turns - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


class Llama:
    """Pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated SiLU feed-forward."""

    def __init__(self, folder: ModelFolder) -> None:
        number, config = folder.number, folder.config
        self.width = int(number("hidden_size"))
        self.inner = int(number("intermediate_size"))
        self.layers = int(number("num_hidden_layers", most=MAX_LAYERS))
        self.heads = int(number("num_attention_heads", most=1024))
        self.groups = int(number("num_key_value_heads", self.heads, most=1024))
        self.head = int(number("head_dim", self.width // self.heads, most=1024))
        self.vocabulary = int(number("vocab_size", least=2))
        self.context = min(int(number("max_position_embeddings", 2048, most=2**30)), MAX_CONTEXT)
        self.epsilon = float(number("rms_norm_eps", 1e-6, least=0, most=1))
        self.tied = bool(config.get("tie_word_embeddings", False))
        self.biased = bool(config.get("attention_bias", config.get("model_type") == "qwen2"))
        self.output_biased = self.biased and config.get("model_type") != "qwen2"
        self.frequencies = _inverse_frequencies(config, self.head)
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        if isinstance(window, int) and window < self.context:
            self.context = max(window, 1)  # within the window, windowed and full attention are the same
        if self.heads % self.groups or self.head % 2:
            raise bad(f"config.json: {self.heads} heads in {self.groups} groups of dimension {self.head}")
        if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
            raise bad("config.json: hidden_act must be silu and mlp_bias false in a Llama")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        w, kv, qo = self.width, self.groups * self.head, self.heads * self.head
        table = (self.vocabulary, w)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table, "model.norm.weight": (w,)}
        if not self.tied:
            found["lm_head.weight"] = table
        for i in range(self.layers):
            at = f"model.layers.{i}."
            for name, rows in (("q", qo), ("k", kv), ("v", kv)):
                found[f"{at}self_attn.{name}_proj.weight"] = (rows, w)
                if self.biased:
                    found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
            found[f"{at}self_attn.o_proj.weight"] = (w, qo)
            if self.output_biased:
                found[f"{at}self_attn.o_proj.bias"] = (w,)
            found[f"{at}mlp.gate_proj.weight"] = found[f"{at}mlp.up_proj.weight"] = (self.inner, w)
            found[f"{at}mlp.down_proj.weight"] = (w, self.inner)
            found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (w,)
        return found

    def prepare(self, ops: ModuleType, read: Read) -> Weights:
        def layer(i: int) -> Weights:
            at = f"model.layers.{i}."
            attention = [f"{at}self_attn.{name}_proj" for name in "qkv"]
            bias = np.concatenate([read(f"{name}.bias") for name in attention]) if self.biased else None
            out_bias = read(f"{at}self_attn.o_proj.bias") if self.output_biased else None
            gates = [read(f"{at}mlp.{name}_proj.weight") for name in ("gate", "up")]
            return {
                "qkv": ops.matrix(np.concatenate([read(f"{name}.weight") for name in attention]), bias),
                "out": ops.matrix(read(f"{at}self_attn.o_proj.weight"), out_bias),
                "gates": ops.matrix(np.concatenate(gates)),
                "down": ops.matrix(read(f"{at}mlp.down_proj.weight")),
                "before": ops.vector(read(f"{at}input_layernorm.weight")),
                "between": ops.vector(read(f"{at}post_attention_layernorm.weight")),
            }

        table = read("model.embed_tokens.weight")
        rows, head = ops.tied(table) if self.tied else (ops.vector(table), ops.matrix(read("lm_head.weight")))
        return {
            "table": rows,
            "head": head,
            "norm": ops.vector(read("model.norm.weight")),
            "layers": ops.stacked([layer(i) for i in range(self.layers)]),
            "rotation": ops.rotation(self.frequencies, self.context),
        }

    def hidden(
        self, ops: ModuleType, w: Weights, tokens: Array, positions: Array, attend: Attend, kept: Kept, memory: Any
    ) -> tuple[Array, Kept]:
        """tokens, positions (b, t) int32 -> the last norm's output (b, t, width), and keys and values."""
        b, t = tokens.shape
        x = w["table"][tokens]
        cos, sin = (table[positions] for table in w["rotation"])
        split = [self.heads * self.head, (self.heads + self.groups) * self.head]
        scale = ops.constant(self.head**-0.5)

        def block(x: Array, layer: Weights, kept: Any) -> tuple[Array, Any]:
            q, k, v = jnp.split(ops.linear(ops.rms_norm(x, layer["before"], self.epsilon), layer["qkv"]), split, -1)
            q = ops.rotate(q.reshape(b, t, self.heads, self.head), cos, sin)
            k = ops.rotate(k.reshape(b, t, self.groups, self.head), cos, sin)
            v = v.reshape(b, t, self.groups, self.head)
            mixed, kept = attend(q, ops.pack(k), ops.pack(v), scale, None, kept)
            x = ops.add(x, ops.linear(mixed, layer["out"]))
            gate, up = jnp.split(ops.linear(ops.rms_norm(x, layer["between"], self.epsilon), layer["gates"]), 2, -1)
            return ops.add(x, ops.linear(ops.multiply(ops.silu(gate), up), layer["down"])), kept

        x, kept = ops.over_layers(block, x, w["layers"], kept)
        return ops.rms_norm(x, w["norm"], self.epsilon), kept

    def logits(self, ops: ModuleType, w: Weights, hidden: Array) -> Array:
        return ops.linear(hidden, w["head"])


class GPT2:
    """Pre-norm decoder with LayerNorm, learned positions and GELU (tanh form)."""

    def __init__(self, folder: ModelFolder) -> None:
        number, config = folder.number, folder.config
        self.width = int(number("n_embd"))
        self.layers = int(number("n_layer", most=MAX_LAYERS))
        self.heads = self.groups = int(number("n_head", most=1024))
        self.inner = int(number("n_inner", 4 * self.width))
        self.vocabulary = int(number("vocab_size", least=2))
        self.positions = int(number("n_positions", 1024))
        self.context = min(self.positions, MAX_CONTEXT)
        self.epsilon = float(number("layer_norm_epsilon", 1e-5, least=0, most=1))
        self.tied = bool(config.get("tie_word_embeddings", True))
        self.prefix = "transformer." if "transformer.wte.weight" in folder.tensors else ""
        if self.width % self.heads:
            raise bad(f"config.json: n_embd {self.width} is not a multiple of n_head {self.heads}")
        if config.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
            raise bad("config.json: activation_function must be gelu_new in a GPT-2")
        if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
            raise bad("config.json: scale_attn_by_inverse_layer_idx must be false and scale_attn_weights true")
        self.head = self.width // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        w, at = self.width, self.prefix
        found: dict[str, tuple[int, ...]] = {
            f"{at}wte.weight": (self.vocabulary, w),
            f"{at}wpe.weight": (self.positions, w),
            f"{at}ln_f.weight": (w,),
            f"{at}ln_f.bias": (w,),
        }
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, w)
        for i in range(self.layers):
            for name, rows, columns in (
                ("attn.c_attn", w, 3 * w),
                ("attn.c_proj", w, w),
                ("mlp.c_fc", w, self.inner),
                ("mlp.c_proj", self.inner, w),
            ):
                found[f"{at}h.{i}.{name}.weight"] = (rows, columns)  # stored (in, out): OpenAI's Conv1D
                found[f"{at}h.{i}.{name}.bias"] = (columns,)
            for name in ("ln_1", "ln_2"):
                found[f"{at}h.{i}.{name}.weight"] = found[f"{at}h.{i}.{name}.bias"] = (w,)
        return found

    def prepare(self, ops: ModuleType, read: Read) -> Weights:
        at = self.prefix

        def norm(name: str) -> Weights:
            return ops.vector(read(f"{name}.weight")), ops.vector(read(f"{name}.bias"))

        def layer(i: int) -> Weights:
            names = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
            matrices = {}
            for key, name in names.items():
                weight = np.ascontiguousarray(read(f"{at}h.{i}.{name}.weight").T)
                matrices[key] = ops.matrix(weight, read(f"{at}h.{i}.{name}.bias"))
            return matrices | {"before": norm(f"{at}h.{i}.ln_1"), "between": norm(f"{at}h.{i}.ln_2")}

        table = read(f"{at}wte.weight")
        rows, head = ops.tied(table) if self.tied else (ops.vector(table), ops.matrix(read("lm_head.weight")))
        return {
            "table": rows,
            "head": head,
            "positions": ops.vector(read(f"{at}wpe.weight")),
            "norm": norm(f"{at}ln_f"),
            "layers": ops.stacked([layer(i) for i in range(self.layers)]),
        }

    def hidden(
        self, ops: ModuleType, w: Weights, tokens: Array, positions: Array, attend: Attend, kept: Kept, memory: Any
    ) -> tuple[Array, Kept]:
        b, t = tokens.shape
        x = ops.add(w["table"][tokens], w["positions"][positions])
        scale = ops.constant(self.head**-0.5)

        def block(x: Array, layer: Weights, kept: Any) -> tuple[Array, Any]:
            rows = ops.linear(ops.layer_norm(x, *layer["before"], self.epsilon), layer["qkv"])
            q, k, v = (part.reshape(b, t, self.heads, self.head) for part in jnp.split(rows, 3, -1))
            mixed, kept = attend(q, ops.pack(k), ops.pack(v), scale, None, kept)
            x = ops.add(x, ops.linear(mixed, layer["out"]))
            inner = ops.gelu_tanh(ops.linear(ops.layer_norm(x, *layer["between"], self.epsilon), layer["up"]))
            return ops.add(x, ops.linear(inner, layer["down"])), kept

        x, kept = ops.over_layers(block, x, w["layers"], kept)
        return ops.layer_norm(x, *w["norm"], self.epsilon), kept

    def logits(self, ops: ModuleType, w: Weights, hidden: Array) -> Array:
        return ops.linear(hidden, w["head"])
