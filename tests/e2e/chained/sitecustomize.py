"""A task type that exists only where this folder is on the path: each job needs the one before and reads an artifact.

Block i of job j is SHA-256(output of job j - 1 || artifact || u32 i); a job's output are its four blocks.
"""

import time
from hashlib import sha256
from types import SimpleNamespace

from blake3 import blake3

from computemesh import workloads
from computemesh.trust.audit import Layout
from computemesh.workloads.contract import Artifact, Estimate, JobSpec, Outcome, Workload, equal_slices

UNITS, SIZE = 4, 32


def block(spec, index):
    before = spec.files.result(spec.index - 1) if spec.needs else b""
    return sha256(before + spec.files.artifact(spec.params).read_bytes() + index.to_bytes(4, "big")).digest()


def make_jobs(params, task_id, which):
    return [JobSpec(task_id, i, params.salt, (i - 1,) if i else ()) for i in which]


def execute(spec, context):
    time.sleep(0.3)
    blocks = [block(spec, i) for i in range(UNITS)]
    return Outcome(b"".join(blake3(b).digest() for b in blocks), blocks.__getitem__, b"".join(blocks))


def check(spec, index, unit, previous_root):
    assert spec.env_class.startswith("cpu/")
    return blake3(unit).digest() if unit == block(spec, index) else None


CHAINED = Workload(
    name="chained",
    exact=False,
    sample_size=2,
    parse=lambda payload: SimpleNamespace(salt=bytes.fromhex(payload["salt"]), jobs=int(payload["jobs"])),
    price=lambda params: Estimate(params.jobs, params.jobs),
    jobs=lambda params: params.jobs,
    make_jobs=make_jobs,
    layout=lambda spec: Layout(1, UNITS),
    execute=execute,
    check=check,
    assemble=lambda params, results: [Artifact("chain.bin", "", b"".join(result.output for result in results))],
    references=("salt",),
    inputs=lambda params: [params.salt],
    job_inputs=lambda spec: [spec.params],
    output_bytes=lambda spec: UNITS * SIZE,
    output_digests=lambda spec, output: equal_slices(spec, output, UNITS, SIZE),
    output_units=lambda spec, output, indices: [output[SIZE * i : SIZE * (i + 1)] for i in indices],
    preview=lambda params, outputs: Artifact("so-far.txt", "text/plain", str(len(outputs)).encode()),
)

known, named = workloads.get, workloads.names
workloads.get = lambda name: CHAINED if name == "chained" else known(name)
workloads.names = lambda: (*named(), "chained")
