"""Exact tests of paired differences: over flips of their signs, and over the ways to deal replies to the two sides."""

import math
from fractions import Fraction

import numpy as np

_FEW = 10
_ROUNDING = 1e-9  # sums that are equal differ by it
_CELLS = 1_000_000  # of the distribution of the sum: 8 MB, and a tenth of a second for 100 pairs
_FLIPS, _MOST_FLIPS, _FLIP_SEED = 10_000, 1_000_000, 0
LEAST_P = float(np.finfo(np.float64).tiny)  # 1100 pairs all one way: 2^-1099 is no float


def sign_flip(differences: np.ndarray, denominators: np.ndarray | None = None, *, cells: int = _CELLS) -> float:
    """Two-sided p-value of a sum of paired differences, whose signs are flipped one by one: over all flips.

    On a common scale the differences are whole numbers, and the sum of those that come out negative is distributed over
    whole numbers too: one convolution a pair (Pagano and Tritchler 1983, JASA 78:435), no further than up to the sum
    that was observed. It is computed here because scipy's ``permutation_test`` enumerates all 2^n flips, which 30 pairs
    do not allow, or samples them, and a p-value of at least 1e-4 finds nothing after a correction for 500 tests.
    Where the scale would be too fine, flips are sampled: 10,000, and a million where fewer than 10 of them are as
    extreme, the same every time, with the one observed among them (Phipson and Smyth 2010, Stat. Appl. Genet. Mol.
    Biol. 9:39). Pairs that do not differ take no part: flipping them changes nothing.

    Args:
        differences: (pairs,) whole numbers, one for each independent pair.
        denominators: (pairs,) whole numbers above 0 by which they are divided; None for 1.
        cells: the most cells of the distribution; flips are sampled where it has more.

    Returns:
        The p-value, in (0, 1]; 1 where no pair differs.

    Raises:
        ValueError: a difference is no whole number.
    """
    broken = differences[differences != np.rint(differences)]
    if len(broken):
        raise ValueError(f"a difference is {broken[0]}; accepted: whole numbers, and denominators beside them")
    below = np.ones(len(differences)) if denominators is None else denominators
    fractions = [Fraction(int(one), int(other)) for one, other in zip(differences, below, strict=True) if one]
    scale = math.lcm(*(each.denominator for each in fractions))
    whole = [int(each * scale) for each in fractions]
    divisor = math.gcd(*whole) or 1
    # what is found must hang neither on the prompts' order nor on which condition is called the first
    sizes = sorted(abs(value) // divisor for value in whole)
    minority = min(sum(value for value in whole if value > 0), -sum(value for value in whole if value < 0)) // divisor
    if minority >= cells:
        return _sampled(np.array(sizes, dtype=np.float64), minority)
    chances, reached = np.zeros(minority + 1), 0  # of the sums of what came out negative, up to the one observed
    chances[0] = 1.0
    for size in sizes:
        half = chances[: reached + 1] / 2
        chances[: reached + 1] = half
        reached = min(reached + size, minority)
        if size <= minority:
            chances[size : reached + 1] += half[: reached + 1 - size]
    return float(min(max(2 * chances.sum(), LEAST_P), 1.0))


def _sampled(sizes: np.ndarray, minority: int) -> float:
    """The p-value from random flips of (pairs,) sizes.

    A second look only where the first found .001 or less keeps the level: a larger p-value is the first look's, a
    smaller one the second's.
    """
    generator = np.random.default_rng(_FLIP_SEED)
    least, num, extreme = float(minority) + _ROUNDING * sizes.sum(), 0, 0
    for flips in (_FLIPS, _MOST_FLIPS):
        while num < flips:
            bytes_ = generator.integers(0, 256, (_FLIPS, -(-len(sizes) // 8)), dtype=np.uint8)
            sums = np.unpackbits(bytes_, axis=1, count=len(sizes)) @ sizes
            extreme += int(((sums <= least) | (sums >= sizes.sum() - least)).sum())
            num += _FLIPS
        if extreme >= _FEW:
            break
    return (extreme + 1) / (num + 1)


def paired_or_dealt(positives: np.ndarray, sizes: np.ndarray) -> float:
    """Two-sided p-value of a difference over prompts, of which some have more replies on one side.

    The statistic is the Cochran-Mantel-Haenszel test's, the positives after less those expected, summed over prompts. A
    prompt with as many replies on both sides comes out with either sign, as in `sign_flip`: that takes nothing for
    granted about replies to one prompt. Where one side has more, the sign is not symmetric; given the prompt's replies
    and how many of them are positive, the number of those after is hypergeometric where the sides do not differ (Mantel
    and Haenszel 1959, J. Natl. Cancer Inst. 22:719; exact: Birch 1964, J. R. Stat. Soc. B 26:313). The sum is compared
    with its distribution, the convolution of all of these. With equal sides everywhere it is `sign_flip`, with none it
    is the exact Cochran-Mantel-Haenszel test. It is computed here because statsmodels' stratified tables know the
    normal approximation alone.

    Args:
        positives: (2, prompts) positive replies before and after.
        sizes: (2, prompts) replies.

    Returns:
        Twice the smaller tail, in (0, 1].
    """
    from scipy.stats import hypergeom

    chances, observed = np.ones(1), 0  # of the sum, each prompt's part counted from its least
    for (before, after), (some, others) in zip(positives.T.astype(int), sizes.T.astype(int), strict=True):
        if some == others:
            size = abs(after - before)
            part = np.zeros(size + 1)
            part[0] += 0.5
            part[size] += 0.5
            observed += max(after - before, 0)
        else:
            part = hypergeom.pmf(np.arange(others + 1), some + others, before + after, others)
            observed += after
        chances = np.convolve(chances, part)
    tails = chances[: observed + 1].sum(), chances[observed:].sum()
    return float(min(max(2 * min(tails), LEAST_P), 1.0))
