"""Cutting piles into parts whose gradients are summed once, however many sums they belong to.

A pile's gradient is wanted, and perhaps those of its two halves; an example may be in several piles. A part is a set of
examples that belong to the same of these sums. Knows of piles; knows nothing of models or files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gradsteer.chat import EncodedExample
from gradsteer.piles import Pile

FISHER = "fisher"
Content = tuple[tuple[int, ...], tuple[int, ...], str]
Key = tuple[Content, int]  # an example, and whether it is the first such of its pile, the second, ...


@dataclass(frozen=True)
class Wanted:
    """A sum of gradients that is asked for.

    Attributes:
        name: the pile's, or ``PILE-1`` and ``PILE-2`` for its halves.
        pile: the pile that it is of.
        half: 1 or 2; None for the whole pile.
        squares: of squared gradients, one example a backward pass: the diagonal of the empirical Fisher information.
    """

    name: str
    pile: str
    half: int | None = None
    squares: bool = False


@dataclass
class Part:
    """Examples that belong to the same sums.

    Attributes:
        sums: the sums that they belong to.
        examples: token ids and labels.
        sources: ``file:line`` of each example.
        prompts: digest of each example's prompt.
    """

    sums: tuple[Wanted, ...]
    examples: list[EncodedExample] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The sums' names, that of a pile left out where its half is among them."""
        halved = {wanted.pile for wanted in self.sums if wanted.half is not None}
        return "+".join(w.name for w in self.sums if w.half is not None or w.pile not in halved)

    @property
    def squares(self) -> bool:
        """Whether squared gradients are summed."""
        return self.sums[0].squares


def halves_of_prompts(piles: Sequence[Pile]) -> dict[str, int]:
    """Which half, 1 or 2, a prompt is in: the same in every pile.

    The distinct prompts of all piles, in the order of their digests, go to the halves in turn.

    Returns:
        Digest of a prompt -> 1 or 2.
    """
    digests = sorted({digest for pile in piles for digest in pile.prompts})
    return {digest: 1 + index % 2 for index, digest in enumerate(digests)}


def plan_parts(piles: Sequence[Pile], *, halves: bool = False, fisher: str | None = None) -> list[Part]:
    """Cuts piles into parts.

    Args:
        piles: with distinct names.
        halves: sum each pile's halves (see `halves_of_prompts`) on their own too.
        fisher: name of a pile of whose responses the squared gradients are summed too.

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
            key = (content, seen[content])
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
        part.examples.append(pile.examples[index])
        part.sources.append(pile.sources[index])
        part.prompts.append(pile.prompts[index])
    planned = list(parts.values())
    if fisher is not None:
        chosen = [pile for pile in piles if pile.name == fisher]
        if not chosen:
            raise ValueError(
                f"data.fisher is {fisher!r}; accepted: one of the piles, {', '.join(p.name for p in piles)}"
            )
        wanted = Wanted(FISHER, fisher, squares=True)
        planned.append(Part((wanted,), chosen[0].examples, chosen[0].sources, chosen[0].prompts))
    return planned


def wanted_sums(parts: Sequence[Part]) -> dict[Wanted, list[Part]]:
    """The sums that the parts add up to, each with its parts, in their order."""
    sums: dict[Wanted, list[Part]] = {}
    for part in parts:
        for wanted in part.sums:
            sums.setdefault(wanted, []).append(part)
    return sums
