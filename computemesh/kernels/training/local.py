"""Local steps: the one jitted function that runs a segment, for whoever trains or checks. Imports JAX and optax.

Weights are one vector (P,) of the trainable tensors in canonical order; optax's rules are elementwise, so they see
only that vector and their state is a few vectors more. Shapes (steps, batch) are part of a job: the auditor's call
has the worker's shapes, and a repeated shape is never compiled again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax import Array

from computemesh.kernels.training import networks
from computemesh.kernels.training.architectures import Model

Segment = Callable[..., tuple[Array, list[Array], Array]]
MOMENTUM = 0.9
traces: list[tuple[str, str, int]] = []
"""One entry per compilation of this process: architecture, optimizer, steps."""


class Rule(NamedTuple):
    """How a segment steps; all of it is fixed when it is compiled."""

    model: Model
    optimizer: str
    trainable: tuple[str, ...]


def optimizer(name: str, rate: Any, decay: Any) -> optax.GradientTransformation:
    """sgd, momentum (0.9), adam or adamw with optax's defaults; `decay` is adamw's weight decay."""
    if name == "adamw":
        return optax.adamw(rate, weight_decay=decay)
    return optax.adam(rate) if name == "adam" else optax.sgd(rate, momentum=MOMENTUM if name == "momentum" else None)


def _split(rule: Rule, vector: Array) -> dict[str, Array]:
    shapes, found, at = rule.model.shapes(), {}, 0
    for name in rule.trainable:
        size = math.prod(shapes[name])
        found[name] = vector[at : at + size].reshape(shapes[name])
        at += size
    return found


@lru_cache(maxsize=32)
def compiled(rule: Rule) -> Segment:
    """(vector, optimizer leaves, frozen tensors, xs, ys, rate, decay) -> (vector, leaves, mean loss), jitted.

    xs (steps, batch, *row) and ys (steps, batch, ...) hold one batch per step.
    """

    def run(
        vector: Array, leaves: list[Array], frozen: dict[str, Array], xs: Array, ys: Array, rate: Array, decay: Array
    ) -> tuple[Array, list[Array], Array]:
        traces.append((rule.model.name, rule.optimizer, xs.shape[0]))
        rules = optimizer(rule.optimizer, rate, decay)
        structure = jax.tree.structure(jax.eval_shape(rules.init, vector))

        def loss(tensors: dict[str, Array], x: Array, y: Array) -> Array:
            return networks.loss(rule.model, {**frozen, **tensors}, x, y)

        def step(carry: tuple[Array, Any], batch: tuple[Array, Array]) -> tuple[tuple[Array, Any], Array]:
            now, state = carry
            value, slopes = jax.value_and_grad(loss)(_split(rule, now), *batch)
            slope = jnp.concatenate([slopes[name].reshape(-1) for name in rule.trainable])
            updates, state = rules.update(slope, state, now)
            return (optax.apply_updates(now, updates), state), value

        state = jax.tree.unflatten(structure, leaves)
        with jax.default_matmul_precision("highest"):  # GPUs would otherwise multiply in TF32
            (vector, state), losses = jax.lax.scan(step, (vector, state), (xs, ys))
        return vector, jax.tree.leaves(state), losses.mean()

    return jax.jit(run)


def run_segment(
    rule: Rule, vector: np.ndarray, slots: np.ndarray, frozen: dict[str, np.ndarray], xs: np.ndarray, ys: np.ndarray,
    rate: float, decay: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """One segment on JAX's default device: vector (P,) and the optimizer's state `slots` (Q,), both float32
    -> (vector, slots, mean loss ()), float32. A step count in the state is its value as float32, exact below 2^24.
    """
    leaves, at = [], 0
    for shape, dtype in _leaves(rule.optimizer, len(vector)):
        size = math.prod(shape)
        leaves.append(slots[at : at + size].reshape(shape).astype(dtype))
        at += size
    if at != len(slots):
        raise ValueError(f"{rule.optimizer} over {len(vector)} weights has a state of {at} numbers, not {len(slots)}")
    numbers = np.float32(rate), np.float32(decay)
    done = jax.device_get(compiled(rule)(vector, leaves, frozen, xs, ys, *numbers))
    moved = [np.asarray(leaf, np.float32).reshape(-1) for leaf in done[1]]
    return np.asarray(done[0]), np.concatenate([np.empty(0, np.float32), *moved]), np.asarray(done[2])


def _vector(size: int) -> Any:
    return jax.ShapeDtypeStruct((size,), jnp.float32)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=64)
def _leaves(name: str, size: int) -> tuple[tuple[tuple[int, ...], Any], ...]:
    state = jax.eval_shape(optimizer(name, 0.1, 0.0).init, _vector(size))
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state))
