"""What was measured of a condition, and its row in a report."""

from dataclasses import asdict, dataclass, field
from typing import Any

from gradsteer.evaluation.counting import Counts
from gradsteer.steering.conditions import Condition
from gradsteer.steering.step_measurement import AppliedStep

METRICS = (
    "perplexity", "kl_to_anchor", "base_perplexity", "repetition", "compression", "distinct_1", "distinct_2",
    "distinct_3", "mean_length", "unfinished", "degenerate", "incoherent", "refusal", "refusal_benign",
    "refusal_harmful", "refusal_benign_judged", "refusal_harmful_judged",
)  # fmt: skip
THOUGHT_METRICS = ("unanswered",)  # of conditions whose replies hold thoughts


@dataclass
class ConditionResult:
    """What came out of a condition; what does not apply, or is not known yet, is None or empty.

    Attributes:
        condition: what was asked for.
        step: how much of its step the weights took.
        predicted: what was forecast, as `gradsteer.forecast.forecast_file.Forecast.to_dict` gives it.
        counts: rates and text metrics of its judged responses.
        measured: metrics that do not come from counting: the perplexity of held-out text, the divergence from the
            anchor, the responses' perplexity under the base.
        realised: the change of the log-odds of the vector's PLUS against its MINUS class that was measured, with its
            interval: ``{"log_odds_shift", "ci_low", "ci_high"}`` and the counts behind it.
        comparisons: behavior -> the difference of its rate from the anchor's,
            `gradsteer.evaluation.comparisons.Comparison`.
        specificity: shifts of every behavior's log-odds against none, and the selectivity.
        damaged: metrics by which it broke the model; see `gradsteer.evaluation.broken_model`.
    """

    condition: Condition
    step: AppliedStep | None = None
    predicted: dict[str, Any] | None = None
    counts: Counts = field(default_factory=Counts)
    measured: dict[str, float | None] = field(default_factory=dict)
    realised: dict[str, float | int | None] | None = None
    comparisons: dict[str, Any] | None = None
    specificity: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics that there are, by name."""
        return {**self.counts.metrics, **self.measured}

    def scalars(self) -> dict[str, float]:
        """The rates and metrics that there are, as loggers show them."""
        rates = {f"rates/{name}": rate.rate for name, rate in self.counts.behaviors.items() if rate.rate is not None}
        return rates | {f"metrics/{name}": value for name, value in self.metrics.items() if value is not None}

    def steps_by_tensor(self) -> dict[str, dict[str, float | None]]:
        """Parameter -> how much of its step it took; see `gradsteer.steering.step_measurement.TensorStep`."""
        return {} if self.step is None else {name: asdict(part) for name, part in self.step.by_tensor.items()}

    def row(self) -> dict[str, Any]:
        """The condition as results.json holds it: every key present."""
        asked, metrics = self.condition, self.metrics
        withheld = {name: each.to_dict() for name, each in self.counts.withheld.items() if each.num_withheld}
        row: dict[str, Any] = {
            "name": asked.name,
            "kind": asked.kind,
            "model": asked.model,
            "vector": asked.vector,
            "behavior": asked.behavior,
            "transforms": list(asked.transforms),
            "alpha": asked.alpha,
            "asked": None if asked.asked is None else dict(asked.asked),
        }
        for key in ("relative_norm", "retained_fraction", "step_error", "changed_fraction"):
            row[key] = None if self.step is None else getattr(self.step, key)
        return row | {
            "predicted": self.predicted,
            "realised": self.realised,
            "system_prompt": asked.system_prompt,
            "comparisons": self.comparisons,
            "specificity": self.specificity,
            "damaged": self.damaged,
            "corrected": self.counts.corrected,
            "behaviors": {name: rate.to_dict() for name, rate in self.counts.behaviors.items()},
            "classes": {name: rate.to_dict() for name, rate in self.counts.classes.items()},
            "refusals": {name: rate.to_dict() for name, rate in self.counts.refusals.items()},
            **({"withheld": withheld} if withheld else {}),
            "metrics": {
                key: metrics.get(key) for key in (*METRICS, *(key for key in THOUGHT_METRICS if key in metrics))
            },
        }
