"""Resuming an interrupted run's sampling; all conditions' plans are checked before anything is sampled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.data.chat import tokenizer_digest
from gradsteer.generation.sampling import stop_token_ids
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.trainer.session import data_of, session_of
from gradsteer.version import __version__


def plan_as_before(trainer: L.Trainer, responses: Path) -> None:
    """Reuses an interrupted run's batch size if `batch_size` is auto.

    Args:
        trainer: a Trainer whose loaders are not made yet.
        responses: the directory of responses.
    """
    data = data_of(trainer)
    if data.batch_size != "auto":
        return
    for condition in session_of(trainer).conditions:
        left = UnfinishedCondition(responses, condition.slug).plan()
        if left is not None:
            data.use_batch_size(left["batch_size"])
            return


class KeptSampling:
    """The sampled batches of all conditions of one run.

    Args:
        trainer: a Trainer whose callbacks have started, so that the doses' alphas are known.
        pl_module: the module that samples.
        responses: the directory of responses.
        anchor: fingerprint of the model.
        overwrite: replace batches of another configuration.

    Raises:
        ValueError: batches belong to another configuration, or to a condition that this run does not have.
    """

    def __init__(self, trainer: L.Trainer, pl_module: Any, responses: Path, anchor: str, *, overwrite: bool) -> None:
        self.trainer, self.session, self.overwrite = trainer, session_of(trainer), overwrite
        conditions = self.session.conditions
        self._conditions = [UnfinishedCondition(responses, each.slug) for each in conditions]
        self._plans = [_plan(trainer, pl_module, anchor, index) for index in range(len(conditions))]
        others = list(self._left_by_others(responses))
        if others and not overwrite:
            names = ", ".join(sorted(each.slug for each in others))
            raise ValueError(
                f"{str(responses)!r} holds responses of an interrupted run with conditions that this one does not "
                f"have: {names}. Continue with that configuration, choose another --output_dir, or replace them with "
                "--overwrite true"
            )
        if not overwrite:
            for kept, plan in zip(self._conditions, self._plans, strict=True):
                kept.check(plan)
        trainer.strategy.barrier()  # all ranks have looked
        if trainer.is_global_zero:
            for each in others:
                each.remove_responses()

    def begin(self, index: int) -> UnfinishedCondition:
        """Opens the next condition, with the batches sampled before (collective)."""
        kept, plan = self._conditions[index], self._plans[index]
        known = kept.begin(plan, overwrite=self.overwrite) if self.trainer.is_global_zero else False
        self.trainer.strategy.barrier()
        if not self.trainer.is_global_zero:
            kept.begin(plan)
        self.session.unfinished.append(kept)
        if known:
            name = self.session.conditions[index].name
            rank_zero_info(f"\n{name}: resumes from earlier batches; responses without a stored verdict are judged")
        return kept

    def _left_by_others(self, responses: Path) -> Iterator[UnfinishedCondition]:
        """For steer: unfinished conditions that belong neither to this run nor to an evaluation in this directory."""
        mine = {kept.slug for kept in self._conditions}
        directory = responses / ".unfinished"
        if self.session.steering is None or not directory.is_dir():
            return
        for path in directory.iterdir():
            evaluated = (responses.parent / "stages" / f"evaluate-{path.name}.json").exists()
            if path.name not in mine and not evaluated:
                yield UnfinishedCondition(responses, path.name)


def _plan(trainer: L.Trainer, pl_module: Any, anchor: str, index: int) -> dict[str, Any]:
    """Everything that determines what is sampled."""
    session, sampling = session_of(trainer), pl_module.sampling
    condition, recipe = session.plan[index]
    return {
        **data_of(trainer).plan_of(condition),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": stop_token_ids(pl_module.model, pl_module.tokenizer),
        "tokenizer": tokenizer_digest(pl_module.tokenizer),
        "model_fingerprint": anchor,
        **how_computed(trainer, pl_module),
        "weights": None if session.steering is None else session.steering.identity(condition, recipe),
    }


def how_computed(trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
    """What a model's numbers hang on beside its weights and its inputs, as plain values."""
    return {
        "dtype": pl_module.dtype_name,
        "attn_implementation": pl_module.loading.attn_implementation,
        "device": pl_module.device.type,
        "precision": str(trainer.precision),
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
