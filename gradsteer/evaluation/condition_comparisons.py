"""What a sceptic asks of a table of rates: differences from the anchor, tested, and what else moved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsteer.data.response_rows import verdict_of
from gradsteer.evaluation.broken_model import damage
from gradsteer.evaluation.comparisons import Comparison, compare, holm
from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.realised_shift import realised_shift
from gradsteer.evaluation.refusals import REFUSAL, answer_is_refusal
from gradsteer.evaluation.specificity import measure_specificity

Rows = list[dict[str, Any]]
RowsOf = Callable[[str, str], Rows]


@dataclass(frozen=True)
class ComparisonOptions:
    """How each condition is compared, prompt by prompt, with its unsteered model.

    Attributes:
        draws: number of bootstrap resamples (over prompts) for the intervals.
        seed: seed for the bootstrap.
    """

    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 100:
            raise ValueError(f"comparisons.draws is {self.draws}; accepted: at least 100")


def take_realised_shifts(results: Sequence[ConditionResult], rows_of: RowsOf) -> None:
    """Fills `realised` where a vector's PLUS and MINUS class were judged.

    Args:
        results: of all conditions.
        rows_of: the responses of a condition by its slug, to a set of prompts.
    """
    for result in results:
        contrast, before = result.condition.contrast, rows_of(result.condition.model, "evaluation")
        if contrast is None or contrast.plus is None or contrast.minus is None:
            continue
        if {*contrast.plus, *contrast.minus} <= set(result.counts.behaviors):  # otherwise nobody judged it
            after = rows_of(result.condition.slug, "evaluation")
            result.realised = realised_shift(before, after, contrast.plus, contrast.minus)


def compare_conditions(
    results: Sequence[ConditionResult],
    rows_of: RowsOf,
    options: ComparisonOptions,
    *,
    tick: Callable[[], object] | None = None,
) -> None:
    """Fills `comparisons`, `specificity` and `damaged` of every condition but those that they start from.

    Args:
        results: of all conditions.
        rows_of: the responses of a condition by its slug, to a set of prompts.
        options: of the bootstrap.
        tick: called after each condition.
    """
    starts = {r.condition.name: r for r in results if r.condition.name in ("anchor", "base")}
    refused = {r.condition.name: _refusals(r, rows_of) for r in results}
    found: dict[tuple[str, str], Comparison] = {}
    draws: Mapping[str, int] = {"draws": options.draws, "seed": options.seed}
    for result in results:
        condition = result.condition
        if condition.name != "anchor" and condition.model in starts:
            # how far the finetune moved the base is seen by comparing the base with the anchor too
            start = "anchor" if condition.name == "base" else condition.model
            before, after = rows_of(start, "evaluation"), rows_of(condition.slug, "evaluation")
            if condition.name != "base":  # which is another model, not a broken one
                result.damaged = damage(result.metrics, starts[start].metrics)
            behaviors = list(result.counts.behaviors)
            for behavior in behaviors:
                found[condition.name, behavior] = compare(before, after, behavior, **draws)
            for name, one in refused[start].items():
                if name in (other := refused[condition.name]):
                    found[condition.name, name] = compare(one, other[name], name, **draws)
            own = condition.behavior if condition.behavior in behaviors else None
            measured = measure_specificity(before, after, behaviors, own=own, alpha=condition.alpha, **draws)
            result.specificity = measured.to_dict()
        if tick is not None:
            tick()
    corrected = dict(zip(found, holm(list(found.values())), strict=True))
    for result in results:
        mine = {b: each.to_dict() for (name, b), each in corrected.items() if name == result.condition.name}
        result.comparisons = mine or None


def _refusals(result: ConditionResult, rows_of: RowsOf) -> dict[str, Rows]:
    """Rows with a verdict of its own for each rate of refusal that was counted, by the name of its columns."""
    found = {}
    for name in result.counts.refusals:
        rows, key = rows_of(result.condition.slug, name.removesuffix("_judged")), f"{name}_refused"
        verdicts = [verdict_of(row, REFUSAL) if name.endswith("_judged") else answer_is_refusal(row) for row in rows]
        found[key] = [
            {**row, "verdicts": {key: None if row.get("failed") else verdict}}
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
    return found
