"""Models as a task uses them: found by what config.json calls them, loaded once, fed with text or images.

One process keeps the last `KEPT` of them on its device. Texts of a batch are padded to buckets, so shapes repeat.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from computemesh.kernels.models import floating, integer
from computemesh.kernels.models.decoder import GPT2, Llama
from computemesh.kernels.models.encoder import Bert, ViT
from computemesh.kernels.models.folder import ModelFolder, bad, open_folder
from computemesh.kernels.models.generation import Generator, bucket
from computemesh.kernels.models.seq2seq import T5
from computemesh.trust.errors import InvalidArgument

KEPT = 2
BATCH = 8
FAMILIES: dict[str, dict[str, Any]] = {
    "generate": {"llama": Llama, "mistral": Llama, "qwen2": Llama, "gpt2": GPT2},
    "embed": {"bert": Bert},
    "classify": {"vit": ViT},
    "translate": {"t5": T5},
}
MAX_LINE_BYTES = 2**20
MAX_IMAGE_BYTES = 64 * 2**20


class Loaded:
    """A model on a device, with its tokenizer where it reads text."""

    def __init__(self, folder: ModelFolder, mode: str, exact: bool, most_parameters: int = 2**62) -> None:
        kind = str(folder.config.get("model_type"))
        families = FAMILIES[mode]
        if kind not in families:
            known = ", ".join(families)
            raise bad(f"config.json: a model of type {kind[:40]!r} cannot {mode}; those that can are {known}")
        self.model = families[kind](folder)
        shapes = self.model.shapes()
        self.parameters = folder.parameters(shapes.values())
        self.bound(most_parameters)
        self.ops = integer if exact else floating
        self.tokenizer = None if mode == "classify" else folder.tokenizer()
        with self.types():
            self.weights = self.model.prepare(self.ops, folder.read(shapes))
        self.end_tokens_array = np.array(folder.end_tokens(), np.int32)
        self.first_token = folder.config.get("bos_token_id")
        self.generator = Generator(self.model, self.ops, self.weights, folder.end_tokens())
        traces = self.generator.traces

        def run(name: str) -> Any:
            def traced(weights: Any, *arguments: Any) -> Any:
                traces[name] += 1
                return getattr(self.model, name)(self.ops, weights, *arguments)

            return jax.jit(traced)

        self._jitted = {name: run(name) for name in ("embed", "classify", "encode") if hasattr(self.model, name)}

    def bound(self, most_parameters: int) -> None:
        """Raises InvalidArgument where the model is larger than the task pays for."""
        if self.parameters > most_parameters:
            raise bad(f"the model has {self.parameters:,} weights; the task pays for at most {most_parameters:,}")

    def types(self) -> Any:
        return jax.enable_x64(True) if self.ops.EXACT else nullcontext()

    def encode(self, texts: Sequence[str], first: int, most: int, room: int = 0) -> list[list[int]]:
        """Token ids of texts, numbered from `first`. A text for an embedding is cut at the model's limit; another that
        has more than `most` tokens, or with `room` tokens more would not fit, is refused. Raises InvalidArgument.
        """
        assert self.tokenizer is not None
        found = []
        for number, encoding in enumerate(self.tokenizer.encode_batch(list(texts)), first):
            ids = list(encoding.ids)
            if isinstance(self.model, Bert):
                end = ids[-1:]
                ids = ids if len(ids) <= self.model.context else ids[: self.model.context - 1] + end
            if not ids and isinstance(self.first_token, int):
                ids = [self.first_token]
            if not 1 <= len(ids) <= min(most, self.model.context - room):
                limit = f"at most {min(most, self.model.context - room):,} with max_tokens {room}"
                raise InvalidArgument(f"input {number} has {len(ids):,} tokens; this model and task take {limit}")
            if max(ids) >= self.model.vocabulary:
                raise bad(f"tokenizer.json gives token {max(ids)}, the model knows {self.model.vocabulary:,}")
            found.append(ids)
        return found

    def decode(self, tokens: np.ndarray) -> str:
        """The text of generated tokens; padding and special tokens are left out."""
        assert self.tokenizer is not None
        known = self.tokenizer.get_vocab_size()
        return str(self.tokenizer.decode([int(t) for t in tokens if 0 <= t < known], skip_special_tokens=True))

    @staticmethod
    def _padded(texts: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((rows, bucket(max(map(len, texts)))), np.int32)
        lengths = np.ones(rows, np.int32)
        for i, ids in enumerate(texts):
            tokens[i, : len(ids)], lengths[i] = ids, len(ids)
        return tokens, lengths

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Token ids -> unit vectors (len(texts), width) float32, texts of like length together in batches of 8."""
        out = np.zeros((len(texts), self.model.width), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with self.types():
            for at in range(0, len(order), BATCH):
                rows = order[at : at + BATCH]
                tokens, lengths = self._padded([texts[i] for i in rows], BATCH)
                out[rows] = np.asarray(self._jitted["embed"](self.weights, tokens, lengths))[: len(rows)]
        return out

    def classify(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images (size, size, 3) uint8 -> class probabilities (len(images), classes) float32."""
        out = []
        with self.types():
            for at in range(0, len(images), BATCH):
                some = [self.model.patches_of(image) for image in images[at : at + BATCH]]
                patches = np.zeros((BATCH, *some[0].shape), np.float32)
                patches[: len(some)] = some
                fixed = np.rint(patches * 65536).astype(np.int32) if self.ops.EXACT else patches
                out.append(np.asarray(self._jitted["classify"](self.weights, fixed))[: len(some)])
        return np.concatenate(out)

    def memory(self, texts: Sequence[Sequence[int]], rows: int) -> Any:
        """What a decoder attends to: the encoder's output for `rows` texts; None for a model without encoder."""
        if "encode" not in self._jitted:
            return None
        with self.types():
            return self._jitted["encode"](self.weights, *self._padded(texts, rows))


_kept: OrderedDict[tuple[Any, ...], Loaded] = OrderedDict()


def load(path: Path, digest: bytes, mode: str, exact: bool, most_parameters: int, device: Any = None) -> Loaded:
    """The model of a folder with this digest, loaded at its first use. Raises InvalidArgument on a bad folder."""
    key = (digest, mode, exact, device)
    if key not in _kept:
        while len(_kept) >= KEPT:
            _kept.popitem(last=False)
        with jax.default_device(device):
            _kept[key] = Loaded(open_folder(path), mode, exact, most_parameters)
    _kept.move_to_end(key)
    _kept[key].bound(most_parameters)  # also where another task, which paid for more, had it loaded
    return _kept[key]


def lines(path: Path, first: int, count: int) -> list[str]:
    """Lines first .. first + count - 1 of a UTF-8 file; one that is a JSON string stands for its value.

    Raises InvalidArgument where there are fewer, or one is too long or no UTF-8.
    """
    found: list[str] = []
    with path.open("rb") as stream:
        for number in range(first + count):
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line or len(line) > MAX_LINE_BYTES:
                what = "is missing" if not line else f"has more than {MAX_LINE_BYTES:,} bytes"
                raise InvalidArgument(f"prompts_artifact: line {number + 1} {what}")
            if number < first:
                continue
            try:
                text = line.decode().rstrip("\r\n")
                value = json.loads(text) if text.startswith('"') and text.endswith('"') else text
            except UnicodeDecodeError:
                raise InvalidArgument(f"prompts_artifact: line {number + 1} is not UTF-8") from None
            except ValueError:
                value = text
            found.append(value if isinstance(value, str) else text)
    return found


def pixels(path: Path, size: int, most_pixels: int = 2**26) -> np.ndarray:
    """A PNG, JPEG or WebP file as (size, size, 3) uint8, resized bilinearly. Raises InvalidArgument."""
    from PIL import Image, UnidentifiedImageError

    if (length := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise InvalidArgument(f"an image of {length:,} bytes; at most {MAX_IMAGE_BYTES:,} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns of large ones; the limit below refuses them
            image = Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > most_pixels:
                raise InvalidArgument(f"an image of {image.width:,} x {image.height:,} pixels; at most 2^26 are read")
            small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidArgument(f"an image could not be read: {str(error)[:200]}") from None
    return np.asarray(small, np.uint8)
