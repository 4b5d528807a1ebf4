"""How likely base and anchor find what the conditions replied: neither would write text that fell apart."""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from gradsteer.data.chat import IGNORE_INDEX, encode_sampled
from gradsteer.data.response_rows import cluster_of, response_rows
from gradsteer.evaluation.coherence import MIN_TOKENS, Coherence, Nats, Reference
from gradsteer.evaluation.counting import rates_text
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.unfinished import SETS, UnfinishedCondition
from gradsteer.records import read_jsonl, write_jsonl
from gradsteer.steering.conditions import Condition
from gradsteer.trainer.callbacks.evaluation import JudgeEvaluation
from gradsteer.trainer.tensorboard import log_metrics


class _Scored(NamedTuple):
    """Responses of one condition to one set of prompts under one model; those that were never sampled left out."""

    nats: Nats  # (responses,) a token
    num_tokens: NDArray[np.int64]  # (responses,)
    prompts: list[str]  # (responses,)
    clear: NDArray[np.bool_]  # (responses,) neither empty nor a loop

    @property
    def perplexity(self) -> float | None:
        mean = float((self.nats * self.num_tokens).sum() / self.num_tokens.sum())
        return math.exp(mean) if mean <= 700 else None

    @property
    def reference(self) -> Reference:
        counts = self.clear & (self.num_tokens >= MIN_TOKENS)  # shorter ones are never marked, and one may be far out
        return Reference(self.nats[counts], [each for each, one in zip(self.prompts, counts, strict=True) if one])


_Scores = dict[tuple[str, str], _Scored]  # by slug of the condition and set of prompts


class Fluency(L.Callback):
    """Takes how likely every condition's responses are under the base, and marks those that are no text.

    Both need the base model: --steering.base. They cost a forward pass over all responses for each model, after all are
    sampled.

    Args:
        output_dir: the experiment's directory.
        base_perplexity: take the perplexity of every condition's responses under the base.
        mark_incoherent: mark word salad: responses that base and anchor both find far less likely, token by token, than
            the base's and the anchor's own. They are degenerate: counted on their own, in no rate.
    """

    def __init__(self, output_dir: str, base_perplexity: bool = True, mark_incoherent: bool = True) -> None:
        self.directory = Path(output_dir) / "responses"
        self.base_perplexity, self.mark_incoherent = base_perplexity, mark_incoherent

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Scores the conditions' responses, all with the base's weights, then all with the anchor's."""
        steering = trainer.steering  # type: ignore[attr-defined]
        if steering.base is None or not (self.base_perplexity or self.mark_incoherent):
            return
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        with steering.at_base():
            under_base = self._score(trainer, pl_module, "base")
        for step, condition in enumerate(conditions):
            scored = under_base.get((condition.slug, "evaluation"))
            if self.base_perplexity and scored is not None and (value := scored.perplexity) is not None:
                condition.metrics["base_perplexity"] = value
                log_metrics(trainer, {"metrics/base_perplexity": value}, step=step)
        if self.mark_incoherent:
            under_anchor = self._score(trainer, pl_module, "anchor")
            failure = self._mark(trainer, under_base, under_anchor) if trainer.is_global_zero else None
            failure = trainer.strategy.broadcast(failure)
            if failure is not None:
                raise ValueError(failure)

    def _mark(self, trainer: L.Trainer, under_base: _Scores, under_anchor: _Scores) -> str | None:
        """Marks rows in the files, and counts again what they are no longer in; says why the run cannot go on."""
        evaluation = next(c for c in trainer.callbacks if isinstance(c, JudgeEvaluation))  # type: ignore[attr-defined]
        limits = evaluation.coherence = {name: _limits(under_base, under_anchor, name) for name in SETS}
        failures = []
        for step, condition in enumerate(trainer.conditions):  # type: ignore[attr-defined]
            marked = {}
            for name, limit in limits.items():
                if limit is not None and (base := under_base.get((condition.slug, name))) is not None:
                    found = limit.incoherent(base.nats, under_anchor[condition.slug, name].nats, base.num_tokens)
                    self._write(self._file(condition, name), found, counts=evaluation.count_degenerate)
                    if found.any():
                        marked[name] = f"{int(found.sum())} of {len(found)}"
            failures.append(evaluation.recount(trainer, condition, step))
            if marked:
                to = {name: "" if name == "evaluation" else f" to the {name} prompts" for name in marked}
                shown = " and ".join(f"{number} responses{to[name]}" for name, number in marked.items())
                counted = evaluation.count_degenerate or "evaluation" not in marked
                rates = "" if counted else f"; without them: {rates_text(condition)}"
                rank_zero_info(
                    f"\n{condition.name}: incoherent, what neither the base nor the anchor would write: {shown}{rates}"
                )
        return next((failure for failure in failures if failure is not None), None)

    def _write(self, path: Path, incoherent: NDArray[np.bool_], *, counts: bool) -> None:
        rows, marks = [row for _, row in read_jsonl(path)], iter(incoherent.tolist())
        for row in rows:
            if not row["failed"]:
                row["incoherent"] = next(marks)
                row["degenerate"] = row["degenerate"] or (row["incoherent"] and not counts)
        write_jsonl(path, rows)

    def _score(self, trainer: L.Trainer, pl_module: Any, name: str) -> _Scores:
        """All conditions' responses at the weights that the model has (collective)."""
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero and sys.stderr.isatty()
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        sets = SETS if self.mark_incoherent else SETS[:1]
        found = {}
        with Tqdm(total=len(conditions), desc=f"responses under the {name}", leave=False, disable=not shown) as bar:
            for condition in conditions:
                for of_set in sets:
                    rows = response_rows(str(self._file(condition, of_set)))
                    if rows:
                        found[condition.slug, of_set] = _scored(trainer, pl_module, [row for _, row in rows])
                bar.update()
        return found

    def _file(self, condition: Condition, name: str) -> Path:
        return UnfinishedCondition(self.directory, condition.slug).responses_to(name)


def _scored(trainer: L.Trainer, pl_module: Any, rows: list[dict[str, Any]]) -> _Scored:
    """``-log p(token)`` of responses, at temperature 1."""
    examples = [
        encode_sampled(row["prompt_token_ids"], row["token_ids"], row["finish_reason"], loss_mask="assistant")
        for row in rows
    ]
    num_tokens = np.array([sum(label != IGNORE_INDEX for label in each.labels) for each in examples])
    scorer = ResponseScorer(
        pl_module.model,
        examples,
        pad_token_id=int(pl_module.tokenizer.pad_token_id),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    return _Scored(
        -scorer.log_probs() / num_tokens,
        num_tokens,
        [cluster_of(row) for row in rows],
        np.array([not is_degenerate(row["completion"]) for row in rows]),
    )


def _limits(under_base: _Scores, under_anchor: _Scores, name: str) -> Coherence | None:
    """What the responses to a set of prompts say; None where it was not sampled, or too few of it."""
    own = [
        scores[slug, name].reference
        for scores, slug in ((under_base, "anchor"), (under_base, "base"), (under_anchor, "anchor"))
        if (slug, name) in scores
    ]
    return Coherence.of(*own) if len(own) == 3 else None
