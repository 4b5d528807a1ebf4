"""The exact percentile of very many magnitudes, streamed.

`torch.quantile` refuses more than 16M elements and a sort holds them all; a radix histogram over the bits of
float32 magnitudes needs two passes and 512 kB.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

_LOW_BITS = 16
_NUM_BINS = 1 << 16


def _order_statistics(tensors: Callable[[], Iterable[Tensor]], ranks: list[int], high: np.ndarray) -> list[float]:
    """The magnitudes of the given ranks (0-based, ascending): second pass, over the low 16 bits."""
    ends = np.cumsum(high)
    bins = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    low = {bin_: np.zeros(_NUM_BINS, dtype=np.int64) for bin_ in bins}
    for tensor in tensors():
        bits = _magnitude_bits(tensor)
        top = bits >> _LOW_BITS
        for bin_, counts in low.items():
            inside = bits[top == bin_] & (_NUM_BINS - 1)
            counts += np.bincount(inside, minlength=_NUM_BINS)
    values = []
    for rank, bin_ in zip(ranks, bins, strict=True):
        before = int(ends[bin_ - 1]) if bin_ else 0
        low_bits = int(np.searchsorted(np.cumsum(low[bin_]), rank - before, side="right"))
        word = np.array([(bin_ << _LOW_BITS) | low_bits], dtype=np.int32)
        values.append(float(word.view(np.float32)[0]))
    return values


def _magnitude_bits(tensor: Tensor) -> np.ndarray:
    """Float32 magnitudes as int32: for non-negative floats the order of the bits is the order of the values."""
    bits: np.ndarray = tensor.detach().abs().to("cpu", torch.float32).contiguous().view(torch.int32).flatten().numpy()
    return bits


def magnitude_percentile(tensors: Callable[[], Iterable[Tensor]], percentile: float) -> float:
    """The percentile of all ``|entries|`` together, as ``np.percentile`` in float64 gives it.

    Args:
        tensors: called once for each of the two passes; gives the tensors one by one (any shapes).
        percentile: from 0 to 100; between two order statistics it interpolates linearly.

    Raises:
        ValueError: the percentile is out of range, there is no entry, or an entry is not finite.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile!r}; accepted: a number from 0 to 100")
    high = np.zeros(_NUM_BINS, dtype=np.int64)
    for tensor in tensors():
        high += np.bincount(_magnitude_bits(tensor) >> _LOW_BITS, minlength=_NUM_BINS)
    total = int(high.sum())
    if total == 0:
        raise ValueError("a percentile of no entries: the diff has no parameters")
    if high[0x7F80:].any():  # the exponent of infinities and NaN
        raise ValueError("a percentile of entries that are not finite: the diff holds NaN or Inf")
    position = percentile / 100 * (total - 1)
    below = int(position)
    above = min(below + 1, total - 1)
    low_value, high_value = _order_statistics(tensors, [below, above], high)
    return low_value + (high_value - low_value) * (position - below)
