"""Flame graphs of orchestrator, ledger and a worker's agent while no-op jobs go through the complete path.

py-spy (https://github.com/benfred/py-spy) takes a sample of whoever holds the interpreter, 200 times a second, from
outside; native code that lets go of it, as in SQLite's commits and gRPC's own threads, is not seen. Writes
`profile-<process>.svg`, which a browser opens, and prints the share of samples in which a function of ours was running,
itself or what it called.
"""

from __future__ import annotations

import argparse
import html
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from bench.dispatch import mesh, throughput

PROCESSES = ("orchestrator", "ledger", "worker-1")
RATE_HZ = 200
LEAST_SHARE = 0.03
_FRAME = re.compile(r"<title>(.+?) \(([\d,]+) samples, [\d.]+%\)</title>")
_OURS = re.compile(r"\((?:computemesh|orchestrator|ledger|worker)/[\w/]+\.py:\d+\)$")


def shares(graph: str) -> list[tuple[str, float]]:
    """(function, share of all samples) of a flame graph, the largest first; ours only, and none that is rare."""
    counts: Counter[str] = Counter()
    for name, samples in _FRAME.findall(graph):
        counts[html.unescape(name)] += int(samples.replace(",", ""))
    total = max(counts["all"], 1)
    return [(name, count / total) for name, count in counts.most_common()
            if _OURS.search(name) and count / total >= LEAST_SHARE]  # fmt: skip


def record(pids: dict[str, int], folder: Path, seconds: int) -> list[subprocess.Popen[bytes]]:
    """Samplers that have begun, one per process."""
    how = ["py-spy", "record", "--gil", "--function", "--rate", str(RATE_HZ), "--duration", str(seconds)]
    return [subprocess.Popen(
        [*how, "--output", folder / f"profile-{name}.svg", "--pid", str(pids[name])],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for name in PROCESSES]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--seconds", type=int, default=20, help="how long samples are taken")
    parser.add_argument("--jobs", type=int, default=50_000, help="jobs of each task meanwhile")
    options = parser.parse_args()
    with mesh() as (cluster, client):
        samplers = record(cluster.pids, options.folder, options.seconds)
        rates = []
        while any(sampler.poll() is None for sampler in samplers):
            rates.append(throughput(client, options.jobs))
    if any(sampler.returncode for sampler in samplers):
        raise SystemExit("py-spy could not read a process: it needs the right to trace (root, or ptrace_scope 0)")
    print(f"{min(rates):,.0f} to {max(rates):,.0f} jobs/s while samples were taken")
    for name in PROCESSES:
        print(f"\n{name}")
        for function, share in shares((options.folder / f"profile-{name}.svg").read_text()):
            print(f"{share:7.1%}  {function}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
