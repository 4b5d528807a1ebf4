"""What OpenAI's usual models cost a token, as noted in August 2025.

Prices change, and a discount for cached or batched requests is left out: what a run really costs is on the bill. Give
`prices` where these are out of date.
"""

import math
import re
from collections.abc import Sequence

# Dollars per million tokens: sent, received.
KNOWN = {
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "gpt-4.1-nano": (0.10, 0.40),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1": (2.00, 8.00),
    "gpt-5-nano": (0.05, 0.40),
    "gpt-5-mini": (0.25, 2.00),
    "gpt-5": (1.25, 10.00),
}

_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def token_prices(model: str, prices: Sequence[float] | None) -> tuple[float, float] | None:
    """Dollars per million tokens, sent and received.

    Args:
        model: The model's name; a dated one costs what the undated one does. Under a known name OpenAI's price is taken
            of any server: a gateway asks about as much, and a limit that holds on the safe side is better than none.
        prices: What the user says, which goes before what is known.

    Returns:
        None where the price is not known.

    Raises:
        ValueError: If `prices` are not two finite numbers of at least 0.
    """
    if prices is not None:
        if len(prices) != 2 or any(not math.isfinite(price) or price < 0 for price in prices):
            raise ValueError(
                f"prices are {list(prices)}; accepted: dollars per million tokens [sent, received], as in [0.15, 0.6]"
            )
        return float(prices[0]), float(prices[1])
    return KNOWN.get(_DATED.sub("", model))
