"""What OpenAI's usual models cost a token: the only place that says so, and as of when.

Prices change, and a discount for cached or batched requests is left out: what a run really costs is on the bill. Give
`prices` where these are out of date.
"""

import math
import re
from collections.abc import Sequence

AS_OF = "June 2026"  # standard prices, as pages of that month quote OpenAI's list

# Dollars per million tokens: sent, received (thoughts among them).
KNOWN = {
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "gpt-4.1-nano": (0.10, 0.40),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1": (2.00, 8.00),
    "gpt-5-nano": (0.05, 0.40),
    "gpt-5-mini": (0.25, 2.00),
    "gpt-5": (1.25, 10.00),
    "gpt-5.1": (1.25, 10.00),
    "gpt-5.2": (1.75, 14.00),
    "gpt-5.4-nano": (0.20, 1.25),
    "gpt-5.4-mini": (0.75, 4.50),
    "gpt-5.4": (2.50, 15.00),
    "gpt-5.5": (5.00, 30.00),
    "o1": (15.00, 60.00),
    "o3-mini": (1.10, 4.40),
    "o3": (2.00, 8.00),
    "o4-mini": (1.10, 4.40),
}

_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def token_prices(model: str, prices: Sequence[float] | None) -> tuple[float, float] | None:
    """Dollars per million tokens, sent and received.

    Args:
        model: The model's name; a dated one costs what the undated one does, and `openai/` before it, as gateways have
            it, changes nothing. Under a known name OpenAI's price is taken of any server: a gateway asks about as much,
            and a limit that holds on the safe side is better than none.
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
    return KNOWN.get(_DATED.sub("", model.removeprefix("openai/")))
