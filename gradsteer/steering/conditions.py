"""Conditions: settings of the weights whose behavior rates are measured, and their names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gradsteer.vectors.contrast import Contrast

Kind = Literal["base", "anchor", "steered", "control", "baseline", "forecast"]
ModelKind = Literal["anchor", "base"]


@dataclass(frozen=True)
class Condition:
    """One setting of the weights, under which responses are sampled and judged, or forecast.

    Its measurements are in `gradsteer.evaluation.condition_result.ConditionResult`.

    Attributes:
        name: for example ``anchor`` or ``bridge alpha=+0.1``.
        kind: the kind of condition.
        model: which model is steered, ``anchor`` or ``base``.
        vector: name of the steering vector, None for base and anchor.
        transforms: labels of the transforms applied to the vector.
        alpha: steering coefficient; 0 for the anchor, None for the base and for a dose that is not solved yet.
        asked: the requested dose, ``{"kind": "log_odds_shift", "value": -0.75}``, from which alpha follows.
        system_prompt: system prompt put before every prompt.
        resample: number of the resample with fresh seeds; 0 for the seeds that all conditions share.
        contrast: the classes that its vector contrasts.
    """

    name: str
    kind: Kind
    model: ModelKind = "anchor"
    vector: str | None = None
    transforms: tuple[str, ...] = ()
    alpha: float | None = None
    asked: Mapping[str, str | float] | None = None
    system_prompt: str | None = None
    resample: int = 0
    contrast: Contrast | None = None

    @property
    def slug(self) -> str:
        """The name as a file name: ``bridge_alpha=+0.1``."""
        return slug_of(self.name)

    @property
    def behavior(self) -> str | None:
        """The vector's behavior, if its piles' verdicts determine it."""
        return None if self.contrast is None else self.contrast.behavior


def slug_of(name: str) -> str:
    """A condition's name as a file name: ``bridge alpha=+0.1`` -> ``bridge_alpha=+0.1``."""
    return re.sub(r"[^\w.+=-]+", "_", name)


_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)  # of Windows, whatever their suffix
_RESERVED = {
    "corpus", "evaluate", "evaluations", "figures", "fit", "forecast", "attribute", "gradients", "responses",
    "second_moments",
    "stages", "steer", "validate", "vectors",
}  # fmt: skip


def check_name(what: str, name: str) -> None:
    """Refuses a name that is not a valid file name, or that one of our directories uses.

    Raises:
        ValueError: the name is not accepted; says what is named, the name and the accepted form.
    """
    if not re.fullmatch(r"[\w+=]([\w.+=-]*[\w+=-])?", name) or name.casefold() in _RESERVED:
        raise ValueError(
            f"{what} is called {name!r}; accepted: letters, digits and _ + = . - (not first: . -, not last: .), and "
            f"none of {', '.join(sorted(_RESERVED))}"
        )
    if _DEVICE.fullmatch(name.partition(".")[0]):
        raise ValueError(f"{what} is called {name!r}, which is a device on Windows; accepted: another name")


def check_names(what: str, names: Iterable[str]) -> None:
    """`check_name` of several, which no file system may take for each other.

    Raises:
        ValueError: one is not accepted, or two differ by case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        check_name(what, name)
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"{what} is called {name!r} and another {other!r}: Windows and macOS take their files for one; "
                "accepted: names that differ by more than case"
            )


def alpha_text(alpha: float) -> str:
    """An alpha as it is shown, with its sign and to four digits (a solved one has more): ``+0.1``, ``-0.00075``."""
    return f"{alpha:+.4g}"
