"""Monte Carlo sums for options on geometric Brownian motion, for one member: paths float32, sums float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


def option_sums(
    option: str, values: Array, key: Array, steps: Array, paths: int, precision: DTypeLike = jnp.float32
) -> Array:
    """values (6,): spot, strike, rate, volatility, maturity, dividend; key (2,) uint32 -> (4,) float64.

    Sums over paths/2 antithetic pairs of a pair's mean payoff, its square, its mean terminal price and the square of
    that, all relative to spot. Normals are Threefry's, keyed by the member's key and the step. A pair is one sample:
    its two paths are mirror images, so single payoffs would not be independent and the variance not honest.
    `precision` is what paths are computed in; anything else than float32 is there to be caught.
    """
    spot, strike, rate, volatility, maturity, dividend = values.astype(precision)
    dt = maturity / steps.astype(precision)
    drift, noise = (rate - dividend - volatility * volatility / 2) * dt, volatility * jnp.sqrt(dt)
    threefry = jax.random.wrap_key_data(key, impl="threefry2x32")

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        height, total = carry
        normal = jax.random.normal(jax.random.fold_in(threefry, i), (paths // 2,), precision)
        height = height + drift + noise * jnp.stack([normal, -normal])
        return height, total + jnp.exp(height)

    zero = jnp.zeros((2, paths // 2), precision)
    height, total = lax.fori_loop(0, steps, step, (zero, zero))
    terminal = jnp.exp(height)
    price = total / steps.astype(precision) if option.startswith("asian") else terminal
    sign = -1 if option.endswith("put") else 1
    payoff = jnp.maximum(sign * (price - strike / spot), 0).mean(0).astype(jnp.float64)
    ends = terminal.mean(0).astype(jnp.float64)
    return jnp.stack([payoff.sum(), (payoff * payoff).sum(), ends.sum(), (ends * ends).sum()])
