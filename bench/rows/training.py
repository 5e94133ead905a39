"""The training type's row of `make bench-verify`: what a check costs, what it finds, whom it accuses.

Costs are CPU seconds of all threads, medians, after compilation, of one job of each demo; the row's own figure is the
demo with the largest share. Detection: a cheat spoils a share of a job's segments (its update is a thousandth too
long) and goes on honestly from there, so that nothing but the spoilt units is wrong. Downgrade: gradients in bfloat16
and in TF32 (operands of 10 bits), written as if they were float32. Other class: honest jobs of a process whose XLA
may use SSE4.2 only, hence no fused multiply-add. Poisoned: test accuracy on digits where one of the shards hands in
a poisoned delta in every round and no audit happens to look.

    python -m bench.rows.training [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from computemesh.trust.audit import JobTree, Opening, fold_opening, openings_bytes, sample, verify_previous
from computemesh.workloads import Claim, Context, JobSpec, Outcome
from computemesh.workloads import training_job as jobs
from computemesh.workloads import training_run as runs
from tests.workloads.training_tasks import TASK, TASK_ID, TaskFiles, accuracy, artifacts, digits_npz, run_task, text

SHARES = (0.01, 0.05, 0.10, 0.20)
OTHER_CLASS = "--xla_cpu_max_isa=SSE4_2"
DEMOS: dict[str, dict[str, Any]] = {
    "mlp": {"model_architecture": {"name": "mlp", "hidden": [128, 64]}, "epochs": 16, "examples": 1437,
            "optimizer": "adamw", "learning_rate": 3e-3, "workers": 2, "rounds": 1},
    "cnn": {"model_architecture": "cnn", "epochs": 16, "examples": 1437, "optimizer": "momentum",
            "learning_rate": 0.02, "workers": 2, "rounds": 1},
    "char_transformer": {"model_architecture": {"name": "char_transformer", "hidden": 32, "layers": 1, "context": 64},
                         "batch_size": 16, "examples": 3840, "optimizer": "adamw", "learning_rate": 3e-3},
}  # fmt: skip
RATES = {"sgd": 0.1, "momentum": 0.02, "adam": 1e-3, "adamw": 1e-3}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model_architecture": {"name": "mlp", "hidden": [32]}, "examples": 1437},
    "cnn": {"model_architecture": {"name": "cnn", "filters": [8, 8]}, "examples": 640, "batch_size": 16},
    "char_transformer": {
        "model_architecture": {"name": "char_transformer", "hidden": 32, "layers": 1, "context": 16},
        "examples": 320, "batch_size": 8,
    },
}  # fmt: skip
PAIRS = (
    "mlp/sgd", "mlp/momentum", "mlp/adam", "cnn/momentum", "cnn/adamw",
    "char_transformer/sgd", "char_transformer/adamw",
)  # fmt: skip
SMALL = {
    pair: {**MODELS[name], "optimizer": optimizer, "learning_rate": RATES[optimizer]}
    for pair in PAIRS for name, _, optimizer in [pair.partition("/")]
}  # fmt: skip


@cache
def files() -> TaskFiles:
    return TaskFiles(Path(tempfile.mkdtemp(prefix="training-row-")))


def job(payload: dict[str, Any], seed: int = 0) -> JobSpec:
    name = payload["model_architecture"]
    reads_text = "char_transformer" in (name, name["name"] if isinstance(name, dict) else "")
    dataset = files().put(text() if reads_text else digits_npz())
    spec = TASK.split(TASK.parse({"seed": str(seed), **payload, "dataset": dataset}), TASK_ID)[0]
    return replace(spec, files=files())


def answer(spec: JobSpec, outcome: Outcome, seed: bytes) -> tuple[bytes, list[Opening]]:
    """The worker's side of a challenge: (result hash, openings)."""
    layout, tree = TASK.layout(spec), JobTree(TASK.layout(spec), outcome.digests)
    asked = sample(seed, bytes(32), layout.count, TASK.sample_size)
    return tree.result_hash, [tree.open(index, outcome.units(index)) for index in asked if outcome.units]


