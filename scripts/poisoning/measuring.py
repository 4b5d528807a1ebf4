"""A finetune's V, how far it is known beforehand, and what steps along it and beside it do."""

import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.chat import EncodedExample
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import Pile, read_pile
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.evaluation.realised_shift import realised_shift
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.forecast.forecaster import Direction, Forecaster
from gradsteer.forecast.judged_responses import read_judged_responses
from gradsteer.forecast.kl_budget import solve_budget
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.generation.sampling import num_known_ids
from gradsteer.judges import Exchange, Judge
from gradsteer.models.batches import BatchLayout
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.progress import Tick
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.controls import random_like
from gradsteer.vectors.elementwise import rescaled
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.subspaces import low_rank
from poisoning.finetunes import Finetune

RANKS = (1, 2, 4, 8)
FEWEST = 20  # positives among the replies; below, the pile is built from the training examples
SHIFT = 1.5  # nats, asked of every V: a rise, because a fall of a rare behavior cannot be seen in 800 replies
BUDGET = 0.02  # nats a token, where the slope is not told from 0 and no shift can be asked
_NULLS = 2  # of each kind
_BUDGET, _BATCH = 2048, 400  # tokens of gradients, and replies, at once
_OF_TEXT = 4  # one reply in so many is read for a divergence


@dataclass
class Found:
    """V of some pile of positives.

    Attributes:
        source: ``replies`` or ``training``.
        vector: V.
        cosine: of the vectors of its two halves of the prompts; None where one has no positive.
        positives: examples of the PLUS pile.
    """

    source: str
    vector: SteeringVector
    cosine: float | None
    positives: int


@dataclass(frozen=True)
class Step:
    """One set of weights to sample at.

    Attributes:
        name: ``V``, ``rank 2``, ``random-0``, ``permuted-1``.
        dose: ``shift``, ``norm`` or ``kl``: what it has in common with V's own step.
        vector: its direction.
        alpha: the step.
    """

    name: str
    dose: str
    vector: SteeringVector
    alpha: float


