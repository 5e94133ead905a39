"""What an inference task asks for, and how its items are packed into jobs.

A job's params, big-endian, are `HEAD` and then, per item, a u16 length and a text's UTF-8, or 32 bytes of an image's
SHA-256, or nothing where the texts are lines of an artifact.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from computemesh.trust.audit import Layout
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import MAX_PARAMS_BYTES, Estimate, JobSpec
from computemesh.workloads.payload import Payload, Text, Whole, read, refuse

MODES = ("generate", "embed", "classify", "translate")
GENERATE, EMBED, CLASSIFY, TRANSLATE = range(4)
PRECISIONS = ("fast", "exact")
SPAN = 16  # generated tokens per unit
VERSION = 1
HEAD = struct.Struct(">BBBB32s32sIHHII8sQH")
INLINE, LINES, IMAGES = range(3)

MAX_ITEMS = 100_000
MAX_LISTED = 4_096
MAX_TEXT_BYTES = 3_072
MAX_TOKENS = 2_048
MAX_INPUT_TOKENS = 4_096
MAX_TOP_K = 1_024
MAX_PARAMETERS = 2 * 10**11
MAX_FLOPS = 10**19
FLOPS_PER_UNIT = 10**6  # one CPC buys 10**12 operations
# A job of few long texts is one batch on the device, and an audit that samples 8 units looks at few of its texts.
GENERATED_PER_JOB, OTHERS_PER_JOB, LEAST_JOBS = 32, 256, 4
# A task of more generated texts fills its jobs before it has several (docs/decisions/0011).
SPREAD_TEXTS = 16

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_LIST = "1 to 4,096 texts of 1 to 3,072 bytes each"


class Params(Payload):
    model_id: Digest = Field(description="a registered model or a folder artifact's SHA-256 (64 hexadecimal digits)")
    prompt: Text | None = Field(default=None, description="text of 1 to 3,072 bytes")
    prompts: tuple[Text, ...] | None = Field(default=None, min_length=1, max_length=MAX_LISTED, description=_LIST)
    texts: tuple[Text, ...] | None = Field(default=None, min_length=1, max_length=MAX_LISTED, description=_LIST)
    images: tuple[Digest, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_LISTED, description="1 to 4,096 SHA-256 of PNG, JPEG or WebP files"
    )
    prompts_artifact: Digest | None = Field(
        default=None, description="the SHA-256 of a UTF-8 text artifact, one prompt a line (64 hexadecimal digits)"
    )
    items: Whole | None = Field(
        default=None, ge=1, le=MAX_ITEMS, description="the lines of prompts_artifact to use, from 1 to 100,000"
    )
    mode: Literal["generate", "embed", "classify", "translate"] | None = Field(
        default=None, description="generate, embed, classify or translate"
    )
    precision: Literal["fast", "exact"] = Field(default="fast", description="fast or exact")
    max_tokens: Whole = Field(default=64, ge=1, le=MAX_TOKENS, description="a whole number from 1 to 2,048")
    temperature: float = Field(default=0.0, ge=0, le=10, strict=True, description="a number from 0 to 10")
    top_k: Whole = Field(default=0, ge=0, le=MAX_TOP_K, description="a whole number from 0 (= all) to 1,024")
    seed: Text | None = Field(default=None, min_length=1, max_length=128, description="text of 1 to 128 characters")
    max_input_tokens: Whole = Field(
        default=512, ge=1, le=MAX_INPUT_TOKENS, description="the longest input in tokens, from 1 to 4,096"
    )
    model_parameters: Whole = Field(
        default=200_000_000, ge=1, le=MAX_PARAMETERS,
        description="the most weights the model may have, a whole number from 1 to 2 * 10^11; the price is for so many",
    )  # fmt: skip

    @property
    def kind(self) -> int:
        """The mode's number: as said, or classify for images, embed for texts, generate for prompts."""
        if self.mode is not None:
            return MODES.index(self.mode)
        return CLASSIFY if self.images else EMBED if self.texts else GENERATE

    @property
    def listed(self) -> tuple[bytes, ...] | None:
        """The items as a job's params carry them; None where they are lines of an artifact."""
        if self.images is not None:
            return tuple(bytes.fromhex(image) for image in self.images)
        found = (self.prompt,) if self.prompt is not None else self.prompts or self.texts
        return None if found is None else tuple(text.encode() for text in found)

    @property
    def count(self) -> int:
        listed = self.listed
        return int(self.items or 0) if listed is None else len(listed)


