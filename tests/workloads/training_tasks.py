"""Datasets, files and a mesh of one process, for tests and the bench row of the `training` type."""

from __future__ import annotations

import atexit
import hashlib
import io
import os
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from computemesh.trust.audit import JobTree, fold_opening, sample, verify_previous
from computemesh.trust.errors import NotFound
from computemesh.workloads import Claim, Context, JobResult, get

TASK = get("training")
TASK_ID = bytes(range(32))
DIGITS = {
    "model_architecture": {"name": "mlp", "hidden": [32]}, "epochs": 4, "examples": 1437, "batch_size": 32,
    "learning_rate": 3e-3, "optimizer": "adamw", "seed": "test",
}  # fmt: skip


class TaskFiles:
    """Artifacts and folders under a directory by their digest, results of jobs in memory."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, {}

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.root / digest).write_bytes(data)
        return digest

    def put_folder(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
        (self.root / digest).mkdir(exist_ok=True)
        for name, data in files.items():
            (self.root / digest / name).write_bytes(data)
        return digest

    def artifact(self, digest: bytes) -> Path:
        path = self.root / digest.hex()
        if not path.exists():
            raise NotFound(f"no artifact {digest.hex()}")
        return path

    folder = artifact

    def result(self, job: int) -> bytes:
        if job not in self.results:
            raise NotFound(f"no result of job {job}")
        return self.results[job]

    def only(self, jobs) -> TaskFiles:
        """What one job gets to see."""
        found = TaskFiles(self.root)
        found.results = {job: self.results[job] for job in jobs if job in self.results}
        return found


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


LAWS = npz(x=np.arange(600, dtype=np.float32).reshape(150, 4) % 7 / 7, y=np.arange(150) % 3)
SMALL = {
    "model_architecture": {"name": "mlp", "inputs": 4, "hidden": [5], "outputs": 3}, "seed": "law",
    "dataset": hashlib.sha256(LAWS).hexdigest(), "examples": 150, "batch_size": 8, "workers": 2,
}  # fmt: skip


class SmallFiles:
    """The files of `SMALL`."""

    def artifact(self, digest: bytes) -> Path:
        path = Path(tempfile.gettempdir()) / f"{SMALL['dataset']}-{os.getpid()}"
        if not path.exists():
            path.write_bytes(LAWS)
            atexit.register(path.unlink)
        return path


@cache
def digits():
    """(x, y) of the 1,797 images of scikit-learn, x in 0..1, in a fixed order: the last 360 are for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.data[order] / 16).astype(np.float32), found.target[order].astype(np.int64)


def digits_npz() -> bytes:
    x, y = digits()
    return npz(x=x[:-360], y=y[:-360])


@cache
def text() -> bytes:
    """English: what scikit-learn says of its data sets."""
    from sklearn import datasets

    names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
    return "".join(getattr(datasets, f"load_{name}")().DESCR for name in names).encode()


def jobs(payload, files):
    """The task's jobs, each with the files it may see."""
    params = TASK.parse(payload)
    return params, [replace(spec, files=files.only(spec.needs)) for spec in TASK.split(params, TASK_ID)]


def judge(spec, outcome, seed=bytes(32), k=None) -> bool:
    """The audit of one result as an orchestrator does it: its output, then a sample of its units."""
    layout = TASK.layout(spec)
    tree = JobTree(layout, outcome.digests)
    shown = TASK.output_digests(spec, outcome.output)
    if any(outcome.digests[32 * i : 32 * i + 32] != digest for i, digest in shown.items()):
        return False
    asked = sample(seed, bytes(32), layout.count, k or TASK.sample_size)
    openings = [tree.open(index, outcome.units(index)) for index in asked]
    claims = [Claim(o.index, o.unit, verify_previous(layout, o, tree.result_hash)) for o in openings]
    found = zip(openings, TASK.expected_digests(spec, claims), strict=True)
    return all(digest is not None and fold_opening(layout, o, digest) == tree.result_hash for o, digest in found)


def run_task(payload, files, execute=TASK.execute, audit=False):
    """The whole DAG: (params, outcomes). `execute(spec, context)` may lie; `files` keep every output."""
    params, _ = jobs(payload, files)
    outcomes = []
    for spec in TASK.split(params, TASK_ID):
        own = replace(spec, files=files.only(spec.needs))
        outcome = execute(own, Context())
        assert not audit or judge(own, outcome, bytes([spec.index]) * 32)
        files.results[spec.index] = outcome.output
        outcomes.append(outcome)
    return params, outcomes


def artifacts(params, outcomes) -> dict[str, bytes]:
    found = TASK.assemble(params, [JobResult(bytes(32), outcome.output) for outcome in outcomes])
    return {artifact.name: artifact.data for artifact in found}


def accuracy(files: dict[str, bytes], model) -> float:
    """The share of the test digits a checkpoint names rightly."""
    from safetensors.numpy import load

    from computemesh.kernels.training import networks

    x, y = digits()
    logits = networks.forward(model, load(files["model/model.safetensors"]), x[-360:].reshape(-1, *model.row))
    return float((np.asarray(logits).argmax(-1) == y[-360:]).mean())
