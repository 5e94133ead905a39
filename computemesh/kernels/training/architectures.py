"""The models a `training` task may ask for: sizes, tensors, operations and starting weights. No JAX here.

`mlp`               dense layers with ReLU between them
`cnn`               3x3 convolutions with ReLU and 2x2 mean pooling, then one dense layer
`char_transformer`  a decoder of the Llama family (Touvron et al. 2023), tensors named as Hugging Face names them

Weights are drawn uniformly from BLAKE3's extended output, keyed by seed and tensor name, so that every machine
draws the same bits: no libm and no library's generator is part of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from computemesh.trust.digest import tagged

MAX_TENSORS = 1024
MAX_EXTENT = 2**16
SIZES = 8
"""Numbers that describe a model; a job's params carry exactly so many."""

Shapes = dict[str, tuple[int, ...]]


class Size(NamedTuple):
    """A size of an architecture; `most` bounds it before anything is allocated, `default` makes it optional."""

    name: str
    default: int
    most: int


@dataclass(frozen=True, slots=True)
class Model:
    """An architecture with its sizes; `epsilon` and `theta` are a Llama's RMSNorm epsilon and rotary base."""

    name: str
    sizes: tuple[int, ...]
    epsilon: float = 1e-6
    theta: float = 10000.0

    @property
    def named(self) -> dict[str, int]:
        """The sizes by name; the list-valued one (`hidden`, `filters`) is not among them."""
        return dict(zip((size.name for size in ARCHITECTURES[self.name].sizes), self.sizes, strict=False))

    @property
    def listed(self) -> tuple[int, ...]:
        """The values of the list-valued size."""
        return tuple(value for value in self.sizes[len(ARCHITECTURES[self.name].sizes) :] if value)

    @property
    def reads_text(self) -> bool:
        return self.name == "char_transformer"

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one example's x as the model takes it."""
        at = self.named
        if self.name == "cnn":
            return at["height"], at["width"], at["channels"]
        return (at["context"],) if self.reads_text else (at["inputs"],)

    @property
    def outputs(self) -> int:
        return self.named["vocabulary" if self.reads_text else "outputs"]

    def shapes(self) -> Shapes:
        """Every tensor's shape by name, in the canonical order."""
        return ARCHITECTURES[self.name].shapes(self)

    def flops(self) -> int:
        """Operations of one training step per example: a multiply and an add, forward once and backward twice."""
        return 6 * ARCHITECTURES[self.name].products(self)


def _dense(sizes: tuple[int, ...]) -> Shapes:
    found: Shapes = {}
    for i, (inner, outer) in enumerate(pairwise(sizes)):
        found[f"layers.{i}.weight"], found[f"layers.{i}.bias"] = (outer, inner), (outer,)
    return found


def _mlp_shapes(model: Model) -> Shapes:
    return _dense((model.named["inputs"], *model.listed, model.named["outputs"]))


def _mlp_products(model: Model) -> int:
    return sum(math.prod(shape) for shape in _mlp_shapes(model).values() if len(shape) == 2)


def pooled(model: Model) -> tuple[int, int]:
    """Height and width of a cnn's last feature map."""
    height, width = model.named["height"], model.named["width"]
    for _ in model.listed:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _cnn_shapes(model: Model) -> Shapes:
    found: Shapes = {}
    channels = model.named["channels"]
    for i, filters in enumerate(model.listed):
        found[f"convolutions.{i}.weight"], found[f"convolutions.{i}.bias"] = (filters, 9 * channels), (filters,)
        channels = filters
    height, width = pooled(model)
    return found | _dense((height * width * channels, model.named["outputs"]))


