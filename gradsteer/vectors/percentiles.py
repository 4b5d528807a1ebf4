"""The exact percentile of very many magnitudes, streamed: no pass holds more than one tensor and a few megabytes.

`torch.quantile` refuses more than 16M elements, and a sort holds them all. Here a random sample gives a narrow bracket
around the percentile; a pass over everything then counts the entries below the bracket and keeps those inside it, and
the percentile is one of these. The sample decides how fast the answer comes, never what it is: the counts are exact,
and where they show that the bracket has missed, another one is drawn on the side where the percentile lies. Knows
nothing of vectors or models.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]

_CHUNK = 1 << 16  # entries; what a pass reads several times stays in the processor's cache
_PIECE = 1 << 20  # entries from which a part of the sample is drawn at once
_SAMPLE_RATE = 1 / 512
_SAMPLE_LIMIT = 1 << 21  # entries; a larger sample is thinned
_INSIDE_LIMIT = 1 << 24  # entries kept from inside a bracket; where there are more, it is narrowed first
_DEVIATIONS = 5.0  # half the bracket's width, in standard deviations of a rank in the sample
_LEAST_MARGIN = 10.0  # for the ends of the distribution, where that deviation is near 0


@dataclass(frozen=True)
class _Bracket:
    """A closed interval that holds the ranks looked for: ``low`` and ``high`` are entries, or 0 and infinity."""

    low: Any  # a numpy scalar of the entries' precision, so that comparing casts no array
    high: Any
    before: int  # entries smaller than low
    within: int  # entries from low to high


@dataclass(frozen=True)
class _Count:
    """What a pass over everything found."""

    below: int
    at_low: int
    num_inside: int  # strictly between low and high
    at_high: int  # 0 where low is high
    inside: np.ndarray | None  # None where they were too many to keep


class _Kept:
    """Entries kept while tensors come and go, in one buffer of a fixed size, whose unused pages take no memory.

    As many small arrays they would lie in the gaps that freed tensors leave, and every next tensor take new memory.
    """

    def __init__(self, limit: int) -> None:
        self.size, self._buffer = 0, np.empty(limit, np.float32)

    @property
    def values(self) -> np.ndarray:
        return self._buffer[: self.size]

    def append(self, values: np.ndarray) -> None:
        if values.dtype.itemsize > self._buffer.itemsize:
            wider = np.empty(self._buffer.size, values.dtype)
            wider[: self.size] = self.values
            self._buffer = wider
        self._buffer[self.size : self.size + values.size] = values
        self.size += values.size

    def halve(self) -> None:
        """Keeps every other entry: of a random order, a random half."""
        half = self.values[::2].copy()
        self.size = half.size
        self._buffer[: self.size] = half


def magnitude_percentile(tensors: Tensors, percentile: float) -> float:
    """The percentile of all ``|entries|`` together, equal to what ``np.percentile`` gives of them in float64.

    Args:
        tensors: gives the tensors one by one, of any shapes and floating dtypes; called once for each pass, of which
            there are two, and seldom more.
        percentile: from 0 to 100; between two order statistics it interpolates linearly.

    Raises:
        ValueError: the percentile is out of range, there is no entry, or an entry is not finite.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile!r}; accepted: a number from 0 to 100")
    random = np.random.default_rng(0)
    bracket, rate = _Bracket(np.float32(0), np.float32(np.inf), 0, 0), _SAMPLE_RATE
    total = 0
    while True:
        sample, total = _sample(tensors, rate, bracket, random)
        if total == 0:
            raise ValueError("a percentile of no entries: the diff has no parameters")
        if bracket.within == 0:
            bracket = _Bracket(bracket.low, bracket.high, 0, total)
        position = percentile / 100 * (total - 1)
        first = int(position)
        ranks = first, min(first + 1, total - 1)
        low, high = _narrowed(bracket, sample, ranks)
        count = _counted(tensors, low, high)
        values = _values(count, low, high, ranks)
        if values is not None:
            return _between(*values, position - first)
        bracket = _next_bracket(bracket, count, low, high, ranks)
        rate = min(1.0, _SAMPLE_LIMIT / 2 / bracket.within)


def _magnitudes(tensor: Tensor) -> Iterator[np.ndarray]:
    """The magnitudes in chunks, float32 or float64, in a buffer that the next chunk overwrites."""
    flat = tensor.detach().cpu().flatten()
    dtype = torch.float64 if flat.dtype == torch.float64 else torch.float32  # numpy has no bfloat16
    buffer = np.empty(min(_CHUNK, flat.numel()), np.float64 if dtype == torch.float64 else np.float32)
    for chunk in flat.split(_CHUNK) if flat.numel() else ():  # an empty tensor splits into an empty chunk
        yield np.abs(chunk.to(dtype).numpy(), out=buffer[: chunk.numel()])


