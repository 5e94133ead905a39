"""The rendering type's row of `make bench-verify`: what a check costs, what it finds, whom it accuses.

Cost: CPU seconds of all threads, after compilation, of one job of the demo (480x288 pixels at 16 samples, 540 tiles)
and of audits of it: sampling, opening, rendering 8 tiles again, folding. Tiles differ in cost, so audits are
averaged. Detection: float16 answers in a share of a job's tiles, judged by the real check. Downgrade: all materials
and normals in bfloat16, and one sample in 16 left out. Honest jobs: small pictures really rendered and audited.

    python -m bench.rows.rendering [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from blake3 import blake3

from computemesh.trust.audit import JobTree, fold_opening, openings_bytes, sample
from computemesh.workloads import Claim, Context, JobSpec, get

TASK = get("rendering")
SHARES = (0.01, 0.05, 0.10, 0.20)
DEMO = {"scene": "spheres", "width": 480, "height": 288, "samples_per_pixel": 16}
SMALL = {"scene": "cornell", "width": 64, "height": 64, "samples_per_pixel": 1}


def job(payload: dict[str, Any], seed: int = 0) -> JobSpec:
    return TASK.split(TASK.parse({**payload, "seed": str(seed)}), bytes(32))[0]


def units_of(spec: JobSpec) -> list[bytes]:
    outcome = TASK.execute(spec, Context())
    assert outcome.units is not None
    return [outcome.units(i) for i in range(TASK.layout(spec).count)]


def audit(spec: JobSpec, units: list[bytes], seed: bytes) -> tuple[bool, int]:
    """(accepted, bytes of the openings)."""
    layout = TASK.layout(spec)
    tree = JobTree(layout, b"".join(blake3(unit).digest() for unit in units))
    openings = [tree.open(i, units[i]) for i in sample(seed, bytes(32), layout.count, TASK.sample_size)]
    found = TASK.expected_digests(spec, [Claim(o.index, o.unit) for o in openings])
    good = all(
        digest is not None and fold_opening(layout, opening, digest) == tree.result_hash
        for opening, digest in zip(openings, found, strict=True)
    )
    return good, len(openings_bytes(openings))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    return call(), time.process_time() - begin


def cost(runs: int, audits: int) -> dict[str, Any]:
    spec = job(DEMO)
    TASK.check(spec, 0, b"", None)  # compiles, builds the scene
    compute, check, size = [], [], 0
    for _ in range(runs):
        units, seconds = timed(lambda: units_of(spec))
        compute.append(seconds)
        for _ in range(audits):
            (good, size), seconds = timed(lambda units=units: audit(spec, units, os.urandom(32)))  # type: ignore[misc]
            assert good, "an honest job was refused"
            check.append(seconds)
    compute_s, check_s = statistics.median(compute), statistics.fmean(check)
    return {"compute_s": round(compute_s, 3), "check_s": round(check_s, 4),
            "check_share": round(check_s / compute_s, 4), "bytes": size, "units": TASK.layout(spec).count}  # fmt: skip


def rounded(unit: bytes) -> bytes:
    return np.frombuffer(unit, "<f4").astype(np.float16).astype("<f4").tobytes()


def detection(trials: int) -> dict[str, float]:
    """Audits of a job of 256 tiles. What the check says of a tile does not depend on the others, so it is asked
    once for each honest and each spoilt tile, and the trials draw."""
    spec = job({**SMALL, "width": 256, "height": 256})
    units = units_of(spec)
    good = TASK.expected_digests(spec, [Claim(i, unit) for i, unit in enumerate(units)])
    bad = TASK.expected_digests(spec, [Claim(i, rounded(unit)) for i, unit in enumerate(units)])
    rng, found = random.Random(7), {}
    assert None not in good, "an honest tile was refused"
    for share in SHARES:
        caught = 0
        for _ in range(trials):
            wrong = set(rng.sample(range(len(units)), max(1, round(share * len(units)))))
            asked = sample(rng.randbytes(32), bytes(32), len(units), TASK.sample_size)
            caught += any((bad if i in wrong else good)[i] is None for i in asked)
        found[f"{share:.2f}"] = caught / trials
    return found


@contextmanager
def lower_precision() -> Any:
    """Within it scenes have materials and normals in bfloat16."""
    import ml_dtypes

    from computemesh.kernels.rendering import scene
    from computemesh.workloads import rendering

    honest = scene.pack

    @cache
    def coarse(array: bytes) -> np.ndarray:
        return np.frombuffer(array, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    def pack(made: Any) -> Any:
        packed = honest(made)
        materials, shading = packed.materials.copy(), packed.shading.copy()
        materials[:, :9] = coarse(materials[:, :9].tobytes()).reshape(-1, 9)
        shading[:, :9] = coarse(shading[:, :9].tobytes()).reshape(-1, 9)
        return packed._replace(materials=materials, shading=shading)

    scene.pack = pack
    rendering._SCENES.clear()
    try:
        yield
    finally:
        scene.pack = honest
        rendering._SCENES.clear()


def downgrade(trials: int) -> dict[str, float]:
    payload = {**SMALL, "samples_per_pixel": 16}
    spec, fewer = job(payload), replace(job({**payload, "samples_per_pixel": 15}))
    with lower_precision():
        coarse = units_of(spec)
    lazy = units_of(fewer)
    found = {}
    for name, units in (("bfloat16", coarse), ("15 of 16 samples", lazy)):
        found[name] = sum(not audit(spec, units, os.urandom(32))[0] for _ in range(trials)) / trials
    return found


def honest(jobs: int) -> int:
    """How many of so many honest jobs are refused."""
    return sum(not audit(spec, units_of(spec), os.urandom(32))[0] for spec in (job(SMALL, n) for n in range(jobs)))


def row(quick: bool) -> dict[str, Any]:
    """The row; `quick` takes about two minutes on two cores, the whole about ten."""
    jobs, trials = (50, 50) if quick else (1000, 200)
    lower = downgrade(10 if quick else trials)
    return {
        "type": "rendering",
        **cost(1 if quick else 3, 4 if quick else 10),
        "detected": detection(trials),
        "downgrade_detected": min(lower.values()),
        "downgrades": lower,
        "false_rejections": honest(jobs),
        "honest_jobs": jobs,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(row(parser.parse_args().quick)))
