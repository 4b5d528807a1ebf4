"""Forecasts at every alpha along one vector, for the price of a few passes.

Along ``theta + alpha V`` the log-probability of each response is a smooth function of alpha. It is taken at the
Chebyshev-Lobatto nodes of the range that is asked for, 0 among them, and interpolated in between by the polynomial
through them (Berrut and Trefethen 2004, SIAM Review 46:501). One more pass, at the alpha where the polynomial has the
most room to err, says how wrong it is; that alpha then becomes a node, and more are added while it moves a forecast by
more than a tenth of its standard error.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gradsteer.forecast.derivatives import StepNotFoundError
from gradsteer.forecast.forecast_file import Forecast
from gradsteer.forecast.forecaster import Direction, Forecaster, Where
from gradsteer.forecast.kept_passes import Keep, pass_anew
from gradsteer.progress import progress
from gradsteer.vectors.parameter_vectors import ParameterVector

NUM_NODES = 5
MOST_ADDED = 8  # nodes, beyond which the curve does not settle; or the last two brought no smaller error than before
_GRID = 257
# effective samples, and nats of change (root mean square), at the range's ends: beyond, a forecast says nothing, and a
# polynomial that reached there would need many nodes
_FEWEST, _FARTHEST = 5.0, 15.0
_SHORTEST = 0.1  # of a range's longer side
_TOLERATED = 0.1  # of a forecast's standard error, at the alpha left out
_TOLERATED_NATS = 0.1  # likewise, of a response: where all weigh on a few, rates no longer tell
_TOLERATED_SHARE = 0.05  # likewise, of the responses' change there: divergences go by it
_TOLERATED_SLOPE = 0.3  # of the slope's, between the curve without that alpha and with it: several times its error


@dataclass(frozen=True)
class LeftOut:
    """What the interpolation missed at an alpha that was scored but left out of it.

    Attributes:
        alpha: the one left out.
        error: root mean square over the responses, nats.
        largest_error: of any response, nats.
        rate_error: the most that a forecast rate moved, in [0, 1].
        standard_errors: the most that one moved in units of its own standard error.
    """

    alpha: float
    error: float
    largest_error: float
    rate_error: float
    standard_errors: float


class VectorCurve:
    """Forecasts along one vector.

    With top-p below 1 the nucleus jumps from alpha to alpha: nothing is interpolated, and every alpha takes a pass.
    Nor is it where the curve does not settle (`settled`), as with weights whose rounding is as large as the step.

    Args:
        name: of the vector and its transforms, for progress and messages.
        forecaster: of the anchor's judged responses; the model has the anchor's weights whenever this is called.
        weights: gives the model the weights at an alpha, rounded as those of the conditions.
        vector: gives the direction, for derivatives where there is no curve; it is as large as the model, and not kept.
        shown: whether progress is shown.
        scores: alpha -> (responses,) ``log p_r`` of passes that were made before.
        keep: where passes are kept, and taken from.
    """

    def __init__(
        self,
        name: str,
        forecaster: Forecaster,
        weights: Callable[[float], AbstractContextManager[Any]],
        vector: Callable[[], ParameterVector],
        *,
        shown: bool = False,
        scores: Mapping[float, np.ndarray] | None = None,
        keep: Keep = pass_anew,
    ) -> None:
        self.name, self.forecaster, self._keep = name, forecaster, keep
        self._weights, self._vector, self._shown = weights, vector, shown
        self._scores: dict[float, np.ndarray] = {**(scores or {}), 0.0: forecaster.anchor_scores}
        self._nodes: list[float] = []
        self._asked: set[float] = set()
        self._tried = False  # between the nodes, and not at the asked alphas alone
        self._polynomial: Any = None
        self._direction: Direction | None = None
        self._closed = False
        self.left_out: LeftOut | None = None
        self.no_direction: str | None = None
        self.settled = forecaster.scorer.top_p == 1

    @property
    def nodes(self) -> tuple[float, ...]:
        """The alphas that are interpolated between, in order; none where nothing is."""
        return tuple(sorted(self._nodes))

    def cover(self, alphas: Collection[float]) -> None:
        """Makes sure that these alphas can be forecast without further passes (collective)."""
        if not self.settled:
            return
        new = sorted({*alphas} - self._asked - set(self._scores))
        inside, beyond = ([a for a in new if self.covers(a) == there] for there in (True, False))
        self._asked |= {*alphas}
        before = list(self._nodes)
        low, high = (self._end([a for a in beyond if side * a > 0], side) for side in (-1, 1))
        low, high = min([low, *before]), max([high, *before])
        if low < 0 < high:  # an end next to 0 would leave two nodes so close that passes' rounding shows
            low, high = min(low, -_SHORTEST * high), max(high, -_SHORTEST * low)
        if (low, high) != (min([0.0, *before]), max([0.0, *before])):
            self._add([low, high] if before else _nodes(low, high))
            self._tried = False
            self._refine([alpha for alpha in new if alpha not in self._scores])
            if before and not self._nodes:  # what held before still does
                self.settled = True
                self._add(before)
        elif inside and not self._tried:
            self._refine(inside)

    def close(self, alphas: Collection[float]) -> None:
        """Scores what is left of these alphas and takes the derivatives; afterwards no pass is made any more.

        So what is read later, while the model has other weights, is of the anchor and its steps.

        Args:
            alphas: all that will be asked for.
        """
        self.cover(alphas)
        self._score([alpha for alpha in alphas if not self.covers(alpha)])
        try:
            self.direction()
        except StepNotFoundError as error:
            self.no_direction = str(error)
        self._closed = True

    def log_probs(self, alpha: float) -> np.ndarray:
        """``log p_r(alpha)`` (responses,) in nats; takes a pass where the curve does not reach (collective)."""
        if alpha not in self._scores and not self._closed:
            self.cover([alpha])
        if alpha not in self._scores and self.covers(alpha):
            return self._at(alpha)
        self._score([alpha])
        return self._scores[alpha]

    def forecast(self, alpha: float, plus: Where | None = None, minus: Where | None = None) -> Forecast:
        """The forecast at an alpha; see `Forecaster.forecast`."""
        scores = self.log_probs(alpha)
        direction = None if self.no_direction else self.direction()
        return self.forecaster.forecast(scores, direction=direction, alpha=alpha, plus=plus, minus=minus)

    def direction(self) -> Direction:
        """The responses' derivatives at alpha 0: the curve's, else by central differences (collective)."""
        if self._direction is None:
            self._refuse_if_closed()
            if self._nodes:
                derivatives = -self._polynomial.derivative(0.0)
                self._direction = self.forecaster.direction_of(derivatives)
            else:
                with self._progress(2) as tick:
                    self._direction = self.forecaster.along(self.forecaster.scorer.model, self._vector(), tick=tick)
        return self._direction

    def to_dict(self) -> dict[str, Any]:
        """What is said of it in a forecast.json: its nodes, and what it missed at the alpha left out last."""
        missed = None if self.left_out is None else asdict(self.left_out)
        scored = len(self._scores) - 1
        return {"nodes": list(self.nodes), "num_scored": scored, "settled": self.settled, "left_out": missed}

    def __str__(self) -> str:
        """One line for the log."""
        passes = f"curve of {self.name}: {len(self._scores) - 1} passes"
        missed = self.left_out
        if missed is None or not self._nodes:
            why = "" if self.settled else ", as it does not settle"
            return f"{passes}; each alpha has one of its own{why}"
        return (
            f"{passes} for every alpha from {self.nodes[0]:+.4g} to {self.nodes[-1]:+.4g}; without the one at "
            f"{missed.alpha:+.4g} it missed that by {missed.error:.2g} nats a response and "
            f"{100 * missed.rate_error:.2g} points of a rate ({missed.standard_errors:.2g} standard errors)"
        )

    def covers(self, alpha: float) -> bool:
        """Whether an alpha is between the nodes."""
        return bool(self._nodes) and self.settled and min(self._nodes) <= alpha <= max(self._nodes)

    def _end(self, asked: list[float], side: int) -> float:
        """The outermost asked alpha on a side whose weights still say something; those beyond have their own pass."""
        for alpha in sorted(asked, key=abs, reverse=True):
            self._score([alpha])
            change = _rms(self._scores[alpha] - self.forecaster.anchor_scores)
            if self.forecaster.sample_size(self._scores[alpha]) >= _FEWEST and change <= _FARTHEST:
                return alpha
        return 0.0

    def _refine(self, asked: Sequence[float]) -> None:
        """Adds the alpha with the most room for error until forecasts, divergences and slopes hardly move there.

        Args:
            asked: the alphas to choose from; without any, those between the nodes. Where all of them are scored before
                the curve settles it is dropped: nothing else is wanted of it yet.
        """
        errors: list[float] = []
        while len(errors) < MOST_ADDED and min(errors[-2:], default=0.0) <= min(errors[:-2], default=math.inf):
            left = [alpha for alpha in asked if alpha not in self._scores and self.covers(alpha)]
            if asked and not left:
                self._nodes = []
                return
            alpha, before = self._widest(left), -self._polynomial.derivative(0.0)
            self._score([alpha])
            if not np.isfinite(self._scores[alpha]).all():
                break
            missed = self._at(alpha) - self._scores[alpha]
            errors.append(_rms(missed))
            moved = self.forecaster.moved(self._scores[alpha], self._scores[alpha] + missed)
            self.left_out = LeftOut(alpha, _rms(missed), float(np.abs(missed).max()), *moved)
            self._add([alpha])
            turned = self.forecaster.turned(before, -self._polynomial.derivative(0.0))
            change = _rms(self._scores[alpha] - self.forecaster.anchor_scores)
            small = self.left_out.error <= min(_TOLERATED_NATS, _TOLERATED_SHARE * change)
            if small and moved[1] <= _TOLERATED and turned <= _TOLERATED_SLOPE:
                self._tried = not asked
                return
        self.settled = False
        self._nodes = []

    def _widest(self, asked: Sequence[float]) -> float:
        """The alpha with the most room for an error that matters, of those asked for or else between the nodes.

        The error grows as ``prod |alpha - node|``, what it does to a rate with the effective sample size, and to a
        divergence as it is to the change of the responses.
        """
        nodes = np.array(self._nodes)
        grid = np.array(asked) if len(asked) else np.linspace(nodes.min(), nodes.max(), _GRID)
        scores = [self._at(alpha) for alpha in grid]
        sizes = np.array([self.forecaster.sample_size(each) for each in scores])
        with np.errstate(divide="ignore"):
            room = np.log(np.abs(grid[:, None] - nodes)).sum(axis=1) + np.log(np.maximum(sizes, 1.0))
        if len(asked):
            room -= np.log([_rms(each - self.forecaster.anchor_scores) + 1e-12 for each in scores])
        return float(grid[room.argmax()])

    def _at(self, alpha: float) -> np.ndarray:
        found: np.ndarray = self.forecaster.anchor_scores + self._polynomial(alpha)
        return found

    def _add(self, alphas: Iterable[float]) -> None:
        """Makes alphas nodes, and the polynomial through all of them."""
        from scipy.interpolate import BarycentricInterpolator

        new = [alpha for alpha in dict.fromkeys([0.0, *alphas]) if alpha not in self._nodes]
        self._score(new)
        self._nodes += [alpha for alpha in new if np.isfinite(self._scores[alpha]).all()]
        # of the change from alpha 0: it is exact there
        changes = [self._scores[alpha] - self.forecaster.anchor_scores for alpha in self._nodes]
        self._polynomial = BarycentricInterpolator(self._nodes, np.array(changes), rng=0)  # the same on every process
        self._direction = None

    def _score(self, alphas: Iterable[float]) -> None:
        """Passes over the responses at the alphas that had none."""
        new = [alpha for alpha in alphas if alpha not in self._scores]
        if new:
            self._refuse_if_closed()
        with self._progress(len(new)) as tick:
            for alpha in new:
                made = self.forecaster.num_passes + 1  # a kept one counts, so that a resumed run says the same
                self._scores[alpha] = self._keep(alpha, partial(self._passed, alpha, tick))
                self.forecaster.num_passes = made

    def _passed(self, alpha: float, tick: Callable[[], None]) -> np.ndarray:
        with self._weights(alpha):
            return self.forecaster.score(tick=tick)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError(f"curve of {self.name}: it was closed, and is asked for what needs a pass")

    def _progress(self, passes: int) -> AbstractContextManager[Any]:
        total = passes * len(self.forecaster.scorer)
        return progress(f"curve of {self.name}", total, unit="batch", shown=self._shown and passes > 0)


def _nodes(low: float, high: float) -> list[float]:
    """Chebyshev-Lobatto nodes of a range about 0; the inner one next to 0 becomes 0, if no end is."""
    places = np.cos(np.pi * np.arange(NUM_NODES) / (NUM_NODES - 1))
    nodes: list[float] = ((low + high) / 2 - (high - low) / 2 * places).tolist()
    nodes[0], nodes[-1] = low, high
    if low < 0 < high:
        nearest = min(range(1, NUM_NODES - 1), key=lambda index: abs(nodes[index]))
        nodes[nearest] = 0.0
    return nodes


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
