"""Credit in a run: what each token of a reply weighs in its vector's gradients, once the model can predict verdicts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.attribution.credit import CreditOptions
from gradsteer.attribution.pile_partition import Part, halves_of_prompts
from gradsteer.attribution.verdict_prediction import FOLDS, Predictions, predict_verdicts
from gradsteer.data.batching import share_of_rank
from gradsteer.data.chat import IGNORE_INDEX, EncodedExample
from gradsteer.data.piles import Pile
from gradsteer.models.batches import BatchLayout, running
from gradsteer.models.hidden_states import labelled_states
from gradsteer.models.memory import available_bytes, size
from gradsteer.models.parallel import gathered
from gradsteer.progress import progress
from gradsteer.records import text_digest
from gradsteer.trainer.session import data_of, shows_progress
from gradsteer.trainer.tensorboard import log_metrics

Place = tuple[str, int]  # a pile's name and an index in it
_LARGEST = 6e4  # of float16, in which states wait


@dataclass(frozen=True)
class _Sides:
    """A vector's replies with and without its behavior, as they are or as they were dealt again.

    Attributes:
        vector: its name.
        plus: places of the replies that count as showing the behavior.
        minus: of the others.
        parts: whose gradients they are.
    """

    vector: str
    plus: list[Place]
    minus: list[Place]
    parts: list[Part]


class TokenCredit:
    """Weighs the tokens of a run's replies by what verdicts are predicted from them.

    Args:
        trainer: the Trainer, whose datamodule holds piles, parts and vectors.
        pl_module: the attribution module, its model at its own weights.
        options: a credit that predicts.
    """

    def __init__(self, trainer: L.Trainer, pl_module: Any, options: CreditOptions) -> None:
        self.trainer, self.module, self.options = trainer, pl_module, options
        self.data = data_of(trainer)
        self.piles: dict[str, Pile] = {pile.name: pile for pile in self.data.piles}
        self._half_of = halves_of_prompts(self.data.piles)
        self.metadata: dict[str, dict[str, str]] = {}
        self._digests: dict[int, str] = {}

    def give(self, layout: BatchLayout) -> None:
        """Runs the model over all replies, predicts, and sets the weights of parts and of the piles' responses.

        Collective. A file's metadata of each pile are in `metadata` afterwards.

        Args:
            layout: how the model runs sequences.
        """
        every = [place for pile in self.piles for place in self._places(pile)]
        states = dict(zip(every, self._states(layout, [self._whole(place) for place in every]), strict=True))
        sides = list(self._sides())
        folds = 2 * FOLDS * len(sides)
        with progress("predicting verdicts", folds, unit="fold", shown=shows_progress(self.trainer)) as tick:
            for each in sides:
                self._weigh(each, states, tick)

    def digest(self, part: Part) -> str:
        """Of everything that decides a part's weights but the model."""
        return self._digests[id(part)]

    def _whole(self, place: Place) -> EncodedExample:
        response = self.piles[place[0]].responses[place[1]]
        assert response is not None  # refused by the datamodule
        return response

    def _sides(self) -> Iterator[_Sides]:
        """The vectors' own sides, and those of their permutations."""
        plain = [part for part in self.data.parts if not (part.squares or part.is_permuted)]
        for name, (plus, minus) in self.data.vectors.items():
            mine = [part for part in plain if {wanted.pile for wanted in part.sums} & {plus, minus}]
            yield _Sides(name, self._places(plus), self._places(minus), mine)
        dealt: dict[tuple[str, int], dict[str, Part]] = {}
        for part in self.data.parts:
            if (permutation := part.sums[0].permutation) is not None:
                dealt.setdefault((permutation.vector, permutation.index), {})[permutation.side] = part
        for (name, _), pair in dealt.items():
            yield _Sides(name, pair["plus"].places, pair["minus"].places, list(pair.values()))

    def _places(self, pile: str) -> list[Place]:
        return [(pile, index) for index in range(len(self.piles[pile].examples))]

    def _weigh(self, sides: _Sides, states: dict[Place, np.ndarray], tick: Any) -> None:
        places = [*sides.plus, *sides.minus]
        shows = [True] * len(sides.plus) + [False] * len(sides.minus)
        prompts = [self.piles[pile].prompts[index] for pile, index in places]
        counts = np.array([self.piles[pile].weight(index) for pile, index in places])
        found = predict_verdicts(
            [states[place] for place in places], shows, prompts, self._half_of, sample_weight=counts, tick=tick
        )
        rate = float(np.average(shows, weights=counts))
        is_own = not sides.parts[0].is_permuted
        weights = {}
        for place, odds, shown in zip(places, found.odds, shows, strict=True):
            weights[place] = self.options.weights(odds, shows=shown, rate=rate)
            if is_own:  # the slope takes an unbiased one
                own = self.options.unbiased.weights(odds, shows=shown, rate=rate)
                self.piles[place[0]].responses[place[1]] = _weighted(self._whole(place), own)
        ids = [[self._whole(place).input_ids for place in side] for side in (sides.plus, sides.minus)]
        split = [(prompt, self._half_of[prompt]) for prompt in prompts]  # which replies predict which
        digest = text_digest(json.dumps([self.options.metadata(), ids, split]))
        for part in sides.parts:
            self._digests[id(part)] = digest
            for index, place in enumerate(part.places):
                part.examples[index] = _weighted(part.examples[index], weights[place])
        if is_own:
            self._tell(sides.vector, found)

    def _tell(self, name: str, found: Predictions) -> None:
        rank_zero_info(f"vector {name}: verdicts predicted from replies' beginnings: {found}")
        scores = {"brier_score": found.brier, "brier_score_of_rate": found.constant}
        log_metrics(self.trainer, {f"vector/{name}/{key}": value for key, value in scores.items()}, step=0)
        for pile in self.data.vectors[name]:
            self.metadata[pile] = {key: repr(value) for key, value in scores.items()}

    def _states(self, layout: BatchLayout, examples: Sequence[EncodedExample]) -> list[np.ndarray]:
        """(tokens, hidden size) float16 of each, on every process; equal replies run once."""
        model, trainer = self.module.model, self.trainer
        by_ids = {tuple(example.input_ids): example for example in examples}
        distinct = list(by_ids.values())
        plan = layout.plan_examples(distinct, self.data.budget())
        plan += [[]] * (-len(plan) % trainer.world_size)
        mine = share_of_rank(plan, trainer.global_rank, trainer.world_size)
        _check_room(sum(e.num_target_tokens for e in distinct), model.config.get_text_config().hidden_size, trainer)
        everyone: dict[int, np.ndarray] = {}
        with progress("hidden states", len(mine), unit="batch", shown=shows_progress(trainer)) as tick:
            for indices in mine:
                batch = layout.make([distinct[index] for index in indices])
                with running(batch, model), trainer.precision_plugin.forward_context():
                    states, owners = labelled_states(model, batch)
                states = states.clamp(-_LARGEST, _LARGEST).half().cpu()
                found = [(index, states[owners.cpu() == place].numpy()) for place, index in enumerate(indices)]
                # batch by batch: a device that gathers holds what is on its way
                everyone.update(pair for part in gathered(found) for pair in part)
                tick()
        of = {ids: everyone[index] for index, ids in enumerate(by_ids)}
        return [of[tuple(example.input_ids)] for example in examples]


def _check_room(num_tokens: int, hidden_size: int, trainer: L.Trainer) -> None:
    """Compares the states with the memory, as every process of a machine holds all of them.

    Raises:
        ValueError: there is too little; names both numbers.
    """
    wanted, have = 2 * num_tokens * hidden_size * trainer.num_devices, available_bytes(torch.device("cpu"), held=0)
    if have is not None and wanted > have:
        raise ValueError(
            f"the hidden states of {num_tokens:,} tokens that verdicts are predicted from need {size(wanted)} of memory"
            f", and {size(have)} are free; accepted: smaller piles, or --model.credit decided"
        )


def _weighted(example: EncodedExample, weights: np.ndarray) -> EncodedExample:
    """The example with weights for its labelled tokens, as many of them as it keeps."""
    places = [place for place, label in enumerate(example.labels) if label != IGNORE_INDEX]
    every = [1.0] * len(example.labels)
    for place, weight in zip(places, weights.tolist(), strict=False):
        every[place] = weight
    return replace(example, weights=every)
