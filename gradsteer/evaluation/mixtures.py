"""Responses from several sets of weights as one sample: the density of their mixture.

With n_k of n responses sampled from p_k, each response r counts as if it came from the mixture

    q(r) = sum_k (n_k / n) p_k(r)

whichever of the p_k it did come from, so that ``w_r = p'(r) / q(r)`` weighs all of them to any other weights p': the
balance heuristic of Veach and Guibas (1995, SIGGRAPH 95:419), which is MBAR (Shirts and Chodera 2008, Journal of
Chemical Physics 129:124105) where the normalisers are known, as those of language models are: 1. A response that is
likely under any source has no large weight, and no weighing of the same responses has a variance lower than this one's
by more than ``(1 / min n_k - 1 / n) mu^2`` (Veach and Guibas, theorem 1). With one source it is the plain ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsteer.evaluation.importance_sampling import effective_sample_size, normalised_weights


@dataclass(frozen=True)
class SourceSize:
    """How far one source's own responses go by themselves.

    Attributes:
        source: its number.
        effective_sample_size: of its own responses, weighed by its own density; 0 where none is possible under p'.
        num_responses: that it has.
    """

    source: int
    effective_sample_size: float
    num_responses: int


def mixture_log_density(log_densities: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """``log q(r) = log sum_k (n_k / n) p_k(r)``, without overflow.

    Args:
        log_densities: (responses, sources) ``log p_k(r)`` in nats; -inf where a source never gives the response.
        counts: (sources,) how many of the responses each source gave, n_k; or (responses, sources), how many of those
            to the response's own prompt, where sources have different prompts.

    Returns:
        (responses,) nats.

    Raises:
        ValueError: not one count for each source, a count below 1, counts that are not of so many responses, a density
            that is NaN or +inf, or a response that no source gives.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if log_densities.ndim != 2 or numbers.shape not in (log_densities.shape, log_densities.shape[1:]):
        raise ValueError(f"there are {len(numbers)} counts for densities of shape {log_densities.shape}")
    if numbers.ndim == 1 and (not (numbers >= 1).all() or numbers.sum() != len(log_densities)):
        raise ValueError(
            f"counts are {numbers.astype(int).tolist()} of {len(log_densities)} responses; accepted: at least 1 from "
            "each source, and as many in all"
        )
    if np.isnan(log_densities).any() or np.isposinf(log_densities).any():
        raise ValueError("a log density is NaN or infinite: the scores of a response are not finite")
    with np.errstate(divide="ignore"):  # a source without this prompt
        shares = np.log(numbers / numbers.sum(axis=-1, keepdims=True))
    found: np.ndarray = np.logaddexp.reduce(log_densities + shares, axis=1)
    if np.isneginf(found).any():
        raise ValueError(f"response {int(np.flatnonzero(np.isneginf(found))[0]) + 1} is possible under no source")
    return found


def source_sizes(target: np.ndarray, log_densities: np.ndarray, sources: np.ndarray) -> list[SourceSize]:
    """The effective sample size of each source's own responses, weighed to p' by that source alone.

    Args:
        target: (responses,) ``log p'(r)``, nats.
        log_densities: (responses, sources) ``log p_k(r)``.
        sources: (responses,) number of the source that each response came from.

    Returns:
        One for each source, in order. The largest is what the pool has to beat.
    """
    found = []
    for source in range(log_densities.shape[1]):
        own = sources == source
        ratios = target[own] - log_densities[own, source]
        possible = bool(np.isfinite(ratios).any()) and not np.isnan(ratios).any() and not np.isposinf(ratios).any()
        size = effective_sample_size(normalised_weights(ratios)) if possible else 0.0
        found.append(SourceSize(source, size, int(own.sum())))
    return found
