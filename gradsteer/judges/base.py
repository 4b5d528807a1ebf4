"""The contract of a judge.

A judge is blind: it is given a prompt and a response, never the condition that the response was sampled
under.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradsteer.judges.costs import Cost


@dataclass(frozen=True)
class Exchange:
    """Everything that a judge may see.

    Args:
        prompt: What the user said.
        response: What the model replied; it may be empty.
    """

    prompt: str
    response: str


@dataclass(frozen=True)
class Verdicts:
    """What a judge found in one response.

    Args:
        values: By behavior: true, false, or None where no verdict could be had.
        unscored: By behavior, for exactly those with None: why.
        decided: By behavior, of true verdicts that a first part of the response decided, whatever follows: the
            characters of that part. None from a judge that looks at the whole response.

    Raises:
        ValueError: If the reasons do not match the missing verdicts, or another verdict than a true one was decided.
    """

    values: dict[str, bool | None]
    unscored: dict[str, str]
    decided: dict[str, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        missing = {behavior for behavior, value in self.values.items() if value is None}
        if missing != set(self.unscored):
            raise ValueError(
                f"reasons are given for {sorted(self.unscored)}; they must be given for exactly the "
                f"behaviors without a verdict, {sorted(missing)}"
            )
        if silent := sorted(behavior for behavior, reason in self.unscored.items() if not reason):
            raise ValueError(f"the reason for {silent[0]!r} is empty; it must say why there is no verdict")
        if early := [behavior for behavior in self.decided or {} if self.values.get(behavior) is not True]:
            raise ValueError(f"{early[0]!r} is not shown, so no first part of the response decided it")

    def columns(self) -> dict[str, Any]:
        """What a row of responses says of them: ``verdicts``, ``unscored``, and ``decided`` where the judge says it."""
        decided = {} if self.decided is None else {"decided": self.decided}
        return {"verdicts": self.values, "unscored": self.unscored, **decided}


class Judge(ABC):
    """Decides, for each behavior, whether a response shows it.

    Subclass it to use your own judge on the command line, `--evaluation.judge MyJudge`. The constructor's
    arguments become flags, and their docstring becomes the help.
    """

    @property
    @abstractmethod
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors judged, in the order of the reports. Constant; not empty; no name twice."""

    @abstractmethod
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """Judges each exchange by itself.

        Verdicts depend on the exchange alone: not on the others, their order or their number. An
        implementation may work on several at a time.

        One bad reply never raises: a response that cannot be judged is unscored with a reason, never false.
        What makes every verdict impossible (a wrong key, an unknown model) does raise.

        Args:
            exchanges: What to judge; may be empty.

        Returns:
            One for each exchange, in the order of `exchanges`, with a value for each of `behaviors`.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of everything that decides the verdicts: rubric, patterns, model name, parsing rules.

        Two judges with one fingerprint may share stored verdicts. No secret goes in, nor what cannot change a
        verdict (a time limit, a number of workers). The same in every process.
        """

    def check(self) -> None:  # noqa: B027 - most judges can always be asked
        """Raises what would make every verdict impossible, before any work starts; asks nothing.

        Raises:
            ValueError: If a key is needed and not set, say, or a model is not there.
        """

    @property
    def waits(self) -> bool:
        """Whether judging is mostly waiting for a server, so that the caller had better go on sampling meanwhile."""
        return False

    @property
    def max_cost(self) -> float | None:
        """Dollars that this process may spend; None without a limit."""
        return None

    def unanswered(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """Those of some exchanges that asking for their verdicts would take work for; all, where nothing is stored."""
        return list(exchanges)

    def usage(self) -> Cost | None:
        """What judging has taken so far in this process; None for a judge that costs nothing worth counting."""
        return None

    def estimate(self, num_exchanges: int, prompt_chars: float, response_chars: float) -> Cost | None:
        """What so many exchanges will take, none of them stored, from their mean lengths in characters.

        Returns:
            None for a judge that costs nothing worth counting.
        """
        return None

    def share(self, num_processes: int) -> None:  # noqa: B027 - most judges have no limit to share
        """Takes this process's part of the limits that are meant for all processes together."""

    def close(self) -> None:  # noqa: B027 - most judges hold nothing
        """Releases what the judge holds, such as connections.

        May be called more than once; and while another thread is in `judge`, which then ends soon, with any error,
        where it mostly waits.
        """
