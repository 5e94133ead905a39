"""What a device can do at most, and how busy it was: the ceilings that `bench/gpu.py` holds the task types against."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_MS = 100


def seconds(call: Callable[[], Any], runs: int) -> float:
    """Median wall seconds of a call whose first run, which compiles, is not counted."""
    call()
    took = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


@dataclass
class Busy:
    """Filled when its block ends: share of the time the device worked, 0..1, wall seconds."""

    share: float = 0.0
    wall_s: float = 0.0


def cpu_seconds() -> float:
    """CPU time of this process and of the children that live now."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


@contextmanager
def watched(platform: str) -> Iterator[Busy]:
    """How busy the device is within the block: of a GPU what NVML counts (time with a kernel resident), of a CPU the
    CPU time of this process and its children over all cores.
    """
    busy, command = Busy(), ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    sampler = None
    if platform != "cpu" and shutil.which("nvidia-smi"):
        sampler = subprocess.Popen([*command, f"--loop-ms={SAMPLE_MS}"], stdout=subprocess.PIPE, text=True)
    cpu, begin = cpu_seconds(), time.perf_counter()
    try:
        yield busy
    finally:
        busy.wall_s = time.perf_counter() - begin
        busy.share = (cpu_seconds() - cpu) / busy.wall_s / len(os.sched_getaffinity(0))
        if sampler is not None:
            sampler.terminate()
            samples = [int(line) for line in sampler.communicate()[0].split() if line.isdigit()]
            busy.share = statistics.fmean(samples) / 100 if samples else float("nan")


@dataclass(frozen=True)
class Ceilings:
    """Operations per second of bare products by type, and bytes per second of a copy (read and written)."""

    operations: dict[str, float]
    bytes_s: float

    def roof(self, kind: str, operations: float, moved: float, took_s: float) -> dict[str, Any]:
        """The roofline's word on work of so many operations and bytes of device memory done in `took_s`."""
        times = {f"{kind} products": operations / self.operations[kind], "memory": moved / self.bytes_s}
        if times["memory"] > took_s:  # more than memory can give: what was read again stayed in a cache
            del times["memory"]
        limit = max(times, key=lambda name: times[name])
        return {"limit": limit, "of_limit": round(times[limit] / took_s, 4)}


def bare_product(kind: str, size: int, loops: int, runs: int) -> float:
    """Operations per second of `loops` products of two resident size x size matrices, nothing else."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    types = {"int8": (jnp.int8, jnp.int32), "bf16": (jnp.bfloat16, jnp.float32), "f32": (jnp.float32, jnp.float32)}
    operand, result = types[kind]
    a, b = (jax.random.randint(jax.random.key(i), (size, size), -127, 128).astype(operand) for i in (0, 1))
    precision = "highest" if kind == "f32" else None
    multiply = jax.jit(
        lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision, preferred_element_type=result)
    )

    def loop() -> None:
        for _ in range(loops):
            last = multiply(a, b)
        last.block_until_ready()

    return 2 * size**3 * loops / seconds(loop, runs)


def copy_speed(size: int, runs: int) -> float:
    """Bytes per second, read and written, of adding one to `size` bytes of float32."""
    import jax
    import jax.numpy as jnp

    x, add = jnp.zeros(size // 4, jnp.float32), jax.jit(lambda x: x + 1)
    return 2 * size / seconds(lambda: add(x).block_until_ready(), runs)
