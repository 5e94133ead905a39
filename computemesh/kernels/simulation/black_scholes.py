"""The closed form that Monte Carlo prices are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping

SIGNS = {"call": 1.0, "put": -1.0}


def price(option: str, values: Mapping[str, float]) -> float:
    """Price of a European call or put (Black and Scholes 1973, Merton's dividend yield).

    Raises KeyError for options without a closed form.
    """
    sign = SIGNS[option]
    spot = values["spot"] * math.exp(-values["dividend"] * values["maturity"])
    strike = values["strike"] * math.exp(-values["rate"] * values["maturity"])
    deviation = values["volatility"] * math.sqrt(values["maturity"])
    if deviation == 0:
        return max(sign * (spot - strike), 0.0)
    d1 = math.log(spot / strike) / deviation + deviation / 2

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return sign * (spot * phi(sign * d1) - strike * phi(sign * (d1 - deviation)))
