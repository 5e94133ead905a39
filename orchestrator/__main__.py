"""python -m orchestrator --config orchestrator.toml"""

from __future__ import annotations

import argparse
import asyncio
import sys

from computemesh.service import config as configuration
from computemesh.service import telemetry
from computemesh.trust.errors import MeshError
from orchestrator.assembly import run
from orchestrator.config import Config


def main() -> int:
    """0 after an orderly stop, 2 where the configuration cannot work."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator", description="The orchestrator of a mesh.")
    parser.add_argument("--config", help="TOML file; COMPUTEMESH_ORCHESTRATOR_<KEY> in the environment overrides it")
    arguments = parser.parse_args()
    telemetry.configure("orchestrator")
    try:
        settings = configuration.load(Config, arguments.config, "orchestrator")
        telemetry.start("orchestrator", settings.metrics_listen, settings.traces)
        asyncio.run(run(settings))
    except MeshError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