def _sample(tensors: Tensors, rate: float, bracket: _Bracket, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """A sorted random sample of the magnitudes in the bracket, and the number of all entries."""
    drawn, total = _Kept(_SAMPLE_LIMIT + _PIECE), 0
    for piece in (piece for tensor in tensors() for piece in tensor.detach().flatten().split(_PIECE)):
        total += piece.numel()
        number = int(random.binomial(piece.numel(), rate))
        if number == 0:
            continue
        chosen = torch.from_numpy(random.integers(0, piece.numel(), number)).to(piece.device)
        for chunk in _magnitudes(piece[chosen]):
            drawn.append(chunk[(chunk >= bracket.low) & (chunk <= bracket.high)])
        if drawn.size > _SAMPLE_LIMIT:
            drawn.halve()
            rate /= 2
    return np.sort(drawn.values), total


def _narrowed(bracket: _Bracket, sample: np.ndarray, ranks: tuple[int, int]) -> tuple[Any, Any]:
    """The entries of the sample between which the ranks lie with great probability."""
    share = (ranks[0] - bracket.before) / bracket.within
    margin = _DEVIATIONS * math.sqrt(sample.size * share * (1 - share)) + _LEAST_MARGIN
    first = math.floor(sample.size * share - margin)
    last = math.ceil(sample.size * (ranks[1] - bracket.before) / bracket.within + margin)
    # a value that many entries share is an end of the bracket, where entries are counted and not kept
    low = sample[first] if 0 <= first < sample.size else bracket.low
    return low, sample[last] if last < sample.size else bracket.high


def _counted(tensors: Tensors, low: Any, high: Any) -> _Count:
    """Counts all entries by where they lie, and keeps those between low and high if they are not too many."""
    below = at_low = at_high = num_inside = 0
    kept = _Kept(_INSIDE_LIMIT)
    smaller, larger = np.empty(_CHUNK, bool), np.empty(_CHUNK, bool)
    for tensor in tensors():
        for chunk in _magnitudes(tensor):
            if not chunk.max() < np.inf:
                raise ValueError("a percentile of entries that are not finite: the diff holds NaN or Inf")
            under = np.less(chunk, low, out=smaller[: chunk.size])
            over = np.greater(chunk, high, out=larger[: chunk.size])
            below += int(np.count_nonzero(under))
            within = chunk[np.equal(under, over, out=under)]
            at_low += int(np.count_nonzero(within == low))
            if low == high or not within.size:
                continue
            at_high += int(np.count_nonzero(within == high))
            inside = within[(within > low) & (within < high)]
            num_inside += inside.size
            if num_inside <= _INSIDE_LIMIT:
                kept.append(inside)
    return _Count(below, at_low, num_inside, at_high, kept.values if num_inside <= _INSIDE_LIMIT else None)


def _values(count: _Count, low: Any, high: Any, ranks: tuple[int, int]) -> tuple[float, float] | None:
    """The magnitudes of two ranks (from 0, ascending), or None where the pass does not tell them."""
    inside_from = count.below + count.at_low
    inside_to = inside_from + count.num_inside
    if ranks[0] < count.below or ranks[1] >= inside_to + count.at_high or count.inside is None:
        return None
    wanted = sorted({rank - inside_from for rank in ranks if inside_from <= rank < inside_to})
    ordered = np.partition(count.inside, wanted) if wanted else count.inside
    first, second = (
        float(low if rank < inside_from else ordered[rank - inside_from] if rank < inside_to else high)
        for rank in ranks
    )
    return first, second


def _next_bracket(bracket: _Bracket, count: _Count, low: Any, high: Any, ranks: tuple[int, int]) -> _Bracket:
    """Where the ranks must lie, after a pass that did not tell them.

    The rank beside a bracket's end may be that end itself; brackets are closed, so it is in the next one.
    """
    within = count.at_low + count.num_inside + count.at_high
    if ranks[0] < count.below:
        return _Bracket(bracket.low, low, bracket.before, count.below + count.at_low - bracket.before)
    if ranks[1] >= count.below + within:
        before = count.below + within - (count.at_low if low == high else count.at_high)
        return _Bracket(high, bracket.high, before, bracket.before + bracket.within - before)
    return _Bracket(low, high, count.below, within)


def _between(first: float, second: float, share: float) -> float:
    """Linear interpolation, from the nearer end, as numpy does it."""
    step = second - first
    return second - step * (1 - share) if share >= 0.5 else first + step * share
