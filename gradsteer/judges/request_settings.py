"""What a request says beside its messages, and doing without what a model does not take.

Models that think before they answer (OpenAI's gpt-5 and o-series, and many that people serve themselves) take no
temperature, name the limit on tokens otherwise, and need room for their thoughts.
"""

import re
import warnings
from typing import Any, Literal

from gradsteer.judges.failures import Failure

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

ANSWER_TOKENS = 200  # of an answer without a thought
THOUGHT_TOKENS = 4000  # room for a thought before it
USUAL_THOUGHT = 500  # tokens; estimates only

_THINKS = re.compile(r"(?:.*/)?(?:o\d|gpt-[5-9](?!.*-chat)|gpt-oss)", re.IGNORECASE)
_LIMITS = ("max_tokens", "max_completion_tokens")


def thinks(model: str) -> bool:
    """Whether a model of this name thinks before it answers, as far as names tell: OpenAI's gpt-5, o1, o3 and so on."""
    return _THINKS.match(model) is not None


class RequestSettings:
    """Of all requests to one server; changes when the server says that its model does not take one of them.

    Args:
        model: The model's name on the server.
        temperature: Of sampling; None sends none.
        seed: Of sampling; None sends none.
        effort: How long the model is to think; None leaves it to the server.
        max_tokens: Tokens of an answer, thoughts included. None: `ANSWER_TOKENS`, and room for thoughts where the model
            is known to think, or once an answer was cut.
        openai: Whether the server is OpenAI's own.
    """

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        seed: int | None = None,
        effort: Effort | None = None,
        max_tokens: int | None = None,
        openai: bool = False,
    ) -> None:
        self.model, self._is_fixed = model, max_tokens is not None
        room = THOUGHT_TOKENS if thinks(model) or effort not in (None, "none") else 0
        self.max_tokens = ANSWER_TOKENS + room if max_tokens is None else max_tokens
        given = {"temperature": temperature, "seed": seed, "reasoning_effort": effort}
        self._options = {"model": model} | {name: value for name, value in given.items() if value is not None}
        # OpenAI's newer models know only the one name, most other servers only the other
        self._limit = _LIMITS[openai or thinks(model)]

    def options(self, max_tokens: int) -> dict[str, Any]:
        """What a request says now, with room for an answer of so many tokens."""
        return {**self._options, self._limit: max_tokens}

    def least_room(self) -> int | None:
        """Tokens of an answer without a thought, where there is room for more that nobody asked for; else None."""
        return None if self._is_fixed or self.max_tokens <= ANSWER_TOKENS else ANSWER_TOKENS

    def do_without(self, failure: Failure) -> bool:
        """Leaves out the setting that a request was refused for, or names it otherwise, for all requests from now on.

        Returns:
            False for a setting that is needed: the model, and how long it is to think.
        """
        name = failure.setting
        if name in _LIMITS:
            if name == self._limit:  # else another request heard of it first
                self._limit = _LIMITS[name == _LIMITS[0]]
            return True
        if name not in ("temperature", "seed"):
            return False
        if name in self._options:
            left_out = self._options.pop(name)
            warnings.warn(
                f"{self.model!r} takes no {name} {left_out:g} ({failure.reason}); from here on it is asked without, "
                "and may answer the same question differently another time",
                stacklevel=2,
            )
        return True

    def make_room(self, before: int) -> bool:
        """More tokens for an answer that was cut, where nobody said how many.

        Args:
            before: Its limit.

        Returns:
            Whether there is more room now than it had.
        """
        room = ANSWER_TOKENS + THOUGHT_TOKENS
        if not self._is_fixed and self.max_tokens < room:
            warnings.warn(
                f"an answer of {self.model!r} was cut at {self.max_tokens} tokens; from here on it has {room}, enough "
                "for models that think before they answer. --evaluation.judge.max_tokens sets another limit",
                stacklevel=2,
            )
            self.max_tokens = room
        return self.max_tokens > before
