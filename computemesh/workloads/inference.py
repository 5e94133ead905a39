"""`inference`: text generation, embeddings, image classes and translation from Hugging Face style model folders.

A job is a batch of items (prompts, texts or images). Its output is per item, in order, `u32 length || record`
(lengths big-endian, all else little-endian):

    generate, translate   tokens int32[max_tokens] || log-probabilities float32[max_tokens] || text UTF-8
    embed                 float32[width], of Euclidean length 1
    classify              up to 5 of: u32 class || float32 probability || u16 length || label UTF-8

A unit of embed and classify is a record. A generated text has a unit per 16 tokens, which is *all tokens up to there*
and their log-probabilities, and in the last unit the text too. So a unit is judged alone: one forward pass over prompt
and claimed tokens (no decoding) shows whether each token was the argmax of logits + temperature * noise, noise being
counter-based (`kernels.models.noise`). One pass judges every challenged unit of an item.

Precision `fast` is float32. A token may fall short of the argmax, and log-probabilities may differ, by `MARGIN` (in
logits): decoding from a cache in batches and one pass over the text differ by rounding, below 1e-4 in all models
tried. A bfloat16 or int8 model's log-probabilities are off by 1e-2, so that one unit of either is refused. Who
generates cheaply and then makes honest log-probabilities in one pass is caught where a token falls short by more; what
the margin leaves him are tokens within 1e-3 of the best (measured in bench/rows/inference.py). Embeddings may differ
by `EMBEDDING_TOLERANCE` per component, probabilities by `PROBABILITY_TOLERANCE`.

Precision `exact` is integers only (`kernels.models.integer`): margin 0, and equal result hashes anywhere.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from computemesh.trust.errors import InvalidProof
from computemesh.workloads.contract import Artifact, Claim, Context, JobResult, JobSpec, Outcome, Workload
from computemesh.workloads.inference_job import (
    CLASSIFY,
    EMBED,
    LINES,
    MODES,
    SPAN,
    TRANSLATE,
    Job,
    Params,
    bad_params,
    inputs,
    job_inputs,
    jobs,
    layout,
    make_jobs,
    parse,
    price,
    read_job,
)

if TYPE_CHECKING:
    from computemesh.kernels.models.loaded import Loaded

MARGIN = 1e-3
EMBEDDING_TOLERANCE = 1e-5
PROBABILITY_TOLERANCE = 1e-4
TOP_CLASSES = 5
MAX_WIDTH_BYTES = 4 * 2**16
MAX_LABEL_BYTES = 800
MAX_TOKEN_BYTES = 64  # of text a token may stand for on average, in an output's limit
SAMPLE_SIZE = 8

_U32 = struct.Struct(">I")
_CLASS = struct.Struct("<IfH")


def _load(spec: JobSpec, job: Job, device: Any = None) -> Loaded:
    """The job's model on a device. Raises InvalidArgument on a folder that is none, NotFound on a missing artifact."""
    from computemesh.kernels.models.loaded import load

    if spec.files is None:
        raise bad_params("an inference job reads a model folder, and nobody lends it files")
    mode = MODES[job.mode]
    return load(spec.files.folder(job.model), job.model, mode, job.exact, job.parameters, device)


def _read_items(spec: JobSpec, job: Job, loaded: Loaded, which: Sequence[int]) -> list[Any]:
    """The inputs of items `which` of the job as its model takes them: token ids, or pixels."""
    from computemesh.kernels.models.loaded import lines, pixels

    files = spec.files
    assert files is not None
    if job.mode == CLASSIFY:
        return [pixels(files.artifact(job.items[i]), loaded.model.image) for i in which]
    if job.source == LINES:
        text = lines(files.artifact(job.artifact), job.first, job.size)
        texts = [text[i] for i in which]
    else:
        texts = [_utf8(job.items[i]) for i in which]
    room = job.max_tokens if job.mode == 0 else 0
    found: list[Any] = []
    for i, one in zip(which, texts, strict=True):
        found += loaded.encode([one], job.first + i, job.max_input_tokens, room)
    return found


