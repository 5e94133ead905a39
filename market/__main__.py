"""`python -m market --config market.toml`: configuration, parts, serve."""

from __future__ import annotations

import argparse
import asyncio
import sys

from computemesh.service import config, server, telemetry
from computemesh.trust.errors import MeshError
from market.app import build
from market.config import Config


async def _run(settings: Config) -> None:
    market = build(settings)  # a signal ends a replica that stands by at once
    stop = asyncio.Event()
    server.stop_on_signals(stop)
    await market.run(stop)


def main() -> int:
    """0 after an orderly end, 2 where the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="market", description="The market service of a computemesh.")
    parser.add_argument("--config", help="TOML file; COMPUTEMESH_MARKET_<KEY> in the environment overrides it")
    arguments = parser.parse_args()
    telemetry.configure("market")
    try:
        settings = config.load(Config, arguments.config, "market")
        telemetry.start("market", settings.metrics_listen, settings.traces)
        asyncio.run(_run(settings))
    except MeshError as error:
        print(f"market: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
