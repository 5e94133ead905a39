"""`python -m tests.simulation --seeds 10000`: a table, and one JSON object last. `--seed 17`: one run's transcript."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.mesh import brief, quiet, shrink, simulate


def _table(seeds: int, met: Counter[str], ended: Counter[str], laws: Counter[str]) -> None:
    print(f"{'runs':30}{seeds:>12,}")
    for name, counts in (("faults met", met), ("tasks ended", ended)):
        print(name)
        for what, count in sorted(counts.items()):
            print(f"  {what:28}{count:>12,}")
    print("violations" + "".join(f"   {law} {laws[law]}" for law in "LPSRCT"))


def _many(first: int, seeds: int, jobs: int) -> int:
    met: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    laws: Counter[str] = Counter()
    failing, steps, began = [], 0, time.monotonic()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=quiet) as pool:
        for outcome in pool.map(brief, range(first, first + seeds), chunksize=20):
            met.update(outcome.met)
            ended.update(outcome.statuses)
            steps += outcome.steps
            if outcome.violation is not None:
                laws[outcome.violation.law] += 1
                failing.append(outcome.seed)
                print(f"seed {outcome.seed}: {outcome.violation}")
    _table(seeds, met, ended, laws)
    for seed in failing[:3]:
        _show(seed)
    print(json.dumps({
        "first_seed": first, "runs": seeds, "steps": steps, "faults": dict(sorted(met.items())), "ended": dict(ended),
        "violations": {law: laws[law] for law in "LPSRCT"}, "failing_seeds": failing,
        "wall_s": round(time.monotonic() - began, 1)}))  # fmt: skip
    return bool(failing)


def _show(seed: int) -> int:
    outcome = simulate(seed)
    if outcome.violation is not None:
        faults, outcome = shrink(seed)
        print(f"seed {seed} fails with {len(faults)} faults:", *faults, sep="\n  ")
    print(*outcome.transcript, sep="\n")
    print(f"seed {seed}: {outcome.violation or 'no violation'}; {outcome.steps} steps, last block {outcome.head}")
    return outcome.violation is not None


def main() -> int:
    """Exit status 1 where a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="run this seed alone and show what happened, shrunk if it fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    chosen = parser.parse_args()
    quiet()
    return _show(chosen.seed) if chosen.seed is not None else _many(chosen.first, chosen.seeds, chosen.jobs)


if __name__ == "__main__":
    sys.exit(main())