class Job(NamedTuple):
    """A job's params, read. `items` are texts or image digests; empty where they are lines of `artifact`."""

    mode: int
    exact: bool
    source: int
    model: bytes
    artifact: bytes
    first: int
    size: int
    max_tokens: int
    temperature: int
    top_k: int
    key: tuple[int, int]
    parameters: int
    max_input_tokens: int
    items: tuple[bytes, ...]

    @property
    def generates(self) -> bool:
        return self.mode in (GENERATE, TRANSLATE)

    @property
    def spans(self) -> int:
        """Units per item."""
        return -(-self.max_tokens // SPAN) if self.generates else 1

    @property
    def layout(self) -> Layout:
        return Layout(1, self.size * self.spans)


def parse(payload: Mapping[str, object]) -> Params:
    """Params of a payload. Raises InvalidArgument per bad field, and where the fields do not go together."""
    params = read(Params, "inference", payload)
    sources = ("prompt", "prompts", "texts", "images", "prompts_artifact")
    named = [name for name in sources if getattr(params, name) is not None]
    if len(named) != 1:
        text = f"exactly one of {', '.join(sources)} must be given, not {len(named)}"
        raise refuse((named[1] if named else "prompt", text))
    if (params.items is None) == (params.prompts_artifact is not None):
        raise refuse(("items", "items says how many lines of prompts_artifact to use; both or neither must be given"))
    if (params.images is None) == (params.kind == CLASSIFY):
        text = f"mode {MODES[params.kind]} does not go with {named[0]}: classify takes images, and only it does"
        raise refuse(("mode", text))
    for number, text_bytes in enumerate(params.listed or ()):
        if not 1 <= len(text_bytes) <= MAX_TEXT_BYTES:
            where = named[0] if named[0] == "prompt" else f"{named[0]}[{number}]"
            text = f"{where} has {len(text_bytes):,} bytes; a text may have 1 to {MAX_TEXT_BYTES:,}"
            raise refuse((named[0], f"{text} (longer ones: prompts_artifact)"))
    if (flops := price(params).flops) > MAX_FLOPS:
        text = f"this asks for {flops:.3g} operations; a task may ask for {MAX_FLOPS:.0e}"
        raise refuse(("model_parameters", f"{text}: lower model_parameters, max_input_tokens, max_tokens or the items"))
    return params


def price(params: Params) -> Estimate:
    """2 operations per weight and token, half as much again for attention and sampling, every item at its longest."""
    tokens = params.max_input_tokens + (params.max_tokens if params.kind in (GENERATE, TRANSLATE) else 0)
    flops = 3 * params.model_parameters * tokens * params.count
    return Estimate(flops, -(-flops // FLOPS_PER_UNIT))


@lru_cache(maxsize=64)
def _bounds(params: Params) -> tuple[int, ...]:
    """Where jobs begin among the items, and their end: `LEAST_JOBS` jobs or more, but full ones of more than
    `SPREAD_TEXTS` generated texts; none longer than its params allow.
    """
    generates = params.kind in (GENERATE, TRANSLATE)
    most = GENERATED_PER_JOB if generates else OTHERS_PER_JOB
    if not generates or params.count <= SPREAD_TEXTS:
        most = min(most, -(-params.count // LEAST_JOBS))
    listed = params.listed
    if listed is None:
        return (*range(0, params.count, most), params.count)
    bounds, room = [0], MAX_PARAMS_BYTES - HEAD.size
    for number, item in enumerate(listed):
        size = len(item) + (0 if params.images else 2)
        if number - bounds[-1] == most or size > room:
            bounds.append(number)
            room = MAX_PARAMS_BYTES - HEAD.size
        room -= size
    return (*bounds, len(listed))


def jobs(params: Params) -> int:
    return len(_bounds(params)) - 1


def make_jobs(params: Params, task_id: bytes, which: range) -> list[JobSpec]:
    """The jobs of a range. Without a seed the task's id is it."""
    bounds, listed = list(pairwise(_bounds(params))), params.listed
    seed = task_id if params.seed is None else params.seed.encode()
    key = tagged("computemesh.v1/inference/seed", seed)[:8]
    source = LINES if listed is None else IMAGES if params.images else INLINE
    memory = params.model_parameters * (2 if params.precision == "exact" else 4)

    def wire(first: int, end: int) -> bytes:
        head = HEAD.pack(
            VERSION, params.kind, PRECISIONS.index(params.precision), source, bytes.fromhex(params.model_id),
            bytes.fromhex(params.prompts_artifact or "00" * 32), first, end - first, params.max_tokens,
            round(params.temperature * 2**16), params.top_k, key, params.model_parameters, params.max_input_tokens,
        )  # fmt: skip
        items = () if listed is None else listed[first:end]
        return head + b"".join(item if source == IMAGES else struct.pack(">H", len(item)) + item for item in items)

    return [JobSpec(task_id, i, wire(*bounds[i]), device_memory_bytes=memory) for i in which]


def bad_params(text: str) -> InvalidArgument:
    return InvalidArgument(f"params of an inference job: {text}", violations=[("params", text)])


def _items(data: bytes, source: int, count: int) -> tuple[bytes, ...]:
    if source == LINES:
        found, at = [], 0
    elif source == IMAGES:
        found, at = [data[i * 32 : (i + 1) * 32] for i in range(count)], count * 32
    else:
        found, at = [], 0
        for _ in range(count):
            length = int.from_bytes(data[at : at + 2], "big")
            found.append(data[at + 2 : at + 2 + length])
            at += 2 + length
    if at != len(data):
        raise bad_params(f"{len(data)} bytes after the head are not {count} items")
    return tuple(found)


def read_job(spec: JobSpec) -> Job:
    """Params as they came from the network. Raises InvalidArgument where they are not this type's layout."""
    if not HEAD.size <= len(spec.params) <= MAX_PARAMS_BYTES:
        raise bad_params(f"{len(spec.params)} bytes, not {HEAD.size} to {MAX_PARAMS_BYTES}")
    fields: tuple[Any, ...] = HEAD.unpack_from(spec.params)
    version, mode, precision, source, model, artifact, first, count, max_tokens, temperature, top_k, key = fields[:12]
    if version != VERSION or mode >= len(MODES) or precision >= len(PRECISIONS) or source > IMAGES:
        raise bad_params(f"version {version}, mode {mode}, precision {precision}, source {source}")
    most = GENERATED_PER_JOB if mode in (GENERATE, TRANSLATE) else OTHERS_PER_JOB
    if not 1 <= count <= most or first + count > MAX_ITEMS or not 1 <= max_tokens <= MAX_TOKENS:
        raise bad_params(f"items {first} to {first + count}, max_tokens {max_tokens}")
    if temperature > 10 * 2**16 or top_k > MAX_TOP_K or (source == IMAGES) != (mode == CLASSIFY):
        raise bad_params(f"temperature {temperature}, top_k {top_k}, source {source}")
    if not 1 <= fields[12] <= MAX_PARAMETERS or not 1 <= fields[13] <= MAX_INPUT_TOKENS:
        raise bad_params(f"model_parameters {fields[12]}, max_input_tokens {fields[13]}")
    items = _items(spec.params[HEAD.size :], source, count)
    words = struct.unpack(">II", key)
    return Job(
        mode, precision == 1, source, model, artifact, first, count, max_tokens, temperature, top_k,
        (words[0], words[1]), fields[12], fields[13], items,
    )  # fmt: skip


def layout(spec: JobSpec) -> Layout:
    return read_job(spec).layout


def inputs(params: Params) -> list[bytes]:
    """The model's folder, and the artifact of prompts or the images."""
    others = params.images or ((params.prompts_artifact,) if params.prompts_artifact else ())
    return list(dict.fromkeys(bytes.fromhex(digest) for digest in (params.model_id, *others)))


def job_inputs(spec: JobSpec) -> list[bytes]:
    job = read_job(spec)
    others = (job.artifact,) if job.source == LINES else job.items if job.source == IMAGES else ()
    return list(dict.fromkeys((job.model, *others)))
