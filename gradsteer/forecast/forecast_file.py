"""The forecast of one condition, as reports hold it, and the prompts that it is for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gradsteer.records import text_digest


@dataclass(frozen=True)
class ForecastRate:
    """A behavior's predicted rate.

    Attributes:
        rate: the forecast, in [0, 1]; None where it would hang on one response: the interval alone is known then.
        ci_low: 95% interval, bootstrap over prompts.
        ci_high: likewise.
        importance: the rate by importance weights.
        linear: the rate by the linear form; None where no direction was given.
        num_scored: responses that it rests on.
        num_unscored: responses without a verdict.
        method: what the rate is by; ``bound`` where there is none.
        reliable: whether the importance weights say enough about this rate.
    """

    rate: float | None
    ci_low: float
    ci_high: float
    importance: float
    linear: float | None
    num_scored: int
    num_unscored: int
    method: Literal["importance", "linear", "bound"] = "importance"
    reliable: bool = True


@dataclass(frozen=True)
class Forecast:
    """What is predicted of one condition.

    Attributes:
        method: ``importance``, or ``linear`` where the effective sample size is too small and a direction was given.
        effective_sample_size: of the importance weights, of `num_responses`.
        num_responses: that the forecast rests on.
        reliable: whether the effective sample size is large enough.
        rates: behavior -> its rate.
        classes: class of responses -> its rate, where there are several behaviors; see
            `gradsteer.evaluation.verdict_classes`.
        log_odds_shift: change of the log-odds of the vector's PLUS against its MINUS class; None without classes.
        linear_log_odds_shift: ``-alpha <S, V>``; likewise.
        kl_per_token: ``KL(p' || p)`` of whole responses over their mean length, nats; None where none is possible, or
            where it would hang on one response.
        traits: importance-weighted means of what else is known of the responses: their length, the share cut, ...;
            likewise empty.
        best_source: where responses of several files are pooled, the file whose own responses have the largest
            effective sample size by themselves, with its alpha.
    """

    method: Literal["importance", "linear"]
    effective_sample_size: float
    num_responses: int
    reliable: bool
    rates: dict[str, ForecastRate]
    classes: dict[str, ForecastRate]
    log_odds_shift: float | None
    linear_log_odds_shift: float | None
    kl_per_token: float | None
    traits: dict[str, float] = field(default_factory=dict)
    best_source: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row's ``predicted``: plain values, None for what does not apply."""
        return {
            "method": self.method,
            "effective_sample_size": self.effective_sample_size,
            "num_responses": self.num_responses,
            "reliable": self.reliable,
            "log_odds_shift": self.log_odds_shift,
            "linear_log_odds_shift": self.linear_log_odds_shift,
            "kl_per_token": self.kl_per_token,
            "mean_length": self.traits.get("mean_length"),
            **({} if self.best_source is None else {"best_source": self.best_source}),
            "rates": {name: _plain(rate) for name, rate in self.rates.items()},
            "classes": {name: _plain(rate) for name, rate in self.classes.items()},
        }


def prompts_said(digests: Collection[str]) -> dict[str, Any]:
    """A forecast's record of its prompts: how many, and one digest of them all, in any order.

    Args:
        digests: of the distinct prompts; see `gradsteer.data.response_rows.prompt_digest`.
    """
    return {"num_prompts": len(digests), "prompts_digest": text_digest("\n".join(sorted(digests)))[:32]}


def other_prompts(about: Mapping[str, Any], digests: Collection[str]) -> str | None:
    """A warning if the prompts that are sampled are not those of the forecast; None if they are.

    Args:
        about: the header of a forecast.json. Files from earlier versions lack the prompts' digest; the check is then
            skipped.
        digests: of the distinct prompts that are sampled.
    """
    if about.get("prompts_digest") in (None, prompts_said(digests)["prompts_digest"]):
        return None
    return (
        f"forecast: the prompts that are sampled ({len(digests)}) are not those that it is of "
        f"({about['num_prompts']}), or a part of them: what is forecast and what comes out are not rates on the same "
        "prompts"
    )


def conditions_said(steps: Sequence[float | None]) -> str:
    """Of which conditions a forecast's responses are, in words.

    Args:
        steps: alpha of each file's step along its vector; None for the anchor's own.
    """
    named = ["the anchor" if alpha is None else f"the step {alpha:+.4g} along its vector" for alpha in steps]
    return " and of ".join(named)


def _plain(rate: ForecastRate) -> dict[str, float | str | bool | None]:
    keys = "rate", "ci_low", "ci_high", "importance", "linear", "method", "reliable"
    return {key: getattr(rate, key) for key in keys}
