"""What a worker says it can do, from its configuration and its devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from computemesh.trust.errors import InvalidArgument
from computemesh.v1.common_pb2 import Ask, Capabilities, Device, FunctionSpec
from worker.config import WorkerConfig

SOFTWARE_VERSION = "0.1.0"


def capabilities(
    config: WorkerConfig, challenge_types: Sequence[str], functions: Sequence[FunctionSpec],
    described: Sequence[Mapping[str, Any]],
) -> Capabilities:  # fmt: skip
    """`described` is what each executor says of its device. Raises InvalidArgument on asks that are none."""
    return Capabilities(
        devices=[Device(kind=d["kind"], platform=d["platform"], memory_bytes=d["memory_bytes"]) for d in described],
        challenge_types=challenge_types,
        jaxlib_version=described[0]["jaxlib_version"],
        display_name=config.display_name[:64],
        price_units_per_teraop=config.price_units_per_teraop,
        software_version=SOFTWARE_VERSION,
        functions=functions,
        owner=config.owner,
        asks=read_asks(config.asks),
    )


def read_asks(texts: Sequence[str]) -> list[Ask]:
    """The asks of a configuration, "TYPE=UNITS" each. Raises InvalidArgument."""
    found = []
    for text in texts:
        name, _, units = text.partition("=")
        if not name or not units.isdecimal():
            problem = f"{text[:80]!r} must be TYPE=UNITS, base units per 10^12 operations, e.g. rendering=250"
            raise InvalidArgument(f"asks: {problem}", violations=[("asks", problem)])
        found.append(Ask(challenge_type=name, price_units_per_teraop=int(units)))
    return found


def env_class(description: Mapping[str, Any]) -> str:
    """Where float results are byte-equal: device kind, jaxlib and what changes the code XLA makes."""
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{description['kind']}/{description['jaxlib_version']}/{flags}"[:256]