def _cnn_products(model: Model) -> int:
    height, width, total = model.named["height"], model.named["width"], 0
    for name, shape in _cnn_shapes(model).items():
        if name.startswith("convolutions") and len(shape) == 2:
            total += height * width * math.prod(shape)
            height, width = -(-height // 2), -(-width // 2)
        elif len(shape) == 2:
            total += math.prod(shape)
    return total


def _llama_shapes(model: Model) -> Shapes:
    at = model.named
    width, inner = at["hidden"], at["intermediate"]
    grouped = at["key_value_heads"] * (width // at["heads"])
    found: Shapes = {"model.embed_tokens.weight": (at["vocabulary"], width)}
    for i in range(at["layers"]):
        layer = f"model.layers.{i}."
        found[f"{layer}input_layernorm.weight"] = (width,)
        for name, rows in (("q", width), ("k", grouped), ("v", grouped), ("o", width)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
        found[f"{layer}post_attention_layernorm.weight"] = (width,)
        found[f"{layer}mlp.gate_proj.weight"] = found[f"{layer}mlp.up_proj.weight"] = (inner, width)
        found[f"{layer}mlp.down_proj.weight"] = (width, inner)
    found["model.norm.weight"] = (width,)
    if not at["tied"]:
        found["lm_head.weight"] = (at["vocabulary"], width)
    return found


def _llama_products(model: Model) -> int:
    at = model.named
    shapes = _llama_shapes(model)
    # The table is looked up by a product with one-hot rows (networks.py says why), so it counts, tied or not.
    weights = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    weights += at["vocabulary"] * at["hidden"] if at["tied"] else 0
    return at["context"] * (weights + 2 * at["layers"] * at["context"] * at["hidden"])


def _llama_problem(model: Model) -> tuple[str, str] | None:
    at = model.named
    if at["hidden"] % (2 * at["heads"]):
        return "hidden", f"hidden must be a multiple of twice heads, {2 * at['heads']}, not {at['hidden']}"
    if at["heads"] % at["key_value_heads"]:
        return "key_value_heads", f"key_value_heads must divide heads, {at['heads']}, not {at['key_value_heads']}"
    return None


@dataclass(frozen=True, slots=True)
class Architecture:
    """`listed` is the name of the one list-valued size, `list_default` its value where it is not given."""

    sizes: tuple[Size, ...]
    shapes: Callable[[Model], Shapes]
    products: Callable[[Model], int]
    listed: str = ""
    list_default: tuple[int, ...] = ()
    problem: Callable[[Model], tuple[str, str] | None] = field(default=lambda model: None)


ARCHITECTURES = {
    "mlp": Architecture(
        (Size("inputs", 64, MAX_EXTENT), Size("outputs", 10, MAX_EXTENT)),
        _mlp_shapes, _mlp_products, "hidden", (64,),
    ),
    "cnn": Architecture(
        (Size("height", 8, 1024), Size("width", 8, 1024), Size("channels", 1, 64), Size("outputs", 10, MAX_EXTENT)),
        _cnn_shapes, _cnn_products, "filters", (16, 32),
    ),
    "char_transformer": Architecture(
        (
            Size("vocabulary", 96, 2**15), Size("context", 64, 1024), Size("hidden", 32, 4096), Size("layers", 1, 64),
            Size("heads", 4, 256), Size("key_value_heads", 0, 256), Size("intermediate", 0, 2**14), Size("tied", 1, 1),
        ),
        _llama_shapes, _llama_products, problem=_llama_problem,
    ),
}  # fmt: skip
NUMBERS = tuple(ARCHITECTURES)
OPTIONAL = {"key_value_heads", "intermediate", "tied"}
"""Sizes that may be 0: the first two then follow from the others, and `tied` is a switch."""


def read_model(given: str | Mapping[str, Any]) -> tuple[Model | None, list[tuple[str, str]]]:
    """(model, problems) of a payload's `model_architecture`: a name, or {"name": ..., sizes}. Problems are pairs of
    field and text; with any, there is no model.
    """
    values: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    name = values.pop("name", None)
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        return None, [("name", f"name must be one of {', '.join(ARCHITECTURES)}, not {str(name)[:60]!r}")]
    known = [size.name for size in architecture.sizes] + ([architecture.listed] if architecture.listed else [])
    problems = [
        (str(key)[:60], f"{str(key)[:60]!r} is not a size of {name}; they are {', '.join(known)}")
        for key in values if key not in known
    ]  # fmt: skip
    numbers: list[int] = []
    for size in architecture.sizes:
        value, least = values.get(size.name, size.default), int(size.name not in OPTIONAL)
        numbers.append(_whole(value, size.name, least, size.most, problems))
    if architecture.listed:
        numbers += _list(values.get(architecture.listed, architecture.list_default), architecture, problems)
    if problems:
        return None, problems
    model = _completed(Model(str(name), tuple(numbers)))
    problem = architecture.problem(model)
    if problem is None and len(model.shapes()) > MAX_TENSORS:
        problem = "layers", f"the model has more than {MAX_TENSORS:,} tensors"
    return (None, [problem]) if problem else (model, [])


def _completed(model: Model) -> Model:
    if not model.reads_text:
        return model
    at = model.named
    at["key_value_heads"] = at["key_value_heads"] or at["heads"]
    at["intermediate"] = at["intermediate"] or -(-8 * at["hidden"] // 3 // 16) * 16
    return Model(model.name, tuple(at.values()), model.epsilon, model.theta)


def _whole(value: Any, name: str, least: int, most: int, problems: list[tuple[str, str]]) -> int:
    fits = isinstance(value, int | float) and math.isfinite(value) and value == int(value) and least <= value <= most
    if not fits:
        problems.append((name, f"{name} must be a whole number from {least} to {most:,}, not {str(value)[:40]}"))
    return int(value) if fits else least


def _list(value: Any, architecture: Architecture, problems: list[tuple[str, str]]) -> list[int]:
    most = SIZES - len(architecture.sizes)
    if not isinstance(value, list | tuple) or len(value) > most:
        problems.append((architecture.listed, f"{architecture.listed} must be a list of at most {most} whole numbers"))
        return []
    return [_whole(item, architecture.listed, 1, 8192, problems) for item in value]


def pack_sizes(model: Model) -> bytes:
    """The sizes as eight u32, big-endian, filled up with zeros."""
    return struct.pack(f">{SIZES}I", *model.sizes, *[0] * (SIZES - len(model.sizes)))


def unpack_model(number: int, data: bytes) -> Model:
    """The model of an architecture's number and its packed sizes. Raises ValueError where they cannot be."""
    if number >= len(NUMBERS):
        raise ValueError(f"architecture {number}")
    name, values = NUMBERS[number], struct.unpack(f">{SIZES}I", data)
    architecture = ARCHITECTURES[name]
    given: dict[str, Any] = {size.name: value for size, value in zip(architecture.sizes, values, strict=False)}
    if architecture.listed:
        given[architecture.listed] = [value for value in values[len(architecture.sizes) :] if value]
    model, problems = read_model({"name": name, **given})
    if model is None or pack_sizes(model) != data:
        raise ValueError(problems[0][1] if problems else "sizes")
    return model


def initial(model: Model, seed: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's starting values, float32, the same on every machine; `seed` is 32 bytes.

    Biases are 0 and norms 1. Dense and convolution weights are uniform within +-sqrt(6 / fan in) (He et al. 2015),
    a transformer's of standard deviation 0.02 (Radford et al. 2019), its projections into the residual stream of
    0.02 / sqrt(2 layers).
    """
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    bound = math.sqrt(6 / shape[1])
    if model.reads_text:
        inward = name.endswith(("o_proj.weight", "down_proj.weight"))
        bound = 0.02 * math.sqrt(3) / (math.sqrt(2 * model.named["layers"]) if inward else 1)
    key = tagged("computemesh.v1/training/weights", seed + name.encode())
    drawn = np.frombuffer(blake3(key).digest(length=4 * math.prod(shape)), "<u4")
    unit = (drawn >> 8).astype(np.float64) * 2.0**-23 - 1.0  # 24 bits: uniform in [-1, 1), exact
    return (unit * bound).astype(np.float32).reshape(shape)
