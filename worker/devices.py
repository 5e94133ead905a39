"""Which devices this machine has and what an executor's environment must be, found without JAX."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

MAX_DEVICES = 64


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Ids of the NVIDIA GPUs this process may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists; may be []."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")][:MAX_DEVICES]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if listed.returncode != 0:
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip().isdigit()][:MAX_DEVICES]


def environments(platform: str) -> list[dict[str, str]]:
    """The extra environment of each executor, one per device.

    Every process sees one GPU only: JAX opens, and takes memory of, each it sees. On CPU there is one executor,
    because XLA spreads one job over all cores. On TPU there is one too: libtpu belongs to a single process.
    """
    base = {"JAX_PLATFORMS": platform} if platform else {}
    gpus = visible_gpus() if platform in ("", "cuda", "gpu") else []
    if not gpus:
        return [base]
    return [{**base, **shared_gpu(), "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]


def shared_gpu() -> dict[str, str]:
    """The extra environment of who may not be alone on a GPU: by default JAX takes three quarters of it at once, and
    a second worker on it, or the process of a customer's program, would not start."""
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}
