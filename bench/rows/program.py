"""The program type's row of `make bench-verify`: a small network mapped over its inputs.

    python -m bench.rows.program [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from computemesh.sandbox.arrays import parse_type
from computemesh.sandbox.exporting import export_program
from computemesh.trust.audit import JobTree, fold_opening, openings_bytes, sample
from computemesh.workloads import Claim, Context, JobSpec, Outcome, get

TASK = get("program")
SHARES = (0.01, 0.05, 0.10, 0.20)
ROWS, WIDTH, LAYERS = 64, 512, 16


class Folder:
    """A job's files."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / digest).write_bytes(data)
        return digest

    def artifact(self, digest: bytes) -> Path:
        return self.path / digest.hex()


def network(x: Any, w: Any) -> Any:
    """LAYERS layers of tanh over float32[ROWS, WIDTH]."""
    import jax
    import jax.numpy as jnp

    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0]


def job(folder: Folder, items: int, seed: int = 0) -> JobSpec:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, ROWS, WIDTH)).astype(np.float32)
    w = (rng.normal(size=(LAYERS, WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    kinds = [f"float32[{ROWS},{WIDTH}]", f"float32[{LAYERS},{WIDTH},{WIDTH}]"]
    file = io.BytesIO()
    np.savez(file, arg0=x, arg1=w)
    params = TASK.parse({
        "program": folder.put(export_program(network, [parse_type(kind) for kind in kinds])),
        "inputs": folder.put(file.getvalue()), "outputs": kinds[:1], "tolerance": 1e-4, "map": True, "items": items,
        "items_per_job": items, "timeout_s": 600,
    })  # fmt: skip
    return replace(TASK.split(params, bytes(32))[0], files=folder)  # type: ignore[arg-type]


def accepted(spec: JobSpec, outcome: Outcome, seed: bytes) -> tuple[bool, int, float]:
    """(whether an audit accepts the job, bytes of its opening, seconds of checking)."""
    shape = TASK.layout(spec)
    tree = JobTree(shape, outcome.digests)
    openings = [tree.open(i, outcome.units(i)) for i in sample(seed, bytes(32), shape.count, TASK.sample_size)]  # type: ignore[misc]
    begin = time.perf_counter()
    found = TASK.expected_digests(spec, [Claim(o.index, o.unit) for o in openings])
    took = time.perf_counter() - begin
    good = all(
        digest is not None and fold_opening(shape, opening, digest) == tree.result_hash
        for opening, digest in zip(openings, found, strict=True)
    )
    return good, len(openings_bytes(openings)), took


def changed(outcome: Outcome, which: list[int], change: Any) -> Outcome:
    """The outcome of a cheat who hands in other bytes for these units, and commits to them."""
    from blake3 import blake3

    digests, units = bytearray(outcome.digests), {}
    for index in which:
        units[index] = change(outcome.units(index))  # type: ignore[misc]
        digests[32 * index : 32 * index + 32] = blake3(units[index]).digest()
    return Outcome(bytes(digests), lambda index: units.get(index) or outcome.units(index))  # type: ignore[misc]


def spoilt(unit: bytes) -> bytes:
    values = np.frombuffer(unit, np.float32).copy()
    values[values.size // 2] += 0.01
    return values.tobytes()


def downgraded(unit: bytes) -> bytes:
    """What bfloat16 arithmetic would leave at best: the right values, rounded."""
    import ml_dtypes

    return np.frombuffer(unit, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32).tobytes()


def detections(spec: JobSpec, outcome: Outcome, trials: int) -> Iterator[tuple[str, float]]:
    """What the check says of an item does not depend on the others, so it is asked once for each, honest and spoilt."""
    rng, count = random.Random(6), TASK.layout(spec).count
    units = [outcome.units(i) for i in range(count)]  # type: ignore[misc]
    good, bad = (TASK.expected_digests(spec, [Claim(i, u) for i, u in enumerate(claimed)])
                 for claimed in (units, list(map(spoilt, units))))  # fmt: skip
    assert None not in good, "an honest item was refused"
    for share in SHARES:
        caught = 0
        for _ in range(trials):
            wrong = set(rng.sample(range(count), max(1, round(share * count))))
            asked = sample(rng.randbytes(32), bytes(32), count, TASK.sample_size)
            caught += any((bad if i in wrong else good)[i] is None for i in asked)
        yield f"{share:.2f}", caught / trials


def row(quick: bool) -> dict[str, Any]:
    """The row; `quick` takes about a minute, the whole several."""
    trials, honest = (20, 20) if quick else (200, 1000)
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        spec = job(folder, 256)
        TASK.execute(spec, Context())  # starts and compiles
        compute = []
        for _ in range(3):
            begin = time.perf_counter()
            outcome = TASK.execute(spec, Context())
            compute.append(time.perf_counter() - begin)
        audits = [accepted(spec, outcome, os.urandom(32)) for _ in range(10)]
        compute_s, check_s = statistics.median(compute), statistics.median(took for _, _, took in audits)
        rough = changed(outcome, list(range(256)), downgraded)
        small = job(folder, 16, 1)
        refused = sum(
            not accepted(small, TASK.execute(small, Context()), os.urandom(32))[0] for _ in range(honest)
        )
        return {
            "type": "program", "compute_s": round(compute_s, 3), "check_s": round(check_s, 4),
            "check_share": round(check_s / compute_s, 4), "bytes": audits[0][1],
            "detected": dict(detections(spec, outcome, trials)),
            "downgrade_detected": sum(not accepted(spec, rough, os.urandom(32))[0] for _ in range(trials)) / trials,
            "false_rejections": refused, "honest_jobs": honest,
        }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(row(parser.parse_args().quick), indent=1))
