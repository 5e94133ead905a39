"""Encoders: BERT with pooling, for sentence embeddings, and ViT, for image classes.

Formulas and weight names of the published checkpoints (Devlin et al. 2018, Dosovitskiy et al. 2020, as in
transformers); pooling as sentence-transformers' folders describe it. Written over an arithmetic `ops`, like `decoder`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from computemesh.kernels.models.decoder import MAX_LAYERS, Read, Weights
from computemesh.kernels.models.folder import ModelFolder, bad

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
MAX_IMAGE_PIXELS = 2**26


def _activation(folder: ModelFolder) -> str:
    name = folder.config.get("hidden_act", "gelu")
    if name not in ACTIVATIONS:
        raise bad(f"config.json: hidden_act {str(name)[:40]!r} is not known; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class _Encoder:
    """What BERT and ViT share: sizes, names of a layer's tensors, self-attention over all positions."""

    def __init__(self, folder: ModelFolder, prefix: str) -> None:
        number = folder.number
        self.prefix = prefix
        self.width = int(number("hidden_size"))
        self.inner = int(number("intermediate_size"))
        self.layers = int(number("num_hidden_layers", most=MAX_LAYERS))
        self.heads = int(number("num_attention_heads", most=1024))
        self.epsilon = float(number("layer_norm_eps", 1e-12, least=0, most=1))
        self.activation = _activation(folder)
        if self.width % self.heads:
            raise bad(f"config.json: hidden_size {self.width} is not a multiple of num_attention_heads {self.heads}")
        self.head = self.width // self.heads

    def matrix_shapes(self, name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def layer_shapes(self, norms: tuple[str, str]) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for i in range(self.layers):
            at = f"{self.prefix}encoder.layer.{i}."
            for name in ("query", "key", "value"):
                found |= self.matrix_shapes(f"{at}attention.attention.{name}", self.width, self.width)
            found |= self.matrix_shapes(f"{at}attention.output.dense", self.width, self.width)
            found |= self.matrix_shapes(f"{at}intermediate.dense", self.inner, self.width)
            found |= self.matrix_shapes(f"{at}output.dense", self.width, self.inner)
            for norm in norms:
                found |= {f"{at}{norm}.weight": (self.width,), f"{at}{norm}.bias": (self.width,)}
        return found

    def prepare_layer(self, ops: ModuleType, read: Read, i: int, norms: tuple[str, str], attention: str) -> Weights:
        at = f"{self.prefix}encoder.layer.{i}."
        names = [f"{at}{attention}.{name}" for name in ("query", "key", "value")]
        qkv = ops.matrix(*(np.concatenate([read(f"{name}.{part}") for name in names]) for part in ("weight", "bias")))

        def both(make: Any, name: str) -> Any:
            return make(read(f"{at}{name}.weight"), read(f"{at}{name}.bias"))

        return {
            "qkv": qkv,
            "out": both(ops.matrix, "attention.output.dense"),
            "up": both(ops.matrix, "intermediate.dense"),
            "down": both(ops.matrix, "output.dense"),
            "norms": [both(lambda *pair: tuple(map(ops.vector, pair)), norm) for norm in norms],
        }

    def prepare_layers(self, ops: ModuleType, read: Read, norms: tuple[str, str], attention: str) -> Weights:
        return ops.stacked([self.prepare_layer(ops, read, i, norms, attention) for i in range(self.layers)])

    def attention(self, ops: ModuleType, layer: Weights, x: Array, mask: Array) -> Array:
        b, t, _ = x.shape
        q, k, v = (p.reshape(b, t, self.heads, self.head) for p in jnp.split(ops.linear(x, layer["qkv"]), 3, -1))
        seen = jnp.broadcast_to(mask[:, None, :], (b, t, t))
        mixed = ops.attend(q, ops.pack(k), ops.pack(v), seen, ops.constant(self.head**-0.5))
        return ops.linear(mixed, layer["out"])

    def forward(self, ops: ModuleType, layer: Weights, x: Array) -> Array:
        return ops.linear(getattr(ops, self.activation)(ops.linear(x, layer["up"])), layer["down"])


class Bert(_Encoder):
    """Post-norm encoder; `embed` pools it to one vector per text."""

    NORMS = ("attention.output.LayerNorm", "output.LayerNorm")

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder, "bert." if "bert.embeddings.word_embeddings.weight" in folder.tensors else "")
        number = folder.number
        self.vocabulary = int(number("vocab_size", least=2))
        self.positions = int(number("max_position_embeddings", 512))
        self.kinds = int(number("type_vocab_size", 2, most=16))
        if folder.config.get("position_embedding_type", "absolute") != "absolute":
            raise bad("config.json: position_embedding_type must be absolute")
        sentence = folder.optional_json("sentence_bert_config.json").get("max_seq_length")
        self.context = min(self.positions, sentence if type(sentence) is int and sentence > 2 else self.positions)
        pooling = folder.optional_json(str(Path("1_Pooling") / "config.json"))
        self.first_token = bool(pooling.get("pooling_mode_cls_token", False))
        if pooling and not (self.first_token or pooling.get("pooling_mode_mean_tokens", True)):
            raise bad("1_Pooling/config.json: pooling must be the mean or the first token")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        at, w = f"{self.prefix}embeddings.", self.width
        tables = {
            f"{at}word_embeddings.weight": (self.vocabulary, w),
            f"{at}position_embeddings.weight": (self.positions, w),
            f"{at}token_type_embeddings.weight": (self.kinds, w),
            f"{at}LayerNorm.weight": (w,),
            f"{at}LayerNorm.bias": (w,),
        }
        layers = self.layer_shapes(self.NORMS)
        return tables | {name.replace("attention.attention.", "attention.self."): s for name, s in layers.items()}

    def prepare(self, ops: ModuleType, read: Read) -> Weights:
        at = f"{self.prefix}embeddings."
        places = read(f"{at}position_embeddings.weight") + read(f"{at}token_type_embeddings.weight")[:1]
        return {
            "table": ops.vector(read(f"{at}word_embeddings.weight")),
            "positions": ops.vector(places),
            "norm": tuple(ops.vector(read(f"{at}LayerNorm.{part}")) for part in ("weight", "bias")),
            "layers": self.prepare_layers(ops, read, self.NORMS, "attention.self"),
        }

    def embed(self, ops: ModuleType, w: Weights, tokens: Array, lengths: Array) -> Array:
        """tokens (b, t), lengths (b,) -> unit vectors (b, width) float32."""
        mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        x = ops.add(w["table"][tokens], w["positions"][: tokens.shape[1]])
        x = ops.layer_norm(x, *w["norm"], self.epsilon)

        def block(x: Array, layer: Weights, kept: None) -> tuple[Array, None]:
            first, second = layer["norms"]
            x = ops.layer_norm(ops.add(x, self.attention(ops, layer, x, mask)), *first, self.epsilon)
            return ops.layer_norm(ops.add(x, self.forward(ops, layer, x)), *second, self.epsilon), kept

        x, _ = ops.over_layers(block, x, w["layers"], None)
        return ops.outputs(ops.unit_length(x[:, 0] if self.first_token else ops.mean_rows(x, mask)))


