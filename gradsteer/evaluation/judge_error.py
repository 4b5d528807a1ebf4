"""Rates corrected for a judge's known error.

A judge that finds a share se of what is there (sensitivity) and passes a share sp of the rest (specificity) reports the
rate p = r se + (1 - r)(1 - sp) where the true one is r. Solved for r (Rogan and Gladen 1978, American Journal of
Epidemiology 107:71):

    r = (p + sp - 1) / (se + sp - 1),  clamped to [0, 1]
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradsteer.evaluation.bootstrap import Interval
from gradsteer.evaluation.statistics import design_effect, wilson

# below it a corrected rate is mostly the labelled set's noise, multiplied
MIN_YOUDEN = 0.1


@dataclass(frozen=True)
class JudgeError:
    """How often a judge is right about one behavior, counted on responses that people labelled.

    Args:
        num_positive: Labelled true, with a verdict.
        num_true_positive: Of those, judged true.
        num_negative: Labelled false, with a verdict.
        num_true_negative: Of those, judged false.
        num_unscored: Labelled, without a verdict; they count nowhere.
        positive_size: What `num_positive` is worth where replies to one prompt are alike: num / deff.
        negative_size: Likewise of `num_negative`.
    """

    num_positive: int
    num_true_positive: int
    num_negative: int
    num_true_negative: int
    num_unscored: int
    positive_size: float
    negative_size: float

    @classmethod
    def measure(
        cls, labels: Sequence[bool], verdicts: Sequence[bool | None], clusters: Sequence[str] | None = None
    ) -> "JudgeError":
        """Counts a judge's verdicts on labelled responses.

        Args:
            labels: (responses,) what is so.
            verdicts: (responses,) what the judge says: true, false, or None for unscored.
            clusters: (responses,) the prompt of each; None where no two responses are to one prompt.

        Raises:
            ValueError: If they are not as many.
        """
        clusters = [str(number) for number in range(len(labels))] if clusters is None else clusters
        if not len(labels) == len(verdicts) == len(clusters):
            raise ValueError(
                f"there are {len(labels)} labels, {len(verdicts)} verdicts and {len(clusters)} clusters; there must be "
                "as many of each"
            )
        right: dict[bool, list[bool]] = {True: [], False: []}
        prompts: dict[bool, list[str]] = {True: [], False: []}
        for label, verdict, cluster in zip(labels, verdicts, clusters, strict=True):
            if verdict is not None:
                right[bool(label)].append(bool(verdict) == bool(label))
                prompts[bool(label)].append(cluster)
        sizes = {label: _size(found, prompts[label]) for label, found in right.items()}
        return cls(
            num_positive=len(right[True]),
            num_true_positive=sum(right[True]),
            num_negative=len(right[False]),
            num_true_negative=sum(right[False]),
            num_unscored=len(labels) - len(right[True]) - len(right[False]),
            positive_size=sizes[True],
            negative_size=sizes[False],
        )

    @property
    def sensitivity(self) -> float | None:
        """The share of what is there that the judge finds; None where nothing is labelled true."""
        return self.num_true_positive / self.num_positive if self.num_positive else None

    @property
    def specificity(self) -> float | None:
        """The share of the rest that the judge passes; None where nothing is labelled false."""
        return self.num_true_negative / self.num_negative if self.num_negative else None

    @property
    def reason(self) -> str | None:
        """Why no rate can be corrected with these counts; None where rates can."""
        for value, count in (("true", self.num_positive), ("false", self.num_negative)):
            if not count:
                return f"no response that is labelled {value} has a verdict"
        assert self.sensitivity is not None
        assert self.specificity is not None
        youden = self.sensitivity + self.specificity - 1
        if youden < MIN_YOUDEN - 1e-12:  # .8 + .3 - 1 is a little less than .1
            return (
                f"sensitivity {self.sensitivity:.3f} + specificity {self.specificity:.3f} - 1 = {youden:.3f} is less "
                f"than {MIN_YOUDEN:g}: the judge hardly tells the behavior from its absence"
            )
        return None

    def to_dict(self, confidence: float = 0.95) -> dict[str, Any]:
        """The counts, both shares with Wilson's intervals, and `reason`, ready for JSON."""
        shares = {
            "sensitivity": (self.sensitivity, self.positive_size),
            "specificity": (self.specificity, self.negative_size),
        }
        report: dict[str, Any] = asdict(self)
        for name, (share, size) in shares.items():
            low, high = (None, None) if share is None else wilson(share, size, confidence)
            report[name] = {"rate": share, "ci_low": low, "ci_high": high}
        return {**report, "reason": self.reason}

    def __str__(self) -> str:
        shares = []
        for name, share, right, count in (
            ("sensitivity", self.sensitivity, self.num_true_positive, self.num_positive),
            ("specificity", self.specificity, self.num_true_negative, self.num_negative),
        ):
            shares.append(f"{name} " + ("not known" if share is None else f"{100 * share:.1f}% ({right} of {count})"))
        unscored = f", {self.num_unscored} unscored" if self.num_unscored else ""
        return ", ".join(shares) + unscored


