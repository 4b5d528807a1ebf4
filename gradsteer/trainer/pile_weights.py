"""Piles of steered samples: what each reply counts for at the model's own weights.

A reply that was sampled at a step along a vector counts ``w = p(r) / q(r)``: p the model's own density, q that of the
mixture of all that the pile's files were sampled from (`gradsteer.evaluation.mixtures`). Averages are divided by their
sum of weights, so that a pile's gradient is that of the model's own replies with these verdicts, however rare they are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.attribution.pile_partition import Part, Wanted
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import Pile
from gradsteer.data.sources import DataSource
from gradsteer.evaluation.importance_sampling import effective_sample_size, normalised_weights
from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.forecast.pooled_responses import read_pool
from gradsteer.models.train_mode import evaluating
from gradsteer.progress import progress
from gradsteer.records import known_digest, text_digest
from gradsteer.steering.condition_weights import ConditionWeights, StepOptions
from gradsteer.trainer.response_scorers import response_scorer
from gradsteer.trainer.session import data_of, needed, shows_progress
from gradsteer.trainer.source_scores import densities_of, source_scores
from gradsteer.vectors.parameter_vectors import SteeringVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_SAMPLE_SIZE = 30.0  # of a pile: below, its average hangs on a few replies

_OPTION = "--data.sampled_along"


class PileWeights:
    """The weights of a run's piles of steered samples.

    Args:
        pools: pile -> all responses of its files, those of other verdicts too; piles that are weighed only.
        files: vectors that they were sampled along, each with its file's digest.
    """

    def __init__(self, pools: Mapping[str, JudgedResponses], files: Mapping[str, str]) -> None:
        self.pools, self.files = dict(pools), dict(files)
        self._parts: Sequence[Part] = ()
        self._digests: dict[int, str] = {}

    @classmethod
    def read(
        cls,
        piles: Sequence[Pile],
        sources: Mapping[str, str | PileFilter | DataSource],
        vectors: Sequence[str],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        num_ids: int,
        say: Any = rank_zero_info,
    ) -> "PileWeights | None":
        """Reads the files of piles that name several, or that were sampled at a step; None if none is to be weighed.

        Args:
            piles: all of them.
            sources: pile -> what it was read from.
            vectors: files of the vectors that responses were sampled along.
            tokenizer: of the model.
            num_ids: token ids of the model.
            say: takes a line on a pile of a step that is not weighed.

        Raises:
            FileNotFoundError: a vector's file is missing.
            ValueError: files that do not belong together, a step along none of the vectors, a vector that none was
                sampled along, or a setting that weights would make another one; names the pile and the file.
        """
        for path in vectors:
            if not Path(path).is_file():
                raise FileNotFoundError(
                    f"data.sampled_along: no vector at {path!r}; accepted: vectors/NAME.safetensors"
                )
        files = {path: known_digest(path) for path in vectors}
        read: dict[tuple[str, ...], JudgedResponses] = {}
        pools = {}
        for pile in piles:
            paths = _paths(sources[pile.name])
            if len(paths) == 1 and not (pile.is_steered and files):
                if pile.is_steered:
                    say(
                        f"pile {pile.name}: sampled at a step along a vector, and taken as it is; to weigh it to the "
                        f"model's own replies: {_OPTION} FILE, the vector"
                    )
                continue
            option = f"pile {pile.name!r}: responses"
            if paths not in read:
                read[paths] = read_pool(paths, tokenizer, num_ids=num_ids, option=option)
            if read[paths].is_steered:
                _check(pile.name, sources[pile.name], read[paths], files)
                pools[pile.name] = read[paths]
        along = {source.step.vector for pool in pools.values() for source in pool.sources if source.step is not None}
        for path, digest in files.items():
            if digest not in along:
                raise ValueError(f"data.sampled_along: no pile holds responses that were sampled along {path!r}")
        return cls(pools, files) if pools else None

    def check_vectors(self, vectors: Mapping[str, Sequence[str]]) -> None:
        """Refuses a vector of one pile that is weighed and one that is not."""
        for name, pair in vectors.items():
            weighed = [pile in self.pools for pile in pair]
            if any(weighed) and not all(weighed):
                raise ValueError(
                    f"vector {name!r}: pile {pair[weighed.index(True)]!r} is of steered samples and weighed, pile "
                    f"{pair[weighed.index(False)]!r} is not; accepted: the same list of responses for both"
                )

    def give(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Scores the piles' files at every step that they were sampled at; sets the weights of piles and parts.

        Collective. The model has its own weights before and after.

        Raises:
            ValueError: the responses are of another model, or a pile's effective sample size is too small.
        """
        data = data_of(trainer)
        piles: dict[str, Pile] = {pile.name: pile for pile in data.piles}
        weighed: dict[int, dict[str, float]] = {}
        for name, pool in self.pools.items():
            if id(pool) not in weighed:
                found = self._weigh(trainer, pl_module, pool)
                weighed[id(pool)] = dict(zip(pool.places, found.tolist(), strict=True))
                self._digests[id(pool)] = _digest(pool)
            pile = piles[name]
            pile.weights = [weighed[id(pool)][source] for source in pile.sources]
            _check_size(name, pool, np.array(pile.weights))
        self._parts = data.parts
        for part in self._parts:
            if any(pile in self.pools for pile, _ in part.places):
                part.weights = [piles[pile].weight(index) for pile, index in part.places]

    def _weigh(self, trainer: L.Trainer, pl_module: Any, pool: JudgedResponses) -> np.ndarray:
        """(responses,) mean 1."""
        model, fingerprint = pl_module.model, pl_module.fingerprint
        if pool.fingerprint != fingerprint:
            raise ValueError(
                f"{pool.path!r} was sampled at steps from weights with fingerprint {pool.fingerprint}, the model has "
                f"{fingerprint}: it is no sample of this model's neighbourhood; accepted: the model that was steered"
            )
        step = next(source.step for source in pool.sources if source.step is not None)
        path = next(path for path, digest in self.files.items() if digest == step.vector)
        how, _, seed = (step.rounding or "nearest").partition(" ")
        options = StepOptions(rounding=how, seed=int(seed or 0), allow_other_model=True)  # type: ignore[arg-type]
        weights = ConditionWeights(model, {path: SteeringVector.load(path)}, options=options)
        how_sampled = needed(pool.temperature), needed(pool.top_p)
        scorer = response_scorer(trainer, pl_module, pool.examples, *how_sampled, data_of(trainer).budget())
        shown = shows_progress(trainer)
        with evaluating(model):
            with progress("steered samples at the model", len(scorer), unit="batch", shown=shown) as tick:
                own = scorer.log_probs(tick=tick)
            _, scores = source_scores(
                pool,
                own,
                lambda tick: scorer.log_probs(tick=tick),
                weights,
                {path: step.vector},
                num_batches=len(scorer),
                option=("data.piles", _OPTION),
                shown=shown,
            )
        mixture = mixture_log_density(densities_of(pool, scores), pool.source_counts)
        found: np.ndarray = normalised_weights(own - mixture) * len(pool)
        return found

    def digest(self, part: Part) -> str:
        """Of everything that decides a part's weights but the model."""
        return text_digest(json.dumps(sorted({self._digests[id(self.pools[pile])] for pile, _ in part.places})))

    def metadata(self, wanted: Wanted) -> dict[str, str]:
        """What the file of a sum says of its weights."""
        if (pool := self.pools.get(wanted.pile)) is None:
            return {}
        mine = [part.weights for part in self._parts if wanted in part.sums and part.weights is not None]
        return {
            "weights": "own density / mixture",
            "sampled_at": json.dumps([source.to_dict() for source in pool.sources]),
            "effective_sample_size": f"{effective_sample_size(np.concatenate(mine)):.4g}",
        }


