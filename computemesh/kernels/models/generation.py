"""Generating tokens from a cache, and judging them with one forward pass over the finished text.

A token at generated index t of prompt p is argmax over the vocabulary of

    logits + temperature * gumbel(seed key, p, t)      (`noise`), over the top_k largest logits where that is asked

and the argmax of logits at temperature 0. After an end token every token is PAD, with log-probability 0. The noise
depends on nothing but its three arguments, so a judge needs no history: he runs the model over prompt and claimed
tokens at once (teacher forcing) and looks whether each one was the argmax, within a margin in units of logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from computemesh.kernels.models.noise import gumbel

SPAN = 16
PAD = -1
JUDGED_ROWS = 64  # logits rows held at once by a judge


class Sampling(NamedTuple):
    """How tokens are drawn. `key` two uint32; `temperature` in units of 2^-16, 0 = argmax; `top_k` 0 = all."""

    key: tuple[int, int]
    temperature: int
    top_k: int


class Judgement(NamedTuple):
    """Per position: whether the token may stand, by how much (in logits) it falls short, its log-probability."""

    good: np.ndarray
    short: np.ndarray
    log_probability: np.ndarray


def bucket(n: int, least: int = 16) -> int:
    """The next of least * {1, 2, ... 8, 10, 12, 14, 16, 20, ...}: shapes repeat, and little of one is padding."""
    step = least
    while n > 8 * step:
        step *= 2
    return -(-max(n, 1) // step) * step


def top(logits: Array, k: int) -> Array:
    """The k-th largest of each row, (..., 1)."""
    return lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]


class Generator:
    """A loaded model with its jitted functions. `memory` is an encoder's output where there is one, else None."""

    def __init__(self, model: Any, ops: ModuleType, weights: Any, end_tokens: Sequence[int]) -> None:
        self.model, self.ops, self.weights = model, ops, weights
        self.end_tokens = np.array(sorted(end_tokens), np.int32)
        self.traces: Counter[str] = Counter()
        self._prefill = jax.jit(self._prefill_traced, static_argnames=("size",))
        self._span = jax.jit(self._span_traced, static_argnames=("sampled", "top_k"), donate_argnames=("cache",))
        self._judge = jax.jit(self._judge_traced, static_argnames=("sampled", "top_k"))

    def types(self) -> AbstractContextManager[Any]:
        """64-bit types where the arithmetic needs them."""
        return jax.enable_x64(True) if self.ops.EXACT else nullcontext()

    def _whole(self, w: Any, memory: Any, tokens: Array, room: int = 0) -> tuple[Array, Any]:
        """All positions of tokens (b, t) at once -> hidden (b, t, width), packed keys and values with room for more."""
        t = tokens.shape[1]
        causal = jnp.tril(jnp.ones((t, t), bool))[None]

        def attend(q: Array, k: Any, v: Any, scale: Any, bias: Any, kept: None) -> tuple[Array, Any]:
            padded = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, room)] + [(0, 0)] * (x.ndim - 2)), (k, v))
            return self.ops.attend(q, k, v, causal, scale, bias and bias(t)), padded

        positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), tokens.shape)
        return self.model.hidden(self.ops, w, tokens, positions, attend, None, memory)

    def _prefill_traced(self, w: Any, memory: Any, tokens: Array, lengths: Array, *, size: int) -> tuple[Array, Any]:
        self.traces["prefill"] += 1
        hidden, cache = self._whole(w, memory, tokens, size - tokens.shape[1])
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], 1)
        return self.model.logits(self.ops, w, last)[:, 0], cache

    def _step(self, w: Any, memory: Any, tokens: Array, positions: Array, cache: Any) -> tuple[Array, Any]:
        """One new token per row, tokens and positions (b,) -> logits (b, vocabulary) and the cache with it."""
        rows = jnp.arange(tokens.shape[0])

        def attend(q: Array, k: Any, v: Any, scale: Any, bias: Any, kept: Any) -> tuple[Array, Any]:
            new = jax.tree.map(lambda old, x: old.at[rows, positions].set(x[:, 0]), kept, (k, v))
            size = jax.tree.leaves(new)[0].shape[1]
            seen = jnp.arange(size)[None, None] <= positions[:, None, None]
            return self.ops.attend(q, *new, seen, scale, bias and bias(size)), new

        hidden, cache = self.model.hidden(self.ops, w, tokens[:, None], positions[:, None], attend, cache, memory)
        return self.model.logits(self.ops, w, hidden)[:, 0], cache

    def _scores(self, logits: Array, noise: Array | None, temperature: Array) -> Array:
        return logits if noise is None else self.ops.perturbed(logits, noise, temperature)

    def _span_traced(
        self, w: Any, memory: Any, cache: Any, logits: Array, lengths: Array, start: Array, done: Array, prompts: Array,
        key: Array, temperature: Array, *, sampled: bool, top_k: int,
    ) -> Any:  # fmt: skip
        self.traces["span"] += 1
        ends = jnp.asarray(self.end_tokens)

        def step(carry: Any, t: Array) -> Any:
            cache, logits, done = carry
            index = (start + t).astype(jnp.uint32)
            noise = None
            if sampled:
                noise = gumbel(key, prompts, jnp.broadcast_to(index, prompts.shape), logits.shape[-1])
            scores = self._scores(logits, noise, temperature)
            if top_k:
                lowest = jnp.iinfo(jnp.int32).min if self.ops.EXACT else -jnp.inf
                scores = jnp.where(logits >= top(logits, top_k), scores, lowest)
            token = lax.argmax(scores, 1, jnp.int32)
            shown = jnp.where(done, PAD, token), jnp.where(done, 0, self.ops.log_probability(logits, token))
            done = done | (token[:, None] == ends[None]).any(1)
            logits, cache = self._step(w, memory, token, lengths + start + t, cache)
            return (cache, logits, done), shown

        carry, (tokens, logs) = lax.scan(step, (cache, logits, done), jnp.arange(SPAN, dtype=jnp.int32))
        return *carry, tokens.T, logs.T

    def generate(
        self, texts: Sequence[Sequence[int]], prompts: Sequence[int], sampling: Sampling, max_tokens: int,
        memory: Any = None, progress: Callable[[float], None] = lambda _: None,
        partial: Callable[[np.ndarray], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """texts: token ids; prompts: their numbers, for the noise -> tokens int32 and log-probabilities float32,
        both (len(texts), max_tokens). `memory` has its leading axis padded as `rows(len(texts))` says.
        `partial` gets the first text's tokens so far, between spans.
        """
        spans = -(-max_tokens // SPAN)
        count, rows = len(texts), self.rows(len(texts))
        width = bucket(max(map(len, texts)))
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        numbers = np.zeros(rows, np.uint32)
        numbers[:count] = prompts
        for i, text in enumerate(texts):
            tokens[i, : len(text)], lengths[i] = text, len(text)
        found, logs = np.full((rows, spans * SPAN), PAD, np.int32), np.zeros((rows, spans * SPAN), np.float32)
        with self.types():
            logits, cache = self._prefill(self.weights, memory, tokens, lengths, size=width + bucket(spans * SPAN))
            done = jnp.arange(rows) >= count
            for span in range(spans):
                cache, logits, done, some, some_logs = self._span(
                    self.weights, memory, cache, logits, lengths, np.int32(span * SPAN), done, numbers,
                    np.array(sampling.key, np.uint32), np.int32(sampling.temperature),
                    sampled=sampling.temperature > 0, top_k=sampling.top_k,
                )  # fmt: skip
                found[:, span * SPAN : (span + 1) * SPAN] = some
                logs[:, span * SPAN : (span + 1) * SPAN] = some_logs
                progress((span + 1) / spans)
                if np.asarray(done).all():
                    break
                if partial is not None:
                    partial(found[0, : min((span + 1) * SPAN, max_tokens)])
        return found[:count, :max_tokens], logs[:count, :max_tokens]

    @staticmethod
    def rows(count: int) -> int:
        """Rows of the batch that `count` texts are padded to: a power of two."""
        return 1 << (count - 1).bit_length()

    def _judge_traced(
        self, w: Any, memory: Any, tokens: Array, first: Array, claimed: Array, prompt: Array, key: Array,
        temperature: Array, margin: Array, *, sampled: bool, top_k: int,
    ) -> Any:  # fmt: skip
        self.traces["judge"] += 1
        hidden, _ = self._whole(w, memory, tokens)
        count = claimed.shape[0]
        rows = jnp.clip(first + jnp.arange(count, dtype=jnp.int32), 0, tokens.shape[1] - 1)
        pieces = count // JUDGED_ROWS if count % JUDGED_ROWS == 0 else 1
        picked = hidden[0][rows].reshape(pieces, count // pieces, -1)
        indices = jnp.arange(count, dtype=jnp.uint32).reshape(pieces, -1)

        def piece(args: Any) -> Any:
            hidden, chosen, index = args
            logits = self.model.logits(self.ops, w, hidden[None])[0]
            noise = None
            if sampled:
                noise = gumbel(key, jnp.broadcast_to(prompt, index.shape), index, logits.shape[-1])
            scores = self._scores(logits, noise, temperature)
            own = jnp.take_along_axis(scores, chosen[:, None], 1)[:, 0]
            short = jnp.zeros_like(own)
            if top_k:
                least = top(logits, top_k)
                short = least[:, 0] - jnp.take_along_axis(logits, chosen[:, None], 1)[:, 0]
                # A rival that may itself have been just outside the top k to the worker cannot refute its choice.
                scores = jnp.where(logits >= least + 2 * margin, scores, own[:, None])
            short = jnp.maximum(jnp.max(scores, -1) - own, short)
            return short <= margin, short.astype(jnp.float32), self.ops.log_probability(logits, chosen)

        found = lax.map(piece, (picked, claimed.reshape(pieces, -1), indices))
        return [part.reshape(count) for part in found]

    def judge(
        self, text: Sequence[int], prompt: int, sampling: Sampling, claimed: np.ndarray, margin: float,
        memory: Any = None,
    ) -> Judgement:  # fmt: skip
        """One forward pass over the prompt's tokens and those claimed, (n,) int32 of 0..vocabulary-1 -> `Judgement`.

        The shapes follow from the two lengths alone, whatever else was claimed. `margin` is 0 in exact arithmetic.
        """
        n = len(claimed)
        length = bucket(len(text) + n, 32)
        count = length // 2 if n <= length // 2 else length  # two shapes per length: more would mostly be compiled
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(text) + n] = [*text, *claimed]
        padded = np.zeros(count, np.int32)
        padded[:n] = claimed
        with self.types():
            good, short, logs = self._judge(
                self.weights, memory, tokens, np.int32(len(text) - 1), padded, np.uint32(prompt),
                np.array(sampling.key, np.uint32), np.int32(sampling.temperature),
                np.int32(0) if self.ops.EXACT else np.float32(margin),
                sampled=sampling.temperature > 0, top_k=sampling.top_k,
            )  # fmt: skip
        one_ulp = np.float32(2.0**-16) if self.ops.EXACT else np.float32(1)
        return Judgement(np.asarray(good)[:n], np.asarray(short)[:n] * one_ulp, np.asarray(logs)[:n])
