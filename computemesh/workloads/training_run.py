"""A job with its files at hand: the outer step, where a shard starts, and its segments. Imports no JAX by itself.

Canonical bytes, all numbers little-endian, weights one vector of the trainable tensors in canonical order:

    outer   f32 weights (P) | f32 outer momentum (P) | u32 alphabet (vocabulary; a text without a model folder only)
    state   f32 weights (P) | f32 optimizer (Q) | f32 loss of each segment so far (segments) | u64 steps done

The losses lie in the state so that the last one, which the output shows, carries the whole curve under its digest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from computemesh.kernels.training import data, outer
from computemesh.kernels.training.architectures import initial
from computemesh.kernels.training.base import Base, open_base
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import Files
from computemesh.workloads.training_job import Job


class State(NamedTuple):
    """weights (P,), slots (Q,), losses (segments,), all float32, and the steps the shard has done."""

    weights: np.ndarray
    slots: np.ndarray
    losses: np.ndarray
    steps: int

    def pack(self) -> bytes:
        numbers = np.concatenate([self.weights, self.slots, self.losses]).astype("<f4", copy=False)
        return numbers.tobytes() + self.steps.to_bytes(8, "little")


def read_state(job: Job, raw: bytes) -> State:
    """A state of `job.state_bytes` bytes."""
    numbers = np.frombuffer(raw, "<f4", count=(len(raw) - 8) // 4)
    weights, slots, losses = np.split(numbers, [job.weights, job.weights + job.slots])
    return State(weights, slots, losses, int.from_bytes(raw[-8:], "little"))


def read_outer(job: Job, raw: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights (P,), momentum (P,), alphabet) of an outer state or of an output, which begins with one."""
    numbers = np.frombuffer(raw, "<f4", count=2 * job.weights)
    alphabet = np.frombuffer(raw[8 * job.weights : job.outer_bytes], "<u4")
    return numbers[: job.weights], numbers[job.weights :], alphabet


def fold(job: Job, outputs: Sequence[bytes]) -> bytes:
    """The outer state that follows a round's outputs (in shard order, each outer state || end state).

    All carry the outer state their round began with. Where they differ the one most outputs carry is taken, of
    equals the first: an audit recomputes it, so a second one is a lie that slipped through.
    """
    begun = Counter(output[: job.outer_bytes] for output in outputs).most_common(1)[0][0]
    weights, momentum, alphabet = read_outer(job, begun)
    ends = [read_state(job, output[job.outer_bytes :]).weights for output in outputs]
    moved = outer.step(weights, momentum, ends, job.outer_rate, job.outer_momentum)
    return b"".join(part.astype("<f4", copy=False).tobytes() for part in moved) + alphabet.tobytes()


class Run:
    """One job and what it reads. Raises InvalidArgument where the dataset or the model folder is not usable."""

    def __init__(self, job: Job, files: Files | None) -> None:
        if files is None:
            raise InvalidArgument("a training job needs its files", violations=[("files", "missing")])
        self.job, self.files = job, files
        self._base: Base | None = open_base(files.folder(job.base), job.model) if job.base else None
        self.model = self._base.model if self._base else job.model
        self._data: data.Data | None = None
        self._frozen: dict[str, np.ndarray] | None = None

    @property
    def data(self) -> data.Data:
        if self._data is None:
            path = self.files.artifact(self.job.dataset)
            if self.model.reads_text:
                folder = self._base.folder.path if self._base else None
                self._data = data.characters(path, self.model, folder)
            else:
                self._data = data.arrays(path, self.model)
        return self._data

    def _tensor(self, name: str) -> np.ndarray:
        if self._base is not None and name not in self.job.renewed:
            return self._base.read(name, self.model.shapes()[name])
        return initial(self.model, self.job.seed, name, self.model.shapes()[name])

    @property
    def frozen(self) -> dict[str, np.ndarray]:
        if self._frozen is None:
            trained = set(self.job.trainable)
            self._frozen = {name: self._tensor(name) for name in self.model.shapes() if name not in trained}
        return self._frozen

    def appendix(self) -> bytes:
        """What the output of the last round's first shard carries besides: the rest of the model folder it is
        based on, so that the checkpoint can be put together from outputs alone. Elsewhere empty.
        """
        job = self.job
        if self._base is None or not job.carries_base:
            return b""
        return self._base.appendix(self.frozen)

    def _result(self, index: int) -> bytes:
        raw, size = self.files.result(index), self.job.outer_bytes + self.job.state_bytes
        if len(raw) != size:
            raise InvalidArgument(f"the output of job {index} has {len(raw):,} bytes, not {size:,}")
        return raw

    def outer(self) -> bytes:
        """The outer state this round begins with; unit 0 is this and the appendix."""
        job = self.job
        if job.round:
            first = (job.round - 1) * job.workers
            return fold(job, [self._result(first + shard) for shard in range(job.workers)])
        weights = np.concatenate([self._tensor(name).reshape(-1) for name in job.trainable])
        alphabet = self.data.alphabet.astype("<u4").tobytes() if self.model.reads_text and not job.base else b""
        return weights.astype("<f4", copy=False).tobytes() + bytes(4 * job.weights) + alphabet

    def start(self, begun: bytes) -> State:
        """Where the shard's local steps begin: the outer weights, its own optimizer state of the round before.

        That state came from the worker that had the shard then; one that is not finite is begun anew.
        """
        job = self.job
        slots = np.zeros(job.slots, np.float32)
        if job.round and job.slots:
            carried = self._result((job.round - 1) * job.workers + job.shard)[job.outer_bytes :]
            found = read_state(job, carried).slots
            slots = found if np.isfinite(found).all() else slots
        steps = job.round * job.local_steps
        return State(read_outer(job, begun)[0], slots, np.zeros(job.segments, np.float32), steps)

    def steps_before(self, segment: int) -> int:
        """Steps the shard has done before segment 1..segments of this job."""
        return self.job.round * self.job.local_steps + (segment - 1) * self.job.steps

    def advance(self, state: State, segment: int, weights: np.ndarray | None = None) -> State:
        """The state after segment 1..segments, by the compiled function, on JAX's default device.

        `weights`, if given, stand in for the state's: how far a change of them carries is asked that way.
        """
        from computemesh.kernels.training import local

        job, first = self.job, self.steps_before(segment)
        parts = [
            self.data.batch(job.seed, range(step * job.batch, (step + 1) * job.batch), job.shard, job.workers)
            for step in range(first, first + job.steps)
        ]
        rule = local.Rule(self.model, job.optimizer, job.trainable)
        start = state.weights if weights is None else weights
        moved, slots, loss = local.run_segment(
            rule, start, state.slots, self.frozen, *data.stack(parts), job.rate, job.decay
        )
        losses = state.losses.copy()
        losses[segment - 1] = loss
        return State(moved, slots, losses, first + job.steps)


def split_weights(job: Job, vector: np.ndarray) -> dict[str, np.ndarray]:
    """The trainable tensors by name, views of a vector (P,)."""
    shapes, found, at = job.model.shapes(), {}, 0
    for name in job.trainable:
        size = math.prod(shapes[name])
        found[name] = vector[at : at + size].reshape(shapes[name])
        at += size
    return found