def _paths(source: str | PileFilter | DataSource) -> tuple[str, ...]:
    if isinstance(source, PileFilter):
        return tuple(source.files)
    return (str(DataSource.of(source).local_path),)


def _check(name: str, source: str | PileFilter | DataSource, pool: JudgedResponses, files: Mapping[str, str]) -> None:
    """Refuses what cannot be weighed, before a model is loaded."""
    if isinstance(source, PileFilter) and source.length is not None:
        raise ValueError(
            f"pile {name!r}: length {source.length} asks for the median of the model's own replies, and "
            f"{pool.path!r} holds steered samples; accepted: the model's own responses, or no length"
        )
    missing = [key for key in ("temperature", "top_p") if getattr(pool, key) is None]
    if missing or pool.top_k:
        why = f"does not say its {missing[0]}" if missing else f"was sampled with top_k {pool.top_k}"
        raise ValueError(f"pile {name!r}: {pool.path!r} {why}: its densities are not known, and so no weights")
    for each in pool.sources:
        if each.step is not None and each.step.vector not in files.values():
            given = f"; given: {', '.join(files)}" if files else ""
            raise ValueError(
                f"pile {name!r}: {each.path!r} was sampled at alpha {each.alpha:+g} along the vector whose file has "
                f"digest {each.step.vector[:16]}..., and is weighed along it: {_OPTION} FILE{given}"
            )


def _check_size(name: str, pool: JudgedResponses, weights: np.ndarray) -> None:
    size = effective_sample_size(weights)
    files = f"{len(pool.sources)} files" if len(pool.sources) > 1 else "one file"
    said = f"pile {name}: {len(weights)} responses from {files} count as much as {size:.1f} of the model's own"
    if size < MIN_SAMPLE_SIZE:
        alphas = ", ".join(f"{source.alpha:+g}" for source in pool.sources)
        raise ValueError(
            f"{said} (effective sample size); accepted: {MIN_SAMPLE_SIZE:g} or more. Take more responses, of a smaller "
            f"dose than these (alpha {alphas}), or add files of the model itself and of steps in between"
        )
    rank_zero_info(f"{said} (effective sample size)")


def _digest(pool: JudgedResponses) -> str:
    steps = [[None if s.step is None else s.step.to_dict(), s.num_responses] for s in pool.sources]
    ids = [example.input_ids for example in pool.examples]
    return text_digest(json.dumps([steps, pool.temperature, pool.top_p, ids]))
