"""`make fuzz INPUTS=1000000`: parsers, calls and streams of a real mesh get inputs that are almost right.

Prints what was fed and how it was answered, and one JSON object last; exit status 1 where a law does not hold, with the
input that shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz.calls import Calls, Report
from tests.fuzz.laws import Broken
from tests.fuzz.mesh import running
from tests.fuzz.parsers import parsers
from tests.fuzz.streams import Streams

SHARES = {"parsers": 0.7, "calls": 0.2, "streams": 0.1}


def plain(runs: int, seed: int) -> dict[str, tuple[int, int]]:
    """Every parser gets an equal share of damaged inputs: name -> (inputs, accepted). Raises Broken."""
    rng, found = random.Random(seed), {}
    known = parsers()
    for parser in known:
        inputs = max(runs // len(known), 1)
        accepted = sum(parser.feed(parser.spoiled(rng, rng.choice(parser.seeds))) for _ in range(inputs))
        found[parser.name] = (inputs, accepted)
    return found


def guided(runs: int, seed: int) -> dict[str, tuple[int, int]]:
    """The same under Atheris, in a process of its own. Raises Broken with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", str(runs), str(seed), f"-artifact_prefix={folder}/"],
            capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise Broken(f"{done.stdout[-6000:]}\n{done.stderr[-1000:]}")
    if covered := re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr):
        print("coverage {} edges, {} features; corpus {} inputs".format(*covered[-1]))
    rows = (line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 2)
    return {name: (int(count), int(accepted)) for name, count, accepted in rows}


def fed(runs: int, seed: int, fuzz: Callable[[int, int], dict[str, tuple[int, int]]]) -> dict[str, Any]:
    """The parsers' part."""
    began = time.monotonic()
    rows = fuzz(runs, seed)
    for name, (inputs, accepted) in sorted(rows.items()):
        print(f"{name:24} {inputs:10,} inputs {accepted / inputs:6.1%} accepted")
    return {"inputs": sum(inputs for inputs, _ in rows.values()), "parsers": len(rows), "how": fuzz.__name__,
            "seconds": round(time.monotonic() - began)}  # fmt: skip


def talked(runs: int, seed: int, kind: type[Calls] | type[Streams]) -> dict[str, Any]:
    """The part of calls, or of streams, before a mesh of its own."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as mesh:
        began = time.monotonic()
        report: Report = asyncio.run(kind(mesh, seed).run(runs))
        return {"inputs": report.inputs, "codes": dict(report.codes.most_common()), "writes": dict(report.writes),
                "compared": report.compared, "grown_bytes": mesh.grown,
                "seconds": round(time.monotonic() - began)}  # fmt: skip


def main() -> int:
    """0: every law held. 1: one did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all parts together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="parsers without Atheris")
    parser.add_argument("--parts", nargs="*", choices=SHARES, default=list(SHARES))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"seed": arguments.seed}
    without = arguments.plain or not importlib.util.find_spec("atheris")
    parts = {"parsers": partial(fed, fuzz=plain if without else guided),
             "calls": partial(talked, kind=Calls), "streams": partial(talked, kind=Streams)}  # fmt: skip
    try:
        for name in arguments.parts:
            found[name] = parts[name](int(arguments.inputs * SHARES[name]), arguments.seed)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    except Broken as broken:
        print(broken)
        print(json.dumps({"broken": str(broken)[:2000], **found}))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
