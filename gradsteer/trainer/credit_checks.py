"""What a credit, and a loss at the sampling temperature, need of the piles: refused before a model is loaded."""

from collections import Counter
from collections.abc import Mapping, Sequence

from gradsteer.attribution.credit import CreditOptions
from gradsteer.data.piles import Pile

_SHARE = "piles that share out all judged replies of a file, such as {bridge: true} and {bridge: false}"


def loss_temperature(asked: float | str, piles: Sequence[Pile]) -> float:
    """What divides the loss's logits: the number asked for, or what all replies were sampled at.

    Raises:
        ValueError: replies do not say how they were sampled, or were sampled greedily, with top_p or top_k, or in
            several ways.
    """
    if not isinstance(asked, str):
        return asked
    for pile in piles:
        if not all(pile.sampled):
            raise ValueError(f"model.temperature sampled: pile {pile.name!r} holds texts; accepted: sampled responses")
        if None in pile.sampling:
            where = pile.sources[pile.sampling.index(None)]
            raise ValueError(f"model.temperature sampled: {where} does not say its temperature and top_p")
        if pile.with_top_k is not None:
            raise ValueError(f"model.temperature sampled: {pile.with_top_k} was sampled with top_k; accepted: without")
    ways = {way for pile in piles for way in pile.sampling if way is not None}
    if len(ways) > 1 or any(temperature == 0 or top_p < 1 for temperature, top_p in ways):
        said = ", ".join(f"temperature {temperature:g} and top_p {top_p:g}" for temperature, top_p in sorted(ways))
        raise ValueError(
            f"model.temperature sampled: replies were sampled at {said}; accepted: one above 0, and top_p 1"
        )
    return ways.pop()[0]


def check_credit(
    options: CreditOptions, piles: Sequence[Pile], vectors: Mapping[str, Sequence[str]], *, loss_mask: str
) -> None:
    """Refuses piles that a credit does nothing for, or whose contrast it would change.

    Args:
        options: the credit.
        piles: all of them.
        vectors: vector name -> its two piles.
        loss_mask: which tokens count.

    Raises:
        ValueError: names the credit and the pile.
    """
    title = f"model.credit {options.credit}"
    if options.cuts and not options.predicts and not any(pile.undecided is None for pile in piles):
        reasons = "; ".join(f"{pile.name}: {pile.undecided}" for pile in piles)
        raise ValueError(f"{title}: no reply is decided before it ends ({reasons})")
    if not options.predicts:
        return
    if loss_mask != "assistant":
        raise ValueError(f"{title} weighs whole replies; accepted: --data.loss_mask assistant (here: {loss_mask})")
    by_name = {pile.name: pile for pile in piles}
    uses = Counter(name for pair in vectors.values() for name in pair)
    for pile in piles:
        if uses[pile.name] != 1:
            raise ValueError(
                f"{title}: pile {pile.name!r} is in {uses[pile.name]} vectors: its tokens weigh by the one vector that "
                "it is in; accepted: each pile in one of --vectors, under another name for another vector"
            )
    for name, pair in vectors.items():
        sides = [by_name[pile] for pile in pair if pile in by_name]
        held = sum(pile.num_matched or 0 for pile in sides)
        if len(sides) == 2 and not (held == sides[0].num_scored == sides[1].num_scored and _apart(*sides)):
            raise ValueError(
                f"{title}: the piles {pair[0]!r} and {pair[1]!r} of vector {name!r} hold {held} of "
                f"{max(pile.num_scored for pile in sides)} judged replies: those in neither or both would bias it; "
                f"accepted: {_SHARE}"
            )


def _apart(plus: Pile, minus: Pile) -> bool:
    return bool(plus.files) and plus.files == minus.files and not set(plus.sources) & set(minus.sources)
