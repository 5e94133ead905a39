"""`python -m ledger --config FILE` serves; `python -m ledger fsck --config FILE` replays and compares."""

from __future__ import annotations

import argparse
import asyncio
import sys

from computemesh.service import config as configuration
from computemesh.service import telemetry
from computemesh.trust.errors import MeshError
from ledger import startup
from ledger.config import Config


def main() -> int:
    """0: served and stopped, or sound. 1: differences found, or it could not start. 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m ledger", description=__doc__)
    parser.add_argument("command", nargs="?", default="serve", choices=("serve", "fsck"))
    parser.add_argument("--config", metavar="FILE", help="TOML file; COMPUTEMESH_LEDGER_<KEY> variables override it")
    arguments = parser.parse_args()
    telemetry.configure("ledger")
    try:
        config = configuration.load(Config, arguments.config, "ledger")
        if arguments.command == "fsck":
            problems = startup.fsck(config)
            print("\n".join(problems) or "sound: the replay reproduces every header and table")
            return 1 if problems else 0
        telemetry.start("ledger", config.metrics_listen, config.traces)
        asyncio.run(startup.run(config))
    except MeshError as error:
        print(f"ledger: {error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
