"""A condition: one setting of the weights whose behavior rates are measured, and its row in a report."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gradsteer.evaluation.statistics import Rate
    from gradsteer.forecast.calibration import Contrast
    from gradsteer.forecast.forecast_file import Forecast

Kind = Literal["base", "anchor", "steered", "control", "baseline", "forecast"]
ModelKind = Literal["anchor", "base"]
METRICS = (
    "perplexity", "kl_to_anchor", "base_perplexity", "repetition", "compression", "distinct_1", "distinct_2",
    "distinct_3", "mean_length", "unfinished", "degenerate", "incoherent", "refusal", "refusal_benign",
    "refusal_harmful", "refusal_benign_judged", "refusal_harmful_judged",
)  # fmt: skip


@dataclass
class Condition:
    """One row of a report; what does not apply is None.

    Attributes:
        name: for example ``anchor`` or ``bridge alpha=+0.1``.
        kind: what sort of condition it is.
        model: what was steered, ``anchor`` or ``base``.
        vector: name of the steering vector, None for base and anchor.
        transforms: labels of the transforms applied to the vector.
        alpha: steering coefficient; 0 for the anchor, None for the base.
        asked: the dose that was asked for, ``{"kind": "log_odds_shift", "value": -0.75}``; alpha follows from it.
        relative_norm: ``alpha * ||V|| / ||theta||``.
        retained_fraction: see `gradsteer.steering.step_measurement.AppliedStep`.
        step_error: see `gradsteer.steering.step_measurement.AppliedStep`.
        changed_fraction: see `gradsteer.steering.step_measurement.AppliedStep`.
        predicted: what was forecast, as `gradsteer.forecast.forecaster.Forecast.to_dict` gives it; None without a
            forecast.
        realised: the change of the log-odds of the vector's PLUS against its MINUS class that was measured, with its
            interval: ``{"log_odds_shift", "ci_low", "ci_high"}``.
        system_prompt: put before every prompt.
        resample: sampled with fresh seeds, the how-manieth; 0 for the seeds that all conditions share.
        comparisons: behavior -> the difference of its rate from the anchor's,
            `gradsteer.evaluation.comparisons.Comparison`.
        specificity: shifts of every behavior's log-odds against none, and the selectivity.
        damaged: metrics by which it broke the model; see `gradsteer.evaluation.broken_model`.
        corrected: behavior -> its rate corrected for the judge's known error; None without a labelled set.
        contrast: what its vector is a contrast of.
        forecast: the forecast behind `predicted`, where it was made here.
        by_tensor: parameter -> how much of its step it took; see `gradsteer.steering.step_measurement.TensorStep`.
        behaviors: behavior -> its rate, filled when the condition was judged.
        refusals: ``benign`` and ``harmful`` -> share of refusals on these prompts by patterns, where they were
            sampled; ``benign_judged`` and ``harmful_judged`` -> by the judge, where it knows ``refusal``.
        classes: class of responses -> its rate, where there are several behaviors; see
            `gradsteer.evaluation.verdict_classes`.
        metrics: text metrics of the responses, and the perplexity of held-out text.
    """

    name: str
    kind: Kind
    model: ModelKind = "anchor"
    vector: str | None = None
    transforms: list[str] = field(default_factory=list)
    alpha: float | None = None
    asked: dict[str, str | float] | None = None
    relative_norm: float | None = None
    retained_fraction: float | None = None
    step_error: float | None = None
    changed_fraction: float | None = None
    predicted: dict[str, Any] | None = None
    realised: dict[str, float | None] | None = None
    system_prompt: str | None = None
    resample: int = 0
    comparisons: dict[str, Any] | None = None
    specificity: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    corrected: dict[str, Any] | None = None
    contrast: "Contrast | None" = None
    forecast: "Forecast | None" = None
    by_tensor: dict[str, dict[str, float | None]] = field(default_factory=dict)
    behaviors: "dict[str, Rate]" = field(default_factory=dict)
    classes: "dict[str, Rate]" = field(default_factory=dict)
    refusals: "dict[str, Rate]" = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(METRICS))

    @property
    def slug(self) -> str:
        """The name as a file name: ``bridge_alpha=+0.1``."""
        return slug_of(self.name)

    @property
    def behavior(self) -> str | None:
        """The behavior that its vector is of, where its piles' verdicts say."""
        return None if self.contrast is None else self.contrast.behavior

    def row(self) -> dict[str, Any]:
        """The condition as results.json holds it: every key present."""
        row = {key: getattr(self, key) for key in _ROW_KEYS}
        row["behaviors"] = {name: rate.to_dict() for name, rate in self.behaviors.items()}
        row["classes"] = {name: rate.to_dict() for name, rate in self.classes.items()}
        row["refusals"] = {name: rate.to_dict() for name, rate in self.refusals.items()}
        row["metrics"] = {key: self.metrics.get(key) for key in METRICS}
        return row


_ROW_KEYS = (
    "name", "kind", "model", "vector", "behavior", "transforms", "alpha", "asked", "relative_norm", "retained_fraction",
    "step_error", "changed_fraction", "predicted", "realised", "system_prompt", "comparisons", "specificity",
    "damaged", "corrected",
)  # fmt: skip


def slug_of(name: str) -> str:
    """A condition's name as a file name: ``bridge alpha=+0.1`` -> ``bridge_alpha=+0.1``."""
    return re.sub(r"[^\w.+=-]+", "_", name)


_RESERVED = {
    "corpus", "evaluate", "evaluations", "figures", "fit", "forecast", "attribute", "gradients", "responses",
    "second_moments",
    "stages", "steer", "validate", "vectors",
}  # fmt: skip


def check_name(what: str, name: str) -> None:
    """Refuses a name that cannot be a file's, or that is taken by a directory of ours.

    Raises:
        ValueError: names what, the name and the accepted form.
    """
    if not re.fullmatch(r"[\w+=][\w.+=-]*", name) or name in _RESERVED:
        raise ValueError(
            f"{what} is called {name!r}; accepted: letters, digits and _ + = . - (not first: . -), and none of "
            + ", ".join(sorted(_RESERVED))
        )


def alpha_text(alpha: float) -> str:
    """An alpha with its sign, as condition names show it: ``+0.1``, ``-0.00075``."""
    return f"{alpha:+.12g}"
