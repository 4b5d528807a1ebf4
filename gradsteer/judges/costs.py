"""What judging costs: requests, tokens and dollars, counted or estimated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What judging took, or will take.

    Args:
        num_requests: Requests answered by a server, or passes of a model on this machine.
        num_stored: Exchanges whose verdicts were stored already; 0 in an estimate.
        prompt_tokens: Tokens sent.
        completion_tokens: Tokens received.
        dollars: None where the price of a token is not known.
    """

    num_requests: int = 0
    num_stored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = None

    def __str__(self) -> str:
        stored = f", {self.num_stored:,} verdicts from the store" if self.num_stored else ""
        paid = "price not known" if self.dollars is None else f"${self.dollars:,.4f}"
        tokens = f"{self.prompt_tokens:,} tokens sent, {self.completion_tokens:,} received"
        return f"{self.num_requests:,} requests{stored}, {tokens}, {paid}"
