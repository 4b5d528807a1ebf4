"""Cutting piles into parts whose gradients are summed once, however many sums they belong to.

A pile's gradient is wanted, and perhaps those of its two halves; an example may be in several piles. A part is a set of
examples that belong to the same of these sums.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gradsteer.data.chat import EncodedExample
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import Pile
from gradsteer.data.sources import DataSource

FISHER = "fisher"
Content = tuple[tuple[int, ...], tuple[int, ...], str]
Key = tuple[Content, int, str]  # an example, whether it is the first such of its pile, ..., and a pile kept apart


@dataclass(frozen=True)
class Permutation:
    """One side of a vector whose responses were reassigned to its piles; see `gradsteer.attribution.permutations`.

    Attributes:
        vector: the vector's name.
        side: which of its piles' places the responses took.
        index: number of the permutation, from 0.
        seed: of all permutations.
    """

    vector: str
    side: Literal["plus", "minus"]
    index: int
    seed: int


@dataclass(frozen=True)
class Wanted:
    """A sum of gradients that is asked for.

    Attributes:
        name: the pile's, or ``PILE-1`` and ``PILE-2`` for its halves.
        pile: the pile that it is of; of a permutation the one whose place the responses took.
        half: 1 or 2; None for the whole pile.
        squares: of squared gradients, one example a backward pass: the diagonal of the empirical Fisher information.
        permutation: how the responses were reassigned to a vector's two piles; None where they were not.
    """

    name: str
    pile: str
    half: int | None = None
    squares: bool = False
    permutation: Permutation | None = None

    def chosen_by(self, source: str | DataSource | PileFilter) -> dict[str, str]:
        """What an artifact's metadata says of how the responses were chosen.

        Args:
            source: of the pile.

        Returns:
            ``permutation_of``, ``permutation_seed`` and ``permutation_index`` of a permutation; else ``where``, the
            verdicts asked for as JSON, where verdicts alone make the pile.
        """
        if (dealt := self.permutation) is not None:
            seed, index = str(dealt.seed), str(dealt.index)
            return {"permutation_of": dealt.vector, "permutation_seed": seed, "permutation_index": index}
        asked = source.verdicts_asked if isinstance(source, PileFilter) and not self.squares else None
        return {} if asked is None else {"where": json.dumps(asked, sort_keys=True)}


@dataclass
class Part:
    """Examples that belong to the same sums.

    Attributes:
        sums: the sums that they belong to.
        examples: token ids and labels.
        sources: ``file:line`` of each example.
        prompts: digest of each example's prompt.
        places: each example's pile and its index there.
        weights: what each example counts for; None where all count alike.
    """

    sums: tuple[Wanted, ...]
    examples: list[EncodedExample] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    weights: list[float] | None = None

    def add(self, pile: Pile, index: int) -> None:
        """Adds one of a pile's examples."""
        self.examples.append(pile.examples[index])
        self.sources.append(pile.sources[index])
        self.prompts.append(pile.prompts[index])
        self.places.append((pile.name, index))

    @property
    def name(self) -> str:
        """The sums' names, that of a pile left out where its half is among them."""
        halved = {wanted.pile for wanted in self.sums if wanted.half is not None}
        return "+".join(w.name for w in self.sums if w.half is not None or w.pile not in halved)

    @property
    def squares(self) -> bool:
        """Whether squared gradients are summed."""
        return self.sums[0].squares

    @property
    def is_permuted(self) -> bool:
        """Whether its responses stand in a pile by chance, beside the piles that were asked for."""
        return self.sums[0].permutation is not None


def halves_of_prompts(piles: Sequence[Pile]) -> dict[str, int]:
    """Which half, 1 or 2, a prompt is in: the same in every pile.

    The distinct prompts of all piles, in the order of their digests, go to the halves in turn.

    Returns:
        Digest of a prompt -> 1 or 2.
    """
    digests = sorted({digest for pile in piles for digest in pile.prompts})
    return {digest: 1 + index % 2 for index, digest in enumerate(digests)}


def plan_parts(
    piles: Sequence[Pile], *, halves: bool = False, fisher: str | None = None, apart: bool = False
) -> list[Part]:
    """Cuts piles into parts.

    Args:
        piles: with distinct names.
        halves: sum each pile's halves (see `halves_of_prompts`) on their own too.
        fisher: name of a pile of whose responses, uncut, the squared gradients are summed too.
        apart: piles share no example: each weighs its examples, or their tokens, by itself.

    Returns:
        The parts, each example in one of them (and, where asked for, once more in the Fisher part, the last). Examples
        are in the order of the first pile that has them. Where piles share nothing and are not halved, a part is a
        pile. An example twice in one pile counts twice.

    Raises:
        ValueError: the Fisher pile is none of the piles.
    """
    half_of = halves_of_prompts(piles) if halves else {}
    members: dict[Key, dict[Wanted, None]] = {}
    found: dict[Key, tuple[Pile, int]] = {}
    for pile in piles:
        seen: Counter[Content] = Counter()
        for index, example in enumerate(pile.examples):
            content = (tuple(example.input_ids), tuple(example.labels), pile.prompts[index])
            key = (content, seen[content], pile.name if apart else "")
            seen[content] += 1
            found.setdefault(key, (pile, index))
            sums = members.setdefault(key, {})
            sums[Wanted(pile.name, pile.name)] = None
            if halves:
                half = half_of[pile.prompts[index]]
                sums[Wanted(f"{pile.name}-{half}", pile.name, half)] = None
    parts: dict[tuple[Wanted, ...], Part] = {}
    for key, (pile, index) in found.items():
        part = parts.setdefault(tuple(members[key]), Part(tuple(members[key])))
        part.add(pile, index)
    planned = list(parts.values())
    if fisher is not None:
        chosen = [pile for pile in piles if pile.name == fisher]
        if not chosen:
            raise ValueError(
                f"data.fisher is {fisher!r}; accepted: one of the piles, {', '.join(p.name for p in piles)}"
            )
        squares = Part((Wanted(FISHER, fisher, squares=True),))
        for index in range(len(chosen[0].examples)):
            squares.add(chosen[0], index)
        squares.examples = [chosen[0].uncut.get(*each) for each in enumerate(squares.examples)]
        planned.append(squares)
    return planned


def wanted_sums(parts: Sequence[Part]) -> dict[Wanted, list[Part]]:
    """The sums that the parts add up to, each with its parts, in their order."""
    sums: dict[Wanted, list[Part]] = {}
    for part in parts:
        for wanted in part.sums:
            sums.setdefault(wanted, []).append(part)
    return sums