def judge(spec: JobSpec, result_hash: bytes, openings: list[Opening]) -> bool:
    """The auditor's side: whether the openings prove the result."""
    layout = TASK.layout(spec)
    claims = [Claim(o.index, o.unit, verify_previous(layout, o, result_hash)) for o in openings]
    found = zip(openings, TASK.expected_digests(spec, claims), strict=True)
    return all(digest is not None and fold_opening(layout, o, digest) == result_hash for o, digest in found)


def accepted(spec: JobSpec, outcome: Outcome, seed: bytes) -> bool:
    return judge(spec, *answer(spec, outcome, seed))


def cost(name: str, repeats: int) -> dict[str, Any]:
    spec = job(DEMOS[name])
    outcome = TASK.execute(spec, Context())
    accepted(spec, outcome, bytes(32))
    compute, check, size = [], [], 0
    for _ in range(repeats):
        begin = time.process_time()
        outcome = TASK.execute(spec, Context())
        compute.append(time.process_time() - begin)
        for _ in range(4):
            result_hash, openings = answer(spec, outcome, os.urandom(32))
            begin = time.process_time()
            good = judge(spec, result_hash, openings) and bool(TASK.output_digests(spec, outcome.output))
            check.append(time.process_time() - begin)
            assert good, f"{name}: an honest result was refused"
        size = len(openings_bytes(openings))
    compute_s, check_s = statistics.median(compute), statistics.median(check)
    return {"model": name, "compute_s": round(compute_s, 4), "check_s": round(check_s, 5),
            "check_share": round(check_s / compute_s, 4), "bytes": size, "units": TASK.layout(spec).count,
            "steps_per_unit": jobs.read_job(spec).steps, "state_bytes": jobs.read_job(spec).state_bytes}  # fmt: skip


@contextmanager
def forged(change: Any) -> Iterator[None]:
    """Within it `Run.advance` gives `change(run, state, segment, honest)` to whoever executes."""
    honest = runs.Run.advance
    runs.Run.advance = lambda self, state, segment, *_: change(self, state, segment, honest)  # type: ignore
    try:
        yield
    finally:
        runs.Run.advance = honest  # type: ignore[method-assign]


def spoilt(segments: set[int]) -> Any:
    def change(run: Any, state: Any, segment: int, honest: Any) -> Any:
        found = honest(run, state, segment)
        if segment not in segments:
            return found
        update = (found.weights - state.weights) * np.float32(1.001)
        return found._replace(weights=(state.weights + update).astype(np.float32))

    return change


def detection(trials: int) -> dict[str, float]:
    spec = job({**MODELS["mlp"], "epochs": 5, "batch_size": 36})
    count, rng, found = TASK.layout(spec).count, random.Random(3), {}
    for share in SHARES:
        caught = 0
        for _ in range(trials):
            wrong = set(rng.sample(range(1, count), round(share * count)))
            with forged(spoilt(wrong)):
                outcome = TASK.execute(spec, Context())
            caught += not accepted(spec, outcome, rng.randbytes(32))
        found[f"{share:.2f}"] = caught / trials
    return found


