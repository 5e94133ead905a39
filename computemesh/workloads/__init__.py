"""Task types, one module each. A module with a `TASK` is registered by being in this folder.

Importing this package must not import JAX: markets, orchestrators and auditors run without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import (
    Artifact,
    Call,
    Claim,
    Context,
    Estimate,
    Files,
    Given,
    JobResult,
    JobSpec,
    Outcome,
    Workload,
    bind,
    worker_seed,
)

__all__ = [
    "Artifact", "Call", "Claim", "Context", "Estimate", "Files", "Given", "JobResult", "JobSpec", "Outcome", "Workload",
    "bind", "get", "names", "worker_seed",
]  # fmt: skip


@cache
def _registry() -> dict[str, Workload[Any]]:
    found: dict[str, Workload[Any]] = {}
    for module in pkgutil.iter_modules(__path__):
        task = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TASK", None)
        if task is None:
            continue
        if not isinstance(task, Workload) or task.name in found:
            raise TypeError(f"{__name__}.{module.name}.TASK is not a Workload with a name of its own")
        found[task.name] = task
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """The known task types, sorted."""
    return tuple(_registry())


def get(name: str) -> Workload[Any]:
    """The task type called `name`. Raises InvalidArgument on `challenge_type`, naming the known ones."""
    task = _registry().get(name)
    if task is None:
        text = f"{name[:64]!r} is not a task type; known are: {', '.join(names())}"
        raise InvalidArgument(f"challenge_type: {text}", violations=[("challenge_type", text)])
    return task