class ViT(_Encoder):
    """Pre-norm encoder over image patches; `classify` gives class probabilities."""

    NORMS = ("layernorm_before", "layernorm_after")

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder, "vit.")
        number = folder.number
        self.image = int(number("image_size", 224, most=4096))
        self.patch = int(number("patch_size", 16, most=1024))
        self.channels = int(number("num_channels", 3, least=3, most=3))
        labels = folder.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        if not isinstance(labels, dict) or not 1 <= len(labels) <= 100_000:
            raise bad("config.json: id2label must name 1 to 100,000 classes")
        self.labels = [str(labels.get(str(i), i))[:200] for i in range(len(labels))]
        if self.image % self.patch or (self.image // self.patch) ** 2 > 4096:
            raise bad(f"config.json: image_size {self.image} in patches of {self.patch}")
        self.patches = (self.image // self.patch) ** 2
        how = folder.optional_json("preprocessor_config.json")
        self.mean, self.deviation = (self._three(how, name) for name in ("image_mean", "image_std"))

    @staticmethod
    def _three(how: dict[str, Any], name: str) -> np.ndarray:
        values = how.get(name, [0.5, 0.5, 0.5])
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, float | int) for v in values):
            raise bad(f"preprocessor_config.json: {name} must be three numbers")
        return np.array(values, np.float64)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        at, w = f"{self.prefix}embeddings.", self.width
        return {
            f"{at}cls_token": (1, 1, w),
            f"{at}position_embeddings": (1, self.patches + 1, w),
            f"{at}patch_embeddings.projection.weight": (w, self.channels, self.patch, self.patch),
            f"{at}patch_embeddings.projection.bias": (w,),
            f"{self.prefix}layernorm.weight": (w,),
            f"{self.prefix}layernorm.bias": (w,),
            **self.matrix_shapes("classifier", len(self.labels), w),
            **self.layer_shapes(self.NORMS),
        }

    def prepare(self, ops: ModuleType, read: Read) -> Weights:
        at = f"{self.prefix}embeddings."
        projection = read(f"{at}patch_embeddings.projection.weight").reshape(self.width, -1)
        return {
            "project": ops.matrix(projection, read(f"{at}patch_embeddings.projection.bias")),
            "first": ops.vector(read(f"{at}cls_token")[0]),
            "positions": ops.vector(read(f"{at}position_embeddings")[0]),
            "norm": tuple(ops.vector(read(f"{self.prefix}layernorm.{part}")) for part in ("weight", "bias")),
            "head": ops.matrix(read("classifier.weight"), read("classifier.bias")),
            "layers": self.prepare_layers(ops, read, self.NORMS, "attention.attention"),
        }

    def patches_of(self, pixels: np.ndarray) -> np.ndarray:
        """pixels (height, width, 3) uint8 of the model's size -> (patches, 3 * patch^2) float32, normalised."""
        scaled = (pixels.astype(np.float64) / 255 - self.mean) / self.deviation
        n, p = self.image // self.patch, self.patch
        grid = scaled.reshape(n, p, n, p, 3).transpose(0, 2, 4, 1, 3)
        return grid.reshape(self.patches, -1).astype(np.float32)

    def classify(self, ops: ModuleType, w: Weights, patches: Array) -> Array:
        """patches (b, patches, 3 * patch^2) of the arithmetic's activations -> probabilities (b, classes) float32."""
        b = patches.shape[0]
        first = jnp.broadcast_to(w["first"], (b, 1, self.width))
        x = ops.add(jnp.concatenate([first, ops.linear(patches, w["project"])], 1), w["positions"])
        mask = jnp.ones(x.shape[:2], bool)

        def block(x: Array, layer: Weights, kept: None) -> tuple[Array, None]:
            before, after = layer["norms"]
            x = ops.add(x, self.attention(ops, layer, ops.layer_norm(x, *before, self.epsilon), mask))
            return ops.add(x, self.forward(ops, layer, ops.layer_norm(x, *after, self.epsilon))), kept

        x, _ = ops.over_layers(block, x, w["layers"], None)
        return ops.probabilities(ops.linear(ops.layer_norm(x[:, 0], *w["norm"], self.epsilon), w["head"]))
