"""The model folder a task fine-tunes: `config.json`, `model.safetensors` and, for text, `tokenizer.json`. No JAX."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from computemesh.kernels.models.folder import ModelFolder, bad, open_folder
from computemesh.kernels.training.architectures import Model

MAX_TOKENIZER_BYTES = 2**23
LLAMA_NAMES = {
    "hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads", "intermediate": "intermediate_size", "vocabulary": "vocab_size",
}  # fmt: skip
"""Our sizes under their names in a Llama's config.json."""


@dataclass(frozen=True)
class Base:
    """A folder that was read and found to fit; `model` is the task's with what the folder's config.json adds."""

    folder: ModelFolder
    model: Model

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32. Raises InvalidArgument where it is missing, of another shape or not finite."""
        return self.folder.read({name: shape})(name)

    def appendix(self, frozen: dict[str, np.ndarray]) -> bytes:
        """What a checkpoint needs and an output does not otherwise have: the frozen tensors in canonical order,
        u32 length and config.json, u32 length and tokenizer.json (length 0 where the model reads no text).
        """
        parts = [np.ascontiguousarray(tensor, "<f4").tobytes() for tensor in frozen.values()]
        names = ["config.json", "tokenizer.json"] if self.model.reads_text else ["config.json"]
        files = [(self.folder.path / name).read_bytes() for name in names]
        return b"".join(parts + [len(file).to_bytes(4, "little") + file for file in [*files, b""][:2]])


Appendix = tuple[dict[str, np.ndarray], dict[str, Any], bytes]


def read_appendix(model: Model, names: Iterable[str], raw: bytes) -> Appendix:
    """(frozen tensors, config, tokenizer.json) of `Base.appendix`."""
    shapes, found, at = model.shapes(), {}, 0
    for name in names:
        found[name] = np.frombuffer(raw, "<f4", math.prod(shapes[name]), at).reshape(shapes[name])
        at += found[name].nbytes
    length = int.from_bytes(raw[at : at + 4], "little")
    config, rest = raw[at + 4 : at + 4 + length], raw[at + 4 + length :]
    return found, json.loads(config), rest[4:]


def open_base(path: Path, model: Model) -> Base:
    """Read the folder's declarations and hold them against the task's sizes. Raises InvalidArgument."""
    folder = open_folder(path)
    if not model.reads_text:
        if folder.config.get("model_type") != f"computemesh_{model.name}":
            raise bad(f"config.json: model_type must be computemesh_{model.name}")
        return Base(folder, model)
    if folder.config.get("model_type") != "llama":
        raise bad("config.json: model_type must be llama, the family char_transformer belongs to")
    if not (path / "tokenizer.json").is_file():
        raise bad("the folder has no tokenizer.json")
    if (size := (path / "tokenizer.json").stat().st_size) > MAX_TOKENIZER_BYTES:
        raise bad(f"tokenizer.json has {size:,} bytes; at most {MAX_TOKENIZER_BYTES:,} are taken along")
    _hold_against(folder, model)
    rope = folder.config.get("rope_parameters") or folder.config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise bad("config.json: only the default rotary embedding is trained")
    theta = rope.get("rope_theta", folder.config.get("rope_theta", 10000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 <= theta <= 1e9:
        raise bad("config.json: rope_theta must be a number from 1 to 10^9")
    return Base(folder, replace(model, epsilon=float(folder.number("rms_norm_eps", 1e-6, least=0)), theta=float(theta)))


def _hold_against(folder: ModelFolder, model: Model) -> None:
    defaults = {"key_value_heads": folder.config.get("num_attention_heads")}
    for ours, theirs in LLAMA_NAMES.items():
        found = folder.number(theirs, defaults.get(ours))
        if found != model.named[ours]:
            raise bad(f"config.json: {theirs} is {found}, model_architecture says {ours} {model.named[ours]}")
    tied = bool(folder.config.get("tie_word_embeddings", False))
    if tied != bool(model.named["tied"]):
        raise bad(f"config.json: tie_word_embeddings is {tied}, model_architecture says tied {model.named['tied']}")
    head = folder.number("head_dim", model.named["hidden"] // model.named["heads"])
    if head * model.named["heads"] != model.named["hidden"] or folder.config.get("attention_bias"):
        raise bad("config.json: head_dim must be hidden_size / num_attention_heads and attention_bias false")
    if folder.config.get("hidden_act", "silu") != "silu" or folder.config.get("mlp_bias"):
        raise bad("config.json: hidden_act must be silu and mlp_bias false")
