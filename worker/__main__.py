"""`python -m worker --config FILE`: one worker agent."""

from __future__ import annotations

import argparse
import asyncio
import sys

from computemesh.service import config as configuration
from computemesh.service import telemetry
from computemesh.trust.errors import MeshError
from worker.agent import run
from worker.config import WorkerConfig


def main() -> int:
    parser = argparse.ArgumentParser(prog="worker", description="A computemesh worker agent.")
    parser.add_argument("--config", help="TOML file; COMPUTEMESH_WORKER_<KEY> in the environment overrides it")
    arguments = parser.parse_args()
    telemetry.configure("worker")
    try:
        settings = configuration.load(WorkerConfig, arguments.config, "worker")
        telemetry.start("worker", settings.metrics_listen, settings.traces)
        asyncio.run(run(settings))
    except MeshError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
