"""The simulation type's row of `make bench-verify`: what a check costs, what it finds, whom it accuses.

Costs are CPU seconds of all threads, medians, after compilation, of one job of each demo; the row's own figure is
the demo with the largest share. Detection: a cheat spoils a share of a job's states by a thousandth and goes on
honestly from there, so that nothing but the spoilt units is wrong. Downgrade: every unit computed in the next lower
precision. Other class: the same jobs run in a process whose XLA may use SSE4.2 only, hence no fused multiply-add.

    python -m bench.rows.simulation [--quick]
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from computemesh.trust.audit import JobTree, Opening, fold_opening, openings_bytes, sample, verify_previous
from computemesh.workloads import Claim, Context, JobSpec, Outcome, get, simulation

TASK = get("simulation")
SHARES = (0.01, 0.05, 0.10, 0.20)
OTHER_CLASS = "--xla_cpu_max_isa=SSE4_2"
DEMOS: dict[str, dict[str, Any]] = {
    "nbody": {"parameters": {"bodies": 64}, "steps": 2000, "ensemble": 64},
    "lennard_jones": {"parameters": {"temperature": [0.5, 1.5, 3, 6]}, "steps": 2000},
    "reaction_diffusion": {
        "parameters": {"feed": [0.022, 0.03, 0.0367, 0.05], "kill": [0.051, 0.058, 0.0649, 0.062]}, "steps": 4000,
    },
    "lattice_boltzmann": {"parameters": {"reynolds": [30, 60, 100, 140]}, "steps": 8000},
    "ode": {"parameters": {"equation": "lorenz", "rho": {"from": 20, "to": 200, "count": 64}, "spread": 0.01},
            "steps": 4000, "ensemble": 64},
    "option_pricing": {"parameters": {"option": "asian_call", "strike": {"from": 80, "to": 120, "count": 9}},
                       "steps": 64, "ensemble": 512},
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "nbody": {"parameters": {"bodies": 16}, "steps": 1000, "frames": 2, "ensemble": 8},
    "lennard_jones": {"steps": 400, "frames": 2, "ensemble": 4},
    "reaction_diffusion": {"parameters": {"width": 64, "height": 64}, "steps": 800, "frames": 2, "ensemble": 4},
    "lattice_boltzmann": {"parameters": {"width": 64, "height": 32}, "steps": 800, "frames": 2, "ensemble": 4},
    "ode": {"parameters": {"equation": "lorenz", "spread": 0.1}, "steps": 2000, "frames": 4, "ensemble": 16},
    "option_pricing": {"steps": 16, "ensemble": 32},
}


def job(system: str, payload: dict[str, Any], seed: int = 0) -> JobSpec:
    return TASK.split(TASK.parse({"system": system, "seed": str(seed), **payload}), bytes(32))[0]


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


@contextmanager
def forged(change: Any) -> Iterator[None]:
    """Within it `Lanes.run` gives `change(lanes, states, members, segments, honest)` to whoever executes."""
    honest = simulation.Lanes.run

    def run(self: Any, states: Any, members: Any, segments: Any, shift: float = 0.0) -> Any:
        return change(self, states, members, segments, lambda s: honest(self, s, members, segments, shift))

    simulation.Lanes.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        simulation.Lanes.run = honest  # type: ignore[method-assign]


def downgraded(lanes: Any, states: np.ndarray, members: Any, segments: Any, run: Any) -> np.ndarray:
    """A segment in the next lower precision, written as if it were the right one."""
    import ml_dtypes

    lower = np.float32 if lanes.job.model.precision == "<f8" else ml_dtypes.bfloat16
    found: np.ndarray = np.asarray(run(states.astype(lower))).astype(lanes.job.model.dtype)
    return found


def spoilt(units: set[tuple[int, int]]) -> Any:
    """A change that spoils the states of these (segment, member)s by a thousandth."""

    def change(lanes: Any, states: np.ndarray, members: Any, segments: Any, run: Any) -> np.ndarray:
        found = run(states).copy()
        for at, (segment, member) in enumerate(zip(segments, members, strict=True)):
            if (segment, member) in units:
                found[at] *= 1.001
        return found

    return change


def cost(system: str, runs: int) -> dict[str, Any]:
    spec = job(system, DEMOS[system])
    outcome = TASK.execute(spec, Context())
    accepted(spec, outcome, bytes(32))
    compute, check, size = [], [], 0
    for _ in range(runs):
        begin = time.process_time()
        outcome = TASK.execute(spec, Context())
        compute.append(time.process_time() - begin)
        for _ in range(4):
            result_hash, openings = answer(spec, outcome, os.urandom(32))
            begin = time.process_time()
            good = judge(spec, result_hash, openings)
            check.append(time.process_time() - begin)
            assert good, f"{system}: an honest result was refused"
        size = len(openings_bytes(openings))
    compute_s, check_s = statistics.median(compute), statistics.median(check)
    return {"system": system, "compute_s": round(compute_s, 4), "check_s": round(check_s, 5),
            "check_share": round(check_s / compute_s, 4), "bytes": size, "units": TASK.layout(spec).count}  # fmt: skip


def detection(trials: int) -> dict[str, float]:
    spec = job("ode", {"parameters": {"equation": "lorenz", "spread": 0.1}, "steps": 500, "frames": 25, "ensemble": 64})
    layout, rng, found = TASK.layout(spec), random.Random(3), {}
    for share in SHARES:
        caught = 0
        for _ in range(trials):
            wrong = rng.sample(range(layout.count), round(share * layout.count))
            with forged(spoilt({divmod(index, layout.units) for index in wrong})):
                outcome = TASK.execute(spec, Context())
            caught += not accepted(spec, outcome, rng.randbytes(32))
        found[f"{share:.2f}"] = caught / trials
    return found


def downgrade(trials: int) -> dict[str, float]:
    found = {}
    for system, payload in SMALL.items():
        spec = job(system, payload)
        with forged(downgraded):
            outcome = TASK.execute(spec, Context())
        found[system] = sum(not accepted(spec, outcome, os.urandom(32)) for _ in range(trials)) / trials
    return found


def other_class(jobs: int) -> dict[str, Any]:
    """Honest jobs of another env_class, judged here: (refused, largest share of the allowance used)."""
    code = ("import pickle, sys; from bench.rows.simulation import SMALL, TASK, Context, job\n"
            "for system, payload in SMALL.items():\n"
            "    for seed in range(int(sys.argv[1])):\n"
            "        spec = job(system, payload, seed); o = TASK.execute(spec, Context())\n"
            "        units = [o.units(i) for i in range(TASK.layout(spec).count)]\n"
            "        pickle.dump((system, seed, o.digests, units), sys.stdout.buffer)")  # fmt: skip
    flags = f"{os.environ.get('XLA_FLAGS', '')} {OTHER_CLASS}".strip()
    ran = subprocess.Popen([sys.executable, "-c", code, str(jobs)], env={**os.environ, "XLA_FLAGS": flags},
                           stdout=subprocess.PIPE)  # fmt: skip
    from computemesh.kernels.simulation import metric

    measured, used = metric.usage, dict.fromkeys(SMALL, 0.0)

    def usage(*args: Any) -> float:
        share = measured(*args)
        used[args[0].system] = max(used[args[0].system], share)
        return share

    refused, same, units_seen = 0, dict.fromkeys(SMALL, 0), dict.fromkeys(SMALL, 0)
    metric.usage = usage  # type: ignore[assignment]
    try:
        assert ran.stdout is not None
        for _ in range(jobs * len(SMALL)):  # one at a time: together they are gigabytes
            system, seed, digests, units = pickle.load(ran.stdout)
            spec = job(system, SMALL[system], seed)
            mine = TASK.execute(spec, Context()).digests
            same[system] += sum(mine[at : at + 32] == digests[at : at + 32] for at in range(0, len(mine), 32))
            units_seen[system] += len(units)
            refused += not accepted(spec, Outcome(digests, units.__getitem__), os.urandom(32))
    finally:
        metric.usage = measured
        ran.kill()
        ran.wait()
    return {"jobs": jobs * len(SMALL), "refused": refused,
            "equal_bytes": {name: round(same[name] / units_seen[name], 3) for name in SMALL},
            "largest_allowance_used": {name: round(value, 4) for name, value in used.items()}}  # fmt: skip


def honest(jobs: int) -> int:
    """How many of so many honest jobs of this class are refused."""
    refused, systems = 0, list(SMALL)
    for number in range(jobs):
        system = systems[number % len(systems)]
        spec = job(system, SMALL[system], number)
        refused += not accepted(spec, TASK.execute(spec, Context()), os.urandom(32))
    return refused


def row(quick: bool) -> dict[str, Any]:
    """The row; `quick` takes about a minute, the whole several."""
    costs = [cost(system, 2 if quick else 5) for system in DEMOS]
    worst = max(costs, key=lambda each: each["check_share"])
    jobs, trials = (60, 30) if quick else (1000, 200)
    return {
        "type": "simulation",
        **{name: worst[name] for name in ("compute_s", "check_s", "check_share", "bytes")},
        "worst_system": worst["system"],
        "systems": costs,
        "detected": detection(trials),
        "downgrade_detected": min((found := downgrade(5 if quick else 50)).values()),
        "downgrade_systems": found,
        "false_rejections": honest(jobs),
        "honest_jobs": jobs,
        "other_class": other_class(2 if quick else 20),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(row(parser.parse_args().quick), indent=1))
