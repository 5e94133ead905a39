"""Datasets of a `training` task: `.npz` files with x and y, and UTF-8 text. No JAX here.

A dataset is somebody else's file. Sizes are read from its headers and bounded before anything is allocated; object
arrays, which would be pickles, are refused by their dtype.

The order of examples is a function of the task's seed alone. Pass p over N rows is a permutation, the order of N
64-bit numbers of BLAKE3's extended output; example e of shard s of W stands at e * W + s of the endless row of passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from computemesh.kernels.models.folder import open_folder
from computemesh.kernels.npz import read_arrays
from computemesh.kernels.training.architectures import Model
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument

MAX_FILE_BYTES = 2**28
MAX_ARRAY_BYTES = 2**29
MAX_ROWS = 2**22
MAX_TOKENIZED_BYTES = 2**25  # a tokenizer holds some hundred bytes per token
UNKNOWN = "\ufffd"


def bad(text: str) -> InvalidArgument:
    """A refusal of a dataset."""
    return InvalidArgument(f"dataset: {text}", violations=[("dataset", text)])


def _bytes(path: Path) -> int:
    size = path.stat().st_size
    if size == 0:
        raise bad("the file has zero bytes")
    if size > MAX_FILE_BYTES:
        raise bad(f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    return size


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    _bytes(path)
    found = read_arrays(path, ("x", "y"), "dataset", MAX_ARRAY_BYTES)
    return found["x"], found["y"]


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not (good := np.isfinite(array)).all():
        at = np.argwhere(~good)[0].tolist()
        raise bad(f"array {name!r} holds NaN or infinity, first at {at[:8]}")
    return array


Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Data:
    """Rows to draw; `take(rows, shifts)` gives x (n, *row) and y. `alphabet` are a text's characters (V,) uint32,
    by token, empty elsewhere; `step` is how far a text's windows may be shifted from one pass to the next.
    """

    rows: int
    take: Callable[[np.ndarray, np.ndarray], Batch]
    alphabet: np.ndarray
    step: int = 1

    def batch(self, seed: bytes, examples: range, shard: int, shards: int) -> Batch:
        """Examples `examples` of one shard, in order."""
        place = np.arange(examples.start, examples.stop, dtype=np.int64) * shards + shard
        passes, position = place // self.rows, place % self.rows
        rows, shifts = np.empty_like(place), np.empty_like(place)
        for number in np.unique(passes).tolist():
            order, shift = _order(seed, number, self.rows, self.step)
            here = passes == number
            rows[here], shifts[here] = order[position[here]], shift
        return self.take(rows, shifts)


@lru_cache(maxsize=4)
def _order(seed: bytes, number: int, rows: int, step: int) -> tuple[np.ndarray, int]:
    key = tagged("computemesh.v1/training/pass", seed + number.to_bytes(8, "big"))
    words = np.frombuffer(blake3(key).digest(length=8 * rows + 8), "<u8")
    return np.argsort(words[1:], kind="stable"), int(words[0]) % step


@lru_cache(maxsize=2)
def arrays(path: Path, model: Model) -> Data:
    """x (N, ...) and y (N,) or (N, outputs) of an .npz. Integers in y are classes, floats are values to meet.

    x of uint8 is divided by 255, all else taken as it is. Raises InvalidArgument on what does not fit the model.
    """
    x, y = _arrays(path)
    inputs, found = math.prod(model.row), math.prod(x.shape[1:]) if x.ndim > 1 else 0
    if x.ndim < 2 or len(x) == 0 or found != inputs:
        raise bad(f"x has shape {list(x.shape)[:8]}; the model takes rows of {inputs:,} numbers, {list(model.row)}")
    if len(x) > MAX_ROWS:
        raise bad(f"x has {len(x):,} rows; at most {MAX_ROWS:,} are read")
    if y.ndim < 1 or len(y) != len(x):
        raise bad(f"y has shape {list(y.shape)[:8]}, x has {len(x):,} rows")
    classes = y.dtype.kind in "iub"
    if classes and (y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= model.outputs):
        raise bad(f"y of shape {list(y.shape)[:8]} holds {y.min()} to {y.max()}; classes are 0 to {model.outputs - 1}")
    if not classes and math.prod(y.shape[1:]) != model.outputs:
        raise bad(f"y has shape {list(y.shape)[:8]}; the model gives {model.outputs:,} values per row")
    targets = y.astype(np.int32) if classes else _finite("y", y)
    values = x if x.dtype == np.uint8 else _finite("x", x)
    scale = np.float32(1 / 255) if x.dtype == np.uint8 else np.float32(1)

    def take(rows: np.ndarray, shifts: np.ndarray) -> Batch:
        return values[rows].reshape(-1, *model.row).astype(np.float32) * scale, targets[rows]

    return Data(len(x), take, np.empty(0, np.uint32))


def _tokens(path: Path, vocabulary: int, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, alphabet) of a text file. Token 0 stands for characters outside the alphabet."""
    size = _bytes(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise bad(f"the file is not UTF-8 text: byte {error.start:,} cannot be decoded") from None
    if tokenizer is not None:
        if size > MAX_TOKENIZED_BYTES:
            raise bad(f"the file has {size:,} bytes; at most {MAX_TOKENIZED_BYTES:,} are tokenized")
        ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        if len(ids) and int(ids.max()) >= vocabulary:
            raise bad(f"the tokenizer gives token {ids.max()}; the model knows {vocabulary:,}")
        return ids, np.empty(0, np.uint32)
    points, counts = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_counts=True)
    frequent = np.lexsort((points, -counts))[: vocabulary - 1]
    alphabet = np.sort(points[frequent][points[frequent] != ord(UNKNOWN)]).astype(np.uint32)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    at = np.searchsorted(alphabet, points).clip(max=max(len(alphabet) - 1, 0))
    known = alphabet[at] == points if len(alphabet) else np.zeros(len(points), bool)
    return np.where(known, at + 1, 0).astype(np.int32), np.concatenate([[np.uint32(ord(UNKNOWN))], alphabet])


@lru_cache(maxsize=2)
def characters(path: Path, model: Model, folder: Path | None = None) -> Data:
    """Windows of `context` tokens and their successors. The tokens are those of the folder's tokenizer.json, or
    without a folder the text's `vocabulary - 1` most frequent characters, in the order of their code points.

    Raises InvalidArgument on a file that is empty, no UTF-8, or shorter than two windows.
    """
    context = model.named["context"]
    tokenizer = open_folder(folder).tokenizer() if folder is not None else None
    tokens, alphabet = _tokens(path, model.named["vocabulary"], tokenizer)
    if len(tokens) < 2 * context:
        raise bad(f"the text has {len(tokens):,} tokens; two windows of context {context} are the least")
    padded = np.zeros(model.named["vocabulary"] if len(alphabet) else 0, np.uint32)
    padded[: len(alphabet)] = alphabet
    rows = min((len(tokens) - context) // context, MAX_ROWS)  # one window less, so that every shift fits

    def take(at: np.ndarray, shifts: np.ndarray) -> Batch:
        windows = tokens[(at * context + shifts)[:, None] + np.arange(context + 1)]
        return windows[:, :-1], windows[:, 1:]

    return Data(rows, take, padded, context)


def stack(parts: Sequence[Batch]) -> Batch:
    """Batches of equal shape to (steps, batch, ...)."""
    return np.stack([x for x, _ in parts]), np.stack([y for _, y in parts])