def _utf8(item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError:
        raise bad_params("a text is not UTF-8") from None


def _begun(job: Job, loaded: Loaded, items: Sequence[Any]) -> tuple[list[list[int]], Any]:
    """What generation goes on from: prompts and no memory, or start tokens and the encoder's memory of the items."""
    if job.mode != TRANSLATE:
        return list(items), None
    return [[loaded.model.start]] * len(items), loaded.memory(items, loaded.generator.rows(len(items)))


def _sampling(job: Job) -> Any:
    from computemesh.kernels.models.generation import Sampling

    return Sampling(job.key, job.temperature, job.top_k)


def _records(spec: JobSpec, job: Job, loaded: Loaded, context: Context) -> Iterator[bytes]:
    items = _read_items(spec, job, loaded, range(job.size))
    if job.mode == EMBED:
        yield from (row.astype("<f4").tobytes() for row in loaded.embed(items))
    elif job.mode == CLASSIFY:
        yield from (_classes(row, loaded.model.labels) for row in loaded.classify(items))
    else:
        texts, memory = _begun(job, loaded, items)
        numbers = range(job.first, job.first + job.size)
        shown = context.partial if job.size == 1 else None
        tokens, logs = loaded.generator.generate(
            texts, numbers, _sampling(job), job.max_tokens, memory, context.progress,
            # A character that is not whole yet reads as U+FFFD.
            shown and (lambda tokens: shown(loaded.decode(tokens).rstrip("\ufffd"))),
        )  # fmt: skip
        for row, log in zip(tokens, logs, strict=True):
            yield row.astype("<i4").tobytes() + log.astype("<f4").tobytes() + loaded.decode(row).encode()


def _classes(row: np.ndarray, labels: Sequence[str]) -> bytes:
    """The record of a row of probabilities; equal ones by ascending class."""
    out = b""
    for i in np.argsort(-row, kind="stable")[:TOP_CLASSES]:
        label = labels[i].encode()
        out += _CLASS.pack(int(i), float(row[i]), len(label)) + label
    return out


def _unit(job: Job, record: bytes, span: int) -> bytes:
    """Unit `span` of an item with this record."""
    if not job.generates or span == job.spans - 1:
        return record
    end, logs = 4 * SPAN * (span + 1), 4 * job.max_tokens
    return record[:end] + record[logs : logs + end]


def _units(job: Job, output: bytes) -> Iterator[bytes]:
    """The units an output shows, in order. Raises InvalidProof where it is not one of this job."""
    at = 0
    for item in range(job.size):
        length = _U32.unpack_from(output, at)[0] if at + 4 <= len(output) else len(output)
        record = output[at + 4 : at + 4 + length]
        if len(record) != length or (job.generates and length < 8 * job.max_tokens):
            text = f"the output has {len(output):,} bytes, too few for item {item} of {job.size}"
            raise InvalidProof(text, violations=[("output", text)])
        at += 4 + length
        for span in range(job.spans):
            yield _unit(job, record, span)
    if at != len(output):
        text = f"the output has {len(output) - at:,} bytes after its last item"
        raise InvalidProof(text, violations=[("output", text)])


def execute(spec: JobSpec, context: Context) -> Outcome:
    """Run the job's items as one batch. Raises InvalidArgument where model or inputs are refused, NotFound."""
    import jax

    job = read_job(spec)
    device = context.device if context.device is not None else jax.devices()[0]
    with jax.default_device(device):
        loaded = _load(spec, job, device)
        context.progress(0.0)
        output = b"".join(_U32.pack(len(record)) + record for record in _records(spec, job, loaded, context))
    units = list(_units(job, output))
    return Outcome(b"".join(blake3(unit).digest() for unit in units), units.__getitem__, output)


def output_bytes(spec: JobSpec) -> int:
    job = read_job(spec)
    if job.generates:
        return job.size * (4 + job.max_tokens * (8 + MAX_TOKEN_BYTES))
    return job.size * (4 + max(MAX_WIDTH_BYTES, TOP_CLASSES * (_CLASS.size + MAX_LABEL_BYTES)))


def output_digests(spec: JobSpec, output: bytes) -> dict[int, bytes]:
    """The digest of every unit; raises InvalidProof on an output whose lengths do not fit the job."""
    return {i: blake3(unit).digest() for i, unit in enumerate(_units(read_job(spec), output))}


def _read_unit(job: Job, span: int, unit: bytes) -> tuple[np.ndarray, np.ndarray, bytes] | None:
    """Tokens, log-probabilities and text of a generated unit; None where its length is no unit's."""
    last = span == job.spans - 1
    n = job.max_tokens if last else SPAN * (span + 1)
    if len(unit) < 8 * n or (len(unit) > 8 * n and not last):
        return None
    return np.frombuffer(unit, "<i4", n), np.frombuffer(unit, "<f4", n, 4 * n), unit[8 * n :]


def _ended(tokens: np.ndarray, ends: np.ndarray) -> int:
    """Tokens up to and with the first end token; all where there is none."""
    found = np.flatnonzero(np.isin(tokens, ends))
    return int(found[0]) + 1 if len(found) else len(tokens)


def _good_positions(
    job: Job, loaded: Loaded, item: int, begun: tuple[list[int], Any], tokens: np.ndarray, logs: np.ndarray
) -> np.ndarray:
    """Which positions of claimed tokens and log-probabilities may stand: one forward pass."""
    live = _ended(tokens, loaded.end_tokens_array)
    good = np.concatenate([np.zeros(live, bool), (tokens[live:] == -1) & (logs[live:].view(np.uint32) == 0)])
    known = (tokens[:live] >= 0) & (tokens[:live] < loaded.model.vocabulary)
    if not known.all():
        return good  # an impossible token makes all before it worthless too: nothing is computed for it
    margin = 0.0 if job.exact else MARGIN
    found = loaded.generator.judge(begun[0], job.first + item, _sampling(job), tokens[:live], margin, begun[1])
    good[:live] = found.good & (np.abs(found.log_probability - logs[:live]) <= margin)
    return good


def _check_generated(
    spec: JobSpec, job: Job, loaded: Loaded, item: int, claims: Sequence[Claim]
) -> list[bytes | None]:
    """Units of one item, the longest first: those that are its beginnings share its forward pass."""
    texts, memory = _begun(job, loaded, _read_items(spec, job, loaded, [item]))
    found: dict[int, bytes | None] = {}
    longest: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    for at in sorted(range(len(claims)), key=lambda i: -claims[i].index):
        claim, span = claims[at], claims[at].index % job.spans
        found[at] = None
        if (parts := _read_unit(job, span, claim.unit)) is None:
            continue
        tokens, logs, text = parts
        n = len(tokens)
        claimed = tokens.tobytes(), logs.tobytes()
        if longest is None or (longest[0][:n].tobytes(), longest[1][:n].tobytes()) != claimed:
            longest = tokens, logs, _good_positions(job, loaded, item, (texts[0], memory), tokens, logs)
        told = span < job.spans - 1 or loaded.decode(tokens).encode() == text
        if told and longest[2][:n].all():
            found[at] = blake3(claim.unit).digest()
    return [found[at] for at in range(len(claims))]


def _same_embedding(job: Job, row: np.ndarray, unit: bytes) -> bool:
    if len(unit) != 4 * len(row):
        return False
    apart = np.abs(np.frombuffer(unit, "<f4") - row)
    return bool((apart <= (0.0 if job.exact else EMBEDDING_TOLERANCE)).all())


def _same_classes(job: Job, row: np.ndarray, labels: Sequence[str], unit: bytes) -> bool:
    """Whether the unit names the most probable classes: each within the tolerance of its own probability and of the
    one that belongs at its place.
    """
    tolerance = 0.0 if job.exact else PROBABILITY_TOLERANCE
    if job.exact:
        return unit == _classes(row, labels)
    best, at, seen = np.sort(row)[::-1], 0, set()
    for place in range(min(TOP_CLASSES, len(row))):
        if at + _CLASS.size > len(unit):
            return False
        number, probability, length = _CLASS.unpack_from(unit, at)
        label = unit[at + _CLASS.size : at + _CLASS.size + length]
        at += _CLASS.size + length
        if number >= len(row) or number in seen or label != labels[number].encode():
            return False
        if not (abs(row[number] - probability) <= tolerance and best[place] - row[number] <= tolerance):
            return False
        seen.add(number)
    return at == len(unit)


def check_batch(spec: JobSpec, claims: Sequence[Claim]) -> list[bytes | None]:
    """The digest of each claimed unit that may stand, None for one that is wrong. Uses JAX on the CPU.

    Raises InvalidArgument and NotFound as `execute` does, InvalidProof on an index outside the job.
    """
    import jax

    job = read_job(spec)
    for claim in claims:
        job.layout.segment_of(claim.index)
    with jax.default_device(jax.devices("cpu")[0]):
        loaded = _load(spec, job, jax.devices("cpu")[0])
        if job.generates:
            ordered = sorted(range(len(claims)), key=lambda i: claims[i].index)
            found: dict[int, bytes | None] = {}
            for item, group in groupby(ordered, key=lambda i: claims[i].index // job.spans):
                places = list(group)
                results = _check_generated(spec, job, loaded, item, [claims[i] for i in places])
                found |= dict(zip(places, results, strict=True))
            return [found[i] for i in range(len(claims))]
        items = _read_items(spec, job, loaded, [claim.index for claim in claims])
        rows = loaded.embed(items) if job.mode == EMBED else loaded.classify(items)
    judged = []
    for claim, row in zip(claims, rows, strict=True):
        if job.mode == EMBED:
            good = _same_embedding(job, row, claim.unit)
        else:
            good = _same_classes(job, row, loaded.model.labels, claim.unit)
        judged.append(blake3(claim.unit).digest() if good else None)
    return judged


def check(spec: JobSpec, index: int, unit: bytes, previous_root: bytes | None) -> bytes | None:
    return check_batch(spec, [Claim(index, unit, previous_root)])[0]


def _split_output(output: bytes) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(output):
        length = _U32.unpack_from(output, at)[0]
        yield output[at + 4 : at + 4 + length]
        at += 4 + length


def _line(params: Params, number: int, record: bytes) -> bytes:
    """An item's answer as a line of JSON."""
    shown: dict[str, Any] = {"index": number}
    if params.kind == CLASSIFY:
        at, classes = 0, []
        while at + _CLASS.size <= len(record):
            index, probability, length = _CLASS.unpack_from(record, at)
            label = record[at + _CLASS.size : at + _CLASS.size + length].decode(errors="replace")
            classes.append({"class": index, "label": label, "probability": probability})
            at += _CLASS.size + length
        shown |= {"image": params.images[number] if params.images else "", "classes": classes}
    else:
        n = params.max_tokens
        tokens, logs = np.frombuffer(record, "<i4", n), np.frombuffer(record, "<f4", n, 4 * n)
        live = tokens >= 0
        listed = params.listed
        shown |= {"prompt": listed[number].decode()} if listed is not None else {}
        shown |= {
            "text": record[8 * n :].decode(errors="replace"),
            "tokens": tokens[live].tolist(),
            "log_probabilities": [round(float(value), 6) for value in logs[live]],
        }
    return json.dumps(shown, ensure_ascii=False).encode()


def _artifact(params: Params, outputs: Sequence[tuple[int, bytes]]) -> Artifact:
    """The answer made of (number of its first item, output) of jobs, in order."""
    if params.kind == EMBED:
        data = b"".join(record for _, output in outputs for record in _split_output(output))
        total = sum(1 for _, output in outputs for _ in _split_output(output))
        buffer = io.BytesIO()
        np.save(buffer, np.frombuffer(data, "<f4").reshape(total, -1 if total else 0), allow_pickle=False)
        return Artifact("embeddings.npy", "application/x-npy", buffer.getvalue())
    lines = [
        _line(params, first + i, record) for first, output in outputs for i, record in enumerate(_split_output(output))
    ]
    return Artifact("results.jsonl", "application/jsonl", b"\n".join(lines) + b"\n")


def assemble(params: Params, results: Sequence[JobResult]) -> list[Artifact]:
    """`embeddings.npy`, float32 (items, width), or `results.jsonl`, a line per item in order."""
    firsts = [read_job(spec).first for spec in make_jobs(params, bytes(32), range(jobs(params)))]
    return [_artifact(params, [(first, result.output) for first, result in zip(firsts, results, strict=True)])]


def preview(params: Params, outputs: Mapping[int, bytes]) -> Artifact | None:
    """What there is of the answer so far; of embeddings nothing, as a row would not say which text's it is."""
    if params.kind == EMBED or not outputs:
        return None
    firsts = {i: read_job(make_jobs(params, bytes(32), range(i, i + 1))[0]).first for i in outputs}
    return _artifact(params, [(firsts[i], outputs[i]) for i in sorted(outputs)])


TASK = Workload(
    name="inference",
    exact=False,
    sample_size=SAMPLE_SIZE,
    parse=parse,
    price=price,
    jobs=jobs,
    make_jobs=make_jobs,
    layout=layout,
    execute=execute,
    check=check,
    assemble=assemble,
    references=("model_id", "prompts_artifact"),
    inputs=inputs,
    job_inputs=job_inputs,
    output_bytes=output_bytes,
    output_digests=output_digests,
    preview=preview,
    check_batch=check_batch,
    batch=lambda spec: ("a batch of items", read_job(spec).size),
)
