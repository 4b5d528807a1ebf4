"""Fluency: how likely each condition's responses are under the base and the anchor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from gradsteer.data.chat import IGNORE_INDEX, encode_sampled
from gradsteer.data.response_rows import answer_of, cluster_of, is_unanswered
from gradsteer.evaluation.coherence import MIN_TOKENS, Coherence, Nats, Reference
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.unfinished import SETS
from gradsteer.progress import progress
from gradsteer.trainer.condition_counts import count_condition
from gradsteer.trainer.session import needed, session_of, shows_progress
from gradsteer.trainer.tensorboard import log_metrics

_Response = tuple[tuple[int, ...], tuple[int, ...], str]  # ids of the prompt and of the reply, and how it ended


@dataclass(frozen=True)
class FluencyOptions:
    """Which fluency measures to take of the conditions' responses.

    Both need the base model (--steering.base) and cost one forward pass over all distinct responses per model, after
    sampling.

    Attributes:
        base_perplexity: measure the perplexity of every condition's responses under the base.
        mark_incoherent: mark word salad: responses that are, per token, far less likely under both base and anchor
            than the base's and the anchor's own. They are degenerate: counted separately and in no rate.
    """

    base_perplexity: bool = True
    mark_incoherent: bool = True


class DistinctResponses:
    """The distinct responses of all conditions; similar conditions share many.

    Args:
        groups: sampled rows by (condition slug, set of prompts).
    """

    def __init__(self, groups: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
        numbers: dict[_Response, int] = {}
        self.rows = groups
        self.indices = {
            key: np.array([numbers.setdefault(_response(row), len(numbers)) for row in rows])
            for key, rows in groups.items()
        }
        self.examples = [
            encode_sampled(list(prompt), list(reply), finish_reason, loss_mask="assistant")  # type: ignore[arg-type]
            for prompt, reply, finish_reason in numbers
        ]
        labels = [sum(label != IGNORE_INDEX for label in each.labels) for each in self.examples]
        self._num_tokens = np.array(labels, dtype=np.int64)

    def num_tokens(self, key: tuple[str, str]) -> NDArray[np.int64]:
        """(responses,) number of tokens in each response."""
        found: NDArray[np.int64] = self._num_tokens[self.indices[key]]
        return found

    def of(self, nats: Nats, key: tuple[str, str]) -> Nats:
        """(responses,) nats per token of a group's responses.

        Args:
            nats: (distinct responses,) total nats of each distinct response.
            key: the group.
        """
        found: Nats = (nats / self._num_tokens)[self.indices[key]]
        return found

    def reference(self, nats: Nats, key: tuple[str, str]) -> Reference:
        """A model's own coherent responses: with an answer, neither empty nor looping, and long enough to compare."""
        rows, of_each = self.rows[key], self.of(nats, key)
        clear = np.array([(answer := answer_of(row)) is not None and not is_degenerate(answer) for row in rows])
        counts = clear & (self.num_tokens(key) >= MIN_TOKENS)  # shorter ones are never marked and may be outliers
        return Reference(of_each[counts], [cluster_of(row) for row, one in zip(rows, counts, strict=True) if one])


