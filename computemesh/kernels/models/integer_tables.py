"""Constants of the integer arithmetic, made with `decimal` and Python integers.

A platform's own exp, erf or cos may differ from another's in the last bit, which now and then would be a table's
entry. These are correctly rounded, or computed with more than 60 spare bits, and so equal everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache

import numpy as np

ROTATION_BITS = 30
_WORK_BITS = 128
_PRECISION = 50


def _whole(value: Decimal) -> int:
    return int(value.to_integral_value())


@cache
def power_table() -> np.ndarray:
    """2^(-i/256) in units of 2^-20, i = 0..256; int32."""
    with localcontext() as context:
        context.prec = _PRECISION
        ln2 = Decimal(2).ln()
        return np.array([_whole((-ln2 * i / 256).exp() * 2**20) for i in range(257)], np.int32)


@cache
def log_table() -> np.ndarray:
    """ln(1 + i/256) in units of 2^-24, i = 0..256; int32."""
    with localcontext() as context:
        context.prec = _PRECISION
        return np.array([_whole((1 + Decimal(i) / 256).ln() * 2**24) for i in range(257)], np.int32)


def _erf(x: Decimal) -> Decimal:
    """By its Taylor series about 0, for |x| < 8."""
    term, total, n = x, x, 0
    while abs(term) > Decimal(10) ** -30:
        n += 1
        term = -term * x * x / n
        total += term / (2 * n + 1)
    return total * 2 / _pi().sqrt()


@cache
def _pi() -> Decimal:
    """Machin's formula."""
    def arctan_inverse(n: int) -> Decimal:
        power, total, k = Decimal(1) / n, Decimal(0), 0
        while power > Decimal(10) ** -48:
            total += power / (2 * k + 1) * (-1) ** k
            power /= n * n
            k += 1
        return total

    return 4 * (4 * arctan_inverse(5) - arctan_inverse(239))


def _tanh(x: Decimal) -> Decimal:
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


def _gelu(x: Decimal) -> Decimal:
    return x * (1 + _erf(x / Decimal(2).sqrt())) / 2


def _gelu_tanh(x: Decimal) -> Decimal:
    return x * (1 + _tanh((2 / _pi()).sqrt() * (x + Decimal("0.044715") * x**3))) / 2


FUNCTIONS: dict[str, tuple[Callable[[Decimal], Decimal], int, int]] = {
    # name: (function, the table's end, steps per unit): outside +-end the function is its asymptote
    "gelu": (_gelu, 6, 128),
    "gelu_tanh": (_gelu_tanh, 6, 128),
    "silu": (lambda x: x / (1 + (-x).exp()), 16, 64),
    "tanh": (_tanh, 8, 128),
}


@cache
def function_table(name: str) -> np.ndarray:
    """`FUNCTIONS[name]` at -end + i/steps, i = 0 .. 2 * end * steps, in units of 2^-16; int32."""
    function, end, steps = FUNCTIONS[name]
    with localcontext() as context:
        context.prec = _PRECISION
        right = [function(Decimal(i) / steps) for i in range(end * steps + 1)]
        # tanh is odd; the others are x * F(x) with F(x) + F(-x) = 1, so f(-x) = f(x) - x.
        mirror = [-y if name == "tanh" else y - Decimal(i) / steps for i, y in enumerate(right)]
        return np.array([_whole(y * 2**16) for y in (*mirror[:0:-1], *right)], np.int32)


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """By Taylor series, for 0 <= angle <= 1."""
    cos, sin, term, n = Decimal(0), Decimal(0), Decimal(1), 0
    while abs(term) > Decimal(10) ** -45:
        if n % 2:
            sin += term * (-1) ** (n // 2)
        else:
            cos += term * (-1) ** (n // 2)
        n += 1
        term = term * angle / n
    return cos, sin


def rotation_table(inverse_frequencies: list[str], positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * frequency in units of 2^-30, int32 (positions, frequencies); frequencies <= 1.

    Positions 0 and 1 by series, the rest by doubling the table: e^(i(p+q)) = e^(ip) * e^(iq), in 128-bit fixed point.
    """
    with localcontext() as context:
        context.prec = _PRECISION
        pairs = [_cos_sin(Decimal(f)) for f in inverse_frequencies]
        one = [[_whole(value * 2**_WORK_BITS) for value in pair] for pair in pairs]
    cos = np.array([[1 << _WORK_BITS] * len(one)], object)
    sin = np.array([[0] * len(one)], object)
    step_cos = np.array([c for c, _ in one], object)
    step_sin = np.array([s for _, s in one], object)
    while len(cos) < positions:
        next_cos = (cos * step_cos - sin * step_sin) >> _WORK_BITS
        next_sin = (sin * step_cos + cos * step_sin) >> _WORK_BITS
        cos, sin = np.concatenate([cos, next_cos]), np.concatenate([sin, next_sin])
        step_cos, step_sin = (
            (step_cos * step_cos - step_sin * step_sin) >> _WORK_BITS,
            (2 * step_cos * step_sin) >> _WORK_BITS,
        )
    shift = _WORK_BITS - ROTATION_BITS
    half = 1 << (shift - 1)
    return tuple(((table[:positions] + half) >> shift).astype(np.int32) for table in (cos, sin))  # type: ignore[return-value]