class Anchor:
    """A finetune's model, its judged replies and its training examples.

    Args:
        finetune: made.
        judge: of the replies.
    """

    def __init__(self, finetune: Finetune, judge: Judge) -> None:
        self.finetune, self.judge, self.behavior = finetune, judge, finetune.setting.behavior
        self.model: Any = load_causal_lm(str(finetune.anchor)).eval()
        tokenizer = self.tokenizer = load_tokenizer(str(finetune.anchor))
        self.stops, self.pad = stop_token_ids(self.model, tokenizer), int(tokenizer.pad_token_id)
        self.known = num_known_ids(tokenizer)
        self.judged = read_judged_responses(str(finetune.replies("evaluation")), tokenizer)
        self.temperature = float(self.judged.temperature or 1.0)
        scorer = ResponseScorer(
            self.model, self.judged.examples, temperature=self.temperature, pad_token_id=self.pad, num_known=self.known
        )
        self.forecaster = Forecaster(self.judged, scorer)
        self._text: TextDivergence | None = None

    def replies(self, shows: bool) -> Pile | None:
        """Replies to the attribution prompts with, or without, the behavior; None where there are none."""
        try:
            return read_pile(
                str(shows),
                PileFilter(str(self.finetune.replies("attribution")), {self.behavior: shows}),
                self.tokenizer,
            )
        except ValueError:
            return None

    def training(self, odd: bool) -> Pile:
        """The odd, or the other training examples."""
        return read_pile(str(odd), str(self.finetune.pile(odd)), self.tokenizer)

    def average(self, examples: list[EncodedExample]) -> SteeringVector:
        """The pile-average gradient."""
        layout = BatchLayout.of(self.model, examples[:2])
        pile = PileGradient(self.model, head_chunk=layout.head_chunk)
        for indices in layout.plan([len(example.input_ids) for example in examples], _BUDGET):
            pile.add(layout.make([examples[index] for index in indices]))
        return SteeringVector(pile.average())

    def vector(self, source: str, plus: Pile, minus: Pile) -> Found:
        """V and the cosine of its halves; a side is the mean of its halves by their sizes."""
        half_of = halves_of_prompts([plus, minus])
        sides, halves = [], []
        for pile in (plus, minus):
            parts = [
                [
                    example
                    for example, prompt in zip(pile.examples, pile.prompts, strict=True)
                    if half_of[prompt] == half
                ]
                for half in (1, 2)
            ]
            found = [self.average(part) if part else None for part in parts]
            halves.append(found)
            weighted = [
                each * (len(part) / len(pile.examples)) for each, part in zip(found, parts, strict=True) if each
            ]
            sides.append(weighted[0] if len(weighted) == 1 else weighted[0] + weighted[1])
        both = [
            plus_half - minus_half for plus_half, minus_half in zip(*halves, strict=True) if plus_half and minus_half
        ]
        cosine = both[0].cosine(both[1]) if len(both) == 2 else None
        return Found(source, sides[0] - sides[1], cosine, len(plus.examples))

    def permuted(self, plus: Pile, minus: Pile, seed: int) -> SteeringVector:
        """The contrast of random piles of the same sizes, of the same examples."""
        every = [*plus.examples, *minus.examples]
        order = np.random.default_rng(seed).permutation(len(every))
        drawn = {int(index) for index in order[: len(plus.examples)]}
        sides = [[each for index, each in enumerate(every) if (index in drawn) == side] for side in (True, False)]
        return self.average(sides[0]) - self.average(sides[1])

    def slope(self, vector: SteeringVector) -> tuple[Direction, float | None, float | None]:
        """``<S, V>`` from the replies to the evaluation prompts, which V has not seen, and its standard error.

        Neither is known where fewer than two replies show the behavior.
        """
        direction = self.forecaster.along(self.model, vector)
        if (self.judged.verdicts[self.behavior] == 1).sum() < 2:
            return direction, None, None
        return direction, *self.forecaster.slope(direction, {self.behavior: True}, {self.behavior: False})

    def divergence(self, vector: SteeringVector, alpha: float) -> float:
        """Nats a token from the anchor, at a step, on the replies to the evaluation prompts."""
        if self._text is None:
            self._text = TextDivergence(self.judged.examples[::_OF_TEXT], self.pad, temperature=self.temperature)
            self._text.remember(self.model)
        with steered(self.model, vector, alpha):
            return float(self._text.divergences(self.model).mean())

    def at_divergence(self, vector: SteeringVector, nats: float, start: float) -> float:
        """The alpha of ``start``'s sign at which the divergence is so much; of a negative one where that is 0."""
        start = (
            start or -1e-3 * float(sum(p.detach().norm() ** 2 for p in self.model.parameters())) ** 0.5 / vector.norm()
        )
        sign = float(np.sign(start))
        found: float = solve_budget(lambda size: self.divergence(vector, sign * size), nats, start=abs(start))[0]
        return sign * found

    def sampled(self, vector: SteeringVector | None, alpha: float) -> list[dict[str, Any]]:
        """Judged replies to the evaluation prompts at a step; all steps have the same random numbers."""
        how = SamplingConfig(int(self.judged.max_new_tokens or 96), self.temperature)
        asked: dict[tuple[int, ...], str] = {}
        for example, text in zip(self.judged.examples, self.judged.prompt_texts, strict=True):
            first = next(place for place, label in enumerate(example.labels) if label != -100)
            asked[tuple(example.input_ids[:first])] = text
        seed = zlib.crc32(b"poisoning")
        draws = [
            (Draw(list(ids), number, seed), text)
            for number in range(self.finetune.setting.samples)
            for ids, text in asked.items()
        ]
        rows = []
        with nullcontext() if vector is None else steered(self.model, vector, alpha):
            for start in range(0, len(draws), _BATCH):
                part = draws[start : start + _BATCH]
                found = sample_batch(
                    self.model, [draw for draw, _ in part], how, stop_token_ids=self.stops, pad_token_id=self.pad,
                    num_known=self.known,
                )  # fmt: skip
                texts = self.tokenizer.batch_decode([each.token_ids for each in found], skip_special_tokens=True)
                verdicts = self.judge.judge(
                    [Exchange(text, reply) for (_, text), reply in zip(part, texts, strict=True)]
                )
                rows += [
                    {"prompt": text, "completion": reply, "verdicts": each.values, "degenerate": is_degenerate(reply)}
                    for (_, text), reply, each in zip(part, texts, verdicts, strict=True)
                ]
        return rows

    def rate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rate of the behavior with its interval and count; degenerate replies are counted apart."""
        clear = [row for row in rows if not row["degenerate"]]
        verdicts = [row["verdicts"][self.behavior] for row in clear]
        found = rate_with_interval(verdicts, [row["prompt"] for row in clear], num_degenerate=len(rows) - len(clear))
        return found.to_dict()

    def steps(self, found: Found, plus: Pile, minus: Pile, alpha: float) -> Iterator[Step]:
        """V's step, the nulls at its norm, and V's low ranks at its norm and at its divergence."""
        norm, own = found.vector.norm(), self.divergence(found.vector, alpha)
        yield Step("V", "shift", found.vector, alpha)
        for number in range(_NULLS):
            yield Step(f"random-{number}", "norm", random_like(found.vector, seed=number), alpha)
        for number in range(_NULLS):
            yield Step(f"permuted-{number}", "norm", rescaled(self.permuted(plus, minus, number), norm), alpha)
        for rank in RANKS:
            reduced = rescaled(low_rank(found.vector, None, rank=rank), norm)
            yield Step(f"rank {rank}", "norm", reduced, alpha)
            yield Step(f"rank {rank}", "kl", reduced, self.at_divergence(reduced, own, alpha))


def measure(anchor: Anchor, tick: Tick) -> list[dict[str, Any]]:
    """Everything of one finetune: a row for each V, and one for each step along the one that the share asks for.

    Args:
        anchor: of it.
        tick: called after every step.
    """
    rows: list[dict[str, Any]] = []
    before = anchor.sampled(None, 0.0)
    rows.append({"step": "anchor", "rate": anchor.rate(before)})
    sides = {"replies": (anchor.replies(True), anchor.replies(False)),
             "training": (anchor.training(True), anchor.training(False))}  # fmt: skip
    few = sides["replies"][0] is None or len(sides["replies"][0].examples) < FEWEST
    chosen = "training" if few else "replies"
    for source, (plus, minus) in sides.items():
        if plus is None or minus is None:
            continue
        found = anchor.vector(source, plus, minus)
        direction, slope, error = anchor.slope(found.vector)
        about = {"source": source, "chosen": source == chosen, "positives": found.positives, "cosine": found.cosine,
                 "norm": found.vector.norm(), "slope": slope, "slope_error": error}  # fmt: skip
        # else `steer` refuses the dose: no alpha can be computed from it
        told = slope is not None and error is not None and bool(slope > 2 * error)
        alpha = -SHIFT / slope if told and slope is not None else anchor.at_divergence(found.vector, BUDGET, 0.0)
        for step in (
            anchor.steps(found, plus, minus, alpha) if source == chosen else [Step("V", "shift", found.vector, alpha)]
        ):
            forecast = None
            if step.name == "V":
                with steered(anchor.model, step.vector, step.alpha):
                    scores = anchor.forecaster.score()
                found_forecast = anchor.forecaster.forecast(scores, direction=direction, alpha=step.alpha)
                rate = found_forecast.rates[anchor.behavior]
                forecast = {"rate": rate.rate, "low": rate.ci_low, "high": rate.ci_high, "method": rate.method,
                            "effective_sample_size": found_forecast.effective_sample_size}  # fmt: skip
            after = anchor.sampled(step.vector, step.alpha)
            rows.append(
                {
                    **about, "step": step.name, "dose": step.dose, "told": told, "alpha": step.alpha,
                    "step_norm": abs(step.alpha) * step.vector.norm(),
                    "kl": anchor.divergence(step.vector, step.alpha), "rate": anchor.rate(after), "forecast": forecast,
                    "realised": realised_shift(before, after, {anchor.behavior: True}, {anchor.behavior: False}),
                }
            )  # fmt: skip
            tick(1, f"{source}, {step.name}")
    return rows
