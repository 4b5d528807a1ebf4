"""Doses: how strongly to steer, in the unit of the user's choice.

A dose is an alpha, a relative step size, a log-odds shift, a KL budget or a target rate;
`gradsteer.forecast.dose_solver` solves it for alpha.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

_LARGEST = 3.4028234e38  # of float32
_MOST_POINTS = 10_000  # of a curve
DoseKind = Literal["alpha", "relative_norm", "log_odds_shift", "kl_budget", "target_rate"]
KLStatistic = Literal["mean", "p95"]
Doses = list[float] | dict[str, list[float]] | float | None
_BOUNDING: tuple[DoseKind, ...] = ("alpha", "relative_norm", "log_odds_shift")  # kinds in proportion to alpha
_LABELS = dict(zip(get_args(DoseKind), ("alpha", "norm", "shift", "kl", "rate"), strict=True))


@dataclass(frozen=True)
class Dose:
    """How strongly to apply a vector.

    Attributes:
        kind: the unit.
        value: alpha; alpha ||V|| / ||theta||; the change in the log-odds of PLUS against MINUS (negative reduces the
            behavior); nats per token, with the sign of alpha; or a rate.
    """

    kind: DoseKind
    value: float

    @property
    def label(self) -> str:
        """The dose as in condition names: ``alpha=+0.12``, ``shift=-0.75``, ``rate=0.1``."""
        sign = "" if self.kind == "target_rate" else "+"
        return f"{_LABELS[self.kind]}={self.value:{sign}.12g}"

    @property
    def alpha_sign(self) -> int:
        """The sign of its alpha, or 0 if unknown before solving. A positive alpha reduces the behavior."""
        if self.kind == "target_rate":
            return 0
        return (1 if self.value > 0 else -1) * (-1 if self.kind == "log_odds_shift" else 1)


def plan_doses(
    vectors: Sequence[str],
    given: Mapping[DoseKind, Doses],
    *,
    both_signs: bool,
    curve_points: int = 0,
) -> dict[str, list[Dose]]:
    """The doses of every vector, in the order of the kinds.

    Args:
        vectors: names of the vectors.
        given: kind -> values for all vectors, or by vector.
        both_signs: use every value except target rates with both signs, positive alpha first; otherwise as given.
        curve_points: number of additional doses on each side of 0, evenly spaced up to the largest alpha, or else the
            largest relative norm or shift.

    Raises:
        ValueError: no dose, an empty list, an invalid number, or an unknown vector name.
    """
    planned: dict[str, list[Dose]] = {name: [] for name in vectors}
    for kind, values in given.items():
        if values is None:
            continue
        option = f"steering.{kind}s"
        values = [float(values)] if isinstance(values, int | float) else values
        by_vector = values if isinstance(values, dict) else dict.fromkeys(vectors, values)
        unknown = [name for name in by_vector if name not in planned]
        if unknown:
            raise ValueError(f"{option} names the vector {unknown[0]!r}; the vectors are: {', '.join(vectors)}")
        for name, numbers in by_vector.items():
            if not numbers:
                raise ValueError(f"{option} of vector {name!r} is empty; accepted: one number or more")
            planned[name] += _signed(option, kind, [float(number) for number in numbers], both_signs)
    for name, doses in planned.items():
        if curve_points:
            doses += _curve(name, doses, curve_points)
        planned[name] = list(dict.fromkeys(doses))
    missing = [name for name, doses in planned.items() if not doses]
    if missing:
        options = ", ".join(f"--steering.{option}" for option in (f"{kind}s" for kind in _LABELS))
        raise ValueError(f"vector {missing[0]!r} has no dose; give one of {options}")
    return planned


@dataclass(frozen=True)
class DoseOptions:
    """The requested doses of all vectors. Each kind is one list for all vectors, or a mapping by vector.

    Attributes:
        alphas: steering coefficients.
        relative_norms: step sizes relative to the weights' norm.
        log_odds_shifts: log-odds shifts in nats.
        kl_budgets: KL divergences in nats per token.
        target_rates: rates, between 0 and 1.
        kl_statistic: which statistic of the per-token divergences must meet the budget.
        both_signs: see `plan_doses`.
        curve_points: see `plan_doses`.
    """

    alphas: Doses = None
    relative_norms: Doses = None
    log_odds_shifts: Doses = None
    kl_budgets: Doses = None
    target_rates: Doses = None
    kl_statistic: KLStatistic = "mean"
    both_signs: bool = True
    curve_points: int = 0

    def __post_init__(self) -> None:
        if self.kl_budgets is None and self.kl_statistic != "mean":
            raise ValueError("steering.kl_statistic has no effect without steering.kl_budgets")

    def plan(self, vectors: Sequence[str]) -> dict[str, list[Dose]]:
        """The doses of every vector; see `plan_doses`, also for the errors."""
        given: dict[DoseKind, Doses] = {
            "alpha": self.alphas,
            "relative_norm": self.relative_norms,
            "log_odds_shift": self.log_odds_shifts,
            "kl_budget": self.kl_budgets,
            "target_rate": self.target_rates,
        }
        return plan_doses(vectors, given, both_signs=self.both_signs, curve_points=self.curve_points)


def _signed(option: str, kind: DoseKind, numbers: list[float], both_signs: bool) -> list[Dose]:
    for number in numbers:
        if kind == "target_rate" and not 0 < number < 1:
            raise ValueError(f"{option} holds {number}; accepted: rates, more than 0 and less than 1 (0.05 is 5%)")
        if not abs(number) < float("inf") or number == 0:
            raise ValueError(f"{option} holds {number}; accepted: finite numbers other than 0")
        if kind == "alpha" and abs(number) > _LARGEST:
            raise ValueError(f"{option} holds {number}; accepted: numbers that float32 holds, up to {_LARGEST:.2g}")
    if kind == "target_rate" or not both_signs:
        return [Dose(kind, number) for number in numbers]
    order = (-1, 1) if kind == "log_odds_shift" else (1, -1)
    return [Dose(kind, sign * abs(number)) for number in numbers for sign in order]


def _curve(name: str, doses: Sequence[Dose], points: int) -> list[Dose]:
    if not 1 <= points <= _MOST_POINTS:
        raise ValueError(f"steering.curve_points is {points}; accepted: 0 or more, up to {_MOST_POINTS}")
    kind = next((kind for kind in _BOUNDING if any(dose.kind == kind for dose in doses)), None)
    if kind is None:
        options = ", ".join(f"steering.{each}s" for each in _BOUNDING)
        raise ValueError(f"steering.curve_points needs one of {options} of vector {name!r}: they bound its curve")
    largest = max(abs(dose.value) for dose in doses if dose.kind == kind)
    steps = [largest * index / points for index in range(1, points + 1)]
    # rounded for short names, except the largest, which is already one of the doses
    shown = [float(f"{step:.6g}") for step in steps[:-1]] + [largest]
    return [Dose(kind, sign * step) for step in shown for sign in (1, -1)]


def largest_doses(doses: Sequence[Dose], *, both_signs: bool = False) -> list[Dose]:
    """The doses for controls: the largest of the first kind, at positive alpha if there are both signs.

    Args:
        doses: the doses of one vector; at least one.
        both_signs: return the largest for each known sign of alpha, positive first.
    """
    first = [dose for dose in doses if dose.kind == doses[0].kind]
    signs = sorted({dose.alpha_sign for dose in first}, reverse=True) if both_signs else [None]
    groups = [[dose for dose in first if sign in (None, dose.alpha_sign)] for sign in signs]
    return [max(group, key=lambda dose: (abs(dose.value), dose.alpha_sign)) for group in groups]
