"""`python -m worker --config FILE`: one worker agent."""

from __future__ import annotations

import argparse
import asyncio
import sys

from computemesh.service.config import load
from computemesh.service.telemetry import configure
from computemesh.trust.errors import MeshError
from worker.agent import run
from worker.config import WorkerConfig


def main() -> int:
    parser = argparse.ArgumentParser(prog="worker", description="A computemesh worker agent.")
    parser.add_argument("--config", help="TOML file; COMPUTEMESH_WORKER_<KEY> variables override it")
    arguments = parser.parse_args()
    configure("worker")
    try:
        asyncio.run(run(load(WorkerConfig, arguments.config, "COMPUTEMESH_WORKER")))
    except MeshError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
