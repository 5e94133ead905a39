"""The operator's functions, as the worker offers them: what it advertises and what its executors must know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from computemesh.trust.errors import InvalidArgument
from computemesh.v1.common_pb2 import FunctionSpec
from computemesh.workloads import function

MAX_SCHEMA_BYTES = 32_768
MAX_ALL_BYTES = 49_152  # of a Hello's 64 KiB


def offer(files: Sequence[str]) -> tuple[dict[str, str], list[FunctionSpec]]:
    """(an executor's extra environment, what to advertise) for these Python files; loads them in a child, `init` too.

    Raises JobFailed with what loading raised, InvalidArgument on a missing file, none or too many functions.
    """
    if not files:
        return {}, []
    paths = [str(Path(file).expanduser().absolute()) for file in files]
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise InvalidArgument(f"functions: {missing[0]} is not a file", violations=[("functions", missing[0])])
    specs = [
        FunctionSpec(
            name=one["name"], input_schema=one["input_schema"], output_schema=one["output_schema"],
            timeout_ms=max(1, round(one["timeout_s"] * 1000)),
        )
        for one in function.describe(paths)
    ]  # fmt: skip
    if not specs:
        raise InvalidArgument(f"functions: {', '.join(paths)} expose none", violations=[("functions", "none exposed")])
    for spec in specs:
        if max(len(spec.input_schema), len(spec.output_schema)) > MAX_SCHEMA_BYTES:
            raise InvalidArgument(f"functions: a schema of {spec.name} has more than {MAX_SCHEMA_BYTES:,} bytes")
    if (size := sum(spec.ByteSize() for spec in specs)) > MAX_ALL_BYTES:
        raise InvalidArgument(f"functions: schemas of {size:,} bytes; a worker advertises at most {MAX_ALL_BYTES:,}")
    return {function.FILES_VARIABLE: os.pathsep.join(paths)}, specs
