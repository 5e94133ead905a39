"""The inference type's row of `make bench-verify`: what a check costs, what it finds, whom it accuses.

Models are Llamas with random weights, made here. Costs are CPU seconds of all threads, medians, after compilation, of
jobs of 128 tokens: 32 prompts, and one, 17 and 4 of them. Detection: a share of a job's units shows one wrong token
each, as its neighbours do not. Downgrade: text by a model whose products are of bfloat16 operands, or whose weights
are int8, (a) with that model's log-probabilities, (b) with honest ones made afterwards in one pass, which is the
cheapest forgery.

    python -m bench.rows.inference [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from computemesh.trust.audit import JobTree, fold_opening, openings_bytes, sample
from computemesh.workloads import Claim, Context, JobSpec, Outcome, get

TASK = get("inference")
SHARES = (0.01, 0.05, 0.10, 0.20)
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 4}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
COMMON = {"model_type": "llama", "max_position_embeddings": 1024, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
SENTENCES = [line for page in sorted(Path("docs").glob("*.md")) for line in page.read_text("utf-8").splitlines()]
PROMPTS = [line[:80] for line in SENTENCES if len(line) > 60]


class Folders:
    """`Files` of a measurement."""

    def __init__(self) -> None:
        self.paths: dict[bytes, Path] = {}

    def add(self, path: Path) -> str:
        digest = sha256(str(path).encode()).digest()
        self.paths[digest] = path
        return digest.hex()

    def folder(self, digest: bytes) -> Path:
        return self.paths[digest]

    artifact = folder

    def result(self, job: int) -> bytes:
        raise KeyError(job)


def make_model(path: Path, sizes: dict[str, int], vocabulary: int = 4096) -> None:
    """A Llama with random weights whose logits spread like a real model's, and a tokenizer trained on docs/."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from computemesh.kernels.models.decoder import Llama
    from computemesh.kernels.models.folder import ModelFolder

    path.mkdir(parents=True)
    config = {**COMMON, **sizes, "vocab_size": vocabulary}
    chance = np.random.default_rng(0)
    tensors = {}
    for name, shape in Llama(ModelFolder(path, config, {})).shapes().items():
        scale = 1.6 if "proj" in name else 3.0  # logits then spread by about 3
        values = np.ones(shape) if len(shape) == 1 else chance.normal(0, scale / shape[-1] ** 0.5, shape)
        tensors[name] = values.astype(np.float32)
    save_file(tensors, str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(path / "tokenizer.json"))


def job(files: Folders, model: str, prompts: list[str], seed: int = 0, **payload: Any) -> JobSpec:
    """These prompts as one job: up to 4 as the first of a task of four such jobs, more, filled up to 17, alone."""
    listed = prompts * 4 if len(prompts) <= 4 else (prompts * 3)[: max(len(prompts), 17)]
    params = TASK.parse({"model_id": model, "prompts": listed, "seed": str(seed), **payload})
    spec = TASK.split(params, bytes(32))[0]
    return replace(spec, files=files)


def judged(spec: JobSpec, units: list[bytes], seed: bytes) -> tuple[bool, float, int]:
    """The audit of a result with these units: (accepted, CPU seconds of the check, bytes opened)."""
    layout = TASK.layout(spec)
    tree = JobTree(layout, b"".join(blake3(unit).digest() for unit in units))
    openings = [tree.open(i, units[i]) for i in sample(seed, bytes(32), layout.count, TASK.sample_size)]
    begin = time.process_time()
    found = TASK.expected_digests(spec, [Claim(o.index, o.unit) for o in openings])
    good = all(
        digest is not None and fold_opening(layout, o, digest) == tree.result_hash
        for o, digest in zip(openings, found, strict=True)
    )
    return good, time.process_time() - begin, len(openings_bytes(openings))


def units_of(spec: JobSpec, outcome: Outcome) -> list[bytes]:
    assert outcome.units is not None
    return [outcome.units(i) for i in range(TASK.layout(spec).count)]