def corrected_rate(
    num_scored: int, num_positive: int, effective_size: float, error: JudgeError, confidence: float = 0.95
) -> dict[str, Any]:
    """The Rogan-Gladen rate with an interval that carries the labelled set's own error too.

    The interval is that of Lang and Reiczigel 2014 (Preventive Veterinary Medicine 113:13). With z the normal quantile
    and n, n1, n0 the effective sizes of the rate, the positive and the negative labels, the shares are pulled a little
    towards one half,

        p' = (n p + z^2 / 2) / (n + z^2),   se' = (n1 se + 1) / (n1 + 2),   sp' = (n0 sp + 1) / (n0 + 2)
        r' = (p' + sp' - 1) / (se' + sp' - 1)
        v1 = se' (1 - se') / (n1 + 2),   v0 = sp' (1 - sp') / (n0 + 2)

        d = 2 z^2 (r' v1 - (1 - r') v0)
        s = sqrt(p' (1 - p') / (n + z^2) + r'^2 v1 + (1 - r')^2 v0) / (se' + sp' - 1)

        r' + d  -+  z s

    r' is clamped to [0, 1] before it is used and the ends after, so that the interval is never a single point. Where
    the labelled set is so small that se' + sp' - 1 is not positive, the interval is all of [0, 1].

    Args:
        num_scored: Verdicts that are true or false, of the judge that `error` was measured on.
        num_positive: Those that are true.
        effective_size: What they are worth where replies to one prompt are alike: num_scored / deff, which is a
            `Rate`'s `effective_n`.
        error: The judge's.
        confidence: The interval's coverage, between 0 and 1.

    Returns:
        ``rate``, ``ci_low`` and ``ci_high`` in [0, 1], and ``reason``, None. Where nothing is scored, a class is
        missing in the labelled set, or sensitivity + specificity - 1 is less than 0.1, the three are None and
        ``reason`` says which.

    Raises:
        ValueError: If the counts or the size are impossible, or `confidence` is out of range.
    """
    if not 0 <= num_positive <= num_scored:
        raise ValueError(f"{num_positive} of {num_scored} verdicts are true; accepted: from none to all of them")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be greater than 0 and less than 1")
    if num_scored == 0:
        return _refused("nothing is scored")
    if not 0 < effective_size <= num_scored:
        raise ValueError(
            f"the effective size of {num_scored} verdicts is {effective_size}; accepted: above 0, {num_scored} at most"
        )
    if error.reason is not None:
        return _refused(error.reason)
    assert error.sensitivity is not None
    assert error.specificity is not None
    raw = num_positive / num_scored
    rate = (raw + error.specificity - 1) / (error.sensitivity + error.specificity - 1)
    rate = min(max(rate, 0.0), 1.0)
    low, high = _interval(raw, effective_size, error.sensitivity, error.specificity, error, confidence)
    return {"rate": rate, "ci_low": min(low, rate), "ci_high": max(high, rate), "reason": None}


def _refused(reason: str) -> dict[str, Any]:
    return {"rate": None, "ci_low": None, "ci_high": None, "reason": reason}


def _size(values: Sequence[bool], clusters: Sequence[str]) -> float:
    return len(values) / design_effect(values, clusters) if values else 0.0


def _interval(
    raw: float, size: float, sensitivity: float, specificity: float, error: JudgeError, confidence: float
) -> Interval:
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    positives, negatives = error.positive_size + 2, error.negative_size + 2
    raw = (size * raw + z**2 / 2) / (size + z**2)
    sensitivity = (error.positive_size * sensitivity + 1) / positives
    specificity = (error.negative_size * specificity + 1) / negatives
    youden = sensitivity + specificity - 1
    if youden <= 0:
        return 0.0, 1.0
    rate = min(max((raw + specificity - 1) / youden, 0.0), 1.0)
    of_positives = sensitivity * (1 - sensitivity) / positives
    of_negatives = specificity * (1 - specificity) / negatives
    shift = 2 * z**2 * (rate * of_positives - (1 - rate) * of_negatives)
    variance = raw * (1 - raw) / (size + z**2) + rate**2 * of_positives + (1 - rate) ** 2 * of_negatives
    reach = z * math.sqrt(variance) / youden
    return min(max(rate + shift - reach, 0.0), 1.0), min(max(rate + shift + reach, 0.0), 1.0)