def score_fluency(trainer: L.Trainer, pl_module: Any, options: FluencyOptions) -> None:
    """Measures the responses' perplexity under the base, and marks those unlikely under both base and anchor.

    Collective: every process scores its share. Does nothing without a base or if no option is set.

    Args:
        trainer: a Trainer whose session has sampled and judged all conditions.
        pl_module: the module that holds the model; afterwards no condition is active.
        options: which measures to take.

    Raises:
        ValueError: once the marked responses are excluded, too many verdicts are missing.
    """
    session = session_of(trainer)
    if session.steering is None or session.steering.base is None or session.responses is None:
        return
    if not (options.base_perplexity or options.mark_incoherent):
        return
    sampled = {}
    for condition in session.conditions:
        for of_set in SETS if options.mark_incoherent else SETS[:1]:
            rows = [row for row in session.responses.rows(condition.slug, of_set) if not row["failed"]]
            if rows:
                sampled[condition.slug, of_set] = rows
    responses = DistinctResponses(sampled)
    scorer = ResponseScorer(
        pl_module.model,
        responses.examples,
        pad_token_id=int(pl_module.tokenizer.pad_token_id),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    with session.steering.at_base():
        under_base = _nats(trainer, scorer, "the base")
    if options.base_perplexity:
        for number, result in enumerate(session.results):
            key = (result.condition.slug, "evaluation")
            if key not in sampled:
                continue
            tokens = responses.num_tokens(key)
            mean = float((responses.of(under_base, key) * tokens).sum() / tokens.sum())
            if mean <= 700:  # larger values overflow exp
                result.measured["base_perplexity"] = math.exp(mean)
                log_metrics(trainer, {"metrics/base_perplexity": math.exp(mean)}, step=number)
    if options.mark_incoherent:
        under_anchor = _nats(trainer, scorer, "the anchor")
        failure = _mark(trainer, responses, under_base, under_anchor) if trainer.is_global_zero else None
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise ValueError(failure)


def _response(row: dict[str, Any]) -> _Response:
    return tuple(row["prompt_token_ids"]), tuple(row["token_ids"]), row["finish_reason"]


def _nats(trainer: L.Trainer, scorer: ResponseScorer, under: str) -> Nats:
    """(distinct responses,) ``-log p`` at temperature 1, under the model's current weights (collective)."""
    title = f"responses under {under}"
    with progress(title, total=len(scorer), unit="batch", shown=shows_progress(trainer)) as tick:
        return -scorer.log_probs(tick=tick)


def _mark(trainer: L.Trainer, responses: DistinctResponses, under_base: Nats, under_anchor: Nats) -> str | None:
    """Marks incoherent rows in the files and recounts; returns the reason to stop the run, if any."""
    session = session_of(trainer)
    judging, responses_of, failures = needed(session.judging), needed(session.responses), []
    limits = judging.coherence = {name: _limits(responses, under_base, under_anchor, name) for name in SETS}
    for number, condition in enumerate(session.conditions):
        marked = {}
        for name, limit in limits.items():
            key = (condition.slug, name)
            if limit is None or key not in responses.rows:
                continue
            found = limit.incoherent(
                responses.of(under_base, key), responses.of(under_anchor, key), responses.num_tokens(key)
            )
            rows = _marked(responses_of.rows(*key), found.tolist(), counts=judging.count_degenerate)
            responses_of.write_set(*key, rows)
            if found.any():
                marked[name] = f"{int(found.sum())} of {len(found)}"
        failures.append(count_condition(trainer, number, again=True))
        if marked:
            to = {name: "" if name == "evaluation" else f" to the {name} prompts" for name in marked}
            shown = " and ".join(f"{share} responses{to[name]}" for name, share in marked.items())
            counted = judging.count_degenerate or "evaluation" not in marked
            rates = "" if counted else f"; without them: {session.result(number).counts}"
            rank_zero_info(f"{condition.name}: incoherent (unlikely under both base and anchor): {shown}{rates}")
    return next((failure for failure in failures if failure is not None), None)


def _marked(rows: Sequence[dict[str, Any]], incoherent: list[bool], *, counts: bool) -> list[dict[str, Any]]:
    marks, found = iter(incoherent), []
    for row in rows:
        mark = {} if row["failed"] else {"incoherent": next(marks)}
        if mark:
            mark["degenerate"] = row["degenerate"] or (mark["incoherent"] and not counts and not is_unanswered(row))
        found.append({**row, **mark})
    return found


def _limits(responses: DistinctResponses, under_base: Nats, under_anchor: Nats, name: str) -> Coherence | None:
    """The limits for responses to a set of prompts; None if it has too few responses or was not sampled."""
    own = [
        responses.reference(nats, (slug, name))
        for nats, slug in ((under_base, "anchor"), (under_base, "base"), (under_anchor, "anchor"))
        if (slug, name) in responses.rows
    ]
    return Coherence.of(*own) if len(own) == 3 else None
