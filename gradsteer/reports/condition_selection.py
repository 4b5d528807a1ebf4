"""Choosing conditions by their forecast, so that only those are sampled and judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradsteer.records import read_json
from gradsteer.reports.predictions import believed
from gradsteer.reports.results import FORMAT_VERSION

Row = Mapping[str, Any]
_NEAR = 0.005


@dataclass
class Selection:
    """Which of a forecast's conditions to sample and judge: the best ones for every vector.

    Attributes:
        rule: "target_rate": among conditions whose forecast rate of the vector's behavior reaches `rate`, those that
            change the other behaviors least. "selectivity": among conditions within `max_kl`, those with the largest
            selectivity, as defined in `gradsteer.evaluation.specificity`.
        rate: for target_rate. A target below the anchor's rate is reached at or below it, one above at or above it.
        max_kl: for selectivity: largest KL divergence between steered and anchor, in nats per token.
        keep: number of conditions to keep per vector.
    """

    rule: Literal["target_rate", "selectivity"]
    rate: float | None = None
    max_kl: float | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        if self.rule not in ("target_rate", "selectivity"):
            raise ValueError(f"steering.select.rule is {self.rule!r}; accepted: target_rate, selectivity")
        if (self.rule == "target_rate") != (self.rate is not None):
            raise ValueError("steering.select.rate belongs to the rule target_rate, which needs it")
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"steering.select.rate is {self.rate}; accepted: more than 0 and less than 1")
        if (self.rule == "selectivity") != (self.max_kl is not None):
            raise ValueError("steering.select.max_kl belongs to the rule selectivity, which needs it (nats a token)")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(f"steering.select.max_kl is {self.max_kl}; accepted: nats a token, more than 0")
        if self.keep < 1:
            raise ValueError(f"steering.select.keep is {self.keep}; accepted: at least 1")


def read_forecast(path: str) -> dict[str, Any]:
    """Reads a forecast.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or of another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no forecast at {path!r}; accepted: a forecast.json that gradsteer forecast wrote")
    report = read_json(path)
    if report.get("format") != FORMAT_VERSION or "forecast" not in report:
        raise ValueError(f"{path!r} is no forecast of format {FORMAT_VERSION}; accepted: what gradsteer forecast wrote")
    return report


def choose(rows: Sequence[Row], behaviors: Mapping[str, str | None], selection: Selection) -> list[str]:
    """Names of the steered conditions that a selection keeps, in the rows' order.

    Args:
        rows: of a forecast, the anchor's among them.
        behaviors: vector -> its behavior.
        selection: the rule.

    Raises:
        ValueError: a vector's behavior is not known, or no condition of it reaches what is asked; says the nearest.
    """
    anchor = next((row for row in rows if row["name"] == "anchor"), None)
    if anchor is None:
        raise ValueError("the forecast has no anchor to compare with")
    chosen: set[str] = set()
    for vector, behavior in behaviors.items():
        if behavior is None or behavior not in anchor["behaviors"]:
            raise ValueError(f"which behavior is vector {vector!r} of? give --steering.behaviors.{vector} BEHAVIOR")
        for name, rate in anchor["behaviors"].items():
            if rate["rate"] is None:
                raise ValueError(
                    f"the forecast has no rate of {name!r} for the anchor, to compare with, but a bound alone: "
                    "forecast from more responses, or from several files (docs/rare.md)"
                )
        candidates = [row for row in rows if row["vector"] == vector and _is_candidate(row)]
        scored = [
            (score, row["name"])
            for row in candidates
            if (score := _score(row, anchor, behavior, selection)) is not None
        ]
        if not scored:
            raise ValueError(f"vector {vector!r}: {_nearest(candidates, behavior, selection)}")
        best = sorted(scored, key=lambda pair: pair[0], reverse=True)[: selection.keep]
        chosen |= {name for _, name in best}
    return [row["name"] for row in rows if row["name"] in chosen]


def _is_candidate(row: Row) -> bool:
    """Whether a row is of the anchor, steered, and every behavior of it has a rate that is to be believed."""
    said = row["predicted"]
    known = all(
        rate["rate"] is not None and believed(row, said.get("rates", {}).get(name, {}))
        for name, rate in row["behaviors"].items()
    )
    return row["model"] == "anchor" and said["role"] == "steered" and known


def _score(row: Row, anchor: Row, behavior: str, selection: Selection) -> float | None:
    """Higher is better; None where the condition does not do what is asked."""
    others = [name for name in anchor["behaviors"] if name != behavior]
    if selection.rule == "target_rate":
        assert selection.rate is not None
        rate, before = row["behaviors"][behavior]["rate"], anchor["behaviors"][behavior]["rate"]
        # half a point more is reached too: so near is a rate solved for
        below = selection.rate < before
        reached = rate <= selection.rate + _NEAR if below else rate >= selection.rate - _NEAR
        return -sum(abs(_shift(row, anchor, name)) for name in others) if reached else None
    assert selection.max_kl is not None
    divergence = row["predicted"]["kl_per_token"]
    if divergence is None or divergence > selection.max_kl:
        return None
    sign = -1 if row["alpha"] > 0 else 1
    if not others:
        return sign * _shift(row, anchor, behavior)
    own = _log_shift(row, anchor, behavior)
    return min(sign * (own - _log_shift(row, anchor, name)) for name in others)


def _shift(row: Row, anchor: Row, behavior: str) -> float:
    """The change of a behavior's log-odds."""
    after, before = (each["behaviors"][behavior]["rate"] for each in (row, anchor))
    number = row["predicted"]["num_responses"]
    return _logit(after, number) - _logit(before, number)


def _log_shift(row: Row, anchor: Row, behavior: str) -> float:
    """The change of a behavior's log odds against NONE, but for what it shares with every other behavior: NONE's."""
    number = row["predicted"]["num_responses"]
    after, before = (each["behaviors"][behavior]["rate"] for each in (row, anchor))
    return math.log(after * number + 0.5) - math.log(before * number + 0.5)


def _logit(rate: float, number: int) -> float:
    # half a response more on both sides, so that a rate of 0 has log-odds
    return math.log((rate * number + 0.5) / ((1 - rate) * number + 0.5))


def _nearest(rows: Sequence[Row], behavior: str, selection: Selection) -> str:
    if not rows:
        return "the forecast has no condition of it that is to be believed"
    if selection.rule == "target_rate":
        rates = [row["behaviors"][behavior]["rate"] for row in rows]
        assert selection.rate is not None
        closest = min(rates, key=lambda rate: abs(rate - selection.rate))
        return f"no condition reaches a rate of {selection.rate:g} of {behavior!r}; the nearest comes to {closest:.3g}"
    divergences = [row["predicted"]["kl_per_token"] for row in rows if row["predicted"]["kl_per_token"] is not None]
    least = min(divergences, default=math.nan)
    return f"no condition stays within {selection.max_kl:g} nats a token; the least is {least:.3g}"
