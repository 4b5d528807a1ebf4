"""Counts the cost of requests, and checks before each whether it could exceed the limit."""

from threading import Lock

from gradsteer.judges.costs import Cost

CHARS_PER_TOKEN = 4  # English text in usual vocabularies; for estimates only


class Spending:
    """The tokens and dollars of one run; for any number of threads.

    Args:
        prices: Dollars per million tokens sent and received; None where not known.
        limit: Dollars that are not to be passed; None for no limit.
    """

    def __init__(self, prices: tuple[float, float] | None, limit: float | None) -> None:
        self.prices, self.limit = prices, limit
        self.reserved = 0.0
        self._requests = self._sent = self._received = 0
        self._unsure = 0.0
        self._lock = Lock()

    def dollars(self, sent: float, received: float) -> float:
        """What so many tokens cost; 0 where prices are not known."""
        prices = self.prices or (0.0, 0.0)
        return (sent * prices[0] + received * prices[1]) / 1e6

    @property
    def spent(self) -> float:
        """Dollars so far; requests that broke off count at the most that they may have cost."""
        return self.dollars(self._sent, self._received) + self._unsure

    def reserve(self, dollars: float) -> bool:
        """Sets aside what a request may cost at most; False, and nothing set aside, where that could pass the limit."""
        with self._lock:
            if self.limit is not None and self.spent + self.reserved + dollars > self.limit:
                return False
            self.reserved += dollars
            return True

    def settle(
        self, dollars: float, sent: int = 0, received: int = 0, answered: bool = False, unsure: bool = False
    ) -> None:
        """Puts what the request took in place of what was set aside for it; all of that where it is `unsure`."""
        with self._lock:
            self.reserved -= dollars
            self._unsure += max(0.0, dollars - self.dollars(sent, received)) if unsure else 0.0
            self._requests += answered
            self._sent += sent
            self._received += received

    def cost(self, num_stored: int = 0) -> Cost:
        """All that was settled so far."""
        with self._lock:
            dollars = None if self.prices is None else self.spent
            return Cost(self._requests, num_stored, self._sent, self._received, dollars)
