"""`python -m edge --config edge.toml`: writes Envoy's configuration and runs Envoy until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import sys

from computemesh.service.config import load
from computemesh.trust.errors import MeshError
from edge import process
from edge.config import Config


def main() -> int:
    """The exit status is Envoy's, 0 where it was asked to stop, 2 for a configuration that cannot be used."""
    parser = argparse.ArgumentParser(prog="edge")
    parser.add_argument("--config", help="TOML file; COMPUTEMESH_EDGE_<KEY> variables override it")
    arguments = parser.parse_args()
    try:
        return process.run(load(Config, arguments.config, "EDGE"))
    except MeshError as error:
        print(f"edge: {error.message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
