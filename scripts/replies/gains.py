"""What a vector is worth: the first-order fall of the log-odds for a step of norm 1 along it, ``<S, V> / ||V||``.

S is the reference: the score-function gradient of the log-odds of a topic from many other replies to other prompts. No
direction is worth more than S itself, ``||S||``: the limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradsteer.attribution.credit import CreditOptions
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.reductions import Reduction
from gradsteer.attribution.verdict_prediction import Predictions, predict_verdicts
from gradsteer.data.chat import EncodedExample
from gradsteer.progress import Tick
from replies.organism import BUDGET, TEMPERATURE, Organism, Reply, draws, halves

LAMBDAS = (0.95, 0.9, 0.8)
BLOCKS = 10  # of the reference's replies
SUM = "sum at T"
Way = tuple[Reduction, float, CreditOptions]
PLAIN: dict[str, Way] = {
    "example, T = 1": ("example", 1.0, CreditOptions()),
    SUM: ("sum", TEMPERATURE, CreditOptions()),
    "decided": ("sum", TEMPERATURE, CreditOptions("decided")),
}
PREDICTING = {
    "baseline": CreditOptions("baseline"),
    **{f"advantage {decay:g}": CreditOptions("advantage", decay) for decay in LAMBDAS},
}
CREDITS = (*PLAIN, *PREDICTING)


class Sums:
    """Summed gradients of the replies with a topic and of those without it; they add up over sets of replies.

    Args:
        organism: whose weights they are taken at.
        replies: some of its replies.
        examples: what runs of each, perhaps with weights for its tokens.
        way: how they are taken.
        tick: called after every batch.
        worth: (replies,) what each counts for, which is in its tokens' weights already; 1 by default.
    """

    def __init__(
        self,
        organism: Organism,
        replies: Sequence[Reply],
        examples: Sequence[EncodedExample],
        way: Way,
        tick: Tick,
        worth: np.ndarray | None = None,
    ) -> None:
        layout = organism.layout(replies)
        self.sides: list[np.ndarray] = []
        self.counts: list[float] = []
        counts = np.ones(len(replies)) if worth is None else worth
        for shows in (True, False):
            pile = PileGradient(organism.model, reduction=way[0], temperature=way[1], head_chunk=layout.head_chunk)
            chosen = [example for example, reply in zip(examples, replies, strict=True) if reply.shows == shows]
            for indices in layout.plan([len(example.input_ids) for example in chosen], BUDGET):
                pile.add(layout.make([chosen[index] for index in indices]))
                tick(0)
            flat = np.zeros(())  # of a draw without any
            if chosen:
                flat = np.concatenate([each.numpy().ravel() for each in pile.average().values()])
            self.sides.append(flat * np.float32(len(chosen)))
            self.counts.append(float(counts[[reply.shows == shows for reply in replies]].sum()))


def contrast(sums: Sequence[Sums]) -> np.ndarray:
    """(weights,) float64: the vector of the replies of all sums together."""
    plus, minus = (
        sum(each.sides[side].astype(np.float64) for each in sums) / sum(each.counts[side] for each in sums)
        for side in (0, 1)
    )
    found: np.ndarray = plus - minus
    return found


def plain_vectors(
    organism: Organism, replies: Sequence[Reply], sizes: Sequence[int], tick: Tick
) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Vectors of credits that predict nothing, of every disjoint draw of every size; each reply is run once for each.

    Args:
        organism: whose they are.
        replies: to draw from.
        sizes: replies to each prompt.
        tick: counts replies.

    Yields:
        The credit, the size, the number of the draw, the vector.
    """
    for name, way in PLAIN.items():
        parts = []
        for part in draws(replies, 1):
            examples = [reply.decided if way[2].cuts else reply.whole for reply in part]
            parts.append(Sums(organism, part, examples, way, tick))
            tick(len(part))
        for each in sizes:
            for number, start in enumerate(range(0, len(parts) - each + 1, each)):
                yield name, each, number, contrast(parts[start : start + each])


def predicting_vectors(
    organism: Organism, replies: Sequence[Reply], tick: Tick, worth: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], Predictions]:
    """Vectors of the credits that predict verdicts, of one draw; (replies,) `worth` is what each counts for."""
    shows = [reply.shows for reply in replies]
    prompts = [reply.prompt for reply in replies]
    counts = np.ones(len(replies)) if worth is None else worth
    predicted = predict_verdicts(
        organism.states(replies), shows, prompts, halves(replies), sample_weight=counts, tick=lambda: tick(0)
    )
    rate = float(np.average(shows, weights=counts))
    found = {}
    for name, credit in PREDICTING.items():
        weighted = [
            _weighted(reply.decided, each * credit.weights(odds, shows=reply.shows, rate=rate))
            for reply, odds, each in zip(replies, predicted.odds, counts, strict=True)
        ]
        found[name] = contrast([Sums(organism, replies, weighted, ("sum", TEMPERATURE, credit), tick, counts)])
    return found, predicted


def weighted_vectors(
    organism: Organism, replies: Sequence[Reply], worth: np.ndarray, tick: Tick
) -> dict[str, np.ndarray]:
    """Vectors of all credits but the seed's, of replies that count for what they are worth."""
    found = {}
    for name, way in PLAIN.items():
        if way[0] == "sum":
            examples = [reply.decided if way[2].cuts else reply.whole for reply in replies]
            weighted = [
                _weighted(example, np.full(example.num_target_tokens, each))
                for example, each in zip(examples, worth, strict=True)
            ]
            found[name] = contrast([Sums(organism, replies, weighted, way, tick, worth)])
    return {**found, **predicting_vectors(organism, replies, tick, worth)[0]}


def reference(organism: Organism, file: Path, topic: str, kept: Path, tick: Tick) -> np.ndarray:
    """(blocks, weights): S of each block of the reference's replies.

    Args:
        organism: whose they are.
        file: of the replies.
        topic: of S.
        kept: an .npy; read where it is there.
        tick: counts replies.
    """
    if not kept.is_file():
        replies, blocks = organism.replies(file, topic), []
        for part in draws(replies, (1 + max(reply.sample for reply in replies)) // BLOCKS):
            examples = [reply.decided for reply in part]
            blocks.append(contrast([Sums(organism, part, examples, PLAIN["decided"], tick)]))
            tick(len(part))
        partial = kept.with_suffix(".part.npy")
        np.save(partial, np.stack(blocks).astype(np.float32))
        partial.rename(kept)
    return np.asarray(np.load(kept), dtype=np.float64)


def limit(blocks: np.ndarray) -> tuple[float, float]:
    """``||S||`` without the noise in it, from products of different blocks, and its standard error (jackknife)."""

    def norm(gram: np.ndarray) -> float:
        number = len(gram)
        return float(np.sqrt((gram.sum() - np.trace(gram)) / (number * (number - 1))))

    gram = blocks @ blocks.T
    kept = [np.delete(np.arange(len(gram)), index) for index in range(len(gram))]
    without = np.array([norm(gram[np.ix_(each, each)]) for each in kept])
    error = float(np.sqrt((len(gram) - 1) * without.var()))
    return norm(gram), error


def _weighted(example: EncodedExample, weights: np.ndarray) -> EncodedExample:
    before = len(example.input_ids) - len(weights)
    return replace(example, weights=[1.0] * before + weights.tolist())
