"""How much of a device each task type gets: `make bench-gpu`. Runs on the CPU too, with small sizes, and says so.

Each type's job goes the way a worker takes it: `execute`, digests, tree. Per type: throughput; how busy the device
was; the share of the time that went into commitment (digests of the units and their tree, made again and timed alone)
and into transfer (moving as many bytes off the device, timed alone); and its roofline: which ceiling of this device,
as bare loops of the same run reach it, the type's operations and bytes come nearest to, and how far they got. A path
tracer's and a simulation's operations are those that their price counts.

Beside them, in the same run: int8 and bfloat16 products that are digested and committed against bare loops of the same
product (their digests are made on the device, so commitment is what the bare loop is faster by; synthetic's includes
generating the operands), and decoding against `transformers` with the same weights and prompts on the same device.

    python -m bench.gpu [--types rendering,inference] [--small]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # transformers shares the device with us

import numpy as np
from blake3 import blake3

from bench.device import Ceilings, bare_product, copy_speed, seconds, watched
from computemesh.trust.audit import JobTree
from computemesh.workloads import Context, JobSpec, Outcome, get

Row = dict[str, Any]


class Bench:
    """A device, its ceilings and the sizes that suit it."""

    def __init__(self, device: Any, small: bool) -> None:
        self.device, self.small, self.runs = device, small, 2 if small else 5
        self.matrix = 1024 if small else 8192
        loops = 4 if small else 20
        bare = {kind: bare_product(kind, self.matrix, loops, self.runs) for kind in ("int8", "bf16", "f32")}
        self.ceilings = Ceilings(bare, copy_speed(2**26 if small else 2**31, self.runs))

    def size(self, small: Any, large: Any) -> Any:
        return small if self.small else large

    def measure(self, spec: JobSpec, name: str, done: float, unit: str, kind: str, work: float, moved: float) -> Row:
        """A job, `done` being how many `unit`s it makes of `work` operations and `moved` bytes of device memory."""
        task = get(name)
        layout, context = task.layout(spec), Context(device=self.device)

        def run() -> Outcome:
            outcome = task.execute(spec, context)
            JobTree(layout, outcome.digests)
            return outcome

        outcome = run()
        with watched(self.device.platform) as busy:
            for _ in range(self.runs):
                run()
        took = busy.wall_s / self.runs
        units = [outcome.units(i) for i in range(layout.count)] if outcome.units else []
        commitment = seconds(lambda: commit(layout, outcome.digests, units), self.runs)
        transfer = self.transfer(sum(map(len, units)) or len(outcome.digests))
        return {
            "type": name, "throughput": done / took, "unit": unit, "job_s": round(took, 4),
            "utilisation": round(busy.share, 3), "commitment": round(commitment / took, 4),
            "transfer": round(transfer / took, 4), **self.ceilings.roof(kind, work, moved, took),
        }  # fmt: skip

    def transfer(self, size: int) -> float:
        """Seconds in which so many bytes leave the device, each time anew."""
        import jax
        import jax.numpy as jnp

        resident = jax.device_put(np.zeros(max(size, 4) // 4, np.float32), self.device)
        fresh = jax.jit(lambda x: jnp.negative(x))

        def fetch() -> None:
            np.asarray(made.pop())

        made: list[Any] = []
        best = float("inf")
        for _ in range(self.runs + 1):
            made.append(fresh(resident).block_until_ready())
            begin = time.perf_counter()
            fetch()
            best = min(best, time.perf_counter() - begin)
        return best


def commit(layout: Any, digests: bytes, units: list[bytes]) -> bytes:
    """What turns units into a commitment; where the device digested them, the tree alone."""
    return JobTree(layout, b"".join(blake3(unit).digest() for unit in units) or digests).result_hash


def products(bench: Bench) -> list[Row]:
    """A product made, digested by tiles and committed, against the bare product: int8 as `synthetic` does it, which
    also generates its operands; bfloat16 the same way from resident operands (no task type multiplies so).
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    from computemesh.kernels.blake3 import digest_bytes, tile_digests
    from computemesh.kernels.matmul import TILE
    from computemesh.trust.audit import Layout

    n, loops, task = bench.matrix, bench.size(4, 20), get("synthetic")
    work, moved = 2.0 * n**3 * loops, loops * (2.0 * n * n + 8.0 * n * n)
    params = task.parse({"matrix_size": n, "iterations": loops, "seed": "bench"})
    int8 = bench.measure(task.split(params, bytes(32))[0], "synthetic", work / 1e12, "Tops/s", "int8", work, moved)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))

    @jax.jit
    def digested(a: Any, b: Any) -> Any:
        found = lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return tile_digests(lax.bitcast_convert_type(found, jnp.int32), TILE)

    def committed() -> None:
        for _ in range(loops):
            JobTree(Layout(1, (n // TILE) ** 2), digest_bytes(digested(a, b)))

    committed()
    with watched(bench.device.platform) as busy:
        took = seconds(committed, bench.runs)
    bf16 = {"type": "bf16 product", "throughput": work / 1e12 / took, "unit": "Tops/s", "job_s": round(took, 4),
            "utilisation": round(busy.share, 3), **bench.ceilings.roof("bf16", work, moved, took)}  # fmt: skip
    for row, kind in ((int8, "int8"), (bf16, "bf16")):
        bare = bench.ceilings.operations[kind] / 1e12
        row |= {"peer": f"a bare loop of the {kind} product: {bare:,.2f} Tops/s", "of_peer": row["throughput"] / bare}
        row |= {"commitment": round(max(0.0, 1 - row["of_peer"]), 4), "transfer": int8["transfer"]}
    return [int8, bf16]


def inference(bench: Bench) -> list[Row]:
    """Greedy decoding of a batch by a Llama with random weights, float32 as the type computes."""
    from bench.rows import inference as row

    sizes = bench.size(row.SMALL, {**row.LARGE, "hidden_size": 2048, "intermediate_size": 5632,
                                   "num_hidden_layers": 16, "num_attention_heads": 32})  # fmt: skip
    prompts, tokens = bench.size(8, 32), bench.size(32, 128)
    with tempfile.TemporaryDirectory() as folder:
        files, path = row.Folders(), Path(folder) / "model"
        row.make_model(path, sizes)
        spec = row.job(files, files.add(path), row.PROMPTS[:prompts], max_tokens=tokens, model_parameters=10**10)
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 4
        made = float(prompts * tokens)
        found = bench.measure(spec, "inference", made, "tokens/s", "f32", 2 * weights * made, 4 * weights * tokens)
        peer, where = transformers_speed(path, row.PROMPTS[:prompts], tokens, bench)
    found |= {"peer": f"transformers on {where}: {peer:,.1f} tokens/s", "of_peer": found["throughput"] / peer}
    return [found]


def transformers_speed(path: Path, prompts: list[str], tokens: int, bench: Bench) -> tuple[float, str]:
    """(tokens per second, device) of transformers' own cached greedy decoding, in float32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    where = "cuda" if bench.device.platform == "gpu" and torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).to(where).eval()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in prompts]
    width = max(map(len, ids))  # padded on the left, as it wants it
    batch = torch.tensor([[0] * (width - len(one)) + one for one in ids], device=where)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids], device=where)

    def run() -> None:
        with torch.inference_mode():
            model.generate(batch, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                           pad_token_id=0)  # fmt: skip
            if where == "cuda":
                torch.cuda.synchronize()

    return len(prompts) * tokens / seconds(run, bench.runs), where


def rendering(bench: Bench) -> list[Row]:
    from bench.rows import rendering as row
    from computemesh.workloads.rendering_job import FLOPS_PER_SAMPLE

    payload = bench.size({"width": 128, "height": 128, "samples_per_pixel": 4},
                         {"width": 512, "height": 512, "samples_per_pixel": 64})  # fmt: skip
    spec = row.job({"scene": "spheres", **payload})
    tiles = row.TASK.layout(spec).count
    samples = tiles * 256.0 * payload["samples_per_pixel"]
    return [bench.measure(spec, "rendering", samples / 1e6, "Msamples/s", "f32", samples * FLOPS_PER_SAMPLE,
                          tiles * 3072.0)]  # fmt: skip


def simulation(bench: Bench) -> list[Row]:
    from bench.rows import simulation as row
    from computemesh.workloads.simulation_job import read_job

    payload = bench.size({"parameters": {"width": 64, "height": 64}, "steps": 1000, "ensemble": 16},
                         {"parameters": {"width": 160, "height": 160}, "steps": 20_000, "ensemble": 256})  # fmt: skip
    spec = row.job("reaction_diffusion", payload)
    job = read_job(spec)
    steps = float(job.steps * job.members)
    found = bench.measure(spec, "simulation", steps, "steps/s", "f32", steps * job.model.flops(job.shape),
                          2 * steps * job.state_bytes)  # fmt: skip
    return [{**found, "unit": f"steps/s of {job.state_bytes:,} B"}]


def training(bench: Bench) -> list[Row]:
    from bench.rows import training as row
    from computemesh.workloads.training_job import flops, read_job

    spec = row.job(row.DEMOS["char_transformer"])
    job = read_job(spec)
    work = flops(job) / (job.rounds * job.workers)
    return [bench.measure(spec, "training", float(job.local_steps), "steps/s", "f32", work,
                          2.0 * job.local_steps * job.state_bytes)]  # fmt: skip


def program(bench: Bench) -> list[Row]:
    from bench.rows import program as row

    items = bench.size(32, 1024)
    with tempfile.TemporaryDirectory() as folder:
        spec = row.job(row.Folder(folder), items)
        work = 2.0 * items * row.LAYERS * row.ROWS * row.WIDTH**2
        moved = 4.0 * items * row.LAYERS * row.WIDTH**2
        return [bench.measure(spec, "program", float(items), "items/s", "f32", work, moved)]


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "synthetic": products, "inference": inference, "training": training, "rendering": rendering,
    "simulation": simulation, "program": program,
}  # fmt: skip


def show(row: Row) -> None:
    line = (
        f"{row['type']:<13} {row['throughput']:>12,.2f} {row['unit']:<22} {row['utilisation']:6.0%}"
        f" {row['commitment']:11.1%} {row['transfer']:9.1%}   {row['limit']}: {row['of_limit']:.1%} of it"
    )
    print(line + (f"; {row['of_peer']:.2f} of {row['peer']}" if "peer" in row else ""), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="", help=f"only these, with commas: {', '.join(SECTIONS)}")
    parser.add_argument("--small", action="store_true", help="the CPU's sizes also on a GPU")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.types.split(",") if name.strip()] or list(SECTIONS)
    if unknown := sorted(set(wanted) - set(SECTIONS)):
        parser.error(f"--types: no {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    import jax

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    print(f"device {device.platform} {device.device_kind}, jax {jax.__version__}"
          + ("; no GPU was found: small sizes, on the CPU" if on_cpu else ""))  # fmt: skip
    bench = Bench(device, arguments.small or on_cpu)
    found = bench.ceilings
    bare = ", ".join(f"{kind} {rate / 1e12:,.2f} Tops/s" for kind, rate in found.operations.items())
    print(f"bare loops here: {bare}, memory {found.bytes_s / 1e9:,.1f} GB/s\n")
    print(f"{'type':<13} {'throughput':>12} {'':<22} {'busy':>6} {'commitment':>11} {'transfer':>9}   roofline")
    rows = []
    for name in wanted:
        for row in SECTIONS[name](bench):
            rows.append(row)
            show(row)
    print("function jobs run their operator's Python: no device to measure")
    print(json.dumps({"bench": "gpu", "platform": device.platform, "device": device.device_kind,
                      "bare_operations_s": found.operations, "bytes_s": found.bytes_s, "types": rows}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
