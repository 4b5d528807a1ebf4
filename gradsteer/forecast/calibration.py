"""How much a unit of alpha changes the log-odds of a behavior, as recorded in a vector's file.

The formula is the project's note's: with S the difference of the two piles' score functions, scored as the responses
were sampled, the log-odds of PLUS against MINUS change by ``-alpha <S, V>``. The slope
itself is taken by `gradsteer.forecast.slopes`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gradsteer.vectors.parameter_vectors import ParameterVector

_KEY = "calibration"


@dataclass(frozen=True)
class Calibration:
    """A vector's cross-fitted slope.

    Attributes:
        slope: ``<S, V> = (<S_1, V_2> + <S_2, V_1>) / 2`` over two halves of the prompts, nats a unit of alpha.
        standard_error: of the slope over prompts, with the halves' vectors as they are: where the split-half cosine is
            low, the noise in V itself adds to it.
        halves: the two terms.
        temperature: that the responses were sampled and scored at.
        top_p: likewise.
        num_plus: responses of the PLUS pile that it was taken from; the pile may hold more.
        num_minus: of the MINUS pile.
        judges: fingerprints of the judges whose verdicts made the piles, where their rows say.
    """

    slope: float
    standard_error: float
    halves: tuple[float, float]
    temperature: float
    top_p: float
    num_plus: int
    num_minus: int
    judges: tuple[str, ...] = ()

    def is_of(self, temperature: float, top_p: float) -> bool:
        """Whether it was taken at this way of sampling; at another, alpha would be of another scale."""
        return (self.temperature, self.top_p) == (temperature, top_p)

    def shift(self, alpha: float) -> float:
        """The predicted change of the log-odds of PLUS against MINUS at alpha."""
        return -alpha * self.slope

    def alpha(self, shift: float) -> float:
        """The alpha at which the log-odds are predicted to change by `shift`.

        Raises:
            ValueError: the slope is within two standard errors of 0, or its error is not known: the alpha would be
                noise.
        """
        if not abs(self.slope) > 2 * self.standard_error:
            raise ValueError(
                f"the slope <S, V> is {self.slope:.3g} +- {self.standard_error:.2g}, not told from 0: no alpha can be "
                "computed from it; use larger piles"
            )
        return -shift / self.slope

    def write(self, vector: ParameterVector) -> None:
        """Notes the calibration in a vector's metadata."""
        vector.metadata[_KEY] = json.dumps(asdict(self))

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Calibration | None":
        """The calibration in a vector's metadata; None where there is none."""
        if _KEY not in metadata:
            return None
        values = json.loads(metadata[_KEY])
        first, second = values.pop("halves")
        judges = tuple(values.pop("judges", ()))  # files from earlier versions lack them
        return cls(halves=(first, second), judges=judges, **values)