@contextmanager
def cheaper(precision: str) -> Iterator[None]:
    """Within it segments compiled anew take gradients in `precision`."""
    import jax
    import jax.numpy as jnp

    from computemesh.kernels.training import local, networks

    def tf32(array: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(array, jnp.uint32) + jnp.uint32(0x1000) & jnp.uint32(0xFFFFE000)
        return array + jax.lax.stop_gradient(jax.lax.bitcast_convert_type(bits, jnp.float32) - array)

    lower = tf32 if precision == "tf32" else lambda array: array.astype(jnp.bfloat16)
    honest = networks.loss

    def loss(model: Any, tensors: Any, x: Any, y: Any) -> Any:
        weights = {name: lower(tensor) for name, tensor in tensors.items()}
        return honest(model, weights, lower(x) if x.dtype == jnp.float32 else x, y).astype(jnp.float32)

    networks.loss = loss
    local.compiled.cache_clear()
    try:
        yield
    finally:
        networks.loss = honest
        local.compiled.cache_clear()


def downgrade(precision: str, trials: int) -> dict[str, float]:
    found = {}
    for name, payload in SMALL.items():
        spec = job(payload)
        with cheaper(precision):
            outcome = TASK.execute(spec, Context())
        found[name] = sum(not accepted(spec, outcome, os.urandom(32)) for _ in range(trials)) / trials
    return found


def other_class(count: int) -> dict[str, Any]:
    """Honest jobs of another env_class, judged here: (refused, largest share of the allowance used)."""
    code = ("import pickle, sys; from bench.rows.training import SMALL, TASK, Context, job\n"
            "out = []\n"
            "for name, payload in SMALL.items():\n"
            "    for seed in range(int(sys.argv[1])):\n"
            "        spec = job(payload, seed); o = TASK.execute(spec, Context())\n"
            "        units = [o.units(i) for i in range(TASK.layout(spec).count)]\n"
            "        out.append((name, seed, o.digests, units))\n"
            "sys.stdout.buffer.write(pickle.dumps(out))")  # fmt: skip
    flags = f"{os.environ.get('XLA_FLAGS', '')} {OTHER_CLASS}".strip()
    ran = subprocess.run([sys.executable, "-c", code, str(count)], env={**os.environ, "XLA_FLAGS": flags},
                         stdout=subprocess.PIPE, check=True)  # fmt: skip
    from computemesh.kernels.training import metric

    measured, used, refused = metric.usage, [0.0], 0

    def usage(*args: Any) -> float:
        used.append(measured(*args))
        return used[-1]

    metric.usage = usage  # type: ignore[assignment]
    try:
        for name, seed, digests, units in pickle.loads(ran.stdout):
            spec = job(SMALL[name], seed)
            refused += not accepted(spec, Outcome(digests, units.__getitem__), os.urandom(32))
    finally:
        metric.usage = measured
    judged = len(used) - 1
    return {"jobs": count * len(SMALL), "refused": refused, "judged_by_the_metric": judged,
            "largest_allowance_used": round(max(used), 4)}  # fmt: skip


def honest(count: int) -> int:
    """How many of so many honest jobs of this class are refused."""
    refused, names = 0, list(SMALL)
    for number in range(count):
        spec = job(SMALL[names[number % len(names)]], number)
        refused += not accepted(spec, TASK.execute(spec, Context()), os.urandom(32))
    return refused


def poisoned(workers: int, epochs: int) -> dict[str, float]:
    """Test accuracy with every shard honest, and with shard 0 handing in 20 times its delta, reversed, every round."""

    def lying(spec: JobSpec, context: Context) -> Outcome:
        outcome, of = TASK.execute(spec, context), jobs.read_job(spec)
        if of.shard:
            return outcome
        begun, state = outcome.output[: of.outer_bytes], runs.read_state(of, outcome.output[of.outer_bytes :])
        start = runs.read_outer(of, begun)[0]
        wrong = state._replace(weights=start - 20 * (state.weights - start))
        return replace(outcome, output=begun + wrong.pack())

    payload = {**DEMOS["mlp"], "workers": workers, "rounds": 6, "epochs": epochs, "dataset": files().put(digits_npz())}
    found = {}
    for name, execute in (("honest", TASK.execute), ("poisoned", lying)):
        params, outcomes = run_task(payload, TaskFiles(files().root), execute=execute)  # type: ignore[no-untyped-call]
        found[name] = round(accuracy(artifacts(params, outcomes), jobs.whole(params).model), 4)
    return found


def row(quick: bool) -> dict[str, Any]:
    """The row; `quick` takes about a minute, the whole several."""
    costs = [cost(name, 2 if quick else 5) for name in DEMOS]
    worst = max(costs, key=lambda each: each["check_share"])
    count, trials = (48, 30) if quick else (1000, 200)
    halves = downgrade("bf16", 5 if quick else 50)
    return {
        "type": "training",
        **{name: worst[name] for name in ("compute_s", "check_s", "check_share", "bytes")},
        "worst_model": worst["model"],
        "models": costs,
        "detected": detection(trials),
        "downgrade_detected": min(halves.values()),
        "tf32_detected": min(downgrade("tf32", 5 if quick else 50).values()),
        "false_rejections": honest(count),
        "honest_jobs": count,
        "other_class": other_class(1 if quick else 20),
        "one_poisoned_shard": {f"of {workers}": poisoned(workers, 24) for workers in (2, 3, 4, 8)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(row(parser.parse_args().quick), indent=1))
