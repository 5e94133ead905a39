"""Hugging Face style model folders: `config.json`, `model.safetensors` (or its shards), `tokenizer.json`.

The folder is somebody else's. Everything is bounded by what the file headers say before it is allocated, nothing in
it is executed, and a folder with a pickle in it is refused even where nobody would open that file. No JAX here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from computemesh.trust.errors import InvalidArgument

MAX_JSON_BYTES = 4 * 2**20
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 16 * 2**20  # of 291 tensors (Llama 7B) a header is 30 KiB
MAX_TENSORS = 100_000
MAX_FILES = 1_000
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".npy", ".dill", ".pyz"}
PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as its file's header declares it; `dtype` is the safetensors name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def bad(text: str) -> InvalidArgument:
    """A refusal of a model folder."""
    return InvalidArgument(f"model: {text}", violations=[("model_id", text)])


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes. Raises InvalidArgument."""
    if not path.is_file():
        raise bad(f"the folder has no {path.name}")
    if (size := path.stat().st_size) > limit:
        raise bad(f"{path.name} has {size:,} bytes; at most {limit:,} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise bad(f"{path.name} is not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise bad(f"{path.name} is not a JSON object")
    return value


def refuse_pickles(path: Path) -> None:
    """Raises InvalidArgument where the folder holds a file that is, or is named like, a pickle or an archive of one."""
    for number, file in enumerate(sorted(p for p in path.rglob("*") if not p.is_dir())):
        name = file.relative_to(path)
        if number >= MAX_FILES:
            raise bad(f"the folder has more than {MAX_FILES:,} files")
        if file.is_symlink() and not file.resolve().is_file():
            raise bad(f"{name} is a broken link")
        with file.open("rb") as stream:
            start = stream.read(4)
        if file.suffix.lower() in PICKLE_SUFFIXES or start.startswith(PICKLE_STARTS) or start == b"PK\x03\x04":
            raise bad(f"{name} is a pickle or may hold one; only safetensors weights are accepted")


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors a safetensors file declares, checked against the file's length; nothing else is read.

    Format: u64 little-endian header length, JSON header, data (github.com/huggingface/safetensors). Raises
    InvalidArgument.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if length > MAX_HEADER_BYTES:
            raise bad(f"{file.name} declares a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        if length < 2 or 8 + length > size:
            raise bad(f"{file.name} has {size:,} bytes, too few for the header of {length:,} it declares")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise bad(f"the header of {file.name} is not JSON") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise bad(f"the header of {file.name} is not an object of at most {MAX_TENSORS:,} tensors")
    header.pop("__metadata__", None)
    return {name: _tensor(file, name, entry, size - 8 - length) for name, entry in header.items()}


def _tensor(file: Path, name: str, entry: Any, data_bytes: int) -> Tensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or len(shape) > 8:
        raise bad(f"{file.name}: tensor {name[:80]!r} has no dtype, shape and data_offsets")
    expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if not begin <= end <= data_bytes or (dtype in ITEM_BYTES and end - begin != expected):
        raise bad(f"{file.name}: tensor {name[:80]!r} of shape {list(shape)[:8]} does not lie in the file")
    return Tensor(file, dtype, shape)


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose declarations were read and bounded; `read` gives the weights, `tokenizer` the tokenizer."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def number(self, name: str, default: float | None = None, *, least: float = 1, most: float = 2**20) -> Any:
        """A number of config.json between the bounds. Raises InvalidArgument naming it."""
        value = self.config.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise bad(f"config.json: {name} must be a number from {least} to {most}, not {str(value)[:40]}")
        return value

    def optional_json(self, name: str) -> dict[str, Any]:
        """A further JSON file of the folder; empty where there is none."""
        return read_json(self.path / name) if (self.path / name).is_file() else {}

    def parameters(self, shapes: Iterable[tuple[int, ...]]) -> int:
        """Weights in tensors of these shapes."""
        return sum(math.prod(shape) for shape in shapes)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises InvalidArgument on the first tensor that is missing, of another shape or of no float type."""
        for name, shape in shapes.items():
            found = self.tensors.get(name)
            if found is None:
                raise bad(f"tensor {name!r} is missing")
            if found.shape != shape:
                raise bad(f"tensor {name!r} has shape {list(found.shape)}, config.json asks for {list(shape)}")
            if found.dtype not in ITEM_BYTES:
                raise bad(f"tensor {name!r} has dtype {found.dtype}; known are {', '.join(ITEM_BYTES)}")

    def read(self, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], np.ndarray]:
        """After `check`, a reader of tensors as float32, one at a time. Raises InvalidArgument also on NaN or infinity.

        Files are mapped, so only the tensor asked for is in memory.
        """
        from safetensors import SafetensorError, safe_open

        self.check(shapes)
        try:
            opened = {t.file: safe_open(str(t.file), framework="numpy") for t in self.tensors.values()}
        except (SafetensorError, OSError) as error:
            raise bad(f"safetensors refuses the weights: {str(error)[:200]}") from None

        def tensor(name: str) -> np.ndarray:
            array = np.asarray(opened[self.tensors[name].file].get_tensor(name)).astype(np.float32)
            if not np.isfinite(array).all():
                raise bad(f"tensor {name!r} holds NaN or infinity")
            return array

        return tensor

    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`, without the padding and truncation it may ask for. Raises InvalidArgument."""
        from tokenizers import Tokenizer

        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise bad("the folder has no tokenizer.json")
        if (size := file.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise bad(f"tokenizer.json has {size:,} bytes; at most {MAX_TOKENIZER_BYTES:,} are read")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise bad(f"tokenizer.json is not a tokenizer: {str(error)[:200]}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a generated text, of generation_config.json or config.json; none where neither names one."""
        for source in (self.optional_json("generation_config.json"), self.config):
            value = source.get("eos_token_id")
            ids = value if isinstance(value, list) else [value]
            found = tuple(sorted({i for i in ids if type(i) is int and 0 <= i < 2**31}))[:64]
            if found:
                return found
        return ()


def open_folder(path: Path) -> ModelFolder:
    """Read and bound everything a model folder declares. Raises InvalidArgument saying what is wrong with it."""
    refuse_pickles(path)
    config = read_json(path / "config.json")
    if (path / "model.safetensors").is_file():
        files = [path / "model.safetensors"]
    elif (path / "model.safetensors.index.json").is_file():
        names = read_json(path / "model.safetensors.index.json", MAX_HEADER_BYTES).get("weight_map")
        if not isinstance(names, dict):
            raise bad("model.safetensors.index.json has no weight_map")
        files = [path / str(name) for name in sorted(set(map(str, names.values())))]
    else:
        raise bad("the folder has no model.safetensors")
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.parent != path or not file.is_file() or file.suffix != ".safetensors":
            raise bad(f"weights file {file.name[:80]!r} is not in the folder")
        tensors |= read_header(file)
    return ModelFolder(path, config, tensors)
