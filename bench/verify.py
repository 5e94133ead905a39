"""What a check costs against what it checks, measured in one run: `make bench-verify`.

Worker: `execute` of the synthetic type on this machine's JAX device, all its cores, after compilation. Auditor:
sample, recompute 32 tiles in numpy on one thread, fold 32 paths. CPU seconds are those of all threads of the
process; medians of several runs, worker and auditor taking turns. Then what the audit finds: bits flipped in a
share of the tiles, and honest jobs of small matrices really executed. One table, a line per task type (two sizes of
this one), the others from `bench/rows/`; more figures in the JSON object at the end. Exit status 1 where a goal is
missed. `--types` names some of them, `synthetic` being one.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: the auditor is measured on one thread

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import verify_types
from computemesh.trust.audit import JobTree, fold_opening, openings_bytes, sample, verify_previous
from computemesh.workloads import Claim, Context, JobSpec, bind, get, worker_seed

TASK = get("synthetic")
GOALS_PERCENT = {2048: 5.0, 4096: 2.0}
SHARES = (0.01, 0.05, 0.10, 0.20)
COMMITMENT_BYTES, SEED_BYTES, K_BYTES = 118, 32, 4  # docs/PROTOCOL.md sections 4 and 6
HONEST_SHAPES = ((32, 1), (64, 3), (96, 2), (256, 1), (256, 2))


def job(size: int, iterations: int = 1, number: int = 0) -> JobSpec:
    params = TASK.parse({"matrix_size": size, "iterations": iterations})
    return bind(TASK.split(params, bytes(32))[0], worker_seed(number.to_bytes(32, "big"), "cpc1bench"))


def judge(spec: JobSpec, tree: JobTree, seed: bytes) -> tuple[bool, int]:
    """The whole audit of one result: (accepted, bytes of the openings)."""
    layout, result_hash, k = TASK.layout(spec), tree.result_hash, TASK.sample_size
    if layout.count <= k:
        return JobTree(layout, TASK.recompute([spec])[0]).result_hash == result_hash, 0
    openings = [tree.open(index) for index in sample(seed, bytes(32), layout.count, k)]
    claims = [Claim(o.index, b"", verify_previous(layout, o, result_hash)) for o in openings]
    expected = TASK.expected_digests(spec, claims)
    accepted = all(
        digest is not None and fold_opening(layout, opening, digest) == result_hash
        for opening, digest in zip(openings, expected, strict=True)
    )
    return accepted, len(openings_bytes(openings))


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, CPU seconds of all threads, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def measure_cost(size: int, runs: int) -> dict[str, Any]:
    TASK.execute(job(size), Context())  # compiles
    worker, auditor, opening_bytes = [], [], 0
    for number in range(runs):
        spec = job(size, number=number)
        outcome, cpu, wall = timed(partial(TASK.execute, spec, Context()))
        worker.append((cpu, wall))
        tree = JobTree(TASK.layout(spec), outcome.digests)
        (accepted, opening_bytes), cpu, wall = timed(partial(judge, spec, tree, os.urandom(32)))
        assert accepted, "an honest result was refused"
        auditor.append((cpu, wall))
    cpu_s, wall_s, check_cpu_s, check_wall_s = (
        statistics.median(run[i] for run in runs) for runs in (worker, auditor) for i in (0, 1)
    )
    return {
        "matrix_size": size,
        "worker_cpu_s": round(cpu_s, 4),
        "worker_wall_s": round(wall_s, 4),
        "verifier_cpu_s": round(check_cpu_s, 5),
        "verifier_wall_s": round(check_wall_s, 5),
        "cpu_percent": round(100 * check_cpu_s / cpu_s, 2),
        "wall_percent": round(100 * check_wall_s / wall_s, 2),
        "goal_percent": GOALS_PERCENT[size],
        "operations_percent": round(100 * TASK.sample_size * 32 * 32 / size**2, 2),
        "job_bytes": len(spec.params) + len(spec.binding),
        "commitment_bytes": COMMITMENT_BYTES,
        "challenge_bytes": SEED_BYTES + K_BYTES,
        "opening_bytes": opening_bytes,
        "product_bytes": 4 * size * size,
    }


def hypergeometric(tiles: int, wrong: int, k: int) -> float:
    return 1 - math.comb(tiles - wrong, k) / math.comb(tiles, k)


def measure_detection(trials: int) -> Iterator[dict[str, Any]]:
    """Flip one bit in a share of a real result's tile digests' tiles; count the audits that notice.

    The cheat hands in a consistent tree over its own tiles, the best it can do; what the auditor recomputes is
    the same in every trial and therefore made once.
    """
    spec = job(1024)
    layout = TASK.layout(spec)
    honest = TASK.execute(spec, Context()).digests
    expected = TASK.expected_digests(spec, [Claim(i) for i in range(layout.count)])
    assert b"".join(d or b"" for d in expected) == honest, "worker and auditor disagree on an honest result"
    rng = random.Random(20)
    for share in SHARES:
        wrong, caught = round(share * layout.count), 0
        for _ in range(trials):
            digests = bytearray(honest)
            for tile in rng.sample(range(layout.count), wrong):
                digests[32 * tile] ^= 1  # a tile with another bit has another digest; any other will do
            tree = JobTree(layout, bytes(digests))
            asked = sample(rng.randbytes(32), bytes(32), layout.count, TASK.sample_size)
            caught += any(
                fold_opening(layout, tree.open(index), expected[index] or b"") != tree.result_hash for index in asked
            )
        theory = hypergeometric(layout.count, wrong, TASK.sample_size)
        yield {"share": share, "trials": trials, "caught": caught, "rate": caught / trials, "theory": round(theory, 4)}


def count_false_accusations(jobs: int) -> dict[str, int]:
    refused = 0
    for number in range(jobs):
        spec = job(*HONEST_SHAPES[number % len(HONEST_SHAPES)], number=number)
        tree = JobTree(TASK.layout(spec), TASK.execute(spec, Context()).digests)
        refused += not judge(spec, tree, os.urandom(32))[0]
    return {"jobs": jobs, "accused": refused}


def downgraded_digests(spec: JobSpec) -> bytes:
    """Tile digests of a product whose sums were kept in bfloat16, written down as if they were exact."""
    import jax.numpy as jnp
    from blake3 import blake3

    from computemesh.workloads import synthetic

    size, key = synthetic.read_job(spec).size, synthetic.job_key(spec, synthetic.read_job(spec))
    bands = range(size // synthetic.TILE)
    left, right = (
        jnp.asarray(np.concatenate([synthetic.generate_band(key, label, i, size) for i in bands]), jnp.bfloat16)
        for label in (synthetic.LEFT, synthetic.RIGHT)
    )
    product = np.asarray(jnp.matmul(left, right.T, preferred_element_type=jnp.bfloat16)).astype("<i4")
    tiles = product.reshape(len(bands), synthetic.TILE, len(bands), synthetic.TILE).swapaxes(1, 2)
    return b"".join(blake3(tile.tobytes()).digest() for row in tiles for tile in row)


def measure_downgrade(trials: int) -> float:
    """The share of audits that refuse a whole product in bfloat16."""
    spec = job(1024)
    tree = JobTree(TASK.layout(spec), downgraded_digests(spec))
    return sum(not judge(spec, tree, os.urandom(32))[0] for _ in range(trials)) / trials


def measure_synthetic(quick: bool) -> dict[str, Any]:
    """All figures of the synthetic type."""
    return {
        "costs": [measure_cost(size, 3 if quick else 11) for size in GOALS_PERCENT],
        "detection": list(measure_detection(50 if quick else 200)),
        "honest": count_false_accusations(100 if quick else 1000),
        "downgrade_detected": measure_downgrade(20 if quick else 200),
    }


def synthetic_row(figures: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
    """A size's line of the table."""
    return {
        "type": f"synth. {cost['matrix_size']}", "compute_s": cost["worker_cpu_s"], "check_s": cost["verifier_cpu_s"],
        "check_share": round(cost["cpu_percent"] / 100, 4), "bytes": cost["opening_bytes"],
        "detected": {f"{found['share']:.2f}": found["rate"] for found in figures["detection"]},
        "downgrade_detected": figures["downgrade_detected"],
        "false_rejections": figures["honest"]["accused"], "honest_jobs": figures["honest"]["jobs"],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verify_types.add_options(parser)
    arguments = parser.parse_args()
    names = verify_types.chosen(parser, arguments.types, ["synthetic", *verify_types.types_with_rows()])
    figures: dict[str, Any] = {}
    import jax

    device = jax.devices()[0]
    print(f"device {device.platform} {device.device_kind}, jax {jax.__version__}, {os.cpu_count()} cores", flush=True)
    if "synthetic" in names:
        figures = measure_synthetic(arguments.quick)
        names.remove("synthetic")
    first = [synthetic_row(figures, cost) for cost in figures.get("costs", [])]
    rows = verify_types.collect(names, arguments.quick, arguments.limit, first)
    met = all(c["cpu_percent"] <= c["goal_percent"] for c in figures.get("costs", [])) and all(
        map(verify_types.good, rows)
    )
    print(json.dumps({"bench": "verify", "met": met, **figures, "types": rows}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