def cost(files: Folders, model: str, prompts: int, runs: int, **payload: Any) -> dict[str, Any]:
    spec = job(files, model, PROMPTS[:prompts], max_tokens=128, **payload)
    judged(spec, units_of(spec, TASK.execute(spec, Context())), bytes(32))
    compute, check, size = [], [], 0
    for number in range(runs):
        begin = time.process_time()
        outcome = TASK.execute(spec, Context())
        compute.append(time.process_time() - begin)
        for turn in range(2):
            seed = bytes([number, turn]) * 16
            judged(spec, units_of(spec, outcome), seed)  # compiles
            good, spent, size = judged(spec, units_of(spec, outcome), seed)
            check.append(spent)
            assert good, "an honest result was refused"
    compute_s, check_s = statistics.median(compute), statistics.median(check)
    return {"prompts": TASK.layout(spec).count // 8, **payload, "compute_s": round(compute_s, 3),
            "check_s": round(check_s, 3), "check_share": round(check_s / compute_s, 4), "bytes": size}  # fmt: skip


def wrong_token(unit: bytes, rng: random.Random, vocabulary: int = 4096) -> bytes:
    """The unit with one token of its last 16 replaced."""
    values = np.frombuffer(unit[: len(unit) // 8 * 8], "<i4").copy()
    at = len(values) // 2 - 1 - rng.randrange(16)
    values[at] = (values[at] + 1 + rng.randrange(vocabulary - 2)) % vocabulary
    return values.tobytes()


def detection(files: Folders, model: str, trials: int) -> dict[str, float]:
    """What the check says of a unit does not depend on the others, so it is asked once for each honest one."""
    spec = job(files, model, PROMPTS[:8], max_tokens=256, temperature=1.0)
    honest, rng, found = units_of(spec, TASK.execute(spec, Context())), random.Random(3), {}
    assert None not in TASK.expected_digests(spec, [Claim(i, unit) for i, unit in enumerate(honest)])
    inner = [i for i in range(len(honest)) if i % 16 != 15]  # a last unit ends with text
    for share in SHARES:
        caught = 0
        for _ in range(trials):
            wrong = set(rng.sample(inner, max(round(share * len(honest)), 1)))
            asked = wrong & set(sample(rng.randbytes(32), bytes(32), len(honest), TASK.sample_size))
            claims = [Claim(i, wrong_token(honest[i], rng)) for i in asked]
            caught += None in TASK.expected_digests(spec, claims)
        found[f"{share:.2f}"] = caught / trials
    return found


@contextmanager
def lower_precision(kind: str) -> Iterator[None]:
    """Within it models are loaded, or their products made, in lower precision."""
    import jax.numpy as jnp

    from computemesh.kernels.models import floating, loaded

    linear, matrix = floating.linear, floating.matrix

    def bfloat16(x: Any, m: Any) -> Any:
        weight = m.weight.T if isinstance(m, floating.Tied) else m.weight
        y = jnp.matmul(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        return y if isinstance(m, floating.Tied) or m.bias is None else y + m.bias

    def int8(weight: np.ndarray, bias: np.ndarray | None = None) -> Any:
        scale = np.abs(weight).max(1, keepdims=True) / 127
        return matrix((np.rint(weight / scale) * scale).astype(np.float32), bias)

    loaded._kept.clear()
    if kind == "bfloat16":
        floating.linear = bfloat16
    else:
        floating.matrix = int8
    try:
        yield
    finally:
        floating.linear, floating.matrix = linear, matrix
        loaded._kept.clear()


def honest_logs(spec: JobSpec, units: list[bytes]) -> list[bytes]:
    """The units with the true log-probabilities of their tokens: what one honest pass gives a forger."""
    from computemesh.workloads import inference

    work = inference.read_job(spec)
    loaded = inference._load(spec, work, __import__("jax").devices("cpu")[0])
    out = []
    for item, ids in enumerate(inference._read_items(spec, work, loaded, range(work.size))):
        last = units[item * work.spans + work.spans - 1]
        n = work.max_tokens
        tokens = np.frombuffer(last, "<i4", n)
        found = loaded.generator.judge(ids, work.first + item, inference._sampling(work), tokens, 1e-3)
        record = last[: 4 * n] + found.log_probability.astype("<f4").tobytes() + last[8 * n :]
        out += [inference._unit(work, record, span) for span in range(work.spans)]
    return out


def downgrade(files: Folders, model: str, trials: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in ("bfloat16", "int8"):
        for temperature in (0.0, 1.0):
            specs = [job(files, model, PROMPTS[i * 8 : i * 8 + 8], i, max_tokens=128, temperature=temperature)
                     for i in range(trials)]  # fmt: skip
            with lower_precision(kind):
                forged = [units_of(spec, TASK.execute(spec, Context())) for spec in specs]
            name = f"{kind}, temperature {temperature:g}"
            caught = [not judged(s, units, os.urandom(32))[0] for s, units in zip(specs, forged, strict=True)]
            found[name] = sum(caught) / trials
            careful = [honest_logs(spec, units) for spec, units in zip(specs, forged, strict=True)]
            caught = [not judged(s, units, os.urandom(32))[0] for s, units in zip(specs, careful, strict=True)]
            found[f"{name}, honest log-probabilities"] = sum(caught) / trials
    return found


def calibration(files: Folders, model: str, jobs: int) -> float:
    """The largest difference, in logits, between decoding and one pass: of log-probabilities and of shortfalls."""
    from computemesh.kernels.models.generation import Generator

    largest, judge = 0.0, Generator.judge

    def seen(self: Any, text: Any, prompt: int, sampling: Any, claimed: Any, margin: float, memory: Any = None) -> Any:
        nonlocal largest
        found = judge(self, text, prompt, sampling, claimed, margin, memory)
        largest = max(largest, float(found.short.max()), float(np.abs(found.log_probability - logs).max()))
        return found

    for number in range(jobs):
        spec = job(files, model, PROMPTS[number * 4 : number * 4 + 4], number, max_tokens=128, temperature=number % 2)
        units = units_of(spec, TASK.execute(spec, Context()))
        Generator.judge = seen  # type: ignore[method-assign]
        try:
            for item in range(4):
                unit = units[item * 8 + 7]
                logs = np.frombuffer(unit, "<f4", 128, 512)
                TASK.expected_digests(spec, [Claim(item * 8 + 7, unit)])
        finally:
            Generator.judge = judge  # type: ignore[method-assign]
    return largest


def false_rejections(files: Folders, model: str, jobs: int) -> int:
    refused = 0
    for number in range(jobs):
        prompts = [PROMPTS[(number * 4 + i) % len(PROMPTS)] for i in range(4)]
        spec = job(files, model, prompts, number, max_tokens=32, temperature=(0.0, 0.7, 1.0)[number % 3])
        refused += not judged(spec, units_of(spec, TASK.execute(spec, Context())), os.urandom(32))[0]
    return refused


def row(quick: bool) -> dict[str, Any]:
    """The row; `quick` takes about three minutes, the whole some twenty."""
    with tempfile.TemporaryDirectory() as folder:
        files, models = Folders(), {}
        for name, sizes in (("large", LARGE), ("small", SMALL)):
            make_model(Path(folder) / name, sizes)
            models[name] = files.add(Path(folder) / name)
        runs, jobs, trials = (1, 30, 20) if quick else (3, 1000, 200)
        shapes: list[Callable[[], dict[str, Any]]] = [
            lambda: cost(files, models["large"], 32, runs),
            lambda: cost(files, models["large"], 1, runs),
            lambda: cost(files, models["large"], 17, runs),
            lambda: cost(files, models["large"], 4, runs),
        ]
        costs = [shape() for shape in shapes[: 2 if quick else 4]]
        return {
            "type": "inference",
            **{name: costs[0][name] for name in ("compute_s", "check_s", "check_share", "bytes")},
            "costs": costs,
            "detected": detection(files, models["small"], trials),
            "downgrade_detected": min((found := downgrade(files, models["small"], 5 if quick else 20)).values()),
            "downgrades": found,
            "false_rejections": false_rejections(files, models["small"], jobs),
            "honest_jobs": jobs,
            "largest_difference": calibration(files, models["large"], 2 if quick else 10),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(row(parser.parse_args().quick), indent=1))
