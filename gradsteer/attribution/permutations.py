"""Permuted pile labels: the null of a steering vector whose responses are real and whose piles are chance.

The responses of a vector's two piles are pooled and dealt again into piles of the same sizes.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from gradsteer.attribution.pile_partition import Part, Permutation, Wanted
from gradsteer.data.piles import Pile


def deal(size: int, num_plus: int, *, seed: int, vector: str, index: int) -> tuple[list[int], list[int]]:
    """Deals a pool of responses into two piles by chance, every way to do so being equally likely.

    Args:
        size: responses in the pool.
        num_plus: responses that the PLUS pile gets; the MINUS pile gets the rest.
        seed: another seed deals otherwise.
        vector: another vector's name too.
        index: another permutation's number too.

    Returns:
        The positions in the pool that went to PLUS and to MINUS, each in ascending order.
    """

    # sorted by a digest: the same on every machine and with every version of a random number generator
    def key(position: int) -> bytes:
        return hashlib.sha256(f"permutation/{seed}/{vector}/{index}/{position}".encode()).digest()

    order = sorted(range(size), key=key)
    return sorted(order[:num_plus]), sorted(order[num_plus:])


def permuted_parts(
    piles: Sequence[Pile], vectors: Mapping[str, Sequence[str]], count: int, *, seed: int = 0
) -> list[Part]:
    """The parts whose gradients' contrasts are the vectors of permuted labels.

    Whole responses are dealt, not prompts. A response that stands in both piles is in the pool twice.

    Args:
        piles: with distinct names.
        vectors: name -> its two piles, [PLUS, MINUS].
        count: permutations of each vector.
        seed: of them all.

    Returns:
        Two parts (plus, minus) a permutation and vector, each of one sum and with as many responses as the pile whose
        place it takes. The first permutation of all vectors comes before the second, so that a larger count only adds
        parts at the end.
    """
    by_name = {pile.name: pile for pile in piles}
    parts = []
    for index in range(count):
        for vector, (plus, minus) in vectors.items():
            pool = [(by_name[name], at) for name in (plus, minus) for at in range(len(by_name[name].examples))]
            dealt = deal(len(pool), len(by_name[plus].examples), seed=seed, vector=vector, index=index)
            sides: tuple[Literal["plus", "minus"], ...] = ("plus", "minus")
            for side, name, positions in zip(sides, (plus, minus), dealt, strict=True):
                permutation = Permutation(vector, side, index, seed)
                part = Part((Wanted(f"permuted-{vector}-{index}-{side}", name, permutation=permutation),))
                for pile, at in (pool[position] for position in positions):
                    part.add(pile, at)
                parts.append(part)
    return parts


def sides_of_permutations(sums: Iterable[Wanted], vector: str) -> dict[int, tuple[Wanted, Wanted]]:
    """A vector's permutations: number -> the sums of its PLUS and of its MINUS side."""
    found: dict[int, dict[str, Wanted]] = {}
    for wanted in sums:
        if (dealt := wanted.permutation) is not None and dealt.vector == vector:
            found.setdefault(dealt.index, {})[dealt.side] = wanted
    return {index: (sides["plus"], sides["minus"]) for index, sides in found.items()}
